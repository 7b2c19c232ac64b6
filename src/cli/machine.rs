//! What this machine has free.

use std::{fs, path::Path};

use crate::config::MachineFacts;

/// What can be known without asking for it: on Linux the kernel's estimate of the memory that is available without
/// swapping, within the limit of the control group; elsewhere nothing.
pub(super) fn facts() -> MachineFacts {
    let read = |path: &str| fs::read_to_string(Path::new(path)).ok();
    let free = read("/proc/meminfo").and_then(|text| meminfo_available_bytes(&text));
    let group = || {
        let limit: usize = read("/sys/fs/cgroup/memory.max")?.trim().parse().ok()?;
        let used: usize = read("/sys/fs/cgroup/memory.current")?.trim().parse().ok()?;
        Some(limit.saturating_sub(used))
    };
    MachineFacts { available_memory_bytes: [free, group()].into_iter().flatten().min() }
}

/// Bytes of this process that are in memory, on Linux.
pub(super) fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

fn meminfo_available_bytes(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_its_line() {
        let text = "MemTotal:       24644296 kB\nMemFree:         1 kB\nMemAvailable:   23187000 kB\nBuffers: 2 kB\n";
        assert_eq!(meminfo_available_bytes(text), Some(23_187_000 * 1024));
        for text in ["", "MemAvailable:", "MemAvailable: x kB", "MemAvailable: 5 MB", "MemTotal: 5 kB"] {
            assert_eq!(meminfo_available_bytes(text), None, "{text}");
        }
    }
}
