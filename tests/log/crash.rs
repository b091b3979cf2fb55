//! Power cuts and failures at every operation of a workload.

use crate::disk::{Dice, Fault, SimDisk};
use crate::model::{Books, Item, Step, batch, open, options, script};

/// Opens what a crash left; it must open, keep all promises, keep them over another crash right after, and be
/// ready for new work.
fn survive(books: &Books, disk: &SimDisk) {
    let opened = open(disk).unwrap_or_else(|error| panic!("it must open after a mere crash: {error}"));
    books.judge(&opened);
    let visited = opened.state();
    for name in disk.names() {
        assert!(!name.ends_with(".tmp"), "{name} was left behind");
    }
    assert!(disk.names().iter().filter(|name| name.ends_with(".spare")).count() <= 3);
    let mut log = opened.log;
    log.append(&batch(&[Item::put(u128::MAX, b"new")])).expect("append after recovery");
    log.sync().expect("sync after recovery");
    drop(log);

    let again = open(&disk.crash(0)).expect("what was synced after recovery");
    let mut expected = visited;
    expected.insert(u128::MAX, vec![b"new".to_vec()]);
    assert!(again.state() == expected, "what was visited is durable, and so is the new record");
    assert_eq!(again.recovery.torn_tail, None);
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_confirmed() {
    let steps = script(1, 240);
    let whole = SimDisk::new();
    let books = Books::run(&whole, &steps);
    assert!(books.errors.is_empty(), "{:?}", books.errors);
    let operations = whole.operations();
    assert!(whole.names().iter().any(|name| name.as_str() > "00000006.seg" && name.ends_with(".seg")));
    assert!(!whole.names().iter().any(|name| name == "00000001.seg"), "cleaning freed the first segment");
    for operation in 1..=operations {
        let disk = SimDisk::new();
        disk.fail_at(operation, Fault::PowerCut);
        let books = Books::run(&disk, &steps);
        for seed in [0, 1, 2 * operation, 2 * operation + 1] {
            survive(&books, &disk.crash(seed));
        }
    }
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let steps = script(2, 200);
    let whole = SimDisk::new();
    Books::run(&whole, &steps);
    let mut dice = Dice::new(7);
    for operation in (1..=whole.operations()).step_by(3) {
        let disk = SimDisk::new();
        disk.fail_at(operation, Fault::PowerCut);
        let books = Books::run(&disk, &steps);
        let left = disk.crash(dice.roll());
        let recovery_operations = {
            let disk = left.fork();
            let before = disk.operations();
            open(&disk).expect("it must open after a mere crash");
            disk.operations() - before
        };
        for _ in 0..6 {
            let disk = left.fork();
            disk.fail_at(1 + dice.below(recovery_operations), Fault::PowerCut);
            assert!(open(&disk).is_err());
            survive(&books, &disk.crash(dice.roll()));
        }
    }
}

/// What only the kernel holds is read again, and has to outlive a power cut from then on.
#[test]
fn a_dead_process_loses_nothing_appended() {
    let steps = script(3, 120);
    for count in 1..=steps.len() {
        let disk = SimDisk::new();
        let mut books = Books::run(&disk, &steps[..count]);
        assert!(books.errors.is_empty());
        books.nothing_may_be_lost();
        survive(&books, &disk.fork());
    }
}

/// The producer of a batch was told that it failed: it must not be found later.
#[test]
fn a_refused_batch_is_gone_even_if_it_was_written() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    log.append(&batch(&[Item::put(1, b"first")])).expect("append");
    disk.fail_at(1, Fault::LateError);
    assert!(log.append(&batch(&[Item::put(2, b"second")])).is_err());
    log.sync().expect("sync");
    drop(log);
    for disk in [disk.fork(), disk.crash(0), disk.crash(1)] {
        assert_eq!(open(&disk).expect("the next start").items, [Item::put(1, b"first")]);
    }
}

#[test]
fn any_operation_may_fail() {
    let steps = script(4, 200);
    let whole = SimDisk::new();
    let books = Books::run(&whole, &steps);
    assert!(books.errors.is_empty(), "{:?}", books.errors);
    for fault in [Fault::Eio, Fault::NoSpace, Fault::ShortWrite, Fault::LateError] {
        for operation in 1..=whole.operations() {
            let disk = SimDisk::new();
            disk.fail_at(operation, fault);
            let books = Books::run(&disk, &steps);
            survive(&books, &disk.fork().crash(2 * operation + 1));
            survive(&books, &disk.crash(0));
        }
    }
}

