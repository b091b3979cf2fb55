//! Tasks that wait for long, in a fraction of their memory.
//!
//! Of ten million tasks that wait all but a few are alike: they are queued, nothing has happened to them yet, and their
//! payloads have left memory. Of such a task there is its id, its times and its place, and of all this what differs from
//! its neighbours'.

use std::sync::Arc;

use taskyard_proto::{Payload, TaskId};

use super::record::{TaskSpec, Terms};
use super::task::{Again, Held, Past, Share, ShareState, Task};
use super::time::Time;
use crate::columns::Columns;
use crate::slots::Pack;

/// Neighbours of a task that may have the same terms are looked for among so many kinds.
const ALIKE: usize = 4;

/// Tasks that are packed together.
#[derive(Debug)]
pub(super) struct Tasks {
    /// What they were submitted with; as many as there are kinds of them.
    terms: Box<[Arc<Terms>]>,
    columns: Columns<COLUMNS>,
}

const COLUMNS: usize = 10;

/// The columns in which an id stands, in halves.
const ID: [usize; 2] = [0, 1];

impl Pack for Task {
    type Packed = Tasks;

    fn is_settled(&self) -> bool {
        let waits = match self.first.state {
            ShareState::Scheduled { .. } | ShareState::Queued { .. } | ShareState::Retrying { .. } => true,
            ShareState::Leased(_) | ShareState::Over(_) => false,
        };
        // An empty payload that is not null is more than a row says; there are few.
        let is_away = match self.held {
            Held::Away => true,
            Held::Here => self.payload.is_null() && self.payload_bytes == 0,
            _ => false,
        };
        waits && is_away && self.first.notes.is_none() && !self.decided && !self.cancelling
    }

    fn pack<'a>(rows: impl Iterator<Item = &'a Task>) -> Tasks {
        let mut terms: Vec<Arc<Terms>> = Vec::new();
        let rows: Vec<[u64; COLUMNS]> = rows
            .map(|task| {
                let mut known = terms.iter().enumerate().rev().take(ALIKE);
                let kind = match known.find(|(_, known)| Arc::ptr_eq(known, &task.spec.terms)) {
                    Some((kind, _)) => kind,
                    None => {
                        terms.push(Arc::clone(&task.spec.terms));
                        terms.len() - 1
                    }
                };
                row_of(task, kind)
            })
            .collect();
        Tasks { terms: terms.into(), columns: Columns::new(&rows) }
    }

    fn unpack(packed: &Tasks, nth: usize) -> Task {
        task_of(packed.columns.row(nth), &packed.terms)
    }

    fn id(&self) -> u128 {
        self.spec.id().0
    }

    fn packed_id(packed: &Tasks, nth: usize) -> u128 {
        let [high, low] = ID.map(|column| u128::from(packed.columns.cell(nth, column)));
        high << 64 | low
    }
}

fn row_of(task: &Task, kind: usize) -> [u64; COLUMNS] {
    // Each field by its name: one that is new must find its place here.
    let Task {
        spec,
        payload: _,
        payload_bytes,
        queue,
        events,
        held: _,
        decided: _,
        cancelling: _,
        restored,
        first,
    } = task;
    let Share { state, charged, lost, past, delivered_stored, counted, lease_stored, free_returns, notes: _ } =
        first;
    let TaskSpec { seq, accepted, .. } = spec;
    let (tag, time) = match state {
        ShareState::Queued { since } => (0, *since),
        ShareState::Scheduled { due } => (1, *due),
        ShareState::Retrying { due } => (2, *due),
        ShareState::Leased(_) | ShareState::Over(_) => unreachable!("such a task has not settled"),
    };
    let past = match past {
        Past::Never => 0,
        Past::Out => 1,
        Past::Back(again) => 2 + *again as u64,
    };
    let flags = [lost, delivered_stored, counted, lease_stored, restored];
    let flags = flags.into_iter().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
    let id = spec.id().0;
    [
        (id >> 64) as u64,
        id as u64,
        *seq,
        accepted.0,
        time.0.wrapping_sub(accepted.0),
        kind as u64,
        u64::from(*payload_bytes),
        u64::from(*queue),
        u64::from(*events),
        u64::from(*charged) << 24 | u64::from(*free_returns) << 16 | flags << 8 | past << 4 | tag,
    ]
}

