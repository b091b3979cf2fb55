//! A socket's reading half: what has arrived goes through its assembly, all at once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};

use super::frames::{Assembly, Broken, Incoming};

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
}

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes.
    Bytes(usize),
    /// The peer has ended the connection.
    End,
}

impl<R: AsyncRead + Unpin> Inbound<R> {
    /// Over a socket whose handshake is done.
    pub fn new(read: R, assembly: Assembly) -> Inbound<R> {
        Inbound { read, assembly }
    }

    /// Takes on bytes that were read before.
    pub fn feed<E: From<Broken>>(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(Incoming<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.assembly.feed(&mut bytes.to_vec(), take)
    }

    /// Reads once, and gives `take` what that completes. May be dropped while it waits.
    pub fn poll_read<E: From<Broken>>(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(Incoming<'_>) -> Result<(), E>,
    ) -> Poll<Result<Arrived, E>> {
        ARRIVED.with_borrow_mut(|arrived| {
            let mut buffer = ReadBuf::new(arrived);
            if ready!(Pin::new(&mut self.read).poll_read(context, &mut buffer)).is_err() {
                return Poll::Ready(Ok(Arrived::End));
            }
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(Arrived::End));
            }
            let count = buffer.filled().len();
            Poll::Ready(self.assembly.feed(buffer.filled_mut(), take).map(|()| Arrived::Bytes(count)))
        })
    }

    /// As [`Inbound::poll_read`], for whoever waits for nothing else.
    pub async fn read<E: From<Broken>>(
        &mut self,
        mut take: impl FnMut(Incoming<'_>) -> Result<(), E>,
    ) -> Result<Arrived, E> {
        poll_fn(|context| self.poll_read(context, &mut take)).await
    }

    /// Takes nothing on for a while. What arrives, up to about one read, waits with us, so that the peer's end
    /// is seen: gives it, and whether that was the end.
    pub async fn pause(&mut self, time: Duration) -> (Vec<u8>, bool) {
        let mut waits = Vec::new();
        let read = poll_fn(|context| {
            while waits.len() < READ_BYTES {
                let more = ARRIVED.with_borrow_mut(|arrived| {
                    let mut buffer = ReadBuf::new(arrived);
                    let read: io::Result<()> =
                        ready!(Pin::new(&mut self.read).poll_read(context, &mut buffer));
                    waits.extend_from_slice(buffer.filled());
                    Poll::Ready(read.is_ok() && !buffer.filled().is_empty())
                });
                if !ready!(more) {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        let ended = tokio::time::timeout(time, read).await.is_ok();
        (waits, ended)
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
