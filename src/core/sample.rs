//! How the broker is, in numbers: for metrics, and for those who observe. A copy of plain integers, so that whoever asks
//! works with it elsewhere.

use taskyard_proto::{QueueName, TaskState};

use super::access::Refusals;
use super::command::SessionId;
use super::queue::{ATTEMPT_BOUNDS, DEATHS, Queue, Tally};
use super::shard::Shard;
use super::task::Again;
use super::time::Time;

/// How hellos with a resume token went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumes {
    /// A session was taken up.
    pub resumed: u64,
    /// There was none, or it was not the caller's: a new one began.
    pub unknown: u64,
}

/// One queue in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSample {
    /// Its name.
    pub queue: QueueName,
    /// Whether it is paused.
    pub paused: bool,
    /// Tasks in each state, in the order of [`TaskState::ALL`]; of those that ended, since the queue was made.
    pub counts: [u64; TaskState::ALL.len()],
    /// What was counted, in the order of [`Tally::ALL`].
    pub tallies: [u64; Tally::ALL.len()],
    /// Redeliveries by reason, in the order of [`QueueSample::AGAINS`].
    pub agains: [u64; QueueSample::AGAINS.len()],
    /// Dead letters by reason, in the order of [`QueueSample::DEATHS`].
    pub deaths: [u64; QueueSample::DEATHS.len()],
    /// Tasks that were done or dead, by the attempts that they had used: [`QueueSample::ATTEMPTS`] are the upper ends.
    pub attempts: [u64; QueueSample::ATTEMPTS.len() + 1],
    /// All those attempts.
    pub attempts_sum: u64,
    /// For how long a task waits for a worker, at the longest, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// Subscriptions.
    pub workers: u64,
    /// How many leases are out on its tasks, those of pulls included.
    pub in_flight: u64,
    /// How many more tasks the subscriptions would take.
    pub credit_free: u64,
}

impl QueueSample {
    /// Why a task was handed out again.
    pub const AGAINS: [&'static str; Again::WORDS.len()] = Again::WORDS;
    /// Why a task became a dead letter.
    pub const DEATHS: [&'static str; DEATHS.len()] = DEATHS;
    /// The upper ends of the buckets of attempts.
    pub const ATTEMPTS: [u16; ATTEMPT_BOUNDS.len()] = ATTEMPT_BOUNDS;

    /// Takes in another's numbers.
    pub fn add(&mut self, other: &QueueSample) {
        fn sum<const N: usize>(into: &mut [u64; N], from: &[u64; N]) {
            into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
        }
        sum(&mut self.counts, &other.counts);
        sum(&mut self.tallies, &other.tallies);
        sum(&mut self.agains, &other.agains);
        sum(&mut self.deaths, &other.deaths);
        sum(&mut self.attempts, &other.attempts);
        self.attempts_sum += other.attempts_sum;
        self.paused |= other.paused;
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        self.workers += other.workers;
        self.in_flight += other.in_flight;
        self.credit_free += other.credit_free;
    }

    /// How many tasks have not ended.
    pub fn unfinished(&self) -> u64 {
        [TaskState::Scheduled, TaskState::Queued, TaskState::Leased, TaskState::Retrying]
            .iter()
            .map(|state| self.counts[*state as usize])
            .sum()
    }
}

/// The broker in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// All queues, in order of their making.
    pub queues: Vec<QueueSample>,
    /// Connected sessions with the numbers of the queues that they take from, one by one.
    pub working: Vec<(SessionId, u32)>,
    /// The queues of all schedules.
    pub schedules: Vec<QueueName>,
    /// Sessions, those included that wait to be taken up again.
    pub sessions: u64,
    /// How many of them may be taken up again.
    pub resumable: u64,
    /// How that went.
    pub resumes: Resumes,
    /// Rooms that somebody is in.
    pub rooms: u64,
    /// Leases that are out.
    pub leases_out: u64,
    /// Payloads that are in the store alone.
    pub payloads_away: u64,
    /// Their bytes.
    pub payload_bytes_away: u64,
    /// The bytes of those that are in memory.
    pub payload_bytes: u64,
    /// What all tasks weigh in memory, by estimate, and how much they may.
    pub weight: u64,
    /// The most that they may weigh.
    pub weight_max: u64,
    /// The bytes of finished tasks that can be looked up.
    pub kept_bytes: u64,
    /// What was refused for whose it was.
    pub refusals: Refusals,
    /// Whether new tasks are refused because the disk is full.
    pub storage_full: bool,
    /// Whether the broker shuts down.
    pub draining: bool,
}

impl Shard {
    /// The broker in numbers.
    pub fn sample(&self, now: Time) -> Sample {
        let connected = |id: &SessionId| {
            self.sessions
                .get(id)
                .is_some_and(|session| session.pull.is_none() && session.away_until.is_none())
        };
        Sample {
            queues: self.queues.iter().map(|(_, queue)| self.sample_of(queue, now)).collect(),
            working: self
                .subscriptions
                .iter()
                .map(|(_, subscription)| (subscription.session, subscription.queue))
                .filter(|(session, _)| connected(session))
                .collect(),
            schedules: self.schedules.queues().cloned().collect(),
            sessions: self.sessions.len() as u64,
            resumable: self.resume_keys.len() as u64,
            resumes: self.resumes,
            rooms: self.rooms.len() as u64,
            leases_out: self.leases_out,
            payloads_away: self.away,
            payload_bytes_away: self.away_bytes,
            payload_bytes: self.payloads_here.bytes,
            weight: self.weight,
            weight_max: self.config.weight_max,
            kept_bytes: self.kept_bytes,
            refusals: self.refusals,
            storage_full: self.storage_full,
            draining: self.draining,
        }
    }

    fn sample_of(&self, queue: &Queue, now: Time) -> QueueSample {
        QueueSample {
            queue: queue.name.clone(),
            paused: queue.pause.is_some(),
            counts: queue.counts,
            tallies: queue.tallies,
            agains: queue.agains,
            deaths: queue.deaths,
            attempts: queue.used.buckets,
            attempts_sum: queue.used.sum,
            oldest_ms: queue.oldest_waiting(&self.tasks).map(|since| now.ms_since(since)),
            workers: queue.subscribers.len() as u64,
            in_flight: queue.leased,
            credit_free: self.credit_free(queue),
        }
    }
}
