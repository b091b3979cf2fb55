//! The half of a connection that listens: frames are read, put together and decoded.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::Cursor;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fastwebsockets::{OpCode, Role, WebSocketError, WebSocketRead};
use taskyard_proto::code::{Advice, CloseCode};
use taskyard_proto::codec::{self, Encoding, Frame, Response};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use crate::sender::{CONTROL_BYTES_MAX, MESSAGE_BYTES_MAX};

/// What is read in one system call: hundreds of small answers.
const READ_BYTES: usize = 64 << 10;

/// What came in.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Incoming {
    /// A frame of messages.
    Messages(Frame<Response>),
    /// A ping: answer it with [`Sender::pong`](crate::Sender::pong) and the same bytes.
    Ping(Bytes),
    /// The answer to a ping of ours.
    Pong(Bytes),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The broker's close code; none if it ended without one.
    pub code: Option<u16>,
    /// What the broker, or the network, says about it.
    pub reason: String,
    /// What to do next.
    pub advice: Advice,
    reply: u16,
}

impl Closed {
    /// The connection ended without a close of the broker's.
    pub(crate) fn broken(reason: impl Into<String>) -> Closed {
        Self::advised(reason, Advice::BackOff)
    }

    pub(crate) fn advised(reason: impl Into<String>, advice: Advice) -> Closed {
        Closed { code: None, reason: reason.into(), advice, reply: CloseCode::NORMAL.0 }
    }

    /// The broker sent what no broker should.
    fn violation(code: CloseCode, reason: impl Into<String>) -> Closed {
        Closed { code: None, reason: reason.into(), advice: Advice::BackOff, reply: code.0 }
    }

    /// The code with which to close our side.
    pub fn reply(&self) -> u16 {
        self.reply
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.reason.as_str()) {
            (Some(code), "") => write!(f, "the broker closed the connection with code {code}"),
            (Some(code), reason) => write!(f, "the broker closed the connection with code {code}: {reason}"),
            (None, reason) => write!(f, "the connection ended: {reason}"),
        }
    }
}

impl std::error::Error for Closed {}

/// The half of a connection that listens.
pub struct Receiver {
    /// Reads for the whole life of the connection. A read that is broken off would lose the bytes
    /// that it has taken, so the future that reads is never dropped: it rests between frames.
    reading: Pin<Box<dyn Future<Output = ()> + Send>>,
    slot: Arc<Slot>,
    end: Option<Closed>,
}

/// Where the reading future leaves what it read. The two never run at the same time; the lock is
/// there because the compiler cannot know.
type Slot = Mutex<Option<Result<Incoming, Closed>>>;

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("end", &self.end).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Reads from `read`, after the bytes that came with the upgrade's answer.
    pub(crate) fn new<R>(read: R, kept: Vec<u8>, encoding: Encoding) -> Receiver
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let stream = BufReader::with_capacity(READ_BYTES, Cursor::new(kept).chain(read));
        // The writing half is our own: this one writes into nothing and is dropped.
        let (mut frames, _) = fastwebsockets::after_handshake_split(stream, tokio::io::sink(), Role::Client);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        // The library refuses what is as long as its limit.
        frames.set_max_message_size(MESSAGE_BYTES_MAX + 1);
        let slot = Arc::new(Slot::default());
        let assembler = Assembler { encoding, unfinished: None };
        Receiver { reading: Box::pin(read_frames(frames, assembler, slot.clone())), slot, end: None }
    }

    /// Waits for what comes next. Dropping the wait loses nothing.
    pub async fn receive(&mut self) -> Result<Incoming, Closed> {
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// What is already here, without waiting: so that one can handle all that has arrived before
    /// one answers any of it.
    pub fn try_receive(&mut self) -> Option<Result<Incoming, Closed>> {
        match self.poll_receive(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(incoming) => Some(incoming),
            Poll::Pending => None,
        }
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Incoming, Closed>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(end.clone()));
        }
        let finished = self.reading.as_mut().poll(context).is_ready();
        let incoming = self.slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match incoming {
            Some(incoming) => {
                if let Err(end) = &incoming {
                    self.end = Some(end.clone());
                }
                Poll::Ready(incoming)
            }
            None if finished => {
                unreachable!("the reading future leaves an end in the slot before it finishes")
            }
            None => Poll::Pending,
        }
    }
}

async fn read_frames<R>(mut frames: WebSocketRead<R>, mut assembler: Assembler, slot: Arc<Slot>)
where
    R: AsyncRead + Unpin,
{
    // Called for automatic pongs and closes only, which are off.
    let mut send = |_: fastwebsockets::Frame<'_>| std::future::ready(Ok::<(), Infallible>(()));
    loop {
        let incoming = match frames.read_frame(&mut send).await {
            Ok(frame) => assembler.take(frame),
            Err(error) => Err(ended(error)),
        };
        match incoming {
            Ok(None) => {}
            Ok(Some(incoming)) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ok(incoming));
                rest().await;
            }
            Err(closed) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(closed));
                return;
            }
        }
    }
}

