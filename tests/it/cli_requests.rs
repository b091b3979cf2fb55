//! What the commands ask a broker for, and what they make of its answers: against a server that says what it
//! is told to.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::support::{Output, command};

const TASK: &str = "0198c0de-0000-7000-8000-000000000001";
const OTHER: &str = "0198c0de-0000-7000-8000-000000000002";

/// A request as it came.
#[derive(Debug)]
struct Asked {
    line: String,
    headers: Vec<String>,
    body: Value,
}

/// A server that gives these answers, a connection each; and what it was asked.
fn server(answers: Vec<String>) -> (String, JoinHandle<Vec<Asked>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let serve = |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let asked = read(&mut stream);
            // Who is asked for nothing more may have gone.
            let _ = stream.write_all(answer.as_bytes());
            asked
        };
        answers.into_iter().map(serve).collect()
    });
    (url, serving)
}

fn read(stream: &mut TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let line = lines.remove(0).replace(" HTTP/1.1", "");
    let length =
        lines.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Asked { line, headers: lines, body }
}

fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Runs a command against such answers.
fn run(arguments: &[&str], answers: Vec<String>) -> (Output, Vec<Asked>) {
    let (url, serving) = server(answers);
    let output = Output::of(command(arguments).env("TASKYARD_URL", url).env("TASKYARD_TOKEN", "t"));
    (output, serving.join().unwrap())
}

#[test]
fn each_command_asks_for_its_verb() {
    let cases: Vec<(String, &str, Value, Value, &str)> = vec![
        // the command line; the request, its body; the answer; what is printed.
        (
            "queues set q --max-tasks 5 --order aged:30s --unset rate".into(),
            "PUT /v1/queues/q",
            json!({"max_tasks": 5, "rate_per_s": null, "order": {"aged": {"headstart_ms": 30_000}}}),
            json!({"queue": "q", "counts": {}, "rates": {}, "settings": {"max_tasks": 5}}),
            "Max tasks:   5\n",
        ),
        (
            "queues pause q --for 10m --reason down".into(),
            "POST /v1/queues/q/pause",
            json!({"for_ms": 600_000, "reason": "down"}),
            json!({}),
            "q is paused for 10m\n",
        ),
        ("pause q".into(), "POST /v1/queues/q/pause", json!({}), json!({}), "`taskyard unpause q`\n"),
        ("unpause q".into(), "POST /v1/queues/q/unpause", json!({}), json!({}), "q delivers again\n"),
        ("resume q".into(), "POST /v1/queues/q/unpause", json!({}), json!({}), "q delivers again\n"),
        ("queues resume q".into(), "POST /v1/queues/q/unpause", json!({}), json!({}), "q delivers again\n"),
        (
            "queues purge q --yes".into(),
            "POST /v1/queues/q/purge",
            json!({}),
            json!({"purged": 1}),
            "1 task cancelled\n",
        ),
        (
            "queues purge q --yes -o json".into(),
            "POST /v1/queues/q/purge",
            json!({}),
            json!({"purged": 2}),
            "{\n  \"purged\": 2\n}\n",
        ),
        (
            format!("tasks list q --state queued,leased --limit 5 --after {TASK} --header a=b%20c -o id"),
            &format!("GET /v1/queues/q/tasks?header.a=b%2520c&state=queued%2Cleased&limit=5&after={TASK}"),
            Value::Null,
            json!({"tasks": [{"task": OTHER}], "next": null}),
            &format!("{OTHER}\n"),
        ),
        (
            format!("tasks cancel {TASK} --grace 5s"),
            &format!("DELETE /v1/tasks/{TASK}?grace_ms=5000"),
            Value::Null,
            json!({"task": TASK, "state": "cancelled"}),
            &format!("{TASK}  cancelled\n"),
        ),
        (
            "tasks cancel --queue q --all -y".into(),
            "DELETE /v1/queues/q/tasks?all=true",
            Value::Null,
            json!({"cancelled": 7, "stopping": 2}),
            "7 tasks cancelled, 2 being stopped\n",
        ),
        (
            "tasks cancel --queue q --state retrying --older-than 1h --reason worker_lost --yes".into(),
            "DELETE /v1/queues/q/tasks?state=retrying&older_than_ms=3600000&reason=worker_lost",
            Value::Null,
            json!({"cancelled": 1, "stopping": 0}),
            "1 task cancelled\n",
        ),
        (
            "dead list q --error-contains paper -o id".into(),
            "GET /v1/queues/q/dead?error_contains=paper&limit=100",
            Value::Null,
            json!({"tasks": [{"task": TASK}], "next": null}),
            &format!("{TASK}\n"),
        ),
        (
            "dead redrive q --rate 2.5 --order-key k".into(),
            "POST /v1/queues/q/dead/redrive",
            json!({"rate_per_s": 2.5, "order_key": "k"}),
            json!({"redriven": 3}),
            "3 tasks redriven\n",
        ),
        (
            format!("dead redrive q {TASK}"),
            "POST /v1/queues/q/dead/redrive",
            json!({"tasks": [TASK]}),
            json!({"redriven": 1}),
            "1 task redriven\n",
        ),
        (
            format!("dead delete q {TASK} -o json"),
            &format!("DELETE /v1/queues/q/dead/{TASK}"),
            Value::Null,
            json!({"deleted": 1}),
            "{\n  \"deleted\": 1\n}\n",
        ),
        (
            "dead delete q --all --yes".into(),
            "DELETE /v1/queues/q/dead?all=true",
            Value::Null,
            json!({"deleted": 0}),
            "0 tasks deleted\n",
        ),
        ("drain w".into(), "POST /v1/workers/w/drain", json!({}), json!({}), "w gets nothing more"),
        ("workers drain w".into(), "POST /v1/workers/w/drain", json!({}), json!({}), "w gets nothing more"),
        ("workers remove w".into(), "DELETE /v1/workers/w", Value::Null, json!({}), "w is removed\n"),
        (
            "schedules -o id".into(),
            "GET /v1/schedules",
            Value::Null,
            json!({"schedules": [{"name": "n"}]}),
            "n\n",
        ),
        (
            "schedules put n --queue q --every 30s --payload 1 --missed none".into(),
            "PUT /v1/schedules/n",
            json!({"every_ms": 30_000, "missed": "none", "queue": "q", "payload": 1}),
            json!({"name": "n", "queue": "q", "every_ms": 30_000, "next_in_ms": 29_000, "fired": 0}),
            "When:      every 30s\n",
        ),
        ("schedules delete n".into(), "DELETE /v1/schedules/n", Value::Null, json!({}), "n is deleted\n"),
        (
            format!("explain {TASK}"),
            &format!("GET /v1/tasks/{TASK}/explain"),
            Value::Null,
            json!({"task": TASK, "state": "queued", "reasons": [{"code": "no_credit", "busy": 4}]}),
            "the task is queued:\n- all 4 workers",
        ),
        ("publish lobby hello".into(), "POST /v1/rooms/lobby", json!({"payload": "hello"}), json!({}), ""),
        ("publish lobby [1] --json".into(), "POST /v1/rooms/lobby", json!({"payload": [1]}), json!({}), ""),
        ("publish lobby -".into(), "POST /v1/rooms/lobby", json!({"payload": ""}), json!({}), ""),
    ]
    .into_iter()
    .map(|(line, request, body, said, printed)| {
        (line, request.to_owned().leak() as &str, body, said, printed.to_owned().leak() as &str)
    })
    .collect();
    for (line, request, body, said, printed) in cases {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (output, asked) = run(&arguments, vec![answer(200, &said.to_string())]);
        assert_eq!(output.code, Some(0), "{line}: {output:?}");
        assert_eq!((asked[0].line.as_str(), &asked[0].body), (request, &body), "{line}");
        assert!(output.out.contains(printed) && output.err.is_empty(), "{line}: {output:?}");
        assert!(asked[0].headers.contains(&"Authorization: Bearer t".to_owned()), "{line}: {asked:?}");
    }
}

