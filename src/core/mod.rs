//! Decides. Data and the time go in, effects come out.
//!
//! Nothing here waits, locks, reads a clock or a disk, draws a random number or iterates over a
//! hash map: the same commands at the same times give the same effects, byte for byte. A refusal
//! is an ordinary answer; nothing here can fail.
//!
//! * [`shard`]: the state machine; one `match`, each arm a named method. The methods are told in the
//!   rooms that their nouns have: `submit`, `assign`, `settle`, `fanout`, `sessions`, `due`, `kept`, `restore`.
//! * [`command`] and [`effect`]: what goes in, what comes out.
//! * [`record`]: what must survive; the same operations that are stored are replayed at a start.
//! * [`grants`] and [`access`]: who may do what, and how much of whose may wait.
//! * `queue`, `ready`, `ring`: where tasks wait, and whose turn it is.
//! * [`manage`], [`settings`], [`schedule`]: what operators ask for; `rooms`: who hears what is said.
//! * `away`: payloads that leave memory while their tasks wait.
//! * `task`, `session`, `retry`, `timers`: the nouns and their small rules.

pub mod access;
mod assign;
mod away;
mod cancel;
pub mod command;
mod dead;
mod dedup;
mod due;
pub mod effect;
mod events;
mod explain;
mod fanout;
mod flow;
pub mod grants;
mod kept;
pub mod manage;
mod operate;
mod order;
mod packed;
mod pull;
pub mod queue;
mod ready;
pub mod record;
mod restore;
mod resume;
mod retry;
mod ring;
mod rooms;
pub mod sample;
pub mod schedule;
mod session;
mod sessions;
pub mod settings;
mod settle;
pub mod shard;
mod submission;
mod submit;
mod task;
pub mod time;
mod timers;
pub mod view;

pub use access::{Access, Load, Refusals};
pub use command::{CallId, Command, Fetched, Open, Origin, Pull, SessionId};
pub use effect::{Effects, Hop, Measured, Output};
pub use grants::{Action, Grants, Rule, RuleError};
pub use manage::{Manage, Report, TaskFilter, Which};
pub use record::{Acceptance, Amendment, FinishRecord, StoreOp, TaskSpec, Terms};
pub use restore::Replay;
pub use retry::RetryPolicy;
pub use shard::{Config, Shard};
pub use submission::Submission;
pub use time::Time;
