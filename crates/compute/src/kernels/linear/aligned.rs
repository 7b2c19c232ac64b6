//! The memory that packed weights lie in.

/// Bytes at a cache line's boundary, that the operating system zeroes when they are first touched, in huge pages where it has them
/// to give: what a processor fetches ahead of a stream by itself ends with a page.
pub(super) struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    const ALIGNMENT: usize = 64;

    pub(super) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        prefer_huge_pages(&bytes);
        Self { bytes, start, len }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
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
    use super::AlignedBytes;

    #[test]
    fn bytes_are_zeros_at_a_boundary() {
        for len in [0, 1, 63, 64, 4097, (3 << 20) + 5] {
            let mut bytes = AlignedBytes::zeroed(len);
            assert_eq!((bytes.as_slice().len(), bytes.as_slice().as_ptr().addr() % 64), (len, 0));
            assert!(bytes.as_slice().iter().all(|&byte| byte == 0));
            bytes.as_mut_slice().fill(1);
        }
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
