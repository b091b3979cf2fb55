//! Whose a session or a request is, as far as the core asks: what it may do, and how much of its work
//! may wait.

use std::sync::Arc;

use smol_str::SmolStr;
use taskyard_proto::{Error, ErrorCode, QueueName};

use super::grants::{Action, Grants};
use super::shard::Shard;

/// An account that was let in, as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its name, which its tasks carry.
    pub account: SmolStr,
    /// What it may do.
    pub grants: Arc<Grants>,
    /// How many of its tasks may be held: unfinished, or dead letters.
    pub queued_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    pub queued_bytes: Option<u64>,
}

/// What an account's tasks come to that are unfinished, or dead letters: what the broker holds for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many there are.
    pub tasks: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
}

/// How often something was refused for whose it was, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// No permission.
    pub forbidden: u64,
    /// Too much of the account's waits.
    pub quota: u64,
}

impl Access {
    /// Refuses what the account may not do on a queue that it named.
    pub fn check(&self, action: Action, queue: &QueueName) -> Result<(), Error> {
        if self.grants.may(action, queue.as_str()) {
            return Ok(());
        }
        let text = format!(
            "the token of {} may not {action} on {queue}: that takes the permission {action}:{queue}",
            self.account
        );
        Err(Error::new(ErrorCode::Forbidden, text))
    }

    /// Whether the account may know of a task in this queue: by its id it is asked for as it were absent.
    pub fn may_see(&self, queue: &QueueName) -> bool {
        [Action::Submit, Action::Observe].iter().any(|action| self.grants.may(*action, queue.as_str()))
    }
}

impl Shard {
    /// Refuses what an account may not do on a queue that it named.
    pub(super) fn check_grant(
        &mut self,
        access: Option<&Access>,
        action: Action,
        queue: &QueueName,
    ) -> Result<(), Error> {
        let checked = access.map_or(Ok(()), |access| access.check(action, queue));
        self.refusals.forbidden += u64::from(checked.is_err());
        checked
    }

    /// Refuses a task that would be more than its account may have waiting.
    pub(super) fn check_load(&mut self, access: &Access, bytes: u64) -> Result<(), Error> {
        let checked = self.room_for(access, bytes);
        self.refusals.quota += u64::from(checked.is_err());
        checked
    }

    fn room_for(&self, access: &Access, bytes: u64) -> Result<(), Error> {
        let load = self.load_of(&access.account);
        let full = |what: String| {
            let text = format!(
                "account {} has {what} (dead letters too): let workers catch up, then submit again",
                access.account
            );
            Err(Error::new(ErrorCode::QueueFull, text))
        };
        if let Some(max) = access.queued_tasks
            && load.tasks >= max
        {
            return full(format!("{} tasks waiting, of at most {max}", load.tasks));
        }
        if let Some(max) = access.queued_bytes
            && load.bytes + bytes > max
        {
            return full(format!("{} bytes of tasks waiting, of at most {max}", load.bytes));
        }
        Ok(())
    }

    /// What was refused for whose it was.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// What an account has waiting.
    pub fn load_of(&self, account: &str) -> Load {
        self.accounts.get(account).copied().unwrap_or_default()
    }

    /// A task of an account is held from here on.
    pub(super) fn load(&mut self, account: Option<&SmolStr>, bytes: u64) {
        let Some(account) = account else { return };
        let load = match self.accounts.get_mut(account) {
            Some(load) => load,
            None => self.accounts.entry(account.clone()).or_default(),
        };
        load.tasks += 1;
        load.bytes += bytes;
    }

    /// A task of an account has ended.
    pub(super) fn unload(&mut self, account: Option<&SmolStr>, bytes: u64) {
        let Some(account) = account else { return };
        let Some(load) = self.accounts.get_mut(account) else { return };
        load.tasks -= 1;
        load.bytes -= bytes;
        if load.tasks == 0 {
            self.accounts.remove(account);
        }
    }
}
