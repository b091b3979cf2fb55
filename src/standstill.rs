//! Tells when the process stood still, and what is not to be done for a while then.
//!
//! A process that is stopped, or whose machine is paused, finds on waking that much was due meanwhile, and does not know
//! yet what else came: acks and pongs lie unread with the kernel, and timers go off before they are read.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;

use crate::core::Time;

/// So much longer than its time nobody is given up on at first: what came from them in time may be read only now. Each
/// thread of a process that goes on is at work again long before.
pub const GRACE: Duration = Duration::from_millis(100);

/// What a peer is to do within `limit`; given up on a little later, see [`GRACE`].
///
/// # Errors
///
/// When it was not done.
pub async fn timeout<W: Future>(limit: Duration, work: W) -> Result<W::Output, Elapsed> {
    let mut work = pin!(work);
    match tokio::time::timeout(limit, &mut work).await {
        Err(_) => tokio::time::timeout(GRACE, work).await,
        done => done,
    }
}

/// Whatever is due is looked at so much before, in microseconds: the process may have stood still until this moment, and
/// sockets are to be read first.
const LOOK_MICROS: u64 = 2_000;
/// So long they have for that at least.
const MOMENT_MICROS: u64 = 1_000;
/// Looked at later than this, in microseconds, something shows that the process stood still, or that nothing was read for
/// want of room. A timer's own tick is 1 ms, and it may miss one.
const LATE_MICROS: u64 = 5_000;
/// Then it is held back for as long again as it is late, in microseconds, within these bounds: how long the process stood
/// still before it was due, nobody knows.
const HOLD_MICROS_MIN: u64 = 10_000;
const HOLD_MICROS_MAX: u64 = GRACE.as_micros() as u64;

/// Holds back what is due until sockets were surely read.
#[derive(Debug, Default)]
pub struct Standstill(Option<Hold>);

#[derive(Debug)]
struct Hold {
    /// What was due by then is held back,
    through: Time,
    /// until then.
    until: Time,
    /// It was found late once more.
    again: bool,
}

impl Standstill {
    /// When to ask next, if `next` is due first.
    pub fn look_at(&self, next: Time) -> Time {
        self.0.as_ref().map_or(before(next), |hold| hold.until)
    }

    /// By when what is due may be done, if all that arrived by `horizon` is known and `next` is due first. To be asked again
    /// if that is earlier than the horizon. Nothing is held back more than twice, so that whoever is late each time, having
    /// more to do than can be done, comes to everything all the same.
    pub fn done_by(&mut self, horizon: Time, next: Option<Time>) -> Option<Time> {
        let Some(hold) = &mut self.0 else {
            let Some(due) = next.filter(|due| before(*due) <= horizon) else { return Some(horizon) };
            let until = held_until(horizon, before(due)).max(due);
            self.0 = Some(Hold { through: due.max(horizon), until, again: false });
            return None;
        };
        if horizon < hold.until {
            return None;
        }
        if horizon.micros_since(hold.until) > LATE_MICROS && !hold.again {
            (hold.until, hold.again) = (held_until(horizon, hold.until), true);
            return None;
        }
        self.0.take().map(|hold| hold.through)
    }
}

/// When to look at what is due then.
fn before(due: Time) -> Time {
    Time(due.0.saturating_sub(LOOK_MICROS))
}

/// Until when what was to be looked at then, and is now, is held back.
fn held_until(now: Time, look: Time) -> Time {
    let late = now.micros_since(look);
    let hold = if late > LATE_MICROS { late.clamp(HOLD_MICROS_MIN, HOLD_MICROS_MAX) } else { MOMENT_MICROS };
    Time(now.0 + hold)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn at(ms: u64) -> Time {
        Time(1_000_000 * MS + ms * MS)
    }

    fn by(ms: u64) -> Option<Time> {
        Some(at(ms))
    }

    #[test]
    fn what_is_in_time_is_done_in_time() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.done_by(at(10), None), by(10));
        assert_eq!(standstill.done_by(at(20), by(30)), by(20));
        assert_eq!(standstill.look_at(at(30)), at(28));
        // Looked at before it is due, or a little later; and done when it is due, or a moment later.
        for (look, done) in [(28, 30), (29, 30), (30, 31), (33, 34)] {
            assert_eq!(standstill.done_by(at(look), by(30)), None);
            assert_eq!(standstill.look_at(at(30)), at(done));
            assert_eq!(standstill.done_by(at(done), by(30)), by(look.max(30)));
            assert_eq!(standstill.done_by(at(done), by(40)), by(done));
        }
    }

    #[test]
    fn what_is_late_is_held_back_for_as_long_again() {
        for (late, hold) in [(6, 10), (10, 10), (60, 60), (100, 100), (3_600_000, 100)] {
            let mut standstill = Standstill::default();
            let found = 8 + late;
            assert_eq!(standstill.done_by(at(found), by(10)), None, "{late}");
            assert_eq!(standstill.look_at(at(10)), at(found + hold));
            assert_eq!(standstill.done_by(at(found + hold - 1), by(10)), None);
            assert_eq!(standstill.done_by(at(found + hold), by(10)), by(found));
        }
    }

    /// What was due while others were held back may have been missed for the same reason.
    #[test]
    fn what_was_due_meanwhile_is_judged_by_itself() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.done_by(at(58), by(10)), None);
        assert_eq!(standstill.done_by(at(109), by(10)), by(58));
        assert_eq!(standstill.done_by(at(109), by(61)), None);
        assert_eq!(standstill.done_by(at(159), by(61)), by(109));
        assert_eq!(standstill.done_by(at(159), by(162)), by(159));
    }

    #[test]
    fn a_second_standstill_holds_once_more() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.done_by(at(58), by(10)), None);
        assert_eq!(standstill.done_by(at(500), by(10)), None);
        assert_eq!(standstill.look_at(at(10)), at(600));
        assert_eq!(standstill.done_by(at(1000), by(10)), by(58));
    }

    /// The timer of a process that goes on may fire before what lies with the kernel is known.
    #[tokio::test(start_paused = true)]
    async fn a_peer_is_given_up_on_a_little_after_its_time() {
        let limit = Duration::from_secs(10);
        for (takes, in_time) in [(0, true), (10_000, true), (10_050, true), (10_150, false)] {
            let began = tokio::time::Instant::now();
            let done = timeout(limit, tokio::time::sleep(Duration::from_millis(takes))).await;
            assert_eq!(done.is_ok(), in_time, "{takes} ms");
            assert_eq!(began.elapsed(), Duration::from_millis(takes).min(limit + GRACE));
        }
    }

    /// A dispatcher with more to do than it can comes back late each time.
    #[test]
    fn whoever_is_always_late_comes_to_everything() {
        for period in 1..1000 {
            let mut standstill = Standstill::default();
            let (mut done, mut now) = (at(0), 0);
            while now < 60_000 {
                now += period;
                while let Some(by) = standstill.done_by(at(now), Some(Time(done.0 + 1))) {
                    assert!(by > done);
                    done = by;
                    if by == at(now) {
                        break;
                    }
                }
                assert!(at(now).micros_since(done) <= (6 * period + 400) * MS, "{period}: {done:?} at {now}");
            }
        }
    }
}
