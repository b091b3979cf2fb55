//! Tokens, and a broker that asks for them.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use super::{Broker, Output, Ws, command, http};

/// What `TASKYARD_ADMIN_TOKEN` is.
pub const ADMIN: &str = "the-words-of-an-administrator-0123456789";

/// A file of tokens. The broker has it by `--tokens-file`, so that it may be there before the broker is.
pub struct Tokens {
    directory: TempDir,
}

impl Tokens {
    pub fn new() -> Tokens {
        Tokens { directory: tempfile::tempdir().unwrap() }
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("tokens.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = Output::of(command(&["token"]).args(arguments).arg("--tokens-file").arg(self.file()));
        assert_eq!(output.code, Some(0), "{arguments:?}: {output:?}");
        output
    }

    /// A token that may do this.
    pub fn create(&self, name: &str, rules: &[&str]) -> String {
        self.create_with(name, rules, &[])
    }

    /// The same, with more options.
    pub fn create_with(&self, name: &str, rules: &[&str], options: &[&str]) -> String {
        let allow = rules.iter().flat_map(|rule| ["--allow", rule]);
        let arguments: Vec<&str> =
            ["create", name].into_iter().chain(allow).chain(options.iter().copied()).collect();
        self.run(&arguments).out.trim_end().to_owned()
    }

    pub fn revoke(&self, name: &str) {
        self.run(&["revoke", name]);
    }

    /// Writes the file with one text in it replaced: at once, as a good editor does.
    pub fn replace(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        assert!(text.contains(from), "{text}");
        self.write(&text.replacen(from, to, 1));
    }

    /// Writes another file in its place, at once.
    pub fn write(&self, text: &str) {
        let aside = self.file().with_extension("new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(&aside, self.file()).unwrap();
    }

    /// A broker that knows these tokens and [`ADMIN`], and remembers nothing.
    pub fn broker(&self, options: &[&str]) -> Broker {
        self.broker_with(&[("TASKYARD_ADMIN_TOKEN", ADMIN)], &[&["--engine", "memory"], options].concat())
    }

    /// A broker that knows these tokens.
    pub fn broker_with(&self, environment: &[(&str, &str)], options: &[&str]) -> Broker {
        let file = self.file();
        let options = [&["--tokens-file", file.to_str().unwrap()], options].concat();
        Broker::with_environment(environment, &options)
    }
}

/// A broker as somebody meets it who has a token.
pub struct As<'a> {
    broker: &'a Broker,
    headers: String,
}

impl Broker {
    pub fn by(&self, token: &str) -> As<'_> {
        As { broker: self, headers: format!("Authorization: Bearer {token}\r\n") }
    }

    pub fn admin(&self) -> As<'_> {
        self.by(ADMIN)
    }

    /// `taskyard_refusals_total` of a reason.
    pub fn refusals(&self, reason: &str) -> u64 {
        let answer = self.admin().get("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let name = format!("taskyard_refusals_total{{reason=\"{reason}\"}} ");
        let line = answer.text().lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{}", answer.text())).parse().unwrap()
    }
}

impl As<'_> {
    pub fn get(&self, path: &str) -> http::Answer {
        http::send(self.broker.address, "GET", path, &self.headers, b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> http::Answer {
        let headers = format!("{}Content-Type: application/json\r\n", self.headers);
        http::send(self.broker.address, "POST", path, &headers, body.to_string().as_bytes())
    }

    /// A request with a body of JSON; null: with none.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> http::Answer {
        http::json(self.broker.address, method, path, &self.headers, body)
    }

    /// The answer to an upgrade; 101 opens a socket that is closed at once.
    pub fn upgrade(&self, target: &str) -> http::Answer {
        let request = super::upgrade_request(self.broker.address, target, &self.headers);
        http::exchange(self.broker.address, request.as_bytes())
    }

    /// A socket whose upgrade carries the token.
    pub fn ws(&self) -> Ws {
        self.ws_at("/ws")
    }

    pub fn ws_at(&self, target: &str) -> Ws {
        let value = self.headers.split_once(": ").unwrap().1.trim_end();
        Ws::open(self.broker.address, target, &[("Authorization", value)])
    }

    /// A socket that has said its worker's name.
    pub fn worker(&self, name: &str) -> Ws {
        let mut ws = self.ws();
        ws.gets("welcome", serde_json::json!({"type": "hello", "worker": name}));
        ws
    }

    /// Submits; gives the task's id.
    pub fn submit(&self, queue: &str, message: &Value) -> String {
        let answer = self.post(&format!("/v1/queues/{queue}/tasks"), message);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["task"].as_str().unwrap().to_owned()
    }

    /// The state of a task.
    pub fn state(&self, task: &str) -> String {
        let answer = self.get(&format!("/v1/tasks/{task}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["state"].as_str().unwrap().to_owned()
    }

    /// The names of what a list shows: of `queues` or `workers`. Who may see nothing at all is told so.
    pub fn names(&self, list: &str) -> Vec<String> {
        let answer = self.get(&format!("/v1/{list}"));
        if answer.status == 403 {
            answer.is_error(403, "forbidden");
            return Vec::new();
        }
        let answer = answer.json();
        let key = list.trim_end_matches('s');
        let mut names: Vec<String> = answer[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one[key].as_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    }
}