#[test]
fn many_workloads_survive_many_crashes() {
    for seed in 100..220 {
        let steps = script(seed, 160);
        let mut dice = Dice::new(seed);
        let disk = SimDisk::new();
        disk.fail_at(1 + dice.below(700), Fault::PowerCut);
        let books = Books::run(&disk, &steps);
        survive(&books, &disk.crash(dice.roll()));
    }
}

/// A sync that failed may have lost what it should have kept; the log must not let a second one pretend.
#[test]
fn a_failed_sync_is_never_tried_again() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    log.append(&batch(&[Item::put(1, b"kept")])).expect("append");
    log.sync().expect("sync");
    log.append(&batch(&[Item::put(2, b"lost")])).expect("append");
    disk.fail_at(1, Fault::Eio);
    let error = log.sync().expect_err("the disk failed");
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("sync 00000001.seg"), "{error}");
    let poisoned = log.sync().expect_err("no second try");
    assert_eq!(poisoned.exit_code(), 5);
    assert!(log.append(&batch(&[Item::put(3, b"")])).is_err());
    assert!(log.maintain().is_err());
    assert!(!log.accepts_new());
    assert!(log.close().is_err());
    let opened = open(&disk.crash(0)).expect("the next start");
    assert_eq!(opened.items, [Item::put(1, b"kept")]);
}

#[test]
fn a_short_write_is_undone_before_the_next_append() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    log.append(&batch(&[Item::put(1, b"first")])).expect("append");
    disk.fail_at(1, Fault::ShortWrite);
    assert!(log.append(&batch(&[Item::put(2, &[7; 5000])])).is_err());
    log.append(&batch(&[Item::put(3, b"third")])).expect("the tail was restored");
    log.sync().expect("sync");
    drop(log);
    let opened = open(&disk.crash(0)).expect("the next start");
    assert_eq!(opened.items, [Item::put(1, b"first"), Item::put(3, b"third")]);
}

/// A torn end is cut, but not thrown away: whoever looks into the crash finds a copy.
#[test]
fn a_torn_end_is_copied_and_reported() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    log.append(&batch(&[Item::put(1, b"kept")])).expect("append");
    log.sync().expect("sync");
    log.append(&batch(&[Item::put(2, &[7; 5000])])).expect("append");
    drop(log);
    let left = disk.fork();
    left.tamper("00000001.seg", |bytes| bytes[6000..6100].fill(0));
    let opened = open(&left).expect("a torn end is no damage");
    assert_eq!(opened.items, [Item::put(1, b"kept")]);
    assert!(!opened.recovery.clean);
    let torn = opened.recovery.torn_tail.expect("it is reported");
    assert_eq!(torn.file, "00000001.seg");
    let name = torn.kept.expect("there is room");
    let image = left.image();
    assert_eq!(image[&name].len() as u64, torn.bytes);
    let start = torn.offset as usize;
    assert_eq!(image[&name][..500], disk.image()["00000001.seg"][start..start + 500]);
    assert_eq!(image["00000001.seg"].len(), start, "its room is given back");
    drop(opened.log);
    assert_eq!(open(&left.crash(0)).expect("the next start").recovery.torn_tail, None);
}

#[test]
fn only_a_few_torn_ends_are_kept() {
    let disk = SimDisk::new();
    drop(open(&disk).expect("a new log").log);
    for round in 0..12u8 {
        let mut log = open(&disk).expect("start").log;
        log.append(&batch(&[Item::put(1, &[round; 3000])])).expect("append");
        drop(log);
        let name = disk.names().into_iter().rfind(|name| name.ends_with(".seg")).expect("a segment");
        disk.tamper(&name, |bytes| bytes[5000] ^= 1);
    }
    open(&disk).expect("start");
    assert_eq!(disk.names().iter().filter(|name| name.starts_with("torn-")).count(), 8);
}

/// A start grows a number that is never seen twice, whatever was synced of it.
#[test]
fn starts_are_counted() {
    let disk = SimDisk::new();
    let mut last = 0;
    for round in 0..10 {
        let opened = open(&disk).expect("start");
        assert!(opened.recovery.start > last);
        last = opened.recovery.start;
        if round % 2 == 0 {
            opened.log.close().expect("close");
        }
    }
}

