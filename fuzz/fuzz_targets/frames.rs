//! WebSocket frames: the same messages and the same error however the bytes arrive, and never more kept
//! than arrived, or than a message may have.
#![no_main]

mod meter;

use std::sync::Once;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use meter::Meter;
use taskyard::ws::frames::{Assembly, Broken, CONTROL_BYTES, Incoming};
use taskyard_proto::Encoding;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    compression: bool,
    message_bytes: u16,
    /// The lengths of the pieces, over and over.
    pieces: [u8; 4],
    bytes: &'a [u8],
}

#[derive(Debug, PartialEq)]
enum Event {
    Message(Encoding, Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// Room that grows by doubling, the least that a vector takes, and what inflating asks for at first.
const SLACK: usize = 5 << 10;

impl Input<'_> {
    fn limit(&self) -> usize {
        usize::from(self.message_bytes)
    }

    fn assembly(&self) -> Assembly {
        Assembly::new(self.limit(), self.compression)
    }

    fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut rest = self.bytes;
        let mut sizes = self.pieces.iter().cycle();
        std::iter::from_fn(move || {
            let size = usize::from(*sizes.next()?).clamp(1, rest.len().max(1));
            let (piece, behind) = rest.split_at_checked(size)?;
            rest = behind;
            Some(piece.to_vec())
        })
    }

    fn event(&self, incoming: Incoming<'_>) -> Event {
        match incoming {
            Incoming::Message(body) => {
                let (encoding, body) = (body.encoding(), body.bytes());
                assert!(body.len() <= self.limit(), "a message of {} bytes", body.len());
                Event::Message(encoding, body.to_vec())
            }
            Incoming::Ping(body) => {
                assert!(body.len() <= CONTROL_BYTES);
                Event::Ping(body.to_vec())
            }
            Incoming::Pong => Event::Pong,
            Incoming::Close(code) => Event::Close(code),
        }
    }

    fn feed(&self, pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<Event>, Result<(), Broken>) {
        let (mut assembly, mut events) = (self.assembly(), Vec::new());
        for mut piece in pieces {
            let fed = assembly.feed(&mut piece, &mut |incoming| -> Result<(), Broken> {
                events.push(self.event(incoming));
                Ok(())
            });
            if fed.is_err() {
                return (events, fed);
            }
        }
        (events, Ok(()))
    }

    fn is_bounded(&self) {
        let mut assembly = self.assembly();
        let mut arrived = 0;
        for mut piece in self.pieces() {
            arrived += piece.len();
            let may = arrived.min(self.limit());
            let meter = Meter::start();
            let before = arrived;
            let fed = assembly.feed(&mut piece, &mut |_| -> Result<(), Broken> { Ok(()) });
            // A message on its way, twice while its room grows, and what is inflated of it.
            let most = 3 * may + if self.compression { 3 * self.limit() } else { 0 };
            assert!(meter.most() <= most + SLACK, "{} bytes at once, {before} arrived", meter.most());
            if fed.is_err() {
                return;
            }
        }
    }

    fn keeps_little(&self) {
        let mut pieces: Vec<Vec<u8>> = self.pieces().collect();
        let meter = Meter::start();
        let mut assembly = self.assembly();
        let mut arrived = 0;
        for piece in &mut pieces {
            arrived += piece.len();
            let fed = assembly.feed(piece, &mut |_| -> Result<(), Broken> { Ok(()) });
            let kept = meter.kept();
            assert!(
                kept <= 2 * (arrived.min(self.limit()) + CONTROL_BYTES) + 64,
                "{kept} of {arrived} bytes kept"
            );
            if fed.is_err() {
                return;
            }
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    static WARM: Once = Once::new();
    WARM.call_once(|| drop(taskyard::ws::deflate::inflate(&[0], 1)));
    let begin = Instant::now();
    let whole = input.feed(std::iter::once(input.bytes.to_vec()));
    let cut = input.feed(input.pieces());
    let bytewise = input.feed(input.bytes.iter().map(|byte| vec![*byte]));
    // Pings are counted by the second: one that ends between two of the feeds gives some of them more.
    if begin.elapsed() < Duration::from_millis(500) {
        assert_eq!(whole, cut, "in pieces of {:?}", input.pieces);
        assert_eq!(whole, bytewise, "byte by byte");
    }
    input.keeps_little();
    input.is_bounded();
});
