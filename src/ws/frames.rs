//! Frames to messages: RFC 6455, section 5, checked in full, without a buffer of its own.
//!
//! Bytes are fed in as they arrive, and whole messages come out of the very bytes that were fed. Only
//! what the end of a read cuts is kept, so an idle socket keeps nothing, and nothing is ever reserved
//! on the word of a header: what is kept has arrived.

use std::time::{Duration, Instant};

use fastwebsockets::OpCode;
use taskyard_proto::{CloseCode, Encoding, FrameBody};

use super::deflate::{self, Inflated};

/// Something whole that a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A message: text is JSON, binary is MessagePack.
    Message(FrameBody<'a>),
    /// To be answered with the same body.
    Ping(&'a [u8]),
    /// A sign of life.
    Pong,
    /// The peer ends the socket, with this code if any.
    Close(Option<u16>),
}

/// The rule that a peer broke: what to close with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// The close code.
    pub code: CloseCode,
    /// In words.
    pub reason: &'static str,
}

/// Whoever takes what arrives.
pub trait Take<E> {
    /// Takes something whole.
    fn take(&mut self, incoming: Incoming<'_>) -> Result<(), E>;

    /// Whether it has enough for now: what is there besides waits.
    fn has_enough(&self) -> bool {
        false
    }
}

impl<E, F: FnMut(Incoming<'_>) -> Result<(), E>> Take<E> for F {
    fn take(&mut self, incoming: Incoming<'_>) -> Result<(), E> {
        self(incoming)
    }
}

/// Control frames that a peer may send in a second.
const CONTROL_PER_SECOND: u32 = 100;
/// Empty fragments that a message may have.
const EMPTY_FRAGMENTS: u32 = 1000;
/// The longest body of a control frame: RFC 6455, section 5.5.
pub const CONTROL_BYTES: usize = 125;
/// The longest header that a client sends: two bytes, eight of length, four of mask.
const HEADER_BYTES: usize = 14;

/// Frames on their way to being messages.
#[derive(Debug)]
pub struct Assembly {
    message_bytes: usize,
    /// Whether permessage-deflate was agreed on.
    compression: bool,
    /// The beginning of a header that is not whole yet.
    head: [u8; HEADER_BYTES],
    head_length: u8,
    /// The frame whose body is under way.
    frame: Option<Frame>,
    /// The message whose fragments are under way.
    message: Option<Partial>,
    /// The body of a control frame that is not whole yet.
    control: Vec<u8>,
    control_frames: (Instant, u32),
}

#[derive(Debug)]
struct Frame {
    opcode: OpCode,
    fin: bool,
    compressed: bool,
    mask: [u8; 4],
    /// Bytes of the body that have not arrived.
    missing: usize,
}

#[derive(Debug)]
struct Partial {
    encoding: Encoding,
    compressed: bool,
    bytes: Vec<u8>,
    /// So much of a text is known to be whole characters.
    checked: usize,
    empty_fragments: u32,
}

impl Assembly {
    /// For a socket whose handshake is done. `message_bytes` bounds a message, compressed and not.
    pub fn new(message_bytes: usize, compression: bool) -> Assembly {
        Assembly {
            message_bytes,
            compression,
            head: [0; HEADER_BYTES],
            head_length: 0,
            frame: None,
            message: None,
            control: Vec::new(),
            control_frames: (Instant::now(), 0),
        }
    }

