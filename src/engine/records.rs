//! How operations are written into the log's records, and read back.
//!
//! A body is one byte that says which operation it is, then the operation's fields as a MessagePack
//! array. New fields are appended with a default, so that an older store stays readable; a change
//! that is not of that kind needs a new number and keeps the old one readable. The numbers are in
//! `FORMAT.md` of the log, under "Bodies".

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use smol_str::SmolStr;
use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{
    Complete, ErrorText, GroupName, Headers, IfAbsent, Payload, QueueName, Target, TaskId, TaskState,
    WorkerName,
};

use super::rows::{
    DedupRow, KeysRow, QueueRow, ScheduleRow, SessionRow, UnscheduleRow, UnsessionRow, joined, split,
};
use crate::core::record::{
    Ended, FailedAttempt, Failure, FanoutRecord, Outcome, OutcomeRef, Outcomes, Said, ScheduleName, Totals,
};
use crate::core::{Acceptance, Amendment, FinishRecord, RetryPolicy, StoreOp, TaskSpec, Terms, Time};
use crate::log::{Key, RecordBatch, RecordKind};

const ACCEPT: u8 = 1;
const FINISH: u8 = 2;
const FAILED: u8 = 3;
const DEFERRED: u8 = 4;
const ACKED: u8 = 5;
const DELIVERED: u8 = 6;
const QUEUE: u8 = 7;
const DEDUP: u8 = 8;
const SCHEDULE: u8 = 9;
const UNSCHEDULE: u8 = 10;
const SESSION: u8 = 11;
const UNSESSION: u8 = 12;
const DELETE: u8 = 13;
const LEASED: u8 = 14;
const RETURNED: u8 = 15;
const CANCELLING: u8 = 16;
const REDRIVEN: u8 = 17;

/// A body whose checksum is right and that still cannot be read: of a newer version, or not ours.
#[derive(Debug)]
pub struct Unreadable {
    /// The operation's number.
    pub number: u8,
    /// What the reader said.
    pub what: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "a record of kind {} cannot be read ({}): the store was written by a newer version; start that one",
            self.number, self.what
        )
    }
}

/// Appends an operation to a batch of the log. Gives the key that need not be kept from here on: `Forget` writes
/// nothing, and what ends something is itself of use only as long as what it ends is still in the log.
pub fn encode(op: &StoreOp, batch: &mut RecordBatch) -> Option<Key> {
    let mut push = |kind: RecordKind, key: Key, number: u8, row: &dyn Row| {
        batch.push_with(kind, key, |body| {
            body.push(number);
            row.write(body);
        });
    };
    match op {
        StoreOp::Accept(accepted) => {
            push(RecordKind::Put, accepted.spec.id().0, ACCEPT, &AcceptRow::of(accepted))
        }
        StoreOp::Finish(record) => push(RecordKind::Put, record.task.0, FINISH, &FinishRow::of(record)),
        StoreOp::Queue(record) => {
            push(RecordKind::Put, queue_key(&record.queue), QUEUE, &QueueRow::of(record))
        }
        StoreOp::Dedup(record) => push(RecordKind::Put, record.task.0, DEDUP, &DedupRow::of(record)),
        StoreOp::Schedule(record) => {
            push(RecordKind::Put, schedule_key(&record.name), SCHEDULE, &ScheduleRow::of(record))
        }
        StoreOp::Unschedule(name) => {
            let key = schedule_key(name);
            push(RecordKind::Put, key, UNSCHEDULE, &UnscheduleRow { name: name.to_string() });
            return Some(key);
        }
        StoreOp::Session(record) => {
            push(RecordKind::Put, session_key(record.key), SESSION, &SessionRow::of(record))
        }
        StoreOp::Unsession(session) => {
            let key = session_key(*session);
            push(RecordKind::Put, key, UNSESSION, &UnsessionRow { key: split(*session) });
            return Some(key);
        }
        StoreOp::Delete(task) => {
            push(RecordKind::Put, task.0, DELETE, &EmptyRow());
            return Some(task.0);
        }
        StoreOp::Forget(task) => return Some(task.0),
        StoreOp::Ended(Ended::Schedule(name)) => return Some(schedule_key(name)),
        StoreOp::Ended(Ended::Session(session)) => return Some(session_key(*session)),
        StoreOp::Amend(task, amendment) => {
            let (number, row): (u8, &dyn Row) = match amendment {
                Amendment::Failed { recipient, attempt, due, lost } => (
                    FAILED,
                    &FailedRow {
                        recipient: *recipient,
                        attempt: AttemptRow::of(attempt),
                        due: due.map(|due| due.0),
                        lost: *lost,
                    },
                ),
                Amendment::Deferred { recipient, due } => {
                    (DEFERRED, &DeferredRow { recipient: *recipient, due: due.0 })
                }
                Amendment::Acked { recipient, result } => {
                    (ACKED, &AckedRow { recipient: *recipient, result: PayloadRow::of(result) })
                }
                Amendment::Delivered { recipient } => (DELIVERED, &DeliveredRow { recipient: *recipient }),
                Amendment::Leased { recipient, number, slot, session, deadline, explicit_start } => (
                    LEASED,
                    &LeasedRow {
                        recipient: *recipient,
                        number: *number,
                        slot: *slot,
                        session: split(*session),
                        deadline: deadline.0,
                        explicit_start: *explicit_start,
                    },
                ),
                Amendment::Returned { recipient } => (RETURNED, &DeliveredRow { recipient: *recipient }),
                Amendment::Cancelling => (CANCELLING, &EmptyRow()),
                Amendment::Redriven => (REDRIVEN, &EmptyRow()),
            };
            push(RecordKind::Amend, task.0, number, row);
        }
    }
    None
}

