//! Whose a socket is, and how much it may say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskyard_proto::{ClientMessage, CloseCode, Error, ErrorCode};

use crate::auth::{ConnectionPermit, Identity, Standing, TooManyConnections};
use crate::core::Access;
use crate::outbox::Outbox;

/// What a socket may send before it is known whose it is, in bytes.
const EARLY_BYTES: usize = 64 << 10;
/// Messages that may be refused for their rate in a minute; whoever goes on does not read the answers.
const REFUSED_PER_MINUTE: u32 = 1000;

/// The other end of a socket.
#[derive(Debug)]
pub struct Caller {
    who: Who,
    /// Messages that were refused since the minute began.
    refused: (Instant, u32),
    /// Settles that were taken beyond the rate.
    settles: u64,
    /// Where deliveries are counted.
    outbox: Option<Arc<Outbox>>,
}

#[derive(Debug)]
enum Who {
    /// Nobody knows yet: it may say hello, and not much else.
    Unknown { since: Instant, came: usize, said: usize },
    /// Known, and counted.
    Known { identity: Arc<Identity>, access: Option<Arc<Access>>, _permit: ConnectionPermit },
}

/// What may be said of one delivery whatever the rate: that it starts, lives, and ends, and some more.
const SETTLES_PER_DELIVERY: u64 = 8;

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is taken.
    Taken,
    /// It is refused with this.
    Refused(Error),
    /// So many were refused that the socket ends.
    Flood,
}

impl Caller {
    /// Somebody who has not said who they are.
    pub fn unknown() -> Caller {
        Caller {
            who: Who::Unknown { since: Instant::now(), came: 0, said: 0 },
            refused: (Instant::now(), 0),
            settles: 0,
            outbox: None,
        }
    }

    /// Somebody whose token came with the upgrade, or anybody while authentication is off.
    pub fn known(identity: Arc<Identity>) -> Result<Caller, TooManyConnections> {
        let mut caller = Caller::unknown();
        caller.identify(identity)?;
        Ok(caller)
    }

    /// Now it is known who it is.
    pub(super) fn identify(&mut self, identity: Arc<Identity>) -> Result<(), TooManyConnections> {
        let _permit = identity.connect()?;
        self.who = Who::Known { access: identity.access(), identity, _permit };
        Ok(())
    }

    /// Who it is, if that is known.
    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        match &self.who {
            Who::Known { identity, .. } => Some(identity),
            Who::Unknown { .. } => None,
        }
    }

    /// Whose tasks it submits.
    pub(super) fn access(&self) -> Option<Arc<Access>> {
        match &self.who {
            Who::Known { access, .. } => access.clone(),
            Who::Unknown { .. } => None,
        }
    }

    /// Counts bytes that came; false: they are too many from somebody who is not known.
    pub(super) fn came(&mut self, count: usize) -> bool {
        match &mut self.who {
            Who::Known { .. } => true,
            Who::Unknown { came, .. } => {
                *came += count;
                *came <= EARLY_BYTES
            }
        }
    }

    /// The same of messages, which may have come compressed.
    pub(super) fn said(&mut self, count: usize) -> bool {
        match &mut self.who {
            Who::Known { .. } => true,
            Who::Unknown { said, .. } => {
                *said += count;
                *said <= EARLY_BYTES
            }
        }
    }

    /// Until when it must have said who it is.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Instant> {
        match &self.who {
            Who::Known { .. } => None,
            Who::Unknown { since, .. } => Some(*since + limit),
        }
    }

    /// Where its deliveries are counted.
    pub(super) fn count_deliveries_of(&mut self, outbox: Arc<Outbox>) {
        self.outbox = Some(outbox);
    }

    /// Counts a message against the account's rate.
    pub(super) fn admit(&mut self, kind: Kind) -> Admission {
        let Who::Known { identity, .. } = &self.who else { return Admission::Taken };
        let Err(wait) = identity.meter.message() else { return Admission::Taken };
        match kind {
            Kind::Settle => {
                // Refused, a settle would make its task run twice: what deliveries call for is taken.
                let delivered = self.outbox.as_ref().map_or(0, |outbox| outbox.delivered());
                if self.settles < SETTLES_PER_DELIVERY * delivered {
                    self.settles += 1;
                    return Admission::Taken;
                }
            }
            Kind::End => return Admission::Taken,
            Kind::Other => {}
        }
        if self.refused.0.elapsed() > Duration::from_secs(60) {
            self.refused = (Instant::now(), 0);
        }
        self.refused.1 += 1;
        if self.refused.1 > REFUSED_PER_MINUTE {
            return Admission::Flood;
        }
        Admission::Refused(too_fast(&identity.account, identity.limits.messages_per_s.unwrap_or(1), wait))
    }
}

/// What a message is to the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is about a delivery.
    Settle,
    /// It ends the session.
    End,
    /// All else, what cannot be read included.
    Other,
}

impl Kind {
    pub(super) fn of(message: &ClientMessage) -> Kind {
        use ClientMessage as M;
        match message {
            M::Ack(_)
            | M::Nack(_)
            | M::Release(_)
            | M::Cancelled(_)
            | M::Start(_)
            | M::Extend(_)
            | M::Progress(_) => Kind::Settle,
            M::Bye(_) => Kind::End,
            _ => Kind::Other,
        }
    }
}

/// How a socket ends for what has become of its token.
pub fn ending(standing: Standing) -> Option<(CloseCode, &'static str)> {
    match standing {
        Standing::Same => None,
        Standing::Changed => {
            Some((CloseCode::TOKEN_EXPIRED, "what the token may do has changed: connect again"))
        }
        Standing::Expired => Some((CloseCode::TOKEN_EXPIRED, "the token has ended: connect with a new one")),
        Standing::Revoked => Some((CloseCode::UNAUTHORIZED, "the token was revoked, or one is needed now")),
    }
}

/// The answer to a message or request that is one too many.
pub fn too_fast(account: &str, per_s: u32, wait: Duration) -> Error {
    let text = format!("{account} may send {per_s} messages a second: send this one again later");
    let mut error = Error::new(ErrorCode::RateLimited, text);
    error.retry_after_ms.0 = Some(wait.as_millis() as u64 + 1);
    error
}
