//! Fan-out: what one says reaches thousands of sockets. A message is over when the last of them has it.

mod audience;
mod board;
mod counter;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::broker::usage;
use crate::peers::{Kind, Node, Peer};
use crate::record::{Promise, Record, Records};
use crate::socket::{BINARY, CLOSE, Greeting, Io, Socket, TEXT, client_frame, closed, split_frame};
use crate::{Failed, descriptors, median, print};
use audience::Audience;
use board::{Board, Told};
use counter::Counts;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many sockets listen
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    pub(crate) sockets: Vec<usize>,
    /// Messages that may be under way: said, and not yet with every socket
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) window: u16,
    /// Seconds of each measurement, after one that is not counted
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Rounds, the systems in turn; the medians are quoted
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: u32,
    /// Only these systems, as the table names them [default: all]
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Threads that receive [default: as many as there are cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) node: Node,
    /// Where servers keep what they store
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// The payload's length, in bytes.
const PAYLOAD_BYTES: usize = 256;
/// What is not counted: connections write, and pages are touched, for the first time.
const WARM_UP: Duration = Duration::from_secs(1);
/// For so long messages are said one after the other, each when the last socket has the one before.
const ALONE: Duration = Duration::from_secs(1);
/// Messages of one write.
const MESSAGES_PER_WRITE: usize = 64;
/// How long nothing may move: a message that was lost comes never.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who says it to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    Bare,
    Room,
    Tasks,
    DurableTasks,
    Nats,
    Nchan,
    Ws,
    SocketIo,
}

impl System {
    const ALL: [System; 8] = [
        System::Bare,
        System::Room,
        System::Tasks,
        System::DurableTasks,
        System::Nats,
        System::Nchan,
        System::Ws,
        System::SocketIo,
    ];

    fn kind(self) -> Kind {
        match self {
            System::Bare => Kind::Bare,
            System::Room | System::Tasks | System::DurableTasks => Kind::Broker,
            System::Nats => Kind::Nats,
            System::Nchan => Kind::Nchan,
            System::Ws => Kind::Ws,
            System::SocketIo => Kind::SocketIo,
        }
    }