fn task_of(row: [u64; COLUMNS], terms: &[Arc<Terms>]) -> Task {
    let [id_high, id_low, seq, accepted, later, kind, payload_bytes, queue, events, rest] = row;
    let id = TaskId(u128::from(id_high) << 64 | u128::from(id_low));
    let time = Time(accepted.wrapping_add(later));
    let flag = |nth: u32| rest >> (8 + nth) & 1 == 1;
    let past = match (rest >> 4 & 15) as usize {
        0 => Past::Never,
        1 => Past::Out,
        again => Past::Back(Again::ALL[again - 2]),
    };
    let first = Share {
        state: match rest & 15 {
            0 => ShareState::Queued { since: time },
            1 => ShareState::Scheduled { due: time },
            _ => ShareState::Retrying { due: time },
        },
        charged: (rest >> 24) as u16,
        lost: flag(4),
        past,
        delivered_stored: flag(3),
        counted: flag(2),
        lease_stored: flag(1),
        free_returns: (rest >> 16) as u8,
        notes: None,
    };
    Task {
        spec: TaskSpec::new(id, seq, Time(accepted), Arc::clone(&terms[kind as usize])),
        payload: Payload::NULL,
        payload_bytes: payload_bytes as u32,
        queue: queue as u32,
        events: events as u32,
        held: if payload_bytes == 0 { Held::Here } else { Held::Away },
        decided: false,
        cancelling: false,
        restored: flag(0),
        first,
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::TaskState;

    use super::super::task::tests::accepted_at;
    use super::*;

    /// Tasks that differ in all that a task that has settled may differ in.
    fn settled() -> Vec<Task> {
        let mut tasks = Vec::new();
        for nth in 0..120_u32 {
            let mut task = accepted_at(1_798_761_600_000_000 + u64::from(nth) * 7);
            let accepted = task.spec.accepted;
            let id = TaskId(
                0x0192_9e5e_1c00_7abc << 64 | u128::from(nth).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c),
            );
            task.spec = TaskSpec::new(id, u64::from(nth) * 3 + 1, accepted, Arc::clone(&task.spec.terms));
            if nth % 9 > 0 {
                // As its neighbour: a kind.
                let before: &Task = &tasks[nth as usize - 1];
                task.spec.terms = Arc::clone(&before.spec.terms);
            }
            task.payload_bytes = 16 << 20 >> (nth % 26);
            task.held = if task.payload_bytes == 0 { Held::Here } else { Held::Away };
            task.queue = nth % 3;
            (task.events, task.restored) = (nth % 5 * 1_000_000_000, nth % 2 == 0);
            let due = Time(if nth % 11 == 0 { u64::MAX } else { accepted.0 + u64::from(nth) });
            task.first.state = match nth % 4 {
                0 => ShareState::Scheduled { due },
                1 => ShareState::Retrying { due },
                2 => ShareState::Queued { since: due },
                _ => ShareState::Queued { since: Time(0) },
            };
            (task.first.charged, task.first.free_returns) = ((nth * 997) as u16, (nth * 31) as u8);
            task.first.past = match nth as usize % 9 {
                0 => Past::Never,
                1 => Past::Out,
                _ => Past::Back(Again::ALL[nth as usize % Again::ALL.len()]),
            };
            task.first.lost = nth & 1 > 0;
            task.first.delivered_stored = nth & 2 > 0;
            task.first.counted = nth & 4 > 0;
            task.first.lease_stored = nth & 8 > 0;
            tasks.push(task);
        }
        tasks
    }

    #[test]
    fn a_task_is_the_same_afterwards() {
        let tasks = settled();
        assert!(tasks.iter().all(Task::is_settled));
        let packed = Task::pack(tasks.iter());
        for (nth, task) in tasks.iter().enumerate() {
            // All there is of a task is in what it prints.
            assert_eq!(format!("{:?}", Task::unpack(&packed, nth)), format!("{task:?}"));
            assert!(Arc::ptr_eq(&Task::unpack(&packed, nth).spec.terms, &task.spec.terms));
            assert_eq!(Task::packed_id(&packed, nth), task.id());
        }
        assert_eq!(packed.terms.len(), 14, "a kind of terms is there once");
    }

    #[test]
    fn what_has_more_than_others_stays_as_it_is() {
        let settles = |change: fn(&mut Task)| {
            let mut task = settled().swap_remove(2);
            change(&mut task);
            task.is_settled()
        };
        assert!(settles(|_| {}));
        assert!(!settles(|task| task.held = Held::Here));
        assert!(settles(|task| (task.held, task.payload_bytes) = (Held::Here, 0)));
        assert!(!settles(|task| {
            (task.held, task.payload_bytes, task.payload) = (Held::Here, 0, Payload::binary(Vec::new()));
        }));
        assert!(!settles(|task| task.held = Held::Coming));
        assert!(!settles(|task| task.cancelling = true));
        assert!(!settles(|task| task.decided = true));
        assert!(!settles(|task| _ = task.first.notes_mut()));
        assert!(!settles(|task| task.first.state = ShareState::Over(TaskState::Dead)));
    }
}
