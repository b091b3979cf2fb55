//! Walks over JSON text (RFC 8259) without building it: checks syntax and depth, finds the slices.
//!
//! Written as a walker because payloads pass through as they came: they must be checked, and must
//! not be decoded. It never recurses.

use std::borrow::Cow;

use crate::raw::{DEPTH_MAX, Entries, Raw, SyntaxError, TOO_DEEP, Value};

#[inline]
pub(crate) fn skip_space(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        // Programs write none.
        Some(b'!'..) => at,
        _ => skip_some_space(bytes, at),
    }
}

fn skip_some_space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Told of a value's parts, as offsets, while [`walk`] passes them.
pub(crate) trait Visit {
    fn open(&mut self, object: bool);
    fn close(&mut self);
    /// A key of the open object, its quotes included.
    fn key(&mut self, start: usize, end: usize);
    /// A string with its quotes, a number or a word.
    fn scalar(&mut self, start: usize, end: usize);
}

struct Ignore;

impl Visit for Ignore {
    fn open(&mut self, _: bool) {}
    fn close(&mut self) {}
    fn key(&mut self, _: usize, _: usize) {}
    fn scalar(&mut self, _: usize, _: usize) {}
}

/// The end of the value that begins at `at`.
pub(crate) fn skip_value(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    walk(bytes, at, &mut Ignore)
}

/// The end of the value that begins at `at`; `visit` is told of all that is in it, in order.
pub(crate) fn walk(bytes: &[u8], mut at: usize, visit: &mut impl Visit) -> Result<usize, SyntaxError> {
    // One bit a container, the innermost lowest: 1 for an object.
    let mut objects: u64 = 0;
    let mut depth = 0;
    loop {
        // A value is due here.
        let start = at;
        match bytes.get(at) {
            Some(&open @ (b'{' | b'[')) => {
                if depth == DEPTH_MAX {
                    return Err(SyntaxError::new(at, TOO_DEEP));
                }
                depth += 1;
                let object = open == b'{';
                visit.open(object);
                objects = objects << 1 | u64::from(object);
                at = skip_space(bytes, at + 1);
                let close = if object { b'}' } else { b']' };
                if bytes.get(at) == Some(&close) {
                    visit.close();
                    depth -= 1;
                    objects >>= 1;
                    at += 1;
                } else {
                    if object {
                        at = walk_key(bytes, at, visit)?;
                    }
                    continue;
                }
            }
            _ => {
                at = skip_scalar(bytes, at)?;
                visit.scalar(start, at);
            }
        }
        // A value has ended: close what closes, then go on to the next one.
        loop {
            if depth == 0 {
                return Ok(at);
            }
            at = skip_space(bytes, at);
            let object = objects & 1 == 1;
            match bytes.get(at) {
                Some(b',') => {
                    at = skip_space(bytes, at + 1);
                    if object {
                        at = walk_key(bytes, at, visit)?;
                    }
                    break;
                }
                Some(b'}') if object => at += 1,
                Some(b']') if !object => at += 1,
                Some(_) => return Err(SyntaxError::new(at, "expected ',' or the end of a JSON container")),
                None => return Err(SyntaxError::new(at, "JSON ends too early")),
            }
            visit.close();
            depth -= 1;
            objects >>= 1;
        }
    }
}

fn skip_scalar(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    match bytes.get(at) {
        Some(b'"') => skip_string(bytes, at).map(|(end, _)| end),
        Some(b'-' | b'0'..=b'9') => skip_number(bytes, at),
        Some(b't') => skip_word(bytes, at, b"true"),
        Some(b'f') => skip_word(bytes, at, b"false"),
        Some(b'n') => skip_word(bytes, at, b"null"),
        Some(_) => Err(SyntaxError::new(at, "not a JSON value")),
        None => Err(SyntaxError::new(at, "JSON ends too early")),
    }
}

fn walk_key(bytes: &[u8], at: usize, visit: &mut impl Visit) -> Result<usize, SyntaxError> {
    let key = skip_key(bytes, at)?;
    visit.key(at, key.end);
    Ok(key.value)
}

/// Where a key ends, with its quotes, whether anything in it is escaped, and where its value begins.
struct KeyEnd {
    end: usize,
    escaped: bool,
    value: usize,
}

