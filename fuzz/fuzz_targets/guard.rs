//! The guard of HTTP lengths: it hands on what it reads, says the same however the bytes are cut, and never
//! passes a request with two lengths that the parser behind it would take.
#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use taskyard::http::guard::{Ambiguous, Guarded};
use tokio::io::{AsyncRead, ReadBuf};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    pieces: [u8; 4],
    bytes: &'a [u8],
}

/// A connection that gives its bytes in pieces of so many.
struct Pieces<'a> {
    rest: &'a [u8],
    sizes: Vec<usize>,
    at: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.sizes[self.at % self.sizes.len()].clamp(1, self.rest.len().max(1));
        self.at += 1;
        let (piece, rest) = self.rest.split_at(size.min(self.rest.len()).min(buffer.remaining()));
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Reads all; what was read, and whether a request had two lengths.
fn read(bytes: &[u8], sizes: Vec<usize>) -> (Vec<u8>, bool) {
    let ambiguous = Ambiguous::default();
    let mut guarded = Guarded::new(Pieces { rest: bytes, sizes, at: 0 }, None, &ambiguous);
    let mut all = Vec::new();
    let mut room = [0; 512];
    // What is in the buffer already is none of the guard's business.
    room[..3].copy_from_slice(b"\n\n\n");
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        buffer.set_filled(3);
        let polled = Pin::new(&mut guarded).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        assert!(matches!(polled, Poll::Ready(Ok(()))));
        if buffer.filled().len() == 3 {
            return (all, ambiguous.is_set());
        }
        all.extend_from_slice(&buffer.filled()[3..]);
    }
}

/// Whether one of the requests has two lengths, by the parser that hyper uses, on all of the bytes at once.
fn has_two_lengths(mut bytes: &[u8]) -> bool {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return false };
        let named = |name: &'static str| {
            request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name))
        };
        let (lengths, codings) = (named("content-length").count(), named("transfer-encoding").count());
        if lengths > 1 || (lengths > 0 && codings > 0) {
            return true;
        }
        if codings > 0 {
            return false;
        }
        let length = match named("content-length").next() {
            None => 0,
            Some(header) => {
                // What is no length is refused, and its connection with it.
                let digits = str::from_utf8(header.value).unwrap_or_default();
                let is_length = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let Some(length) = is_length.then(|| digits.parse::<u64>().ok()).flatten() else {
                    return false;
                };
                length
            }
        };
        let behind = usize::try_from(length).ok().and_then(|length| head.checked_add(length));
        match behind.and_then(|behind| bytes.get(behind..)) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let (whole, ambiguous) = read(input.bytes, vec![usize::MAX]);
    assert_eq!(whole, input.bytes, "it hands on what it reads");
    for sizes in [vec![1], input.pieces.iter().map(|size| usize::from(*size)).collect()] {
        let (cut, also) = read(input.bytes, sizes.clone());
        assert_eq!(cut, input.bytes);
        assert_eq!(also, ambiguous, "in pieces of {sizes:?}");
    }
    if has_two_lengths(input.bytes) {
        assert!(ambiguous, "a request with two lengths has passed");
    }
});
