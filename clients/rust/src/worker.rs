//! Takes tasks from a queue and gives each to a handler: leases are extended while it runs, its
//! result is the ack, its error or its panic the nack, and a lost connection is made again.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use taskyard_proto::message::CREDIT_MAX;
use taskyard_proto::{
    Ack, AwayReason, Cancelled, ClientMessage, Credit, DelayMs, Drain, Error, ErrorCode, ErrorText, Extend,
    Flag, LeaseId, LeaseList, Nack, Payload, QueueName, Release, ServerMessage, SettleOutcome, Subscribe,
    Task, TaskId, Welcome,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::client::{Client, Link, RequestError};
use crate::connection::ConnectError;
use crate::delivery::{Delivery, Ending};
use crate::options::{ClientEvent, ClientOptions, EventHook};
use crate::receiver::Closed;

/// How long a worker finishes what it runs, unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(30);

/// Takes tasks from one queue.
#[derive(Debug)]
pub struct Worker {
    options: ClientOptions,
    settings: Settings,
}

#[derive(Debug, Clone)]
struct Settings {
    queue: QueueName,
    concurrency: usize,
    prefetch: usize,
    settle: Settle,
    auto_extend: bool,
    grace: Duration,
    on_event: Option<WorkerHook>,
}

/// When a handler's result counts as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settle {
    /// When it is on its way. If the connection breaks just then the task may be done again.
    #[default]
    Sent,
    /// When the broker has said that it is durable; what it says else is an event.
    Confirmed,
}

/// What a handler that does not succeed wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The attempt failed.
    Nack {
        /// What went wrong, for people.
        error: String,
        /// Whether another attempt may follow.
        retry: bool,
        /// When it may follow; the task's own back-off if none is given.
        delay_ms: Option<u64>,
    },
    /// Nothing was done: the task goes back, and no attempt is charged.
    Release {
        /// How long the task waits before it is offered again.
        delay_ms: Option<u64>,
    },
}

impl Failure {
    /// The attempt failed; another may follow after the task's back-off.
    pub fn retry(error: impl fmt::Display) -> Failure {
        Failure::Nack { error: error.to_string(), retry: true, delay_ms: None }
    }

    /// The attempt failed; another may follow after `delay`.
    pub fn retry_after(error: impl fmt::Display, delay: Duration) -> Failure {
        Failure::Nack { error: error.to_string(), retry: true, delay_ms: Some(milliseconds(delay)) }
    }

    /// The task cannot be done: it goes to the dead letters at once.
    pub fn fatal(error: impl fmt::Display) -> Failure {
        Failure::Nack { error: error.to_string(), retry: false, delay_ms: None }
    }

    /// Nothing was done: the task goes back uncharged.
    pub fn release() -> Failure {
        Failure::Release { delay_ms: None }
    }
}

/// With `?` any error in a handler is an attempt that failed.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::retry(error)
    }
}

/// What happens to a worker; so that nothing that goes wrong is silent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// Subscribed: tasks will come.
    Connected {
        /// What the broker said.
        welcome: Box<Welcome>,
    },
    /// The connection ended. What still runs has lost its lease; the broker gives it to another.
    Disconnected {
        /// How.
        closed: Closed,
    },
    /// A connect has failed.
    ConnectFailed {
        /// Why.
        error: String,
    },
    /// A handler's result was dropped, for its lease was gone.
    LeaseLost {
        /// The task.
        task: TaskId,
    },
    /// No more tasks come; what runs is finished.
    Draining,
    /// Something went wrong that has no other place.
    Error {
        /// What happened, what was expected, what to do.
        message: String,
    },
}

/// Why a worker has ended by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum WorkerError {
    /// There was no first connection.
    Connect(ConnectError),
    /// The connection was lost and will not come back.
    Closed(Closed),
    /// The broker refuses the subscription.
    Refused(Box<Error>),
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerError::Connect(error) => error.fmt(f),
            WorkerError::Closed(closed) => closed.fmt(f),
            WorkerError::Refused(error) => {
                write!(f, "the broker refused the subscription: {}: {}", error.code, error.message.as_str())
            }
        }
    }
}

impl std::error::Error for WorkerError {}

impl Worker {
    /// A worker for the tasks of `queue`, one at a time.
    pub fn new(options: ClientOptions, queue: QueueName) -> Worker {
        let settings = Settings {
            queue,
            concurrency: 1,
            prefetch: 1,
            settle: Settle::default(),
            auto_extend: true,
            grace: GRACE,
            on_event: None,
        };
        Worker { options, settings }
    }