/// Skips `"key" :` and the space after it.
fn skip_key(bytes: &[u8], at: usize) -> Result<KeyEnd, SyntaxError> {
    if bytes.get(at) != Some(&b'"') {
        return Err(SyntaxError::new(at, "expected a JSON object key in double quotes"));
    }
    let (end, escaped) = skip_string(bytes, at)?;
    let colon = skip_space(bytes, end);
    if bytes.get(colon) != Some(&b':') {
        return Err(SyntaxError::new(colon, "expected ':' after a JSON object key"));
    }
    Ok(KeyEnd { end, escaped, value: skip_space(bytes, colon + 1) })
}

/// Skips `"key":` as programs write it, if the key is a short one. `None` says nothing.
#[inline]
fn short_key(bytes: &[u8], at: usize) -> Option<KeyEnd> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let end = short_plain(bytes, at).ok()?;
    match bytes.get(end..end + 2) {
        Some(&[b':', next]) if next > b' ' => Some(KeyEnd { end, escaped: false, value: end + 1 }),
        _ => None,
    }
}

fn skip_word(bytes: &[u8], at: usize, word: &[u8]) -> Result<usize, SyntaxError> {
    if bytes[at..].starts_with(word) {
        Ok(at + word.len())
    } else {
        Err(SyntaxError::new(at, "not a JSON value (NaN and Infinity are not JSON)"))
    }
}

/// The end of the string that begins at `start`, and whether anything in it is escaped.
#[inline]
fn skip_string(bytes: &[u8], start: usize) -> Result<(usize, bool), SyntaxError> {
    match short_plain(bytes, start) {
        Ok(end) => Ok((end, false)),
        Err(at) => skip_long_string(bytes, at),
    }
}

/// The end of the string that begins at `start`, if it has at most seven bytes and nothing is escaped, as
/// most keys and many values are; else from where on it is still to be looked at.
#[inline]
fn short_plain(bytes: &[u8], start: usize) -> Result<usize, usize> {
    let at = start + 1;
    let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return Err(at) };
    let end = at + first_special(u64::from_le_bytes(*word));
    if bytes.get(end) == Some(&b'"') { Ok(end + 1) } else { Err(end) }
}

/// The end of a string of which all before `at`, at most a word, is plain, and whether anything in it is
/// escaped.
fn skip_long_string(bytes: &[u8], mut at: usize) -> Result<(usize, bool), SyntaxError> {
    let mut escaped = false;
    let mut words = WORDS - 1;
    loop {
        at = skip_plain(bytes, at, words)?;
        words = WORDS;
        if bytes[at] == b'"' {
            return Ok((at + 1, escaped));
        }
        escaped = true;
        match bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
            Some(b'u') => {
                let hex = bytes.get(at + 2..at + 6);
                if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(SyntaxError::new(at, "bad \\u escape in a JSON string"));
                }
                at += 6;
            }
            _ => return Err(SyntaxError::new(at, "bad escape in a JSON string")),
        }
    }
}

/// So many words of a string are looked at one by one: most keys, types, ids and names end before. What is longer
/// is worth a vectorised search.
const WORDS: usize = 4;

/// The first quote or backslash of a string, from `at` on.
fn skip_plain(bytes: &[u8], mut at: usize, words: usize) -> Result<usize, SyntaxError> {
    for _ in 0..words {
        let Some(word) = bytes.get(at..at + 8) else { break };
        let stop = first_special(u64::from_le_bytes(word.try_into().expect("a word has 8 bytes")));
        at += stop;
        if stop < 8 {
            return plain_end(bytes, at);
        }
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let run = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    // Checked a run at a time, so that the compiler makes vector code of it.
    if rest[..run].iter().fold(false, |bad, b| bad | (*b < 0x20)) {
        return Err(SyntaxError::new(at, "control character in a JSON string"));
    }
    plain_end(bytes, at + run)
}

fn plain_end(bytes: &[u8], at: usize) -> Result<usize, SyntaxError> {
    match bytes.get(at) {
        Some(b'"' | b'\\') => Ok(at),
        Some(_) => Err(SyntaxError::new(at, "control character in a JSON string")),
        None => Err(SyntaxError::new(bytes.len(), "JSON string without an end")),
    }
}

/// The place of the first byte of a little-endian word that is a quote, a backslash or a control character; 8: there
/// is none. A byte below `n` borrows into its highest bit when `n` is taken off it; of two that do, the lower is
/// right, and that is the one that counts.
fn first_special(word: u64) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let below = |word: u64, n: u8| word.wrapping_sub(ONES * u64::from(n));
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = (below(word, 0x20) | equal(b'"') | equal(b'\\')) & !word & HIGH;
    (found.trailing_zeros() / 8) as usize
}

