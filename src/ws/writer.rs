//! From the outbox to the socket: what waits becomes one write, and after each the lanes are looked at anew.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use fastwebsockets::OpCode;
use taskyard_proto::message::BATCH_MAX;
use taskyard_proto::{Ack, CloseCode, Encoding, GivenLease, LeaseList, Payload as TaskPayload, codec};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::deflate::{self, Agreed};
use super::{Context, frames, raw};
use crate::broker::{Broker, Item};
use crate::core::{Command, Origin, SessionId};
use crate::outbox::{
    Closing, Drained, Form, OUTBOX_BYTES_MAX, OUTBOX_BYTES_STUCK, Outbox, Shared, View, weight,
};
use crate::standstill;

/// How much is taken from the outbox, and encoded, before it is written: so long an answer may wait for data
/// that was taken before it, and one slow reader does not hold all its messages in both forms.
const WRITE_BYTES: usize = 256 << 10;
/// How long a socket may take nothing while more than 1 MiB waits for it.
const STUCK: Duration = Duration::from_secs(10);
/// How long while more than 4 MiB do.
const OVERFULL: Duration = Duration::from_secs(1);
/// How long it may take nothing of what is left to say before its end.
const GOODBYE: Duration = Duration::from_secs(2);
/// Room that a writer makes when there is something to write; an idle one has none.
const ROOM_BYTES: usize = 4 << 10;
/// Room that a writer keeps from one drain to the next.
const KEPT_BYTES: usize = 64 << 10;

/// Writes a socket's outbox until it closes; gives the code that it closed with.
pub async fn run<W: AsyncWrite + Unpin>(
    write: &mut W,
    session: SessionId,
    outbox: &Outbox,
    context: &Context,
    compression: Option<Agreed>,
) -> Option<CloseCode> {
    let compression = compression.map(|agreed| (agreed, context.settings.compression_min_bytes));
    loop {
        outbox.filled().await;
        // Boxed, so that an idle socket has none of what a busy one needs.
        let closed = Box::pin(write_what_waits(write, session, outbox, context, compression)).await;
        if let Some(code) = closed {
            return code;
        }
        outbox.shrink();
    }
}

/// Writes until nothing waits, or to the end, whose code it gives.
async fn write_what_waits<W: AsyncWrite + Unpin>(
    write: &mut W,
    session: SessionId,
    outbox: &Outbox,
    context: &Context,
    compression: Option<(Agreed, usize)>,
) -> Option<Option<CloseCode>> {
    let mut encoder = Encoder::new(context.settings.message_bytes / 2, compression);
    let mut drained = Drained::default();
    let mut written = Vec::new();
    while outbox.take(&mut drained, WRITE_BYTES) {
        for body in &drained.pongs {
            encoder.frame(OpCode::Pong, body);
        }
        if drained.ping {
            encoder.frame(OpCode::Ping, b"");
        }
        let mut control = &*drained.control.make_contiguous();
        let mut tasks = &*drained.tasks.make_contiguous();
        let mut events = &drained.events[..];
        loop {
            encoder.out.reserve(ROOM_BYTES);
            control = encoder.fill(outbox, control, &mut written);
            tasks = encoder.fill(outbox, tasks, &mut written);
            events = encoder.fill(outbox, events, &mut written);
            if encoder.out.is_empty() {
                break;
            }
            if write_all(write, &encoder.out, outbox).await.is_err() {
                outbox.close_as(Closing { code: None, reason: String::new() });
                return Some(outbox.close_code());
            }
            encoder.out.clear();
            if outbox.close_code() == Some(CloseCode::SLOW) {
                break;
            }
            if !written.is_empty() {
                settle_written(&context.broker, session, std::mem::take(&mut written)).await;
            }
        }
        outbox.written(&drained);
        if !drained.tasks.is_empty() && outbox.close_code() != Some(CloseCode::SLOW) {
            context.metrics.sent().count(context.broker.clock().now(), &drained.tasks);
        }
        if let Some(closing) = drained.close {
            return Some(Box::pin(say_goodbye(write, encoder, closing)).await);
        }
        encoder.shrink();
    }
    None
}

