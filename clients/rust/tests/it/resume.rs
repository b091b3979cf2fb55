//! What a worker does with what it holds when its connection is lost.

use std::sync::Arc;
use std::time::Duration;

use taskyard_client::proto::{
    AwayReason, ClientMessage, Done, Error, ErrorCode, GivenLease, GoingAway, Hello, LeaseId, LeaseList,
    Payload, Resume, RevokeReason, Revoked, Secret, ServerMessage, SettleOutcome, Settled, TaskId, Text,
    Welcome, lease_text,
};
use taskyard_client::{Delivery, Ending, Failure, Reconnect, Worker, WorkerError, WorkerEvent};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::fake::{Broker, Heard, Peer, broker, welcome};
use crate::worker::{bye, leases, leaves, run, until, worker};

const TOKEN: &str = "the token";

fn lease(number: u64) -> LeaseId {
    LeaseId { number, slot: 0, recipient: 0 }
}

/// A welcome with a way back.
fn resumable() -> Welcome {
    Welcome { resume: Some(Secret::new(TOKEN)), ..welcome() }
}

fn resumed(kept: &[u64], lost: &[u64]) -> Welcome {
    Welcome {
        resumed: true,
        kept: kept.iter().map(|number| lease(*number)).collect(),
        lost: lost.iter().map(|number| lease_text(&lease(*number).into())).collect(),
        ..resumable()
    }
}

/// The first connection of a worker that asks for a way back.
async fn first(broker: &mut Broker) -> Peer {
    let (mut peer, hello) = broker.greeted().await;
    assert_eq!((hello.resume, hello.in_flight), (Some(Resume::Wanted(true)), vec![]));
    peer.welcome(resumable()).await;
    peer.subscribed().await;
    peer
}

/// The next connection, and what it says is still worked on.
async fn back(broker: &mut Broker) -> (Peer, Vec<u64>) {
    let (peer, hello) = broker.greeted().await;
    assert_eq!(hello.resume, Some(Resume::Token(Secret::new(TOKEN))));
    (peer, numbers(&hello))
}

fn numbers(hello: &Hello) -> Vec<u64> {
    hello.in_flight.iter().map(|lease| lease.id().unwrap().number).collect()
}

/// Handlers that say when they begin and how they end, and take as long as the test wants.
struct Handlers {
    begun: mpsc::UnboundedReceiver<TaskId>,
    endings: mpsc::UnboundedReceiver<(TaskId, Ending)>,
    go: Arc<Semaphore>,
}

impl Handlers {
    fn new() -> (Handlers, impl Fn(Delivery) -> Handling + Send + Sync + 'static) {
        let (began, begun) = mpsc::unbounded_channel();
        let (ended, endings) = mpsc::unbounded_channel();
        let go = Arc::new(Semaphore::new(0));
        let handlers = Handlers { begun, endings, go: go.clone() };
        let handler = move |delivery: Delivery| {
            let (began, ended, go) = (began.clone(), ended.clone(), go.clone());
            Box::pin(async move {
                began.send(delivery.task).unwrap();
                tokio::select! {
                    permit = go.acquire() => permit.unwrap().forget(),
                    ending = delivery.stopped() => ended.send((delivery.task, ending)).unwrap(),
                }
                Ok(Payload::json("done").unwrap())
            }) as Handling
        };
        (handlers, handler)
    }

    async fn begin(&mut self, number: u128) {
        assert_eq!(self.begun.recv().await, Some(TaskId(number)));
    }
}

type Handling = std::pin::Pin<Box<dyn Future<Output = Result<Payload, Failure>> + Send>>;

fn lease_lost(event: &WorkerEvent) -> bool {
    matches!(event, WorkerEvent::LeaseLost { .. })
}

/// All that has been told so far.
fn told(events: &mut mpsc::UnboundedReceiver<WorkerEvent>) -> Vec<WorkerEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

fn settled(number: u64, outcome: SettleOutcome) -> Settled {
    Settled {
        lease: lease_text(&lease(number).into()).into(),
        outcome: outcome.into(),
        results: Default::default(),
    }
}

