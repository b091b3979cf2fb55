//! Time as an argument.

/// A point in time: microseconds on a scale that only grows.
///
/// The scale is anchored to the wall clock once, when the broker starts, so that a time written to
/// the store means something after a restart; from then on it follows the monotonic clock, so that
/// no step of the wall clock moves a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The time `ms` milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// The time from `earlier` to `self` in milliseconds; 0 if it is not earlier.
    pub fn ms_since(self, earlier: Time) -> u64 {
        self.micros_since(earlier) / 1000
    }

    /// The time from `earlier` to `self` in microseconds; 0 if it is not earlier.
    pub fn micros_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
