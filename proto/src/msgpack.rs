//! Walks over MessagePack without building it: checks lengths and depth, finds the slices.
//!
//! Nothing is allocated on a header's word, and nothing recurses.

use std::borrow::Cow;

use crate::raw::{DEPTH_MAX, Entries, Raw, SyntaxError, TOO_DEEP, Value};

pub(crate) const NIL: u8 = 0xc0;

/// What stands at the head of a value.
pub(crate) enum Head {
    /// A scalar: the value ends after this many more bytes.
    Scalar(usize),
    /// This many values follow.
    Array(usize),
    /// This many pairs of values follow.
    Map(usize),
}

/// How long a value is, its first byte included, where that byte alone says so and the rest need not be
/// looked at; 0: it is a string, a container, or has a length of its own.
const FIXED_LENGTHS: [u8; 256] = {
    let mut lengths = [0; 256];
    let mut first = 0;
    while first < 256 {
        lengths[first] = match first {
            // Small integers, nil, false, true.
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 1,
            // Integers and floats of 1, 2, 4 and 8 bytes.
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xce | 0xd2 | 0xca => 5,
            0xcf | 0xd3 | 0xcb => 9,
            // Extensions of 1, 2, 4, 8 and 16 bytes, and their type.
            0xd4..=0xd8 => 2 + (1 << (first - 0xd4)),
            _ => 0,
        };
        first += 1;
    }
    lengths
};

/// What a value whose bytes are too few for its own head is refused with.
fn too_early(at: usize) -> SyntaxError {
    SyntaxError::new(at, "MessagePack ends too early")
}

/// The `N` bytes at `at`.
#[inline]
fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], SyntaxError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| too_early(at))
}

/// The head at `at`, and where what follows it begins.
#[inline(always)]
pub(crate) fn head(bytes: &[u8], at: usize) -> Result<(Head, usize), SyntaxError> {
    let first = *bytes.get(at).ok_or_else(|| too_early(at))?;
    let at = at + 1;
    let low = |mask: u8| usize::from(first & mask);
    let one = || fixed(bytes, at).map(|[length]| usize::from(length));
    let two = || fixed(bytes, at).map(|length| usize::from(u16::from_be_bytes(length)));
    let four = || fixed(bytes, at).map(|length| u32::from_be_bytes(length) as usize);
    Ok(match first {
        0xa0..=0xbf => (Head::Scalar(low(0x1f)), at),
        0x80..=0x8f => (Head::Map(low(0xf)), at),
        0x90..=0x9f => (Head::Array(low(0xf)), at),
        // Binary and strings, by the width of their length.
        0xc4 | 0xd9 => (Head::Scalar(one()?), at + 1),
        0xc5 | 0xda => (Head::Scalar(two()?), at + 2),
        0xc6 | 0xdb => (Head::Scalar(four()?), at + 4),
        // Extensions, which have a byte more than their length says: their type.
        0xc7 => (Head::Scalar(one()? + 1), at + 1),
        0xc8 => (Head::Scalar(two()? + 1), at + 2),
        0xc9 => (Head::Scalar(four()? + 1), at + 4),
        0xdc => (Head::Array(two()?), at + 2),
        0xdd => (Head::Array(four()?), at + 4),
        0xde => (Head::Map(two()?), at + 2),
        0xdf => (Head::Map(four()?), at + 4),
        0xc1 => return Err(SyntaxError::new(at - 1, "0xc1 is not MessagePack")),
        _ => (Head::Scalar(usize::from(FIXED_LENGTHS[usize::from(first)]) - 1), at),
    })
}

/// How long the head of a string with this first byte is; none: it begins something else.
#[inline]
fn text_head(first: u8) -> Option<usize> {
    match first {
        0xa0..=0xbf => Some(1),
        0xd9 => Some(2),
        0xda => Some(3),
        0xdb => Some(5),
        _ => None,
    }
}