/// The next messages: leases that are extended, in order, and one subscribe, which is answered.
async fn settles_in(peer: &mut Peer, leases: &[u64]) {
    let mut extended = Vec::new();
    let mut subscribed = false;
    while !subscribed || extended.len() < leases.len() {
        let request = peer.request().await;
        match &request.message {
            ClientMessage::Extend(extend) => extended.push(extend.lease.id().unwrap().number),
            ClientMessage::Subscribe(_) => {
                subscribed = true;
                peer.answer(&request, Done::PLAIN).await;
            }
            other => panic!("{other:?}"),
        }
    }
    extended.sort_unstable();
    assert_eq!(extended, leases);
}

/// The ack of a session that can be resumed: it wants an answer, and gets it.
async fn acked(peer: &mut Peer, number: u64) {
    let ack = peer.request().await;
    assert!(ack.id.is_some(), "{ack:?}");
    assert_eq!(leases(&ack.message), lease(number));
    peer.answer(&ack, settled(number, SettleOutcome::Ok)).await;
}

#[tokio::test(start_paused = true)]
async fn a_kept_lease_goes_on_with_the_next_connection() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (running, stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { held: 1, .. })).await;

    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1]);
    let start = Instant::now();
    peer.welcome(resumed(&[1], &[])).await;
    settles_in(&mut peer, &[1]).await;
    assert_eq!(start.elapsed().as_millis() / 10, 0, "it is extended at once");
    until(&mut events, |event| matches!(event, WorkerEvent::Connected { welcome } if welcome.resumed)).await;
    // From then on as always.
    assert!(matches!(peer.request().await.message, ClientMessage::Extend(_)));
    assert_eq!(start.elapsed().as_millis() / 10, 1000);
    handlers.go.add_permits(1);
    acked(&mut peer, 1).await;
    // A second loss: nothing is held any more.
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [0; 0]);
    peer.welcome(resumed(&[], &[])).await;
    peer.subscribed().await;
    drop(stop);
    leaves(&mut peer).await;
    running.await.unwrap().unwrap();
    assert!(!told(&mut events).iter().any(lease_lost));
    assert!(handlers.endings.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn of_several_leases_the_broker_says_which_are_lost() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker.concurrency(3), handler);
    let mut peer = first(&mut broker).await;
    for number in 1..=3 {
        peer.task(number).await;
        handlers.begin(number.into()).await;
    }
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1, 2, 3]);
    peer.welcome(resumed(&[1, 3], &[2])).await;
    assert_eq!(handlers.endings.recv().await, Some((TaskId(2), Ending::Disconnected)));
    until(&mut events, |event| matches!(event, WorkerEvent::LeaseLost { task: TaskId(2) })).await;
    settles_in(&mut peer, &[1, 3]).await;
    handlers.go.add_permits(2);
    for _ in 0..2 {
        let ack = peer.request().await;
        assert_ne!(leases(&ack.message), lease(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_not_resumed_loses_all() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1]);
    let anew = Welcome { resume: Some(Secret::new("another")), ..resumed(&[], &[1]) };
    peer.welcome(Welcome { resumed: false, ..anew }).await;
    assert_eq!(handlers.endings.recv().await, Some((TaskId(1), Ending::Disconnected)));
    until(&mut events, lease_lost).await;
    peer.subscribed().await;
    // The new session has a way back of its own.
    drop(peer);
    let (_, hello) = broker.greeted().await;
    assert_eq!(hello.resume, Some(Resume::Token(Secret::new("another"))));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_ready_while_there_is_no_connection_waits_for_one() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { held: 1, .. })).await;
    handlers.go.add_permits(1);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1]);
    peer.welcome(resumed(&[1], &[])).await;
    let (mut acks, mut subscribes) = (0, 0);
    for _ in 0..2 {
        let request = peer.request().await;
        match &request.message {
            ClientMessage::Subscribe(_) => subscribes += 1,
            message => {
                assert_eq!(leases(message), lease(1));
                peer.answer(&request, settled(1, SettleOutcome::Ok)).await;
                acks += 1;
            }
        }
    }
    assert_eq!((acks, subscribes), (1, 1));
    assert!(!told(&mut events).iter().any(lease_lost));
}

