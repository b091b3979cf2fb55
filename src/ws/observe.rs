//! Tells one socket again and again how the broker is.

use std::sync::Arc;
use std::time::Duration;

use taskyard_proto::{QueueList, RequestId, Response};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::core::Grants;
use crate::outbox::Outbox;
use crate::overview::Overviews;

/// What a socket asked to be told; ends when it is dropped.
pub(super) struct Observation(JoinHandle<()>);

/// What to tell, and to whom.
pub(super) struct Wish {
    /// The `id` of the `observe`.
    pub(super) reference: Option<RequestId>,
    /// How often.
    pub(super) every: Duration,
    /// Of which queues one by one.
    pub(super) queues: Option<QueueList>,
    /// What may be told.
    pub(super) grants: Arc<Grants>,
    /// Where it goes.
    pub(super) outbox: Arc<Outbox>,
}

impl Observation {
    /// Begins once `reached` is told: then whatever was said before is in the outbox.
    pub(super) fn begin(overviews: Overviews, wish: Wish, reached: oneshot::Receiver<()>) -> Observation {
        Observation(tokio::spawn(async move {
            if reached.await.is_err() {
                // The broker is gone, and the socket goes too.
                return;
            }
            let mut ticks = tokio::time::interval(wish.every);
            // After a stall there is one more, not all that were missed.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut first = true;
            while !wish.outbox.is_closing() {
                ticks.tick().await;
                // What the client did just before is seen in the first.
                let look = if std::mem::take(&mut first) {
                    overviews.fresh().await
                } else {
                    overviews.shared().await
                };
                let Ok(look) = look else { return };
                let named = wish.queues.as_ref().map(QueueList::names);
                let message = overviews.show(&look, &wish.grants, named).into();
                wish.outbox.push_one(Response { reference: wish.reference.clone(), message });
            }
        }))
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.0.abort();
    }
}
