//! A value still in its wire form: found by walking over it, read only when asked.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use crate::{json, msgpack};

/// How deep a value may nest, counted from its own outermost container.
pub(crate) const DEPTH_MAX: usize = 64;

/// Why bytes are not a value of their encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Offset into the frame.
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// What a [`SyntaxError`] says where nothing is wrong with the syntax, but the depth.
pub(crate) const TOO_DEEP: &str = "nested deeper than 64";

impl SyntaxError {
    pub(crate) fn new(at: usize, what: &'static str) -> SyntaxError {
        SyntaxError { at, what }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// One value whose syntax has been checked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Raw<'a> {
    /// Text, so that what is cut out of it need not be checked to be UTF-8 again.
    Json(&'a str),
    /// A JSON string, its quotes included, that was seen to have nothing escaped in it.
    JsonPlain(&'a str),
    MessagePack(&'a [u8]),
}

/// What a [`Raw`] turns out to be.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    /// An integer of −2^63 … 2^64−1.
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
    Binary(&'a [u8]),
    Array,
    Map,
    Extension,
}

impl<'a> Raw<'a> {
    pub(crate) fn value(self) -> Value<'a> {
        match self {
            Raw::Json(text) => json::value(text),
            Raw::JsonPlain(text) => Value::Text(json::between_quotes(text).into()),
            Raw::MessagePack(bytes) => msgpack::value(bytes),
        }
    }

    /// The bytes of a text, which are UTF-8: for who compares or decodes them, and needs no `str`. `None`
    /// when this is no text.
    pub(crate) fn text_bytes(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Raw::MessagePack(bytes) => msgpack::text(bytes).map(Cow::Borrowed),
            Raw::Json(_) | Raw::JsonPlain(_) => match self.value() {
                Value::Text(Cow::Borrowed(text)) => Some(Cow::Borrowed(text.as_bytes())),
                Value::Text(Cow::Owned(text)) => Some(Cow::Owned(text.into_bytes())),
                _ => None,
            },
        }
    }

    /// An integer that is not negative, if it is written as most are. `None` says nothing: [`Raw::value`]
    /// finds out.
    #[inline]
    pub(crate) fn plain_unsigned(self) -> Option<u64> {
        match self {
            Raw::Json(text) => json::short_unsigned(text),
            Raw::JsonPlain(_) => None,
            Raw::MessagePack(bytes) => msgpack::plain_unsigned(bytes),
        }
    }

    pub(crate) fn is_null(self) -> bool {
        match self {
            Raw::Json(text) => text == "null",
            Raw::JsonPlain(_) => false,
            Raw::MessagePack(bytes) => bytes == [msgpack::NIL],
        }
    }

    /// The entries of a map; `None` when this is no map.
    pub(crate) fn entries(self) -> Option<Entries<'a>> {
        match self {
            Raw::Json(text) => json::entries(text),
            Raw::JsonPlain(_) => None,
            Raw::MessagePack(bytes) => msgpack::entries(bytes),
        }
    }

    /// The first items of an array, at most `most`; `None` when this is no array.
    ///
    /// Bounded because an item of one byte costs a slice of many.
    pub(crate) fn items(self, most: usize) -> Option<Vec<Raw<'a>>> {
        match self {
            Raw::Json(text) => json::items(text, most),
            Raw::JsonPlain(_) => None,
            Raw::MessagePack(bytes) => msgpack::items(bytes, most),
        }
    }
}

/// `text` in quotes for an error's message, cut: a frame's worth of it would help nobody.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

/// One of a map's entries.
#[derive(Debug)]
struct Entry<'a> {
    /// UTF-8, as whoever walked over it has seen. It is compared often and read seldom, and a `str` would
    /// have to be checked once more to be made.
    key: Cow<'a, [u8]>,
    /// `None` once it is taken.
    value: Option<Raw<'a>>,
}

/// A key as text.
fn key_text(key: &[u8]) -> &str {
    std::str::from_utf8(key).expect("the walk checked that a key is UTF-8")
}

