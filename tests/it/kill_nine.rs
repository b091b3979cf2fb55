//! The broker is killed -9 again and again under load; at the end everything confirmed is accounted for.
//!
//! The checker knows the promises and the clients' own logs, nothing of the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Broker, Ws, until};

const PRODUCERS: usize = 3;
const WORKERS: usize = 3;
/// A queue shows its last 100,000 finished tasks: enough of them that all tasks can be looked up.
const QUEUES: u64 = 32;

fn queue_of(number: u64) -> String {
    format!("kill-{}", (number >> 15) % QUEUES)
}

/// The sum of all queues' counts of these states.
fn count(broker: &Broker, states: &[&str]) -> u64 {
    let queues = broker.get("/v1/queues").json()["queues"].clone();
    let count =
        |queue: &Value| states.iter().map(|state| queue["counts"][*state].as_u64().unwrap()).sum::<u64>();
    queues.as_array().unwrap().iter().map(count).sum()
}

/// What the clients saw, in the order in which they saw it.
#[derive(Debug, Clone)]
enum Seen {
    Confirmed { task: String, number: u64 },
    Delivered { task: String, number: u64, redelivered: bool },
    Settled { task: String },
}

/// What all clients share.
struct World {
    address: SocketAddr,
    log: Mutex<Vec<Seen>>,
    next: Mutex<u64>,
    producing: AtomicBool,
    working: AtomicBool,
}

impl World {
    fn saw(&self, what: Seen) {
        self.log.lock().unwrap().push(what);
    }

