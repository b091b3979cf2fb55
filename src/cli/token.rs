//! `taskyard token`: makes, lists and revokes the tokens of a broker, by the file that both know.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use comfy_table::{Table, presets};
use serde_json::json;

use super::output::Output;
use super::{Failed, print, span};
use crate::auth::token::{self, NewToken, Token, rfc3339};
use crate::auth::{AuthError, Limits};
use crate::clock::Clock;
use crate::core::Grants;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token and print it: it is shown once, and kept nowhere
    Create(Create),
    /// Show what tokens there are
    List {
        #[command(flatten)]
        file: TokensFile,

        /// How to print it
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Take a token away; connections that use it are closed by a broker that runs
    Revoke {
        /// The token's name
        name: String,

        #[command(flatten)]
        file: TokensFile,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What to call it: who uses it, as in `taskyard token list` and the broker's logs
    name: String,

    /// What it may do: submit, consume, observe or manage, with a name or prefix*; may be repeated
    #[arg(long, value_name = "ACTION:NAME")]
    allow: Vec<String>,

    /// How long it is good, as 30s, 15m, 12h or 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = span::lifetime)]
    expires: Option<Duration>,

    /// The most messages a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    messages_per_s: Option<u32>,

    /// The most connections at the same time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,

    /// The most unfinished tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    queued_tasks: Option<u64>,

    /// The most bytes of unfinished tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    queued_bytes: Option<u64>,

    #[command(flatten)]
    file: TokensFile,
}

#[derive(Debug, clap::Args)]
struct TokensFile {
    /// The file of the broker's tokens [default: tokens.toml in the data directory]
    #[arg(long, env = "TASKYARD_TOKENS_FILE", value_name = "FILE")]
    tokens_file: Option<PathBuf>,

    /// The broker's data directory
    #[arg(long, env = "TASKYARD_DATA_DIR", default_value = "taskyard-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl TokensFile {
    fn path(&self) -> PathBuf {
        self.tokens_file.clone().unwrap_or_else(|| self.data_dir.join("tokens.toml"))
    }
}

impl From<AuthError> for Failed {
    fn from(error: AuthError) -> Self {
        Failed { message: error.to_string(), code: error.exit_code() }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command {
        Command::Create(create) => self::create(create),
        Command::List { file, output } => list(&file, output),
        Command::Revoke { name, file } => revoke(&name, &file),
    }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(Clock::start().now().0)
}

fn create(create: Create) -> Result<ExitCode, Failed> {
    if create.allow.is_empty() {
        return Err(Failed::usage(format!(
            "a token without permissions is good for nothing: say what it may do, as in\n  \
             taskyard token create {} --allow 'submit:emails*' --allow consume:emails",
            create.name
        )));
    }
    let allow = Grants::parse(create.allow.iter().map(String::as_str)).map_err(Failed::usage)?;
    let path = create.file.path();
    // As `serve` does: a token may be made before the broker's first start.
    if create.file.tokens_file.is_none() {
        std::fs::create_dir_all(&create.file.data_dir)
            .map_err(|e| Failed::other(format!("cannot make {}: {e}", create.file.data_dir.display())))?;
    }
    let new = NewToken {
        name: create.name.clone(),
        allow,
        lasts: create.expires,
        limits: Limits {
            messages_per_s: create.messages_per_s,
            connections: create.connections,
            queued_tasks: create.queued_tasks,
            queued_bytes: create.queued_bytes,
        },
    };
    let Some(token) = token::create(&path, new, now())? else {
        return Err(Failed::usage(format!(
            "there is a token {:?} already in {}: choose another name, or take it away with `taskyard token revoke {}`",
            create.name,
            path.display(),
            create.name
        )));
    };
    print(format!("{}\n", token.expose()).as_bytes())?;
    if std::io::stderr().is_terminal() {
        hint("this is the only time that the token is shown: put it where it is needed, as TASKYARD_TOKEN");
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "what is said beside the answer goes to the user, not into pipes")]
fn hint(text: &str) {
    eprintln!("{text}");
}

fn list(file: &TokensFile, output: Output) -> Result<ExitCode, Failed> {
    let path = file.path();
    let read = token::read(&path)?;
    let (tokens, warnings) = read.map(|file| (file.tokens, file.warnings)).unwrap_or_default();
    for warning in warnings {
        hint(&format!("taskyard: {warning}"));
    }
    let text = match output {
        Output::Json => format!("{:#}\n", json!({"tokens": tokens.iter().map(as_json).collect::<Vec<_>>()})),
        Output::Table if tokens.is_empty() => {
            format!("no tokens in {}: see `taskyard token create --help`\n", path.display())
        }
        Output::Table => table(&tokens, now()),
    };
    print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn as_json(token: &Token) -> serde_json::Value {
    let limits = token.limits.named().into_iter().map(|(name, limit)| (name.to_owned(), limit.into()));
    json!({
        "name": token.name.as_str(),
        "id": token.id.as_str(),
        "allow": token.allow.rules().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "created": rfc3339(token.created),
        "expires": token.expires.and_then(rfc3339),
        "limits": limits.collect::<serde_json::Map<_, _>>(),
    })
}

fn table(tokens: &[Token], now: SystemTime) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["NAME", "ID", "ALLOW", "CREATED", "EXPIRES", "LIMITS"]);
    for token in tokens {
        let limits: Vec<String> = token
            .limits
            .named()
            .into_iter()
            .filter_map(|(name, limit)| Some(format!("{name}={}", limit?)))
            .collect();
        let expires = match token.expires {
            None => "never".into(),
            Some(end) if end <= now => "expired".into(),
            Some(end) => rfc3339(end).unwrap_or_default(),
        };
        table.add_row([
            token.name.to_string(),
            token.id.to_string(),
            token.allow.to_string(),
            rfc3339(token.created).unwrap_or_default(),
            expires,
            if limits.is_empty() { "-".into() } else { limits.join(" ") },
        ]);
    }
    format!("{table}\n")
}

fn revoke(name: &str, file: &TokensFile) -> Result<ExitCode, Failed> {
    let path = file.path();
    match token::revoke(&path, name)? {
        None => Err(Failed::usage(format!(
            "there is no token {name:?} in {}: `taskyard token list` shows those there are",
            path.display()
        ))),
        Some(0) => {
            hint(
                "that was the last token: a broker that runs goes on to ask for one, but the next that starts will \
                 not, unless TASKYARD_ADMIN_TOKEN or auth.jwt is set",
            );
            Ok(ExitCode::SUCCESS)
        }
        Some(_) => Ok(ExitCode::SUCCESS),
    }
}
