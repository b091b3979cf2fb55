//! What a token allows, by every way that leads to a queue or a task.

use serde_json::{Value, json};

use crate::support::{Broker, Tokens, Ws, http};

const QUEUES: [&str; 3] = ["mail", "mail.big", "other"];
const NO_TASK: &str = "0198c0de-0000-7000-8000-000000000000";
const NO_LEASE: &str = "AAAAAAAAAAcAAAADAAAAAA";

fn codes(answers: &Value) -> Vec<&str> {
    answers.as_array().unwrap().iter().map(|answer| answer["code"].as_str().unwrap_or("-")).collect()
}

/// Everything that can be tried, against what the rule says: nothing more, nothing less.
fn obeys(broker: &Broker, token: &str, tasks: &[String], rule: &str) {
    let (action, names) = rule.split_once(':').unwrap();
    let covers =
        |queue: &str| names.strip_suffix('*').map_or(queue == names, |prefix| queue.starts_with(prefix));
    let may = |actions: &[&str], queue: &str| actions.contains(&action) && covers(queue);
    let by = broker.by(token);
    let mut ws = by.worker("w");
    for (queue, task) in QUEUES.iter().zip(tasks) {
        let what = format!("{rule} on {queue}");
        let submits = may(&["submit"], queue);
        let consumes = may(&["consume"], queue);
        let observes = may(&["observe", "manage"], queue);
        let code = |answer: Value| answer["code"].as_str().unwrap_or("-").to_owned();
        let expected = |allowed: bool, code: &'static str| if allowed { "-" } else { code };

        let submit = json!({"type": "submit", "queue": queue, "delay_ms": 60_000});
        assert_eq!(code(ws.ask(submit.clone())), expected(submits, "forbidden"), "{what}");
        // Nor is there a way past it by what else a submit says.
        let mut fails = submit;
        fails["to"] = json!({"worker": "nobody", "if_absent": "fail"});
        assert_eq!(code(ws.ask(fails)), if submits { "not_found" } else { "forbidden" }, "{what}");
        let subscribed = ws.ask(json!({"type": "subscribe", "queue": queue, "credit": 0}));
        assert_eq!(code(subscribed), expected(consumes, "forbidden"), "{what}");
        let watch = ws.ask(json!({"type": "watch", "task": task}));
        assert_eq!(code(watch), expected(submits || observes, "not_found"), "{what}");

        let posted = by.post(&format!("/v1/queues/{queue}/tasks"), &json!({"delay_ms": 60_000}));
        assert_eq!(posted.status, if submits { 201 } else { 403 }, "{what}");
        let posted = by.post(&format!("/v1/queues/{queue}/tasks?wait_ms=1"), &json!({"delay_ms": 60_000}));
        assert_eq!(posted.status, if submits { 202 } else { 403 }, "{what}");
        for wait in ["", "?wait_ms=0", "?wait_ms=1"] {
            let status = by.get(&format!("/v1/tasks/{task}{wait}")).status;
            let seen = if wait.is_empty() { 200 } else { 202 };
            assert_eq!(status, if submits || observes { seen } else { 404 }, "{what}");
        }
        assert_eq!(by.get(&format!("/v1/queues/{queue}")).status, if observes { 200 } else { 403 }, "{what}");
        let status = by.upgrade(&format!("/ws?queue={queue}&credit=0")).status;
        assert_eq!(status, if consumes { 101 } else { 403 }, "{what}");
    }
    let bulk: Vec<Value> = QUEUES.iter().map(|queue| json!({"queue": queue, "delay_ms": 60_000})).collect();
    let answers = by.post("/v1/tasks", &json!(bulk)).json();
    let expected = QUEUES.map(|queue| if may(&["submit"], queue) { "-" } else { "forbidden" }).to_vec();
    assert_eq!(codes(&answers), expected, "{rule}");
    let observed: Vec<&str> = QUEUES.into_iter().filter(|queue| may(&["observe", "manage"], queue)).collect();
    assert_eq!(by.names("queues"), observed, "{rule}");
    let workers: Vec<String> = observed.iter().map(|queue| format!("worker-of-{queue}")).collect();
    let mut seen = by.names("workers");
    seen.retain(|name| name != "w");
    assert_eq!(seen, workers, "{rule}");
    let every = names == "*" && matches!(action, "observe" | "manage");
    assert_eq!(by.get("/metrics").status, if every { 200 } else { 403 }, "{rule}");

    // What is not allowed made nothing, and what is, on another name, neither.
    for queue in ["new", "mailbox-", "Mail", "mai"] {
        if covers(queue) {
            continue;
        }
        for error in [
            ws.ask(json!({"type": "submit", "queue": queue})),
            ws.ask(json!({"type": "subscribe", "queue": queue})),
            by.post(&format!("/v1/queues/{queue}/tasks"), &json!({})).is_error(403, "forbidden"),
            by.get(&format!("/v1/queues/{queue}")).is_error(403, "forbidden"),
            by.upgrade(&format!("/ws?queue={queue}")).is_error(403, "forbidden"),
            by.post("/v1/tasks", &json!([{"queue": queue}])).json()[0].clone(),
        ] {
            assert_eq!(
                (&error["code"], &error["retryable"]),
                (&json!("forbidden"), &json!(false)),
                "{error}"
            );
        }
        broker.admin().get(&format!("/v1/queues/{queue}")).is_error(404, "not_found");
    }
}

