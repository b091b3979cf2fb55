//! Closed loop: producers with a window, workers with credit; the time from the first submit to the
//! last durable ack.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use taskyard_client::connection::Connection;
use taskyard_client::endpoint::Endpoint;
use taskyard_client::receiver::{Incoming, Receiver};
use taskyard_client::sender::Sender;
use taskyard_proto::message::Credit;
use taskyard_proto::{
    Ack, ClientMessage, GivenLease, Hello, LeaseList, Payload, QueueName, Request, RequestId, Response,
    ServerMessage, Submit, Subscribe,
};

use crate::broker::{Broker, usage};
use crate::{Failed, Wire, median, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A broker that runs already; its CPU and memory are not measured
    #[arg(long)]
    url: Option<String>,
    /// Engines to measure
    #[arg(long, value_delimiter = ',', default_value = "memory,embedded")]
    engine: Vec<String>,
    /// Encodings to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "json,msgpack")]
    encoding: Vec<Wire>,
    /// Whether messages travel in arrays
    #[arg(long, value_delimiter = ',', default_value = "false,true", action = clap::ArgAction::Set)]
    batch: Vec<bool>,
    /// Tasks in a round
    #[arg(long, default_value_t = 400_000)]
    tasks: u64,
    /// Rounds; the median is quoted
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value_t = 4)]
    producers: u64,
    #[arg(long, default_value_t = 8)]
    workers: u64,
    /// Unanswered submits of a producer
    #[arg(long, default_value_t = 256)]
    window: u64,
    /// Unsettled tasks of a worker
    #[arg(long, default_value_t = 64)]
    credit: u64,
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    /// Where brokers keep their stores
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// How hard the broker is driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) wire: Wire,
    /// Messages travel in arrays.
    pub(crate) batch: bool,
    pub(crate) tasks: u64,
    /// Unanswered submits of a producer.
    pub(crate) window: u64,
    /// Unsettled tasks of a worker.
    pub(crate) credit: u64,
    pub(crate) payload_bytes: usize,
}

pub(crate) async fn run(args: Args) -> Result<(), Failed> {
    print(&format!(
        "{} producers, window {}; {} workers, credit {}; {} B payload; {} tasks a round, median of {} rounds",
        args.producers, args.window, args.workers, args.credit, args.payload_bytes, args.tasks, args.rounds
    ));
    print(
        "engine    encoding  batch    tasks/s (min … max)            broker CPU s / 100k   peak RSS MiB   generator CPU s / 100k",
    );
    for engine in &args.engine {
        for wire in &args.encoding {
            for batch in &args.batch {
                let load = Load {
                    wire: *wire,
                    batch: *batch,
                    tasks: args.tasks,
                    window: args.window,
                    credit: args.credit,
                    payload_bytes: args.payload_bytes,
                };
                let (mut rates, mut cpu, mut own, mut peak) = (vec![], vec![], vec![], vec![]);
                for _ in 0..args.rounds {
                    let broker = match &args.url {
                        None => Some(Broker::start(engine, &args.dir)?),
                        Some(_) => None,
                    };
                    let url = args.url.clone().or(broker.as_ref().map(|b| b.url.clone())).unwrap_or_default();
                    let before = usage(std::process::id())?;
                    let seconds = round(&url, load, args.producers, args.workers).await?;
                    let per = 100_000.0 / args.tasks as f64;
                    rates.push(args.tasks as f64 / seconds);
                    own.push((usage(std::process::id())?.cpu_s - before.cpu_s) * per);
                    if let Some(broker) = &broker {
                        let used = broker.usage()?;
                        cpu.push(used.cpu_s * per);
                        peak.push(used.peak_mib);
                    }
                }
                let (min, max) = rates.iter().fold((f64::MAX, 0f64), |(a, b), r| (a.min(*r), b.max(*r)));
                print(&format!(
                    "{engine:<9} {:<9} {:<6} {:>9.0} ({min:.0} … {max:.0}) {:>16.2} {:>16.0} {:>18.2}",
                    wire.name(),
                    if *batch { "on" } else { "off" },
                    median(&rates),
                    median(&cpu),
                    median(&peak),
                    median(&own)
                ));
            }
        }
    }
    Ok(())
}

