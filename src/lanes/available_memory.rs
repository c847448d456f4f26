//! How much host memory may be page-locked: what the system and the control group of this process can spare.
//!
//! The kernel does not know that page-locked pages of a file cannot be reclaimed: it goes on to call them available, and ends
//! processes when they are not. So who locks subtracts from what is said here what it has locked by now, and asks ahead of each step.
//! Memory that cannot be reclaimed anyway (it is not a copy of a file on a disk) is not available, locked or not.

use std::path::{Path, PathBuf};

/// Kept for the rest of the system: a sixteenth of all memory, at least so much.
const LEAST_MARGIN: u64 = 512 << 20;

/// Returns the bytes that may be page-locked in all, including those already locked; `None` if unknown.
pub fn lockable_bytes() -> Option<u64> {
    let meminfo = read(Path::new("/proc/meminfo"));
    let total = kib_of(&meminfo, "MemTotal:");
    let system = kib_of(&meminfo, "MemAvailable:");
    let group = read(Path::new("/proc/self/cgroup"));
    let limits = group_folders(&group)
        .into_iter()
        .filter_map(|folder| spare_of(&folder));
    let spare = system.into_iter().chain(limits).min()?;
    let margin = (total.unwrap_or(0) / 16).max(LEAST_MARGIN);
    // a small container has no margin of half a gigabyte
    Some(spare - margin.min(spare / 4))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A line of /proc/meminfo, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    kib.checked_mul(1024)
}

/// The folders of this process's memory control group and of those above it, from the text of /proc/self/cgroup.
fn group_folders(text: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(kinds), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = match kinds {
            "" => PathBuf::from("/sys/fs/cgroup"),
            _ if kinds.split(',').any(|kind| kind == "memory") => {
                PathBuf::from("/sys/fs/cgroup/memory")
            }
            _ => continue,
        };
        let own = root.join(path.trim_start_matches('/'));
        // a container may see its own group as the root, whatever path it is told
        let inside = own
            .ancestors()
            .take_while(|folder| folder.starts_with(&root));
        folders.extend(inside.map(Path::to_path_buf));
    }
    folders
}

/// What a control group leaves, in bytes: its limit less what it holds that cannot be reclaimed. `None`: it has no limit.
fn spare_of(folder: &Path) -> Option<u64> {
    let number = |name: &str| read(&folder.join(name)).trim().parse::<u64>().ok();
    // beyond the lower one a process is slowed down without end
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let limit = limits.into_iter().filter_map(number).min()?;
    let held = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    Some(limit.saturating_sub(held.saturating_sub(reclaimable(&read(&folder.join("memory.stat"))))))
}

/// Pages of files, in bytes, from the text of memory.stat.
fn reclaimable(stat: &str) -> u64 {
    let of = |key: &str| {
        let line = stat
            .lines()
            .find(|line| line.split(' ').next() == Some(key))?;
        line.split(' ').nth(1)?.parse::<u64>().ok()
    };
    let v1 = of("total_inactive_file").zip(of("total_active_file"));
    let (inactive, active) = v1
        .or_else(|| of("inactive_file").zip(of("active_file")))
        .unwrap_or((0, 0));
    inactive.saturating_add(active)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_something() {
        let lockable = lockable_bytes().expect("Linux tells");
        let total = kib_of(&read(Path::new("/proc/meminfo")), "MemTotal:").expect("Linux tells");
        assert!(lockable < total, "{lockable} of {total}");
    }

    #[test]
    fn both_kinds_of_groups_are_found() {
        let root = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(
            group_folders("0::/a/b\n"),
            [root.join("a/b"), root.join("a"), root.clone()]
        );
        assert_eq!(group_folders("0::/\n"), std::slice::from_ref(&root));
        let old = "12:cpu,cpuacct:/x\n7:memory:/docker/1\n";
        let memory = root.join("memory");
        assert_eq!(
            group_folders(old),
            [memory.join("docker/1"), memory.join("docker"), memory]
        );
        assert!(group_folders("nonsense").is_empty());
    }

    #[test]
    fn a_limit_counts_less_what_cannot_be_reclaimed() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let put = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file can be written")
        };
        assert_eq!(spare_of(folder.path()), None);
        put("memory.max", "max\n");
        put("memory.current", "700\n");
        assert_eq!(spare_of(folder.path()), None);
        put("memory.max", "1000\n");
        assert_eq!(spare_of(folder.path()), Some(300));
        put(
            "memory.stat",
            "anon 100\ninactive_file 400\nactive_file 200\nslab 1\n",
        );
        assert_eq!(spare_of(folder.path()), Some(900));
        put("memory.high", "800\n");
        assert_eq!(spare_of(folder.path()), Some(700));
        put("memory.current", "5000\n");
        put("memory.stat", "");
        assert_eq!(spare_of(folder.path()), Some(0));
    }
}