#[test]
fn a_clean_stop_goes_on_where_it_was() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    for key in 0..20 {
        log.append(&batch(&[Item::put(key, b"x")])).expect("append");
        log.close().expect("close");
        let opened = open(&disk.crash(0)).expect("start");
        assert!(opened.recovery.clean);
        log = open(&disk).expect("start").log;
    }
    assert_eq!(disk.names().iter().filter(|name| name.ends_with(".seg")).count(), 1);
}

/// What is moved is a key with all that is known of it: an amendment that stayed behind its `Put` would be lost,
/// one that was moved before it too.
#[test]
fn cleaning_keeps_amendments_with_their_put() {
    let disk = SimDisk::new();
    let mut books = Books::default();
    let mut log = open(&disk).expect("a new log").log;
    let mut step = |log: &mut _, step| books.step(log, &step).expect("the disk is well");
    let mut first = vec![Item::put(1, b"put")];
    for number in 0..40u8 {
        step(&mut log, Step::Append(first.clone()));
        first = vec![Item::amend(1, &[number; 300])];
        for key in 0..10 {
            let items = vec![Item::put(100 + key, &[number; 900])];
            step(&mut log, Step::Append(items));
        }
        step(&mut log, Step::Maintain(100));
    }
    let before = log.stats();
    assert!(before.segments <= 6, "{before:?}");
    assert_eq!(before.live_records, 1 + 39 + 10);
    step(&mut log, Step::Sync);
    drop(log);
    assert!(!disk.names().contains(&"00000001.seg".to_owned()));
    let opened = open(&disk.crash(0)).expect("start");
    books.judge(&opened);
    assert_eq!(opened.state()[&1].len(), 40);
    let after = opened.log.stats();
    assert_eq!((after.live_records, after.live_bytes), (before.live_records, before.live_bytes));
}

/// A queue that stands still but for one task must not be copied round and round.
#[test]
fn cleaning_writes_at_most_as_much_again() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    for key in 0..2000u128 {
        log.append(&batch(&[Item::put(key, &[1; 400])])).expect("append");
        while log.maintain().expect("maintain") == taskyard::log::Maintenance::More {}
    }
    let mut appended = 0;
    let first = log.append(&batch(&[])).expect("append").0;
    for round in 0..6000u128 {
        let key = (round * 7919) % 2000;
        log.append(&batch(&[Item::put(key, &[2; 400])])).expect("append");
        appended += 1;
        while log.maintain().expect("maintain") == taskyard::log::Maintenance::More {}
    }
    let written = log.append(&batch(&[])).expect("append").0 - first;
    assert!(written <= 2 * appended + 500, "{written} records were written for {appended}");
    assert_eq!(log.stats().live_records, 2000);
    let bytes = log.stats().bytes;
    assert!(bytes < 2 * 2000 * 500 + 8 * options().segment_bytes, "{bytes}");
}

/// A segment that is made in a hurry once took the name, and with it the bytes, of a spare in the making.
#[test]
fn a_spare_in_the_making_is_left_alone() {
    for steps in 0..4 {
        let disk = SimDisk::new();
        let mut log = open(&disk).expect("a new log").log;
        for _ in 0..steps {
            log.maintain().expect("maintain");
        }
        for key in 0..4 {
            log.append(&batch(&[Item::put(key, &[key as u8; 90_000])])).expect("append");
            log.maintain().expect("maintain");
        }
        while log.maintain().expect("maintain") == taskyard::log::Maintenance::More {}
        for key in 4..200 {
            log.append(&batch(&[Item::put(key, &[key as u8; 3000])])).expect("append");
        }
        log.sync().expect("sync");
        assert_eq!(open(&disk.crash(0)).expect("start").state().len(), 200);
    }
}

#[test]
fn a_batch_bigger_than_a_segment_has_one_of_its_own() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    let items = [Item::put(1, &[1; 50_000]), Item::put(2, &[2; 300_000]), Item::amend(2, &[3; 9])];
    log.append(&batch(&items)).expect("append");
    log.append(&batch(&[Item::put(3, b"small")])).expect("append");
    log.sync().expect("sync");
    for key in 10..400 {
        log.append(&batch(&[Item::put(key, &[1; 3000]), Item::remove(key)])).expect("append");
        while log.maintain().expect("maintain") == taskyard::log::Maintenance::More {}
    }
    log.sync().expect("sync");
    drop(log);
    let state = open(&disk.crash(0)).expect("start").state();
    assert_eq!(state[&2], [vec![2; 300_000], vec![3; 9]]);
    assert_eq!(state.len(), 3);
}
