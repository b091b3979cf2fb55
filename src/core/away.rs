//! Payloads leave memory when there are too many, and come back before they are due.
//!
//! Nothing but a delivery needs a payload, and the store has it. So when those in memory are over their bound, what
//! comes in leaves as soon as it is stored, but for the next few of its queue. As a lane is worked off, what comes up
//! is fetched ahead. Where the next task's payload is not there yet, its queue waits for it: order is kept.

use taskyard_proto::{Payload, QueueName, TaskId};

use super::command::Fetched;
use super::effect::Effects;
use super::queue::LaneKey;
use super::ready::{Entry, Ranking};
use super::shard::Shard;
use super::task::{Held, ShareState, Task, Weighed};

/// The next so many tasks of a queue keep their payloads when others leave: whoever submits to a queue that is
/// worked off must not wait for the disk because of another that is not. That ends at twice the bound.
const NEAR_TASKS: u64 = 256;

/// Larger ones do not, in bytes: to hand them out takes longer than to read them, and 256 of them are much.
const NEAR_BYTES: u64 = 64 << 10;

/// What a payload takes beside its bytes: its count of owners, its length, its kind, what the allocator rounds up to, as
/// measured with payloads of 256 B. So that those of a few bytes have a bound too.
const PAYLOAD_OVERHEAD_BYTES: u64 = 48;

/// How far ahead of its workers a lane is looked through: some milliseconds of work at 100,000 tasks a second, which a
/// disk needs to answer.
const AHEAD_TASKS: usize = 512;

/// How much may be fetched and not yet with a worker, in bytes.
const AHEAD_BYTES: u64 = 16 << 20;

/// Beyond it queues get what they cannot go on without, and this much each: one that stands still, and has fetched all
/// that may be, must not cost the others a trip to the disk for each of their tasks.
const QUEUE_AHEAD_BYTES: u64 = 64 << 10;

/// A lane is looked through again at the latest after so many deliveries.
const AHEAD_STEP: usize = AHEAD_TASKS / 4;

/// Payloads that are in one place.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Payloads {
    pub(super) bytes: u64,
    /// How many have any.
    count: u64,
}

impl Payloads {
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.count += u64::from(bytes > 0);
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.count -= u64::from(bytes > 0);
    }

    /// What they take in memory, in bytes.
    fn memory(self) -> u64 {
        self.bytes + self.count * PAYLOAD_OVERHEAD_BYTES
    }
}

impl Shard {
    /// Counts what a task takes in memory, now that it came in.
    pub(super) fn weigh_in(&mut self, task: &Task) {
        self.weight += task.weight();
        self.payloads_here.add(task.bytes());
    }

    /// It ends: what it took in memory is free.
    pub(super) fn weigh_out(&mut self, Weighed { queue, held, bytes, weight }: Weighed) {
        self.weight -= weight;
        match held {
            Held::Away | Held::Coming => {
                self.away -= 1;
                self.away_bytes -= bytes;
            }
            Held::Unstored | Held::Early | Held::Here | Held::Out | Held::Back => {
                self.payloads_here.take(bytes);
            }
        }
        match held {
            Held::Out => self.payloads_out.take(bytes),
            Held::Coming | Held::Back => {
                self.ahead_bytes -= bytes;
                self.queues[queue as usize].ahead_bytes -= bytes;
            }
            Held::Unstored | Held::Early | Held::Here | Held::Away => {}
        }
    }

    /// Lets the payload of a task that waits leave memory if there are too many; the store must hold it.
    pub(super) fn put_away(&mut self, key: u32) {
        let Some(bound) = self.config.payload_memory_bytes else { return };
        // What is with workers cannot leave: it must not drive out what is handed out at once.
        let here = self.payloads_here.memory() - self.payloads_out.memory();
        let Some(task) = self.tasks.get(key) else { return };
        // One that has none is as one whose payload has left. And recipients of a task to all take turns with the one
        // payload: it goes with the last of them.
        let none = task.payload_bytes == 0;
        if (here <= bound && !none) || task.held != Held::Here || task.fanout().is_some() {
            return;
        }
        let near = match task.first.state {
            ShareState::Leased(_) => return,
            ShareState::Queued { .. } => {
                let queued =
                    self.queues[task.queue as usize].counts[taskyard_proto::TaskState::Queued as usize];
                queued <= NEAR_TASKS && task.bytes() <= NEAR_BYTES && (none || here <= 2 * bound)
            }
            ShareState::Scheduled { .. } | ShareState::Retrying { .. } | ShareState::Over(_) => false,
        };
        if near {
            return;
        }
        if !none {
            let task = &mut self.tasks[key];
            (task.payload, task.held) = (Payload::NULL, Held::Away);
            self.away += 1;
            self.away_bytes += task.bytes();
            self.payloads_here.take(task.bytes());
            self.weight -= task.bytes();
        }
        self.tasks.settled(key);
    }

