//! Every key, once: help texts, the environment, the file, `config print` and reloads come from here.

use crate::live::OriginRule;

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Its full name: section and key, `tls.cert_file`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What stands when nothing is given, as a flag would say it. None: there is no default.
    pub default: Option<&'static str>,
    /// The default in words, where it is none or depends on others.
    pub default_words: &'static str,
    /// What it does. The first sentence is the short help.
    pub doc: &'static str,
    /// A value to show where there is no default.
    pub example: &'static str,
    /// What the help calls the value.
    pub value_name: &'static str,
    /// Its flag, without the dashes; only what has a flag has a variable.
    pub flag: Option<&'static str>,
    /// Whether a reload changes it.
    pub reload: bool,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Text of some form.
    Text(Form),
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// It is a multiple of this.
        step: u64,
    },
    /// Yes or no.
    Switch,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// Any number of texts of a form.
    List(Form),
}

/// The form of a text.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// What is expected.
    pub expected: &'static str,
    /// Says what is wrong; may say nothing.
    pub check: fn(&str) -> Result<(), &'static str>,
}

/// A section of the file.
#[derive(Debug)]
pub struct Section {
    /// Its full name; the top level has none.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Whether it takes effect only once it holds a key.
    pub optional: bool,
}

impl Key {
    const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Key {
        Key {
            name,
            kind,
            default: None,
            default_words: "none",
            doc,
            example: "",
            value_name: "VALUE",
            flag: None,
            reload: false,
        }
    }

    const fn default(self, text: &'static str) -> Key {
        Key { default: Some(text), ..self }
    }

    const fn default_words(self, words: &'static str) -> Key {
        Key { default_words: words, ..self }
    }

    const fn example(self, text: &'static str) -> Key {
        Key { example: text, ..self }
    }

    const fn flag(self, flag: &'static str, value_name: &'static str) -> Key {
        Key { flag: Some(flag), value_name, ..self }
    }

    const fn reload(self) -> Key {
        Key { reload: true, ..self }
    }

    /// Its section's name.
    pub fn section(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within its section.
    pub fn short(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, short)| short)
    }

    /// Its environment variable.
    pub fn variable(&self) -> Option<String> {
        self.flag.map(|flag| format!("TASKYARD_{}", flag.replace('-', "_").to_ascii_uppercase()))
    }

    /// The key of this full name.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }
}

const ANY: Form = Form { expected: "text", check: not_empty };
const FILE: Form = Form { expected: "a path", check: not_empty };
const ORIGINS: Form = Form {
    expected: "origins like \"https://app.example.org\"",
    check: |text| OriginRule::parse(text).map(|_| ()),
};
const NETWORKS: Form = Form { expected: "addresses or networks like \"10.0.0.0/8\"", check: is_network };
const ALGORITHMS: Form =
    Form { expected: "algorithms out of \"HS256\", \"EdDSA\", \"ES256\" and \"RS256\"", check: is_algorithm };
const URL: Form = Form { expected: "a URL like \"https://id.example.org/jwks.json\"", check: is_jwks_url };

/// A day, in milliseconds.
const DAY: u64 = 86_400_000;
const HOUR: u64 = 3_600_000;

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max, step: 1 }
}

fn not_empty(text: &str) -> Result<(), &'static str> {
    if text.is_empty() { Err("it is empty") } else { Ok(()) }
}

fn is_network(text: &str) -> Result<(), &'static str> {
    let is_one = text.parse::<ipnet::IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok();
    if is_one { Ok(()) } else { Err("it is neither") }
}

fn is_algorithm(text: &str) -> Result<(), &'static str> {
    match text {
        "HS256" | "EdDSA" | "ES256" | "RS256" => Ok(()),
        "none" => Err("a token that nobody signed proves nothing"),
        _ => Err("it is not served"),
    }
}

fn is_jwks_url(text: &str) -> Result<(), &'static str> {
    let uri: hyper::Uri = text.parse().map_err(|_| "it is no URL")?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("it lacks its scheme or its host");
    };
    if authority.as_str().contains('@') {
        return Err("a password does not belong in it");
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if local => Ok(()),
        "http" => {
            Err("over http anybody on the way could put in keys: http is for this machine alone, use https")
        }
        _ => Err("its scheme is neither https nor http"),
    }
}

