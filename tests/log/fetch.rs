//! Records read back while the log goes on: right whatever cleaning does meanwhile, and never wrong in silence.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use taskyard::log::{Fetched, Key, LogError, LogThread};

use crate::disk::SimDisk;
use crate::model::{Item, batch, open};
use crate::thread::Signal;

/// What was read so far; its setter wakes whoever waits for more.
#[derive(Clone, Default)]
struct Read {
    all: Arc<Mutex<Vec<Fetched>>>,
    signal: Signal,
}

impl Read {
    fn fetch(&self, thread: &LogThread, keys: Vec<Key>) {
        let (all, told) = (self.all.clone(), self.signal.setter());
        thread.fetch(keys, move |fetched| {
            all.lock().expect("nobody panics with it").extend(fetched);
            told();
        });
    }

    fn len(&self) -> usize {
        self.all.lock().expect("nobody panics with it").len()
    }
}

fn start(disk: &SimDisk, signal: &Signal) -> LogThread {
    LogThread::start(open(disk).expect("the log opens").log, signal.setter()).expect("a thread")
}

fn body(key: Key) -> Vec<u8> {
    key.to_le_bytes().repeat(1 + key as usize % 100)
}

#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_cleaning_moves_meanwhile_is_read_all_the_same() {
    const KEPT: u128 = 200;
    let (disk, read) = (SimDisk::new(), Read::default());
    let thread = start(&disk, &read.signal);
    let mut ticket = 0;
    for key in 0..KEPT {
        ticket = thread.send(batch(&[Item::put(key, &body(key)), Item::amend(key, b"more")]), Vec::new());
    }
    read.signal.wait_until(|| thread.durable() >= ticket);
    let mut asked = 0;
    for round in 0..600u128 {
        let keys = (0..20).map(|n| 1_000_000 + 20 * round + n);
        let forget: Vec<Key> = keys.clone().collect();
        let items: Vec<Item> = keys.map(|key| Item::put(key, &[7; 1000])).collect();
        ticket = thread.send(batch(&items), forget);
        let keys: Vec<Key> = (0..10).map(|n| (round * 37 + n * 11) % (KEPT + 3)).collect();
        asked += keys.len();
        read.fetch(&thread, keys);
        if round % 4 == 0 {
            read.signal.wait_until(|| thread.durable() >= ticket);
        }
    }
    read.signal.wait_until(|| read.len() == asked || thread.failure().is_some());
    assert!(thread.failure().is_none(), "{:?}", thread.failure());
    for (key, found) in read.all.lock().expect("nobody panics with it").iter() {
        let expected = (*key < KEPT).then(|| body(*key));
        assert_eq!(*found, expected, "{key}");
    }
    // Cleaning goes on while nothing is written.
    let written = 600 * 20 * 1000;
    until("cleaning to take the first segment, and most of what was written", || {
        disk.used() < written / 4 && !disk.names().contains(&"00000001.seg".to_owned())
    });
    thread.stop().expect("stop");
}

#[test]
fn a_record_that_was_damaged_since_ends_the_log_with_its_place() {
    let (disk, read) = (SimDisk::new(), Read::default());
    let thread = start(&disk, &read.signal);
    let ticket = thread.send(batch(&[Item::put(1, b"one"), Item::put(2, &[0xab; 100])]), Vec::new());
    read.signal.wait_until(|| thread.durable() >= ticket);
    disk.tamper("00000001.seg", |bytes| {
        let at = bytes.windows(100).position(|window| window == [0xab; 100]).expect("it stands there");
        bytes[at + 50] = 0;
    });
    read.fetch(&thread, vec![1]);
    read.signal.wait_until(|| read.len() == 1);
    read.fetch(&thread, vec![1, 2]);
    read.signal.wait_until(|| thread.failure().is_some());
    let failure = thread.failure().expect("it was just there");
    let text = failure.to_string();
    assert!(matches!(&*failure, LogError::Corrupt { file, .. } if file == "00000001.seg"), "{text}");
    assert!(text.contains("at byte ") && text.contains("taskyard store check"), "{text}");
    assert_eq!((failure.exit_code(), read.len()), (3, 1));
}

#[test]
fn a_disk_that_cannot_be_read_ends_the_log() {
    let (disk, read) = (SimDisk::new(), Read::default());
    let thread = start(&disk, &read.signal);
    let ticket = thread.send(batch(&[Item::put(1, b"one")]), Vec::new());
    read.signal.wait_until(|| thread.durable() >= ticket);
    read.fetch(&thread, vec![1]);
    read.signal.wait_until(|| read.len() == 1);
    // The idle log writes down that all is durable, once: written later, it would make the file longer again.
    until("the mark of an idle log", || {
        let mut batches = 0;
        disk.tamper("00000001.seg", |bytes| {
            batches = bytes.windows(4).filter(|window| window == b"TYB1").count();
        });
        batches == 2
    });
    disk.tamper("00000001.seg", |bytes| bytes.truncate(4096 + 70));
    read.fetch(&thread, vec![1]);
    read.signal.wait_until(|| thread.failure().is_some());
    let failure = thread.failure().expect("it was just there");
    assert!(matches!(&*failure, LogError::Io { doing: "read", .. }), "{failure}");
    assert_eq!(failure.exit_code(), 5);
}

/// Descriptors are few, and the store must not take those of connections, or find none itself.
#[test]
fn a_read_over_the_whole_log_has_few_files_open() {
    const KEYS: u128 = 3000;
    let (disk, read) = (SimDisk::new(), Read::default());
    let thread = start(&disk, &read.signal);
    let put = |key| Item::put(key, &[key as u8; 1000]);
    let mut ticket = 0;
    for from in (0..KEYS).step_by(20) {
        let items: Vec<Item> = (from..from + 20).map(put).collect();
        ticket = thread.send(batch(&items), Vec::new());
        read.signal.wait_until(|| thread.durable() >= ticket);
    }
    assert!(ticket > 0 && disk.names().len() > 40, "{:?}", disk.names());
    let before = disk.open_most();
    let keys: Vec<Key> = (0..KEYS).step_by(7).collect();
    let asked = keys.len();
    read.fetch(&thread, keys);
    read.signal.wait_until(|| read.len() == asked || thread.failure().is_some());
    assert!(thread.failure().is_none(), "{:?}", thread.failure());
    for (key, found) in read.all.lock().expect("nobody panics with it").iter() {
        assert_eq!(*found, Some(vec![*key as u8; 1000]), "{key}");
    }
    // Eight that are kept open, and eight more that an answer names.
    let most = disk.open_most();
    assert!(most <= before + 16, "{most} files were open, {before} before");
    thread.stop().expect("stop");
}