    /// A task goes to a worker: its payload is there.
    #[inline]
    pub(super) fn handed_out(&mut self, key: u32) {
        let task = &mut self.tasks[key];
        let bytes = task.bytes();
        if task.held == Held::Back {
            task.held = Held::Here;
            self.ahead_bytes -= bytes;
            self.queues[task.queue as usize].ahead_bytes -= bytes;
        }
        // Of a task to all others may still wait for the same payload.
        if task.held == Held::Here && task.fanout().is_none() {
            task.held = Held::Out;
            self.payloads_out.add(bytes);
        }
    }

    /// Whether a queue gives out its tasks in order over all lanes, and not to whoever asks: for its limits, or because
    /// the payload of one that waits is away, which is looked at once the command is done.
    #[inline]
    pub(super) fn goes_in_order(&self, queue: u32) -> bool {
        let found = &self.queues[queue as usize];
        found.limited || found.lacks.is_some() || found.to_pump
    }

    /// Whether the next task of a lane must wait for its payload; then its queue does.
    pub(super) fn must_wait(&mut self, queue: u32, lane: &LaneKey, entry: Entry, fx: &mut Effects) -> bool {
        if self.tasks[entry.task].payload().is_some() {
            return false;
        }
        let id = self.tasks[entry.task].spec.id();
        self.queues[queue as usize].lacks = Some(id);
        self.lacking.insert(id, queue);
        self.fetch(entry.task, fx);
        self.look_ahead(queue, lane, fx);
        true
    }

    /// After a delivery from a lane: fetches what comes up, if that was not looked at lately.
    pub(super) fn come_nearer(&mut self, queue: u32, lane: &LaneKey, fx: &mut Effects) {
        if self.away > 0 && !self.queues[queue as usize].ready_mut(lane).step_ahead() {
            self.look_ahead(queue, lane, fx);
        }
    }

    fn look_ahead(&mut self, queue: u32, lane: &LaneKey, fx: &mut Effects) {
        let found = &mut self.queues[queue as usize];
        let ranking = Ranking::of(found.settings.order, &self.tasks);
        let coming = found.ready_mut(lane).upcoming(ranking, AHEAD_TASKS);
        let (mut near, mut step) = (0, AHEAD_STEP);
        for entry in coming {
            let waits = |task: &&Task| task.spec.seq == entry.seq;
            let Some(task) = self.tasks.get(entry.task).filter(waits) else { continue };
            if task.held == Held::Away {
                let ahead = self.queues[queue as usize].ahead_bytes;
                if self.ahead_bytes + task.bytes() > AHEAD_BYTES && ahead + task.bytes() > QUEUE_AHEAD_BYTES {
                    // Of large ones few are ahead: the next come when half of them are gone, not when all are.
                    step = step.min(near / 2);
                    break;
                }
                self.fetch(entry.task, fx);
            }
            near += 1;
        }
        self.queues[queue as usize].ready_mut(lane).looked_ahead(step);
    }

    fn fetch(&mut self, key: u32, fx: &mut Effects) {
        let task = &mut self.tasks[key];
        if task.held == Held::Away {
            task.held = Held::Coming;
            self.ahead_bytes += task.bytes();
            self.queues[task.queue as usize].ahead_bytes += task.bytes();
            fx.fetch.push(task.spec.id());
        }
    }

    /// Payloads are back from the store; of those that ended meanwhile nobody needs them.
    pub(super) fn fetched(&mut self, fetched: Vec<Fetched>, fx: &mut Effects) {
        for Fetched { task: id, payload } in fetched {
            if let Some(key) = self.live(id)
                && self.tasks[key].held == Held::Coming
            {
                match payload {
                    Some(payload) => {
                        let task = &mut self.tasks[key];
                        let bytes = task.bytes();
                        (task.payload, task.held) = (payload, Held::Back);
                        self.away -= 1;
                        self.away_bytes -= bytes;
                        self.payloads_here.add(bytes);
                        self.weight += bytes;
                    }
                    None => fx.missing = Some(id),
                }
            }
            if let Some(queue) = self.lacking.remove(&id) {
                let found = &mut self.queues[queue as usize];
                found.lacks = None;
                // Behind the look at the queue, which may bring them something.
                self.to_answer.append(&mut found.overdue);
                self.pump_later(queue);
            }
        }
    }

