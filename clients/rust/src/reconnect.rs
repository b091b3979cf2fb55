//! When to connect again. Decides from what it is told: no clock, no randomness of its own.

use std::time::Duration;

use taskyard_proto::code::Advice;
use tokio::time::Instant;

/// Whether and for how long a lost connection is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reconnect {
    /// A lost connection is the end.
    Never,
    /// The end comes when no connection was made for this long.
    For(Duration),
    /// For ever, unless the broker says that it is of no use.
    #[default]
    Always,
}

/// The first wait is drawn from 0 to this; each further one from twice as much.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// No wait is drawn from more than this.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A connection that held this long was a good one: the waits begin anew.
const HELD_LONG: Duration = WAIT_MAX;

/// Counts failures and says how long to wait.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: Reconnect,
    failures: u32,
    /// When the last connection was lost.
    since: Option<Instant>,
    connected_at: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new(policy: Reconnect) -> Backoff {
        Backoff { policy, failures: 0, since: None, connected_at: None }
    }

    pub(crate) fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        self.since = None;
    }

    /// How long to wait before the next try, after a connection or a try has ended with `advice`;
    /// `None` when there is to be none. `random` is of 0 to 1.
    pub(crate) fn next(&mut self, advice: Advice, now: Instant, random: f64) -> Option<Duration> {
        if advice == Advice::Stop || self.policy == Reconnect::Never {
            return None;
        }
        if self.connected_at.take().is_some_and(|at| now.duration_since(at) >= HELD_LONG) {
            self.failures = 0;
        }
        let since = *self.since.get_or_insert(now);
        if let Reconnect::For(limit) = self.policy
            && now.duration_since(since) >= limit
        {
            return None;
        }
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        // At once, but once: a broker that keeps saying so would be hammered.
        if advice == Advice::ReconnectNow && failures == 0 {
            return Some(Duration::ZERO);
        }
        // Drawn from the whole of the window: so do a thousand clients of one broker spread best.
        let window = WAIT_MIN.saturating_mul(1 << failures.min(16)).min(WAIT_MAX);
        Some(window.mul_f64(random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_begin_anew_after_a_good_connection() {
        let mut backoff = Backoff::new(Reconnect::Always);
        let start = Instant::now();
        let waits: Vec<u128> = (0..9)
            .map(|_| backoff.next(Advice::BackOff, start, 1.0).expect("this works in the test").as_millis())
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        backoff.connected(start);
        let soon = start + Duration::from_secs(1);
        assert_eq!(backoff.next(Advice::BackOff, soon, 0.5), Some(Duration::from_secs(5)));
        backoff.connected(soon);
        assert_eq!(
            backoff.next(Advice::BackOff, soon + HELD_LONG, 0.5),
            Some(Duration::from_millis(50)),
            "a connection that held forgives what was before it"
        );
    }

    #[test]
    fn the_advice_of_a_close_code_is_followed() {
        use taskyard_proto::CloseCode;
        for (code, wait) in [
            (1008, None),
            (4001, None),
            (4003, None),
            (4009, None),
            (4010, None),
            (1012, Some(100)),
            (1013, Some(100)),
            (4108, Some(100)),
            (4129, Some(100)),
            (4130, Some(100)),
            (4201, Some(0)),
            (4203, Some(0)),
        ] {
            let next = Backoff::new(Reconnect::Always).next(CloseCode(code).advice(), Instant::now(), 1.0);
            assert_eq!(next.map(|wait| wait.as_millis()), wait, "{code}");
        }
    }

    #[test]
    fn at_once_is_said_once() {
        let mut backoff = Backoff::new(Reconnect::Always);
        let now = Instant::now();
        assert_eq!(backoff.next(Advice::ReconnectNow, now, 1.0), Some(Duration::ZERO));
        backoff.connected(now);
        assert_eq!(backoff.next(Advice::ReconnectNow, now, 1.0), Some(Duration::from_millis(200)));
    }

    #[test]
    fn a_time_limit_counts_from_the_loss() {
        let mut backoff = Backoff::new(Reconnect::For(Duration::from_secs(30)));
        let lost = Instant::now();
        assert!(backoff.next(Advice::BackOff, lost, 1.0).is_some());
        assert!(backoff.next(Advice::BackOff, lost + Duration::from_secs(29), 1.0).is_some());
        assert_eq!(backoff.next(Advice::BackOff, lost + Duration::from_secs(30), 1.0), None);
        assert_eq!(Backoff::new(Reconnect::Never).next(Advice::BackOff, lost, 1.0), None);
    }
}
