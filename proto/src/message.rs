//! The whole conversation: [`ClientMessage`] is all that a client may say, [`ServerMessage`] all
//! that the broker answers or sends on its own. Fields, defaults and ranges are those of
//! `PROTOCOL.md` section 3; an absent field is `None`, so that who knows the queue's own default
//! can fill it in.

use smol_str::SmolStr;

use crate::code::ErrorCode;
pub use crate::field::{
    Applies, ERROR_BYTES_MAX, ErrorText, Flag, GivenLease, Headers, Int, Key, LeaseList, Number, RequestId,
    Resume, RunAt, Secret, Text,
};
use crate::field::{Field, FieldError, Scalar, expected, read_list, read_map, words, write_list};
use crate::name::{GroupName, LeaseId, QueueName, RoomName, TaskId, WorkerName};
use crate::payload::Payload;
use crate::raw::{Entries, Raw, Value};
use crate::write::{Write, name};

/// The most unsettled tasks a subscription may hold.
pub const CREDIT_MAX: u64 = 1024;
/// The most submits of one session that may wait for their answer.
pub const UNCONFIRMED_MAX: u64 = 1024;
/// The most messages in one frame.
pub const BATCH_MAX: usize = 1024;
/// The longest time that a protocol field can say: 365 days, in milliseconds.
pub const YEAR_MS: u64 = 365 * 86_400_000;
/// The protocol's version, as `welcome` tells it.
pub const VERSION: u64 = 1;

/// A time of 0 to 365 days, in milliseconds.
pub type DelayMs = Int<0, YEAR_MS>;
/// A time of 1 ms to 365 days.
pub type TtlMs = Int<1, YEAR_MS>;
/// An ack timeout or run limit: 100 ms to one day.
pub type TimeoutMs = Int<100, 86_400_000>;
/// How many unsettled tasks a subscription may hold.
pub type Credit = Int<0, CREDIT_MAX>;
/// A task's priority, higher first.
pub type Priority = Int<0, 9>;
/// How many charged deliveries a task gets.
pub type Attempts = Int<1, 1000>;

words! {
    /// All the states of a task.
    TaskState {
        /// Waits for its time.
        Scheduled = "scheduled",
        /// Waits for a worker.
        Queued = "queued",
        /// Is with a worker.
        Leased = "leased",
        /// Waits out a back-off after a failed attempt.
        Retrying = "retrying",
        /// Was acknowledged.
        Done = "done",
        /// Used up its attempts, or was refused for good.
        Dead = "dead",
        /// Was cancelled or purged.
        Cancelled = "cancelled",
        /// Outlived its `ttl_ms`.
        Expired = "expired",
    }
    /// How a subscription settles.
    Mode {
        /// By the worker's ack.
        Manual = "manual",
        /// When it is written to the socket: at most once.
        Auto = "auto",
    }
    /// When the producer hears `accepted`.
    Confirm {
        /// Once the task survives a power cut.
        Durable = "durable",
        /// Once it is in memory.
        Memory = "memory",
        /// Never; errors are still sent.
        None = "none",
    }
    /// How a worker is chosen.
    Assign {
        /// In turn.
        RoundRobin = "round_robin",
        /// The one with the smallest share of its credit in use.
        LeastLoaded = "least_loaded",
        /// By the hash of `sticky_key`.
        Sticky = "sticky",
    }
    /// What becomes of a task to one worker while that worker is absent.
    IfAbsent {
        /// It waits.
        Wait = "wait",
        /// The submit is refused.
        Fail = "fail",
        /// Any worker may take it.
        Any = "any",
    }
    /// What became of a settle.
    SettleOutcome {
        /// It counts.
        Ok = "ok",
        /// This session has said the same of this lease before.
        Already = "already",
        /// The lease is not current.
        LeaseLost = "lease_lost",
    }
    /// Why a lease was taken back.
    RevokeReason {
        /// No settle within the ack timeout.
        AckTimeout = "ack_timeout",
        /// The attempt ran longer than `timeout_ms`.
        RunLimit = "run_limit",
        /// The task was cancelled.
        Cancelled = "cancelled",
        /// The task outlived its `ttl_ms`.
        Expired = "expired",
        /// An operator removed it.
        Removed = "removed",
    }
    /// Why the broker goes away.
    AwayReason {
        /// It restarts.
        Restart = "restart",
        /// An operator drains this worker.
        Operator = "operator",
    }
}

impl TaskState {
    /// Whether nothing can follow this state but a redrive.
    pub fn is_final(self) -> bool {
        matches!(self, TaskState::Done | TaskState::Dead | TaskState::Cancelled | TaskState::Expired)
    }
}