    /// How many handlers run at once, of 1 to 1024; 1 by default.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.settings.concurrency = handlers.clamp(1, CREDIT_MAX as usize);
        self
    }

    /// How many tasks are held for each handler, the one it runs included; 1 by default. More hide
    /// the time that a task needs from the broker; they also wait here while others may be idle.
    pub fn prefetch(mut self, tasks: usize) -> Self {
        self.settings.prefetch = tasks.max(1);
        self
    }

    /// Whether results are confirmed.
    pub fn settle(mut self, settle: Settle) -> Self {
        self.settings.settle = settle;
        self
    }

    /// Whether leases are extended while handlers run, at a third of the ack timeout; on by
    /// default. Without it a handler that runs longer loses its lease.
    pub fn auto_extend(mut self, extend: bool) -> Self {
        self.settings.auto_extend = extend;
        self
    }

    /// How long a shutdown waits for what runs; 30 s by default. What runs longer is broken off
    /// and goes back to the queue.
    pub fn grace(mut self, limit: Duration) -> Self {
        self.settings.grace = limit;
        self
    }

    /// Is called with what happens. It runs between two tasks: it must not block.
    pub fn on_event(mut self, hook: impl Fn(WorkerEvent) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(WorkerHook(Arc::new(hook)));
        self
    }

    /// Connects, subscribes, and runs `handler` for each task until `shutdown` is done, or an
    /// operator drains this worker, or the connection is lost for good. Then what runs is finished.
    pub async fn run<H, F>(self, handler: H, shutdown: impl Future) -> Result<(), WorkerError>
    where
        H: Fn(Delivery) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Payload, Failure>> + Send + 'static,
    {
        let Worker { mut options, settings } = self;
        let credit = (settings.concurrency * settings.prefetch).min(CREDIT_MAX as usize);
        let (events, event_queue) = mpsc::channel(EVENTS_PER_LEASE * credit + 64);
        options.on_event = Some(forward(events, settings.on_event.clone(), options.on_event.take()));

        let mut shutdown = std::pin::pin!(shutdown);
        let client = tokio::select! {
            client = Client::connect(options) => client.map_err(WorkerError::Connect)?,
            _ = &mut shutdown => return Ok(()),
        };
        let job = Job {
            slots: Semaphore::new(settings.concurrency),
            handler: Box::new(move |delivery| Box::pin(handler(delivery)) as Handling),
            draining: watch::channel(false).0,
            settings,
        };
        let mut running = Running {
            link: client.link(),
            client,
            credit,
            job: Arc::new(job),
            events: event_queue,
            leases: HashMap::new(),
            tasks: JoinSet::new(),
            connection: 0,
            up: false,
        };
        running.work(shutdown).await
    }
}

/// What waits to be handled here for each lease at most: the task, a stop, a revocation, an error,
/// for the leases of this connection and the last.
const EVENTS_PER_LEASE: usize = 8;

type Handling = Pin<Box<dyn Future<Output = Result<Payload, Failure>> + Send>>;

/// What all deliveries share.
struct Job {
    settings: Settings,
    /// One for each handler that may run.
    slots: Semaphore,
    draining: watch::Sender<bool>,
    handler: Box<dyn Fn(Delivery) -> Handling + Send + Sync>,
}

/// A worker at work.
struct Running {
    client: Client,
    credit: usize,
    job: Arc<Job>,
    events: mpsc::Receiver<(u64, ServerMessage)>,
    link: watch::Receiver<Link>,
    /// What is held, to tell its handler how it ended.
    leases: HashMap<LeaseId, watch::Sender<Option<Ending>>>,
    tasks: JoinSet<LeaseId>,
    /// The connection that the leases belong to; 0 before the first.
    connection: u64,
    /// Whether it still stands.
    up: bool,
}

type Subscribing = Pin<Box<dyn Future<Output = Result<(), Box<Error>>> + Send>>;

