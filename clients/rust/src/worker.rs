//! Takes tasks from a queue and gives each to a handler: leases are extended while it runs, its
//! result is the ack, its error or its panic the nack.
//!
//! A lost connection is made again, and the session with it: what runs goes on meanwhile, and what
//! gets done waits. Then the broker says which leases are still this worker's. Those live on the new
//! connection, their results are said there, and again if they may not have arrived; the handlers of
//! the others hear [`Ending::Disconnected`], as all do whose ack timeout goes by before the broker is
//! back. [`Worker::resume`] turns this off.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use taskyard_proto::message::CREDIT_MAX;
use taskyard_proto::{
    Ack, AwayReason, Cancelled, ClientMessage, Credit, DelayMs, Drain, Error, ErrorCode, ErrorText, Flag,
    LeaseId, LeaseList, Nack, Payload, QueueName, Release, ServerMessage, SettleOutcome, Subscribe, Task,
    TaskId, Welcome,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::client::{Client, Link, RequestError};
use crate::connection::ConnectError;
use crate::delivery::{Delivery, Ending};
use crate::held::{Held, Standing};
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
    resume: bool,
    grace: Duration,
    on_event: Option<WorkerHook>,
}

/// When a handler's result counts as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settle {
    /// When it is on its way. If the connection breaks just then the task may be done again; not so where the
    /// session can be resumed, for there a worker has to hear in any case that the broker has the result, to know
    /// whether to say it again.
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
        /// What the broker said; after a lost connection also which leases were kept, and which not.
        welcome: Box<Welcome>,
    },
    /// The connection ended.
    Disconnected {
        /// How.
        closed: Closed,
        /// How many deliveries go on, to be taken up with the session. All others have lost their lease; the broker
        /// gives their tasks to another.
        held: usize,
    },
    /// A connect has failed.
    ConnectFailed {
        /// Why.
        error: String,
    },
    /// A handler's result does not count, for its lease was gone; or the handler was not begun for that.
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
            resume: true,
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

    /// Whether tasks go on while the connection is lost, and are still this worker's when it is back within the
    /// broker's `resume_window_ms`, also after a restart of the broker; on by default. It costs the broker a record
    /// in its store for each delivery, and an answer to each result. Without it a lost connection ends all leases.
    pub fn resume(mut self, resume: bool) -> Self {
        self.settings.resume = resume;
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
        let held = Held::new(settings.resume);
        options.held = Some(held.clone());
        options.on_event =
            Some(forward(events, held.clone(), settings.on_event.clone(), options.on_event.take()));

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
            held,
            tasks: JoinSet::new(),
            connection: 0,
        };
        running.work(shutdown).await
    }
}

/// What waits to be handled here for each lease at most: the task and an error, for the leases of this
/// connection and the last.
const EVENTS_PER_LEASE: usize = 4;

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
    events: mpsc::Receiver<ServerMessage>,
    link: watch::Receiver<Link>,
    held: Arc<Held>,
    tasks: JoinSet<()>,
    /// The latest connection; 0 before the first.
    connection: u64,
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
                Some(message) = self.events.recv() => {
                    if let Next::Leave = self.take(message) {
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
            self.held.end();
            return Linked::Ended(Closed::broken("the task that drives the connection is gone"));
        }
        match link {
            Link::Up { connection, .. } if connection == self.connection => Linked::Same,
            Link::Up { connection, .. } => {
                self.connection = connection;
                Linked::Up
            }
            Link::Down { .. } => Linked::Down,
            Link::Ended { closed } => Linked::Ended(closed),
        }
    }

    fn take(&mut self, message: ServerMessage) -> Next {
        match message {
            ServerMessage::Task(task) => self.start(task),
            ServerMessage::Error(error) => {
                let message = format!("{}: {}", error.code, error.message.as_str());
                self.job.emit(|| WorkerEvent::Error { message });
            }
            ServerMessage::GoingAway(away) if away.reason == AwayReason::Operator => return Next::Leave,
            _ => {}
        }
        Next::Go
    }

    fn start(&mut self, task: Task) {
        let Some(lease) = task.lease else { return };
        let Some(standing) = self.held.follow(lease) else {
            // Lost before it began: the broker gives it to another.
            let task = task.task;
            return self.job.emit(|| WorkerEvent::LeaseLost { task });
        };
        let holding = Holding { held: self.held.clone(), lease, standing: standing.clone() };
        let delivery = Delivery::new(task, lease, self.client.clone(), self.held.clone(), standing);
        let job = self.job.clone();
        self.tasks.spawn(async move {
            let _holding = holding;
            job.handle(delivery).await;
        });
    }

    fn forget(&mut self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            self.job.emit(|| WorkerEvent::Error {
                message: format!(
                    "a delivery ended without a settle: {error}; its task comes again when its lease ends"
                ),
            });
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
                    // Without a connection there is nothing to end: the next is not subscribed to anything.
                    if let Err(error @ (RequestError::Refused(_) | RequestError::TooLarge(_))) = answer {
                        self.job.emit(|| WorkerEvent::Error { message: error.to_string() });
                    }
                }
                // What is held may be taken up by a next connection, and its results said there.
                changed = self.link.changed() => if let Linked::Ended(_) = self.follow_link(changed.is_err()) {
                    break;
                },
                Some(message) = self.events.recv() => {
                    self.take(message);
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
        self.held.end();
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        // What does not end in time is broken off: its lease is gone anyway.
        let _ = timeout(self.job.settings.grace, ending).await;
        self.tasks.shutdown().await;
        self.client.clone().close().await;
    }
}

