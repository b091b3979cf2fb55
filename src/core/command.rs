//! All that can move the state machine.

use std::sync::Arc;

use taskyard_proto::{ClientMessage, Hello, RequestId, Submit, Subscribe, TaskId, WorkerName};

use super::access::Access;
use super::time::Time;

/// A logical connection: a number that is never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An HTTP request that waits for an answer: a number that is never used twice by one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Who asked, and how the answer finds its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A session; without an `id` there is no positive answer.
    Session(SessionId, Option<RequestId>),
    /// A session whose URL asked: it gave no `id`, and hears the answer all the same.
    Implied(SessionId),
    /// An HTTP request.
    Call(CallId),
}

/// One input. Identifiers and times that need a clock or randomness were made at the door.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A client introduced itself, in words or by its first message.
    Open {
        /// The new session.
        session: SessionId,
        /// Whose it is; none: authentication is off.
        access: Option<Arc<Access>>,
        /// What it said of itself.
        hello: Box<Hello>,
        /// The `id` of the hello, if one was sent.
        reference: Option<RequestId>,
        /// The name it gets if it gave none.
        made_up_name: WorkerName,
        /// The subscription that its URL asks for.
        subscribe: Option<Subscribe>,
    },
    /// A session's socket ended, and no `bye` came.
    End {
        /// The session.
        session: SessionId,
    },
    /// Something came from a session that had been pinged after a timeout.
    Heard {
        /// The session.
        session: SessionId,
    },
    /// A producer submits a task.
    Submit {
        /// Who asks.
        origin: Origin,
        /// Whose the task will be; none: authentication is off.
        access: Option<Arc<Access>>,
        /// The task's new id.
        task: TaskId,
        /// `run_at`, as a time.
        run_at: Option<Time>,
        /// The submit.
        submit: Box<Submit>,
    },
    /// Any other message.
    Message {
        /// Who asks.
        origin: Origin,
        /// What is asked.
        message: ClientMessage,
    },
    /// A client without a library settles the oldest of what it holds.
    SettleOldest {
        /// The session.
        session: SessionId,
        /// An ack, or else a nack.
        ack: bool,
    },
    /// An HTTP request no longer waits for the end of a task.
    HangUp {
        /// The request.
        call: CallId,
        /// What it waited for.
        task: TaskId,
    },
    /// The store holds all operations up to this one, whatever becomes of this process.
    Stored {
        /// How many operations, counted from the start of this process.
        through: u64,
    },
    /// The disk became full, or has room again.
    StorageFull(bool),
    /// The broker stops: no more deliveries and submits, settles are served.
    Drain {
        /// For how long.
        grace_ms: u64,
    },
}
