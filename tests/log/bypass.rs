//! Commits past the log's thread: as durable, as ordered and as patient as its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use taskyard::log::{Bypass, LogError, LogObserver, LogThread, RecordBatch, RecordKind};

use crate::disk::{Fault, SimDisk};
use crate::model::{Item, batch, open};
use crate::thread::{Signal, wait_for_the_mark, wait_until_it_sleeps};

type Hook = Box<dyn FnOnce() + Send>;

/// Counts the commits past the thread, and can do something at the start of one.
#[derive(Clone, Default)]
struct Watch {
    past: Arc<AtomicU64>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Watch {
    fn past(&self) -> u64 {
        self.past.load(Ordering::Relaxed)
    }

    fn at_the_next(&self, does: impl FnOnce() + Send + 'static) {
        *self.hook.lock().expect("nobody panics with it") = Some(Box::new(does));
    }
}

impl LogObserver for Watch {
    fn sync_begins(&mut self, _records: u64) {
        if thread::current().name() != Some("taskyard-log") {
            self.past.fetch_add(1, Ordering::Relaxed);
            let hook = self.hook.lock().expect("nobody panics with it").take();
            if let Some(does) = hook {
                does();
            }
        }
    }
    fn sync_ended(&mut self, _records: u64) {}
}

struct Rig {
    disk: SimDisk,
    watch: Watch,
    signal: Signal,
    log: LogThread,
    bypass: Bypass,
    rounds: u64,
}

/// So often at most something is tried that needs the thread asleep at the right moment.
const TRIES_MAX: u64 = 2_000;

/// Lets the thread fall asleep, for a time that differs from try to try: how long it takes depends on what else the machine
/// does, and after 5 ms it sleeps too deeply.
fn yield_for(tries: u64) {
    for _ in 0..10 * (tries % 64) {
        thread::yield_now();
    }
}

fn body(round: u64) -> Vec<u8> {
    format!("the body of {round}.").into_bytes()
}

impl Rig {
    fn start(disk: SimDisk) -> Rig {
        let (watch, signal) = (Watch::default(), Signal::default());
        let log = open(&disk).expect("the log opens").log;
        let log = LogThread::start_observed(log, signal.setter(), watch.clone()).expect("a thread");
        Rig { disk, watch, signal, bypass: log.bypass(), log, rounds: 0 }
    }

    /// A record of its own.
    fn send(&mut self) -> u64 {
        self.rounds += 1;
        self.log.send(batch(&[Item::put(self.rounds.into(), &body(self.rounds))]), Vec::new())
    }

    fn wait_for(&self, ticket: u64) {
        self.signal.wait_until(|| self.log.durable() >= ticket || self.log.failure().is_some());
    }

    /// Sends until something is committed past the thread; returns its ticket.
    fn past(&mut self) -> u64 {
        self.past_with(Rig::send)
    }

    /// `sends` returns the ticket of the last that it sends.
    fn past_with(&mut self, mut sends: impl FnMut(&mut Rig) -> u64) -> u64 {
        for tries in 0..TRIES_MAX {
            let (ticket, before) = (sends(self), self.watch.past());
            self.bypass.hurry();
            if self.watch.past() > before {
                return ticket;
            }
            self.wait_for(ticket);
            // What comes again at once keeps the thread awake.
            yield_for(tries);
        }
        panic!("nothing was committed past the thread");
    }

    /// Stops it, and sees that all that was sent is there once.
    fn end(self) {
        assert!(self.log.failure().is_none(), "{:?}", self.log.failure());
        self.log.stop().expect("stop");
        let opened = open(&self.disk.crash(0)).expect("start");
        assert!(opened.recovery.clean);
        let state = opened.state();
        assert_eq!(state.len() as u64, self.rounds);
        for (key, bodies) in state {
            assert_eq!(bodies, [body(key as u64)]);
        }
    }
}

#[test]
fn it_is_durable_when_that_returns() {
    let mut rig = Rig::start(SimDisk::new());
    for _ in 0..50 {
        let ticket = rig.past();
        assert_eq!(rig.log.durable(), ticket);
        assert_eq!(open(&rig.disk.crash(0)).expect("what a power cut leaves").state().len() as u64, ticket);
    }
    rig.end();
}

#[test]
fn many_senders_keep_their_order() {
    let rig = Rig::start(SimDisk::new());
    let (log, signal) = (&rig.log, &rig.signal);
    thread::scope(|scope| {
        for sender in 0..4u128 {
            let bypass = rig.bypass.clone();
            scope.spawn(move || {
                for number in 0..250u8 {
                    let kind = if number == 0 { RecordKind::Put } else { RecordKind::Amend };
                    let mut batch = log.buffer();
                    batch.push_with(kind, sender << 64, |bytes| bytes.push(number));
                    let ticket = log.send(batch, Vec::new());
                    match number % 8 {
                        0 => log.hurry(),
                        1..6 => bypass.hurry(),
                        _ => {}
                    }
                    if number % 16 == 0 {
                        signal.wait_until(|| log.durable() >= ticket);
                    }
                }
            });
        }
    });
    rig.log.stop().expect("stop");
    let state = open(&rig.disk.crash(0)).expect("start").state();
    assert_eq!(state.len(), 4);
    for bodies in state.values() {
        assert!(bodies.iter().map(|body| body[0]).eq(0..250), "each sender's order is kept");
    }
}

#[test]
fn what_is_committed_past_it_at_once_keeps_its_order() {
    let mut rig = Rig::start(SimDisk::new());
    for _ in 0..20 {
        rig.past_with(|rig| {
            rig.rounds += 1;
            let send = |kind, number| {
                let mut batch = rig.log.buffer();
                batch.push_with(kind, rig.rounds.into(), |bytes| bytes.push(number));
                rig.log.send(batch, Vec::new())
            };
            send(RecordKind::Put, 0);
            send(RecordKind::Amend, 1);
            send(RecordKind::Amend, 2)
        });
    }
    rig.log.stop().expect("stop");
    let state = open(&rig.disk.crash(0)).expect("start").state();
    assert_eq!(state.len() as u64, rig.rounds);
    assert!(state.values().all(|bodies| *bodies == [[0], [1], [2]]));
}

/// What is sent meanwhile waits for the disk, and whoever sends it does not.
#[test]
fn while_the_disk_stalls_nobody_else_does() {
    let mut rig = Rig::start(SimDisk::new());
    rig.past();
    let (begun, has_begun): (Sender<()>, Receiver<()>) = channel();
    let (go, goes) = channel::<()>();
    rig.watch.at_the_next(move || {
        begun.send(()).expect("somebody waits");
        goes.recv().expect("it is told to go on");
    });
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut stalled = 0;
        let bypass = rig.bypass.clone();
        let (over, signal) = (&over, &rig.signal);
        let (tell, told) = channel::<()>();
        scope.spawn(move || {
            while told.recv().is_ok() {
                bypass.hurry();
            }
            over.store(true, Ordering::Relaxed);
        });
        while has_begun.try_recv().is_err() {
            assert!(stalled < TRIES_MAX, "nothing was committed past the thread");
            stalled = rig.log.send(RecordBatch::new(), Vec::new());
            tell.send(()).expect("it takes them");
            yield_for(stalled);
        }
        drop(tell);
        let durable = rig.log.durable();
        let last = rig.log.send(batch(&[Item::put(0, b"later")]), Vec::new());
        rig.bypass.hurry();
        rig.log.hurry();
        assert_eq!((rig.log.durable(), over.load(Ordering::Relaxed)), (durable, false));
        go.send(()).expect("it waits");
        signal.wait_until(|| rig.log.durable() >= last);
    });
    rig.log.stop().expect("stop");
    assert_eq!(open(&rig.disk.crash(0)).expect("start").state()[&0], [b"later"]);
}

