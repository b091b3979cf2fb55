//! The rows of what is not a task: queues, schedules, sessions, remembered ids.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use smol_str::SmolStr;
use taskyard_proto::codec::{self, ClientFrame};
use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{Assign, ClientMessage, Encoding, Key, QueueName, Request, Submit, TaskId, WorkerName};

use super::records::{name, parsed_key};
use crate::core::record::{DedupRecord, QueueRecord, ScheduleRecord, SessionRecord, Totals};
use crate::core::schedule::{Missed, Rhythm, ScheduleName};
use crate::core::settings::{Defaults, Deliver, Order, Pause, Settings};
use crate::core::{RetryPolicy, Time};

#[derive(Serialize, Deserialize)]
pub(super) struct QueueRow {
    queue: String,
    totals: Totals,
    #[serde(default)]
    declared: bool,
    #[serde(default)]
    settings: Option<Box<SettingsRow>>,
    #[serde(default)]
    pause: Option<PauseRow>,
}

#[derive(Serialize, Deserialize)]
struct SettingsRow {
    assign: Option<u8>,
    early: bool,
    headstart_ms: Option<u64>,
    max_tasks: Option<u64>,
    max_bytes: Option<u64>,
    max_leased: Option<u64>,
    rate_per_s: Option<f64>,
    keep_result_ms: Option<u64>,
    priority: Option<u8>,
    ttl_ms: Option<u64>,
    ack_timeout_ms: Option<u32>,
    timeout_ms: Option<u32>,
    max_attempts: Option<u16>,
    backoff: Option<(u32, u32, f64)>,
}

#[derive(Serialize, Deserialize)]
struct PauseRow {
    by: Option<String>,
    reason: Option<String>,
    until: Option<u64>,
}

impl QueueRow {
    pub(super) fn of(record: &QueueRecord) -> QueueRow {
        let settings = &record.settings;
        let row = || SettingsRow {
            assign: settings.assign.map(|assign| assign as u8),
            early: settings.deliver == Deliver::Early,
            headstart_ms: match settings.order {
                Order::Strict => None,
                Order::Aged { headstart_ms } => Some(headstart_ms),
            },
            max_tasks: settings.max_tasks,
            max_bytes: settings.max_bytes,
            max_leased: settings.max_leased,
            rate_per_s: settings.rate_per_s,
            keep_result_ms: settings.keep_result_ms,
            priority: settings.defaults.priority,
            ttl_ms: settings.defaults.ttl_ms,
            ack_timeout_ms: settings.defaults.ack_timeout_ms,
            timeout_ms: settings.defaults.timeout_ms,
            max_attempts: settings.defaults.max_attempts,
            backoff: settings.defaults.backoff.map(|retry| (retry.initial_ms, retry.max_ms, retry.factor)),
        };
        QueueRow {
            queue: record.queue.to_string(),
            totals: record.totals,
            declared: record.declared,
            settings: (*settings != Settings::default()).then(|| Box::new(row())),
            pause: record.pause.as_ref().map(|pause| PauseRow {
                by: pause.by.as_ref().map(ToString::to_string),
                reason: pause.reason.clone(),
                until: pause.until.map(|at| at.0),
            }),
        }
    }

    pub(super) fn into_record(self) -> Result<QueueRecord, String> {
        let settings = |row: SettingsRow| -> Result<Settings, String> {
            Ok(Settings {
                assign: row.assign.map(assign).transpose()?,
                deliver: if row.early { Deliver::Early } else { Deliver::Durable },
                order: row.headstart_ms.map_or(Order::Strict, |headstart_ms| Order::Aged { headstart_ms }),
                max_tasks: row.max_tasks,
                max_bytes: row.max_bytes,
                max_leased: row.max_leased,
                rate_per_s: row.rate_per_s,
                keep_result_ms: row.keep_result_ms,
                defaults: Defaults {
                    priority: row.priority,
                    ttl_ms: row.ttl_ms,
                    ack_timeout_ms: row.ack_timeout_ms,
                    timeout_ms: row.timeout_ms,
                    max_attempts: row.max_attempts,
                    backoff: row.backoff.map(|(initial_ms, max_ms, factor)| RetryPolicy {
                        initial_ms,
                        max_ms,
                        factor,
                    }),
                },
            })
        };
        Ok(QueueRecord {
            queue: name(&self.queue, QueueName::parse)?,
            totals: self.totals,
            declared: self.declared,
            settings: self.settings.map(|row| settings(*row)).transpose()?.unwrap_or_default(),
            pause: self.pause.map(|row| Pause {
                by: row.by.map(SmolStr::from),
                reason: row.reason,
                until: row.until.map(Time),
            }),
        })
    }
}

pub(super) fn assign(number: u8) -> Result<Assign, String> {
    Assign::ALL.get(usize::from(number)).copied().ok_or_else(|| "no such assign".into())
}

#[derive(Serialize, Deserialize)]
pub(super) struct DedupRow {
    queue: String,
    dedup: String,
    accepted: u64,
}

impl DedupRow {
    pub(super) fn of(record: &DedupRecord) -> DedupRow {
        DedupRow {
            queue: record.queue.to_string(),
            dedup: record.dedup.as_str().to_owned(),
            accepted: record.accepted.0,
        }
    }

