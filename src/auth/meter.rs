//! What all connections of one account share: how many there are, and how fast they may speak.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::{Clock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use smol_str::SmolStr;
use tokio::time::Instant;

/// Below so many meters nobody looks which of them are idle.
const SWEEP_MIN: usize = 64;

/// A meter that nobody held for so long is forgotten: a limiter is full again after its burst, which
/// is one second's worth, so that a new one would say the same.
const IDLE: Duration = Duration::from_secs(1);

/// Time for the limiter: that of tokio, so that tests can turn it.
#[derive(Debug, Clone)]
struct Since(Instant);

impl Clock for Since {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Since, NoOpMiddleware<Duration>>;

struct Rate {
    per_s: NonZeroU32,
    limiter: Limiter,
    clock: Since,
}

impl Rate {
    fn new(per_s: NonZeroU32) -> Rate {
        let clock = Since(Instant::now());
        // `per_second` also allows one second's worth at once.
        Rate {
            per_s,
            limiter: RateLimiter::direct_with_clock(Quota::per_second(per_s), clock.clone()),
            clock,
        }
    }
}

/// The shared state of one account. Made by the authority, one for each account.
#[derive(Default)]
pub struct Meter {
    connections: AtomicU32,
    /// Whether `rate` holds something: most accounts are not limited, and need no lock to know.
    limited: AtomicBool,
    rate: RwLock<Option<Rate>>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_s = self.rate.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|rate| rate.per_s);
        f.debug_struct("Meter")
            .field("connections", &self.connections())
            .field("messages_per_s", &per_s)
            .finish_non_exhaustive()
    }
}

/// An account has as many connections as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyConnections {
    /// How many it may have.
    pub max: u32,
}

impl fmt::Display for TooManyConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this token has {} connections, which is all it may: close one, or raise its limit",
            self.max
        )
    }
}

impl std::error::Error for TooManyConnections {}

/// A connection that is counted for as long as this lives.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<Meter>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// Counts one connection more, if there are fewer than `max`.
    pub fn connect(self: &Arc<Self>, max: Option<u32>) -> Result<ConnectionPermit, TooManyConnections> {
        let limit = max.unwrap_or(u32::MAX);
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then(|| count + 1))
            .map(|_| ConnectionPermit(Arc::clone(self)))
            .map_err(|_| TooManyConnections { max: limit })
    }

    /// How many connections there are.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts one message, or says how long to wait until there may be one.
    pub fn message(&self) -> Result<(), Duration> {
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        let rate = self.rate.read().unwrap_or_else(PoisonError::into_inner);
        let Some(rate) = rate.as_ref() else { return Ok(()) };
        rate.limiter
            .check()
            .map_err(|not_until| not_until.earliest_possible().duration_since(rate.clock.now()).into())
    }

    /// Sets how many messages a second there may be, if that is not what is set.
    pub(super) fn set_rate(&self, per_s: Option<u32>) {
        // Limits are 1 or more. Should one be 0 all the same, it must not mean that there is none.
        let per_s = per_s.map(|per_s| NonZeroU32::new(per_s).unwrap_or(NonZeroU32::MIN));
        let same = |rate: &Option<Rate>| rate.as_ref().map(|rate| rate.per_s) == per_s;
        if same(&self.rate.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut rate = self.rate.write().unwrap_or_else(PoisonError::into_inner);
        *rate = per_s.map(Rate::new);
        self.limited.store(per_s.is_some(), Ordering::Relaxed);
    }
}

/// The meters of all accounts.
#[derive(Debug, Default)]
pub(super) struct Meters {
    all: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    meters: HashMap<SmolStr, Entry>,
    /// Sweep at so many.
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry {
    // Not a weak reference: an account that only asks over HTTP is nobody's between two requests,
    // and would begin anew with each.
    meter: Arc<Meter>,
    /// Since when a sweep has found that nobody holds it.
    idle: Option<Instant>,
}

impl Meters {
    /// The meter of an account, with its rate set.
    pub(super) fn of(&self, account: &str, per_s: Option<u32>) -> Arc<Meter> {
        let mut table = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let meter = if let Some(entry) = table.meters.get_mut(account) {
            entry.idle = None;
            Arc::clone(&entry.meter)
        } else {
            if table.meters.len() >= table.sweep_at.max(SWEEP_MIN) {
                table.sweep();
                // Doubling keeps the cost of sweeps at a few steps for each meter that is made.
                table.sweep_at = table.meters.len() * 2;
            }
            let meter = Arc::<Meter>::default();
            table.meters.insert(account.into(), Entry { meter: Arc::clone(&meter), idle: None });
            meter
        };
        drop(table);
        meter.set_rate(per_s);
        meter
    }

