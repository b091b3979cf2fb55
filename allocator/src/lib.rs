//! The allocator of the broker, and the one thing that it has to be asked for. A crate of its own, because that is a call
//! into C, and everything else forbids `unsafe`.

/// Many small allocations cross threads in the broker, which this one is made for.
pub use mimalloc::MiMalloc;

/// Gives back to the system what the calling thread allocated and no longer needs. What other threads have freed of it
/// stays with a thread until it allocates more of the same: one that sleeps keeps it for ever.
#[expect(unsafe_code, reason = "the binding has no safe form of it")]
pub fn collect() {
    // SAFETY: the function has no precondition: it works on the calling thread's own heap, and is meant to be called at
    // any time, see `mi_collect` in mimalloc's documentation.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: MiMalloc = MiMalloc;

    fn rss_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// 128 MiB that another thread frees stayed with the thread that had allocated them.
    #[test]
    fn what_another_thread_has_freed_goes_back() {
        let before = rss_kib();
        let blocks: Vec<Vec<u8>> = (0..32 << 10).map(|_| vec![1; 4 << 10]).collect();
        assert!(rss_kib() > before + (100 << 10), "{before} KiB before");
        std::thread::spawn(|| drop(blocks)).join().unwrap();
        collect();
        assert!(rss_kib() < before + (16 << 10), "{before} KiB before, {} behind it", rss_kib());
    }
}
