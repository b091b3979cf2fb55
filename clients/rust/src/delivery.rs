//! A task in a worker's hands.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use taskyard_proto::{
    ClientMessage, Extend, LeaseId, Number, Payload, Progress, RevokeReason, ServerMessage, Task, TimeoutMs,
};
use tokio::sync::watch;

use crate::client::{Client, RequestError};
use crate::worker::milliseconds;

/// A task in a worker's hands; it reads like the message that brought it. Clones are the same
/// delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    task: Arc<Task>,
    lease: LeaseId,
    connection: u64,
    client: Client,
    ending: watch::Receiver<Option<Ending>>,
}

/// Why a handler should break off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The task is cancelled: a success within the grace still counts.
    Stop {
        /// Why.
        reason: String,
        /// How long the handler may take.
        grace: Duration,
    },
    /// The lease was taken back: whatever the handler returns is dropped.
    Revoked(RevokeReason),
    /// The lease ended with the connection: whatever the handler returns is dropped.
    Disconnected,
}

impl Deref for Delivery {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

impl Delivery {
    pub(crate) fn new(
        task: Task,
        lease: LeaseId,
        connection: u64,
        client: Client,
        ending: watch::Receiver<Option<Ending>>,
    ) -> Delivery {
        Delivery { task: Arc::new(task), lease, connection, client, ending }
    }

    /// What the producer sent.
    pub fn payload(&self) -> &Payload {
        &self.task.payload
    }

    /// The right to settle this delivery; the worker uses it by itself.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The client that brought it, to submit further tasks or to ask questions.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Moves the lease's deadline to now and `time`, or the task's own ack timeout; gives the time
    /// that is left.
    pub async fn extend(&self, time: Option<Duration>) -> Result<Duration, RequestError> {
        let ack_timeout_ms = time.map(|time| TimeoutMs::nearest(milliseconds(time)));
        match self.request(Extend { lease: self.lease.into(), ack_timeout_ms }).await? {
            ServerMessage::Done(done) => Ok(Duration::from_millis(done.ack_timeout_ms.0.unwrap_or(0))),
            _ => Ok(Duration::ZERO),
        }
    }

    /// Tells whoever watches the task how far the work is, of 0 to 100, and anything else.
    pub async fn progress(&self, percent: f64, data: Payload) -> Result<(), RequestError> {
        // NaN is no progress at all.
        let percent = Number::new(percent.clamp(0.0, 100.0));
        self.tell(Progress { lease: self.lease.into(), percent, data }).await
    }

    /// Whether the handler should break off, and why.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.borrow().clone()
    }

    /// Whether the handler should break off.
    pub fn is_stopped(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Waits until the handler should break off: put it into a `select!` beside the work.
    pub async fn stopped(&self) -> Ending {
        let mut ending = self.ending.clone();
        match ending.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(ending)) => ending.clone(),
            // The worker is gone, and the connection with it.
            _ => Ending::Disconnected,
        }
    }

    pub(crate) fn holds_lease(&self) -> bool {
        matches!(*self.ending.borrow(), None | Some(Ending::Stop { .. }))
    }

    pub(crate) fn stop_asked(&self) -> bool {
        matches!(*self.ending.borrow(), Some(Ending::Stop { .. }))
    }

    /// A lease lives on its own connection: what is said about it is said there or not at all.
    pub(crate) async fn tell(&self, message: impl Into<ClientMessage>) -> Result<(), RequestError> {
        self.client.tell_over(Some(self.connection), message.into()).await
    }

    pub(crate) async fn request(
        &self,
        message: impl Into<ClientMessage>,
    ) -> Result<ServerMessage, RequestError> {
        self.client.request_over(Some(self.connection), message.into()).await
    }
}
