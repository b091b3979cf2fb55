//! Submits, answers, the window, and what happens to them when the connection ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskyard_client::proto::codec::Encoding;
use taskyard_client::proto::{
    AwayReason, ClientMessage, Confirm, Done, Error, ErrorCode, Event, Finished, GoingAway, Key, Payload,
    Ping, Pong, RoomMessage, RoomName, ServerMessage, Submit, TaskId, TaskState, WorkerName,
};
use taskyard_client::{
    Client, ClientEvent, ClientOptions, ConnectError, Reconnect, RequestError, SubmitError,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::fake::{Broker, Heard, Peer, accepted, broker, submit, welcome};

async fn connect(options: ClientOptions, broker: &mut Broker) -> (Client, Peer) {
    let (client, peer) = tokio::join!(Client::connect(options), broker.welcomed());
    (client.unwrap(), peer)
}

fn with_dedup(number: u64) -> Submit {
    Submit { dedup_id: Key::parse(&format!("d{number}")), ..submit(number) }
}

fn finished(task: u128, result: &str) -> Finished {
    Finished {
        task: TaskId(task),
        seq: 2,
        state: TaskState::Done,
        result: Payload::message_pack(result).unwrap(),
        error: None,
        attempts: 1,
        recipients: None,
        delivered: None,
        acked: None,
        failed: None,
    }
}

/// A hook, and what it was told.
fn events(options: ClientOptions) -> (ClientOptions, mpsc::UnboundedReceiver<ClientEvent>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (options.on_event(move |event| drop(sender.send(event))), receiver)
}

#[tokio::test(start_paused = true)]
async fn a_submit_is_answered() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let (mut broker, options) = broker();
        let options = options.encoding(encoding).worker(WorkerName::parse("me").unwrap()).batch(true);
        let welcomed = async {
            let mut peer = broker.upgraded().await;
            let hello = peer.request().await;
            let ClientMessage::Hello(fields) = &hello.message else { panic!("{hello:?}") };
            assert_eq!(fields.worker.as_ref().unwrap().as_str(), "me");
            assert!(fields.batch && fields.client.is_some());
            peer.answer(&hello, welcome()).await;
            peer
        };
        let (client, mut peer) = tokio::join!(Client::connect(options), welcomed);
        let client = client.unwrap();
        assert_eq!(client.welcome().unwrap().session.as_str(), "s1");
        let answering = async {
            let (id, given) = peer.submit().await;
            assert_eq!(given.queue, submit(7).queue);
            assert_eq!(given.payload.decode::<u64>().unwrap(), 7);
            peer.respond(id, accepted(1)).await;
        };
        let (answer, ()) = tokio::join!(client.submit(submit(7)), answering);
        assert_eq!(answer.unwrap(), accepted(1));
    }
}

