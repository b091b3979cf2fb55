//! From flags, environment and file to values, each with its origin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Form, KEYS, Key, Kind, SECTIONS};
use super::{ConfigError, Problem, Secret};

/// The variable of the token that may do all. Never a flag, which process lists show, nor in a file, which
/// many read.
pub const ADMIN_TOKEN: &str = "TASKYARD_ADMIN_TOKEN";

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, or one of a few words.
    Text(String),
    /// A whole number.
    Number(u64),
    /// Yes or no.
    Switch(bool),
    /// Any number of texts.
    List(Vec<String>),
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// A file.
    File {
        /// Its name.
        path: Arc<str>,
        /// Where in it.
        line: usize,
    },
}

/// What one or more sources give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    given: BTreeMap<&'static str, (Value, Source)>,
    /// The token that may do all.
    pub admin_token: Option<Secret>,
}

/// The flags of the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags(Values);

/// Everything that a configuration is read from, so that it can be read again.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sources {
    /// A TOML file with any of these options: `taskyard config print --defaults` prints one with every key. Flags
    /// and environment win over it
    #[arg(long = "config", env = "TASKYARD_CONFIG", value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    flags: Flags,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Text(form) => form.fmt(f),
            Kind::Number { min, max, step: 1 } => write!(f, "{min} to {max}"),
            Kind::Number { min, max, step } => write!(f, "a multiple of {step}, {min} to {max}"),
            Kind::Switch => f.write_str("true or false"),
            Kind::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                f.write_str(&words.join(" or "))
            }
            Kind::List(form) => write!(f, "a list of {form}"),
        }
    }
}

impl Value {
    /// Reads a flag's or a variable's text. Lists are separated by commas.
    pub fn parse(kind: &Kind, text: &str) -> Result<Value, String> {
        let wrong = || format!("expected {kind}, got {text:?}");
        let value = match kind {
            Kind::Text(_) | Kind::Choice(_) => Value::Text(text.to_owned()),
            Kind::Number { .. } => Value::Number(text.parse().map_err(|_| wrong())?),
            Kind::Switch => Value::Switch(match text {
                "true" | "yes" | "on" | "1" => true,
                "false" | "no" | "off" | "0" => false,
                _ => return Err(wrong()),
            }),
            Kind::List(_) => Value::List(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
            ),
        };
        value.checked(kind)
    }

    fn of_toml(kind: &Kind, value: &DeValue<'_>) -> Result<Value, String> {
        let wrong = |got: &DeValue<'_>| format!("expected {kind}, got {}", shown(got));
        let value = match (kind, value) {
            (Kind::Text(_) | Kind::Choice(_), DeValue::String(text)) => Value::Text(text.to_string()),
            (Kind::Switch, DeValue::Boolean(switch)) => Value::Switch(*switch),
            (Kind::Number { .. }, DeValue::Integer(number)) => {
                Value::Number(u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| wrong(value))?)
            }
            (Kind::List(_), DeValue::Array(items)) => {
                let item = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
                    DeValue::String(text) => Ok(text.to_string()),
                    other => Err(format!("expected {kind}, got {} in it", shown(other))),
                };
                Value::List(items.iter().map(item).collect::<Result<_, _>>()?)
            }
            _ => return Err(wrong(value)),
        };
        value.checked(kind)
    }

    fn checked(self, kind: &Kind) -> Result<Value, String> {
        let form = |form: &Form, text: &str| {
            (form.check)(text).map_err(|why| format!("expected {kind}, got {text:?}: {why}"))
        };
        match (kind, &self) {
            (Kind::Text(of), Value::Text(text)) => form(of, text)?,
            (Kind::List(of), Value::List(items)) => items.iter().try_for_each(|item| form(of, item))?,
            (Kind::Choice(words), Value::Text(text)) if !words.contains(&text.as_str()) => {
                return Err(format!("expected {kind}, got {text:?}"));
            }
            (Kind::Number { min, max, step }, Value::Number(number))
                if !(min..=max).contains(&number) || !number.is_multiple_of(*step) =>
            {
                return Err(format!("expected {kind}, got {number}"));
            }
            _ => {}
        }
        Ok(self)
    }
}

