//! A submit on its way from the door to the core.

use taskyard_proto::{Confirm, Payload, QueueName, Submit};

use super::time::Time;

/// What a producer asks for.
///
/// Most leave everything to their queue, and are a twentieth of what a submit may say: that much goes along with the
/// command. All of it would be six cache lines to fetch from the core of whoever read it, and an allocation to be given
/// back there.
#[derive(Debug, Clone, PartialEq)]
pub enum Submission {
    /// A task for now, on its queue's terms.
    Plain {
        /// The queue.
        queue: QueueName,
        /// What the worker gets.
        payload: Payload,
        /// When `accepted` is said; none: once it is durable.
        confirm: Option<Confirm>,
        /// Whether the producer hears what becomes of it.
        watch: bool,
    },
    /// Anything else.
    Full {
        /// The submit.
        submit: Box<Submit>,
        /// Its `run_at`, as a time.
        run_at: Option<Time>,
    },
}

impl From<Submit> for Submission {
    fn from(submit: Submit) -> Submission {
        Submission::new(Box::new(submit), None)
    }
}

impl From<Submission> for Box<Submit> {
    fn from(submission: Submission) -> Box<Submit> {
        match submission {
            Submission::Plain { queue, payload, confirm, watch } => {
                Box::new(Submit { confirm, watch, ..Submit::new(queue, payload) })
            }
            Submission::Full { submit, .. } => submit,
        }
    }
}

impl Submission {
    /// A submit; its `run_at`, if it has one, as a time.
    #[inline]
    pub fn new(submit: Box<Submit>, run_at: Option<Time>) -> Submission {
        let for_now = submit.delay_ms.is_none() && submit.run_at.is_none() && run_at.is_none();
        if !for_now || !leaves_all_to_the_queue(&submit) {
            return Submission::Full { submit, run_at };
        }
        let Submit { queue, payload, confirm, watch, .. } = *submit;
        Submission::Plain { queue, payload, confirm, watch }
    }

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        match self {
            Submission::Plain { queue, .. } => queue,
            Submission::Full { submit, .. } => &submit.queue,
        }
    }

    /// What the worker gets.
    pub fn payload(&self) -> &Payload {
        match self {
            Submission::Plain { payload, .. } => payload,
            Submission::Full { submit, .. } => &submit.payload,
        }
    }

    /// The same, for whoever has read the rest.
    pub(super) fn into_payload(self) -> Payload {
        match self {
            Submission::Plain { payload, .. } => payload,
            Submission::Full { submit, .. } => submit.payload,
        }
    }

    pub(super) fn confirm(&self) -> Option<Confirm> {
        match self {
            Submission::Plain { confirm, .. } => *confirm,
            Submission::Full { submit, .. } => submit.confirm,
        }
    }

    pub(super) fn watch(&self) -> bool {
        match self {
            Submission::Plain { watch, .. } => *watch,
            Submission::Full { submit, .. } => submit.watch,
        }
    }

    /// What it says beyond that, if anything.
    pub(super) fn full(&self) -> Option<&Submit> {
        match self {
            Submission::Plain { .. } => None,
            Submission::Full { submit, .. } => Some(submit),
        }
    }

    /// Its `run_at`, as a time.
    pub fn run_at(&self) -> Option<Time> {
        match self {
            Submission::Plain { .. } => None,
            Submission::Full { run_at, .. } => *run_at,
        }
    }

    /// Whether its task is on its queue's terms, now or later.
    pub(super) fn is_on_queue_terms(&self) -> bool {
        self.full().is_none_or(leaves_all_to_the_queue)
    }
}

/// Whether a submit says nothing that makes terms of its own.
fn leaves_all_to_the_queue(submit: &Submit) -> bool {
    submit.to.is_none()
        && submit.assign.is_none()
        && submit.sticky_key.is_none()
        && submit.order_key.is_none()
        && submit.fair_key.is_none()
        && submit.dedup_id.is_none()
        && submit.priority.is_none()
        && submit.ttl_ms.is_none()
        && submit.ack_timeout_ms.is_none()
        && submit.timeout_ms.is_none()
        && submit.max_attempts.is_none()
        && submit.backoff.is_none()
        && submit.complete.is_none()
        && submit.headers.is_empty()
}

#[cfg(test)]
mod tests {
    use taskyard_proto::codec::{ClientFrame, decode_client};
    use taskyard_proto::{ClientMessage, Encoding};

    use super::*;
    use crate::core::Command;

    /// It goes from core to core with each task.
    #[test]
    fn a_command_stays_small() {
        assert_eq!((size_of::<Submission>(), size_of::<Command>()), (40, 112));
    }

    /// What each field may say beside its default.
    const FIELDS: [(&str, &str); 20] = [
        ("queue", "\"q\""),
        ("payload", "{\"a\":1}"),
        ("headers", "{\"h\":\"v\"}"),
        ("to", "{\"group\":\"g\"}"),
        ("assign", "\"least_loaded\""),
        ("sticky_key", "\"s\""),
        ("order_key", "\"o\""),
        ("fair_key", "\"f\""),
        ("priority", "9"),
        ("delay_ms", "5"),
        ("run_at", "\"2030-01-31T12:00:00Z\""),
        ("ttl_ms", "1000"),
        ("ack_timeout_ms", "1000"),
        ("timeout_ms", "1000"),
        ("max_attempts", "2"),
        ("backoff", "{\"base_ms\":1}"),
        ("dedup_id", "\"d\""),
        ("complete", "\"any\""),
        ("confirm", "\"memory\""),
        ("watch", "true"),
    ];

    fn submit(field: (&str, &str)) -> Box<Submit> {
        let (name, value) = field;
        let said = if name == "queue" { String::new() } else { format!(",\"{name}\":{value}") };
        let text = format!("{{\"type\":\"submit\",\"queue\":\"q\"{said}}}");
        match decode_client(Encoding::Json, text.as_bytes()) {
            Ok(ClientFrame::One(Ok(request))) => match request.message {
                ClientMessage::Submit(submit) => submit,
                other => panic!("{other:?}"),
            },
            other => panic!("{text}: {other:?}"),
        }
    }

    /// A field that is new to the protocol must not get lost on the way.
    #[test]
    fn nothing_that_a_submit_says_is_lost() {
        let (_, fields) = ClientMessage::TABLE.iter().find(|(name, _)| *name == "submit").unwrap();
        assert_eq!(FIELDS.map(|(name, _)| name).to_vec(), fields.to_vec());
        for field in FIELDS {
            let submit = submit(field);
            let submission = Submission::new(submit.clone(), None);
            let is_plain = matches!(submission, Submission::Plain { .. });
            assert_eq!(is_plain, ["queue", "payload", "confirm", "watch"].contains(&field.0), "{field:?}");
            assert_eq!((submission.queue(), submission.payload()), (&submit.queue, &submit.payload));
            assert_eq!((submission.confirm(), submission.watch()), (submit.confirm, submit.watch));
            let on_queue_terms = is_plain || ["delay_ms", "run_at"].contains(&field.0);
            assert_eq!(submission.is_on_queue_terms(), on_queue_terms, "{field:?}");
            assert_eq!(Box::<Submit>::from(submission), submit, "{field:?}");
        }
    }
}
