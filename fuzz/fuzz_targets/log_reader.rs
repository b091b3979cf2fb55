//! A store that somebody damaged: it is refused, or shows only what was written to it; `check` and `open` agree,
//! and `repair` makes it a store that opens. With checksums made right again for what was damaged, nobody can tell
//! what was written: then it must only end, within memory that the files justify.
#![no_main]

#[allow(dead_code, reason = "shared with the tests of the log, which use more of it")]
#[path = "../../tests/support/disk.rs"]
mod disk;
mod meter;
#[allow(dead_code, reason = "shared with the tests of the log, which use more of it")]
#[path = "../../tests/log/model.rs"]
mod model;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use disk::SimDisk;
use libfuzzer_sys::fuzz_target;
use meter::Meter;
use model::{Books, Item, State, Step, batch, fold, open, options, script};
use taskyard::log::{LogError, check, repair};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    store: u8,
    damage: Vec<Damage<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Damage<'a> {
    Flip {
        file: u8,
        at: At,
        with: u8,
    },
    Write {
        file: u8,
        at: At,
        bytes: &'a [u8],
    },
    Zero {
        file: u8,
        at: At,
        length: u16,
    },
    Copy {
        from: u8,
        begin: At,
        to: u8,
        at: At,
        length: u16,
    },
    Truncate {
        file: u8,
        at: At,
    },
    Grow {
        file: u8,
        by: u16,
    },
    Delete {
        file: u8,
    },
    /// A copy of a file under the name of a segment, a spare, or what an interrupted change leaves.
    Double {
        file: u8,
        number: u8,
        kind: u8,
    },
    /// Makes the checksum of the page of `STORE` or of a segment's header right again.
    SealPage {
        file: u8,
    },
    /// The same for the batch at this place.
    SealBatch {
        file: u8,
        at: At,
    },
}

/// A place in a file: most of what matters stands at the beginning, on multiples of 8, or is one of the batches.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum At {
    Page(u8),
    Any(u16),
    Batch { nth: u8, plus: u8 },
}

struct Base {
    disk: SimDisk,
    known: BTreeSet<Item>,
    /// What the store holds, if that cannot be taken away unnoticed: it was closed.
    state: Option<State>,
}

/// The same files, without the past: it would be copied with each fork.
fn slim(disk: &SimDisk) -> SimDisk {
    let slim = SimDisk::new();
    disk.image().into_iter().for_each(|(name, content)| slim.put(&name, content));
    slim
}

fn small(clean: bool) -> Base {
    let disk = SimDisk::new();
    let mut state = State::new();
    let mut known = BTreeSet::new();
    let mut log = open(&disk).expect("a new log").log;
    for items in [
        vec![Item::put(1, b"one"), Item::put(2, &[2; 100]), Item::amend(1, b"more")],
        vec![Item::put(3, &[3; 700]), Item::remove(2)],
        vec![Item::put(4, &[4; 60_400])],
        vec![Item::put(5, b"five")],
        vec![Item::put(6, &[6; 60_400])],
        vec![Item::put(7, b"seven"), Item::put(8, b"eight")],
        vec![Item::amend(7, &[9; 300]), Item::remove(8)],
    ] {
        log.append(&batch(&items)).expect("append");
        log.sync().expect("sync");
        fold(&mut state, &items);
        known.extend(items);
    }
    log.mark().expect("mark");
    if clean {
        log.close().expect("close");
    } else {
        drop(log);
    }
    Base { disk: slim(&disk), known, state: clean.then_some(state) }
}

/// A store with cleaned, recycled and spare segments; killed, or the power was cut.
fn busy(seed: u64, crash: Option<u64>) -> Base {
    let disk = SimDisk::new();
    let steps = script(seed, 120);
    Books::run(&disk, &steps);
    let written =
        steps.iter().filter_map(|step| if let Step::Append(items) = step { Some(items) } else { None });
    let disk = crash.map_or_else(|| disk.fork(), |seed| disk.crash(seed));
    Base { disk: slim(&disk), known: written.flatten().cloned().collect(), state: None }
}

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    vec![
        small(true),
        small(false),
        busy(3, None),
        busy(8, Some(4)),
        Base { disk: SimDisk::new(), known: BTreeSet::new(), state: None },
    ]
});

