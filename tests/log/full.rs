//! A full disk: new work is refused, what ends work goes on, and all is well by itself when there is room.

use taskyard::log::{Log, Maintenance, SEGMENT_BYTES_MIN};

use crate::disk::SimDisk;
use crate::model::{Item, batch, open};

fn maintain(log: &mut Log<SimDisk>) -> Maintenance {
    loop {
        match log.maintain().expect("maintain") {
            Maintenance::More => {}
            other => return other,
        }
    }
}

/// A log on a disk with room for `segments`, filled until it takes no more.
fn fill(segments: u64) -> (SimDisk, Log<SimDisk>, u128) {
    let disk = SimDisk::new();
    disk.set_capacity(Some(segments * SEGMENT_BYTES_MIN + 8192));
    let mut log = open(&disk).expect("a new log").log;
    let mut key = 0;
    while log.accepts_new() {
        log.append(&batch(&[Item::put(key, &[1; 1000])])).expect("it said that it accepts");
        log.sync().expect("sync");
        maintain(&mut log);
        key += 1;
        assert!(key < 10_000, "the disk never fills");
    }
    (disk, log, key)
}

#[test]
fn what_ends_work_goes_on_and_makes_room() {
    let (_, mut log, keys) = fill(8);
    assert_eq!(maintain(&mut log), Maintenance::NoRoom);
    let mut ended = 0;
    while !log.accepts_new() {
        log.append(&batch(&[Item::remove(ended)])).expect("there is a reserve");
        log.sync().expect("sync");
        maintain(&mut log);
        ended += 1;
        assert!(ended <= keys, "all is ended, and there is still no room");
    }
    assert!(ended < keys / 2, "the first dead segment makes room: {ended} of {keys}");
}

#[test]
fn a_segment_of_settles_fits_into_the_reserve() {
    let (_, mut log, _) = fill(8);
    // Forgets nothing and frees nothing: these all go into what is left.
    for _ in 0..SEGMENT_BYTES_MIN / 200 {
        log.append(&batch(&[Item::amend(1, &[0; 40])])).expect("there is a reserve");
        maintain(&mut log);
    }
}

#[test]
fn it_accepts_again_when_there_is_room() {
    let (disk, mut log, keys) = fill(6);
    disk.set_capacity(None);
    assert!(!log.accepts_new());
    maintain(&mut log);
    assert!(log.accepts_new());
    log.append(&batch(&[Item::put(keys, b"x")])).expect("append");
    log.close().expect("close");
    assert_eq!(open(&disk).expect("start").state().len() as u128, keys + 1);
}

#[test]
fn the_reserve_has_an_end_and_comes_back() {
    let (disk, mut log, _) = fill(6);
    let mut appended = 0u64;
    let error = loop {
        match log.append(&batch(&[Item::amend(1, &[0; 1000])])) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
        maintain(&mut log);
    };
    assert!(matches!(error, taskyard::log::LogError::Full), "{error}");
    assert!(appended * 1000 > SEGMENT_BYTES_MIN / 2, "{appended}");
    log.sync().expect("what was appended can be synced");
    disk.set_capacity(None);
    log.append(&batch(&[Item::amend(1, &[0; 1000])])).expect("there is room");
    log.close().expect("close");
    let state = open(&disk.crash(0)).expect("start").state();
    assert_eq!(state[&1].len() as u64, 1 + appended + 1);
}

/// The broker dies on a full disk and must start on it: whatever is there has to be offered and ended.
#[test]
fn it_starts_on_a_full_disk() {
    let (disk, log, keys) = fill(8);
    drop(log);
    for seed in 0..4 {
        let disk = disk.crash(seed);
        disk.set_capacity(Some(disk.used()));
        let opened = open(&disk).expect("it starts");
        assert_eq!(opened.state().len() as u128, keys);
        let mut log = opened.log;
        maintain(&mut log);
        for key in 0..keys {
            log.append(&batch(&[Item::remove(key)])).expect("there is a reserve");
            log.sync().expect("sync");
            maintain(&mut log);
        }
        assert!(log.accepts_new());
        log.close().expect("close");
        assert!(open(&disk).expect("start").state().is_empty());
    }
}