    /// Whether a queue's next task waits for its payload, and all others with it.
    pub fn lacks_payload(&self, queue: &QueueName) -> bool {
        self.lacking_task(queue).is_some()
    }

    fn lacking_task(&self, queue: &QueueName) -> Option<TaskId> {
        self.queues[*self.queue_names.get(queue)? as usize].lacks
    }

    /// How many payloads are not in memory; how many bytes are, and how many of these were fetched ahead of a worker.
    pub fn payloads(&self) -> (u64, u64, u64) {
        (self.away, self.payloads_here.bytes, self.ahead_bytes)
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Credit, DelayMs};
    use taskyard_proto::{
        Ack, ClientMessage, Hello, LeaseId, Mode, Nack, Payload, Release, ServerMessage, Submit, Subscribe,
        WorkerName,
    };

    use super::*;
    use crate::core::{
        CallId, Command, Config, Open, Origin, Output, Pull, Report, SessionId, StoreOp, Time,
    };

    /// A shard whose store is a map, and reads when it is told to.
    struct Stage {
        shard: Shard,
        now: Time,
        store: std::collections::HashMap<TaskId, Payload>,
        wanted: Vec<TaskId>,
        /// Who got what, and has not settled it.
        out: Vec<(SessionId, LeaseId)>,
        /// What pulls were answered with, by the number of tasks.
        pulled: Vec<(CallId, usize)>,
        next: u64,
    }

    impl Stage {
        fn new(bound: u64) -> Stage {
            Stage {
                shard: Shard::new(Config { payload_memory_bytes: Some(bound), ..Config::default() }),
                now: Time(1_798_761_600_000_000),
                store: std::collections::HashMap::new(),
                wanted: Vec::new(),
                out: Vec::new(),
                pulled: Vec::new(),
                next: 0,
            }
        }

        fn number(&mut self) -> u64 {
            self.next += 1;
            self.next
        }

        fn note(&mut self, fx: Effects) {
            for op in fx.store {
                if let StoreOp::Accept(accepted) = op {
                    self.store.insert(accepted.spec.id(), accepted.payload.clone());
                }
            }
            self.wanted.extend(fx.fetch);
            for output in fx.outputs {
                match output {
                    Output::Send { session, message: ServerMessage::Task(task), .. } => {
                        self.out.extend(task.lease.map(|lease| (session, lease)));
                    }
                    Output::Report { call, report: Report::Pulled(tasks) } => {
                        self.pulled.push((call, tasks.len()));
                    }
                    _ => {}
                }
            }
        }

        /// Applies, and makes durable what was stored.
        fn apply(&mut self, command: Command) {
            let mut fx = Effects::default();
            self.shard.apply(self.now, command, &mut fx);
            let through = self.shard.operations();
            self.shard.apply(self.now, Command::Stored { through }, &mut fx);
            self.note(fx);
        }

        fn submit(&mut self, queue: &str, bytes: usize) {
            self.submit_payload(queue, Payload::binary(vec![7; bytes]));
        }

        fn submit_payload(&mut self, queue: &str, payload: Payload) {
            let number = self.number();
            let submit = Submit::new(QueueName::parse(queue).unwrap(), payload);
            self.apply(Command::Submit {
                origin: Origin::Call(CallId(number)),
                access: None,
                task: TaskId(u128::from(number)),
                submit: submit.into(),
            });
        }

        fn worker(&mut self, queue: &str, credit: u64) -> SessionId {
            let session = SessionId(self.number());
            self.apply(Command::Open(Box::new(Open {
                session,
                access: None,
                hello: Box::new(Hello::empty()),
                reference: None,
                made_up_name: WorkerName::parse(&format!("w{}", session.0)).unwrap(),
                resume_key: 0,
                subscribe: Some(Subscribe {
                    queue: QueueName::parse(queue).unwrap(),
                    credit: Credit::new(credit),
                    mode: Some(Mode::Manual),
                    explicit_start: false,
                }),
                join: None,
            })));
            session
        }