/// Where batches begin, in a file that is whole.
fn batches(content: &[u8]) -> Vec<usize> {
    (0..content.len().saturating_sub(3)).step_by(8).filter(|&at| content[at..at + 4] == *b"TYB1").collect()
}

impl At {
    fn place(self, content: &[u8]) -> usize {
        let place = match self {
            At::Page(at) => usize::from(at),
            At::Any(at) => usize::from(at),
            At::Batch { nth, plus } => {
                let all = batches(content);
                all.get(usize::from(nth) % all.len().max(1)).map_or(0, |at| at + usize::from(plus))
            }
        };
        place.min(content.len())
    }
}

fn name_of(disk: &SimDisk, file: u8) -> Option<String> {
    let names = disk.names();
    names.get(usize::from(file) % names.len().max(1)).cloned()
}

fn crc(parts: [&[u8]; 2]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(parts[0]), parts[1]).to_le_bytes()
}

fn damage(disk: &SimDisk, what: &Damage<'_>) {
    let edit = |file: u8, change: &dyn Fn(&mut Vec<u8>)| {
        if let Some(name) = name_of(disk, file) {
            disk.tamper(&name, change);
        }
    };
    match *what {
        Damage::Flip { file, at, with } => edit(file, &|content| {
            let at = at.place(content);
            if let Some(byte) = content.get_mut(at) {
                *byte ^= with;
            }
        }),
        Damage::Write { file, at, bytes } => edit(file, &|content| {
            let at = at.place(content);
            let length = bytes.len().min(content.len() - at);
            content[at..at + length].copy_from_slice(&bytes[..length]);
        }),
        Damage::Zero { file, at, length } => edit(file, &|content| {
            let at = at.place(content);
            let end = (at + usize::from(length)).min(content.len());
            content[at..end].fill(0);
        }),
        Damage::Copy { from, begin, to, at, length } => {
            let Some(name) = name_of(disk, from) else { return };
            let image = disk.image();
            let begin = begin.place(&image[&name]);
            let end = (begin + usize::from(length)).min(image[&name].len());
            let bytes = &image[&name][begin..end];
            damage(disk, &Damage::Write { file: to, at, bytes });
        }
        Damage::Truncate { file, at } => edit(file, &|content| {
            let at = at.place(content);
            content.truncate(at);
        }),
        Damage::Grow { file, by } => {
            edit(file, &|content| content.resize(content.len() + usize::from(by), 0))
        }
        Damage::Delete { file } => {
            if let Some(name) = name_of(disk, file) {
                disk.delete(&name);
            }
        }
        Damage::Double { file, number, kind } => {
            let Some(name) = name_of(disk, file) else { return };
            let content = disk.image()[&name].clone();
            let endings = [".seg", ".spare", ".tmp", ".seg.tmp", ".repair", ".seg.quarantined"];
            let ending = endings[usize::from(kind) % endings.len()];
            disk.put(&format!("{number:08}{ending}"), content);
        }
        Damage::SealPage { file } => edit(file, &|content| {
            let page = content.len().min(4096);
            if page >= 16 {
                let sum = crc([&content[..12], &content[16..page]]);
                content[12..16].copy_from_slice(&sum);
            }
        }),
        Damage::SealBatch { file, at } => edit(file, &|content| {
            let at = at.place(content);
            let (Some(salt), Some(header)) = (content.get(56..64), content.get(at..at + 64)) else { return };
            let salt = salt.to_vec();
            let body_bytes = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes")) as usize;
            if let Some(body) = content.get(at + 64..(at + 64).saturating_add(body_bytes)) {
                let sum = crc([&salt, body]);
                content[at + 12..at + 16].copy_from_slice(&sum);
            }
            let sum = crc([&salt, &content[at + 8..at + 64]]);
            content[at + 4..at + 8].copy_from_slice(&sum);
        }),
    }
}

