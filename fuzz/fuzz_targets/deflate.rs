//! permessage-deflate: what inflates stays within its limit, and what is compressed comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taskyard::ws::deflate::{Inflated, compress, inflate};

/// More than any input makes, so that what must come back is not cut off.
const ROOMY: usize = 8 << 20;

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (limit, window_bits, bytes) = input;
    let limit = usize::from(limit);
    let small = inflate(bytes, limit);
    match (&small, inflate(bytes, ROOMY)) {
        // The limit decides how much, never what.
        (Inflated::Whole(some), Inflated::Whole(all)) => {
            assert!(some.len() <= limit, "{} bytes, of at most {limit}", some.len());
            // Room is made as it fills, by doubling, and never beyond the limit and one more.
            assert!(some.capacity() <= limit + 1, "room for {} bytes, of at most {limit}", some.capacity());
            assert_eq!(*some, all);
        }
        (Inflated::TooLong, Inflated::Whole(all)) => assert!(all.len() > limit),
        (Inflated::TooLong, _) => {}
        (Inflated::Garbled, all) => assert_eq!(all, Inflated::Garbled),
        (Inflated::Whole(_), all) => panic!("whole within {limit}, and then {all:?}"),
    }
    // What one message leaves behind is no part of the next.
    assert_eq!(inflate(bytes, limit), small);

    let mut out = vec![7; 3];
    if compress(bytes, window_bits, &mut out) {
        assert!(out.len() < bytes.len());
        assert_eq!(inflate(&out, bytes.len()), Inflated::Whole(bytes.to_vec()));
        assert_eq!(inflate(&out, bytes.len() - 1), Inflated::TooLong);
    }
});
