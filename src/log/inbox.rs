//! What was sent to a log and is not taken yet, and what its thread waits for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::record::{Key, RecordBatch};

/// So long at most what nobody waits for stays in memory before it is written and synced. A crash meanwhile is like
/// one before it was said: it was answered to nobody. Long enough that at 1,000 tasks a second most acks share the
/// sync of a later submit.
pub const UNAWAITED_DELAY: Duration = Duration::from_millis(5);

/// What was sent in one go.
pub(super) struct Sent {
    pub(super) batch: RecordBatch,
    /// Keys that are not needed any more once the batch is appended.
    pub(super) forget: Vec<Key>,
}

/// A lock and not a channel: the log takes everything at once with one swap, and a sender learns in the same
/// moment whether the thread sleeps and needs a wake-up, which costs a system call. Held for a push or a
/// swap, never during I/O.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    sent: Vec<Sent>,
    /// The ticket of the last batch in `sent`.
    last_ticket: u64,
    /// A reader asks where records stand.
    asked: bool,
    stopping: bool,
    /// The stop is in order: the log may be marked so.
    orderly: bool,
    /// Somebody waits for what is in `sent`.
    awaited: bool,
    /// When the first of `sent` came.
    since: Option<Instant>,
    sleep: Sleep,
    /// Something was taken past the thread while it slept.
    bypassed: bool,
}

/// Whether the thread needs a wake-up, which costs a system call.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    Awake,
    /// It looks again by itself within [`UNAWAITED_DELAY`].
    Light,
    /// Until it is woken.
    Deep,
}

/// What woke the thread up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// There is something to take.
    Arrived,
    /// Something was committed past the thread: what is due by itself may be something else now.
    Bypassed,
    /// Only a reader's question.
    Asked,
    TimePassed,
    Stop,
}

/// How long to wait when nothing arrives.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    None,
    For(Duration),
    Endless,
}

impl State {
    /// Whether to wake the thread: it sleeps, or sleeps too deeply for what waits to be in time.
    fn needs_wake(&mut self) -> bool {
        let needs = match self.sleep {
            Sleep::Awake => false,
            Sleep::Light => self.awaited || self.asked || self.stopping,
            Sleep::Deep => true,
        };
        if needs {
            self.sleep = Sleep::Awake;
        }
        needs
    }

    fn take(&mut self, taken: &mut Vec<Sent>) -> Option<u64> {
        std::mem::swap(&mut self.sent, taken);
        (self.awaited, self.since) = (false, None);
        (!taken.is_empty()).then_some(self.last_ticket)
    }
}

impl Inbox {
    /// Puts it behind what was sent before; returns its ticket. `awaited`: somebody waits for it already.
    pub(super) fn send(&self, sent: Sent, awaited: bool) -> u64 {
        let mut state = self.state();
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        if state.sent.is_empty() {
            state.since = Some(Instant::now());
        }
        state.sent.push(sent);
        state.awaited |= awaited;
        self.wake(state);
        ticket
    }

    /// Somebody waits for what was sent.
    pub(super) fn hurry(&self) {
        let mut state = self.state();
        if !state.sent.is_empty() {
            state.awaited = true;
            self.wake(state);
        }
    }

    /// A reader asks where records stand.
    pub(super) fn ask(&self) {
        let mut state = self.state();
        state.asked = true;
        self.wake(state);
    }

