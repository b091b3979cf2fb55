//! The handle with which a program submits tasks and asks questions. It holds no socket: a driver
//! task does, and makes a new connection when one is lost.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use taskyard_proto::{
    Accepted, ClientMessage, Confirm, Error, Finished, ServerMessage, Submit, TaskId, Welcome,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::connection::ConnectError;
use crate::driver::{self, Driver};
use crate::options::ClientOptions;
use crate::receiver::Closed;
use crate::sender::PushError;

/// How many questions may wait for their answer; more wait before they are asked.
const REQUESTS_MAX: usize = 1024;
/// How many messages may wait for the driver: enough for one full batch.
const COMMANDS_MAX: usize = 1024;

/// A client of one broker. Clones share the connection; it ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    link: watch::Receiver<Link>,
    closing: watch::Sender<bool>,
    window: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// Where the driver stands, for whoever wants to know.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// Connection number `connection` is up.
    Up { connection: u64, welcome: Box<Welcome> },
    /// It has ended, and the next is not there yet.
    Down { closed: Closed },
    /// There will be none any more.
    Ended { closed: Closed },
}

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<SubmitCommand>),
    Request {
        message: ClientMessage,
        /// Only over this connection: leases die with theirs.
        connection: Option<u64>,
        reply: oneshot::Sender<Result<ServerMessage, RequestError>>,
        permit: OwnedSemaphorePermit,
    },
    Tell {
        message: ClientMessage,
        connection: Option<u64>,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
}

#[derive(Debug)]
pub(crate) struct SubmitCommand {
    pub(crate) submit: Submit,
    pub(crate) reply: oneshot::Sender<Result<Accepted, SubmitError>>,
    pub(crate) finished: Option<oneshot::Sender<Result<Finished, SubmitError>>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Why a submit was not, or perhaps not, accepted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SubmitError {
    /// The broker refused it.
    Refused(Box<Error>),
    /// The connection ended before the answer: it may or may not have been accepted.
    Unknown(Closed),
    /// It is longer than the broker takes.
    TooLarge(PushError),
    /// With `confirm: none` there is no answer to wait for.
    NeverAnswered,
    /// It was not sent: there is no connection any more.
    Closed(Closed),
    /// It was accepted, and then the broker could not say any more what became of it.
    Forgotten {
        /// The task.
        task: TaskId,
        /// What the broker said instead.
        error: Box<Error>,
    },
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubmitError::Refused(error) => {
                write!(f, "the broker refused the submit: {}: {}", error.code, error.message.as_str())
            }
            SubmitError::Unknown(closed) => write!(
                f,
                "the submit may or may not have been accepted: {closed}; give it a dedup_id to be able to retry"
            ),
            SubmitError::TooLarge(error) => error.fmt(f),
            SubmitError::NeverAnswered => f.write_str(
                "a submit with confirm \"none\" is never answered: send it with Client::tell, or choose another confirm",
            ),
            SubmitError::Closed(closed) => write!(f, "the submit was not sent: {closed}"),
            SubmitError::Forgotten { task, error } => write!(
                f,
                "what became of task {task} cannot be told any more: {}: {}",
                error.code,
                error.message.as_str()
            ),
        }
    }
}

impl std::error::Error for SubmitError {}

/// Why a question has no answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RequestError {
    /// The broker refused it.
    Refused(Box<Error>),
    /// The connection ended before the answer: it may or may not have been done.
    Disconnected(Closed),
    /// It is longer than the broker takes.
    TooLarge(PushError),
    /// It was not sent: there is no connection any more.
    Closed(Closed),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Refused(error) => {
                write!(f, "the broker refused the message: {}: {}", error.code, error.message.as_str())
            }
            RequestError::Disconnected(closed) => {
                write!(f, "the message may or may not have had its effect: {closed}; ask again to know")
            }
            RequestError::TooLarge(error) => error.fmt(f),
            RequestError::Closed(closed) => write!(f, "the message was not sent: {closed}"),
        }
    }
}

impl std::error::Error for RequestError {}

/// The answer to a submit that was sent; a future.
#[derive(Debug)]
pub struct Receipt {
    answer: oneshot::Receiver<Result<Accepted, SubmitError>>,
}

impl Future for Receipt {
    type Output = Result<Accepted, SubmitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(SubmitError::Unknown(driver_gone()))))
    }
}

impl Client {
    /// Connects and waits for the broker's `welcome`.
    pub async fn connect(options: ClientOptions) -> Result<Client, ConnectError> {
        let window = options.window;
        let mut backoff = driver::backoff(&options);
        let opened = driver::open_first(&options, &mut backoff).await?;
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (closing, closing_seen) = watch::channel(false);
        let first = Link::Up { connection: 1, welcome: Box::new(opened.welcome.clone()) };
        let (link_changes, link) = watch::channel(first);
        let allowed = usize::try_from(opened.welcome.limits.unconfirmed).unwrap_or(usize::MAX).max(1);
        let driver = Driver::new(options, command_queue, closing_seen, link_changes, backoff);
        tokio::spawn(driver.run(opened));
        let window = Arc::new(Semaphore::new(window.min(allowed)));
        let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
        Ok(Client { shared: Arc::new(Shared { commands, link, closing, window, requests }) })
    }

