//! Open loop: submits at a fixed rate, timed from the moment each was meant to be sent.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::set_current_timer_slack;
use taskyard_client::connection::Connection;
use taskyard_client::endpoint::Endpoint;
use taskyard_client::receiver::Incoming;
use taskyard_proto::message::Credit;
use taskyard_proto::{
    Ack, Encoding, GivenLease, Hello, LeaseList, Payload, QueueName, Request, RequestId, ServerMessage,
    Submit, Subscribe,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::broker::Broker;
use crate::drivers::bare_floor::{self, Floor};
use crate::drivers::load::Peer;
use crate::drivers::{Place, Role};
use crate::floor::Framing;
use crate::{Failed, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Submits a second
    #[arg(long, value_delimiter = ',', default_value = "2000,20000")]
    rate: Vec<u64>,
    /// Seconds of each measurement; the first tenth is not counted
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds, broker and bare server in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value = "embedded")]
    engine: String,
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    /// Where stores are kept
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// Connections that submit.
const PRODUCERS: usize = 4;

/// Bytes of the time that a payload begins with.
pub(crate) const STAMP_BYTES: usize = 8;

/// What is asked of a system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Submits a second.
    pub(crate) rate: u64,
    pub(crate) seconds: u64,
    pub(crate) payload_bytes: usize,
}

/// What came of it.
pub(crate) enum Outcome {
    Kept(Histogram<u64>),
    /// It fell so far behind that the latencies say nothing but that.
    Behind {
        achieved_per_s: f64,
    },
}

/// The worker may have this much credit: more than is ever under way, so that it is never the limit.
pub(crate) const CREDIT: usize = 1024;
/// A system that is late by this much cannot keep the rate.
const LATE: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: Args) -> Result<(), Failed> {
    print("submit → worker, µs, from the intended send time");
    print("rate/s    server      p50      p99    p99.9      max");
    let place = Place { dir: args.dir.clone(), credit: CREDIT, workers: 1, acks_answered: false };
    for rate in &args.rate {
        let plan = Plan { rate: *rate, seconds: args.seconds, payload_bytes: args.payload_bytes };
        let mut medians: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds {
            for (which, name) in ["floor", args.engine.as_str()].into_iter().enumerate() {
                let outcome = if which == 0 {
                    let server = bare_floor::start(&place, Framing::Tcp, true).await?;
                    of_peer(&Peer::new(server, Arc::new(Floor { framing: Framing::Tcp })).await?, plan)
                        .await?
                } else {
                    let broker = Broker::start(&args.engine, &args.dir)?;
                    of_broker(&broker.url, plan).await?
                };
                let Outcome::Kept(histogram) = outcome else {
                    return Err(format!("{name} cannot keep {rate} tasks a second: give --rate less").into());
                };
                let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
                print(&format!(
                    "{rate:<9} {name:<9} {:>6.0} {:>8.0} {:>8.0} {:>8.0}",
                    at(0.5),
                    at(0.99),
                    at(0.999),
                    histogram.max() as f64 / 1000.0
                ));
                medians[which].push(at(0.5));
            }
        }
        let [floor, broker] = medians.map(|figures| crate::median(&figures));
        print(&format!("{rate:<9} median p50: {broker:.0} / floor {floor:.0} = {:.2}", broker / floor));
    }
    Ok(())
}

/// Calls `send` with each moment at which a submit is due, in bunches where the timer is late. Says
/// whether it went on to the end: a system that lets nothing more in has fallen behind.
async fn pace(
    plan: Plan,
    mut send: impl AsyncFnMut(&[Instant]) -> Result<(), Failed>,
) -> Result<bool, Failed> {
    let began = Instant::now() + Duration::from_millis(50);
    let step = Duration::from_secs(1) / u32::try_from(plan.rate)?;
    let total = plan.rate * plan.seconds;
    let mut next = 0;
    let mut due = Vec::new();
    while next < total {
        let at = began + step * u32::try_from(next)?;
        if at.elapsed() > LATE {
            return Ok(false);
        }
        wait_until(at);
        due.clear();
        while next < total {
            let at = began + step * u32::try_from(next)?;
            if at > Instant::now() {
                break;
            }
            due.push(at);
            next += 1;
        }
        send(&due).await?;
    }
    Ok(true)
}

