//! Tasks for those who cannot hold a socket: a request asks, waits a while, and takes what there is.
//!
//! What a pull brought is held by a session of its own, which no socket belongs to; it ends with its last lease.
//! Whoever shows such a lease, and may consume from its queue, may settle it.

use std::sync::Arc;

use taskyard_proto::message::Credit;
use taskyard_proto::{ClientMessage, Error, ErrorCode, GivenLease, LeaseList, Mode, Subscribe};

use super::access::Access;
use super::command::{CallId, Origin, Pull, SessionId};
use super::effect::{Effects, Output};
use super::grants::Action;
use super::manage::Report;
use super::session::{Pulling, Session, Verb};
use super::settle::lease_lost;
use super::shard::Shard;

/// How many settles of pulled leases are remembered, to tell "already" from "lost": a request whose answer was lost
/// is sent again soon.
const SETTLED_MAX: usize = 65_536;

/// How many bytes of payloads an answer has, beyond which it takes no further task: unlike a socket's, it is written
/// as a whole.
pub(super) const BYTES_MAX: usize = 16 << 20;

impl Shard {
    pub(super) fn pull(&mut self, pull: Pull, fx: &mut Effects) {
        let refused = |error, fx: &mut Effects| {
            fx.outputs.push(Output::Report { call: pull.call, report: Report::Refused(Box::new(error)) });
        };
        if self.draining
            && let Some(error) = self.closed_to_submits()
        {
            return refused(error, fx);
        }
        let allowed = self.check_grant(pull.access.as_deref(), Action::Consume, &pull.queue);
        let queue = match allowed.and_then(|()| self.use_queue(pull.access.as_deref(), &pull.queue)) {
            Ok(queue) => queue,
            Err(error) => return refused(error, fx),
        };
        if let Some(error) = self.name_is_anothers(&pull, queue) {
            return refused(error, fx);
        }
        let mut session = Session::new(pull.worker, pull.groups, self.now);
        session.groups.sort_unstable();
        session.groups.dedup();
        session.access = pull.access;
        session.pull =
            Some(Box::new(Pulling { call: pull.call, tasks: Vec::new(), bytes: 0, answered: false }));
        self.sessions.insert(pull.session, session);
        self.pulls.insert(pull.call, pull.session);
        let subscribe = Subscribe {
            queue: pull.queue,
            credit: Credit::new(u64::from(pull.credit)),
            mode: Some(Mode::Manual),
            explicit_start: false,
        };
        self.subscribe(Origin::Implied(pull.session), pull.session, subscribe, fx);
    }

    /// Tasks to a worker go by its name, and on a queue that is whose account came first. Several of one account may
    /// go by it.
    fn name_is_anothers(&self, pull: &Pull, queue: u32) -> Option<Error> {
        let holder = self.queues[queue as usize].worker_subscription(&pull.worker)?;
        let holder = self.sessions.get(&self.subscriptions.get(holder.0 as usize)?.session)?;
        let account = |access: Option<&Arc<Access>>| access.map(|access| access.account.clone());
        (account(holder.access.as_ref()) != account(pull.access.as_ref())).then(|| {
            let text = format!(
                "worker name {} is taken on queue {} by a worker of another account: choose another name",
                pull.worker, pull.queue
            );
            Error::new(ErrorCode::Conflict, text)
        })
    }

    /// Answers a pull with what it has got: its subscription is gone with that.
    pub(super) fn answer_pull(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(pull) = session.pull.as_mut().filter(|pull| !pull.answered) else {
            return self.drop_pull_if_empty(id);
        };
        pull.answered = true;
        let (call, tasks) = (pull.call, std::mem::take(&mut pull.tasks));
        self.remove_subscriptions(id, fx);
        self.pulls.remove(&call);
        fx.outputs.push(Output::Report { call, report: Report::Pulled(tasks) });
        self.drop_pull_if_empty(id);
    }

    /// A pull has waited long enough, or nobody waits for its answer any longer.
    pub(super) fn pull_over(&mut self, call: CallId, gone: bool, fx: &mut Effects) {
        let Some(id) = self.pulls.get(&call).copied() else { return };
        // A task that waits, and is on its way from the disk, is there: "nothing" would be wrong.
        if !gone
            && !self.draining
            && let Some((queue, _)) = self.sessions.get(&id).and_then(|session| session.subscriptions.first())
            && self.queues[*queue as usize].lacks.is_some()
        {
            return self.queues[*queue as usize].overdue.push(id);
        }
        self.answer_pull(id, fx);
    }

