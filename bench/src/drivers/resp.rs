//! RESP 2, the protocol of Redis: commands are written, replies read. Without I/O.

use std::io::Write as _;

use crate::Failed;
use crate::drivers::{line, number};

/// A reply; texts are still in the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Simple(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Nil,
    Array(Vec<Reply<'a>>),
}

/// Appends a command.
pub(crate) fn command<'a>(
    out: &mut Vec<u8>,
    words: impl IntoIterator<Item = &'a [u8], IntoIter: ExactSizeIterator>,
) {
    let words = words.into_iter();
    begin(out, words.len());
    words.for_each(|one| word(out, one));
}

/// Begins a command of so many words.
pub(crate) fn begin(out: &mut Vec<u8>, words: usize) {
    // A vector takes all that is written to it.
    let _ = write!(out, "*{words}\r\n");
}

pub(crate) fn word(out: &mut Vec<u8>, text: &[u8]) {
    let _ = write!(out, "${}\r\n", text.len());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// The first reply and its length, if it is whole. An error of the server's is one here.
pub(crate) fn reply(input: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Failed> {
    let Some((kind, rest)) = input.split_first() else { return Ok(None) };
    let Some((text, used)) = line(rest) else { return Ok(None) };
    let used = 1 + used;
    let found = match kind {
        b'+' => Reply::Simple(text),
        b'-' => return Err(format!("the server says: {}", String::from_utf8_lossy(text)).into()),
        b':' => Reply::Integer(std::str::from_utf8(text)?.parse()?),
        b'$' | b'*' if text == b"-1" => Reply::Nil,
        b'$' => {
            let length = number(text)? as usize;
            if input.len() < used + length + 2 {
                return Ok(None);
            }
            return Ok(Some((Reply::Bulk(&input[used..used + length]), used + length + 2)));
        }
        b'*' => {
            let count = number(text)? as usize;
            // Not reserved: the count is what the server claims.
            let (mut items, mut at) = (Vec::new(), used);
            for _ in 0..count {
                let Some((item, length)) = reply(&input[at..])? else { return Ok(None) };
                items.push(item);
                at += length;
            }
            return Ok(Some((Reply::Array(items), at)));
        }
        _ => return Err(format!("a reply that begins with {kind:#x} is none").into()),
    };
    Ok(Some((found, used)))
}

impl<'a> Reply<'a> {
    pub(crate) fn items(&self) -> &[Reply<'a>] {
        match self {
            Reply::Array(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn bulk(&self) -> Result<&'a [u8], Failed> {
        match self {
            Reply::Bulk(text) => Ok(text),
            other => Err(format!("a text was expected, not {other:?}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_texts() {
        let mut out = Vec::new();
        command(&mut out, [b"LPUSH".as_slice(), b"q", b""]);
        assert_eq!(String::from_utf8_lossy(&out), "*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$0\r\n\r\n");
    }

    #[test]
    fn replies_are_read_once_they_are_whole() {
        let nested = b"*2\r\n*1\r\n$2\r\n\r\n\r\n:-7\r\n";
        let array = Reply::Array(vec![Reply::Array(vec![Reply::Bulk(b"\r\n")]), Reply::Integer(-7)]);
        for (bytes, expected) in [
            (b"+OK\r\n".as_slice(), Reply::Simple(b"OK")),
            (b"$-1\r\n", Reply::Nil),
            (b"*-1\r\n", Reply::Nil),
            (b"$0\r\n\r\n", Reply::Bulk(b"")),
            (nested, array),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(reply(&bytes[..end]).expect("no error"), None, "{end}");
            }
            assert_eq!(reply(bytes).expect("no error"), Some((expected, bytes.len())));
        }
    }

    #[test]
    fn an_error_says_what_the_server_said() {
        let error = reply(b"-LOADING still\r\n").expect_err("an error").to_string();
        assert!(error.contains("LOADING still"), "{error}");
        assert!(reply(b"?\r\n").is_err());
    }
}