/// The sections, in the order of the file.
pub const SECTIONS: &[Section] = &[
    Section { name: "", doc: "", optional: false },
    Section {
        name: "tls",
        doc: "TLS, ended by the broker itself. Off while there is no certificate. The files are read again by a \
              reload: renewed certificates need no restart.",
        optional: true,
    },
    Section {
        name: "compression",
        doc: "Compression of messages (permessage-deflate, RFC 7692), for clients that offer it.",
        optional: false,
    },
    Section {
        name: "auth.jwt",
        doc: "Tokens that somebody else issues: signed JSON Web Tokens. Off while the section is empty.",
        optional: true,
    },
    Section {
        name: "limits",
        doc: "What each account may, over all its connections, unless its token says otherwise. An account is what a token \
              names: without authentication nothing is limited.",
        optional: false,
    },
];

/// The keys, in the order of the file.
pub const KEYS: &[Key] = &[
    Key::new(
        "listen",
        Kind::Text(Form { expected: "an address like \"127.0.0.1:7070\"", check: not_empty }),
        "Address and port to listen on. One that other machines reach needs authentication and TLS: see \
         TASKYARD_ADMIN_TOKEN, tokens_file and [auth.jwt], and [tls] and behind_tls_proxy.",
    )
    .default("127.0.0.1:7070")
    .flag("listen", "ADDRESS"),
    Key::new("data_dir", Kind::Text(FILE), "Directory of the embedded store; made if there is none.")
        .default("taskyard-data")
        .flag("data-dir", "DIR"),
    Key::new(
        "engine",
        Kind::Choice(&["embedded", "memory"]),
        "Where tasks are kept. embedded: on this machine's disk, where a confirmed task survives a power cut. \
         memory: nowhere, for tests and for tasks that may be lost.",
    )
    .default("embedded")
    .flag("engine", "ENGINE"),
    Key::new("message_bytes", number(1024, 16 << 20), "The longest message, in bytes.")
        .default("1048576")
        .flag("message-bytes", "BYTES"),
    Key::new("ping_ms", number(100, DAY), "Ping a connection that was silent for so long, in milliseconds.")
        .default("25000")
        .flag("ping-ms", "MS"),
    Key::new(
        "ping_timeout_ms",
        number(100, DAY),
        "Give up on a connection that is silent for so much longer than ping_ms, in milliseconds.",
    )
    .default("10000")
    .flag("ping-timeout-ms", "MS"),
    Key::new(
        "hello_timeout_ms",
        number(100, 60_000),
        "How long a connection may stay that has not said who it is, in milliseconds.",
    )
    .default("10000")
    .flag("hello-timeout-ms", "MS")
    .reload(),
    Key::new(
        "resume_window_ms",
        number(0, HOUR),
        "How long a session that asked for it waits for its client to come back, with what it holds, in \
         milliseconds; 0: no session can be resumed.",
    )
    .default("5000")
    .flag("resume-window-ms", "MS"),
    Key::new(
        "drain_ms",
        number(0, DAY),
        "How long SIGTERM waits for workers to finish what they hold, in milliseconds.",
    )
    .default("30000")
    .flag("drain-ms", "MS"),
    Key::new(
        "segment_bytes",
        Kind::Number { min: 64 << 10, max: 1 << 30, step: 4096 },
        "Size of the store's segment files, in bytes.",
    )
    .default("67108864")
    .flag("segment-bytes", "BYTES"),
    Key::new(
        "payload_memory_bytes",
        Kind::Number { min: 0, max: 1 << 40, step: 1 },
        "How many bytes payloads of waiting tasks take in memory, each with 48 for itself; beyond that they are in the \
         store alone until they are due. The next 256 of a queue, up to 64 KiB each, leave when it is twice as much. With \
         the memory engine all stay.",
    )
    .default("268435456")
    .flag("payload-memory-bytes", "BYTES"),
    Key::new(
        "worker_name_taken",
        Kind::Choice(&["replace", "refuse"]),
        "What happens when a worker's name is already connected. replace: the earlier session ends (close code \
         4009). refuse: the later one is refused.",
    )
    .default("replace")
    .flag("worker-name-taken", "WHAT"),
    Key::new(
        "queues_max",
        number(10, 1_000_000),
        "How many queues there may be. With authentication one account makes a tenth of them at most.",
    )
    .default("10000")
    .flag("queues-max", "NUMBER"),
    Key::new("connections_max", number(1, 10_000_000), "How many connections may be open at a time.")
        .default("100000")
        .flag("connections-max", "NUMBER")
        .reload(),
    Key::new(
        "allow_origins",
        Kind::List(ORIGINS),
        "Web pages of these origins may connect, beside those that are served from the broker's own host and port. \
         `https://*.example.org` stands for every host below example.org, not for itself. `*` alone, for every \
         page of every site, is taken with a warning.",
    )
    .default("")
    .example("https://app.example.org,https://*.example.com")
    .flag("allow-origins", "ORIGINS")
    .reload(),
    Key::new(
        "allow_query_token",
        Kind::Switch,
        "Take tokens from `?token=` in URLs too. For clients that can say it nowhere else: proxies and browsers \
         write URLs down.",
    )
    .default("false")
    .flag("allow-query-token", "BOOL")
    .reload(),
    Key::new(
        "tokens_file",
        Kind::Text(FILE),
        "Where the tokens are that `taskyard token create` makes. A change of its content is noticed; a change of \
         its place needs a restart.",
    )
    .default_words("tokens.toml in data_dir")
    .flag("tokens-file", "FILE"),
    Key::new(
        "behind_tls_proxy",
        Kind::Switch,
        "Says that clients reach the broker only through a proxy that ends TLS, over a network that nobody else can \
         listen to.",
    )
    .default("false")
    .flag("behind-tls-proxy", "BOOL"),
    Key::new(
        "trusted_proxies",
        Kind::List(NETWORKS),
        "Proxies whose word about a client's address is taken: addresses or networks.",
    )
    .default("")
    .example("10.0.0.5,192.168.0.0/16")
    .flag("trusted-proxies", "NETWORKS")
    .reload(),
    Key::new(
        "proxy_protocol",
        Kind::Switch,
        "Connections begin with a PROXY protocol header, which trusted_proxies send.",
    )
    .default("false")
    .flag("proxy-protocol", "BOOL"),
    Key::new("tls.cert_file", Kind::Text(FILE), "The certificate and those that vouch for it, in PEM.")
        .example("/etc/taskyard/cert.pem")
        .flag("tls-cert-file", "FILE")
        .reload(),
    Key::new("tls.key_file", Kind::Text(FILE), "The certificate's private key, in PEM.")
        .example("/etc/taskyard/key.pem")
        .flag("tls-key-file", "FILE")
        .reload(),
    Key::new(
        "tls.client_ca_file",
        Kind::Text(FILE),
        "Clients show certificates that one of these issued, in PEM.",
    )
    .example("/etc/taskyard/clients.pem")
    .flag("tls-client-ca-file", "FILE")
    .reload(),
    Key::new(
        "tls.client_auth",
        Kind::Choice(&["optional", "required"]),
        "Whether clients must show a certificate. Needs client_ca_file.",
    )
    .default_words("required, once there is a client_ca_file")
    .example("required")
    .flag("tls-client-auth", "WHETHER")
    .reload(),
    Key::new(
        "compression.enabled",
        Kind::Switch,
        "Compress messages. It pays for long text over slow or metered lines, where it saves most of the bytes. It \
         does not pay on a local network, for short messages, or for what is compressed already: there it costs \
         processor time, some milliseconds a megabyte. Nothing is kept for an idle connection.",
    )
    .default("false")
    .flag("compression", "BOOL"),
    Key::new(
        "compression.min_bytes",
        number(0, 16 << 20),
        "Messages below this size go uncompressed, in bytes.",
    )
    .default("512")
    .flag("compression-min-bytes", "BYTES"),
    Key::new(
        "auth.jwt.algorithms",
        Kind::List(ALGORITHMS),
        "How tokens may be signed. HS256, with its shared secret, stands alone.",
    )
    .default_words("none, and one is needed")
    .example("EdDSA"),
    Key::new(
        "auth.jwt.key_file",
        Kind::Text(FILE),
        "The key that signatures are checked with: a public key in PEM, or the secret of HS256. Either this or \
         jwks_url.",
    )
    .example("/etc/taskyard/issuer.pem"),
    Key::new(
        "auth.jwt.jwks_url",
        Kind::Text(URL),
        "Where the issuer publishes its keys. https, or http on this machine.",
    )
    .example("https://id.example.org/.well-known/jwks.json"),
    Key::new("auth.jwt.jwks_refresh_s", number(1, 86_400), "Fetch them again after so long, in seconds.")
        .default("600"),
    Key::new("auth.jwt.issuer", Kind::Text(ANY), "What the claim `iss` must be.")
        .default_words("none: it is not looked at")
        .example("https://id.example.org"),
    Key::new("auth.jwt.audience", Kind::List(ANY), "What the claim `aud` must name: one of these.")
        .default("")
        .default_words("[]: a token that names any is refused")
        .example("taskyard"),
    Key::new("auth.jwt.leeway_s", number(0, 300), "By how much clocks may differ, in seconds.").default("30"),
    Key::new("auth.jwt.claim", Kind::Text(ANY), "The claim that says what the bearer may.").default("taskyard"),
    Key::new("limits.messages_per_s", number(1, 10_000_000), "Messages a second.")
        .example("1000")
        .flag("limits-messages-per-s", "NUMBER")
        .reload(),
    Key::new("limits.connections", number(1, 10_000_000), "Connections at a time.")
        .example("100")
        .flag("limits-connections", "NUMBER")
        .reload(),
    Key::new("limits.queued_tasks", number(1, 1_000_000_000_000), "Tasks that wait in queues, dead letters included.")
        .example("100000")
        .flag("limits-queued-tasks", "NUMBER")
        .reload(),
    Key::new("limits.queued_bytes", number(1, 1 << 50), "Bytes of the tasks that wait in queues.")
        .example("1073741824")
        .flag("limits-queued-bytes", "BYTES")
        .reload(),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;

    #[test]
    fn the_table_is_in_order() {
        for (nth, key) in KEYS.iter().enumerate() {
            let name = key.name;
            assert!(KEYS[..nth].iter().all(|other| other.name != name), "{name} stands twice");
            assert!(SECTIONS.iter().any(|section| section.name == key.section()), "{name} has no section");
            assert!(key.doc.ends_with('.'), "{name}: {}", key.doc);
            let shown = key.default.filter(|text| !text.is_empty()).unwrap_or(key.example);
            assert!(!shown.is_empty() || key.default_words.contains("data_dir"), "{name} shows no value");
            for text in [key.default, Some(key.example).filter(|text| !text.is_empty())].into_iter().flatten()
            {
                Value::parse(&key.kind, text).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            if let Some(flag) = key.flag.filter(|_| name != "compression.enabled") {
                assert_eq!(flag, name.replace(['.', '_'], "-"));
            }
        }
        let sections: Vec<&str> = KEYS.iter().map(Key::section).collect();
        let mut once = sections.clone();
        once.dedup();
        assert_eq!(once, SECTIONS.iter().map(|section| section.name).collect::<Vec<_>>());
    }

    #[test]
    fn where_keys_are_fetched_is_safe() {
        for url in
            ["https://id.example.org/a", "http://localhost:1/a", "http://127.0.0.1/a", "http://[::1]:2/a"]
        {
            assert_eq!(is_jwks_url(url), Ok(()), "{url}");
        }
        for url in ["http://id.example.org/a", "ftp://a/b", "/a", "id.example.org", "https://a:b@c/", ""] {
            assert!(is_jwks_url(url).is_err(), "{url}");
        }
    }
}
