//! The house rules, as far as a machine can check them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `place` with one of these endings.
fn files(place: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(place)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !matches!(name, "target" | ".git" | "node_modules" | "taskyard-data") {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Lines of code: without comments, and without what follows `#[cfg(test)]`.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let body = text.split("\n#[cfg(test)]").next().unwrap();
    body.lines()
        .enumerate()
        .map(|(nth, line)| (nth + 1, line.split("//").next().unwrap().to_owned()))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect()
}

fn complain(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The floor of a module of the broker; a module uses its own floor and those below.
fn floor(module: &str) -> u32 {
    match module {
        "columns" | "ids" | "slots" => 0,
        "core" => 1,
        "clock" | "live" | "process" | "standstill" | "trim" | "log" | "auth" | "transport" => 2,
        "engine" => 3,
        "outbox" | "connections" | "broker" | "hops" | "overview" | "metrics" | "dispatcher" | "reserve" => 4,
        "ws" | "http" => 5,
        "config" | "server" | "cli" => 6,
        other => panic!("module {other} has no floor: give it one here and in ARCHITECTURE.md"),
    }
}

#[test]
fn a_use_points_to_its_own_floor_or_a_lower_one() {
    let mut broken = Vec::new();
    for path in files("src", &[".rs"]) {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        for (line, text) in code(&path) {
            for (at, _) in text.match_indices("crate::") {
                let used: String =
                    text[at + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let is_module = used.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !used.is_empty();
                // The config holds what the core and the sockets are told, so it knows both.
                if is_module && floor(&used) > floor(&module) {
                    broken.push(format!("{}:{line} uses crate::{used}", shown(&path)));
                }
            }
        }
    }
    complain("a floor uses a higher one", &broken);
}

#[test]
fn core_is_pure() {
    let forbidden = [
        "async ",
        ".await",
        "std::time",
        "Instant",
        "SystemTime",
        "std::fs",
        "std::io",
        "std::net",
        "std::thread",
        "Mutex",
        "RwLock",
        "Atomic",
        "rand::",
        "tokio",
        "serde",
        "tracing",
        "dashmap",
        "println!",
        "std::collections::HashMap",
    ];
    let mut broken = Vec::new();
    for path in files("src/core", &[".rs"]) {
        for (line, text) in code(&path) {
            for word in forbidden.iter().filter(|word| text.contains(**word)) {
                broken.push(format!("{}:{line} has {word:?}", shown(&path)));
            }
        }
    }
    complain("core decides and nothing else", &broken);
}

#[test]
fn the_map_of_connections_lives_in_one_file() {
    let mut broken = Vec::new();
    for path in files("src", &[".rs"]) {
        if path.ends_with("src/connections.rs") {
            let waits = code(&path)
                .into_iter()
                .filter(|(_, text)| text.contains("async ") || text.contains(".await"));
            broken.extend(waits.map(|(line, _)| format!("{}:{line} waits", shown(&path))));
            continue;
        }
        let uses = code(&path)
            .into_iter()
            .filter(|(_, text)| text.contains("DashMap") || text.contains("dashmap::"));
        broken.extend(uses.map(|(line, _)| format!("{}:{line} uses DashMap", shown(&path))));
    }
    complain("the switchboard is connections.rs alone, and never waits", &broken);
}

#[test]
fn every_buffer_is_bounded_and_nothing_is_left_for_later() {
    let forbidden =
        ["unbounded_channel", "unbounded(", "todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME", "XXX"];
    let mut broken = Vec::new();
    for place in ["src", "allocator/src", "proto/src", "clients/rust/src", "bench/src"] {
        for path in files(place, &[".rs"]) {
            let text = fs::read_to_string(&path).unwrap();
            for (nth, line) in text.lines().enumerate() {
                for word in forbidden.iter().filter(|word| line.contains(**word)) {
                    broken.push(format!("{}:{} has {word}", shown(&path), nth + 1));
                }
            }
        }
    }
    complain("not to be had here", &broken);
}

#[test]
fn files_say_what_they_are_for_and_end_with_one_newline() {
    let mut broken = Vec::new();
    for path in files(".", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//!") {
            broken.push(format!("{} does not begin with what it is for (//!)", shown(&path)));
        }
    }
    for path in files(".", &[".rs", ".md", ".toml", ".sh", "justfile"]) {
        let text = fs::read_to_string(&path).unwrap();
        if !text.ends_with('\n') || text.ends_with("\n\n") {
            broken.push(format!("{} does not end with one newline", shown(&path)));
        }
        for (nth, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t']) || line.contains('\t') && !path.ends_with("justfile") {
                broken.push(format!("{}:{} has a tab or ends with a space", shown(&path), nth + 1));
            }
        }
    }
    complain("files in order", &broken);
}

#[test]
fn the_project_stands_by_itself() {
    // Nothing of the machine it was made on, no registry's host.
    let forbidden = ["/work/", "/root/", "crates.io/api", "index.crates.io", "registry.npmjs", "pypi.org"];
    let mut broken = Vec::new();
    for path in files(".", &[".rs", ".md", ".toml", ".yml", ".yaml", "run", "justfile"]) {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in forbidden.iter().filter(|word| text.contains(**word)) {
            broken.push(format!("{} names {word}", shown(&path)));
        }
    }
    complain("of this machine, or of a registry", &broken);
}

#[test]
fn the_readme_promises_what_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut broken = Vec::new();
    for link in readme.split("](").skip(1) {
        let target = link.split(')').next().unwrap();
        if !target.starts_with("http") && !root().join(target).exists() {
            broken.push(format!("{target} does not exist"));
        }
    }
    for command in ["cargo run --release -- serve", "cargo test --workspace"] {
        if !readme.contains(command) {
            broken.push(format!("the command {command:?} is gone"));
        }
    }
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    if !ci.contains("cargo test --workspace") {
        broken.push(".ci/run does not run the README's test command".into());
    }
    complain("the README", &broken);
}

#[test]
fn behind_every_threat_stands_a_test() {
    let security = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let sources: Vec<String> = ["src", "tests", "proto", "clients"]
        .iter()
        .flat_map(|place| files(place, &[".rs"]))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut broken = Vec::new();
    let mut rows = 0;
    for row in security.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat")) {
        rows += 1;
        let tests: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            broken.push(format!("no test: {row}"));
        }
        for name in tests {
            let exists = root().join(name).exists()
                || sources.iter().any(|source| source.contains(&format!("fn {name}(")));
            if !exists {
                broken.push(format!("there is no test {name}"));
            }
        }
    }
    assert!(rows > 15, "the table of threats was not found");
    complain("SECURITY.md", &broken);
}
