//! Growth: whether a task costs the same however many wait, in however many queues, for however many workers, and
//! however large it is; what waiting takes in memory, and how long a restart takes. Beside many workers, the bare server
//! with as many: what so many sockets cost by themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use taskyard_client::endpoint::Endpoint;
use taskyard_client::http;
use taskyard_proto::message::Credit;
use taskyard_proto::{
    Ack, GivenLease, LeaseList, Payload, QueueName, Request, RequestId, ServerMessage, Submit, Subscribe,
};

use crate::broker::{Broker, resident, usage};
use crate::drivers::Place;
use crate::drivers::bare_floor::{self, Floor};
use crate::drivers::load::{Load as BareLoad, Peer};
use crate::floor::Framing;
use crate::record::{Promise, Record, Records};
use crate::throughput::{Load, arrived, open};
use crate::{Failed, Wire, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many tasks wait at most; each power of ten from 100,000 on is measured
    #[arg(long, default_value_t = 1_000_000)]
    tasks: u64,
    /// Tasks of one measurement
    #[arg(long, default_value_t = 200_000)]
    round_tasks: u64,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "depth,queues,workers,payload")]
    only: Vec<String>,
    /// The most queues
    #[arg(long, default_value_t = 100_000)]
    queues: usize,
    /// The most workers
    #[arg(long, default_value_t = 5_000)]
    workers: usize,
    /// Where brokers keep their stores
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// What flows in one measurement.
struct Flow<'a> {
    queues: &'a [QueueName],
    tasks: u64,
    payload_bytes: usize,
    workers: usize,
    /// Of each subscription.
    credit: u64,
}

/// Who submits: enough that the broker, not they, is what is measured.
const PRODUCERS: u64 = 4;
const WINDOW: u64 = 256;
/// Credit of all workers together, shared among them.
const CREDIT: u64 = 512;

/// How long a broker may take to clean up after a drain.
const CLEANING: Duration = Duration::from_secs(120);

pub(crate) async fn run(args: Args, records: &mut Records) -> Result<(), Failed> {
    for what in &args.only {
        match what.as_str() {
            "depth" => depth(&args, records).await?,
            "queues" => queues(&args, records).await?,
            "workers" => workers(&args, records).await?,
            "payload" => payload(&args, records).await?,
            other => {
                return Err(
                    format!("{other} is nothing that grows: depth, queues, workers or payload").into()
                );
            }
        }
    }
    Ok(())
}

/// From 1 to `most` in powers of ten.
fn decades(most: u64) -> Vec<u64> {
    std::iter::successors(Some(1), |n| Some(n * 10)).take_while(|n| *n < most).chain([most]).collect()
}

fn names(count: usize) -> Result<Vec<QueueName>, Failed> {
    Ok((0..count).map(|nth| QueueName::parse(&format!("q{nth}"))).collect::<Result<_, _>>()?)
}

fn record(scenario: &str, load: String, round: u32, values: &[(&str, f64)]) -> Record {
    record_of(("taskyard", "embedded"), scenario, load, round, values)
}

fn record_of(
    (system, setting): (&str, &str),
    scenario: &str,
    load: String,
    round: u32,
    values: &[(&str, f64)],
) -> Record {
    let shown: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.2}")).collect();
    print(&format!("{scenario:<8} {system:<8} {load:<16} {}", shown.join("   ")));
    Record {
        scenario: format!("growth_{scenario}"),
        system: system.to_owned(),
        setting: setting.to_owned(),
        promise: Promise::Synced,
        load,
        round,
        values: values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    }
}

/// What a flow costs: tasks a second, and the broker's CPU seconds for 100,000.
async fn cost(broker: &Broker, flow: Flow<'_>) -> Result<(f64, f64), Failed> {
    let crew = Crew::gather(&broker.url, &flow).await?;
    // Connections and subscriptions are there already, and not part of a task's cost.
    let (before, tasks, began) = (broker.usage()?, flow.tasks as f64, Instant::now());
    submit(&broker.url, flow.queues, flow.tasks, flow.payload_bytes).await?;
    crew.finish().await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok((tasks / seconds, (broker.usage()?.cpu_s - before.cpu_s) * 100_000.0 / tasks))
}

