//! Who may do what: the tokens file, rules, where a request carries its token, and signed tokens.
#![no_main]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::Arbitrary;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use taskyard::auth::token::{self, NewToken};
use taskyard::auth::{
    Algorithm, AuthConfig, Authority, JwtConfig, JwtKeys, Limits, TOKEN_BYTES_MAX, carried,
};
use taskyard::core::grants::RULES_MAX;
use taskyard::core::{Action, Grants, Rule};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    mode: u8,
    /// Where and to what a signed token is changed; nothing at 0xffff.
    changes: [(u16, u8); 2],
    text: &'a [u8],
}

const SECRET: &[u8; 32] = b"0123456789abcdef0123456789ABCDEF";

struct Place {
    tokens: PathBuf,
    authority: Authority,
    now: SystemTime,
}

/// One directory for the whole life of the process. `fuzz/run` makes it one in memory, and takes it away.
static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let key = directory.join("key");
    fs::write(&key, SECRET).expect("the key is written");
    let keys = JwtKeys::File { path: key, algorithm: Algorithm::Hs256 };
    let config = AuthConfig {
        tokens_file: directory.join("none"),
        admin_token: None,
        jwt: Some(JwtConfig::new(keys)),
        default_limits: Limits::default(),
    };
    let authority = Authority::open(config).expect("the authority opens");
    // Its files are read and done with; others of this process follow.
    fs::remove_file(directory.join("key")).expect("the key is there");
    Place { tokens: directory.join("tokens.toml"), authority, now: UNIX_EPOCH + Duration::from_secs(1 << 31) }
});

/// A file that is read can be written, and then says the same.
fn file(text: &str) {
    let path = &PLACE.tokens;
    fs::write(path, text).expect("the file is written");
    let Ok(before) = token::read(path) else { return };
    let before = before.expect("it is there").tokens;
    let distinct = |of: fn(&token::Token) -> &str| before.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(|token| &token.name), before.len());
    assert_eq!(distinct(|token| &token.id), before.len());
    for token in &before {
        assert!(token::check_name(&token.name).is_ok());
        assert!(token.id.len() == 8 && token.id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(token.allow.rules().len() <= RULES_MAX);
        assert!(token.limits.named().iter().all(|(_, limit)| *limit != Some(0)));
    }
    let new = NewToken {
        name: "one-more".into(),
        allow: Grants::all(),
        lasts: Some(Duration::from_secs(60)),
        limits: Limits::default(),
    };
    let is_taken = before.iter().any(|token| token.name == "one-more");
    let secret = token::create(path, new, PLACE.now).expect("what was read can be written");
    assert_eq!(secret.is_none(), is_taken);
    if is_taken {
        return;
    }
    let after = token::read(path).expect("what was written can be read").expect("it is there").tokens;
    assert_eq!(after[..before.len()], before, "the others are as they were");
    let config = AuthConfig {
        tokens_file: path.clone(),
        admin_token: None,
        jwt: None,
        default_limits: Limits::default(),
    };
    let authority = Authority::open(config).expect("what was written opens");
    let secret = secret.expect("it was made");
    let identity = authority.authenticate(secret.expose(), PLACE.now).expect("the token is good");
    assert_eq!(identity.account, "one-more");
    assert_eq!(token::revoke(path, "one-more").expect("it is there"), Some(before.len()));
    let left = token::read(path).expect("what was written can be read").expect("it is there").tokens;
    assert_eq!(left, before);
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.chars().all(plain)
}

/// The rule as the documents tell it: an action, a colon, and a name, the beginning of one and `*`, or `*`.
fn naive(text: &str) -> Option<(&str, &str, bool)> {
    let (action, name) = text.split_once(':')?;
    if !["submit", "consume", "observe", "manage"].contains(&action) {
        return None;
    }
    match name.split_once('*') {
        None => is_name(name).then_some((action, name, false)),
        Some((prefix, "")) => (prefix.is_empty() || is_name(prefix)).then_some((action, prefix, true)),
        Some(_) => None,
    }
}

fn rules(rules: &[&str], action: u8, name: &str) {
    for text in rules {
        match (Rule::parse(text), naive(text)) {
            (Ok(rule), Some(_)) => assert_eq!(rule.to_string(), *text),
            (Err(error), None) => assert!(error.to_string().len() < 1000),
            (parsed, naive) => panic!("{text:?}: {parsed:?}, {naive:?}"),
        }
    }
    let good: Vec<&str> = rules.iter().copied().filter(|text| naive(text).is_some()).collect();
    let action = Action::ALL[usize::from(action) % 4];
    let Ok(grants) = Grants::parse(good.iter().copied()) else {
        assert!(good.iter().collect::<BTreeSet<_>>().len() > RULES_MAX);
        return;
    };
    let names = good.iter().filter_map(|text| naive(text)).map(|(_, name, _)| name).chain([name]);
    for name in names.flat_map(|name| [name.to_owned(), format!("{name}x"), name.chars().skip(1).collect()]) {
        let expected = good.iter().filter_map(|text| naive(text)).any(|(may, pattern, is_prefix)| {
            let of_action = may == action.as_str() || (may == "manage" && action == Action::Observe);
            of_action && if is_prefix { name.starts_with(pattern) } else { name == pattern }
        });
        assert_eq!(grants.may(action, &name), expected, "{good:?}: {action} on {name:?}");
    }
    let written: Vec<String> = grants.rules().iter().map(ToString::to_string).collect();
    assert_eq!(Grants::parse(written.iter().map(String::as_str)), Ok(grants));
}

