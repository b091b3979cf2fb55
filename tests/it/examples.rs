//! The examples with a page, as a visitor meets them: in a browser, driven over its DevTools protocol.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Output, PATIENCE, Ws, http, until};

/// A program that ends with the test; it is asked first, so that it can end what it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

fn answers(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What is not there and is needed.
fn missing() -> Option<&'static str> {
    if let Some(tool) = ["bash", "curl", "python3"].into_iter().find(|tool| !answers(tool)) {
        return Some(tool);
    }
    Browser::program().is_none().then_some("Chromium")
}

/// What is done with an example.
type Visit = fn(&Browser);

struct Browser {
    _running: Running,
    address: SocketAddr,
    _profile: TempDir,
}

impl Browser {
    fn program() -> Option<&'static str> {
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|program| answers(program))
    }

    fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(Browser::program().unwrap());
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let port = until("the browser to start", || {
            let text = std::fs::read_to_string(profile.path().join("DevToolsActivePort")).ok()?;
            text.lines().next()?.parse::<u16>().ok()
        });
        Browser { _running: running, address: ([127, 0, 0, 1], port).into(), _profile: profile }
    }

    fn open(&self, url: &str) -> Page {
        let target: String = form_urlencoded::byte_serialize(url.as_bytes()).collect();
        let answer = http::send(self.address, "PUT", &format!("/json/new?{target}"), "", b"");
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        let socket = answer["webSocketDebuggerUrl"].as_str().unwrap();
        let target = socket.split_once("://").unwrap().1.split_once('/').unwrap().1.to_owned();
        let mut page = Page { devtools: Ws::open(self.address, &format!("/{target}"), &[]), last: 0 };
        // A new page is an empty one for a moment.
        until("the page to be there", || {
            let there = format!("location.href === {} && document.readyState === 'complete'", json!(url));
            (page.evaluate(&there)["result"]["value"] == true).then_some(())
        });
        page
    }
}

/// A page that is open. Whatever it shows can be waited for.
struct Page {
    devtools: Ws,
    last: u64,
}

impl Page {
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let id = self.last;
        self.devtools.say(json!({"id": id, "method": method, "params": parameters}));
        self.devtools.wait(method, |message| message["id"] == id)["result"].clone()
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", parameters)
    }

    /// The value of an expression.
    #[track_caller]
    fn value(&mut self, expression: &str) -> Value {
        let result = self.evaluate(expression);
        let failed = result.get("exceptionDetails").is_some() || result.get("result").is_none();
        assert!(!failed, "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression's value, which is text, holds this.
    #[track_caller]
    fn becomes(&mut self, text: &str, expression: &str) {
        // The page looks for itself, for a little less than an answer is waited for.
        let look = format!(
            "new Promise(resolve => {{
                const end = Date.now() + {};
                const look = () => {{
                    const value = {expression};
                    value.includes({}) || Date.now() > end ? resolve(value) : setTimeout(look, 20);
                }};
                look();
            }})",
            PATIENCE.as_millis() * 3 / 4,
            json!(text)
        );
        let value = self.value(&look);
        assert!(value.as_str().unwrap().contains(text), "waited for {text:?} in {expression}: {value:?}");
    }

    /// Waits until the page shows a text.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        self.becomes(text, "document.body.innerText");
    }

    fn shown(&mut self) -> String {
        self.value("document.body.innerText").as_str().unwrap().to_owned()
    }

    /// Fills in what is named by its id, as somebody who types it.
    fn fill(&mut self, fields: &[(&str, &str)]) {
        for (id, text) in fields {
            self.value(&format!("document.getElementById({}).value = {}", json!(id), json!(text)));
        }
    }

    /// Fills in a form and presses a button of it, the first or that of a value.
    #[track_caller]
    fn submit(&mut self, form: &str, button: &str, fields: &[(&str, &str)]) {
        self.fill(fields);
        let which = if button.is_empty() { "button".into() } else { format!("button[value={button}]") };
        self.value(&format!("document.querySelector('#{form} {which}').click()"));
    }
}

/// An example that runs.
struct Example {
    _running: Running,
    said: Vec<String>,
}

