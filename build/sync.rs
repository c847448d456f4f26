//! Writing a tree of files to a folder so that files whose content is the same keep their time stamps: ninja then
//! rebuilds what a patch really changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// Top-level names that no target is built from.
const SKIPPED: [&str; 8] = [
    ".git",
    ".github",
    ".devops",
    "docs",
    "gguf-py",
    "media",
    "models",
    "node_modules",
];

/// What a folder is to contain: a path in it, and the file that has the content.
pub struct Tree {
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Tree {
    /// All files of a source tree, but those that nothing is built from and those of in-tree build folders.
    pub fn of(origin: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (name, path) in entries(origin)? {
            let text = name.to_string_lossy();
            let is_build =
                path.is_dir() && (text.starts_with("build") || text.starts_with("cmake-build"));
            if !is_build && !SKIPPED.contains(&text.as_ref()) {
                collect(&path, Path::new(&name), &mut files)?;
            }
        }
        Ok(Tree { files })
    }

    /// Sets the content of one file to that of another.
    pub fn put(&mut self, path: PathBuf, content: PathBuf) {
        self.files.insert(path, content);
    }

    /// Takes one file out.
    pub fn remove(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// Makes the folder contain these files and no others.
    pub fn write_to(&self, dir: &Path) -> Result<()> {
        let mut present = BTreeMap::new();
        if dir.is_dir() {
            collect(dir, Path::new(""), &mut present)?;
        }
        for (path, file) in &present {
            if !self.files.contains_key(path) {
                fs::remove_file(file)
                    .map_err(|e| format!("cannot remove {}: {e}", file.display()))?;
            }
        }
        for (path, content) in &self.files {
            let target = dir.join(path);
            if !present.contains_key(path) || !same_content(content, &target)? {
                copy_file(content, &target)?;
            }
        }
        Ok(())
    }
}

/// Makes a folder exist and be empty.
pub fn empty_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
    }
    fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))
}

/// Copies a file, making the folders that it needs. The copy is new: its time stamp is now.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|e| format!("cannot make {}: {e}", parent.display()))?;
    }
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|e| format!("cannot copy {} to {}: {e}", from.display(), to.display()))
}

fn entries(dir: &Path) -> Result<Vec<(std::ffi::OsString, PathBuf)>> {
    let failed = |e: std::io::Error| format!("cannot list {}: {e}", dir.display());
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map(|e| (e.file_name(), e.path())).map_err(failed))
        .collect()
}

/// Collects the files at or below `path`. Links to files count as files; links to folders are left out.
fn collect(path: &Path, relative: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    let kind =
        fs::symlink_metadata(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    if kind.is_dir() {
        for (name, child) in entries(path)? {
            collect(&child, &relative.join(name), files)?;
        }
    } else if path.is_file() {
        files.insert(relative.to_path_buf(), path.to_path_buf());
    }
    Ok(())
}

fn same_content(a: &Path, b: &Path) -> Result<bool> {
    let read =
        |path: &Path| fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let length = |path: &Path| fs::metadata(path).map(|m| m.len()).ok();
    Ok(length(a) == length(b) && read(a)? == read(b)?)
}
