//! Real files in a real directory.

use std::fs;
use std::time::Instant;

use taskyard::log::{Files, Key, Log, LogThread, Maintenance, Options, RecordBatch, RecordKind};
use tempfile::TempDir;

use crate::model::options;
use crate::thread::Signal;

fn open_files(directory: &TempDir, options: Options) -> (Log<Files>, Vec<(Key, Vec<u8>)>) {
    let mut records = Vec::new();
    let files = Files::at(directory.path()).expect("a directory");
    let (log, _) = Log::open(files, options, &mut |record| records.push((record.key, record.body.to_vec())))
        .expect("the log opens");
    (log, records)
}

#[test]
fn records_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut log, records) = open_files(&directory, options());
    assert!(records.is_empty());
    let mut expected = Vec::new();
    for key in 0..500 {
        let body = vec![key as u8; 700];
        let mut batch = RecordBatch::new();
        batch.push(RecordKind::Put, key, &body);
        log.append(&batch).expect("append");
        expected.push((key, body));
        while log.maintain().expect("maintain") == Maintenance::More {}
    }
    log.sync().expect("sync");
    let stats = log.stats();
    // The process goes on after this one died, as far as files can tell.
    drop(log);
    let (log, records) = open_files(&directory, options());
    assert!(records == expected);
    assert_eq!(log.stats().live_bytes, stats.live_bytes);
    log.close().expect("close");
    let (_, records) = open_files(&directory, options());
    assert!(records == expected);
}

#[test]
fn files_are_recycled_and_stay_few() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open_files(&directory, options());
    let mut batch = RecordBatch::new();
    for key in 0..3000 {
        batch.clear();
        batch.push(RecordKind::Put, key, &[1; 500]);
        if key >= 50 {
            batch.push(RecordKind::Remove, key - 50, &[]);
        }
        log.append(&batch).expect("append");
        while log.maintain().expect("maintain") == Maintenance::More {}
    }
    assert_eq!(log.stats().live_records, 50);
    log.close().expect("close");
    let bytes: u64 = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
        .sum();
    assert!(bytes <= 5 * options().segment_bytes, "{bytes}");
}

/// A store's first 64 MiB were written to room that was only reserved, and each sync wrote down what was in use now.
#[test]
fn the_first_segment_is_left_for_one_that_was_zeroed_and_its_file_is_not_used_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open_files(&directory, options());
    let mut append = |key| {
        let mut batch = RecordBatch::new();
        batch.push(RecordKind::Put, key, b"body");
        if key > 1 {
            batch.push(RecordKind::Remove, key - 1, &[]);
        }
        log.append(&batch).expect("append");
        let before = log.stats().segments;
        while log.maintain().expect("maintain") == Maintenance::More {}
        before
    };
    assert_eq!(append(1), 1);
    assert_eq!(append(2), 2, "a spare is ready");
    assert_eq!(append(3), 1, "it stays there");
    log.close().expect("close");
    let mut names: Vec<String> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .filter(|name| !matches!(name.as_str(), "STORE" | "LOCK"))
        .collect();
    names.sort();
    assert_eq!(names, ["00000001.spare", "00000002.seg", "00000002.spare"]);
    let (log, records) = open_files(&directory, options());
    assert_eq!(log.stats().live_records, 1);
    assert!(records.contains(&(3, b"body".to_vec())), "{records:?}");
}

/// In a steady flow a segment is freed about when the next begins. It was once removed when that was just before, and a
/// new file was made and zeroed: all was written twice.
#[test]
fn a_steady_flow_goes_round_in_the_same_files() {
    /// A segment's flags; 1 says that its file held another before (`FORMAT.md`).
    const FLAGS_AT: usize = 36;
    const FIRST: usize = 8;
    let segment_bytes = options().segment_bytes;
    for live in [10, 50, 100, 200, 400] {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut log, _) = open_files(&directory, options());
        let (mut batch, mut made) = (RecordBatch::new(), std::collections::BTreeMap::new());
        for key in 0..segment_bytes * 24 / 560 {
            batch.clear();
            batch.push(RecordKind::Put, key.into(), &[1; 500]);
            log.append(&batch).expect("append");
            if key >= live {
                log.forget((key - live).into());
            }
            while log.maintain().expect("maintain") == Maintenance::More {}
            for entry in fs::read_dir(directory.path()).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.extension().is_some_and(|name| name == "seg") && !made.contains_key(&path) {
                    made.insert(path.clone(), fs::read(&path).expect("a segment")[FLAGS_AT] & 1 == 1);
                }
            }
        }
        let anew: Vec<_> = made.iter().skip(FIRST).filter(|(_, recycled)| !**recycled).collect();
        assert!(made.len() > 2 * FIRST && anew.is_empty(), "{live} live: {anew:?} of {}", made.len());
    }
}

#[test]
fn the_directory_has_one_owner() {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, _) = open_files(&directory, options());
    let files = Files::at(directory.path()).expect("a directory");
    let error = Log::open(files, options(), &mut |_| {}).err().expect("refused");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("data directory is locked"));
    drop(log);
    open_files(&directory, options());
}

#[test]
fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["notes.txt", "1.seg", "000000001.seg", "x.spare", "backup.tmp"] {
        fs::write(directory.path().join(name), "mine").expect("write");
    }
    open_files(&directory, options()).0.close().expect("close");
    open_files(&directory, options()).0.close().expect("close");
    for name in ["notes.txt", "1.seg", "000000001.seg", "x.spare", "backup.tmp"] {
        assert_eq!(fs::read_to_string(directory.path().join(name)).expect("it is there"), "mine");
    }
}

/// How many 300-byte records a second, in batches of 64 with as many removals, as a full queue has them. Says so on
/// standard error; set `TASKYARD_LOG_RECORDS` for a number that means something, in a release build.
#[test]
fn throughput() {
    let wanted: u64 =
        std::env::var("TASKYARD_LOG_RECORDS").ok().and_then(|value| value.parse().ok()).unwrap_or(20_000);
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = Options::new(1, 2);
    if wanted < 1_000_000 {
        options.segment_bytes = 1 << 20;
    }
    let (log, _) = open_files(&directory, options.clone());
    let signal = Signal::default();
    let thread = LogThread::start(log, signal.setter()).expect("a thread");
    let begin = Instant::now();
    let body = [7; 300];
    let mut ticket = 0;
    let mut sent: u64 = 0;
    while sent < wanted {
        let mut batch = thread.buffer();
        for _ in 0..64 {
            let key = Key::from(sent).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
            batch.push(RecordKind::Put, key, &body);
            sent += 1;
        }
        for past in sent.saturating_sub(10_064)..sent.saturating_sub(10_000) {
            let key = Key::from(past).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
            batch.push(RecordKind::Remove, key, &[]);
        }
        signal.wait_until(|| thread.has_room());
        ticket = thread.send(batch, Vec::new());
    }
    signal.wait_until(|| thread.durable() == ticket);
    let seconds = begin.elapsed().as_secs_f64();
    let stats = thread.stats();
    thread.stop().expect("stop");
    let begin = Instant::now();
    let (_, records) = open_files(&directory, options);
    eprintln!(
        "{sent} records of 300 bytes in {seconds:.2} s: {:.0} k/s; {stats:?}; {} records read again in {:.2} s",
        sent as f64 / seconds / 1000.0,
        records.len(),
        begin.elapsed().as_secs_f64()
    );
}
