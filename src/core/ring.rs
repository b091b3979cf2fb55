//! Whose turn it is.

use std::iter;

use super::session::SubscriptionKey;

/// Subscriptions in order of subscribing. The pick is the first that is open after the last
/// picked; one that is not open when its turn comes loses it.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// All that ever stood open, with their places, in order of these. Some that left are still here.
    seats: Vec<(u64, SubscriptionKey)>,
    /// A bit for each of them: whether it can take a task now.
    open: Vec<u64>,
    open_count: usize,
    /// How many left.
    gone: usize,
    /// The place of the last picked, and the seat behind it.
    last: u64,
    turn: usize,
}

/// In the seat of one that left.
const GONE: SubscriptionKey = SubscriptionKey(u32::MAX);

/// So many seats of those who left are not worth clearing away.
const GONE_MIN: usize = 32;

impl Ring {
    pub(super) fn open(&mut self, place: u64, subscription: SubscriptionKey) {
        let at = match self.seat(place) {
            Ok(at) => at,
            Err(at) => {
                self.sit_down(at, place, subscription);
                at
            }
        };
        let (word, bit) = (&mut self.open[at / 64], 1 << (at % 64));
        self.open_count += usize::from(*word & bit == 0);
        *word |= bit;
    }

    pub(super) fn close(&mut self, place: u64) {
        let Ok(at) = self.seat(place) else { return };
        let (word, bit) = (&mut self.open[at / 64], 1 << (at % 64));
        self.open_count -= usize::from(*word & bit != 0);
        *word &= !bit;
    }

