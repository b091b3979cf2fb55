//! Watches a connection: its request heads for a length that is said twice, and its peer for reading.
//!
//! A request with both `Content-Length` and `Transfer-Encoding` ends in two different places for two
//! readers, and what is between them is a request that only one of them sees (RFC 9112, section 6.1).
//! hyper settles on one of the two and forgets that there was another, so it is seen here, in the bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// How long a peer may take nothing of its answer.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// A connection whose request heads are watched.
#[derive(Debug)]
pub struct Guarded<S> {
    io: S,
    /// Its place among the connections that the broker takes.
    place: Option<OwnedSemaphorePermit>,
    scan: Scan,
    ambiguous: Arc<AtomicBool>,
    /// Goes off once the peer has taken nothing for too long.
    stuck: Option<Pin<Box<Sleep>>>,
}

/// Set once a request's length was said twice; whoever answers it takes it.
#[derive(Debug, Clone, Default)]
pub struct Ambiguous(Arc<AtomicBool>);

impl Ambiguous {
    /// Whether a request had two lengths.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl<S> Guarded<S> {
    /// Over a connection that has said nothing yet.
    pub fn new(io: S, place: Option<OwnedSemaphorePermit>, ambiguous: &Ambiguous) -> Guarded<S> {
        Guarded { io, place, scan: Scan::default(), ambiguous: ambiguous.0.clone(), stuck: None }
    }

    /// Passes on what came of a write, and gives up on a peer that takes nothing.
    fn patient<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIME)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answer")))
    }

    /// The connection itself, and its place.
    pub fn into_inner(self) -> (S, Option<OwnedSemaphorePermit>) {
        (self.io, self.place)
    }
}

/// Where in the stream of requests the bytes are.
#[derive(Debug)]
struct Scan {
    place: Place,
    /// The beginning of the line, as far as it can tell one of the two names.
    line: Vec<u8>,
    /// Whether it is a request's first line, or the lines before it.
    first: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Default for Scan {
    fn default() -> Self {
        Scan { place: Place::Head, line: Vec::new(), first: true, length: None, chunked: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    /// In a body with so many bytes to come.
    Body(u64),
    /// In a body of chunks, or behind what cannot be a request: its connection serves no other one.
    Rest,
}

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
/// Enough of a line for either name, a colon, and a length in digits with spaces around.
const LINE_BYTES: usize = 64;

impl Scan {
    /// Takes bytes in; whether one of the requests in them has two lengths.
    fn scan(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.place {
                Place::Rest => return false,
                Place::Body(missing) => {
                    let count = missing.min(bytes.len() as u64);
                    bytes = &bytes[count as usize..];
                    self.place = if missing == count { Place::Head } else { Place::Body(missing - count) };
                }
                Place::Head => {
                    let end = memchr::memchr(b'\n', bytes);
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    let room = LINE_BYTES.saturating_sub(self.line.len());
                    self.line.extend_from_slice(&part[..part.len().min(room)]);
                    let Some(end) = end else { return false };
                    bytes = &bytes[end + 1..];
                    if self.line() {
                        self.place = Place::Rest;
                        return true;
                    }
                }
            }
        }
        false
    }

    /// At the end of a line of a head.
    fn line(&mut self) -> bool {
        let mut line = std::mem::take(&mut self.line);
        let length = line.len();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.is_empty() {
            // Empty lines before a request are none of its own.
            if !std::mem::replace(&mut self.first, true) {
                let length = self.length.take().unwrap_or(0);
                self.place = match (std::mem::take(&mut self.chunked), length) {
                    (true, _) => Place::Rest,
                    (false, 0) => Place::Head,
                    (false, length) => Place::Body(length),
                };
            }
            self.line = line;
            return false;
        }
        if !std::mem::replace(&mut self.first, false)
            && let Some(colon) = memchr::memchr(b':', &line)
        {
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(LENGTH) {
                // A value that is no number is refused by whoever parses the request.
                let value = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                // One that is cut off here would be a third length.
                let cut = length >= LINE_BYTES;
                if cut || self.chunked || self.length.replace(value.unwrap_or(0)).is_some() {
                    return true;
                }
            } else if name.eq_ignore_ascii_case(CODING) {
                self.chunked = true;
                if self.length.is_some() {
                    return true;
                }
            }
        }
        line.clear();
        self.line = line;
        false
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if self.scan.scan(&buffer.filled()[before..]) {
            self.ambiguous.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.patient(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.patient(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.io).poll_shutdown(context);
        self.patient(context, ended)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bufs);
        self.patient(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the bytes hold a request with two lengths, however they are cut.
    fn ambiguous(text: &str) -> bool {
        let bytes = text.replace('\n', "\r\n").into_bytes();
        let whole = Scan::default().scan(&bytes);
        for size in 1..8 {
            let mut scan = Scan::default();
            let cut = bytes.chunks(size).any(|part| scan.scan(part));
            assert_eq!(whole, cut, "in pieces of {size}: {text:?}");
        }
        whole
    }

    #[test]
    fn two_lengths_are_seen_in_any_order_and_request() {
        for both in [
            "POST / HTTP/1.1\nContent-Length: 3\nTransfer-Encoding: chunked\n\n",
            "POST / HTTP/1.1\ntransfer-encoding:chunked\nA: b\nCONTENT-LENGTH:3\n\n",
            "POST / HTTP/1.1\nContent-Length: 3\nContent-Length: 3\n\nabc",
            "GET / HTTP/1.1\nA: b\n\nPOST / HTTP/1.1\nContent-Length: 3\nTransfer-Encoding: chunked\n\n",
            "POST / HTTP/1.1\nContent-Length:                                                             3\n\n",
            "\nPOST / HTTP/1.1\nContent-Length: 1\n\naPOST / HTTP/1.1\nTransfer-Encoding: x\nContent-Length: 3\n\n",
        ] {
            assert!(ambiguous(both), "{both:?}");
        }
    }

    #[test]
    fn a_body_may_say_what_it_likes() {
        let body = "Content-Length: 3\nTransfer-Encoding: chunked\n\n";
        let length = body.replace('\n', "\r\n").len();
        for one in [
            format!("POST / HTTP/1.1\nContent-Length: {length}\n\n{body}GET / HTTP/1.1\nHost: a\n\n"),
            format!("POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n2c\n{body}\n0\n\n"),
            "Content-Length: Transfer-Encoding: HTTP/1.1\nContent-Length: 1\nX-Transfer-Encoding: a\n\na"
                .into(),
        ] {
            assert!(!ambiguous(&one), "{one:?}");
        }
    }
}
