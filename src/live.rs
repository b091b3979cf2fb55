//! What connections are judged by, and may change while the broker runs: replaced as a whole by a
//! reload, read anew by each connection.

use std::time::Duration;

use crate::auth::Limits;
use crate::transport::TrustedProxies;

/// The part of the configuration that a reload can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Pages of these origins may connect, beside those that the broker's own host serves.
    pub allow_origins: Vec<OriginRule>,
    /// Whether a token may stand in a URL.
    pub allow_query_token: bool,
    /// What each account may, unless its token says otherwise.
    pub limits: Limits,
    /// Proxies whose word about a client's address is taken.
    pub trusted_proxies: TrustedProxies,
    /// How many connections may be open.
    pub connections_max: usize,
    /// How long a connection may stay without having said who it is.
    pub hello_timeout: Duration,
    /// Whether only this machine reaches the listener. Settled at the start.
    pub loopback: bool,
    /// Whether clients are known to come over TLS, ended here or by a proxy. Settled at the start.
    pub secure: bool,
}

impl Default for Live {
    fn default() -> Self {
        Live {
            allow_origins: Vec::new(),
            allow_query_token: false,
            limits: Limits::default(),
            trusted_proxies: TrustedProxies::default(),
            connections_max: 100_000,
            hello_timeout: Duration::from_secs(10),
            loopback: true,
            secure: false,
        }
    }
}

impl Live {
    /// Whether a page of `origin` may use the broker that it calls `host`, as both headers have it.
    pub fn admits(&self, origin: &str, host: &str, auth_on: bool) -> bool {
        // What a page from a file says, and one in a sandbox of anybody's: see SECURITY.md. The protocol lets it
        // pass on loopback, so that a first page from a file works; the first token ends that.
        if origin == "null" {
            return self.loopback && !auth_on;
        }
        let Some(origin) = Origin::parse(origin) else { return false };
        self.is_own(&origin, host) || self.allow_origins.iter().any(|rule| rule.admits(&origin))
    }

    /// Whether a request may call the broker `host`, while nobody is asked for a token. A page can make
    /// any name of its own lead here (DNS rebinding), and is then at home by its origin; so the name must
    /// be one that strangers cannot own: an address, a name without a dot or of a private domain, or one of
    /// an origin that is allowed.
    pub fn admits_host(&self, host: &str) -> bool {
        const PRIVATE: [&str; 6] = [".localhost", ".local", ".internal", ".lan", ".test", ".home.arpa"];
        let Some(Origin { host, .. }) = Origin::parse(&format!("http://{host}")) else { return false };
        let host = host.trim_end_matches('.');
        let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
        is_address
            || !host.contains('.')
            || PRIVATE.iter().any(|domain| host.ends_with(domain))
            || self.allow_origins.iter().any(|rule| match rule {
                OriginRule::Any => true,
                OriginRule::Exact(origin) => origin.host == host,
                OriginRule::Below(origin) => {
                    host.strip_suffix(&origin.host).is_some_and(|label| label.ends_with('.'))
                }
            })
    }

    /// Whether the page was served from where it connects to.
    fn is_own(&self, origin: &Origin, host: &str) -> bool {
        let scheme_fits = match origin.scheme.as_str() {
            "https" => true,
            // Where clients come over TLS, a page without it was perhaps written by somebody on the way.
            "http" => !self.secure,
            _ => false,
        };
        // A host without a port is at the default one of the page's own scheme: a proxy may end TLS without
        // our being told.
        let host = Origin::parse(&format!("{}://{host}", origin.scheme));
        scheme_fits && host.is_some_and(|host| host == *origin)
    }
}

/// Scheme, host and port of a page; a default port is written out, so that equal ones are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// `scheme://host[:port]`, in any case.
    pub fn parse(text: &str) -> Option<Origin> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b));
        let (host, port) = match rest.strip_prefix('[') {
            Some(address) => {
                let (address, port) = address.split_once(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                (format!("[{}]", address.to_ascii_lowercase()), port)
            }
            None => {
                let at = rest.find(':').unwrap_or(rest.len());
                let host = &rest[..at];
                let is_host = !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~*".contains(&b));
                (is_host.then(|| host.to_ascii_lowercase())?, &rest[at..])
            }
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
            None if !port.is_empty() => return None,
            None => match scheme.as_str() {
                "http" | "ws" => Some(80),
                "https" | "wss" => Some(443),
                _ => None,
            },
        };
        is_scheme.then_some(Origin { scheme, host, port })
    }
}

/// An entry of `allow_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginRule {
    /// `*`: every page of every site.
    Any,
    /// This origin alone.
    Exact(Origin),
    /// `scheme://*.host[:port]`: every host below this one, and not itself.
    Below(Origin),
}

