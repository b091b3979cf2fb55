//! An engine may store on a thread of the runtime while another is free: then a disk that stalls holds up whoever waits for
//! it, and nobody else.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskyard::broker::{Broker, Call};
use taskyard::clock::Clock;
use taskyard::core::{Config, Effects, Replay, Shard};
use taskyard::dispatcher::{Dispatcher, Phase};
use taskyard::engine::{Embedded, Engine, Observer};
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

async fn submit(broker: &Broker) -> Call {
    let submit = Submit::new(QueueName::parse("work").unwrap(), Payload::default());
    broker.submit(submit, None).await.unwrap()
}

#[test]
fn a_disk_that_stalls_under_a_thread_of_the_runtime_holds_up_only_who_waits_for_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let place = tempfile::tempdir().unwrap();
    let ((begun, begins), (over, ends)) = (channel(), channel());
    runtime.block_on(async {
        let mut replay = Replay::new(Shard::new(Config::default()));
        let stall = Stall { begun: Some(begun), over: ends };
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

        // One submit after the other, from within: the dispatcher's turns are near each other.
        let submits = tokio::spawn({
            let broker = broker.clone();
            async move {
                let (mut accepted, begins) = (0, Mutex::new(begins));
                loop {
                    let mut call = submit(&broker).await;
                    let answer = tokio::select! {
                        answer = call.answer() => answer.unwrap(),
                        () = stalled(&begins) => return (accepted, call),
                    };
                    assert!(matches!(answer, ServerMessage::Accepted(_)));
                    accepted += 1;
                }
            }
        });
        let (accepted, mut stalled) =
            timeout(LIMIT, submits).await.expect("nothing was stored nearby").unwrap();

        let mut later = submit(&broker).await;
        let seen = timeout(LIMIT, broker.inspect_now(|seen| seen.shard.operations_durable()));
        let durable = seen.await.expect("the dispatcher goes on").unwrap();
        assert!(durable <= accepted + 1);
        assert!(timeout(Duration::ZERO, stalled.answer()).await.is_err());
        assert!(timeout(Duration::ZERO, later.answer()).await.is_err());

        over.send(()).unwrap();
        for call in [&mut stalled, &mut later] {
            let answer = timeout(LIMIT, call.answer()).await.expect("the disk works again").unwrap();
            assert!(matches!(answer, ServerMessage::Accepted(_)));
        }
        phase.send_replace(Phase::Stop);
        dispatcher.await.unwrap().unwrap();
    });
}

/// Until the disk stalls.
async fn stalled(begins: &Mutex<Receiver<()>>) {
    while begins.lock().unwrap().try_recv().is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
