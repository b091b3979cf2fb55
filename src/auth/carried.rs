//! Where a request carries its token.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use taskyard_proto::Secret;

use super::TOKEN_BYTES_MAX;

/// How an entry of `Sec-WebSocket-Protocol` begins that is a token and no protocol.
pub const SUBPROTOCOL_PREFIX: &str = "bearer.";

/// Why a request's token cannot be read. It never holds what the request said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// More than one token in one place.
    Several(&'static str),
    /// Another scheme than `Bearer`, or none.
    Scheme,
    /// The subprotocol entry is no base64url.
    Base64,
    /// Empty, or with characters that no token has.
    Text,
    /// Longer than any token.
    TooLong,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Several(place) => write!(f, "{place} was given more than once: give one token"),
            Unreadable::Scheme => f.write_str("the Authorization header is not of the form `Bearer TOKEN`"),
            Unreadable::Base64 => f.write_str(
                "the subprotocol entry bearer.… is no base64url: encode the token's text so, without padding",
            ),
            Unreadable::Text => {
                f.write_str("the token is empty, or has a space or a control character in it")
            }
            Unreadable::TooLong => write!(f, "the token is longer than {TOKEN_BYTES_MAX} bytes"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// The token of a request: of the `Authorization` header, else of a subprotocol entry
/// `bearer.<base64url>`, else (if `allow_query`) of the parameter `token`. The first place that
/// holds one decides; a place that is wrong in itself is an error, not passed over.
pub fn carried(
    headers: &HeaderMap,
    query: Option<&str>,
    allow_query: bool,
) -> Result<Option<Secret>, Unreadable> {
    if let Some(header) = only(headers.get_all(AUTHORIZATION).iter(), "the Authorization header")? {
        let text = header.to_str().map_err(|_| Unreadable::Text)?;
        let (scheme, token) = text.split_once(' ').ok_or(Unreadable::Scheme)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Unreadable::Scheme);
        }
        return checked(token.trim_matches(' ')).map(Some);
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|header| header.to_str().ok());
    let entries = offered
        .flat_map(|list| list.split(','))
        .filter_map(|entry| entry.trim_matches([' ', '\t']).strip_prefix(SUBPROTOCOL_PREFIX));
    if let Some(encoded) = only(entries, "the subprotocol bearer.…")? {
        // Four characters for three bytes; what is longer is not decoded.
        if encoded.len() > TOKEN_BYTES_MAX * 4 / 3 + 4 {
            return Err(Unreadable::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Unreadable::Base64)?;
        return checked(str::from_utf8(&bytes).map_err(|_| Unreadable::Text)?).map(Some);
    }
    if !allow_query {
        return Ok(None);
    }
    let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let tokens = parameters.filter(|(name, _)| name == "token").map(|(_, token)| token);
    match only(tokens, "the parameter token")? {
        Some(token) => checked(&token).map(Some),
        None => Ok(None),
    }
}

/// The one element, if there is one.
fn only<T>(mut of: impl Iterator<Item = T>, place: &'static str) -> Result<Option<T>, Unreadable> {
    let first = of.next();
    if of.next().is_some() { Err(Unreadable::Several(place)) } else { Ok(first) }
}

fn checked(token: &str) -> Result<Secret, Unreadable> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Unreadable::TooLong);
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unreadable::Text);
    }
    Ok(Secret::new(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn found(pairs: &[(&'static str, &str)], query: Option<&str>) -> Result<Option<String>, Unreadable> {
        let found = carried(&headers(pairs), query, true);
        found.map(|secret| secret.map(|secret| secret.expose().to_owned()))
    }

    const AUTH: &str = "authorization";
    const PROTOCOL: &str = "sec-websocket-protocol";

    #[test]
    fn the_places_are_looked_at_in_order() {
        let encoded = format!("taskyard.v1.json, bearer.{}", URL_SAFE_NO_PAD.encode("second"));
        let (first, second) = ((AUTH, "Bearer first"), (PROTOCOL, encoded.as_str()));
        let third = Some("queue=q&token=th%2Drd");
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(found(&[first, second], third), some("first"));
        assert_eq!(found(&[second], third), some("second"));
        assert_eq!(found(&[(PROTOCOL, "taskyard.v1.json")], third), some("th-rd"));
        assert_eq!(found(&[], Some("queue=q")), Ok(None));
        assert_eq!(found(&[], None), Ok(None));
        assert_eq!(carried(&headers(&[]), third, false), Ok(None), "not unless it is allowed");
    }

    #[test]
    fn the_scheme_is_of_any_case_and_the_entry_anywhere() {
        let some = Ok(Some("a.b~c".to_owned()));
        for value in ["Bearer a.b~c", "bearer a.b~c", "BEARER   a.b~c "] {
            assert_eq!(found(&[(AUTH, value)], None), some, "{value}");
        }
        let encoded = format!("bearer.{}", URL_SAFE_NO_PAD.encode("a.b~c"));
        assert_eq!(found(&[(PROTOCOL, &format!("x,\t{encoded} ,y"))], None), some);
        assert_eq!(found(&[(PROTOCOL, "x"), (PROTOCOL, &encoded)], None), some);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_passed_over() {
        let good = format!("bearer.{}", URL_SAFE_NO_PAD.encode("good"));
        let spaced = format!("bearer.{}", URL_SAFE_NO_PAD.encode("a b"));
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for (pairs, query, expected) in [
            (&[(AUTH, "Bearer a"), (AUTH, "Bearer a")][..], None, "more than once"),
            (&[(AUTH, "Basic YTpi"), (PROTOCOL, &good)], None, "Bearer TOKEN"),
            (&[(AUTH, "Bearer")], None, "Bearer TOKEN"),
            (&[(AUTH, "Bearer  ")], None, "empty"),
            (&[(AUTH, "Bearer a b")], None, "space"),
            (&[(AUTH, &format!("Bearer {long}"))], None, "8192"),
            (&[(PROTOCOL, &format!("{good}, {good}"))], None, "more than once"),
            (&[(PROTOCOL, "bearer.")], None, "empty"),
            (&[(PROTOCOL, "bearer.a+b/")], None, "base64url"),
            (&[(PROTOCOL, "bearer.Zg==")], None, "base64url"),
            (&[(PROTOCOL, &spaced)], None, "space"),
            (&[(PROTOCOL, &format!("bearer.{}", long.repeat(2)))], None, "8192"),
            (&[], Some("token=a&token=b"), "more than once"),
            (&[], Some("token="), "empty"),
            (&[], Some("token=a%00"), "control"),
        ] {
            let error = found(pairs, query).unwrap_err().to_string();
            assert!(error.contains(expected), "{pairs:?}: {error}");
            assert!(!error.contains("YTpi") && !error.contains("a b"), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let found = carried(&headers(&[(AUTH, "Bearer hidden")]), None, false).unwrap().unwrap();
        assert!(!format!("{found:?}").contains("hidden"));
    }
}