/// Reads a record's body.
pub fn decode(key: Key, body: &[u8]) -> Result<StoreOp, Unreadable> {
    Decoder::default().decode(key, body)
}

/// The payload of an accepted task; none if the record is of something else: the task has ended.
pub fn decode_payload(body: &[u8]) -> Result<Option<Payload>, Unreadable> {
    match body.split_first() {
        Some((&ACCEPT, row)) => parse::<AcceptRow<'_>>(row)
            .and_then(|row| row.payload.to_payload())
            .map(Some)
            .map_err(|what| Unreadable { number: ACCEPT, what }),
        _ => Ok(None),
    }
}

/// Reads the bodies of many records.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Those of the latest task without options: most others of its queue share them.
    latest: Option<Arc<Terms>>,
}

impl Decoder {
    /// Reads a record's body.
    pub fn decode(&mut self, key: Key, body: &[u8]) -> Result<StoreOp, Unreadable> {
        let Some((&number, row)) = body.split_first() else {
            return Err(Unreadable { number: 0, what: "it is empty".into() });
        };
        let task = TaskId(key);
        let mut read = || -> Result<StoreOp, String> {
            Ok(match number {
                ACCEPT => {
                    StoreOp::Accept(parse::<AcceptRow<'_>>(row)?.into_acceptance(task, &mut self.latest)?)
                }
                FINISH => StoreOp::Finish(Box::new(parse::<FinishRow<'_>>(row)?.into_record(task)?)),
                QUEUE => StoreOp::Queue(Box::new(parse::<QueueRow>(row)?.into_record()?)),
                DEDUP => StoreOp::Dedup(parse::<DedupRow>(row)?.into_record(task)?),
                SCHEDULE => StoreOp::Schedule(Box::new(parse::<ScheduleRow>(row)?.into_record()?)),
                UNSCHEDULE => StoreOp::Unschedule(ScheduleName::parse(&parse::<UnscheduleRow>(row)?.name)?),
                SESSION => StoreOp::Session(Box::new(parse::<SessionRow>(row)?.into_record()?)),
                UNSESSION => StoreOp::Unsession(joined(parse::<UnsessionRow>(row)?.key)),
                DELETE => StoreOp::Delete(task),
                CANCELLING => StoreOp::Amend(task, Amendment::Cancelling),
                REDRIVEN => StoreOp::Amend(task, Amendment::Redriven),
                RETURNED => {
                    let row: DeliveredRow = parse(row)?;
                    StoreOp::Amend(task, Amendment::Returned { recipient: row.recipient })
                }
                LEASED => {
                    let row: LeasedRow = parse(row)?;
                    StoreOp::Amend(
                        task,
                        Amendment::Leased {
                            recipient: row.recipient,
                            number: row.number,
                            slot: row.slot,
                            session: joined(row.session),
                            deadline: Time(row.deadline),
                            explicit_start: row.explicit_start,
                        },
                    )
                }
                FAILED => {
                    let row: FailedRow = parse(row)?;
                    StoreOp::Amend(
                        task,
                        Amendment::Failed {
                            recipient: row.recipient,
                            attempt: row.attempt.into_attempt()?,
                            due: row.due.map(Time),
                            lost: row.lost,
                        },
                    )
                }
                DEFERRED => {
                    let row: DeferredRow = parse(row)?;
                    StoreOp::Amend(task, Amendment::Deferred { recipient: row.recipient, due: Time(row.due) })
                }
                ACKED => {
                    let row: AckedRow = parse(row)?;
                    let result = row.result.into_payload()?;
                    StoreOp::Amend(task, Amendment::Acked { recipient: row.recipient, result })
                }
                DELIVERED => {
                    let row: DeliveredRow = parse(row)?;
                    StoreOp::Amend(task, Amendment::Delivered { recipient: row.recipient })
                }
                _ => return Err("there is no such kind".into()),
            })
        };
        read().map_err(|what| Unreadable { number, what })
    }
}

/// The log's key of a queue: a hash of its name.
fn queue_key(queue: &QueueName) -> Key {
    hash_key(queue.as_str().as_bytes())
}

/// The log's key of a schedule: a hash of its name, with a word in front that no queue's name begins with.
fn schedule_key(schedule: &ScheduleName) -> Key {
    hash_key(format!("schedule {schedule}").as_bytes())
}

/// The log's key of a session: a hash of its own.
fn session_key(session: u128) -> Key {
    hash_key(format!("session {session:032x}").as_bytes())
}

/// A hash, marked as a UUID of version 8, which no task's id is.
fn hash_key(of: &[u8]) -> Key {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(of);
    let hash = u128::from_be_bytes(digest[..16].try_into().expect("a digest has 32 bytes"));
    hash & !(0xf << 76) | (0x8 << 76)
}

fn parse<'a, T: Deserialize<'a>>(row: &'a [u8]) -> Result<T, String> {
    rmp_serde::from_slice(row).map_err(|error| error.to_string())
}

pub(super) fn name<T, E: ToString>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, String> {
    parse(text).map_err(|error| error.to_string())
}

pub(super) fn parsed_key(text: &str) -> Result<taskyard_proto::Key, String> {
    taskyard_proto::Key::parse(text).ok_or_else(|| "a key has no length of 1 to 256 bytes".into())
}

trait Row {
    fn write(&self, body: &mut Vec<u8>);
}

impl<T: Serialize> Row for T {
    fn write(&self, body: &mut Vec<u8>) {
        rmp_serde::encode::write(body, self).expect("writing to memory does not fail");
    }
}

/// A payload: its kind, its bytes.
#[derive(Serialize, Deserialize)]
struct PayloadRow(u8, ByteBuf);

/// The same, borrowed: the hot path copies a payload once, into the log's buffer or out of it.
#[derive(Serialize, Deserialize)]
struct PayloadRef<'a>(u8, #[serde(borrow)] &'a serde_bytes::Bytes);

impl<'a> PayloadRef<'a> {
    fn of(payload: &'a Payload) -> Self {
        PayloadRef(payload.kind() as u8, serde_bytes::Bytes::new(payload.bytes()))
    }

    fn to_payload(&self) -> Result<Payload, String> {
        let kind = PayloadKind::from_number(self.0).ok_or("a payload is of no known kind")?;
        Ok(Payload::from_parts(kind, self.1))
    }
}

impl PayloadRow {
    fn of(payload: &Payload) -> PayloadRow {
        PayloadRow(payload.kind() as u8, ByteBuf::from(payload.bytes().to_vec()))
    }

    fn into_payload(self) -> Result<Payload, String> {
        let kind = PayloadKind::from_number(self.0).ok_or("a payload is of no known kind")?;
        Ok(Payload::from_parts(kind, &self.1))
    }
}

/// The row of an accepted task.
#[derive(Serialize, Deserialize)]
struct AcceptRow<'a> {
    queue: &'a str,
    seq: u64,
    accepted: u64,
    #[serde(borrow)]
    payload: PayloadRef<'a>,
    #[serde(default)]
    options: Option<Box<OptionsRow>>,
}

/// What most tasks leave at its default, and then takes one byte.
#[derive(Serialize, Deserialize, PartialEq)]
struct OptionsRow {
    due: Option<u64>,
    expires: Option<u64>,
    priority: u8,
    max_attempts: u16,
    ack_timeout_ms: u32,
    run_limit_ms: Option<u32>,
    retry: (u32, u32, f64),
    target: TargetRow,
    complete: u64,
    recipients: Vec<String>,
    headers: Vec<(String, String)>,
    #[serde(default)]
    account: Option<String>,
    #[serde(default)]
    keys: Option<Box<KeysRow>>,
}

#[derive(Serialize, Deserialize, PartialEq)]
enum TargetRow {
    Any,
    Worker(String, u8),
    Group(String),
    All(Option<String>),
}

const COMPLETE_ALL: u64 = 0;
const COMPLETE_ANY: u64 = u64::MAX;

impl OptionsRow {
    fn of(accepted: &Acceptance) -> OptionsRow {
        let spec = &accepted.spec;
        OptionsRow {
            due: accepted.due.map(|t| t.0),
            expires: spec.expires().map(|t| t.0),
            priority: spec.priority,
            max_attempts: spec.max_attempts,
            ack_timeout_ms: spec.ack_timeout_ms,
            run_limit_ms: spec.run_limit_ms,
            retry: (spec.retry.initial_ms, spec.retry.max_ms, spec.retry.factor),
            target: match &spec.target {
                Target::Any => TargetRow::Any,
                Target::Worker { worker, if_absent } => {
                    TargetRow::Worker(worker.to_string(), *if_absent as u8)
                }
                Target::Group(group) => TargetRow::Group(group.to_string()),
                Target::All(group) => TargetRow::All(group.as_ref().map(ToString::to_string)),
            },
            complete: match spec.complete {
                Complete::All => COMPLETE_ALL,
                Complete::Any => COMPLETE_ANY,
                Complete::Quorum(count) => count,
            },
            recipients: spec.recipients.iter().map(ToString::to_string).collect(),
            headers: spec.headers.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            account: spec.account.as_ref().map(ToString::to_string),
            keys: spec.keys.as_ref().map(|keys| Box::new(KeysRow::of(keys))),
        }
    }

