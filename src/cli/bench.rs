//! `taskyard bench`: a few seconds, for a first idea of a machine. What is said of Taskyard elsewhere is measured with
//! the load generator of the repository.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskyard_client::{Client, ClientOptions, Delivery, Receipt, SubmitError, Worker};
use taskyard_proto::message::TtlMs;
use taskyard_proto::{Payload, QueueName, Submit};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::api::Api;
use super::output::{complain, count, print_line};
use super::{Certificates, Failed, Remote, interrupted, span};
use crate::config::{Source, Values};
use crate::server::Server;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --url it runs a broker of its own for so long, on a store that is removed in the end. \
Producer, worker and broker then share this machine. With --url it takes the permissions submit, consume and observe \
on the queue taskyard-bench, which is empty again in the end, also of one that is interrupted."
)]
pub(super) struct Args {
    /// Measure this broker [default: one of its own]
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Where the broker's own store is made for so long: on the disk that is to be measured
    #[arg(long, default_value = ".", value_name = "DIR", conflicts_with = "url")]
    data_dir: PathBuf,

    /// How long each of the two parts takes: 1s to 60s
    #[arg(long, default_value = "3s", value_parser = part, value_name = "TIME")]
    time: Duration,

    /// Bytes of a task's payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(8..=65_536), value_name = "BYTES")]
    size: u64,

    /// For programs
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    certificates: Certificates,
}

fn part(text: &str) -> Result<Duration, String> {
    match span::parse(text)? {
        ms @ 1000..=60_000 => Ok(Duration::from_millis(ms)),
        _ => Err("expected 1s to 60s".into()),
    }
}

const QUEUE: &str = "taskyard-bench";
/// So many tasks are under way at full speed, between the submit and the end of the worker's part: enough that no part
/// of the way waits for another.
const UNDER_WAY: usize = 2048;
/// How many answers of the broker's the producer waits for.
const WINDOW: usize = 1024;
/// So many tasks a second are submitted where latency is measured: few enough that none waits for another.
const GENTLE_PER_S: u32 = 200;
/// What is left behind by a bench that was killed goes by itself.
const TTL_MS: u64 = 120_000;
/// How long the last tasks may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The part at full speed begins to count after this: connections and caches are warm then.
const WARM_UP: Duration = Duration::from_millis(500);
/// How much the disk is asked for.
const SYNCS: usize = 200;
const SYNC_TIME: Duration = Duration::from_secs(1);
const BLOCK: usize = 4096;

pub(super) fn run(args: Args) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::other(format!("cannot start: {error}")))?;
    let result = runtime.block_on(measure(&args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let found = result?;
    print_line(&if args.json { found.json().to_string() } else { found.words() })?;
    Ok(ExitCode::SUCCESS)
}

/// What was measured.
#[derive(Debug)]
struct Found {
    place: String,
    size: u64,
    seconds: f64,
    /// None: the broker is not ours, nor its disk.
    disk: Option<Spread>,
    per_s: f64,
    accepted: Spread,
    delivered: Spread,
    own: bool,
}

/// The middle of many, and what one in a hundred exceeds, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spread {
    p50: u64,
    p99: u64,
    count: usize,
}

impl Spread {
    fn of(mut all: Vec<u64>) -> Option<Spread> {
        all.sort_unstable();
        // The smallest that so many do not exceed.
        let at = |percent: usize| all.get((all.len() * percent).div_ceil(100).checked_sub(1)?).copied();
        Some(Spread { p50: at(50)?, p99: at(99)?, count: all.len() })
    }

    fn json(self) -> Value {
        json!({"p50_us": self.p50, "p99_us": self.p99, "count": self.count})
    }
}