fn skip_digits(bytes: &[u8], mut at: usize) -> Result<usize, SyntaxError> {
    let start = at;
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at == start { Err(SyntaxError::new(at, "expected a digit in a JSON number")) } else { Ok(at) }
}

fn skip_number(bytes: &[u8], mut at: usize) -> Result<usize, SyntaxError> {
    if bytes[at] == b'-' {
        at += 1;
    }
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { skip_digits(bytes, at)? };
    if bytes.get(at).is_some_and(u8::is_ascii_digit) {
        return Err(SyntaxError::new(at, "JSON number with a leading zero"));
    }
    if bytes.get(at) == Some(&b'.') {
        at = skip_digits(bytes, at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = bytes.get(at) {
            at += 1;
        }
        at = skip_digits(bytes, at)?;
    }
    Ok(at)
}

/// The value of `text`, which holds one checked JSON value and nothing else.
pub(crate) fn value(text: &str) -> Value<'_> {
    match text.as_bytes().first() {
        Some(b'"') => Value::Text(unescape(between_quotes(text))),
        Some(b'{') => Value::Map,
        Some(b'[') => Value::Array,
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'n') | None => Value::Null,
        Some(_) => number(text),
    }
}

/// What stands between the quotes of a checked JSON string.
pub(crate) fn between_quotes(string: &str) -> &str {
    &string[1..string.len() - 1]
}

/// The integer of a checked JSON value, if it is of 1 to 18 digits and nothing else, as most are. `None` says
/// nothing.
pub(crate) fn short_unsigned(text: &str) -> Option<u64> {
    // 18 digits fit.
    (1..=18).contains(&text.len()).then_some(())?;
    text.bytes().try_fold(0u64, |sum, b| {
        let digit = b.wrapping_sub(b'0');
        (digit < 10).then(|| sum.wrapping_mul(10).wrapping_add(digit.into()))
    })
}

fn number(text: &str) -> Value<'_> {
    if let Some(integer) = short_unsigned(text) {
        return Value::Integer(integer.into());
    }
    let integral = !text.contains(['.', 'e', 'E']);
    // −0 stays a float: as an integer it would lose its sign.
    if integral
        && text != "-0"
        && let Ok(integer) = text.parse::<i128>()
        && (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&integer)
    {
        return Value::Integer(integer);
    }
    Value::Float(text.parse().expect("the JSON number grammar is within Rust's"))
}

/// The text between the quotes of a checked JSON string. A lone surrogate becomes U+FFFD.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    let Some(first) = memchr::memchr(b'\\', text.as_bytes()) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len());
    out.push_str(&text[..first]);
    let mut rest = &text[first..];
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes()[at + 1];
        rest = &rest[at + 2..];
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                let unit = hex4(rest);
                rest = &rest[4..];
                let low = rest.strip_prefix("\\u").map(hex4).filter(|low| (0xDC00..0xE000).contains(low));
                match (unit, low) {
                    (0xD800..0xDC00, Some(low)) => {
                        rest = &rest[6..];
                        let point = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                        out.push(char::from_u32(point).expect("a surrogate pair is a code point"));
                    }
                    _ => out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
            other => out.push(char::from(other)),
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn hex4(text: &str) -> u32 {
    u32::from_str_radix(&text[..4], 16).expect("four hex digits were checked")
}

/// The entries of a checked object.
pub(crate) fn entries(text: &str) -> Option<Entries<'_>> {
    if !text.starts_with('{') {
        return None;
    }
    let mut entries = Entries::default();
    object(text, 0, &mut entries).ok().map(|_| entries)
}

/// The end of the value at `at`, and what it is: strings and numbers, as most are, need no list of open
/// containers.
#[inline]
fn object_value(text: &str, at: usize) -> Result<(usize, Raw<'_>), SyntaxError> {
    let bytes = text.as_bytes();
    let end = match bytes.get(at) {
        Some(b'"') => match skip_string(bytes, at)? {
            (end, false) => return Ok((end, Raw::JsonPlain(&text[at..end]))),
            (end, true) => end,
        },
        Some(b'1'..=b'9') => {
            let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            match bytes.get(at + digits) {
                Some(b'.' | b'e' | b'E') => skip_number(bytes, at)?,
                _ => at + digits,
            }
        }
        Some(b'-' | b'0') => skip_number(bytes, at)?,
        _ => skip_value(bytes, at)?,
    };
    Ok((end, Raw::Json(&text[at..end])))
}

