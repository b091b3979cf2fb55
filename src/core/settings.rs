//! What an operator says of a queue: how its tasks are given out, how many there may be, and what a submit
//! that leaves an option out gets.

use smol_str::SmolStr;
use taskyard_proto::{Assign, QueueName};

use super::retry::RetryPolicy;
use super::time::Time;

/// When a task may be handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Deliver {
    /// Once it would survive a power cut.
    #[default]
    Durable = 0,
    /// As soon as it is here: after a power cut a worker may hold a task that no longer exists.
    Early = 1,
}

/// How priorities are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Any task of a higher priority goes before any of a lower one.
    #[default]
    Strict,
    /// A priority is a head start: effective time = accepted − priority × headstart, lowest first.
    Aged {
        /// What a step of priority is worth.
        headstart_ms: u64,
    },
}

/// The head start of a step of priority, where none is said.
pub const HEADSTART_MS: u64 = 60_000;

/// What a submit that leaves an option out gets; none: the protocol's own default.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the fields are those of `submit`, which PROTOCOL.md explains")]
pub struct Defaults {
    pub priority: Option<u8>,
    pub ttl_ms: Option<u64>,
    pub ack_timeout_ms: Option<u32>,
    pub timeout_ms: Option<u32>,
    pub max_attempts: Option<u16>,
    pub backoff: Option<RetryPolicy>,
}

/// A queue's settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// How a worker is chosen for a task that does not say; none: in turn.
    pub assign: Option<Assign>,
    /// When a task may be handed out.
    pub deliver: Deliver,
    /// How priorities are taken.
    pub order: Order,
    /// How many tasks may be unfinished; dead letters are not counted.
    pub max_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    pub max_bytes: Option<u64>,
    /// How many may be with workers at a time.
    pub max_leased: Option<u64>,
    /// How many are handed out a second, at most.
    pub rate_per_s: Option<f64>,
    /// How long a finished task can be looked up; none: the broker's 10 minutes.
    pub keep_result_ms: Option<u64>,
    /// What a submit gets for what it leaves out.
    pub defaults: Defaults,
}

/// Changes to a queue's settings. The outer `None` keeps what is; an inner one is the default.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(missing_docs, reason = "the fields are those of `Settings`, and of `Defaults`")]
pub struct Changes {
    pub assign: Option<Option<Assign>>,
    pub deliver: Option<Deliver>,
    pub order: Option<Order>,
    pub max_tasks: Option<Option<u64>>,
    pub max_bytes: Option<Option<u64>>,
    pub max_leased: Option<Option<u64>>,
    pub rate_per_s: Option<Option<f64>>,
    pub keep_result_ms: Option<Option<u64>>,
    pub priority: Option<Option<u8>>,
    pub ttl_ms: Option<Option<u64>>,
    pub ack_timeout_ms: Option<Option<u32>>,
    pub timeout_ms: Option<Option<u32>>,
    pub max_attempts: Option<Option<u16>>,
    pub backoff: Option<Option<RetryPolicy>>,
}

impl Settings {
    /// Takes changes in.
    pub fn merge(&mut self, changes: Changes) {
        fn set<T>(field: &mut T, change: Option<T>) {
            if let Some(value) = change {
                *field = value;
            }
        }
        set(&mut self.assign, changes.assign);
        set(&mut self.deliver, changes.deliver);
        set(&mut self.order, changes.order);
        set(&mut self.max_tasks, changes.max_tasks);
        set(&mut self.max_bytes, changes.max_bytes);
        set(&mut self.max_leased, changes.max_leased);
        set(&mut self.rate_per_s, changes.rate_per_s);
        set(&mut self.keep_result_ms, changes.keep_result_ms);
        set(&mut self.defaults.priority, changes.priority);
        set(&mut self.defaults.ttl_ms, changes.ttl_ms);
        set(&mut self.defaults.ack_timeout_ms, changes.ack_timeout_ms);
        set(&mut self.defaults.timeout_ms, changes.timeout_ms);
        set(&mut self.defaults.max_attempts, changes.max_attempts);
        set(&mut self.defaults.backoff, changes.backoff);
    }
}

/// A queue that delivers nothing for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The account that asked; none: authentication was off.
    pub by: Option<SmolStr>,
    /// Why, in its words.
    pub reason: Option<String>,
    /// When it ends by itself; none: when somebody says so.
    pub until: Option<Time>,
}

/// How many of a queue's tasks ended done, cancelled and expired since it was made.
pub type Totals = [u64; 3];

/// A queue, so that its counts and settings outlive its tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueRecord {
    /// Its name.
    pub queue: QueueName,
    /// Its counts when this was written.
    pub totals: Totals,
    /// Whether somebody declared it, and did not only use it.
    pub declared: bool,
    /// What was said of it.
    pub settings: Settings,
    /// Whether it delivers.
    pub pause: Option<Pause>,
}
