//! What passes read next, asked for while they compute.

use crate::kernels::{processor::is_intel, simd::Simd};

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// What is to be asked for, in equal parts.
pub(super) struct Ahead {
    next: *const u8,
    end: *const u8,
    lines: usize,
}

impl Ahead {
    /// So many bytes from an address on, in so many parts.
    pub(super) fn new(from: *const u8, bytes: usize, parts: usize) -> Self {
        let lines = bytes.div_ceil(LINE).div_ceil(parts.max(1));
        Self { next: from, end: from.wrapping_add(if parts > 0 { bytes } else { 0 }), lines }
    }

    /// What follows a stream that is read from its begin to its end. AMD's processors (the fourth generation of EPYC) fetch that by
    /// themselves and are only disturbed; of Intel's it has to be asked for.
    pub(super) fn of_stream((from, bytes): (*const u8, usize), parts: usize) -> Self {
        Self::new(from, bytes, if is_intel() { parts } else { 0 })
    }

    /// Asks for a part.
    #[inline(always)]
    pub(super) fn ask(&mut self, simd: impl Simd) {
        if self.next < self.end {
            for _ in 0..self.lines {
                simd.prefetch_far_line(self.next);
                self.next = self.next.wrapping_add(LINE);
            }
        }
    }
}
