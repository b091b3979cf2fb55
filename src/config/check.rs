//! From values to a [`Config`]: all that is wrong is told at once. And what a reload may change of it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{KEYS, Key};
use super::{
    ADMIN_TOKEN, ClientCertificates, Compression, Config, ConfigError, EngineKind, Jwt, JwtKeys, Problem,
    Tls, Value, Values,
};
use crate::auth::{Algorithm, Limits};
use crate::live::{Live, OriginRule};
use crate::transport::TrustedProxies;

/// An admin token that is shorter is worth a warning: it may do all, and can be guessed at leisure.
const ADMIN_TOKEN_CHARACTERS: usize = 20;

/// Values that are being put together.
struct Check<'a> {
    values: &'a Values,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Notes what is wrong with a key, where its value stands.
    fn wrong(&mut self, name: &str, text: impl AsRef<str>) {
        let place = match (Key::find(name), self.values.given(name)) {
            (Some(key), Some((_, source))) => source.place(key),
            _ => String::new(),
        };
        self.problems.push(Problem { place, text: format!("{name}: {}", text.as_ref()) });
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.values.get(name)? {
            Value::Text(text) => Some(text),
            other => unreachable!("{name} is text by the table, and is {other:?}"),
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// A text that has a default.
    fn set_text(&self, name: &str) -> String {
        self.text(name).expect("it has a default in the table")
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name)? {
            Value::Number(number) => Some(number),
            other => unreachable!("{name} is a number by the table, and is {other:?}"),
        }
    }

    /// A number that has a default.
    fn set_number(&self, name: &str) -> u64 {
        self.number(name).expect("it has a default in the table")
    }

    fn ms(&self, name: &str) -> Duration {
        Duration::from_millis(self.set_number(name))
    }

    fn switch(&self, name: &str) -> bool {
        self.values.get(name) == Some(Value::Switch(true))
    }

    fn list(&self, name: &str) -> Vec<String> {
        match self.values.get(name) {
            None => Vec::new(),
            Some(Value::List(items)) => items,
            Some(other) => unreachable!("{name} is a list by the table, and is {other:?}"),
        }
    }

    fn listen(&mut self) -> Option<SocketAddr> {
        let text = self.set_text("listen");
        let why = match text.to_socket_addrs() {
            Ok(mut addresses) => match addresses.next() {
                Some(address) => return Some(address),
                None => "the name has no address".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let expected = "expected one like 127.0.0.1:7070";
        self.wrong("listen", format!("{text:?} is no address to listen on ({why}): {expected}"));
        None
    }

    fn origins(&mut self) -> Vec<OriginRule> {
        let origins = self.list("allow_origins");
        if origins.len() > 1 && origins.iter().any(|origin| origin == "*") {
            let text = "\"*\" is every origin, so the others mean nothing beside it: leave out it or them";
            self.wrong("allow_origins", text);
        }
        // The table has checked each.
        origins.iter().filter_map(|text| OriginRule::parse(text).ok()).collect()
    }

    fn tls(&mut self) -> Option<Tls> {
        let (cert_file, key_file) = (self.path("tls.cert_file"), self.path("tls.key_file"));
        let (ca_file, auth) = (self.path("tls.client_ca_file"), self.text("tls.client_auth"));
        match (&cert_file, &key_file) {
            (Some(_), None) => self.wrong("tls.cert_file", "it needs its private key: give tls.key_file too"),
            (None, Some(_)) => self.wrong("tls.key_file", "it needs its certificate: give tls.cert_file too"),
            (None, None) if ca_file.is_some() => {
                let text = "clients show certificates only to a broker with TLS: give tls.cert_file and tls.key_file";
                self.wrong("tls.client_ca_file", text);
            }
            _ => {}
        }
        if auth.is_some() && ca_file.is_none() {
            let text = "the broker must know whose certificates to take: give tls.client_ca_file";
            self.wrong("tls.client_auth", text);
        }
        let required = auth.as_deref() != Some("optional");
        let clients = ca_file.map(|ca_file| ClientCertificates { ca_file, required });
        Some(Tls { cert_file: cert_file?, key_file: key_file?, clients })
    }

    fn jwt(&mut self) -> Option<Jwt> {
        if !self.values.any("auth.jwt") {
            return None;
        }
        let algorithms: Vec<Algorithm> =
            self.list("auth.jwt.algorithms").iter().map(|word| algorithm(word)).collect();
        let (file, url) = (self.path("auth.jwt.key_file"), self.text("auth.jwt.jwks_url"));
        if algorithms.is_empty() {
            self.wrong(
                "auth.jwt.algorithms",
                "expected one at least: what the issuer signs with, like [\"EdDSA\"]",
            );
        }
        if algorithms.contains(&Algorithm::Hs256) {
            // Else whoever has the public key, so everybody, could sign with it as if it were the secret.
            if algorithms.iter().any(|other| *other != Algorithm::Hs256) {
                let text = "HS256 stands alone: its key is a secret, that of the others is public";
                self.wrong("auth.jwt.algorithms", text);
            }
            if url.is_some() {
                let text = "the secret of HS256 is not published: give it in auth.jwt.key_file, or use another algorithm";
                self.wrong("auth.jwt.jwks_url", text);
            }
        }
        let refresh = Duration::from_secs(self.set_number("auth.jwt.jwks_refresh_s"));
        let keys = match (file, url) {
            (Some(_), Some(_)) => {
                self.wrong(
                    "auth.jwt.jwks_url",
                    "keys come either from there or from auth.jwt.key_file: leave out one",
                );
                None
            }
            (None, None) => {
                self.wrong("auth.jwt", "signatures are checked with a key: give key_file or jwks_url");
                None
            }
            (Some(file), None) => Some(JwtKeys::File(file)),
            (None, Some(url)) => Some(JwtKeys::Url { url, refresh }),
        };
        Some(Jwt {
            algorithms,
            keys: keys?,
            issuer: self.text("auth.jwt.issuer"),
            audience: self.list("auth.jwt.audience"),
            leeway: Duration::from_secs(self.set_number("auth.jwt.leeway_s")),
            claim: self.set_text("auth.jwt.claim"),
        })
    }
}

fn algorithm(word: &str) -> Algorithm {
    match word {
        "HS256" => Algorithm::Hs256,
        "EdDSA" => Algorithm::EdDsa,
        "ES256" => Algorithm::Es256,
        "RS256" => Algorithm::Rs256,
        other => unreachable!("the table takes no {other}"),
    }
}

impl Values {
    /// Checks how they go together, and fills in the defaults. Whether the listener may be public is asked by
    /// [`Config::check_public`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let mut check = Check { values: &self, problems: Vec::new() };
        let listen = check.listen();
        let tls = check.tls();
        let jwt = check.jwt();
        let allow_origins = check.origins();
        // Each was checked where it stands.
        let trusted_proxies = TrustedProxies::parse(check.list("trusted_proxies")).unwrap_or_default();
        let proxy_protocol = check.switch("proxy_protocol");
        if proxy_protocol && trusted_proxies.is_empty() {
            let text = "it is taken from trusted proxies alone: name them in trusted_proxies";
            check.wrong("proxy_protocol", text);
        }
        let data_dir = PathBuf::from(check.set_text("data_dir"));
        let behind_tls_proxy = check.switch("behind_tls_proxy");
        let compression = Compression { min_bytes: check.set_number("compression.min_bytes") as usize };
        let live = Live {
            allow_origins,
            allow_query_token: check.switch("allow_query_token"),
            limits: Limits {
                messages_per_s: check.number("limits.messages_per_s").map(|n| n as u32),
                connections: check.number("limits.connections").map(|n| n as u32),
                queued_tasks: check.number("limits.queued_tasks"),
                queued_bytes: check.number("limits.queued_bytes"),
            },
            trusted_proxies,
            connections_max: check.set_number("connections_max") as usize,
            hello_timeout: check.ms("hello_timeout_ms"),
            loopback: listen.is_some_and(|listen| listen.ip().is_loopback()),
            secure: tls.is_some() || behind_tls_proxy,
        };
        let config = listen.map(|listen| Config {
            listen,
            engine: match check.set_text("engine").as_str() {
                "memory" => EngineKind::Memory,
                _ => EngineKind::Embedded,
            },
            message_bytes: check.set_number("message_bytes") as usize,
            ping: check.ms("ping_ms"),
            ping_timeout: check.ms("ping_timeout_ms"),
            resume_window: check.ms("resume_window_ms"),
            drain: check.ms("drain_ms"),
            segment_bytes: check.set_number("segment_bytes"),
            payload_memory_bytes: check.set_number("payload_memory_bytes"),
            queues_max: check.set_number("queues_max") as usize,
            replace_worker: check.set_text("worker_name_taken") != "refuse",
            tokens_file: check.path("tokens_file").unwrap_or_else(|| data_dir.join("tokens.toml")),
            data_dir,
            admin_token: self.admin_token.clone(),
            behind_tls_proxy,
            proxy_protocol,
            tls,
            compression: check.switch("compression.enabled").then_some(compression),
            jwt,
            live,
            values: self.clone(),
        });
        let problems = check.problems;
        config.filter(|_| problems.is_empty()).ok_or(ConfigError(problems))
    }
}

/// What a reload makes of the running configuration and one that was read anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What the broker runs with from now on: the new values of what can change, the old ones of the rest.
    pub config: Config,
    /// The keys that changed.
    pub changed: Vec<&'static str>,
    /// The keys whose new values wait for a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Config {
    /// That other machines reach the listener only if they must say who they are, and nobody can listen to it.
    /// `has_tokens` says whether a tokens file exists and holds a token.
    pub fn check_public(&self, has_tokens: impl Fn(&Path) -> bool) -> Result<(), ConfigError> {
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        let mut problems = Vec::new();
        let mut refuse = |why: String| {
            let place = match (Key::find("listen"), self.values.given("listen")) {
                (Some(key), Some((_, source))) => source.place(key),
                _ => String::new(),
            };
            let text = format!(
                "refusing to listen on {}, which other machines reach, without {why}. Or listen on 127.0.0.1",
                self.listen
            );
            problems.push(Problem { place, text });
        };
        if !self.authenticates(has_tokens) {
            let place = match self.values.given("tokens_file") {
                Some(_) => format!(" --tokens-file {}", self.tokens_file.display()),
                None => String::new(),
            };
            refuse(format!(
                "authentication: anybody could submit and take tasks. Make a token with `taskyard token create operator \
                 --allow 'manage:*' --allow 'submit:*' --allow 'consume:*'{place}` (it goes to {}), or set \
                 {ADMIN_TOKEN}, or configure [auth.jwt]",
                self.tokens_file.display()
            ));
        }
        if !self.live.secure {
            refuse(
                "TLS: anybody on the way could read tokens and tasks. Give --tls-cert-file and --tls-key-file, or \
                 --behind-tls-proxy where a proxy in front ends TLS"
                    .into(),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }

    /// That the files it names can be read.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let mut check = Check { values: &self.values, problems: Vec::new() };
        for name in ["tls.cert_file", "tls.key_file", "tls.client_ca_file", "auth.jwt.key_file"] {
            let Some(path) = check.path(name) else { continue };
            if let Err(error) = std::fs::read(&path) {
                check.wrong(name, format!("cannot read {}: {error}", path.display()));
            }
        }
        if check.problems.is_empty() { Ok(()) } else { Err(ConfigError(check.problems)) }
    }

    /// Whether anybody must say who they are.
    fn authenticates(&self, has_tokens: impl Fn(&Path) -> bool) -> bool {
        self.admin_token.is_some() || self.jwt.is_some() || has_tokens(&self.tokens_file)
    }

    /// What can be, and is worth a second thought. `has_tokens` as for [`check_public`](Self::check_public).
    pub fn warnings(&self, has_tokens: impl Fn(&Path) -> bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.live.limits != Limits::default() && !self.authenticates(has_tokens) {
            warnings.push(
                "[limits] are each account's, and nobody has one without authentication, so nothing is limited: make tokens \
                 with `taskyard token create`"
                    .to_owned(),
            );
        }
        if self.live.allow_origins.contains(&OriginRule::Any) {
            warnings.push(
                "allow_origins is \"*\": a page of any site may connect through its visitors' browsers; name the sites"
                    .to_owned(),
            );
        }
        if self.admin_token.as_ref().is_some_and(|token| token.expose().len() < ADMIN_TOKEN_CHARACTERS) {
            warnings.push(format!(
                "{ADMIN_TOKEN} is shorter than {ADMIN_TOKEN_CHARACTERS} characters and may do all: take a random one, \
                 like that of `openssl rand -base64 32`"
            ));
        }
        if self.jwt.as_ref().is_some_and(|jwt| jwt.audience.is_empty()) {
            warnings.push(
                "[auth.jwt] has no audience: tokens that its issuer signs for no service in particular are taken, and those that \
                 name one are refused"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Takes over from `new` what can change while the broker runs. An error: what can does not go together
    /// with the rest of what runs.
    pub fn reload(&self, new: &Config) -> Result<Reloaded, ConfigError> {
        let turns_tls = self.tls.is_some() != new.tls.is_some();
        // The listener speaks TLS or does not; certificates can change.
        let can = |key: &Key| key.reload && !(turns_tls && key.section() == "tls");
        let (changed, needs_restart) = KEYS
            .iter()
            .filter(|key| self.values.get(key.name) != new.values.get(key.name))
            .partition::<Vec<&Key>, _>(|key| can(key));
        let names = |keys: Vec<&'static Key>| keys.into_iter().map(|key| key.name).collect();
        Ok(Reloaded {
            config: self.values.with(&new.values, can).resolve()?,
            changed: names(changed),
            needs_restart: names(needs_restart),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;

    fn values(text: &str) -> Values {
        let mut problems = Vec::new();
        let values = Values::of_text("f", text, &mut problems);
        assert_eq!(problems, []);
        values
    }

    fn config(text: &str) -> Config {
        values(text).resolve().unwrap()
    }

    fn refused(text: &str) -> Vec<String> {
        values(text).resolve().unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        let config = config("");
        assert_eq!(config.live, Live::default());
        assert_eq!(config.listen.to_string(), "127.0.0.1:7070");
        assert_eq!(config.ping, Duration::from_secs(25));
        assert_eq!(config.engine, EngineKind::Embedded);
        assert_eq!(config.tokens_file, Path::new("taskyard-data/tokens.toml"));
        assert!(config.replace_worker);
        assert_eq!((config.tls, config.jwt, config.compression), (None, None, None));
        assert_eq!(config.live.connections_max, 100_000);
    }

    #[test]
    fn every_key_reaches_the_config() {
        let all = config(
            "listen = \"127.0.0.1:1\"\ndata_dir = \"d\"\nengine = \"memory\"\nmessage_bytes = 2048\nping_ms = 200\n\
             ping_timeout_ms = 300\nhello_timeout_ms = 400\nresume_window_ms = 6\ndrain_ms = 5\nsegment_bytes = 65536\n\
             payload_memory_bytes = 99\n\
             worker_name_taken = \"refuse\"\nqueues_max = 77\nconnections_max = 6\nallow_origins = [\"https://a.example\"]\n\
             allow_query_token = true\ntokens_file = \"t\"\nbehind_tls_proxy = true\n\
             trusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true\n\
             [tls]\ncert_file = \"c\"\nkey_file = \"k\"\nclient_ca_file = \"ca\"\nclient_auth = \"optional\"\n\
             [compression]\nenabled = true\nmin_bytes = 7\n\
             [auth.jwt]\nalgorithms = [\"EdDSA\", \"ES256\"]\njwks_url = \"https://id.example/k\"\n\
             jwks_refresh_s = 8\nissuer = \"i\"\naudience = [\"a\"]\nleeway_s = 9\nclaim = \"x\"\n\
             [limits]\nmessages_per_s = 10\nconnections = 11\nqueued_tasks = 12\nqueued_bytes = 13\n",
        );
        let given = KEYS.iter().filter(|key| all.values.given(key.name).is_some()).count();
        assert_eq!(given, KEYS.len() - 1, "all but key_file, which jwks_url excludes");
        let ms = Duration::from_millis;
        assert_eq!((all.listen.port(), all.engine, all.message_bytes), (1, EngineKind::Memory, 2048));
        assert_eq!((all.ping, all.ping_timeout, all.drain), (ms(200), ms(300), ms(5)));
        assert_eq!((all.resume_window, all.payload_memory_bytes), (ms(6), 99));
        assert_eq!((all.segment_bytes, all.replace_worker, all.queues_max), (65536, false, 77));
        assert_eq!((all.data_dir.as_path(), all.tokens_file.as_path()), (Path::new("d"), Path::new("t")));
        assert!(all.behind_tls_proxy && all.proxy_protocol);
        let clients = Some(ClientCertificates { ca_file: "ca".into(), required: false });
        assert_eq!(all.tls, Some(Tls { cert_file: "c".into(), key_file: "k".into(), clients }));
        assert_eq!(all.compression, Some(Compression { min_bytes: 7 }));
        let jwt = Jwt {
            algorithms: vec![Algorithm::EdDsa, Algorithm::Es256],
            keys: JwtKeys::Url { url: "https://id.example/k".into(), refresh: Duration::from_secs(8) },
            issuer: Some("i".into()),
            audience: vec!["a".into()],
            leeway: Duration::from_secs(9),
            claim: "x".into(),
        };
        assert_eq!(all.jwt, Some(jwt));
        let live = Live {
            allow_origins: vec![OriginRule::parse("https://a.example").unwrap()],
            allow_query_token: true,
            limits: Limits {
                messages_per_s: Some(10),
                connections: Some(11),
                queued_tasks: Some(12),
                queued_bytes: Some(13),
            },
            trusted_proxies: TrustedProxies::parse(["10.0.0.0/8"]).unwrap(),
            connections_max: 6,
            hello_timeout: ms(400),
            loopback: true,
            secure: true,
        };
        assert_eq!(all.live, live);
    }

    #[test]
    fn what_does_not_go_together_says_what_is_missing_and_where() {
        for (text, said) in [
            ("listen = \"here\"", "127.0.0.1:7070"),
            ("[tls]\ncert_file = \"c\"", "f:2: tls.cert_file: it needs its private key"),
            ("[tls]\nkey_file = \"c\"", "f:2: tls.key_file: it needs its certificate"),
            ("[tls]\nclient_ca_file = \"c\"", "tls.cert_file and tls.key_file"),
            (
                "[tls]\ncert_file = \"c\"\nkey_file = \"k\"\nclient_auth = \"required\"",
                "f:4: tls.client_auth",
            ),
            ("proxy_protocol = true", "f:1: proxy_protocol: it is taken from trusted proxies"),
            ("allow_origins = [\"*\", \"https://a.example\"]", "f:1: allow_origins"),
            ("[auth.jwt]\nkey_file = \"k\"", "auth.jwt.algorithms: expected one"),
            ("[auth.jwt]\nalgorithms = [\"EdDSA\"]", "give key_file or jwks_url"),
            (
                "[auth.jwt]\nalgorithms = [\"EdDSA\"]\nkey_file = \"k\"\njwks_url = \"https://a/\"",
                "f:4: auth.jwt.jwks_url: keys come either",
            ),
            ("[auth.jwt]\nalgorithms = [\"HS256\", \"RS256\"]\nkey_file = \"k\"", "stands alone"),
            ("[auth.jwt]\nalgorithms = [\"HS256\"]\njwks_url = \"https://a/\"", "not published"),
        ] {
            let found = refused(text);
            assert!(found.len() == 1 && found[0].contains(said), "{text}: {found:?}");
        }
        assert_eq!(refused("listen = \"here\"\nproxy_protocol = true\n[tls]\ncert_file = \"c\"").len(), 3);
        assert!(
            config("[tls]\ncert_file = \"c\"\nkey_file = \"k\"\nclient_ca_file = \"ca\"")
                .tls
                .and_then(|tls| tls.clients)
                .is_some_and(|clients| clients.required)
        );
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = values("listen = \"127.0.0.1:1\"\ndrain_ms = 5\nengine = \"memory\"");
        let mut flags = Values::default();
        flags.set("listen", "127.0.0.1:2", Source::Flag).unwrap();
        let config = flags.over(file).resolve().unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.drain, Duration::from_millis(5));
        assert_eq!(config.engine, EngineKind::Memory);
        assert_eq!(config.ping, Duration::from_secs(25));
    }

    #[test]
    fn a_public_listener_needs_authentication_and_tls() {
        let problems = |text: &str, tokens: bool| match config(text).check_public(|_| tokens) {
            Ok(()) => Vec::new(),
            Err(error) => error.0.iter().map(ToString::to_string).collect(),
        };
        let public = "listen = \"0.0.0.0:7070\"\n";
        assert_eq!(problems("", false).len(), 0);
        assert_eq!(problems("listen = \"[::1]:7070\"", false).len(), 0);
        let both = problems(public, false);
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(
            both[0].starts_with("f:1: ") && both[0].contains("taskyard token create operator"),
            "{both:?}"
        );
        assert!(both[0].contains("TASKYARD_ADMIN_TOKEN") && both[0].contains("[auth.jwt]"), "{both:?}");
        assert!(both[1].contains("--tls-cert-file") && both[1].contains("--behind-tls-proxy"), "{both:?}");
        assert!(problems(public, true)[0].contains("TLS"));
        assert!(problems(&format!("{public}behind_tls_proxy = true"), false)[0].contains("authentication"));
        assert_eq!(problems(&format!("{public}behind_tls_proxy = true"), true).len(), 0);
        let jwt = "[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n[auth.jwt]\nalgorithms = [\"EdDSA\"]\nkey_file = \"k\"";
        assert_eq!(problems(&format!("{public}{jwt}"), false).len(), 0);
        let placed = problems(&format!("{public}tokens_file = \"elsewhere.toml\""), false);
        assert!(placed[0].contains("--tokens-file elsewhere.toml"), "{placed:?}");
    }

    #[test]
    fn a_reload_takes_what_can_change_and_keeps_the_rest() {
        let running = config("drain_ms = 5\nallow_origins = [\"https://a.example\"]\nconnections_max = 7");
        let new = config("drain_ms = 6\nallow_origins = [\"https://b.example\"]\n[limits]\nconnections = 1");
        let reloaded = running.reload(&new).unwrap();
        assert_eq!(reloaded.changed, ["connections_max", "allow_origins", "limits.connections"]);
        assert_eq!(reloaded.needs_restart, ["drain_ms"]);
        assert_eq!(reloaded.config.live, new.live);
        assert_eq!(reloaded.config.drain, Duration::from_millis(5));
        let again = reloaded.config.reload(&new).unwrap();
        assert_eq!((again.changed.len(), again.needs_restart), (0, vec!["drain_ms"]), "it still waits");
    }

    #[test]
    fn certificates_can_change_and_tls_itself_cannot() {
        let tls = |cert| config(&format!("[tls]\ncert_file = \"{cert}\"\nkey_file = \"k\""));
        let reloaded = tls("one").reload(&tls("two")).unwrap();
        assert_eq!((reloaded.changed, reloaded.needs_restart.len()), (vec!["tls.cert_file"], 0));
        let reloaded = config("").reload(&tls("one")).unwrap();
        assert_eq!(reloaded.needs_restart, ["tls.cert_file", "tls.key_file"]);
        assert_eq!(reloaded.config.tls, None);
    }

    #[test]
    fn a_reload_that_does_not_go_with_what_runs_is_refused() {
        let running = config("proxy_protocol = true\ntrusted_proxies = [\"10.0.0.1\"]");
        let error = running.reload(&config("")).unwrap_err().to_string();
        assert!(error.contains("trusted_proxies"), "{error}");
    }
}