/// Declares structs that read and write themselves as maps.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl TakeFields for $name {
            #[inline]
            fn take_fields(entries: &mut Entries<'_>) -> Result<Self, FieldError> {
                let _ = &entries;
                Ok($name { $($field: match entries.is_empty() {
                    true => Field::absent(stringify!($field))?,
                    false => Field::take(entries, stringify!($field))?,
                },)* })
            }
        }

        impl $name {
            fn count_fields(&self, lean: bool) -> usize {
                let _ = lean;
                0 $(+ usize::from(!self.$field.omit(lean)))*
            }

            fn put_fields(&self, lean: bool, writer: &mut impl Write) {
                let _ = (lean, &writer);
                $(if !self.$field.omit(lean) {
                    self.$field.put(name!(stringify!($field)), writer);
                })*
            }
        }
    )*};
}

/// What is read out of a map's entries, field by field.
trait TakeFields: Sized {
    fn take_fields(entries: &mut Entries<'_>) -> Result<Self, FieldError>;
}

impl<M: TakeFields> TakeFields for Box<M> {
    #[inline]
    fn take_fields(entries: &mut Entries<'_>) -> Result<Self, FieldError> {
        M::take_fields(entries).map(Box::new)
    }
}

/// Declares one direction of the conversation: an enum with a struct for each message.
macro_rules! conversation {
    ($(#[$doc:meta])* $enum:ident, lean: $lean:literal;
     $($(#[$message_doc:meta])* $name:ident ($held:ty) = $text:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        fields! { $($(#[$message_doc])* $name { $($(#[$field_doc])* $field: $type,)* })* }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each variant holds the struct of its name, which is documented")]
        pub enum $enum { $($name($held),)* }

        $(impl From<$name> for $enum {
            fn from(message: $name) -> $enum {
                $enum::$name(message.into())
            }
        })*

        impl $enum {
            /// The `type` of every message, with the names of its fields: what `PROTOCOL.md` is held against.
            pub const TABLE: &'static [(&'static str, &'static [&'static str])] =
                &[$(($text, &[$(stringify!($field),)*]),)*];

            /// The message's `type`.
            pub fn type_text(&self) -> &'static str {
                match self { $($enum::$name(_) => $text,)* }
            }

            /// Reads the fields of a message whose `type` is `text`; `None` when there is no such message.
            pub(crate) fn take(text: &[u8], entries: &mut Entries<'_>) -> Option<Result<$enum, FieldError>> {
                $(if text == $text.as_bytes() {
                    // Not by way of `map`, which would move it once more.
                    return Some(match <$held>::take_fields(entries) {
                        Ok(message) => Ok($enum::$name(message)),
                        Err(error) => Err(error),
                    });
                })*
                None
            }

            pub(crate) fn count_fields(&self) -> usize {
                match self { $($enum::$name(message) => message.count_fields($lean),)* }
            }

            pub(crate) fn put_fields(&self, writer: &mut impl Write) {
                match self { $($enum::$name(message) => message.put_fields($lean, writer),)* }
            }
        }
    };
}

