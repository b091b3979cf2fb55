//! What a worker holds, and the connection on which it may be spoken of. The task that drives the
//! connection names it when it takes the session up again; those who work on it learn here what
//! became of it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskyard_proto::{
    ErrorCode, GivenLease, Hello, LeaseId, Resume, RevokeReason, Secret, ServerMessage, Task, Welcome,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::delivery::Ending;
use crate::sender::MESSAGE_BYTES_MAX;

/// How many leases a `hello` may name.
const IN_FLIGHT_MAX: usize = 1024;

/// The leases of one worker.
pub(crate) struct Held {
    /// Whether the session is to survive its connection.
    resume: bool,
    state: Mutex<State>,
}

struct State {
    /// What takes the session up; none: its leases end with its connection.
    token: Option<Secret>,
    /// The longest message, as the latest `welcome` told it.
    message_bytes_max: usize,
    leases: HashMap<LeaseId, Hold>,
}

struct Hold {
    standing: watch::Sender<Standing>,
    /// When the broker's patience ends at the latest, if it hears nothing more about it.
    deadline: Instant,
    /// Its result was said; that the broker knows is not certain.
    said: bool,
}

/// How it is with one lease.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Where it may be spoken of; none: the connection is lost, and the next is not there yet.
    pub(crate) connection: Option<u64>,
    pub(crate) ending: Option<Ending>,
}

impl Standing {
    /// Whether nothing that is said about it counts any more.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.ending, None | Some(Ending::Stop { .. }))
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("resume", &self.resume).finish_non_exhaustive()
    }
}