        fn pull(&mut self, queue: &str) -> CallId {
            let call = CallId(self.number());
            self.apply(Command::Pull(Box::new(Pull {
                call,
                session: SessionId(call.0),
                access: None,
                queue: QueueName::parse(queue).unwrap(),
                credit: 1,
                worker: WorkerName::parse(&format!("w{}", call.0)).unwrap(),
                groups: Vec::new(),
            })));
            call
        }

        fn say(&mut self, session: SessionId, message: impl Into<ClientMessage>) {
            self.apply(Command::Message { origin: Origin::Session(session, None), message: message.into() });
        }

        /// Reads what was asked for: one trip to the disk. Whether it was anything.
        fn read(&mut self) -> bool {
            let wanted = std::mem::take(&mut self.wanted);
            let there = |task: &TaskId| Fetched { task: *task, payload: self.store.get(task).cloned() };
            let fetched: Vec<Fetched> = wanted.iter().map(there).collect();
            let any = !fetched.is_empty();
            self.apply(Command::Fetched(fetched));
            any
        }

        /// Goes on until so many are with workers.
        fn until_out(&mut self, count: usize) {
            while self.out.len() < count {
                assert!(self.read(), "{} are out, and nothing is on its way", self.out.len());
            }
        }

        fn expire(&mut self, us: u64) {
            self.now = Time(self.now.0 + us);
            let mut fx = Effects::default();
            self.shard.expire(self.now, &mut fx);
            let through = self.shard.operations();
            self.shard.apply(self.now, Command::Stored { through }, &mut fx);
            self.note(fx);
        }
    }

    /// Who looks at a task fetches its payload past the core, which hears of it all the same.
    #[test]
    fn what_was_not_asked_for_is_passed_over() {
        let mut stage = Stage::new(0);
        stage.submit("q", 100);
        let task = TaskId(1);
        let carried = |stage: &Stage| stage.shard.carried(task).map(|carried| carried.payload.is_some());
        assert_eq!((carried(&stage), stage.shard.payloads().0), (Some(false), 1));
        let payload = stage.store.get(&task).cloned();
        for payload in [payload, None] {
            let mut fx = Effects::default();
            stage.shard.apply(stage.now, Command::Fetched(vec![Fetched { task, payload }]), &mut fx);
            assert_eq!((carried(&stage), fx.missing), (Some(false), None));
        }
        stage.worker("q", 1);
        stage.until_out(1);
        assert_eq!(carried(&stage), Some(true));
        let (session, lease) = stage.out[0];
        stage.say(session, Ack { leases: lease.into(), result: Payload::NULL });
        assert_eq!(carried(&stage), None, "it has ended");
    }

    /// Only their bytes were counted: a backlog of small ones never left memory, and took twenty times the bound.
    #[test]
    fn payloads_of_a_few_bytes_have_a_bound_too() {
        let mut stage = Stage::new(100 * (2 + PAYLOAD_OVERHEAD_BYTES));
        for _ in 0..1000 {
            stage.submit("q", 2);
        }
        // Those that are near stay up to twice the bound.
        assert_eq!(stage.shard.payloads(), (800, 400, 0));
        stage.worker("q", 1000);
        stage.until_out(1000);
        assert_eq!(stage.shard.payloads(), (0, 2000, 0));
    }

    /// Nothing of theirs leaves memory, so they never settled.
    #[test]
    fn tasks_without_a_payload_are_packed_too() {
        let mut stage = Stage::new(0);
        for _ in 0..10_000 {
            stage.submit_payload("q", Payload::NULL);
        }
        stage.shard.cool();
        assert!(stage.shard.tasks.packed() > 5000, "{}", stage.shard.tasks.packed());
        stage.worker("q", 1000);
        assert_eq!((stage.out.len(), stage.wanted.len()), (1000, 0), "nothing is fetched");
    }

    /// A backlog that failed once is as large as it was.
    #[test]
    fn what_comes_back_from_a_worker_leaves_memory_again() {
        let mut stage = Stage::new(0);
        for _ in 0..40 {
            stage.submit("q", 1000);
        }
        assert_eq!(stage.shard.payloads(), (40, 0, 0));
        let worker = stage.worker("q", 40);
        stage.until_out(40);
        assert_eq!(stage.shard.payloads(), (0, 40_000, 0));
        let delay = || DelayMs::new(3_600_000);
        for (nth, (_, lease)) in std::mem::take(&mut stage.out).into_iter().enumerate().take(30) {
            let leases = lease.into();
            match nth % 3 {
                0 => stage.say(worker, Nack { leases, error: None, delay_ms: None, retry: None }),
                1 => stage.say(worker, Nack { leases, error: None, delay_ms: delay(), retry: None }),
                _ => stage.say(worker, Release { leases, delay_ms: delay() }),
            }
        }
        assert_eq!(stage.shard.payloads(), (30, 10_000, 0));
        // The rest it holds for too long: they come back at once, and it is not heard any more.
        stage.expire(30_000_000);
        let (away, bytes, _) = stage.shard.payloads();
        assert_eq!((away, bytes), (40, 0));
    }

