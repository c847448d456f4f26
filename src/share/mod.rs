//! A total of device memory that several processes share: who belongs to a group, and how much of the total each has.
//!
//! A group is a folder. Each member has a file there that says its budget, and which it keeps locked for as long as it lives: so a
//! process that ended in whatever way is no member any more. Who changes the shares holds the lock of the folder, so that two do not
//! both take what is left. Members ask each other through sockets ([`ask`]). Knows no device and no runtime: [`crate::hook`] says when.
//!
//! The sum of all budgets never exceeds the total: a budget that shrinks is written when it has shrunk, one that grows before it grows.

pub mod ask;
pub mod shares;
pub mod visit;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What files of members end in.
const MEMBER: &str = "member";
/// The file that is locked by who changes shares.
const LOCK: &str = "lock";
/// What their sockets end in.
const SOCKET: &str = "socket";
/// Digits of a budget: it is written in one piece, over the one before.
const DIGITS: usize = 20;

/// Processes that share a total.
#[derive(Debug, Clone)]
pub struct Group {
    folder: PathBuf,
}

/// The right to change who has how much; given back when dropped.
#[derive(Debug)]
pub struct Held<'g> {
    group: &'g Group,
    _lock: File,
}

/// This process in a group, until it is dropped.
#[derive(Debug)]
pub struct Member {
    file: File,
    path: PathBuf,
    socket: PathBuf,
}

/// Another process in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its number.
    pub process: u32,
    /// Its budget in bytes; 0 before it has one.
    pub budget: u64,
    /// Where it is asked.
    pub socket: PathBuf,
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(
        ErrorKind::PermissionDenied,
        format!("{}: {why}", path.display()),
    )
}

/// Makes a folder that nobody else can look into, or takes one that is.
fn own_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(why) if why.kind() != ErrorKind::AlreadyExists => return Err(why),
        _ => {}
    }
    let found = fs::symlink_metadata(path)?;
    // SAFETY: no preconditions.
    let user = unsafe { libc::geteuid() };
    if !found.is_dir() || found.uid() != user {
        return Err(refused(path, "it is not a folder of this user's"));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Err(refused(path, "others than its owner may look into it"));
    }
    Ok(())
}

/// Where groups of this user are: below `XDG_RUNTIME_DIR` where there is one.
fn usual_place(runtime_folder: Option<PathBuf>) -> PathBuf {
    match runtime_folder.filter(|folder| folder.is_dir()) {
        Some(folder) => folder.join("pipeshard"),
        // SAFETY: no preconditions.
        None => std::env::temp_dir().join(format!("pipeshard-{}", unsafe { libc::geteuid() })),
    }
}

/// The folder of this user for what its processes tell each other.
///
/// # Errors
/// There is none that belongs to this user alone.
fn own_place() -> io::Result<PathBuf> {
    let place = usual_place(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    own_folder(&place)?;
    Ok(place)
}

/// Removes what groups left whose processes are all gone, but for this one.
fn sweep(place: &Path, but: &str) {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    for folder in entries.map(|entry| entry.path()) {
        if folder.file_name().is_some_and(|name| name == but) || own_folder(&folder).is_err() {
            continue;
        }
        let group = Group { folder };
        let Some(held) = group.try_hold() else {
            continue;
        };
        if held.others(0).is_ok_and(|others| others.is_empty()) {
            let _ = fs::remove_file(group.folder.join(LOCK));
            // who has just joined stays: the folder is not empty then
            let _ = fs::remove_dir(&group.folder);
        }
    }
}

impl Group {
    /// The group of this name, below the usual place.
    ///
    /// # Errors
    /// There is no folder for it that belongs to this user alone.
    pub fn open(name: &str) -> io::Result<Self> {
        let place = own_place()?;
        sweep(&place, name);
        Self::at(&place.join(name))
    }

    /// The group in this folder, whose parent is there.
    ///
    /// # Errors
    /// As [`Group::open`].
    pub fn at(folder: &Path) -> io::Result<Self> {
        own_folder(folder)?;
        Ok(Group {
            folder: folder.to_owned(),
        })
    }

    fn lock_file(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(self.folder.join(LOCK))
    }

    /// Waits until nobody else changes shares.
    ///
    /// # Errors
    /// The folder is gone or cannot be written to.
    pub fn hold(&self) -> io::Result<Held<'_>> {
        let lock = self.lock_file()?;
        lock.lock()?;
        Ok(Held {
            group: self,
            _lock: lock,
        })
    }

    /// The same without waiting; none while somebody else changes shares, or where that cannot be known.
    pub fn try_hold(&self) -> Option<Held<'_>> {
        let lock = self.lock_file().ok()?;
        lock.try_lock().ok()?;
        Some(Held {
            group: self,
            _lock: lock,
        })
    }

    /// Makes this process a member without a budget.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn join(&self, process: u32) -> io::Result<Member> {
        let path = self.folder.join(format!("{process}.{MEMBER}"));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let file = match options.open(&path) {
            // somebody has taken the folder for one that was left
            Err(why) if why.kind() == ErrorKind::NotFound => {
                own_folder(&self.folder)?;
                options.open(&path)?
            }
            opened => opened?,
        };
        file.try_lock()?;
        let member = Member {
            file,
            socket: self.folder.join(format!("{process}.{SOCKET}")),
            path,
        };
        member.write(0)?;
        Ok(member)
    }
}

