//! Walks over MessagePack without building it: checks lengths and depth, finds the slices.
//!
//! Nothing is allocated on a header's word, and nothing recurses.

use std::borrow::Cow;

use rmp::Marker;

use crate::raw::{DEPTH_MAX, Entries, Raw, SyntaxError, Value};

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

fn be(bytes: &[u8], at: usize, length: usize) -> Result<usize, SyntaxError> {
    let field =
        bytes.get(at..at + length).ok_or_else(|| SyntaxError::new(at, "MessagePack ends too early"))?;
    Ok(field.iter().fold(0, |sum, b| sum << 8 | usize::from(*b)))
}

/// The head at `at`, and where what follows it begins.
pub(crate) fn head(bytes: &[u8], at: usize) -> Result<(Head, usize), SyntaxError> {
    let first = *bytes.get(at).ok_or_else(|| SyntaxError::new(at, "MessagePack ends too early"))?;
    let at = at + 1;
    let sized = |length: usize, extra: usize| -> Result<(Head, usize), SyntaxError> {
        Ok((Head::Scalar(be(bytes, at, length)? + extra), at + length))
    };
    Ok(match Marker::from_u8(first) {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
            (Head::Scalar(0), at)
        }
        Marker::U8 | Marker::I8 => (Head::Scalar(1), at),
        Marker::U16 | Marker::I16 => (Head::Scalar(2), at),
        Marker::U32 | Marker::I32 | Marker::F32 => (Head::Scalar(4), at),
        Marker::U64 | Marker::I64 | Marker::F64 => (Head::Scalar(8), at),
        Marker::FixStr(length) => (Head::Scalar(usize::from(length)), at),
        Marker::Str8 | Marker::Bin8 => sized(1, 0)?,
        Marker::Str16 | Marker::Bin16 => sized(2, 0)?,
        Marker::Str32 | Marker::Bin32 => sized(4, 0)?,
        Marker::FixExt1 => (Head::Scalar(2), at),
        Marker::FixExt2 => (Head::Scalar(3), at),
        Marker::FixExt4 => (Head::Scalar(5), at),
        Marker::FixExt8 => (Head::Scalar(9), at),
        Marker::FixExt16 => (Head::Scalar(17), at),
        Marker::Ext8 => sized(1, 1)?,
        Marker::Ext16 => sized(2, 1)?,
        Marker::Ext32 => sized(4, 1)?,
        Marker::FixArray(count) => (Head::Array(usize::from(count)), at),
        Marker::Array16 => (Head::Array(be(bytes, at, 2)?), at + 2),
        Marker::Array32 => (Head::Array(be(bytes, at, 4)?), at + 4),
        Marker::FixMap(count) => (Head::Map(usize::from(count)), at),
        Marker::Map16 => (Head::Map(be(bytes, at, 2)?), at + 2),
        Marker::Map32 => (Head::Map(be(bytes, at, 4)?), at + 4),
        Marker::Reserved => return Err(SyntaxError::new(at - 1, "0xc1 is not MessagePack")),
    })
}

/// Whether the value with this first byte is a string, whose bytes must be UTF-8.
fn is_text(first: u8) -> bool {
    matches!(Marker::from_u8(first), Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32)
}

/// The end of the value that begins at `at`.
pub(crate) fn skip_value(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    // Most are scalars, and need no list of open containers.
    match head(bytes, at)? {
        (Head::Scalar(length), after) => skip_scalar(bytes, at, after, length),
        _ => skip_container(bytes, at),
    }
}

/// The end of the scalar at `start`, whose body of `length` bytes begins at `after`.
fn skip_scalar(bytes: &[u8], start: usize, after: usize, length: usize) -> Result<usize, SyntaxError> {
    let Some(body) = bytes.get(after..after.saturating_add(length)) else {
        return Err(SyntaxError::new(start, "MessagePack value longer than the message"));
    };
    if is_text(bytes[start]) && std::str::from_utf8(body).is_err() {
        return Err(SyntaxError::new(start, "MessagePack string that is not UTF-8"));
    }
    Ok(after + length)
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
            return Err(SyntaxError::new(start, "nested deeper than 64"));
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

/// The value of `bytes`, which hold one checked value and nothing else.
pub(crate) fn value(bytes: &[u8]) -> Value<'_> {
    let Some(&first) = bytes.first() else { return Value::Null };
    let Ok((found, after)) = head(bytes, 0) else { return Value::Null };
    let length = match found {
        Head::Array(_) => return Value::Array,
        Head::Map(_) => return Value::Map,
        Head::Scalar(length) => length,
    };
    let body = &bytes[after..after + length];
    let unsigned = || body.iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
    // Sign-extended from the body's own width.
    let signed = || (unsigned() << (64 - 8 * length)) as i64 >> (64 - 8 * length);
    match Marker::from_u8(first) {
        Marker::FixPos(n) => Value::Integer(i128::from(n)),
        Marker::FixNeg(n) => Value::Integer(i128::from(n)),
        Marker::True => Value::Bool(true),
        Marker::False => Value::Bool(false),
        Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => Value::Integer(i128::from(unsigned())),
        Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => Value::Integer(i128::from(signed())),
        Marker::F32 => Value::Float(f64::from(f32::from_bits(unsigned() as u32))),
        Marker::F64 => Value::Float(f64::from_bits(unsigned())),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => Value::Text(Cow::Borrowed(
            std::str::from_utf8(body).expect("the walk checked that this is UTF-8"),
        )),
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => Value::Binary(body),
        Marker::Null => Value::Null,
        _ => Value::Extension,
    }
}

/// The entries of a checked map.
pub(crate) fn entries(bytes: &[u8]) -> Option<Entries<'_>> {
    let mut entries = Entries::default();
    map(bytes, 0, &mut entries).ok().map(|_| entries)
}

/// Walks the map at `at`, whose keys should be strings: fills `entries`, gives its end.
pub(crate) fn map<'a>(bytes: &'a [u8], at: usize, entries: &mut Entries<'a>) -> Result<usize, SyntaxError> {
    let (found, mut at) = head(bytes, at)?;
    let Head::Map(count) = found else {
        return Err(SyntaxError::new(at, "expected a MessagePack map"));
    };
    for _ in 0..count {
        let key_end = skip_value(bytes, at)?;
        let end = skip_value(bytes, key_end)?;
        match value(&bytes[at..key_end]) {
            Value::Text(key) => {
                entries.push(key, Raw::MessagePack(&bytes[key_end..end]));
            }
            _ => entries.refuse("a key is not a string"),
        }
        at = end;
    }
    Ok(at)
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
}