/// A value of the wrong type, in words.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(switch) => switch.to_string(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a section".into(),
    }
}

impl Source {
    /// Where the value of `key` stands.
    pub fn place(&self, key: &Key) -> String {
        match self {
            Source::Flag => format!("--{}", key.flag.unwrap_or(key.name)),
            Source::Environment => key.variable().unwrap_or_default(),
            Source::File { path, line } => format!("{path}:{line}"),
        }
    }
}

impl Values {
    /// Sets a key by its full name, from a flag's text.
    pub fn set(&mut self, name: &str, text: &str, source: Source) -> Result<(), ConfigError> {
        let wrong = |text| ConfigError(vec![Problem { place: String::new(), text }]);
        let key = Key::find(name).ok_or_else(|| wrong(format!("there is no key {name:?}")))?;
        let value = Value::parse(&key.kind, text).map_err(|error| wrong(format!("{name}: {error}")))?;
        self.given.insert(key.name, (value, source));
        Ok(())
    }

    /// What is given for a key, and where.
    pub fn given(&self, name: &str) -> Option<&(Value, Source)> {
        self.given.get(name)
    }

    /// What stands for a key: what is given, or else its default.
    pub fn get(&self, name: &str) -> Option<Value> {
        if let Some((value, _)) = self.given.get(name) {
            return Some(value.clone());
        }
        let key = Key::find(name).expect("it is asked for by a name of the table");
        let default = key.default?;
        Some(Value::parse(&key.kind, default).expect("the table's defaults are tested"))
    }

    /// Whether any key of a section is given.
    pub fn any(&self, section: &str) -> bool {
        KEYS.iter().any(|key| key.section() == section && self.given.contains_key(key.name))
    }

    /// These values where they are given, else those of `under`.
    pub fn over(mut self, under: Values) -> Values {
        for (name, value) in under.given {
            self.given.entry(name).or_insert(value);
        }
        self.admin_token = self.admin_token.or(under.admin_token);
        self
    }

    /// These values with those of `other` for the keys that `of_other` picks.
    pub(super) fn with(&self, other: &Values, of_other: impl Fn(&Key) -> bool) -> Values {
        let pick = |key: &Key| if of_other(key) { other } else { self };
        let values = KEYS.iter().filter_map(|key| Some((key.name, pick(key).given.get(key.name)?.clone())));
        Values { given: values.collect(), admin_token: self.admin_token.clone() }
    }

    /// What the environment gives. An empty variable gives nothing: it is how many say so.
    fn of_environment(variable: impl Fn(&str) -> Option<OsString>, problems: &mut Vec<Problem>) -> Values {
        let mut values = Values::default();
        let mut read = |name: &str| {
            let text = variable(name)?.into_string();
            if text.is_err() {
                problems.push(Problem { place: name.to_owned(), text: "it is not UTF-8".into() });
            }
            text.ok().filter(|text| !text.is_empty())
        };
        let mut wrong = Vec::new();
        for key in KEYS {
            let Some(name) = key.variable() else { continue };
            let Some(text) = read(&name) else { continue };
            match Value::parse(&key.kind, &text) {
                Ok(value) => {
                    values.given.insert(key.name, (value, Source::Environment));
                }
                Err(error) => {
                    wrong.push(Problem { place: name, text: format!("{}: {error}", key.name) });
                }
            }
        }
        // Not so this one: whoever sets it means to have authentication, and must not be left without.
        if variable(ADMIN_TOKEN).is_some_and(|text| text.is_empty()) {
            let text = "it is set, and empty: give a token, or do not set it";
            wrong.push(Problem { place: ADMIN_TOKEN.to_owned(), text: text.into() });
        }
        if let Some(token) = read(ADMIN_TOKEN) {
            if token.bytes().all(|byte| byte.is_ascii_graphic()) {
                values.admin_token = Some(Secret::new(&token));
            } else {
                let text = "expected printable ASCII without spaces, which is all that a header carries; perhaps it \
                            ends with a line end";
                wrong.push(Problem { place: ADMIN_TOKEN.to_owned(), text: text.into() });
            }
        }
        problems.append(&mut wrong);
        values
    }

