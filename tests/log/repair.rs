//! Making a damaged store usable: all that is whole is kept, and what is gone is listed.

use taskyard::log::{check, repair};

use crate::disk::{Dice, Fault, SimDisk};
use crate::model::{Books, Item, batch, open, options, script};

fn damaged() -> (SimDisk, SimDisk) {
    let disk = SimDisk::new();
    let steps = script(11, 150);
    let books = Books::run(&disk, &steps);
    assert!(books.errors.is_empty());
    open(&disk).expect("start").log.close().expect("close");
    (disk.fork(), disk)
}

#[test]
fn a_whole_store_is_left_alone() {
    let (disk, _) = damaged();
    let before = disk.image();
    let report = repair(&disk, &options()).expect("repair");
    assert!(report.problems.is_empty());
    assert_eq!(disk.image(), before);
}

#[test]
fn one_damaged_record_costs_one_record() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    let items: Vec<Item> = (1..=5).map(|key| Item::put(key, &[key as u8; 100])).collect();
    log.append(&batch(&items)).expect("append");
    log.append(&batch(&[Item::put(9, b"nine")])).expect("append");
    log.close().expect("close");
    disk.flip("00000001.seg", 4096 + 64 + 2 * 128 + 60);
    assert!(open(&disk).is_err());
    let report = repair(&disk, &options()).expect("repair");
    assert_eq!(report.records, 5);
    assert_eq!(report.gone, [(Some(3), 3)]);
    let problems: Vec<_> = report.problems.iter().map(|problem| problem.lsns).collect();
    assert_eq!(problems, [Some((3, 3))], "{:?}", report.problems);
    assert_eq!(report.quarantined, ["00000001.seg.quarantined"]);
    let opened = open(&disk).expect("it opens again");
    assert_eq!(opened.state().keys().copied().collect::<Vec<_>>(), [1, 2, 4, 5, 9]);
}

/// Nothing said that records were gone with it.
#[test]
fn what_was_in_a_missing_first_segment_is_gone() {
    let (_, disk) = damaged();
    let names: Vec<String> = disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    disk.delete(&names[0]);
    let found = check(&disk).expect("check");
    let report = repair(&disk, &options()).expect("repair");
    assert_eq!((report.problems.len(), &report.problems), (1, &found.problems));
    assert!(report.problems[0].what.contains("missing"), "{:?}", report.problems);
    let [(first, last)] = report.gone[..] else { panic!("{:?}", report.gone) };
    assert_eq!(first, (names[0] == "00000001.seg").then_some(1));
    assert!(last > 0);
}

