//! Upgrades: as many as one client process can make over some connections at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::broker::{machine, usage};
use crate::certificate::Certificate;
use crate::peers::{Kind, Node, Peer};
use crate::record::{Promise, Record, Records};
use crate::socket::Socket;
use crate::{Failed, descriptors, median, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// Seconds of each measurement, after one that is not counted
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Rounds, the servers in turn; the medians are quoted
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: u32,
    #[command(flatten)]
    pub(crate) node: Node,
    /// Where brokers keep their tokens
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// What a handshake goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Tcp,
    Tls,
    Resumed,
}

impl Over {
    const ALL: [Over; 3] = [Over::Tcp, Over::Tls, Over::Resumed];

    /// Peers are asked without TLS alone: with it most of the time is the library's.
    fn is_asked_of(self, kind: Kind) -> bool {
        self == Over::Tcp || matches!(kind, Kind::Bare | Kind::Broker)
    }

    fn name(self) -> &'static str {
        match self {
            Over::Tcp => "TCP",
            Over::Tls => "TLS",
            Over::Resumed => "TLS, resumed",
        }
    }
}

/// What is not counted: connections are made, and pages touched, for the first time.
const WARM_UP: Duration = Duration::from_secs(1);
/// From here on the cores are full, in parts of all their time.
const FULL: f64 = 0.9;

/// What the connections of a round have done.
#[derive(Default)]
struct Done {
    handshakes: AtomicU64,
    resumed: AtomicU64,
    stop: AtomicBool,
}

/// Who is asked, with name and version.
struct System {
    kind: Kind,
    name: String,
}

pub(crate) async fn run(args: Args, records: &mut Records) -> Result<(), Failed> {
    descriptors::check(args.connections.into(), "--connections")?;
    let certificate = Certificate::make(&args.dir)?;
    let mut systems = Vec::new();
    for kind in [Kind::Bare, Kind::Broker, Kind::Ws] {
        systems.extend(kind.found(&args.node).map(|name| System { kind, name }));
    }
    print(&format!(
        "open, upgrade (the broker: with a token), close; {} connections at a time, {} s, median of {} rounds, \
         servers in turn",
        args.connections, args.seconds, args.rounds
    ));
    let first = records.all.len();
    for over in Over::ALL {
        for round in 1..=args.rounds {
            for system in systems.iter().filter(|system| over.is_asked_of(system.kind)) {
                let values = measure(&args, system.kind, over, &certificate)
                    .await
                    .map_err(|error| format!("{}, {}: {error}", system.name, over.name()))?;
                print(&format!(
                    "round {round}  {:<24} {:<14} {:>7.0}/s",
                    system.name,
                    over.name(),
                    values["handshakes_per_s"]
                ));
                records.add(Record {
                    scenario: "handshakes".into(),
                    system: system.name.clone(),
                    setting: over.name().into(),
                    promise: Promise::None,
                    load: format!("{} at a time", args.connections),
                    round,
                    values,
                })?;
            }
        }
    }
    print_table(&systems, &records.all[first..])
}

fn print_table(systems: &[System], records: &[Record]) -> Result<(), Failed> {
    let cores = std::thread::available_parallelism()?.get();
    print("");
    print(
        "server                   over            handshakes/s (min … max)       CPU s / 10,000: server   client   \
         cores used   limited by",
    );
    for over in Over::ALL {
        for system in systems.iter().filter(|system| over.is_asked_of(system.kind)) {
            let all = |value: &str| -> Vec<f64> {
                let of = records.iter().filter(|r| r.system == system.name && r.setting == over.name());
                of.filter_map(|record| record.values.get(value).copied()).collect()
            };
            let mid = |value: &str| median(&all(value));
            let rates = all("handshakes_per_s");
            let (min, max) = rates.iter().fold((f64::MAX, 0f64), |(a, b), r| (a.min(*r), b.max(*r)));
            let limit = match (mid("cores") >= FULL * cores as f64, mid("busy") >= FULL) {
                (true, _) => "CPU",
                (false, true) => "CPU, which others on this machine use too",
                (false, false) => "waiting: try more --connections",
            };
            print(&format!(
                "{:<24} {:<14} {:>8.0} ({min:.0} … {max:.0}) {:>27.2} {:>8.2} {:>8.1} / {cores}   {limit}",
                system.name,
                over.name(),
                median(&rates),
                mid("server_cpu_s_per_10000"),
                mid("client_cpu_s_per_10000"),
                mid("cores"),
            ));
        }
    }
    print("");
    print(
        "Server and client share the cores: where CPU limits, the rate is that of both. The server's own share is its \
         CPU time.",
    );
    Ok(())
}

async fn measure(
    args: &Args,
    kind: Kind,
    over: Over,
    certificate: &Certificate,
) -> Result<BTreeMap<String, f64>, Failed> {
    let tls = (over != Over::Tcp).then_some(certificate);
    let peer = Peer::start(kind, &args.dir, tls, &args.node)?;
    let done = Arc::new(Done::default());
    let mut tasks = JoinSet::new();
    for nth in 0..args.connections {
        // Each has tickets of its own, as clients on machines of their own have.
        let config = tls.map(|tls| tls.client(over == Over::Resumed)).transpose()?;
        let (door, done) = (peer.door.with_tls(config), done.clone());
        let step = usize::from(args.connections);
        tasks.spawn(async move {
            let mut nth = usize::from(nth);
            while !done.stop.load(Ordering::Relaxed) {
                let socket = Socket::open(&door, nth).await?;
                done.handshakes.fetch_add(1, Ordering::Relaxed);
                done.resumed.fetch_add(u64::from(socket.resumed), Ordering::Relaxed);
                socket.close().await?;
                nth += step;
            }
            Ok::<_, Failed>(())
        });
    }
    during(&mut tasks, WARM_UP).await?;
    let counts = || (done.handshakes.load(Ordering::Relaxed), done.resumed.load(Ordering::Relaxed));
    let cpu = || Ok::<_, Failed>((peer.usage()?.cpu_s, usage(std::process::id())?.cpu_s));
    let (began, before, (server, client), (work, all)) = (Instant::now(), counts(), cpu()?, machine()?);
    during(&mut tasks, Duration::from_secs(args.seconds)).await?;
    let (took, after, (server_after, client_after)) = (began.elapsed().as_secs_f64(), counts(), cpu()?);
    let (work_after, all_after) = machine()?;
    done.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let made = (after.0 - before.0) as f64;
    if over == Over::Resumed && ((after.1 - before.1) as f64) < 0.99 * made {
        let text = format!("only {} of {made} sessions of TLS were resumed", after.1 - before.1);
        return Err(text.into());
    }
    let (server, client) = (server_after - server, client_after - client);
    let values = [
        ("handshakes_per_s", made / took),
        ("server_cpu_s_per_10000", server * 10_000.0 / made),
        ("client_cpu_s_per_10000", client * 10_000.0 / made),
        // How many cores server and client used,
        ("cores", (server + client) / took),
        // and what anybody used, in parts of all the time that the cores had.
        ("busy", (work_after - work) / (all_after - all)),
        ("server_peak_mib", peer.usage()?.peak_mib),
    ];
    Ok(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Lets the connections go on for a while. None of them ends before it is told to, unless it fails.
async fn during(tasks: &mut JoinSet<Result<(), Failed>>, time: Duration) -> Result<(), Failed> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        Some(ended) = tasks.join_next() => ended?,
    }
}
