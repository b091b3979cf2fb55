//! How long a thread that wants to run stands still: because the host of a virtual machine has taken its core away, or
//! because something else on the machine has it.
//!
//! Often that happens only while all cores are busy, and then it is the tail of whatever has a thread on each: a server of
//! one thread has one to lose.

use std::time::{Duration, Instant};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(2);
/// Longer than the time a scheduler shares out among threads of which there are no more than cores.
const STALL: Duration = Duration::from_millis(1);

/// What threads lost that did nothing but look at the clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stalls {
    /// Of their time, what went into stalls of more than a millisecond, in percent.
    pub(super) percent: f64,
    /// The longest, in milliseconds, however short.
    pub(super) longest_ms: f64,
}

/// With so many threads at work.
pub(super) fn of_threads(threads: usize) -> Stalls {
    let lost = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(watch)).collect();
        // They do not panic.
        running.into_iter().filter_map(|thread| thread.join().ok()).collect::<Vec<_>>()
    });
    let all: Duration = lost.iter().map(|(sum, _)| *sum).sum();
    let longest = lost.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    Stalls {
        percent: all.as_secs_f64() * 100.0 / (WATCHED.as_secs_f64() * threads as f64),
        longest_ms: longest.as_secs_f64() * 1000.0,
    }
}

fn watch() -> (Duration, Duration) {
    let began = Instant::now();
    let (mut sum, mut longest, mut last) = (Duration::ZERO, Duration::ZERO, began);
    while last - began < WATCHED {
        let now = Instant::now();
        let gap = now - last;
        if gap > STALL {
            sum += gap;
        }
        longest = longest.max(gap);
        last = now;
    }
    (sum, longest)
}