#[test]
fn what_destroys_many_asks_first() {
    for line in [
        "queues purge q",
        "tasks cancel --queue q --all",
        "tasks cancel --queue q --state queued",
        "dead delete q --all",
        "dead delete q --reason nack",
    ] {
        // Nothing answers: nothing is asked.
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = Output::of(command(&arguments).env("TASKYARD_URL", "http://127.0.0.1:1"));
        assert_eq!(output.code, Some(2), "{line}: {output:?}");
        assert!(output.err.contains("--yes") && output.err.contains("queue q"), "{line}: {output:?}");
    }
    for (line, problem) in [
        ("tasks cancel --queue q", "--all"),
        ("tasks cancel --queue q --all --reason nack", "--all and a filter"),
        ("tasks cancel", "<TASK>"),
        ("dead delete q", "--all"),
        ("tasks show 5", "a task's id"),
        ("queues pause q --for soon", "30s"),
    ] {
        let output = Output::of(&mut command(&line.split(' ').collect::<Vec<_>>()));
        assert_eq!(output.code, Some(2), "{line}: {output:?}");
        assert!(output.err.contains(problem), "{line}: {output:?}");
    }
}

#[test]
fn a_refusal_is_told_in_the_broker_s_words() {
    let refusal =
        json!({"code": "not_found", "message": "there is no queue q: a submit makes it", "retryable": false});
    let (output, _) = run(&["queues", "show", "q"], vec![answer(404, &refusal.to_string())]);
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""), "{output:?}");
    assert_eq!(output.err, "taskyard: there is no queue q: a submit makes it (not_found)\n");
    let (output, _) = run(&["queues"], vec![answer(502, "<html>Bad Gateway</html>")]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("502") && output.err.contains("is it a Taskyard broker?"), "{output:?}");
    // One of several: the others are done all the same.
    let done = json!({"task": OTHER, "state": "leased"}).to_string();
    let answers = vec![answer(404, &refusal.to_string()), answer(202, &done)];
    let (output, _) = run(&["tasks", "cancel", TASK, OTHER], answers);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(output.out, format!("{OTHER}  leased, being stopped\n"));
    assert!(output.err.contains(TASK), "{output:?}");
}