conversation! {
    /// All that a client may say.
    ///
    /// The large ones are boxed: what holds a message is moved many times.
    ClientMessage, lean: true;

    /// Introduces the client; if sent at all, it is first.
    Hello (Box<Hello>) = "hello" {
        /// The token, for a client that cannot set headers.
        token: Option<Secret>,
        /// The worker's name; made up if absent.
        worker: Option<WorkerName>,
        /// The groups the worker is in.
        groups: Vec<GroupName>,
        /// Shown to operators.
        labels: Headers,
        /// Whether the session may be resumed, or which one is.
        resume: Option<Resume>,
        /// The leases that a resuming client still works on.
        in_flight: Vec<GivenLease>,
        /// Whether the broker may send arrays of messages.
        batch: bool,
        /// What program this is.
        client: Option<Text<128>>,
    }
    /// Asks for a queue's tasks; again on the same queue it updates.
    Subscribe (Subscribe) = "subscribe" {
        /// The queue, made if there is none.
        queue: QueueName,
        /// How many unsettled tasks to hold at most; 1 if absent.
        credit: Option<Credit>,
        /// How deliveries are settled; manual if absent.
        mode: Option<Mode>,
        /// Whether an attempt is charged only from `start` on.
        explicit_start: bool,
    }
    /// Changes a subscription's credit; 0 pauses it.
    SetCredit (SetCredit) = "credit" {
        /// The queue.
        queue: QueueName,
        /// The window of unsettled tasks, as an absolute number.
        credit: Credit,
    }
    /// Ends a subscription; leases stay.
    Unsubscribe (Unsubscribe) = "unsubscribe" {
        /// The queue.
        queue: QueueName,
    }
    /// Says that work on a delivery has begun: its ack timeout begins anew.
    Start (Start) = "start" {
        /// The delivery's lease.
        lease: GivenLease,
    }
    /// Settles deliveries: the work is done.
    Ack (Ack) = "ack" {
        /// Which deliveries.
        leases: LeaseList,
        /// What came of it, for whoever watches or waits.
        result: Payload,
    }
    /// Settles deliveries: the work failed.
    Nack (Nack) = "nack" {
        /// Which deliveries.
        leases: LeaseList,
        /// What went wrong.
        error: Option<ErrorText>,
        /// Replaces the back-off.
        delay_ms: Option<DelayMs>,
        /// `false`: no further attempt; `true` if absent.
        retry: Option<Flag>,
    }
    /// Gives deliveries back unharmed.
    Release (Release) = "release" {
        /// Which deliveries.
        leases: LeaseList,
        /// How long the task waits before it is offered again; 0 if absent.
        delay_ms: Option<DelayMs>,
    }
    /// Answers a `stop`: the work was broken off.
    Cancelled (Cancelled) = "cancelled" {
        /// The delivery's lease.
        lease: GivenLease,
        /// What to record.
        error: Option<ErrorText>,
    }
    /// Moves a lease's deadline to now + the given time.
    Extend (Extend) = "extend" {
        /// The delivery's lease.
        lease: GivenLease,
        /// The time from now; the task's own ack timeout if absent.
        ack_timeout_ms: Option<TimeoutMs>,
    }
    /// Tells watchers how far the work is; the deadline moves to at least now + the ack timeout.
    Progress (Progress) = "progress" {
        /// The delivery's lease.
        lease: GivenLease,
        /// How much is done.
        percent: Option<Number<0, 100>>,
        /// Anything for the watchers.
        data: Payload,
    }
    /// No more deliveries; what is held will be finished.
    Drain (Drain) = "drain" {}
    /// Leaves: all leases return free of charge.
    Bye (Bye) = "bye" {}
    /// Submits a task.
    Submit (AnySubmit) = "submit" {
        /// The queue, made if there is none.
        queue: QueueName,
        /// What the worker gets.
        payload: Payload,
        /// Text by text, handed to the worker.
        headers: Headers,
        /// Who may take it; any worker if absent.
        to: Option<Target>,
        /// How a worker is chosen; the queue's if absent.
        assign: Option<Assign>,
        /// What `sticky` hashes.
        sticky_key: Option<Key>,
        /// Tasks of one key run one at a time, in order.
        order_key: Option<Key>,
        /// Keys take turns.
        fair_key: Option<Key>,
        /// 4 if absent.
        priority: Option<Priority>,
        /// How long the task waits before it is queued; 0 if absent.
        delay_ms: Option<DelayMs>,
        /// When the task is queued, in wall-clock time.
        run_at: Option<RunAt>,
        /// How long the task is of use; for ever if absent.
        ttl_ms: Option<TtlMs>,
        /// How long a worker may keep silent; 30 s if absent.
        ack_timeout_ms: Option<TimeoutMs>,
        /// How long one attempt may run, whatever `extend` says; no limit if absent.
        timeout_ms: Option<TimeoutMs>,
        /// How many charged deliveries; 5 if absent.
        max_attempts: Option<Attempts>,
        /// How long to wait between attempts.
        backoff: Option<Backoff>,
        /// Tells a retried submit from a new one.
        dedup_id: Option<Key>,
        /// When a task to all is complete; `all` if absent.
        complete: Option<Complete>,
        /// When `accepted` is said; `durable` if absent.
        confirm: Option<Confirm>,
        /// Whether the producer hears `event` and `finished`.
        watch: bool,
    }
    /// Asks for a task's events and its end.
    Watch (Watch) = "watch" {
        /// The task.
        task: TaskId,
        /// Only events with a greater `seq`; 0 if absent.
        from_seq: Option<u64>,
    }
    /// Ends a watch.
    Unwatch (Unwatch) = "unwatch" {
        /// The task.
        task: TaskId,
    }
    /// Stops a task wherever it is.
    Cancel (Cancel) = "cancel" {
        /// The task.
        task: TaskId,
        /// How long a worker may take to stop; 10 s if absent.
        grace_ms: Option<Int<0, 3_600_000>>,
    }
    /// Enters a room.
    Join (Join) = "join" {
        /// The room.
        room: RoomName,
    }
    /// Leaves a room.
    Leave (Leave) = "leave" {
        /// The room.
        room: RoomName,
    }
    /// Sends to all in a room.
    Publish (Publish) = "publish" {
        /// The room.
        room: RoomName,
        /// What they get.
        payload: Payload,
        /// Whether the sender is left out.
        exclude_self: bool,
    }
    /// Asks for a `pong`.
    Ping (Ping) = "ping" {}
    /// Asks to be told again and again how the broker is; a new one takes the place of the one before.
    Observe (Observe) = "observe" {
        /// How often; 1 s if absent.
        every_ms: Option<Every>,
        /// Which queues to tell of in detail; those with most tasks if absent.
        queues: Option<QueueList>,
    }
}

