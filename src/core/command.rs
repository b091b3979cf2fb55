//! All that can move the state machine.

use std::sync::Arc;

use taskyard_proto::{
    ClientMessage, GroupName, Hello, Payload, Publish, QueueName, RequestId, RoomName, Subscribe, TaskId,
    WorkerName,
};

use super::access::Access;
use super::manage::Manage;
use super::submission::Submission;

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

/// How a client introduced itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// The new session.
    pub session: SessionId,
    /// Whose it is; none: authentication is off.
    pub access: Option<Arc<Access>>,
    /// What it said of itself.
    pub hello: Box<Hello>,
    /// The `id` of the hello, if one was sent.
    pub reference: Option<RequestId>,
    /// The name it gets if it gave none.
    pub made_up_name: WorkerName,
    /// What a new resume token says, drawn at the door.
    pub resume_key: u128,
    /// The subscription that its URL asks for.
    pub subscribe: Option<Subscribe>,
    /// The room that its URL asks for.
    pub join: Option<RoomName>,
}

/// An HTTP request's wish for tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Pull {
    /// The request.
    pub call: CallId,
    /// The session that will hold the leases, made up for it.
    pub session: SessionId,
    /// Whose permissions count; none: authentication is off.
    pub access: Option<Arc<Access>>,
    /// From where.
    pub queue: QueueName,
    /// How many at most.
    pub credit: u32,
    /// Who asks; a made-up name if nobody said.
    pub worker: WorkerName,
    /// The groups that it is in.
    pub groups: Vec<GroupName>,
}

/// A payload that is back from the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// Whose.
    pub task: TaskId,
    /// What the worker gets; none: the store no longer has the task.
    pub payload: Option<Payload>,
}

/// One input. Identifiers and times that need a clock or randomness were made at the door.
///
/// What is large and rare is boxed: an input is moved many times, and from core to core.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A client introduced itself, in words or by its first message.
    Open(Box<Open>),
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
        /// The submit.
        submit: Submission,
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
    /// An operator asks for something.
    Manage {
        /// Who asks, and hears a [`super::manage::Report`].
        call: CallId,
        /// Whose permissions count; none: authentication is off.
        access: Option<Arc<Access>>,
        /// What.
        manage: Box<Manage>,
    },
    /// An HTTP request asks for tasks to work on; it hears one [`super::manage::Report::Pulled`].
    Pull(Box<Pull>),
    /// A pull has waited long enough: it is answered with what there is, which may be nothing. If the next task's payload
    /// is on its way from the store, it waits for that.
    PullOver {
        /// The request.
        call: CallId,
        /// Nobody hears the answer any longer.
        gone: bool,
    },
    /// An HTTP request wants a task's events until its end.
    Follow {
        /// The request.
        call: CallId,
        /// The task.
        task: TaskId,
        /// Only events with a greater number.
        from_seq: u64,
    },
    /// An HTTP request says something in a room.
    Publish {
        /// The request.
        call: CallId,
        /// Who says it.
        from: WorkerName,
        /// What.
        publish: Box<Publish>,
    },
    /// An HTTP request says something of a lease that a pull brought.
    Settle {
        /// The request.
        call: CallId,
        /// Whose permissions count; none: authentication is off.
        access: Option<Arc<Access>>,
        /// `ack`, `nack`, `release`, `extend`, `progress`, `start` or `cancelled`, of one lease.
        message: ClientMessage,
    },
    /// The store holds all operations up to this one, whatever becomes of this process.
    Stored {
        /// How many operations, counted from the start of this process.
        through: u64,
    },
    /// What [`super::effect::Effects::fetch`] asked for is there, in any order.
    Fetched(Vec<Fetched>),
    /// The disk became full, or has room again.
    StorageFull(bool),
    /// The broker stops: no more deliveries and submits, settles are served.
    Drain {
        /// For how long.
        grace_ms: u64,
    },
}
