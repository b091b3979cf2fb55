//! Deliveries, leases, settles, and how a worker leaves.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use taskyard_client::proto::{
    AwayReason, ClientMessage, Done, Error, ErrorCode, GoingAway, LeaseId, LeaseList, Payload, RevokeReason,
    ServerMessage, SettleOutcome, Settled, Stop, TaskId, Text, lease_text,
};
use taskyard_client::{ClientOptions, Ending, Failure, Settle, Worker, WorkerError, WorkerEvent};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::fake::{Broker, Heard, Peer, broker, queue, submit};

pub(crate) fn worker(options: ClientOptions) -> (Worker, mpsc::UnboundedReceiver<WorkerEvent>) {
    let (sender, events) = mpsc::unbounded_channel();
    (Worker::new(options, queue()).on_event(move |event| drop(sender.send(event))), events)
}

/// A worker at work until the sender is dropped or used.
pub(crate) fn run<H, F>(
    worker: Worker,
    handler: H,
) -> (JoinHandle<Result<(), WorkerError>>, oneshot::Sender<()>)
where
    H: Fn(taskyard_client::Delivery) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Payload, Failure>> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    (tokio::spawn(worker.run(handler, stopped)), stop)
}

pub(crate) async fn subscribed(broker: &mut Broker) -> Peer {
    let mut peer = broker.welcomed().await;
    peer.subscribed().await;
    peer
}

pub(crate) fn leases(message: &ClientMessage) -> LeaseId {
    match message {
        ClientMessage::Ack(ack) => match &ack.leases {
            LeaseList::One(lease) => lease.id().unwrap(),
            LeaseList::Many(_) => panic!("{message:?}"),
        },
        _ => panic!("expected an ack, heard {message:?}"),
    }
}

/// Answers what a worker says when it leaves.
pub(crate) async fn leaves(peer: &mut Peer) {
    let drain = peer.request().await;
    assert!(matches!(drain.message, ClientMessage::Drain(_)), "{drain:?}");
    peer.answer(&drain, Done::PLAIN).await;
    bye(peer).await;
}

pub(crate) async fn bye(peer: &mut Peer) {
    let bye = peer.request().await;
    assert!(matches!(bye.message, ClientMessage::Bye(_)), "{bye:?}");
    peer.close(1000, "").await;
    assert_eq!(peer.hear().await, Heard::Close(1000));
}

