//! A socket's reading half: what has arrived goes through its assembly, all at once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};

use super::frames::{Assembly, Broken, Take};

/// What one read takes at most; as much is handed over to the broker at once.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// Where every socket of a thread is read to: what arrives is taken on before anybody else's turn,
    /// so that a socket that waits needs no buffer of its own.
    static ARRIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A socket's reading half.
#[derive(Debug)]
pub struct Inbound<R> {
    read: R,
    assembly: Assembly,
    /// What has been read and not been taken on.
    rest: Vec<u8>,
}

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes were taken on.
    Bytes(usize),
    /// The peer has ended the connection.
    End,
}

impl<R: AsyncRead + Unpin> Inbound<R> {
    /// Over a socket whose handshake is done. `early` is what came before that was answered.
    pub fn new(read: R, assembly: Assembly, early: &[u8]) -> Inbound<R> {
        Inbound { read, assembly, rest: early.to_vec() }
    }

    /// Reads once, and gives `taker` what that completes; what it has no use for yet is given to it first the
    /// next time, and nothing is read then. May be dropped while it waits.
    pub fn poll_read<E: From<Broken>>(
        &mut self,
        context: &mut Context<'_>,
        taker: &mut impl Take<E>,
    ) -> Poll<Result<Arrived, E>> {
        if !self.rest.is_empty() {
            let mut rest = std::mem::take(&mut self.rest);
            let used = self.assembly.feed_some(&mut rest, taker)?;
            if used < rest.len() {
                rest.drain(..used);
                self.rest = rest;
            }
            return Poll::Ready(Ok(Arrived::Bytes(used)));
        }
        ARRIVED.with_borrow_mut(|arrived| {
            let mut buffer = ReadBuf::new(arrived);
            if ready!(Pin::new(&mut self.read).poll_read(context, &mut buffer)).is_err() {
                return Poll::Ready(Ok(Arrived::End));
            }
            let bytes = buffer.filled_mut();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Arrived::End));
            }
            let used = self.assembly.feed_some(bytes, taker)?;
            self.rest.extend_from_slice(&bytes[used..]);
            Poll::Ready(Ok(Arrived::Bytes(used)))
        })
    }

    /// As [`Inbound::poll_read`], for whoever waits for nothing else.
    pub async fn read<E: From<Broken>>(&mut self, mut taker: impl Take<E>) -> Result<Arrived, E> {
        poll_fn(|context| self.poll_read(context, &mut taker)).await
    }

    /// Reads and forgets, to the peer's end or for a while: bytes left unread would turn our goodbye
    /// into a reset. They are no frames any more: after a broken one nobody knows where the next begins.
    pub async fn discard(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        let discard = poll_fn(|context| {
            ARRIVED.with_borrow_mut(|arrived| {
                let mut buffer = ReadBuf::new(arrived);
                let read: io::Result<()> = ready!(Pin::new(&mut self.read).poll_read(context, &mut buffer));
                Poll::Ready(read.is_ok() && !buffer.filled().is_empty())
            })
        });
        let mut discard = discard;
        // A peer that never stops sending is given up on in time, too.
        while Instant::now() < until
            && matches!(tokio::time::timeout_at(until.into(), &mut discard).await, Ok(true))
        {}
    }
}