/// A map's entries, taken out one by one as a message's fields ask for them.
#[derive(Debug, Default)]
pub(crate) struct Entries<'a> {
    list: SmallVec<[Entry<'a>; 12]>,
    /// How many are taken.
    taken: usize,
    /// All before this one are taken.
    next: usize,
    /// What makes the whole map unfit, found while it was walked.
    unfit: Option<&'static str>,
    /// A bit for each key, see [`key_bit`].
    key_bits: u64,
    /// Whether two keys have the same bit: else no key stands twice.
    key_bits_met: bool,
}

/// One of 64 bits, which the keys of one message mostly have each to itself.
#[inline]
fn key_bit(key: &[u8]) -> u64 {
    let first = key.first().map_or(0, |first| usize::from(*first));
    1 << (key.len().wrapping_mul(5).wrapping_add(first) % 64)
}

impl<'a> Entries<'a> {
    /// More keys than this and the check for duplicates sorts instead of comparing each with each.
    const PAIRWISE_MAX: usize = 24;
    /// Far more than a message has fields, and than 4 KiB of headers can have keys. Without a bound a
    /// frame of two-byte entries would cost twenty times its size in memory.
    const ENTRIES_MAX: usize = 4096;

    /// Adds an entry, whose key is UTF-8.
    #[inline(always)]
    pub(crate) fn push(&mut self, key: Cow<'a, [u8]>, value: Raw<'a>) {
        if self.list.spilled() && self.list.len() == Self::ENTRIES_MAX {
            self.refuse("more than 4096 keys in one object");
        } else {
            let bit = key_bit(&key);
            self.key_bits_met |= self.key_bits & bit != 0;
            self.key_bits |= bit;
            self.list.push(Entry { key, value: Some(value) });
        }
    }

