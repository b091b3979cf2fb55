//! The `taskyard` binary as a child process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, Ws, http};

/// A broker with a store of its own. Dropped, it is killed.
pub struct Broker {
    child: Guard,
    log: Log,
    pub address: SocketAddr,
    directory: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// How many descriptors it may have; none: as many as these tests.
    descriptors: Option<u32>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The binary, with none of our environment's options.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("TASKYARD_") || key == "RUST_LOG") {
        command.env_remove(key);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command under way. Dropped, it is killed.
pub struct Child {
    guard: Guard,
    out: JoinHandle<String>,
    err: JoinHandle<String>,
}

impl Child {
    /// Starts a command.
    pub fn of(command: &mut Command) -> Child {
        Child::with_input(command, b"")
    }

    fn with_input(command: &mut Command, input: &[u8]) -> Child {
        let mut guard = Guard(command.stdin(Stdio::piped()).spawn().unwrap());
        let (out, err) = (drain(guard.0.stdout.take().unwrap()), drain(guard.0.stderr.take().unwrap()));
        // It may end without having read all.
        let _ = guard.0.stdin.take().unwrap().write_all(input);
        Child { guard, out, err }
    }

    pub fn signal(&self, name: &str) {
        signal(&self.guard, name);
    }

    /// Waits for its end.
    pub fn output(mut self) -> Output {
        let code = wait(&mut self.guard.0, "the command").code();
        Output { code, out: self.out.join().unwrap(), err: self.err.join().unwrap() }
    }
}

impl Output {
    /// Runs a command that ends by itself.
    pub fn of(command: &mut Command) -> Output {
        Child::of(command).output()
    }

    /// The same, with something on its standard input.
    pub fn with_input(command: &mut Command, input: &[u8]) -> Output {
        Child::with_input(command, input).output()
    }
}

fn signal(child: &Guard, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.0.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// A child that is killed when it is dropped.
struct Guard(process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drain(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut process::Child, what: &str) -> ExitStatus {
    super::until(&format!("{what} to end"), || child.try_wait().unwrap())
}

/// What a broker has logged so far.
#[derive(Clone, Default)]
struct Log {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    ended: bool,
}

impl Log {
    fn read(&self, from: impl std::io::Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                log.shared.0.lock().unwrap().all.push(line);
                log.shared.1.notify_all();
            }
            log.shared.0.lock().unwrap().ended = true;
            log.shared.1.notify_all();
        });
    }

