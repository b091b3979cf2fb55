//! How long a task waits between attempts.

use taskyard_proto::{Backoff, TaskId};

/// Exponential back-off: `min(max, initial × factor^(attempt−1))`, ± 10 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// After the first failed attempt, in milliseconds.
    pub initial_ms: u32,
    /// The longest wait, in milliseconds.
    pub max_ms: u32,
    /// How the wait grows from attempt to attempt.
    pub factor: f64,
}

impl Default for RetryPolicy {
    /// The protocol's defaults: 1 s, doubling, up to 5 minutes.
    fn default() -> Self {
        RetryPolicy { initial_ms: 1000, max_ms: 300_000, factor: 2.0 }
    }
}

impl From<&Backoff> for RetryPolicy {
    fn from(backoff: &Backoff) -> Self {
        let default = RetryPolicy::default();
        let ms = |value: u64| u32::try_from(value).expect("the protocol allows a day, which fits");
        RetryPolicy {
            initial_ms: backoff.initial_ms.map_or(default.initial_ms, |v| ms(v.get())),
            max_ms: backoff.max_ms.map_or(default.max_ms, |v| ms(v.get())),
            factor: backoff.factor.map_or(default.factor, |v| v.get()),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after the failed attempt number `attempt` (from 1).
    ///
    /// The jitter comes from the task and the attempt alone: it spreads tasks that failed together,
    /// and a replay computes it again.
    pub fn delay_ms(&self, task: TaskId, attempt: u16) -> u64 {
        let exponent = i32::from(attempt.saturating_sub(1));
        let wait = (f64::from(self.initial_ms) * self.factor.powi(exponent)).min(f64::from(self.max_ms));
        let jitter = 0.9 + 0.2 * unit(task, attempt);
        (wait * jitter) as u64
    }
}

/// A number of 0 to 1 that task and attempt determine (the finalizer of SplitMix64).
fn unit(task: TaskId, attempt: u16) -> f64 {
    let mut x = (task.0 as u64) ^ ((task.0 >> 64) as u64) ^ (u64::from(attempt) << 48);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    (x >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_within_a_tenth() {
        let policy = RetryPolicy::default();
        for task in 0..200u128 {
            let id = TaskId(task << 70 | task);
            for (attempt, nominal) in
                [(1, 1000.0), (2, 2000.0), (5, 16_000.0), (9, 256_000.0), (10, 300_000.0), (999, 300_000.0)]
            {
                let wait = policy.delay_ms(id, attempt) as f64;
                assert!(wait >= nominal * 0.9 - 1.0 && wait <= nominal * 1.1 + 1.0, "{attempt}: {wait}");
            }
        }
    }

    #[test]
    fn tasks_that_fail_together_do_not_return_together() {
        let policy = RetryPolicy::default();
        let waits: std::collections::BTreeSet<u64> =
            (0..100u128).map(|n| policy.delay_ms(TaskId(n), 1)).collect();
        assert!(waits.len() > 60, "{} different waits of 100", waits.len());
    }
}
