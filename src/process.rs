//! What this process takes of the machine, as the system tells it. (The collector of the `prometheus` crate counts
//! processor time in whole seconds, which is too coarse for a rate.)

use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Processor time that this process has taken, of all its threads.
pub fn cpu_time() -> Duration {
    let taken = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(taken.tv_sec.unsigned_abs(), taken.tv_nsec.unsigned_abs() as u32)
}

/// What this process takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Time on processors since its start, in milliseconds.
    pub cpu_ms: u64,
    /// Memory, in bytes.
    pub rss_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open files and sockets.
    pub open_fds: u64,
    /// How many it may open; none: as many as it likes.
    pub max_fds: Option<u64>,
    /// When it began, in seconds since 1970.
    pub started_s: Option<u64>,
}

/// How much room a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// For this process, in bytes.
    pub free_bytes: u64,
    /// In all.
    pub bytes: u64,
}

impl Usage {
    /// What the system says now; none where it has no `/proc`. Reads files: not for a thread that must not wait.
    pub fn now() -> Option<Usage> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // While it is read the directory is one of those that are open.
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
        let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let limits = getrlimit(Resource::Nofile);
        let (ticks, page) = (rustix::param::clock_ticks_per_second(), rustix::param::page_size() as u64);
        Some(Usage { open_fds, max_fds: limits.current, ..of_stat(&stat, ticks, page, booted)? })
    }
}

/// Reads `/proc/self/stat`: see `man 5 proc_pid_stat`.
fn of_stat(stat: &str, ticks_per_s: u64, page_bytes: u64, booted_s: Option<u64>) -> Option<Usage> {
    // The second field is the name, in brackets, and may hold blanks and brackets itself.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The manual counts from 1, and the third field is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some(Usage {
        cpu_ms: ticks * 1000 / ticks_per_s,
        rss_bytes: field(24)? * page_bytes,
        virtual_bytes: field(23)?,
        threads: field(20)?,
        open_fds: 0,
        max_fds: None,
        started_s: booted_s.and_then(|booted| Some(booted + field(22)? / ticks_per_s)),
    })
}

impl Room {
    /// The room of the disk that holds `place`; none: it cannot be asked.
    pub fn of(place: &Path) -> Option<Room> {
        let found = rustix::fs::statvfs(place).ok()?;
        Some(Room { free_bytes: found.f_bavail * found.f_frsize, bytes: found.f_blocks * found.f_frsize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_what_it_likes() {
        let stat = "42 (a b) 1 (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 1000 8192000 300 \
                    18446744073709551615";
        let usage = of_stat(stat, 100, 4096, Some(1_790_000_000)).expect("a line of the kernel");
        assert_eq!((usage.cpu_ms, usage.threads), (3000, 7));
        assert_eq!((usage.virtual_bytes, usage.rss_bytes), (8_192_000, 300 * 4096));
        assert_eq!(usage.started_s, Some(1_790_000_010));
        assert_eq!(of_stat("nonsense", 100, 4096, None), None);
        assert_eq!(of_stat("1 (x) S 1", 100, 4096, None), None);
    }

    #[test]
    fn this_process_takes_something() {
        let usage = Usage::now().expect("there is /proc");
        assert!(usage.rss_bytes > 100_000 && usage.threads > 0 && usage.open_fds > 2, "{usage:?}");
        let room = Room::of(Path::new(".")).expect("a disk");
        assert!(room.bytes >= room.free_bytes, "{room:?}");
        assert_eq!(Room::of(Path::new("/no/such/place")), None);
    }
}
