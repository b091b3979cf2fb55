//! Static tokens: how they look, and the file that knows them by their hashes.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use sha2::{Digest as _, Sha256};
use smol_str::SmolStr;
use subtle::ConstantTimeEq as _;
use taskyard_proto::{Secret, WorkerName};
use toml::{Table, Value};

use super::{ADMIN, ANYONE, AuthError, Limits};
use crate::core::Grants;

/// How a token begins, so that a scanner for secrets knows one where it should not be:
/// `ty_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}`.
pub const TOKEN_PREFIX: &str = "ty_";

/// Length of the public part, by which a token is found in the file and named in conversation.
const ID_LENGTH: usize = 8;

/// 62^43 is more than 2^256.
const SECRET_LENGTH: usize = 43;

/// More than ten thousand tokens: what is longer is some other file.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The bits of a file's mode that let others than its owner use it, but for reading by its group,
/// which is how secrets are handed to containers.
const MODE_TOO_OPEN: u32 = 0o027;

const HEADER: &str = "\
# Tokens of a Taskyard broker, written by `taskyard token`. The broker reads this file again when it changes.
# Here are only hashes: a token itself is shown once, when it is made. Values may be edited, but comments are
# lost when `taskyard token` writes the file.
";

/// A token as the file knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name, which is the account.
    pub name: SmolStr,
    /// Its public part.
    pub id: SmolStr,
    /// The hash of the whole token.
    pub sha256: [u8; 32],
    /// What it allows.
    pub allow: Grants,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// Its own limits.
    pub limits: Limits,
}

/// The hash that is kept and compared instead of a secret.
///
/// Plain SHA-256 is right here: slow hashes make up for passwords that can be guessed, and nobody
/// guesses 256 random bits. A slow one would only let strangers keep the broker busy.
pub(super) fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Whether two hashes are the same, in a time that does not depend on where they differ.
pub(super) fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.ct_eq(other).into()
}

/// The public part of a text that has the form of a token.
pub(super) fn id_of(credential: &str) -> Option<&str> {
    let (id, secret) = credential.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_id(id) && secret.len() == SECRET_LENGTH && plain(secret)).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Checks the name of a token: it is an account's name too.
pub fn check_name(name: &str) -> Result<(), String> {
    if WorkerName::parse(name).is_err() {
        return Err("expected 1 to 128 letters, digits, '_', '-' or '.', not beginning with '.'".into());
    }
    if [ADMIN, ANYONE].contains(&name) {
        return Err(format!("{name:?} is the broker's own word for somebody: choose another name"));
    }
    Ok(())
}

/// What the maker of a token says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Its name; must not be taken.
    pub name: String,
    /// What it allows.
    pub allow: Grants,
    /// How long it lasts; without: until it is revoked.
    pub lasts: Option<Duration>,
    /// Its own limits.
    pub limits: Limits,
}

/// Makes a token, adds it to the file (which is made if there is none) and returns it: it is known
/// to nobody else. `Ok(None)`: the name is taken, and nothing was changed.
pub fn create(path: &Path, new: NewToken, now: SystemTime) -> Result<Option<Secret>, AuthError> {
    check_name(&new.name).map_err(|why| AuthError::Config(format!("token name {:?}: {why}", new.name)))?;
    let expires = match new.lasts {
        Some(lasts) => Some(
            now.checked_add(lasts)
                .filter(|time| rfc3339(*time).is_some())
                .ok_or_else(|| AuthError::Config("it would expire after the year 9999".into()))?,
        ),
        None => None,
    };
    edit(path, |tokens| {
        if tokens.iter().any(|token| token.name == new.name) {
            return Ok(None);
        }
        // A cryptographically secure generator, seeded by the operating system.
        let mut rng = rand::rng();
        let mut random =
            |length| -> String { (0..length).map(|_| char::from(rng.sample(Alphanumeric))).collect() };
        let id = loop {
            let id = random(ID_LENGTH);
            if !tokens.iter().any(|token| token.id == id) {
                break id;
            }
        };
        let secret = Secret::new(&format!("{TOKEN_PREFIX}{id}_{}", random(SECRET_LENGTH)));
        tokens.push(Token {
            name: new.name.into(),
            id: id.into(),
            sha256: digest(secret.expose()),
            allow: new.allow,
            created: now,
            expires,
            limits: new.limits,
        });
        Ok(Some(secret))
    })
}