conversation! {
    /// All that the broker answers, or sends on its own.
    ///
    /// The large ones are boxed: what holds a message is moved many times.
    ServerMessage, lean: false;

    /// Answers `hello`, said or implied.
    Welcome (Box<Welcome>) = "welcome" {
        /// The session's name, for logs.
        session: Text<64>,
        /// The worker's name, given or made up.
        worker: WorkerName,
        /// The protocol's version.
        version: u64,
        /// The broker and its version.
        server: Text<64>,
        /// The token to resume with; null if the session is not resumable.
        resume: Option<Secret>,
        /// Whether this is an earlier session taken up.
        resumed: bool,
        /// The leases that the session still has.
        kept: Vec<LeaseId>,
        /// The leases that it named and no longer has.
        lost: Vec<Text<48>>,
        /// How often the broker pings.
        ping_ms: u64,
        /// What a message and a session may be.
        limits: Limits,
    }
    /// Answers `subscribe`.
    Subscribed (Subscribed) = "subscribed" {
        /// The queue.
        queue: QueueName,
        /// The credit in force.
        credit: u64,
        /// The queue's ack timeout.
        ack_timeout_ms: u64,
    }
    /// Hands a task to a worker.
    Task (Task) = "task" {
        /// The task.
        task: TaskId,
        /// The right to settle; null in mode auto.
        lease: Option<LeaseId>,
        /// The queue.
        queue: QueueName,
        /// Charged deliveries so far, plus one.
        attempt: u64,
        /// How many there may be.
        max_attempts: u64,
        /// Whether this is not certainly the first delivery.
        redelivered: bool,
        /// How long the worker may keep silent.
        ack_timeout_ms: u64,
        /// Time since acceptance.
        age_ms: u64,
        /// The task's priority.
        priority: u64,
        /// The producer's headers.
        headers: Headers,
        /// What the producer sent.
        payload: Payload,
    }
    /// Answers a settle: durable.
    Settled (Settled) = "settled" {
        /// The lease, where one was settled.
        lease: Applies<Text<48>>,
        /// What became of it.
        outcome: Applies<SettleOutcome>,
        /// What became of each, where several were settled.
        results: Applies<Vec<SettleResult>>,
    }
    /// Asks a worker to break off.
    Stop (Stop) = "stop" {
        /// The delivery's lease.
        lease: LeaseId,
        /// Why.
        reason: Text<4096>,
        /// How long it may take.
        grace_ms: u64,
    }
    /// Tells a worker that it no longer holds a lease.
    Revoked (Revoked) = "revoked" {
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: RevokeReason,
    }
    /// Answers `submit`.
    Accepted (Accepted) = "accepted" {
        /// The task's id.
        task: TaskId,
        /// Whether an earlier submit with this `dedup_id` made it.
        duplicate: bool,
    }
    /// Tells a watcher what happens to a task.
    Event (Box<Event>) = "event" {
        /// The task.
        task: TaskId,
        /// Counts a task's events, from 1.
        seq: u64,
        /// The task's state.
        state: TaskState,
        /// Whether the worker has said `start`.
        started: bool,
        /// Who holds it.
        worker: Option<WorkerName>,
        /// The attempt.
        attempt: u64,
        /// The latest progress.
        percent: Option<Number<0, 100>>,
        /// The latest progress's data.
        data: Payload,
        /// What the latest failed attempt said.
        error: Option<ErrorText>,
    }
    /// The last word on a task.
    Finished (Box<Finished>) = "finished" {
        /// The task.
        task: TaskId,
        /// Counts on from the task's events.
        seq: u64,
        /// done, dead, cancelled or expired.
        state: TaskState,
        /// The ack's result.
        result: Payload,
        /// Why it failed.
        error: Option<ErrorText>,
        /// Charged deliveries, the successful one included.
        attempts: u64,
        /// Task to all: what became of each recipient, failures first, at most 1000.
        recipients: Option<RecipientList>,
        /// Task to all: how many recipients got it.
        delivered: Option<u64>,
        /// Task to all: how many acknowledged it.
        acked: Option<u64>,
        /// Task to all: how many did not.
        failed: Option<u64>,
    }
    /// Somebody said something in a room.
    RoomMessage (RoomMessage) = "room_message" {
        /// The room.
        room: RoomName,
        /// The speaker's worker name.
        from: WorkerName,
        /// Counts the room's messages: a gap was missed.
        seq: u64,
        /// What was said.
        payload: Payload,
    }
    /// Room messages were dropped because the client read too slowly.
    Lagged (Lagged) = "lagged" {
        /// The room.
        room: RoomName,
        /// How many.
        missed: u64,
    }
    /// Answers `ping`.
    Pong (Pong) = "pong" {}
    /// Answers what has no answer of its own.
    Done (Done) = "ok" {
        /// Answers `cancel`: the task's state.
        state: Applies<TaskState>,
        /// Answers `extend`: the time that is left.
        ack_timeout_ms: Applies<u64>,
    }
    /// Refuses a message.
    Error (Box<Error>) = "error" {
        /// Which kind of refusal.
        code: ErrorCode,
        /// What happened, what was expected, what to do.
        message: Text<4096>,
        /// Whether the same message may succeed later.
        retryable: bool,
        /// When to try again.
        retry_after_ms: Applies<u64>,
        /// The lease it is about.
        lease: Applies<Text<48>>,
        /// The task it is about.
        task: Applies<TaskId>,
        /// The field at fault.
        field: Applies<Text<64>>,
    }
    /// The broker stops, or this worker is drained.
    GoingAway (GoingAway) = "going_away" {
        /// Which of the two.
        reason: AwayReason,
        /// How long settles are still served.
        grace_ms: u64,
        /// When to come back.
        reconnect_after_ms: u64,
    }
    /// How the broker is: answers `observe`, again and again.
    Overview (Box<Overview>) = "overview" {
        /// The wall clock, in milliseconds since 1970.
        at_ms: u64,
        /// How long the process has been there.
        uptime_ms: u64,
        /// The broker's version.
        version: Text<64>,
        /// The engine's name.
        engine: Text<64>,
        /// Whether a confirmed task survives the process.
        durable: bool,
        /// Whether the broker shuts down.
        draining: bool,
        /// How many queues one may see.
        queues_total: u64,
        /// All of those queues together.
        totals: Totals,
        /// Some of them, one by one.
        queues: Vec<QueueOverview>,
        /// How many connected sessions work on those queues.
        workers: u64,
        /// How many sockets are open.
        connections: u64,
        /// How many schedules there are of those queues.
        schedules: u64,
        /// How long tasks take from one place to the next, since the start.
        hops: Applies<Hops>,
        /// The upper ends of the buckets, in microseconds; there is one more bucket than these.
        hop_bounds_us: Applies<Vec<u64>>,
        /// The log; null: there is none.
        log: Applies<Option<LogOverview>>,
        /// What the process takes; null: the system does not say.
        process: Applies<Option<ProcessOverview>>,
    }
}

