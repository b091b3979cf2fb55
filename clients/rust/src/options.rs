//! How a client or a worker is set up.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taskyard_proto::message::UNCONFIRMED_MAX;
use taskyard_proto::{Encoding, GroupName, Headers, Secret, ServerMessage, Welcome, WorkerName};

use crate::connection::Dialer;
use crate::endpoint::{Endpoint, UrlError};
use crate::held::Held;
use crate::receiver::Closed;
use crate::reconnect::Reconnect;

/// Everything that can be chosen about a connection; only the URL must be.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub(crate) endpoint: Endpoint,
    pub(crate) dialer: Option<Dialer>,
    pub(crate) worker: Option<WorkerName>,
    pub(crate) groups: Vec<GroupName>,
    pub(crate) labels: Headers,
    pub(crate) program: String,
    pub(crate) batch: bool,
    pub(crate) window: usize,
    pub(crate) reconnect: Reconnect,
    pub(crate) wait_for_broker: bool,
    pub(crate) on_event: Option<EventHook>,
    /// What a worker holds; a session of others is not resumed.
    pub(crate) held: Option<Arc<Held>>,
}

/// How many submits may wait for their answer, unless told otherwise.
pub const WINDOW: usize = 256;

impl ClientOptions {
    /// The defaults for the broker at `url`, as in `ws://127.0.0.1:7070`.
    pub fn new(url: &str) -> Result<ClientOptions, UrlError> {
        Ok(ClientOptions {
            endpoint: Endpoint::parse(url)?,
            dialer: None,
            worker: None,
            groups: Vec::new(),
            labels: Headers::default(),
            program: concat!("taskyard-client ", env!("CARGO_PKG_VERSION")).into(),
            batch: false,
            window: WINDOW,
            reconnect: Reconnect::Always,
            wait_for_broker: false,
            on_event: None,
            held: None,
        })
    }

    /// The token to show; none by default.
    pub fn token(mut self, token: &str) -> Self {
        self.endpoint.token = Some(Secret::new(token));
        self
    }

    /// How messages are spelled; MessagePack by default.
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.endpoint.encoding = encoding;
        self
    }

    /// How long a connect may take, until `welcome`; 10 s by default.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.endpoint.connect_timeout = limit;
        self
    }

    /// Trusts the authorities of this PEM file too, where the URL asks for TLS; by default those of the
    /// system alone.
    #[cfg(feature = "tls")]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.endpoint.tls = self.endpoint.tls.ca_file(path);
        self
    }

    /// Shows this certificate to a broker that asks for one: its PEM file, and that of its key.
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        self.endpoint.tls = self.endpoint.tls.client_certificate(cert_file, key_file);
        self
    }

    /// Where the broker is and how to speak to it, as for [`http::get_from`](crate::http::get_from).
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens the streams under the connections; TCP by default, and TLS where the URL asks for it.
    pub fn dialer(mut self, dialer: Dialer) -> Self {
        self.dialer = Some(dialer);
        self
    }

    /// The name that tasks can be addressed to; the broker makes one up by default.
    pub fn worker(mut self, name: WorkerName) -> Self {
        self.worker = Some(name);
        self
    }

    /// The groups to be in; none by default.
    pub fn groups(mut self, groups: impl IntoIterator<Item = GroupName>) -> Self {
        self.groups = groups.into_iter().collect();
        self
    }

    /// What operators see beside the name.
    pub fn labels(mut self, labels: Headers) -> Self {
        self.labels = labels;
        self
    }

    /// What program this is, for operators; cut to 128 bytes.
    pub fn program(mut self, text: impl Into<String>) -> Self {
        self.program = text.into();
        self
    }

    /// Whether messages that queue up share a frame, both ways; off by default.
    pub fn batch(mut self, batch: bool) -> Self {
        self.batch = batch;
        self
    }

    /// How many submits may wait for their answer: 1 to 1024, 256 by default. What is out of range
    /// becomes the nearest that is not; a broker that allows fewer is obeyed.
    pub fn window(mut self, submits: usize) -> Self {
        self.window = submits.clamp(1, UNCONFIRMED_MAX as usize);
        self
    }

    /// Whether and for how long a lost connection is made again; always by default.
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// Whether the first connect is tried again like any later one. By default its failure is an
    /// error at once: it is most often a wrong address.
    pub fn wait_for_broker(mut self, wait: bool) -> Self {
        self.wait_for_broker = wait;
        self
    }

    /// Is called with what happens to the connection, and with what nobody waits for. It runs
    /// between two reads: it must not block.
    pub fn on_event(mut self, hook: impl Fn(ClientEvent) + Send + Sync + 'static) -> Self {
        self.on_event = Some(EventHook(Arc::new(hook)));
        self
    }
}

/// What happens to a client's connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ClientEvent {
    /// A connection is up.
    Connected {
        /// Counts the client's connections, from 1.
        connection: u64,
        /// What the broker said.
        welcome: Welcome,
    },
    /// A connection has ended.
    Disconnected {
        /// Which one.
        connection: u64,
        /// How.
        closed: Closed,
    },
    /// A connect has failed.
    ConnectFailed {
        /// Why.
        error: String,
    },
    /// The next connect comes after this long.
    Retry {
        /// How long.
        after: Duration,
    },
    /// The broker sent what nobody waits for: an event, a room's message, an error about a message
    /// without an answer.
    Message {
        /// The connection that it came over.
        connection: u64,
        /// What it is.
        message: ServerMessage,
    },
    /// There will be no further connection.
    Ended {
        /// Why.
        closed: Closed,
    },
}

#[derive(Clone)]
pub(crate) struct EventHook(pub(crate) Arc<dyn Fn(ClientEvent) + Send + Sync>);

impl fmt::Debug for EventHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventHook")
    }
}
