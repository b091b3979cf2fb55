//! What the tests stand on: the real binary, and a socket and an HTTP client that share no code with
//! the product.

mod broker;
pub mod http;
pub mod jwt;
pub mod message_pack;
mod tokens;
mod ws;

use std::time::Duration;

pub use broker::{Broker, Child, Output, command};
pub use tokens::{ADMIN, Tokens};
pub use ws::{Heard, Ws, handshake, upgrade_request};

/// How long a test waits for what must come. Never reached but by a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Lets time go by, where that is what is tested.
pub fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "nothing is waited for but the time")]
    std::thread::sleep(time);
}

/// Tries until it is so: for what a test cannot be told, only ask.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        #[expect(clippy::disallowed_methods, reason = "only asked about, never told")]
        std::thread::sleep(Duration::from_millis(5));
    }
}