/// The body of a checked string, which is UTF-8; `None` when this is none.
#[inline]
pub(crate) fn text(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(text_head(*bytes.first()?)?..)
}

/// The end of the value that begins at `at`.
#[inline]
pub(crate) fn skip_value(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    match bytes.get(at..).and_then(after_short) {
        Some(rest) => Ok(bytes.len() - rest.len()),
        None => skip_any(bytes, at),
    }
}

/// What follows the value that `bytes` begin with, if that is a short one, as most are. `None` says nothing
/// about what stands there: the general way, [`skip_any`], finds that out.
#[inline]
fn after_short(bytes: &[u8]) -> Option<&[u8]> {
    match split_short_text(bytes) {
        Some((_, rest)) => Some(rest),
        None => match FIXED_LENGTHS[usize::from(*bytes.first()?)] {
            0 => None,
            length => bytes.get(usize::from(length)..),
        },
    }
}

/// The string that `bytes` begin with, without its head, and what follows it, if it is ASCII of at most 31
/// bytes, as keys and most values are. `None` says nothing, as above.
///
/// Bytes are looked at eight at once, because a look at each of them is most of what a message costs.
#[inline]
fn split_short_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let (first, body) = bytes.split_first()?;
    let length = usize::from(first.wrapping_sub(0xa0));
    let word = |from: usize| body.get(from..)?.first_chunk().copied().map(u64::from_le_bytes);
    let seen = match length {
        // What stands behind the string is pushed out of the word.
        0..8 => word(0)? << 8 << (8 * (7 - length)),
        8..32 => {
            // The last word overlaps the one before it.
            let mut seen = word(length - 8)?;
            let mut from = 0;
            while from + 8 < length {
                seen |= word(from)?;
                from += 8;
            }
            seen
        }
        _ => return None,
    };
    if seen & HIGH_BITS == 0 { body.split_at_checked(length) } else { None }
}

fn skip_any(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    // Most are scalars, and need no list of open containers.
    match head(bytes, at)? {
        (Head::Scalar(length), after) => skip_scalar(bytes, at, after, length),
        _ => skip_container(bytes, at),
    }
}

/// The end of the scalar at `start`, whose body of `length` bytes begins at `after`.
#[inline]
fn skip_scalar(bytes: &[u8], start: usize, after: usize, length: usize) -> Result<usize, SyntaxError> {
    let Some(body) = bytes.get(after..after.saturating_add(length)) else {
        return Err(SyntaxError::new(start, "MessagePack value longer than the message"));
    };
    if text_head(bytes[start]).is_some() && !is_utf8(body) {
        return Err(SyntaxError::new(start, "MessagePack string that is not UTF-8"));
    }
    Ok(after + length)
}

/// Most text is ASCII, which is seen at once.
#[inline]
fn is_utf8(body: &[u8]) -> bool {
    body.is_ascii() || std::str::from_utf8(body).is_ok()
}

fn skip_container(bytes: &[u8], mut at: usize) -> Result<usize, SyntaxError> {
    // How many values each open container still waits for.
    let mut open = [0usize; DEPTH_MAX];
    let mut depth = 0;
    loop {
        let start = at;
        let (found, after) = head(bytes, at)?;
        let count = match found {
            Head::Scalar(length) => {
                at = skip_scalar(bytes, start, after, length)?;
                0
            }
            Head::Array(count) => {
                at = after;
                count
            }
            Head::Map(count) => {
                at = after;
                count * 2
            }
        };
        let container = !matches!(found, Head::Scalar(_));
        if container && depth == DEPTH_MAX {
            return Err(SyntaxError::new(start, TOO_DEEP));
        }
        if count > 0 {
            // Each value takes a byte at least, so a false count is known before it is walked.
            if count > bytes.len() - at {
                return Err(SyntaxError::new(start, "MessagePack container longer than the message"));
            }
            open[depth] = count;
            depth += 1;
            continue;
        }
        loop {
            if depth == 0 {
                return Ok(at);
            }
            open[depth - 1] -= 1;
            if open[depth - 1] > 0 {
                break;
            }
            depth -= 1;
        }
    }
}