    /// What a file gives.
    fn of_file(path: &Path, problems: &mut Vec<Problem>) -> Values {
        match std::fs::read_to_string(path) {
            Ok(text) => Values::of_text(&path.display().to_string(), &text, problems),
            Err(error) => {
                let text = format!("cannot read config file {}: {error}", path.display());
                problems.push(Problem { place: String::new(), text });
                Values::default()
            }
        }
    }

    /// What a file of this name and text gives.
    pub(super) fn of_text(path: &str, text: &str, problems: &mut Vec<Problem>) -> Values {
        let mut file = File { path: path.into(), text, values: Values::default(), found: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = file.line(error.span().map_or(0, |span| span.start));
            // A slip makes what follows it look wrong too.
            if file.found.iter().any(|(other, _)| *other == line) {
                continue;
            }
            file.found.push((line, format!("not TOML: {}", error.message().replace('\n', ", "))));
        }
        let broken: Vec<usize> = file.found.iter().map(|(line, _)| *line).collect();
        file.section("", table.get_ref());
        // What was made of a broken line is not what was meant.
        let mut nth = 0;
        file.found.retain(|(line, _)| {
            nth += 1;
            nth <= broken.len() || !broken.contains(line)
        });
        file.found.sort_by_key(|(line, _)| *line);
        let places = file.found.into_iter();
        problems.extend(places.map(|(line, text)| Problem { place: format!("{path}:{line}"), text }));
        file.values
    }
}

/// A file that is being read.
struct File<'a> {
    path: Arc<str>,
    text: &'a str,
    values: Values,
    /// What is wrong, by line.
    found: Vec<(usize, String)>,
}

impl File<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (word, value) in table {
            let line = self.line(word.span().start);
            let word: &str = word.get_ref();
            let name = if section.is_empty() { word.to_owned() } else { format!("{section}.{word}") };
            let is_section = SECTIONS
                .iter()
                .any(|known| known.name == name || known.name.starts_with(&format!("{name}.")));
            if let Some(key) = Key::find(&name) {
                match Value::of_toml(&key.kind, value.get_ref()) {
                    Ok(value) => {
                        let source = Source::File { path: self.path.clone(), line };
                        self.values.given.insert(key.name, (value, source));
                    }
                    Err(error) => self.found.push((line, format!("{name}: {error}"))),
                }
            } else if is_section {
                match value.get_ref() {
                    DeValue::Table(table) => self.section(&name, table),
                    other => {
                        self.found.push((line, format!("expected a section [{name}], got {}", shown(other))));
                    }
                }
            } else {
                self.found.push((line, unknown(section, word)));
            }
        }
    }
}

/// What to say about a key that is none.
fn unknown(section: &str, word: &str) -> String {
    let place = |section: &str| match section {
        "" => "at the top level, above the first section".to_owned(),
        name => format!("in [{name}]"),
    };
    if word == "admin_token" {
        return format!(
            "the admin token does not belong in a file, which many read: give it in the environment, as {ADMIN_TOKEN}"
        );
    }
    let here = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
    let what = format!("unknown key \"{word}\"{here}");
    let plain = word.to_ascii_lowercase().replace('-', "_");
    let near = |name: &&str| is_near(name, &plain);
    let nearest = |names: &mut dyn Iterator<Item = &'static str>| {
        names.filter_map(|name| Some((near(&name)?, name))).min().map(|(_, name)| name)
    };
    let within = KEYS.iter().filter(|key| key.section() == section).map(Key::short);
    let sections = SECTIONS.iter().filter_map(|known| {
        let inner = if section.is_empty() {
            known.name
        } else {
            known.name.strip_prefix(section)?.strip_prefix('.')?
        };
        inner.split('.').next().filter(|name| !name.is_empty())
    });
    if let Some(name) = nearest(&mut within.chain(sections)) {
        return format!("{what}: did you mean \"{name}\"?");
    }
    let elsewhere = KEYS.iter().filter_map(|key| Some((near(&key.short())?, key)));
    if let Some((_, key)) = elsewhere.min_by_key(|(distance, _)| *distance) {
        return format!("{what}: \"{}\" stands {}", key.short(), place(key.section()));
    }
    let known: Vec<&str> = KEYS.iter().filter(|key| key.section() == section).map(Key::short).collect();
    if known.is_empty() {
        return format!("{what}: `taskyard config print --defaults` shows all there are");
    }
    format!("{what}: known are {}", known.join(", "))
}

