//! Whole files or none. A file is written under another name and then put in place, so a reader never sees half of one; where the disk
//! is full nothing is left.

use std::io::{self, Read, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// Files that pipeshard writes are smaller: the plan of a model with 2000 tensors takes a megabyte.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// What is kept in a file for a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored<T> {
    /// What belongs to the key.
    Valid(Box<T>),
    /// Nothing, or what belongs to another key.
    Nothing,
    /// A file that is damaged, and a sentence about it. What is kept next takes its place.
    Damaged(String),
}

/// Loads what is kept in a file. `parse` gives nothing for what belongs to another key; `told` makes a sentence of what is wrong.
pub(crate) fn load<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<Option<T>, String>,
    told: impl FnOnce(String) -> String,
) -> Stored<T> {
    let text = match read(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Stored::Nothing,
        Err(error) => return Stored::Damaged(told(error.to_string())),
    };
    match parse(&text) {
        Ok(Some(found)) => Stored::Valid(Box::new(found)),
        Ok(None) => Stored::Nothing,
        Err(why) => Stored::Damaged(told(why)),
    }
}

fn written(folder: &Path, text: &[u8]) -> io::Result<NamedTempFile> {
    std::fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_data()?;
    Ok(file)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Writes the file, or replaces it.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let file = written(folder_of(path), text)?;
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}

/// Writes the file unless there is one. False if there was.
pub(crate) fn write_first(path: &Path, text: &[u8]) -> io::Result<bool> {
    let file = written(folder_of(path), text)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.error),
    }
}

/// What a file holds; none where there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(file) => file.take(MAX_BYTES + 1).read_to_end(&mut text)?,
    };
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other("it is too large")),
        false => Ok(Some(text)),
    }
}

/// The files of a folder whose names begin and end so, the oldest first; none where the folder cannot be read.
pub(crate) fn list(folder: &Path, begin: &str, end: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(begin) && name.ends_with(end))
        })
        .map(|path| (path.metadata().and_then(|m| m.modified()).ok(), path))
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

/// Removes a file. A file that is already gone is not an error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