fn token_of(authorization: &[&[u8]], protocols: &[&[u8]], query: Option<&str>, allow_query: bool) {
    let mut headers = HeaderMap::new();
    for (name, values) in [(AUTHORIZATION, authorization), (SEC_WEBSOCKET_PROTOCOL, protocols)] {
        for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
            headers.append(&name, value);
        }
    }
    let found = carried(&headers, query, allow_query);
    let bearers: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|entry| entry.trim().strip_prefix("bearer."))
        .collect();
    let said: Vec<&HeaderValue> = headers.get_all(AUTHORIZATION).iter().collect();
    match found {
        Err(why) => assert!(!why.to_string().is_empty()),
        Ok(None) => {
            assert!(said.is_empty() && bearers.is_empty(), "a place that holds one is not passed over");
        }
        Ok(Some(secret)) => {
            let token = secret.expose();
            assert!((1..=TOKEN_BYTES_MAX).contains(&token.len()));
            assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
            match (&said[..], &bearers[..]) {
                ([one], _) => {
                    let text = one.to_str().expect("it was read");
                    assert!(text.trim_end_matches(' ').ends_with(&format!(" {token}")), "{text:?}");
                    assert!(text.to_ascii_lowercase().starts_with("bearer "));
                }
                ([], [one]) => assert_eq!(*one, URL_SAFE_NO_PAD.encode(token)),
                ([], []) => assert!(allow_query && query.is_some_and(|query| query.contains("token"))),
                several => panic!("one of several was taken: {several:?}"),
            }
        }
    }
}

fn hmac(message: &str) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(SECRET).for_each(|(to, from)| *to ^= from);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

fn credential(text: &str) {
    let Ok(identity) = PLACE.authority.authenticate(text, PLACE.now) else { return };
    assert!(text.len() <= TOKEN_BYTES_MAX);
    let (signed, signature) = text.rsplit_once('.').expect("three parts");
    assert_eq!(signature, URL_SAFE_NO_PAD.encode(hmac(signed)), "the signature is not the key's");
    let (header, claims) = signed.split_once('.').expect("three parts");
    let part = |text: &str| -> serde_json::Value {
        let bytes = URL_SAFE_NO_PAD.decode(text).expect("base64url");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    assert_eq!(part(header)["alg"], "HS256");
    let claims = part(claims);
    let subject = claims["sub"].as_str().expect("a subject");
    assert_eq!(identity.account, format!("jwt:{subject}"));
    assert!(claims.get("aud").is_none(), "it was meant for somebody else");
    let seconds = |name: &str| claims.get(name).map(|time| time.as_f64().expect("a time"));
    let now = (1u64 << 31) as f64;
    assert!(seconds("exp").expect("an end") + 30.0 > now);
    assert!(seconds("nbf").is_none_or(|from| from <= now + 30.0));
    assert!(identity.expires.is_some_and(|end| end > PLACE.now));
    let rules = claims["taskyard"].as_array().expect("rules");
    let rules: Vec<&str> = rules.iter().map(|rule| rule.as_str().expect("a rule")).collect();
    assert_eq!(Grants::parse(rules), Ok((*identity.grants).clone()));
}

fn signed(header: &str, claims: &str, changes: &[(u16, u8)]) {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac(&signed))).into_bytes();
    for (at, to) in changes.iter().filter(|(at, _)| *at != u16::MAX) {
        let at = usize::from(*at) % text.len();
        text[at] = to & 0x7f;
    }
    credential(str::from_utf8(&text).expect("ASCII"));
}

fuzz_target!(|input: Input<'_>| {
    let Input { mode, changes, text: bytes } = input;
    let text = str::from_utf8(bytes).unwrap_or_default();
    match mode % 5 {
        0 => file(text),
        // The name that is asked for, and a rule in each line.
        1 => {
            let mut lines = text.split('\n');
            let name = lines.next().unwrap_or_default();
            rules(&lines.collect::<Vec<_>>(), mode / 5, name);
        }
        // `a`: an Authorization header, `p`: subprotocols, anything else: the query.
        2 => {
            let (mut authorization, mut protocols, mut query) = (Vec::new(), Vec::new(), None);
            for line in bytes.split(|byte| *byte == b'\n') {
                match line {
                    [b'a', value @ ..] => authorization.push(value),
                    [b'p', value @ ..] => protocols.push(value),
                    other => query = str::from_utf8(other).ok(),
                }
            }
            token_of(&authorization, &protocols, query, mode & 0x80 == 0);
        }
        3 => credential(text),
        // A header and claims, in a line each.
        _ => {
            if let Some((header, claims)) = text.split_once('\n') {
                signed(header, claims, &changes);
            }
        }
    }
});
