//! permessage-deflate (RFC 7692), without context takeover: each message is compressed by itself, so
//! that a socket keeps no window while it waits. What compresses and inflates is one per thread.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The end of every message's last block, which is not sent: RFC 7692, section 7.2.1.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// A final block with nothing in it: the end of what is whole so far, and of nothing else.
const END: [u8; 2] = [0x03, 0x00];
/// Room is made for so much at first, then for as much again as there is.
const ROOM: usize = 4 << 10;
/// Fast rather than tight: a broker's messages are small, and its time is its users'.
const LEVEL: Compression = Compression::new(1);

/// How a socket's messages are compressed, as agreed with its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The base-two logarithm of the window that the client can keep: 9 to 15.
    pub window_bits: u8,
    /// Whether the client named the window's size, so that the answer repeats it.
    named: bool,
}

/// What a compressed message is.
#[derive(Debug, PartialEq, Eq)]
pub enum Inflated {
    /// All of it.
    Whole(Vec<u8>),
    /// More than the limit.
    TooLong,
    /// Not what DEFLATE makes.
    Garbled,
}

impl Agreed {
    /// The first offer of a `Sec-WebSocket-Extensions` header that the broker can serve. What it
    /// cannot is declined, and the socket goes uncompressed, as RFC 7692, section 5 has it.
    pub fn choose(header: &str) -> Option<Agreed> {
        header.split(',').find_map(Agreed::parse)
    }

    fn parse(offer: &str) -> Option<Agreed> {
        let mut parts = offer.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
            return None;
        }
        let mut agreed = Agreed { window_bits: 15, named: false };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
                None => (part, None),
            };
            let bits = match value {
                // RFC 7692, section 7.1.2: 8 to 15, without a leading zero.
                Some(text) if !text.starts_with('0') => {
                    Some(text.parse::<u8>().ok().filter(|bits| (8..=15).contains(bits))?)
                }
                Some(_) => return None,
                None => None,
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, bits) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                // A window of 256 bytes is one that the compressor cannot keep within.
                ("server_max_window_bits", Some(bits @ 9..)) => {
                    agreed = Agreed { window_bits: bits, named: true };
                }
                // What the client compresses within 32 KiB or less, the broker inflates.
                ("client_max_window_bits", _) => {}
                _ => return None,
            }
        }
        Some(agreed)
    }

    /// The `Sec-WebSocket-Extensions` of the answer.
    pub fn answer(&self) -> String {
        let mut text =
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover".to_owned();
        if self.named {
            text.push_str(&format!("; server_max_window_bits={}", self.window_bits));
        }
        text
    }
}

/// Inflates a message. Room is made as it fills, never for more than one byte above `limit`.
pub fn inflate(compressed: &[u8], limit: usize) -> Inflated {
    thread_local! {
        static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    }
    INFLATE.with_borrow_mut(|inflate| {
        inflate.reset(false);
        let mut out = Vec::new();
        // Right behind a final block; and of nothing at all there is nothing to be cut off.
        let mut ended = compressed.is_empty();
        for (nth, mut input) in [compressed, &TAIL, &END].into_iter().enumerate() {
            if nth > 0 && ended {
                break;
            }
            let length = out.len();
            loop {
                if out.len() == out.capacity() {
                    let room = out.len().max(ROOM).min((limit + 1).saturating_sub(out.len()));
                    if room == 0 {
                        return Inflated::TooLong;
                    }
                    out.reserve_exact(room);
                }
                let before = (inflate.total_in(), out.len());
                let Ok(status) = inflate.decompress_vec(input, &mut out, FlushDecompress::Sync) else {
                    return Inflated::Garbled;
                };
                let used = (inflate.total_in() - before.0) as usize;
                input = &input[used..];
                if out.len() > limit {
                    return Inflated::TooLong;
                }
                if status == Status::StreamEnd {
                    // A final block, after which others may follow: RFC 7692, section 7.2.3.4.
                    inflate.reset(false);
                    ended = true;
                } else if used == 0 && out.len() == before.1 {
                    if !input.is_empty() {
                        return Inflated::Garbled;
                    }
                    break;
                } else {
                    ended = false;
                }
                if input.is_empty() && out.len() < out.capacity() {
                    break;
                }
            }
            // Something that was cut off took the tail for its own.
            if nth > 0 && out.len() > length {
                return Inflated::Garbled;
            }
        }
        if ended { Inflated::Whole(out) } else { Inflated::Garbled }
    })
}