    /// Takes bytes in, unmasking them where they are, and gives what they complete to `take`. After an
    /// error, whoever's, nobody knows where the next frame begins: nothing more may be fed.
    pub fn feed<E: From<Broken>>(
        &mut self,
        bytes: &mut [u8],
        take: &mut impl FnMut(Incoming<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.feed_some(bytes, take).map(drop)
    }

    /// The same, until whoever takes has enough: says how many bytes were taken in. The others are as they
    /// were, and are to be fed next.
    pub fn feed_some<E: From<Broken>>(
        &mut self,
        mut bytes: &mut [u8],
        taker: &mut impl Take<E>,
    ) -> Result<usize, E> {
        let all = bytes.len();
        loop {
            if self.frame.is_none() {
                if bytes.is_empty() || taker.has_enough() {
                    return Ok(all - bytes.len());
                }
                let Some(header) = self.header(&mut bytes)? else { return Ok(all) };
                self.begin(header)?;
            }
            let Some(frame) = &mut self.frame else { return Ok(all) };
            let (body, rest) = bytes.split_at_mut(frame.missing.min(bytes.len()));
            bytes = rest;
            unmask(body, frame.mask);
            frame.missing -= body.len();
            let ends = frame.missing == 0;
            if !ends {
                frame.mask.rotate_left(body.len() % 4);
            }
            if is_control(frame.opcode) {
                self.control_body(body, ends, taker)?;
            } else {
                self.data_body(body, ends, taker)?;
            }
            if !ends {
                return Ok(all);
            }
        }
    }

    /// The next header, if all of it is there.
    #[inline]
    fn header(&mut self, bytes: &mut &mut [u8]) -> Result<Option<Header>, Broken> {
        let had = usize::from(self.head_length);
        if had == 0
            && let Some((header, length)) = Header::parse(bytes)?
        {
            *bytes = &mut std::mem::take(bytes)[length..];
            return Ok(Some(header));
        }
        let more = bytes.len().min(HEADER_BYTES - had);
        self.head[had..had + more].copy_from_slice(&bytes[..more]);
        match Header::parse(&self.head[..had + more])? {
            Some((header, length)) => {
                *bytes = &mut std::mem::take(bytes)[length - had..];
                self.head_length = 0;
                Ok(Some(header))
            }
            None => {
                *bytes = &mut [];
                self.head_length = (had + more) as u8;
                Ok(None)
            }
        }
    }

    /// Checks a frame by its header, before any of its body is kept.
    #[inline]
    fn begin(&mut self, header: Header) -> Result<(), Broken> {
        let Header { fin, rsv1, opcode, length, mask } = header;
        let control = is_control(opcode);
        if rsv1 && !(self.compression && matches!(opcode, OpCode::Text | OpCode::Binary)) {
            return Err(protocol("a reserved bit is set, and no extension was agreed on that uses it"));
        }
        if control {
            if !fin {
                return Err(protocol("a fragmented control frame"));
            }
            if length > CONTROL_BYTES as u64 {
                return Err(protocol("a control frame longer than 125 bytes"));
            }
            self.count_control(opcode)?;
        } else {
            match (&self.message, opcode) {
                (None, OpCode::Continuation) => return Err(protocol("a continuation without a beginning")),
                (Some(_), OpCode::Text | OpCode::Binary) => {
                    return Err(protocol("a new message inside another"));
                }
                _ => {}
            }
            let so_far = self.message.as_ref().map_or(0, |message| message.bytes.len());
            // What does not compress becomes a little longer by it: by five bytes for a stored block, of which
            // the smallest that compressors make have 4 KiB.
            let slack = match self.message.as_ref().map_or(rsv1, |message| message.compressed) {
                true => self.message_bytes / 512 + 64,
                false => 0,
            };
            if length > (self.message_bytes + slack).saturating_sub(so_far) as u64 {
                return Err(too_big());
            }
        }
        let missing = usize::try_from(length).map_err(|_| too_big())?;
        if missing == 0
            && !fin
            && let Some(message) = &mut self.message
        {
            message.empty_fragments += 1;
            if message.empty_fragments > EMPTY_FRAGMENTS {
                return Err(Broken { code: CloseCode::POLICY, reason: "too many empty fragments" });
            }
        }
        self.frame = Some(Frame { opcode, fin, compressed: rsv1, mask, missing });
        Ok(())
    }

    fn count_control(&mut self, opcode: OpCode) -> Result<(), Broken> {
        if self.control_frames.0.elapsed() > Duration::from_secs(1) {
            self.control_frames = (Instant::now(), 0);
        }
        self.control_frames.1 += 1;
        if self.control_frames.1 > CONTROL_PER_SECOND && opcode != OpCode::Close {
            return Err(Broken { code: CloseCode::POLICY, reason: "too many pings in a second" });
        }
        Ok(())
    }

    fn control_body<E: From<Broken>>(
        &mut self,
        body: &[u8],
        ends: bool,
        taker: &mut impl Take<E>,
    ) -> Result<(), E> {
        if !ends {
            self.control.extend_from_slice(body);
            return Ok(());
        }
        let Some(frame) = self.frame.take() else { return Ok(()) };
        if self.control.is_empty() {
            return taker.take(control(frame.opcode, body)?);
        }
        let mut whole = std::mem::take(&mut self.control);
        whole.extend_from_slice(body);
        taker.take(control(frame.opcode, &whole)?)
    }

    fn data_body<E: From<Broken>>(
        &mut self,
        body: &[u8],
        ends: bool,
        taker: &mut impl Take<E>,
    ) -> Result<(), E> {
        let Some(frame) = &self.frame else { return Ok(()) };
        let (opcode, last, compressed) = (frame.opcode, ends && frame.fin, frame.compressed);
        if ends {
            self.frame = None;
        }
        let message = match &mut self.message {
            Some(message) => message,
            None => {
                let encoding = if opcode == OpCode::Text { Encoding::Json } else { Encoding::MessagePack };
                if last && !compressed {
                    // Most messages: whole within one read.
                    return taker.take(Incoming::Message(checked(encoding, body)?));
                }
                self.message.insert(Partial {
                    encoding,
                    compressed,
                    bytes: Vec::new(),
                    checked: 0,
                    empty_fragments: 0,
                })
            }
        };
        message.bytes.extend_from_slice(body);
        message.check_text(last)?;
        if !last {
            return Ok(());
        }
        let Some(message) = self.message.take() else { return Ok(()) };
        if !message.compressed {
            return taker.take(Incoming::Message(checked(message.encoding, &message.bytes)?));
        }
        let whole = match deflate::inflate(&message.bytes, self.message_bytes) {
            Inflated::Whole(whole) => whole,
            Inflated::TooLong => return Err(too_big().into()),
            Inflated::Garbled => {
                let reason = "a compressed message that does not inflate";
                return Err(Broken { code: CloseCode::INVALID_TEXT, reason }.into());
            }
        };
        taker.take(Incoming::Message(checked(message.encoding, &whole)?))
    }
}

impl Partial {
    /// Text is checked as it arrives, so that what cannot become UTF-8 is refused at once.
    fn check_text(&mut self, last: bool) -> Result<(), Broken> {
        if self.encoding != Encoding::Json || self.compressed {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // The character may go on in what is still to come.
            Err(error) if error.error_len().is_none() && !last => self.checked += error.valid_up_to(),
            Err(_) => return Err(not_utf8()),
        }
        Ok(())
    }
}

/// A frame's header, as far as it can be judged by itself.
#[derive(Debug)]
struct Header {
    fin: bool,
    rsv1: bool,
    opcode: OpCode,
    length: u64,
    mask: [u8; 4],
}

impl Header {
    /// Reads a header and says how long it is; none: it is not all there. What is wrong is refused as
    /// soon as it can be seen.
    #[inline]
    fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Broken> {
        let Some(first) = bytes.first() else { return Ok(None) };
        if first & 0b0011_0000 != 0 {
            return Err(protocol("a reserved bit is set, and no extension was agreed on that uses it"));
        }
        let opcode = match first & 0x0F {
            0x0 => OpCode::Continuation,
            0x1 => OpCode::Text,
            0x2 => OpCode::Binary,
            0x8 => OpCode::Close,
            0x9 => OpCode::Ping,
            0xA => OpCode::Pong,
            _ => return Err(protocol("an unknown opcode")),
        };
        let Some(second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(protocol("a client's frame must be masked"));
        }
        let (length, at) = match second & 0x7F {
            126 => match bytes.get(2..4) {
                Some(word) => (u64::from(u16::from_be_bytes(fixed(word))), 4),
                None => return Ok(None),
            },
            127 => match bytes.get(2..10) {
                Some(word) => (u64::from_be_bytes(fixed(word)), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        // RFC 6455, section 5.2: the shortest form, and the highest bit is 0.
        if (at == 4 && length < 126) || (at == 10 && !(1 << 16..1 << 63).contains(&length)) {
            return Err(protocol("a length that is not in its shortest form"));
        }
        let Some(mask) = bytes.get(at..at + 4) else { return Ok(None) };
        let header =
            Header { fin: first & 0x80 != 0, rsv1: first & 0x40 != 0, opcode, length, mask: fixed(mask) };
        Ok(Some((header, at + 4)))
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice was taken with this length")
}

/// Takes the mask off, 32 bytes at a time: the compiler makes vector code of it. fastwebsockets, which goes by
/// aligned words, takes more than twice as many instructions for a message of some hundred bytes.
fn unmask(body: &mut [u8], mask: [u8; 4]) {
    let mask = u32::from_ne_bytes(mask);
    let (blocks, rest) = body.as_chunks_mut::<32>();
    for block in blocks {
        unmask_words(block, mask);
    }
    unmask_words(rest, mask);
}

#[inline]
fn unmask_words(bytes: &mut [u8], mask: u32) {
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ mask).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.to_ne_bytes()) {
        *byte ^= mask;
    }
}

fn is_control(opcode: OpCode) -> bool {
    matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong)
}

fn protocol(reason: &'static str) -> Broken {
    Broken { code: CloseCode::PROTOCOL_ERROR, reason }
}

fn too_big() -> Broken {
    Broken { code: CloseCode::TOO_BIG, reason: "the message is longer than the broker allows" }
}

fn not_utf8() -> Broken {
    Broken { code: CloseCode::INVALID_TEXT, reason: "text that is not UTF-8" }
}

/// A message of which all is there.
fn checked(encoding: Encoding, body: &[u8]) -> Result<FrameBody<'_>, Broken> {
    match encoding {
        Encoding::Json => std::str::from_utf8(body).map(FrameBody::Json).map_err(|_| not_utf8()),
        Encoding::MessagePack => Ok(FrameBody::MessagePack(body)),
    }
}

/// A control frame of which all is there.
fn control(opcode: OpCode, body: &[u8]) -> Result<Incoming<'_>, Broken> {
    match (opcode, body) {
        (OpCode::Ping, _) => Ok(Incoming::Ping(body)),
        (OpCode::Pong, _) => Ok(Incoming::Pong),
        (_, []) => Ok(Incoming::Close(None)),
        (_, [_]) => Err(protocol("a close frame with half a code")),
        (_, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(protocol("a close code that must not be sent"));
            }
            if std::str::from_utf8(reason).is_err() {
                let reason = "a close reason that is not UTF-8";
                return Err(Broken { code: CloseCode::INVALID_TEXT, reason });
            }
            Ok(Incoming::Close(Some(code)))
        }
    }
}