impl Running {
    async fn work(&mut self, mut shutdown: Pin<&mut impl Future>) -> Result<(), WorkerError> {
        let mut subscribing: Option<Subscribing> = None;
        self.link.mark_changed();
        loop {
            tokio::select! {
                _ = &mut shutdown => break,
                changed = self.link.changed() => match self.follow_link(changed.is_err()) {
                    Linked::Same => {}
                    Linked::Up => subscribing = Some(self.subscribe()),
                    Linked::Down => subscribing = None,
                    Linked::Ended(closed) => {
                        self.finish().await;
                        return Err(WorkerError::Closed(closed));
                    }
                },
                subscribed = done(&mut subscribing) => {
                    subscribing = None;
                    if let Err(error) = subscribed {
                        self.finish().await;
                        return Err(WorkerError::Refused(error));
                    }
                }
                Some((connection, message)) = self.events.recv() => {
                    if let Next::Leave = self.take(connection, message) {
                        break;
                    }
                }
                Some(ended) = self.tasks.join_next() => self.forget(ended),
            }
        }
        self.drain().await;
        Ok(())
    }

    /// Asks for tasks, again while the broker says that it may help.
    fn subscribe(&self) -> Subscribing {
        let (client, job, connection) = (self.client.clone(), self.job.clone(), self.connection);
        let subscribe = Subscribe {
            queue: self.job.settings.queue.clone(),
            credit: Some(Credit::nearest(self.credit as u64)),
            mode: None,
            explicit_start: false,
        };
        Box::pin(async move {
            loop {
                match client.request_over(Some(connection), subscribe.clone().into()).await {
                    Ok(_) => {
                        if let Some(welcome) = client.welcome() {
                            job.emit(|| WorkerEvent::Connected { welcome: Box::new(welcome) });
                        }
                        return Ok(());
                    }
                    Err(RequestError::Refused(error)) if error.retryable => {
                        job.emit(|| WorkerEvent::Error {
                            message: format!(
                                "the subscription is refused for now: {}",
                                error.message.as_str()
                            ),
                        });
                        sleep(Duration::from_millis(error.retry_after_ms.0.unwrap_or(1000).max(100))).await;
                    }
                    Err(RequestError::Refused(error)) => return Err(error),
                    // The next connection subscribes again.
                    Err(_) => return Ok(()),
                }
            }
        })
    }

    fn follow_link(&mut self, driver_gone: bool) -> Linked {
        let link = self.link.borrow_and_update().clone();
        if driver_gone {
            self.lose_leases();
            return Linked::Ended(Closed::broken("the task that drives the connection is gone"));
        }
        match link {
            Link::Up { connection, .. } if connection == self.connection => Linked::Same,
            Link::Up { connection, .. } => {
                self.lose_leases();
                self.connection = connection;
                self.up = true;
                Linked::Up
            }
            Link::Down { .. } => {
                self.lose_leases();
                Linked::Down
            }
            Link::Ended { closed } => {
                self.lose_leases();
                Linked::Ended(closed)
            }
        }
    }

    /// Tells every handler of the last connection that its lease is gone.
    fn lose_leases(&mut self) {
        self.up = false;
        for (_, ending) in self.leases.drain() {
            ending.send_replace(Some(Ending::Disconnected));
        }
    }

    fn take(&mut self, connection: u64, message: ServerMessage) -> Next {
        match message {
            ServerMessage::Task(task) => self.start(connection, task),
            ServerMessage::Stop(stop) => {
                let grace = Duration::from_millis(stop.grace_ms);
                self.end(stop.lease, Ending::Stop { reason: stop.reason.as_str().into(), grace });
            }
            ServerMessage::Revoked(revoked) => self.end(revoked.lease, Ending::Revoked(revoked.reason)),
            ServerMessage::Error(error) => self.refused(&error),
            ServerMessage::GoingAway(away) if away.reason == AwayReason::Operator => return Next::Leave,
            _ => {}
        }
        Next::Go
    }

    fn start(&mut self, connection: u64, task: Task) {
        let Some(lease) = task.lease else { return };
        // Of a connection that is over already: the broker gives it to another.
        if !self.up || connection != self.connection {
            return;
        }
        let (ending, ending_seen) = watch::channel(None);
        self.leases.insert(lease, ending);
        let delivery = Delivery::new(task, lease, connection, self.client.clone(), ending_seen);
        let job = self.job.clone();
        self.tasks.spawn(async move {
            job.handle(delivery).await;
            lease
        });
    }

    fn end(&mut self, lease: LeaseId, ending: Ending) {
        if let Some(sender) = self.leases.get(&lease) {
            sender.send_replace(Some(ending));
        }
    }

    /// An error about something that was said without asking for an answer.
    fn refused(&mut self, error: &Error) {
        let lease = error.lease.0.as_ref().and_then(|lease| LeaseId::parse(lease.as_str()));
        if let (ErrorCode::LeaseLost, Some(lease)) = (error.code, lease) {
            self.end(lease, Ending::Revoked(taskyard_proto::RevokeReason::AckTimeout));
        }
        let message = format!("{}: {}", error.code, error.message.as_str());
        self.job.emit(|| WorkerEvent::Error { message });
    }