impl Held {
    pub(crate) fn new(resume: bool) -> Arc<Held> {
        let state = State { token: None, message_bytes_max: MESSAGE_BYTES_MAX, leases: HashMap::new() };
        Arc::new(Held { resume, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts into a `hello` what takes the session up, or asks for one that can be; gives the longest
    /// message that the broker takes.
    pub(crate) fn introduce(&self, hello: &mut Hello) -> usize {
        let state = self.lock();
        hello.resume = match &state.token {
            Some(token) => Some(Resume::Token(token.clone())),
            None => self.resume.then_some(Resume::Wanted(true)),
        };
        if state.token.is_some() {
            let mut leases: Vec<(bool, LeaseId)> =
                state.leases.iter().map(|(lease, hold)| (hold.said, *lease)).collect();
            // Should they be too many: what is worked on is dearer than what the broker may know.
            leases.sort_unstable();
            leases.truncate(IN_FLIGHT_MAX);
            hello.in_flight = leases.into_iter().map(|(_, lease)| GivenLease::from(lease)).collect();
        }
        state.message_bytes_max
    }

    /// A connection is there: what was kept lives on it from now on, the rest is lost. Gives what was
    /// kept and is held by nobody here any more.
    pub(crate) fn welcomed(&self, connection: u64, welcome: &Welcome) -> Vec<LeaseId> {
        let mut state = self.lock();
        state.token = welcome.resume.clone().filter(|_| self.resume);
        state.message_bytes_max =
            usize::try_from(welcome.limits.message_bytes).unwrap_or(usize::MAX).min(MESSAGE_BYTES_MAX);
        let kept: HashSet<LeaseId> = match welcome.resumed {
            true => welcome.kept.iter().copied().collect(),
            false => HashSet::new(),
        };
        state.leases.retain(|lease, hold| {
            // One whose result was said may be lost because the result has arrived: said again, the
            // broker tells which.
            let stays = kept.contains(lease) || (hold.said && welcome.resumed);
            match stays {
                true => hold.standing.send_modify(|standing| standing.connection = Some(connection)),
                false => hold.end(Ending::Disconnected),
            }
            stays
        });
        kept.into_iter().filter(|lease| !state.leases.contains_key(lease)).collect()
    }

    /// The connection is lost. Without a way back to the session all leases are.
    pub(crate) fn disconnected(&self, coming_back: bool) {
        let mut state = self.lock();
        if state.token.is_none() || !coming_back {
            state.lose_all();
            return;
        }
        for hold in state.leases.values() {
            hold.standing.send_modify(|standing| standing.connection = None);
        }
    }

    /// There will be no connection any more.
    pub(crate) fn end(&self) {
        self.lock().lose_all();
    }

    /// Takes note of what the broker said, before anybody else hears of it.
    pub(crate) fn hear(&self, connection: u64, message: &ServerMessage) {
        match message {
            ServerMessage::Task(task) => self.receive(connection, task),
            ServerMessage::Stop(stop) => {
                let ending = Ending::Stop {
                    reason: stop.reason.as_str().into(),
                    grace: Duration::from_millis(stop.grace_ms),
                };
                if let Some(hold) = self.lock().leases.get(&stop.lease) {
                    hold.standing.send_modify(|standing| standing.ending = Some(ending));
                }
            }
            ServerMessage::Revoked(revoked) => self.lose(revoked.lease, Ending::Revoked(revoked.reason)),
            // About something that was said without asking for an answer.
            ServerMessage::Error(error) if error.code == ErrorCode::LeaseLost => {
                let lease = error.lease.0.as_ref().and_then(|lease| LeaseId::parse(lease.as_str()));
                if let Some(lease) = lease {
                    self.lose(lease, Ending::Revoked(RevokeReason::AckTimeout));
                }
            }
            _ => {}
        }
    }

    fn receive(&self, connection: u64, task: &Task) {
        let Some(lease) = task.lease else { return };
        let standing = Standing { connection: Some(connection), ending: None };
        let deadline = Instant::now() + Duration::from_millis(task.ack_timeout_ms);
        let hold = Hold { standing: watch::channel(standing).0, deadline, said: false };
        self.lock().leases.insert(lease, hold);
    }

    /// How it is with a lease, and what becomes of it; none: it is lost already.
    pub(crate) fn follow(&self, lease: LeaseId) -> Option<watch::Receiver<Standing>> {
        Some(self.lock().leases.get(&lease)?.standing.subscribe())
    }

    /// A lease is not this worker's any more.
    pub(crate) fn lose(&self, lease: LeaseId, ending: Ending) {
        if let Some(hold) = self.lock().leases.remove(&lease) {
            hold.standing.send_modify(|standing| standing.ending = Some(ending));
        }
    }

    /// Nobody works any more on the lease with this standing.
    pub(crate) fn forget(&self, lease: LeaseId, standing: &watch::Receiver<Standing>) {
        let mut state = self.lock();
        // A broker that remembers nothing may have given it anew meanwhile.
        if state.leases.get(&lease).is_some_and(|hold| hold.standing.subscribe().same_channel(standing)) {
            state.leases.remove(&lease);
        }
    }

    /// The broker was asked to wait this long from now.
    pub(crate) fn extended(&self, lease: LeaseId, time: Duration) {
        if let Some(hold) = self.lock().leases.get_mut(&lease) {
            hold.deadline = Instant::now() + time;
        }
    }

    /// As `extended`, but the broker waits no shorter than before.
    pub(crate) fn extended_at_least(&self, lease: LeaseId, time: Duration) {
        if let Some(hold) = self.lock().leases.get_mut(&lease) {
            hold.deadline = hold.deadline.max(Instant::now() + time);
        }
    }

    /// When a lease ends at the latest, if the broker hears nothing more about it.
    pub(crate) fn deadline(&self, lease: LeaseId) -> Option<Instant> {
        self.lock().leases.get(&lease).map(|hold| hold.deadline)
    }

    /// From here on the broker may know the result.
    pub(crate) fn said(&self, lease: LeaseId) {
        if let Some(hold) = self.lock().leases.get_mut(&lease) {
            hold.said = true;
        }
    }

    /// Whether the session survives its connection.
    pub(crate) fn is_resumable(&self) -> bool {
        self.lock().token.is_some()
    }

    /// How many leases there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().leases.len()
    }
}

impl State {
    fn lose_all(&mut self) {
        self.token = None;
        for (_, hold) in self.leases.drain() {
            hold.end(Ending::Disconnected);
        }
    }
}

impl Hold {
    /// It ended with its connection: there is no place to speak of it.
    fn end(&self, ending: Ending) {
        self.standing.send_replace(Standing { connection: None, ending: Some(ending) });
    }
}
