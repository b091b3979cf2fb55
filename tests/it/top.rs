//! `taskyard top` where it is no terminal, and `taskyard bench`.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Broker, Child, Output, Tokens, command, until};

fn top(broker: &Broker, arguments: &[&str]) -> Output {
    Output::of(&mut broker.command(&[&["top", "--every", "250ms"], arguments].concat()))
}

#[test]
fn one_sample_is_printed_where_there_is_no_terminal() {
    let broker = Broker::start();
    for _ in 0..3 {
        broker.submit("emails", &json!({}));
    }
    broker.submit("later", &json!({"delay_ms": 3_600_000}));
    broker.post("/v1/queues/later/pause", &json!({}));
    for arguments in [&[][..], &["--once"]] {
        let output = top(&broker, arguments);
        assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{output:?}");
        assert!(!output.out.contains('\u{1b}'), "{output:?}");
        let line = |begin: &str| {
            let found = output.out.lines().find(|line| line.starts_with(begin));
            found.unwrap_or_else(|| panic!("{begin}: {output:?}")).to_owned()
        };
        assert!(line("taskyard ").contains("embedded"), "{output:?}");
        assert!(line("3 queued").contains("1 scheduled"), "{output:?}");
        assert!(line("p99").contains("records/sync"), "{output:?}");
        let emails = line("emails");
        assert_eq!(emails.split_whitespace().nth(1), Some("3"), "{emails}");
        assert!(emails.contains("none"), "nobody works there: {emails}");
        line("later (paused)");
    }
    let output = top(&broker, &["--once", "--json", "later"]);
    assert_eq!((output.code, output.out.lines().count()), (Some(0), 1), "{output:?}");
    let sample: Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!((&sample["queues_total"], &sample["totals"]["counts"]["queued"]), (&json!(2), &json!(3)));
    let queues = sample["queues"].as_array().unwrap();
    assert_eq!((queues.len(), &queues[0]["queue"], &queues[0]["paused"]), (1, &json!("later"), &json!(true)));
    assert_eq!(queues[0]["rates"]["accepted"], 0.0);
    assert!(sample["latency_us"].is_object() && sample["totals"]["rates"].is_object(), "{sample}");
}

/// The lines go on over a restart of the broker, and end in order.
#[test]
fn samples_come_as_lines_over_a_restart() {
    let mut broker = Broker::start();
    broker.submit("emails", &json!({}));
    let file = broker.scratch().join("samples");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" top --json --every 250ms > \"$1\"", env!("CARGO_BIN_EXE_taskyard")]);
    shell.arg(&file).env("TASKYARD_URL", broker.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let top = Child::of(&mut shell);
    let lines = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        // The last may be half of one.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    until("two samples", || (lines().len() >= 2).then_some(()));
    broker.kill();
    let before = lines().len();
    broker.start_again_at_its_port();
    until("two more", || (lines().len() >= before + 2).then_some(()));
    top.signal("TERM");
    let output = top.output();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.err.contains("the connection was lost"), "{output:?}");
    let started = |sample: &Value| sample["at_ms"].as_u64().unwrap() - sample["uptime_ms"].as_u64().unwrap();
    let started: Vec<u64> = lines().iter().map(started).collect();
    assert!(started[started.len() - 1] > started[0] + 100, "of two processes: {started:?}");
    for sample in lines() {
        assert_eq!(sample["totals"]["counts"]["queued"], 1, "{sample}");
    }
}

#[test]
fn who_may_not_observe_is_told_so_and_who_may_sees_what_is_theirs() {
    let tokens = Tokens::new();
    let submits = tokens.create("submits", &["submit:emails"]);
    let observes = tokens.create("observes", &["observe:emails"]);
    let broker = tokens.broker(&[]);
    for queue in ["emails", "other"] {
        broker.admin().submit(queue, &json!({}));
    }
    let by = |token: &str, arguments: &[&str]| {
        let mut command = broker.command(&[&["top", "--every", "250ms", "--once"], arguments].concat());
        Output::of(command.env("TASKYARD_TOKEN", token))
    };
    let output = by(&submits, &[]);
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.err.contains("forbidden") && output.err.contains("observe"), "{output:?}");
    let output = by(&observes, &[]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.out.contains("emails") && !output.out.contains("other"), "{output:?}");
    assert!(!output.out.contains("p99"), "latencies are of all queues: {output:?}");
}