/// How far a word is from a name, if it may be a slip for it: one change in three letters is, more is another word.
pub(super) fn is_near(name: &str, word: &str) -> Option<usize> {
    let distance = strsim::damerau_levenshtein(name, word);
    (distance <= (name.len() / 3).max(1)).then_some(distance)
}

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        KEYS.iter().filter_map(argument).fold(command, clap::Command::arg)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }
}

/// A key's flag.
fn argument(key: &'static Key) -> Option<Arg> {
    let first = key.doc.split_once(". ").map_or(key.doc, |(first, _)| first).trim_end_matches('.');
    let default = match key.default {
        Some(text) if !text.is_empty() => text,
        _ => key.default_words,
    };
    let tail = format!("[default: {default}] [env: {}]", key.variable()?);
    let argument = Arg::new(key.name)
        .long(key.flag?)
        .action(ArgAction::Set)
        .value_name(key.value_name)
        .help(format!("{first} {tail}"))
        .long_help(format!("{}\n\nExpected: {}. {tail}", key.doc, key.kind))
        .value_parser(|text: &str| Value::parse(&key.kind, text));
    let argument = match key.kind {
        // The flag alone says yes.
        Kind::Switch => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => argument,
    };
    Some(match key.section() {
        "" => argument,
        "tls" => argument.help_heading("TLS"),
        "compression" => argument.help_heading("Compression"),
        _ => argument.help_heading("Limits of each account"),
    })
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = Values::default();
        for key in KEYS.iter().filter(|key| key.flag.is_some()) {
            if let Some(value) = matches.get_one::<Value>(key.name) {
                values.given.insert(key.name, (value.clone(), Source::Flag));
            }
        }
        Ok(Flags(values))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let later = Flags::from_arg_matches(matches)?;
        self.0 = later.0.over(std::mem::take(&mut self.0));
        Ok(())
    }
}

