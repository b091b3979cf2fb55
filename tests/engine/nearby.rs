//! An engine may store on a thread of the runtime while another is free: then a disk that stalls holds up whoever waits for
//! it, and nobody else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskyard::broker::{Broker, Call, Item};
use taskyard::clock::Clock;
use taskyard::core::{Config, Effects, Replay, Shard};
use taskyard::dispatcher::{Dispatcher, Phase};
use taskyard::engine::{Embedded, Engine, EngineError, Observer};
use taskyard_proto::{Payload, QueueName, ServerMessage, Submit};
use tokio::sync::watch;
use tokio::time::timeout;

/// Long enough for any machine: what it bounds would otherwise last for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// A disk that stalls once, under a thread of the runtime.
struct Stall {
    begun: Option<Sender<()>>,
    over: Receiver<()>,
}

impl Observer for Stall {
    fn sync_begins(&mut self, _records: u64) {
        if std::thread::current().name() == Some("taskyard-log") {
            return;
        }
        if let Some(begun) = self.begun.take() {
            begun.send(()).unwrap();
            self.over.recv().unwrap();
        }
    }
    fn sync_ended(&mut self, _records: u64) {}
}

fn task() -> Submit {
    Submit::new(QueueName::parse("work").unwrap(), Payload::default())
}

async fn submit(broker: &Broker) -> Call {
    broker.submit(task(), None).await.unwrap()
}

/// A broker on two threads, whose disk stalls once.
struct Rig {
    broker: Broker,
    begins: Mutex<Receiver<()>>,
    over: Sender<()>,
    phase: watch::Sender<Phase>,
    dispatcher: tokio::task::JoinHandle<Result<(), EngineError>>,
    _place: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Rig {
        let place = tempfile::tempdir().unwrap();
        let ((begun, begins), (over, ends)) = (channel(), channel());
        let stall = Stall { begun: Some(begun), over: ends };
        let mut replay = Replay::new(Shard::new(Config::default()));
        let (engine, opened, _) =
            Embedded::open(place.path(), 1 << 20, stall, &mut |op| replay.operation(op)).unwrap();
        let clock = Clock::start();
        let mut first = Effects::default();
        let shard = replay.begin(clock.now(), opened.clean, opened.start, &mut first);
        let connections = Arc::default();
        let (broker, inbox, questions) = Broker::new(clock, Arc::clone(&connections), engine.capabilities());
        let (phase, phases) = watch::channel(Phase::Run);
        let dispatcher = Dispatcher::new(shard, engine, clock, connections, inbox, questions, phases);
        let dispatcher = tokio::spawn(dispatcher.run(first));
        Rig { broker, begins: Mutex::new(begins), over, phase, dispatcher, _place: place }
    }

    async fn stop(self) {
        self.phase.send_replace(Phase::Stop);
        self.dispatcher.await.unwrap().unwrap();
    }
}

async fn is_accepted(call: &mut Call) -> bool {
    let answer = timeout(LIMIT, call.answer()).await.expect("the disk works").unwrap();
    matches!(answer, ServerMessage::Accepted(_))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_disk_that_stalls_under_a_thread_of_the_runtime_holds_up_only_who_waits_for_it() {
    runtime().block_on(async {
        let rig = Arc::new(Rig::start().await);
        // One submit after the other, from within: the dispatcher's turns are near each other.
        let submits = tokio::spawn({
            let rig = rig.clone();
            async move {
                let mut accepted = 0;
                loop {
                    let mut call = submit(&rig.broker).await;
                    tokio::select! {
                        is_accepted = is_accepted(&mut call) => assert!(is_accepted),
                        () = stalled(&rig.begins) => return (accepted, call),
                    }
                    accepted += 1;
                }
            }
        });
        let (accepted, mut stalled) =
            timeout(LIMIT, submits).await.expect("nothing was stored nearby").unwrap();
        let mut later = submit(&rig.broker).await;
        let seen = timeout(LIMIT, rig.broker.inspect_now(|seen| seen.shard.operations_durable()));
        let durable = seen.await.expect("the dispatcher goes on").unwrap();
        assert!(durable <= accepted + 1);
        assert!(timeout(Duration::ZERO, stalled.answer()).await.is_err());
        assert!(timeout(Duration::ZERO, later.answer()).await.is_err());
        rig.over.send(()).unwrap();
        assert!(is_accepted(&mut stalled).await && is_accepted(&mut later).await);
        Arc::into_inner(rig).expect("nobody else has it").stop().await;
    });
}

/// A dispatcher that had more to do let sockets be read first, and was then found by nobody but the thread that stood still.
#[test]
fn a_dispatcher_with_much_to_do_does_not_stand_still_with_the_disk() {
    for _ in 0..20 {
        runtime().block_on(async {
            let rig = Arc::new(Rig::start().await);
            let over = Arc::new(AtomicBool::new(false));
            let submits: Vec<_> = (0..8)
                .map(|nth| {
                    let (rig, over) = (rig.clone(), over.clone());
                    tokio::spawn(async move {
                        while !over.load(Ordering::Relaxed) {
                            let tasks = (0..=10 * nth).map(|_| Ok(task().into())).collect();
                            for call in rig.broker.submit_many(tasks, None).await.unwrap() {
                                assert!(is_accepted(&mut call.unwrap()).await);
                            }
                        }
                    })
                })
                .collect();
            timeout(LIMIT, stalled(&rig.begins)).await.expect("nothing was stored nearby");
            let (reached, is_reached) = tokio::sync::oneshot::channel();
            rig.broker.send(&mut vec![Item::Mark(reached)], 0).await.unwrap();
            timeout(LIMIT, is_reached).await.expect("the dispatcher goes on").unwrap();
            over.store(true, Ordering::Relaxed);
            rig.over.send(()).unwrap();
            for submits in submits {
                submits.await.unwrap();
            }
            Arc::into_inner(rig).expect("nobody else has it").stop().await;
        });
    }
}

/// Until the disk stalls.
async fn stalled(begins: &Mutex<Receiver<()>>) {
    while begins.lock().unwrap().try_recv().is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
