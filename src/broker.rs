//! The cloneable handle on the broker: what sockets and HTTP requests call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use taskyard_proto::{
    AnySubmit, ClientMessage, Error, ErrorCode, GroupName, Payload, Publish, QueueName, Response,
    ServerMessage, Submit, Task, TaskId, WorkerName,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::connections::Connections;
use crate::core::view::{Cursor, QueueView, TaskView};
use crate::core::{
    Access, CallId, Command, Manage, Origin, Pull, Report, SessionId, Shard, Submission, TaskFilter, Time,
};
use crate::engine::{Capabilities, Footprint};
use crate::hops::Hops;

/// Batches that may wait for the dispatcher; each holds what one socket sent at once.
pub const INBOX_BATCHES: usize = 1024;
/// Payload bytes that may wait for the dispatcher, in KiB: then sockets are no longer read.
pub const INBOX_KIB: usize = 64 << 10;
/// What an item takes beside its payload, rounded up.
const ITEM_BYTES: usize = 400;
/// Queues that are looked at in one go: some tens of microseconds.
const QUEUES_A_LOOK: usize = 128;
/// Questions that may wait for the dispatcher.
pub const INSPECTIONS: usize = 64;
/// Messages that may wait for an HTTP request: `accepted` and `finished`, with room to spare.
const CALL_MESSAGES: usize = 4;
/// Events that may wait for an HTTP request that follows a task; one that falls further behind begins anew.
const FOLLOW_MESSAGES: usize = 256;

/// Payloads that may be on their way from the store to somebody who looks: each has at most 16 MiB.
const PAYLOADS_SOUGHT: usize = 8;

/// One input for the dispatcher.
#[derive(Debug)]
pub enum Item {
    /// For the core.
    Command(Command),
    /// For the engine: the payload of a task, for somebody who looks at it.
    Payload(TaskId, Seeker),
    /// For a session's outbox: an answer that must keep its place behind what the core says. Boxed: few are, and all
    /// others would take half as much again.
    Relay(SessionId, Box<Response>),
    /// Tells when it is reached.
    Mark(oneshot::Sender<()>),
}

/// Somebody who looks at a task whose payload is in the store alone.
#[derive(Debug)]
pub struct Seeker {
    /// Where it goes; none: the task has ended.
    pub answer: oneshot::Sender<Option<Payload>>,
    /// Its place among the few. Whoever asked may go: what is on its way from the disk holds the place until it is here.
    _place: OwnedSemaphorePermit,
}

/// An HTTP request that waits.
#[derive(Debug)]
pub struct Waiting {
    /// Where its answers go.
    pub answers: mpsc::Sender<Reply>,
    /// Which of them is the last.
    pub until: Until,
}

/// An answer to an HTTP request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A message of the protocol.
    Message(ServerMessage),
    /// What came of something that has none.
    Report(Report),
}

/// Which answer is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The first.
    First,
    /// The end of a task, or an error.
    End,
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
    /// How long tasks took.
    pub hops: &'a Hops,
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
    payloads: Arc<Semaphore>,
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
    answers: mpsc::Receiver<Reply>,
    /// Dropped before the end of this task, it says so: a client that goes must leave nothing behind.
    watched: Option<(Broker, TaskId)>,
    /// Dropped before a pull is answered, it says so.
    pulling: Option<Broker>,
}

/// What a pull is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// From where.
    pub queue: QueueName,
    /// How many at most, from 1.
    pub credit: u32,
    /// Who works; made up if absent.
    pub worker: Option<WorkerName>,
    /// The groups that the worker is in.
    pub groups: Vec<GroupName>,
}

/// The name of a worker that gave none: one that nobody gives himself, since tasks go by it.
pub fn made_up_name(session: SessionId) -> WorkerName {
    WorkerName::parse(&format!("w-{:08x}{:08x}", session.0, rand::random::<u32>()))
        .expect("hexadecimal digits behind a letter are a name")
}

impl Call {
    /// The next answer.
    pub async fn answer(&mut self) -> Result<ServerMessage, Gone> {
        match self.answers.recv().await.ok_or(Gone)? {
            Reply::Message(message) => Ok(message),
            Reply::Report(Report::Refused(error)) => Ok(ServerMessage::Error(error)),
            Reply::Report(report) => {
                tracing::error!(?report, "an answer that does not answer the request");
                let text = "the broker gave an answer that does not fit: report this";
                Ok(Error::new(ErrorCode::Internal, text).into())
            }
        }
    }

