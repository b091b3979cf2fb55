//! Gives memory back to the system once the broker has nothing to do: the allocator keeps what one thread allocated and
//! another freed until the first allocates again, and after a burst it may not for long.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::process;

/// How often it is looked whether there is something to give back.
const PERIOD: Duration = Duration::from_secs(2);
/// Processor time in a period that leaves the broker unoccupied: nobody waits much for the threads then.
const QUIET: Duration = Duration::from_millis(100);
/// Less processor time than this since the last time leaves nothing worth the trouble.
const BUSY: Duration = Duration::from_millis(50);
/// So long the threads of the runtime are held until all of them have taken part.
const GATHER: Duration = Duration::from_millis(10);

/// Gives memory back whenever work has been done and things are quiet again. Never ends.
pub async fn whenever_quiet() {
    let (mut seen, mut trimmed) = (process::cpu_time(), Duration::ZERO);
    loop {
        tokio::time::sleep(PERIOD).await;
        let spent = process::cpu_time();
        if spent - seen < QUIET && spent - trimmed >= BUSY {
            trim().await;
            trimmed = process::cpu_time();
        }
        seen = process::cpu_time();
    }
}

/// Each thread of the runtime gives its own back, which nobody else can: so there is a task for each, and none of them
/// ends, and leaves its thread to another, before all have begun.
async fn trim() {
    let threads = tokio::runtime::Handle::current().metrics().num_workers();
    let gathering = Arc::new((Mutex::new(0), Condvar::new()));
    let tasks: Vec<_> = (0..threads)
        .map(|_| {
            let gathering = gathering.clone();
            tokio::spawn(async move {
                taskyard_allocator::collect();
                let (begun, all) = &*gathering;
                let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                *begun += 1;
                all.notify_all();
                // Whichever way it ends: a thread that is busy may give its own back the next time.
                drop(all.wait_timeout_while(begun, GATHER, |begun| *begun < threads));
            })
        })
        .collect();
    for task in tasks {
        // One that was cancelled is one of a process that ends.
        let _ = task.await;
    }
}