#[tokio::test(start_paused = true)]
async fn results_are_acks_and_failures_are_what_they_say() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (running, stop) = run(worker, |delivery| async move {
        match delivery.payload().decode::<u64>()? {
            1 => Ok(Payload::json("done").unwrap()),
            2 => Err(Failure::retry_after("later", Duration::from_secs(3))),
            3 => Err(Failure::fatal("never")),
            4 => Err(Failure::release()),
            5 => panic!("number {}", delivery.attempt),
            _ => Err(delivery.payload().decode::<String>().unwrap_err().into()),
        }
    });
    let mut peer = broker.welcomed().await;
    assert_eq!(peer.subscribed().await, 1);
    for number in 1..=6 {
        let lease = peer.task(number).await;
        let settle = peer.request().await;
        assert_eq!(settle.id, None);
        let given = match &settle.message {
            ClientMessage::Ack(ack) => {
                assert_eq!((number, ack.result.decode::<String>().unwrap()), (1, "done".into()));
                &ack.leases
            }
            ClientMessage::Nack(nack) => {
                let error = nack.error.as_ref().unwrap().as_str();
                let delay = nack.delay_ms.map(|delay| delay.get());
                let retry = nack.retry.is_none_or(|retry| retry.0);
                match number {
                    2 => assert_eq!((error, delay, retry), ("later", Some(3000), true)),
                    3 => assert_eq!((error, delay, retry), ("never", None, false)),
                    5 => assert_eq!((error, delay, retry), ("the handler panicked: number 1", None, true)),
                    _ => assert!(number == 6 && error.contains("invalid type") && retry, "{nack:?}"),
                }
                &nack.leases
            }
            ClientMessage::Release(release) => {
                assert_eq!(number, 4);
                &release.leases
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(given, &LeaseList::from(lease));
    }
    drop(stop);
    leaves(&mut peer).await;
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn as_many_handlers_run_as_wanted_and_no_more() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (started, mut starts) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let at_once = Arc::new(AtomicUsize::new(0));
    let (gate_inside, at_once_inside) = (gate.clone(), at_once.clone());
    let (_running, _stop) = run(worker.concurrency(3).prefetch(2), move |delivery| {
        let (gate, at_once, started) = (gate_inside.clone(), at_once_inside.clone(), started.clone());
        async move {
            assert!(at_once.fetch_add(1, Ordering::SeqCst) < 3);
            started.send(delivery.task).unwrap();
            gate.acquire().await.unwrap().forget();
            at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(Payload::NULL)
        }
    });
    let mut peer = broker.welcomed().await;
    assert_eq!(peer.subscribed().await, 6, "what waits here counts against the credit");
    for number in 1..=6 {
        peer.task(number).await;
    }
    for number in 1..=3 {
        assert_eq!(starts.recv().await, Some(TaskId(number)));
    }
    assert!(
        tokio::time::timeout(Duration::from_secs(1), starts.recv()).await.is_err(),
        "three run, three wait"
    );
    for number in 4..=6 {
        gate.add_permits(1);
        leases(&peer.request().await.message);
        assert_eq!(starts.recv().await, Some(TaskId(number)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_extended_at_a_third_of_its_time_while_the_handler_runs() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (_running, _stop) = run(worker, |_| async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        Ok(Payload::NULL)
    });
    let mut peer = subscribed(&mut broker).await;
    let start = Instant::now();
    let lease = peer.task(1).await;
    for seconds in [10, 20] {
        let extend = peer.request().await;
        let ClientMessage::Extend(fields) = &extend.message else { panic!("{extend:?}") };
        assert_eq!((fields.lease.id(), fields.ack_timeout_ms), (Some(lease), None));
        assert_eq!(start.elapsed().as_millis() / 10, seconds * 100);
    }
    assert_eq!(leases(&peer.request().await.message), lease);
    assert_eq!(start.elapsed().as_millis() / 10, 2500);
}

#[tokio::test(start_paused = true)]
async fn without_auto_extend_nothing_is_extended() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (_running, _stop) = run(worker.auto_extend(false), |_| async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        Ok(Payload::NULL)
    });
    let mut peer = subscribed(&mut broker).await;
    let lease = peer.task(1).await;
    assert_eq!(leases(&peer.request().await.message), lease);
}

#[tokio::test(start_paused = true)]
async fn a_handler_extends_reports_and_submits() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (_running, _stop) = run(worker, |delivery| async move {
        let left = delivery.extend(Some(Duration::from_secs(60))).await?;
        delivery.progress(50.0, Payload::json("half")?).await?;
        delivery.client().submit(submit(2)).await?;
        Ok(Payload::json(&left.as_secs())?)
    });
    let mut peer = subscribed(&mut broker).await;
    peer.task(1).await;
    let extend = peer.request().await;
    assert!(
        matches!(&extend.message, ClientMessage::Extend(extend) if extend.ack_timeout_ms.unwrap().get() == 60_000)
    );
    peer.answer(&extend, Done { ack_timeout_ms: 59_000.into(), ..Done::PLAIN }).await;
    let progress = peer.request().await;
    assert!(
        matches!(&progress.message, ClientMessage::Progress(progress) if progress.percent.unwrap().get() == 50.0)
    );
    let (id, _) = peer.submit().await;
    peer.respond(id, crate::fake::accepted(2)).await;
    let ack = peer.request().await;
    assert!(
        matches!(&ack.message, ClientMessage::Ack(ack) if ack.result.decode::<u64>().unwrap() == 59),
        "{ack:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_settle_waits_for_its_answer() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (running, stop) = run(worker.settle(Settle::Confirmed), |_| async { Ok(Payload::NULL) });
    let mut peer = subscribed(&mut broker).await;
    let mut acks = Vec::new();
    for number in 1..=2 {
        peer.task(number).await;
        acks.push(peer.request().await);
    }
    let lease = lease_text(&LeaseId { number: 1, slot: 0, recipient: 0 }.into());
    let settled =
        Settled { lease: lease.into(), outcome: SettleOutcome::Ok.into(), results: Default::default() };
    peer.answer(&acks[0], settled).await;
    drop(stop);
    let drain = peer.request().await;
    peer.answer(&drain, Done::PLAIN).await;
    assert!(
        tokio::time::timeout(Duration::from_secs(1), peer.hear()).await.is_err(),
        "the second settle is still to be confirmed"
    );
    peer.answer(&acks[1], Error::new(ErrorCode::LeaseLost, "too late")).await;
    bye(&mut peer).await;
    running.await.unwrap().unwrap();
    let mut lost = 0;
    while let Ok(event) = events.try_recv() {
        lost += usize::from(matches!(event, WorkerEvent::LeaseLost { task: TaskId(2) }));
    }
    assert_eq!(lost, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_reaches_the_handler_and_its_failure_is_a_cancelled() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (began, mut begins) = mpsc::unbounded_channel();
    let (_running, _stop) = run(worker, move |delivery| {
        began.send(()).unwrap();
        async move {
            assert!(!delivery.is_stopped());
            match delivery.stopped().await {
                Ending::Stop { reason, grace } => Err(Failure::retry(format_args!("{reason} {grace:?}"))),
                other => panic!("{other:?}"),
            }
        }
    });
    let mut peer = subscribed(&mut broker).await;
    let lease = peer.task(1).await;
    begins.recv().await.unwrap();
    peer.say(Stop { lease, reason: Text::cut("cancelled"), grace_ms: 500 }).await;
    let cancelled = peer.request().await;
    let ClientMessage::Cancelled(fields) = &cancelled.message else { panic!("{cancelled:?}") };
    assert_eq!(fields.lease.id(), Some(lease));
    assert_eq!(fields.error.as_ref().unwrap().as_str(), "cancelled 500ms");
}

#[tokio::test(start_paused = true)]
async fn the_result_of_a_lost_lease_is_dropped_and_told() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (began, mut begins) = mpsc::unbounded_channel();
    let (_running, _stop) = run(worker, move |delivery| {
        began.send(()).unwrap();
        async move {
            let ending = delivery.stopped().await;
            assert!(
                matches!(ending, Ending::Revoked(RevokeReason::AckTimeout) | Ending::Disconnected),
                "{ending:?}"
            );
            Ok(Payload::NULL)
        }
    });
    let mut peer = subscribed(&mut broker).await;
    let lease = peer.task(1).await;
    begins.recv().await.unwrap();
    peer.say(taskyard_client::proto::Revoked { lease, reason: RevokeReason::AckTimeout }).await;
    until(&mut events, |event| matches!(event, WorkerEvent::LeaseLost { task: TaskId(1) })).await;

    peer.task(2).await;
    begins.recv().await.unwrap();
    peer.close(1012, "restart").await;
    until(
        &mut events,
        |event| matches!(event, WorkerEvent::Disconnected { closed, held: 0 } if closed.code == Some(1012)),
    )
    .await;
    until(&mut events, |event| matches!(event, WorkerEvent::LeaseLost { task: TaskId(2) })).await;

    // A new connection, a new subscription; nothing of the old one is said there.
    let mut peer = subscribed(&mut broker).await;
    until(&mut events, |event| matches!(event, WorkerEvent::Connected { .. })).await;
    let lease = peer.task(3).await;
    peer.say(taskyard_client::proto::Revoked { lease, reason: RevokeReason::AckTimeout }).await;
    until(&mut events, |event| matches!(event, WorkerEvent::LeaseLost { task: TaskId(3) })).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), peer.hear()).await.is_err());
}

