//! Sessions that survive their socket: a name and its leases wait a while for whoever shows the token.

use std::sync::Arc;

use taskyard_proto::message::lease_text;
use taskyard_proto::{CloseCode, GivenLease, Hello, LeaseId, Resume, Secret, Stop, Text};

use super::access::Access;
use super::command::SessionId;
use super::effect::{Effects, Output};
use super::record::{SessionRecord, StoreOp};
use super::session::Session;
use super::shard::Shard;
use super::task::Watcher;
use super::timers::Timer;

/// What a session keeps when it is taken up again, and what it has lost.
#[derive(Debug, Default)]
pub(super) struct Resumed {
    pub(super) resumed: bool,
    pub(super) kept: Vec<LeaseId>,
    pub(super) lost: Vec<Text<48>>,
    /// Leases that were not named: they return, free.
    pub(super) dropped: Vec<(u32, u32)>,
    /// What was said while nobody was there to hear it.
    pub(super) stops: Vec<Stop>,
}

/// A resume token as text.
pub(super) fn token(key: u128) -> Secret {
    Secret::new(&format!("{key:032x}"))
}

fn key_of(token: &Secret) -> Option<u128> {
    let text = token.expose();
    (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

impl Shard {
    /// The session that a hello takes up, if it may.
    pub(super) fn resumable(
        &self,
        access: Option<&Arc<Access>>,
        resume: Option<&Resume>,
    ) -> Option<SessionId> {
        let Some(Resume::Token(token)) = resume else { return None };
        let id = *self.resume_keys.get(&key_of(token)?)?;
        let session = self.sessions.get(&id)?;
        let account = |access: Option<&Arc<Access>>| access.map(|access| access.account.clone());
        // Before a restart it was the same account; whose token it is now is asked for as always.
        let same = account(session.access.as_ref()).or_else(|| session.restored_account.clone());
        (same == account(access)).then_some(id)
    }

    /// Moves name and leases of `old` to a new session. An old socket that is still there ends.
    pub(super) fn take_up(
        &mut self,
        old: SessionId,
        id: SessionId,
        access: Option<Arc<Access>>,
        hello: &mut Hello,
        fx: &mut Effects,
    ) -> Resumed {
        if self.sessions.get(&old).is_some_and(|session| session.away_until.is_none()) {
            fx.outputs.push(Output::Close {
                session: old,
                code: CloseCode::REPLACED,
                reason: "the session was taken up by another connection",
            });
        }
        self.let_go(old, fx);
        let mut before = self.sessions.remove(&old).expect("a session that is taken up exists");
        let mut resumed = Resumed { resumed: true, ..Resumed::default() };
        let mut session = Session::new(before.worker, std::mem::take(&mut hello.groups), self.now);
        session.access = access;
        session.resume_key = before.resume_key;
        session.settled = std::mem::take(&mut before.settled);
        session.leases_at = before.leases_at;
        if let Some(at) = session.leases_at {
            self.timers.set(at, Timer::Leases { session: id });
        }
        for (_, (task, recipient)) in before.held {
            let lease = self.tasks[task].share_mut(recipient).and_then(|share| share.lease_mut());
            let lease = lease.expect("what a session holds is leased");
            let named = |given: &GivenLease| given.id().is_some_and(|given| given.number == lease.number);
            lease.session = id;
            lease.held_at = session.held.insert((task, recipient)) as u32;
            if hello.in_flight.iter().any(named) {
                resumed.kept.push(lease.id(recipient));
            } else {
                resumed.dropped.push((task, recipient));
            }
        }
        resumed.kept.sort_unstable_by_key(|lease| lease.number);
        let kept = |given: &GivenLease| {
            given.id().is_some_and(|given| resumed.kept.iter().any(|kept| kept.number == given.number))
        };
        resumed.lost = hello.in_flight.iter().filter(|given| !kept(given)).map(lease_text).collect();
        resumed.dropped.sort_unstable_by_key(|(task, recipient)| (self.tasks[*task].spec.seq, *recipient));
        for lease in &resumed.kept {
            if let Some(until) = self.stops.get(&lease.number) {
                let grace_ms = until.ms_since(self.now);
                resumed.stops.push(Stop { lease: *lease, reason: Text::cut("cancelled"), grace_ms });
            }
        }
        if let Some(key) = session.resume_key {
            self.resume_keys.insert(key, id);
        }
        let account = session.access.as_ref().map(|access| access.account.clone());
        self.workers.insert((account, session.worker.clone()), id);
        self.sessions.insert(id, session);
        resumed
    }

    /// What was held and not named goes on, free and flagged.
    pub(super) fn return_dropped(&mut self, dropped: Vec<(u32, u32)>, fx: &mut Effects) {
        for (task, recipient) in dropped {
            self.unlease(task, recipient, fx);
            self.returned_free(task, recipient, None, 0, fx);
        }
    }

    /// All that a client makes again when it comes back: subscriptions, rooms, watches.
    pub(super) fn let_go(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let watching = std::mem::take(&mut session.watching);
        self.remove_subscriptions(id, fx);
        for task in watching {
            self.unwatch(task, Watcher::Session(id));
        }
        self.leave_all(id);
    }

    /// From here on a session may be taken up again, also by the next process.
    pub(super) fn make_resumable(&mut self, id: SessionId, key: u128, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.resume_key = Some(key);
        let account = session.access.as_ref().map(|access| access.account.clone());
        let record = SessionRecord { key, worker: session.worker.clone(), account };
        self.resume_keys.insert(key, id);
        self.store(StoreOp::Session(Box::new(record)), fx);
    }

    /// A session's socket has ended: one that may be taken up waits for that.
    pub(super) fn socket_ended(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.resume_key.is_none() {
            return self.end(id, false, fx);
        }
        if session.away_until.is_some() {
            return;
        }
        session.silent = false;
        self.let_go(id, fx);
        self.wait_for_return(id);
    }

    pub(super) fn wait_for_return(&mut self, id: SessionId) {
        let until = self.now.plus_ms(self.config.resume_window_ms);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.away_until = Some(until);
            self.timers.set(until, Timer::Resume { session: id });
        }
    }

    pub(super) fn resume_due(&mut self, id: SessionId, fx: &mut Effects) {
        let away = self.sessions.get(&id).and_then(|session| session.away_until);
        if away.is_some_and(|until| until <= self.now) {
            self.end(id, false, fx);
        }
    }

    /// Nobody can take it up any longer.
    pub(super) fn forget_resume_key(&mut self, key: Option<u128>, fx: &mut Effects) {
        if let Some(key) = key {
            self.resume_keys.remove(&key);
            self.store(StoreOp::Unsession(key), fx);
        }
    }
}
