//! The cloneable handle on the broker: what sockets and HTTP requests call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use taskyard_proto::{ClientMessage, Error, ErrorCode, Response, ServerMessage, Submit, TaskId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::connections::Connections;
use crate::core::{Access, CallId, Command, Origin, SessionId, Shard, Time};
use crate::engine::{Capabilities, Footprint};

/// Batches that may wait for the dispatcher; each holds what one socket sent at once.
pub const INBOX_BATCHES: usize = 1024;
/// Payload bytes that may wait for the dispatcher, in KiB: then sockets are no longer read.
pub const INBOX_KIB: usize = 64 << 10;
/// What an item takes beside its payload, rounded up.
const ITEM_BYTES: usize = 400;
/// Questions that may wait for the dispatcher.
pub const INSPECTIONS: usize = 64;
/// Messages that may wait for an HTTP request: `accepted` and `finished`, with room to spare.
const CALL_MESSAGES: usize = 4;

/// One input for the dispatcher.
#[derive(Debug)]
pub enum Item {
    /// For the core.
    Command(Command),
    /// For a session's outbox: an answer that must keep its place behind what the core says.
    Relay(SessionId, Response),
}

/// An HTTP request that waits.
#[derive(Debug)]
pub struct Waiting {
    /// Where its answers go.
    pub answers: mpsc::Sender<ServerMessage>,
    /// Whether `accepted` is not the last of them.
    pub for_the_end: bool,
}

/// What one socket or request hands over at once.
#[derive(Debug)]
pub struct Batch {
    /// In order.
    pub items: Vec<Item>,
    /// When it was complete.
    pub arrived: Time,
    /// The HTTP requests that wait for what comes of it.
    pub calls: Vec<(CallId, Waiting)>,
    /// Its share of the bytes that may wait.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// A look at the state.
pub struct Seen<'a> {
    /// The core.
    pub shard: &'a Shard,
    /// The time.
    pub now: Time,
    /// What the engine takes on its medium.
    pub footprint: Footprint,
}

/// Hands an answer over.
pub type Deliver = Box<dyn FnOnce() + Send>;

/// A question to the dispatcher.
pub struct Inspection {
    /// Looks, and gives what hands the answer over.
    pub look: Box<dyn FnOnce(Seen<'_>) -> Deliver + Send>,
    /// Whether the answer waits until what was seen is durable.
    pub durable: bool,
}

/// The broker. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    inbox: mpsc::Sender<Batch>,
    inspections: mpsc::Sender<Inspection>,
    bytes: Arc<Semaphore>,
    next_call: AtomicU64,
    connections: Arc<Connections>,
    clock: Clock,
    capabilities: Capabilities,
}

/// The broker is gone or going: nothing takes messages any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl Gone {
    /// What to answer.
    pub fn error(self) -> Error {
        Error::new(ErrorCode::Unavailable, "the broker is stopping: try again once it is back")
    }
}

/// An HTTP request's wait for answers.
pub struct Call {
    id: CallId,
    answers: mpsc::Receiver<ServerMessage>,
    /// Dropped before the end of this task, it says so: a client that goes must leave nothing behind.
    watched: Option<(Broker, TaskId)>,
}

impl Call {
    /// The next answer.
    pub async fn answer(&mut self) -> Result<ServerMessage, Gone> {
        self.answers.recv().await.ok_or(Gone)
    }

    /// The end of a task, or an error, if it comes in time.
    pub async fn end_within(
        mut self,
        broker: &Broker,
        task: TaskId,
        limit: Duration,
    ) -> Result<Option<ServerMessage>, Gone> {
        self.watched = Some((broker.clone(), task));
        match tokio::time::timeout(limit, self.answer()).await {
            Ok(answer) => {
                self.watched = None;
                answer.map(Some)
            }
            Err(_) => Ok(None),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some((broker, task)) = self.watched.take() else { return };
        let mut items = vec![Item::Command(Command::HangUp { call: self.id, task })];
        // Outside of the runtime the process is ending, and so is everything that waits.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // If the broker is gone nobody waits for anything.
                let _ = broker.send(&mut items, 0).await;
            });
        }
    }
}

impl Broker {
    /// A handle, and the ends that the dispatcher takes.
    pub fn new(
        clock: Clock,
        connections: Arc<Connections>,
        capabilities: Capabilities,
    ) -> (Broker, mpsc::Receiver<Batch>, mpsc::Receiver<Inspection>) {
        let (inbox, batches) = mpsc::channel(INBOX_BATCHES);
        let (inspections, questions) = mpsc::channel(INSPECTIONS);
        let inner = Inner {
            inbox,
            inspections,
            bytes: Arc::new(Semaphore::new(INBOX_KIB)),
            next_call: AtomicU64::new(1),
            connections,
            clock,
            capabilities,
        };
        (Broker { inner: Arc::new(inner) }, batches, questions)
    }

