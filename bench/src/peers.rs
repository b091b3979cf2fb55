//! The servers at which sockets are opened: the broker, and what it is compared with.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::broker::Broker;
use crate::certificate::Certificate;
use crate::socket::Door;
use crate::{Failed, bare, print};

/// What a server is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare,
    Ws,
    Broker,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Ws => "ws",
            Kind::Broker => "broker",
        }
    }
}

/// A server that runs, for as long as this lives.
pub(crate) struct Peer {
    process: Process,
    pub(crate) door: Door,
}

enum Process {
    Broker(Broker),
    Other(Other),
}

/// A process that says where it listens in the first line of its output. Killed when dropped.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
            let (_, address) = broker.url.split_once("://").ok_or("the broker named no URL")?;
            let address = address.parse()?;
            let door = Door::new(address, Some(&token), client);
            return Ok(Peer { process: Process::Broker(broker), door });
        }
        let mut command = match kind {
            Kind::Ws => node.command(WS_SERVER),
            _ => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("bare-server");
                command
            }
        };
        if let Some(certificate) = tls {
            command.env(bare::CERT_FILE, &certificate.cert_file).env(bare::KEY_FILE, &certificate.key_file);
        }
        let mut child = Other(command.stdout(Stdio::piped()).spawn()?);
        let mut address = String::new();
        BufReader::new(child.0.stdout.take().ok_or("its output was not piped")?).read_line(&mut address)?;
        let address =
            address.trim().parse().map_err(|_| format!("the {} server did not start", kind.name()))?;
        Ok(Peer { process: Process::Other(child), door: Door::new(address, None, client) })
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Broker(broker) => broker.pid(),
            Process::Other(other) => other.0.id(),
        }
    }
}

/// Where Node finds its modules.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Node {
    /// The directory `node_modules` that holds Node's module `ws` [default: what NODE_PATH says]
    #[arg(long, value_name = "DIR")]
    node_modules: Option<PathBuf>,
}

/// As its documentation has it: no compression, which is its default.
const WS_SERVER: &str = "
const { WebSocketServer } = require('ws');
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, backlog: 4096 });
server.on('listening', () => console.log(`127.0.0.1:${server.address().port}`));
server.on('connection', (socket) => {
  socket.on('error', () => {});
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});";

impl Node {
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("node");
        command.args(["-e", script]);
        if let Some(directory) = &self.node_modules {
            command.env("NODE_PATH", std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
        }
        command
    }

    /// Whether `ws` is there; if not, that is said.
    pub(crate) fn has_ws(&self) -> bool {
        let versions = "console.log(process.version, require('ws/package.json').version)";
        let why = match self.command(versions).output() {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let (node, ws) = text.trim().split_once(' ').unwrap_or_default();
                print(&format!("ws {ws} on Node {node}"));
                return true;
            }
            Ok(_) => "Node does not find the module `ws`: `npm install ws` somewhere, and say where with NODE_PATH or \
                      --node-modules DIR"
                .to_owned(),
            Err(error) => format!("cannot run `node`: {error}"),
        };
        print(&format!("SKIPPED: ws is not measured. {why}"));
        false
    }
}