async fn depth(args: &Args, records: &mut Records) -> Result<(), Failed> {
    let names = names(1)?;
    let mut broker = Broker::start("embedded", &args.dir)?;
    let steps = decades(args.tasks).into_iter().filter(|n| *n >= 100_000 || *n == args.tasks);
    for depth in std::iter::once(0).chain(steps) {
        // Workers of the round before may have settled a few more than came in.
        let missing = depth.saturating_sub(waiting(&broker.url, &names[0]).await?);
        submit(&broker.url, &names, missing, args.payload_bytes).await?;
        for round in 1..=args.rounds {
            let flow = Flow {
                queues: &names,
                tasks: args.round_tasks,
                payload_bytes: args.payload_bytes,
                workers: 8,
                credit: CREDIT / 8,
            };
            let (rate, cpu) = cost(&broker, flow).await?;
            let (rss, _) = resident(broker.pid())?;
            let peak = usage(broker.pid())?.peak_mib;
            let values = [
                ("tasks_per_s", rate),
                ("server_cpu_s", cpu),
                ("server_mib", rss / 1024.0),
                ("server_peak_mib", peak),
            ];
            records.add(record("depth", format!("{depth} waiting"), round, &values))?;
        }
    }
    let seconds = broker.kill_and_restart()?;
    let waiting = waiting(&broker.url, &names[0]).await?;
    let (rss, _) = resident(broker.pid())?;
    let values = [
        ("restart_s", seconds),
        ("server_mib", rss / 1024.0),
        ("server_peak_mib", usage(broker.pid())?.peak_mib),
        ("disk_mib", disk_mib(broker.directory())?),
    ];
    records.add(record("restart", format!("{waiting} waiting"), 1, &values))?;
    let before = broker.usage()?;
    let began = Instant::now();
    drain(&broker.url, &names, waiting).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = (broker.usage()?.cpu_s - before.cpu_s) * 100_000.0 / waiting.max(1) as f64;
    let disk = after_cleaning(broker.directory()).await?;
    let (rss, _) = resident(broker.pid())?;
    let values = [
        ("tasks_per_s", waiting as f64 / seconds),
        ("server_cpu_s", cpu),
        ("disk_mib", disk),
        ("server_mib", rss / 1024.0),
    ];
    records.add(record("drain", format!("{waiting} waiting"), 1, &values))?;
    Ok(())
}

/// How many tasks of a queue have not ended.
async fn waiting(url: &str, queue: &QueueName) -> Result<u64, Failed> {
    let endpoint = Endpoint::parse(url)?;
    let (status, body) = http::get_from(&endpoint, &format!("/v1/queues/{queue}")).await?;
    if status != 200 {
        return Ok(0);
    }
    let view: serde_json::Value = serde_json::from_slice(&body)?;
    let count = |state: &str| view["counts"][state].as_u64().unwrap_or_default();
    Ok(count("queued") + count("leased") + count("retrying") + count("scheduled"))
}

async fn queues(args: &Args, records: &mut Records) -> Result<(), Failed> {
    let most = args.queues as u64;
    for count in decades(most).into_iter().filter(|n| *n != 10 && *n != 1000) {
        let names = names(count as usize)?;
        let flags = ["--queues-max".into(), (args.queues + 1).to_string().into()];
        let broker = Broker::with_flags("embedded", &args.dir, &flags)?;
        for round in 1..=args.rounds {
            let flow = Flow {
                queues: &names,
                tasks: args.round_tasks,
                payload_bytes: args.payload_bytes,
                workers: 8,
                credit: CREDIT / 8,
            };
            let (rate, cpu) = cost(&broker, flow).await?;
            let values = [("tasks_per_s", rate), ("server_cpu_s", cpu)];
            records.add(record("queues", format!("{count} queues"), round, &values))?;
        }
    }
    Ok(())
}

async fn workers(args: &Args, records: &mut Records) -> Result<(), Failed> {
    crate::descriptors::raise();
    let names = names(1)?;
    for count in [8, 100, 1000, args.workers].into_iter().filter(|n| *n <= args.workers) {
        let credit = (CREDIT / count as u64).max(4);
        let broker = Broker::start("embedded", &args.dir)?;
        let floor = bare(args, count, credit).await?;
        for round in 1..=args.rounds {
            let flow = Flow {
                queues: &names,
                tasks: args.round_tasks,
                payload_bytes: args.payload_bytes,
                workers: count,
                credit,
            };
            let load = || format!("{count} workers");
            let (rate, cpu) = cost(&broker, flow).await?;
            let values = [("tasks_per_s", rate), ("server_cpu_s", cpu)];
            records.add(record("workers", load(), round, &values))?;
            let (rate, cpu) = cost_of_bare(&floor, args, count).await?;
            let values = [("tasks_per_s", rate), ("server_cpu_s", cpu)];
            records.add(record_of(("floor", "WebSocket"), "workers", load(), round, &values))?;
        }
    }
    Ok(())
}