async fn say_goodbye<W: AsyncWrite + Unpin>(
    write: &mut W,
    mut encoder: Encoder,
    closing: Closing,
) -> Option<CloseCode> {
    let mut body = Vec::new();
    if let Some(code) = closing.code {
        body.extend_from_slice(&code.0.to_be_bytes());
        body.extend_from_slice(closing.reason.as_bytes());
        body.truncate(125);
    }
    encoder.frame(OpCode::Close, &body);
    // A peer that takes nothing gets no goodbye.
    let said = tokio::time::timeout(GOODBYE, async {
        write.write_all(&encoder.out).await?;
        write.flush().await?;
        write.shutdown().await
    });
    let _ = said.await;
    closing.code
}

/// Writes all of it, or gives up on a peer that takes nothing.
async fn write_all<W: AsyncWrite + Unpin>(
    write: &mut W,
    mut bytes: &[u8],
    outbox: &Outbox,
) -> Result<(), ()> {
    let at_once = poll_fn(|context| {
        while !bytes.is_empty() {
            match Pin::new(&mut *write).poll_write(context, bytes) {
                Poll::Ready(Ok(count @ 1..)) => bytes = &bytes[count..],
                Poll::Ready(_) => return Poll::Ready(Some(Err(()))),
                Poll::Pending => return Poll::Ready(None),
            }
        }
        match Pin::new(&mut *write).poll_flush(context) {
            Poll::Ready(flushed) => Poll::Ready(Some(flushed.map_err(|_| ()))),
            Poll::Pending => Poll::Ready(None),
        }
    });
    match at_once.await {
        Some(result) => result,
        // Boxed, since every socket holds room for this future, and few ever wait.
        None => Box::pin(write_patiently(write, bytes, outbox)).await,
    }
}

/// Writes all of it, or gives up on a peer that takes nothing: while much waits for it, or before its end.
async fn write_patiently<W: AsyncWrite + Unpin>(
    write: &mut W,
    mut bytes: &[u8],
    outbox: &Outbox,
) -> Result<(), ()> {
    loop {
        let patience = async {
            tokio::select! {
                () = stuck(outbox) => {}
                () = outbox.closing() => tokio::time::sleep(GOODBYE).await,
            }
        };
        let all = bytes.is_empty();
        let step = async {
            match all {
                false => write.write(bytes).await,
                // What TLS holds back because the socket was full goes out too.
                true => write.flush().await.map(|()| 0),
            }
        };
        let written = tokio::select! {
            biased;
            written = step => Some(written),
            () = patience => None,
        };
        match written {
            Some(Ok(_)) if all => return Ok(()),
            Some(Ok(0) | Err(_)) => return Err(()),
            Some(Ok(count)) => bytes = &bytes[count..],
            None if outbox.is_closing() => return Err(()),
            // It gets a last moment to take the frame under way, and to hear why.
            None if outbox.bytes() > OUTBOX_BYTES_STUCK => outbox.give_up_on_slow_reader(),
            // Little waits: the ping timeout tells a slow peer from a dead one.
            None => {}
        }
    }
}

/// Waits for as long as a socket may take nothing, and the grace. What waits for it grows meanwhile, so it is looked at
/// again and again.
async fn stuck(outbox: &Outbox) {
    let began = Instant::now();
    loop {
        let limit = if outbox.bytes() > OUTBOX_BYTES_MAX { OVERFULL } else { STUCK };
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return tokio::time::sleep(standstill::GRACE).await;
        }
        tokio::time::sleep(left.min(OVERFULL)).await;
    }
}

/// Mode auto: what is written is settled, on the worker's behalf.
async fn settle_written(broker: &Broker, session: SessionId, leases: Vec<GivenLease>) {
    let message = Ack { leases: LeaseList::Many(leases), result: TaskPayload::NULL }.into();
    let origin = Origin::Session(session, None);
    let mut items = vec![Item::Command(Command::Message { origin, message })];
    // If the broker is gone the tasks stay unsettled: they will be delivered again, flagged.
    let _ = broker.send(&mut items, 0).await;
}

struct Encoder {
    out: Vec<u8>,
    /// The longest array of messages that is sent as one frame.
    array_bytes: usize,
    /// How messages of at least so many bytes are compressed.
    compression: Option<(Agreed, usize)>,
    compressed: Vec<u8>,
}

impl Encoder {
    fn new(array_bytes: usize, compression: Option<(Agreed, usize)>) -> Encoder {
        Encoder { out: Vec::new(), array_bytes, compression, compressed: Vec::new() }
    }