    #[test]
    fn a_queue_that_stands_still_leaves_the_others_room_to_look_ahead() {
        let mut stage = Stage::new(0);
        for (queue, bytes) in [("slow", 40_000), ("small", 1000)] {
            for _ in 0..600 {
                stage.submit(queue, bytes);
            }
            stage.worker(queue, 1);
            stage.out.clear();
            stage.until_out(1);
            stage.read();
        }
        let (_, _, ahead) = stage.shard.payloads();
        assert!(ahead > AHEAD_BYTES - 2000, "they have fetched all that may be: {ahead}");
        for _ in 0..200 {
            stage.submit("fast", 3000);
        }
        let worker = stage.worker("fast", 1);
        stage.out.clear();
        let mut trips = 0;
        for _ in 0..200 {
            while stage.out.is_empty() {
                assert!(stage.read(), "it waits for nothing");
                trips += 1;
            }
            let (_, lease) = stage.out.remove(0);
            stage.say(worker, Ack { leases: lease.into(), result: Payload::NULL });
        }
        assert!(trips <= 20, "{trips} trips to the disk for 200 tasks");
        let (_, _, ahead) = stage.shard.payloads();
        assert!(ahead <= AHEAD_BYTES + 3 * QUEUE_AHEAD_BYTES, "{ahead}");
    }

    /// 256 of each queue stayed until twice the bound was reached, however large they were.
    #[test]
    fn large_payloads_keep_to_the_bound_and_small_ones_that_are_next_to_twice_of_it() {
        let bound = 1 << 20;
        for (bytes, most) in [(100_000, bound), (60_000, 2 * bound)] {
            let mut stage = Stage::new(bound);
            for number in 0..100 {
                stage.submit(&format!("q{}", number % 10), bytes);
            }
            let (away, here, _) = stage.shard.payloads();
            assert!(away > 0 && here <= most, "{bytes}: {here} bytes in memory");
            assert!(here + 2 * bytes as u64 > most, "{bytes}: {here} bytes in memory");
        }
    }

    /// What is with slow workers is not what others have to make room for.
    #[test]
    fn what_is_with_workers_drives_nothing_out() {
        let mut stage = Stage::new(10_000);
        stage.worker("slow", 100);
        for _ in 0..100 {
            stage.submit("slow", 1000);
        }
        assert_eq!(stage.out.len(), 100);
        stage.submit("fast", 1000);
        assert_eq!(stage.shard.payloads(), (0, 101_000, 0));
    }

    #[test]
    fn a_pull_whose_time_is_over_waits_for_the_payload_that_is_on_its_way() {
        let mut stage = Stage::new(0);
        stage.submit("q", 1000);
        let call = stage.pull("q");
        stage.apply(Command::PullOver { call, gone: false });
        assert_eq!(stage.pulled, [], "there is a task");
        stage.read();
        assert_eq!(stage.pulled, [(call, 1)]);
        let call = stage.pull("q");
        stage.apply(Command::PullOver { call, gone: false });
        assert_eq!(stage.pulled.pop(), Some((call, 0)), "and now there is none");
    }

    /// Its task would be nobody's until the lease ends.
    #[test]
    fn a_pull_that_nobody_waits_for_takes_nothing() {
        let mut stage = Stage::new(0);
        stage.submit("q", 1000);
        let call = stage.pull("q");
        stage.apply(Command::PullOver { call, gone: false });
        stage.apply(Command::PullOver { call, gone: true });
        assert_eq!(stage.pulled, [(call, 0)]);
        stage.read();
        assert_eq!((stage.shard.leases_out(), stage.pulled.len()), (0, 1));
        // Another one has it, and is not told twice.
        let call = stage.pull("q");
        stage.apply(Command::PullOver { call, gone: false });
        assert_eq!(stage.pulled.pop(), Some((call, 1)));
    }
}
