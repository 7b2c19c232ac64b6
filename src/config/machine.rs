//! How much memory this process may still take, and what says so.
//!
//! On Linux the least of: what the kernel takes to be available without swapping, what the control groups of the process
//! leave (version 2 and 1, its own and those around it), and what `RLIMIT_AS` and `RLIMIT_DATA` leave. Elsewhere nobody
//! says. All of it is read from text files below a root, so that a test can lay out any machine.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// What bounds the memory that is available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryBound {
    /// Nobody says.
    #[default]
    Unknown,
    /// The machine's free memory.
    Machine,
    /// A control group's limit.
    ControlGroup,
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    DataSegment,
    /// `--gpu-memory-utilization` of a card's own memory, which nothing else lives in.
    Card,
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Machine => "free memory of the machine",
            Self::ControlGroup => "left by the limit of the control group",
            Self::AddressSpace => "left by ulimit -v",
            Self::DataSegment => "left by ulimit -d",
            Self::Card => "of the card's memory, by --gpu-memory-utilization",
        })
    }
}

/// What [`resolve`](super::resolve) must know of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// Memory that this process may take beyond what it has, before the weights are loaded; `None` where nobody can say.
    pub available_memory_bytes: Option<usize>,
    /// What says so.
    pub bound: MemoryBound,
}

impl MachineFacts {
    /// Of this machine and this process, now.
    #[must_use]
    pub fn here() -> Self {
        Self::below(Path::new("/"))
    }

    /// As the files `proc` and `sys` below `root` have it.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        let status = read(&root.join("proc/self/status")).unwrap_or_default();
        let limits = read(&root.join("proc/self/limits")).unwrap_or_default();
        let left = |limit: &str, used: &str| Some(limit_of(&limits, limit)?.saturating_sub(kilobytes(&status, used)?));
        let free = read(&root.join("proc/meminfo")).and_then(|text| kilobytes(&text, "MemAvailable:"));
        let bounds = [
            (free, MemoryBound::Machine),
            (control_groups(root), MemoryBound::ControlGroup),
            (left("Max address space", "VmSize:"), MemoryBound::AddressSpace),
            (left("Max data size", "VmData:"), MemoryBound::DataSegment),
        ];
        let least =
            bounds.into_iter().filter_map(|(bytes, bound)| Some((bytes?, bound))).min_by_key(|(bytes, _)| *bytes);
        least.map_or_else(Self::default, |(bytes, bound)| Self { available_memory_bytes: Some(bytes), bound })
    }
}

impl MachineFacts {
    /// Of a card with `free` of `total` bytes, of which the server may take a `share`: what others have taken counts as the
    /// server's.
    #[must_use]
    pub fn of_card(free: usize, total: usize, share: f64) -> Self {
        let taken = total.saturating_sub(free);
        // A float counts bytes exactly up to 2^53, which is more than cards have.
        let may_take = (total as f64 * share) as usize;
        let available = may_take.min(total).saturating_sub(taken);
        Self { available_memory_bytes: Some(available), bound: MemoryBound::Card }
    }

    /// The same, without what was promised to other models and not taken yet: of `promised` bytes, this process holds
    /// `taken`.
    #[must_use]
    pub fn beside(self, promised: u64, taken: u64) -> Self {
        let owed = usize::try_from(promised.saturating_sub(taken)).unwrap_or(usize::MAX);
        Self { available_memory_bytes: self.available_memory_bytes.map(|bytes| bytes.saturating_sub(owed)), ..self }
    }

    /// The same, with so many bytes more.
    #[must_use]
    pub fn with(self, bytes: u64) -> Self {
        let more = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self { available_memory_bytes: self.available_memory_bytes.map(|bytes| bytes.saturating_add(more)), ..self }
    }
}

/// Bytes of this process that are in memory and of no file, on Linux.
#[must_use]
pub fn anonymous_bytes() -> Option<u64> {
    kilobytes(&read(Path::new("/proc/self/status"))?, "RssAnon:").map(|bytes| bytes as u64)
}

/// Bytes of this process that are in memory, on Linux.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    kilobytes(&read(Path::new("/proc/self/status"))?, "VmRSS:").map(|bytes| bytes as u64)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The bytes on the line `key … kB`.
fn kilobytes(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<usize>().ok()?.checked_mul(1024)
}

