//! What the core is told of somebody.

use std::sync::Arc;

use super::{Identity, Source};
use crate::core::Access;

impl Identity {
    /// For the core: none for everybody while authentication is off, who may do all.
    pub fn access(&self) -> Option<Arc<Access>> {
        if matches!(self.source, Source::Anyone) {
            return None;
        }
        Some(Arc::new(Access {
            account: self.account.clone(),
            grants: Arc::clone(&self.grants),
            queued_tasks: self.limits.queued_tasks,
            queued_bytes: self.limits.queued_bytes,
        }))
    }
}
