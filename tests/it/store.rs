//! Damaged stores: refused with the place, told the same by `store check`, usable again after
//! `store repair --quarantine`.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::Broker;
use crate::support::http::Connection;

/// A broker that has ended in order and left tasks in a few segments.
fn filled() -> (Broker, Vec<String>) {
    let mut broker = Broker::with(&["--segment-bytes", "65536"]);
    let mut ws = broker.ws();
    let tasks = (0..200)
        .map(|n| ws.submit(json!({"queue": "q", "payload": format!("{n} {}", "x".repeat(1000))})))
        .collect();
    drop(ws);
    broker.stop();
    (broker, tasks)
}

/// The segments, oldest first.
fn segments(broker: &Broker) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(broker.data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

fn contents(broker: &Broker) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(broker.data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_flipped_byte_is_refused_with_its_place_and_can_be_set_aside() {
    let (mut broker, tasks) = filled();
    let damaged = segments(&broker)[1].clone();
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[30_000] ^= 0x10;
    std::fs::write(&damaged, bytes).unwrap();
    let before = contents(&broker);

    let refused = broker.fails_to_start();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(refused.err.contains(name), "{refused:?}");
    let offset: u64 = refused
        .err
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .find(|number| (20_000..=30_000).contains(number))
        .unwrap_or_else(|| panic!("no offset: {refused:?}"));
    let checked = broker.store(&["check"]);
    assert_eq!(checked.code, Some(3), "{checked:?}");
    assert!(checked.out.contains(name) && checked.out.contains(&offset.to_string()), "{checked:?}");
    assert_eq!(contents(&broker), before, "nothing is changed by a start or a check");
    assert_eq!(broker.store(&["repair"]).code, Some(2), "repair wants to be told");

    let repaired = broker.store(&["repair", "--quarantine"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.out.contains("gone") && repaired.out.contains("set aside"), "{repaired:?}");
    assert_eq!(broker.store(&["check"]).code, Some(0));
    broker.start_again();
    let kept = tasks.iter().filter(|task| broker.get(&format!("/v1/tasks/{task}")).status == 200).count();
    assert!(kept >= 199, "{kept} of {} tasks are left of one flipped byte: {repaired:?}", tasks.len());
    assert_eq!(broker.count("q", "queued"), kept as u64);
}

#[test]
fn a_tail_that_was_cut_after_a_clean_stop_is_refused() {
    let (broker, _) = filled();
    // Well into the last records; behind them are zeros, segments are made in their full size.
    let last = segments(&broker).pop().unwrap();
    let mut bytes = std::fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end - 1500);
    std::fs::write(&last, bytes).unwrap();
    let refused = broker.fails_to_start();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.err.contains(last.file_name().unwrap().to_str().unwrap()), "{refused:?}");
    assert_eq!(broker.store(&["check"]).code, Some(3));
}

#[test]
fn a_missing_segment_is_refused() {
    let (broker, _) = filled();
    let gone = segments(&broker)[1].clone();
    std::fs::remove_file(&gone).unwrap();
    let refused = broker.fails_to_start();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert_eq!(broker.store(&["check"]).code, Some(3));
}

#[test]
fn a_torn_tail_after_kill_9_is_cut_and_counted() {
    let mut broker = Broker::start();
    let task = broker.submit("q", &json!({"payload": "whole"}));
    broker.kill();
    let segment = segments(&broker).pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // A batch that a power cut left half written begins as the last whole one did.
    let torn: Vec<u8> = bytes[end.saturating_sub(40)..end].iter().rev().copied().collect();
    bytes.truncate(end.next_multiple_of(8));
    bytes.extend(torn);
    std::fs::write(&segment, bytes).unwrap();
    broker.start_again();
    assert!(broker.logged("unfinished end").contains("WARN"));
    assert!(broker.get("/metrics").text().contains("taskyard_log_torn_tail_total 1"));
    assert_eq!(broker.task(&task)["state"], "queued");
}

#[test]
fn a_check_of_a_whole_store_says_so_and_of_no_store_too() {
    let (broker, _) = filled();
    let checked = broker.store(&["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.out.contains("the store is whole"), "{checked:?}");
    let repaired = broker.store(&["repair", "--quarantine"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.out.contains("nothing was done"), "{repaired:?}");

    let mut missing = crate::support::command(&["store", "check", "--data-dir", "/no/such/directory"]);
    let output = crate::support::Output::of(&mut missing);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.err.contains("/no/such/directory"), "{output:?}");
}

/// A library that lets every sync of a process fail while the file is there.
fn failing_syncs(broker_has: &Path) -> PathBuf {
    let (source, library) = (broker_has.join("syncs.rs"), broker_has.join("syncs.so"));
    let code = r#"
        use std::ffi::{c_char, c_int, c_void};
        unsafe extern "C" {
            fn __errno_location() -> *mut c_int;
            fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
        }
        #[unsafe(no_mangle)]
        pub extern "C" fn fdatasync(file: c_int) -> c_int {
            if std::env::var_os("SYNCS_FAIL").is_some_and(|path| std::path::Path::new(&path).exists()) {
                unsafe { *__errno_location() = 5 };
                return -1;
            }
            // RTLD_NEXT: the function that this one stands before.
            let next = unsafe { dlsym(-1_isize as *mut c_void, c"fdatasync".as_ptr()) };
            let next: extern "C" fn(c_int) -> c_int = unsafe { std::mem::transmute(next) };
            next(file)
        }
    "#;
    std::fs::write(&source, code).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = std::process::Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    library
}

/// A submit that was written and not synced was answered 503, which says that it was refused; it came after the restart.
#[cfg(target_os = "linux")]
#[test]
fn a_submit_of_which_nobody_knows_whether_it_is_stored_is_not_refused() {
    let directory = tempfile::tempdir().unwrap();
    let library = failing_syncs(directory.path());
    let fail = directory.path().join("fail");
    let environment = [("LD_PRELOAD", library.to_str().unwrap()), ("SYNCS_FAIL", fail.to_str().unwrap())];
    let one = ("/v1/queues/q/tasks", "application/json", "{}".to_owned());
    let many = ("/v1/tasks", "application/json", json!([{"queue": "q"}, {"queue": "q"}]).to_string());
    for (path, kind, body) in [one, many] {
        let mut broker = Broker::with_environment(&environment, &[]);
        broker.submit("q", &json!({}));
        std::fs::write(&fail, "").unwrap();
        let mut connection = Connection::open(broker.address);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            broker.address,
            body.len()
        );
        connection.send(head.as_bytes());
        assert_eq!(connection.ends(), b"", "{path}");
        assert_eq!(broker.ended(), 5);
        std::fs::remove_file(&fail).unwrap();
        broker.start_again();
    }
}