/// Walks the object at `at`, checking as it goes: fills `entries`, gives its end.
pub(crate) fn object<'a>(text: &'a str, at: usize, entries: &mut Entries<'a>) -> Result<usize, SyntaxError> {
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, at + 1);
    if bytes.get(at) == Some(&b'}') {
        return Ok(at + 1);
    }
    loop {
        let KeyEnd { end: key_end, escaped, value } = match short_key(bytes, at) {
            Some(key) => key,
            None => skip_key(bytes, at)?,
        };
        let (end, raw) = object_value(text, value)?;
        let key = if escaped {
            unescape(&text[at + 1..key_end - 1]).into_owned().into_bytes().into()
        } else {
            bytes[at + 1..key_end - 1].into()
        };
        entries.push(key, raw);
        at = skip_space(bytes, end);
        match bytes.get(at) {
            Some(b',') => at = skip_space(bytes, at + 1),
            Some(b'}') => return Ok(at + 1),
            Some(_) => return Err(SyntaxError::new(at, "expected ',' or '}' in a JSON object")),
            None => return Err(SyntaxError::new(at, "JSON ends too early")),
        }
    }
}

/// The first items of a checked array, at most `most`.
pub(crate) fn items(text: &str, most: usize) -> Option<Vec<Raw<'_>>> {
    if !text.starts_with('[') {
        return None;
    }
    let bytes = text.as_bytes();
    let mut items = Vec::new();
    let mut at = skip_space(bytes, 1);
    while items.len() < most && bytes.get(at).is_some_and(|b| *b != b']') {
        let end = skip_value(bytes, at).ok()?;
        items.push(Raw::Json(&text[at..end]));
        at = skip_space(bytes, end);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> bool {
        skip_value(text.as_bytes(), 0) == Ok(text.len())
    }

    #[test]
    fn agrees_with_serde_json_on_what_is_json() {
        let cases = [
            "0",
            "-0",
            "01",
            "-",
            "1.",
            "1.5",
            ".5",
            "1e",
            "1e5",
            "1E+5",
            "1e-",
            "true",
            "tru",
            "null",
            "NaN",
            "Infinity",
            "\"a\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12G4\"",
            "\"\\ud800\"",
            "\"\n\"",
            "\"",
            "[]",
            "[1]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{}",
            "{\"a\":1}",
            "{\"a\":}",
            "{\"a\"}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":1,\"b\":[{}]}",
            "[}",
            "{]",
            "[[]",
            "\"\u{7f}é😀\"",
            "[1 , 2 ]",
            "'a'",
        ];
        for case in cases {
            // serde_json decodes strings and refuses lone surrogates; the grammar of JSON allows them.
            let expected = case == "\"\\ud800\"" || serde_json::from_str::<serde_json::Value>(case).is_ok();
            assert_eq!(whole(case), expected, "{case}");
        }
    }

    #[test]
    fn depth_is_counted_from_the_outermost_container() {
        assert!(whole(&format!("{}{}", "[".repeat(64), "]".repeat(64))));
        assert!(!whole(&format!("{}{}", "[".repeat(65), "]".repeat(65))));
        assert!(whole(&format!("{}1{}", "{\"a\":[".repeat(32), "]}".repeat(32))));
        assert!(!whole(&"[".repeat(1_000_000)));
    }

    #[test]
    fn strings_are_unescaped_and_lone_surrogates_replaced() {
        let read = |text: &str| match value(text) {
            Value::Text(text) => text.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(r#""a\n\"\\\/\u0041""#), "a\n\"\\/A");
        assert_eq!(read(r#""\ud83d\ude00""#), "😀");
        assert_eq!(read(r#""\ud83dx""#), "\u{fffd}x");
        assert_eq!(read(r#""\ud83d\ud83d\ude00""#), "\u{fffd}😀");
        assert_eq!(read(r#""\ude00\ud83d""#), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn numbers_keep_their_kind() {
        assert!(matches!(value("18446744073709551615"), Value::Integer(n) if n == i128::from(u64::MAX)));
        assert!(matches!(value("18446744073709551616"), Value::Float(_)));
        assert!(matches!(value("-9223372036854775808"), Value::Integer(n) if n == i128::from(i64::MIN)));
        assert!(matches!(value("1.0"), Value::Float(f) if f == 1.0));
        assert!(matches!(value("-0"), Value::Float(f) if f == 0.0 && f.is_sign_negative()));
    }

    #[test]
    fn a_string_ends_where_it_ends_however_long_it_is() {
        for length in 0..100 {
            for filler in ["x", "\u{7f}", "é", "\u{10ffff}", "]"] {
                let inner = filler.repeat(length);
                let text = format!("\"{inner}\", \"\\\"");
                assert_eq!(skip_string(text.as_bytes(), 0), Ok((inner.len() + 2, false)), "{text}");
                assert!(skip_string(&text.as_bytes()[..inner.len() + 1], 0).is_err(), "{text}");
                for at in (0..inner.len()).filter(|at| inner.is_char_boundary(*at)) {
                    let with = |special: &str| format!("\"{}{special}{}\"", &inner[..at], &inner[at..]);
                    for bad in ["\0", "\n", "\u{1f}"] {
                        assert!(skip_string(with(bad).as_bytes(), 0).is_err(), "{bad:?} at {at} of {length}");
                    }
                    let escaped = with("\\n");
                    assert_eq!(skip_string(escaped.as_bytes(), 0), Ok((escaped.len(), true)));
                }
            }
        }
    }

    #[test]
    fn the_first_special_byte_of_a_word_is_found() {
        let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        // Neighbours of the special ones, and what differs from them in one bit.
        let bytes = [0, 0x1f, 0x20, b'!', b'"', b'#', b'[', b'\\', b']', 0x7f, 0x80, 0x9f, 0xa2, 0xdc, 0xff];
        for at in 0..8 {
            for a in bytes {
                for b in bytes {
                    let mut word = [b'x'; 8];
                    word[at] = a;
                    word[(at + 1) % 8] = b;
                    let expected = word.iter().position(|byte| special(*byte)).unwrap_or(8);
                    assert_eq!(first_special(u64::from_le_bytes(word)), expected, "{word:x?}");
                }
            }
        }
    }

    #[test]
    fn an_object_reads_the_same_however_it_is_spaced_and_is_not_one_when_cut() {
        let values =
            ["\"\"", "\"seven77\"", "\"eight888\"", "\"a\\nb\"", "1", "-1.5e3", "null", "[1,{}]", "{}"];
        for value in values {
            for key in ["k", "", "seven77", "eight888", "k\\u0065y", "a key of more than a word"] {
                // As JavaScript writes it, as Python does, and as nobody does.
                let spaces = [("", "", ""), ("", " ", ""), (" ", "", ""), ("", "", " "), (" ", " ", "\n")];
                for (space, behind, end) in spaces.into_iter().chain([("\t \r\n", "\n", "")]) {
                    let last = format!("{space}\"last\":{behind}{value}{space}");
                    let text = format!("{{{space}\"{key}\"{space}:{behind}{value}{space},{last}}}{end}");
                    let length = text.len() - end.len();
                    let mut entries = Entries::default();
                    assert_eq!(object(&text, 0, &mut entries), Ok(length), "{text}");
                    for key in [&*unescape(key), "last"] {
                        let raw = entries.take(key);
                        assert!(
                            matches!(raw, Some(Raw::Json(found) | Raw::JsonPlain(found)) if found == value),
                            "{key} of {text}: {raw:?}"
                        );
                        let plain = matches!(raw, Some(Raw::JsonPlain(_)));
                        assert_eq!(plain, value.starts_with('"') && !value.contains('\\'), "{text}");
                    }
                    assert!(entries.is_empty(), "{text}");
                    for cut in 1..length {
                        assert!(
                            object(&text[..cut], 0, &mut Entries::default()).is_err(),
                            "{}",
                            &text[..cut]
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn short_integers_are_what_the_standard_library_reads() {
        for text in ["0", "7", "10", "123456", "999999999999999999", "100000000000000000"] {
            assert_eq!(short_unsigned(text), text.parse().ok(), "{text}");
        }
        for text in ["", "-1", "1.0", "1e3", "1000000000000000000", "\"1\"", "null", "1 "] {
            assert_eq!(short_unsigned(text), None, "{text}");
        }
    }
}
