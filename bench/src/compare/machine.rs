//! What it ran on: the machine, and the versions of what was measured.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Failed;
use crate::compare::systems::Found;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Of the directory with the stores.
    pub(crate) file_system: String,
    pub(crate) versions: BTreeMap<String, String>,
    /// What was not here.
    pub(crate) missing: Vec<String>,
}

impl Machine {
    pub(crate) fn look(dir: &Path, found: &Found) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: f64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        Machine {
            cpu: field(&cpu_info, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            file_system: std::path::absolute(dir)
                .ok()
                .and_then(|dir| file_system(&read("/proc/mounts"), &dir))
                .unwrap_or_default(),
            versions: found.versions.clone(),
            missing: found.missing.clone(),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Failed> {
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }

    /// What an earlier run has written; nothing is known if it is not there.
    pub(crate) fn read(path: &Path) -> Result<Machine, Failed> {
        match std::fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Machine::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// In a line, as far as it is known.
    pub(crate) fn line(&self) -> String {
        if self.cores == 0 {
            return "The machine is not known: machine.json is not beside the records.".to_owned();
        }
        format!(
            "{}, {} cores shared by server and generator, {:.0} GiB, {}, {}",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.file_system
        )
    }
}

/// The mount with the longest path that a directory is below: its type and device.
fn file_system(mounts: &str, dir: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, words.next()?))
        })
        .filter(|(_, point, _)| dir.starts_with(point))
        .max_by_key(|(_, point, _)| point.len())
        .map(|(device, _, kind)| format!("{kind} on {}", device.rsplit('/').next().unwrap_or(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/sdb1 /data xfs rw 0 0\n";
        let of = |dir: &str| file_system(mounts, Path::new(dir)).unwrap_or_default();
        assert_eq!(of("/data/stores"), "xfs on sdb1");
        assert_eq!(of("/tmp/x"), "tmpfs on tmpfs");
        assert_eq!(of("/database"), "ext4 on vda");
    }
}