fuzz_target!(|input: Input<'_>| {
    let base = &BASES[usize::from(input.store) % BASES.len()];
    let disk = base.disk.fork();
    for what in input.damage.iter().take(16) {
        damage(&disk, what);
    }
    let is_sealed = |what: &Damage<'_>| matches!(what, Damage::SealPage { .. } | Damage::SealBatch { .. });
    // Where the checksums are right, nobody can know what was written.
    let is_forged = input.damage.iter().any(is_sealed);
    // A store of which nothing is left is a new one.
    let is_there = disk.names().iter().any(|name| name == "STORE" || name.ends_with(".seg"));
    let before = disk.image();
    // What the reader's window takes of each file, the report, and what the disk itself keeps of the changes.
    let may = 8 * before.values().map(Vec::len).sum::<usize>() + (8 << 20);

    let meter = Meter::start();
    let report = check(&disk);
    assert!(meter.most() <= may, "check takes {} bytes", meter.most());
    assert!(disk.image() == before, "check changes nothing");
    let opens = disk.fork();
    let meter = Meter::start();
    let opened = open(&opens);
    assert!(meter.most() <= may, "open takes {} bytes", meter.most());
    match (opened, report) {
        (Ok(opened), Ok(report)) => {
            assert!(report.problems.is_empty(), "it opens, but check says {report:?}");
            assert_eq!(report.records, opened.recovery.records);
            if is_forged {
                return;
            }
            for item in &opened.items {
                assert!(base.known.contains(item), "a record that nobody appended: {item:?}");
            }
            if is_there && let Some(state) = &base.state {
                assert_eq!(&opened.state(), state, "it opens, but not all is there");
            }
            if !is_there {
                // A new store in the spares of an old one. Here its salts are the old one's, which brokers draw
                // at random: what the spares held looks like its own.
                return;
            }
            let state = opened.state();
            drop(opened);
            assert_eq!(open(&opens).expect("what opened once opens again").state(), state);
        }
        (Err(LogError::Corrupt { file, lsns, .. }), Ok(report)) => {
            // A repair that `STORE` calls decided is finished before anything is judged.
            assert!(is_forged || opens.image() == before, "who refuses modifies nothing");
            // An interrupted repair is told as that, and not by what it leaves.
            let of_it = |problem: &taskyard::log::Problem| problem.file == file && problem.lsns == lsns;
            assert!(
                report.problems.iter().any(of_it) || is_forged && !report.problems.is_empty(),
                "open says {file} {lsns:?}, check {report:?}"
            );
            repaired(base, &disk, is_forged);
        }
        // A store can be damaged in one file and newer in another: each tells what it meets first, and refuses.
        (Err(LogError::Newer { .. } | LogError::Corrupt { .. }), Err(LogError::Newer { .. }))
            if is_forged => {}
        (Err(LogError::Newer { .. }), Ok(report)) if is_forged => {
            assert!(!report.problems.is_empty(), "it does not open, and check finds nothing");
        }
        (Ok(_), Err(error)) => panic!("it opens, but check says {error}"),
        (Err(error), report) => panic!("open says {error}, check {report:?}"),
    }
});

/// What is whole is kept: the store opens again, and shows only what was written.
fn repaired(base: &Base, disk: &SimDisk, is_forged: bool) {
    match repair(disk, &options()) {
        Ok(_) if is_forged => {}
        Ok(report) => {
            let opened =
                open(disk).unwrap_or_else(|error| panic!("after {report:?} it does not open: {error}"));
            for item in &opened.items {
                assert!(base.known.contains(item), "a record that nobody appended: {item:?}");
            }
            assert_eq!(opened.recovery.records, report.records);
        }
        // Nothing to begin with.
        Err(LogError::Corrupt { .. }) => {}
        Err(LogError::Newer { .. }) if is_forged => {}
        Err(error) => panic!("repair: {error}"),
    }
}