    /// Where sockets register.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.inner.connections
    }

    /// The broker's clock.
    pub fn clock(&self) -> Clock {
        self.inner.clock
    }

    /// What the engine does.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// Hands over what a socket sent, leaving `items` empty; waits while too much waits already, and
    /// so pushes back into the socket. `bytes` are those of the payloads.
    pub async fn send(&self, items: &mut Vec<Item>, bytes: usize) -> Result<(), Gone> {
        if items.is_empty() {
            return Ok(());
        }
        let items = std::mem::take(items);
        self.hand_over(items, bytes, Vec::new()).await
    }

    async fn hand_over(
        &self,
        items: Vec<Item>,
        bytes: usize,
        calls: Vec<(CallId, Waiting)>,
    ) -> Result<(), Gone> {
        let mut batch = Batch { items, arrived: self.inner.clock.now(), calls, permit: None };
        // A small batch weighs nothing: their number is bounded by the channel.
        let bytes = bytes + batch.items.len() * ITEM_BYTES;
        let kib = if bytes < 4096 {
            0
        } else {
            u32::try_from((bytes >> 10).min(INBOX_KIB)).expect("the bound is far below 4 Gi")
        };
        if kib > 0 {
            batch.permit = self.inner.bytes.clone().try_acquire_many_owned(kib).ok();
        }
        if kib == 0 || batch.permit.is_some() {
            match self.inner.inbox.try_send(batch) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(Gone),
                Err(mpsc::error::TrySendError::Full(back)) => batch = back,
            }
        }
        // Boxed, since every socket holds room for this future, and few ever wait.
        Box::pin(async move {
            if kib > 0 && batch.permit.is_none() {
                let permit = self.inner.bytes.clone().acquire_many_owned(kib).await.map_err(|_| Gone)?;
                batch.permit = Some(permit);
            }
            batch.arrived = self.inner.clock.now();
            self.inner.inbox.send(batch).await.map_err(|_| Gone)
        })
        .await
    }

    fn new_call(&self, for_the_end: bool) -> ((CallId, Waiting), Call) {
        let id = CallId(self.inner.next_call.fetch_add(1, Ordering::Relaxed));
        let (answers, receiver) = mpsc::channel(CALL_MESSAGES);
        ((id, Waiting { answers, for_the_end }), Call { id, answers: receiver, watched: None })
    }

    /// Submits for an HTTP request: `accepted` or an error is the first answer, and with `watch`
    /// `finished` the second.
    pub async fn submit(&self, submit: Submit, access: Option<Arc<Access>>) -> Result<Call, SubmitRefused> {
        let mut calls = self
            .submit_many(vec![Ok(Box::new(submit))], access)
            .await
            .map_err(|gone| SubmitRefused(gone.error()))?;
        calls.pop().expect("one submit makes one call")
    }

    /// Submits many at once, in order. Those that are refused already stay refused.
    pub async fn submit_many(
        &self,
        submits: Vec<Result<Box<Submit>, Error>>,
        access: Option<Arc<Access>>,
    ) -> Result<Vec<Result<Call, SubmitRefused>>, Gone> {
        let (mut items, mut waits, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        for submit in submits {
            let submit =
                submit.map_err(SubmitRefused).inspect(|submit| bytes += submit.payload.bytes().len());
            let watch = submit.as_ref().is_ok_and(|submit| submit.watch);
            calls.push(submit.and_then(|submit| submit_command(submit, access.clone(), self.clock())).map(
                |(task, command)| {
                    let (wait, mut call) = self.new_call(watch);
                    call.watched = watch.then(|| (self.clone(), task));
                    items.push(Item::Command(command(Origin::Call(wait.0))));
                    waits.push(wait);
                    call
                },
            ));
        }
        self.hand_over(items, bytes, waits).await?;
        Ok(calls)
    }

    /// Says something else for an HTTP request.
    pub async fn ask(&self, message: impl Into<ClientMessage>) -> Result<Call, Gone> {
        let message = message.into();
        let (wait, call) = self.new_call(true);
        let items = vec![Item::Command(Command::Message { origin: Origin::Call(wait.0), message })];
        self.hand_over(items, 0, vec![wait]).await?;
        Ok(call)
    }

    /// Looks at the state. The answer comes when what was seen is durable: nobody is shown a task as
    /// done that a power cut would bring back.
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(Seen<'_>) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        self.question(look, true).await
    }

    /// Looks at the state as it is in memory: for metrics, which must be seen when the disk is slow.
    pub async fn inspect_now<T: Send + 'static>(
        &self,
        look: impl FnOnce(Seen<'_>) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        self.question(look, false).await
    }

    async fn question<T: Send + 'static>(
        &self,
        look: impl FnOnce(Seen<'_>) -> T + Send + 'static,
        durable: bool,
    ) -> Result<T, Gone> {
        let (answer, wait) = oneshot::channel();
        let look = Box::new(move |seen: Seen<'_>| -> Deliver {
            let seen = look(seen);
            Box::new(move || {
                // Whoever asked may have gone.
                let _ = answer.send(seen);
            })
        });
        self.inner.inspections.send(Inspection { look, durable }).await.map_err(|_| Gone)?;
        wait.await.map_err(|_| Gone)
    }
}

/// A submit that did not reach the core.
#[derive(Debug)]
pub struct SubmitRefused(pub Error);

/// Makes at the door what the core cannot make: the task's id, and a time out of `run_at`.
pub fn submit_command(
    submit: Box<Submit>,
    access: Option<Arc<Access>>,
    clock: Clock,
) -> Result<(TaskId, impl FnOnce(Origin) -> Command), SubmitRefused> {
    let run_at = match &submit.run_at {
        None => None,
        Some(text) => match chrono::DateTime::parse_from_rfc3339(text.0.as_str()) {
            Ok(at) => Some(clock.at_wall(at.timestamp_micros())),
            Err(error) => {
                let text = format!(
                    "`submit`, field `run_at`: expected a time as in RFC 3339, like 2030-01-31T12:00:00Z, got {:?}: {error}",
                    text.0.as_str()
                );
                return Err(SubmitRefused(Error::new(ErrorCode::BadRequest, text).field("run_at")));
            }
        },
    };
    let task = TaskId::generate();
    Ok((task, move |origin| Command::Submit { origin, access, task, run_at, submit }))
}