/// Takes the token with this name out of the file. `Ok(None)`: there is none. Otherwise how many are left.
pub fn revoke(path: &Path, name: &str) -> Result<Option<usize>, AuthError> {
    // Editing would make the file's lock where there is no file.
    if !path.exists() {
        return Ok(None);
    }
    edit(path, |tokens| {
        let before = tokens.len();
        tokens.retain(|token| token.name != name);
        Ok((tokens.len() < before).then_some(tokens.len()))
    })
}

/// What tells one version of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: (i64, i64),
    /// Also of its owner and mode: who may read it can change alone.
    changed: (i64, i64),
    length: u64,
    file: (u64, u64),
}

impl Stamp {
    fn new(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
            file: (metadata.dev(), metadata.ino()),
        }
    }

    /// The stamp of a file; `None` if there is none.
    pub(super) fn of(path: &Path) -> io::Result<Option<Stamp>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Stamp::new(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A tokens file that was read.
#[derive(Debug, Clone)]
pub struct TokensFile {
    /// The tokens, in the file's order.
    pub tokens: Vec<Token>,
    /// What is not wrong, but should not be.
    pub warnings: Vec<String>,
}

/// Reads a tokens file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<TokensFile>, AuthError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AuthError::io("open", path, error)),
    };
    let metadata = file.metadata().map_err(|e| AuthError::io("look at", path, e))?;
    if metadata.len() > FILE_BYTES_MAX {
        let what =
            format!("it has {} bytes: expected a tokens file of at most {FILE_BYTES_MAX}", metadata.len());
        return Err(AuthError::file("tokens file", path, what));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| AuthError::io("read", path, e))?;
    let tokens = parse(&text).map_err(|what| AuthError::file("tokens file", path, what))?;
    let mode = metadata.permissions().mode() & 0o777;
    let mut warnings = Vec::new();
    if mode & MODE_TOO_OPEN != 0 {
        warnings.push(format!(
            "tokens file {} has mode {mode:03o}: others than its owner can use it; run `chmod 600` on it",
            path.display()
        ));
    }
    Ok(Some(TokensFile { tokens, warnings }))
}

/// Changes the file as a whole, or not at all: if `change` fails, or nothing changes, nothing is written.
fn edit<T>(
    path: &Path,
    change: impl FnOnce(&mut Vec<Token>) -> Result<T, AuthError>,
) -> Result<T, AuthError> {
    // A link goes on to point to the file that is written.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // The directory is locked, not the file, which is another one after each change.
    let lock = File::open(directory).map_err(|e| AuthError::io("open the directory", directory, e))?;
    lock.lock().map_err(|e| AuthError::io("lock the directory", directory, e))?;
    let before = read(&path)?.map(|file| file.tokens).unwrap_or_default();
    let mut tokens = before.clone();
    let done = change(&mut tokens)?;
    if tokens != before {
        write(&path, &render(&tokens), &lock).map_err(|e| AuthError::io("write", &path, e))?;
    }
    Ok(done)
}