    /// Forgets meters that nobody has held for a while. To be called now and then.
    pub(super) fn sweep(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).sweep();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.all.lock().unwrap().meters.len()
    }
}

impl Table {
    fn sweep(&mut self) {
        let now = Instant::now();
        self.meters.retain(|_, entry| {
            if Arc::strong_count(&entry.meter) > 1 {
                entry.idle = None;
                return true;
            }
            now.duration_since(*entry.idle.get_or_insert(now)) < IDLE
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metered(per_s: u32) -> Meter {
        let meter = Meter::default();
        meter.set_rate(Some(per_s));
        meter
    }

    #[test]
    fn connections_are_counted_while_they_last() {
        let meter = Arc::<Meter>::default();
        let first = meter.connect(Some(2)).unwrap();
        let second = meter.connect(Some(2)).unwrap();
        let refused = meter.connect(Some(2)).unwrap_err();
        assert_eq!(refused, TooManyConnections { max: 2 });
        assert!(refused.to_string().contains("2 connections"));
        // Another limit, or none, counts the same connections.
        let third = meter.connect(None).unwrap();
        assert_eq!(meter.connections(), 3);
        drop((first, third));
        let again = meter.connect(Some(2)).unwrap();
        drop((second, again));
        assert_eq!(meter.connections(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_s_worth_passes_at_once_and_then_the_rate() {
        let meter = metered(10);
        assert_eq!((0..20).filter(|_| meter.message().is_ok()).count(), 10);
        let wait = meter.message().unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        tokio::time::advance(wait).await;
        assert_eq!(meter.message(), Ok(()));
        assert!(meter.message().is_err());

        let began = Instant::now();
        for _ in 0..50 {
            while let Err(wait) = meter.message() {
                tokio::time::advance(wait).await;
            }
        }
        let took = began.elapsed();
        assert!(took > Duration::from_millis(4_900) && took < Duration::from_millis(5_200), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_meter_without_a_rate_never_waits_and_a_rate_can_change() {
        let meter = Meter::default();
        assert!((0..10_000).all(|_| meter.message().is_ok()));
        meter.set_rate(Some(1));
        assert!(meter.message().is_ok() && meter.message().is_err());
        meter.set_rate(Some(1));
        assert!(meter.message().is_err(), "the same rate again forgives nothing");
        meter.set_rate(None);
        assert!((0..10_000).all(|_| meter.message().is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_has_one_meter_until_it_is_idle() {
        let meters = Meters::default();
        let rate = Some(1);
        assert!(Arc::ptr_eq(&meters.of("a", rate), &meters.of("a", rate)));
        assert!(!Arc::ptr_eq(&meters.of("a", rate), &meters.of("b", rate)));
        // Somebody who comes again at once does not begin anew.
        assert!(meters.of("a", rate).message().is_ok());
        meters.sweep();
        assert!(meters.of("a", rate).message().is_err());
        let held = meters.of("a", rate);
        for _ in 0..3 {
            tokio::time::advance(IDLE).await;
            meters.sweep();
        }
        assert_eq!(meters.len(), 1, "b is forgotten, a is held");
        drop(held);
        meters.sweep();
        assert_eq!(meters.len(), 1);
        tokio::time::advance(IDLE).await;
        meters.sweep();
        assert_eq!(meters.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn many_accounts_that_come_and_go_leave_little_behind() {
        let meters = Meters::default();
        for nth in 0..100_000 {
            meters.of(&format!("jwt:{nth}"), None);
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert!(meters.len() < 1000, "{}", meters.len());
    }
}
