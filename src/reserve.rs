//! Keeps one of the runtime's two threads in reserve while the other can do all there is.
//!
//! With both at work each message wakes whichever sleeps: an interrupt from core to core, which a virtual machine sends by
//! way of its host, and which costs more than the work that it shares out. And the log's thread, the kernel and the
//! programs beside us want the second core too: whatever waits for a thread that has no core waits for milliseconds.
//! One thread comes to everything in its turn, and needs no telling. It may also block for a disk that is quick: should that
//! stall, the one that is held joins in. `bench/README.md` has the figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::core::Time;

/// For so long a thread is held at a time, and so late it joins in when nobody calls for it. A task in the one place of a
/// runtime's thread that the others do not take from would wait as long.
const HOLD: Duration = Duration::from_millis(5);

/// Above this share of its time at work, over some holds, one thread is not enough: what comes in bursts would wait.
const BUSY_MAX: f64 = 0.9;
/// How much the latest hold counts in that share.
const BUSY_WEIGHT: f64 = 1.0 / 8.0;

/// After one thread was not enough, so long both work until it is tried again; twice as long each time.
const BOTH_MIN: Duration = Duration::from_millis(20);
const BOTH_MAX: Duration = Duration::from_secs(1);
/// After so many holds during which it was enough, the next time begins with the shortest.
const HOLDS_GOOD: u32 = 20;

/// After so many holds without a turn of the dispatcher none is made: each costs a timer.
const HOLDS_QUIET: u32 = 20;
/// Turns no farther apart than this, in microseconds, begin them again.
const NEAR_MICROS: u64 = 2_000;

/// So many full turns in a row mean that the dispatcher is behind, and not only that it was kept waiting for a moment.
const FULL_TURNS: u32 = 4;

/// The dispatcher's end: it says when there is work, and when there is more than one thread should do.
#[derive(Debug)]
pub struct Reserve(Option<Holding>);

#[derive(Debug)]
struct Holding {
    shared: Arc<Shared>,
    latest: Time,
    full_turns: u32,
    /// Ends what holds.
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Locked for a look, never while a thread is held.
    gate: Mutex<Gate>,
    /// The gate was opened for the thread that is held.
    opened: Condvar,
    /// Holds are worth making.
    wanted: Notify,
    /// So long a thread did nothing in [`Reserve::block`], since the start.
    blocked_nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct Gate {
    state: State,
    /// Of the dispatcher, since the start.
    turns: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// There is too little to do for a hold.
    #[default]
    Resting,
    /// A thread is held, until it is time or the state is another.
    Held,
    /// Both threads may work.
    Open,
}

impl Reserve {
    /// Holds a thread of this runtime back, if it has two. With one there is none to hold; with more there is a core
    /// for whoever is woken, and each thread in reserve would have to look at the time by itself.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start() -> Reserve {
        let metrics = Handle::current().metrics();
        if metrics.num_workers() != 2 {
            return Reserve(None);
        }
        let shared = Arc::<Shared>::default();
        let task = AbortOnDropHandle::new(tokio::spawn(hold(shared.clone(), metrics)));
        Reserve(Some(Holding { shared, latest: Time(0), full_turns: 0, _task: task }))
    }

    /// The dispatcher has done a turn; it was `full` if it left something to do.
    pub fn turn(&mut self, now: Time, full: bool) {
        let Some(Holding { shared, latest, full_turns, .. }) = &mut self.0 else { return };
        let near = now.0.saturating_sub(std::mem::replace(latest, now).0) <= NEAR_MICROS;
        *full_turns = if full { full_turns.saturating_add(1) } else { 0 };
        let mut gate = shared.gate();
        gate.turns += 1;
        match gate.state {
            State::Held if *full_turns >= FULL_TURNS => {
                gate.state = State::Open;
                drop(gate);
                shared.opened.notify_one();
            }
            State::Resting if near => {
                gate.state = State::Open;
                drop(gate);
                shared.wanted.notify_one();
            }
            _ => {}
        }
    }