/// The integer of a checked value's body.
#[inline]
fn unsigned(body: &[u8]) -> u64 {
    match *body {
        [a] => a.into(),
        [a, b] => u16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => unreachable!("the walk checked that an integer has the length that its first byte says"),
    }
}

/// The integer of a checked value, if its form is one of those without a sign, as most are. `None` says
/// nothing.
pub(crate) fn plain_unsigned(bytes: &[u8]) -> Option<u64> {
    let (&first, body) = bytes.split_first()?;
    match first {
        0x00..=0x7f => Some(first.into()),
        0xcc..=0xcf => Some(unsigned(body)),
        _ => None,
    }
}

/// The value of `bytes`, which hold one checked value and nothing else.
pub(crate) fn value(bytes: &[u8]) -> Value<'_> {
    let Some((&first, body)) = bytes.split_first() else { return Value::Null };
    // Sign-extended from the body's own width.
    let signed = || (unsigned(body) << (64 - 8 * body.len())) as i64 >> (64 - 8 * body.len());
    match first {
        0x00..=0x7f => Value::Integer(first.into()),
        0xe0..=0xff => Value::Integer((first as i8).into()),
        0xc2 => Value::Bool(false),
        0xc3 => Value::Bool(true),
        0xcc..=0xcf => Value::Integer(unsigned(body).into()),
        0xd0..=0xd3 => Value::Integer(signed().into()),
        0xca => Value::Float(f32::from_bits(unsigned(body) as u32).into()),
        0xcb => Value::Float(f64::from_bits(unsigned(body))),
        0xa0..=0xbf | 0xd9..=0xdb => {
            let text = std::str::from_utf8(text(bytes).unwrap_or_default());
            Value::Text(Cow::Borrowed(text.expect("the walk checked that this is UTF-8")))
        }
        0xc4..=0xc6 => Value::Binary(binary(bytes).unwrap_or_default()),
        0x90..=0x9f | 0xdc | 0xdd => Value::Array,
        0x80..=0x8f | 0xde | 0xdf => Value::Map,
        0xc7..=0xc9 | 0xd4..=0xd8 => Value::Extension,
        0xc0 | 0xc1 => Value::Null,
    }
}

/// The entries of a checked map.
pub(crate) fn entries(bytes: &[u8]) -> Option<Entries<'_>> {
    let Ok((Head::Map(count), at)) = head(bytes, 0) else { return None };
    let mut entries = Entries::default();
    map(bytes, count, at, &mut entries).ok().map(|_| entries)
}

/// Walks the `count` entries of a map, which begin at `at` and whose keys should be strings: fills `entries`,
/// gives the map's end. Each is looked at once; what is kept of it is known to be a value, and of a key to be
/// text.
pub(crate) fn map<'a>(
    bytes: &'a [u8],
    count: usize,
    at: usize,
    entries: &mut Entries<'a>,
) -> Result<usize, SyntaxError> {
    let end_of = |rest: &[u8]| bytes.len() - rest.len();
    let mut rest = bytes.get(at..).unwrap_or_default();
    for _ in 0..count {
        let (key, value) = match split_short_text(rest) {
            Some((key, value)) => (Some(key), value),
            None => {
                let end = skip_any(bytes, end_of(rest))?;
                (text(&bytes[end_of(rest)..end]), &bytes[end..])
            }
        };
        rest = match after_short(value) {
            Some(rest) => rest,
            None => &bytes[skip_any(bytes, end_of(value))?..],
        };
        match key {
            Some(key) => {
                let value = &value[..value.len() - rest.len()];
                entries.push(Cow::Borrowed(key), Raw::MessagePack(value));
            }
            None => entries.refuse("a key is not a string"),
        }
    }
    Ok(end_of(rest))
}

