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
            Raw::MessagePack(bytes) => msgpack::value(bytes),
        }
    }

    pub(crate) fn is_null(self) -> bool {
        match self {
            Raw::Json(text) => text == "null",
            Raw::MessagePack(bytes) => bytes == [msgpack::NIL],
        }
    }

    /// The entries of a map; `None` when this is no map.
    pub(crate) fn entries(self) -> Option<Entries<'a>> {
        match self {
            Raw::Json(text) => json::entries(text),
            Raw::MessagePack(bytes) => msgpack::entries(bytes),
        }
    }

    /// The first items of an array, at most `most`; `None` when this is no array.
    ///
    /// Bounded because an item of one byte costs a slice of many.
    pub(crate) fn items(self, most: usize) -> Option<Vec<Raw<'a>>> {
        match self {
            Raw::Json(text) => json::items(text, most),
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

/// A map's entries, taken out one by one as a message's fields ask for them.
#[derive(Debug, Default)]
pub(crate) struct Entries<'a> {
    list: SmallVec<[(Cow<'a, str>, Raw<'a>); 12]>,
    /// What makes the whole map unfit, found while it was walked.
    unfit: Option<&'static str>,
}

impl<'a> Entries<'a> {
    /// More keys than this and the check for duplicates sorts instead of comparing each with each.
    const PAIRWISE_MAX: usize = 24;
    /// Far more than a message has fields, and than 4 KiB of headers can have keys. Without a bound a
    /// frame of two-byte entries would cost twenty times its size in memory.
    const ENTRIES_MAX: usize = 4096;

    pub(crate) fn push(&mut self, key: Cow<'a, str>, value: Raw<'a>) {
        if self.list.len() == Self::ENTRIES_MAX {
            self.refuse("more than 4096 keys in one object");
        } else {
            self.list.push((key, value));
        }
    }

    /// Makes room for the next map.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.unfit = None;
    }

    /// Notes that the map as a whole is unfit; [`Entries::fault`] tells it.
    pub(crate) fn refuse(&mut self, why: &'static str) {
        self.unfit = Some(why);
    }

    /// Whether all were taken.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Raw<'a>> {
        let at = self.list.iter().position(|(name, _)| name == key)?;
        Some(self.list.swap_remove(at).1)
    }

    pub(crate) fn into_list(self) -> SmallVec<[(Cow<'a, str>, Raw<'a>); 12]> {
        self.list
    }

    /// What is wrong with the map as a whole, before any field is looked at.
    pub(crate) fn fault(&self) -> Option<String> {
        if let Some(why) = self.unfit {
            return Some(why.into());
        }
        self.duplicate().map(|key| format!("the key {} stands twice", quoted(key)))
    }

    /// A key that stands twice: which of its values was meant cannot be known.
    pub(crate) fn duplicate(&self) -> Option<&str> {
        let list = &self.list;
        if list.len() <= Self::PAIRWISE_MAX {
            return (1..list.len())
                .find(|&i| list[..i].iter().any(|(key, _)| *key == list[i].0))
                .map(|i| &*list[i].0);
        }
        let mut keys: Vec<&str> = list.iter().map(|(key, _)| &**key).collect();
        keys.sort_unstable();
        keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
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
                entries.push(format!("k{i}").into(), null);
            }
            assert_eq!(entries.duplicate(), None, "{count} keys");
            entries.push("k0".into(), null);
            assert_eq!(entries.duplicate(), Some("k0"), "{count} keys");
        }
    }
}
