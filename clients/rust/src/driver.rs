//! The task that holds a client's connection: sends what its handles want sent, gives each answer
//! to who waits for it, and makes a new connection when one is lost.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use taskyard_proto::code::{Advice, CloseCode};
use taskyard_proto::codec::{Frame, Request, Response};
use taskyard_proto::message::BATCH_MAX;
use taskyard_proto::{
    AwayReason, Bye, ClientMessage, Error, ErrorCode, Finished, GivenLease, Hello, LeaseList, Release,
    RequestId, ServerMessage, Submit, TaskId, Text, Watch, Welcome,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{CLOSE_GRACE, Command, Link, RequestError, SubmitCommand, SubmitError};
use crate::connection::{ConnectError, Connection};
use crate::options::{ClientEvent, ClientOptions};
use crate::receiver::{Closed, Incoming, Receiver};
use crate::reconnect::{Backoff, Reconnect};
use crate::sender::{FLUSH_BYTES, PushError, Sender};

/// How many frames are handled before what they led to is sent.
const FRAMES_A_TURN: usize = 256;
/// How many messages may wait for a connection: a window of submits to be sent again, and the
/// messages that their senders wait for.
const OUTGOING_MAX: usize = 4096;
/// How many payload bytes go into one array frame, so that it stays below any broker's limit.
const BATCH_BYTES: usize = 256 << 10;
/// How long the broker may take to answer a ping, and to close after `bye`.
const PING_GRACE: Duration = Duration::from_secs(10);
/// So much later it is given up: this process may have stood still, and what came meanwhile not be read yet.
const STANDSTILL_GRACE: Duration = Duration::from_millis(100);
const BYE_GRACE: Duration = Duration::from_secs(1);
/// How long a worker whose tasks go on waits between two tries at most: its session waits for it no
/// longer than 5 s, unless the broker was told otherwise.
const RESUME_WAIT_MAX: Duration = Duration::from_secs(2);

/// A connection on which the broker has said `welcome`.
pub(crate) struct Opened {
    sender: Sender,
    receiver: Receiver,
    pub(crate) welcome: Welcome,
    /// What came in one frame with `welcome`.
    early: Vec<Response>,
}

pub(crate) fn backoff(options: &ClientOptions) -> Backoff {
    Backoff::new(options.reconnect)
}

/// The first connection. Its failure is final, unless the options say otherwise.
pub(crate) async fn open_first(
    options: &ClientOptions,
    backoff: &mut Backoff,
) -> Result<Opened, ConnectError> {
    loop {
        let error = match open(options).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let wait = match options.wait_for_broker {
            true => backoff.next(error.advice(), Instant::now(), rand::random()),
            false => None,
        };
        let Some(after) = wait else { return Err(error) };
        emit(options, || ClientEvent::ConnectFailed { error: error.to_string() });
        emit(options, || ClientEvent::Retry { after });
        sleep(after).await;
    }
}

async fn open(options: &ClientOptions) -> Result<Opened, ConnectError> {
    let limit = options.endpoint.connect_timeout;
    match timeout(limit, greet(options)).await {
        Ok(opened) => opened,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

async fn greet(options: &ClientOptions) -> Result<Opened, ConnectError> {
    let connection = match &options.dialer {
        Some(dialer) => Connection::dial(dialer, &options.endpoint).await?,
        None => Connection::open(&options.endpoint).await?,
    };
    let (mut sender, mut receiver) = connection.split();
    let mut hello = Hello {
        worker: options.worker.clone(),
        groups: options.groups.clone(),
        labels: options.labels.clone(),
        batch: options.batch,
        client: Some(Text::cut(&options.program)),
        ..Hello::empty()
    };
    if let Some(held) = &options.held {
        sender.limit_message_bytes(held.introduce(&mut hello));
    }
    loop {
        let request = Request { id: Some(RequestId::Integer(0)), message: hello.clone().into() };
        match sender.push(&request) {
            Ok(()) => break,
            // A broker of short messages does not hear of all that is held: the rest is lost.
            Err(_) if !hello.in_flight.is_empty() => hello.in_flight.truncate(hello.in_flight.len() / 2),
            Err(error) => return Err(ConnectError::Handshake(error.to_string())),
        }
    }
    sender.flush().await?;
    loop {
        match receiver.receive().await.map_err(ConnectError::Closed)? {
            Incoming::Messages(frame) => {
                let mut messages = frame.into_iter();
                match messages.next().map(|response| response.message) {
                    Some(ServerMessage::Welcome(welcome)) => {
                        let bytes_max = usize::try_from(welcome.limits.message_bytes).unwrap_or(usize::MAX);
                        sender.limit_message_bytes(bytes_max);
                        let welcome = *welcome;
                        return Ok(Opened { sender, receiver, welcome, early: messages.collect() });
                    }
                    Some(ServerMessage::Error(error)) => return Err(ConnectError::Rejected(error)),
                    Some(other) => {
                        return Err(ConnectError::Handshake(format!(
                            "the broker answered `hello` with `{}` instead of `welcome`: is it a Taskyard broker?",
                            other.type_text()
                        )));
                    }
                    None => {}
                }
            }
            Incoming::Ping(bytes) => {
                sender.pong(&bytes);
                sender.flush().await?;
            }
            Incoming::Pong(_) => {}
        }
    }
}

fn emit(options: &ClientOptions, event: impl FnOnce() -> ClientEvent) {
    if let Some(hook) = &options.on_event {
        (hook.0)(event());
    }
}

/// A message, and who waits for its answer.
struct Outgoing {
    message: ClientMessage,
    connection: Option<u64>,
    waiter: Waiter,
}

enum Waiter {
    Submit(SubmitWaiter),
    Request {
        reply: oneshot::Sender<Result<ServerMessage, RequestError>>,
        _permit: OwnedSemaphorePermit,
    },
    /// Wants to know that the message is on its way; there is no answer.
    Tell {
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
    /// A watch that is made again, for those who wait for the task's end.
    Watch(TaskId),
}

struct SubmitWaiter {
    reply: oneshot::Sender<Result<taskyard_proto::Accepted, SubmitError>>,
    finished: Option<oneshot::Sender<Result<Finished, SubmitError>>>,
    /// The place in the window.
    _permit: OwnedSemaphorePermit,
    /// The submit itself, once it was sent and where it may be sent twice.
    again: Option<Box<Submit>>,
    sent: bool,
}

/// Why a connection is left.
enum Leave {
    Lost(Closed),
    Done,
}

pub(crate) struct Driver {
    options: Arc<ClientOptions>,
    commands: mpsc::Receiver<Command>,
    closing: watch::Receiver<bool>,
    link: watch::Sender<Link>,
    backoff: Backoff,
    /// Whether there is a connection.
    up: bool,
    /// Counts connections.
    connection: u64,
    /// What goes out before any command: submits to be sent again, watches to be made again.
    outgoing: VecDeque<Outgoing>,
    /// Submits that came while the broker was going away: for the next connection.
    held: VecDeque<Outgoing>,
    /// By the `id` of the message.
    waiting: HashMap<i64, Waiter>,
    last_id: i64,
    finishes: HashMap<TaskId, Vec<oneshot::Sender<Result<Finished, SubmitError>>>>,
    /// The broker restarts: when to come back. Submits wait until then.
    away_until: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        options: ClientOptions,
        commands: mpsc::Receiver<Command>,
        closing: watch::Receiver<bool>,
        link: watch::Sender<Link>,
        backoff: Backoff,
    ) -> Driver {
        Driver {
            options: Arc::new(options),
            commands,
            closing,
            link,
            backoff,
            up: false,
            connection: 0,
            outgoing: VecDeque::new(),
            held: VecDeque::new(),
            waiting: HashMap::new(),
            last_id: 0,
            finishes: HashMap::new(),
            away_until: None,
        }
    }

    pub(crate) async fn run(mut self, first: Opened) {
        let mut opened = first;
        let closed = loop {
            match self.serve(opened).await {
                Leave::Done => break Closed::broken("this client was closed"),
                Leave::Lost(closed) => {
                    self.lose(&closed);
                    match self.reconnect(closed).await {
                        Ok(next) => opened = next,
                        Err(closed) => break closed,
                    }
                }
            }
        };
        self.end(&closed);
        emit(&self.options, || ClientEvent::Ended { closed: closed.clone() });
        self.link.send_replace(Link::Ended { closed });
    }

    /// Everything that happens on one connection.
    async fn serve(&mut self, opened: Opened) -> Leave {
        let Opened { mut sender, mut receiver, welcome, early } = opened;
        let mut liveness = Liveness::new(welcome.ping_ms, Instant::now());
        self.begin(welcome, early);
        let mut alarm = std::pin::pin!(sleep_until(liveness.alarm()));
        // Set once nobody can want anything new.
        let mut leave_at: Option<Instant> = None;
        let mut commands_end = false;
        loop {
            self.fill(&mut sender);
            if commands_end && self.idle() && !sender.unflushed() {
                return bye(&mut sender, &mut receiver).await;
            }
            let room = self.outgoing.len() < OUTGOING_MAX && sender.buffered() < FLUSH_BYTES;
            tokio::select! {
                written = sender.flush(), if sender.unflushed() => {
                    if let Err(error) = written {
                        return Leave::Lost(self.last_words(&mut receiver, error).await);
                    }
                }
                incoming = receiver.receive() => {
                    liveness.heard(Instant::now());
                    if let Err(closed) = self.take(incoming, &mut sender, &mut receiver) {
                        return Leave::Lost(closed_by(closed, &mut sender).await);
                    }
                }
                command = self.commands.recv(), if room && !commands_end => match command {
                    Some(command) => self.enqueue(command),
                    None => {
                        commands_end = true;
                        leave_at.get_or_insert_with(|| Instant::now() + CLOSE_GRACE);
                    }
                },
                () = closing(&mut self.closing), if leave_at.is_none() => {
                    leave_at = Some(Instant::now() + CLOSE_GRACE);
                    // What is in the channel is still taken out, and then its end.
                    self.commands.close();
                }
                () = until(leave_at) => return bye(&mut sender, &mut receiver).await,
                () = &mut alarm => {
                    match liveness.check(Instant::now()) {
                        Alive::Yes => {}
                        Alive::Ask => sender.ping(&[]),
                        Alive::No => {
                            return Leave::Lost(Closed::broken("the broker is silent and answers no ping"));
                        }
                    }
                    alarm.as_mut().reset(liveness.alarm());
                }
            }
        }
    }

    fn begin(&mut self, welcome: Welcome, early: Vec<Response>) {
        self.up = true;
        self.connection += 1;
        self.away_until = None;
        self.backoff.connected(Instant::now());
        let connection = self.connection;
        if let Some(held) = &self.options.held {
            let unheld = held.welcomed(connection, &welcome);
            if !unheld.is_empty() {
                // Given up here while nobody could be told.
                let leases = LeaseList::Many(unheld.into_iter().map(GivenLease::from).collect());
                self.outgoing.push_front(Outgoing {
                    message: Release { leases, delay_ms: None }.into(),
                    connection: Some(connection),
                    waiter: Waiter::Tell { reply: oneshot::channel().0 },
                });
            }
        }
        emit(&self.options, || ClientEvent::Connected { connection, welcome: welcome.clone() });
        self.link.send_replace(Link::Up { connection, welcome: Box::new(welcome) });
        let watches = self.finishes.keys().map(|task| Outgoing {
            message: Watch { task: *task, from_seq: None }.into(),
            connection: None,
            waiter: Waiter::Watch(*task),
        });
        self.outgoing.extend(watches);
        self.outgoing.append(&mut self.held);
        self.handle(Frame::Many(early));
    }

    /// Turns a command into a message to send, unless its connection is over.
    fn enqueue(&mut self, command: Command) {
        let (message, connection, waiter) = match command {
            Command::Submit(command) => {
                let SubmitCommand { submit, reply, finished, permit } = *command;
                let waiter = SubmitWaiter { reply, finished, _permit: permit, again: None, sent: false };
                (submit.into(), None, Waiter::Submit(waiter))
            }
            Command::Request { message, connection, reply, permit } => {
                (message, connection, Waiter::Request { reply, _permit: permit })
            }
            Command::Tell { message, connection, reply } => (message, connection, Waiter::Tell { reply }),
        };
        if connection.is_some_and(|wanted| !self.up || wanted != self.connection) {
            waiter.fail_unsent(&Closed::broken("the connection that this belongs to has ended"));
            return;
        }
        let outgoing = Outgoing { message, connection, waiter };
        match outgoing.waiter {
            Waiter::Submit(_) if self.away_until.is_some() => self.held.push_back(outgoing),
            _ => self.outgoing.push_back(outgoing),
        }
    }

    /// Encodes what waits to be sent, up to what is worth a write.
    fn fill(&mut self, sender: &mut Sender) {
        while sender.buffered() < FLUSH_BYTES {
            let mut requests = Vec::new();
            let mut waiters = Vec::new();
            let mut payload_bytes = 0;
            while requests.len() < BATCH_MAX && payload_bytes < BATCH_BYTES {
                if self.outgoing.is_empty() {
                    match self.commands.try_recv() {
                        Ok(command) => self.enqueue(command),
                        Err(_) => break,
                    }
                }
                let Some(Outgoing { message, waiter, .. }) = self.outgoing.pop_front() else { continue };
                payload_bytes += payload_length(&message);
                let id = waiter.wants_answer().then(|| {
                    self.last_id += 1;
                    RequestId::Integer(self.last_id)
                });
                requests.push(Request { id, message });
                waiters.push(waiter);
            }
            if requests.is_empty() {
                return;
            }
            let batched = self.options.batch && requests.len() > 1 && sender.push_batch(&requests).is_ok();
            for (request, waiter) in requests.into_iter().zip(waiters) {
                // A batch that is too long may hold messages that are not.
                let pushed = if batched { Ok(()) } else { sender.push(&request) };
                self.sent(request, waiter, pushed);
            }
        }
    }

    fn sent(&mut self, request: Request, waiter: Waiter, pushed: Result<(), PushError>) {
        if let Err(error) = pushed {
            waiter.fail_too_large(error);
            return;
        }
        let waiter = match (waiter, request.message) {
            (Waiter::Tell { reply }, _) => {
                // Nobody may be waiting any more; so with every answer below.
                let _ = reply.send(Ok(()));
                return;
            }
            (Waiter::Submit(mut waiter), ClientMessage::Submit(submit)) => {
                waiter.sent = true;
                // Without a dedup_id a second submit would be a second task.
                waiter.again =
                    submit.full().is_some_and(|submit| submit.dedup_id.is_some()).then(|| submit.into());
                Waiter::Submit(waiter)
            }
            (waiter, _) => waiter,
        };
        if let Some(RequestId::Integer(id)) = request.id {
            self.waiting.insert(id, waiter);
        }
    }

    /// Handles what came in, and all that has arrived behind it.
    fn take(
        &mut self,
        first: Result<Incoming, Closed>,
        sender: &mut Sender,
        receiver: &mut Receiver,
    ) -> Result<(), Closed> {
        let mut next = Some(first);
        let mut left = FRAMES_A_TURN;
        while let Some(incoming) = next {
            match incoming? {
                Incoming::Messages(frame) => self.handle(frame),
                Incoming::Ping(bytes) => sender.pong(&bytes),
                Incoming::Pong(_) => {}
            }
            left -= 1;
            next = if left > 0 { receiver.try_receive() } else { None };
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame<Response>) {
        for Response { reference, message } in frame {
            let waiter = match reference {
                Some(RequestId::Integer(id)) => self.waiting.remove(&id),
                _ => None,
            };
            match waiter {
                Some(waiter) => self.answer(waiter, message),
                None => self.unasked(message),
            }
        }
    }

    fn answer(&mut self, waiter: Waiter, message: ServerMessage) {
        match (waiter, message) {
            (Waiter::Submit(waiter), ServerMessage::Accepted(accepted)) => {
                if let Some(finished) = waiter.finished {
                    self.finishes.entry(accepted.task).or_default().push(finished);
                }
                let _ = waiter.reply.send(Ok(accepted));
            }
            (Waiter::Submit(waiter), message) => {
                let _ = waiter.reply.send(Err(SubmitError::Refused(refusal(message))));
            }
            (Waiter::Request { reply, .. }, ServerMessage::Error(error)) => {
                let _ = reply.send(Err(RequestError::Refused(error)));
            }
            (Waiter::Request { reply, .. }, message) => {
                let _ = reply.send(Ok(message));
            }
            (Waiter::Watch(task), ServerMessage::Error(error)) => {
                for finish in self.finishes.remove(&task).unwrap_or_default() {
                    let _ = finish.send(Err(SubmitError::Forgotten { task, error: error.clone() }));
                }
            }
            (Waiter::Watch(_) | Waiter::Tell { .. }, _) => {}
        }
    }

    fn unasked(&mut self, message: ServerMessage) {
        match &message {
            ServerMessage::Finished(finished) => {
                for finish in self.finishes.remove(&finished.task).unwrap_or_default() {
                    let _ = finish.send(Ok((**finished).clone()));
                }
            }
            ServerMessage::GoingAway(away) if away.reason == AwayReason::Restart => {
                self.away_until = Some(Instant::now() + Duration::from_millis(away.reconnect_after_ms));
            }
            _ => {}
        }
        let connection = self.connection;
        emit(&self.options, || ClientEvent::Message { connection, message });
    }

    /// Whether nobody waits for an answer and nothing waits to be sent.
    fn idle(&self) -> bool {
        self.waiting.is_empty() && self.outgoing.is_empty() && self.held.is_empty()
    }

    /// The connection broke while writing: what the broker said before is still there to be read.
    async fn last_words(&mut self, receiver: &mut Receiver, error: std::io::Error) -> Closed {
        let reading = async {
            loop {
                match receiver.receive().await {
                    Ok(Incoming::Messages(frame)) => self.handle(frame),
                    Ok(_) => {}
                    Err(closed) => return closed,
                }
            }
        };
        match timeout(BYE_GRACE, reading).await {
            Ok(closed) if closed.code.is_some() => closed,
            _ => Closed::broken(error.to_string()),
        }
    }

    /// The connection has ended: what may be sent again will be, the rest is told.
    fn lose(&mut self, closed: &Closed) {
        self.up = false;
        if let Some(held) = &self.options.held {
            held.disconnected(closed.advice != Advice::Stop && self.options.reconnect != Reconnect::Never);
        }
        let mut again = Vec::new();
        for (id, waiter) in self.waiting.drain() {
            match waiter {
                Waiter::Submit(SubmitWaiter { again: Some(submit), reply, finished, _permit, sent }) => {
                    let waiter = SubmitWaiter { reply, finished, _permit, again: None, sent };
                    again.push((
                        id,
                        Outgoing {
                            message: (*submit).into(),
                            connection: None,
                            waiter: Waiter::Submit(waiter),
                        },
                    ));
                }
                waiter => waiter.fail_unanswered(closed),
            }
        }
        // In the order in which they were sent first.
        again.sort_unstable_by_key(|(id, _)| *id);
        let unsent: Vec<Outgoing> = self.outgoing.drain(..).collect();
        self.outgoing.extend(again.into_iter().map(|(_, outgoing)| outgoing));
        for outgoing in unsent {
            match outgoing {
                // Made anew for every connection.
                Outgoing { waiter: Waiter::Watch(_), .. } => {}
                Outgoing { connection: Some(_), waiter, .. } => waiter.fail_unsent(closed),
                outgoing => self.outgoing.push_back(outgoing),
            }
        }
        let connection = self.connection;
        emit(&self.options, || ClientEvent::Disconnected { connection, closed: closed.clone() });
        self.link.send_replace(Link::Down { closed: closed.clone() });
    }

    /// Waits and connects until there is a connection, or a reason why there will be none.
    async fn reconnect(&mut self, closed: Closed) -> Result<Opened, Closed> {
        let mut advice = closed.advice;
        let mut last = closed;
        loop {
            let now = Instant::now();
            let Some(mut after) = self.backoff.next(advice, now, rand::random()) else { return Err(last) };
            if self.options.held.as_ref().is_some_and(|held| held.count() > 0) {
                after = after.min(RESUME_WAIT_MAX);
            }
            if let Some(until) = self.away_until.take() {
                after = until.saturating_duration_since(now);
            }
            emit(&self.options, || ClientEvent::Retry { after });
            self.meanwhile(sleep(after)).await?;
            let options = self.options.clone();
            match self.meanwhile(open(&options)).await? {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    advice = error.advice();
                    last = Closed::advised(error.to_string(), advice);
                    emit(&self.options, || ClientEvent::ConnectFailed { error: error.to_string() });
                }
            }
        }
    }

    /// Does `work` while it takes commands: those that need the old connection are told at once.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Closed> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = closing(&mut self.closing) => return Err(Closed::broken("this client was closed")),
                command = self.commands.recv(), if self.outgoing.len() < OUTGOING_MAX => match command {
                    Some(command) => self.enqueue(command),
                    None => return Err(Closed::broken("this client was closed")),
                },
            }
        }
    }

    /// There is no connection any more: everybody is told.
    fn end(&mut self, closed: &Closed) {
        self.up = false;
        if let Some(held) = &self.options.held {
            held.end();
        }
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            self.enqueue(command);
        }
        for (_, waiter) in self.waiting.drain() {
            waiter.fail_unanswered(closed);
        }
        for outgoing in self.outgoing.drain(..).chain(self.held.drain(..)) {
            outgoing.waiter.fail_unsent(closed);
        }
        for finish in self.finishes.drain().flat_map(|(_, finishes)| finishes) {
            let _ = finish.send(Err(SubmitError::Closed(closed.clone())));
        }
    }
}

