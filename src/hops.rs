//! How long tasks take from one place to the next, counted in plain integers.
//!
//! The dispatcher counts what the core measured, in numbers of its own that nobody else touches; they are copied when
//! somebody asks. What sockets measure, many write to: there a few atomics are added to, once for what was written at
//! once.

use std::sync::atomic::{AtomicU64, Ordering};

use taskyard_proto::ServerMessage;

use crate::core::{Hop, Measured, Time};
use crate::outbox::Outbound;

/// The upper ends of the buckets, in microseconds: 10 µs to 10 s, thrice a decade. A sync takes tens of microseconds, a
/// stalled disk seconds.
pub const BOUNDS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// Queues that are counted by themselves, the first that were made; all others are counted together, so that clients
/// who make up queue names cannot fill the memory, or the monitoring.
pub const QUEUES_MAX: usize = 100;

/// Durations by their length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many are in each bucket alone; the last is of those above all bounds.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// Their sum, in microseconds.
    pub sum_us: u64,
}

fn bucket(micros: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < micros)
}

impl Durations {
    fn add(&mut self, micros: u64) {
        self.buckets[bucket(micros)] += 1;
        self.sum_us += micros;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Both together.
    pub fn plus(mut self, other: &Durations) -> Durations {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.sum_us += other.sum_us;
        self
    }
}

/// A stretch of a task's way, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// From the submit to its being durable.
    AcceptedToDurable,
    /// From being ready for a worker to being given to one.
    DurableToAssigned,
    /// From there to being written to its socket.
    AssignedToSent,
    /// From being given to a worker to its settle, or to the end of the lease.
    SentToSettled,
}

impl Stretch {
    /// Every one.
    pub const ALL: [Stretch; 4] = [
        Stretch::AcceptedToDurable,
        Stretch::DurableToAssigned,
        Stretch::AssignedToSent,
        Stretch::SentToSettled,
    ];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Stretch::AcceptedToDurable => "accepted_to_durable",
            Stretch::DurableToAssigned => "durable_to_assigned",
            Stretch::AssignedToSent => "assigned_to_sent",
            Stretch::SentToSettled => "sent_to_settled",
        }
    }
}

impl From<Hop> for Stretch {
    fn from(hop: Hop) -> Stretch {
        match hop {
            Hop::SubmitToDurable => Stretch::AcceptedToDurable,
            Hop::ReadyToDelivered => Stretch::DurableToAssigned,
            Hop::DeliveredToSettled => Stretch::SentToSettled,
        }
    }
}

/// The row of a queue: its number, or that of all others.
pub fn row(queue: u32) -> u8 {
    queue.min(QUEUES_MAX as u32) as u8
}

/// What was measured, by queue and stretch.
#[derive(Debug, Clone, Default)]
pub struct Hops {
    rows: Vec<[Durations; Stretch::ALL.len()]>,
}

impl Hops {
    /// Takes durations in, leaving `measured` empty.
    pub fn count(&mut self, measured: &mut Vec<Measured>) {
        for Measured { hop, queue, micros } in measured.drain(..) {
            let row = usize::from(row(queue));
            if row >= self.rows.len() {
                self.rows.resize(row + 1, Default::default());
            }
            self.rows[row][Stretch::from(hop) as usize].add(micros);
        }
    }

    /// The durations of a row, as far as there are any.
    pub fn of(&self, row: usize, stretch: Stretch) -> Durations {
        self.rows.get(row).map_or_else(Durations::default, |row| row[stretch as usize])
    }

    /// The durations of all queues together.
    pub fn total(&self, stretch: Stretch) -> Durations {
        self.rows.iter().fold(Durations::default(), |sum, row| sum.plus(&row[stretch as usize]))
    }

