//! The half of a connection that speaks: messages are encoded into one buffer, and a flush hands
//! all of it to the kernel in one write.

use std::fmt;
use std::io;

use rand::Rng as _;
use rand::rngs::StdRng;
use taskyard_proto::codec::{self, Encoding, Request};
use taskyard_proto::message::BATCH_MAX;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// How many buffered bytes are worth a write: past this, waiting for more gains nothing.
pub const FLUSH_BYTES: usize = 256 << 10;

/// The most bytes that may wait for a flush; four of the longest messages.
const BUFFER_BYTES_MAX: usize = 64 << 20;

/// The longest message that any broker takes, in bytes. Most take less, and say so in `welcome`.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How much of the buffer is kept between flushes.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// The half of a connection that speaks.
pub struct Sender {
    write: Box<dyn AsyncWrite + Send + Unpin>,
    encoding: Encoding,
    /// Masks keep a page from choosing the bytes on the wire, so they must not be guessed. ChaCha
    /// costs about 2 ns a mask.
    random: StdRng,
    buffer: Vec<u8>,
    /// How much of the buffer a flush that was broken off has written.
    written: usize,
    message_bytes_max: usize,
}

/// Why a message was not taken. Nothing of it is in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The message is longer than the broker takes.
    TooLarge {
        /// Its length, encoded.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// More than 64 MiB wait to be written: flush first.
    Full,
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PushError::TooLarge { bytes, bytes_max } => write!(
                f,
                "the message is {bytes} bytes long and the broker takes at most {bytes_max}: make the payload \
                 smaller, or store it elsewhere and send where it is"
            ),
            PushError::Full => {
                write!(f, "more than {BUFFER_BYTES_MAX} bytes wait to be written: flush first")
            }
        }
    }
}

impl std::error::Error for PushError {}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("encoding", &self.encoding)
            .field("buffered", &self.buffered())
            .finish()
    }
}

impl Sender {
    pub(crate) fn new(write: Box<dyn AsyncWrite + Send + Unpin>, encoding: Encoding) -> Sender {
        Sender {
            write,
            encoding,
            random: rand::make_rng(),
            buffer: Vec::new(),
            written: 0,
            message_bytes_max: MESSAGE_BYTES_MAX,
        }
    }

    /// Sets the longest message, as `welcome` tells it.
    pub fn limit_message_bytes(&mut self, bytes_max: usize) {
        self.message_bytes_max = bytes_max.min(MESSAGE_BYTES_MAX);
    }

    /// Puts a message into the buffer.
    pub fn push(&mut self, request: &Request) -> Result<(), PushError> {
        let encoding = self.encoding;
        self.push_frame(|out| codec::encode_client(encoding, request, out))
    }

    /// Puts messages into the buffer, as one array frame.
    ///
    /// # Panics
    ///
    /// With more than 1024 messages, which no broker takes in one frame.
    pub fn push_batch(&mut self, requests: &[Request]) -> Result<(), PushError> {
        assert!(
            requests.len() <= BATCH_MAX,
            "a frame holds at most {BATCH_MAX} messages, not {}",
            requests.len()
        );
        let encoding = self.encoding;
        self.push_frame(|out| codec::encode_client_batch(encoding, requests, out))
    }

    /// How many bytes wait for a flush.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Whether a flush has anything to do; also when all is written and the stream below holds it.
    pub(crate) fn unflushed(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Writes all that is buffered. A flush that is dropped half-way goes on with the next one.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            match self.write.write(&self.buffer[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.written += written,
            }
        }
        self.write.flush().await?;
        self.buffer.clear();
        self.written = 0;
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Puts a ping into the buffer, of at most 125 bytes.
    pub fn ping(&mut self, bytes: &[u8]) {
        self.push_control(PING, bytes);
    }

    /// Puts the answer to a ping into the buffer.
    pub fn pong(&mut self, bytes: &[u8]) {
        self.push_control(PONG, bytes);
    }

    /// Says that this is the end, and writes all that is buffered before it. The broker answers by
    /// closing the connection. `reason` is cut to 123 bytes.
    pub async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        self.push_close(code, reason);
        self.flush().await
    }

    pub(crate) fn push_close(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut body = code.to_be_bytes().to_vec();
        body.extend_from_slice(&reason.as_bytes()[..end]);
        self.push_control(CLOSE, &body);
    }

    fn push_control(&mut self, opcode: u8, bytes: &[u8]) {
        let start = self.buffer.len();
        let bytes = &bytes[..bytes.len().min(CONTROL_BYTES_MAX)];
        self.buffer.extend_from_slice(&[0; HEAD_BYTES_USUAL]);
        self.buffer.extend_from_slice(bytes);
        self.finish_frame(start, opcode);
    }

    fn push_frame(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), PushError> {
        if self.buffered() >= BUFFER_BYTES_MAX {
            return Err(PushError::Full);
        }
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEAD_BYTES_USUAL]);
        encode(&mut self.buffer);
        let bytes = self.buffer.len() - start - HEAD_BYTES_USUAL;
        if bytes > self.message_bytes_max {
            self.buffer.truncate(start);
            return Err(PushError::TooLarge { bytes, bytes_max: self.message_bytes_max });
        }
        self.finish_frame(start, if self.encoding == Encoding::Json { TEXT } else { BINARY });
        Ok(())
    }

    /// Makes a frame of what stands in the buffer from `start`: room for the usual head, and the
    /// body. The head's length is known only now, so bodies of another class move a little.
    fn finish_frame(&mut self, start: usize, opcode: u8) {
        let body = start + HEAD_BYTES_USUAL;
        let length = self.buffer.len() - body;
        let mask = self.random.next_u32().to_ne_bytes();
        fastwebsockets::unmask(&mut self.buffer[body..], mask);
        let mut head = [0; HEAD_BYTES_MAX];
        head[0] = FIN | opcode;
        let head_bytes = if length < 126 {
            head[1] = MASKED | length as u8;
            2
        } else if let Ok(short) = u16::try_from(length) {
            head[1] = MASKED | 126;
            head[2..4].copy_from_slice(&short.to_be_bytes());
            4
        } else {
            head[1] = MASKED | 127;
            head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        };
        head[head_bytes..head_bytes + 4].copy_from_slice(&mask);
        let head = &head[..head_bytes + 4];
        if head.len() < HEAD_BYTES_USUAL {
            self.buffer.copy_within(body.., start + head.len());
            self.buffer.truncate(start + head.len() + length);
        } else if head.len() > HEAD_BYTES_USUAL {
            self.buffer.resize(start + head.len() + length, 0);
            self.buffer.copy_within(body..body + length, start + head.len());
        }
        self.buffer[start..start + head.len()].copy_from_slice(head);
    }
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The head of a frame of 126 to 65535 bytes: what most submits are.
const HEAD_BYTES_USUAL: usize = 8;
const HEAD_BYTES_MAX: usize = 14;
/// The longest body of a ping, pong or close.
pub(crate) const CONTROL_BYTES_MAX: usize = 125;