    /// The thread is to end once there is nothing left to take.
    pub(super) fn stop(&self, orderly: bool) {
        let mut state = self.state();
        (state.stopping, state.orderly) = (true, orderly);
        self.wake(state);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().sent.is_empty()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    /// Whether it is to end, and in order.
    pub(super) fn is_orderly(&self) -> bool {
        self.state().orderly
    }

    /// Takes what was sent into `taken`, which is empty; returns the last ticket, if there was anything.
    pub(super) fn take(&self, taken: &mut Vec<Sent>) -> Option<u64> {
        self.state().take(taken)
    }

    /// Takes what was sent past the thread, if that sleeps lightly, so that it soon looks for what else is due by then, and
    /// if so many bytes fit: as [`take`](Self::take). Whoever has the log may do so, and nobody else: what is sent stays in
    /// order.
    pub(super) fn take_past_sleeper(
        &self,
        taken: &mut Vec<Sent>,
        fit: impl FnOnce(usize) -> bool,
    ) -> Option<u64> {
        let mut state = self.state();
        let is_free = state.sleep == Sleep::Light && !state.asked && !state.stopping;
        if !is_free || !fit(state.sent.iter().map(|sent| sent.batch.bytes()).sum()) {
            return None;
        }
        let last_ticket = state.take(taken);
        state.bypassed |= last_ticket.is_some();
        last_ticket
    }

    /// Puts what was taken, and not appended, back to its place, for the thread.
    pub(super) fn give_back(&self, mut taken: Vec<Sent>) {
        let mut state = self.state();
        taken.append(&mut state.sent);
        state.sent = taken;
        state.awaited = true;
        self.wake(state);
    }

    /// Waits until something was sent that is to be committed, time has passed or it is time to stop.
    pub(super) fn wait(&self, patience: Patience) -> Wake {
        let until = match patience {
            Patience::For(duration) => Some(Instant::now() + duration),
            Patience::None | Patience::Endless => None,
        };
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let commit_at = state.since.map(|since| since + UNAWAITED_DELAY);
            let due = state.awaited || state.stopping || commit_at.is_some_and(|at| at <= now);
            if due && !state.sent.is_empty() {
                return Wake::Arrived;
            }
            if state.stopping {
                return Wake::Stop;
            }
            if std::mem::take(&mut state.asked) {
                return Wake::Asked;
            }
            if std::mem::take(&mut state.bypassed) {
                return Wake::Bypassed;
            }
            if matches!(patience, Patience::None) || until.is_some_and(|until| until <= now) {
                return Wake::TimePassed;
            }
            // While it may soon have to look again, it does so by itself: a sleeper that each ack must wake to tell
            // it of the next time would cost what is to be saved.
            let look_at = match (commit_at, until) {
                (Some(at), _) => Some(at),
                (None, Some(until)) => Some(until.min(now + UNAWAITED_DELAY)),
                (None, None) => None,
            };
            state = match look_at {
                Some(at) => {
                    state.sleep = Sleep::Light;
                    let waited = self.arrived.wait_timeout(state, at.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    state.sleep = Sleep::Deep;
                    self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
            state.sleep = Sleep::Awake;
        }
    }

    /// As if the thread slept, and would soon look again.
    #[cfg(test)]
    pub(super) fn sleep_lightly(&self) {
        self.state().sleep = Sleep::Light;
    }

    /// No code panics while it has this lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if what has just changed needs that.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let needs_wake = state.needs_wake();
        drop(state);
        if needs_wake {
            self.arrived.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(key: Key) -> Sent {
        Sent { batch: RecordBatch::new(), forget: vec![key] }
    }

    #[test]
    fn what_is_given_back_is_taken_before_what_came_meanwhile() {
        let inbox = Inbox::default();
        let mut taken = Vec::new();
        assert_eq!((inbox.send(sent(1), false), inbox.send(sent(2), true)), (1, 2));
        assert_eq!(inbox.take(&mut taken), Some(2));
        inbox.send(sent(3), false);
        inbox.give_back(taken);
        // At once: it was awaited.
        assert!(inbox.wait(Patience::None) == Wake::Arrived);
        let mut taken = Vec::new();
        assert_eq!(inbox.take(&mut taken), Some(3));
        assert!(taken.iter().map(|sent| sent.forget[0]).eq(1..=3));
        assert_eq!(inbox.take(&mut Vec::new()), None);
    }

    #[test]
    fn nothing_is_taken_past_a_thread_that_is_awake_or_sleeps_until_it_is_woken() {
        let inbox = Inbox::default();
        inbox.send(sent(1), false);
        let take = || inbox.take_past_sleeper(&mut Vec::new(), |_| true);
        assert_eq!(take(), None);
        inbox.state().sleep = Sleep::Deep;
        assert_eq!(take(), None);
        inbox.sleep_lightly();
        inbox.state().asked = true;
        assert_eq!(take(), None);
        inbox.state().asked = false;
        assert_eq!(take(), Some(1));
        assert!(inbox.wait(Patience::Endless) == Wake::Bypassed);
        inbox.send(sent(2), false);
        inbox.stop(true);
        inbox.sleep_lightly();
        assert_eq!(take(), None);
    }
}
