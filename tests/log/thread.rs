//! The log on its thread: tickets, order, failures told, room waited for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use taskyard::log::{
    LogError, LogObserver, LogThread, RecordBatch, SEGMENT_BYTES_MIN, UNAWAITED_DELAY, WAITING_BYTES_MAX,
};

use crate::disk::{Fault, SimDisk};
use crate::fetch::until;
use crate::model::{Item, batch, open};

/// Waits for what the log's thread tells, never for time.
#[derive(Clone, Default)]
pub(crate) struct Signal {
    told: Arc<(Mutex<u64>, Condvar)>,
}

impl Signal {
    pub(crate) fn setter(&self) -> impl Fn() + Send + Sync + 'static {
        let told = Arc::clone(&self.told);
        move || {
            *told.0.lock().expect("nobody panics with it") += 1;
            told.1.notify_all();
        }
    }

    pub(crate) fn wait_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let seen = *self.told.0.lock().expect("nobody panics with it");
            if is_so() {
                return;
            }
            let told = self.told.0.lock().expect("nobody panics with it");
            drop(self.told.1.wait_while(told, |count| *count == seen).expect("nobody panics with it"));
        }
    }
}

fn start(disk: &SimDisk) -> (LogThread, Signal) {
    let signal = Signal::default();
    let log = open(disk).expect("the log opens").log;
    (LogThread::start(log, signal.setter()).expect("a thread"), signal)
}

#[test]
fn tickets_are_durable_in_order() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    for round in 1..=200u64 {
        let ticket = thread.send(batch(&[Item::put(round.into(), &[1; 2000])]), Vec::new());
        assert_eq!(ticket, round);
        if round % 7 == 0 {
            signal.wait_until(|| thread.durable() >= ticket);
            let state = open(&disk.crash(0)).expect("what a power cut leaves").state();
            assert_eq!(state.len() as u64, round);
        }
    }
    thread.stop().expect("stop");
    let opened = open(&disk.crash(0)).expect("start");
    assert!(opened.recovery.clean);
    assert_eq!(opened.state().len(), 200);
}

#[test]
fn many_senders() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    std::thread::scope(|scope| {
        for sender in 0..4u128 {
            let (thread, signal) = (&thread, &signal);
            scope.spawn(move || {
                for number in 0..200u8 {
                    let key = sender << 64;
                    let item = if number == 0 { Item::put(key, &[0]) } else { Item::amend(key, &[number]) };
                    let mut batch = thread.buffer();
                    assert!(batch.is_empty());
                    batch.push_with(
                        if number == 0 {
                            taskyard::log::RecordKind::Put
                        } else {
                            taskyard::log::RecordKind::Amend
                        },
                        key,
                        |bytes| bytes.extend_from_slice(&item.body),
                    );
                    let ticket = thread.send(batch, Vec::new());
                    if number % 50 == 0 {
                        signal.wait_until(|| thread.durable() >= ticket);
                    }
                }
            });
        }
    });
    thread.stop().expect("stop");
    let state = open(&disk).expect("start").state();
    assert_eq!(state.len(), 4);
    for bodies in state.values() {
        assert!(bodies.iter().map(|body| body[0]).eq(0..200), "each sender's order is kept");
    }
}

/// Forgetting a key and beginning it anew may reach the thread in one go.
#[test]
fn what_is_forgotten_first_lives_after() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    for round in 0..500u64 {
        let forget = if round % 3 == 0 { vec![1] } else { Vec::new() };
        thread.send(batch(&[Item::put(2, &[round as u8; 800])]), forget);
        thread.send(batch(&[Item::put(1, &round.to_le_bytes())]), Vec::new());
    }
    signal.wait_until(|| thread.durable() == 1000);
    assert_eq!(thread.stats().live_records, 2);
    thread.stop().expect("stop");
    assert_eq!(open(&disk).expect("start").state()[&1], [499u64.to_le_bytes()]);
}

