//! What measuring has to know of the host: read from where the system tells it.

use std::path::Path;

use pipeshard_model::size::ByteSize;

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Bytes of the CPU's last caches, all of them together; 32 MiB if unknown.
pub(super) fn last_cache_bytes() -> u64 {
    let mut caches = std::collections::HashMap::new();
    for cpu in 0..4096 {
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/cache");
        let last = (0..8)
            .map(|index| Path::new(&folder).join(format!("index{index}")))
            .take_while(|cache| cache.exists())
            .last();
        let Some(cache) = last else { break };
        if let Ok(size) = read(cache.join("size")).trim().parse::<ByteSize>() {
            caches.insert(read(cache.join("shared_cpu_list")), size.0);
        }
    }
    match caches.values().sum() {
        0 => 32 << 20,
        bytes => bytes,
    }
}

/// Bytes of memory that programs may still take; 4 GiB if unknown.
pub(super) fn free_memory() -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_something() {
        assert!(last_cache_bytes() >= 1 << 16);
        assert!(free_memory() > 1 << 20);
    }
}