    /// A socket, once there is a broker; none: it is over.
    fn connect(&self, going: &AtomicBool) -> Option<Ws> {
        while going.load(Ordering::Relaxed) {
            if let Some(ws) = Ws::try_open(self.address) {
                return Some(ws);
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a broker that is down tells nobody when it is back"
            )]
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Submits in windows of eight, until told to stop. A submit whose answer never came stays unknown.
    fn produce(&self) {
        while let Some(mut ws) = self.connect(&self.producing) {
            while self.producing.load(Ordering::Relaxed) {
                let numbers: Vec<u64> = {
                    let mut next = self.next.lock().unwrap();
                    *next += 8;
                    (*next - 8..*next).collect()
                };
                let submit = |number: &u64| json!({"type": "submit", "id": number, "queue": queue_of(*number), "payload": number});
                let submits: Vec<Value> = numbers.iter().map(submit).collect();
                if !ws.raw_if_open(&Ws::masked(0x81, Value::Array(submits).to_string().as_bytes())) {
                    break;
                }
                let confirmed = numbers.iter().all(|_| {
                    let Some(answer) = ws.next_unless_it_ends(|message| message["type"] == "accepted") else {
                        return false;
                    };
                    let task = answer["task"].as_str().unwrap().to_owned();
                    self.saw(Seen::Confirmed { task, number: answer["ref"].as_u64().unwrap() });
                    true
                });
                if !confirmed {
                    break;
                }
            }
        }
    }

    /// Takes tasks and acknowledges each, until told to stop.
    fn work(&self) {
        while let Some(mut ws) = self.connect(&self.working) {
            let subscribe = |nth| json!({"type": "subscribe", "queue": queue_of(nth << 15), "credit": 16});
            let subscribes: Vec<Value> = (0..QUEUES).map(subscribe).collect();
            if !ws.raw_if_open(&Ws::masked(0x81, Value::Array(subscribes).to_string().as_bytes())) {
                continue;
            }
            // The end of the whole test ends the socket too, by the broker's last kill.
            while let Some(message) =
                ws.next_unless_it_ends(|m| m["type"] == "task" || m["type"] == "settled")
            {
                if message["type"] == "settled" {
                    assert!(message["outcome"] == "ok", "{message}");
                    self.saw(Seen::Settled { task: message["ref"].as_str().unwrap().to_owned() });
                    continue;
                }
                let task = message["task"].as_str().unwrap().to_owned();
                let (number, redelivered) =
                    (message["payload"].as_u64().unwrap(), message["redelivered"] == true);
                self.saw(Seen::Delivered { task: task.clone(), number, redelivered });
                let ack = json!({"type": "ack", "id": task, "lease": message["lease"]}).to_string();
                if !ws.raw_if_open(&Ws::masked(0x81, ack.as_bytes())) {
                    break;
                }
            }
        }
    }
}

/// What came of it, by the promises.
#[derive(Debug, Default)]
struct Report {
    confirmed: usize,
    delivered: usize,
    settled: usize,
    redelivered: usize,
    /// Delivered though no `accepted` was seen: the answer was on its way when the broker was killed.
    unknown: usize,
    wrong: Vec<String>,
}

fn check(log: &[Seen], submitted: u64) -> (Report, BTreeSet<String>) {
    let mut report = Report::default();
    let (mut confirmed, mut delivered, mut settled) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for seen in log {
        match seen {
            Seen::Confirmed { task, number } => {
                report.confirmed += 1;
                if confirmed.insert(task.clone(), *number).is_some() {
                    report.wrong.push(format!("{task} was confirmed twice"));
                }
            }
            Seen::Delivered { task, number, redelivered } => {
                report.delivered += 1;
                if *number >= submitted {
                    report.wrong.push(format!("{task} was never submitted"));
                }
                if settled.contains(task) {
                    report.wrong.push(format!("{task} was delivered after it was settled"));
                }
                if let Some(before) = delivered.insert(task.clone(), *number) {
                    report.redelivered += 1;
                    if before != *number {
                        report.wrong.push(format!("{task} came back with another payload"));
                    }
                    if !redelivered {
                        report.wrong.push(format!("{task} was delivered again without a flag"));
                    }
                }
            }
            Seen::Settled { task } => {
                report.settled += 1;
                if !settled.insert(task.clone()) {
                    report.wrong.push(format!("{task} was settled twice"));
                }
            }
        }
    }
    report.unknown = delivered.keys().filter(|task| !confirmed.contains_key(*task)).count();
    let all = confirmed.into_keys().chain(delivered.into_keys()).collect();
    (report, all)
}

/// A small generator, so that a seed is a schedule.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

#[test]
fn kill_nine() {
    let rounds = from_environment("TASKYARD_KILL_ROUNDS").unwrap_or(5);
    let seed = from_environment("TASKYARD_KILL_SEED").unwrap_or_else(rand::random) | 1;
    println!("TASKYARD_KILL_ROUNDS={rounds} TASKYARD_KILL_SEED={seed}");
    let mut random = seed;

    let mut broker = Broker::with(&["--segment-bytes", "65536"]);
    let world = Arc::new(World {
        address: broker.address,
        log: Mutex::default(),
        next: Mutex::default(),
        producing: AtomicBool::new(true),
        working: AtomicBool::new(true),
    });
    let spawn = |of: fn(&World)| {
        let world = world.clone();
        std::thread::spawn(move || of(&world))
    };
    let producers: Vec<_> = (0..PRODUCERS).map(|_| spawn(World::produce)).collect();
    let workers: Vec<_> = (0..WORKERS).map(|_| spawn(World::work)).collect();
    for _ in 0..rounds {
        #[expect(clippy::disallowed_methods, reason = "the moment is what is random; nothing is waited for")]
        std::thread::sleep(Duration::from_micros(next_random(&mut random) % 60_000));
        broker.kill();
        broker.start_again_at_its_port();
    }
    world.producing.store(false, Ordering::Relaxed);
    for producer in producers {
        producer.join().unwrap();
    }
    // Everything that is there settles, and the clients hear of it.
    let unsettled = ["scheduled", "queued", "leased", "retrying", "dead"];
    until("all tasks to settle", || (count(&broker, &unsettled) == 0).then_some(()));
    world.working.store(false, Ordering::Relaxed);
    let done = count(&broker, &["done"]);
    let log = world.log.lock().unwrap().clone();
    let submitted = *world.next.lock().unwrap();
    let (report, tasks) = check(&log, submitted);
    let mut lost = 0;
    for task in &tasks {
        let answer = broker.get(&format!("/v1/tasks/{task}"));
        lost += u64::from(answer.status != 200 || answer.json()["state"] != "done");
    }
    broker.kill();
    for worker in workers {
        worker.join().unwrap();
    }
    println!(
        "rounds {rounds}, submitted {submitted}, confirmed {}, delivered {}, settled {}, lost {lost}, \
         redelivered {} (unflagged {}), confirmed by no answer {}, done {done}",
        report.confirmed,
        report.delivered,
        report.settled,
        report.redelivered,
        report.wrong.len(),
        report.unknown,
    );
    assert_eq!(report.wrong, Vec::<String>::new());
    assert_eq!(lost, 0);
    assert!(report.confirmed > 0 && report.settled > 0, "{report:?}");
    assert_eq!(done, tasks.len() as u64, "the counts agree with what the clients know");
}