    /// Submits a task and waits until it is accepted.
    pub async fn submit(&self, submit: Submit) -> Result<Accepted, SubmitError> {
        self.send(submit).await?.await
    }

    /// Submits a task without waiting for the answer, but for a place in the window: a producer
    /// that collects receipts keeps as many submits on the way as the window holds.
    pub async fn send(&self, submit: Submit) -> Result<Receipt, SubmitError> {
        self.send_submit(submit, None).await
    }

    /// Submits a task and waits until it is done, dead, cancelled or expired; over reconnects too.
    pub async fn submit_and_wait(&self, mut submit: Submit) -> Result<Finished, SubmitError> {
        submit.watch = true;
        let (finished, end) = oneshot::channel();
        self.send_submit(submit, Some(finished)).await?.await?;
        end.await.unwrap_or_else(|_| Err(SubmitError::Closed(driver_gone())))
    }

    async fn send_submit(
        &self,
        submit: Submit,
        finished: Option<oneshot::Sender<Result<Finished, SubmitError>>>,
    ) -> Result<Receipt, SubmitError> {
        if submit.confirm == Some(Confirm::None) {
            return Err(SubmitError::NeverAnswered);
        }
        let permit = self.shared.window.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit(Box::new(SubmitCommand { submit, reply, finished, permit }));
        match self.shared.commands.send(command).await {
            Ok(()) => Ok(Receipt { answer }),
            Err(_) => Err(SubmitError::Closed(self.ended())),
        }
    }

    /// Sends any message that has an answer, and waits for it.
    pub async fn request(&self, message: impl Into<ClientMessage>) -> Result<ServerMessage, RequestError> {
        self.request_over(None, message.into()).await
    }

    /// Sends a message that gets no answer; returns once it is on its way. What the broker has
    /// against it comes as [`ClientEvent::Message`](crate::ClientEvent::Message).
    pub async fn tell(&self, message: impl Into<ClientMessage>) -> Result<(), RequestError> {
        self.tell_over(None, message.into()).await
    }

    pub(crate) async fn request_over(
        &self,
        connection: Option<u64>,
        message: ClientMessage,
    ) -> Result<ServerMessage, RequestError> {
        let permit =
            self.shared.requests.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let command = Command::Request { message, connection, reply, permit };
        if self.shared.commands.send(command).await.is_err() {
            return Err(RequestError::Closed(self.ended()));
        }
        answer.await.unwrap_or_else(|_| Err(RequestError::Disconnected(driver_gone())))
    }

    pub(crate) async fn tell_over(
        &self,
        connection: Option<u64>,
        message: ClientMessage,
    ) -> Result<(), RequestError> {
        let (reply, told) = oneshot::channel();
        if self.shared.commands.send(Command::Tell { message, connection, reply }).await.is_err() {
            return Err(RequestError::Closed(self.ended()));
        }
        told.await.unwrap_or_else(|_| Err(RequestError::Disconnected(driver_gone())))
    }

    /// What the broker said when the present connection was made; `None` while there is none.
    pub fn welcome(&self) -> Option<Welcome> {
        match &*self.shared.link.borrow() {
            Link::Up { welcome, .. } => Some((**welcome).clone()),
            Link::Down { .. } | Link::Ended { .. } => None,
        }
    }

    /// Sends what waits to be sent, waits up to 5 s for the answers, says `bye` and ends the
    /// connection, for all clones.
    pub async fn close(self) {
        self.shared.closing.send_replace(true);
        self.closed().await;
    }

    /// Waits until there is no connection and will be none, and says why.
    pub async fn closed(&self) -> Closed {
        let mut link = self.shared.link.clone();
        let ended = link.wait_for(|link| matches!(link, Link::Ended { .. })).await;
        match ended.as_deref() {
            Ok(Link::Ended { closed }) => closed.clone(),
            _ => driver_gone(),
        }
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.clone()
    }

    fn ended(&self) -> Closed {
        match &*self.shared.link.borrow() {
            Link::Ended { closed } | Link::Down { closed } => closed.clone(),
            Link::Up { .. } => Closed::broken("this client is being closed"),
        }
    }
}

/// How long [`Client::close`] waits for answers.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The driver ends only after it has answered everybody, unless its runtime was shut down.
fn driver_gone() -> Closed {
    Closed::broken("the runtime that drives this client has shut down")
}
