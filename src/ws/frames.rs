//! Our rules over fastwebsockets: it parses headers and unmasks, and lets pass what RFC 6455 and the
//! protocol forbid. This gives whole messages, or the reason to close.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Payload, WebSocketError, WebSocketRead};
use taskyard_proto::{CloseCode, Encoding};
use tokio::io::AsyncRead;

/// Something whole that a peer sent.
#[derive(Debug)]
pub enum Incoming {
    /// A message: text is JSON, binary is MessagePack.
    Message(Encoding, Message),
    /// To be answered with the same body.
    Ping(Bytes),
    /// A sign of life.
    Pong,
    /// The peer ends the socket, with this code if any.
    Close(Option<u16>),
}

/// A message's bytes; text has been checked to be UTF-8.
#[derive(Debug)]
pub struct Message(BytesMut);

impl std::ops::Deref for Message {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Why reading ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The socket ended without a close frame.
    Gone,
    /// The peer broke a rule.
    Rule(CloseCode, &'static str),
}

/// Control frames that a peer may send in a second.
const CONTROL_PER_SECOND: u32 = 100;
/// Empty fragments that a message may have.
const EMPTY_FRAGMENTS: u32 = 1000;

/// Reads messages from a socket.
pub struct Frames<R> {
    read: WebSocketRead<R>,
    assembly: Assembly,
}

/// Frames on their way to being a message.
struct Assembly {
    message_bytes: usize,
    /// The message under way: its kind and what there is of it.
    partial: Option<(Encoding, BytesMut)>,
    empty_fragments: u32,
    control: (Instant, u32),
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Frames over a socket whose handshake is done.
    pub fn new(mut read: WebSocketRead<R>, message_bytes: usize) -> Frames<R> {
        read.set_auto_close(false);
        read.set_auto_pong(false);
        // It reserves what a header declares, so it must know the limit before it reads one; it also
        // refuses the limit itself.
        read.set_max_message_size(message_bytes + 1);
        let assembly =
            Assembly { message_bytes, partial: None, empty_fragments: 0, control: (Instant::now(), 0) };
        Frames { read, assembly }
    }

    /// The next whole thing. Must not be dropped half-way: what was read would be lost.
    pub async fn next(&mut self) -> Result<Incoming, Broken> {
        loop {
            // With pong and close in our own hands nothing is ever sent from here.
            let frame = self
                .read
                .read_frame::<_, WebSocketError>(&mut |_| async { Ok(()) })
                .await
                .map_err(|error| broken(&error))?;
            if let Some(incoming) = self.assembly.take(frame)? {
                return Ok(incoming);
            }
        }
    }
}

impl Assembly {
    fn take(&mut self, mut frame: Frame<'_>) -> Result<Option<Incoming>, Broken> {
        let rule = |code, reason| Err(Broken::Rule(code, reason));
        if !is_masked(&mut frame) {
            return rule(CloseCode::PROTOCOL_ERROR, "a client's frame must be masked");
        }
        if matches!(frame.opcode, OpCode::Close | OpCode::Ping | OpCode::Pong) {
            return self.control(&frame).map(Some);
        }
        let body = match frame.payload {
            Payload::Bytes(bytes) => bytes,
            other => BytesMut::from(&*other),
        };
        match (frame.opcode, self.partial.take()) {
            (OpCode::Continuation, None) => {
                return rule(CloseCode::PROTOCOL_ERROR, "a continuation without a beginning");
            }
            (_, Some(_)) if frame.opcode != OpCode::Continuation => {
                return rule(CloseCode::PROTOCOL_ERROR, "a new message inside another");
            }
            (_, Some((encoding, mut whole))) => {
                if body.is_empty() && !frame.fin {
                    self.empty_fragments += 1;
                    if self.empty_fragments > EMPTY_FRAGMENTS {
                        return rule(CloseCode::POLICY, "too many empty fragments");
                    }
                }
                if whole.len() + body.len() > self.message_bytes {
                    return rule(CloseCode::TOO_BIG, "the message is longer than the broker allows");
                }
                whole.extend_from_slice(&body);
                self.partial = Some((encoding, whole));
            }
            (opcode, None) => {
                self.empty_fragments = 0;
                let encoding = if opcode == OpCode::Text { Encoding::Json } else { Encoding::MessagePack };
                if frame.fin {
                    // fastwebsockets has checked that unfragmented text is UTF-8.
                    return Ok(Some(Incoming::Message(encoding, Message(body))));
                }
                self.partial = Some((encoding, body));
            }
        }
        if !frame.fin {
            return Ok(None);
        }
        let Some((encoding, whole)) = self.partial.take() else { return Ok(None) };
        if encoding == Encoding::Json && std::str::from_utf8(&whole).is_err() {
            return rule(CloseCode::INVALID_TEXT, "text that is not UTF-8");
        }
        Ok(Some(Incoming::Message(encoding, Message(whole))))
    }

    fn control(&mut self, frame: &Frame<'_>) -> Result<Incoming, Broken> {
        let rule = |code, reason| Err(Broken::Rule(code, reason));
        let body = &*frame.payload;
        if body.len() > 125 {
            return rule(CloseCode::PROTOCOL_ERROR, "a control frame longer than 125 bytes");
        }
        if self.control.0.elapsed() > Duration::from_secs(1) {
            self.control = (Instant::now(), 0);
        }
        self.control.1 += 1;
        if self.control.1 > CONTROL_PER_SECOND && frame.opcode != OpCode::Close {
            return rule(CloseCode::POLICY, "too many pings in a second");
        }
        match (frame.opcode, body) {
            (OpCode::Ping, _) => Ok(Incoming::Ping(Bytes::copy_from_slice(body))),
            (OpCode::Pong, _) => Ok(Incoming::Pong),
            (_, []) => Ok(Incoming::Close(None)),
            (_, [_]) => rule(CloseCode::PROTOCOL_ERROR, "a close frame with half a code"),
            (_, [high, low, reason @ ..]) => {
                let code = u16::from_be_bytes([*high, *low]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return rule(CloseCode::PROTOCOL_ERROR, "a close code that must not be sent");
                }
                if std::str::from_utf8(reason).is_err() {
                    return rule(CloseCode::INVALID_TEXT, "a close reason that is not UTF-8");
                }
                Ok(Incoming::Close(Some(code)))
            }
        }
    }
}

/// Whether a frame came masked: fastwebsockets keeps it to itself, but writes it into a header.
fn is_masked(frame: &mut Frame<'_>) -> bool {
    let mut head = [0; 16];
    frame.fmt_head(&mut head);
    head[1] & 0x80 != 0
}

fn broken(error: &WebSocketError) -> Broken {
    let rule = Broken::Rule;
    match error {
        WebSocketError::ReservedBitsNotZero => {
            rule(CloseCode::PROTOCOL_ERROR, "a reserved bit is set, and no extension was agreed on")
        }
        WebSocketError::InvalidValue => rule(CloseCode::PROTOCOL_ERROR, "an unknown opcode"),
        WebSocketError::ControlFrameFragmented => {
            rule(CloseCode::PROTOCOL_ERROR, "a fragmented control frame")
        }
        WebSocketError::PingFrameTooLarge => {
            rule(CloseCode::PROTOCOL_ERROR, "a control frame longer than 125 bytes")
        }
        WebSocketError::FrameTooLarge => {
            rule(CloseCode::TOO_BIG, "the message is longer than the broker allows")
        }
        WebSocketError::InvalidUTF8 => rule(CloseCode::INVALID_TEXT, "text that is not UTF-8"),
        _ => Broken::Gone,
    }
}