impl Waiter {
    fn wants_answer(&self) -> bool {
        !matches!(self, Waiter::Tell { .. })
    }

    fn fail_too_large(self, error: PushError) {
        match self {
            Waiter::Submit(waiter) => drop(waiter.reply.send(Err(SubmitError::TooLarge(error)))),
            Waiter::Request { reply, .. } => drop(reply.send(Err(RequestError::TooLarge(error)))),
            Waiter::Tell { reply } => drop(reply.send(Err(RequestError::TooLarge(error)))),
            Waiter::Watch(_) => {}
        }
    }

    /// The connection ended before the answer.
    fn fail_unanswered(self, closed: &Closed) {
        let closed = closed.clone();
        match self {
            Waiter::Submit(waiter) => drop(waiter.reply.send(Err(SubmitError::Unknown(closed)))),
            Waiter::Request { reply, .. } => drop(reply.send(Err(RequestError::Disconnected(closed)))),
            Waiter::Tell { .. } | Waiter::Watch(_) => {}
        }
    }

    /// It was not sent, or a submit not again, and will not be.
    fn fail_unsent(self, closed: &Closed) {
        let closed = closed.clone();
        match self {
            Waiter::Submit(SubmitWaiter { reply, sent: true, .. }) => {
                drop(reply.send(Err(SubmitError::Unknown(closed))))
            }
            Waiter::Submit(waiter) => drop(waiter.reply.send(Err(SubmitError::Closed(closed)))),
            Waiter::Request { reply, .. } => drop(reply.send(Err(RequestError::Closed(closed)))),
            Waiter::Tell { reply } => drop(reply.send(Err(RequestError::Closed(closed)))),
            Waiter::Watch(_) => {}
        }
    }
}