#[test]
fn a_rule_allows_what_it_says_and_no_more() {
    let tokens = Tokens::new();
    let rules: Vec<String> = ["submit", "consume", "observe", "manage"]
        .iter()
        .flat_map(|action| ["mail", "mail*", "mail.*", "*"].map(|names| format!("{action}:{names}")))
        .collect();
    let made: Vec<String> =
        rules.iter().enumerate().map(|(nth, rule)| tokens.create(&format!("t{nth}"), &[rule])).collect();
    let broker = tokens.broker(&[]);
    let admin = broker.admin();
    let tasks = QUEUES.map(|queue| admin.submit(queue, &json!({"delay_ms": 60_000})));
    let _workers = QUEUES.map(|queue| {
        let mut ws = admin.worker(&format!("worker-of-{queue}"));
        ws.subscribe(queue, 0);
        ws
    });
    let before = broker.refusals("forbidden");
    for (rule, token) in rules.iter().zip(&made) {
        obeys(&broker, token, &tasks, rule);
    }
    assert!(broker.refusals("forbidden") > before + 100);
}

/// Two who share a broker, and know nothing of each other.
struct Tenants {
    _tokens: Tokens,
    broker: Broker,
    north: String,
    south: String,
}

impl Tenants {
    fn new() -> Tenants {
        let tokens = Tokens::new();
        let all = |name: &str| {
            let rules = ["submit", "consume", "manage"].map(|action| format!("{action}:{name}*"));
            tokens.create(name, &rules.each_ref().map(String::as_str))
        };
        let (north, south) = (all("north"), all("south"));
        let broker = tokens.broker(&[]);
        Tenants { _tokens: tokens, broker, north, south }
    }
}

/// An answer with the name of what it is about taken out.
fn about(mut answer: http::Answer, name: &str) -> http::Answer {
    answer = answer.without_date();
    answer.headers.retain(|(key, _)| key != "content-length");
    answer.body = String::from_utf8(answer.body).unwrap().replace(name, "…").into_bytes();
    answer
}

fn said(ws: &mut Ws, message: &Value, name: &str) -> String {
    let mut answer = ws.ask(message.clone());
    answer.as_object_mut().unwrap().remove("ref");
    answer.to_string().replace(name, "…")
}

#[test]
fn a_task_of_somebody_else_is_as_one_that_never_was() {
    let Tenants { _tokens, broker, north, south } = Tenants::new();
    let theirs = broker.by(&south);
    let mut worker = theirs.ws();
    worker.subscribe("south", 3);
    for _ in 0..3 {
        worker.submit(json!({"queue": "south"}));
    }
    let (done, dead, leased) = (worker.task(), worker.task(), worker.task());
    worker.ack(&done);
    worker.gets("settled", json!({"type": "nack", "lease": dead["lease"], "retry": false}));
    let queued = theirs.submit("south-2", &json!({}));
    let scheduled = theirs.submit("south-2", &json!({"delay_ms": 60_000}));
    let id = |task: &Value| task["task"].as_str().unwrap().to_owned();

    let ours = broker.by(&north);
    let mut ws = ours.ws();
    for task in [id(&done), id(&dead), id(&leased), queued, scheduled] {
        assert_eq!(theirs.get(&format!("/v1/tasks/{task}")).status, 200);
        for wait in ["", "?wait_ms=0", "?wait_ms=1", "?wait_ms=60000", "?wait_ms=x"] {
            let [absent, foreign] =
                [NO_TASK, &task].map(|task| about(ours.get(&format!("/v1/tasks/{task}{wait}")), task));
            assert_eq!(foreign, absent, "{wait}");
            assert_eq!(foreign.status, if wait.ends_with('x') { 400 } else { 404 });
        }
        for message in [
            json!({"type": "watch"}),
            json!({"type": "watch", "from_seq": 0}),
            json!({"type": "watch", "from_seq": 1}),
            json!({"type": "unwatch"}),
            json!({"type": "cancel"}),
        ] {
            let [absent, foreign] = [NO_TASK, &task].map(|task| {
                let mut message = message.clone();
                message["task"] = json!(task);
                said(&mut ws, &message, task)
            });
            assert_eq!(foreign, absent);
        }
        for (method, path) in [("DELETE", ""), ("GET", "/events"), ("GET", "/explain")] {
            let headers = format!("Authorization: Bearer {north}\r\n");
            let [absent, foreign] = [NO_TASK, &task].map(|task| {
                let path = format!("/v1/tasks/{task}{path}");
                about(http::send(broker.address, method, &path, &headers, b""), task)
            });
            assert_eq!(foreign, absent);
        }
    }
    // Nothing comes of having tried.
    worker.ack(&leased);
    let heard = ws.so_far();
    assert!(heard.iter().all(|message| message["type"] == "welcome"), "events of somebody else's: {heard:?}");
}

