//! Damage that no crash can do: flipped, zeroed and missing bytes and files. Whatever was confirmed is there, or
//! the log refuses to open, says where, and touches nothing.

use taskyard::log::{Log, LogError, SEGMENT_BYTES_MIN, check};

use crate::disk::SimDisk;
use crate::model::{Item, State, batch, fold, open, options};

/// A small store of three segments and what is in it; closed, or killed after a mark.
fn store(clean: bool) -> (SimDisk, State) {
    let disk = SimDisk::new();
    let mut state = State::new();
    let mut log = open(&disk).expect("a new log").log;
    let mut append = |log: &mut Log<SimDisk>, items: &[Item]| {
        log.append(&batch(items)).expect("append");
        log.sync().expect("sync");
        fold(&mut state, items);
    };
    append(&mut log, &[Item::put(1, b"one"), Item::put(2, &[2; 100]), Item::amend(1, b"more")]);
    append(&mut log, &[Item::put(3, &[3; 700]), Item::remove(2)]);
    // Fills up the first two segments, so that three files hold something.
    append(&mut log, &[Item::put(4, &[4; 60_400])]);
    append(&mut log, &[Item::put(5, b"five")]);
    append(&mut log, &[Item::put(6, &[6; 60_400])]);
    append(&mut log, &[Item::put(7, b"seven"), Item::put(8, b"eight")]);
    append(&mut log, &[Item::amend(7, &[9; 300]), Item::remove(8)]);
    log.mark().expect("mark");
    if clean {
        log.close().expect("close");
    } else {
        drop(log);
    }
    assert_eq!(segments(&disk), ["00000001.seg", "00000002.seg", "00000003.seg"]);
    (disk, state)
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

/// Opens a damaged store; it shows all that is in it, or refuses as promised. Returns the refusal.
fn whole_or_refused(disk: &SimDisk, state: &State, what: &str) -> Option<LogError> {
    let before = disk.image();
    let report = check(disk).unwrap_or_else(|error| panic!("{what}: check: {error}"));
    assert_eq!(disk.image(), before, "{what}: check changes nothing");
    match open(&disk.fork()) {
        Ok(opened) => {
            assert_eq!(&opened.state(), state, "{what}: it opened, but not all is there");
            assert!(report.problems.is_empty(), "{what}: {report:?}");
            None
        }
        Err(error) => {
            let refused = open(disk).err().expect("it does the same twice");
            assert_eq!(refused.exit_code(), 3, "{what}: {refused}");
            assert_eq!(disk.image(), before, "{what}: nothing is modified");
            let LogError::Corrupt { file, offset, .. } = &error else {
                panic!("{what}: {error}");
            };
            // Which records are gone because of it, check may know more exactly: it looks behind.
            assert!(
                report.problems.iter().any(|problem| problem.file == *file && problem.offset == *offset),
                "{what}: check says {report:?}, open {error}"
            );
            Some(error)
        }
    }
}

/// Places to damage in a file: all of the first bytes and of those around where something stands, and here and
/// there between.
fn places(content: &[u8]) -> Vec<usize> {
    (0..content.len())
        .filter(|&place| {
            let near = &content[place.saturating_sub(70)..(place + 8).min(content.len())];
            let is_varied = near.iter().any(|&byte| byte != near[0]);
            place < 80 || is_varied || place.is_multiple_of(509)
        })
        .collect()
}

/// Who takes away the last batches of a killed broker together with the mark behind them leaves nothing that could
/// tell; a clean stop writes the last record's number elsewhere.
fn is_open_end(name: &str, clean: bool) -> bool {
    name == "00000003.seg" && !clean
}

#[test]
fn any_flipped_byte() {
    for clean in [true, false] {
        let (disk, state) = store(clean);
        let mut refused = 0;
        for (name, content) in disk.image() {
            for place in places(&content) {
                let damaged = disk.fork();
                damaged.flip(&name, place);
                let what = format!("clean {clean}, {name} at {place}");
                refused += usize::from(whole_or_refused(&damaged, &state, &what).is_some());
            }
        }
        assert!(refused > 1500, "{refused}");
    }
}

#[test]
fn any_length() {
    for clean in [true, false] {
        let (disk, state) = store(clean);
        for (name, content) in disk.image() {
            if name.ends_with(".spare") || is_open_end(&name, clean) {
                continue;
            }
            for length in places(&content) {
                let damaged = disk.fork();
                damaged.truncate(&name, length);
                whole_or_refused(&damaged, &state, &format!("clean {clean}, {name} cut to {length}"));
            }
        }
    }
}

#[test]
fn any_zeroed_sector() {
    for clean in [true, false] {
        let (disk, state) = store(clean);
        for (name, content) in disk.image() {
            if is_open_end(&name, clean) {
                continue;
            }
            for start in (0..content.len()).step_by(512) {
                let damaged = disk.fork();
                damaged.tamper(&name, |bytes| {
                    let end = (start + 512).min(bytes.len());
                    bytes[start..end].fill(0);
                });
                whole_or_refused(&damaged, &state, &format!("clean {clean}, {name} zeroed at {start}"));
            }
        }
    }
}

#[test]
fn any_missing_file() {
    for clean in [true, false] {
        let (disk, state) = store(clean);
        for name in disk.names() {
            if name.ends_with(".spare") {
                continue;
            }
            let damaged = disk.fork();
            damaged.delete(&name);
            let error = whole_or_refused(&damaged, &state, &name).expect("it cannot do without");
            assert!(error.to_string().contains(&format!("{name} at byte 0")), "{error}");
            assert!(error.to_string().contains("missing"), "{error}");
        }
        let emptied = disk.fork();
        segments(&disk).iter().for_each(|name| emptied.delete(name));
        assert!(whole_or_refused(&emptied, &state, "no segments").is_some());
    }
}

#[test]
fn a_doubled_segment() {
    let (disk, state) = store(true);
    let image = disk.image();
    for (from, to) in [(3, 4), (2, 3), (1, 2), (2, 1)] {
        let damaged = disk.fork();
        damaged.put(&format!("0000000{to}.seg"), image[&format!("0000000{from}.seg")].clone());
        let error = whole_or_refused(&damaged, &state, "doubled").expect("refused");
        assert!(error.to_string().contains("is a copy of"), "{error}");
    }
}

#[test]
fn a_segment_of_another_store() {
    let (disk, state) = store(true);
    let other = SimDisk::new();
    let mut other_options = options();
    other_options.store_uuid = 0xB6B6;
    drop(Log::open(other.clone(), other_options, &mut |_| {}).expect("a new log"));
    disk.put("00000002.seg", other.image()["00000001.seg"].clone());
    let error = whole_or_refused(&disk, &state, "foreign").expect("refused");
    assert!(error.to_string().contains("belongs to another store"), "{error}");
}

#[test]
fn a_newer_format_is_left_to_newer_programs() {
    for name in ["STORE", "00000003.seg"] {
        let (disk, _) = store(true);
        disk.tamper(name, |bytes| {
            bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
            let block = bytes.len().min(4096);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..block]);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        });
        let before = disk.image();
        let error = open(&disk).err().expect("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("format version 2"), "{error}");
        assert!(matches!(check(&disk), Err(LogError::Newer { .. })));
        assert_eq!(disk.image(), before);
    }
}