    /// It does not come back.
    pub(super) fn leave(&mut self, place: u64) {
        self.close(place);
        let Ok(at) = self.seat(place) else { return };
        self.seats[at].1 = GONE;
        self.gone += 1;
        if self.gone > GONE_MIN && self.gone > self.seats.len() / 2 {
            self.rearrange(|seats| seats.retain(|(_, subscription)| *subscription != GONE));
            self.gone = 0;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open_count == 0
    }

    /// The next in turn of those that `may` take it.
    #[inline]
    pub(super) fn pick(&mut self, mut may: impl FnMut(SubscriptionKey) -> bool) -> Option<SubscriptionKey> {
        let at = self.in_turn().find(|at| may(self.seats[*at].1))?;
        let (place, subscription) = self.seats[at];
        (self.last, self.turn) = (place, at + 1);
        Some(subscription)
    }

    /// The seats of those that are open, the next in turn first.
    fn in_turn(&self) -> impl Iterator<Item = usize> {
        self.open_within(self.turn, self.seats.len()).chain(self.open_within(0, self.turn))
    }

    fn open_within(&self, from: usize, to: usize) -> impl Iterator<Item = usize> {
        let mut next = from;
        iter::from_fn(move || {
            let at = self.first_open(next).filter(|at| *at < to)?;
            next = at + 1;
            Some(at)
        })
    }

    /// The first seat from this one on that is open.
    fn first_open(&self, from: usize) -> Option<usize> {
        let mut nth = from / 64;
        let mut word = self.open.get(nth)? & (!0 << (from % 64));
        while word == 0 {
            nth += 1;
            word = *self.open.get(nth)?;
        }
        Some(nth * 64 + word.trailing_zeros() as usize)
    }

    /// Where a place is, or belongs.
    fn seat(&self, place: u64) -> Result<usize, usize> {
        self.seats.binary_search_by_key(&place, |(place, _)| *place)
    }

    fn sit_down(&mut self, at: usize, place: u64, subscription: SubscriptionKey) {
        if at < self.seats.len() {
            // It subscribed before others and stands open after them for the first time.
            return self.rearrange(|seats| seats.insert(at, (place, subscription)));
        }
        self.seats.push((place, subscription));
        self.open.resize(self.seats.len().div_ceil(64), 0);
        // The last picked may have sat behind it, and have left.
        self.turn += usize::from(place <= self.last);
    }

    /// Changes who sits where; who stands open does so wherever it sits then.
    fn rearrange(&mut self, change: impl FnOnce(&mut Vec<(u64, SubscriptionKey)>)) {
        let open: Vec<u64> = self.open_within(0, self.seats.len()).map(|at| self.seats[at].0).collect();
        change(&mut self.seats);
        self.open.clear();
        self.open.resize(self.seats.len().div_ceil(64), 0);
        for place in open {
            if let Ok(at) = self.seat(place) {
                self.open[at / 64] |= 1 << (at % 64);
            }
        }
        self.picked(self.last);
    }

    /// Whether somebody who is open `may` take it.
    pub(super) fn any(&self, mut may: impl FnMut(SubscriptionKey) -> bool) -> bool {
        self.open_within(0, self.seats.len()).any(|at| may(self.seats[at].1))
    }

    /// The one with the smallest share of its credit in use, `load` being unsettled and credit; of several the
    /// next in turn.
    pub(super) fn pick_least(
        &mut self,
        mut may: impl FnMut(SubscriptionKey) -> bool,
        load: impl Fn(SubscriptionKey) -> (u32, u32),
    ) -> Option<SubscriptionKey> {
        let mut least: Option<(u64, SubscriptionKey, (u32, u32))> = None;
        for at in self.in_turn() {
            let (place, subscription) = self.seats[at];
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
        self.picked(place);
        Some(subscription)
    }

    /// The one with the highest `affinity`. The turn stays where it is.
    pub(super) fn pick_most(
        &mut self,
        mut may: impl FnMut(SubscriptionKey) -> bool,
        affinity: impl Fn(SubscriptionKey) -> u64,
    ) -> Option<SubscriptionKey> {
        let open = self.open_within(0, self.seats.len()).map(|at| self.seats[at].1);
        open.filter(|subscription| may(*subscription)).max_by_key(|subscription| affinity(*subscription))
    }

    /// Says that the subscription at `place` took a task on its own.
    pub(super) fn picked(&mut self, place: u64) {
        self.last = place;
        self.turn = self.seats.partition_point(|(other, _)| *other <= place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    /// What the ring does, by a map of those that are open.
    #[derive(Default)]
    struct Plain {
        open: BTreeMap<u64, u32>,
        last: u64,
    }

    impl Plain {
        fn pick(&mut self, may: impl Fn(u32) -> bool) -> Option<u32> {
            let turns = self.open.range(self.last + 1..).chain(self.open.range(..=self.last));
            let (place, subscription) = turns.map(|(p, s)| (*p, *s)).find(|(_, s)| may(*s))?;
            self.last = place;
            Some(subscription)
        }
    }

    #[test]
    fn a_ring_of_many_who_come_and_go_keeps_its_turns() {
        for seed in 0..200 {
            let mut state: u64 = seed;
            let mut draw = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let (mut ring, mut plain) = (Ring::default(), Plain::default());
            let (mut places, mut next): (Vec<u64>, u64) = (Vec::new(), 1);
            for _ in 0..1000 {
                let place = match places.is_empty() {
                    true => None,
                    false => Some(places[draw(places.len() as u64) as usize]),
                };
                match (draw(10), place) {
                    (0 | 1, _) => {
                        places.push(next);
                        next += 1;
                    }
                    (2 | 3, Some(place)) => {
                        ring.open(place, SubscriptionKey(place as u32));
                        plain.open.insert(place, place as u32);
                    }
                    (4, Some(place)) => {
                        ring.close(place);
                        plain.open.remove(&place);
                    }
                    // Fewer and fewer at some seeds, more and more at others.
                    (5, Some(place)) if draw(4) < seed % 5 => {
                        ring.leave(place);
                        plain.open.remove(&place);
                        places.retain(|other| *other != place);
                    }
                    (6, Some(place)) => {
                        ring.picked(place);
                        plain.last = place;
                    }
                    _ => {
                        let odd = draw(3);
                        let may = |subscription: u32| u64::from(subscription) % 3 != odd;
                        assert_eq!(ring.pick(|s| may(s.0)).map(|s| s.0), plain.pick(may), "seed {seed}");
                    }
                }
                let seen = |may: &dyn Fn(u32) -> bool| ring.any(|s| may(s.0));
                assert_eq!(ring.is_empty(), plain.open.is_empty());
                assert_eq!(seen(&|s| s % 2 == 0), plain.open.values().any(|s| s % 2 == 0));
                assert_eq!(ring.seats.len() - ring.gone, ring.seats.iter().filter(|s| s.1 != GONE).count());
                assert!(ring.gone <= GONE_MIN || ring.gone <= ring.seats.len() / 2);
            }
        }
    }
}