#[test]
fn a_queue_of_somebody_else_is_as_one_that_never_was() {
    let Tenants { _tokens, broker, north, south } = Tenants::new();
    let mut worker = broker.by(&south).worker("w");
    worker.subscribe("south", 1);
    let ours = broker.by(&north);
    let mut ws = ours.worker("w");
    let (there, nowhere) = ("south", "south-west");
    let mut same = |message: Value| {
        let [foreign, absent] = [there, nowhere].map(|queue| {
            let mut message = message.clone();
            message["queue"] = json!(queue);
            said(&mut ws, &message, queue)
        });
        assert_eq!(foreign, absent, "{message}");
    };
    same(json!({"type": "subscribe"}));
    same(json!({"type": "credit", "credit": 1}));
    same(json!({"type": "unsubscribe"}));
    same(json!({"type": "submit"}));
    // Whether a worker of theirs is there.
    for worker in ["w", "nobody"] {
        for if_absent in ["fail", "wait", "any"] {
            same(json!({"type": "submit", "to": {"worker": worker, "if_absent": if_absent}}));
        }
    }
    let submit =
        |queue: &str, body: &Value| about(ours.post(&format!("/v1/queues/{queue}/tasks"), body), queue);
    for body in [json!({}), json!({"to": {"worker": "w", "if_absent": "fail"}}), json!({"priority": 77})] {
        assert_eq!(submit(there, &body), submit(nowhere, &body));
    }
    let look = |queue: &str| about(ours.get(&format!("/v1/queues/{queue}")), queue);
    assert_eq!(look(there), look(nowhere));
    let work = |queue: &str| about(ours.upgrade(&format!("/ws?queue={queue}")), queue);
    assert_eq!(work(there), work(nowhere));
    assert_eq!((ours.names("queues"), ours.names("workers")), (vec![], vec![]));
    assert_eq!(broker.admin().names("queues"), ["south"]);
    assert_eq!(broker.by(&south).get("/v1/queues/south").json()["counts"]["queued"], 0);
}

#[test]
fn a_lease_of_somebody_else_is_as_good_as_noise() {
    let Tenants { _tokens, broker, north, south } = Tenants::new();
    let mut worker = broker.by(&south).worker("w");
    worker.subscribe("south", 2);
    let watched = worker.submit(json!({"queue": "south", "watch": true}));
    let task = worker.task();
    let lease = task["lease"].as_str().unwrap();
    let mut ws = broker.by(&north).worker("w");
    ws.subscribe("north", 1);
    for message in [
        json!({"type": "ack", "result": 1}),
        json!({"type": "nack"}),
        json!({"type": "nack", "retry": false}),
        json!({"type": "release"}),
        json!({"type": "extend", "ack_timeout_ms": 100}),
        json!({"type": "start"}),
        json!({"type": "progress", "percent": 1}),
        json!({"type": "cancelled"}),
    ] {
        let [foreign, noise] = [lease, NO_LEASE].map(|lease| {
            let mut message = message.clone();
            message["lease"] = json!(lease);
            said(&mut ws, &message, lease)
        });
        assert_eq!(foreign, noise);
        assert!(foreign.contains("lease_lost"), "{foreign}");
    }
    let many = |lease: &str| json!({"type": "ack", "leases": [lease, lease]});
    assert_eq!(said(&mut ws, &many(lease), lease), said(&mut ws, &many(NO_LEASE), NO_LEASE));
    // In the words of a URL, too.
    let mut wordy = broker.by(&north).ws_at("/ws?queue=north&worker=wordy");
    let mut answers = [lease, NO_LEASE].map(|lease| {
        wordy.text(&format!("ack {lease}"));
        wordy.wait_for("error").to_string().replace(lease, "…")
    });
    answers.sort_unstable();
    assert_eq!(answers[0], answers[1]);
    // Nothing has happened to it.
    let events: Vec<Value> =
        worker.so_far().into_iter().filter(|message| message["type"] == "event").collect();
    assert_eq!(events.last().unwrap()["state"], "leased", "{events:?}");
    assert_eq!(events.last().unwrap()["started"], false, "{events:?}");
    worker.ack(&task);
    assert_eq!(broker.by(&south).state(&watched), "done");
}