pub(crate) async fn open(url: &str, load: Load) -> Result<(Sender, Receiver), Failed> {
    let mut endpoint = Endpoint::parse(url)?;
    endpoint.encoding = load.wire.encoding();
    let (mut sender, receiver) = Connection::open(&endpoint).await?.split();
    let hello = Hello { batch: load.batch, ..Hello::empty() };
    sender.push(&Request { id: None, message: hello.into() })?;
    Ok((sender, receiver))
}

type Producing = Vec<tokio::task::JoinHandle<Result<(), Failed>>>;
type Working = Vec<tokio::task::JoinHandle<Result<Option<Instant>, Failed>>>;

/// One round; its seconds.
pub(crate) async fn round(url: &str, load: Load, producers: u64, workers: u64) -> Result<f64, Failed> {
    let running = work_all(url, load, workers).await?;
    let began = Instant::now();
    let submitting = produce_all(url, load, producers).await?;
    for producer in submitting {
        producer.await??;
    }
    Ok(last_ack(running).await?.duration_since(began).as_secs_f64())
}

async fn work_all(url: &str, load: Load, workers: u64) -> Result<Working, Failed> {
    let settled = Arc::new(AtomicU64::new(0));
    let mut running = Vec::new();
    for _ in 0..workers {
        let (mut sender, mut receiver) = open(url, load).await?;
        let credit = Credit::new(load.credit);
        let queue = QueueName::parse("bench")?;
        let subscribe = Subscribe { queue, credit, mode: None, explicit_start: false };
        sender.push(&Request { id: Some(RequestId::Integer(1)), message: subscribe.into() })?;
        sender.flush().await?;
        // The round begins when all workers wait. Tasks that wait already may come with the answer.
        let mut responses = Vec::new();
        while !responses
            .iter()
            .any(|response: &Response| matches!(response.message, ServerMessage::Subscribed(_)))
        {
            responses.extend(messages(&mut receiver).await?);
        }
        running.push(tokio::spawn(work(sender, receiver, responses, load, settled.clone())));
    }
    Ok(running)
}

async fn produce_all(url: &str, load: Load, producers: u64) -> Result<Producing, Failed> {
    let mut submitting = Vec::new();
    for nth in 0..producers {
        let share = load.tasks / producers + u64::from(nth < load.tasks % producers);
        let (sender, receiver) = open(url, load).await?;
        submitting.push(tokio::spawn(produce(sender, receiver, load, QueueName::parse("bench")?, share)));
    }
    Ok(submitting)
}

/// When the last ack was durable.
async fn last_ack(mut running: Working) -> Result<Instant, Failed> {
    let mut last = None;
    // Whichever worker settled the last task ends the round; the others still wait for more.
    while last.is_none() && !running.is_empty() {
        let (ended, _, rest) = futures_select(running).await;
        running = rest;
        last = ended??;
    }
    for worker in running {
        worker.abort();
        // Its connection is closed before another round begins.
        let _ = worker.await;
    }
    Ok(last.ok_or("no worker settled the last task")?)
}

/// Waits for the first of some tasks.
async fn futures_select<T>(
    mut tasks: Vec<tokio::task::JoinHandle<T>>,
) -> (Result<T, tokio::task::JoinError>, usize, Vec<tokio::task::JoinHandle<T>>) {
    let (result, at) = std::future::poll_fn(|context| {
        for (at, task) in tasks.iter_mut().enumerate() {
            if let std::task::Poll::Ready(result) = std::pin::Pin::new(task).poll(context) {
                return std::task::Poll::Ready((result, at));
            }
        }
        std::task::Poll::Pending
    })
    .await;
    drop(tasks.remove(at));
    (result, at, tasks)
}

/// The next messages, of one frame.
async fn messages(receiver: &mut Receiver) -> Result<impl Iterator<Item = Response> + use<>, Failed> {
    loop {
        match receiver.receive().await? {
            Incoming::Messages(frame) => return Ok(frame.into_iter()),
            _ => continue,
        }
    }
}