    fn forget(&mut self, ended: Result<LeaseId, tokio::task::JoinError>) {
        match ended {
            Ok(lease) => drop(self.leases.remove(&lease)),
            Err(error) => self.job.emit(|| WorkerEvent::Error {
                message: format!(
                    "a delivery ended without a settle: {error}; its task comes again when its lease ends"
                ),
            }),
        }
    }

    /// No more tasks; what runs is finished, what only waits goes back.
    async fn drain(&mut self) {
        self.job.emit(|| WorkerEvent::Draining);
        self.job.draining.send_replace(true);
        let asked = {
            let (client, connection) = (self.client.clone(), self.connection);
            async move { client.request_over(Some(connection), Drain {}.into()).await }
        };
        let mut asked = Some(Box::pin(asked));
        let deadline = sleep(self.job.settings.grace);
        let mut deadline = std::pin::pin!(deadline);
        // Tasks may come until the answer to `drain`; then those that are here are the last.
        loop {
            if asked.is_none() && self.events.is_empty() && self.tasks.is_empty() {
                break;
            }
            tokio::select! {
                answer = done(&mut asked) => {
                    asked = None;
                    if let Err(error) = answer {
                        self.job.emit(|| WorkerEvent::Error { message: error.to_string() });
                    }
                }
                // A connection that is made again is not subscribed to anything.
                changed = self.link.changed() => if let Linked::Ended(_) = self.follow_link(changed.is_err()) {
                    break;
                },
                Some((connection, message)) = self.events.recv() => {
                    self.take(connection, message);
                }
                Some(ended) = self.tasks.join_next() => self.forget(ended),
                () = &mut deadline => {
                    let (left, grace) = (self.tasks.len(), self.job.settings.grace);
                    self.job.emit(|| WorkerEvent::Error {
                        message: format!("{left} tasks still ran {grace:?} after the shutdown: they go back to the queue"),
                    });
                    break;
                }
            }
        }
        self.tasks.shutdown().await;
        // Says `bye`, which gives back what is still held.
        self.client.clone().close().await;
    }

    /// There is no way to settle any more: what runs is told, and gets its time to end.
    async fn finish(&mut self) {
        self.lose_leases();
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        // What does not end in time is broken off: its lease is gone anyway.
        let _ = timeout(self.job.settings.grace, ending).await;
        self.tasks.shutdown().await;
        self.client.clone().close().await;
    }
}

enum Linked {
    Same,
    Up,
    Down,
    Ended(Closed),
}

enum Next {
    Go,
    Leave,
}

impl Job {
    /// One delivery, from its arrival to its settle.
    async fn handle(&self, delivery: Delivery) {
        let extending = self.extend(&delivery);
        let handling = async {
            let mut draining = self.draining.subscribe();
            let slot = tokio::select! {
                biased;
                // What has not begun when the worker leaves goes to one who stays.
                _ = draining.wait_for(|draining| *draining) => return Err(Failure::release()),
                _ = delivery.stopped() => return Err(Failure::release()),
                slot = self.slots.acquire() => slot.expect("the semaphore is never closed"),
            };
            let result = guarded(|| (self.handler)(delivery.clone())).await;
            drop(slot);
            result
        };
        let result = tokio::select! {
            result = handling => result,
            never = extending => never,
        };
        self.settle(&delivery, result).await;
    }

    /// Keeps the lease alive for as long as it is polled.
    async fn extend<T>(&self, delivery: &Delivery) -> T {
        let every = Duration::from_millis(delivery.ack_timeout_ms.max(100)) / 3;
        if self.settings.auto_extend {
            let mut ticks = interval_at(Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let extend = Extend { lease: delivery.lease().into(), ack_timeout_ms: None };
                // Without an `id`: an extension that is too late comes back as an error about the lease.
                if delivery.holds_lease() && delivery.tell(extend).await.is_err() {
                    break;
                }
            }
        }
        std::future::pending().await
    }

