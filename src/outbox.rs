//! What waits to be written to one socket: bounded, in bytes.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use taskyard_proto::{CloseCode, Encoding, LeaseId, Response, ServerMessage};
use tokio::sync::Notify;

/// More than this, and the socket must take something within a second; of anything but tasks, whose
/// number credit bounds, more than this closes it at once.
pub const OUTBOX_BYTES_MAX: usize = 4 << 20;
/// More than this, without progress for ten seconds, and it is closed too.
pub const OUTBOX_BYTES_STUCK: usize = 1 << 20;

/// What an error takes beside its text and the rest.
const ERROR_BYTES: usize = 256;
/// Pongs that may wait: as many as pings are allowed in a second.
const PONGS_MAX: usize = 100;

/// One message on its way out.
#[derive(Debug)]
pub struct Outbound {
    /// What to write.
    pub response: Response,
    /// The lease to acknowledge once it is written.
    pub on_write: Option<LeaseId>,
}

/// A socket's outbox. Filled by the dispatcher and the socket's reader, emptied by its writer.
#[derive(Debug)]
pub struct Outbox {
    /// A plain lock: it is held for the time of a push or a swap, never across an await.
    state: Mutex<State>,
    wake: Notify,
    /// Told when it is to end.
    closing: Notify,
    /// The peer is to be heard: its reader says so at the next byte.
    listening: AtomicBool,
    encoding: AtomicU8,
    /// The client said `batch:true`.
    arrays: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<Outbound>,
    /// Tasks that were ever pushed.
    delivered: u64,
    /// What is not written yet, also of what the writer has taken.
    bytes: usize,
    /// The same without tasks.
    other_bytes: usize,
    pongs: Vec<Vec<u8>>,
    ping: bool,
    close: Option<Closing>,
}

