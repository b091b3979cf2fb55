//! Memory: thousands of sockets are opened and say nothing more; what the server holds for each, and what
//! it does meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::certificate::Certificate;
use crate::peers::{Kind, Node, Peer};
use crate::record::{Promise, Record, Records};
use crate::socket::{Door, Socket};
use crate::{Failed, descriptors, median, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many sockets to open
    #[arg(long, value_delimiter = ',', default_value = "5000,10000")]
    pub(crate) sockets: Vec<usize>,
    /// Rounds, the servers in turn; the medians are quoted
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: u32,
    /// Measure a broker too to which each socket has said hello
    #[arg(long)]
    pub(crate) hello: bool,
    /// Measure a broker too where each socket has also subscribed to a queue
    #[arg(long)]
    pub(crate) subscribe: bool,
    /// Measure broker and bare server over TLS too
    #[arg(long)]
    pub(crate) tls: bool,
    /// Sockets that are being opened at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) opening: u16,
    /// Seconds for which nothing is said, and the server's CPU time is taken
    #[arg(long, default_value_t = 10)]
    pub(crate) silence: u64,
    #[command(flatten)]
    pub(crate) node: Node,
    /// Where brokers keep their tokens
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Sockets that come and go before anything is measured: they touch what is needed once, not for each.
const FIRST: usize = 8;
/// For so long memory must not change,
const QUIET: Duration = Duration::from_secs(2);
/// by more than this, in KiB;
const QUIET_KIB: f64 = 64.0;
/// after so long it is taken as it is, and that is said.
const RESTLESS: Duration = Duration::from_secs(30);

/// What a socket says before it falls silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    Hello,
    Subscribe,
}

/// A row of the table.
#[derive(Clone)]
struct Row {
    kind: Kind,
    /// Its kind's name and version.
    system: String,
    tls: bool,
    says: Says,
}

impl Row {
    fn setting(&self) -> String {
        let says = match self.says {
            Says::Nothing => None,
            Says::Hello => Some("hello"),
            Says::Subscribe => Some("subscribed"),
        };
        let parts: Vec<&str> = self.tls.then_some("TLS").into_iter().chain(says).collect();
        parts.join(", ")
    }

    fn name(&self) -> String {
        let setting = self.setting();
        if setting.is_empty() { self.system.clone() } else { format!("{}, {setting}", self.system) }
    }
}

pub(crate) async fn run(args: Args, records: &mut Records) -> Result<(), Failed> {
    let most = args.sockets.iter().copied().max().unwrap_or(0);
    if args.sockets.contains(&0) {
        return Err("--sockets 0 is none to measure".into());
    }
    descriptors::check(most, "--sockets")?;
    let rows = rows(&args);
    let certificate = args.tls.then(|| Certificate::make(&args.dir)).transpose()?;
    print(&format!(
        "idle sockets, KiB each = (RSS with them - RSS before) / sockets; medians of {} rounds, servers in turn",
        args.rounds
    ));
    let first = records.all.len();
    for sockets in &args.sockets {
        for round in 1..=args.rounds {
            for row in &rows {
                let tls = certificate.as_ref().filter(|_| row.tls);
                let values = measure(&args, row, *sockets, tls)
                    .await
                    .map_err(|error| format!("{}, {sockets} sockets: {error}", row.name()))?;
                print(&format!(
                    "round {round}  {:<32} {sockets:>6} sockets {:>7.2} KiB each, after a ping {:>7.2}",
                    row.name(),
                    values["kib_per_socket"],
                    values["after_ping_kib_per_socket"]
                ));
                records.add(Record {
                    scenario: "idle".into(),
                    system: row.system.clone(),
                    setting: row.setting(),
                    promise: Promise::None,
                    load: load(*sockets),
                    round,
                    values,
                })?;
            }
        }
    }
    print_table(&args, &rows, &records.all[first..]);
    Ok(())
}

fn load(sockets: usize) -> String {
    format!("{sockets} sockets")
}

fn print_table(args: &Args, rows: &[Row], records: &[Record]) {
    print("");
    print(&format!(
        "server                           sockets  RSS KiB (min … max)       anonymous  after a ping   of bare   CPU ms \
         in {} s",
        args.silence
    ));
    for sockets in &args.sockets {
        let all = |row: &Row, value: &str| -> Vec<f64> {
            let of = |r: &&Record| {
                (&r.system, &r.setting, &r.load) == (&row.system, &row.setting(), &load(*sockets))
            };
            records.iter().filter(of).filter_map(|record| record.values.get(value).copied()).collect()
        };
        let bare = rows.first().map_or(f64::NAN, |bare| median(&all(bare, "kib_per_socket")));
        for row in rows {
            let rss = all(row, "kib_per_socket");
            let (min, max) = rss.iter().fold((f64::MAX, 0f64), |(a, b), f| (a.min(*f), b.max(*f)));
            print(&format!(
                "{:<32} {sockets:>7} {:>8.2} ({min:.2} … {max:.2}) {:>14.2} {:>13.2} {:>9.2} {:>8.0}",
                row.name(),
                median(&rss),
                median(&all(row, "anonymous_kib_per_socket")),
                median(&all(row, "after_ping_kib_per_socket")),
                median(&rss) / bare,
                median(&all(row, "silent_cpu_s")) * 1e3,
            ));
        }
    }
    print("");
    print(
        "The kernel's own memory for a socket is in none of this. What a server took for the handshakes and its \
         allocator has not given back is in it.",
    );
}

