//! Identifiers and names. Each is parsed at the door; a value that exists is right.

use std::fmt;
use std::str::FromStr;

use smol_str::SmolStr;
use uuid::{Builder, Uuid, Variant, Version};

/// The longest name of a queue, worker, group or room, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameError {
    /// What kind of name: `queue name`, `worker name`, …
    pub what: &'static str,
    /// The text that is not one, cut to a printable length.
    pub given: String,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a {}: use 1 to 128 letters, digits, '_', '-' or '.', not beginning with '.'",
            self.given, self.what
        )
    }
}

impl std::error::Error for NameError {}

/// The characters that a name may have.
const NAME_CHARS: [bool; 256] = {
    let mut chars = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'-' | b'.');
        byte += 1;
    }
    chars
};

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes[0] != b'.'
        && bytes.iter().all(|b| NAME_CHARS[usize::from(*b)])
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// Text of the form `[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}`.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// Parses the name; the error says what a name looks like.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                if is_name(text) {
                    Ok($name(SmolStr::new(text)))
                } else {
                    Err(NameError { what: $what, given: text.chars().take(64).collect() })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

names! {
    /// Where a task waits.
    QueueName, "queue name";
    /// Who takes tasks: one name, one session at a time.
    WorkerName, "worker name";
    /// A named set of workers.
    GroupName, "group name";
    /// A lossy event channel.
    RoomName, "room name";
}

/// A task's identifier: a UUIDv7, made when the submit reaches the broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u128);

impl TaskId {
    /// A new identifier from the clock and a generator that the system's randomness seeds.
    pub fn generate() -> TaskId {
        TaskId(Uuid::now_v7().as_u128())
    }

    /// A new identifier of that time, in microseconds since 1970, with the lower 62 bits of `random`, which nobody can
    /// guess: for whoever knows the time already, and makes many. Ids sort by the time, to a quarter of a microsecond at
    /// best, as RFC 9562 has it in 6.2, method 3.
    pub fn of_time(unix_us: u64, random: u128) -> TaskId {
        let (ms, us) = (u128::from(unix_us / 1000), u128::from(unix_us % 1000));
        let fraction = us * 4096 / 1000;
        let random = random & ((1 << 62) - 1);
        let bits = (ms & ((1 << 48) - 1)) << 80 | fraction << 64 | random;
        let id = Builder::from_u128(bits).with_variant(Variant::RFC4122).with_version(Version::SortRand);
        TaskId(id.into_uuid().as_u128())
    }

    /// Parses the hyphenated text form, and no other.
    pub fn parse(text: &str) -> Option<TaskId> {
        // `Uuid::try_parse` takes braced and simple forms too; one spelling keeps ids comparable as text.
        (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten().map(|id| TaskId(id.as_u128()))
    }

    /// Writes the hyphenated text form (36 bytes) into `buffer`.
    pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
        Uuid::from_u128(self.0).hyphenated().encode_lower(buffer)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_u128(self.0).hyphenated(), f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The right to settle one delivery. Opaque to clients; 22 characters on the wire.
///
/// The broker finds the lease by its place (`slot`, `recipient`) and knows it by its `number`,
/// which is never given twice, not even after a restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    /// Unique among all leases of a store.
    pub number: u64,
    /// Where the broker keeps the task.
    pub slot: u32,
    /// Which recipient of the task: 0 unless it is a task to all.
    pub recipient: u32,
}

/// The length of a lease on the wire, in characters.
const LEASE_CHARS: usize = 22;

/// The digits of URL-safe base64.
const BASE64_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// No digit of base64: a bit that none of them has.
const NO_DIGIT: u8 = 0x80;

/// What each character is worth as a digit of URL-safe base64.
const BASE64_DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut worth = 0;
    while worth < BASE64_ALPHABET.len() {
        digits[BASE64_ALPHABET[worth] as usize] = worth as u8;
        worth += 1;
    }
    digits
};

impl LeaseId {
    /// Parses the wire form. Anything else is nobody's lease.
    pub fn parse(text: &str) -> Option<LeaseId> {
        Self::parse_bytes(text.as_bytes())
    }

    /// Parses the bytes of the wire form: 128 bits, six a character; what is left of the last one's is 0.
    ///
    /// Not by the base64 library, to whose general way a lease is more work than all else in an `ack`.
    pub(crate) fn parse_bytes(text: &[u8]) -> Option<LeaseId> {
        let text: &[u8; LEASE_CHARS] = text.try_into().ok()?;
        // Put together as they come, and looked at for what is no digit in the end.
        let mut seen = 0;
        let mut bits = |chars: &[u8]| {
            chars.iter().fold(0, |bits: u64, &char| {
                let digit = BASE64_DIGITS[usize::from(char)];
                seen |= digit;
                bits << 6 | u64::from(digit)
            })
        };
        let (high, middle) = (bits(&text[..10]), bits(&text[10..11]));
        let (low, last) = (bits(&text[11..21]), bits(&text[21..]));
        if seen & NO_DIGIT != 0 || last & 0xf != 0 {
            return None;
        }
        let places = middle << 62 | low << 2 | last >> 4;
        let number = high << 4 | middle >> 2;
        Some(LeaseId { number, slot: (places >> 32) as u32, recipient: places as u32 })
    }

    /// Writes the wire form into `buffer`.
    pub fn encode(self, buffer: &mut [u8; LEASE_CHARS]) -> &str {
        let put = |mut bits: u64, chars: &mut [u8]| {
            for char in chars.iter_mut().rev() {
                *char = BASE64_ALPHABET[(bits & 0x3f) as usize];
                bits >>= 6;
            }
        };
        let places = u64::from(self.slot) << 32 | u64::from(self.recipient);
        put(self.number >> 4, &mut buffer[..10]);
        put(self.number << 2 | places >> 62, &mut buffer[10..11]);
        put(places >> 2, &mut buffer[11..21]);
        put(places << 4, &mut buffer[21..]);
        std::str::from_utf8(buffer).expect("base64 is ASCII")
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; LEASE_CHARS]))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "A-b_c.d", "-", "_", "9", &"x".repeat(128)] {
            assert!(QueueName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "a b", "ä", "a/b", "a\n", "..", &"x".repeat(129)] {
            assert!(QueueName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_a_time_are_uuids_of_version_7_that_sort_by_it() {
        let at = 1_790_000_000_123_456;
        let id = TaskId::of_time(at, u128::MAX);
        let uuid = Uuid::from_u128(id.0);
        assert_eq!((uuid.get_version(), uuid.get_variant()), (Some(Version::SortRand), Variant::RFC4122));
        let (seconds, nanos) = uuid.get_timestamp().expect("version 7 has a time").to_unix();
        assert_eq!((seconds, nanos), (1_790_000_000, 123_000_000));
        assert_eq!(TaskId::parse(&id.to_string()), Some(id));
        // Behind the version: parts of the millisecond, 4096 of them.
        for (us, part) in [(0, 0), (250, 1024), (500, 2048), (999, 4091)] {
            let id = TaskId::of_time(at - 456 + us, 0);
            assert_eq!((id.0 >> 64) as u16 & 0xfff, part, "{us}");
        }
        // Whatever is drawn, the later is the greater, from one microsecond to the next.
        for us in [at - 457, at - 456, at - 1, at, at + 543, at + 544, at + 1_000_000] {
            assert!(TaskId::of_time(us, u128::MAX) < TaskId::of_time(us + 1, 0), "{us}");
        }
        assert_ne!(TaskId::of_time(at, 1), TaskId::of_time(at, 2));
        assert_ne!(TaskId::of_time(at, 0), TaskId::of_time(at, 1 << 61), "62 bits are drawn");
    }

    #[test]
    fn a_lease_reads_back_and_garbage_does_not() {
        let lease = LeaseId { number: u64::MAX - 7, slot: 3, recipient: 9 };
        assert_eq!(LeaseId::parse(&lease.to_string()), Some(lease));
        for bad in ["", "x", &"A".repeat(21), &"A".repeat(23), &"!".repeat(22)] {
            assert_eq!(LeaseId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_task_id_has_one_spelling() {
        let id = TaskId::generate();
        assert_eq!(TaskId::parse(&id.to_string()), Some(id));
        assert_eq!(TaskId::parse(&id.to_string().replace('-', "")), None);
        assert_eq!(TaskId::parse(&format!("{{{id}}}")), None);
    }

    #[test]
    fn names_have_the_characters_of_the_grammar_and_no_others() {
        for byte in 0..=127u8 {
            let plain = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            let char = char::from(byte);
            assert_eq!(QueueName::parse(&format!("{char}")).is_ok(), plain, "{char:?}");
            assert_eq!(QueueName::parse(&format!("a{char}b")).is_ok(), plain || byte == b'.', "{char:?}");
        }
    }

    /// A lease as the base64 library reads it.
    fn by_the_library(text: &[u8]) -> Option<LeaseId> {
        let bytes: [u8; 16] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let whole = u128::from_be_bytes(bytes);
        Some(LeaseId { number: (whole >> 64) as u64, slot: (whole >> 32) as u32, recipient: whole as u32 })
    }

    #[test]
    fn a_lease_is_the_base64_of_sixteen_bytes_and_nothing_else() {
        let leases = [
            LeaseId { number: 0, slot: 0, recipient: 0 },
            LeaseId { number: u64::MAX, slot: u32::MAX, recipient: u32::MAX },
            LeaseId { number: 0x0123_4567_89ab_cdef, slot: 0xfedc_ba98, recipient: 0x7654_3210 },
        ];
        for lease in leases {
            let text = lease.to_string();
            assert_eq!(LeaseId::parse(&text), Some(lease));
            // Every byte at every place; at the last one only four of them leave nothing over.
            for at in 0..LEASE_CHARS {
                let mut good = 0;
                for byte in 0..=u8::MAX {
                    let mut changed = text.clone().into_bytes();
                    changed[at] = byte;
                    assert_eq!(LeaseId::parse_bytes(&changed), by_the_library(&changed), "{changed:?}");
                    good += usize::from(LeaseId::parse_bytes(&changed).is_some());
                }
                assert_eq!(good, if at == LEASE_CHARS - 1 { 4 } else { 64 }, "at {at}");
            }
        }
        for bit in 0..128 {
            let whole = 1u128 << bit;
            let lease =
                LeaseId { number: (whole >> 64) as u64, slot: (whole >> 32) as u32, recipient: whole as u32 };
            assert_eq!(lease.to_string(), URL_SAFE_NO_PAD.encode(whole.to_be_bytes()), "bit {bit}");
            assert_eq!(LeaseId::parse(&lease.to_string()), Some(lease), "bit {bit}");
        }
    }
}