    /// The value of `key`, if it was not taken yet.
    pub(crate) fn get(&self, key: &str) -> Option<Raw<'a>> {
        self.list.iter().find(|entry| *entry.key == *key.as_bytes())?.value
    }

    /// Adds an entry in the place of the one that has its key, if there is one.
    pub(crate) fn replace(&mut self, key: &'static str, value: Raw<'a>) {
        if let Some(at) = self.list.iter().position(|entry| *entry.key == *key.as_bytes()) {
            self.taken -= usize::from(self.list.swap_remove(at).value.is_none());
        }
        self.push(Cow::Borrowed(key.as_bytes()), value);
    }

    /// Makes room for the next map.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.taken = 0;
        self.next = 0;
        self.unfit = None;
        self.key_bits = 0;
        self.key_bits_met = false;
    }

    /// Notes that the map as a whole is unfit; [`Entries::fault`] tells it.
    #[cold]
    pub(crate) fn refuse(&mut self, why: &'static str) {
        self.unfit = Some(why);
    }

    /// Whether all were taken.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.list.len()
    }

    /// Whether what is left has only keys that are among these.
    #[inline]
    pub(crate) fn are_among(&self, keys: &[&str]) -> bool {
        let mut left = self.list[self.next..].iter().filter(|entry| entry.value.is_some());
        left.all(|entry| keys.iter().any(|key| *key.as_bytes() == *entry.key))
    }

    /// Takes out the value of `key`.
    #[inline]
    pub(crate) fn take(&mut self, key: &str) -> Option<Raw<'a>> {
        // Clients send fields in the order in which they are asked for: mostly the first that is left is it.
        match self.list.get_mut(self.next) {
            Some(entry) if *entry.key == *key.as_bytes() => {
                self.next += 1;
                self.taken += usize::from(entry.value.is_some());
                match entry.value.take() {
                    None => self.find(key.as_bytes()),
                    value => value,
                }
            }
            Some(_) => self.find(key.as_bytes()),
            None => None,
        }
    }

    fn find(&mut self, key: &[u8]) -> Option<Raw<'a>> {
        let value = self.list[self.next..]
            .iter_mut()
            .find_map(|entry| if *entry.key == *key { entry.value.take() } else { None });
        self.taken += usize::from(value.is_some());
        while self.list.get(self.next).is_some_and(|entry| entry.value.is_none()) {
            self.next += 1;
        }
        value
    }

    /// All entries, of which none was taken.
    pub(crate) fn into_pairs(self) -> impl Iterator<Item = (Cow<'a, str>, Raw<'a>)> {
        self.list.into_iter().filter_map(|Entry { key, value }| {
            let key = match key {
                Cow::Borrowed(key) => Cow::Borrowed(key_text(key)),
                Cow::Owned(key) => Cow::Owned(key_text(&key).to_owned()),
            };
            value.map(|value| (key, value))
        })
    }

    /// What is wrong with the map as a whole, before any field is looked at.
    pub(crate) fn fault(&self) -> Option<String> {
        if let Some(why) = self.unfit {
            return Some(why.into());
        }
        self.duplicate().map(|key| format!("the key {} stands twice", quoted(key)))
    }

    /// A key that stands twice, be it taken or not: which of its values was meant cannot be known.
    pub(crate) fn duplicate(&self) -> Option<&str> {
        if !self.key_bits_met {
            return None;
        }
        let list = &self.list;
        if list.len() <= Self::PAIRWISE_MAX {
            return (1..list.len())
                .find(|&i| list[..i].iter().any(|entry| entry.key == list[i].key))
                .map(|i| key_text(&list[i].key));
        }
        let mut keys: Vec<&[u8]> = list.iter().map(|entry| &*entry.key).collect();
        keys.sort_unstable();
        keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| key_text(pair[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_found_among_few_and_among_many() {
        let null = Raw::Json("null");
        for count in [1, Entries::PAIRWISE_MAX - 1, Entries::PAIRWISE_MAX, 1000] {
            let mut entries = Entries::default();
            for i in 0..count {
                entries.push(format!("k{i}").into_bytes().into(), null);
            }
            assert_eq!(entries.duplicate(), None, "{count} keys");
            entries.push(b"k0".into(), null);
            assert_eq!(entries.duplicate(), Some("k0"), "{count} keys");
        }
    }

    #[test]
    fn keys_that_share_a_bit_are_not_taken_for_one() {
        let keys: Vec<String> = (b'a'..=b'z').map(|first| char::from(first).into()).collect();
        let longer: Vec<String> = (b'a'..=b'z').map(|first| format!("{}key", char::from(first))).collect();
        let shared =
            keys.iter().any(|a| longer.iter().any(|b| key_bit(a.as_bytes()) == key_bit(b.as_bytes())));
        assert!(shared, "else nothing is tested");
        let mut entries = Entries::default();
        for key in keys.iter().chain(&longer) {
            entries.push(key.as_bytes().into(), Raw::Json("null"));
            assert_eq!(entries.duplicate(), None, "{key}");
        }
        for key in &longer {
            entries.push(key.as_bytes().into(), Raw::Json("null"));
            assert!(entries.duplicate().is_some(), "{key}");
        }
    }

    #[test]
    fn every_value_is_taken_once_in_whatever_order() {
        let texts = ["0", "1", "2", "3", "4"];
        let text_of = |raw: Option<Raw<'_>>| match raw {
            Some(Raw::Json(text)) => Some(text.to_owned()),
            _ => None,
        };
        // All orders of five, and some that ask again.
        for order in 0..5usize.pow(5) {
            let order: Vec<usize> = (0..5).map(|place| order / 5usize.pow(place) % 5).collect();
            let mut entries = Entries::default();
            for text in texts {
                entries.push(text.as_bytes().into(), Raw::Json(text));
            }
            let mut left = 5;
            for (nth, key) in order.iter().enumerate() {
                let again = order[..nth].contains(key);
                left -= usize::from(!again);
                let expected = (!again).then(|| texts[*key].to_owned());
                assert_eq!(text_of(entries.take(texts[*key])), expected, "{order:?}");
                assert_eq!(text_of(entries.take("5")), None, "{order:?}");
                assert_eq!(entries.is_empty(), left == 0, "{order:?}");
            }
        }
    }

    #[test]
    fn an_entry_takes_the_place_of_the_one_with_its_key() {
        let mut entries = Entries::default();
        entries.push(b"a".into(), Raw::Json("1"));
        entries.push(b"b".into(), Raw::Json("2"));
        entries.replace("a", Raw::Json("3"));
        entries.replace("c", Raw::Json("4"));
        assert_eq!(entries.fault(), None);
        for (key, expected) in [("a", "3"), ("b", "2"), ("c", "4")] {
            assert!(matches!(entries.take(key), Some(Raw::Json(text)) if text == expected), "{key}");
        }
        assert!(entries.is_empty());
    }
}
