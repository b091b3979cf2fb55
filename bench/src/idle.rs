//! Memory: thousands of sockets are opened and say nothing more; what the server holds for each.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::broker::resident;
use crate::certificate::Certificate;
use crate::peers::{Kind, Node, Peer};
use crate::socket::{Door, Socket};
use crate::{Failed, descriptors, median, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many sockets to open
    #[arg(long, value_delimiter = ',', default_value = "5000,10000")]
    sockets: Vec<usize>,
    /// Rounds, the servers in turn; the medians are quoted
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure a broker too to which each socket has said hello
    #[arg(long)]
    hello: bool,
    /// Measure a broker too where each socket has also subscribed to a queue
    #[arg(long)]
    subscribe: bool,
    /// Measure broker and bare server over TLS too
    #[arg(long)]
    tls: bool,
    /// Sockets that are being opened at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    opening: u16,
    #[command(flatten)]
    node: Node,
    /// Where brokers keep their tokens
    #[arg(long, default_value = ".")]
    dir: PathBuf,
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
#[derive(Clone, Copy)]
struct Row {
    kind: Kind,
    tls: bool,
    says: Says,
}

impl Row {
    fn name(self) -> String {
        let says = match self.says {
            Says::Nothing => "",
            Says::Hello => ", hello",
            Says::Subscribe => ", subscribed",
        };
        format!("{}{}{says}", self.kind.name(), if self.tls { ", TLS" } else { "" })
    }
}

/// Of one round, in KiB for each socket.
#[derive(Default)]
struct Figures {
    rss: Vec<f64>,
    anon: Vec<f64>,
    spoken: Vec<f64>,
}

pub(crate) async fn run(args: Args) -> Result<(), Failed> {
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
    let mut table = Vec::new();
    for sockets in &args.sockets {
        let mut figures: Vec<Figures> = rows.iter().map(|_| Figures::default()).collect();
        for round in 1..=args.rounds {
            for (row, figures) in rows.iter().zip(&mut figures) {
                let tls = certificate.as_ref().filter(|_| row.tls);
                measure(&args, *row, *sockets, tls, figures).await?;
                let last = |all: &[f64]| all.last().copied().unwrap_or(f64::NAN);
                print(&format!(
                    "round {round}  {:<20} {sockets:>6} sockets {:>7.2} KiB each, after a ping {:>7.2}",
                    row.name(),
                    last(&figures.rss),
                    last(&figures.spoken)
                ));
            }
        }
        table.push((sockets, figures));
    }
    print("");
    print("server               sockets  RSS KiB (min … max)       anonymous  after a ping   of bare");
    for (sockets, figures) in &table {
        let bare = figures.first().map_or(f64::NAN, |bare| median(&bare.rss));
        for (row, figures) in rows.iter().zip(figures) {
            let (min, max) = figures.rss.iter().fold((f64::MAX, 0f64), |(a, b), f| (a.min(*f), b.max(*f)));
            print(&format!(
                "{:<20} {sockets:>7} {:>8.2} ({min:.2} … {max:.2}) {:>14.2} {:>13.2} {:>9.2}",
                row.name(),
                median(&figures.rss),
                median(&figures.anon),
                median(&figures.spoken),
                median(&figures.rss) / bare
            ));
        }
    }
    print("");
    print(
        "The kernel's own memory for a socket is in none of this. What a server took for the handshakes and its \
         allocator has not given back is in it.",
    );
    Ok(())
}

fn rows(args: &Args) -> Vec<Row> {
    let plain = |kind| Row { kind, tls: false, says: Says::Nothing };
    let mut rows = vec![plain(Kind::Bare)];
    if args.node.has_ws() {
        rows.push(plain(Kind::Ws));
    }
    rows.push(plain(Kind::Broker));
    if args.hello {
        rows.push(Row { says: Says::Hello, ..plain(Kind::Broker) });
    }
    if args.subscribe {
        rows.push(Row { says: Says::Subscribe, ..plain(Kind::Broker) });
    }
    if args.tls {
        rows.push(Row { tls: true, ..plain(Kind::Bare) });
        rows.push(Row { tls: true, ..plain(Kind::Broker) });
    }
    rows
}

async fn measure(
    args: &Args,
    row: Row,
    sockets: usize,
    tls: Option<&Certificate>,
    figures: &mut Figures,
) -> Result<(), Failed> {
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
    figures.rss.push(each(with_rss, rss));
    figures.anon.push(each(with_anon, anon));
    let open = ping(open, opening).await?;
    figures.spoken.push(each(quiet(&peer).await?.0, rss));
    drop(open);
    Ok(())
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
                    socket.say(r#"{"type":"hello","id":1}"#, "welcome").await?;
                }
                if says == Says::Subscribe {
                    let subscribe = r#"{"type":"subscribe","id":2,"queue":"bench","credit":1}"#;
                    socket.say(subscribe, "subscribed").await?;
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
        let now = resident(peer.pid())?;
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
