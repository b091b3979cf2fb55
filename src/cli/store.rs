//! `taskyard store`: looks after a store whose broker is stopped.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::{Failed, print};
use crate::log::{self, Files, LogError, Options};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read the whole store and say what is wrong with it; changes nothing. Exit code 3 if it is damaged
    Check(Directory),
    /// Make a damaged store usable: keep all whole records, list what is gone
    Repair {
        #[command(flatten)]
        directory: Directory,

        /// Set the damaged segments aside as *.quarantined; nothing is deleted
        #[arg(long, required = true)]
        quarantine: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Directory {
    /// The store's directory
    #[arg(long, env = "TASKYARD_DATA_DIR", default_value = "taskyard-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Directory {
    fn open(&self) -> Result<Files, Failed> {
        // Opening would make it: a mistyped name must not look like an empty store.
        if !self.data_dir.is_dir() {
            return Err(Failed::usage(format!(
                "there is no directory {}: name the store's with --data-dir",
                self.data_dir.display()
            )));
        }
        Files::at(&self.data_dir).map_err(|e| Failed::other(format!("{}: {e}", self.data_dir.display())))
    }
}

impl From<LogError> for Failed {
    fn from(error: LogError) -> Self {
        Failed { message: error.to_string(), code: error.exit_code() }
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failed> {
    match &args.command {
        Command::Check(directory) => check(directory),
        Command::Repair { directory, .. } => repair(directory),
    }
}

fn lsns(range: Option<(u64, u64)>) -> String {
    match range {
        Some((first, last)) if first == last => format!(", record {first}"),
        Some((first, last)) => format!(", records {first} to {last}"),
        None => String::new(),
    }
}

fn check(directory: &Directory) -> Result<ExitCode, Failed> {
    let report = log::check(&directory.open()?)?;
    let mut text = format!("{} whole records in {} segments\n", report.records, report.segments);
    if let Some(torn) = &report.torn_tail {
        text += &format!(
            "{} at byte {}: an unfinished end of {} bytes, which held nothing confirmed; the next start cuts it\n",
            torn.file, torn.offset, torn.bytes
        );
    }
    for problem in &report.problems {
        text +=
            &format!("{} at byte {}{}: {}\n", problem.file, problem.offset, lsns(problem.lsns), problem.what);
    }
    let damaged = !report.problems.is_empty();
    text += if damaged {
        "the store is damaged: restore a backup, or keep what is whole with `taskyard store repair --quarantine`\n"
    } else {
        "the store is whole\n"
    };
    print(text.as_bytes())?;
    Ok(if damaged { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn repair(directory: &Directory) -> Result<ExitCode, Failed> {
    let report = log::repair(&directory.open()?, &Options::new(rand::random(), rand::random()))?;
    if report.problems.is_empty() {
        print(b"the store is whole: nothing was done\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for problem in &report.problems {
        text +=
            &format!("{} at byte {}{}: {}\n", problem.file, problem.offset, lsns(problem.lsns), problem.what);
    }
    text += &format!("kept {} whole records\n", report.records);
    for (first, last) in &report.gone {
        let records = match first {
            Some(first) => lsns(Some((*first, *last))).replace(',', ":"),
            None => format!(": records up to {last}, as far as they were not cleaned away before"),
        };
        text += &format!("gone{records}\n");
    }
    for file in &report.quarantined {
        text += &format!("set aside {file}\n");
    }
    print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
