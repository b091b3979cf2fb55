//! How near two cores are to each other: a cache line that one has written, fetched by the other and brought back.
//!
//! In a virtual machine this changes by the minute, by a factor of five, as the host moves its guests: two cores that
//! share a cache, or two that do not. Programs with several threads feel it, those with one do not; so each figure says
//! beside which distance it was measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Round trips of a batch, and batches; the median is told. Some milliseconds in all.
const TRIPS: u64 = 2_000;
const BATCHES: usize = 9;

/// What it is called among the figures of a measurement.
pub(super) const FIGURE: &str = "core_to_core_ns";

/// A line of its own, also where lines are fetched in pairs.
#[repr(align(128))]
struct Line(AtomicU64);

/// A round trip between the first two cores that this process may use, in nanoseconds; none where there is one core, or
/// the system does not let threads stay on theirs.
pub(super) fn round_trip_ns() -> Option<f64> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (near, far) = (cores.next()?, cores.next()?);
    let line = Line(AtomicU64::new(0));
    let mut batches = std::thread::scope(|scope| {
        // Threads of their own: where they stay is nobody else's business.
        let here = scope.spawn(|| {
            stay_on(near)?;
            let batch = |nth: usize| {
                let (first, began) = (nth as u64 * TRIPS, Instant::now());
                for trip in first..first + TRIPS {
                    line.0.store(2 * trip + 1, Ordering::Release);
                    wait_for(&line, 2 * trip + 2);
                }
                began.elapsed().as_nanos() as f64 / TRIPS as f64
            };
            Some((0..BATCHES).map(batch).collect::<Vec<f64>>())
        });
        scope.spawn(|| {
            // If it may not, the trips are made all the same, and nobody waits in vain.
            let _ = stay_on(far);
            for trip in 0..BATCHES as u64 * TRIPS {
                if !wait_for(&line, 2 * trip + 1) {
                    return;
                }
                line.0.store(2 * trip + 2, Ordering::Release);
            }
        });
        let batches = here.join().ok().flatten();
        // Whoever still waits for a first trip that never comes may go.
        line.0.store(u64::MAX, Ordering::Release);
        batches
    })?;
    batches.sort_by(f64::total_cmp);
    Some(batches[BATCHES / 2])
}

fn stay_on(core: usize) -> Option<()> {
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).ok()
}

/// Waits for a number; `false` if there are no more trips.
fn wait_for(line: &Line, number: u64) -> bool {
    loop {
        match line.0.load(Ordering::Acquire) {
            u64::MAX => return false,
            found if found == number => return true,
            _ => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_time_where_there_are_two_cores() {
        let trip = round_trip_ns();
        let one_core = sched_getaffinity(None).unwrap().count() == 1;
        assert_eq!(trip.is_none(), one_core);
        assert!(trip.is_none_or(|ns| ns > 1.0), "{trip:?}");
    }
}