impl Example {
    fn start(name: &str, environment: &[(&str, &Path)]) -> Example {
        let mut command = Command::new("bash");
        command.arg(folder(name).join("run"));
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("TASKYARD_")) {
            command.env_remove(key);
        }
        command.env("TASKYARD", env!("CARGO_BIN_EXE_taskyard")).env_remove("PORT");
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let running = Running(child);
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
            match lines.next() {
                Some(line) => said.push(line.unwrap()),
                None => panic!("example {name} ended: {said:?}"),
            }
        }
        Example { _running: running, said }
    }

    /// What it said behind a word.
    fn said(&self, word: &str) -> &str {
        let line = self.said.iter().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("it did not tell its {word}: {:?}", self.said)).trim()
    }

    fn page(&self) -> &str {
        self.said("page")
    }

    /// Runs a program of the example beside it.
    fn beside(&self, program: &Path, arguments: &[&str]) {
        // As its README says it: by itself, not through a shell.
        let mut command = Command::new(program);
        command.args(arguments).env("TASKYARD_URL", self.said("broker"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = Output::of(&mut command);
        assert_eq!(output.code, Some(0), "{arguments:?}: {output:?}");
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn echo(browser: &Browser) {
    let example = Example::start("echo", &[]);
    let mut page = browser.open(example.page());
    page.shows("connected");
    page.submit("form", "", &[("text", "is anybody <b>there</b>?")]);
    page.shows("is anybody <b>there</b>?");
    let mut other = browser.open(example.page());
    other.shows("connected");
    other.submit("form", "", &[("text", "only here")]);
    other.shows("only here");
    assert!(!page.shown().contains("only here"));
}

fn chat(browser: &Browser) {
    let example = Example::start("chat", &[]);
    let mut pages = [browser.open(example.page()), browser.open(example.page())];
    for page in &mut pages {
        page.shows("connected");
        // Whoever hears itself is in the room.
        page.submit("form", "", &[("who", "Nobody"), ("text", "is it on?")]);
        page.shows("Nobody: is it on?");
    }
    let [anna, berta] = &mut pages;
    anna.submit("form", "", &[("who", "Anna"), ("text", "hello \"all\"")]);
    berta.shows("Anna: hello \"all\"");
    berta.submit("form", "", &[("who", "Berta"), ("text", "grüß dich")]);
    anna.shows("Berta: grüß dich");
    berta.shows("Berta: grüß dich");
}

fn chat_rooms(browser: &Browser) {
    let example = Example::start("chat-rooms", &[]);
    let mut pages = [browser.open(example.page()), browser.open(example.page())];
    for (page, name) in pages.iter_mut().zip(["anna", "berta"]) {
        page.submit("enter", "", &[("who", name)]);
        page.shows(&format!("connected as {name}"));
    }
    let [anna, berta] = &mut pages;
    let in_rooms = |page: &mut Page, rooms: &str| page.becomes(rooms, "`You are in: ${rooms.textContent}.`");
    anna.submit("move", "join", &[("room", "lobby")]);
    anna.submit("move", "join", &[("room", "kitchen")]);
    in_rooms(anna, "You are in: lobby, kitchen.");
    berta.submit("move", "join", &[("room", "lobby")]);
    in_rooms(berta, "You are in: lobby.");
    anna.submit("speak", "", &[("room", "kitchen"), ("text", "secret")]);
    anna.submit("speak", "", &[("room", "lobby"), ("text", "hello")]);
    berta.shows("lobby, anna: hello");
    anna.shows("kitchen, anna: secret");
    assert!(!berta.shown().contains("secret"));
    anna.submit("move", "leave", &[("room", "lobby")]);
    in_rooms(anna, "You are in: kitchen.");
    berta.submit("speak", "", &[("text", "are you there?")]);
    berta.shows("lobby, berta: are you there?");
    anna.submit("speak", "", &[("room", "kitchen"), ("text", "no")]);
    anna.shows("kitchen, anna: no");
    assert!(!anna.shown().contains("are you there?"));
}

fn broadcast(browser: &Browser) {
    let example = Example::start("broadcast", &[]);
    let mut pages = [(); 3].map(|()| browser.open(example.page()));
    for page in &mut pages {
        page.shows("connected");
    }
    pages[0].submit("form", "", &[("text", "water the plants")]);
    pages[0].shows("water the plants (on 3 pages)");
    for page in &mut pages {
        page.shows("water the plants");
    }
}

fn push(browser: &Browser) {
    let example = Example::start("push", &[]);
    let url = example.page();
    let mut anna = browser.open(url);
    let mut berta = browser.open(&url.replace("anna", "berta"));
    for page in [&mut anna, &mut berta] {
        page.shows("connected");
    }
    let send = |arguments: &[&str]| example.beside(&folder("push").join("send"), arguments);
    anna.submit("move", "join", &[("group", "vip")]);
    anna.shows("join vip: done");
    send(&["one", "berta", "only \"you\" \\ \u{1f600}"]);
    send(&["group", "vip", "come in"]);
    send(&["all", "we close"]);
    berta.shows("you: only \"you\" \\ \u{1f600}");
    for page in [&mut anna, &mut berta] {
        page.shows("all: we close");
    }
    anna.shows("vip: come in");
    assert!(!anna.shown().contains("only"));
    assert!(!berta.shown().contains("come in"));
    anna.submit("move", "leave", &[("group", "vip")]);
    anna.shows("leave vip: done");
    send(&["group", "vip", "too late"]);
    send(&["all", "closed"]);
    anna.shows("all: closed");
    assert!(!anna.shown().contains("too late"));
}

fn private(browser: &Browser) {
    let example = Example::start("private", &[]);
    let mut pages = [(); 3].map(|()| browser.open(example.page()));
    for (page, name) in pages.iter_mut().zip(["anna", "berta", "clara"]) {
        page.submit("enter", "", &[("who", name)]);
        page.shows(&format!("connected as {name}"));
    }
    let [anna, berta, clara] = &mut pages;
    anna.submit("form", "", &[("to", "berta"), ("text", "between us")]);
    berta.shows("anna: between us");
    anna.shows("to berta: between us (read)");
    anna.submit("form", "", &[("to", "dora"), ("text", "hello?")]);
    anna.shows("dora is not here");
    assert!(!clara.shown().contains("between us"));
}

fn file(browser: &Browser) {
    let received = tempfile::tempdir().unwrap();
    let example = Example::start("file", &[("RECEIVED", received.path())]);
    let mut page = browser.open(example.page());
    page.shows("connected");
    // What a user does with the file dialog.
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("a photo.bin");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    page.call("DOM.enable", json!({}));
    let document = page.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
    let input = page.call("DOM.querySelector", json!({"nodeId": document, "selector": "#file"}));
    page.call("DOM.setFileInputFiles", json!({"nodeId": input["nodeId"], "files": [path]}));
    page.submit("form", "", &[]);
    page.shows("saved a%20photo.bin, SHA-256 ");
    assert_eq!(std::fs::read(received.path().join("a%20photo.bin")).unwrap(), bytes);
}

fn login(browser: &Browser) {
    let example = Example::start("login", &[]);
    let mut pages = [(); 3].map(|()| browser.open(example.page()));
    let [reader, editor, stranger] = &mut pages;
    stranger.submit("enter", "", &[("token", "guessed")]);
    stranger.shows("closed: 4001");
    reader.submit("enter", "", &[("token", example.said("reader"))]);
    editor.submit("enter", "", &[("token", example.said("editor"))]);
    for page in [&mut *reader, &mut *editor] {
        page.shows("logged in");
    }
    reader.submit("form", "", &[("text", "may I?")]);
    reader.shows("submit:news");
    editor.submit("form", "", &[("text", "it rains")]);
    reader.shows(": it rains");
    editor.shows(": it rains");
    assert!(!editor.shown().contains("may I?"));
}

fn ticker(browser: &Browser) {
    let example = Example::start("ticker", &[]);
    let mut page = browser.open(example.page());
    for symbol in ["ACME", "GLOBEX", "INITECH"] {
        page.shows(symbol);
    }
    page.shows("%");
}

fn monitor(browser: &Browser) {
    let example =
        Example::start("monitor", &[("DISK_MAX", Path::new("-1")), ("LOAD_MAX", Path::new("100000"))]);
    let mut page = browser.open(example.page());
    page.shows("disk of ");
    page.becomes("load ", "figures.textContent");
    assert_eq!(page.value("alerts.children.length"), 1);
    page.value("alerts.querySelector('button').click()");
    let done = || {
        http::get(
            example.said("broker").strip_prefix("http://").unwrap().parse().unwrap(),
            "/v1/queues/alerts",
        )
    };
    until("the alert to be taken", || (done().json()["counts"]["done"] == 1).then_some(()));
}

#[test]
fn the_demo_keeps_every_figure_moving() {
    if !answers("bash") {
        eprintln!("SKIPPED: the demo is not tested: this machine has no bash");
        return;
    }
    let example = Example::start("demo", &[("PACE", Path::new("1"))]);
    let address = example.said("broker").strip_prefix("http://").unwrap().parse().unwrap();
    let text = || http::get(address, "/metrics").text().to_owned();
    for event in [
        "accepted",
        "duplicate",
        "delivered",
        "redelivered",
        "acked",
        "nacked",
        "worker_lost",
        "dead",
        "cancelled",
        "expired",
    ] {
        let label = format!("taskyard_tasks_total{{event=\"{event}\",");
        let counted = |line: &str| line.starts_with(&label) && !line.ends_with(" 0");
        until(&format!("a task that is {event}"), || text().lines().any(counted).then_some(()));
    }
}

/// One browser for all of them, which takes longer to start than they do.
#[test]
fn examples_do_what_they_say() {
    if let Some(tool) = missing() {
        eprintln!("SKIPPED: the examples' pages are not tested: this machine has no {tool}");
        return;
    }
    let browser = Browser::start();
    let all: [(&str, Visit); 10] = [
        ("echo", echo),
        ("chat", chat),
        ("chat-rooms", chat_rooms),
        ("broadcast", broadcast),
        ("push", push),
        ("private", private),
        ("file", file),
        ("login", login),
        ("ticker", ticker),
        ("monitor", monitor),
    ];
    for (name, visit) in all {
        eprintln!("example {name}");
        visit(&browser);
    }
    // Whoever adds one with a page adds its visit.
    let with_page = std::fs::read_dir(folder(""))
        .unwrap()
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().join("index.html").exists()));
    assert_eq!(with_page.count(), all.len());
}