/// The bare server, for as many workers.
async fn bare(args: &Args, workers: usize, credit: u64) -> Result<Peer, Failed> {
    let place = Place { dir: args.dir.clone(), credit: credit as usize, workers, acks_answered: false };
    let framing = Framing::Websocket;
    Peer::new(bare_floor::start(&place, framing, true).await?, Arc::new(Floor { framing })).await
}

/// As [`cost`], of the bare server.
async fn cost_of_bare(floor: &Peer, args: &Args, workers: usize) -> Result<(f64, f64), Failed> {
    let load = BareLoad {
        tasks: args.round_tasks,
        producers: PRODUCERS as usize,
        workers,
        window: WINDOW,
        payload_bytes: args.payload_bytes,
    };
    let crew = floor.crew(load).await?;
    let (before, tasks) = (floor.server.usage(), load.tasks as f64);
    let seconds = floor.round_of(crew, load).await?;
    Ok((tasks / seconds, (floor.server.usage().cpu_s - before.cpu_s) * 100_000.0 / tasks))
}

async fn payload(args: &Args, records: &mut Records) -> Result<(), Failed> {
    let names = names(1)?;
    for bytes in [256, 1 << 10, 16 << 10, 64 << 10] {
        let broker = Broker::start("embedded", &args.dir)?;
        // As many bytes, within what a round of the smallest has and what a disk takes in seconds.
        let tasks = (args.round_tasks * 1024 / bytes as u64).clamp(4_000, args.round_tasks);
        for round in 1..=args.rounds {
            let flow = Flow { queues: &names, tasks, payload_bytes: bytes, workers: 8, credit: CREDIT / 8 };
            let (rate, cpu) = cost(&broker, flow).await?;
            let values = [
                ("tasks_per_s", rate),
                ("mib_per_s", rate * bytes as f64 / f64::from(1 << 20)),
                ("server_cpu_s", cpu),
                ("server_cpu_s_per_gib", cpu / 100_000.0 / bytes as f64 * f64::from(1 << 30)),
            ];
            records.add(record("payload", format!("{bytes} B"), round, &values))?;
        }
    }
    Ok(())
}

fn load(payload_bytes: usize) -> Load {
    Load { wire: Wire::Json, batch: true, tasks: 0, window: WINDOW, credit: 0, payload_bytes }
}

/// Submits some tasks, in turn to each queue, and waits until all are confirmed.
async fn submit(url: &str, queues: &[QueueName], tasks: u64, payload_bytes: usize) -> Result<(), Failed> {
    let queues: Arc<[QueueName]> = queues.into();
    let mut running = Vec::new();
    for nth in 0..PRODUCERS {
        let share = tasks / PRODUCERS + u64::from(nth < tasks % PRODUCERS);
        running.push(tokio::spawn(produce(url.to_owned(), queues.clone(), nth, share, payload_bytes)));
    }
    for producer in running {
        producer.await??;
    }
    Ok(())
}