type Damage = (&'static str, fn(&mut Vec<u8>));

/// A number in a damaged header was believed: a repair set nearly all aside as read already, or told of gone records by
/// the thousand billion.
#[test]
fn a_damaged_header_of_a_segment_costs_none_of_its_records() {
    let (_, whole) = damaged();
    let before = open(&whole.fork()).expect("start").state();
    let segments: Vec<String> = whole.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    assert!(segments.len() > 2, "{segments:?}");
    for name in &segments {
        let damages: [Damage; 4] = [
            ("numbers", |bytes| bytes[40..56].fill(0xa5)),
            ("the oldest segment", |bytes| bytes[64..68].fill(0xa5)),
            ("a low number", |bytes| bytes[40..48].fill(0)),
            ("one bit", |bytes| bytes[45] ^= 8),
        ];
        for (what, damage) in damages {
            let disk = whole.fork();
            disk.tamper(name, damage);
            assert!(open(&disk.fork()).is_err());
            let found = check(&disk).expect("check");
            let report = repair(&disk, &options()).expect("repair");
            assert_eq!(report.problems, found.problems, "{what} in {name}");
            assert_eq!(report.problems.len(), 1, "{what} in {name}: {:?}", report.problems);
            assert_eq!(report.gone, [], "{what} in {name}");
            assert_eq!(open(&disk).expect("it opens again").state(), before, "{what} in {name}");
        }
    }
}

#[test]
fn a_missing_segment_is_told_once() {
    let (_, whole) = damaged();
    let segments: Vec<String> = whole.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    for name in &segments[1..segments.len() - 1] {
        let disk = whole.fork();
        disk.delete(name);
        let report = check(&disk).expect("check");
        let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
        assert_eq!(&problem.file, name);
        assert!(problem.what.contains("the segment is missing"), "{problem:?}");
        let gone = repair(&disk, &options()).expect("repair").gone;
        assert_eq!(gone, Vec::from_iter(problem.lsns.map(|(first, last)| (Some(first), last))));
    }
}

#[test]
fn whatever_is_damaged_the_rest_is_kept() {
    let (_, whole) = damaged();
    let before = open(&whole.fork()).expect("start");
    let records =
        open(&whole.fork()).expect("start").log.append(&batch(&[Item::put(1, b"")])).expect("append").0;
    let mut dice = Dice::new(5);
    let names: Vec<String> = whole.names().into_iter().filter(|name| !name.ends_with(".spare")).collect();
    let mut repaired = 0;
    for _ in 0..150 {
        let disk = whole.fork();
        let name = &names[dice.below(names.len() as u64) as usize];
        let length = disk.image()[name].len() as u64;
        match dice.below(4) {
            0 => disk.truncate(name, dice.below(length) as usize),
            1 => disk.delete(name),
            _ => disk.flip(name, dice.below(length) as usize),
        }
        if open(&disk.fork()).is_ok() {
            continue;
        }
        repaired += 1;
        let found = check(&disk).expect("check");
        let report = repair(&disk, &options()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report.problems, found.problems);
        assert!(check(&disk).expect("check").problems.is_empty());
        let opened = open(&disk).expect("it opens again");
        // Amendments whose `Put` is gone are kept, but not shown.
        assert!(opened.items.len() as u64 <= report.records);
        let gone: u64 = report.gone.iter().map(|(first, last)| last - first.unwrap_or(1) + 1).sum();
        // Where the oldest segment's records are gone and cleaning had been there before, nothing says which.
        if report.gone.iter().all(|(first, _)| first.is_some()) && report.problems[0].offset >= 4096 {
            assert!(report.records + gone >= before.items.len() as u64, "{name}: {report:?}");
        }
        assert!(gone <= records, "{name}: {report:?}");
        for item in &opened.items {
            assert!(before.items.contains(item), "a record that was not there: {item:?}");
        }
        let mut log = opened.log;
        log.append(&batch(&[Item::put(1 << 99, b"new")])).expect("append");
        log.close().expect("close");
        assert!(open(&disk.crash(0)).expect("start").state().contains_key(&(1 << 99)));
    }
    assert!(repaired > 50, "{repaired}");
}

#[test]
fn an_interrupted_repair_is_finished_or_begun_anew() {
    let (_, whole) = damaged();
    let name = whole.names().into_iter().find(|name| name.ends_with(".seg")).expect("a segment");
    whole.flip(&name, 4096 + 100);
    let done = whole.fork();
    let before = done.operations();
    repair(&done, &options()).expect("repair");
    let operations = done.operations() - before;
    let expected = open(&done).expect("it opens again").state();
    for operation in 1..=operations {
        let disk = whole.fork();
        disk.fail_at(operation, Fault::PowerCut);
        assert!(repair(&disk, &options()).is_err());
        for seed in [0, 1, 2 * operation, 2 * operation + 1] {
            let disk = disk.crash(seed);
            if let Ok(opened) = open(&disk.fork()) {
                assert_eq!(opened.state(), expected, "operation {operation}, seed {seed}");
            }
            repair(&disk, &options()).expect("repair again");
            let opened = open(&disk).expect("it opens again");
            assert_eq!(opened.state(), expected, "operation {operation}, seed {seed}");
        }
    }
}

/// Found by fuzzing: numbers at the end of their range, under checksums that are right, ended a repair by a panic.
#[test]
fn a_store_whose_numbers_no_broker_gets_to_is_refused() {
    for (place, bytes) in [(40, 8), (48, 4)] {
        let disk = SimDisk::new();
        open(&disk).expect("a new log").log.close().expect("close");
        disk.tamper("STORE", |content| {
            content[place..place + bytes].fill(0xff);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..]);
            content[12..16].copy_from_slice(&crc.to_le_bytes());
        });
        let before = disk.image();
        assert!(!check(&disk).expect("check").problems.is_empty());
        let error = repair(&disk, &options()).expect_err("there is no number to go on with").to_string();
        assert!(error.contains("no broker gets to"), "{error}");
        assert_eq!(disk.image(), before, "nothing is modified");
    }
}