fields! {
    /// What a message and a session may be.
    Limits {
        /// The longest message, in bytes.
        message_bytes: u64,
        /// The most credit of a subscription.
        credit: u64,
        /// The most submits without an answer.
        unconfirmed: u64,
    }
    /// What became of one of several leases.
    SettleResult {
        /// The lease, as it was given.
        lease: Text<48>,
        /// What became of it.
        outcome: SettleOutcome,
    }
    /// What became of one recipient of a task to all.
    RecipientOutcome {
        /// Its name.
        worker: WorkerName,
        /// The state of its share: done, dead, cancelled, expired, or where it was when the task was decided.
        state: TaskState,
        /// Charged deliveries to it.
        attempts: u64,
        /// Its result.
        result: Payload,
        /// What went wrong.
        error: Option<ErrorText>,
    }
    /// How many tasks are in each state that is not an end, and dead letters.
    Standing {
        /// Wait for their time.
        scheduled: u64,
        /// Wait for a worker.
        queued: u64,
        /// Are with workers.
        leased: u64,
        /// Wait out a back-off.
        retrying: u64,
        /// Are dead letters.
        dead: u64,
    }
    /// What happened to tasks since the start of the process.
    Happened {
        /// Were accepted.
        accepted: u64,
        /// Were submitted before, by their `dedup_id`.
        duplicate: u64,
        /// Were refused.
        refused: u64,
        /// Were handed to a worker.
        delivered: u64,
        /// The same, where it was not certainly the first time.
        redelivered: u64,
        /// Were acknowledged.
        acked: u64,
        /// Failed.
        nacked: u64,
        /// Were given back.
        released: u64,
        /// Were taken back, for the worker kept silent.
        timed_out: u64,
        /// Came back by the worker's end.
        worker_lost: u64,
        /// Became dead letters.
        dead: u64,
        /// Were cancelled.
        cancelled: u64,
        /// Outlived their `ttl_ms`.
        expired: u64,
    }
    /// Several queues together.
    Totals {
        /// Tasks by state.
        counts: Standing,
        /// For how long a task waits for a worker, at the longest; null: none does.
        oldest_ms: Option<u64>,
        /// Subscriptions.
        workers: u64,
        /// Deliveries that are not settled.
        in_flight: u64,
        /// How many more the workers would take.
        credit_free: u64,
        /// What happened since the start of the process.
        events: Happened,
    }
    /// One queue.
    QueueOverview {
        /// Its name.
        queue: QueueName,
        /// Whether nothing is delivered for a while.
        paused: bool,
        /// Tasks by state.
        counts: Standing,
        /// For how long a task waits for a worker, at the longest; null: none does.
        oldest_ms: Option<u64>,
        /// Workers that are subscribed.
        workers: u64,
        /// Deliveries that are not settled.
        in_flight: u64,
        /// How many more its workers would take.
        credit_free: u64,
        /// What happened since the start of the process.
        events: Happened,
    }
    /// Durations since the start of the process.
    Durations {
        /// How many.
        count: u64,
        /// Their sum.
        sum_us: u64,
        /// How many of them are in each bucket alone; the last is of those above all bounds.
        buckets: Vec<u64>,
    }
    /// The stretches of a task's way.
    Hops {
        /// From the submit to its being durable.
        accepted_to_durable: Durations,
        /// From being ready for a worker to being given to one.
        durable_to_assigned: Durations,
        /// From there to being written to its socket.
        assigned_to_sent: Durations,
        /// From being given to a worker to the settle.
        sent_to_settled: Durations,
    }
    /// The log.
    LogOverview {
        /// Bytes of its files.
        bytes: u64,
        /// Bytes of what is still needed.
        live_bytes: u64,
        /// How many files.
        segments: u64,
        /// How long syncs took.
        sync: Durations,
        /// How many records one made durable, on the average.
        batch_records_avg: Number<0, 9_007_199_254_740_991>,
    }
    /// What the process takes.
    ProcessOverview {
        /// Memory.
        rss_bytes: u64,
        /// Time on processors since its start.
        cpu_ms: u64,
        /// Open files and sockets.
        open_fds: u64,
        /// Threads.
        threads: u64,
    }
    /// How long to wait between attempts: `min(max_ms, initial_ms × factor^(attempt−1))`.
    Backoff {
        /// After the first failure; 1 s if absent.
        initial_ms: Option<Int<0, 86_400_000>>,
        /// The longest wait; 5 min if absent.
        max_ms: Option<Int<0, 86_400_000>>,
        /// How it grows; 2 if absent.
        factor: Option<Number<1, 10>>,
    }
}

