//! Who somebody is, by the token that they show, and what they may do.
//!
//! * [`Authority`]: knows all tokens that are good, and notices when that changes.
//! * [`token`]: tokens that the broker makes itself, and their file.
//! * [`jwt`], [`jwks`]: tokens that somebody else signs, and the keys for them.
//! * [`meter`]: what the connections of one account share.
//! * [`carried`](mod@carried): where a request carries its token.
//!
//! A token is never logged, never shown in debug output, and compared by its hash alone. Nothing here
//! asks for the wall clock: callers say what time it is.

mod access;
pub mod carried;
pub mod jwks;
pub mod jwt;
pub mod meter;
pub mod token;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use smol_str::{SmolStr, format_smolstr};
use taskyard_proto::Secret;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use carried::{Unreadable, carried};
pub use jwks::{Fetch, REFRESH_EVERY};
pub use jwt::{Algorithm, JwtConfig, JwtKeys};
pub use meter::{ConnectionPermit, Meter, TooManyConnections};

use crate::core::Grants;
use jwks::Jwks;
use jwt::Keys;
use meter::Meters;
use token::{Stamp, Token};

/// The longest text that is looked at as a token: headers of requests are not much longer either.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// An administrator's token is chosen by people: less than this could be guessed.
pub const ADMIN_TOKEN_BYTES_MIN: usize = 16;

/// The account of who shows the administrator's token.
pub const ADMIN: &str = "admin";

/// The account of everybody while authentication is off.
pub const ANYONE: &str = "anyone";

/// How often the files are looked at: one `stat` each.
const POLL: Duration = Duration::from_secs(1);

/// More than a thousand times what a key has; a set of keys has at most [`jwks::SET_BYTES_MAX`].
const KEY_FILE_BYTES_MAX: u64 = jwks::SET_BYTES_MAX as u64;

/// The hash of no text that anybody knows. What has no hash to be compared with is compared with
/// this, so that it takes the same time.
const NOBODY: [u8; 32] = [0; 32];

/// What the authority is told.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The file of static tokens. It need not exist.
    pub tokens_file: PathBuf,
    /// A token that may do all: `TASKYARD_ADMIN_TOKEN`.
    pub admin_token: Option<Secret>,
    /// Which signed tokens are taken, if any.
    pub jwt: Option<JwtConfig>,
    /// For accounts that have no limits of their own. The administrator and, while authentication is
    /// off, everybody is without.
    pub default_limits: Limits,
}

/// How much one account may have and do. `None` is no limit; 0 is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Messages a second, over all its connections; a second's worth at once.
    pub messages_per_s: Option<u32>,
    /// Connections at the same time.
    pub connections: Option<u32>,
    /// Unfinished tasks that it has submitted.
    pub queued_tasks: Option<u64>,
    /// Bytes of them.
    pub queued_bytes: Option<u64>,
}

impl Limits {
    /// These, and the defaults where there is none.
    pub fn or(self, defaults: Limits) -> Limits {
        Limits {
            messages_per_s: self.messages_per_s.or(defaults.messages_per_s),
            connections: self.connections.or(defaults.connections),
            queued_tasks: self.queued_tasks.or(defaults.queued_tasks),
            queued_bytes: self.queued_bytes.or(defaults.queued_bytes),
        }
    }

    /// Each limit with its name.
    pub fn named(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("messages_per_s", self.messages_per_s.map(u64::from)),
            ("connections", self.connections.map(u64::from)),
            ("queued_tasks", self.queued_tasks),
            ("queued_bytes", self.queued_bytes),
        ]
    }
}

/// Somebody whose token was found good.
#[derive(Debug)]
pub struct Identity {
    /// Whose limits these are: a token's name, [`ADMIN`], [`ANYONE`], or `jwt:` and the subject.
    pub account: SmolStr,
    /// What they may do.
    pub grants: Arc<Grants>,
    /// How much, the defaults included.
    pub limits: Limits,
    /// When the token ends.
    pub expires: Option<SystemTime>,
    /// What all connections of the account share.
    pub meter: Arc<Meter>,
    source: Source,
}

