//! Tokens that change while those who have them are connected.

use serde_json::{Value, json};

use super::{account, unknown_token, upgrade};
use crate::support::{ADMIN, Broker, Heard, Output, Tokens, Ws, until};

const WORKS: &[&str] = &["submit:*", "consume:*"];

/// A subscribed worker that holds a task; gives both.
fn holds_one(mut ws: Ws, queue: &str) -> (Ws, Value) {
    ws.subscribe(queue, 1);
    ws.submit(json!({"queue": queue}));
    let task = ws.task();
    (ws, task)
}

/// The next of `ws` is that task again.
fn takes_over(ws: &mut Ws, task: &Value) {
    let again = ws.task();
    assert_eq!((&again["task"], &again["redelivered"]), (&task["task"], &json!(true)));
    ws.ack(&again);
}

#[test]
fn a_revoked_token_ends_its_sockets_and_others_take_over() {
    let tokens = Tokens::new();
    let (a, b) = (tokens.create("a", WORKS), tokens.create("b", WORKS));
    let broker = tokens.broker(&[]);
    let (mut by_upgrade, first) = holds_one(broker.by(&a).worker("w"), "q");
    let mut by_hello = broker.ws();
    by_hello.gets("welcome", json!({"type": "hello", "token": a}));
    let (mut by_hello, second) = holds_one(by_hello, "p");
    let mut said_nothing = broker.by(&a).ws();
    let mut wordy = broker.by(&a).ws_at("/ws?queue=r");
    let mut other = broker.by(&b).worker("x");
    other.subscribe("q", 1);
    other.subscribe("p", 1);
    tokens.revoke("a");
    for ws in [&mut by_upgrade, &mut by_hello, &mut said_nothing, &mut wordy] {
        let reason = ws.closes(4001);
        assert!(reason.contains("revoked"), "{reason}");
    }
    for (queue, task) in [("q", &first), ("p", &second)] {
        let again = other.wait("the task", |message| message["queue"] == queue);
        assert_eq!((&again["task"], &again["redelivered"]), (&task["task"], &json!(true)));
        other.ack(&again);
    }
    broker.by(&a).get("/v1/queues").is_error(401, "unauthorized");
    broker.by(&a).upgrade("/ws").is_error(401, "unauthorized");
    let mut late = broker.ws();
    late.say(json!({"type": "hello", "id": 1, "token": a}));
    assert_eq!(late.next()["code"], "unauthorized");
    late.closes(4001);
    // The same name again is another token.
    let again = tokens.create("a", WORKS);
    until("the new token", || (broker.by(&again).get("/v1/queues").status != 401).then_some(()));
    broker.by(&a).get("/v1/queues").is_error(401, "unauthorized");
    other.gets("pong", json!({"type": "ping"}));
}

/// A socket that was let in and has said nothing could say its first word while it was being closed, and
/// was heard: its hello opened a session.
#[test]
fn after_the_close_nothing_is_heard() {
    let tokens = Tokens::new();
    let a = tokens.create("a", WORKS);
    let broker = tokens.broker(&[]);
    let admin = broker.admin();
    let task = admin.submit("waits", &json!({"max_attempts": 1}));
    let (mut silent, mut spoken) = (broker.by(&a).ws(), broker.by(&a).worker("w"));
    tokens.revoke("a");
    silent.closes(4001);
    spoken.closes(4001);
    // Its close frame is not answered; this is said instead.
    let words = json!([{"type": "subscribe", "queue": "waits"}, {"type": "submit", "queue": "new"}]);
    for ws in [&mut silent, &mut spoken] {
        ws.raw_if_open(&Ws::masked(0x81, words.to_string().as_bytes()));
    }
    until("the end of both", || {
        let metrics = admin.get("/metrics");
        metrics.text().contains("taskyard_connections 0\n").then_some(())
    });
    assert_eq!(admin.names("queues"), ["waits"]);
    assert_eq!(admin.state(&task), "queued");
}

#[test]
fn changed_rules_end_a_socket_that_may_come_back() {
    let tokens = Tokens::new();
    let (a, b) = (tokens.create("a", &["consume:q", "submit:q"]), tokens.create("b", WORKS));
    let broker = tokens.broker(&[]);
    let (mut ws, task) = holds_one(broker.by(&a).worker("w"), "q");
    let mut other = broker.by(&b).worker("w");
    tokens.replace("\"consume:q\"", "\"consume:other\"");
    let reason = ws.closes(4203);
    assert!(reason.contains("connect again"), "{reason}");
    let mut ws = broker.by(&a).worker("w");
    ws.refused("forbidden", json!({"type": "subscribe", "queue": "q"}));
    ws.subscribe("other", 1);
    other.subscribe("q", 1);
    takes_over(&mut other, &task);
    // A file that says the same in other words changes nothing.
    let text = std::fs::read_to_string(tokens.file()).unwrap();
    tokens.write(&format!(
        "# more\n{}",
        text.replace("[\"submit:q\", \"consume:other\"]", "['consume:other', 'submit:q']")
    ));
    // Limits are rules too. That this is seen means that the other was.
    tokens.write(&format!("{text}[token.limits]\nconnections = 7\n"));
    other.closes(4203);
    ws.submit(json!({"queue": "q"}));
}

