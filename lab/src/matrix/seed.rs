//! The seed that chooses a tenth of the matrix: another one whenever a source changes.

use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Folders and files that decide what the tools do.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "build",
    "crates",
    "ggml-pipeshard",
    "lab/src",
    "patches",
    "src",
];

/// The first eight bytes of a SHA-256.
pub fn hash(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    let first = digest.iter().take(8);
    first.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A number of five digits, by the names and contents of all sources of the repository.
///
/// # Errors
/// A source that cannot be read.
pub fn of_sources(repository: &Path) -> io::Result<u64> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&repository.join(source), &mut files)?;
    }
    files.sort();
    let mut all = Sha256::new();
    for file in &files {
        let content = std::fs::read(file)?;
        let name = file.strip_prefix(repository).unwrap_or(file);
        all.update(name.as_os_str().as_encoded_bytes());
        all.update((content.len() as u64).to_le_bytes());
        all.update(&content);
    }
    Ok(hash(&all.finalize()) % 100_000)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        let name = entry.file_name().and_then(|name| name.to_str());
        // what tests leave behind is not a source
        if name.is_some_and(|name| !name.starts_with('.') && !name.ends_with(".new")) {
            collect(&entry, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_source_is_another_seed() {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path();
        for source in SOURCES {
            let path = repository.join(source);
            match source.contains('.') {
                true => std::fs::write(path, source).unwrap(),
                false => std::fs::create_dir_all(path).unwrap(),
            }
        }
        let mut seeds = vec![of_sources(repository).unwrap()];
        let change = |name: &str, text: &str| {
            std::fs::write(repository.join(name), text).unwrap();
            of_sources(repository).unwrap()
        };
        seeds.push(change("src/a.rs", "1"));
        seeds.push(change("src/a.rs", "2"));
        seeds.push(change("patches/b.patch", "2"));
        seeds.push(change("Cargo.lock", "2"));
        let last = seeds[4];
        assert_eq!(change("src/a.snap.new", "x"), last);
        assert_eq!(change("README.md", "x"), last);
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 5);
        std::fs::remove_file(repository.join("Cargo.toml")).unwrap();
        assert!(of_sources(repository).is_err());
    }
}