/// The message is what an operator sees at night: it names the place and the records, and says what to do.
#[test]
fn the_message_names_the_place() {
    let (disk, state) = store(false);
    disk.flip("00000001.seg", 4096 + 64 + 30);
    let error = whole_or_refused(&disk, &state, "flipped").expect("refused");
    assert_eq!(
        error.to_string(),
        "the store is damaged: 00000001.seg at byte 4096, records 1 to 5: the checksum of batch 1 is wrong. \
         Nothing was modified. See `taskyard store check`; restore a backup, or keep what is whole with \
         `taskyard store repair --quarantine`"
    );
}

/// The last confirmed batch of a killed broker: without the mark after it, its damage would look like a torn end.
#[test]
fn a_mark_tells_damage_from_a_torn_end() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    log.append(&batch(&[Item::put(1, b"one")])).expect("append");
    log.sync().expect("sync");
    let unmarked = disk.fork();
    log.mark().expect("mark");
    drop(log);
    for (disk, refuses) in [(unmarked, false), (disk, true)] {
        disk.flip("00000001.seg", 4096 + 64 + 30);
        assert_eq!(open(&disk).is_err(), refuses);
    }
}

#[test]
fn a_lost_mark_loses_nothing() {
    let disk = SimDisk::new();
    let mut log = open(&disk).expect("a new log").log;
    for key in 1..4 {
        log.append(&batch(&[Item::put(key, b"x")])).expect("append");
        log.sync().expect("sync");
        log.mark().expect("mark");
    }
    drop(log);
    // A batch of one such record takes 96 bytes with its header and fill, a mark 64: this is the second mark.
    let place = 4096 + 96 + 64 + 96;
    disk.tamper("00000001.seg", |bytes| bytes[place..place + 64].fill(0));
    let opened = open(&disk).expect("nothing is missing");
    assert_eq!(opened.state().len(), 3);
}

/// A client may send whatever it likes as a payload, even batches from a stolen file: they do not count, unless it
/// also knows the salt.
#[test]
fn a_batch_in_a_payload_is_no_batch() {
    let (other, _) = store(true);
    let stolen = other.image()["00000001.seg"][4096..4096 + 1200].to_vec();
    for (salt_seed, opens) in [(43, true), (42, false)] {
        let disk = SimDisk::new();
        let mut options = options();
        options.salt_seed = salt_seed;
        let (mut log, _) = Log::open(disk.clone(), options.clone(), &mut |_| {}).expect("a new log");
        log.append(&batch(&[Item::put(1, b"one")])).expect("append");
        log.sync().expect("sync");
        // The payload begins at a multiple of 8.
        log.append(&batch(&[Item::put(2, &[&[0; 4], &stolen[..]].concat())])).expect("append");
        drop(log);
        // The stolen bytes stay whole, the header of the batch around them does not.
        disk.tamper("00000001.seg", |bytes| bytes[4096 + 96..4096 + 96 + 64].fill(0xEE));
        assert_eq!(Log::open(disk.clone(), options, &mut |_| {}).is_ok(), opens);
    }
}

#[test]
fn options_that_cannot_work_are_refused() {
    for segment_bytes in [0, SEGMENT_BYTES_MIN - 4096, SEGMENT_BYTES_MIN + 1, 2 << 30] {
        let mut options = options();
        options.segment_bytes = segment_bytes;
        let disk = SimDisk::new();
        let error = Log::open(disk.clone(), options, &mut |_| {}).err().expect("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(disk.names().is_empty());
    }
}

#[test]
fn a_second_opener_is_turned_away() {
    let disk = SimDisk::new();
    let first = open(&disk).expect("a new log");
    let error = open(&disk).err().expect("refused");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().starts_with("data directory is locked by another broker: "), "{error}");
    assert!(matches!(check(&disk), Err(LogError::Locked)));
    drop(first);
    open(&disk).expect("the lock went with its owner");
}