/// Puts a new file in the place of the old one, at once and for good.
fn write(path: &Path, text: &str, directory: &File) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = write_aside(&temporary, text, path, directory)
        .and_then(|()| fs::rename(&temporary, path))
        // Without this the rename itself could be lost by a power cut, and a revoked token be back.
        .and_then(|()| directory.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_aside(temporary: &PathBuf, text: &str, replaces: &Path, directory: &File) -> io::Result<()> {
    // Left by a process with our number that was killed: nobody else's, the directory is locked.
    let _ = fs::remove_file(temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    // An administrator who makes a token must not take the file away from the broker's user.
    let old = fs::metadata(replaces);
    let owner = match &old {
        Ok(old) => (old.uid(), old.gid()),
        Err(_) => directory.metadata().map(|metadata| (metadata.uid(), metadata.gid()))?,
    };
    let ours = file.metadata().map(|metadata| (metadata.uid(), metadata.gid()))?;
    if owner != ours {
        // Only root may; for all others the file stays their own, as any they make.
        let _ = std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1));
    }
    if let Ok(old) = old {
        // What the group was given it keeps; all others have no business here.
        file.set_permissions(fs::Permissions::from_mode(old.permissions().mode() & 0o660 | 0o600))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The tokens as the file holds them. Nothing in them needs escaping: names, rules and times are
/// made of plain characters.
fn render(tokens: &[Token]) -> String {
    use std::fmt::Write as _;
    let mut text = HEADER.to_owned();
    let written = tokens.iter().try_for_each(|token| {
        write!(
            text,
            "\n[[token]]\nname = \"{}\"\nid = \"{}\"\nsha256 = \"{}\"\n",
            token.name,
            token.id,
            hex(&token.sha256)
        )?;
        let rules: Vec<String> = token.allow.rules().iter().map(|rule| format!("\"{rule}\"")).collect();
        writeln!(text, "allow = [{}]", rules.join(", "))?;
        let time = |time| rfc3339(time).expect("a token's times were read or checked");
        writeln!(text, "created = \"{}\"", time(token.created))?;
        if let Some(expires) = token.expires {
            writeln!(text, "expires = \"{}\"", time(expires))?;
        }
        let limits: Vec<(&str, u64)> =
            token.limits.named().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        if !limits.is_empty() {
            writeln!(text, "[token.limits]")?;
        }
        limits.iter().try_for_each(|(key, value)| writeln!(text, "{key} = {value}"))
    });
    written.expect("writing to a string does not fail");
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

/// A time as RFC 3339 text, to the second; `None` beyond the year 9999.
pub fn rfc3339(time: SystemTime) -> Option<String> {
    let seconds = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    let text = DateTime::from_timestamp(seconds, 0)?.to_rfc3339_opts(SecondsFormat::Secs, true);
    (!text.starts_with('+')).then_some(text)
}

fn time_of(text: &str) -> Option<SystemTime> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(time.timestamp()).ok()?))?;
    // With its offset it may be of the year 10000, which could not be written again.
    rfc3339(time).map(|_| time)
}

/// Reads the text of a tokens file. Errors name the token and the key; they do not show values that
/// could be a secret which somebody put into the wrong place.
fn parse(text: &str) -> Result<Vec<Token>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        // Not the whole error: it shows the line, and what is in it.
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        format!("line {line}: {}", error.message())
    })?;
    known_keys(&table, &["token"], "the file")?;
    let entries = match table.get("token") {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err("key \"token\": expected tables that begin with [[token]]".into()),
    };
    let mut tokens = Vec::with_capacity(entries.len());
    let (mut names, mut ids) = (HashSet::new(), HashSet::new());
    for (nth, entry) in entries.iter().enumerate() {
        let entry =
            entry.as_table().ok_or("key \"token\": expected tables that begin with [[token]]".to_owned())?;
        let label = match entry.get("name").and_then(Value::as_str).filter(|name| check_name(name).is_ok()) {
            Some(name) => format!("token {name:?}"),
            None => format!("token number {}", nth + 1),
        };
        let token = parse_token(entry).map_err(|what| format!("{label}: {what}"))?;
        if !names.insert(token.name.clone()) {
            return Err(format!("{label}: key \"name\": an earlier token has the same name"));
        }
        if !ids.insert(token.id.clone()) {
            return Err(format!("{label}: key \"id\": an earlier token has the same id"));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

fn known_keys(table: &Table, known: &[&str], whose: &str) -> Result<(), String> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        // A key can be no token: it would have to be cut to show it, and it is not needed to find it.
        Some(key) => Err(format!(
            "key {:?} is unknown: {whose} has {}",
            key.chars().take(32).collect::<String>(),
            known.join(", ")
        )),
        None => Ok(()),
    }
}

