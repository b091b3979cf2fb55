//! What a client without a library says: `ack`, `nack`, and both with a lease.

use taskyard_proto::{Ack, GivenLease, Nack, Payload};

use crate::core::{Command, Origin, SessionId};

/// The command in a text frame, if it is one of these words.
pub(super) fn command(session: SessionId, text: &[u8]) -> Option<Command> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let (verb, lease) = match text.split_once(' ') {
        Some((verb, lease)) => (verb, Some(GivenLease::parse(lease.trim()))),
        None => (text, None),
    };
    let ack = match verb {
        "ack" => true,
        "nack" => false,
        _ => return None,
    };
    let Some(lease) = lease else { return Some(Command::SettleOldest { session, ack }) };
    let leases = taskyard_proto::LeaseList::One(lease);
    let message = if ack {
        Ack { leases, result: Payload::NULL }.into()
    } else {
        Nack { leases, error: None, delay_ms: None, retry: None }.into()
    };
    Some(Command::Message { origin: Origin::Session(session, None), message })
}