macro_rules! map_scalars {
    ($($name:ident, $lean:literal;)*) => {$(
        impl Scalar for $name {
            fn read(raw: Raw<'_>) -> Result<Self, String> {
                $name::take_fields(&mut read_map(raw)?).map_err(|e| e.message)
            }

            fn write(&self, writer: &mut impl Write) {
                writer.begin_map(self.count_fields($lean));
                self.put_fields($lean, writer);
                writer.end_map();
            }
        }
    )*};
}

map_scalars! {
    Limits, false; SettleResult, false; RecipientOutcome, false; Backoff, true; Standing, false; Happened, false;
    Totals, false; QueueOverview, false; Durations, false; Hops, false; LogOverview, false; ProcessOverview, false;
}

/// The most queues that an `observe` may name.
pub const OBSERVED_QUEUES_MAX: usize = 100;

/// The queues that an `observe` names: at most [`OBSERVED_QUEUES_MAX`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueueList(Vec<QueueName>);

impl QueueList {
    /// These, if they are not too many.
    pub fn new(names: Vec<QueueName>) -> Option<QueueList> {
        (names.len() <= OBSERVED_QUEUES_MAX).then_some(QueueList(names))
    }

    /// The names.
    pub fn names(&self) -> &[QueueName] {
        &self.0
    }
}

impl Scalar for QueueList {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let names = read_list(raw)?;
        let count = names.len();
        QueueList::new(names)
            .ok_or_else(|| format!("expected at most {OBSERVED_QUEUES_MAX} queues, got {count}"))
    }

    fn write(&self, writer: &mut impl Write) {
        write_list(&self.0, writer);
    }
}

/// How often an `overview` comes: every 250 ms to 60 s, or never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(u64);

impl Every {
    /// So many milliseconds, if that is in the range; 0: never again.
    pub fn new(ms: u64) -> Option<Every> {
        (ms == 0 || (250..=60_000).contains(&ms)).then_some(Every(ms))
    }

    /// The milliseconds.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Scalar for Every {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Integer(integer) => u64::try_from(integer).ok().and_then(Every::new),
            _ => None,
        }
        .ok_or_else(|| expected("0, which ends it, or an integer of 250 to 60000", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.uint(self.0);
    }
}

/// The outcomes of a task to all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecipientList(pub Vec<RecipientOutcome>);

impl Scalar for RecipientList {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        read_list(raw).map(RecipientList)
    }

    fn write(&self, writer: &mut impl Write) {
        write_list(&self.0, writer);
    }
}

impl Scalar for ErrorCode {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => ErrorCode::parse(&text),
            _ => None,
        }
        .ok_or_else(|| expected("an error code", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.plain(self.as_str());
    }
}

/// Who may take a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// Any worker of the queue.
    #[default]
    Any,
    /// One worker by name.
    Worker {
        /// Its name.
        worker: WorkerName,
        /// What to do while it is absent.
        if_absent: IfAbsent,
    },
    /// Any worker of a group.
    Group(GroupName),
    /// Every worker subscribed when the task is accepted, or every one of a group.
    All(Option<GroupName>),
}