/// The error that answers a submit; anything else in its place is a fault of the broker.
fn refusal(message: ServerMessage) -> Box<Error> {
    match message {
        ServerMessage::Error(error) => error,
        other => Box::new(Error::new(
            ErrorCode::Internal,
            format!("the broker answered a submit with `{}` instead of `accepted`", other.type_text()),
        )),
    }
}

fn payload_length(message: &ClientMessage) -> usize {
    match message {
        ClientMessage::Submit(submit) => submit.payload().bytes().len(),
        ClientMessage::Publish(publish) => publish.payload.bytes().len(),
        ClientMessage::Ack(ack) => ack.result.bytes().len(),
        ClientMessage::Progress(progress) => progress.data.bytes().len(),
        _ => 0,
    }
}

/// Answers the end with our own close, if the other side still takes it.
async fn closed_by(closed: Closed, sender: &mut Sender) -> Closed {
    sender.push_close(closed.reply(), "");
    // The other end may be gone, or may have stopped reading: then there is nobody to tell.
    let _ = timeout(BYE_GRACE, sender.flush()).await;
    closed
}

/// Leaves: `bye`, then the broker closes.
async fn bye(sender: &mut Sender, receiver: &mut Receiver) -> Leave {
    let leaving = async {
        // A `bye` is far below every limit.
        let _ = sender.push(&Request { id: None, message: Bye {}.into() });
        sender.flush().await?;
        while receiver.receive().await.is_ok() {}
        sender.close(CloseCode::NORMAL.0, "").await
    };
    // A broker that does not close in time sees the socket's end, and its log says so.
    let _ = timeout(BYE_GRACE, leaving).await;
    Leave::Done
}