fn parse_token(entry: &Table) -> Result<Token, String> {
    known_keys(entry, &["name", "id", "sha256", "allow", "created", "expires", "limits"], "a token")?;
    let text = |key: &str| match entry.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("key {key:?}: expected text in quotes")),
        None => Err(format!("key {key:?} is missing")),
    };
    let time = |key: &str| {
        let text = match entry.get(key) {
            None => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Datetime(time)) => time.to_string(),
            Some(_) => String::new(),
        };
        time_of(&text).map(Some).ok_or_else(|| {
            format!("key {key:?}: expected a time with its offset (RFC 3339), as \"2026-01-31T12:00:00Z\"")
        })
    };
    let name = text("name")?;
    check_name(name).map_err(|why| format!("key \"name\": {why}"))?;
    let id = text("id")?;
    if !is_id(id) {
        return Err(format!("key \"id\": expected {ID_LENGTH} letters and digits"));
    }
    let sha256 = unhex(text("sha256")?).ok_or("key \"sha256\": expected 64 hexadecimal digits")?;
    let rules = match entry.get("allow") {
        Some(Value::Array(rules)) => rules
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()
            .ok_or("key \"allow\": expected texts")?,
        Some(_) => return Err("key \"allow\": expected a list of rules".into()),
        None => return Err("key \"allow\" is missing: without rules a token is good for nothing".into()),
    };
    Ok(Token {
        name: name.into(),
        id: id.into(),
        sha256,
        allow: Grants::parse(rules).map_err(|error| format!("key \"allow\": {error}"))?,
        created: time("created")?.ok_or("key \"created\" is missing")?,
        expires: time("expires")?,
        limits: match entry.get("limits") {
            None => Limits::default(),
            Some(Value::Table(limits)) => parse_limits(limits)?,
            Some(_) => return Err("key \"limits\": expected a table, [token.limits]".into()),
        },
    })
}

