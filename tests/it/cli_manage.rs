//! The commands of operators, against a real broker.

use serde_json::{Value, json};

use crate::support::{Broker, Child, Output, Ws, until};

/// Runs a command that must succeed; gives what it printed.
#[track_caller]
fn done(broker: &Broker, line: &str) -> String {
    let output = Output::of(&mut broker.command(&line.split(' ').collect::<Vec<_>>()));
    assert_eq!(output.code, Some(0), "{line}: {output:?}");
    output.out
}

fn json_of(broker: &Broker, line: &str) -> Value {
    serde_json::from_str(&done(broker, line)).unwrap()
}

/// A task that is dead, with this error.
fn dead(broker: &Broker, ws: &mut Ws, error: &str) -> String {
    let task = broker.submit("q", &json!({"max_attempts": 1}));
    let lease = ws.task()["lease"].clone();
    ws.gets("settled", json!({"type": "nack", "lease": lease, "error": error}));
    assert_eq!(broker.task(&task)["state"], "dead");
    task
}

#[test]
fn queues_workers_and_tasks_are_shown() {
    let broker = Broker::in_memory();
    assert!(done(&broker, "queues").contains("no queues yet"));
    assert_eq!(done(&broker, "queues list -o id"), "");
    let task = broker.submit("emails", &json!({"priority": 9}));
    assert_eq!(done(&broker, "queues -o id"), "emails\n");
    assert_eq!(json_of(&broker, "queues -o json")["queues"][0]["counts"]["queued"], 1);
    let shown = done(&broker, "queues show emails");
    assert!(shown.contains("1 queued"), "{shown}");
    assert_eq!(json_of(&broker, "queues show emails -o json")["queue"], "emails");
    let shown = done(&broker, &format!("tasks show {task}"));
    assert!(shown.contains("queued") && shown.contains("1 of 5"), "{shown}");
    assert_eq!(json_of(&broker, &format!("tasks show {task} -o json"))["task"], *task);

    assert!(done(&broker, "workers").contains("no workers"));
    let mut ws = broker.worker("mailer");
    ws.subscribe("emails", 3);
    ws.task();
    assert_eq!(done(&broker, "workers -o id"), "mailer\n");
    let shown = done(&broker, "workers list");
    assert!(shown.contains("emails (1/3)") && shown.contains("ready"), "{shown}");

    let output = Output::of(&mut broker.command(&["queues", "show", "nowhere"]));
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("nowhere") && output.err.contains("not_found"), "{output:?}");
}

#[test]
fn a_queue_is_set_paused_and_purged() {
    let broker = Broker::start();
    let shown =
        done(&broker, "queues set q --max-tasks 2 --order aged:30s --assign least-loaded --default-ttl 1h");
    for words in ["Max tasks:", "aged:30s", "least_loaded", "1h"] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    let settings =
        json_of(&broker, "queues set q --unset default-ttl --rate 100 -o json")["settings"].clone();
    assert_eq!((&settings["max_tasks"], &settings["rate_per_s"]), (&json!(2), &json!(100.0)));
    assert_eq!(settings["defaults"]["ttl_ms"], Value::Null);

    done(&broker, "pause q --for 10m --reason provider-down");
    let task = broker.submit("q", &json!({}));
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let explained = done(&broker, &format!("explain {task}"));
    assert!(explained.contains("paused") && explained.contains("provider-down"), "{explained}");
    let table = done(&broker, "queues");
    assert!(table.contains("9.9 min more") && table.contains("provider-down"), "{table}");
    done(&broker, "unpause q");
    assert_eq!(ws.task()["task"], *task);

    broker.submit("q", &json!({}));
    assert_eq!(done(&broker, "queues purge q --yes"), "1 task cancelled\n");
    assert_eq!(broker.count("q", "cancelled"), 1);
}