/// How a socket is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The close frame's code; none answers a close frame that had none.
    pub code: Option<CloseCode>,
    /// In words, at most 123 bytes.
    pub reason: String,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub struct Drained {
    /// Messages, in order.
    pub messages: Vec<Outbound>,
    /// What they take, and what those that are no tasks take.
    bytes: usize,
    other_bytes: usize,
    /// The bodies of pongs to send.
    pub pongs: Vec<Vec<u8>>,
    /// Whether to ping.
    pub ping: bool,
    /// Whether, and how, to close after that.
    pub close: Option<Closing>,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox {
            state: Mutex::default(),
            wake: Notify::new(),
            closing: Notify::new(),
            listening: AtomicBool::new(false),
            encoding: AtomicU8::new(0),
            arrays: AtomicBool::new(false),
        }
    }
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding it did so between two whole states: there is no half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The encoding that the broker answers in.
    pub fn encoding(&self) -> Encoding {
        if self.encoding.load(Ordering::Relaxed) == 1 { Encoding::MessagePack } else { Encoding::Json }
    }

    /// Sets the encoding that the broker answers in.
    pub fn set_encoding(&self, encoding: Encoding) {
        self.encoding.store(u8::from(encoding == Encoding::MessagePack), Ordering::Relaxed);
    }

    /// Whether the client takes arrays of messages.
    pub fn takes_arrays(&self) -> bool {
        self.arrays.load(Ordering::Relaxed)
    }

    /// Notes that the client takes arrays of messages.
    pub fn take_arrays(&self) {
        self.arrays.store(true, Ordering::Relaxed);
    }

    /// Appends messages, leaving `messages` empty. Over the bound the socket is closed instead.
    pub fn push(&self, messages: &mut Vec<Outbound>) {
        let mut state = self.state();
        if state.close.is_some() {
            // It ends: what was not sent returns by its session's end.
            messages.clear();
            return;
        }
        // What waited before this push is what the peer has not read: one push alone may be large.
        if state.other_bytes > OUTBOX_BYTES_MAX {
            messages.clear();
            state.messages.clear();
            state.close = Some(slow());
            self.closing.notify_waiters();
        }
        for message in messages.iter() {
            let bytes = weight(&message.response);
            state.bytes += bytes;
            match message.response.message {
                ServerMessage::Task(_) => state.delivered += 1,
                _ => state.other_bytes += bytes,
            }
        }
        state.messages.append(messages);
        drop(state);
        self.wake.notify_one();
    }

    /// How many tasks were ever pushed.
    pub fn delivered(&self) -> u64 {
        self.state().delivered
    }

    /// Appends one message.
    pub fn push_one(&self, response: Response) {
        self.push(&mut vec![Outbound { response, on_write: None }]);
    }

    /// Answers a ping. Of more than can wait the latest is enough (RFC 6455, section 5.5.3).
    pub fn pong(&self, body: &[u8]) {
        let mut state = self.state();
        if state.pongs.len() >= PONGS_MAX {
            state.pongs.pop();
        }
        state.pongs.push(body.to_vec());
        drop(state);
        self.wake.notify_one();
    }

    /// Sends a ping.
    pub fn ping(&self) {
        self.state().ping = true;
        self.wake.notify_one();
    }

    /// Sends a ping, and wants to be told of the next byte.
    pub fn ask_for_life(&self) {
        self.listening.store(true, Ordering::Release);
        self.ping();
    }

    /// Whether a sign of life was wanted; not any more.
    pub fn was_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed) && self.listening.swap(false, Ordering::AcqRel)
    }

    /// Ends the socket after what is already here. The first reason given is the one sent.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.close_as(Closing { code: Some(code), reason: reason.into() });
    }

    /// As [`Outbox::close`], with or without a code.
    pub fn close_as(&self, closing: Closing) {
        self.state().close.get_or_insert(closing);
        self.closing.notify_waiters();
        self.wake.notify_one();
    }

    /// Waits until it is to end.
    pub async fn closing(&self) {
        let mut told = std::pin::pin!(self.closing.notified());
        // Told between the look and the wait, it is not missed.
        told.as_mut().enable();
        if !self.is_closing() {
            told.await;
        }
    }

    /// The code that it ends with; none: it has none, or does not end.
    pub fn close_code(&self) -> Option<CloseCode> {
        self.state().close.as_ref().and_then(|closing| closing.code)
    }

    /// Whether it is to end, or has.
    pub fn is_closing(&self) -> bool {
        self.state().close.is_some()
    }

    /// The peer reads too slowly: ends the socket, drops what waits.
    pub fn give_up_on_slow_reader(&self) {
        let mut state = self.state();
        state.messages.clear();
        state.close.get_or_insert_with(slow);
        self.closing.notify_waiters();
    }

    /// All that the writer has taken is written.
    pub fn written(&self, drained: &Drained) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(drained.bytes);
        state.other_bytes = state.other_bytes.saturating_sub(drained.other_bytes);
    }

    /// Bytes that are not written yet.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Takes all that is to be written, if there is anything, leaving `spare`, which is empty, to be
    /// filled next.
    pub fn take(&self, spare: &mut Vec<Outbound>) -> Option<Drained> {
        let mut state = self.state();
        let some =
            !state.messages.is_empty() || !state.pongs.is_empty() || state.ping || state.close.is_some();
        some.then(|| Drained {
            bytes: state.bytes,
            other_bytes: state.other_bytes,
            messages: std::mem::replace(&mut state.messages, std::mem::take(spare)),
            pongs: std::mem::take(&mut state.pongs),
            ping: std::mem::take(&mut state.ping),
            close: state.close.clone(),
        })
    }

    /// Gives back the room that an idle socket does not need.
    pub fn shrink(&self) {
        let mut state = self.state();
        if state.messages.is_empty() {
            state.messages = Vec::new();
        }
    }

    /// Waits until there may be something to write.
    pub async fn filled(&self) {
        self.wake.notified().await;
    }
}

fn slow() -> Closing {
    Closing {
        code: Some(CloseCode::SLOW),
        reason: "the client reads too slowly: too much waits to be written".into(),
    }
}

/// What a message takes in an outbox: its payload, and a round number for the rest.
pub(crate) fn weight(response: &Response) -> usize {
    const REST: usize = 160;
    REST + match &response.message {
        ServerMessage::Task(task) => task.payload.bytes().len(),
        ServerMessage::Finished(finished) => {
            let outcomes = finished.recipients.as_ref().map_or(&[][..], |list| &list.0);
            finished.result.bytes().len()
                + outcomes.iter().map(|o| 64 + o.result.bytes().len()).sum::<usize>()
        }
        ServerMessage::Event(event) => event.data.bytes().len(),
        ServerMessage::RoomMessage(message) => message.payload.bytes().len(),
        ServerMessage::Error(error) => error.message.as_str().len() + ERROR_BYTES,
        ServerMessage::Settled(settled) => settled.results.0.as_ref().map_or(0, |results| 48 * results.len()),
        _ => 0,
    }
}
