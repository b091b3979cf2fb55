//! The broker under measurement: a process of its own, with a directory of its own.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use crate::Failed;
use crate::certificate::Certificate;

/// A broker process. Killed when dropped, and its directory removed.
pub(crate) struct Broker {
    child: Child,
    pub(crate) url: String,
    directory: PathBuf,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) peak_mib: f64,
}

/// The broker's program: it is beside this one. Under `cargo run` it is built first, so that what is measured is what the
/// sources say.
pub(crate) fn program() -> Result<PathBuf, Failed> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let program = std::env::current_exe()?.with_file_name("taskyard");
    if let Some(cargo) = std::env::var_os("CARGO") {
        BUILT.get_or_init(|| build(&cargo, &program)).clone()?;
    }
    if !program.exists() {
        let text = format!("{} is not there: run `cargo build --release` first", program.display());
        return Err(text.into());
    }
    Ok(program)
}

fn build(cargo: &OsStr, program: &Path) -> Result<(), String> {
    let profile = match program.parent().and_then(Path::file_name).and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let built = Command::new(cargo)
        .args(["build", "--profile", profile, "--bin", "taskyard", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .status();
    match built {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the broker could not be built: cargo ended with {status}")),
        Err(error) => Err(format!("the broker could not be built: cannot run cargo: {error}")),
    }
}

fn directory(engine: &str, parent: &Path) -> PathBuf {
    parent.join(format!("taskyard-bench-{}-{engine}", std::process::id()))
}

impl Broker {
    /// Starts `taskyard serve` beside this program, on a free port.
    pub(crate) fn start(engine: &str, parent: &Path) -> Result<Broker, Failed> {
        Self::launch(engine, directory(engine, parent), &[])
    }

    /// The same with flags of its own.
    pub(crate) fn with_flags(engine: &str, parent: &Path, flags: &[OsString]) -> Result<Broker, Failed> {
        Self::launch(engine, directory(engine, parent), flags)
    }

    /// Kills it without a word and starts it again on the same store; the seconds until it listens.
    pub(crate) fn kill_and_restart(&mut self) -> Result<f64, Failed> {
        self.child.kill()?;
        self.child.wait()?;
        let began = Instant::now();
        let again = Self::launch("embedded", self.directory.clone(), &[])?;
        let seconds = began.elapsed().as_secs_f64();
        let mut before = std::mem::replace(self, again);
        // Its directory has another owner now.
        before.directory = PathBuf::new();
        Ok(seconds)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a broker that asks for a token, which is made before, and perhaps for TLS. It does not
    /// ping: whoever is silent is left alone while it is measured.
    pub(crate) fn with_token(parent: &Path, tls: Option<&Certificate>) -> Result<(Broker, String), Failed> {
        let directory = directory("memory", parent);
        let output = Command::new(program()?)
            .args(["token", "create", "bench", "--allow", "submit:bench", "--allow", "consume:bench"])
            .arg("--data-dir")
            .arg(&directory)
            .env_remove("TASKYARD_TOKENS_FILE")
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("no token was made: {}", text.trim()).into());
        }
        let token = String::from_utf8(output.stdout)?.trim().to_owned();
        let mut flags: Vec<OsString> = vec!["--ping-ms".into(), "86400000".into()];
        if let Some(certificate) = tls {
            flags.extend(["--tls-cert-file".into(), certificate.cert_file.clone().into()]);
            flags.extend(["--tls-key-file".into(), certificate.key_file.clone().into()]);
        }
        Ok((Self::launch("memory", directory, &flags)?, token))
    }

    /// Starts a broker that asks for no token, and does not ping.
    pub(crate) fn silent(engine: &str, parent: &Path) -> Result<Broker, Failed> {
        Self::launch(engine, directory(engine, parent), &["--ping-ms".into(), "86400000".into()])
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Result<SocketAddr, Failed> {
        let (_, address) = self.url.split_once("://").ok_or("the broker named no URL")?;
        Ok(address.parse()?)
    }

    fn launch(engine: &str, directory: PathBuf, flags: &[OsString]) -> Result<Broker, Failed> {
        let mut child = Command::new(program()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--engine", engine, "--data-dir"])
            .arg(&directory)
            .args(flags)
            .env_remove("TASKYARD_CONFIG")
            .env_remove("TASKYARD_TOKENS_FILE")
            .stderr(Stdio::piped())
            .spawn()?;
        let log = BufReader::new(child.stderr.take().ok_or("the broker's log was not piped")?);
        let mut lines = log.lines();
        let url = loop {
            let Some(line) = lines.next() else { return Err("the broker ended before it listened".into()) };
            let line = line?;
            // `http://…` or `https://…`
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find([' ', '"']).unwrap_or(rest.len());
                break rest[..end].to_owned();
            }
        };
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Broker { child, url, directory })
    }

    pub(crate) fn usage(&self) -> Result<Usage, Failed> {
        usage(self.child.id())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, or to wait for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What a process has used so far, from /proc.
pub(crate) fn usage(pid: u32) -> Result<Usage, Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything, but it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, in ticks of 1/100 s on every Linux that Rust runs on.
    let cpu_s = (ticks(11) + ticks(12)) / 100.0;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage { cpu_s, peak_mib: status_kib(&status, "VmHWM:")? / 1024.0 })
}

/// What a process has in memory now, in KiB: all, and without what is of files.
pub(crate) fn resident(pid: u32) -> Result<(f64, f64), Failed> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok((status_kib(&status, "VmRSS:")?, status_kib(&status, "RssAnon:")?))
}

fn status_kib(status: &str, name: &str) -> Result<f64, Failed> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    Ok(line.split_whitespace().next().unwrap_or("0").parse()?)
}

/// What all cores together have done since the machine started, whoever asked for it, in seconds: work,
/// and all the time there was.
pub(crate) fn machine() -> Result<(f64, f64), Failed> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in the first two.
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).take(8).map(|field| field.parse().unwrap_or(0.0)).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok(((all - idle) / 100.0, all / 100.0))
}
