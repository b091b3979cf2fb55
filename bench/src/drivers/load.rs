//! The load, the same for every system: producers with a window of unconfirmed submits, workers with
//! credit. A connection is one task that writes all it has at once and reads all that has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Failed;
use crate::drivers::server::Server;
use crate::drivers::{Depth, Dialect, Nth, Role, Step};

/// What a connection reads at once.
const READ_BYTES: usize = 64 << 10;

/// After so long without an ack a round has failed.
const STALLED: Duration = Duration::from_secs(30);

/// How long a server may refuse workers.
const RETURNING: Duration = Duration::from_secs(60);
/// How long it may take to answer one.
const ANSWER: Duration = Duration::from_secs(35);

/// How hard a system is driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) tasks: u64,
    pub(crate) producers: usize,
    pub(crate) workers: usize,
    /// Unconfirmed submits of a producer.
    pub(crate) window: u64,
    pub(crate) payload_bytes: usize,
}

/// A system that runs.
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) dialect: Arc<dyn Dialect>,
}

/// A connection that has said what is said first.
pub(crate) struct Open {
    pub(crate) stream: TcpStream,
    /// What came already.
    pub(crate) input: BytesMut,
}

impl Open {
    /// Waits until more has come.
    pub(crate) async fn read(&mut self) -> Result<(), Failed> {
        self.input.reserve(READ_BYTES / 2);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err("the server closed a connection".into()),
            _ => Ok(()),
        }
    }

    /// Writes all that there is, if there is anything.
    pub(crate) async fn write(&mut self, out: &mut Vec<u8>) -> Result<(), Failed> {
        if !out.is_empty() {
            self.stream.write_all(out).await?;
            out.clear();
        }
        Ok(())
    }
}

impl Peer {
    /// Prepares a server that has just been started.
    pub(crate) async fn new(server: Server, dialect: Arc<dyn Dialect>) -> Result<Peer, Failed> {
        let peer = Peer { server, dialect };
        let mut open = peer.connect().await?;
        walk(&mut open, peer.dialect.prepare()).await?;
        Ok(peer)
    }

    async fn connect(&self) -> Result<Open, Failed> {
        let stream = TcpStream::connect(self.server.address()).await?;
        stream.set_nodelay(true)?;
        Ok(Open { stream, input: BytesMut::with_capacity(READ_BYTES) })
    }

    pub(crate) async fn open(&self, role: Role, nth: Nth) -> Result<Open, Failed> {
        let mut open = self.connect().await?;
        walk(&mut open, self.dialect.open(role, nth)).await?;
        Ok(open)
    }

    /// One round; its seconds, from the first submit to the last answered ack.
    pub(crate) async fn round(&self, load: Load) -> Result<f64, Failed> {
        self.round_of(self.crew(load).await?, load).await
    }

    /// Opens the workers of a round.
    pub(crate) async fn crew(&self, load: Load) -> Result<Crew, Failed> {
        let settled = Settled::new(load.tasks);
        Ok(Crew { running: self.work(load.workers, &settled).await?, settled })
    }

    /// The same, for workers that are there.
    pub(crate) async fn round_of(&self, crew: Crew, load: Load) -> Result<f64, Failed> {
        let producers = self.produce(load).await?;
        self.finish(crew.settled, crew.running, producers).await
    }

