//! Whose turn it is.

use std::collections::BTreeMap;

use super::session::SubscriptionKey;

/// Subscriptions in order of subscribing. The pick is the first that is open after the last
/// picked; one that is not open when its turn comes loses it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Those that can take a task now, by their place.
    open: BTreeMap<u64, SubscriptionKey>,
    /// The place of the last picked.
    last: u64,
}

impl Ring {
    pub(super) fn open(&mut self, place: u64, subscription: SubscriptionKey) {
        self.open.insert(place, subscription);
    }

    pub(super) fn close(&mut self, place: u64) {
        self.open.remove(&place);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The next in turn of those that `may` take it.
    pub(super) fn pick(&mut self, mut may: impl FnMut(SubscriptionKey) -> bool) -> Option<SubscriptionKey> {
        let (place, subscription) = self
            .open
            .range(self.last + 1..)
            .chain(self.open.range(..=self.last))
            .find(|(_, subscription)| may(**subscription))
            .map(|(place, subscription)| (*place, *subscription))?;
        self.last = place;
        Some(subscription)
    }

    /// Those that are open, the next in turn first.
    fn in_turn(&self) -> impl Iterator<Item = (u64, SubscriptionKey)> {
        let turns = self.open.range(self.last + 1..).chain(self.open.range(..=self.last));
        turns.map(|(place, subscription)| (*place, *subscription))
    }

    /// Whether somebody who is open `may` take it.
    pub(super) fn any(&self, mut may: impl FnMut(SubscriptionKey) -> bool) -> bool {
        self.open.values().any(|subscription| may(*subscription))
    }

    /// The one with the smallest share of its credit in use, `load` being unsettled and credit; of several the
    /// next in turn.
    pub(super) fn pick_least(
        &mut self,
        mut may: impl FnMut(SubscriptionKey) -> bool,
        load: impl Fn(SubscriptionKey) -> (u32, u32),
    ) -> Option<SubscriptionKey> {
        let mut least: Option<(u64, SubscriptionKey, (u32, u32))> = None;
        for (place, subscription) in self.in_turn() {
            if !may(subscription) {
                continue;
            }
            let (unsettled, credit) = load(subscription);
            let less = least.is_none_or(|(_, _, (least, of))| {
                u64::from(unsettled) * u64::from(of) < u64::from(least) * u64::from(credit)
            });
            if less {
                least = Some((place, subscription, (unsettled, credit)));
            }
            if unsettled == 0 {
                break;
            }
        }
        let (place, subscription, _) = least?;
        self.last = place;
        Some(subscription)
    }

    /// The one with the highest `affinity`. The turn stays where it is.
    pub(super) fn pick_most(
        &mut self,
        mut may: impl FnMut(SubscriptionKey) -> bool,
        affinity: impl Fn(SubscriptionKey) -> u64,
    ) -> Option<SubscriptionKey> {
        let able = self.open.values().copied().filter(|subscription| may(*subscription));
        able.max_by_key(|subscription| affinity(*subscription))
    }

    /// Says that the subscription at `place` took a task on its own.
    pub(super) fn picked(&mut self, place: u64) {
        self.last = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exact_and_a_closed_one_loses_its_turn() {
        let mut ring = Ring::default();
        for place in 1..=3 {
            ring.open(place, SubscriptionKey(place as u32));
        }
        let pick = |ring: &mut Ring| ring.pick(|_| true).map(|s| s.0);
        assert_eq!(
            [pick(&mut ring), pick(&mut ring), pick(&mut ring), pick(&mut ring)],
            [1, 2, 3, 1].map(Some)
        );
        ring.close(2);
        assert_eq!([pick(&mut ring), pick(&mut ring)], [3, 1].map(Some));
        ring.open(2, SubscriptionKey(2));
        assert_eq!([pick(&mut ring), pick(&mut ring)], [2, 3].map(Some));
        assert_eq!(ring.pick(|s| s.0 == 3).map(|s| s.0), Some(3));
        assert_eq!(Ring::default().pick(|_| true), None);
    }
}