#[test]
fn of_a_worker_on_both_sides_each_sees_its_own() {
    let Tenants { _tokens, broker, north, south } = Tenants::new();
    let mut shared = broker.admin().worker("shared");
    shared.subscribe("north", 9);
    shared.subscribe("south", 9);
    for queue in ["north", "south", "south"] {
        broker.admin().submit(queue, &json!({}));
        shared.task();
    }
    for (token, queue, held) in [(&north, "north", 1), (&south, "south", 2)] {
        let workers = broker.by(token).get("/v1/workers").json()["workers"].clone();
        assert_eq!(workers.as_array().unwrap().len(), 1, "{workers}");
        let subscriptions = workers[0]["subscriptions"].as_array().unwrap();
        assert_eq!((subscriptions.len(), &subscriptions[0]["queue"]), (1, &json!(queue)), "{workers}");
        assert_eq!(workers[0]["in_flight"], held, "{workers}");
    }
    assert_eq!(broker.admin().get("/v1/workers").json()["workers"][0]["in_flight"], 3);
}

#[test]
fn what_comes_back_goes_to_nobody_who_may_not_have_it() {
    let Tenants { _tokens, broker, north, south } = Tenants::new();
    // By every name that tasks go by it would be the one.
    let mut thief = broker.by(&north).ws();
    thief.gets("welcome", json!({"type": "hello", "worker": "w", "groups": ["g"]}));
    thief.subscribe("north", 1024);
    thief.refused("forbidden", json!({"type": "subscribe", "queue": "south", "credit": 1024}));
    let theirs = broker.by(&south);
    let mut first = theirs.ws();
    first.gets("welcome", json!({"type": "hello", "worker": "w", "groups": ["g"]}));
    first.subscribe("south", 9);
    for to in
        [json!({}), json!({"worker": "w"}), json!({"worker": "w", "if_absent": "any"}), json!({"group": "g"})]
    {
        first.submit(json!({"queue": "south", "to": to, "backoff": {"initial_ms": 0}}));
    }
    for verb in ["nack", "release"] {
        for _ in 0..4 {
            let task = first.task();
            first.gets("settled", json!({"type": verb, "lease": task["lease"]}));
        }
    }
    for _ in 0..4 {
        first.task();
    }
    // And by the end of its worker.
    first.hang_up();
    let mut second = theirs.ws();
    second.gets("welcome", json!({"type": "hello", "worker": "w", "groups": ["g"]}));
    second.subscribe("south", 9);
    for _ in 0..4 {
        assert_eq!(second.task()["redelivered"], true);
    }
    assert_eq!(thief.so_far(), Vec::<Value>::new());
}

#[test]
fn a_worker_name_is_an_accounts_own() {
    let tokens = Tokens::new();
    let [a, b] = ["a", "b"]
        .map(|name| tokens.create(name, &[&format!("consume:{name}"), "consume:shared", "submit:*"]));
    let broker = tokens.broker(&[]);
    let (mut of_a, mut of_b) = (broker.by(&a).worker("w"), broker.by(&b).worker("w"));
    of_a.subscribe("a", 1);
    of_b.subscribe("b", 1);
    for (queue, ws) in [("a", &mut of_a), ("b", &mut of_b)] {
        ws.submit(json!({"queue": queue, "to": {"worker": "w", "if_absent": "fail"}}));
        let task = ws.task();
        ws.ack(&task);
    }
    assert_eq!(broker.admin().names("workers"), ["w", "w"]);

    // On a queue of both it can be the name of one.
    of_a.subscribe("shared", 1);
    of_b.refused("conflict", json!({"type": "subscribe", "queue": "shared"}));
    of_a.subscribe("shared", 2);
    of_b.submit(json!({"queue": "shared", "to": {"worker": "w", "if_absent": "fail"}}));
    let task = of_a.task();
    of_a.ack(&task);
    let mut wordy = broker.by(&b).ws_at("/ws?queue=shared&worker=x");
    assert_eq!([wordy.next()["type"].clone(), wordy.next()["type"].clone()], ["welcome", "subscribed"]);

    // The name is taken over within an account alone.
    let mut of_a_too = broker.by(&a).worker("w");
    of_a.closes(4009);
    assert_eq!(of_b.gets("pong", json!({"type": "ping"}))["type"], "pong");
    of_b.subscribe("shared", 1);
    of_a_too.refused("conflict", json!({"type": "subscribe", "queue": "shared"}));
    let mut admin = broker.admin().worker("w");
    admin.subscribe("elsewhere", 1);
    of_a_too.subscribe("a", 1);
    of_b.gets("ok", json!({"type": "unsubscribe", "queue": "shared"}));
    of_a_too.subscribe("shared", 1);
}