    /// What came of something that has no answer among the protocol's messages.
    pub async fn report(&mut self) -> Result<Report, Gone> {
        match self.answers.recv().await.ok_or(Gone)? {
            Reply::Report(report) => Ok(report),
            Reply::Message(ServerMessage::Error(error)) => Ok(Report::Refused(error)),
            Reply::Message(message) => {
                tracing::error!(kind = message.type_text(), "an answer that does not answer the request");
                let text = "the broker gave an answer that does not fit: report this";
                Ok(Report::Refused(Box::new(Error::new(ErrorCode::Internal, text))))
            }
        }
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
        let call = self.id;
        let (broker, command) = match (self.watched.take(), self.pulling.take()) {
            (Some((broker, task)), _) => (broker, Command::HangUp { call, task }),
            (None, Some(broker)) => (broker, Command::PullOver { call, gone: true }),
            (None, None) => return,
        };
        let mut items = vec![Item::Command(command)];
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
            payloads: Arc::new(Semaphore::new(PAYLOADS_SOUGHT)),
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

    fn new_call(&self, until: Until, messages: usize) -> ((CallId, Waiting), Call) {
        let id = CallId(self.inner.next_call.fetch_add(1, Ordering::Relaxed));
        let (answers, receiver) = mpsc::channel(messages);
        ((id, Waiting { answers, until }), Call { id, answers: receiver, watched: None, pulling: None })
    }

    /// Hands one command over for an HTTP request, which waits for one answer.
    async fn command(&self, bytes: usize, command: impl FnOnce(CallId) -> Command) -> Result<Call, Gone> {
        let (wait, call) = self.new_call(Until::First, CALL_MESSAGES);
        let items = vec![Item::Command(command(wait.0))];
        self.hand_over(items, bytes, vec![wait]).await?;
        Ok(call)
    }

    /// Does what an operator asks for. The answer comes when it is durable.
    pub async fn manage(&self, manage: Manage, access: Option<Arc<Access>>) -> Result<Report, Gone> {
        let bytes = match &manage {
            Manage::PutSchedule { submit, .. } => submit.payload.bytes().len(),
            _ => 0,
        };
        self.command(bytes, |call| Command::Manage { call, access, manage: Box::new(manage) })
            .await?
            .report()
            .await
    }

    /// Says something in a room. What a room hears is not stored: the answer comes at once.
    pub async fn publish(&self, publish: Publish, from: WorkerName) -> Result<ServerMessage, Gone> {
        let bytes = publish.payload.bytes().len();
        let publish = Box::new(publish);
        self.command(bytes, |call| Command::Publish { call, from, publish }).await?.answer().await
    }

    /// Says something of a lease that a pull brought: `settled`, `ok` or an error comes back.
    pub async fn settle(
        &self,
        message: ClientMessage,
        access: Option<Arc<Access>>,
    ) -> Result<ServerMessage, Gone> {
        self.command(0, |call| Command::Settle { call, access, message }).await?.answer().await
    }

    /// Follows a task: `event` after `event`, the last word is `finished` or an error. A follower that falls too
    /// far behind is let go of ([`Gone`]) and can begin again where it was.
    pub async fn follow(&self, task: TaskId, from_seq: u64) -> Result<Call, Gone> {
        let (wait, mut call) = self.new_call(Until::End, FOLLOW_MESSAGES);
        call.watched = Some((self.clone(), task));
        let items = vec![Item::Command(Command::Follow { call: wait.0, task, from_seq })];
        self.hand_over(items, 0, vec![wait]).await?;
        Ok(call)
    }

    /// Takes tasks from a queue, as far as there are any: waits for the first until `limit` is over. Their leases
    /// are settled with [`Broker::settle`]. A worker without a name gets one.
    pub async fn pull(
        &self,
        wanted: Wanted,
        access: Option<Arc<Access>>,
        limit: Duration,
    ) -> Result<Result<Vec<Task>, Error>, Gone> {
        let session = self.inner.connections.number();
        let worker = wanted.worker.unwrap_or_else(|| made_up_name(session));
        let (wait, mut call) = self.new_call(Until::First, CALL_MESSAGES);
        let pull = Box::new(Pull {
            call: wait.0,
            session,
            access,
            queue: wanted.queue,
            credit: wanted.credit,
            worker,
            groups: wanted.groups,
        });
        call.pulling = Some(self.clone());
        self.hand_over(vec![Item::Command(Command::Pull(pull))], 0, vec![wait]).await?;
        let report = match tokio::time::timeout(limit, call.report()).await {
            Ok(report) => report?,
            Err(_) => {
                // It is answered exactly once: a task may have come at the last moment.
                let over = Command::PullOver { call: call.id, gone: false };
                self.send(&mut vec![Item::Command(over)], 0).await?;
                call.report().await?
            }
        };
        call.pulling = None;
        Ok(match report {
            Report::Pulled(tasks) => Ok(tasks),
            Report::Refused(error) => Err(*error),
            _ => Err(Error::new(
                ErrorCode::Internal,
                "the broker gave an answer that does not fit: report this",
            )),
        })
    }

    /// All queues, in order of their making. What is seen is durable when it is told.
    ///
    /// Looks at them in slices, so that very many do not hold up those who work.
    pub async fn list_queues(&self) -> Result<Vec<QueueView>, Gone> {
        let mut found = Vec::new();
        loop {
            let skip = found.len();
            let look = move |seen: Seen<'_>| seen.shard.some_queue_views(skip, QUEUES_A_LOOK, seen.now);
            let some = self.inspect_now(look).await?;
            let over = some.len() < QUEUES_A_LOOK;
            found.extend(some);
            if over {
                // Behind all that was seen.
                self.inspect(|_| ()).await?;
                return Ok(found);
            }
        }
    }

    /// A queue's tasks that a filter lets through, finished ones that are kept included, in order of their ids, which
    /// is that of their making; at most `limit` of those behind `after`. None: there is no such queue.
    ///
    /// Looks at the state in slices, so that a long queue does not hold up those who work.
    pub async fn list_tasks(
        &self,
        queue: QueueName,
        filter: TaskFilter,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Option<Vec<TaskView>>, Gone> {
        let (filter, mut found, mut cursor) = (Arc::new(filter), Vec::new(), Cursor::default());
        loop {
            let (queue, filter, from) = (queue.clone(), filter.clone(), cursor);
            let look = move |seen: Seen<'_>| seen.shard.scan(&queue, &filter, after, limit, from, seen.now);
            let Some((mut some, next)) = self.inspect(look).await? else { return Ok(None) };
            found.append(&mut some);
            found.sort_by_key(|view: &TaskView| view.task);
            found.dedup_by_key(|view| view.task);
            found.truncate(limit);
            match next {
                Some(next) => cursor = next,
                None => return Ok(Some(found)),
            }
        }
    }

    /// Submits for an HTTP request: `accepted` or an error is the first answer, and with `watch`
    /// `finished` the second.
    pub async fn submit(&self, submit: Submit, access: Option<Arc<Access>>) -> Result<Call, SubmitRefused> {
        let mut calls = self
            .submit_many(vec![Ok(submit.into())], access)
            .await
            .map_err(|gone| SubmitRefused(gone.error()))?;
        calls.pop().expect("one submit makes one call")
    }

    /// Submits many at once, in order. Those that are refused already stay refused.
    pub async fn submit_many(
        &self,
        submits: Vec<Result<AnySubmit, Error>>,
        access: Option<Arc<Access>>,
    ) -> Result<Vec<Result<Call, SubmitRefused>>, Gone> {
        let (mut items, mut waits, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        let (clock, now) = (self.clock(), self.clock().now());
        for submit in submits {
            let submit =
                submit.map_err(SubmitRefused).inspect(|submit| bytes += submit.payload().bytes().len());
            let watch = submit.as_ref().is_ok_and(AnySubmit::watch);
            calls.push(submit.and_then(|submit| submit_command(submit, access.clone(), clock, now)).map(
                |(task, command)| {
                    let (wait, mut call) =
                        self.new_call(if watch { Until::End } else { Until::First }, CALL_MESSAGES);
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
        let (wait, call) = self.new_call(Until::End, CALL_MESSAGES);
        let items = vec![Item::Command(Command::Message { origin: Origin::Call(wait.0), message })];
        self.hand_over(items, 0, vec![wait]).await?;
        Ok(call)
    }

    /// The payload of a task that is in the store alone; none: the task has ended meanwhile. The core does not hear of
    /// it: who looks at a task must not bring it into memory.
    pub async fn stored_payload(&self, task: TaskId) -> Result<Option<Payload>, Gone> {
        let _place = self.inner.payloads.clone().acquire_owned().await.map_err(|_| Gone)?;
        let (answer, wait) = oneshot::channel();
        self.send(&mut vec![Item::Payload(task, Seeker { answer, _place })], 0).await?;
        wait.await.map_err(|_| Gone)
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

/// Makes at the door what the core cannot make: the task's id, and a time out of `run_at`. It came in at `now`.
pub fn submit_command(
    submit: AnySubmit,
    access: Option<Arc<Access>>,
    clock: Clock,
    now: Time,
) -> Result<(TaskId, impl FnOnce(Origin) -> Command), SubmitRefused> {
    let run_at = match submit.full().and_then(|submit| submit.run_at.as_ref()) {
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
    let task = TaskId::of_time(now.0, rand::random());
    let submit = Submission::new(submit, run_at);
    Ok((task, move |origin| Command::Submit { origin, access, task, submit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_goes_leaves_the_place_to_the_payload_that_is_on_its_way() {
        let capabilities = Capabilities { name: "none", durable: false };
        let (broker, mut inbox, _questions) = Broker::new(Clock::start(), Arc::default(), capabilities);
        for nth in 0..PAYLOADS_SOUGHT + 2 {
            let asked = broker.stored_payload(TaskId(nth as u128));
            // It is asked for, or waits for a place; and nobody waits for the answer.
            assert!(tokio::time::timeout(Duration::ZERO, asked).await.is_err());
        }
        let mut waiting = Vec::new();
        while let Ok(batch) = inbox.try_recv() {
            waiting.push(batch);
        }
        assert_eq!((waiting.len(), broker.inner.payloads.available_permits()), (PAYLOADS_SOUGHT, 0));
        drop(waiting);
        assert_eq!(broker.inner.payloads.available_permits(), PAYLOADS_SOUGHT);
    }
}