pub(crate) async fn until(
    events: &mut mpsc::UnboundedReceiver<WorkerEvent>,
    wanted: impl Fn(&WorkerEvent) -> bool,
) {
    loop {
        let event = events.recv().await.expect("the worker is there");
        if wanted(&event) {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_what_runs_and_gives_back_what_waits() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (began_inside, go_inside) = (began.clone(), go.clone());
    let (running, stop) = run(worker.prefetch(2), move |_| {
        let (began, go) = (began_inside.clone(), go_inside.clone());
        async move {
            began.notify_one();
            go.notified().await;
            Ok(Payload::NULL)
        }
    });
    let mut peer = subscribed(&mut broker).await;
    let runs = peer.task(1).await;
    let waits = peer.task(2).await;
    began.notified().await;
    stop.send(()).unwrap();
    // `drain` and the release of what waits, in whatever order.
    let mut drained = false;
    let mut released = false;
    while !(drained && released) {
        let request = peer.request().await;
        match &request.message {
            ClientMessage::Drain(_) => {
                // The barrier: one more was on its way.
                peer.task(3).await;
                peer.answer(&request, Done::PLAIN).await;
                drained = true;
            }
            ClientMessage::Release(release) => {
                assert_eq!(release.leases, LeaseList::from(waits));
                released = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(peer.request().await.message, ClientMessage::Release(_)), "the late one goes back too");
    go.notify_one();
    assert_eq!(leases(&peer.request().await.message), runs);
    bye(&mut peer).await;
    running.await.unwrap().unwrap();
    until(&mut events, |event| matches!(event, WorkerEvent::Draining)).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_longer_than_its_grace() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let began = Arc::new(Notify::new());
    let began_inside = began.clone();
    let (running, stop) = run(worker.auto_extend(false).grace(Duration::from_secs(5)), move |_| {
        let began = began_inside.clone();
        async move {
            began.notify_one();
            pending().await
        }
    });
    let mut peer = subscribed(&mut broker).await;
    peer.task(1).await;
    began.notified().await;
    let start = Instant::now();
    drop(stop);
    leaves(&mut peer).await;
    assert_eq!(start.elapsed().as_millis() / 10, 500);
    running.await.unwrap().unwrap();
    until(
        &mut events,
        |event| matches!(event, WorkerEvent::Error { message } if message.contains("1 tasks still ran")),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_drains_a_worker() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (running, _stop) = run(worker, |_| async { Ok(Payload::NULL) });
    let mut peer = subscribed(&mut broker).await;
    peer.say(GoingAway { reason: AwayReason::Operator, grace_ms: 30_000, reconnect_after_ms: 0 }).await;
    leaves(&mut peer).await;
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_subscription_is_tried_again_only_if_that_may_help() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (running, _stop) = run(worker, |_| async { Ok(Payload::NULL) });
    let mut peer = broker.welcomed().await;
    let subscribe = peer.request().await;
    peer.answer(&subscribe, Error::new(ErrorCode::Unavailable, "not yet")).await;
    let again = peer.request().await;
    assert!(matches!(again.message, ClientMessage::Subscribe(_)));
    until(&mut events, |event| matches!(event, WorkerEvent::Error { .. })).await;
    peer.answer(&again, Error::new(ErrorCode::Forbidden, "not yours")).await;
    assert!(matches!(peer.request().await.message, ClientMessage::Bye(_)));
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::Refused(error) if error.code == ErrorCode::Forbidden), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_worker_ends() {
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (running, _stop) = run(worker, |_| async { Ok(Payload::NULL) });
    let mut peer = subscribed(&mut broker).await;
    peer.close(4009, "replaced").await;
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::Closed(closed) if closed.code == Some(4009)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_long_is_a_failure_at_once() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (_running, _stop) = run(worker, |_| async { Ok(Payload::binary(vec![0; 2 << 20])) });
    let mut peer = subscribed(&mut broker).await;
    peer.task(1).await;
    let nack = peer.request().await;
    let ClientMessage::Nack(fields) = &nack.message else { panic!("{nack:?}") };
    assert!(fields.error.as_ref().unwrap().as_str().contains("1048576"));
    assert_eq!(fields.retry.map(|retry| retry.0), Some(false));
    until(&mut events, |event| matches!(event, WorkerEvent::Error { .. })).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_about_an_ack_is_told() {
    let (mut broker, options) = broker();
    let (worker, mut events) = worker(options);
    let (_running, _stop) = run(worker, |_| async { Ok(Payload::NULL) });
    let mut peer = subscribed(&mut broker).await;
    let lease = peer.task(1).await;
    peer.request().await;
    let error: ServerMessage =
        Error::new(ErrorCode::LeaseLost, "the lease is old").lease(&lease.into()).into();
    peer.say(error).await;
    until(&mut events, |event| matches!(event, WorkerEvent::Error { message } if message.contains("old")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_running_worker_breaks_its_handlers_off_and_leaves() {
    struct Dropped(Arc<Notify>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (mut broker, options) = broker();
    let (worker, _events) = worker(options);
    let (began, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (began_inside, dropped_inside) = (began.clone(), dropped.clone());
    let (running, _stop) = run(worker.auto_extend(false), move |_| {
        let guard = Dropped(dropped_inside.clone());
        let began = began_inside.clone();
        async move {
            began.notify_one();
            pending::<()>().await;
            drop(guard);
            Ok(Payload::NULL)
        }
    });
    let mut peer = subscribed(&mut broker).await;
    peer.task(1).await;
    began.notified().await;
    running.abort();
    dropped.notified().await;
    assert!(matches!(peer.request().await.message, ClientMessage::Bye(_)));
}
