//! The only place that asks the operating system for the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::Time;

/// Anchored to the wall clock when it is made, and to the monotonic clock from then on.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    anchor: Instant,
    base: u64,
}

impl Clock {
    /// Anchors a clock now.
    pub fn start() -> Clock {
        Clock { anchor: Instant::now(), base: wall_micros() }
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.at(Instant::now())
    }

    /// The time at an instant that was taken before.
    pub fn at(&self, instant: Instant) -> Time {
        let passed = instant.saturating_duration_since(self.anchor).as_micros();
        Time(self.base.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }

    /// The instant of a time; the anchor's, if it lies before that.
    pub fn instant(&self, time: Time) -> Instant {
        self.anchor + Duration::from_micros(time.0.saturating_sub(self.base))
    }

    /// The time of a point on the wall clock, given in microseconds since 1970: as far from now as the
    /// wall clock says it is at this moment.
    pub fn at_wall(&self, unix_micros: i64) -> Time {
        let ahead = i128::from(unix_micros) - i128::from(wall_micros());
        let now = i128::from(self.now().0);
        Time(u64::try_from((now + ahead).max(0)).unwrap_or(u64::MAX))
    }
}

/// The time of day, which may jump: for what was told in it, as the end of a token.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

fn wall_micros() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