    /// Takes in what sockets measured.
    pub fn add_sent(&mut self, sent: &Sent) {
        for (nth, cells) in sent.rows.iter().enumerate() {
            let found = cells.read();
            if found != Durations::default() {
                if nth >= self.rows.len() {
                    self.rows.resize(nth + 1, Default::default());
                }
                self.rows[nth][Stretch::AssignedToSent as usize] = found;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Cells {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Cells {
    fn read(&self) -> Durations {
        let mut found = Durations { sum_us: self.sum_us.load(Ordering::Relaxed), ..Durations::default() };
        for (bucket, cell) in found.buckets.iter_mut().zip(&self.buckets) {
            *bucket = cell.load(Ordering::Relaxed);
        }
        found
    }
}

/// How long deliveries wait in outboxes: written by all sockets.
#[derive(Debug)]
pub struct Sent {
    rows: Box<[Cells]>,
}

impl Default for Sent {
    fn default() -> Sent {
        Sent { rows: (0..=QUEUES_MAX).map(|_| Cells::default()).collect() }
    }
}

impl Sent {
    /// Counts the deliveries among what a socket has just written. Those that were assigned together count at once.
    pub fn count<'a>(&self, now: Time, written: impl IntoIterator<Item = &'a Outbound>) {
        let mut run: Option<(u8, u32, u64)> = None;
        for outbound in written {
            if !matches!(outbound.response.message, ServerMessage::Task(_)) {
                continue;
            }
            match &mut run {
                Some((row, since, count)) if (*row, *since) == (outbound.row, outbound.since) => *count += 1,
                _ => {
                    self.add(now, run.replace((outbound.row, outbound.since, 1)));
                }
            }
        }
        self.add(now, run);
    }

    fn add(&self, now: Time, run: Option<(u8, u32, u64)>) {
        let Some((row, since, count)) = run else { return };
        // In the lower half of the microseconds: nothing waits for half an hour in an outbox. One that comes from a
        // time that is ahead of the clock, as after a step of the wall clock between two starts, counts as nothing.
        let micros = u64::try_from((now.0 as u32).wrapping_sub(since) as i32).unwrap_or(0);
        let cells = &self.rows[usize::from(row)];
        cells.buckets[bucket(micros)].fetch_add(count, Ordering::Relaxed);
        cells.sum_us.fetch_add(micros * count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::{Done, Headers, Payload, QueueName, Response, Task, TaskId};

    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        for (micros, at) in
            [(0, 0), (10, 0), (11, 1), (50, 2), (51, 3), (10_000_000, 18), (10_000_001, 19), (u64::MAX, 19)]
        {
            assert_eq!(bucket(micros), at, "{micros}");
        }
    }

    #[test]
    fn queues_beyond_the_bound_share_a_row() {
        let mut hops = Hops::default();
        let at = |queue, micros| Measured { hop: Hop::SubmitToDurable, queue, micros };
        hops.count(&mut vec![at(0, 5), at(7, 6), at(100, 1), at(5000, 2), at(u32::MAX, 3)]);
        let sums: Vec<u64> =
            [0, 1, 7, 99, 100, 101].map(|row| hops.of(row, Stretch::AcceptedToDurable).sum_us).to_vec();
        assert_eq!(sums, [5, 0, 6, 0, 6, 0]);
        assert_eq!(hops.total(Stretch::AcceptedToDurable).count(), 5);
        assert_eq!(hops.total(Stretch::SentToSettled).count(), 0);
    }

    fn delivery(row: u8, since: u32) -> Outbound {
        let message = Task {
            task: TaskId(1),
            lease: None,
            queue: QueueName::parse("q").expect("a name"),
            attempt: 1,
            max_attempts: 5,
            redelivered: false,
            ack_timeout_ms: 30_000,
            age_ms: 0,
            priority: 4,
            headers: Headers::default(),
            payload: Payload::NULL,
        };
        Outbound { row, since, ..Outbound::from(Response { reference: None, message: message.into() }) }
    }

    #[test]
    fn what_is_written_at_once_counts_by_queue_and_time() {
        let sent = Sent::default();
        let answer = Outbound::from(Response { reference: None, message: Done::PLAIN.into() });
        let now = Time((7 << 32) + 1000);
        let ahead = delivery(3, 5000);
        let before_the_turn = delivery(3, 0_u32.wrapping_sub(1000));
        sent.count(
            now,
            &[delivery(0, 990), delivery(0, 990), answer, delivery(3, 900), ahead, before_the_turn],
        );
        let mut hops = Hops::default();
        hops.add_sent(&sent);
        let (first, fourth) = (hops.of(0, Stretch::AssignedToSent), hops.of(3, Stretch::AssignedToSent));
        assert_eq!((first.count(), first.sum_us), (2, 20));
        assert_eq!((fourth.count(), fourth.sum_us), (3, 100 + 2000));
        sent.count(now, &[delivery(0, 0)]);
        hops.add_sent(&sent);
        assert_eq!(
            hops.of(0, Stretch::AssignedToSent).count(),
            3,
            "what is copied again is not counted twice"
        );
    }
}