/// One delivery at work. Dropped, however that ended, nobody holds its lease.
struct Holding {
    held: Arc<Held>,
    lease: LeaseId,
    standing: watch::Receiver<Standing>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.held.forget(self.lease, &self.standing);
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
        tokio::select! {
            () = self.carry_out(&delivery) => {}
            never = delivery.run_out() => never,
        }
    }

    async fn carry_out(&self, delivery: &Delivery) {
        let extending = self.extend(delivery);
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
        self.settle(delivery, result).await;
    }

    /// Keeps the lease alive for as long as it is polled.
    async fn extend<T>(&self, delivery: &Delivery) -> T {
        let every = Duration::from_millis(delivery.ack_timeout_ms.max(100)) / 3;
        if !self.settings.auto_extend {
            return std::future::pending().await;
        }
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = delivery.connection();
        let mut lost = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                next = delivery.connection_but(connection), if !lost => match next {
                    // While there was none nobody could.
                    Some(_) => {
                        connection = next;
                        ticks.reset();
                    }
                    None => lost = true,
                },
            }
            delivery.extend_now().await;
        }
    }

    async fn settle(&self, delivery: &Delivery, result: Result<Payload, Failure>) {
        let task = delivery.task;
        if !delivery.holds_lease() {
            self.emit(|| WorkerEvent::LeaseLost { task });
            return;
        }
        let sent = self.say(delivery, settle_message(delivery, result)).await;
        match sent {
            Ok(()) => {}
            // What cannot be sent would never be settled: say so, and do not wait for the lease's end.
            Err(RequestError::TooLarge(error)) => {
                self.emit(|| WorkerEvent::Error {
                    message: format!("the result of task {task} was not sent: {error}"),
                });
                let nack = settle_message(delivery, Err(Failure::fatal(error)));
                if self.say(delivery, nack).await.is_err() {
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

    /// Says a result, until the broker knows it where that must be known.
    async fn say(&self, delivery: &Delivery, message: ClientMessage) -> Result<(), RequestError> {
        if self.settings.settle == Settle::Sent && !delivery.is_resumable() {
            return delivery.tell(message).await;
        }
        delivery.said();
        match delivery.request(message).await? {
            ServerMessage::Settled(settled) if settled.outcome.0 == Some(SettleOutcome::LeaseLost) => {
                self.emit(|| WorkerEvent::LeaseLost { task: delivery.task });
            }
            // `ok`, or `already`: it had arrived before the connection was lost.
            _ => {}
        }
        Ok(())
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
    events: mpsc::Sender<ServerMessage>,
    held: Arc<Held>,
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
                // At once: what has arrived is named when the session is taken up.
                held.hear(connection, &message);
                if !matches!(
                    message,
                    ServerMessage::Task(_) | ServerMessage::Error(_) | ServerMessage::GoingAway(_)
                ) {
                    return;
                }
                if let Err(mpsc::error::TrySendError::Full(message)) = events.try_send(message) {
                    if let ServerMessage::Task(Task { lease: Some(lease), .. }) = &message {
                        held.lose(*lease, Ending::Disconnected);
                    }
                    let text = message.type_text();
                    let message =
                        format!("a `{text}` was dropped: the broker sent more than the credit allows");
                    tell(WorkerEvent::Error { message });
                }
            }
            ClientEvent::Disconnected { closed, .. } => {
                tell(WorkerEvent::Disconnected { closed, held: held.count() });
            }
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
