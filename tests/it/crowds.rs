//! More connections than there is room for, and connections that come and go.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::http::Connection;
use crate::support::{Broker, PATIENCE, Ws, pause, until, upgrade_request};

/// What one who is too many hears, if he says this. He may be cut off while he speaks.
fn turned_away(broker: &Broker, said: &[u8]) {
    let began = Instant::now();
    let mut connection = Connection::open(broker.address);
    connection.send_if_open(said);
    let answer = connection.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.text().contains("connections"), "{answer:?}");
    connection.ends();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn one_too_many_is_told_so_and_room_returns() {
    let broker = Broker::with(&["--engine", "memory", "--connections-max", "20"]);
    let mut sockets: Vec<Ws> = (0..10).map(|_| broker.ws()).collect();
    let mut silent: Vec<Connection> = (0..10).map(|_| Connection::open(broker.address)).collect();
    // Accepted in their order, so that the last one's answer says that all are.
    silent[9].send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(silent[9].answer().status, 200);
    let get = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", broker.address);
    let upgrade = upgrade_request(broker.address, "/ws", "");
    let submit = b"POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    for said in [&b""[..], get.as_bytes(), upgrade.as_bytes(), submit, &[0xff; 70_000]] {
        turned_away(&broker, said);
    }
    // Those that are in are served.
    assert_eq!(sockets[0].gets("pong", json!({"type": "ping"}))["ref"], 1);
    let returned = |what: &str| {
        until(what, || {
            let mut connection = Connection::open(broker.address);
            connection.send_if_open(get.as_bytes());
            (connection.answer().status == 200).then_some(())
        });
    };
    silent.pop().unwrap().shut_down();
    returned("an HTTP connection's room");
    // Whoever asked has gone again, and leaves room for one.
    let late = until("room for a socket", || Ws::try_open(broker.address));
    turned_away(&broker, b"");
    // Sockets have their place until they end, in whatever way.
    let mut bad = sockets.pop().unwrap();
    bad.raw(&[0xff]);
    bad.closes(1002);
    returned("a broken socket's room");
    let refill = until("room for a socket", || Ws::try_open(broker.address));
    turned_away(&broker, b"");
    sockets.pop().unwrap().hang_up();
    returned("a dead socket's room");
    drop((late, refill));
    let queue = until("room", || Some(broker.get("/v1/queues/q")).filter(|answer| answer.status != 503));
    queue.is_error(404, "not_found");
    assert!(broker.metric("taskyard_refusals_total{reason=\"full\"}") >= 7);
}

/// What clients may take is not what the store needs: its next file once could not be opened, and the
/// broker ended as if its disk had failed.
#[test]
fn descriptors_for_the_store_are_not_given_to_clients() {
    let broker = Broker::with_descriptors(64, &["--segment-bytes", "65536"]);
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(broker.address).unwrap()).collect();
    // All of them have been answered, or are being served.
    turned_away(&broker, b"");
    // Several segments' worth.
    let payload = "x".repeat(20_000);
    for _ in 0..30 {
        ws.submit(json!({"queue": "q", "payload": payload}));
    }
    let before = broker.ticks();
    pause(Duration::from_millis(500));
    assert!(broker.ticks() - before < 15, "it is busy with nothing");
    drop(crowd);
    until("room for one more", || {
        let mut connection = Connection::open(broker.address);
        connection.send_if_open(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
        (connection.answer().status == 200).then_some(())
    });
    assert_eq!(broker.count("q", "queued"), 30);
}

#[test]
fn without_descriptors_nobody_is_accepted_and_nothing_spins() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    let limit = |number: usize| {
        let number = format!("--nofile={number}:");
        Command::new("prlimit").args(["--pid", &broker.pid().to_string(), &number]).status()
    };
    // Not installed everywhere.
    if !limit(broker.descriptors()).is_ok_and(|status| status.success()) {
        return;
    }
    let mut waiting: Vec<Connection> = (0..20).map(|_| Connection::open(broker.address)).collect();
    for connection in &mut waiting {
        connection.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    broker.logged("cannot accept connections");
    let before = broker.ticks();
    pause(Duration::from_secs(1));
    let took = broker.ticks() - before;
    assert!(took < 20, "{took} hundredths of a second of doing nothing");
    // Who is in is served.
    ws.submit(json!({"queue": "q"}));
    assert!(limit(1000).unwrap().success());
    for connection in &mut waiting {
        assert_eq!(connection.answer().status, 200);
    }
}