    /// Does what may block the thread that is not held, in a task of its own: should it take long, the one that is held
    /// joins in and does what else there is. While it blocks the thread is not busy.
    pub fn block(&self, does: impl FnOnce() + Send + 'static) {
        let shared = self.0.as_ref().map(|holding| holding.shared.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            does();
            if let Some(shared) = shared {
                shared.blocked_nanos.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        });
    }

    /// Whether a thread is held now, which joins in soon whatever becomes of the other.
    pub fn is_held(&self) -> bool {
        self.0.as_ref().is_some_and(|holding| holding.shared.gate().state == State::Held)
    }

    #[cfg(test)]
    fn state(&self) -> Option<State> {
        self.0.as_ref().map(|holding| holding.shared.gate().state)
    }
}

impl Shared {
    /// No code panics while it has this lock.
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocked(&self) -> Duration {
        Duration::from_nanos(self.blocked_nanos.load(Ordering::Relaxed))
    }

    /// Holds the thread that this runs on.
    fn hold(&self, metrics: &RuntimeMetrics) -> Held {
        let (before, blocked_before, since) = (Work::of(metrics), self.blocked(), Instant::now());
        let mut gate = self.gate();
        gate.state = State::Held;
        let turns = gate.turns;
        let (mut gate, _) = self
            .opened
            .wait_timeout_while(gate, HOLD, |gate| gate.state == State::Held)
            .unwrap_or_else(PoisonError::into_inner);
        let called = std::mem::replace(&mut gate.state, State::Open) == State::Open;
        let quiet = gate.turns == turns;
        drop(gate);
        let (after, blocked) = (Work::of(metrics), self.blocked() - blocked_before);
        Held {
            called,
            quiet,
            stuck: !after.parked && after == before,
            busy: (after.busy.saturating_sub(before.busy).as_secs_f64() - blocked.as_secs_f64())
                / since.elapsed().as_secs_f64(),
        }
    }
}

/// What the runtime counted of its threads. The one that is held counts only behind it.
#[derive(Debug, PartialEq, Eq)]
struct Work {
    busy: Duration,
    parks: u64,
    /// A thread waits for something to do.
    parked: bool,
}

impl Work {
    fn of(metrics: &RuntimeMetrics) -> Work {
        let threads = 0..metrics.num_workers();
        let parks = |thread| metrics.worker_park_unpark_count(thread);
        Work {
            busy: threads.clone().map(|thread| metrics.worker_total_busy_duration(thread)).sum(),
            parks: threads.clone().map(parks).sum(),
            parked: threads.clone().any(|thread| parks(thread) % 2 == 1),
        }
    }
}

/// What a hold was like.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// The dispatcher wanted the thread back.
    called: bool,
    /// The dispatcher did nothing.
    quiet: bool,
    /// The other thread came to no end of what it does, all the time.
    stuck: bool,
    /// The share of the time that the other thread was at work. What it did before is counted late: it can be over 1, and
    /// below 0 where it was blocked.
    busy: f64,
}

/// What to do after a hold.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    Hold,
    /// Both threads work.
    Both(Duration),
    Rest,
}

/// Decides whether one thread is enough.
#[derive(Debug)]
struct Judge {
    busy: f64,
    good: u32,
    quiet: u32,
    both: Duration,
}

impl Default for Judge {
    fn default() -> Judge {
        Judge { busy: 0.0, good: 0, quiet: 0, both: BOTH_MIN }
    }
}

impl Judge {
    fn after(&mut self, held: Held) -> Next {
        self.quiet = if held.quiet { self.quiet + 1 } else { 0 };
        self.busy += (held.busy - self.busy) * BUSY_WEIGHT;
        if held.called || held.stuck || self.busy > BUSY_MAX {
            (self.busy, self.good) = (0.0, 0);
            let both = self.both;
            self.both = (both * 2).min(BOTH_MAX);
            return Next::Both(both);
        }
        self.good += 1;
        if self.good >= HOLDS_GOOD {
            self.both = BOTH_MIN;
        }
        if self.quiet < HOLDS_QUIET {
            return Next::Hold;
        }
        self.quiet = 0;
        Next::Rest
    }
}