/// All that has arrived, at least one frame.
pub(crate) async fn arrived(receiver: &mut Receiver, into: &mut Vec<Response>) -> Result<(), Failed> {
    into.extend(messages(receiver).await?);
    while let Some(more) = receiver.try_receive() {
        if let Incoming::Messages(frame) = more? {
            into.extend(frame);
        }
    }
    Ok(())
}

/// How much a producer sends at once, in bytes of payload; an array of messages stays below half of it.
const WRITE_BYTES: usize = 1 << 20;

fn push(sender: &mut Sender, requests: &mut Vec<Request>, batch: bool) -> Result<(), Failed> {
    if batch {
        let bytes = requests.first().map_or(0, |request| match &request.message {
            ClientMessage::Submit(submit) => submit.payload().bytes().len(),
            _ => 0,
        });
        for chunk in requests.chunks((WRITE_BYTES / 2 / bytes.max(1)).clamp(1, 256)) {
            sender.push_batch(chunk)?;
        }
    } else {
        for request in requests.iter() {
            sender.push(request)?;
        }
    }
    requests.clear();
    Ok(())
}

async fn produce(
    mut sender: Sender,
    mut receiver: Receiver,
    load: Load,
    queue: QueueName,
    share: u64,
) -> Result<(), Failed> {
    let text = "x".repeat(load.payload_bytes.saturating_sub(2));
    let payload = match load.wire {
        Wire::Json => Payload::json(&text)?,
        Wire::Msgpack => Payload::binary(text.into_bytes()),
    };
    let (mut sent, mut confirmed) = (0, 0);
    let (mut requests, mut responses) = (Vec::new(), Vec::new());
    while confirmed < share {
        // Large payloads go out in several writes: nobody holds a whole window of them in memory.
        let most = (WRITE_BYTES / load.payload_bytes.max(1)).max(1);
        while sent < share && sent - confirmed < load.window && requests.len() < most {
            let submit = Submit::new(queue.clone(), payload.clone());
            requests.push(Request { id: Some(RequestId::Integer(sent as i64)), message: submit.into() });
            sent += 1;
        }
        push(&mut sender, &mut requests, load.batch)?;
        sender.flush().await?;
        arrived(&mut receiver, &mut responses).await?;
        for response in responses.drain(..) {
            match response.message {
                ServerMessage::Accepted(_) => confirmed += 1,
                ServerMessage::Error(error) => return Err(error.message.as_str().into()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Acks until the last task of the round; whoever settles that says when it was durable.
async fn work(
    mut sender: Sender,
    mut receiver: Receiver,
    mut responses: Vec<Response>,
    load: Load,
    settled: Arc<AtomicU64>,
) -> Result<Option<Instant>, Failed> {
    let mut requests = Vec::new();
    let mut leases = Vec::new();
    loop {
        for response in responses.drain(..) {
            match response.message {
                ServerMessage::Task(task) => leases.extend(task.lease.map(GivenLease::Lease)),
                ServerMessage::Settled(_) => return Ok(Some(Instant::now())),
                ServerMessage::Error(error) => return Err(error.message.as_str().into()),
                _ => {}
            }
        }
        if leases.is_empty() {
            arrived(&mut receiver, &mut responses).await?;
            continue;
        }
        let count = leases.len() as u64;
        let all = settled.fetch_add(count, Ordering::Relaxed) + count;
        // Only the very last ack asks for an answer, which comes when all before it are durable.
        let id = (all >= load.tasks).then_some(RequestId::Integer(0));
        if load.batch {
            let message = Ack { leases: LeaseList::Many(std::mem::take(&mut leases)), result: Payload::NULL };
            requests.push(Request { id, message: message.into() });
        } else {
            let last = leases.len() - 1;
            for (nth, lease) in leases.drain(..).enumerate() {
                let message =
                    ClientMessage::from(Ack { leases: LeaseList::One(lease), result: Payload::NULL });
                requests.push(Request { id: id.clone().filter(|_| nth == last), message });
            }
        }
        push(&mut sender, &mut requests, false)?;
        sender.flush().await?;
    }
}