/// One round of connections that end at every stage.
fn flap(broker: &Broker, round: usize) {
    let request = upgrade_request(broker.address, "/ws", "");
    let mut open = Vec::new();
    for n in 0..300 {
        let mut connection = Connection::open(broker.address);
        match n % 6 {
            0 => {}
            1 => connection.send(&request.as_bytes()[..(round * 7) % request.len()]),
            2 => {
                connection.send(b"POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            }
            _ => {
                connection.send(request.as_bytes());
                if n % 6 != 3 {
                    assert_eq!(connection.head().status, 101);
                    let mut ws = Ws::over(connection);
                    if n % 6 == 4 {
                        ws.raw(&Ws::masked(0x82, &[b'x'; 3000])[..(round * 131) % 3000]);
                    } else {
                        ws.subscribe("held", 3);
                    }
                    open.push(Ok(ws));
                    continue;
                }
            }
        }
        open.push(Err(connection));
    }
    // Those that had something unread leave by a reset.
    drop(open);
}

#[test]
fn who_comes_and_goes_leaves_nothing_behind() {
    let broker = Broker::with(&["--engine", "memory"]);
    let mut ws = broker.ws();
    for n in 0..50 {
        ws.submit(json!({"queue": "held", "payload": n, "max_attempts": 100}));
    }
    let settled = || {
        until("all connections to end", || {
            // The scrape's own connection, and the one socket.
            (broker.metric("taskyard_connections") == 1).then_some(())
        });
    };
    for round in 0..3 {
        flap(&broker, round);
    }
    settled();
    let leased = || broker.count("held", "leased");
    until("the leases to return", || (leased() == 0).then_some(()));
    let (descriptors, memory) = (
        until("descriptors to be given back", || Some(broker.descriptors()).filter(|count| *count < 40)),
        broker.memory(),
    );
    for round in 3..20 {
        flap(&broker, round);
    }
    settled();
    until("the leases to return", || (leased() == 0).then_some(()));
    until("the descriptors to be given back", || (broker.descriptors() <= descriptors + 3).then_some(()));
    let after = broker.memory();
    assert!(after < memory + memory / 10 + (8 << 20), "{memory} bytes before, {after} after");
    let queue = broker.get("/v1/queues/held").json();
    let counts = queue["counts"].as_object().unwrap();
    assert_eq!(counts.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), 50, "{queue}");
    assert_eq!(queue["workers"], 0);
    ws.gets("pong", json!({"type": "ping"}));
}

/// Forty workers are sent 20 MB each, and read none of it.
#[test]
fn what_slow_readers_leave_unread_is_bounded() {
    const READERS: u64 = 40;
    let broker = Broker::in_memory();
    let mut readers: Vec<Ws> = (0..READERS)
        .map(|n| {
            let mut ws = broker.worker(&format!("slow-{n}"));
            ws.subscribe("all", 1024);
            ws
        })
        .collect();
    let before = broker.memory();
    let payload = "x".repeat(200_000);
    let mut producer = broker.ws();
    for _ in 0..100 {
        producer.submit(json!({"queue": "all", "payload": payload, "to": {"all": true}, "ttl_ms": 600_000}));
    }
    // Nobody else waits for them.
    let began = Instant::now();
    let mut quick = broker.worker("quick");
    quick.subscribe("other", 1);
    for _ in 0..20 {
        quick.submit(json!({"queue": "other"}));
        let task = quick.task();
        quick.ack(&task);
    }
    assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
    let grown = broker.memory().saturating_sub(before);
    // The payloads themselves, once, and the few frames that are being written to each.
    assert!(grown < 40_000_000 + READERS * 2_000_000, "{grown} bytes");
    until("all of them to be given up", || {
        (broker.metric("taskyard_closes_total{code=\"4130\"}") == READERS).then_some(())
    });
    assert_eq!(broker.count("all", "leased"), 0);
    drop(readers.pop());
}

/// What a sleeping thread had allocated and another freed stayed with the broker for ever.
#[test]
fn memory_goes_back_to_the_system_once_all_is_quiet() {
    let broker = Broker::in_memory();
    let before = broker.memory();
    let payload = "x".repeat(900 << 10);
    let mut producer = broker.ws();
    for _ in 0..200 {
        producer.submit(json!({"queue": "q", "payload": payload}));
    }
    assert!(broker.memory() > before + (150 << 20));
    assert_eq!(broker.post("/v1/queues/q/purge", &json!({})).json()["purged"], 200);
    until("the memory to go back", || (broker.memory() < before + (64 << 20)).then_some(()));
}