#[tokio::test(start_paused = true)]
async fn answers_may_overtake_each_other_and_refusals_reach_their_submit() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options, &mut broker).await;
    let first = client.send(submit(1)).await.unwrap();
    let second = client.send(submit(2)).await.unwrap();
    let (first_id, _) = peer.submit().await;
    let (second_id, _) = peer.submit().await;
    peer.respond(second_id, accepted(2)).await;
    peer.respond(first_id, Error::new(ErrorCode::QueueFull, "the queue is full")).await;
    assert_eq!(second.await.unwrap(), accepted(2));
    match first.await.unwrap_err() {
        SubmitError::Refused(error) => assert_eq!(error.code, ErrorCode::QueueFull),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_hello_and_a_refused_upgrade_are_errors_of_connect() {
    let (mut broker, options) = broker();
    let refusing = async {
        let mut peer = broker.upgraded().await;
        let hello = peer.request().await;
        peer.answer(&hello, Error::new(ErrorCode::Conflict, "the name is taken")).await;
        peer.close(4009, "taken").await;
    };
    let (client, ()) = tokio::join!(Client::connect(options), refusing);
    let error = client.unwrap_err();
    assert!(matches!(&error, ConnectError::Rejected(error) if error.code == ErrorCode::Conflict), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_window_holds_submits_back() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options.window(2), &mut broker).await;
    let mut receipts = vec![client.send(submit(0)).await.unwrap(), client.send(submit(1)).await.unwrap()];
    // With the clock paused a timeout passes only once nothing else can happen.
    let third = tokio::time::timeout(Duration::from_secs(1), client.send(submit(2))).await;
    assert!(third.is_err(), "a window of two holds two");
    let (id, _) = peer.submit().await;
    peer.respond(id, accepted(1)).await;
    receipts.remove(0).await.unwrap();
    client.send(submit(3)).await.unwrap();
    peer.submit().await;
    assert_eq!(peer.submit().await.1.payload.decode::<u64>().unwrap(), 3, "what was given up was never sent");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_allows_fewer_submits_is_obeyed() {
    let (mut broker, options) = broker();
    let welcomed = async {
        let mut peer = broker.upgraded().await;
        let hello = peer.request().await;
        let mut welcome = welcome();
        welcome.limits.unconfirmed = 1;
        welcome.limits.message_bytes = 1000;
        peer.answer(&hello, welcome).await;
        peer
    };
    let (client, _peer) = tokio::join!(Client::connect(options), welcomed);
    let client = client.unwrap();
    let long = Submit { payload: Payload::binary(vec![0; 1000]), ..submit(0) };
    assert!(
        matches!(client.submit(long).await, Err(SubmitError::TooLarge(_))),
        "its place in the window is free again"
    );
    let _receipt = client.send(submit(0)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), client.send(submit(1))).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn messages_that_queue_up_share_a_frame() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options.batch(true), &mut broker).await;
    for number in 0..100 {
        client.send(submit(number)).await.unwrap();
    }
    let mut largest = 0;
    for number in 0..100 {
        let (_, given) = peer.submit().await;
        assert_eq!(given.payload.decode::<u64>().unwrap(), number);
        largest = largest.max(peer.latest_frame);
    }
    assert!(largest > 10, "the largest frame held {largest}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_over_the_limit_goes_out_one_by_one() {
    let (mut broker, options) = broker();
    let welcomed = async {
        let mut peer = broker.upgraded().await;
        let hello = peer.request().await;
        let mut welcome = welcome();
        welcome.limits.message_bytes = 1000;
        peer.answer(&hello, welcome).await;
        peer
    };
    let (client, mut peer) = tokio::join!(Client::connect(options.batch(true)), welcomed);
    let client = client.unwrap();
    for _ in 0..10 {
        client.send(Submit { payload: Payload::binary(vec![0; 500]), ..submit(0) }).await.unwrap();
    }
    for _ in 0..10 {
        peer.submit().await;
        assert_eq!(peer.latest_frame, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_submit_is_sent_again_only_with_a_dedup_id() {
    let (mut broker, options) = broker();
    let (options, mut events) = events(options);
    let (client, mut peer) = connect(options, &mut broker).await;
    let plain = client.send(submit(0)).await.unwrap();
    let first = client.send(with_dedup(1)).await.unwrap();
    let second = client.send(with_dedup(2)).await.unwrap();
    let question = tokio::spawn({
        let client = client.clone();
        async move { client.request(Ping {}).await }
    });
    for _ in 0..3 {
        peer.submit().await;
    }
    peer.request().await;
    peer.close(1012, "restart").await;
    let error = plain.await.unwrap_err();
    assert!(matches!(&error, SubmitError::Unknown(closed) if closed.code == Some(1012)), "{error}");
    assert!(error.to_string().contains("dedup_id"), "{error}");
    assert!(matches!(question.await.unwrap(), Err(RequestError::Disconnected(_))));
    // Not sent yet, so nothing is unknown about it: it waits.
    let third = client.send(submit(3)).await.unwrap();

    let mut peer = broker.welcomed().await;
    for (number, id) in [(1, Some("d1")), (2, Some("d2")), (3, None)] {
        let (reference, given) = peer.submit().await;
        assert_eq!(given.dedup_id.as_ref().map(Key::as_str), id);
        peer.respond(reference, accepted(number)).await;
    }
    assert_eq!(first.await.unwrap(), accepted(1));
    assert_eq!(second.await.unwrap(), accepted(2));
    assert_eq!(third.await.unwrap(), accepted(3));

    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(match event {
            ClientEvent::Connected { connection, .. } => format!("connected {connection}"),
            ClientEvent::Disconnected { connection, closed } => {
                format!("disconnected {connection} {:?}", closed.code)
            }
            ClientEvent::Retry { after } if after <= Duration::from_millis(100) => "retry".into(),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["connected 1", "disconnected 1 Some(1012)", "retry", "connected 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_code_that_says_stop_is_the_end() {
    for code in [1008, 4001, 4003, 4009, 4010] {
        let (mut broker, options) = broker();
        let (client, mut peer) = connect(options, &mut broker).await;
        let waiting = client.send(with_dedup(1)).await.unwrap();
        peer.submit().await;
        peer.close(code, "no").await;
        assert_eq!(peer.hear().await, Heard::Close(code), "a close is answered");
        assert_eq!(client.closed().await.code, Some(code));
        assert!(matches!(waiting.await, Err(SubmitError::Unknown(_))), "it was sent once");
        let error = client.submit(submit(1)).await.unwrap_err();
        assert!(matches!(&error, SubmitError::Closed(closed) if closed.code == Some(code)), "{error}");
        assert!(matches!(client.request(Ping {}).await, Err(RequestError::Closed(_))));
        assert!(client.welcome().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_says_now_reconnects_now() {
    let (mut broker, options) = broker();
    let (_client, mut peer) = connect(options, &mut broker).await;
    let before = Instant::now();
    peer.close(4201, "ping timeout").await;
    broker.welcomed().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_time_at_which_the_broker_wants_us_back_is_kept_and_submits_wait_for_it() {
    let (mut broker, options) = broker();
    let (options, mut events) = events(options);
    let (client, mut peer) = connect(options, &mut broker).await;
    let before = Instant::now();
    peer.say(GoingAway { reason: AwayReason::Restart, grace_ms: 30_000, reconnect_after_ms: 7_000 }).await;
    while !matches!(events.recv().await, Some(ClientEvent::Message { .. })) {}
    let held = client.send(submit(1)).await.unwrap();
    // Questions are served until the end.
    let (answer, ()) = tokio::join!(client.request(Ping {}), async {
        let ping = peer.request().await;
        assert!(matches!(ping.message, ClientMessage::Ping(_)), "the submit is held back: {ping:?}");
        peer.answer(&ping, Pong {}).await;
    });
    assert!(matches!(answer, Ok(ServerMessage::Pong(_))));
    peer.close(1012, "restart").await;
    let mut peer = broker.welcomed().await;
    assert_eq!(before.elapsed().as_millis() / 10, 700);
    let (id, _) = peer.submit().await;
    peer.respond(id, accepted(1)).await;
    held.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reconnecting_ends_when_its_time_is_over() {
    let (mut broker, options) = broker();
    let limit = Duration::from_secs(30);
    let (client, peer) = connect(options.reconnect(Reconnect::For(limit)), &mut broker).await;
    let waiting = client.send(submit(1));
    let lost = Instant::now();
    drop((peer, broker));
    let (receipt, closed) = tokio::join!(waiting, client.closed());
    assert!(receipt.is_err() || receipt.unwrap().await.is_err());
    assert_eq!(closed.code, None);
    assert!(
        lost.elapsed() >= limit && lost.elapsed() < limit + Duration::from_secs(11),
        "{:?}",
        lost.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_connect_is_tried_again_where_that_is_wanted() {
    let (mut broker, options) = broker();
    let connecting = tokio::spawn(Client::connect(options.wait_for_broker(true)));
    for _ in 0..5 {
        drop(broker.stream().await);
    }
    broker.welcomed().await;
    connecting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_end_survives_a_reconnect() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options, &mut broker).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.submit_and_wait(submit(1)).await }
    });
    let (id, given) = peer.submit().await;
    assert!(given.watch);
    peer.respond(id, accepted(9)).await;
    peer.close(1012, "").await;
    let mut peer = broker.welcomed().await;
    let watch = peer.request().await;
    assert!(matches!(&watch.message, ClientMessage::Watch(watch) if watch.task == TaskId(9)), "{watch:?}");
    peer.answer(&watch, Done::PLAIN).await;
    peer.say(finished(9, "result")).await;
    assert_eq!(waiting.await.unwrap().unwrap(), finished(9, "result"));

    let waiting = tokio::spawn(async move { client.submit_and_wait(submit(1)).await });
    let (id, _) = peer.submit().await;
    peer.respond(id, accepted(10)).await;
    peer.close(1012, "").await;
    let mut peer = broker.welcomed().await;
    let watch = peer.request().await;
    peer.answer(&watch, Error::new(ErrorCode::NotFound, "it finished long ago")).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, SubmitError::Forgotten { task: TaskId(10), .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_reaches_the_hook() {
    let (mut broker, options) = broker();
    let (options, mut events) = events(options);
    let (client, mut peer) = connect(options, &mut broker).await;
    let (told, ()) = tokio::join!(client.tell(Submit { confirm: Some(Confirm::None), ..submit(1) }), async {
        assert_eq!(peer.submit().await.0, None, "without an answer there is no id");
    });
    told.unwrap();
    let error = client.submit(Submit { confirm: Some(Confirm::None), ..submit(1) }).await.unwrap_err();
    assert!(matches!(error, SubmitError::NeverAnswered), "{error}");
    let from = WorkerName::parse("w2").unwrap();
    let room = RoomName::parse("lobby").unwrap();
    peer.say(RoomMessage { room, from, seq: 1, payload: Payload::NULL }).await;
    peer.say(Error::new(ErrorCode::RateLimited, "too many")).await;
    let mut types = Vec::new();
    while types.len() < 2 {
        if let Some(ClientEvent::Message { message, .. }) = events.recv().await {
            types.push(message.type_text());
        }
    }
    assert_eq!(types, ["room_message", "error"]);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_and_a_silent_broker_is_asked_then_left() {
    let (mut broker, options) = broker();
    let (options, mut events) = events(options);
    let (_client, mut peer) = connect(options, &mut broker).await;
    peer.raw(&crate::fake::frame(0x89, b"x")).await;
    assert_eq!(peer.hear().await, Heard::Pong(b"x".to_vec()));
    let start = Instant::now();
    assert_eq!(peer.hear().await, Heard::Ping(Vec::new()));
    assert_eq!(start.elapsed().as_millis() / 10, 3750, "one and a half of the broker's own interval");
    peer.raw(&crate::fake::frame(0x8A, &[])).await;
    assert_eq!(peer.hear().await, Heard::Ping(Vec::new()), "what was heard counts");
    let asked = Instant::now();
    loop {
        match events.recv().await.unwrap() {
            ClientEvent::Disconnected { closed, .. } => {
                assert!(closed.reason.contains("silent"), "{closed}");
                break;
            }
            _ => continue,
        }
    }
    assert_eq!(asked.elapsed().as_millis() / 10, 1010, "ten seconds, and a little if we stood still");
}

#[tokio::test(start_paused = true)]
async fn closing_sends_what_waits_and_says_bye() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options, &mut broker).await;
    let receipt = client.send(submit(1)).await.unwrap();
    let broker_side = async {
        let (id, _) = peer.submit().await;
        peer.respond(id, accepted(1)).await;
        assert!(matches!(peer.request().await.message, ClientMessage::Bye(_)));
        peer.close(1000, "").await;
        assert_eq!(peer.hear().await, Heard::Close(1000));
        assert_eq!(peer.hear().await, Heard::Gone);
    };
    tokio::join!(client.close(), broker_side);
    assert_eq!(receipt.await.unwrap(), accepted(1));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_is_a_close_and_receipts_live_on() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options, &mut broker).await;
    let receipt = client.send(submit(1)).await.unwrap();
    drop(client);
    let (id, _) = peer.submit().await;
    peer.respond(id, accepted(1)).await;
    assert_eq!(receipt.await.unwrap(), accepted(1));
    assert!(matches!(peer.request().await.message, ClientMessage::Bye(_)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_a_reset_is_not_lost() {
    let (mut broker, options) = broker();
    let (client, mut peer) = connect(options, &mut broker).await;
    let receipt = client.send(submit(1)).await.unwrap();
    let (id, _) = peer.submit().await;
    peer.respond(id, accepted(1)).await;
    peer.say(Event {
        task: TaskId(1),
        seq: 1,
        state: TaskState::Queued,
        started: false,
        worker: None,
        attempt: 1,
        percent: None,
        data: Payload::NULL,
        error: None,
    })
    .await;
    drop(peer);
    assert_eq!(receipt.await.unwrap(), accepted(1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_broker_is_read_while_we_write() {
    // Both directions are full of more than any pipe holds: who only writes, waits for ever.
    let (mut broker, options) = broker();
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    let options = options.on_event(move |event| {
        if let ClientEvent::Message { .. } = event {
            *counted.lock().unwrap() += 1;
        }
    });
    let (client, mut peer) = connect(options, &mut broker).await;
    let mut receipts = Vec::new();
    for number in 0..16 {
        receipts.push(
            client
                .send(Submit { payload: Payload::binary(vec![0; 900_000]), ..submit(number) })
                .await
                .unwrap(),
        );
    }
    let room = RoomName::parse("lobby").unwrap();
    let from = WorkerName::parse("w2").unwrap();
    for seq in 0..100 {
        let payload = Payload::binary(vec![0; 60_000]);
        peer.say(RoomMessage { room: room.clone(), from: from.clone(), seq, payload }).await;
    }
    for receipt in receipts {
        let (id, _) = peer.submit().await;
        peer.respond(id, accepted(1)).await;
        receipt.await.unwrap();
    }
    assert_eq!(*count.lock().unwrap(), 100);
}