impl Identity {
    /// Counts a connection of the account, if it may have one more.
    pub fn connect(&self) -> Result<ConnectionPermit, TooManyConnections> {
        self.meter.connect(self.limits.connections)
    }
}

/// By what somebody was known.
enum Source {
    Anyone,
    Admin,
    Token { id: SmolStr, sha256: [u8; 32] },
    Jwt { key: jwt::Mark },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Anyone => f.write_str("Anyone"),
            Source::Admin => f.write_str("Admin"),
            Source::Token { id, .. } => f.debug_struct("Token").field("id", id).finish_non_exhaustive(),
            Source::Jwt { .. } => f.write_str("Jwt"),
        }
    }
}

/// How somebody stands who was known before. It is what showing the same token again would come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is different.
    Same,
    /// Permissions, limits, name or end of the token are others: see [`Authority::current`].
    Changed,
    /// The token has ended.
    Expired,
    /// The token, or the key that signed it, is gone.
    Revoked,
}

/// Why a token is not good. Its text is for logs, and never holds the token; for the outside all are
/// one, [`Denied::OUTSIDE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// No token that is known. Whether its public part is, is not told apart.
    Unknown,
    /// Longer than [`TOKEN_BYTES_MAX`].
    TooLong(usize),
    /// It was good.
    Expired {
        /// Whose it was.
        account: String,
    },
    /// A signed token, but the keys could not be fetched yet.
    NoKeys,
    /// A signed token that no key is for.
    UnknownKey {
        /// Its algorithm.
        algorithm: Algorithm,
        /// The name of the key that it wants, cut to a printable length.
        kid: Option<String>,
    },
    /// A signed token that is wrong in some other way.
    Jwt(String),
}

impl Denied {
    /// What the outside is told, whatever the reason: every difference would be a hint.
    pub const OUTSIDE: &'static str = "no token, or a wrong one";

    /// Whether the broker is to blame and the same token may be good soon.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Denied::NoKeys)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Unknown => f.write_str("the token is not known"),
            Denied::TooLong(bytes) => write!(f, "the token has {bytes} bytes: at most {TOKEN_BYTES_MAX}"),
            Denied::Expired { account } => write!(f, "the token of {account} has expired"),
            Denied::NoKeys => f.write_str("a signed token, but its issuer's keys could not be fetched yet"),
            Denied::UnknownKey { algorithm, kid: Some(kid) } => {
                write!(f, "a signed token ({algorithm}) of a key {kid:?} that is not known")
            }
            Denied::UnknownKey { algorithm, kid: None } => {
                write!(f, "a signed token, and there is no key for its algorithm, {algorithm}")
            }
            Denied::Jwt(why) => write!(f, "a signed token: {why}"),
        }
    }
}

impl std::error::Error for Denied {}

/// What keeps the authority from knowing who is who.
#[derive(Debug)]
pub enum AuthError {
    /// The operating system refused something.
    Io {
        /// What was tried: `read`, `write`, …
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A file holds what it should not.
    File {
        /// What kind of file.
        kind: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong, and where in it.
        what: String,
    },
    /// A file that was there is gone.
    Vanished(PathBuf),
    /// The configuration cannot be.
    Config(String),
}

impl AuthError {
    fn io(doing: &'static str, path: &Path, error: io::Error) -> AuthError {
        AuthError::Io { doing, path: path.to_owned(), error }
    }

    fn file(kind: &'static str, path: &Path, what: String) -> AuthError {
        AuthError::File { kind, path: path.to_owned(), what }
    }

