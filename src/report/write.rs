//! A report as JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::types::Report;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the report to {}: {source}. The run itself is not affected; check that the \
     folder exists and that you may write to it.",
    path.display()
)]
pub struct ReportError {
    /// Where it should have gone.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl Report {
    /// The report as indented JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has no map with keys that are no text")
    }

    /// Writes the report as JSON. A file is replaced in one step, so a reader sees the old one or
    /// the whole new one; a device or pipe (`/dev/stderr`) is written to.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when the folder is missing, not writable or full; no file is left then.
    pub fn write_json(&self, path: &Path) -> Result<(), ReportError> {
        let text = self.to_json() + "\n";
        replace(path, text.as_bytes()).map_err(|source| ReportError {
            path: path.to_owned(),
            source,
        })
    }
}

/// Reports whether this is the file of a model: it begins as one.
pub fn is_model(path: &Path) -> bool {
    let mut start = [0; 4];
    // to open a pipe is to wait for who writes to it
    let is_file = fs::metadata(path).is_ok_and(|known| known.is_file());
    let read = |start: &mut [u8]| File::open(path)?.read_exact(start);
    is_file && read(&mut start).is_ok() && &start == b"GGUF"
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Through a link, so that the link stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&target) {
        Ok(known) if known.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(known) if !known.is_file() => {
            let mut device = OpenOptions::new().append(true).open(path)?;
            return device.write_all(bytes);
        }
        _ => {}
    }
    let Some(name) = target.file_name() else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    let temporary = target.with_file_name(hidden);
    let written = write_file(&temporary, bytes).and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        // It may not exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own that goes when the test does.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let unique = format!("pipeshard-report-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(unique);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn report() -> Report {
        Report {
            engaged: true,
            device: "SIM0".to_owned(),
            simulated_device: Some(serde_json::json!({ "copies": 3 })),
            ..Report::default()
        }
    }

    #[test]
    fn writes_and_replaces_a_file_and_leaves_nothing_else() {
        let folder = Folder::new("replace");
        let path = folder.0.join("report.json");
        Report::off("a test").write_json(&path).unwrap();
        report().write_json(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
        assert_eq!(folder.entries(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = Folder::new("link");
        let (file, link) = (folder.0.join("file"), folder.0.join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        report().write_json(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&file).unwrap().contains("SIM0"));
    }

    #[test]
    fn devices_are_written_to() {
        report().write_json(Path::new("/dev/null")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn errors_name_the_path_and_leave_nothing() {
        let folder = Folder::new("errors");
        let missing = folder.0.join("missing").join("report.json");
        let message = report().write_json(&missing).unwrap_err().to_string();
        assert!(message.contains("missing/report.json"), "{message}");
        assert!(message.contains("run itself is not affected"), "{message}");
        assert!(report().write_json(&folder.0).is_err());
        assert!(report().write_json(Path::new("")).is_err());
        assert_eq!(folder.entries(), 0);
    }

    #[test]
    fn json_says_what_the_fields_are_called() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        assert_eq!(json["schema_version"], 2);
        assert_eq!(json["engaged"], true);
        assert_eq!(json["reason"], serde_json::Value::Null);
        for pointer in [
            "/budget",
            "/peak/resident",
            "/peak/kv",
            "/peak/slots",
            "/peak/scratch",
            "/peak/vision",
            "/peak/other",
            "/peak/total",
            "/passes/prompt",
            "/passes/decode",
            "/host_waits/hand_overs",
            "/units/decode/host",
            "/units/prompt/streamed",
            "/stalls",
            "/graph_reuses",
            "/bytes_streamed",
        ] {
            assert_eq!(json.pointer(pointer), Some(&0.into()), "{pointer}");
        }
        assert_eq!(json["simulated_device"]["copies"], 3);
        // A reader of today copes with a report that lacks what tomorrow's has.
        let sparse: Report = serde_json::from_str(r#"{"engaged":true}"#).unwrap();
        assert!(sparse.engaged);
    }
}