    /// The first line that holds `text`, or none if the log ended without.
    fn find(&self, text: &str) -> Option<String> {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.shared.0.lock().unwrap();
        loop {
            if let Some(line) = lines.all.iter().find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            if lines.ended {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let all = lines.all.join("\n");
                // A panic under the lock would end all tests, by a second one in those that clean up.
                drop(lines);
                panic!("waited in vain for {text:?} in the log:\n{all}");
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    fn all(&self) -> String {
        let mut lines = self.shared.0.lock().unwrap();
        while !lines.ended {
            lines = self.shared.1.wait(lines).unwrap();
        }
        lines.all.join("\n")
    }
}

impl Broker {
    /// A broker on a new store.
    pub fn start() -> Broker {
        Broker::with(&[])
    }

    /// A broker that remembers nothing: for what has nothing to do with the store.
    pub fn in_memory() -> Broker {
        Broker::with(&["--engine", "memory"])
    }

    /// A broker on a new store, with more options.
    pub fn with(arguments: &[&str]) -> Broker {
        Broker::with_environment(&[], arguments)
    }

    /// The same, and options in the environment.
    pub fn with_environment(environment: &[(&str, &str)], arguments: &[&str]) -> Broker {
        Broker::listening_on("127.0.0.1:0", environment, arguments)
    }

    /// The same, not on loopback alone.
    pub fn listening_on(listen: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Broker {
        Broker::launch(listen, environment, arguments, None)
    }

    /// A broker that may have so many descriptors.
    pub fn with_descriptors(descriptors: u32, arguments: &[&str]) -> Broker {
        Broker::launch("127.0.0.1:0", &[], arguments, Some(descriptors))
    }

    fn launch(
        listen: &str,
        environment: &[(&str, &str)],
        arguments: &[&str],
        descriptors: Option<u32>,
    ) -> Broker {
        let directory = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let environment: Vec<(String, String)> =
            environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        match Broker::try_run(&directory, listen, &arguments, &environment, descriptors) {
            Ok((child, log, address)) => {
                Broker { child, log, address, directory, arguments, environment, descriptors }
            }
            Err(log) => panic!("the broker did not start:\n{log}"),
        }
    }

    fn try_run(
        directory: &TempDir,
        listen: &str,
        arguments: &[String],
        environment: &[(String, String)],
        descriptors: Option<u32>,
    ) -> Result<(Guard, Log, SocketAddr), String> {
        let mut command = command(&[]);
        if let Some(descriptors) = descriptors {
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""))
                .arg(command.get_program());
            shell.stdin(Stdio::null()).stderr(Stdio::piped());
            for (key, value) in command.get_envs() {
                match value {
                    Some(value) => shell.env(key, value),
                    None => shell.env_remove(key),
                };
            }
            command = shell;
        }
        command.args(["serve", "--listen", listen, "--data-dir"]);
        command.arg(directory.path().join("data")).args(arguments).stdout(Stdio::null());
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        let mut guard = Guard(command.spawn().unwrap());
        let log = Log::default();
        log.read(guard.0.stderr.take().unwrap());
        let Some(line) = log.find("listening on http") else { return Err(log.all()) };
        let line: Value = serde_json::from_str(&line).unwrap();
        let text = line["message"].as_str().unwrap();
        let address = text.split("://").nth(1).unwrap().split(' ').next().unwrap();
        let mut address: SocketAddr = address.parse().unwrap();
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Ok((guard, log, address))
    }

    /// The store.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A place for a test's own files.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// `http://…`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A socket without subprotocol or hello, that speaks JSON.
    pub fn ws(&self) -> Ws {
        Ws::open(self.address, "/ws", &[])
    }

    /// A socket that has said who it is.
    pub fn worker(&self, name: &str) -> Ws {
        let mut ws = self.ws();
        let welcome = ws.ask(serde_json::json!({"type": "hello", "worker": name}));
        assert_eq!(welcome["type"], "welcome");
        assert_eq!(welcome["worker"], name);
        ws
    }

    pub fn get(&self, path: &str) -> http::Answer {
        http::get(self.address, path)
    }

    pub fn post(&self, path: &str, body: &Value) -> http::Answer {
        http::post(self.address, path, "application/json", body.to_string().as_bytes())
    }

    /// A request with a body of JSON; null: with none.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> http::Answer {
        http::json(self.address, method, path, "", body)
    }

    pub fn delete(&self, path: &str) -> http::Answer {
        self.send("DELETE", path, &Value::Null)
    }

    /// Submits over HTTP; gives the task's id.
    pub fn submit(&self, queue: &str, message: &Value) -> String {
        let answer = self.post(&format!("/v1/queues/{queue}/tasks"), message);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["task"].as_str().unwrap().to_owned()
    }

    /// What is known of a task.
    pub fn task(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/tasks/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// A queue's count of a state.
    pub fn count(&self, queue: &str, state: &str) -> u64 {
        let answer = self.get(&format!("/v1/queues/{queue}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["counts"][state].as_u64().unwrap_or_else(|| panic!("no count of {state}: {answer:?}"))
    }

    /// A client command of the binary, at this broker.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("TASKYARD_URL", self.url());
        command
    }

    /// The first line of its log that holds `text`, once there is one.
    pub fn logged(&self, text: &str) -> String {
        self.log.find(text).unwrap_or_else(|| panic!("the log ended without {text:?}:\n{}", self.log.all()))
    }

    /// The whole log of a broker that has ended.
    pub fn whole_log(&self) -> String {
        self.log.all()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    fn proc(&self, what: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{what}", self.child.0.id())).unwrap()
    }

    /// Whether it was told to stand still, and does.
    pub fn is_stopped(&self) -> bool {
        self.proc("status").lines().any(|line| line.starts_with("State:\tT"))
    }

    /// The memory that it takes, in bytes.
    pub fn memory(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.0.id())).unwrap().count()
    }

    /// The processor's time that it has taken, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// The value of a metric; 0 if there is none of that name.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text().to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// Waits for it to end by itself; gives the exit code.
    pub fn ended(&mut self) -> i32 {
        let status = wait(&mut self.child.0, "the broker");
        status.code().unwrap_or_else(|| panic!("ended by a signal: {status}"))
    }

    /// SIGTERM, and waits for an orderly end.
    pub fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.ended(), 0, "{}", self.log.all());
    }

    /// Another process on the store of this one, which has ended.
    pub fn start_again(&mut self) {
        self.start_again_at("127.0.0.1:0");
    }

    /// The same, where clients look for it.
    pub fn start_again_at_its_port(&mut self) {
        self.start_again_at(&self.address.to_string());
    }

    fn start_again_at(&mut self, listen: &str) {
        let (child, log, address) =
            Broker::try_run(&self.directory, listen, &self.arguments, &self.environment, self.descriptors)
                .unwrap_or_else(|log| panic!("the broker did not start again:\n{log}"));
        (self.child, self.log, self.address) = (child, log, address);
    }

    /// A start on the store of this one that comes to nothing: exit code, and what it says.
    pub fn fails_to_start(&self) -> Output {
        let mut command = command(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        Output::of(command.arg(self.data()).args(&self.arguments))
    }

    /// `taskyard store …` on the store of this one.
    pub fn store(&self, arguments: &[&str]) -> Output {
        Output::of(command(&["store"]).args(arguments).arg("--data-dir").arg(self.data()))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        if std::thread::panicking() {
            eprintln!("--- the broker's log ---\n{}", self.log.all());
        }
    }
}
