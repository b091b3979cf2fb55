//! Who hears what happens to a task, and what is remembered of it for those who come back.

use std::collections::VecDeque;

use taskyard_proto::{Done, Error, ErrorCode, Event, Payload, TaskId, TaskState, Watch};

use super::access::Access;
use super::command::{CallId, Origin};
use super::effect::{Effects, Output};
use super::kept::Kept;
use super::shard::{Place, Shard};
use super::task::{ShareState, Watcher};

/// How many events of a task are remembered for those who come back, and how many bytes of their data: beyond that
/// the oldest go, and a gap in `seq` shows it.
const HISTORY_EVENTS: usize = 256;
const HISTORY_BYTES: usize = 64 << 10;

/// The latest events of a task that somebody watches.
#[derive(Debug, Default)]
pub(super) struct History {
    events: VecDeque<Event>,
    bytes: usize,
}

impl History {
    fn push(&mut self, event: Event) {
        self.bytes += event.data.bytes().len();
        self.events.push_back(event);
        while self.events.len() > HISTORY_EVENTS || self.bytes > HISTORY_BYTES {
            let gone = self.events.pop_front().expect("what is over a bound is there");
            self.bytes -= gone.data.bytes().len();
        }
    }

    fn after(&self, seq: u64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.seq > seq)
    }

    /// What it takes in memory, in bytes, rounded up.
    pub(super) fn weight(&self) -> u64 {
        const EVENT_BYTES: u64 = 256;
        self.bytes as u64 + EVENT_BYTES * self.events.len() as u64
    }
}

impl Shard {
    pub(super) fn watch(&mut self, origin: Origin, message: Watch, fx: &mut Effects) {
        let (task, from_seq) = (message.task, message.from_seq.unwrap_or(0));
        let (watcher, access) = match &origin {
            Origin::Session(session, _) | Origin::Implied(session) => {
                let access = self.sessions.get(session).and_then(|session| session.access.clone());
                (Watcher::Session(*session), access)
            }
            Origin::Call(call) => (Watcher::Call(*call), None),
        };
        if !self.may_see(access.as_deref(), task) {
            return fx.answer(&origin, task_not_found(task));
        }
        if !matches!(origin, Origin::Call(_)) {
            fx.answer(&origin, Done::PLAIN);
        }
        self.attach(watcher, task, from_seq, fx);
    }

    /// Whether there is a task, and whoever asks may know of it. One of a queue that is not theirs is to them as one
    /// that never was.
    pub(super) fn may_see(&self, access: Option<&Access>, task: TaskId) -> bool {
        self.queue_of(task).is_some_and(|queue| access.is_none_or(|access| access.may_see(queue)))
    }

    pub(super) fn follow(&mut self, call: CallId, task: TaskId, from_seq: u64, fx: &mut Effects) {
        if self.queue_of(task).is_none() {
            return fx.answer(&Origin::Call(call), task_not_found(task));
        }
        self.attach(Watcher::Follower(call), task, from_seq, fx);
    }

    /// Whoever sent a submit again hears of the task that the first made.
    pub(super) fn follow_first(&mut self, origin: &Origin, first: TaskId, fx: &mut Effects) {
        if self.queue_of(first).is_none() {
            // The submit has had its one answer; this is news of its own.
            return match origin {
                Origin::Session(session, _) | Origin::Implied(session) => {
                    fx.send(*session, task_not_found(first));
                }
                Origin::Call(_) => fx.answer(origin, task_not_found(first)),
            };
        }
        self.attach(Watcher::of(origin), first, 0, fx);
    }

    /// Tells what is remembered, and from here on what happens; of a task that has ended, its end.
    fn attach(&mut self, watcher: Watcher, id: TaskId, from_seq: u64, fx: &mut Effects) {
        let mut past: Vec<Event> = Vec::new();
        let finished = match self.place(id) {
            None => return,
            Some(Place::Live(key)) => {
                let finished = self.dead_message(key);
                if finished.is_none() {
                    self.add_watcher(key, watcher);
                }
                let history = self.tasks[key].told();
                past.extend(history.iter().flat_map(|history| history.after(from_seq)).cloned());
                finished
            }
            Some(Place::Kept { queue, serial }) => {
                let queue = &self.queues[queue as usize];
                let kept = queue.kept.get((serial - queue.kept_first) as usize);
                let history = kept.and_then(Kept::events);
                past.extend(history.iter().flat_map(|history| history.after(from_seq)).cloned());
                kept.map(Kept::last_word)
            }
        };
        if !matches!(watcher, Watcher::Call(_)) {
            for event in past {
                tell(watcher, event, fx);
            }
        }
        if let Some(finished) = finished {
            self.tell_finished_when_durable(vec![watcher], finished, fx);
        }
    }