impl OriginRule {
    /// Reads an entry; says what is wrong with it.
    pub fn parse(text: &str) -> Result<OriginRule, &'static str> {
        if text == "*" {
            return Ok(OriginRule::Any);
        }
        if text.eq_ignore_ascii_case("null") {
            return Err("pages of any site can say `null`, so it cannot be allowed");
        }
        let Some((_, rest)) = text.split_once("://") else {
            return Err("it lacks its scheme, like https://");
        };
        if rest.contains(['/', '?', '#']) {
            return Err("an origin has no path: leave out what follows the host, the slash too");
        }
        let Some(mut origin) = Origin::parse(text) else { return Err("its host or its port is none") };
        let Some(base) = origin.host.strip_prefix("*.").map(str::to_owned) else {
            return match origin.host.contains('*') {
                true => Err("a `*` stands for whole labels in front: https://*.example.org"),
                false => Ok(OriginRule::Exact(origin)),
            };
        };
        if base.contains('*') || base.split('.').any(str::is_empty) {
            return Err("a `*` stands for whole labels in front: https://*.example.org");
        }
        // `*.com` would be everybody.
        if !base.contains('.') && base != "localhost" {
            return Err("below a top-level domain are everybody's sites");
        }
        origin.host = base;
        Ok(OriginRule::Below(origin))
    }

    fn admits(&self, origin: &Origin) -> bool {
        match self {
            OriginRule::Any => true,
            OriginRule::Exact(exact) => exact == origin,
            OriginRule::Below(base) => {
                let labels = origin.host.strip_suffix(&base.host).and_then(|labels| labels.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
                    && (&base.scheme, base.port) == (&origin.scheme, origin.port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(rules: &[&str]) -> Live {
        let allow_origins = rules.iter().map(|rule| OriginRule::parse(rule).unwrap()).collect();
        Live { allow_origins, ..Live::default() }
    }

    #[test]
    fn a_page_may_connect_to_where_it_came_from() {
        let live = live(&[]);
        for (origin, host) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070"),
            ("http://Tasks.Example.org", "tasks.example.ORG"),
            ("http://tasks.example.org:80", "tasks.example.org"),
            ("https://tasks.example.org", "tasks.example.org:443"),
            ("https://tasks.example.org", "tasks.example.org"),
            ("http://[::1]:7070", "[::1]:7070"),
        ] {
            assert!(live.admits(origin, host, true), "{origin} at {host}");
        }
        for (origin, host) in [
            ("http://127.0.0.1:1", "127.0.0.1:7070"),
            ("http://127.0.0.1", "127.0.0.1:7070"),
            ("https://tasks.example.org", "tasks.example.org:80"),
            ("https://tasks.example.org.evil.example", "tasks.example.org"),
            ("https://evil.example", "tasks.example.org"),
            ("chrome-extension://abc", "abc"),
            ("tasks.example.org", "tasks.example.org"),
            ("https://tasks.example.org/", "tasks.example.org"),
            ("https://user@tasks.example.org", "tasks.example.org"),
            ("https://tasks.example.org:+443", "tasks.example.org"),
            ("https://tasks.example.org:", "tasks.example.org"),
            ("https://", ""),
            ("", ""),
        ] {
            assert!(!live.admits(origin, host, false), "{origin} at {host}");
        }
    }

    #[test]
    fn behind_tls_a_page_without_it_is_foreign() {
        let live = Live { secure: true, ..live(&[]) };
        assert!(live.admits("https://tasks.example.org", "tasks.example.org", true));
        assert!(!live.admits("http://tasks.example.org", "tasks.example.org", true));
    }

    #[test]
    fn null_passes_on_loopback_without_authentication_alone() {
        let any = live(&["*"]);
        assert!(live(&[]).admits("null", "localhost:7070", false));
        assert!(!live(&[]).admits("null", "localhost:7070", true));
        assert!(!any.admits("null", "localhost:7070", true));
        assert!(!Live { loopback: false, ..any }.admits("null", "localhost:7070", false));
    }

    #[test]
    fn listed_origins_are_compared_whole() {
        let live =
            live(&["https://App.example.org:443", "https://*.example.com:8443", "chrome-extension://abc"]);
        for origin in [
            "https://app.example.org",
            "https://a.example.com:8443",
            "https://b.a.example.com:8443",
            "chrome-extension://abc",
        ] {
            assert!(live.admits(origin, "elsewhere", true), "{origin}");
        }
        for origin in [
            "http://app.example.org",
            "https://app.example.org:444",
            "https://example.com:8443",
            "https://.example.com:8443",
            "https://evilexample.com:8443",
            "https://a.example.com",
            "http://a.example.com:8443",
            "chrome-extension://abcd",
        ] {
            assert!(!live.admits(origin, "elsewhere", true), "{origin}");
        }
        assert!(super::tests::live(&["*"]).admits("https://any.example", "elsewhere", true));
    }

    #[test]
    fn an_entry_that_is_no_origin_says_why() {
        for (text, why) in [
            ("null", "cannot be allowed"),
            ("app.example.org", "scheme"),
            ("https://app.example.org/", "no path"),
            ("https://app.example.org:99999", "port"),
            ("https://*", "whole labels"),
            ("https://a*.example.org", "whole labels"),
            ("https://*.*.example.org", "whole labels"),
            ("https://*.com", "top-level"),
            ("https://", "host"),
        ] {
            let said = OriginRule::parse(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        assert!(OriginRule::parse("http://*.localhost:3000").is_ok());
    }
}
