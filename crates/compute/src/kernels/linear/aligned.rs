//! The memory that packed weights lie in.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer bytes are not worth a range of their own.
const WORTH_A_RANGE: usize = 2 << 20;
/// Each may part two others from each other; Linux lets a process have 65,530 (`vm.max_map_count`).
static RANGES: Ranges = Ranges { live: AtomicUsize::new(0), most: 16 * 1024 };

/// Bytes at a cache line's boundary, that the operating system zeroes when they are first touched, in huge pages where it has them
/// to give: what a processor fetches ahead of a stream by itself ends with a page.
pub(super) struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    _range: Option<Range>,
}

impl AlignedBytes {
    const ALIGNMENT: usize = 64;

    pub(super) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        let range = if len < WORTH_A_RANGE { None } else { RANGES.take() };
        if range.is_some() {
            prefer_huge_pages(&bytes);
        }
        Self { bytes, start, len, _range: range }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

/// How many ranges of memory are unlike their neighbours.
struct Ranges {
    live: AtomicUsize,
    most: usize,
}

/// One of [`Ranges`], until it is dropped.
struct Range(&'static Ranges);

impl Ranges {
    fn take(&'static self) -> Option<Range> {
        let one_more = |live| (live < self.most).then_some(live + 1);
        self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Range(self))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Advises the system so of all pages that bytes lie in, the first and the last too: neighbours in memory are then one range.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(bytes: &[u8]) {
    // SAFETY: it only asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = usize::try_from(page).ok().filter(|page| page.is_power_of_two()) else {
        return;
    };
    let range = bytes.as_ptr_range();
    let first = range.start.map_addr(|address| address & !(page - 1));
    let len = (range.end.addr() - first.addr()).next_multiple_of(page);
    // SAFETY: each page holds a part of `bytes` and is mapped therefore, and advice changes nothing that pages hold. A system
    // that has no huge pages refuses, and nothing is lost.
    let _refused = unsafe { libc::madvise(first.cast_mut().cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::{AlignedBytes, AtomicUsize, Ranges};

    #[test]
    fn bytes_are_zeros_at_a_boundary() {
        for len in [0, 1, 63, 64, 4097, (3 << 20) + 5] {
            let mut bytes = AlignedBytes::zeroed(len);
            assert_eq!((bytes.as_slice().len(), bytes.as_slice().as_ptr().addr() % 64), (len, 0));
            assert!(bytes.as_slice().iter().all(|&byte| byte == 0));
            bytes.as_mut_slice().fill(1);
        }
    }

    #[test]
    fn ranges_are_so_many_at_once() {
        static TWO: Ranges = Ranges { live: AtomicUsize::new(0), most: 2 };
        let [first, second, third] = [TWO.take(), TWO.take(), TWO.take()];
        assert!(first.is_some() && second.is_some() && third.is_none());
        drop(first);
        assert!(TWO.take().is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn bytes_are_in_a_range_that_huge_pages_are_asked_for() {
        if !std::fs::exists("/sys/kernel/mm/transparent_hugepage/enabled").unwrap() {
            eprintln!("this system has no huge pages to ask for");
            return;
        }
        let bytes = AlignedBytes::zeroed(5 << 20);
        let address = bytes.as_slice().as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        let flags = maps.lines().find(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let ends = range.map(|(first, end)| [first, end].map(|hex| usize::from_str_radix(hex, 16)));
            if let Some([Ok(first), Ok(end)]) = ends {
                is_ours = (first..end).contains(&address);
            }
            is_ours && line.starts_with("VmFlags:")
        });
        let flags = flags.expect("the address is mapped");
        assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
    }
}