    pub(super) fn into_record(self, task: TaskId) -> Result<DedupRecord, String> {
        Ok(DedupRecord {
            task,
            queue: name(&self.queue, QueueName::parse)?,
            dedup: parsed_key(&self.dedup)?,
            accepted: Time(self.accepted),
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct ScheduleRow {
    name: String,
    every_ms: Option<u64>,
    cron: Option<(String, String)>,
    missed: u8,
    /// The submit as a message: its encoding, its bytes.
    submit: (u8, ByteBuf),
    account: Option<String>,
    made: u64,
    next: Option<u64>,
    fired: u64,
    last: Option<(u64, ByteBuf)>,
    #[serde(default)]
    queued_tasks: Option<u64>,
    #[serde(default)]
    queued_bytes: Option<u64>,
}

impl ScheduleRow {
    pub(super) fn of(record: &ScheduleRecord) -> ScheduleRow {
        // Each value stays in the encoding that it came in.
        let encoding = match record.submit.payload.kind() {
            PayloadKind::MessagePack => Encoding::MessagePack,
            _ => Encoding::Json,
        };
        let mut submit = Vec::new();
        let message = (*record.submit).clone().into();
        codec::encode_client(encoding, &Request { id: None, message }, &mut submit);
        let (every_ms, cron) = match &record.rhythm {
            Rhythm::Every { ms } => (Some(*ms), None),
            Rhythm::Cron { pattern, tz } => (None, Some((pattern.to_string(), tz.to_string()))),
        };
        ScheduleRow {
            name: record.name.to_string(),
            every_ms,
            cron,
            missed: record.missed as u8,
            submit: (u8::from(encoding == Encoding::MessagePack), ByteBuf::from(submit)),
            account: record.account.as_ref().map(ToString::to_string),
            made: record.made.0,
            next: record.next.map(|at| at.0),
            fired: record.fired,
            last: record.last.map(|(at, task)| (at.0, ByteBuf::from(task.0.to_be_bytes().to_vec()))),
            queued_tasks: record.queued_tasks,
            queued_bytes: record.queued_bytes,
        }
    }

    pub(super) fn into_record(self) -> Result<ScheduleRecord, String> {
        let last = |(at, task): (u64, ByteBuf)| -> Result<(Time, TaskId), String> {
            let task: [u8; 16] =
                task.into_vec().try_into().map_err(|_| "a task's id has another length than 16")?;
            Ok((Time(at), TaskId(u128::from_be_bytes(task))))
        };
        Ok(ScheduleRecord {
            name: ScheduleName::parse(&self.name)?,
            rhythm: match (self.every_ms, self.cron) {
                (Some(ms), None) => Rhythm::Every { ms },
                (None, Some((pattern, tz))) => Rhythm::Cron { pattern: pattern.into(), tz: tz.into() },
                _ => return Err("a schedule has either a period or a pattern".into()),
            },
            missed: if self.missed == Missed::None as u8 { Missed::None } else { Missed::One },
            submit: Arc::new(submit(self.submit.0 == 1, &self.submit.1)?),
            account: self.account.map(SmolStr::from),
            made: Time(self.made),
            next: self.next.map(Time),
            fired: self.fired,
            last: self.last.map(last).transpose()?,
            queued_tasks: self.queued_tasks,
            queued_bytes: self.queued_bytes,
        })
    }
}

fn submit(message_pack: bool, bytes: &[u8]) -> Result<Submit, String> {
    let encoding = if message_pack { Encoding::MessagePack } else { Encoding::Json };
    let frame = codec::decode_client(encoding, bytes).map_err(|error| format!("{error:?}"))?;
    match frame {
        ClientFrame::One(Ok(Request { message: ClientMessage::Submit(submit), .. })) => {
            Ok(*Box::<Submit>::from(submit))
        }
        _ => Err("a schedule's submit cannot be read".into()),
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct UnscheduleRow {
    pub(super) name: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SessionRow {
    key: (u64, u64),
    worker: String,
    account: Option<String>,
}

impl SessionRow {
    pub(super) fn of(record: &SessionRecord) -> SessionRow {
        SessionRow {
            key: split(record.key),
            worker: record.worker.to_string(),
            account: record.account.as_ref().map(ToString::to_string),
        }
    }

    pub(super) fn into_record(self) -> Result<SessionRecord, String> {
        Ok(SessionRecord {
            key: joined(self.key),
            worker: name(&self.worker, WorkerName::parse)?,
            account: self.account.map(SmolStr::from),
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct UnsessionRow {
    pub(super) key: (u64, u64),
}

/// A number of 128 bits as two that MessagePack has.
pub(super) fn split(number: u128) -> (u64, u64) {
    ((number >> 64) as u64, number as u64)
}

pub(super) fn joined((high, low): (u64, u64)) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// The keys of a task.
#[derive(Serialize, Deserialize, PartialEq)]
pub(super) struct KeysRow {
    assign: Option<u8>,
    sticky: Option<String>,
    order: Option<String>,
    fair: Option<String>,
    dedup: Option<String>,
}

impl KeysRow {
    pub(super) fn of(keys: &crate::core::record::Keys) -> KeysRow {
        let text = |key: &Option<Key>| key.as_ref().map(|key| key.as_str().to_owned());
        KeysRow {
            assign: keys.assign.map(|assign| assign as u8),
            sticky: text(&keys.sticky),
            order: text(&keys.order),
            fair: text(&keys.fair),
            dedup: text(&keys.dedup),
        }
    }

    pub(super) fn into_keys(self) -> Result<crate::core::record::Keys, String> {
        let key = |text: Option<String>| text.map(|text| parsed_key(&text)).transpose();
        Ok(crate::core::record::Keys {
            assign: self.assign.map(assign).transpose()?,
            sticky: key(self.sticky)?,
            order: key(self.order)?,
            fair: key(self.fair)?,
            dedup: key(self.dedup)?,
        })
    }
}