#[test]
fn a_long_list_is_asked_for_page_by_page() {
    let page = |ids: &[&str], next: Option<&str>| {
        let tasks: Vec<Value> = ids.iter().map(|id| json!({"task": id})).collect();
        answer(200, &json!({"tasks": tasks, "next": next}).to_string())
    };
    // A page may be empty, and yet there is more.
    let answers = vec![page(&[TASK], Some(TASK)), page(&[], Some(OTHER)), page(&[OTHER], None)];
    let (output, asked) = run(&["dead", "list", "q", "-o", "id", "--limit", "250"], answers);
    assert_eq!((output.code, output.out), (Some(0), format!("{TASK}\n{OTHER}\n")));
    let lines: Vec<&str> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "GET /v1/queues/q/dead?limit=100".to_owned(),
            format!("GET /v1/queues/q/dead?limit=100&after={TASK}"),
            format!("GET /v1/queues/q/dead?limit=100&after={OTHER}"),
        ]
    );
    // What a worker answered stays what it is, also what a float cannot hold.
    let said = format!(r#"{{"tasks":[{{"task":"{TASK}","result":{{"b":1e999,"a":1.0}}}}],"next":"{TASK}"}}"#);
    let (output, _) = run(&["tasks", "list", "q", "-o", "json", "--limit", "1"], vec![answer(200, &said)]);
    let bare: String = output.out.chars().filter(|letter| !letter.is_whitespace()).collect();
    assert_eq!((output.code, bare), (Some(0), said.clone()));
    let (output, _) = run(&["tasks", "list", "q", "--limit", "1"], vec![answer(200, &said)]);
    assert!(output.code == Some(0) && output.out.contains(TASK), "{output:?}");
}

#[test]
fn a_watch_goes_on_where_it_was_cut_off() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let event = |seq: u64, state: &str| {
        format!(
            "id: {seq}\nevent: event\ndata: {{\"task\":\"{TASK}\",\"seq\":{seq},\"state\":\"{state}\",\"started\":false,\
             \"worker\":null,\"attempt\":1,\"percent\":null,\"data\":null,\"error\":null}}\n\n"
        )
    };
    let finished = |state: &str| {
        format!(
            "id: 3\nevent: finished\ndata: {{\"task\":\"{TASK}\",\"seq\":3,\"state\":\"{state}\",\"result\":[1.0],\
             \"error\":null,\"attempts\":1}}\n\n"
        )
    };
    let answers = |state: &str| {
        let busy =
            json!({"code": "unavailable", "message": "not now", "retryable": true, "retry_after_ms": 1});
        vec![
            format!("{head}: hello\n\n{}{}", event(1, "queued"), event(2, "leased")),
            answer(503, &busy.to_string()),
            format!("{head}{}", finished(state)),
        ]
    };
    let (output, asked) = run(&["watch", TASK], answers("done"));
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(
        output.out.lines().collect::<Vec<_>>(),
        [
            "   1  queued     attempt 1",
            "   2  leased     attempt 1",
            "   3  done       attempts 1  result: [1.0]"
        ]
    );
    assert_eq!(asked[0].line, format!("GET /v1/tasks/{TASK}/events"));
    assert!(!asked[0].headers.iter().any(|header| header.starts_with("Last-Event-Id")), "{asked:?}");
    for asked in &asked[1..] {
        assert!(asked.headers.contains(&"Last-Event-Id: 2".to_owned()), "{asked:?}");
    }

    let (output, _) = run(&["watch", TASK, "-o", "json"], answers("dead"));
    assert_eq!(output.code, Some(1), "{output:?}");
    let lines: Vec<Value> = output.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["type"], &lines[1]["state"]), (&json!("event"), &json!("leased")));
    assert_eq!((&lines[2]["type"], &lines[2]["state"], lines.len()), (&json!("finished"), &json!("dead"), 3));

    let refusal = json!({"code": "not_found", "message": "no such task", "retryable": false}).to_string();
    let (output, _) = run(&["watch", TASK], vec![answer(404, &refusal)]);
    assert_eq!((output.code, output.err.as_str()), (Some(1), "taskyard: no such task (not_found)\n"));
}

#[test]
fn each_shell_is_given_its_completions() {
    for (shell, word) in [
        ("bash", "_taskyard()"),
        ("zsh", "#compdef taskyard"),
        ("fish", "complete -c taskyard"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let output = Output::of(&mut command(&["completion", shell]));
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.out.contains(word) && output.out.contains("redrive"), "{shell}:\n{}", output.out);
    }
}