/// Appends a frame as a server sends it: whole, unmasked.
pub fn write(out: &mut Vec<u8>, opcode: OpCode, compressed: bool, body: &[u8]) {
    let (head, length) = head(opcode, compressed, body);
    out.extend_from_slice(&head[..length]);
    out.extend_from_slice(body);
}

/// Room for the header of a frame of 126 bytes to 64 KiB, as most are.
const USUAL_HEAD: usize = 4;

/// Begins a frame in `out`, behind which its body is to be appended; to be ended by [`end`], which wants to be told
/// what this gives.
pub fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; USUAL_HEAD]);
    start
}

/// The body of a frame that was begun.
pub fn begun(out: &[u8], start: usize) -> &[u8] {
    &out[start + USUAL_HEAD..]
}

/// Ends a frame: puts its header in front of its body, which is moved where that is longer or shorter than most.
pub fn end(out: &mut Vec<u8>, start: usize, opcode: OpCode) {
    let (head, length) = head(opcode, false, begun(out, start));
    if length == USUAL_HEAD {
        out[start..start + USUAL_HEAD].copy_from_slice(&head[..USUAL_HEAD]);
    } else {
        out.splice(start..start + USUAL_HEAD, head[..length].iter().copied());
    }
}

/// A header, and how long it is.
fn head(opcode: OpCode, compressed: bool, body: &[u8]) -> ([u8; HEADER_BYTES], usize) {
    let mut head = [0; HEADER_BYTES];
    let payload = fastwebsockets::Payload::Borrowed(body);
    let length = fastwebsockets::Frame::new(true, opcode, None, payload).fmt_head(&mut head);
    head[0] |= u8::from(compressed) << 6;
    (head, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_encoded_in_place_is_the_one_that_is_written_whole() {
        for length in [0, 1, 125, 126, 127, 1000, 65_535, 65_536, 70_000] {
            let body = vec![b'x'; length];
            let (mut whole, mut in_place) = (b"before".to_vec(), b"before".to_vec());
            write(&mut whole, OpCode::Text, false, &body);
            let start = begin(&mut in_place);
            in_place.extend_from_slice(&body);
            assert_eq!(begun(&in_place, start), body);
            end(&mut in_place, start, OpCode::Text);
            assert!(in_place == whole, "{length}");
        }
    }

    #[test]
    fn the_mask_is_taken_off_byte_by_byte_or_all_at_once_alike() {
        let mask = [0x12, 0x80, 0xff, 0x01];
        for length in 0..200 {
            let body: Vec<u8> = (0..length).map(|nth| nth as u8).collect();
            let mut all = body.clone();
            unmask(&mut all, mask);
            let expected: Vec<u8> = body.iter().enumerate().map(|(nth, byte)| byte ^ mask[nth % 4]).collect();
            assert_eq!(all, expected, "{length}");
        }
    }

    #[test]
    fn a_masked_frame_reads_the_same_wherever_it_is_cut() {
        let mask = [0x12, 0x80, 0xff, 0x01];
        let body: Vec<u8> = (0..150).collect();
        let masked: Vec<u8> = body.iter().enumerate().map(|(nth, byte)| byte ^ mask[nth % 4]).collect();
        let frame = [&[0x82, 0xfe, 0, 150][..], &mask, &masked].concat();
        for cut in 0..=frame.len() {
            for second in cut..=frame.len().min(cut + 5) {
                let mut assembly = Assembly::new(1000, false);
                let mut got = Vec::new();
                for piece in [&frame[..cut], &frame[cut..second], &frame[second..]] {
                    let mut take = |incoming: Incoming<'_>| -> Result<(), Broken> {
                        if let Incoming::Message(FrameBody::MessagePack(message)) = incoming {
                            got.push(message.to_vec());
                        }
                        Ok(())
                    };
                    assembly.feed(&mut piece.to_vec(), &mut take).expect("a whole frame");
                }
                assert_eq!(got, [&body[..]], "cut at {cut} and {second}");
            }
        }
    }
}
