//! The broker under measurement: a process of its own, with a directory of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failed;

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

impl Broker {
    /// Starts `taskyard serve` beside this program, on a free port.
    pub(crate) fn start(engine: &str, parent: &Path) -> Result<Broker, Failed> {
        let program = std::env::current_exe()?.with_file_name("taskyard");
        if !program.exists() {
            let text = format!("{} is not there: run `cargo build --release` first", program.display());
            return Err(text.into());
        }
        let directory = parent.join(format!("taskyard-bench-{}-{engine}", std::process::id()));
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--engine", engine, "--data-dir"])
            .arg(&directory)
            .env_remove("TASKYARD_CONFIG")
            .stderr(Stdio::piped())
            .spawn()?;
        let log = BufReader::new(child.stderr.take().ok_or("the broker's log was not piped")?);
        let mut lines = log.lines();
        let url = loop {
            let Some(line) = lines.next() else { return Err("the broker ended before it listened".into()) };
            let line = line?;
            if let Some((_, rest)) = line.split_once("http://") {
                let end = rest.find([' ', '"']).unwrap_or(rest.len());
                break format!("http://{}", &rest[..end]);
            }
        };
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Broker { child, url, directory })
    }

    pub(crate) fn usage(&self) -> Result<Usage, Failed> {
        usage(self.child.id())
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
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    let peak_kib: f64 = peak.split_whitespace().next().unwrap_or("0").parse()?;
    Ok(Usage { cpu_s, peak_mib: peak_kib / 1024.0 })
}

/// Waits until something answers at an address.
pub(crate) fn wait_for(address: &str) -> Result<(), Failed> {
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            return Err(format!("nothing listens on {address}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
