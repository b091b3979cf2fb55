//! What is under way: for each message how many sockets wait for it, and since when.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

/// The messages under way. Those who receive count down, each thread for itself first.
pub(super) struct Board {
    slots: Box<[Slot]>,
    /// For each thread, how many sockets it has.
    sockets: Box<[u32]>,
    window: Semaphore,
    began: Instant,
    over: Mutex<Over>,
}

struct Slot {
    /// When it was said, in ns.
    said: AtomicU64,
    /// Sockets that wait for it, for each thread: two do not share the line of a cache for each delivery.
    left: Box<[Line]>,
    /// Threads with sockets that wait for it.
    threads: AtomicU32,
}

#[repr(align(64))]
struct Line(AtomicU32);

/// What was told, and how fast.
pub(super) struct Told {
    pub(super) messages: u64,
    /// From the first word to the last socket's reception of the last message.
    pub(super) took: Duration,
    /// From a message's being said to the last socket's reception, in ns.
    pub(super) latency: Histogram<u64>,
}

struct Over {
    first_ns: u64,
    last_ns: u64,
    latency: Histogram<u64>,
}

impl Board {
    /// Of a window's messages at most, to so many sockets, shared by threads as evenly as can be.
    pub(super) fn new(window: usize, threads: usize, sockets: usize) -> Board {
        let share = |thread: usize| (sockets / threads + usize::from(thread < sockets % threads)) as u32;
        let slot = |_| Slot {
            said: AtomicU64::new(0),
            left: (0..threads).map(|_| Line(AtomicU32::new(0))).collect(),
            threads: AtomicU32::new(0),
        };
        Board {
            slots: (0..window).map(slot).collect(),
            sockets: (0..threads).map(share).collect(),
            window: Semaphore::new(0),
            began: Instant::now(),
            over: Mutex::new(Over { first_ns: 0, last_ns: 0, latency: histogram() }),
        }
    }

    pub(super) fn shares(&self) -> &[u32] {
        &self.sockets
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// What says how each message went is taken by whoever has its last reception: nobody else waits.
    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on so many may be under way; nothing is.
    pub(super) fn begin(&self, window: usize) {
        let now = self.now();
        *self.over() = Over { first_ns: now, last_ns: now, latency: histogram() };
        self.window.add_permits(window.min(self.slots.len()));
    }

    /// Waits until the window lets something through; gives how many messages, which are under way then.
    pub(super) async fn room(&self, most: usize) -> usize {
        let mut count = 0;
        if let Ok(permit) = self.window.acquire().await {
            permit.forget();
            count = 1;
        }
        while count < most
            && let Ok(permit) = self.window.try_acquire()
        {
            permit.forget();
            count += 1;
        }
        count
    }

    /// A message is said now.
    pub(super) fn say(&self, nth: u64) {
        let slot = self.slot(nth);
        slot.said.store(self.now(), Ordering::Relaxed);
        let listening = self.sockets.iter().filter(|sockets| **sockets > 0).count();
        slot.threads.store(listening as u32, Ordering::Relaxed);
        for (left, sockets) in slot.left.iter().zip(&self.sockets) {
            // It is seen by all who hear of the message: they do by way of the kernel.
            left.0.store(*sockets, Ordering::Release);
        }
    }

    /// A socket of a thread has a message.
    pub(super) fn hear(&self, thread: usize, nth: u64) {
        let slot = self.slot(nth);
        if slot.left[thread].0.fetch_sub(1, Ordering::AcqRel) != 1
            || slot.threads.fetch_sub(1, Ordering::AcqRel) != 1
        {
            return;
        }
        let now = self.now();
        let took = now.saturating_sub(slot.said.load(Ordering::Relaxed));
        let mut over = self.over();
        over.last_ns = now;
        over.latency.saturating_record(took);
        drop(over);
        self.window.add_permits(1);
    }

    /// Waits until every message is over; the window is closed then.
    pub(super) async fn all_over(&self, window: usize) {
        if let Ok(permits) = self.window.acquire_many(window.min(self.slots.len()) as u32).await {
            permits.forget();
        }
    }

    /// What was told since it began.
    pub(super) fn told(&self) -> Told {
        let over = self.over();
        Told {
            messages: over.latency.len(),
            took: Duration::from_nanos(over.last_ns - over.first_ns),
            latency: over.latency.clone(),
        }
    }

    fn slot(&self, nth: u64) -> &Slot {
        &self.slots[(nth % self.slots.len() as u64) as usize]
    }
}

/// Of up to 100 s, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("these bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_over_when_the_last_socket_has_it() {
        let board = Board::new(2, 2, 3);
        assert_eq!(board.shares(), [2, 1]);
        board.begin(2);
        assert_eq!(board.room(64).await, 2);
        board.say(0);
        board.say(1);
        board.hear(0, 0);
        board.hear(1, 0);
        assert_eq!((board.told().messages, board.window.available_permits()), (0, 0));
        board.hear(0, 0);
        assert_eq!((board.told().messages, board.room(64).await), (1, 1));
        // The third takes the first one's place.
        board.say(2);
        for nth in 1..3 {
            board.hear(0, nth);
            board.hear(0, nth);
            board.hear(1, nth);
        }
        board.all_over(2).await;
        assert_eq!((board.told().messages, board.window.available_permits()), (3, 0));
        board.begin(1);
        assert_eq!((board.told().messages, board.room(64).await), (0, 1));
    }

    #[tokio::test]
    async fn a_thread_without_sockets_is_not_waited_for() {
        let board = Board::new(1, 3, 2);
        board.begin(1);
        assert_eq!(board.room(1).await, 1);
        board.say(0);
        board.hear(0, 0);
        board.hear(1, 0);
        board.all_over(1).await;
        assert_eq!(board.told().messages, 1);
    }
}