fn parse_limits(table: &Table) -> Result<Limits, String> {
    known_keys(table, &Limits::default().named().map(|(key, _)| key), "[token.limits]")?;
    let limit = |key: &str, max: u64| match table.get(key) {
        None => Ok(None),
        Some(value) => value
            .as_integer()
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| (1..=max).contains(value))
            .map(Some)
            .ok_or_else(|| {
                format!("key \"limits.{key}\": expected 1 to {max}, or leave it out for no limit")
            }),
    };
    let small =
        |key| limit(key, u64::from(u32::MAX)).map(|value| value.and_then(|value| u32::try_from(value).ok()));
    Ok(Limits {
        messages_per_s: small("messages_per_s")?,
        connections: small("connections")?,
        queued_tasks: limit("queued_tasks", i64::MAX as u64)?,
        queued_bytes: limit("queued_bytes", i64::MAX as u64)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn new(name: &str) -> NewToken {
        NewToken {
            name: name.into(),
            allow: Grants::parse(["submit:emails*", "consume:emails"]).unwrap(),
            lasts: None,
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_token_has_its_form_and_no_two_are_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        let made: HashSet<String> = (0..50)
            .map(|n| create(&path, new(&format!("t{n}")), at(1)).unwrap().unwrap().expose().to_owned())
            .collect();
        assert_eq!(made.len(), 50);
        for token in &made {
            assert_eq!(token.len(), 3 + 8 + 1 + 43, "{token}");
            let id = id_of(token).unwrap();
            assert!(token.starts_with(&format!("ty_{id}_")));
        }
        let text = fs::read_to_string(&path).unwrap();
        for token in &made {
            assert!(!text.contains(token) && !text.contains(&token[12..]), "the file holds a secret");
            assert!(text.contains(&hex(&digest(token))));
        }
        for wrong in ["", "ty_", "ty_abcdefgh", "ty_abcdefgh_", &"x".repeat(55), "ty_abcdefg__x"] {
            assert_eq!(id_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        assert!(read(&path).unwrap().is_none());
        let limits = Limits {
            messages_per_s: Some(100),
            connections: Some(5),
            queued_tasks: Some(10_000),
            queued_bytes: Some(1 << 40),
        };
        create(
            &path,
            NewToken { lasts: Some(Duration::from_secs(60)), limits, ..new("limited") },
            at(1_700_000_000),
        )
        .unwrap()
        .unwrap();
        create(&path, new("plain"), at(1_700_000_001)).unwrap().unwrap();
        let file = read(&path).unwrap().unwrap();
        assert_eq!(file.warnings, [""; 0]);
        assert_eq!(file.tokens.len(), 2);
        assert_eq!((&*file.tokens[0].name, file.tokens[0].limits), ("limited", limits));
        assert_eq!(file.tokens[0].expires, Some(at(1_700_000_060)));
        assert_eq!((file.tokens[1].created, file.tokens[1].expires), (at(1_700_000_001), None));
        assert_eq!(file.tokens[1].allow.to_string(), "submit:emails* consume:emails");
        assert_eq!(parse(&render(&file.tokens)).unwrap(), file.tokens);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");

        assert_eq!(create(&path, new("plain"), at(2)).unwrap().map(|_| ()), None, "taken");
        assert_eq!(revoke(&path, "nobody").unwrap(), None);
        assert_eq!(revoke(&path, "limited").unwrap(), Some(1));
        assert_eq!(read(&path).unwrap().unwrap().tokens, file.tokens[1..]);
        assert_eq!(revoke(&directory.path().join("none"), "x").unwrap(), None);
    }

    #[test]
    fn a_file_is_its_owner_s_and_one_that_is_not_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        create(&path, new("a"), at(1)).unwrap();
        assert_eq!(mode(), 0o600);
        for (open, warned) in [(0o600, false), (0o640, false), (0o400, false), (0o644, true), (0o660, true)] {
            set(open);
            let warnings = read(&path).unwrap().unwrap().warnings;
            assert_eq!(!warnings.is_empty(), warned, "{open:o}: {warnings:?}");
            assert!(warnings.iter().all(|text| text.contains("chmod 600") && text.contains("tokens.toml")));
        }
        set(0o644);
        create(&path, new("b"), at(1)).unwrap();
        assert_eq!(mode(), 0o640);
    }

    #[test]
    fn a_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real.toml"), directory.path().join("link.toml"));
        create(&real, new("a"), at(1)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        create(&link, new("b"), at(1)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&real).unwrap().unwrap().tokens.len(), 2);
    }

    #[test]
    fn many_who_create_at_once_lose_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for nth in 0..5 {
                        create(path, new(&format!("t{thread}-{nth}")), at(1)).unwrap().unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&path).unwrap().unwrap().tokens.len(), 20);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named_and_secrets_are_not_shown() {
        let whole = format!(
            "name = \"ci\"\nid = \"abcdefgh\"\nsha256 = \"{}\"\nallow = [\"submit:a\"]\ncreated = 2026-01-01T00:00:00Z\n",
            "0a".repeat(32)
        );
        assert_eq!(parse(&format!("[[token]]\n{whole}")).unwrap()[0].created, at(1_767_225_600));
        assert_eq!(parse("").unwrap(), []);
        let secret = "ty_abcdefgh_0123456789012345678901234567890123456789012";
        let refused = |from: &str, to: &str, words: &[&str]| {
            let text = format!("[[token]]\n{whole}").replace(from, to);
            assert_ne!(text, format!("[[token]]\n{whole}"));
            let error = parse(&text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word}: {error}");
            }
            assert!(!error.contains("0123456789"), "{error}");
        };
        refused("name = \"ci\"\n", "", &["number 1", "\"name\"", "missing"]);
        refused("\"ci\"", "\"c i\"", &["number 1", "\"name\"", "letters"]);
        refused("\"ci\"", "\"admin\"", &["\"name\"", "another name"]);
        refused("\"ci\"", "7", &["\"name\"", "quotes"]);
        refused("abcdefgh", secret, &["\"ci\"", "\"id\"", "8 letters"]);
        refused(&"0a".repeat(32), secret, &["\"ci\"", "\"sha256\"", "64"]);
        refused(&"0a".repeat(32), &"0a".repeat(31), &["\"sha256\""]);
        refused("\"submit:a\"", "\"submit:*a\"", &["\"ci\"", "\"allow\"", "submit:*a"]);
        refused("[\"submit:a\"]", "\"submit:a\"", &["\"allow\"", "list"]);
        refused("[\"submit:a\"]", "[7]", &["\"allow\"", "texts"]);
        refused("allow = [\"submit:a\"]\n", "", &["\"allow\"", "missing"]);
        refused("2026-01-01T00:00:00Z", "2026-01-01", &["\"created\"", "offset"]);
        refused("2026-01-01T00:00:00Z", "\"soon\"", &["\"created\"", "RFC 3339"]);
        refused("created", "expires", &["\"created\"", "missing"]);
        refused("2026-01-01T00:00:00Z", "\"9999-12-31T23:59:59-01:00\"", &["\"created\"", "RFC 3339"]);
        refused("created", &format!("token = \"{secret}\"\ncreated"), &["\"ci\"", "\"token\"", "unknown"]);
        refused("[[token]]\n", "[[token]]\nx = 1\n", &["\"x\"", "unknown", "sha256"]);
        refused("[[token]]\n", "[[tokens]]\n", &["\"tokens\"", "unknown"]);
        refused("[[token]]\n", "[token]\n", &["[[token]]"]);
        refused("\"ci\"", &format!("{secret}\""), &["line 2"]);
        let limited =
            |limit: &str| parse(&format!("[[token]]\n{whole}[token.limits]\n{limit}")).map(|t| t[0].limits);
        assert_eq!(limited("connections = 3").unwrap().connections, Some(3));
        for (limit, words) in [
            ("conections = 3", ["conections", "connections"]),
            ("connections = 0", ["limits.connections", "1 to 4294967295"]),
            ("messages_per_s = \"3\"", ["limits.messages_per_s", "1 to"]),
            ("queued_bytes = -1", ["limits.queued_bytes", "1 to"]),
        ] {
            let error = limited(limit).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        let twice = |other: &str| {
            parse(&format!("[[token]]\n{whole}[[token]]\n{}", whole.replace(other, "other000")))
        };
        assert!(twice("abcdefgh").unwrap_err().contains("same name"));
        assert!(twice("ci").unwrap_err().contains("same id"));
    }

    /// Found by fuzzing: the last hours of the year 9999, west of Greenwich, were read, and then ended whoever
    /// wrote the file by a panic.
    #[test]
    fn a_time_that_could_not_be_written_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        create(&path, new("a"), at(1)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let written = |time: &str| {
            fs::write(&path, text.replace("1970-01-01T00:00:01Z", time)).unwrap();
            create(&path, new("b"), at(1)).map(|made| made.is_some())
        };
        assert!(written("9999-12-31T23:59:59Z").unwrap());
        assert!(written("9999-12-31T23:59:59+01:00").unwrap());
        let error = written("9999-12-31T23:59:59-01:00").unwrap_err().to_string();
        assert!(error.contains("\"created\"") && error.contains("RFC 3339"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        fs::write(&path, "[[token]]\nname = 1").unwrap();
        let error = create(&path, new("a"), at(1)).unwrap_err().to_string();
        assert!(error.contains("tokens.toml"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[[token]]\nname = 1");
        let far = NewToken { lasts: Some(Duration::from_secs(u64::MAX / 4)), ..new("a") };
        assert!(create(&directory.path().join("other"), far, at(1)).is_err());
        assert!(create(&directory.path().join("no/such/place"), new("a"), at(1)).is_err());
    }
}
