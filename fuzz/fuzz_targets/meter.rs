//! Counts what the code under test has allocated: what is kept, and the most that there was at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator; beside it numbers are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        more(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(now, Relaxed);
}

/// A moment; what was allocated since is asked of it. One thread alone may allocate meanwhile.
pub struct Meter(usize);

impl Meter {
    pub fn start() -> Meter {
        let now = NOW.load(Relaxed);
        MOST.store(now, Relaxed);
        Meter(now)
    }

    /// Bytes that were allocated since, and are still.
    #[allow(dead_code, reason = "not every target asks")]
    pub fn kept(&self) -> usize {
        NOW.load(Relaxed).saturating_sub(self.0)
    }

    /// The most bytes that there were at once.
    pub fn most(&self) -> usize {
        MOST.load(Relaxed).saturating_sub(self.0)
    }
}