fn rows(args: &Args) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in [Kind::Bare, Kind::Ws, Kind::Nchan, Kind::SocketIo, Kind::Nats, Kind::Broker] {
        rows.extend(kind.found(&args.node).map(|system| Row {
            kind,
            system,
            tls: false,
            says: Says::Nothing,
        }));
    }
    let more = |kind: Kind, tls: bool, says: Says, rows: &mut Vec<Row>| {
        let plain = rows.iter().find(|row| row.kind == kind).cloned();
        rows.extend(plain.map(|row| Row { tls, says, ..row }));
    };
    if args.hello {
        more(Kind::Broker, false, Says::Hello, &mut rows);
    }
    if args.subscribe {
        more(Kind::Broker, false, Says::Subscribe, &mut rows);
    }
    if args.tls {
        more(Kind::Bare, true, Says::Nothing, &mut rows);
        more(Kind::Broker, true, Says::Nothing, &mut rows);
    }
    rows
}

async fn measure(
    args: &Args,
    row: &Row,
    sockets: usize,
    tls: Option<&Certificate>,
) -> Result<BTreeMap<String, f64>, Failed> {
    let peer = Peer::start(row.kind, &args.dir, tls, &args.node)?;
    let opening = usize::from(args.opening);
    for mut socket in open(&peer.door, FIRST, FIRST, row.says).await? {
        socket.ping().await?;
        socket.close().await?;
    }
    let (rss, anon) = quiet(&peer).await?;
    let each = |now: f64, before: f64| (now - before) / sockets as f64;
    let open = open(&peer.door, sockets, opening, row.says).await?;
    let (with_rss, with_anon) = quiet(&peer).await?;
    let before = peer.usage()?.cpu_s;
    tokio::time::sleep(Duration::from_secs(args.silence)).await;
    let silent = peer.usage()?.cpu_s - before;
    let open = ping(open, opening).await?;
    let spoken = quiet(&peer).await?.0;
    drop(open);
    let values = [
        ("kib_per_socket", each(with_rss, rss)),
        ("anonymous_kib_per_socket", each(with_anon, anon)),
        ("after_ping_kib_per_socket", each(spoken, rss)),
        ("silent_s", args.silence as f64),
        ("silent_cpu_s", silent),
        ("server_peak_mib", peer.usage()?.peak_mib),
    ];
    Ok(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Opens sockets, so many at a time.
async fn open(door: &Door, sockets: usize, opening: usize, says: Says) -> Result<Vec<Socket>, Failed> {
    let mut tasks = JoinSet::new();
    for first in 0..opening {
        let door = door.clone();
        tasks.spawn(async move {
            let mut open = Vec::new();
            for nth in (first..sockets).step_by(opening) {
                let mut socket = Socket::open(&door, nth).await?;
                if says != Says::Nothing {
                    socket.say(r#"{"type":"hello","id":1}"#, r#""welcome""#).await?;
                }
                if says == Says::Subscribe {
                    let subscribe = r#"{"type":"subscribe","id":2,"queue":"bench","credit":1}"#;
                    socket.say(subscribe, r#""subscribed""#).await?;
                }
                open.push(socket);
            }
            Ok::<_, Failed>(open)
        });
    }
    gather(tasks).await
}

/// Sends a ping on each, so many at a time, and waits for the pongs.
async fn ping(mut open: Vec<Socket>, at_once: usize) -> Result<Vec<Socket>, Failed> {
    let mut tasks = JoinSet::new();
    let share = open.len().div_ceil(at_once);
    while !open.is_empty() {
        let mut share = open.split_off(open.len().saturating_sub(share));
        tasks.spawn(async move {
            for socket in &mut share {
                socket.ping().await?;
            }
            Ok::<_, Failed>(share)
        });
    }
    gather(tasks).await
}

async fn gather(mut tasks: JoinSet<Result<Vec<Socket>, Failed>>) -> Result<Vec<Socket>, Failed> {
    let mut all = Vec::new();
    while let Some(some) = tasks.join_next().await {
        all.append(&mut some??);
    }
    Ok(all)
}

/// Waits until a server's memory stays the same; gives its RSS, and what of it is anonymous, in KiB.
async fn quiet(peer: &Peer) -> Result<(f64, f64), Failed> {
    let began = Instant::now();
    let step = Duration::from_millis(100);
    let mut seen = VecDeque::new();
    loop {
        let now = peer.resident()?;
        seen.push_back(now.0);
        if seen.len() as u32 * step > QUIET {
            let (min, max) = seen.iter().fold((f64::MAX, 0f64), |(a, b), kib| (a.min(*kib), b.max(*kib)));
            if max - min <= QUIET_KIB {
                return Ok(now);
            }
            seen.pop_front();
        }
        if began.elapsed() > RESTLESS {
            print(&format!("its memory still changes after {RESTLESS:?}: it is taken as it is"));
            return Ok(now);
        }
        tokio::time::sleep(step).await;
    }
}
