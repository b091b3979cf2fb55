//! RabbitMQ over AMQP 0-9-1: publishes with confirms, consumers with a prefetch, acks of all that came
//! together. A classic queue confirms a persistent message once it is written, and syncs it later; a
//! quorum queue (here of one member) confirms what its log has synced.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Failed;
use crate::drivers::server::{Server, Spec, find, free_address};
use crate::drivers::{Depth, Dialect, Nth, Place, Producer, Role, Step, Worker, amqp};

/// Where Debian keeps the server's own script. The one in the PATH changes the user first, and with it
/// who owns the store.
pub(crate) const BESIDE: &[&str] = &["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    Transient,
    Persistent,
    Quorum,
}

/// Starts a node with a port mapper of its own: one that is left behind would be ours.
pub(crate) async fn start(program: PathBuf, place: &Place) -> Result<Server, Failed> {
    let spec = Spec::new(program, "rabbitmq", &place.dir)?;
    let dir = spec.directory.clone();
    let mapper = free_address()?;
    let distribution = free_address()?.port().to_string();
    let config = dir.join("rabbitmq.conf");
    let listen = format!("listeners.tcp.1 = {}\ncollect_statistics_interval = 60000\n", spec.address);
    std::fs::write(&config, listen)?;
    let plugins = dir.join("plugins");
    std::fs::write(&plugins, "[].\n")?;
    let epmd = find("epmd", &[]).ok_or("epmd, Erlang's port mapper, is not there: it comes with Erlang")?;
    let companion = Command::new(epmd)
        .args(["-address", "127.0.0.1", "-port", &mapper.port().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let spec = spec
        // Without it a shell would stay between us and the server.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env("RABBITMQ_NODENAME", "bench@localhost")
        .env("RABBITMQ_DIST_PORT", distribution)
        .env("RABBITMQ_CONFIG_FILE", config)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins)
        .env("RABBITMQ_MNESIA_BASE", dir.join("store"))
        .env("RABBITMQ_LOG_BASE", dir.join("log"))
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        .env("ERL_EPMD_PORT", mapper.port().to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("HOME", dir)
        .arg("-noinput");
    Server::with_companion(spec, Some(companion)).await
}

pub(crate) struct Rabbit {
    pub(crate) queue: Queue,
    pub(crate) credit: usize,
}

impl Dialect for Rabbit {
    fn prepare(&self) -> Vec<Step> {
        let mut steps = amqp::connect();
        steps.push(match self.queue {
            Queue::Transient => amqp::declare(false, "classic"),
            Queue::Persistent => amqp::declare(true, "classic"),
            Queue::Quorum => amqp::declare(true, "quorum"),
        });
        steps
    }

    fn open(&self, role: Role, _: Nth) -> Vec<Step> {
        let mut steps = amqp::connect();
        match role {
            Role::Producer => steps.push(amqp::select()),
            Role::Worker => steps.extend(amqp::consume(self.credit)),
        }
        steps
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(amqp::Publishing::new(self.queue != Queue::Transient))
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(amqp::Consuming::default())
    }

    fn depth(&self) -> Option<Depth> {
        Some(Depth { before: amqp::connect(), ask: amqp::ask_depth().send, read: amqp::depth })
    }
}
