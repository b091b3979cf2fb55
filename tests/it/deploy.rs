//! What runs the broker elsewhere (the image, compose, systemd, Kubernetes) says what the broker understands.
//!
//! `tests/stack/lint` asks the tools of each what they think of it, and `tests/stack/run` runs the whole.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Broker, Output, command, http};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The files of all that runs it.
const FILES: [&str; 6] = [
    "Dockerfile",
    "compose.yaml",
    "deploy/systemd/taskyard.service",
    "deploy/kubernetes/statefulset.yaml",
    "deploy/kubernetes/configmap.yaml",
    "deploy/kubernetes/servicemonitor.yaml",
];

/// The lines behind one that has `key` alone, as far as they are further in.
fn block(text: &str, key: &str) -> String {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim() != key);
    let outer = depth(lines.next().unwrap_or_else(|| panic!("there is no {key:?}")));
    let lines: Vec<&str> = lines.take_while(|line| line.is_empty() || depth(line) > outer).collect();
    let inner = lines.iter().filter(|line| !line.is_empty()).map(|line| depth(line)).min().unwrap();
    lines.iter().map(|line| format!("{}\n", line.get(inner..).unwrap_or_default())).collect()
}

/// The number behind a word.
fn number(text: &str, word: &str) -> u64 {
    let (_, behind) = text.split_once(word).unwrap_or_else(|| panic!("there is no {word:?}"));
    let digits: String = behind.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn every_variable_that_is_set_is_one_that_is_read() {
    let help = |arguments: &[&str]| Output::of(command(arguments).arg("--help")).out;
    let mut known = help(&["serve"]) + &help(&["status"]);
    // Of the environment alone, so that no list of processes shows them; and those of compose.yaml and the demo.
    known += "TASKYARD_ADMIN_TOKEN TASKYARD_TOKEN TASKYARD_TOKEN_FILE TASKYARD_PORT";
    let known: Vec<&str> = words(&known).collect();
    for file in FILES {
        let text = read(file);
        for word in words(&text).filter(|word| word.starts_with("TASKYARD_") && *word != "TASKYARD_") {
            assert!(known.contains(&word), "{file}: nobody reads {word}");
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

#[test]
fn whoever_stops_it_waits_longer_than_it_drains() {
    let drain = number(&read("taskyard.example.toml"), "#drain_ms = ") / 1000;
    let compose = number(&read("compose.yaml"), "stop_grace_period: ");
    let systemd = number(&read("deploy/systemd/taskyard.service"), "TimeoutStopSec=");
    let kubernetes = number(&read("deploy/kubernetes/statefulset.yaml"), "terminationGracePeriodSeconds: ");
    let of_its_own = number(&read("deploy/kubernetes/configmap.yaml"), "drain_ms = ") / 1000;
    assert!(compose > drain && systemd > drain && kubernetes > of_its_own.max(drain));
}

#[test]
fn what_a_restart_does_not_mend_is_not_restarted() {
    let unit = read("deploy/systemd/taskyard.service");
    assert!(unit.contains("\nRestartPreventExitStatus=2 3 4\n"));
    // As the contract has them.
    let contract = read("proto/PROTOCOL.md");
    let exits = "2 bad usage or configuration, or a store of a newer version · 3 corrupt store · 4 data directory locked · 5";
    assert!(contract.contains(exits), "the exit codes have changed: see the unit");
}

#[test]
fn the_image_is_built_from_all_members_of_the_workspace() {
    let manifest = read("Cargo.toml");
    let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let dockerfile = read("Dockerfile");
    let context = read(".dockerignore");
    for member in members.split(',').map(|member| member.trim().trim_matches('"')).filter(|name| *name != ".")
    {
        assert!(dockerfile.contains(&format!("COPY {member}/Cargo.toml {member}/\n")), "{member}");
        assert!(dockerfile.contains(&format!(" {member}/src")), "{member} has no empty sources");
        let top = member.split('/').next().unwrap();
        assert!(context.lines().any(|line| line == format!("!{top}")), "{top} is not in the context");
    }
    let version = manifest.split_once("rust-version = \"").unwrap().1.split('"').next().unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "Rust {version} builds it");
}

#[test]
fn nothing_is_published_beyond_loopback() {
    let compose = read("compose.yaml");
    let ports: Vec<&str> = compose.lines().filter_map(|line| line.trim().strip_prefix("ports: ")).collect();
    assert_eq!(ports.len(), 3, "the broker, Prometheus and Grafana");
    assert!(ports.iter().all(|port| port.starts_with("[\"127.0.0.1:")), "{ports:?}");
}

#[test]
fn the_configuration_of_the_pod_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("taskyard.toml");
    // The certificate is in a Secret.
    let text = block(&read("deploy/kubernetes/configmap.yaml"), "taskyard.toml: |");
    fs::write(&file, text).unwrap();
    let check = |token: Option<&str>| {
        let mut command = command(&["config", "check"]);
        Output::of(command.arg(&file).envs(token.map(|token| ("TASKYARD_ADMIN_TOKEN", token))))
    };
    let output = check(Some("a-token-that-is-long-enough"));
    assert!(output.err.lines().all(|line| line.contains("cannot read /etc/taskyard-tls/")), "{output:?}");
    assert!(check(None).err.contains("without authentication"));
}

/// What the service `tokens` of compose.yaml does, at each start of it.
#[test]
fn compose_makes_tokens_once_and_each_may_do_its_own() {
    if !Command::new("sh").args(["-c", "exit"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this machine has no sh");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (data, tokens, programs) =
        (directory.path().join("data"), directory.path().join("tokens"), directory.path().join("bin"));
    fs::create_dir(&tokens).unwrap();
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_taskyard"), programs.join("taskyard")).unwrap();
    let script = block(&read("compose.yaml"), "- |").replace("$$", "$");
    assert!(script.contains("/run/taskyard/"), "the script was not found");
    let script = script.replace("/run/taskyard", tokens.to_str().unwrap());
    let run = || {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-euc", &script]).env("PATH", path).env("TASKYARD_DATA_DIR", &data);
        let output = Output::of(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        assert_eq!(output.code, Some(0), "{output:?}");
        let token = |name: &str| fs::read_to_string(tokens.join(name)).unwrap().trim().to_owned();
        ["operator", "demo", "metrics"].map(token)
    };
    let first = run();
    assert_eq!(run(), first, "a second start changes nothing");
    // A file that was lost is made anew, and the others stay.
    fs::remove_file(tokens.join("demo")).unwrap();
    let [operator, demo, metrics] = run();
    assert!(operator == first[0] && demo != first[1] && metrics == first[2]);

    let broker = Broker::with(&["--tokens-file", data.join("tokens.toml").to_str().unwrap()]);
    let status = |token: &str, path: &str| {
        let header = format!("Authorization: Bearer {token}\r\n");
        http::json(broker.address, "GET", path, &header, &serde_json::Value::Null).status
    };
    assert_eq!([&operator, &demo, &metrics].map(|token| status(token, "/metrics")), [200, 403, 200]);
    assert_eq!(status(&first[1], "/metrics"), 401, "the token that was lost");
    let submit = |token: &str, queue: &str| {
        let header = format!("Authorization: Bearer {token}\r\n");
        let path = format!("/v1/queues/{queue}/tasks");
        http::json(broker.address, "POST", &path, &header, &serde_json::json!({"payload": 1})).status
    };
    assert_eq!([submit(&operator, "q"), submit(&demo, "q"), submit(&metrics, "q")], [201, 403, 403]);
    assert_eq!(submit(&demo, "demo-mail"), 201);
}