/// Compresses a message into `out`, which it replaces. False: it would not become shorter.
pub fn compress(message: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
    thread_local! {
        // One for each size of window, 9 to 15; all but the last are rarely asked for.
        static COMPRESS: RefCell<[Option<Compress>; 7]> = const { RefCell::new([const { None }; 7]) };
    }
    let window_bits = window_bits.clamp(9, 15);
    COMPRESS.with_borrow_mut(|all| {
        let compress = all[usize::from(window_bits) - 9]
            .get_or_insert_with(|| Compress::new_with_window_bits(LEVEL, false, window_bits));
        compress.reset();
        out.clear();
        // Room for what does not compress, too: the compressor is not made to run out of it, which zlib-rs
        // 0.6 does not survive at every level, and stops at the first byte that is not saved anyway.
        out.reserve(message.len() + message.len() / 8 + ROOM);
        let mut input = message;
        while out.len() < out.capacity() {
            let before = (compress.total_in(), out.len());
            if compress.compress_vec(input, out, FlushCompress::Sync).is_err() {
                return false;
            }
            let used = (compress.total_in() - before.0) as usize;
            input = &input[used..];
            if input.is_empty() && out.len() < out.capacity() && out.ends_with(&TAIL) {
                out.truncate(out.len() - TAIL.len());
                return out.len() < message.len();
            }
            if used == 0 && out.len() == before.1 {
                return false;
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        b"a task to be done, and another, ".iter().copied().cycle().take(length).collect()
    }

    #[test]
    fn what_is_compressed_inflates_to_itself_with_every_window() {
        for bits in 9..=15 {
            for length in [100, 4096, 70_000, 1 << 20] {
                let mut out = Vec::new();
                assert!(compress(&text(length), bits, &mut out), "{bits} bits, {length} bytes");
                assert_eq!(inflate(&out, length), Inflated::Whole(text(length)));
                assert_eq!(inflate(&out, length - 1), Inflated::TooLong);
            }
        }
    }

    #[test]
    fn the_examples_of_the_rfc_inflate() {
        // RFC 7692, section 7.2.3: one block; two fragments' worth; no compression; a final block.
        let examples: [&[u8]; 3] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        ];
        for example in examples {
            assert_eq!(inflate(example, 100), Inflated::Whole(b"Hello".to_vec()), "{example:x?}");
        }
        let two_blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflate(&two_blocks, 100), Inflated::Whole(b"Hello".to_vec()));
        // As the one before, by a sender that forgot what belongs behind a final block.
        assert_eq!(inflate(&examples[2][..7], 100), Inflated::Whole(b"Hello".to_vec()));
        assert_eq!(inflate(&[0x00], 0), Inflated::Whole(Vec::new()), "an empty message");
        assert_eq!(inflate(&[0xff, 0xff, 0xff], 100), Inflated::Garbled);
    }

    /// The tail was once taken for the missing end: a block without compression got four bytes that
    /// nobody had sent.
    #[test]
    fn what_is_cut_off_is_garbled() {
        let mut whole = Vec::new();
        assert!(compress(&text(1000), 15, &mut whole));
        let stored = [&[0x00, 0x08, 0x00, 0xf7, 0xff][..], b"Hello yo", &[0x00]].concat();
        for message in [whole, stored] {
            assert!(matches!(inflate(&message, 1000), Inflated::Whole(_)));
            for length in 2..message.len() {
                assert_eq!(inflate(&message[..length], 1000), Inflated::Garbled, "{length} bytes");
            }
        }
    }

    #[test]
    fn a_bomb_is_given_up_at_the_limit() {
        let zeros = vec![0; 64 << 20];
        let mut bomb = Vec::new();
        assert!(compress(&zeros, 15, &mut bomb));
        assert!(bomb.len() < 1 << 20);
        assert_eq!(inflate(&bomb, 1 << 20), Inflated::TooLong);
    }

    /// What does not compress, or hardly, ended the compressor by a panic where its output was bounded by
    /// the message's length.
    #[test]
    fn noise_is_left_as_it_is_and_what_has_some_order_comes_back() {
        use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
        let mut random = SmallRng::seed_from_u64(7);
        for round in 0..600 {
            let length = random.random_range(1..150_000 >> (round % 8));
            let (letters, repeat) = (random.random_range(1..=256), random.random_range(0..=100));
            let mut message: Vec<u8> = Vec::with_capacity(length);
            while message.len() < length {
                if message.len() > 10 && random.random_range(0..100) < repeat {
                    let from = random.random_range(0..message.len());
                    let copied = message[from..message.len().min(from + 40)].to_vec();
                    message.extend(copied);
                } else {
                    message.push((random.random_range(0..letters) & 0xff) as u8);
                }
            }
            let mut out = Vec::new();
            if compress(&message, 9 + (round % 7) as u8, &mut out) {
                assert_eq!(inflate(&out, message.len()), Inflated::Whole(message), "round {round}");
            }
        }
        let noise: Vec<u8> = (0..100_000).map(|_| random.random()).collect();
        assert!(!compress(&noise, 15, &mut Vec::new()));
    }

    #[test]
    fn an_offer_is_taken_as_far_as_it_can_be_kept() {
        let answer = |offer| Agreed::choose(offer).map(|agreed| agreed.answer());
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer("permessage-deflate").unwrap(), plain);
        assert_eq!(answer("permessage-deflate; client_max_window_bits").unwrap(), plain);
        assert_eq!(answer("x-webkit-deflate-frame, permessage-deflate").unwrap(), plain);
        assert_eq!(
            answer("permessage-deflate; server_max_window_bits=\"10\"").unwrap(),
            format!("{plain}; server_max_window_bits=10")
        );
        // The second of two offers is the one that can be kept.
        assert_eq!(
            answer("permessage-deflate; server_max_window_bits=8, permessage-deflate").unwrap(),
            plain
        );
        for declined in [
            "",
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; unheard_of",
        ] {
            assert_eq!(answer(declined), None, "{declined}");
        }
    }
}