    async fn settle(&self, delivery: &Delivery, result: Result<Payload, Failure>) {
        let task = delivery.task;
        if !delivery.holds_lease() {
            self.emit(|| WorkerEvent::LeaseLost { task });
            return;
        }
        let message = settle_message(delivery, result);
        let sent = match self.settings.settle {
            Settle::Sent => delivery.tell(message).await,
            Settle::Confirmed => delivery.request(message).await.map(|answer| match answer {
                ServerMessage::Settled(settled) if settled.outcome.0 == Some(SettleOutcome::LeaseLost) => {
                    self.emit(|| WorkerEvent::LeaseLost { task });
                }
                _ => {}
            }),
        };
        match sent {
            Ok(()) => {}
            // What cannot be sent would never be settled: say so, and do not wait for the lease's end.
            Err(RequestError::TooLarge(error)) => {
                self.emit(|| WorkerEvent::Error {
                    message: format!("the result of task {task} was not sent: {error}"),
                });
                let nack = settle_message(delivery, Err(Failure::fatal(error)));
                if delivery.tell(nack).await.is_err() {
                    self.emit(|| WorkerEvent::LeaseLost { task });
                }
            }
            Err(RequestError::Refused(error)) if error.code != ErrorCode::LeaseLost => {
                let message =
                    format!("task {task} was not settled: {}: {}", error.code, error.message.as_str());
                self.emit(|| WorkerEvent::Error { message });
            }
            Err(_) => self.emit(|| WorkerEvent::LeaseLost { task }),
        }
    }

    fn emit(&self, event: impl FnOnce() -> WorkerEvent) {
        if let Some(hook) = &self.settings.on_event {
            (hook.0)(event());
        }
    }
}

fn settle_message(delivery: &Delivery, result: Result<Payload, Failure>) -> ClientMessage {
    let leases = LeaseList::from(delivery.lease());
    match result {
        Ok(result) => Ack { leases, result }.into(),
        // After a `stop` everything but an ack makes the task cancelled: say why.
        Err(failure) if delivery.stop_asked() => {
            let error = match failure {
                Failure::Nack { error, .. } => Some(ErrorText::new(&error)),
                Failure::Release { .. } => None,
            };
            Cancelled { lease: delivery.lease().into(), error }.into()
        }
        Err(Failure::Nack { error, retry, delay_ms }) => {
            let delay_ms = delay_ms.map(DelayMs::nearest);
            Nack {
                leases,
                error: Some(ErrorText::new(&error)),
                delay_ms,
                retry: (!retry).then_some(Flag(false)),
            }
            .into()
        }
        Err(Failure::Release { delay_ms }) => {
            Release { leases, delay_ms: delay_ms.map(DelayMs::nearest) }.into()
        }
    }
}

/// Runs a handler; its panic is a failed attempt.
async fn guarded(start: impl FnOnce() -> Handling) -> Result<Payload, Failure> {
    // Nothing of ours is shared with the handler but the delivery, which a panic leaves whole.
    let mut handling = match catch_unwind(AssertUnwindSafe(start)) {
        Ok(handling) => handling,
        Err(panic) => return Err(panicked(panic.as_ref())),
    };
    poll_fn(move |context| match catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(panicked(panic.as_ref()))),
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it gave no text".into());
    Failure::retry(format_args!("the handler panicked: {text}"))
}

/// Waits for a future that may not be there.
async fn done<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Sends the broker's messages to the worker, and tells its owner about the connection.
fn forward(
    events: mpsc::Sender<(u64, ServerMessage)>,
    hook: Option<WorkerHook>,
    client_hook: Option<EventHook>,
) -> EventHook {
    EventHook(Arc::new(move |event| {
        if let Some(client_hook) = &client_hook {
            (client_hook.0)(event.clone());
        }
        let tell = |event| {
            if let Some(hook) = &hook {
                (hook.0)(event);
            }
        };
        match event {
            ClientEvent::Message { connection, message } => {
                let text = message.type_text();
                if let Err(mpsc::error::TrySendError::Full(_)) = events.try_send((connection, message)) {
                    let message =
                        format!("a `{text}` was dropped: the broker sent more than the credit allows");
                    tell(WorkerEvent::Error { message });
                }
            }
            ClientEvent::Disconnected { closed, .. } => tell(WorkerEvent::Disconnected { closed }),
            ClientEvent::ConnectFailed { error } => tell(WorkerEvent::ConnectFailed { error }),
            ClientEvent::Connected { .. } | ClientEvent::Retry { .. } | ClientEvent::Ended { .. } => {}
        }
    }))
}

#[derive(Clone)]
struct WorkerHook(Arc<dyn Fn(WorkerEvent) + Send + Sync>);

impl fmt::Debug for WorkerHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerHook")
    }
}

pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
