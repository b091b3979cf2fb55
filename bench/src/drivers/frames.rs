//! The frames of the bare server: a length and a body over TCP, or a WebSocket's. Without I/O, for the
//! server and for its clients.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BufMut, BytesMut};
use fastwebsockets::unmask;
use sha1::{Digest as _, Sha1};

use crate::Failed;

/// The first byte of a TCP connection, and the path of a WebSocket: what it is.
pub(crate) const PRODUCER: u8 = b'p';
pub(crate) const WORKER: u8 = b'w';

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
const MASKED: u8 = 0x80;
/// A client's mask need not be a secret where no proxy is between.
pub(crate) const MASK: [u8; 4] = [0x5A, 0xA5, 0x3C, 0xC3];

/// Appends a length and a body.
pub(crate) fn put(out: &mut impl BufMut, body: &[u8]) {
    out.put_u32_le(body.len() as u32);
    out.put_slice(body);
}

/// How long the first frame is, its length included, if it is whole.
pub(crate) fn length(input: &[u8]) -> Option<usize> {
    let length = 4 + u32::from_le_bytes(input.get(..4)?.try_into().ok()?) as usize;
    (input.len() >= length).then_some(length)
}

/// Takes all frames that are whole.
pub(crate) fn take(input: &mut BytesMut, body: &mut impl FnMut(&[u8])) {
    let mut at = 0;
    while let Some(length) = length(&input[at..]) {
        body(&input[at + 4..at + length]);
        at += length;
    }
    input.advance(at);
}

/// Appends a binary frame of a server.
pub(crate) fn put_websocket(out: &mut impl BufMut, body: &[u8]) {
    put_head(out, BINARY, 0, body.len());
    out.put_slice(body);
}

/// Appends a binary frame of a client.
pub(crate) fn put_masked(out: &mut Vec<u8>, body: &[u8]) {
    put_client(out, BINARY, MASK, body);
}

/// Appends a frame of a client.
pub(crate) fn put_client(out: &mut Vec<u8>, kind: u8, mask: [u8; 4], body: &[u8]) {
    put_head(out, kind, MASKED, body.len());
    out.extend_from_slice(&mask);
    let at = out.len();
    out.extend_from_slice(body);
    unmask(&mut out[at..], mask);
}

fn put_head(out: &mut impl BufMut, kind: u8, masked: u8, length: usize) {
    out.put_u8(kind);
    match length {
        0..126 => out.put_u8(masked | length as u8),
        126..0x1_0000 => {
            out.put_u8(masked | 126);
            out.put_u16(length as u16);
        }
        _ => {
            out.put_u8(masked | 127);
            out.put_u64(length as u64);
        }
    }
}

/// What stands before a frame's body.
pub(crate) struct Head {
    /// Where the body begins,
    pub(crate) begin: usize,
    /// and how long it is.
    pub(crate) length: u64,
    pub(crate) mask: Option<[u8; 4]>,
}

impl Head {
    /// Of the first frame, once it is whole; the body need not be.
    pub(crate) fn first(input: &[u8]) -> Option<Head> {
        let second = *input.get(1)?;
        let (mut begin, length) = match second & !MASKED {
            126 => (4, u64::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)),
            length => (2, u64::from(length)),
        };
        let mut mask = None;
        if second & MASKED != 0 {
            mask = Some(input.get(begin..begin + 4)?.try_into().ok()?);
            begin += 4;
        }
        Some(Head { begin, length, mask })
    }

    /// Where the body ends, if all of it is there.
    pub(crate) fn end(&self, input: &[u8]) -> Option<usize> {
        let end = self.begin.checked_add(usize::try_from(self.length).ok()?)?;
        (input.len() >= end).then_some(end)
    }
}

/// How long the first frame is, its head included, if it is whole.
pub(crate) fn websocket_length(input: &[u8]) -> Option<usize> {
    Head::first(input)?.end(input)
}

/// Takes all binary frames that are whole.
pub(crate) fn take_websocket(input: &mut BytesMut, body: &mut impl FnMut(&[u8])) -> Result<(), Failed> {
    let mut at = 0;
    while let Some(Head { begin, mask, .. }) = Head::first(&input[at..])
        && let Some(end) = websocket_length(&input[at..])
    {
        if input[at] != BINARY {
            return Err(format!(
                "a frame that begins with {:#x}: only whole binary frames are known",
                input[at]
            )
            .into());
        }
        if let Some(mask) = mask {
            unmask(&mut input[at + begin..at + end], mask);
        }
        body(&input[at + begin..at + end]);
        at += end;
    }
    input.advance(at);
    Ok(())
}

/// Takes the head of a request or of an answer; says whether it was whole.
pub(crate) fn head(input: &mut BytesMut) -> bool {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n");
    end.inspect(|end| input.advance(end + 4)).is_some()
}

/// What a client asks for when it upgrades, and the answer.
pub(crate) struct Upgrade {
    pub(crate) path: String,
    pub(crate) answer: String,
}

/// Takes an upgrade request, once it is whole.
pub(crate) fn upgrade(input: &mut BytesMut) -> Option<Upgrade> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let request = String::from_utf8_lossy(&input.split_to(end)).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default();
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(hash.finalize())
    );
    Some(Upgrade { path, answer })
}

/// The request of a client on a path.
pub(crate) fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &mut BytesMut, websocket: bool) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut keep = |body: &[u8]| found.push(body.to_vec());
        match websocket {
            true => take_websocket(input, &mut keep).expect("binary frames"),
            false => take(input, &mut keep),
        }
        found
    }

    #[test]
    fn what_is_put_is_taken_whole_and_a_rest_is_kept() {
        for length in [0, 1, 7, 8, 125, 126, 256, 0xFFFF, 0x1_0000] {
            let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (mut plain, mut served, mut masked) = (Vec::new(), Vec::new(), Vec::new());
            put(&mut plain, &body);
            put_websocket(&mut served, &body);
            put_masked(&mut masked, &body);
            for (bytes, websocket) in [(plain, false), (served, true), (masked, true)] {
                let mut input = BytesMut::from(&bytes[..bytes.len() - 1]);
                let early = all(&mut input, websocket);
                assert!(early.is_empty(), "{length}: a frame without its last byte was taken");
                input.put_u8(bytes[bytes.len() - 1]);
                input.put_slice(&bytes);
                assert_eq!(all(&mut input, websocket), [body.clone(), body.clone()], "{length}");
                assert!(input.is_empty());
            }
        }
    }

    #[test]
    fn an_upgrade_is_answered_as_the_standard_has_it() {
        let mut input = BytesMut::from(upgrade_request("/w").as_bytes());
        input.put_u8(0x82);
        let asked = upgrade(&mut input).expect("a whole request");
        assert_eq!(asked.path, "/w");
        assert!(asked.answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert_eq!(input.as_ref(), [0x82]);
    }

    /// Both sides once left the last bytes of a body unmasked, and only a third noticed.
    #[test]
    fn every_byte_is_masked_as_the_standard_has_it() {
        for length in 0..20 {
            let body: Vec<u8> = (0..length).collect();
            let mut frame = Vec::new();
            put_masked(&mut frame, &body);
            let expected: Vec<u8> = body.iter().enumerate().map(|(nth, byte)| byte ^ MASK[nth % 4]).collect();
            assert_eq!(frame[6..], expected, "{length}");
        }
    }
}
