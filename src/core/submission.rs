//! A submit on its way from the door to the core.

use taskyard_proto::{AnySubmit, Confirm, Payload, PlainSubmit, QueueName, Submit};

use super::time::Time;

/// What a producer asks for.
///
/// Most leave everything to their queue: that much goes along with the command. All that a submit may say would be six
/// cache lines to fetch from the core of whoever read it, and an allocation to be given back there.
#[derive(Debug, Clone, PartialEq)]
pub enum Submission {
    /// A task for now, on its queue's terms.
    Plain(PlainSubmit),
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
        Submission::new(submit.into(), None)
    }
}

impl From<Submission> for Box<Submit> {
    fn from(submission: Submission) -> Box<Submit> {
        match submission {
            Submission::Plain(submit) => AnySubmit::Plain(submit).into(),
            Submission::Full { submit, .. } => submit,
        }
    }
}

impl Submission {
    /// A submit; its `run_at`, if it has one, as a time.
    #[inline]
    pub fn new(submit: AnySubmit, run_at: Option<Time>) -> Submission {
        match (submit, run_at) {
            (AnySubmit::Plain(submit), None) => Submission::Plain(submit),
            (submit, run_at) => Submission::Full { submit: submit.into(), run_at },
        }
    }

    /// The queue.
    pub fn queue(&self) -> &QueueName {
        match self {
            Submission::Plain(submit) => &submit.queue,
            Submission::Full { submit, .. } => &submit.queue,
        }
    }

    /// What the worker gets.
    pub fn payload(&self) -> &Payload {
        match self {
            Submission::Plain(submit) => &submit.payload,
            Submission::Full { submit, .. } => &submit.payload,
        }
    }

    /// The same, for whoever has read the rest.
    pub(super) fn into_payload(self) -> Payload {
        match self {
            Submission::Plain(submit) => submit.payload,
            Submission::Full { submit, .. } => submit.payload,
        }
    }

    pub(super) fn confirm(&self) -> Option<Confirm> {
        match self {
            Submission::Plain(submit) => submit.confirm,
            Submission::Full { submit, .. } => submit.confirm,
        }
    }

    pub(super) fn watch(&self) -> bool {
        match self {
            Submission::Plain(submit) => submit.watch,
            Submission::Full { submit, .. } => submit.watch,
        }
    }

    /// What it says beyond that, if anything.
    pub(super) fn full(&self) -> Option<&Submit> {
        match self {
            Submission::Plain(_) => None,
            Submission::Full { submit, .. } => Some(submit),
        }
    }

    /// Its `run_at`, as a time.
    pub fn run_at(&self) -> Option<Time> {
        match self {
            Submission::Plain(_) => None,
            Submission::Full { run_at, .. } => *run_at,
        }
    }

    /// Whether its task is on its queue's terms, now or later.
    pub(super) fn is_on_queue_terms(&self) -> bool {
        self.full().is_none_or(Submit::is_on_queue_terms)
    }
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

    fn submit(field: (&str, &str)) -> AnySubmit {
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
            let is_plain = matches!(submission, Submission::Plain(_));
            assert_eq!(is_plain, ["queue", "payload", "confirm", "watch"].contains(&field.0), "{field:?}");
            let submit = Box::<Submit>::from(submit);
            assert_eq!((submission.queue(), submission.payload()), (&submit.queue, &submit.payload));
            assert_eq!((submission.confirm(), submission.watch()), (submit.confirm, submit.watch));
            let on_queue_terms = is_plain || ["delay_ms", "run_at"].contains(&field.0);
            assert_eq!(submission.is_on_queue_terms(), on_queue_terms, "{field:?}");
            assert_eq!(Box::<Submit>::from(submission), submit, "{field:?}");
        }
    }

    /// What says nothing, or nothing to this version, makes no submit of another kind.
    #[test]
    fn a_submit_is_plain_however_it_leaves_all_to_its_queue() {
        let plain = AnySubmit::Plain(PlainSubmit::new(QueueName::parse("q").unwrap(), Payload::NULL));
        for (name, value) in [("priority", "null"), ("headers", "{}"), ("run_at", "null"), ("later", "7")] {
            assert_eq!(submit((name, value)), plain, "{name}");
        }
        let full = Submit { watch: true, ..Submit::new(QueueName::parse("q").unwrap(), Payload::NULL) };
        assert_eq!(AnySubmit::from(full), submit(("watch", "true")));
    }
}
