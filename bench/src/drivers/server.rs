//! A server under measurement: a process of its own, on a free port, with a directory of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;

use crate::Failed;
use crate::broker::{Usage, resident, usage};

/// A server of Erlang takes some ten seconds; one that reads its store back, more.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a server is started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) address: SocketAddr,
    /// Made before it starts, removed after it.
    pub(crate) directory: PathBuf,
}

/// A server that runs. Killed when dropped, and its directory removed.
pub(crate) struct Server {
    spec: Spec,
    child: Child,
    /// Started before it, for it; not part of what is measured.
    companion: Option<Child>,
}

impl Spec {
    /// On a free port, with a directory that is there.
    pub(crate) fn new(program: PathBuf, name: &str, parent: &Path) -> Result<Spec, Failed> {
        static NTH: AtomicU64 = AtomicU64::new(0);
        let nth = NTH.fetch_add(1, Ordering::Relaxed);
        let parent = std::path::absolute(parent)?;
        let directory = parent.join(format!("taskyard-bench-{}-{nth}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        Ok(Spec { program, args: Vec::new(), env: Vec::new(), address: free_address()?, directory })
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Spec {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Spec {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Spec {
        self.env.push((name.into(), value.into()));
        self
    }

    fn spawn(&self) -> Result<Child, Failed> {
        let said = std::fs::File::options().create(true).append(true).open(self.said())?;
        Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", self.program.display()).into())
    }

    fn said(&self) -> PathBuf {
        self.directory.join("said.txt")
    }
}

impl Server {
    /// Starts it, and waits until it takes connections.
    pub(crate) async fn start(spec: Spec) -> Result<Server, Failed> {
        Self::with_companion(spec, None).await
    }

    pub(crate) async fn with_companion(spec: Spec, companion: Option<Child>) -> Result<Server, Failed> {
        let child = spec.spawn()?;
        let mut server = Server { spec, child, companion };
        server.listening().await?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.spec.address
    }

    /// Ends it as a power cut would, as far as the process is concerned.
    pub(crate) fn kill(&mut self) {
        for pid in tree(self.child.id()).into_iter().rev() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }

    /// Starts it again, over the same store; it need not listen yet.
    pub(crate) fn restart(&mut self) -> Result<(), Failed> {
        self.child = self.spec.spawn()?;
        Ok(())
    }

    async fn listening(&mut self) -> Result<(), Failed> {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(self.spec.address).await.is_err() {
            self.check()?;
            if Instant::now() > until {
                return Err(self.complaint("does not listen"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<(), Failed> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.complaint(&format!("ended ({status})"))),
        }
    }

    fn complaint(&self, what: &str) -> Failed {
        let said = std::fs::read(self.spec.said()).unwrap_or_default();
        let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(600)..]).into_owned();
        format!("{} {what}; it said: {}", self.spec.program.display(), tail.trim()).into()
    }

    /// What it and its children have used so far.
    pub(crate) fn usage(&self) -> Usage {
        sum(tree(self.child.id()).into_iter().filter_map(|pid| usage(pid).ok()))
    }

    /// What it and its children have in memory now, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        tree(self.child.id())
            .into_iter()
            .filter_map(|pid| resident(pid).ok())
            .map(|(kib, _)| kib / 1024.0)
            .sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if let Some(companion) = &mut self.companion {
            let _ = companion.kill();
            let _ = companion.wait();
        }
        let _ = std::fs::remove_dir_all(&self.spec.directory);
    }
}

fn sum(all: impl Iterator<Item = Usage>) -> Usage {
    all.fold(Usage { cpu_s: 0.0, peak_mib: 0.0 }, |sum, one| Usage {
        cpu_s: sum.cpu_s + one.cpu_s,
        peak_mib: sum.peak_mib + one.peak_mib,
    })
}

/// A process and all that descend from it, parents first.
fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name may hold anything, but it ends with the last parenthesis; state and parent follow.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.get(pid).into_iter().flatten());
        at += 1;
    }
    all
}

/// Ports that the kernel does not give to clients: a connection of theirs that has just ended would
/// keep a server from listening, or one that begins take the port while a server is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// An address of this machine that nobody listens on, and that was not given before.
pub(crate) fn free_address() -> Result<SocketAddr, Failed> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = u64::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        // Two benches at a time begin at different places.
        let nth = NEXT.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 97;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + (nth % count) as u16));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(format!("all ports of 127.0.0.1 from {} to {} are in use", PORTS.start, PORTS.end).into())
}

/// Looks for a program, where the shell does and in `beside`.
pub(crate) fn find(name: &str, beside: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    places
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|place| place.join(name))
        .find(|program| program.is_file())
}

/// What a program says of its version: the first word that begins with a digit, or with `v` and one.
pub(crate) fn version(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    first_version(&String::from_utf8_lossy(&text))
}

fn first_version(text: &str) -> Option<String> {
    text.split_whitespace()
        .map(|word| word.trim_start_matches("v=").trim_start_matches('v'))
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_servers_say() {
        for (said, version) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", Some("7.0.15")),
            ("beanstalkd 1.12\n", Some("1.12")),
            ("nats-server: v2.15.1", Some("2.15.1")),
            ("gearmand 1.1.20+ds - https://example.org/", Some("1.1.20+ds")),
            ("no such flag", None),
        ] {
            assert_eq!(first_version(said).as_deref(), version, "{said}");
        }
    }

    #[test]
    fn an_address_is_given_once() {
        let (one, other) = (free_address().expect("a port"), free_address().expect("a port"));
        assert_ne!(one, other);
        assert!(PORTS.contains(&one.port()) && PORTS.contains(&other.port()));
    }

    #[test]
    fn the_children_of_a_process_are_its_tree() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
        assert!(tree(std::process::id()).contains(&child.id()));
        assert_eq!(tree(child.id()), [child.id()]);
        child.kill().expect("it is ours");
        child.wait().expect("it was killed");
    }
}