impl Found {
    fn json(&self) -> Value {
        json!({
            "broker": self.place,
            "own_broker": self.own,
            "cores": cores(),
            "payload_bytes": self.size,
            "seconds": self.seconds,
            "disk_sync": self.disk.map(Spread::json),
            "tasks_per_s": self.per_s.round(),
            "tasks_under_way": UNDER_WAY,
            "latency_at_per_s": GENTLE_PER_S,
            "submit_to_accepted": self.accepted.json(),
            "submit_to_worker": self.delivered.json(),
        })
    }

    fn words(&self) -> String {
        let line = |what: &str, spread: Spread| {
            format!("{what:<42}{:>12}{:>12}", milliseconds(spread.p50), milliseconds(spread.p99))
        };
        let mut lines = vec![
            format!("{}; tasks of {} bytes; {} here", self.place, self.size, count(cores(), "core")),
            String::new(),
            format!("{:<42}{:>12}{:>12}", "", "p50", "p99"),
        ];
        lines.extend(self.disk.map(|disk| line("disk: a sync of 4 KiB (fdatasync)", disk)));
        lines.push(line(&format!("submit to accepted, {GENTLE_PER_S} tasks a second"), self.accepted));
        lines.push(line(&format!("submit to worker, {GENTLE_PER_S} tasks a second"), self.delivered));
        lines.push(String::new());
        lines.push(format!(
            "{:.0} tasks a second, accepted, delivered and acknowledged, over {:.1} s with {UNDER_WAY} under way",
            self.per_s, self.seconds
        ));
        lines.push(String::new());
        lines.push(match self.own {
            true => "Each task was on the disk before it was confirmed. Producer, worker and broker shared this\n\
                     machine: with others around the broker alone does more. It is a first idea, of a few seconds."
                .to_owned(),
            false => "One producer and one worker, over two connections from here: the way there and back counts. It\n\
                      is a first idea, of a few seconds."
                .to_owned(),
        });
        if cfg!(debug_assertions) {
            lines.push("This is a build for debugging, and slow.".to_owned());
        }
        lines.join("\n")
    }
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

/// A directory that is removed, with all in it, when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: &FilePath) -> Result<Scratch, Failed> {
        let path = parent.join(format!("taskyard-bench-{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&path).map_err(|error| {
            let text = format!("cannot make {}: {error}; name another place with --data-dir", path.display());
            Failed::usage(text)
        })?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            complain(&format!("cannot remove {}: {error}; remove it by hand", self.0.display()));
        }
    }
}

async fn measure(args: &Args) -> Result<Found, Failed> {
    // From here on: what is made must be removed.
    let signal = interrupted();
    let stop = &Stop::default();
    if let Some(url) = &args.url {
        let mut remote = Remote::at(url);
        remote.token = std::env::var("TASKYARD_TOKEN").ok();
        remote.certificates = args.certificates.clone();
        return uninterrupted(signal, stop, load(args, &remote, url.clone(), None, stop)).await;
    }
    let scratch = Scratch::make(&args.data_dir)?;
    // The store is closed before it is removed, also where somebody has enough of it.
    uninterrupted(signal, stop, own(args, &scratch, stop)).await
}

/// Measures a broker of its own, and the disk.
async fn own(args: &Args, scratch: &Scratch, stop: &Stop) -> Result<Found, Failed> {
    let (place, stopped) = (scratch.0.clone(), stop.clone());
    let disk = tokio::task::spawn_blocking(move || syncs(&place, &stopped));
    let disk = disk
        .await
        .map_err(Failed::other)?
        .map_err(|error| Failed::other(format!("cannot write in {}: {error}", scratch.0.display())))?;
    stop.check()?;
    let mut values = Values::default();
    let directory = scratch.0.join("data");
    let given = [("listen", "127.0.0.1:0"), ("data_dir", &directory.display().to_string())];
    for (name, value) in given {
        values.set(name, value, Source::Flag).map_err(Failed::other)?;
    }
    let mut server = Server::start(&values.resolve().map_err(Failed::other)?).await?;
    let url = format!("http://{}", server.address());
    let words = format!("A broker of its own, engine embedded, in {}", args.data_dir.display());
    let found = load(args, &Remote::at(&url), words, Spread::of(disk), stop).await;
    server.stop_now();
    server.ended().await?;
    found
}

