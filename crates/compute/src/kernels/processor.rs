//! Whose processor this is, where that decides how something is done best.

use std::sync::LazyLock;

/// Whether it is Intel's.
pub(crate) fn is_intel() -> bool {
    static IS_INTEL: LazyLock<bool> = LazyLock::new(|| vendor() == *b"GenuineIntel");
    *IS_INTEL
}

#[cfg(target_arch = "x86_64")]
fn vendor() -> [u8; 12] {
    let leaf = std::arch::x86_64::__cpuid(0);
    let mut vendor = [0; 12];
    for (to, from) in vendor.as_chunks_mut::<4>().0.iter_mut().zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        *to = from.to_le_bytes();
    }
    vendor
}

#[cfg(not(target_arch = "x86_64"))]
fn vendor() -> [u8; 12] {
    [0; 12]
}
