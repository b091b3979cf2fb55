//! The client commands: submit, work, status.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Broker, Child, Output, command, until};

#[test]
fn submit_prints_the_task_s_id() {
    let broker = Broker::start();
    let output =
        Output::of(&mut broker.command(&["submit", "q", r#"{"a":1}"#, "--priority", "7", "--header", "k=v"]));
    assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{output:?}");
    let task = output.out.trim();
    assert_eq!(broker.task(task)["state"], "queued");
    let mut ws = broker.ws();
    ws.subscribe("q", 10);
    let delivery = ws.task();
    assert_eq!((&delivery["task"], &delivery["payload"]), (&json!(task), &json!({"a": 1})));
    assert_eq!((&delivery["priority"], &delivery["headers"]), (&json!(7), &json!({"k": "v"})));

    // Bytes: of standard input, or of a file.
    let output = Output::with_input(&mut broker.command(&["submit", "q"]), &[0, 1, 254, 255]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(ws.task()["payload_b64"], "AAH+/w==");
    let file = broker.scratch().join("payload");
    std::fs::write(&file, "bytes").unwrap();
    let output = Output::of(broker.command(&["submit", "q", "--file"]).arg(&file));
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(ws.task()["payload_b64"], "Ynl0ZXM=");
}

#[test]
fn submit_can_wait_for_the_result() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let submit = || broker.command(&["submit", "q", "1", "--wait", "--max-attempts", "1"]);

    let waiting = Child::of(&mut submit());
    let task = ws.task();
    ws.gets("settled", json!({"type": "ack", "lease": task["lease"], "result": {"ok": true}}));
    let output = waiting.output();
    assert_eq!((output.code, output.out.trim()), (Some(0), r#"{"ok":true}"#), "{output:?}");

    let waiting = Child::of(&mut submit());
    let task = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": task["lease"], "error": "out of paper"}));
    let output = waiting.output();
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.err.contains("dead") && output.err.contains("out of paper"), "{output:?}");
}

#[test]
fn submits_that_cannot_be_say_why() {
    let broker = Broker::in_memory();
    let fails = |arguments: &[&str], code: i32, expected: &str| {
        let output = Output::of(broker.command(&["submit"]).args(arguments));
        assert_eq!(output.code, Some(code), "{arguments:?}: {output:?}");
        assert!(output.err.contains(expected), "{arguments:?}: {output:?}");
    };
    fails(&["a b", "1"], 2, "a b");
    fails(&["q", "{"], 2, "JSON");
    fails(&["q", "hello"], 2, "quote");
    fails(&["q", "1", "--priority", "10"], 2, "0..=9");
    fails(&["q", "1", "--ttl-ms", "0"], 2, "1 to 31536000000");
    fails(&["q", "1", "--max-attempts", "1001"], 2, "1 to 1000");
    fails(&["q", "1", "--header", "nonsense"], 2, "KEY=VALUE");
    fails(&["q", "--file", "/no/such/file"], 2, "/no/such/file");
    assert_eq!(broker.get("/v1/queues").json()["queues"], json!([]));
}

#[test]
fn without_a_broker_each_command_says_how_to_get_one() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    for arguments in [&["submit", "q", "1"][..], &["status"], &["work", "q", "--", "true"]] {
        let output = Output::of(command(arguments).env("TASKYARD_URL", &url));
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.err.contains("taskyard serve") && output.err.contains(&url), "{output:?}");
    }
    let output = Output::of(command(&["status"]).args(["--url", "gopher://x"]));
    assert_eq!(output.code, Some(2), "{output:?}");
}

#[test]
fn work_runs_a_command_for_each_task() {
    let broker = Broker::start();
    let script = r#"read line; case "$line" in
        bad) echo "cannot read $TASKYARD_QUEUE" >&2; exit 3;;
        *) printf '%s %s %s' "$line" "$TASKYARD_ATTEMPT" "$TASKYARD_REDELIVERED";;
    esac"#;
    let arguments =
        ["work", "q", "--concurrency", "2", "--name", "shell", "--group", "g", "--", "sh", "-c", script];
    let worker = Child::of(&mut broker.command(&arguments));
    let submit = |input: &str, arguments: &[&str]| {
        Output::with_input(
            broker.command(&["submit", "q", "--wait", "--group", "g"]).args(arguments),
            input.as_bytes(),
        )
    };
    let output = submit("hello", &[]);
    assert_eq!((output.code, output.out.as_str()), (Some(0), "hello 1 0"), "{output:?}");
    let output = submit("bad", &["--max-attempts", "1"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("cannot read q") && output.err.contains('3'), "{output:?}");
    let workers = broker.get("/v1/workers").json()["workers"].clone();
    assert!(workers.as_array().unwrap().iter().any(|worker| worker["worker"] == "shell"), "{workers}");
    worker.signal("TERM");
    assert_eq!(worker.output().code, Some(0));
}

#[test]
fn a_worker_that_is_stopped_finishes_what_it_runs() {
    let broker = Broker::start();
    let (begun, go) = (broker.scratch().join("begun"), broker.scratch().join("go"));
    let script =
        format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done; echo late", begun.display(), go.display());
    let worker = Child::of(&mut broker.command(&["work", "q", "--", "sh", "-c", &script]));
    let task = broker.submit("q", &json!({}));
    until("the command to begin", || begun.exists().then_some(()));
    worker.signal("TERM");
    until("the worker to drain", || {
        let workers = broker.get("/v1/workers").json()["workers"].clone();
        (workers[0]["draining"] == true).then_some(())
    });
    std::fs::write(&go, "").unwrap();
    assert_eq!(worker.output().code, Some(0));
    assert_eq!(broker.task(&task)["state"], "done");
}

#[test]
fn a_worker_finds_its_broker_again() {
    let mut broker = Broker::start();
    let worker = Child::of(&mut broker.command(&["work", "q", "--name", "w", "--", "cat"]));
    until("the worker to connect", || broker.get("/v1/workers").text().contains("\"w\"").then_some(()));
    broker.kill();
    broker.start_again_at_its_port();
    let output = Output::with_input(&mut broker.command(&["submit", "q", "--wait"]), b"again");
    assert_eq!((output.code, output.out.as_str()), (Some(0), "again"), "{output:?}");
    worker.signal("TERM");
    assert_eq!(worker.output().code, Some(0));
}

#[test]
fn status_is_for_people_and_for_programs() {
    let broker = Broker::in_memory();
    let status = |arguments: &[&str]| {
        let output = Output::of(broker.command(&["status"]).args(arguments));
        assert_eq!(output.code, Some(0), "{output:?}");
        output.out
    };
    assert!(status(&[]).contains("no queues yet"));
    let mut ws = broker.worker("mailer");
    ws.subscribe("emails", 3);
    broker.submit("emails", &json!({}));
    ws.task();
    let table = status(&[]);
    for word in ["QUEUE", "WORKER", "emails", "mailer", "emails (1/3)", "ready"] {
        assert!(table.contains(word), "{word}:\n{table}");
    }
    let whole: Value = serde_json::from_str(&status(&["-o", "json"])).unwrap();
    assert_eq!(whole["queues"][0]["counts"]["leased"], 1);
    assert_eq!(whole["workers"][0]["worker"], "mailer");
}

#[test]
fn output_into_a_closed_pipe_is_no_error() {
    let broker = Broker::in_memory();
    let mut status = broker.command(&["status"]);
    let mut child = status.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