/// Set once somebody has enough of it: no more tasks are submitted, and those that were are done.
#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Failed> {
        match self.is_set() {
            true => Err(Failed::other("interrupted: nothing was measured to the end")),
            false => Ok(()),
        }
    }
}

/// Measures until a signal says to stop, which leaves nothing behind; a second one does not wait for that.
async fn uninterrupted(
    signal: impl Future<Output = ()>,
    stop: &Stop,
    measuring: impl Future<Output = Result<Found, Failed>>,
) -> Result<Found, Failed> {
    let twice = async {
        signal.await;
        let second = interrupted();
        stop.0.store(true, Ordering::Relaxed);
        second.await;
    };
    tokio::select! {
        found = measuring => found,
        () = twice => Err(Failed::other("interrupted twice: something may be left behind")),
    }
}

/// How long the disk takes to hold a block for good, in microseconds; in a file that has its length already, as the log's.
fn syncs(directory: &FilePath, stop: &Stop) -> io::Result<Vec<u64>> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(directory.join("sync"))?;
    file.write_all(&vec![0; BLOCK * SYNCS])?;
    file.sync_all()?;
    io::Seek::rewind(&mut file)?;
    let (begin, mut took) = (Instant::now(), Vec::with_capacity(SYNCS));
    while took.len() < SYNCS && begin.elapsed() < SYNC_TIME && !stop.is_set() {
        file.write_all(&[1; BLOCK])?;
        let at = Instant::now();
        file.sync_data()?;
        took.push(microseconds(at));
    }
    Ok(took)
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What the worker has seen.
struct Seen {
    begin: Instant,
    /// Places for tasks that are under way.
    places: Semaphore,
    done: AtomicU64,
    /// From the submit to the worker, in microseconds, where that is measured.
    took: Mutex<Vec<u64>>,
}

impl Seen {
    /// A payload that says when it was made.
    fn payload(&self, size: u64) -> Payload {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(BLOCK)];
        bytes[..8].copy_from_slice(&microseconds(self.begin).to_be_bytes());
        Payload::binary(bytes)
    }

    fn handle(&self, payload: &Payload, gentle: bool) {
        let now = microseconds(self.begin);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.places.add_permits(1);
        let made =
            payload.bytes().get(..8).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        if let Some(made) = made.filter(|_| gentle) {
            let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
            took.push(now.saturating_sub(made));
        }
    }
}

async fn load(
    args: &Args,
    remote: &Remote,
    place: String,
    disk: Option<Spread>,
    stop: &Stop,
) -> Result<Found, Failed> {
    let queue = QueueName::parse(QUEUE).expect("it is a name");
    let options = || Ok::<ClientOptions, Failed>(remote.options()?.batch(true).window(WINDOW));
    let producer = Client::connect(options()?).await.map_err(|error| remote.unreachable(&error))?;
    is_free(remote).await?;
    let submit = |seen: &Seen| {
        let mut submit = Submit::new(queue.clone(), seen.payload(args.size));
        submit.ttl_ms = TtlMs::new(TTL_MS);
        submit
    };
    let (gentle, (delivered, accepted)) = {
        let part = Part::begin(options()?, &queue, true);
        let accepted = gently(&producer, &part.seen, submit, args.time, stop).await;
        let seen = part.end().await?;
        let took = std::mem::take(&mut *seen.took.lock().unwrap_or_else(PoisonError::into_inner));
        (seen.done.load(Ordering::Relaxed), (took, accepted?))
    };
    stop.check()?;
    if gentle == 0 {
        return Err(Failed::other("no task came to the worker: is the queue taskyard-bench paused?"));
    }
    let part = Part::begin(options()?, &queue, false);
    let full = at_full_speed(&producer, &part.seen, submit, args.time, stop).await;
    part.end().await?;
    stop.check()?;
    let (tasks, seconds) = full?;
    producer.close().await;
    let none = || Failed::other("nothing was measured: give it more time");
    Ok(Found {
        place,
        size: args.size,
        seconds,
        per_s: tasks as f64 / seconds,
        accepted: Spread::of(accepted).ok_or_else(none)?,
        delivered: Spread::of(delivered).ok_or_else(none)?,
        own: disk.is_some(),
        disk,
    })
}