/// A result was said, and the connection broke before its answer. Gives what is told after the
/// broker has welcomed with `welcome`, and answered the result with `answer`.
async fn said_again(welcome: Welcome, answer: ServerMessage) -> Vec<WorkerEvent> {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (running, stop) = run(worker, |_| async { Ok(Payload::json("done").unwrap()) });
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    let said = peer.request().await;
    assert_eq!(leases(&said.message), lease(1));
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1], "who knows whether it has arrived");
    peer.welcome(welcome).await;
    let mut again = 0;
    for _ in 0..2 {
        let request = peer.request().await;
        match &request.message {
            ClientMessage::Subscribe(_) => peer.answer(&request, Done::PLAIN).await,
            message => {
                assert_eq!(message, &said.message);
                peer.answer(&request, answer.clone()).await;
                again += 1;
            }
        }
    }
    assert_eq!(again, 1);
    drop(stop);
    leaves(&mut peer).await;
    running.await.unwrap().unwrap();
    told(&mut events)
}

#[tokio::test(start_paused = true)]
async fn a_result_that_may_not_have_arrived_is_said_again() {
    let kept = said_again(resumed(&[1], &[]), settled(1, SettleOutcome::Ok).into()).await;
    assert!(!kept.iter().any(lease_lost), "{kept:?}");
    // It had arrived, and the answer had not.
    let had_arrived = said_again(resumed(&[], &[1]), settled(1, SettleOutcome::Already).into()).await;
    assert!(!had_arrived.iter().any(lease_lost), "{had_arrived:?}");
    let gone = Error::new(ErrorCode::LeaseLost, "too late").lease(&lease(1).into());
    let lost = said_again(resumed(&[], &[1]), gone.into()).await;
    assert!(lost.iter().any(lease_lost), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_does_not_outlive_its_ack_timeout_while_the_broker_is_away() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    let start = Instant::now();
    peer.task(1).await;
    handlers.begin(1).await;
    // Extended after ten seconds, lost at fifteen.
    assert!(matches!(peer.request().await.message, ClientMessage::Extend(_)));
    tokio::time::sleep_until(start + Duration::from_secs(15)).await;
    drop(peer);
    assert_eq!(handlers.endings.recv().await, Some((TaskId(1), Ending::Disconnected)));
    assert_eq!(start.elapsed().as_millis() / 10, 4000);
    until(&mut events, lease_lost).await;

    // A broker that has kept it all the same gets it back.
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [0; 0]);
    peer.welcome(resumed(&[1], &[])).await;
    let release = peer.request().await;
    let ClientMessage::Release(fields) = &release.message else { panic!("{release:?}") };
    assert_eq!(fields.leases, LeaseList::Many(vec![GivenLease::from(lease(1))]));
    peer.subscribed().await;
}

