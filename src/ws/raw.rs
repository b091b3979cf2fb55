//! Frames that are payloads alone: what a client without a library and without a protocol says and hears.

use bytes::Bytes;
use fastwebsockets::OpCode;
use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{Encoding, Payload, PlainSubmit, Publish, QueueName, Response, RoomName, ServerMessage};

/// Where what is said goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Each frame is a task.
    Queue(QueueName),
    /// Each frame is said to all.
    Room(RoomName),
}

/// What a frame becomes.
pub(super) enum Said {
    Submit(PlainSubmit),
    Publish(Publish),
}

impl Target {
    pub(super) fn say(&self, encoding: Encoding, frame: &[u8]) -> Said {
        let payload = read(encoding, frame);
        match self {
            Target::Queue(queue) => Said::Submit(PlainSubmit::new(queue.clone(), payload)),
            Target::Room(room) => Said::Publish(Publish { room: room.clone(), payload, exclude_self: false }),
        }
    }
}

/// Text that is JSON is that value; other text is a string, also what is deeper than JSON may be here.
fn read(encoding: Encoding, frame: &[u8]) -> Payload {
    if encoding == Encoding::MessagePack {
        return Payload::binary(frame);
    }
    let text = String::from_utf8_lossy(frame);
    Payload::json_text(&text)
        .or_else(|_| Payload::json::<str>(&text))
        .unwrap_or_else(|_| Payload::binary(frame))
}

/// What a message brings, if it brings something.
pub(super) fn payload(response: &Response) -> Option<&Payload> {
    match &response.message {
        ServerMessage::Task(task) => Some(&task.payload),
        ServerMessage::RoomMessage(message) => Some(&message.payload),
        _ => None,
    }
}

/// The kind of frame that brings a payload.
pub(super) fn opcode(payload: &Payload) -> OpCode {
    if payload.kind() == PayloadKind::Binary { OpCode::Binary } else { OpCode::Text }
}

/// Its body. A string is its text, so that what is not JSON comes out as it went in.
pub(super) fn body(payload: &Payload) -> Bytes {
    if payload.is_null() { Bytes::from_static(b"null") } else { payload.to_plain_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(payload: Payload) -> (OpCode, Vec<u8>) {
        (opcode(&payload), body(&payload).to_vec())
    }

    #[test]
    fn text_comes_out_as_it_went_in() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        let text = |text: &str| heard(read(Encoding::Json, text.as_bytes()));
        for said in [
            "hello",
            "",
            " a b ",
            "null",
            "1.0",
            "{\"b\":1, \"a\":2}",
            "[1,",
            "\u{1f600}\u{0}\\",
            "true story",
            &deep,
        ] {
            assert_eq!(text(said), (OpCode::Text, said.into()));
        }
        // A string is what it says.
        assert_eq!(text("\"hello\""), (OpCode::Text, b"hello".to_vec()));
    }

    #[test]
    fn values_of_the_other_encoding_are_json_and_bytes_stay_bytes() {
        assert_eq!(heard(Payload::message_pack(&[1, 2]).unwrap()), (OpCode::Text, b"[1,2]".to_vec()));
        assert_eq!(heard(Payload::message_pack("hi").unwrap()), (OpCode::Text, b"hi".to_vec()));
        assert_eq!(heard(read(Encoding::MessagePack, &[0, 255])), (OpCode::Binary, vec![0, 255]));
        assert_eq!(heard(Payload::NULL), (OpCode::Text, b"null".to_vec()));
    }
}