async fn closing(seen: &mut watch::Receiver<bool>) {
    // An error says that every handle is gone: the same.
    let _ = seen.wait_for(|closing| *closing).await;
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Notices that the other end is gone where the network does not say so.
struct Liveness {
    /// How long a silence is unsuspicious.
    quiet: Duration,
    heard: Instant,
    silence: Silence,
}

enum Silence {
    Unsuspicious,
    /// The broker is to answer by then.
    Asked(Instant),
    /// It did not; what it said may turn up until then.
    Overdue(Instant),
}

enum Alive {
    Yes,
    Ask,
    No,
}

impl Liveness {
    /// A broker pings a client that says nothing; one that says nothing and pings nothing for one
    /// and a half times that long is asked.
    fn new(ping_ms: u64, now: Instant) -> Liveness {
        let quiet = Duration::from_millis(ping_ms.clamp(100, 600_000) * 3 / 2);
        Liveness { quiet, heard: now, silence: Silence::Unsuspicious }
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.silence = Silence::Unsuspicious;
    }

    fn alarm(&self) -> Instant {
        match self.silence {
            Silence::Unsuspicious => self.heard + self.quiet,
            Silence::Asked(until) | Silence::Overdue(until) => until,
        }
    }

    fn check(&mut self, now: Instant) -> Alive {
        if now < self.alarm() {
            return Alive::Yes;
        }
        match self.silence {
            Silence::Unsuspicious => {
                self.silence = Silence::Asked(now + PING_GRACE);
                Alive::Ask
            }
            Silence::Asked(_) => {
                self.silence = Silence::Overdue(now + STANDSTILL_GRACE);
                Alive::Yes
            }
            Silence::Overdue(_) => Alive::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The alarm of a process that goes on may be heard before what came while it stood still.
    #[test]
    fn a_broker_is_left_a_little_after_its_time_to_answer() {
        let began = Instant::now();
        let mut liveness = Liveness::new(1_000, began);
        assert!(matches!(liveness.check(began + Duration::from_millis(1_499)), Alive::Yes));
        let mut now = began + Duration::from_millis(1_500);
        assert!(matches!(liveness.check(now), Alive::Ask));
        assert_eq!(liveness.alarm(), now + PING_GRACE);
        for is_heard in [true, false] {
            now += Duration::from_hours(1);
            assert!(matches!(liveness.check(now), Alive::Yes), "it stood still for an hour");
            assert_eq!(liveness.alarm(), now + STANDSTILL_GRACE);
            if is_heard {
                liveness.heard(now);
                now += Duration::from_hours(1);
                assert!(matches!(liveness.check(now), Alive::Ask));
            }
        }
        assert!(matches!(liveness.check(liveness.alarm()), Alive::No));
    }
}
