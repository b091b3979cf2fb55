//! A task in a worker's hands.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use taskyard_proto::{
    ClientMessage, Extend, LeaseId, Number, Payload, Progress, RevokeReason, ServerMessage, Task, TimeoutMs,
};
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::client::{Client, RequestError};
use crate::held::{Held, Standing};
use crate::receiver::Closed;
use crate::worker::milliseconds;

/// A task in a worker's hands; it reads like the message that brought it. Clones are the same
/// delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    task: Arc<Task>,
    lease: LeaseId,
    client: Client,
    held: Arc<Held>,
    standing: watch::Receiver<Standing>,
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
    /// The connection was lost, and the lease with it: the session could not be resumed, or not with this lease, or
    /// the ack timeout went by before the broker was back. Whatever the handler returns is dropped.
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
        client: Client,
        held: Arc<Held>,
        standing: watch::Receiver<Standing>,
    ) -> Delivery {
        Delivery { task: Arc::new(task), lease, client, held, standing }
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
    /// that is left. While the connection is lost it waits for the next.
    pub async fn extend(&self, time: Option<Duration>) -> Result<Duration, RequestError> {
        let ack_timeout_ms = time.map(|time| TimeoutMs::nearest(milliseconds(time)));
        match self.request(Extend { lease: self.lease.into(), ack_timeout_ms }).await? {
            ServerMessage::Done(done) => {
                let left = Duration::from_millis(done.ack_timeout_ms.0.unwrap_or(0));
                self.held.extended(self.lease, left);
                Ok(left)
            }
            _ => Ok(Duration::ZERO),
        }
    }

    /// Tells whoever watches the task how far the work is, of 0 to 100, and anything else. While the
    /// connection is lost it waits for the next.
    pub async fn progress(&self, percent: f64, data: Payload) -> Result<(), RequestError> {
        // NaN is no progress at all.
        let percent = Number::new(percent.clamp(0.0, 100.0));
        self.tell(Progress { lease: self.lease.into(), percent, data }).await?;
        self.held.extended_at_least(self.lease, self.ack_timeout());
        Ok(())
    }

    /// Whether the handler should break off, and why.
    pub fn ending(&self) -> Option<Ending> {
        self.standing.borrow().ending.clone()
    }

    /// Whether the handler should break off.
    pub fn is_stopped(&self) -> bool {
        self.standing.borrow().ending.is_some()
    }

    /// Waits until the handler should break off: put it into a `select!` beside the work.
    pub async fn stopped(&self) -> Ending {
        let mut standing = self.standing.clone();
        let stopped = standing.wait_for(|standing| standing.ending.is_some()).await;
        // Without an ending the worker is gone, and the connection with it.
        stopped.ok().and_then(|standing| standing.ending.clone()).unwrap_or(Ending::Disconnected)
    }

    pub(crate) fn holds_lease(&self) -> bool {
        !self.standing.borrow().is_over()
    }

    pub(crate) fn stop_asked(&self) -> bool {
        matches!(self.standing.borrow().ending, Some(Ending::Stop { .. }))
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }

    /// Whether the lease may outlive its connection.
    pub(crate) fn is_resumable(&self) -> bool {
        self.held.is_resumable()
    }

    /// From here on the broker may know the result.
    pub(crate) fn said(&self) {
        self.held.said(self.lease);
    }

    /// The connection that the lease lives on.
    pub(crate) fn connection(&self) -> Option<u64> {
        self.standing.borrow().connection
    }

    /// Waits until the lease lives on another connection than this one; none: it is lost.
    pub(crate) async fn connection_but(&self, but: Option<u64>) -> Option<u64> {
        let mut standing = self.standing.clone();
        let another = |standing: &Standing| standing.connection.filter(|connection| Some(*connection) != but);
        let found = standing.wait_for(|standing| standing.is_over() || another(standing).is_some()).await;
        found.ok().and_then(|standing| another(&standing))
    }

    /// Moves the lease's deadline, if there is a connection to say so. An extension that comes too
    /// late is answered by an error about the lease.
    pub(crate) async fn extend_now(&self) {
        let Some(connection) = self.connection().filter(|_| self.holds_lease()) else { return };
        let extend = Extend { lease: self.lease.into(), ack_timeout_ms: None };
        // What cannot be said here is said on the next connection.
        if self.client.tell_over(Some(connection), extend.into()).await.is_ok() {
            self.held.extended(self.lease, self.ack_timeout());
        }
    }

    /// Ends the lease once the connection has been lost for so long that its ack timeout is over:
    /// whatever the broker says when it is back, it has given the task to another, or will.
    pub(crate) async fn run_out<T>(&self) -> T {
        let mut standing = self.standing.clone();
        // An end, or a sender that is gone: there is nothing to watch any more.
        while standing.wait_for(|now| now.connection.is_none() && !now.is_over()).await.is_ok() {
            let Some(deadline) = self.held.deadline(self.lease) else { break };
            tokio::select! {
                () = sleep_until(deadline) => self.held.lose(self.lease, Ending::Disconnected),
                _ = standing.wait_for(|now| now.connection.is_some() || now.is_over()) => {}
            }
        }
        std::future::pending().await
    }

    /// Returns once it is on its way.
    pub(crate) async fn tell(&self, message: impl Into<ClientMessage>) -> Result<(), RequestError> {
        let message = message.into();
        self.say(|connection| self.client.tell_over(Some(connection), message.clone())).await
    }

    pub(crate) async fn request(
        &self,
        message: impl Into<ClientMessage>,
    ) -> Result<ServerMessage, RequestError> {
        let message = message.into();
        self.say(|connection| self.client.request_over(Some(connection), message.clone())).await
    }

    /// Says something on the connection that the lease lives on, and again on the next should that
    /// break: nothing that is said about a lease does harm when it is said twice.
    async fn say<T, F>(&self, on: impl Fn(u64) -> F) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, RequestError>>,
    {
        let mut broken = None;
        let mut failed = RequestError::Closed(Closed::broken("and the lease of this delivery with it"));
        while let Some(connection) = self.connection_but(broken).await {
            match on(connection).await {
                Err(error @ (RequestError::Disconnected(_) | RequestError::Closed(_))) => failed = error,
                answered => return answered,
            }
            broken = Some(connection);
        }
        Err(failed)
    }
}
