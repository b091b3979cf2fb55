//! The vocabulary of Taskyard: what a client and the broker say to each other, and how it is
//! spelled in JSON and in MessagePack.
//!
//! * [`name`]: identifiers and names, parsed once and right ever after.
//! * [`message`]: [`ClientMessage`] and [`ServerMessage`], the whole conversation.
//! * [`codec`]: frames to messages and back.
//! * [`payload`]: values that pass through without being looked at.
//! * [`code`]: error codes and close codes, one table each.
//!
//! No I/O, no clock and no async runtime belong here. The contract itself is `PROTOCOL.md`
//! beside this crate's manifest; a test holds it and [`message`] together.

pub mod code;
pub mod codec;
mod field;
mod json;
pub mod message;
mod msgpack;
pub mod name;
pub mod payload;
mod raw;
mod write;

pub use code::{CloseCode, ErrorCode};
pub use codec::{Encoding, Frame, FrameBody, Rejection, Request, Response};
pub use field::{Headers, LeaseList, RequestId, RunAt, Secret, Text};
pub use message::*;
pub use name::{GroupName, LeaseId, NameError, QueueName, RoomName, TaskId, WorkerName};
pub use payload::Payload;