    /// What a submit without options gives. Written down here, apart from the core's defaults: those
    /// may change, what is stored may not.
    fn is_plain(accepted: &Acceptance) -> bool {
        // As a constant it would be made, and dropped, at each of these words.
        static LEFT_OUT: OptionsRow = PLAIN;
        let spec = &accepted.spec;
        accepted.due.is_none()
            && spec.ttl_us.is_none()
            && spec.priority == LEFT_OUT.priority
            && spec.max_attempts == LEFT_OUT.max_attempts
            && spec.ack_timeout_ms == LEFT_OUT.ack_timeout_ms
            && spec.run_limit_ms.is_none()
            && (spec.retry.initial_ms, spec.retry.max_ms, spec.retry.factor) == LEFT_OUT.retry
            && spec.target == Target::Any
            && spec.complete == Complete::All
            && spec.headers.is_empty()
            && spec.account.is_none()
            && spec.keys.is_none()
    }
}

const PLAIN: OptionsRow = OptionsRow {
    due: None,
    expires: None,
    priority: 4,
    max_attempts: 5,
    ack_timeout_ms: 30_000,
    run_limit_ms: None,
    retry: (1000, 300_000, 2.0),
    target: TargetRow::Any,
    complete: COMPLETE_ALL,
    recipients: Vec::new(),
    headers: Vec::new(),
    account: None,
    keys: None,
};

impl<'a> AcceptRow<'a> {
    fn of(accepted: &'a Acceptance) -> Self {
        AcceptRow {
            queue: accepted.spec.queue.as_str(),
            seq: accepted.spec.seq,
            accepted: accepted.spec.accepted.0,
            payload: PayloadRef::of(&accepted.payload),
            options: (!OptionsRow::is_plain(accepted)).then(|| Box::new(OptionsRow::of(accepted))),
        }
    }

