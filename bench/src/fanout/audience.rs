//! Those who listen: thousands of sockets on a few threads, each with its own reactor, so that nothing is
//! handed over between them. One buffer a thread is read into.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::board::Board;
use super::counter::{Counter, Counts};
use crate::Failed;
use crate::socket::{Door, Greeting, Io, Socket};

/// Sockets of a thread that are being opened at the same time.
const OPENING: usize = 32;
/// What is read at once: all that ever waits for a socket.
const READ_BYTES: usize = 256 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Sockets that listen. They end when it is dropped.
pub(super) struct Audience {
    stop: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    failures: mpsc::Receiver<Failed>,
}

/// Whether a thread's sockets are open, or why they are not.
type Ready = Result<(), Failed>;

impl Audience {
    /// Opens them all, as many as the board has.
    pub(super) async fn open(
        door: &Door,
        joins: Option<Greeting>,
        counts: Counts,
        board: &Arc<Board>,
    ) -> Result<Audience, Failed> {
        let (stop, stopped) = watch::channel(());
        // The first failure is the one that is told.
        let (fail, failures) = mpsc::channel(1);
        let (ready, mut all_ready) = mpsc::channel::<Ready>(board.shares().len().max(1));
        let mut audience = Audience { stop: Some(stop), threads: Vec::new(), failures };
        let threads = board.shares().len();
        for thread in 0..threads {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let listener = Listener { thread, counts, board: board.clone(), fail: fail.clone() };
            let (door, joins, ready, mut stopped) =
                (door.clone(), joins.clone(), ready.clone(), stopped.clone());
            audience.threads.push(std::thread::spawn(move || {
                runtime.block_on(async {
                    let opened = listener.open(&door, joins, threads).await;
                    // Who waits for this may have gone.
                    let _ = ready.try_send(opened);
                    let _ = stopped.changed().await;
                });
            }));
        }
        for _ in 0..threads {
            all_ready.recv().await.ok_or("a thread that receives has ended")??;
        }
        Ok(audience)
    }

    /// Waits until one of them fails.
    pub(super) async fn failed(&mut self) -> Failed {
        self.failures.recv().await.unwrap_or_else(|| "all who listened are gone".into())
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What a thread's sockets share.
#[derive(Clone)]
struct Listener {
    thread: usize,
    counts: Counts,
    board: Arc<Board>,
    fail: mpsc::Sender<Failed>,
}

impl Listener {
    /// Opens this thread's share; each socket listens from then on.
    async fn open(&self, door: &Door, joins: Option<Greeting>, threads: usize) -> Result<(), Failed> {
        let share = self.board.shares()[self.thread] as usize;
        let mut opening = JoinSet::new();
        for first in 0..OPENING {
            let (listener, door, joins) = (self.clone(), door.clone(), joins.clone());
            opening.spawn(async move {
                for nth in (first..share).step_by(OPENING) {
                    let mut socket = Socket::open(&door, nth * threads + listener.thread).await?;
                    if let Some(joins) = &joins {
                        socket.greet(joins).await?;
                    }
                    tokio::spawn(listener.clone().listen(socket));
                }
                Ok::<_, Failed>(())
            });
        }
        while let Some(opened) = opening.join_next().await {
            opened??;
        }
        Ok(())
    }

    async fn listen(self, socket: Socket) {
        let Err(error) = self.heard(socket).await;
        let _ = self.fail.try_send(error);
    }

    async fn heard(&self, socket: Socket) -> Result<std::convert::Infallible, Failed> {
        let (mut stream, rest) = socket.into_parts();
        let mut counter = Counter::new(self.counts, rest);
        let mut nth = 0;
        loop {
            let count = poll_fn(|context| poll_count(&mut stream, &mut counter, context)).await?;
            for _ in 0..count {
                self.board.hear(self.thread, nth);
                nth += 1;
            }
            if let Some(ack) = counter.ack() {
                stream.write_all(&ack).await?;
            }
        }
    }
}

/// Reads what there is, and counts.
fn poll_count(
    stream: &mut Box<dyn Io>,
    counter: &mut Counter,
    context: &mut Context<'_>,
) -> Poll<Result<u32, Failed>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err("the server ended a connection".into()));
        }
        Poll::Ready(counter.feed(buffer.filled()))
    })
}