    fn frame(&mut self, opcode: OpCode, body: &[u8]) {
        frames::write(&mut self.out, opcode, false, body);
    }

    /// A frame of messages, compressed where that is agreed on and worth it.
    fn data_frame(&mut self, opcode: OpCode, body: &[u8]) {
        match self.compression {
            Some((agreed, min))
                if body.len() >= min && deflate::compress(body, agreed.window_bits, &mut self.compressed) =>
            {
                frames::write(&mut self.out, opcode, true, &self.compressed);
            }
            _ => frames::write(&mut self.out, opcode, false, body),
        }
    }

    /// A frame of what `encode` appends: encoded where it is written from, unless it is to be compressed.
    fn encoded_frame(&mut self, encoding: Encoding, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = frames::begin(&mut self.out);
        encode(&mut self.out);
        if let Some((agreed, min)) = self.compression
            && frames::begun(&self.out, start).len() >= min
            && deflate::compress(frames::begun(&self.out, start), agreed.window_bits, &mut self.compressed)
        {
            self.out.truncate(start);
            return frames::write(&mut self.out, opcode(encoding), true, &self.compressed);
        }
        frames::end(&mut self.out, start, opcode(encoding));
    }

    /// Encodes messages of a lane until there is enough for one write; gives those that are left.
    fn fill<'a, T>(&mut self, outbox: &Outbox, items: &'a [T], written: &mut Vec<GivenLease>) -> &'a [T]
    where
        View<'a>: From<&'a T>,
    {
        let (encoding, raw) = (outbox.encoding(), outbox.is_raw());
        let arrays = outbox.takes_arrays() && !raw;
        let mut left = items;
        while let Some(first) = left.first().map(View::from)
            && self.out.len() < WRITE_BYTES
        {
            let count = if arrays { self.fitting(left) } else { 1 };
            match first {
                _ if count > 1 => {
                    let responses = left[..count].iter().map(|item| View::from(item).response());
                    self.encoded_frame(encoding, |out| codec::encode_server_array(encoding, responses, out));
                }
                view if raw => self.raw(view),
                View::Own(own) => {
                    self.encoded_frame(encoding, |out| codec::encode_server(encoding, &own.response, out));
                }
                View::Shared(shared) => self.shared(encoding, shared),
            }
            for view in left[..count].iter().map(View::from) {
                if let View::Own(own) = view {
                    written.extend(own.on_write.map(GivenLease::Lease));
                }
            }
            left = &left[count..];
        }
        left
    }

    /// The frame of a payload alone; what has none is not for such a socket.
    fn raw(&mut self, view: View<'_>) {
        let Some(payload) = raw::payload(view.response()) else { return };
        match view {
            View::Own(_) => self.data_frame(raw::opcode(payload), &raw::body(payload)),
            View::Shared(shared) => {
                let body = shared.body(Form::Raw, |_| raw::body(payload));
                self.data_frame(raw::opcode(payload), body);
            }
        }
    }

    /// The frame of what was said to many, encoded by the first of them.
    fn shared(&mut self, encoding: Encoding, shared: &Shared) {
        let form = match encoding {
            Encoding::Json => Form::Json,
            Encoding::MessagePack => Form::MessagePack,
        };
        let body = shared.body(form, |response| {
            let mut body = Vec::new();
            codec::encode_server(encoding, response, &mut body);
            body.into()
        });
        self.data_frame(opcode(encoding), body);
    }

    /// How many messages go well into one array, at least 1. What is said to many is a frame of its own.
    fn fitting<'a, T>(&self, items: &'a [T]) -> usize
    where
        View<'a>: From<&'a T>,
    {
        let mut bytes = 0;
        let fits = |view: &View<'_>| match view {
            View::Own(own) => {
                bytes += weight(&own.response);
                bytes <= self.array_bytes
            }
            View::Shared(_) => false,
        };
        items.iter().map(View::from).take(BATCH_MAX).take_while(fits).count().max(1)
    }

    fn shrink(&mut self) {
        for buffer in [&mut self.out, &mut self.compressed] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

fn opcode(encoding: Encoding) -> OpCode {
    match encoding {
        Encoding::Json => OpCode::Text,
        Encoding::MessagePack => OpCode::Binary,
    }
}
