//! Counts messages in what a socket is sent, and looks at no more of it than that takes.

use crate::Failed;
use crate::socket::{BINARY, CLOSE, TEXT, client_frame, closed, split_frame};

/// How messages are told from what else is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// A frame with at least so many bytes is one.
    Frames(usize),
    /// The frames are a stream, and so many bytes of it are one.
    Stream(usize),
    /// Each is a task, which is to be acknowledged.
    Leases,
}

/// Of one socket.
pub(super) struct Counter {
    counts: Counts,
    /// A frame's beginning.
    rest: Vec<u8>,
    /// A message's beginning, in bytes.
    stream: usize,
    leases: Vec<u8>,
}

/// Longer than what is said of a task before its lease.
const LEASE_WITHIN: usize = 128;

impl Counter {
    /// `rest` was read before.
    pub(super) fn new(counts: Counts, rest: Vec<u8>) -> Counter {
        Counter { counts, rest, stream: 0, leases: Vec::new() }
    }

    /// How many messages end in `bytes`.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<u32, Failed> {
        if self.rest.is_empty() {
            let (count, left) = self.frames(bytes)?;
            self.rest.extend_from_slice(left);
            return Ok(count);
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let (count, left) = self.frames(&rest)?;
        let used = rest.len() - left.len();
        rest.drain(..used);
        self.rest = rest;
        Ok(count)
    }

    fn frames<'a>(&mut self, mut bytes: &'a [u8]) -> Result<(u32, &'a [u8]), Failed> {
        let mut count = 0;
        while let Some((head, body, left)) = split_frame(bytes)? {
            bytes = left;
            match (self.counts, head) {
                (_, CLOSE) => return Err(closed(body)),
                (Counts::Frames(min), TEXT | BINARY) => count += u32::from(body.len() >= min),
                (Counts::Stream(each), TEXT | BINARY) => {
                    self.stream += body.len();
                    count += (self.stream / each) as u32;
                    self.stream %= each;
                }
                (Counts::Leases, TEXT) => {
                    if let Some(lease) = lease(body) {
                        self.leases.extend_from_slice(if self.leases.is_empty() { b"\"" } else { b",\"" });
                        self.leases.extend_from_slice(lease);
                        self.leases.push(b'"');
                        count += 1;
                    }
                }
                _ => {}
            }
        }
        Ok((count, bytes))
    }

    /// The frame that acknowledges what has come since the last, if anything has.
    pub(super) fn ack(&mut self) -> Option<Vec<u8>> {
        if self.leases.is_empty() {
            return None;
        }
        let body = [br#"{"type":"ack","leases":["#, &self.leases[..], b"]}"].concat();
        self.leases.clear();
        Some(client_frame(TEXT, &body))
    }
}

fn lease(body: &[u8]) -> Option<&[u8]> {
    const MARK: &[u8] = b"\"lease\":\"";
    let head = &body[..body.len().min(LEASE_WITHIN)];
    let (_, lease) = head.split_at(head.windows(MARK.len()).position(|window| window == MARK)? + MARK.len());
    Some(&lease[..lease.iter().position(|byte| *byte == b'"')?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(head: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = client_frame(head, body);
        // A server's has no mask.
        frame[1] &= 0x7F;
        let at = if body.len() < 126 { 2 } else { 4 };
        frame.drain(at..at + 4);
        frame
    }

    /// Feeds it in pieces of every length: what is counted must be the same.
    fn count(counts: Counts, bytes: &[u8], before: usize) -> u32 {
        let all = |piece: usize| {
            let (rest, bytes) = bytes.split_at(before);
            let mut counter = Counter::new(counts, rest.to_vec());
            bytes.chunks(piece).map(|piece| counter.feed(piece).unwrap()).sum::<u32>()
        };
        let whole = all(bytes.len());
        assert!((1..bytes.len()).all(|piece| all(piece) == whole));
        whole
    }

    #[test]
    fn long_frames_are_messages() {
        let mut bytes = frame(TEXT, b"2");
        for length in [256, 300, 10, 400] {
            bytes.extend(frame(TEXT, &vec![b'x'; length]));
        }
        assert_eq!(count(Counts::Frames(256), &bytes, 0), 3);
        assert_eq!(count(Counts::Frames(256), &bytes, 2), 3);
    }

    #[test]
    fn a_stream_is_counted_by_its_bytes_wherever_frames_end() {
        let stream = [7; 5 * 30];
        let bytes: Vec<u8> = stream.chunks(40).flat_map(|part| frame(BINARY, part)).collect();
        assert_eq!(count(Counts::Stream(30), &bytes, 0), 5);
    }

    #[test]
    fn tasks_are_acknowledged_together() {
        let mut counter = Counter::new(Counts::Leases, Vec::new());
        let mut bytes = frame(TEXT, br#"{"type":"task","task":"0198","lease":"AAA","queue":"q"}"#);
        bytes.extend(frame(TEXT, br#"{"type":"welcome"}"#));
        bytes.extend(frame(TEXT, br#"{"type":"task","task":"0199","lease":"AAB","queue":"q"}"#));
        assert_eq!(counter.feed(&bytes).unwrap(), 2);
        let ack = client_frame(TEXT, br#"{"type":"ack","leases":["AAA","AAB"]}"#);
        assert_eq!((counter.ack(), counter.ack()), (Some(ack), None));
    }

    #[test]
    fn an_end_is_an_error_that_says_why() {
        let bytes = frame(CLOSE, b"\x10\x22slow");
        let error = Counter::new(Counts::Frames(1), Vec::new()).feed(&bytes).unwrap_err();
        assert!(error.to_string().contains("4130 slow"), "{error}");
    }
}