/// That nobody else uses the queue: what is in it would be taken.
async fn is_free(remote: &Remote) -> Result<(), Failed> {
    let answer = match Api::at(remote)?.get(&format!("/v1/queues/{QUEUE}")).await {
        Ok(answer) => answer.value,
        Err(failed) if failed.message.contains("(not_found)") => return Ok(()),
        Err(failed) => return Err(failed),
    };
    let number = |of: &Value| of.as_u64().unwrap_or(0);
    let states = ["scheduled", "queued", "leased", "retrying"];
    let tasks: u64 = states.iter().map(|state| number(&answer["counts"][state])).sum();
    if tasks + number(&answer["workers"]) == 0 {
        return Ok(());
    }
    Err(Failed::other(format!(
        "the queue {QUEUE} is in use, with {} and {}: wait until the other bench has ended (what one left that was \
         killed is gone after {} s)",
        count(tasks, "task"),
        count(number(&answer["workers"]), "worker"),
        TTL_MS / 1000
    )))
}

/// A worker for as long as something is measured.
struct Part {
    seen: Arc<Seen>,
    stop: oneshot::Sender<()>,
    working: tokio::task::JoinHandle<Result<(), taskyard_client::WorkerError>>,
}

impl Part {
    fn begin(options: ClientOptions, queue: &QueueName, gentle: bool) -> Part {
        let seen = Arc::new(Seen {
            begin: Instant::now(),
            places: Semaphore::new(UNDER_WAY),
            done: AtomicU64::new(0),
            took: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        // A session that may be resumed costs a record for each delivery: it is not what is asked here.
        let worker =
            Worker::new(options, queue.clone()).concurrency(64).prefetch(8).resume(false).auto_extend(false);
        let handled = seen.clone();
        let working = tokio::spawn(worker.run(
            move |delivery: Delivery| {
                handled.handle(delivery.payload(), gentle);
                async { Ok(Payload::NULL) }
            },
            stopped,
        ));
        Part { seen, stop, working }
    }

    /// Waits until every task is done, and ends the worker.
    async fn end(self) -> Result<Arc<Seen>, Failed> {
        let all = self.seen.places.acquire_many(u32::try_from(UNDER_WAY).unwrap_or(u32::MAX));
        let waited = tokio::time::timeout(PATIENCE, all).await.is_ok();
        // It may have ended by itself, which is told below.
        let _ = self.stop.send(());
        let worked = self.working.await.map_err(Failed::other)?;
        worked.map_err(|error| Failed::other(format!("the worker ended: {error}")))?;
        if !waited {
            let text = format!("not every task came to the worker within {} s", PATIENCE.as_secs());
            return Err(Failed::other(text));
        }
        Ok(self.seen)
    }
}

async fn take_place(seen: &Seen) -> Result<(), Failed> {
    if let Ok(place) = seen.places.try_acquire() {
        place.forget();
        return Ok(());
    }
    match tokio::time::timeout(PATIENCE, seen.places.acquire()).await {
        Ok(Ok(place)) => {
            // The worker gives it back.
            place.forget();
            Ok(())
        }
        _ => Err(Failed::other(format!(
            "no task came to the worker within {} s: is the queue {QUEUE} paused?",
            PATIENCE.as_secs()
        ))),
    }
}

/// One task after the other, evenly; how long each took to be accepted.
async fn gently(
    producer: &Client,
    seen: &Seen,
    submit: impl Fn(&Seen) -> Submit,
    time: Duration,
    stop: &Stop,
) -> Result<Vec<u64>, Failed> {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / GENTLE_PER_S);
    let (begin, mut took) = (Instant::now(), Vec::new());
    while begin.elapsed() < time && !stop.is_set() {
        tick.tick().await;
        take_place(seen).await?;
        let at = Instant::now();
        producer.submit(submit(seen)).await.map_err(Failed::other)?;
        took.push(microseconds(at));
    }
    Ok(took)
}

/// As many as go; how many were done, in how many seconds.
async fn at_full_speed(
    producer: &Client,
    seen: &Arc<Seen>,
    submit: impl Fn(&Seen) -> Submit,
    time: Duration,
    stop: &Stop,
) -> Result<(u64, f64), Failed> {
    let (receipts, mut answered) = mpsc::channel::<Receipt>(WINDOW);
    let answers = tokio::spawn(async move {
        while let Some(receipt) = answered.recv().await {
            receipt.await?;
        }
        Ok::<(), SubmitError>(())
    });
    let begin = Instant::now();
    let mut from = None;
    while begin.elapsed() < WARM_UP + time && !stop.is_set() {
        if from.is_none() && begin.elapsed() >= WARM_UP {
            from = Some((Instant::now(), seen.done.load(Ordering::Relaxed)));
        }
        take_place(seen).await?;
        let receipt = producer.send(submit(seen)).await.map_err(Failed::other)?;
        // A submit that was refused has ended what waits for the answers, which tells why.
        if receipts.send(receipt).await.is_err() {
            break;
        }
    }
    let (at, before) = from.unwrap_or((begin, 0));
    let (done, seconds) = (seen.done.load(Ordering::Relaxed) - before, at.elapsed().as_secs_f64());
    drop(receipts);
    answers.await.map_err(Failed::other)?.map_err(Failed::other)?;
    Ok((done, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_was_measured() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![7]), Some(Spread { p50: 7, p99: 7, count: 1 }));
        let hundred = (1..=100).rev().collect();
        assert_eq!(Spread::of(hundred), Some(Spread { p50: 50, p99: 99, count: 100 }));
    }