async fn produce(
    url: String,
    queues: Arc<[QueueName]>,
    nth: u64,
    share: u64,
    payload_bytes: usize,
) -> Result<(), Failed> {
    let (mut sender, mut receiver) = open(&url, load(payload_bytes)).await?;
    let payload = Payload::json(&"x".repeat(payload_bytes.saturating_sub(2)))?;
    let (mut sent, mut confirmed) = (0, 0);
    let (mut requests, mut responses) = (Vec::new(), Vec::new());
    // Large payloads go out in several writes, in arrays of half a message each.
    let most = ((512 << 10) / payload_bytes.max(1)).clamp(1, WINDOW as usize);
    while confirmed < share {
        while sent < share && sent - confirmed < WINDOW && requests.len() < most {
            let queue = &queues[(nth + sent * PRODUCERS) as usize % queues.len()];
            let submit = Submit::new(queue.clone(), payload.clone());
            requests.push(Request { id: Some(RequestId::Integer(sent as i64)), message: submit.into() });
            sent += 1;
        }
        if !requests.is_empty() {
            sender.push_batch(&requests)?;
            requests.clear();
            sender.flush().await?;
        }
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

/// Workers who settle until `tasks` were settled durably, by all of them together.
struct Crew {
    running: tokio::task::JoinSet<Result<(), Failed>>,
}

impl Crew {
    /// Each queue has one worker at least; all are subscribed when this returns.
    async fn gather(url: &str, flow: &Flow<'_>) -> Result<Crew, Failed> {
        let settled = Arc::new(AtomicU64::new(0));
        let mut running = tokio::task::JoinSet::new();
        for nth in 0..flow.workers {
            let (mut sender, mut receiver) = open(url, load(flow.payload_bytes)).await?;
            let mine: Vec<&QueueName> = match flow.queues.len() < flow.workers {
                true => flow.queues.iter().collect(),
                false => flow.queues.iter().skip(nth).step_by(flow.workers).collect(),
            };
            let mut waiting = 0;
            for some in mine.chunks(128) {
                for queue in some {
                    let credit = Credit::new(flow.credit);
                    let queue = (*queue).clone();
                    let subscribe = Subscribe { queue, credit, mode: None, explicit_start: false };
                    sender.push(&Request { id: Some(RequestId::Integer(1)), message: subscribe.into() })?;
                    waiting += 1;
                }
                sender.flush().await?;
                // What was left from before may come at once: it is worked on below.
                let mut early = Vec::new();
                while waiting > 0 {
                    let mut responses = Vec::new();
                    arrived(&mut receiver, &mut responses).await?;
                    for response in responses {
                        match response.message {
                            ServerMessage::Subscribed(_) => waiting -= 1,
                            ServerMessage::Task(task) => early.extend(task.lease.map(GivenLease::Lease)),
                            ServerMessage::Error(error) => return Err(error.message.as_str().into()),
                            _ => {}
                        }
                    }
                }
                if !early.is_empty() {
                    settled.fetch_add(early.len() as u64, Ordering::Relaxed);
                    let ack = Ack { leases: LeaseList::Many(early), result: Payload::NULL };
                    sender.push(&Request { id: None, message: ack.into() })?;
                    sender.flush().await?;
                }
            }
            let (settled, tasks) = (settled.clone(), flow.tasks);
            running.spawn(async move {
                let mut responses = Vec::new();
                loop {
                    let mut leases = Vec::new();
                    arrived(&mut receiver, &mut responses).await?;
                    for response in responses.drain(..) {
                        match response.message {
                            ServerMessage::Task(task) => {
                                leases.extend(task.lease.map(GivenLease::Lease));
                            }
                            ServerMessage::Settled(_) => return Ok(()),
                            ServerMessage::Error(error) => return Err(error.message.as_str().into()),
                            _ => {}
                        }
                    }
                    if leases.is_empty() {
                        continue;
                    }
                    let all = settled.fetch_add(leases.len() as u64, Ordering::Relaxed) + leases.len() as u64;
                    // Only the very last ack asks for an answer, which comes when all before it are durable.
                    let id = (all >= tasks).then_some(RequestId::Integer(0));
                    let ack = Ack { leases: LeaseList::Many(leases), result: Payload::NULL };
                    sender.push(&Request { id, message: ack.into() })?;
                    sender.flush().await?;
                }
            });
        }
        Ok(Crew { running })
    }

    /// Waits for the last task; the others still wait for more, and are let go.
    async fn finish(mut self) -> Result<(), Failed> {
        match self.running.join_next().await {
            Some(ended) => ended?,
            None => Err("there are no workers".into()),
        }
    }
}

async fn drain(url: &str, queues: &[QueueName], tasks: u64) -> Result<(), Failed> {
    if tasks == 0 {
        return Ok(());
    }
    let flow = Flow { queues, tasks, payload_bytes: 0, workers: 8, credit: CREDIT / 8 };
    Crew::gather(url, &flow).await?.finish().await
}

fn disk_mib(directory: &Path) -> Result<f64, Failed> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        // Cleaning may take a file away between the two looks.
        bytes += entry?.metadata().map_or(0, |file| file.blocks() * 512);
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}

/// What is left on the disk once it no longer gets less.
async fn after_cleaning(directory: &Path) -> Result<f64, Failed> {
    let until = Instant::now() + CLEANING;
    let mut least = disk_mib(directory)?;
    loop {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = disk_mib(directory)?;
        if now >= least || Instant::now() > until {
            return Ok(now);
        }
        least = now;
    }
}