/// The first items of a checked array, at most `most`.
pub(crate) fn items(bytes: &[u8], most: usize) -> Option<Vec<Raw<'_>>> {
    let Ok((Head::Array(count), mut at)) = head(bytes, 0) else { return None };
    let mut items = Vec::new();
    for _ in 0..count.min(most) {
        let end = skip_value(bytes, at).ok()?;
        items.push(Raw::MessagePack(&bytes[at..end]));
        at = end;
    }
    Some(items)
}

/// The body of a checked value of plain bytes; `None` when it is something else.
#[inline]
pub(crate) fn binary(bytes: &[u8]) -> Option<&[u8]> {
    let (first, body) = bytes.split_first()?;
    match first {
        0xc4 => body.get(1..),
        0xc5 => body.get(2..),
        0xc6 => body.get(4..),
        _ => None,
    }
}

/// The body of an extension value, without its type; `None` when it is none.
pub(crate) fn extension(bytes: &[u8]) -> Option<&[u8]> {
    let (_, after) = head(bytes, 0).ok()?;
    matches!(value(bytes), Value::Extension).then(|| &bytes[after + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_length_is_not_believed() {
        for bytes in [
            &[0xdf, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdd, 0xff, 0xff, 0xff, 0xff],
            &[0xc6, 0xff, 0xff, 0xff, 0xff],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, b'a'],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x92, 1],
            &[0x81, 1],
            &[0xcd, 1],
            &[0xc1],
            &[],
        ] {
            assert!(skip_value(bytes, 0).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn depth_is_counted_from_the_outermost_container() {
        let nested = |depth: usize| [vec![0x91; depth - 1], vec![0x90]].concat();
        assert_eq!(skip_value(&nested(64), 0), Ok(64));
        assert!(skip_value(&nested(65), 0).is_err());
        assert!(skip_value(&[0x91; 1_000_000], 0).is_err());
    }

    #[test]
    fn integers_of_every_width_are_read() {
        let read = |bytes: &[u8]| match value(bytes) {
            Value::Integer(n) => n,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&[0xff]), -1);
        assert_eq!(read(&[0xd0, 0x80]), -128);
        assert_eq!(read(&[0xd1, 0xff, 0xfe]), -2);
        assert_eq!(read(&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0]), i128::from(i64::MIN));
        assert_eq!(read(&[0xcf, 255, 255, 255, 255, 255, 255, 255, 255]), i128::from(u64::MAX));
    }

    /// How long a value with this first byte is, by the tables of another library: a head, and what follows
    /// it, for a length of `said`. `None`: a container, or no value.
    fn scalar(first: u8, said: usize) -> Option<(Vec<u8>, usize)> {
        let sized = |width: usize, extra: usize| {
            let length = (said as u32).to_be_bytes();
            (width == 4 || said < 1 << (8 * width))
                .then(|| ([&[first], &length[4 - width..]].concat(), said + extra))
        };
        let fixed = |length: usize| Some((vec![first], length));
        match rmp::Marker::from_u8(first) {
            rmp::Marker::FixPos(_) | rmp::Marker::FixNeg(_) | rmp::Marker::Null => fixed(0),
            rmp::Marker::True | rmp::Marker::False => fixed(0),
            rmp::Marker::U8 | rmp::Marker::I8 => fixed(1),
            rmp::Marker::U16 | rmp::Marker::I16 => fixed(2),
            rmp::Marker::U32 | rmp::Marker::I32 | rmp::Marker::F32 => fixed(4),
            rmp::Marker::U64 | rmp::Marker::I64 | rmp::Marker::F64 => fixed(8),
            rmp::Marker::FixStr(length) => fixed(length.into()),
            rmp::Marker::FixExt1 => fixed(2),
            rmp::Marker::FixExt2 => fixed(3),
            rmp::Marker::FixExt4 => fixed(5),
            rmp::Marker::FixExt8 => fixed(9),
            rmp::Marker::FixExt16 => fixed(17),
            rmp::Marker::Str8 | rmp::Marker::Bin8 => sized(1, 0),
            rmp::Marker::Str16 | rmp::Marker::Bin16 => sized(2, 0),
            rmp::Marker::Str32 | rmp::Marker::Bin32 => sized(4, 0),
            rmp::Marker::Ext8 => sized(1, 1),
            rmp::Marker::Ext16 => sized(2, 1),
            rmp::Marker::Ext32 => sized(4, 1),
            rmp::Marker::FixArray(_) | rmp::Marker::Array16 | rmp::Marker::Array32 => None,
            rmp::Marker::FixMap(_) | rmp::Marker::Map16 | rmp::Marker::Map32 => None,
            rmp::Marker::Reserved => None,
        }
    }

    #[test]
    fn scalars_of_every_first_byte_end_where_the_format_says_and_not_before() {
        for first in 0..=u8::MAX {
            for said in [0, 1, 7, 8, 31, 32, 255, 256, 70_000] {
                let Some((mut bytes, body)) = scalar(first, said) else { continue };
                bytes.resize(bytes.len() + body, b'a');
                let length = bytes.len();
                // The quick ways look at words, which may reach beyond the value.
                for behind in [&[][..], &[0xff; 20]] {
                    let whole = [&[0xc0], &bytes[..], behind].concat();
                    assert_eq!(skip_value(&whole, 1), Ok(1 + length), "{first:x} of {said}");
                    let null = matches!(value(&whole[1..=length]), Value::Null);
                    assert_eq!(null, first == NIL, "{first:x}");
                }
                for cut in (0..length).step_by(1 + length / 500) {
                    assert!(skip_value(&bytes[..cut], 0).is_err(), "{first:x} of {said}, cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn a_string_is_utf8_wherever_it_stands_and_however_its_length_is_written() {
        let heads = |length: usize| {
            let four = (length as u32).to_be_bytes();
            [
                (length < 32).then(|| vec![0xa0 | length as u8]),
                Some([&[0xd9], &four[3..]].concat()),
                Some([&[0xda], &four[2..]].concat()),
                Some([&[0xdb], &four[..]].concat()),
            ]
        };
        for length in 0..80 {
            // One unlike the others at each place: a character's beginning or middle, or no character at all.
            let odd = (0..length).flat_map(|at| [(at, 0x80), (at, 0xc3), (at, 0xff), (at, 0x7f)]);
            let bodies = odd.map(|(at, odd)| {
                let mut body = vec![b'a'; length];
                body[at] = odd;
                body
            });
            let whole = (0..length.saturating_sub(1)).map(|at| {
                let mut body = vec![b'a'; length];
                body[at..at + 2].copy_from_slice("é".as_bytes());
                body
            });
            for body in bodies.chain(whole) {
                let text = std::str::from_utf8(&body).ok();
                for head in heads(length).into_iter().flatten() {
                    for behind in [0, 1, 7, 8, 9] {
                        let bytes = [&head[..], &body, &vec![0xff; behind]].concat();
                        let end = head.len() + length;
                        assert_eq!(skip_value(&bytes, 0).ok(), text.map(|_| end), "{bytes:x?}");
                        let pair = [&bytes[..end], &[0xc0]].concat();
                        let mut entries = Entries::default();
                        assert_eq!(map(&pair, 1, 0, &mut entries).ok(), text.map(|_| end + 1), "{pair:x?}");
                        if let Some(text) = text {
                            assert!(matches!(value(&bytes[..end]), Value::Text(found) if found == text));
                            assert!(entries.take(text).is_some_and(Raw::is_null), "{pair:x?}");
                        }
                    }
                }
            }
        }
    }
}