impl Held<'_> {
    /// All members but the one of this number. Files of processes that are gone are removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn others(&self, process: u32) -> io::Result<Vec<Other>> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.group.folder)? {
            let path = entry?.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let is_member = path.extension().is_some_and(|end| end == MEMBER);
            let Some(other) = number.filter(|&other: &u32| is_member && other != process) else {
                continue;
            };
            // one that ends meanwhile takes its file with it
            let Ok(mut file) = File::open(&path) else {
                continue;
            };
            let socket = path.with_extension(SOCKET);
            if file.try_lock_shared().is_ok() {
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(&socket);
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            others.push(Other {
                process: other,
                budget: text.trim().parse().unwrap_or(0),
                socket,
            });
        }
        others.sort_by_key(|other| other.process);
        Ok(others)
    }
}

impl Member {
    /// Says how large its budget is, in bytes: before it grows, or when it has shrunk.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&self, budget: u64) -> io::Result<()> {
        self.file
            .write_all_at(format!("{budget:0DIGITS$}").as_bytes(), 0)
    }

    /// Where others ask it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.socket);
        let _ = (&self.file).flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(within: &tempfile::TempDir) -> Group {
        Group::at(&within.path().join("group")).unwrap()
    }

    #[test]
    fn members_see_what_the_others_have_and_who_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let group = group(&folder);
        let (one, two) = (group.join(1).unwrap(), group.join(2).unwrap());
        two.write(7 << 30).unwrap();
        one.write(u64::MAX).unwrap();
        let seen = |by| {
            let others = group.hold().unwrap().others(by).unwrap();
            let seen = others.iter().map(|other| (other.process, other.budget));
            seen.collect::<Vec<_>>()
        };
        assert_eq!(seen(1), [(2, 7 << 30)]);
        assert_eq!(seen(2), [(1, u64::MAX)]);
        one.write(3).unwrap();
        assert_eq!(seen(2), [(1, 3)]);
        assert_eq!(seen(3), [(1, 3), (2, 7 << 30)]);
        drop(two);
        assert_eq!(seen(1), []);
        // one that could not remove its file
        let left = folder.path().join("group/4.member");
        fs::write(&left, "123").unwrap();
        assert_eq!(seen(1), []);
        assert!(!left.exists());
    }

    #[test]
    fn what_groups_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let group = |name| Group::at(&place.path().join(name)).unwrap();
        let (used, left) = (group("used"), group("left"));
        let member = used.join(7).unwrap();
        drop(left.hold().unwrap());
        fs::write(left.folder.join("5.member"), "9").unwrap();
        sweep(place.path(), "other");
        assert!(!left.folder.exists());
        assert_eq!(used.hold().unwrap().others(0).unwrap().len(), 1);
        // one that was about to be joined
        let joined = left.join(8).unwrap();
        assert_eq!(left.hold().unwrap().others(0).unwrap().len(), 1);
        drop((member, joined));
    }

    #[test]
    fn one_at_a_time_changes_shares() {
        let folder = tempfile::tempdir().unwrap();
        let group = group(&folder);
        let held = group.hold().unwrap();
        assert!(group.try_hold().is_none());
        drop(held);
        assert!(group.try_hold().is_some());
    }

    #[test]
    fn a_folder_that_others_can_look_into_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let why = Group::at(&open).unwrap_err().to_string();
        assert!(why.contains("others than its owner"), "{why}");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(Group::at(&link).is_err());
    }

    #[test]
    fn groups_are_below_the_runtime_folder_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = usual_place(Some(folder.path().to_owned()));
        assert_eq!(place, folder.path().join("pipeshard"));
        for none in [None, Some(folder.path().join("none"))] {
            let place = usual_place(none).display().to_string();
            assert!(place.contains("/pipeshard-"), "{place}");
        }
    }
}