#[test]
fn a_broker_that_is_not_there_is_told_at_once() {
    let output = Output::of(&mut command(&["top", "--url", "http://127.0.0.1:1"]));
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("no broker answers at http://127.0.0.1:1"), "{output:?}");
    let output = Output::of(&mut command(&["top", "--every", "1ms"]));
    assert_eq!(output.code, Some(2), "{output:?}");
}

fn bench(command: &mut Command) -> Value {
    let output = Output::of(command);
    assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{output:?}");
    serde_json::from_str(&output.out).unwrap()
}

#[test]
fn a_bench_of_its_own_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().to_str().unwrap();
    let found = bench(&mut command(&["bench", "--time", "1s", "--json", "--data-dir", directory]));
    assert_eq!((&found["own_broker"], &found["payload_bytes"]), (&json!(true), &json!(256)));
    for number in [&found["tasks_per_s"], &found["disk_sync"]["p50_us"], &found["submit_to_worker"]["p99_us"]]
    {
        assert!(number.as_f64().unwrap() > 0.0, "{found}");
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    let output = Output::of(&mut command(&["bench", "--data-dir", "/nowhere/at/all"]));
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.err.contains("--data-dir"), "{output:?}");
}

#[test]
fn a_bench_of_a_broker_leaves_its_queue_empty() {
    let broker = Broker::start();
    let found = bench(&mut broker.command(&["bench", "--time", "1s", "--json", "--url", &broker.url()]));
    assert_eq!((&found["own_broker"], &found["disk_sync"]), (&json!(false), &Value::Null));
    let queue = broker.get("/v1/queues/taskyard-bench").json();
    let counts = &queue["counts"];
    for state in ["queued", "leased", "scheduled", "retrying", "dead", "expired", "cancelled"] {
        assert_eq!(counts[state], 0, "{state} of {queue}");
    }
    assert!(counts["done"].as_u64().unwrap() > 100, "{queue}");
    assert_eq!(queue["workers"], 0);
    // What somebody else has there is not touched.
    broker.submit("taskyard-bench", &json!({}));
    let output = Output::of(&mut broker.command(&["bench", "--url", &broker.url()]));
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("is in use, with 1 task and 0 workers"), "{output:?}");
    assert_eq!(broker.count("taskyard-bench", "queued"), 1);
}

#[test]
fn a_bench_that_is_interrupted_leaves_nothing_behind_either() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().to_str().unwrap();
    let bench = Child::of(&mut command(&["bench", "--time", "60s", "--data-dir", directory]));
    until("it to begin", || std::fs::read_dir(place.path()).unwrap().next().map(|_| ()));
    bench.signal("INT");
    let output = bench.output();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("interrupted"), "{output:?}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    let broker = Broker::start();
    let mut command = broker.command(&["bench", "--time", "1s", "--url", &broker.url()]);
    let bench = Child::of(&mut command);
    // So many only at full speed, where most are under way.
    until("it to be at full speed", || {
        let answer = broker.get("/v1/queues/taskyard-bench");
        (answer.status == 200 && answer.json()["counts"]["done"].as_u64()? > 1000).then_some(())
    });
    bench.signal("TERM");
    let output = bench.output();
    assert_eq!(output.code, Some(1), "{output:?}");
    for state in ["queued", "leased", "scheduled", "retrying", "dead", "expired", "cancelled"] {
        assert_eq!(broker.count("taskyard-bench", state), 0, "{state}");
    }
}
