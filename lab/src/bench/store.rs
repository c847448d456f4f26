//! Results in a file, one JSON object per line, so that a run that was cut short can be taken up again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::types::{Key, Measurement, Outcome};

/// The measurements of a run, in memory and in a file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    known: HashSet<Key>,
    /// All measurements, those of earlier runs first.
    pub measurements: Vec<Measurement>,
}

/// The results cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; nothing was measured, because the results could not be kept")]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

impl Store {
    /// Opens the file, or makes it. Lines that cannot be read (the last one of a run that was killed) are measured again, and
    /// so is what failed.
    ///
    /// # Errors
    /// [`StoreError`] where the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |source| StoreError {
            path: path.to_owned(),
            source,
        };
        let mut measurements = Vec::new();
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    let line = line.map_err(fail)?;
                    if let Ok(measurement) = serde_json::from_slice::<Measurement>(&line) {
                        measurements.push(measurement);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        measurements.retain(|m| !matches!(m.outcome, Outcome::Failed { .. }));
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(fail)?;
        // after a line that was cut short
        file.write_all(b"\n").map_err(fail)?;
        Ok(Store {
            path: path.to_owned(),
            file,
            known: measurements.iter().map(Measurement::key).collect(),
            measurements,
        })
    }

    /// Reports whether this was measured.
    pub fn has(&self, key: &Key) -> bool {
        self.known.contains(key)
    }

    /// Keeps a measurement.
    ///
    /// # Errors
    /// [`StoreError`] where the file cannot be written.
    pub fn add(&mut self, measurement: Measurement) -> Result<(), StoreError> {
        let fail = |source| StoreError {
            path: self.path.clone(),
            source,
        };
        let line = serde_json::to_string(&measurement).map_err(|e| fail(e.into()))?;
        writeln!(self.file, "{line}").map_err(fail)?;
        self.file.flush().map_err(fail)?;
        self.known.insert(measurement.key());
        self.measurements.push(measurement);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::{Approach, Test};
    use super::*;

    fn measurement(tokens: u32, outcome: Outcome) -> Measurement {
        Measurement {
            model: "m".to_owned(),
            budget: Some(1),
            approach: Approach::Pipeshard,
            setting: String::new(),
            ubatch: Some(512),
            test: Test::prompt(tokens),
            round: 1,
            seconds: vec![0.5],
            peak: Some(1),
            counted: None,
            outcome,
        }
    }

    #[test]
    fn what_was_measured_is_known_again_and_what_failed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut store = Store::open(&path).unwrap();
        store.add(measurement(8, Outcome::Valid)).unwrap();
        let failed = Outcome::Failed {
            reason: "no".to_owned(),
        };
        store.add(measurement(16, failed)).unwrap();
        // cut short, as by a kill
        store.file.write_all(b"{\"model\":\"m\",\"bud").unwrap();
        drop(store);
        let mut again = Store::open(&path).unwrap();
        assert!(again.has(&measurement(8, Outcome::Valid).key()));
        assert!(!again.has(&measurement(16, Outcome::Valid).key()));
        again.add(measurement(16, Outcome::Valid)).unwrap();
        drop(again);
        assert_eq!(Store::open(&path).unwrap().measurements.len(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let error = Store::open(Path::new("/nowhere/results.jsonl")).unwrap_err();
        assert!(error.to_string().contains("nothing was measured"));
    }
}