impl Scalar for Target {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let mut entries = read_map(raw)?;
        let text = |e: FieldError| e.message;
        let worker: Option<WorkerName> = Field::take(&mut entries, "worker").map_err(text)?;
        let if_absent: Option<IfAbsent> = Field::take(&mut entries, "if_absent").map_err(text)?;
        let group: Option<GroupName> = Field::take(&mut entries, "group").map_err(text)?;
        let all: bool = Field::take(&mut entries, "all").map_err(text)?;
        match (worker, group, all) {
            // A field that is not known may be a misspelt `worker`: anybody is not who was meant.
            (None, None, false) if if_absent.is_none() && entries.is_empty() => Ok(Target::Any),
            (Some(worker), None, false) => {
                Ok(Target::Worker { worker, if_absent: if_absent.unwrap_or(IfAbsent::Wait) })
            }
            (None, Some(group), false) if if_absent.is_none() => Ok(Target::Group(group)),
            (None, group, true) if if_absent.is_none() => Ok(Target::All(group)),
            _ => {
                Err("expected one of {}, {worker, if_absent}, {group}, {all:true}, {group, all:true}".into())
            }
        }
    }

    fn write(&self, writer: &mut impl Write) {
        match self {
            Target::Any => writer.begin_map(0),
            Target::Worker { worker, if_absent } => {
                writer.begin_map(2);
                worker.put(name!("worker"), writer);
                if_absent.put(name!("if_absent"), writer);
            }
            Target::Group(group) => {
                writer.begin_map(1);
                group.put(name!("group"), writer);
            }
            Target::All(None) => {
                writer.begin_map(1);
                true.put(name!("all"), writer);
            }
            Target::All(Some(group)) => {
                writer.begin_map(2);
                group.put(name!("group"), writer);
                true.put(name!("all"), writer);
            }
        }
        writer.end_map();
    }
}

/// When a task to all is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Complete {
    /// When every recipient has finished.
    #[default]
    All,
    /// With the first ack.
    Any,
    /// With this many acks.
    Quorum(u64),
}

impl Scalar for Complete {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let wrong = || expected("\"all\", \"any\" or {quorum: 1 or more}", raw);
        match raw.value() {
            Value::Text(text) if text == "all" => Ok(Complete::All),
            Value::Text(text) if text == "any" => Ok(Complete::Any),
            Value::Map => {
                let quorum: Int<1, 1_000_000> =
                    Field::take(&mut read_map(raw)?, "quorum").map_err(|e| e.message)?;
                Ok(Complete::Quorum(quorum.get()))
            }
            _ => Err(wrong()),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        match self {
            Complete::All => writer.plain("all"),
            Complete::Any => writer.plain("any"),
            Complete::Quorum(count) => {
                writer.begin_map(1);
                count.put(name!("quorum"), writer);
                writer.end_map();
            }
        }
    }
}

fields! {
    /// A submit that leaves all to its queue.
    PlainSubmit {
        /// The queue, made if there is none.
        queue: QueueName,
        /// What the worker gets.
        payload: Payload,
        /// When `accepted` is said; `durable` if absent.
        confirm: Option<Confirm>,
        /// Whether the producer hears `event` and `finished`.
        watch: bool,
    }
}

/// A submit as messages hold it.
///
/// Most leave all to their queue, and are a tenth of what a submit may say: the rest of it would be made, moved and
/// looked through in vain, and be an allocation.
#[derive(Debug, Clone, PartialEq)]
pub enum AnySubmit {
    /// One that says nothing else.
    Plain(PlainSubmit),
    /// One that does: what is made by `From` or read is never here if it could be plain.
    Full(Box<Submit>),
}

impl AnySubmit {
    /// What a plain one may say.
    const PLAIN: [&str; 4] = ["queue", "payload", "confirm", "watch"];

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        match self {
            AnySubmit::Plain(submit) => &submit.queue,
            AnySubmit::Full(submit) => &submit.queue,
        }
    }

    /// What the worker gets.
    pub fn payload(&self) -> &Payload {
        match self {
            AnySubmit::Plain(submit) => &submit.payload,
            AnySubmit::Full(submit) => &submit.payload,
        }
    }

    /// The one that says more than a plain one.
    pub fn full(&self) -> Option<&Submit> {
        match self {
            AnySubmit::Plain(_) => None,
            AnySubmit::Full(submit) => Some(submit),
        }
    }

    /// Whether the producer hears `event` and `finished`.
    pub fn watch(&self) -> bool {
        match self {
            AnySubmit::Plain(submit) => submit.watch,
            AnySubmit::Full(submit) => submit.watch,
        }
    }

    /// Says whether the producer hears them.
    pub fn set_watch(&mut self, watch: bool) {
        match self {
            AnySubmit::Plain(submit) => submit.watch = watch,
            AnySubmit::Full(submit) => submit.watch = watch,
        }
    }

    fn count_fields(&self, lean: bool) -> usize {
        match self {
            AnySubmit::Plain(submit) => submit.count_fields(lean),
            AnySubmit::Full(submit) => submit.count_fields(lean),
        }
    }

    fn put_fields(&self, lean: bool, writer: &mut impl Write) {
        match self {
            AnySubmit::Plain(submit) => submit.put_fields(lean, writer),
            AnySubmit::Full(submit) => submit.put_fields(lean, writer),
        }
    }
}