    /// Fills the server, with nobody who works.
    pub(crate) async fn fill(&self, load: Load) -> Result<(), Failed> {
        let mut producers = self.produce(load).await?.1;
        while let Some(ended) = producers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Works on what the server has; the seconds it took.
    pub(crate) async fn drain(&self, workers: usize, tasks: u64) -> Result<f64, Failed> {
        let settled = Settled::new(tasks);
        let workers = self.work(workers, &settled).await?;
        let began = Instant::now();
        self.finish(settled, workers, (began, JoinSet::new())).await
    }

    async fn work(&self, workers: usize, settled: &Arc<Settled>) -> Result<Running, Failed> {
        let mut running = JoinSet::new();
        let mut ready = Vec::new();
        for nth in 0..workers {
            ready.push((nth, self.open_again(nth).await?));
        }
        for (nth, open) in ready {
            running.spawn(work(open, self.dialect.clone(), nth, settled.clone()));
        }
        Ok(running)
    }

    /// Opens a worker. A server that has just come back may refuse for a while: a quorum queue answers
    /// what it has before it has a leader.
    async fn open_again(&self, nth: Nth) -> Result<Open, Failed> {
        let until = Instant::now() + RETURNING;
        loop {
            // It may also not answer at all to what it cannot do yet.
            match tokio::time::timeout(ANSWER, self.open(Role::Worker, nth)).await {
                Ok(Ok(open)) => return Ok(open),
                Ok(Err(error)) if Instant::now() > until => return Err(error),
                Err(_) if Instant::now() > until => return Err("the server does not answer a worker".into()),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Starts the producers; says when.
    async fn produce(&self, load: Load) -> Result<(Instant, Running), Failed> {
        let mut ready = Vec::new();
        for nth in 0..load.producers {
            ready.push(self.open(Role::Producer, nth).await?);
        }
        let began = Instant::now();
        let mut running = JoinSet::new();
        for (nth, open) in ready.into_iter().enumerate() {
            let producers = load.producers as u64;
            let share = load.tasks / producers + u64::from((nth as u64) < load.tasks % producers);
            running.spawn(produce(open, self.dialect.clone(), nth, share, load));
        }
        Ok((began, running))
    }

    /// Waits for the last ack, or for the first failure.
    async fn finish(
        &self,
        settled: Arc<Settled>,
        mut workers: Running,
        (began, mut producers): (Instant, Running),
    ) -> Result<f64, Failed> {
        let mut seen = 0;
        loop {
            tokio::select! {
                () = settled.done.notified() => break,
                Some(ended) = workers.join_next() => ended??,
                Some(ended) = producers.join_next() => ended??,
                () = tokio::time::sleep(STALLED) => {
                    let now = settled.count.load(Ordering::Relaxed);
                    if now == seen {
                        return Err(format!("no ack for {STALLED:?}, after {now} of {}", settled.all).into());
                    }
                    seen = now;
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        // Their connections are closed before the next round begins: the server must not give it to them.
        workers.shutdown().await;
        Ok(seconds)
    }

    /// How many tasks the server has; none while it does not say.
    pub(crate) async fn depth(&self) -> Option<u64> {
        let Depth { before, ask, read } = self.dialect.depth()?;
        let mut open = self.connect().await.ok()?;
        walk(&mut open, before).await.ok()?;
        open.stream.write_all(&ask).await.ok()?;
        loop {
            if let Some(found) = read(&mut open.input).ok()? {
                return Some(found);
            }
            if open.stream.read_buf(&mut open.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// The workers of a round, who wait for tasks.
pub(crate) struct Crew {
    running: Running,
    settled: Arc<Settled>,
}

type Running = JoinSet<Result<(), Failed>>;

/// Acks, of all workers.
struct Settled {
    all: u64,
    count: AtomicU64,
    done: Notify,
}

impl Settled {
    fn new(all: u64) -> Arc<Settled> {
        Arc::new(Settled { all, count: AtomicU64::new(0), done: Notify::new() })
    }

    fn add(&self, count: u64) {
        if count > 0 && self.count.fetch_add(count, Ordering::Relaxed) + count >= self.all {
            self.done.notify_one();
        }
    }
}

/// Says what is said first, waiting for each answer.
async fn walk(open: &mut Open, steps: Vec<Step>) -> Result<(), Failed> {
    for step in steps {
        open.stream.write_all(&step.send).await?;
        while !(step.until)(&mut open.input)? {
            open.read().await?;
        }
    }
    Ok(())
}

async fn produce(
    mut open: Open,
    dialect: Arc<dyn Dialect>,
    nth: Nth,
    share: u64,
    load: Load,
) -> Result<(), Failed> {
    let mut producer = dialect.producer(nth);
    let payload = vec![b'x'; load.payload_bytes];
    let (mut sent, mut confirmed) = (0, 0);
    let mut out = Vec::new();
    while confirmed < share {
        while sent < share && sent - confirmed < load.window {
            producer.submit(&payload, &mut out);
            sent += 1;
        }
        producer.flush(&mut out);
        open.write(&mut out).await?;
        open.read().await?;
        confirmed += producer.hear(&mut open.input, &mut out)?;
    }
    Ok(())
}

async fn work(
    mut open: Open,
    dialect: Arc<dyn Dialect>,
    nth: Nth,
    settled: Arc<Settled>,
) -> Result<(), Failed> {
    let mut worker = dialect.worker(nth);
    let mut out = Vec::new();
    worker.begin(&mut out);
    loop {
        let acks = worker.hear(&mut open.input, &mut out, &mut |_| Ok(()))?;
        open.write(&mut out).await?;
        // After the write: where an ack has no answer it counts as sent.
        settled.add(acks);
        open.read().await?;
    }
}