/// The soft limit on the line of that name; none where it is `unlimited`.
fn limit_of(limits: &str, name: &str) -> Option<usize> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// How a version of control groups names its files.
struct Hierarchy {
    /// Below `sys/fs/cgroup`.
    mount: &'static str,
    /// Limits, in bytes or `max`.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Lines of `memory.stat` with bytes of files that the kernel gives back before it kills anybody.
    reclaimable: [&'static str; 2],
}

const VERSION_2: Hierarchy = Hierarchy {
    mount: "",
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    reclaimable: ["inactive_file ", "active_file "],
};
const VERSION_1: Hierarchy = Hierarchy {
    mount: "memory",
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

/// The least that the control groups of this process leave; none where none has a limit.
fn control_groups(root: &Path) -> Option<usize> {
    let lists = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    // `id:controllers:path`; version 2 has no controllers there.
    let path_in = |version_2: bool| {
        lists.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let own = if version_2 { controllers.is_empty() } else { controllers.split(',').any(|c| c == "memory") };
            own.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let left = |hierarchy: &Hierarchy, version_2: bool| {
        let mount = root.join("sys/fs/cgroup").join(hierarchy.mount);
        // Inside a container the path may be the host's; its limit then stands at the mount itself.
        let own = path_in(version_2).map(PathBuf::from).unwrap_or_default();
        let own = own.components().all(|part| matches!(part, std::path::Component::Normal(_))).then_some(own);
        let own = own.unwrap_or_default();
        own.ancestors().filter_map(|group| hierarchy.left_in(&mount.join(group))).min()
    };
    [left(&VERSION_2, true), left(&VERSION_1, false)].into_iter().flatten().min()
}

impl Hierarchy {
    /// What the limit of one group leaves.
    fn left_in(&self, group: &Path) -> Option<usize> {
        let number = |name: &str| read(&group.join(name))?.trim().parse::<usize>().ok();
        let limit = self.limits.iter().filter_map(|name| number(name)).min()?;
        let stat = read(&group.join("memory.stat")).unwrap_or_default();
        let bytes = |key: &&str| stat.lines().find_map(|line| line.strip_prefix(*key)?.trim().parse::<usize>().ok());
        let files = self.reclaimable.iter().filter_map(bytes).fold(0, usize::saturating_add);
        let used = number(self.usage)?.saturating_sub(files);
        Some(limit.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of these files.
    fn machine(files: &[(&str, &str)]) -> MachineFacts {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("is below the root")).expect("is made");
            fs::write(path, text).expect("is written");
        }
        MachineFacts::below(root.path())
    }

    fn facts(bytes: usize, bound: MemoryBound) -> MachineFacts {
        MachineFacts { available_memory_bytes: Some(bytes), bound }
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       24644296 kB\nMemFree:         1 kB\nMemAvailable:   1000 kB\nBuffers: 2 kB\n",
    );

    #[test]
    fn available_memory_is_read_from_its_line() {
        assert_eq!(machine(&[MEMINFO]), facts(1_024_000, MemoryBound::Machine));
        assert_eq!(machine(&[]), MachineFacts::default());
        for text in ["", "MemAvailable:", "MemAvailable: x kB", "MemAvailable: 5 MB", "MemTotal: 5 kB"] {
            assert_eq!(machine(&[("proc/meminfo", text)]), MachineFacts::default(), "{text}");
        }
    }

    #[test]
    fn the_least_limit_of_all_groups_around_the_process_counts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "900\n"),
            ("sys/fs/cgroup/a/memory.max", "5000\n"),
            ("sys/fs/cgroup/a/memory.current", "1000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 400\ninactive_file 300\nactive_file 200\n"),
        ];
        assert_eq!(machine(&files), facts(4500, MemoryBound::ControlGroup), "files of the page cache are given back");
        let mut high = files.to_vec();
        high.push(("sys/fs/cgroup/a/memory.high", "4000\n"));
        assert_eq!(machine(&high), facts(3500, MemoryBound::ControlGroup));
    }

    #[test]
    fn a_container_that_is_told_the_hosts_path_finds_its_limit_at_the_mount() {
        let mount = [("sys/fs/cgroup/memory.max", "7000"), ("sys/fs/cgroup/memory.current", "8000")];
        let files = [&[MEMINFO, ("proc/self/cgroup", "0::/../../kubepods/x\n")][..], &mount].concat();
        assert_eq!(machine(&files), facts(0, MemoryBound::ControlGroup), "a group may be over its limit");
    }

    #[test]
    fn groups_of_the_first_version_are_read_too() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,memory:/docker/x\n1:name=systemd:/y\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 1000\n"),
        ];
        assert_eq!(machine(&files), facts(5000, MemoryBound::ControlGroup));
    }

    #[test]
    fn what_others_were_promised_and_have_not_taken_is_not_there() {
        let there = facts(1000, MemoryBound::Machine);
        assert_eq!(there.beside(0, 50), there);
        assert_eq!(there.beside(300, 50), facts(750, MemoryBound::Machine));
        assert_eq!(there.beside(300, 400), there, "taken already: the machine has counted it");
        assert_eq!(there.beside(u64::MAX, 0), facts(0, MemoryBound::Machine));
        assert_eq!(MachineFacts::default().beside(300, 0), MachineFacts::default(), "nobody says");
    }

    #[test]
    fn a_card_gives_its_share_less_what_is_taken_already() {
        assert_eq!(MachineFacts::of_card(1000, 1000, 0.9), facts(900, MemoryBound::Card));
        assert_eq!(MachineFacts::of_card(700, 1000, 0.9), facts(600, MemoryBound::Card));
        assert_eq!(MachineFacts::of_card(50, 1000, 0.9), facts(0, MemoryBound::Card), "others have it");
        assert_eq!(MachineFacts::of_card(1000, 1000, 1.0), facts(1000, MemoryBound::Card));
    }

    #[test]
    fn the_limits_of_the_process_count() {
        let status = ("proc/self/status", "VmSize:\t 100 kB\nVmRSS:\t 7 kB\nVmData:\t  50 kB\n");
        let limits = |text| ("proc/self/limits", text);
        let space = limits(
            "Limit  Soft Limit Hard Limit Units\nMax data size  unlimited unlimited bytes\nMax address space   204800  unlimited  bytes\n",
        );
        assert_eq!(machine(&[MEMINFO, status, space]), facts(102_400, MemoryBound::AddressSpace));
        let data = limits(
            "Max data size             61440 unlimited bytes\nMax address space   unlimited  unlimited  bytes\n",
        );
        assert_eq!(machine(&[MEMINFO, status, data]), facts(10_240, MemoryBound::DataSegment));
    }
}