    pub(super) fn add_watcher(&mut self, key: u32, watcher: Watcher) {
        if !matches!(watcher, Watcher::Call(_)) {
            self.record_events(key);
        }
        let task = &mut self.tasks[key];
        if !task.watch(watcher) {
            return;
        }
        let id = task.spec.id();
        if let Watcher::Session(session) = watcher
            && let Some(session) = self.sessions.get_mut(&session)
        {
            session.watching.insert(id);
        }
    }

    pub(super) fn unwatch(&mut self, task: TaskId, watcher: Watcher) {
        if let Some(key) = self.live(task) {
            self.tasks[key].unwatch(watcher);
        }
    }

    /// From here on events are remembered. Those before were told to nobody: where the task stands is the first.
    pub(super) fn record_events(&mut self, key: u32) {
        let task = &self.tasks[key];
        if task.told().is_some() {
            return;
        }
        let mut history = History::default();
        if task.event_seq(self.event_base) > 0 {
            let lively = |n: &u32| matches!(task.share(*n).map(|s| &s.state), Some(ShareState::Leased(_)));
            let recipient = (0..task.recipients()).find(lively).unwrap_or(0);
            history.events.extend(self.event_now(key, recipient, Payload::NULL));
        }
        self.tasks[key].remember_told(history);
    }

    /// Counts an event of a task, and tells it to those who watch.
    #[inline]
    pub(super) fn event(&mut self, key: u32, recipient: u32, data: Option<Payload>, fx: &mut Effects) {
        if self.tasks[key].count_event() {
            self.tell_event(key, recipient, data.unwrap_or_default(), fx);
        }
    }

    /// The same of an event that is counted.
    pub(super) fn tell_event(&mut self, key: u32, recipient: u32, data: Payload, fx: &mut Effects) {
        let Some(event) = self.event_now(key, recipient, data) else { return };
        let task = &mut self.tasks[key];
        for watcher in task.watchers() {
            if !matches!(watcher, Watcher::Call(_)) {
                tell(*watcher, event.clone(), fx);
            }
        }
        if let Some(history) = task.told_mut() {
            history.push(event);
        }
    }

    /// A task as it stands for one recipient, under the number of its latest event.
    fn event_now(&self, key: u32, recipient: u32, data: Payload) -> Option<Event> {
        let task = &self.tasks[key];
        let share = task.share(recipient)?;
        let lease = share.lease();
        let holder = lease.and_then(|lease| self.sessions.get(&lease.session)).map(|s| s.worker.clone());
        // The next one, but where none is to come.
        let next = !matches!(share.state, ShareState::Over(state) if state != TaskState::Done);
        let attempt = (u64::from(share.charged) + u64::from(next)).min(u64::from(task.spec.max_attempts));
        let percent = share.notes.as_ref().and_then(|notes| notes.percent).filter(|_| lease.is_some());
        Some(Event {
            task: task.spec.id(),
            seq: task.event_seq(self.event_base),
            state: share.state.task_state(),
            started: lease.is_some_and(|lease| lease.started),
            worker: holder.or_else(|| task.recipient_name(recipient).cloned()),
            attempt,
            percent: percent.and_then(taskyard_proto::Number::new),
            data,
            error: share.last_error(),
        })
    }
}

impl Watcher {
    /// Whoever asked.
    pub(super) fn of(origin: &Origin) -> Watcher {
        match origin {
            Origin::Session(session, _) | Origin::Implied(session) => Watcher::Session(*session),
            Origin::Call(call) => Watcher::Call(*call),
        }
    }
}

fn tell(watcher: Watcher, event: Event, fx: &mut Effects) {
    match watcher {
        Watcher::Session(session) => fx.send(session, event),
        Watcher::Follower(call) => fx.outputs.push(Output::Answer { call, message: event.into() }),
        Watcher::Call(_) => {}
    }
}

pub(super) fn task_not_found(task: TaskId) -> Error {
    Error::new(
        ErrorCode::NotFound,
        "no such task: it never was, or it ended longer ago than finished tasks are kept",
    )
    .task(task)
}
