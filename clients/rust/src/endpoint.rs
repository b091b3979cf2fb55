//! Where a broker is and how to speak to it: a parsed URL and what the upgrade needs to know.

use std::fmt;
use std::time::Duration;

use taskyard_proto::{Encoding, Secret};

#[cfg(feature = "tls")]
use crate::tls::TlsOptions;

/// How long a connect may take, upgrade and `welcome` included, unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker's address and the terms of the connection. The address is parsed once and cannot be
/// wrong later; the terms are free to change.
#[derive(Debug, Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
    secure: bool,
    /// Goes into the `Authorization` header.
    pub token: Option<Secret>,
    /// How messages are spelled on this connection.
    pub encoding: Encoding,
    /// How long the connect and the upgrade may take.
    pub connect_timeout: Duration,
    /// Whom to trust if the URL asks for TLS.
    #[cfg(feature = "tls")]
    pub tls: TlsOptions,
}

/// A text that is not the URL of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlError {
    given: String,
    problem: &'static str,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UrlError { given, problem } = self;
        write!(f, "{given:?} is not the URL of a broker: {problem}; write it as ws://127.0.0.1:7070")
    }
}

impl std::error::Error for UrlError {}

impl Endpoint {
    /// Parses `ws://host:port/path`, or the same with `http`. Without a path it is `/ws`.
    ///
    /// `wss` and `https` ask for TLS. Without the cargo feature `tls` they parse too, and need a
    /// dialer that speaks it, see [`Dialer`](crate::Dialer).
    pub fn parse(url: &str) -> Result<Endpoint, UrlError> {
        let wrong = |problem| UrlError { given: url.chars().take(200).collect(), problem };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no ws:// or http://"))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(wrong("its scheme is none of ws, http, wss, https")),
        };
        // Whatever stands here goes into the request as it is: nothing may end the line.
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("it holds a space, a control character or a letter that is not ASCII"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(wrong("it holds a user name: a token is given apart from the URL"));
        }
        let (host, port) = split_port(authority).ok_or_else(|| wrong("its port is no number below 65536"))?;
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let path = match path {
            "" | "/" => "/ws".to_owned(),
            query if query.starts_with('?') => format!("/ws{query}"),
            path => path.to_owned(),
        };
        Ok(Endpoint {
            host: host.to_owned(),
            port: port.unwrap_or(if secure { 443 } else { 80 }),
            path,
            secure,
            token: None,
            encoding: Encoding::MessagePack,
            connect_timeout: CONNECT_TIMEOUT,
            #[cfg(feature = "tls")]
            tls: TlsOptions::default(),
        })
    }

    /// The host's name or address; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the URL asks for TLS.
    pub fn secure(&self) -> bool {
        self.secure
    }

    /// What the upgrade asks for: the path, and the query if there is one.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The `Host` header.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the query: it may hold a token.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.secure { "wss" } else { "ws" }, self.authority())
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(inside) => {
            let (host, after) = inside.split_once(']')?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return None,
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None => Some((host, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().ok().map(|port| (host, Some(port)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, host, port, path) in [
            ("ws://localhost", "localhost", 80, "/ws"),
            ("http://127.0.0.1:7070/", "127.0.0.1", 7070, "/ws"),
            ("WS://h:1/ws?queue=a", "h", 1, "/ws?queue=a"),
            ("ws://h?queue=a", "h", 80, "/ws?queue=a"),
            ("ws://[::1]:7070/x", "::1", 7070, "/x"),
            ("wss://h/#top", "h", 443, "/ws"),
        ] {
            let endpoint = Endpoint::parse(url).expect("this works in the test");
            assert_eq!((endpoint.host(), endpoint.port(), endpoint.path()), (host, port, path), "{url}");
        }
        assert_eq!(
            Endpoint::parse("ws://[::1]:7070").expect("this works in the test").to_string(),
            "ws://[::1]:7070/ws"
        );
    }

    #[test]
    fn what_is_no_url_says_why() {
        for (url, problem) in [
            ("localhost:7070", "no ws://"),
            ("ftp://h", "scheme"),
            ("ws://", "no host"),
            ("ws://h:x", "port"),
            ("ws://h:70700", "port"),
            ("ws://[::1", "port"),
            ("ws://a:b@h", "user name"),
            ("ws://h/a b", "space"),
            ("ws://h/\r\nX: y", "space"),
        ] {
            let error = Endpoint::parse(url).expect_err("this fails in the test").to_string();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }
}