    /// The exit code of a command that it ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            AuthError::Io { .. } => 1,
            _ => 2,
        }
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthError::Io { doing, path, error } => write!(f, "cannot {doing} {}: {error}", path.display()),
            AuthError::File { kind, path, what } => write!(f, "{kind} {}: {what}", path.display()),
            AuthError::Vanished(path) => write!(
                f,
                "{} is gone: what it held stays in force until it is back or the broker is started again",
                path.display()
            ),
            AuthError::Config(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for AuthError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AuthError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// The beginning of a text of a stranger's, for logs.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Knows who is who. One for the broker, shared by an `Arc`.
#[derive(Debug)]
pub struct Authority {
    tokens_file: PathBuf,
    default_limits: RwLock<Limits>,
    /// The administrator's token, as its hash.
    admin: Option<Known>,
    anyone: Arc<Identity>,
    jwt: Option<Jwt>,
    tokens: RwLock<Arc<Tokens>>,
    /// Never taken back: whoever deletes the last token does not want everybody in.
    on: AtomicBool,
    meters: Meters,
    changes: watch::Sender<u64>,
    /// What was last seen of the files. Held while they are read, so that the newer one wins.
    files: Mutex<Files>,
}

/// The tokens of the file.
#[derive(Debug, Default)]
struct Tokens {
    by_id: HashMap<SmolStr, Known>,
    /// As they were read, to know whether a file that was written again is another one.
    read: Vec<Token>,
}

struct Known {
    sha256: [u8; 32],
    identity: Arc<Identity>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

#[derive(Debug)]
struct Jwt {
    config: JwtConfig,
    keys: KeySource,
}

#[derive(Debug)]
enum KeySource {
    File { path: PathBuf, keys: RwLock<Arc<Keys>> },
    Url(Jwks),
}

#[derive(Debug, Default)]
struct Files {
    tokens: Watched,
    key: Watched,
}

/// A file that is looked at again and again.
#[derive(Debug, Default)]
struct Watched {
    /// Of the file as it was last read, in vain or not; `None` if it was never there.
    stamp: Option<Stamp>,
    /// What was last complained of, so that it is not said every second.
    trouble: Option<String>,
}

impl Authority {
    /// Reads what there is. The keys of an address are fetched later: see [`Authority::keep_fresh`].
    pub fn open(config: AuthConfig) -> Result<Authority, AuthError> {
        if let Some((name, _)) = config.default_limits.named().iter().find(|(_, limit)| *limit == Some(0)) {
            let what = format!("the default limit {name}: expected 1 or more, or leave it out for no limit");
            return Err(AuthError::Config(what));
        }
        let meters = Meters::default();
        let unlimited = |account: &str, source| {
            Arc::new(Identity {
                account: account.into(),
                grants: Arc::new(Grants::all()),
                limits: Limits::default(),
                expires: None,
                meter: meters.of(account, None),
                source,
            })
        };
        let admin = match &config.admin_token {
            Some(token) => {
                check_admin_token(token.expose()).map_err(AuthError::Config)?;
                Some(Known {
                    sha256: token::digest(token.expose()),
                    identity: unlimited(ADMIN, Source::Admin),
                })
            }
            None => None,
        };
        let authority = Authority {
            admin,
            anyone: unlimited(ANYONE, Source::Anyone),
            jwt: config.jwt.map(Jwt::open).transpose()?,
            tokens_file: config.tokens_file,
            default_limits: RwLock::new(config.default_limits),
            tokens: RwLock::default(),
            on: AtomicBool::new(false),
            meters,
            changes: watch::Sender::new(0),
            files: Mutex::default(),
        };
        authority.on.store(authority.admin.is_some() || authority.jwt.is_some(), Ordering::Release);
        authority.reload()?;
        Ok(authority)
    }

    /// Whether anybody is asked for a token: as soon as there is one that is good, and from then on.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Everybody, while authentication is off.
    pub fn anyone(&self) -> Arc<Identity> {
        Arc::clone(&self.anyone)
    }

    /// Whose token this is.
    ///
    /// The time it takes says nothing about how close a wrong token is. A signed token costs a check of
    /// its signature each time: nothing is remembered between two calls.
    pub fn authenticate(&self, credential: &str, now: SystemTime) -> Result<Arc<Identity>, Denied> {
        if credential.len() > TOKEN_BYTES_MAX {
            return Err(Denied::TooLong(credential.len()));
        }
        let hash = token::digest(credential);
        let tokens = self.tokens();
        let known = token::id_of(credential).and_then(|id| tokens.by_id.get(id));
        // Both are compared in any case, with nobody's hash if there is no other.
        let mut found = None;
        for known in [self.admin.as_ref(), known] {
            if token::same(&hash, known.map_or(&NOBODY, |known| &known.sha256)) {
                found = known;
            }
        }
        if let Some(known) = found {
            let identity = &known.identity;
            if identity.expires.is_some_and(|end| end <= now) {
                return Err(Denied::Expired { account: identity.account.to_string() });
            }
            return Ok(Arc::clone(identity));
        }
        match &self.jwt {
            Some(jwt) if jwt::has_form(credential) => self.authenticate_jwt(jwt, credential, now),
            _ => Err(Denied::Unknown),
        }
    }

    fn authenticate_jwt(&self, jwt: &Jwt, token: &str, now: SystemTime) -> Result<Arc<Identity>, Denied> {
        let keys = jwt.keys().ok_or(Denied::NoKeys)?;
        let verified = keys.verify(token, &jwt.config, now);
        if let (Err(Denied::UnknownKey { .. }), KeySource::Url(jwks)) = (&verified, &jwt.keys) {
            // The issuer may have a new key.
            jwks.ask();
        }
        let verified = verified?;
        let account = format_smolstr!("jwt:{}", verified.subject);
        let limits = self.default_limits();
        Ok(Arc::new(Identity {
            meter: self.meters.of(&account, limits.messages_per_s),
            account,
            grants: Arc::new(verified.grants),
            limits,
            expires: Some(verified.expires),
            source: Source::Jwt { key: verified.key },
        }))
    }

    /// How somebody stands now who was known before.
    pub fn standing(&self, identity: &Identity, now: SystemTime) -> Standing {
        let is_over = |expires: Option<SystemTime>| expires.is_some_and(|end| end <= now);
        match &identity.source {
            Source::Admin => Standing::Same,
            Source::Anyone if self.is_on() => Standing::Revoked,
            Source::Anyone => Standing::Same,
            Source::Token { .. } => match self.current(identity) {
                None => Standing::Revoked,
                Some(new) if is_over(new.expires) => Standing::Expired,
                Some(new) if same_rights(&new, identity) => Standing::Same,
                Some(_) => Standing::Changed,
            },
            Source::Jwt { .. } if is_over(identity.expires) => Standing::Expired,
            Source::Jwt { .. } if identity.limits != self.default_limits() => Standing::Changed,
            Source::Jwt { key } => {
                let trusted = self.jwt.as_ref().and_then(Jwt::keys).is_some_and(|keys| keys.has(key));
                if trusted { Standing::Same } else { Standing::Revoked }
            }
        }
    }

    /// Somebody who was known by a token of the file, as that token is now; `None` if it is gone, or
    /// was none of the file.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Identity>> {
        let Source::Token { id, sha256 } = &identity.source else { return None };
        let tokens = self.tokens();
        let known = tokens.by_id.get(id).filter(|known| token::same(&known.sha256, sha256))?;
        Some(Arc::clone(&known.identity))
    }

    /// Reads the files again; whether anything is different. A file that is wrong, or gone, changes
    /// nothing of what it held before.
    pub fn reload(&self) -> Result<bool, AuthError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = self.look_at_tokens(&mut files.tokens, true);
        let key = self.look_at_key(&mut files.key, true);
        let changed = [&tokens, &key].into_iter().any(|looked| matches!(looked, Ok(true)));
        if changed {
            self.announce();
        }
        tokens.and(key).map(|_| changed)
    }

    /// Moves on with each change of what tokens are good: whoever is connected should then be asked
    /// after, with [`Authority::standing`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps up with the files and the issuer's keys, until cancelled.
    pub async fn keep_fresh(self: Arc<Self>, cancel: CancellationToken) {
        let files = async {
            let mut tick = interval(POLL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let authority = Arc::clone(&self);
                // Not on a thread that others wait for: a file may be on a network.
                if let Err(error) = tokio::task::spawn_blocking(move || authority.poll()).await {
                    tracing::error!("cannot look after the tokens file: {error}");
                }
                self.meters.sweep();
            }
        };
        let keys = async {
            match self.jwt.as_ref().map(|jwt| &jwt.keys) {
                Some(KeySource::Url(jwks)) => jwks.keep_fresh(|| self.announce()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = files => {}
            () = keys => {}
        }
    }

    /// How often the issuer's keys could not be fetched.
    pub fn key_failures(&self) -> u64 {
        match self.jwt.as_ref().map(|jwt| &jwt.keys) {
            Some(KeySource::Url(jwks)) => jwks.failures(),
            _ => 0,
        }
    }

    fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what has changed since the last look.
    fn poll(&self) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = self.look_at_tokens(&mut files.tokens, false);
        let key = self.look_at_key(&mut files.key, false);
        let changed = files.tokens.report(tokens, "the tokens file was read again");
        if files.key.report(key, "the key file of signed tokens was read again") | changed {
            self.announce();
        }
    }

    fn look_at_tokens(&self, watched: &mut Watched, always: bool) -> Result<bool, AuthError> {
        watched.look(&self.tokens_file, always, || {
            let Some(file) = token::read(&self.tokens_file)? else {
                return Err(AuthError::Vanished(self.tokens_file.clone()));
            };
            for warning in &file.warnings {
                tracing::warn!("{warning}");
            }
            Ok(self.take(file.tokens))
        })
    }

    fn look_at_key(&self, watched: &mut Watched, always: bool) -> Result<bool, AuthError> {
        let Some(Jwt { config, keys: KeySource::File { path, keys } }) = &self.jwt else { return Ok(false) };
        watched.look(path, always, || {
            let new = read_keys(&config.keys)?;
            let mut keys = keys.write().unwrap_or_else(PoisonError::into_inner);
            let changed = **keys != new;
            *keys = Arc::new(new);
            Ok(changed)
        })
    }

    fn default_limits(&self) -> Limits {
        *self.default_limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limits of accounts that have none of their own.
    pub fn set_default_limits(&self, limits: Limits) {
        // Nobody reads tokens while they are put in force again.
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(
            &mut *self.default_limits.write().unwrap_or_else(PoisonError::into_inner),
            limits,
        );
        if old != limits {
            self.put_in_force(self.tokens().read.clone());
            self.announce();
        }
        drop(files);
    }

    /// Puts these tokens in force; whether they are others than before.
    fn take(&self, read: Vec<Token>) -> bool {
        let changed = self.tokens().read != read;
        if changed {
            self.put_in_force(read);
        }
        changed
    }

    fn put_in_force(&self, read: Vec<Token>) {
        let by_id = read.iter().map(|token| {
            let limits = token.limits.or(self.default_limits());
            let identity = Identity {
                account: token.name.clone(),
                grants: Arc::new(token.allow.clone()),
                limits,
                expires: token.expires,
                meter: self.meters.of(&token.name, limits.messages_per_s),
                source: Source::Token { id: token.id.clone(), sha256: token.sha256 },
            };
            (token.id.clone(), Known { sha256: token.sha256, identity: Arc::new(identity) })
        });
        let tokens = Tokens { by_id: by_id.collect(), read };
        let is_some = !tokens.read.is_empty();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        // After the tokens: who sees that it is on finds them.
        if is_some {
            self.on.store(true, Ordering::Release);
        }
    }
}

impl Jwt {
    fn open(config: JwtConfig) -> Result<Jwt, AuthError> {
        if config.leeway > jwt::LEEWAY_MAX {
            let max = jwt::LEEWAY_MAX.as_secs();
            return Err(AuthError::Config(format!(
                "auth.jwt: leeway of {} s: expected at most {max} s, it is for clocks that differ",
                config.leeway.as_secs()
            )));
        }
        let keys = match &config.keys {
            JwtKeys::File { path, .. } | JwtKeys::SetFile(path) => {
                let keys = RwLock::new(Arc::new(read_keys(&config.keys)?));
                KeySource::File { path: path.clone(), keys }
            }
            JwtKeys::Url { url, every, fetch } => {
                jwks::check_url(url).map_err(|what| AuthError::Config(format!("auth.jwt: {what}")))?;
                KeySource::Url(Jwks::new(url.clone(), *every, fetch.clone()))
            }
        };
        Ok(Jwt { config, keys })
    }

    /// The keys; `None` if they could not be fetched yet.
    fn keys(&self) -> Option<Arc<Keys>> {
        match &self.keys {
            KeySource::File { keys, .. } => {
                Some(Arc::clone(&keys.read().unwrap_or_else(PoisonError::into_inner)))
            }
            KeySource::Url(jwks) => jwks.keys(),
        }
    }
}

/// Reads the keys of a file; an address has none here.
fn read_keys(source: &JwtKeys) -> Result<Keys, AuthError> {
    use std::io::Read as _;
    let (JwtKeys::File { path, .. } | JwtKeys::SetFile(path)) = source else { return Ok(Keys::default()) };
    let wrong = |what| AuthError::file("key file", path, what);
    let file = std::fs::File::open(path).map_err(|e| AuthError::io("open key file", path, e))?;
    let mut bytes = Vec::new();
    file.take(KEY_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| AuthError::io("read key file", path, e))?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(wrong(format!("it is longer than {KEY_FILE_BYTES_MAX} bytes")));
    }
    match source {
        JwtKeys::File { algorithm, .. } => Keys::of_file(&bytes, *algorithm).map_err(wrong),
        _ => {
            let (keys, left_out) = Keys::of_set(&bytes, false).map_err(wrong)?;
            for why in left_out {
                tracing::warn!("key file {}: a key is not used: {why}", path.display());
            }
            Ok(keys)
        }
    }
}

fn check_admin_token(token: &str) -> Result<(), String> {
    if token.len() < ADMIN_TOKEN_BYTES_MIN {
        return Err(format!(
            "TASKYARD_ADMIN_TOKEN has {} bytes: expected at least {ADMIN_TOKEN_BYTES_MIN} that nobody guesses, as of \
             `openssl rand -hex 32`",
            token.len()
        ));
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(format!(
            "TASKYARD_ADMIN_TOKEN has {} bytes: expected at most {TOKEN_BYTES_MAX}",
            token.len()
        ));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "TASKYARD_ADMIN_TOKEN holds a space, a line's end or a letter beyond ASCII, which no header can \
                    carry: expected visible ASCII characters alone"
                .into(),
        );
    }
    Ok(())
}

fn same_rights(one: &Identity, other: &Identity) -> bool {
    one.account == other.account
        && one.grants == other.grants
        && one.limits == other.limits
        && one.expires == other.expires
}

impl Watched {
    /// Loads the file if it is another one than at the last look, or `always`.
    fn look(
        &mut self,
        path: &Path,
        always: bool,
        load: impl FnOnce() -> Result<bool, AuthError>,
    ) -> Result<bool, AuthError> {
        // Taken before the file is read: what changes after that is seen at the next look.
        let stamp = Stamp::of(path).map_err(|e| AuthError::io("look at", path, e))?;
        match (stamp, self.stamp) {
            (None, None) => Ok(false),
            (None, Some(_)) => Err(AuthError::Vanished(path.to_owned())),
            (Some(new), Some(old)) if new == old && !always => Ok(false),
            (Some(new), _) => {
                let loaded = load();
                // What could not be read at all is tried again; what was read and is wrong, is when it changes.
                if !matches!(loaded, Err(AuthError::Io { .. } | AuthError::Vanished(_))) {
                    self.stamp = Some(new);
                }
                loaded
            }
        }
    }

    /// Logs what came of a look, each trouble once; whether something has changed.
    fn report(&mut self, looked: Result<bool, AuthError>, changed: &str) -> bool {
        match looked {
            Ok(is_new) => {
                self.trouble = None;
                if is_new {
                    tracing::info!("{changed}");
                }
                is_new
            }
            Err(error) => {
                let trouble = Some(error.to_string());
                if self.trouble != trouble {
                    tracing::warn!("{error}; what was known before stays in force");
                    self.trouble = trouble;
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