#[test]
fn what_cannot_be_appended_is_left_to_the_thread() {
    for fault in [Fault::NoSpace, Fault::ShortWrite, Fault::LateError, Fault::Eio] {
        let mut rig = Rig::start(SimDisk::new());
        rig.past();
        rig.disk.fail_here_at(1, fault);
        while rig.disk.is_yet_to_fail_here() {
            let ticket = rig.send();
            assert!(ticket < TRIES_MAX, "nothing was committed past the thread");
            rig.bypass.hurry();
            rig.wait_for(ticket);
            yield_for(ticket);
        }
        rig.past();
        rig.end();
    }
}

#[test]
fn a_failed_sync_ends_it() {
    let mut rig = Rig::start(SimDisk::new());
    let kept = rig.past();
    rig.disk.fail_here_at(2, Fault::Eio);
    let mut ticket = kept;
    while rig.disk.is_yet_to_fail_here() {
        assert!(ticket < TRIES_MAX, "nothing was committed past the thread");
        rig.wait_for(ticket);
        yield_for(ticket);
        ticket = rig.send();
        rig.bypass.hurry();
    }
    let failure = rig.log.failure().expect("what could not be synced is a failure");
    assert!(matches!(*failure, LogError::Io { doing: "sync", .. }), "{failure}");
    assert_eq!((failure.exit_code(), rig.log.durable(), rig.log.accepts_new()), (5, ticket - 1, false));
    // Goes nowhere, and does no harm.
    rig.send();
    rig.bypass.hurry();
    assert!(rig.log.stop().is_err());
    assert_eq!(open(&rig.disk.crash(0)).expect("start").state().len() as u64, ticket - 1);
}

/// Whoever had asked the log for something would wait for ever.
#[test]
fn a_panic_ends_it_too() {
    let mut rig = Rig::start(SimDisk::new());
    rig.past();
    let (begun, has_begun) = channel();
    let (go, goes) = channel::<()>();
    rig.watch.at_the_next(move || {
        begun.send(()).expect("somebody waits");
        goes.recv().expect("it is told to go on");
        panic!("as a defect would");
    });
    let bypass = rig.bypass.clone();
    let (tell, told) = channel::<()>();
    let hurrying = thread::spawn(move || {
        while told.recv().is_ok() {
            bypass.hurry();
        }
    });
    for tries in 0..TRIES_MAX {
        rig.send();
        tell.send(()).expect("it takes them");
        yield_for(tries);
        if has_begun.try_recv().is_ok() {
            break;
        }
    }
    rig.log.fetch(vec![1], |_| {});
    go.send(()).expect("it waits: something is committed past the thread");
    assert!(hurrying.join().is_err());
    let failure = rig.log.failure().expect("a panic with the log is a failure");
    assert!(matches!(*failure, LogError::Poisoned { .. }), "{failure}");
    rig.bypass.hurry();
    assert!(rig.log.stop().is_err());
}

/// What the thread meant to do next was settled before, and it slept until it was woken: the mark never came.
#[test]
fn behind_it_the_thread_looks_after_the_log() {
    let mut rig = Rig::start(SimDisk::new());
    rig.past();
    rig.past_with(|rig| {
        wait_until_it_sleeps(&rig.disk, &rig.log, &body(rig.rounds));
        let ticket = rig.send();
        // Woken by that, it sleeps again, for as long as nobody needs to wait for it.
        yield_for(rig.rounds);
        ticket
    });
    wait_for_the_mark(&rig.disk, &body(rig.rounds));
    rig.end();
}
