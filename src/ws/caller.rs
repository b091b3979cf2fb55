//! Whose a socket is, and how much it may say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use taskyard_proto::{ClientMessage, Error, ErrorCode};

use crate::auth::{ConnectionPermit, Identity, TooManyConnections};
use crate::core::Access;

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
    /// How long to wait before reading on, for messages that were taken beyond the rate.
    owed: Duration,
}

#[derive(Debug)]
enum Who {
    /// Nobody knows yet: it may say hello, and not much else.
    Unknown { since: Instant, bytes: usize },
    /// Known, and counted.
    Known { identity: Arc<Identity>, access: Option<Arc<Access>>, _permit: ConnectionPermit },
}

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
            who: Who::Unknown { since: Instant::now(), bytes: 0 },
            refused: (Instant::now(), 0),
            owed: Duration::ZERO,
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

    /// Counts what came; false: it is too much from somebody who is not known.
    pub(super) fn came(&mut self, count: usize) -> bool {
        match &mut self.who {
            Who::Known { .. } => true,
            Who::Unknown { bytes, .. } => {
                *bytes += count;
                *bytes <= EARLY_BYTES
            }
        }
    }

    /// Whether a message may be this long, whatever else has come.
    pub(super) fn may_say(&self, bytes: usize) -> bool {
        matches!(self.who, Who::Known { .. }) || bytes <= EARLY_BYTES
    }

    /// Until when it must have said who it is.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Instant> {
        match &self.who {
            Who::Known { .. } => None,
            Who::Unknown { since, .. } => Some(*since + limit),
        }
    }

    /// Counts a message against the account's rate. `None` is a word that settles, or what is no message.
    pub(super) fn admit(&mut self, message: Option<&ClientMessage>) -> Admission {
        let Who::Known { identity, .. } = &self.who else { return Admission::Taken };
        let Err(wait) = identity.meter.message() else { return Admission::Taken };
        let per_s = identity.limits.messages_per_s.unwrap_or(1).max(1);
        if !message.is_some_and(may_be_refused) {
            // A settle that is refused would make its task run twice: it is taken, and what comes after
            // it waits in the socket.
            self.owed = self.owed.max(wait) + Duration::from_secs(1) / per_s;
            return Admission::Taken;
        }
        if self.refused.0.elapsed() > Duration::from_secs(60) {
            self.refused = (Instant::now(), 0);
        }
        self.refused.1 += 1;
        if self.refused.1 > REFUSED_PER_MINUTE {
            return Admission::Flood;
        }
        Admission::Refused(too_fast(&identity.account, per_s, wait))
    }

    /// How long to wait before reading on.
    pub(super) fn take_owed(&mut self) -> Duration {
        std::mem::take(&mut self.owed)
    }
}

/// The answer to a message or request that is one too many.
pub fn too_fast(account: &str, per_s: u32, wait: Duration) -> Error {
    let text = format!("{account} may send {per_s} messages a second: send this one again later");
    let mut error = Error::new(ErrorCode::RateLimited, text);
    error.retry_after_ms.0 = Some(wait.as_millis() as u64 + 1);
    error
}

/// What asks for something new; all else goes on with, or ends, what was begun.
fn may_be_refused(message: &ClientMessage) -> bool {
    use ClientMessage as M;
    matches!(
        message,
        M::Submit(_) | M::Subscribe(_) | M::Watch(_) | M::Cancel(_) | M::Join(_) | M::Publish(_) | M::Ping(_)
    )
}