#[test]
fn tasks_are_listed_and_cancelled() {
    let broker = Broker::start();
    let tasks: Vec<String> =
        ["a", "b", "b"].iter().map(|to| broker.submit("q", &json!({"headers": {"to": to}}))).collect();
    let later = broker.submit("q", &json!({"delay_ms": 600_000}));
    assert_eq!(done(&broker, "tasks list q --header to=b -o id"), format!("{}\n{}\n", tasks[1], tasks[2]));
    assert_eq!(done(&broker, "tasks list q --state scheduled -o id"), format!("{later}\n"));
    let page = json_of(&broker, "tasks list q --limit 3 -o json");
    assert_eq!(page["tasks"].as_array().unwrap().len(), 3);
    let rest = format!("tasks list q -o id --after {}", page["next"].as_str().unwrap());
    assert_eq!(done(&broker, &rest), format!("{later}\n"));

    assert!(done(&broker, &format!("tasks cancel {}", tasks[0])).contains("cancelled"));
    assert_eq!(broker.task(&tasks[0])["state"], "cancelled");
    assert_eq!(done(&broker, "tasks cancel --queue q --header to=b --yes"), "2 tasks cancelled\n");
    assert_eq!(done(&broker, "tasks cancel --queue q --all --yes"), "1 task cancelled\n");
    assert_eq!(broker.count("q", "cancelled"), 4);
}

#[test]
fn dead_letters_are_listed_redriven_and_deleted() {
    let broker = Broker::start();
    // One worker for all, and it says that it wants no more: a task must not go to one that is leaving.
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let [paper, ink, power] =
        ["out of paper", "out of ink", "no power"].map(|error| dead(&broker, &mut ws, error));
    ws.gets("ok", json!({"type": "unsubscribe", "queue": "q"}));
    let table = done(&broker, "dead list q");
    assert!(table.contains("out of paper") && table.contains(&ink), "{table}");
    assert_eq!(done(&broker, "dead list q --error-contains ink -o id"), format!("{ink}\n"));
    assert_eq!(done(&broker, &format!("dead redrive q {paper}")), "1 task redriven\n");
    assert_eq!(broker.task(&paper)["state"], "queued");
    assert_eq!(done(&broker, &format!("dead delete q {ink}")), "1 task deleted\n");
    assert_eq!(done(&broker, "dead delete q --all --yes"), "1 task deleted\n");
    assert_eq!(broker.get(&format!("/v1/tasks/{power}")).status, 404);
}

#[test]
fn workers_are_drained_and_removed() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    done(&broker, "drain w");
    assert_eq!(ws.next()["type"], "going_away");
    assert!(done(&broker, "workers").contains("draining"));
    done(&broker, "workers remove w");
    ws.closes(4010);
    let output = Output::of(&mut broker.command(&["workers", "remove", "w"]));
    assert!(output.code == Some(1) && output.err.contains("not_found"), "{output:?}");
}

#[test]
fn schedules_are_put_shown_and_deleted() {
    let broker = Broker::start();
    let put = ["schedules", "put", "nightly", "--queue", "q", "--cron", "0 3 * * *", "--tz", "Europe/Zurich"];
    let output = Output::of(broker.command(&put).args(["--payload", r#"{"a":1.0}"#, "--priority", "7"]));
    assert_eq!(output.code, Some(0), "{output:?}");
    done(&broker, "schedules put often --queue q --every 100ms --missed none");
    let table = done(&broker, "schedules");
    assert!(table.contains("0 3 * * * (Europe/Zurich)") && table.contains("every 100ms"), "{table}");
    let shown = done(&broker, "schedules show nightly");
    assert!(shown.contains("{\"a\":1.0}"), "{shown}");
    until("the schedule to fire", || {
        (json_of(&broker, "schedules show often -o json")["fired"].as_u64() > Some(0)).then_some(())
    });
    done(&broker, "schedules delete often");
    assert_eq!(done(&broker, "schedules -o id"), "nightly\n");
}

#[test]
fn a_watch_tells_a_task_s_whole_life() {
    let broker = Broker::start();
    let task = broker.submit("q", &json!({}));
    let watch = Child::of(&mut broker.command(&["watch", &task, "-o", "json"]));
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let lease = ws.task()["lease"].clone();
    ws.gets("settled", json!({"type": "ack", "lease": lease, "result": {"ok": 1.0}}));
    let output = watch.output();
    assert_eq!(output.code, Some(0), "{output:?}");
    let last = output.out.lines().last().unwrap();
    assert!(last.contains(r#""type":"finished""#) && last.contains(r#"{"ok":1.0}"#), "{output:?}");
    // Also afterwards.
    assert!(done(&broker, &format!("watch {task}")).contains("done"));
}

#[test]
fn a_room_hears_what_is_published() {
    let broker = Broker::in_memory();
    let mut ws = broker.worker("w");
    ws.gets("ok", json!({"type": "join", "room": "lobby"}));
    done(&broker, "publish lobby hello");
    let said = ws.next();
    assert_eq!((&said["type"], &said["payload"]), (&json!("room_message"), &json!("hello")));
}