#[test]
fn a_token_ends_by_itself() {
    let tokens = Tokens::new();
    let b = tokens.create("b", WORKS);
    let broker = tokens.broker(&[]);
    let ending = tokens.create_with("a", WORKS, &["--expires", "4s"]);
    until("the token", || (broker.by(&ending).get("/v1/queues").status != 401).then_some(()));
    let (mut ws, task) = holds_one(broker.by(&ending).worker("w"), "q");
    let mut by_hello = broker.ws();
    by_hello.gets("welcome", json!({"type": "hello", "token": ending}));
    let mut other = broker.by(&b).worker("x");
    other.subscribe("q", 1);
    let reason = ws.closes(4203);
    assert!(reason.contains("ended"), "{reason}");
    by_hello.closes(4203);
    takes_over(&mut other, &task);
    let unknown = broker.by(&unknown_token());
    assert_eq!(
        broker.by(&ending).get("/v1/queues").without_date(),
        unknown.get("/v1/queues").without_date(),
        "that it has ended is nobody's business"
    );
    broker.by(&ending).upgrade("/ws").is_error(401, "unauthorized");
    let mut late = broker.ws();
    late.say(json!({"type": "hello", "token": ending}));
    late.closes(4001);
}

#[test]
fn the_first_token_turns_authentication_on_for_good() {
    let broker = Broker::in_memory();
    let (mut ws, task) = holds_one(broker.worker("w"), "q");
    let (mut said_nothing, mut wordy) = (broker.ws(), Ws::open(broker.address, "/ws?queue=other", &[]));
    let anonymous = broker.submit("left", &json!({}));
    let file = broker.data().join("tokens.toml");
    let create = |name: &str| {
        let arguments = ["token", "create", name, "--allow", "manage:*", "--allow", "consume:*"];
        let output = Output::of(broker.command(&arguments).env("TASKYARD_DATA_DIR", broker.data()));
        assert_eq!(output.code, Some(0), "{output:?}");
        output.out.trim_end().to_owned()
    };
    let first = create("first");
    for ws in [&mut ws, &mut said_nothing, &mut wordy] {
        ws.closes(4001);
    }
    let closed = || {
        broker.get("/v1/queues").is_error(401, "unauthorized");
        broker.get("/metrics").is_error(401, "unauthorized");
        assert_eq!(upgrade(&broker, "/ws?queue=q", "").status, 401);
        let mut ws = broker.ws();
        ws.say(json!({"type": "subscribe", "queue": "q"}));
        ws.closes(4001);
    };
    closed();
    let by = broker.by(&first);
    assert_eq!(by.get("/v1/queues").status, 200);
    let mut worker = by.worker("w");
    worker.subscribe("q", 1);
    takes_over(&mut worker, &task);
    // What was there before is everybody's who may.
    assert_eq!(by.state(&anonymous), "queued");

    // A file that cannot be read takes nothing away, nor does one that is gone.
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}[[token]]\nname = \"half")).unwrap();
    broker.logged("what was known before stays in force");
    closed();
    assert_eq!(by.get("/v1/queues").status, 200);
    std::fs::remove_file(&file).unwrap();
    broker.logged("is gone");
    closed();
    assert_eq!(by.get("/v1/queues").status, 200);
    worker.gets("pong", json!({"type": "ping"}));

    // Another one in its place is what holds.
    let second = create("second");
    worker.closes(4001);
    assert_eq!(broker.by(&second).get("/v1/queues").status, 200);
    by.get("/v1/queues").is_error(401, "unauthorized");
    std::fs::write(&file, "").unwrap();
    until("the end of the last", || (broker.by(&second).get("/v1/queues").status == 401).then_some(()));
    closed();
}

#[test]
fn a_first_hello_meets_the_tokens_of_its_time() {
    let tokens = Tokens::new();
    let broker = tokens.broker(&[]);
    let mut ws = broker.ws();
    ws.gets("pong", json!({"type": "ping"}));
    let a = tokens.create("a", &["submit:none"]);
    until("the token", || (broker.by(&a).get("/v1/queues").status != 401).then_some(()));
    ws.gets("welcome", json!({"type": "hello", "token": a}));
    assert_eq!(account(&mut ws), "a");
    // One that is not known is of no account, and stays when that of an account ends.
    let mut unknown = broker.ws();
    tokens.revoke("a");
    ws.closes(4001);
    unknown.gets("welcome", json!({"type": "hello", "token": ADMIN}));
    ws.finish_writing();
    assert_eq!(ws.hear(), Heard::End);
}