    #[test]
    fn it_says_what_was_measured_and_how() {
        let spread = |p50, p99| Spread { p50, p99, count: 600 };
        let mut found = Found {
            place: "A broker of its own".into(),
            size: 256,
            seconds: 3.01,
            disk: Some(spread(210, 900)),
            per_s: 45_210.4,
            accepted: spread(400, 1200),
            delivered: spread(450, 1300),
            own: true,
        };
        let text = found.words();
        for part in [
            "disk: a sync of 4 KiB (fdatasync)              0.21 ms     0.90 ms",
            "submit to worker, 200 tasks a second           0.45 ms     1.30 ms",
            "45210 tasks a second",
            "shared this\nmachine",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let json = found.json();
        assert_eq!((&json["tasks_per_s"], &json["disk_sync"]["p50_us"]), (&json!(45_210.0), &json!(210)));
        (found.disk, found.own) = (None, false);
        assert!(!found.words().contains("disk") && found.json()["disk_sync"].is_null());
    }

    #[test]
    fn the_disk_is_asked_and_the_place_left_as_it_was() {
        let parent = tempfile::tempdir().expect("there is a place for tests");
        let scratch = Scratch::make(parent.path()).expect("it can be written");
        let took = syncs(&scratch.0, &Stop::default()).expect("it can be written");
        assert!(!took.is_empty());
        drop(scratch);
        assert_eq!(std::fs::read_dir(parent.path()).expect("it is there").count(), 0);
        assert!(Scratch::make(&parent.path().join("none")).is_err_and(|failed| failed.code == 2));
    }
}
