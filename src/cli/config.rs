//! `taskyard config`: shows and checks a configuration, without starting anything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::output::{complain, print_line};
use super::{Failed, print};
use crate::auth::{Authority, Fetch};
use crate::config::print::{effective, template};
use crate::config::{Config, ConfigError, Problem, Sources, unknown_variables};
use crate::transport::Tls;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the configuration that `serve` would run with, as a file that explains each key
    Print {
        #[command(flatten)]
        sources: Sources,

        /// Every key at its default, whatever is given: a file to begin with
        #[arg(long)]
        defaults: bool,
    },
    /// Check a configuration as `serve` would at its start; exit code 2 with all that is wrong
    Check {
        /// The file to check; the same as --config
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,

        #[command(flatten)]
        sources: Sources,
    },
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command {
        Command::Print { defaults: true, .. } => {
            print(template().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Print { sources, .. } => {
            let values = sources.values().map_err(Failed::usage)?;
            // What does not go together is shown too: it may be why one asks.
            print(effective(&values).as_bytes())?;
            let config = values.resolve().map_err(Failed::usage)?;
            all_problems(&config).map_err(Failed::usage)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { path, mut sources } => {
            sources.file = path.or(sources.file);
            let config = sources.values().and_then(|values| values.resolve()).map_err(Failed::usage)?;
            all_problems(&config).map_err(Failed::usage)?;
            for warning in config.warnings(has_tokens).into_iter().chain(unknown_variables()) {
                complain(&format!("warning: {warning}"));
            }
            print_line(&match &sources.file {
                Some(path) => format!("{} is good", path.display()),
                None => "flags and environment are good; no file was named".to_owned(),
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What a start would find beyond the values themselves.
fn all_problems(config: &Config) -> Result<(), ConfigError> {
    let opened = || -> Result<(), ConfigError> {
        let problem = |text: String| ConfigError(vec![Problem { place: String::new(), text }]);
        if let Some(tls) = config.transport() {
            Tls::open(&tls).map_err(|error| problem(error.to_string()))?;
        }
        let no_fetch = Fetch::new(|_, _| async { Err("nothing is fetched to check a file".to_owned()) });
        Authority::open(config.auth(no_fetch)?).map_err(|error| problem(error.to_string()))?;
        Ok(())
    };
    let readable = config.check_files();
    let opened = if readable.is_ok() { opened() } else { Ok(()) };
    let checks = [config.check_public(has_tokens), readable, opened];
    let problems: Vec<_> = checks.into_iter().filter_map(Result::err).flat_map(|error| error.0).collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
}

/// Whether a tokens file holds a token that is good. What is wrong with it a start says.
pub(super) fn has_tokens(path: &Path) -> bool {
    crate::auth::token::read(path).is_ok_and(|file| file.is_some_and(|file| !file.tokens.is_empty()))
}
