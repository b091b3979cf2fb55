//! The example `checksum` on a small directory: nothing is lost when a worker and the broker are killed.

#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

const FILES: usize = 300;

fn missing_tool() -> Option<&'static str> {
    ["bash", "curl", "sha256sum"]
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").output().is_err())
}

/// Small files, some of them with names that are hard to hand on.
fn make_files(root: &Path) {
    for number in 0..FILES {
        let dir = root.join(format!("part {}", number % 7));
        fs::create_dir_all(&dir).expect("a directory");
        let name = match number % 10 {
            0 => format!("with spaces {number} ").into_bytes(),
            1 => format!("with\nnewlines {number}\n").into_bytes(),
            2 => format!("with \"quotes\" and 'more' \\ {number}").into_bytes(),
            3 => format!("-n{number}").into_bytes(),
            4 => format!("ümläut {number}").into_bytes(),
            5 => [b"no utf-8 \xff\xfe ", number.to_string().as_bytes()].concat(),
            _ => format!("{number}.txt").into_bytes(),
        };
        let content: Vec<u8> = (0..number * 11).map(|at| (at * 7 + number) as u8).collect();
        fs::write(dir.join(OsStr::from_bytes(&name)), content).expect("a file");
    }
}

#[test]
fn every_file_gets_its_digest_although_a_worker_and_the_broker_are_killed() {
    if let Some(tool) = missing_tool() {
        eprintln!("SKIPPED: this machine has no {tool}");
        return;
    }
    let files = tempfile::tempdir().expect("a directory");
    make_files(files.path());
    let output = Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/checksum/run"))
        .arg(files.path())
        .env("TASKYARD", env!("CARGO_BIN_EXE_taskyard"))
        .env_remove("FILES")
        .output()
        .expect("bash runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    for said in ["killed a worker", "killed the broker", "among them every redelivery", "OK: 300 tasks"] {
        assert!(out.contains(said), "it did not say {said:?}:\n{out}\n{err}");
    }
}
