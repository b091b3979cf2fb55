//! `taskyard publish`: says something in a room.

use std::process::ExitCode;

use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{Payload, RoomName};

use super::api::Api;
use super::output::{Output, Shown};
use super::{Failed, Remote};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The room
    room: RoomName,

    /// What all in the room get, as text; `-` reads standard input
    text: String,

    /// It is JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let given = match args.text.as_str() {
        "-" => super::submit::standard_input()?,
        text => text.as_bytes().to_vec(),
    };
    let body = body(given, args.json)?;
    let answer = Api::at(&args.remote)?.post(&format!("/v1/rooms/{}", args.room), body).await?;
    if args.shown.output == Output::Json {
        answer.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The message: JSON as it is, other text as text, and what is no text as bytes.
fn body(given: Vec<u8>, is_json: bool) -> Result<String, Failed> {
    let payload = match (String::from_utf8(given), is_json) {
        (Ok(text), true) => Payload::json_text(&text)
            .map_err(|error| Failed::usage(format!("what was given with --json is none: {error}")))?,
        (Ok(text), false) => Payload::json(&text)
            .map_err(|error| Failed::usage(format!("the text cannot be sent: {error}")))?,
        (Err(_), true) => return Err(Failed::usage("what was given with --json is not even text (UTF-8)")),
        (Err(error), false) => Payload::binary(error.into_bytes()),
    };
    let field = if payload.kind() == PayloadKind::Binary { "payload_b64" } else { "payload" };
    Ok(format!("{{\"{field}\":{}}}", payload.to_json()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_unless_it_is_said_to_be_json() {
        for (given, json, expected) in [
            (&b"hello \"you\""[..], false, r#"{"payload":"hello \"you\""}"#),
            (b"{\"a\": 1.0}", false, r#"{"payload":"{\"a\": 1.0}"}"#),
            (b"{\"a\": 1.0}", true, r#"{"payload":{"a": 1.0}}"#),
            (b"\x00\xff", false, r#"{"payload_b64":"AP8="}"#),
        ] {
            assert_eq!(body(given.to_vec(), json).expect("good usage"), expected);
        }
        assert!(body(b"{".to_vec(), true).is_err() && body(b"\xff".to_vec(), true).is_err());
    }
}