impl TakeFields for AnySubmit {
    fn take_fields(entries: &mut Entries<'_>) -> Result<Self, FieldError> {
        if entries.are_among(&Self::PLAIN) {
            return match PlainSubmit::take_fields(entries) {
                Ok(submit) => Ok(AnySubmit::Plain(submit)),
                Err(error) => Err(error),
            };
        }
        Submit::take_fields(entries).map(AnySubmit::from)
    }
}

impl From<Submit> for AnySubmit {
    fn from(submit: Submit) -> AnySubmit {
        let for_now = submit.delay_ms.is_none() && submit.run_at.is_none();
        if !for_now || !submit.is_on_queue_terms() {
            return AnySubmit::Full(Box::new(submit));
        }
        let Submit { queue, payload, confirm, watch, .. } = submit;
        AnySubmit::Plain(PlainSubmit { queue, payload, confirm, watch })
    }
}

impl PlainSubmit {
    /// One that says only what is to be done, and where.
    pub fn new(queue: QueueName, payload: Payload) -> PlainSubmit {
        PlainSubmit { queue, payload, confirm: None, watch: false }
    }
}

impl From<PlainSubmit> for Submit {
    fn from(PlainSubmit { queue, payload, confirm, watch }: PlainSubmit) -> Submit {
        Submit { confirm, watch, ..Submit::new(queue, payload) }
    }
}

impl From<AnySubmit> for Box<Submit> {
    fn from(submit: AnySubmit) -> Box<Submit> {
        match submit {
            AnySubmit::Plain(submit) => Box::new(submit.into()),
            AnySubmit::Full(submit) => submit,
        }
    }
}

impl Submit {
    /// Whether it says nothing that makes terms of its own: at most when its task is due, how it is confirmed, and
    /// whether the producer hears of it.
    pub fn is_on_queue_terms(&self) -> bool {
        self.to.is_none()
            && self.assign.is_none()
            && self.sticky_key.is_none()
            && self.order_key.is_none()
            && self.fair_key.is_none()
            && self.dedup_id.is_none()
            && self.priority.is_none()
            && self.ttl_ms.is_none()
            && self.ack_timeout_ms.is_none()
            && self.timeout_ms.is_none()
            && self.max_attempts.is_none()
            && self.backoff.is_none()
            && self.complete.is_none()
            && self.headers.is_empty()
    }

    /// A submit with every option at its default.
    pub fn new(queue: QueueName, payload: Payload) -> Submit {
        Submit {
            queue,
            payload,
            headers: Headers::default(),
            to: None,
            assign: None,
            sticky_key: None,
            order_key: None,
            fair_key: None,
            priority: None,
            delay_ms: None,
            run_at: None,
            ttl_ms: None,
            ack_timeout_ms: None,
            timeout_ms: None,
            max_attempts: None,
            backoff: None,
            dedup_id: None,
            complete: None,
            confirm: None,
            watch: false,
        }
    }
}

impl Hello {
    /// A hello that says nothing: what any other first message implies.
    pub fn empty() -> Hello {
        Hello {
            token: None,
            worker: None,
            groups: Vec::new(),
            labels: Headers::default(),
            resume: None,
            in_flight: Vec::new(),
            batch: false,
            client: None,
        }
    }
}

impl Error {
    /// An error with nothing but its code and its text.
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Error {
        Error {
            code,
            message: Text::cut(message.as_ref()),
            retryable: code.retryable(),
            retry_after_ms: Applies(code.retryable().then_some(RETRY_AFTER_MS)),
            lease: Applies(None),
            task: Applies(None),
            field: Applies(None),
        }
    }

    /// The same error, about a field.
    pub fn field(mut self, field: &str) -> Error {
        self.field = Applies(Some(Text::cut(field)));
        self
    }

    /// The same error, about a lease as the client gave it.
    pub fn lease(mut self, lease: &GivenLease) -> Error {
        self.lease = Applies(Some(lease_text(lease)));
        self
    }

    /// The same error, about a task.
    pub fn task(mut self, task: TaskId) -> Error {
        self.task = Applies(Some(task));
        self
    }
}

/// When to try a retryable message again, where nothing better is known.
pub const RETRY_AFTER_MS: u64 = 1000;

/// A lease as the client gave it, for an answer.
pub fn lease_text(lease: &GivenLease) -> Text<48> {
    match lease {
        GivenLease::Lease(id) => Text::cut(&id.to_string()),
        GivenLease::Garbled(text) => text.clone(),
    }
}

impl Done {
    /// Nothing but `ok`.
    pub const PLAIN: Done = Done { state: Applies(None), ack_timeout_ms: Applies(None) };
}

/// A name for a session in `welcome` and in logs.
pub fn session_text(number: u64) -> Text<64> {
    Text::cut(&SmolStr::from(format!("s{number:x}")))
}