#[test]
fn a_failed_sync_ends_it() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    let ticket = thread.send(batch(&[Item::put(1, b"kept")]), Vec::new());
    signal.wait_until(|| thread.durable() == ticket);
    // From now on everything fails.
    disk.fail_at(1, Fault::PowerCut);
    thread.send(batch(&[Item::put(2, b"lost")]), Vec::new());
    signal.wait_until(|| thread.failure().is_some());
    assert_eq!(thread.durable(), ticket);
    assert!(!thread.accepts_new());
    let failure = thread.failure().expect("just seen");
    assert_eq!(failure.exit_code(), 5);
    assert!(matches!(*failure, LogError::Io { .. }), "{failure}");
    assert_eq!(thread.send(RecordBatch::new(), Vec::new()), 3, "sending goes nowhere, and does no harm");
    assert!(thread.stop().is_err());
    assert_eq!(open(&disk.crash(1)).expect("start").state()[&1], [b"kept"]);
}

#[test]
fn a_full_disk_is_waited_for() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(6 * SEGMENT_BYTES_MIN));
    let (thread, signal) = start(&disk);
    let mut sent = 0;
    while thread.accepts_new() {
        sent = thread.send(batch(&[Item::put((sent + 1).into(), &[1; 4000])]), Vec::new());
        signal.wait_until(|| thread.durable() == sent || !thread.accepts_new());
    }
    assert!(thread.failure().is_none(), "a full disk is no failure");
    disk.set_capacity(None);
    signal.wait_until(|| thread.accepts_new());
    signal.wait_until(|| thread.durable() == sent);
    thread.stop().expect("stop");
    assert_eq!(open(&disk).expect("start").state().len() as u64, sent);
}

/// Waits until damage to the last batch, which has these bytes and nothing behind it, is known for that.
pub(crate) fn wait_for_the_mark(disk: &SimDisk, body: &[u8]) {
    let is_marked = || {
        std::thread::yield_now();
        let damaged = disk.fork();
        let stands = |bytes: &[u8]| bytes.windows(body.len()).rposition(|window| window == body);
        let (name, at) = damaged
            .image()
            .iter()
            .find_map(|(name, bytes)| Some((name.clone(), stands(bytes)?)))
            .expect("it stands somewhere");
        damaged.flip(&name, at);
        open(&damaged).is_err()
    };
    // Half a second at the very least, where 50 ms are due.
    assert!((0..20_000).any(|_| is_marked()));
}

/// Waits until the thread has nothing left to do behind the last batch, and sleeps until it is woken.
pub(crate) fn wait_until_it_sleeps(disk: &SimDisk, thread: &LogThread, body: &[u8]) {
    wait_for_the_mark(disk, body);
    // The segment that is written, and its two spares.
    while thread.stats().bytes < 3 * SEGMENT_BYTES_MIN {
        std::thread::yield_now();
    }
    let asleep = Instant::now() + UNAWAITED_DELAY;
    while Instant::now() < asleep {
        std::thread::yield_now();
    }
}

/// The end of a quiet broker's log is known for damaged, not for torn.
#[test]
fn when_idle_the_last_batch_is_marked() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    thread.send(batch(&[Item::put(1, b"x")]), Vec::new());
    signal.wait_until(|| thread.durable() == 1);
    wait_for_the_mark(&disk, b"x");
    thread.stop().expect("stop");
}

/// Whatever was done last, a commit may leave upkeep to do.
#[test]
fn what_a_small_commit_ends_makes_room_with_no_other_behind_it() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    for key in 0..1000 {
        thread.send(batch(&[Item::put(key, &[1; 4000])]), Vec::new());
    }
    let last = thread.send(batch(&[Item::put(1000, b"the last of them")]), Vec::new());
    signal.wait_until(|| thread.durable() == last);
    wait_until_it_sleeps(&disk, &thread, b"the last of them");
    let full = disk.used();
    let removes: Vec<Item> = (0..1000).map(Item::remove).collect();
    thread.send(batch(&removes), Vec::new());
    until("the segments of what was removed to go", || disk.used() < full / 2);
    thread.stop().expect("stop");
    assert_eq!(open(&disk).expect("start").state().len(), 1);
}

