//! What the state machine wants done.

use taskyard_proto::{Accepted, CloseCode, LeaseId, RequestId, RoomMessage, ServerMessage, TaskId};

use super::command::{CallId, Origin, SessionId};
use super::manage::Report;
use super::record::StoreOp;

/// One thing to tell somebody.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A message to a session.
    Send {
        /// To whom.
        session: SessionId,
        /// The `id` that it answers.
        reference: Option<RequestId>,
        /// The lease to acknowledge once this is written to the socket (mode auto).
        on_write: Option<LeaseId>,
        /// Whether no delivery that was sent before may follow this: an answer to `credit`, `unsubscribe` or
        /// `drain`.
        barrier: bool,
        /// Of a delivery the number of its queue, which is counted in order of making; else of no meaning.
        queue: u32,
        /// What.
        message: ServerMessage,
    },
    /// A message to an HTTP request.
    Answer {
        /// To whom.
        call: CallId,
        /// What.
        message: ServerMessage,
    },
    /// What came of something that has no answer among the protocol's messages.
    Report {
        /// To whom.
        call: CallId,
        /// What.
        report: Report,
    },
    /// A message for all in a room; one message, however many they are.
    Publish {
        /// To whom, in order of joining.
        members: Vec<SessionId>,
        /// What.
        message: RoomMessage,
    },
    /// The end of a session's socket.
    Close {
        /// Whose.
        session: SessionId,
        /// With which code.
        code: CloseCode,
        /// In words.
        reason: &'static str,
    },
    /// A sign of life is wanted: ping the socket, and say `Heard` at the next byte.
    Ping {
        /// Whose.
        session: SessionId,
    },
}

/// A stretch of a task's way whose duration is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// From the submit to its being durable.
    SubmitToDurable,
    /// From being ready for a worker to being handed to one.
    ReadyToDelivered,
    /// From there to its settle.
    DeliveredToSettled,
}

/// How long a task took for a stretch of its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Which stretch.
    pub hop: Hop,
    /// The number of its queue: queues are counted in order of their making.
    pub queue: u32,
    /// How long, in microseconds.
    pub micros: u64,
}

/// The effects of one or more commands. Outputs to one receiver keep their order; so do the
/// operations for the store.
#[derive(Debug, Default)]
pub struct Effects {
    /// What to tell.
    pub outputs: Vec<Output>,
    /// What to store, in order; the n-th of the process's life is answered by `Stored { n }`.
    pub store: Vec<StoreOp>,
    /// Whose payloads to bring back from the store; each is answered by `Fetched`, sooner or later.
    pub fetch: Vec<TaskId>,
    /// A task that waits, and that the store says it does not have: nothing more may be done.
    pub missing: Option<TaskId>,
    /// How long tasks took.
    pub hops: Vec<Measured>,
}

impl Effects {
    /// Forgets what was done, keeps the room.
    pub fn clear(&mut self) {
        self.outputs.clear();
        self.store.clear();
        self.fetch.clear();
        self.missing = None;
        self.hops.clear();
    }

    pub(super) fn measure(&mut self, hop: Hop, queue: u32, micros: u64) {
        self.hops.push(Measured { hop, queue, micros });
    }

    pub(super) fn send(&mut self, session: SessionId, message: impl Into<ServerMessage>) {
        self.outputs.push(Output::Send {
            session,
            reference: None,
            on_write: None,
            barrier: false,
            queue: 0,
            message: message.into(),
        });
    }

    /// Answers whoever asked; a session that gave no `id` hears only errors.
    #[inline]
    pub(super) fn answer(&mut self, origin: &Origin, message: impl Into<ServerMessage>) {
        let message = message.into();
        let (session, reference) = match origin {
            Origin::Call(call) => return self.outputs.push(Output::Answer { call: *call, message }),
            Origin::Implied(session) => (*session, None),
            Origin::Session(session, reference) => {
                if reference.is_none() && !matches!(message, ServerMessage::Error(_)) {
                    return;
                }
                (*session, reference.clone())
            }
        };
        self.outputs.push(Output::Send {
            session,
            reference,
            on_write: None,
            barrier: false,
            queue: 0,
            message,
        });
    }

    /// The same for the answer of a submit, which most of them get: made where it goes, and not copied there.
    #[inline]
    pub(super) fn accepted(&mut self, origin: &Origin, accepted: Accepted) {
        let (session, reference) = match origin {
            Origin::Session(session, Some(reference)) => (*session, reference.clone()),
            Origin::Session(_, None) => return,
            Origin::Implied(_) | Origin::Call(_) => return self.answer(origin, accepted),
        };
        self.outputs.push(Output::Send {
            session,
            reference: Some(reference),
            on_write: None,
            barrier: false,
            queue: 0,
            message: ServerMessage::Accepted(accepted),
        });
    }

    /// Answers as [`Effects::answer`] does; no delivery that went out before comes behind it.
    pub(super) fn answer_barrier(&mut self, origin: &Origin, message: impl Into<ServerMessage>) {
        let before = self.outputs.len();
        self.answer(origin, message);
        for output in &mut self.outputs[before..] {
            if let Output::Send { barrier, .. } = output {
                *barrier = true;
            }
        }
    }
}