/// Sleeps without the runtime, whose timer counts milliseconds; and without spinning, which would take
/// a core away from what is measured. Left to itself the kernel may wake a sleeper 50 µs late (prctl(2),
/// PR_SET_TIMERSLACK), which would be half of what is measured: here it is asked to be on time.
#[expect(clippy::disallowed_methods, reason = "the thing itself is the time")]
fn wait_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        tokio::task::block_in_place(|| {
            // Where the system does not know it, sleepers are as late as ever; and a server that this thread starts
            // must not inherit it.
            let _ = set_current_timer_slack(NonZeroU64::new(1));
            std::thread::sleep(left);
            let _ = set_current_timer_slack(None);
        });
    }
}

/// Counts latencies of the payloads' stamps; the first tenth warms up.
struct Recorder {
    anchor: Instant,
    histogram: Histogram<u64>,
    /// Also read by those who wait for it.
    seen: Arc<AtomicU64>,
    total: u64,
}

impl Recorder {
    fn new(anchor: Instant, total: u64) -> Result<Recorder, Failed> {
        Ok(Recorder { anchor, histogram: Histogram::new(3)?, seen: Arc::default(), total })
    }

    fn see(&mut self, payload: &[u8]) -> Result<(), Failed> {
        let stamp = payload.get(..STAMP_BYTES).ok_or("a payload without a stamp")?;
        let sent = self.anchor + Duration::from_nanos(u64::from_le_bytes(stamp.try_into()?));
        if self.seen.fetch_add(1, Ordering::Relaxed) >= self.total / 10 {
            self.histogram.record(sent.elapsed().as_nanos() as u64)?;
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.seen.load(Ordering::Relaxed) >= self.total
    }
}

fn stamped(anchor: Instant, at: Instant, bytes: usize) -> Vec<u8> {
    let mut payload = vec![b'x'; bytes.max(STAMP_BYTES)];
    payload[..STAMP_BYTES].copy_from_slice(&(at.duration_since(anchor).as_nanos() as u64).to_le_bytes());
    payload
}

type Working = tokio::task::JoinHandle<Result<Histogram<u64>, Failed>>;

/// Waits for the worker, if the rate was kept so far; or says what was achieved.
async fn outcome(
    mut worker: Working,
    producers: &mut [tokio::task::JoinHandle<Result<(), Failed>>],
    (anchor, seen, kept): (Instant, Arc<AtomicU64>, bool),
) -> Result<Outcome, Failed> {
    let until = Instant::now() + if kept { LATE } else { Duration::ZERO };
    let outcome = loop {
        if let Some(ended) = producers.iter_mut().find(|producer| producer.is_finished()) {
            return Err(ended.await?.err().unwrap_or_else(|| "a producer ended".into()));
        }
        if let Ok(histogram) = tokio::time::timeout(Duration::from_millis(50), &mut worker).await {
            break Outcome::Kept(histogram??);
        }
        if Instant::now() > until {
            let achieved_per_s = seen.load(Ordering::Relaxed) as f64 / anchor.elapsed().as_secs_f64();
            break Outcome::Behind { achieved_per_s };
        }
    };
    worker.abort();
    producers.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(outcome)
}

/// Measures Taskyard.
pub(crate) async fn of_broker(url: &str, plan: Plan) -> Result<Outcome, Failed> {
    let queue = QueueName::parse("bench")?;
    let mut endpoint = Endpoint::parse(url)?;
    endpoint.encoding = Encoding::MessagePack;
    let anchor = Instant::now();
    let mut recorder = Recorder::new(anchor, plan.rate * plan.seconds)?;
    let seen = recorder.seen.clone();

    let (mut sender, mut receiver) = Connection::open(&endpoint).await?.split();
    let subscribe = Subscribe {
        queue: queue.clone(),
        credit: Credit::new(CREDIT as u64),
        mode: None,
        explicit_start: false,
    };
    sender.push(&Request { id: Some(RequestId::Integer(1)), message: subscribe.into() })?;
    sender.flush().await?;
    let worker = tokio::spawn(async move {
        while !recorder.done() {
            let mut next = Some(receiver.receive().await);
            while let Some(incoming) = next {
                if let Incoming::Messages(frame) = incoming? {
                    for response in frame {
                        let ServerMessage::Task(task) = response.message else { continue };
                        recorder.see(task.payload.bytes())?;
                        let Some(lease) = task.lease else { continue };
                        let leases = LeaseList::One(GivenLease::Lease(lease));
                        sender.push(&Request {
                            id: None,
                            message: Ack { leases, result: Payload::NULL }.into(),
                        })?;
                    }
                }
                next = receiver.try_receive();
            }
            sender.flush().await?;
        }
        Ok::<_, Failed>(recorder.histogram)
    });

    // Several producers: a session may have 1024 submits without an answer, and a stall must not fill that.
    let (mut senders, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..PRODUCERS {
        let (mut sender, mut receiver) = Connection::open(&endpoint).await?.split();
        sender.push(&Request { id: None, message: Hello::empty().into() })?;
        senders.push(sender);
        answers.push(tokio::spawn(async move {
            loop {
                // Only refusals are looked at: the worker's clock is the one that counts.
                let Incoming::Messages(frame) = receiver.receive().await? else { continue };
                for response in frame {
                    if let ServerMessage::Error(error) = response.message {
                        return Err::<(), Failed>(error.message.as_str().into());
                    }
                }
            }
        }));
    }
    let mut turn = 0;
    let kept = pace(plan, async |due| {
        turn = (turn + 1) % PRODUCERS;
        let sender = &mut senders[turn];
        for at in due {
            let submit =
                Submit::new(queue.clone(), Payload::binary(stamped(anchor, *at, plan.payload_bytes)));
            sender.push(&Request { id: Some(RequestId::Integer(0)), message: submit.into() })?;
        }
        Ok(sender.flush().await?)
    })
    .await?;
    outcome(worker, &mut answers, (anchor, seen, kept)).await
}

/// Measures any other.
pub(crate) async fn of_peer(peer: &Peer, plan: Plan) -> Result<Outcome, Failed> {
    let anchor = Instant::now();
    let mut recorder = Recorder::new(anchor, plan.rate * plan.seconds)?;
    let seen = recorder.seen.clone();
    let mut open = peer.open(Role::Worker, 0).await?;
    let mut worker = peer.dialect.worker(0);
    let worker = tokio::spawn(async move {
        let mut out = Vec::new();
        worker.begin(&mut out);
        loop {
            worker.hear(&mut open.input, &mut out, &mut |payload| recorder.see(payload))?;
            open.write(&mut out).await?;
            if recorder.done() {
                return Ok(recorder.histogram);
            }
            open.read().await?;
        }
    });

    // One task hears what the other's submits are answered: both know the same of the connection.
    let (mut senders, mut answers) = (Vec::new(), Vec::new());
    for nth in 0..PRODUCERS {
        let open = peer.open(Role::Producer, nth).await?;
        let mut hearing = peer.dialect.producer(nth);
        let (mut input, (mut read, write)) = (open.input, open.stream.into_split());
        senders.push((peer.dialect.producer(nth), write));
        answers.push(tokio::spawn(async move {
            let mut ignored = Vec::new();
            loop {
                hearing.hear(&mut input, &mut ignored)?;
                ignored.clear();
                if read.read_buf(&mut input).await? == 0 {
                    return Err::<(), Failed>("the server closed a connection".into());
                }
            }
        }));
    }
    let (mut out, mut turn) = (Vec::new(), 0);
    let kept = pace(plan, async |due| {
        turn = (turn + 1) % PRODUCERS;
        let (producer, write) = &mut senders[turn];
        out.clear();
        for at in due {
            producer.submit(&stamped(anchor, *at, plan.payload_bytes), &mut out);
        }
        producer.flush(&mut out);
        Ok(write.write_all(&out).await?)
    })
    .await?;
    outcome(worker, &mut answers, (anchor, seen, kept)).await
}
