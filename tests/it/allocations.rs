//! An allocator that counts what one thread asks for while it is being measured.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What a measured piece of work asked of the allocator.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Most bytes held at once.
    pub(crate) peak_bytes: usize,
    /// The largest single request.
    pub(crate) largest_bytes: usize,
}

#[derive(Clone, Copy)]
struct Counters {
    held_bytes: isize,
    measured: Measured,
}

thread_local! {
    /// `None` while this thread is not measured. Constant and without a destructor, so that touching it allocates
    /// nothing.
    static COUNTERS: Cell<Option<Counters>> = const { Cell::new(None) };
}

/// Runs `work` and says what this thread asked of the allocator meanwhile. Not to be nested.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Measured) {
    let start = Counters { held_bytes: 0, measured: Measured::default() };
    COUNTERS.set(Some(start));
    let result = work();
    let end = COUNTERS.replace(None);
    (result, end.map(|counters| counters.measured).unwrap_or_default())
}

fn count(asked_bytes: usize, freed_bytes: usize) {
    COUNTERS.with(|cell| {
        let Some(mut counters) = cell.get() else { return };
        counters.held_bytes += asked_bytes as isize - freed_bytes as isize;
        let Measured { peak_bytes, largest_bytes } = counters.measured;
        counters.measured = Measured {
            peak_bytes: peak_bytes.max(usize::try_from(counters.held_bytes).unwrap_or(0)),
            largest_bytes: largest_bytes.max(asked_bytes),
        };
        cell.set(Some(counters));
    });
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's contract is the system allocator's, and all pointers came from it.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: the caller's contract is the system allocator's, and all pointers came from it.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_allocator_counts_what_is_held_and_what_is_asked_for() {
    let ((), measured) = measure(|| {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        drop(std::hint::black_box(Vec::<u8>::with_capacity(3 << 20)));
    });
    assert_eq!((measured.peak_bytes, measured.largest_bytes), (3 << 20, 3 << 20));
}