/// Holds whichever thread runs it, again and again.
async fn hold(shared: Arc<Shared>, metrics: RuntimeMetrics) {
    let mut judge = Judge::default();
    loop {
        shared.wanted.notified().await;
        loop {
            match judge.after(shared.hold(&metrics)) {
                // What waits for this thread alone gets its turn.
                Next::Hold => tokio::task::yield_now().await,
                Next::Both(pause) => tokio::time::sleep(pause).await,
                Next::Rest => break,
            }
        }
        shared.gate().state = State::Resting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(threads: usize) -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    }

    /// Does turns until the reserve is in a state; they are as near as can be to each other, or all at one time.
    async fn turns_until(reserve: &mut Reserve, state: State) {
        let since = Instant::now();
        while reserve.state() != Some(state) {
            assert!(since.elapsed() < Duration::from_secs(30), "still {:?}", reserve.state());
            reserve.turn(Time(1_000_000), false);
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn only_one_of_two_threads_is_held() {
        for threads in [1, 3, 8] {
            let reserve = runtime(threads).block_on(async { Reserve::start() });
            assert!(reserve.0.is_none(), "{threads} threads");
        }
        let reserve = runtime(2).block_on(async { Reserve::start() });
        assert_eq!(reserve.state(), Some(State::Resting));
    }

    #[test]
    fn a_thread_is_held_again_and_again_while_turns_come() {
        runtime(2).block_on(async {
            let mut reserve = Reserve::start();
            // The first is near to nothing.
            reserve.turn(Time(1_000_000), false);
            assert_eq!(reserve.state(), Some(State::Resting));
            turns_until(&mut reserve, State::Held).await;
            turns_until(&mut reserve, State::Open).await;
            turns_until(&mut reserve, State::Held).await;
        });
    }

    #[test]
    fn full_turns_call_for_the_thread_that_is_held_and_others_do_not() {
        let runtime = runtime(2);
        let mut reserve = runtime.block_on(async { Reserve::start() });
        let shared = reserve.0.as_ref().unwrap().shared.clone();
        let metrics = runtime.metrics();
        let mut turns = 0;
        let mut is_called = |full| {
            std::thread::scope(|scope| {
                let held = scope.spawn(|| shared.hold(&metrics));
                while !held.is_finished() {
                    // Far apart, so that nothing else is held meanwhile.
                    turns += 1;
                    reserve.turn(Time(turns * (NEAR_MICROS + 1)), full);
                    std::thread::yield_now();
                }
                held.join().unwrap().called
            })
        };
        assert!((0..3).all(|_| !is_called(false)));
        // A machine that is busy elsewhere may let a hold pass without a turn.
        assert!((0..1000).any(|_| is_called(true)));
    }

    /// A thread that waited for the disk was taken for busy, and the other was let go though there was nothing for it to do.
    #[test]
    fn a_thread_that_is_blocked_is_not_busy() {
        let runtime = runtime(2);
        let reserve = runtime.block_on(async { Reserve::start() });
        let shared = reserve.0.as_ref().unwrap().shared.clone();
        let metrics = runtime.metrics();
        let busy: f64 = std::thread::scope(|scope| {
            let held = scope.spawn(|| (0..20).map(|_| shared.hold(&metrics).busy).sum());
            while !held.is_finished() {
                runtime.block_on(async {
                    let (over, is_over) = tokio::sync::oneshot::channel();
                    reserve.block(move || {
                        std::thread::park_timeout(Duration::from_millis(2));
                        over.send(()).unwrap();
                    });
                    is_over.await.unwrap();
                });
            }
            held.join().unwrap()
        });
        assert!(busy / 20.0 < 0.5, "busy for {} of the time", busy / 20.0);
    }

    #[test]
    fn turns_that_are_far_apart_hold_nothing() {
        runtime(2).block_on(async {
            let mut reserve = Reserve::start();
            for turn in 1..1000 {
                reserve.turn(Time(turn * (NEAR_MICROS + 1)), false);
                assert_eq!(reserve.state(), Some(State::Resting));
            }
        });
    }

    #[test]
    fn a_thread_that_is_held_joins_in_when_the_other_is_stuck() {
        let runtime = runtime(2);
        let mut reserve = runtime.block_on(async { Reserve::start() });
        runtime.block_on(async { turns_until(&mut reserve, State::Held).await });
        let (told, tell) = std::sync::mpsc::channel();
        let (begun, begin) = std::sync::mpsc::channel();
        let stuck = runtime.spawn(async move {
            begun.send(()).unwrap();
            tell.recv_timeout(Duration::from_secs(30)).is_ok()
        });
        begin.recv().unwrap();
        runtime.spawn(async move { told.send(()) });
        assert!(runtime.block_on(stuck).unwrap());
    }

    #[test]
    fn the_other_thread_is_stuck_if_it_neither_ends_nor_waits() {
        let runtime = runtime(2);
        let shared = Arc::<Shared>::default();
        let hold = || {
            let (shared, metrics) = (shared.clone(), runtime.metrics());
            runtime.block_on(runtime.spawn(async move { shared.hold(&metrics) })).unwrap()
        };
        // A machine that is busy elsewhere may keep the other from going to sleep all the time.
        assert!((0..1000).any(|_| !hold().stuck));
        let (told, tell) = std::sync::mpsc::channel::<()>();
        let (begun, begin) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            begun.send(()).unwrap();
            tell.recv()
        });
        begin.recv().unwrap();
        assert!(hold().stuck);
        drop(told);
    }

    #[test]
    fn dropped_it_lets_go() {
        let runtime = runtime(2);
        let mut reserve = runtime.block_on(async { Reserve::start() });
        runtime.block_on(async { turns_until(&mut reserve, State::Held).await });
        drop(reserve);
        let over = Instant::now() + Duration::from_secs(30);
        while runtime.metrics().num_alive_tasks() > 0 && Instant::now() < over {
            std::thread::yield_now();
        }
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    }

    const BUSY: Held = Held { called: false, quiet: false, stuck: false, busy: 1.0 };
    const EASY: Held = Held { busy: 0.5, ..BUSY };

    #[test]
    fn one_burst_is_no_reason_and_many_are() {
        let mut judge = Judge::default();
        for _ in 0..100 {
            assert_eq!(judge.after(EASY), Next::Hold);
        }
        assert_eq!(judge.after(Held { busy: 2.0, ..BUSY }), Next::Hold);
        let holds = (1..).find(|_| judge.after(BUSY) != Next::Hold).unwrap();
        assert!((2..20).contains(&holds), "{holds}");
    }

    #[test]
    fn whoever_calls_or_is_stuck_gets_both_threads_for_longer_and_longer() {
        let mut judge = Judge::default();
        let mut pauses = Vec::new();
        for held in [Held { called: true, ..EASY }, Held { stuck: true, ..EASY }].repeat(4) {
            let Next::Both(pause) = judge.after(held) else { panic!("not both") };
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        for _ in 0..HOLDS_GOOD {
            assert_eq!(judge.after(EASY), Next::Hold);
        }
        assert_eq!(judge.after(Held { called: true, ..EASY }), Next::Both(BOTH_MIN));
    }

    #[test]
    fn without_turns_it_rests() {
        let mut judge = Judge::default();
        let quiet = Held { quiet: true, ..EASY };
        for _ in 0..2 {
            for _ in 1..HOLDS_QUIET {
                assert_eq!(judge.after(quiet), Next::Hold);
            }
            assert_eq!(judge.after(EASY), Next::Hold);
        }
        for _ in 1..HOLDS_QUIET {
            assert_eq!(judge.after(quiet), Next::Hold);
        }
        assert_eq!(judge.after(quiet), Next::Rest);
        assert_eq!(judge.after(quiet), Next::Hold);
    }
}