/// Returns to the poller once. No waker is kept: the poller comes back when it wants more.
async fn rest() {
    let mut rested = false;
    poll_fn(|_| if std::mem::replace(&mut rested, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

fn ended(error: WebSocketError) -> Closed {
    match error {
        WebSocketError::UnexpectedEOF => Closed::broken("the other end went away without a close"),
        WebSocketError::IoError(error) => Closed::broken(error.to_string()),
        WebSocketError::InvalidUTF8 => {
            Closed::violation(CloseCode::INVALID_TEXT, "the broker sent text that is not UTF-8")
        }
        WebSocketError::FrameTooLarge => Closed::violation(
            CloseCode::TOO_BIG,
            format!("the broker sent a frame of more than {MESSAGE_BYTES_MAX} bytes"),
        ),
        error => Closed::violation(
            CloseCode::PROTOCOL_ERROR,
            format!("the broker sent a broken frame: {}", error.to_string().to_lowercase()),
        ),
    }
}

/// Puts fragments together and decodes what is whole.
struct Assembler {
    encoding: Encoding,
    /// The opcode and the bytes so far of a message whose last fragment is still to come.
    unfinished: Option<(OpCode, Vec<u8>)>,
}

impl Assembler {
    fn take(&mut self, frame: fastwebsockets::Frame<'_>) -> Result<Option<Incoming>, Closed> {
        let broken = |reason: &str| Closed::violation(CloseCode::PROTOCOL_ERROR, reason);
        let bytes: &[u8] = &frame.payload;
        match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if bytes.len() > CONTROL_BYTES_MAX => {
                Err(broken("the broker sent a control frame of more than 125 bytes"))
            }
            OpCode::Ping => Ok(Some(Incoming::Ping(Bytes::copy_from_slice(bytes)))),
            OpCode::Pong => Ok(Some(Incoming::Pong(Bytes::copy_from_slice(bytes)))),
            OpCode::Close => Err(closed_by_broker(bytes)),
            opcode @ (OpCode::Text | OpCode::Binary) => {
                if self.unfinished.is_some() {
                    return Err(broken("the broker began a message within another"));
                }
                if frame.fin {
                    return self.decode(opcode, bytes).map(Some);
                }
                self.unfinished = Some((opcode, bytes.to_vec()));
                Ok(None)
            }
            OpCode::Continuation => {
                let Some((opcode, mut whole)) = self.unfinished.take() else {
                    return Err(broken("the broker went on with a message that it had not begun"));
                };
                if bytes.len() > MESSAGE_BYTES_MAX - whole.len() {
                    let reason = format!("the broker sent a message of more than {MESSAGE_BYTES_MAX} bytes");
                    return Err(Closed::violation(CloseCode::TOO_BIG, reason));
                }
                whole.extend_from_slice(bytes);
                if !frame.fin {
                    self.unfinished = Some((opcode, whole));
                    return Ok(None);
                }
                // The library checks whole texts; a text out of fragments is checked here.
                if opcode == OpCode::Text && std::str::from_utf8(&whole).is_err() {
                    return Err(ended(WebSocketError::InvalidUTF8));
                }
                self.decode(opcode, &whole).map(Some)
            }
        }
    }

    fn decode(&self, opcode: OpCode, bytes: &[u8]) -> Result<Incoming, Closed> {
        let expected = if self.encoding == Encoding::Json { OpCode::Text } else { OpCode::Binary };
        if opcode != expected {
            let reason = format!("the broker sent a {opcode:?} frame where {expected:?} was agreed");
            return Err(Closed::violation(CloseCode::UNSUPPORTED_DATA, reason));
        }
        // What cannot be read may have been an answer that somebody waits for: a new connection
        // tells them so, going on would not.
        codec::decode_server(self.encoding, bytes)
            .map(Incoming::Messages)
            .map_err(|error| Closed::violation(CloseCode::PROTOCOL_ERROR, error.to_string()))
    }
}

fn closed_by_broker(body: &[u8]) -> Closed {
    match body {
        [] => Closed::broken("the broker closed the connection and gave no code"),
        [high, low, reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([*high, *low]));
            let reason = String::from_utf8_lossy(reason).into_owned();
            Closed { code: Some(code.0), reason, advice: code.advice(), reply: code.0 }
        }
        [_] => Closed::violation(CloseCode::PROTOCOL_ERROR, "the broker sent a close frame of one byte"),
    }
}
