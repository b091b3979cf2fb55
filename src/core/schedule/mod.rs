//! Tasks that are submitted again and again: when a schedule fires next, and what it leaves behind.
//!
//! [`Beat`] knows the times; `keep` holds the schedules, makes and ends them; `fire` makes tasks of them.

mod beat;
mod fire;
mod keep;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use smol_str::SmolStr;
use taskyard_proto::{Error, QueueName, Submit, TaskId};

use super::time::Time;
pub use beat::{Beat, EVERY_MS_MAX, EVERY_MS_MIN};
pub(super) use keep::Schedules;
pub use keep::{SCHEDULES_BYTES_MAX, SCHEDULES_MAX, check_template};

/// A schedule's name: of the same form as a queue's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScheduleName(SmolStr);

impl ScheduleName {
    /// Parses the name; the error says what a name looks like.
    pub fn parse(text: &str) -> Result<ScheduleName, String> {
        match QueueName::parse(text) {
            Ok(_) => Ok(ScheduleName(SmolStr::new(text))),
            Err(error) => Err(error.to_string().replace("queue name", "schedule name")),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When a schedule fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rhythm {
    /// Every so many milliseconds, counted from its making.
    Every {
        /// 100 ms to 365 days.
        ms: u64,
    },
    /// As a cron pattern says, in the time of a zone.
    Cron {
        /// Five fields, or six with seconds in front.
        pattern: SmolStr,
        /// A name of the IANA database, as `Europe/Zurich`.
        tz: SmolStr,
    },
}

/// What becomes of times at which the broker was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Missed {
    /// All of them together are made up for by one task, at once.
    #[default]
    One = 0,
    /// They are gone.
    None = 1,
}

/// A schedule as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleRecord {
    /// Its name.
    pub name: ScheduleName,
    /// When it fires.
    pub rhythm: Rhythm,
    /// What becomes of missed times.
    pub missed: Missed,
    /// What it submits.
    pub submit: Arc<Submit>,
    /// Whose its tasks are; none: authentication was off.
    pub account: Option<SmolStr>,
    /// How many tasks of the account may be held, as it was told when the schedule was put.
    pub queued_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    pub queued_bytes: Option<u64>,
    /// When it was made, or last replaced.
    pub made: Time,
    /// When it fires next; none: never again.
    pub next: Option<Time>,
    /// How often it has fired.
    pub fired: u64,
    /// The time that it fired for last, and the task that came of it.
    pub last: Option<(Time, TaskId)>,
}

/// A schedule as it is seen from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleView {
    /// What the store holds of it.
    pub record: ScheduleRecord,
    /// Why no task came of its last time; none: one did. A restart forgets it.
    pub last_error: Option<Error>,
}