#[test]
fn room_is_bounded() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    let big = batch(&[Item::put(1, &vec![0; 3 << 20])]);
    let mut most = 0;
    for _ in 0..10 {
        signal.wait_until(|| thread.has_room());
        let ticket = thread.send(big.clone(), Vec::new());
        most = most.max((ticket - thread.durable()) * (3 << 20));
    }
    assert!(most < WAITING_BYTES_MAX + 2 * (3 << 20), "{most}");
    thread.stop().expect("stop");
}

/// Records that were to be synced, times 2^32, and those that were.
struct Counter(Arc<AtomicU64>);

impl LogObserver for Counter {
    fn sync_begins(&mut self, records: u64) {
        self.0.fetch_add(records << 32, Ordering::Relaxed);
    }
    fn sync_ended(&mut self, records: u64) {
        self.0.fetch_add(records, Ordering::Relaxed);
    }
}

/// Counts syncs.
struct Syncs(Arc<AtomicU64>);

impl LogObserver for Syncs {
    fn sync_begins(&mut self, _records: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn sync_ended(&mut self, _records: u64) {}
}

#[test]
fn what_nobody_waits_for_becomes_durable_by_itself() {
    let disk = SimDisk::new();
    let (thread, signal) = start(&disk);
    let store = || {
        let ticket = thread.send(batch(&[Item::put(1, b"x")]), Vec::new());
        signal.wait_until(|| thread.durable() == ticket);
    };
    store();
    wait_until_it_sleeps(&disk, &thread, b"x");
    store();
    // Right after a commit it looks again by itself.
    store();
    thread.stop().expect("stop");
    assert_eq!(open(&disk.crash(0)).expect("start").state().len(), 1);
}

/// At a modest rate each ack had a sync of its own, in which the next submit had to wait.
#[test]
fn what_nobody_waits_for_shares_the_sync_of_the_next_that_is_awaited() {
    let signal = Signal::default();
    let syncs = Arc::new(AtomicU64::new(0));
    let log = open(&SimDisk::new()).expect("a new log").log;
    let thread =
        LogThread::start_observed(log, signal.setter(), Syncs(Arc::clone(&syncs))).expect("a thread");
    let (mut round, mut in_time) = (0u128, 0);
    while in_time < 20 {
        round += 1;
        assert!(round < 10_000, "this machine never has time for two sends in a row");
        let before = syncs.load(Ordering::Relaxed);
        let began = Instant::now();
        thread.send(batch(&[Item::remove(round - 1)]), Vec::new());
        // Time enough for a commit, if it made one now.
        while began.elapsed() < UNAWAITED_DELAY / 5 {
            std::thread::yield_now();
        }
        let ticket = thread.send(batch(&[Item::put(round, b"x")]), Vec::new());
        thread.hurry();
        let was_in_time = began.elapsed() < UNAWAITED_DELAY;
        signal.wait_until(|| thread.durable() == ticket);
        if was_in_time {
            in_time += 1;
            assert_eq!(syncs.load(Ordering::Relaxed) - before, 1, "round {round}");
        }
    }
    thread.stop().expect("stop");
}

#[test]
fn commits_can_be_watched() {
    let counted = Arc::new(AtomicU64::new(0));
    let log = open(&SimDisk::new()).expect("a new log").log;
    let thread = LogThread::start_observed(log, || {}, Counter(Arc::clone(&counted))).expect("a thread");
    for key in 0..10 {
        thread.send(batch(&[Item::put(key, b"x"), Item::remove(key)]), Vec::new());
    }
    thread.stop().expect("stop");
    assert_eq!(counted.load(Ordering::Relaxed), 20 << 32 | 20);
}