    /// `latest` are the terms of another task without options.
    fn into_acceptance(self, id: TaskId, latest: &mut Option<Arc<Terms>>) -> Result<Acceptance, String> {
        let (seq, accepted, payload) = (self.seq, Time(self.accepted), self.payload.to_payload()?);
        let due = self.options.as_ref().and_then(|options| options.due).map(Time);
        let alike = || latest.as_ref().filter(|terms| terms.queue.as_str() == self.queue);
        let terms = match (&self.options, alike()) {
            (None, Some(terms)) => terms.clone(),
            (None, None) => latest.insert(Arc::new(self.into_terms()?)).clone(),
            (Some(_), _) => Arc::new(self.into_terms()?),
        };
        Ok(Acceptance { spec: TaskSpec::new(id, seq, accepted, terms), due, payload })
    }

    fn into_terms(self) -> Result<Terms, String> {
        let options = self.options.map_or(PLAIN, |options| *options);
        let group = |text: &str| name(text, GroupName::parse);
        Ok(Terms {
            queue: name(self.queue, QueueName::parse)?,
            ttl_us: options.expires.map(|at| at.saturating_sub(self.accepted)),
            priority: options.priority,
            max_attempts: options.max_attempts,
            ack_timeout_ms: options.ack_timeout_ms,
            run_limit_ms: options.run_limit_ms,
            retry: RetryPolicy {
                initial_ms: options.retry.0,
                max_ms: options.retry.1,
                factor: options.retry.2,
            },
            target: match &options.target {
                TargetRow::Any => Target::Any,
                TargetRow::Worker(worker, if_absent) => Target::Worker {
                    worker: name(worker, WorkerName::parse)?,
                    if_absent: *IfAbsent::ALL.get(usize::from(*if_absent)).ok_or("no such if_absent")?,
                },
                TargetRow::Group(text) => Target::Group(group(text)?),
                TargetRow::All(text) => Target::All(text.as_deref().map(group).transpose()?),
            },
            complete: match options.complete {
                COMPLETE_ALL => Complete::All,
                COMPLETE_ANY => Complete::Any,
                count => Complete::Quorum(count),
            },
            recipients: options
                .recipients
                .iter()
                .map(|text| name(text, WorkerName::parse))
                .collect::<Result<_, _>>()?,
            account: options.account.map(SmolStr::from),
            keys: options.keys.map(|row| row.into_keys().map(Box::new)).transpose()?,
            headers: Headers::from_pairs(options.headers.iter().map(|(k, v)| (&**k, &**v)))?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct AttemptRow {
    attempt: u16,
    worker: Option<String>,
    reason: u8,
    error: Option<String>,
}

impl AttemptRow {
    fn of(attempt: &FailedAttempt) -> AttemptRow {
        AttemptRow {
            attempt: attempt.attempt,
            worker: attempt.worker.as_ref().map(ToString::to_string),
            reason: attempt.reason as u8,
            error: attempt.error.as_ref().map(|error| error.as_str().to_owned()),
        }
    }

    fn into_attempt(self) -> Result<FailedAttempt, String> {
        Ok(FailedAttempt {
            attempt: self.attempt,
            worker: self.worker.map(|text| name(&text, WorkerName::parse)).transpose()?,
            reason: Failure::from_number(self.reason).ok_or("no such failure")?,
            error: self.error.map(|text| ErrorText::new(&text)),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct FailedRow {
    recipient: u32,
    attempt: AttemptRow,
    due: Option<u64>,
    lost: bool,
}

#[derive(Serialize, Deserialize)]
struct DeferredRow {
    recipient: u32,
    due: u64,
}

#[derive(Serialize, Deserialize)]
struct AckedRow {
    recipient: u32,
    result: PayloadRow,
}

#[derive(Serialize, Deserialize)]
struct DeliveredRow {
    recipient: u32,
}

#[derive(Serialize, Deserialize)]
struct LeasedRow {
    recipient: u32,
    number: u64,
    slot: u32,
    session: (u64, u64),
    deadline: u64,
    explicit_start: bool,
}

/// What has no fields.
#[derive(Serialize, Deserialize)]
struct EmptyRow();

/// The row of a task that ended; its words are borrowed, as those of [`AcceptRow`]: each task that is done writes one.
#[derive(Serialize, Deserialize)]
struct FinishRow<'a> {
    queue: &'a str,
    state: u8,
    accepted: u64,
    finished: u64,
    attempts: u32,
    max_attempts: u16,
    event_seq: u64,
    totals: Totals,
    worker: Option<&'a str>,
    #[serde(borrow)]
    result: Option<PayloadRef<'a>>,
    error: Option<&'a str>,
    history: Vec<AttemptRow>,
    #[serde(borrow)]
    fanout: Option<Box<FanoutRow<'a>>>,
    #[serde(default)]
    dedup: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct FanoutRow<'a> {
    delivered: u64,
    acked: u64,
    failed: u64,
    #[serde(borrow)]
    recipients: Vec<OutcomeRow<'a>>,
    /// If all did what they were asked to at once, without a word: their names, and no rows.
    #[serde(default, borrow)]
    done: Vec<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct OutcomeRow<'a> {
    worker: &'a str,
    state: u8,
    attempts: u64,
    #[serde(borrow)]
    result: PayloadRef<'a>,
    error: Option<&'a str>,
}

impl<'a> OutcomeRow<'a> {
    fn of(outcome: OutcomeRef<'a>) -> Self {
        OutcomeRow {
            worker: outcome.worker.as_str(),
            state: outcome.state as u8,
            attempts: u64::from(outcome.attempts),
            result: PayloadRef::of(outcome.said.map_or(&NO_RESULT, |said| &said.result)),
            error: outcome.said.and_then(|said| said.error.as_ref()).map(ErrorText::as_str),
        }
    }
}

/// Of a recipient that said nothing.
static NO_RESULT: Payload = Payload::NULL;

fn state(number: u8) -> Result<TaskState, String> {
    TaskState::ALL.get(usize::from(number)).copied().ok_or_else(|| "no such state".into())
}

impl<'a> FinishRow<'a> {
    fn of(record: &'a FinishRecord) -> Self {
        FinishRow {
            queue: record.queue.as_str(),
            state: record.state as u8,
            accepted: record.accepted.0,
            finished: record.finished.0,
            attempts: record.attempts,
            max_attempts: record.max_attempts,
            event_seq: record.event_seq,
            totals: record.totals,
            worker: record.worker.as_ref().map(WorkerName::as_str),
            result: (!record.result.is_null()).then(|| PayloadRef::of(&record.result)),
            error: record.error.as_ref().map(ErrorText::as_str),
            history: record.history.iter().map(AttemptRow::of).collect(),
            dedup: record.dedup.as_ref().map(|key| key.as_str()),
            fanout: record.fanout.as_ref().map(|fanout| {
                let outcomes = fanout.recipients.iter();
                let (recipients, done) = match &fanout.recipients {
                    Outcomes::Done(_) => {
                        (Vec::new(), outcomes.map(|outcome| outcome.worker.as_str()).collect())
                    }
                    Outcomes::Each(_) => (outcomes.map(OutcomeRow::of).collect(), Vec::new()),
                };
                let (delivered, acked, failed) = (fanout.delivered, fanout.acked, fanout.failed);
                Box::new(FanoutRow { delivered, acked, failed, recipients, done })
            }),
        }
    }

    fn into_record(self, task: TaskId) -> Result<FinishRecord, String> {
        let fanout = |row: FanoutRow<'a>| -> Result<FanoutRecord, String> {
            let outcome = |row: OutcomeRow<'a>| -> Result<Outcome, String> {
                Ok(Outcome {
                    worker: name(row.worker, WorkerName::parse)?,
                    state: state(row.state)?,
                    attempts: row.attempts.try_into().map_err(|_| "more than 4 billion attempts")?,
                    said: Said::new(row.result.to_payload()?, row.error.map(ErrorText::new)),
                })
            };
            let recipients = match row.done.is_empty() {
                true => Outcomes::Each(row.recipients.into_iter().map(outcome).collect::<Result<_, _>>()?),
                false => {
                    let done = row.done.into_iter().map(|text| name(text, WorkerName::parse));
                    Outcomes::Done(done.collect::<Result<_, _>>()?)
                }
            };
            let (delivered, acked, failed) = (row.delivered, row.acked, row.failed);
            Ok(FanoutRecord { delivered, acked, failed, recipients })
        };
        Ok(FinishRecord {
            task,
            queue: name(self.queue, QueueName::parse)?,
            state: state(self.state)?,
            accepted: Time(self.accepted),
            finished: Time(self.finished),
            attempts: self.attempts,
            max_attempts: self.max_attempts,
            worker: self.worker.map(|text| name(text, WorkerName::parse)).transpose()?,
            result: self.result.map(|row| row.to_payload()).transpose()?.unwrap_or_default(),
            error: self.error.map(ErrorText::new),
            history: self.history.into_iter().map(AttemptRow::into_attempt).collect::<Result<_, _>>()?,
            event_seq: self.event_seq,
            totals: self.totals,
            dedup: self.dedup.map(parsed_key).transpose()?,
            fanout: self.fanout.map(|row| fanout(*row)).transpose()?.map(Arc::new),
        })
    }
}