#[tokio::test(start_paused = true)]
async fn without_resume_a_lost_connection_ends_all() {
    for asked in [false, true] {
        let (mut broker, options) = broker();
        let (worker, mut events) = worker(options);
        let (mut handlers, handler) = Handlers::new();
        let (_running, _stop) = run(worker.resume(asked), handler);
        let (mut peer, hello) = broker.greeted().await;
        assert_eq!(hello.resume, asked.then_some(Resume::Wanted(true)));
        // A broker that offers no way back, or one that was not asked for.
        peer.welcome(if asked { welcome() } else { resumable() }).await;
        peer.subscribed().await;
        peer.task(1).await;
        handlers.begin(1).await;
        drop(peer);
        until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { held: 0, .. })).await;
        assert_eq!(handlers.endings.recv().await, Some((TaskId(1), Ending::Disconnected)));
        let (_, hello) = broker.greeted().await;
        assert_eq!((hello.resume, hello.in_flight), (asked.then_some(Resume::Wanted(true)), vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_handler_and_what_was_just_taken_back_are_told_apart() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker.prefetch(4), handler);
    let mut peer = first(&mut broker).await;
    for number in 1..=4 {
        peer.task(number).await;
    }
    handlers.begin(1).await;
    // The last words before the end: one lease is taken back, one more is given.
    peer.say(Revoked { lease: lease(3), reason: RevokeReason::AckTimeout }).await;
    peer.task(5).await;
    peer.close(1012, "restart").await;
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1, 2, 4, 5]);
    peer.welcome(resumed(&[1, 4, 5], &[2])).await;
    settles_in(&mut peer, &[1, 4, 5]).await;
    handlers.go.add_permits(3);
    for number in [1, 4, 5] {
        acked(&mut peer, number).await;
    }
    handlers.begin(4).await;
    handlers.begin(5).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_says_waits_for_the_next_connection() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (began, mut begins) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let go_inside = go.clone();
    let (_running, _stop) = run(worker.auto_extend(false), move |delivery| {
        let (began, go) = (began.clone(), go_inside.clone());
        async move {
            began.send(()).unwrap();
            go.acquire().await.unwrap().forget();
            delivery.progress(50.0, Payload::NULL).await?;
            let left = delivery.extend(None).await?;
            Ok(Payload::json(&left.as_secs())?)
        }
    });
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    begins.recv().await.unwrap();
    drop(peer);
    let (mut peer, _) = broker.greeted().await;
    go.add_permits(1);
    peer.welcome(resumed(&[1], &[])).await;
    let mut extend = None;
    for _ in 0..3 {
        let request = peer.request().await;
        match request.message {
            ClientMessage::Subscribe(_) => peer.answer(&request, Done::PLAIN).await,
            ClientMessage::Progress(_) => {}
            ClientMessage::Extend(_) => extend = Some(request),
            other => panic!("{other:?}"),
        }
    }
    // The answer is lost on the way: it is asked again.
    let asked = extend.unwrap();
    drop(peer);
    let (mut peer, _) = back(&mut broker).await;
    peer.welcome(resumed(&[1], &[])).await;
    loop {
        let request = peer.request().await;
        match &request.message {
            ClientMessage::Subscribe(_) => peer.answer(&request, Done::PLAIN).await,
            ClientMessage::Ack(ack) => {
                assert_eq!(ack.result.decode::<u64>().unwrap(), 7);
                break;
            }
            message => {
                assert_eq!(message, &asked.message);
                peer.answer(&request, Done { ack_timeout_ms: 7000.into(), ..Done::PLAIN }).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_was_announced_is_no_end_either() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    let start = Instant::now();
    peer.say(GoingAway { reason: AwayReason::Restart, grace_ms: 100, reconnect_after_ms: 4000 }).await;
    peer.close(1012, "restart").await;
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!((in_flight, start.elapsed().as_millis() / 10), (vec![1], 400));
    peer.welcome(resumed(&[1], &[])).await;
    settles_in(&mut peer, &[1]).await;
    handlers.go.add_permits(1);
    acked(&mut peer, 1).await;
    assert!(!told(&mut events).iter().any(lease_lost));
}

#[tokio::test(start_paused = true)]
async fn who_holds_something_is_back_soon() {
    let (mut broker, options) = broker();
    let (waits, mut waited) = mpsc::unbounded_channel();
    let options = options.connect_timeout(Duration::from_millis(1)).on_event(move |event| {
        if let taskyard_client::ClientEvent::Retry { after } = event {
            waits.send(after).unwrap();
        }
    });
    let (worker, _events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    // As long as the lease may live.
    handlers.endings.recv().await.unwrap();
    let mut longest = Duration::ZERO;
    while let Ok(wait) = waited.try_recv() {
        longest = longest.max(wait);
    }
    assert!(longest <= Duration::from_secs(2), "{longest:?}: the session does not wait for so long");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_another_took_ends_its_leases() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    peer.close(4009, "replaced").await;
    assert_eq!(handlers.endings.recv().await, Some((TaskId(1), Ending::Disconnected)));
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::Closed(closed) if closed.code == Some(4009)), "{error}");
    let told = told(&mut events);
    assert!(told.iter().any(|event| matches!(event, WorkerEvent::Disconnected { held: 0, .. })), "{told:?}");
    assert!(told.iter().any(lease_lost));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_ends_its_leases() {
    let (mut broker, options) = broker();
    let options =
        options.reconnect(Reconnect::For(Duration::from_secs(5))).connect_timeout(Duration::from_secs(1));
    let (worker, _events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (running, _stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    let start = Instant::now();
    drop(peer);
    assert_eq!(handlers.endings.recv().await, Some((TaskId(1), Ending::Disconnected)));
    assert!((5..9).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(matches!(running.await.unwrap(), Err(WorkerError::Closed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_while_there_is_no_connection_waits_for_results_to_be_told() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (running, stop) = run(worker, handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { held: 1, .. })).await;
    drop(stop);
    until(&mut events, |event| matches!(event, WorkerEvent::Draining)).await;
    handlers.go.add_permits(1);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, [1]);
    peer.welcome(resumed(&[1], &[])).await;
    // No subscribe: nothing more is wanted.
    acked(&mut peer, 1).await;
    bye(&mut peer).await;
    running.await.unwrap().unwrap();
    let told = told(&mut events);
    assert!(!told.iter().any(|event| matches!(event, WorkerEvent::Error { .. })), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_while_the_broker_is_away_ends_with_its_grace() {
    let grace = Duration::from_secs(3);
    let (mut broker, options) = broker();
    let (first_worker, mut events) = worker(options.clone());
    let (mut handlers, handler) = Handlers::new();
    let (running, stop) = run(first_worker.grace(grace), handler);
    let mut peer = first(&mut broker).await;
    peer.task(1).await;
    handlers.begin(1).await;
    drop(peer);
    until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { .. })).await;
    let start = Instant::now();
    drop(stop);
    running.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_millis() / 10, 300);

    // Where nothing is held there is nothing to wait for.
    let (idle, mut events) = worker(options);
    let (_, handler) = Handlers::new();
    let (running, stop) = run(Worker::grace(idle, grace), handler);
    let peer = loop {
        let (mut peer, hello) = broker.greeted().await;
        if hello.resume == Some(Resume::Wanted(true)) {
            peer.welcome(resumable()).await;
            peer.subscribed().await;
            break peer;
        }
    };
    drop(peer);
    until(&mut events, |event| matches!(event, WorkerEvent::Disconnected { held: 0, .. })).await;
    let start = Instant::now();
    drop(stop);
    running.await.unwrap().unwrap();
    assert!(start.elapsed() < grace, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_broker_of_short_messages_hears_of_as_many_as_fit() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (mut handlers, handler) = Handlers::new();
    let (_running, _stop) = run(worker.concurrency(100), handler);
    let (mut peer, _) = broker.greeted().await;
    let mut short = resumable();
    short.limits.message_bytes = 1024;
    peer.welcome(short).await;
    peer.subscribed().await;
    for number in 1..=100 {
        peer.task(number).await;
        handlers.begin(number.into()).await;
    }
    drop(peer);
    let (mut peer, in_flight) = back(&mut broker).await;
    assert_eq!(in_flight, (1..=25).collect::<Vec<u64>>());
    peer.welcome(resumed(&(1..=25).collect::<Vec<u64>>(), &[])).await;
    let mut lost = Vec::new();
    while lost.len() < 75 {
        lost.push(handlers.endings.recv().await.unwrap().0);
    }
    lost.sort_unstable();
    assert_eq!(lost, (26..=100).map(TaskId).collect::<Vec<TaskId>>());
}

#[tokio::test(start_paused = true)]
async fn a_plain_client_asks_for_no_way_back() {
    let (mut broker, options) = broker();
    let connecting = tokio::spawn(taskyard_client::Client::connect(options));
    let (mut peer, hello) = broker.greeted().await;
    assert_eq!(hello.resume, None);
    peer.welcome(Welcome { session: Text::cut("s9"), ..welcome() }).await;
    let client = connecting.await.unwrap().unwrap();
    assert_eq!(client.welcome().unwrap().session.as_str(), "s9");
    drop(client);
    let bye = peer.request().await;
    assert!(matches!(bye.message, ClientMessage::Bye(_)));
    peer.close(1000, "").await;
    assert_eq!(peer.hear().await, Heard::Close(1000));
}