impl Sources {
    /// Reads them all; what is wrong in any is told, also where another wins over it.
    pub fn values(&self) -> Result<Values, ConfigError> {
        let mut problems = Vec::new();
        let file = self.file.as_deref().map(|path| Values::of_file(path, &mut problems));
        let environment = Values::of_environment(|name| std::env::var_os(name), &mut problems);
        if problems.is_empty() {
            Ok(self.flags.0.clone().over(environment).over(file.unwrap_or_default()))
        } else {
            Err(ConfigError(problems))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        Values::of_text("f", text, &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    fn one(text: &str) -> String {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest() {
        assert_eq!(one("\nlistn = 1"), "f:2: unknown key \"listn\": did you mean \"listen\"?");
        assert_eq!(
            one("[tls]\n\ncert_fiel = \"a\""),
            "f:3: unknown key \"cert_fiel\" in [tls]: did you mean \"cert_file\"?"
        );
        assert_eq!(one("ping-ms = 1"), "f:1: unknown key \"ping-ms\": did you mean \"ping_ms\"?");
        assert_eq!(one("[limit]\nconnections = 1"), "f:1: unknown key \"limit\": did you mean \"limits\"?");
        assert_eq!(one("[auth.jwk]\n"), "f:1: unknown key \"jwk\" in [auth]: did you mean \"jwt\"?");
        assert_eq!(
            one("[tls]\nlisten = \"a\""),
            "f:2: unknown key \"listen\" in [tls]: \"listen\" stands at the top level, above the first section"
        );
        assert_eq!(one("cert_file = \"a\""), "f:1: unknown key \"cert_file\": \"cert_file\" stands in [tls]");
        assert_eq!(
            one("[compression]\nwhatever = 1"),
            "f:2: unknown key \"whatever\" in [compression]: known are enabled, min_bytes"
        );
        assert!(one("[auth]\nwhatever = 1").contains("--defaults"));
        assert!(one("admin_token = \"x\"").contains("TASKYARD_ADMIN_TOKEN"));
        assert!(one("[auth]\nadmin_token = \"x\"").contains("TASKYARD_ADMIN_TOKEN"));
    }

    #[test]
    fn a_wrong_value_says_what_was_expected_and_what_came() {
        for (text, said) in [
            ("ping_ms = \"often\"", "f:1: ping_ms: expected 100 to 86400000, got the text \"often\""),
            ("ping_ms = -1", "f:1: ping_ms: expected 100 to 86400000, got the number -1"),
            ("message_bytes = 5", "f:1: message_bytes: expected 1024 to 16777216, got 5"),
            ("engine = \"paper\"", "f:1: engine: expected \"embedded\" or \"memory\", got \"paper\""),
            ("data_dir = \"\"", "f:1: data_dir: expected a path, got \"\": it is empty"),
            ("allow_query_token = 1", "f:1: allow_query_token: expected true or false, got the number 1"),
            ("tls = 1", "f:1: expected a section [tls], got the number 1"),
            ("[[tls]]", "f:1: expected a section [tls], got a list"),
            (
                "trusted_proxies = [\"10.0.0.1\", \"10.0.0.0/33\"]",
                "f:1: trusted_proxies: expected a list of addresses or networks like \"10.0.0.0/8\", got \"10.0.0.0/33\": it is neither",
            ),
        ] {
            assert_eq!(one(text), said);
        }
        assert!(one("allow_origins = \"https://a.example\"").contains("a list of origins"));
        assert!(one("allow_origins = [1]").contains("the number 1 in it"));
        assert!(one("segment_bytes = 70_000").contains("multiple of 4096"));
        assert!(one("[auth.jwt]\nalgorithms = [\"none\"]").contains("nobody signed"));
    }

    #[test]
    fn all_that_is_wrong_is_told_and_not_only_the_first() {
        let found = problems("listn = 1\nping_ms = 5\ndrain_ms = = 1\nping_ms = 200\n[tls]\ncert = 1\n");
        let lines: Vec<&str> = found.iter().map(|text| text.split(": ").next().unwrap()).collect();
        assert_eq!(lines, ["f:1", "f:2", "f:3", "f:4", "f:6"], "{found:#?}");
        assert!(found[2].contains("not TOML"), "{found:#?}");
    }

    #[test]
    fn numbers_are_read_as_toml_has_them() {
        let mut problems = Vec::new();
        let values = Values::of_text("f", "message_bytes = 0x1_000\nping_ms = 1_000", &mut problems);
        assert_eq!(problems, []);
        assert_eq!(values.get("message_bytes"), Some(Value::Number(4096)));
        assert_eq!(values.get("ping_ms"), Some(Value::Number(1000)));
    }

    #[test]
    fn the_environment_gives_what_flags_give() {
        let mut problems = Vec::new();
        let values = Values::of_environment(
            |name| {
                let text = match name {
                    "TASKYARD_PING_MS" => "1234",
                    "TASKYARD_LISTEN" => "",
                    "TASKYARD_ALLOW_ORIGINS" => "https://a.example, https://b.example,",
                    "TASKYARD_COMPRESSION" => "yes",
                    "TASKYARD_DRAIN_MS" => "soon",
                    "TASKYARD_ADMIN_TOKEN" => "secret",
                    _ => return None,
                };
                Some(text.into())
            },
            &mut problems,
        );
        assert_eq!(problems.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "TASKYARD_DRAIN_MS: drain_ms: expected 0 to 86400000, got \"soon\""
        );
        assert_eq!(values.get("ping_ms"), Some(Value::Number(1234)));
        assert_eq!(values.given("listen"), None, "empty is not given");
        let origins = ["https://a.example", "https://b.example"].map(str::to_owned).to_vec();
        assert_eq!(values.get("allow_origins"), Some(Value::List(origins)));
        assert_eq!(values.get("compression.enabled"), Some(Value::Switch(true)));
        assert_eq!(values.admin_token.as_ref().map(Secret::expose), Some("secret"));
        assert!(!format!("{values:?}").contains("secret"), "it does not reach a log");
    }
}
