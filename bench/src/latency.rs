//! Open loop: submits at a fixed rate, timed from the moment each was meant to be sent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use taskyard_client::connection::Connection;
use taskyard_client::endpoint::Endpoint;
use taskyard_client::receiver::Incoming;
use taskyard_proto::message::Credit;
use taskyard_proto::{
    Ack, Encoding, GivenLease, Hello, LeaseList, Payload, QueueName, Request, RequestId, ServerMessage,
    Submit, Subscribe,
};
use tokio::net::TcpStream;

use crate::broker::Broker;
use crate::{Failed, floor, print};

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

pub(crate) async fn run(args: Args) -> Result<(), Failed> {
    print("submit → worker, µs, from the intended send time");
    print("rate/s    server      p50      p99    p99.9      max");
    for rate in &args.rate {
        let mut medians: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds {
            for (which, name) in ["floor", args.engine.as_str()].into_iter().enumerate() {
                let histogram =
                    if which == 0 { of_floor(&args, *rate).await? } else { of_broker(&args, *rate).await? };
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

/// Calls `send` with each moment at which a submit is due, in bunches where the timer is late.
async fn pace(
    rate: u64,
    seconds: u64,
    mut send: impl AsyncFnMut(&[Instant]) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let began = Instant::now() + Duration::from_millis(50);
    let step = Duration::from_secs(1) / u32::try_from(rate)?;
    let total = rate * seconds;
    let mut next = 0;
    let mut due = Vec::new();
    while next < total {
        let at = began + step * u32::try_from(next)?;
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
    Ok(())
}

/// Sleeps without the runtime, whose timer counts milliseconds; and without spinning, which would take
/// a core away from what is measured. The kernel wakes a sleeper about 50 µs late: that counts, for
/// the broker as for the bare server.
#[expect(clippy::disallowed_methods, reason = "the thing itself is the time")]
fn wait_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        tokio::task::block_in_place(|| std::thread::sleep(left));
    }
}

/// Counts latencies of the payloads' stamps; the first tenth warms up.
struct Recorder {
    anchor: Instant,
    histogram: Histogram<u64>,
    seen: u64,
    total: u64,
}

impl Recorder {
    fn new(anchor: Instant, total: u64) -> Result<Recorder, Failed> {
        Ok(Recorder { anchor, histogram: Histogram::new(3)?, seen: 0, total })
    }

    fn see(&mut self, payload: &[u8]) -> Result<(), Failed> {
        let stamp = payload.get(..STAMP_BYTES).ok_or("a payload without a stamp")?;
        let sent = self.anchor + Duration::from_nanos(u64::from_le_bytes(stamp.try_into()?));
        self.seen += 1;
        if self.seen > self.total / 10 {
            self.histogram.record(sent.elapsed().as_nanos() as u64)?;
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.seen >= self.total
    }
}

fn stamped(anchor: Instant, at: Instant, bytes: usize) -> Vec<u8> {
    let mut payload = vec![b'x'; bytes.max(STAMP_BYTES)];
    payload[..STAMP_BYTES].copy_from_slice(&(at.duration_since(anchor).as_nanos() as u64).to_le_bytes());
    payload
}

async fn of_broker(args: &Args, rate: u64) -> Result<Histogram<u64>, Failed> {
    let broker = Broker::start(&args.engine, &args.dir)?;
    let queue = QueueName::parse("bench")?;
    let mut endpoint = Endpoint::parse(&broker.url)?;
    endpoint.encoding = Encoding::MessagePack;
    let anchor = Instant::now();
    let mut recorder = Recorder::new(anchor, rate * args.seconds)?;

    let (mut sender, mut receiver) = Connection::open(&endpoint).await?.split();
    let subscribe =
        Subscribe { queue: queue.clone(), credit: Credit::new(1024), mode: None, explicit_start: false };
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
    let bytes = args.payload_bytes;
    let mut turn = 0;
    pace(rate, args.seconds, async |due| {
        turn = (turn + 1) % PRODUCERS;
        let sender = &mut senders[turn];
        for at in due {
            let submit = Submit::new(queue.clone(), Payload::binary(stamped(anchor, *at, bytes)));
            sender.push(&Request { id: Some(RequestId::Integer(0)), message: submit.into() })?;
        }
        Ok(sender.flush().await?)
    })
    .await?;
    let mut worker = worker;
    let histogram = loop {
        if let Some(ended) = answers.iter_mut().find(|answer| answer.is_finished()) {
            return Err(ended.await?.err().unwrap_or_else(|| "a producer ended".into()));
        }
        if let Ok(histogram) = tokio::time::timeout(Duration::from_millis(100), &mut worker).await {
            break histogram??;
        }
    };
    for answer in answers {
        answer.abort();
    }
    Ok(histogram)
}

async fn of_floor(args: &Args, rate: u64) -> Result<Histogram<u64>, Failed> {
    use tokio::io::AsyncWriteExt as _;
    let server = floor::Server::start(&args.dir)?;
    let anchor = Instant::now();
    let mut recorder = Recorder::new(anchor, rate * args.seconds)?;
    let (mut read, mut write) = TcpStream::connect(&server.address).await?.into_split();
    write.write_all(&[floor::WORKER]).await?;
    let worker = tokio::spawn(async move {
        let mut frames = floor::Frames::default();
        while !recorder.done() {
            frames.fill(&mut read).await?;
            let mut acks = Vec::new();
            while let Some(frame) = frames.next() {
                recorder.see(&frame)?;
                floor::put(&mut acks, &frame[..STAMP_BYTES]);
            }
            write.write_all(&acks).await?;
        }
        Ok::<_, Failed>(recorder.histogram)
    });
    let stream = TcpStream::connect(&server.address).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    write.write_all(&[floor::PRODUCER]).await?;
    let answers = tokio::spawn(async move {
        let mut frames = floor::Frames::default();
        while frames.fill(&mut read).await.is_ok() {
            while frames.next().is_some() {}
        }
    });
    let bytes = args.payload_bytes;
    let mut out = Vec::new();
    pace(rate, args.seconds, async |due| {
        out.clear();
        for at in due {
            floor::put(&mut out, &stamped(anchor, *at, bytes));
        }
        Ok(write.write_all(&out).await?)
    })
    .await?;
    let histogram = worker.await??;
    answers.abort();
    Ok(histogram)
}