    /// What `--only` calls it.
    fn name(self) -> &'static str {
        match self {
            System::Bare => "bare",
            System::Room => "room",
            System::Tasks => "tasks",
            System::DurableTasks => "durable-tasks",
            System::Nats => "nats",
            System::Nchan => "nchan",
            System::Ws => "ws",
            System::SocketIo => "socket.io",
        }
    }

    fn setting(self) -> &'static str {
        match self {
            System::Bare => "hyper and fastwebsockets, a frame encoded once",
            System::Room => "a room",
            System::Tasks => "tasks to all, each acked; memory",
            System::DurableTasks => "tasks to all, each acked; embedded",
            System::Nats => "a subject, over WebSocket",
            System::Nchan => "a channel, a process a core",
            System::Ws => "send to each",
            System::SocketIo => "broadcast.emit, WebSocket alone",
        }
    }

    fn promise(self) -> Promise {
        match self {
            System::Tasks => Promise::Memory,
            System::DurableTasks => Promise::Synced,
            _ => Promise::None,
        }
    }

    fn is_ours(self) -> bool {
        matches!(self.kind(), Kind::Bare | Kind::Broker)
    }

    fn is_tasks(self) -> bool {
        matches!(self, System::Tasks | System::DurableTasks)
    }

    /// What who listens says first, beside what its kind of server wants.
    fn joins(self, window: u16) -> Option<Greeting> {
        let (opcode, says, hears) = match self {
            System::Room => (TEXT, r#"{"type":"join","id":1,"room":"bench"}"#.to_owned(), r#""ok""#),
            System::Tasks | System::DurableTasks => {
                let says = format!(r#"{{"type":"subscribe","id":1,"queue":"bench","credit":{window}}}"#);
                (TEXT, says, r#""subscribed""#)
            }
            System::Nats => (BINARY, "SUB bench 1\r\nPING\r\n".to_owned(), "PONG"),
            _ => return None,
        };
        Some(Greeting { opcode, says: says.into_bytes(), hears })
    }

    /// The frame that says it.
    fn message(self) -> Vec<u8> {
        // In quotes it is JSON, and as long as the payload is to be.
        let text = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES - 2));
        let (opcode, body) = match self {
            System::Bare | System::Ws | System::Nchan => (TEXT, text),
            System::Room => (TEXT, format!(r#"{{"type":"publish","room":"bench","payload":{text}}}"#)),
            System::Tasks | System::DurableTasks => {
                (TEXT, format!(r#"{{"type":"submit","queue":"bench","to":{{"all":true}},"payload":{text}}}"#))
            }
            System::Nats => (BINARY, format!("PUB bench {PAYLOAD_BYTES}\r\n{text}\r\n")),
            System::SocketIo => (TEXT, format!(r#"42["m",{text}]"#)),
        };
        client_frame(opcode, body.as_bytes())
    }

    /// How messages are told from what else is heard.
    fn counts(self) -> Counts {
        match self {
            // NATS puts as many into a frame as it has.
            System::Nats => {
                Counts::Stream(format!("MSG bench 1 {PAYLOAD_BYTES}\r\n\r\n").len() + PAYLOAD_BYTES)
            }
            System::Tasks | System::DurableTasks => Counts::Leases,
            _ => Counts::Frames(PAYLOAD_BYTES),
        }
    }
}

pub(crate) async fn run(args: Args, records: &mut Records) -> Result<(), Failed> {
    let most = args.sockets.iter().copied().max().unwrap_or(0);
    if args.sockets.contains(&0) {
        return Err("--sockets 0 is nobody to say something to".into());
    }
    descriptors::check(most, "--sockets")?;
    let mut systems = Vec::new();
    for system in asked(&args.only)? {
        systems.extend(system.kind().found(&args.node).map(|name| (system, name)));
    }
    print(&format!(
        "fan-out, {PAYLOAD_BYTES} B to all sockets, {} messages under way, {} s, {} rounds, systems in turn",
        args.window, args.seconds, args.rounds
    ));
    let first = records.all.len();
    for sockets in &args.sockets {
        for round in 1..=args.rounds {
            for (system, name) in &systems {
                let values = match measure(&args, *system, *sockets).await {
                    Ok(values) => values,
                    Err(error) => {
                        let text = format!("{name}, {}, {sockets} sockets: {error}", system.setting());
                        if system.is_ours() {
                            return Err(text.into());
                        }
                        // A peer that fails once must not end what takes minutes.
                        print(&format!("FAILED in round {round}, which is left out for it: {text}"));
                        continue;
                    }
                };
                print(&format!(
                    "round {round}  {sockets:>6} sockets  {:<14} {:>10.0} deliveries/s",
                    system.name(),
                    values["deliveries_per_s"]
                ));
                records.add(Record {
                    scenario: "fanout".into(),
                    system: name.clone(),
                    setting: system.setting().into(),
                    promise: system.promise(),
                    load: format!("{sockets} sockets"),
                    round,
                    values,
                })?;
            }
        }
    }
    print_table(&args, &systems, &records.all[first..]);
    Ok(())
}

fn asked(only: &[String]) -> Result<Vec<System>, Failed> {
    if only.is_empty() {
        return Ok(System::ALL.to_vec());
    }
    let named = |name: &String| {
        System::ALL.into_iter().find(|system| system.name() == name).ok_or_else(|| {
            let known = System::ALL.map(System::name).join(", ");
            format!("--only {name}: there is no such system; there are {known}")
        })
    };
    Ok(only.iter().map(named).collect::<Result<_, String>>()?)
}

fn print_table(args: &Args, systems: &[(System, String)], records: &[Record]) {
    print("");
    print(
        "sockets  system                                  deliveries/s (min … max)       of bare  last has it, ms: p50    \
         p99   alone p50   p99   CPU µs each: server   generator  peak MiB",
    );
    for sockets in &args.sockets {
        let load = format!("{sockets} sockets");
        let all = |system: System, value: &str| -> Vec<f64> {
            let of = records.iter().filter(|r| r.load == load && r.setting == system.setting());
            of.filter_map(|record| record.values.get(value).copied()).collect()
        };
        let bare = median(&all(System::Bare, "deliveries_per_s"));
        for (system, name) in systems {
            let mid = |value: &str| median(&all(*system, value));
            let rates = all(*system, "deliveries_per_s");
            let (min, max) = rates.iter().fold((f64::MAX, 0f64), |(a, b), r| (a.min(*r), b.max(*r)));
            let row = format!("{name}, {}", system.setting());
            print(&format!(
                "{sockets:>7}  {row:<60} {:>9.0} ({min:.0} … {max:.0}) {:>6.2} {:>8.1} {:>8.1} {:>8.1} {:>8.1} \
                 {:>8.2} {:>8.2} {:>8.0}",
                median(&rates),
                median(&rates) / bare,
                mid("last_p50_us") / 1e3,
                mid("last_p99_us") / 1e3,
                mid("alone_p50_us") / 1e3,
                mid("alone_p99_us") / 1e3,
                mid("server_us_per_delivery"),
                mid("generator_us_per_delivery"),
                mid("server_peak_mib"),
            ));
        }
    }
    print("");
    print("Server and generator share the cores: where CPU limits, the rate is that of both.");
}

async fn measure(args: &Args, system: System, sockets: usize) -> Result<BTreeMap<String, f64>, Failed> {
    let peer = match system {
        System::Room | System::Tasks => Peer::open_broker("memory", &args.dir)?,
        System::DurableTasks => Peer::open_broker("embedded", &args.dir)?,
        other => Peer::start(other.kind(), &args.dir, None, &args.node)?,
    };
    let threads = match args.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let (listen, speak) = system.kind().paths();
    let board = Arc::new(Board::new(args.window.into(), threads, sockets));
    let door = peer.door.at(listen);
    let mut audience = Audience::open(&door, system.joins(args.window), system.counts(), &board).await?;
    let mut speaker = Speaker::open(&peer, speak, system.message(), board).await?;

    speaker.speak(args.window.into(), WARM_UP, &mut audience).await?;
    let alone = speaker.speak(1, ALONE, &mut audience).await?;
    settled(&peer, system).await?;
    let (server, generator) = (peer.usage()?, usage(std::process::id())?);
    let told = speaker.speak(args.window.into(), Duration::from_secs(args.seconds), &mut audience).await?;
    settled(&peer, system).await?;
    let (server_after, generator_after) = (peer.usage()?, usage(std::process::id())?);

    let deliveries = (told.messages * sockets as u64) as f64;
    let took = told.took.as_secs_f64();
    let (server_s, generator_s) =
        (server_after.cpu_s - server.cpu_s, generator_after.cpu_s - generator.cpu_s);
    let us = |told: &Told, quantile: f64| told.latency.value_at_quantile(quantile) as f64 / 1e3;
    let values = [
        ("deliveries_per_s", deliveries / took),
        ("messages_per_s", told.messages as f64 / took),
        ("last_p50_us", us(&told, 0.5)),
        ("last_p99_us", us(&told, 0.99)),
        ("alone_p50_us", us(&alone, 0.5)),
        ("alone_p99_us", us(&alone, 0.99)),
        ("server_cpu_s", server_s),
        ("server_us_per_delivery", server_s * 1e6 / deliveries),
        ("server_peak_mib", server_after.peak_mib),
        ("generator_cpu_s", generator_s),
        ("generator_us_per_delivery", generator_s * 1e6 / deliveries),
    ];
    Ok(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Waits until every task's acks have arrived: they are part of its cost.
async fn settled(peer: &Peer, system: System) -> Result<(), Failed> {
    if !system.is_tasks() {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut stream = tokio::net::TcpStream::connect(peer.door.address()).await?;
        let request = "GET /v1/queues/bench HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.contains("\"in_flight\":0") {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("tasks that were acked are not finished after {PATIENCE:?}: {answer}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Who says it.
struct Speaker {
    write: WriteHalf<Box<dyn Io>>,
    /// A message, often enough for the longest write.
    messages: Vec<u8>,
    message_bytes: usize,
    hears: tokio::task::JoinHandle<Failed>,
    board: Arc<Board>,
    said: u64,
}

impl Speaker {
    async fn open(peer: &Peer, path: &str, message: Vec<u8>, board: Arc<Board>) -> Result<Speaker, Failed> {
        let (stream, rest) = Socket::open(&peer.door.at(path), 0).await?.into_parts();
        let (read, write) = tokio::io::split(stream);
        let hears = tokio::spawn(hear(read, rest));
        let messages = message.repeat(MESSAGES_PER_WRITE);
        Ok(Speaker { write, messages, message_bytes: message.len(), hears, board, said: 0 })
    }

    /// Says as much as the window lets it for a while, and waits until all have all of it.
    async fn speak(
        &mut self,
        window: usize,
        time: Duration,
        audience: &mut Audience,
    ) -> Result<Told, Failed> {
        self.board.begin(window);
        let began = Instant::now();
        let board = self.board.clone();
        while began.elapsed() < time {
            let room = board.room(MESSAGES_PER_WRITE);
            let count = self.heeding(audience, room).await?;
            for nth in self.said..self.said + count as u64 {
                board.say(nth);
            }
            self.said += count as u64;
            self.write.write_all(&self.messages[..count * self.message_bytes]).await?;
        }
        self.heeding(audience, board.all_over(window)).await?;
        Ok(board.told())
    }

    /// Waits for something, unless a socket fails meanwhile, or nothing moves.
    async fn heeding<T>(
        &mut self,
        audience: &mut Audience,
        wait: impl Future<Output = T>,
    ) -> Result<T, Failed> {
        tokio::select! {
            biased;
            done = wait => Ok(done),
            failed = audience.failed() => Err(failed),
            failed = &mut self.hears => Err(format!("who speaks: {}", failed?).into()),
            () = tokio::time::sleep(PATIENCE) => {
                let text = format!("for {PATIENCE:?} no message has reached its last socket: one was lost");
                Err(text.into())
            }
        }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.hears.abort();
    }
}

/// Reads what the speaker is told, which is of no interest unless it is an end or a refusal.
async fn hear(mut read: ReadHalf<Box<dyn Io>>, mut bytes: Vec<u8>) -> Failed {
    loop {
        loop {
            let (used, refused) = match split_frame(&bytes) {
                Err(error) => return error,
                Ok(None) => break,
                Ok(Some((CLOSE, body, _))) => return closed(body),
                Ok(Some((_, body, rest))) => {
                    let text = String::from_utf8_lossy(body);
                    let refused = text.contains("\"error\"") || text.starts_with("-ERR");
                    (bytes.len() - rest.len(), refused.then(|| text.into_owned()))
                }
            };
            if let Some(text) = refused {
                return format!("the server refused what was said: {text}").into();
            }
            bytes.drain(..used);
        }
        match read.read_buf(&mut bytes).await {
            Ok(0) => return "the server ended the connection".into(),
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_says_as_much() {
        for system in System::ALL {
            let frame = system.message();
            let xs = frame.iter().filter(|byte| **byte == b'x').count();
            assert!((PAYLOAD_BYTES - 2..=PAYLOAD_BYTES).contains(&xs), "{}: {xs}", system.name());
        }
    }

    #[test]
    fn systems_are_chosen_by_their_names() {
        let only = |names: &[&str]| asked(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(only(&[]).unwrap().len(), System::ALL.len());
        assert_eq!(only(&["room", "nats"]).unwrap(), [System::Room, System::Nats]);
        let error = only(&["rom"]).unwrap_err().to_string();
        assert!(error.contains("rom") && error.contains("room"), "{error}");
    }
}
