//! File descriptors: one for each socket, here and in the server.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Failed;

/// What a process has open beside its sockets: its store, its runtime, its log.
const OTHERS: u64 = 200;

/// Raises the soft limit to the hard one; whatever is started from here on inherits it. Says how many
/// there may be.
pub(crate) fn raise() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => soft,
    }
}

/// Fails, in words, where so many sockets cannot be open at a time.
pub(crate) fn check(sockets: usize, flag: &str) -> Result<(), Failed> {
    let (has, needs) = (raise(), sockets as u64 + OTHERS);
    if has >= needs {
        return Ok(());
    }
    let fits = has.saturating_sub(OTHERS);
    let text = format!(
        "{sockets} sockets need {needs} file descriptors, in this process and in the server, and a process may have \
         {has}: give {flag} {fits} at most, or raise the hard limit (`ulimit -Hn`)"
    );
    Err(text.into())
}