    /// The broker stops: no pull waits any longer.
    pub(super) fn answer_all_pulls(&mut self, fx: &mut Effects) {
        for id in self.session_ids() {
            self.answer_pull(id, fx);
        }
    }

    pub(super) fn drop_pull_if_empty(&mut self, id: SessionId) {
        let over = |session: &Session| {
            session.held.is_empty() && session.pull.as_ref().is_some_and(|pull| pull.answered)
        };
        if self.sessions.get(&id).is_some_and(over) {
            self.sessions.remove(&id);
        }
    }

    /// A request says something of a lease that a pull brought.
    pub(super) fn settle_pulled(
        &mut self,
        call: CallId,
        access: Option<&Access>,
        message: ClientMessage,
        fx: &mut Effects,
    ) {
        let origin = Origin::Call(call);
        let lease = match &message {
            ClientMessage::Ack(m) => only(&m.leases),
            ClientMessage::Nack(m) => only(&m.leases),
            ClientMessage::Release(m) => only(&m.leases),
            ClientMessage::Extend(m) => Some(&m.lease),
            ClientMessage::Progress(m) => Some(&m.lease),
            ClientMessage::Start(m) => Some(&m.lease),
            ClientMessage::Cancelled(m) => Some(&m.lease),
            _ => None,
        };
        let Some(lease) = lease.cloned() else {
            let text = "nothing of a pulled lease is said by this: give one lease to ack, nack, release, extend, \
                        progress, start or cancelled";
            return fx.answer(&origin, Error::new(ErrorCode::BadRequest, text));
        };
        let session = self.pulled_by(&lease, access);
        let may = |queue: &u32| {
            let queue = self.queues.get(*queue as usize);
            queue.is_some_and(|q| access.is_none_or(|a| a.grants.may(Action::Consume, q.name.as_str())))
        };
        let settled = lease.id().and_then(|id| self.pulled_settles.get(&id.number));
        // Of a queue that is not theirs: as if it were not.
        let known = settled.is_some_and(|(_, queue)| may(queue));
        // One that was settled has no session any longer; what was said of it is remembered all the same.
        match session.or(known.then_some(NOBODY)) {
            Some(session) => self.say(origin, session, message, fx),
            None => fx.answer(&origin, lease_lost(&lease)),
        }
    }

    fn pulled_by(&self, lease: &GivenLease, access: Option<&Access>) -> Option<SessionId> {
        let id = lease.id()?;
        let task = self.tasks.get(id.slot)?;
        let found = task.share(id.recipient)?.lease().filter(|found| found.number == id.number)?;
        self.sessions.get(&found.session)?.pull.as_ref()?;
        // Of a queue that is not theirs: as if it were not.
        let may = access.is_none_or(|access| access.grants.may(Action::Consume, task.spec.queue.as_str()));
        may.then_some(found.session)
    }

    fn say(&mut self, origin: Origin, session: SessionId, message: ClientMessage, fx: &mut Effects) {
        match message {
            ClientMessage::Ack(m) => self.ack(origin, session, m, fx),
            ClientMessage::Nack(m) => self.nack(origin, session, m, fx),
            ClientMessage::Release(m) => self.give_back(origin, session, m, fx),
            ClientMessage::Extend(m) => self.extend(origin, session, m, fx),
            ClientMessage::Progress(m) => self.progress(origin, session, m, fx),
            ClientMessage::Start(m) => self.start(origin, session, &m.lease, fx),
            ClientMessage::Cancelled(m) => self.cancelled(origin, session, m, fx),
            _ => {}
        }
    }

    pub(super) fn remember_pulled_settle(&mut self, queue: u32, number: u64, verb: Verb) {
        if self.pulled_order.len() == SETTLED_MAX
            && let Some(oldest) = self.pulled_order.pop_front()
        {
            self.pulled_settles.remove(&oldest);
        }
        self.pulled_order.push_back(number);
        self.pulled_settles.insert(number, (verb, queue));
    }

    pub(super) fn has_settled(&self, session: SessionId, lease: taskyard_proto::LeaseId, verb: Verb) -> bool {
        if session == NOBODY {
            return self.pulled_settles.get(&lease.number).is_some_and(|(settled, _)| *settled == verb);
        }
        self.sessions.get(&session).is_some_and(|found| found.has_settled(lease, verb))
    }
}

fn only(leases: &LeaseList) -> Option<&GivenLease> {
    match leases {
        LeaseList::One(lease) => Some(lease),
        LeaseList::Many(leases) => leases.first(),
    }
}

/// No session has this number: they are counted from 1.
const NOBODY: SessionId = SessionId(0);
