//! Signed tokens of somebody else's making (JWT, RFC 7519): which keys are trusted, and what a token must say.
//!
//! The token chooses nothing but one of our keys: each key is bound to one algorithm, and the header's
//! `alg` and `kid` only find it. What else a header may offer (`jku`, `x5u`, `jwk`, …) is not looked at.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::jwks::Fetch;
use super::{Denied, cut};
use crate::core::Grants;

/// How far the clocks of the issuer and the broker may be apart, unless told otherwise.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// More leeway than this is no allowance for clocks but a longer life for tokens.
pub const LEEWAY_MAX: Duration = Duration::from_secs(300);

/// The claim that holds the rules, unless told otherwise.
pub const CLAIM: &str = "taskyard";

/// Fewer bytes could be searched through by who has one token (RFC 7518, 3.2).
const HMAC_SECRET_BYTES_MIN: usize = 32;

/// The shortest DER form of an RSA public key of 2048 bits: modulus, exponent, and their lengths.
const RSA_DER_BYTES_MIN: usize = 262;

/// A token without `kid` is tried with each key of its algorithm: this is how many that can be.
const KEYS_MAX: usize = 32;

/// More than any name of a person or a service.
const SUBJECT_BYTES_MAX: usize = 256;

/// An algorithm that tokens may be signed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256: who can check a token can make one.
    Hs256,
    /// Ed25519.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    Rs256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 4] = [Algorithm::Hs256, Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256];

    /// Its name in headers and keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::EdDsa => "EdDSA",
            Algorithm::Es256 => "ES256",
            Algorithm::Rs256 => "RS256",
        }
    }

    /// The algorithm of a name.
    pub fn parse(text: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == text)
    }

    fn theirs(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which keys are trusted.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// One key: a public key in PEM form, or for HS256 the bytes of the secret. A line's end after a
    /// secret that is text is not part of it.
    File {
        /// Where it is.
        path: PathBuf,
        /// What it is for.
        algorithm: Algorithm,
    },
    /// A set of keys in a file (JWKS, RFC 7517).
    SetFile(PathBuf),
    /// A set of keys of this address, fetched again now and then.
    Url {
        /// `https://…`; `http://` on this machine only.
        url: String,
        /// How often to fetch it; see [`super::REFRESH_EVERY`].
        every: Duration,
        /// Who fetches.
        fetch: Fetch,
    },
}

/// Which signed tokens are taken.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// The keys.
    pub keys: JwtKeys,
    /// The algorithms that are taken; empty: those of the keys.
    pub algorithms: Vec<Algorithm>,
    /// What `aud` must be or hold one of. Without any, a token that has an `aud` is meant for somebody else.
    pub audience: Vec<String>,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// How far the clocks may be apart; see [`LEEWAY`].
    pub leeway: Duration,
    /// The claim that holds the rules; see [`CLAIM`].
    pub claim: String,
}

impl JwtConfig {
    /// Tokens of these keys, and the defaults for all else.
    pub fn new(keys: JwtKeys) -> JwtConfig {
        JwtConfig {
            keys,
            algorithms: Vec::new(),
            audience: Vec::new(),
            issuer: None,
            leeway: LEEWAY,
            claim: CLAIM.into(),
        }
    }
}

/// A key that is trusted, for one algorithm.
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
    mark: Mark,
}

/// Tells keys apart: a hash of all that a key is.
pub(super) type Mark = [u8; 32];

/// The keys that are trusted.
#[derive(Default)]
pub(super) struct Keys(Vec<Key>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (key.algorithm, &key.kid))).finish()
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Keys) -> bool {
        self.0.iter().map(|key| key.mark).eq(other.0.iter().map(|key| key.mark))
    }
}

/// What a token that was found good says.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) subject: String,
    pub(super) grants: Grants,
    /// `exp` and the leeway.
    pub(super) expires: SystemTime,
    pub(super) key: Mark,
}

/// Whether a text has the form of a JWT: three parts.
pub(super) fn has_form(credential: &str) -> bool {
    credential.bytes().filter(|byte| *byte == b'.').count() == 2
}

impl Key {
    fn new(kid: Option<String>, algorithm: Algorithm, material: &[&[u8]], decoding: DecodingKey) -> Key {
        let mut hash = Sha256::new();
        // Lengths keep the parts apart.
        for part in [algorithm.as_str().as_bytes(), kid.as_deref().unwrap_or_default().as_bytes()]
            .into_iter()
            .chain(material.iter().copied())
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key { kid, algorithm, decoding, mark: hash.finalize().into() }
    }
}

/// A key as JWKS writes it. All is optional: a set may hold keys of kinds that are not for us.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

impl Keys {
    /// One key of a file.
    pub(super) fn of_file(bytes: &[u8], algorithm: Algorithm) -> Result<Keys, String> {
        let is_pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
        if algorithm == Algorithm::Hs256 {
            // The classic mistake: what everybody knows as the secret.
            if is_pem {
                return Err(
                    "it is a PEM key, and HS256 wants a secret: for a public key name its own algorithm \
                            (RS256, ES256 or EdDSA)"
                        .into(),
                );
            }
            let is_text = bytes.iter().all(|byte| byte.is_ascii_graphic() || b" \r\n".contains(byte));
            let secret = if is_text { bytes.trim_ascii_end() } else { bytes };
            return Ok(Keys(vec![Key::new(None, algorithm, &[secret], hmac(secret)?)]));
        }
        if !is_pem {
            return Err(format!(
                "it is no PEM file: {algorithm} wants a public key, `-----BEGIN PUBLIC KEY-----`"
            ));
        }
        let text = String::from_utf8_lossy(bytes);
        if text.contains("PRIVATE KEY-----") {
            return Err(
                "it is a private key: the broker only checks, and should not be able to sign; give it the \
                        public key (openssl pkey -pubout)"
                    .into(),
            );
        }
        if !text.contains("PUBLIC KEY-----") {
            return Err("it is a PEM file of another kind: expected `-----BEGIN PUBLIC KEY-----`".into());
        }
        let not_one = || format!("it is not a public key for {algorithm}");
        let wrong = |_| not_one();
        let decoding = match algorithm {
            Algorithm::Rs256 => DecodingKey::from_rsa_pem(bytes).map_err(wrong)?,
            Algorithm::Es256 => DecodingKey::from_ec_pem(bytes).map_err(wrong)?,
            Algorithm::EdDsa | Algorithm::Hs256 => DecodingKey::from_ed_pem(bytes).map_err(wrong)?,
        };
        let raw = decoding.try_get_as_bytes().map_err(wrong)?.to_vec();
        match algorithm {
            Algorithm::Rs256 if raw.len() < RSA_DER_BYTES_MIN => {
                return Err("it is an RSA key of less than 2048 bits: make a longer one".into());
            }
            // The point, uncompressed.
            Algorithm::Es256 if raw.len() != 65 || raw[0] != 4 => {
                return Err("it is a key of another curve: ES256 wants P-256 (prime256v1)".into());
            }
            Algorithm::EdDsa if raw.len() != 32 => return Err(not_one()),
            _ => {}
        }
        Ok(Keys(vec![Key::new(None, algorithm, &[&raw], decoding)]))
    }

    /// A set of keys. Those that are not for us are left out, with a word on each that looked as if
    /// it should be; a set with none for us is an error. From an address (`public`), secrets are
    /// not taken: whoever reads them could sign.
    pub(super) fn of_set(bytes: &[u8], public: bool) -> Result<(Keys, Vec<String>), String> {
        let set: Jwks = serde_json::from_slice(bytes)
            .map_err(|e| format!("it is no JWKS, a JSON object with a list `keys`: line {}", e.line()))?;
        let (mut keys, mut left_out) = (Vec::new(), Vec::new());
        for (nth, value) in set.keys.into_iter().enumerate() {
            let jwk: Result<Jwk, _> = serde_json::from_value(value);
            let kid = jwk.as_ref().ok().and_then(|jwk| jwk.kid.clone());
            match jwk.map_err(|_| "it is no JWK".to_owned()).and_then(|jwk| of_jwk(jwk, public)) {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => {}
                Err(why) => left_out.push(format!(
                    "key number {} (kid {:?}): {why}",
                    nth + 1,
                    kid.as_deref().map(cut)
                )),
            }
        }
        if keys.is_empty() {
            let why = if left_out.is_empty() { String::new() } else { format!(" ({})", left_out.join("; ")) };
            return Err(format!("it holds no key for signatures with HS256, EdDSA, ES256 or RS256{why}"));
        }
        if keys.len() > KEYS_MAX {
            return Err(format!("it holds {} keys: at most {KEYS_MAX} are looked at", keys.len()));
        }
        Ok((Keys(keys), left_out))
    }

    /// Whether a key is still trusted.
    pub(super) fn has(&self, mark: &Mark) -> bool {
        self.0.iter().any(|key| key.mark == *mark)
    }

    /// Checks a token: first its signature, then what it says.
    pub(super) fn verify(
        &self,
        token: &str,
        config: &JwtConfig,
        now: SystemTime,
    ) -> Result<Verified, Denied> {
        let refused = |why: &str| Denied::Jwt(why.to_owned());
        let header = jsonwebtoken::decode_header(token).map_err(|_| {
            refused("its header is none, or names an algorithm that is not known (`none` is none)")
        })?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.theirs() == header.alg)
            .ok_or_else(|| refused("its algorithm is none of HS256, EdDSA, ES256, RS256"))?;
        // RFC 7515, 4.1.11: what is critical and not understood is to be refused, and we understand none.
        if header.crit.is_some() {
            return Err(refused("its header has `crit`, extensions that the broker does not know"));
        }
        let kid = header.kid.as_deref();
        let mut candidates = self
            .0
            .iter()
            .filter(|key| key.algorithm == algorithm)
            .filter(|_| config.algorithms.is_empty() || config.algorithms.contains(&algorithm))
            .filter(|key| kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid)
            .peekable();
        if candidates.peek().is_none() {
            return Err(Denied::UnknownKey { algorithm, kid: kid.map(cut) });
        }
        let mut validation = Validation::new(algorithm.theirs());
        // The claims are checked below, by the time that we are told and with reasons for the log.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let (key, claims) = candidates
            .find_map(|key| {
                let data =
                    jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation).ok()?;
                Some((key.mark, data.claims))
            })
            .ok_or_else(|| refused("its signature is wrong, or its claims are no JSON object"))?;
        check(&claims, config, now, key)
    }
}

fn hmac(secret: &[u8]) -> Result<DecodingKey, String> {
    if secret.len() < HMAC_SECRET_BYTES_MIN {
        return Err(format!(
            "the secret has {} bytes: HS256 wants at least {HMAC_SECRET_BYTES_MIN} random ones \
             (openssl rand -hex 32)",
            secret.len()
        ));
    }
    Ok(DecodingKey::from_secret(secret))
}

/// A key of a set; `None` if it is of a kind that is not for us.
fn of_jwk(jwk: Jwk, public: bool) -> Result<Option<Key>, String> {
    let for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
        && jwk.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|one| one == "verify"));
    // The kind of the key alone says what it is for; `alg` may only agree.
    let algorithm = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) => Algorithm::Hs256,
        ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
        ("EC", Some("P-256")) => Algorithm::Es256,
        ("RSA", _) => Algorithm::Rs256,
        _ => return Ok(None),
    };
    if !for_signatures || jwk.alg.as_deref().is_some_and(|alg| alg != algorithm.as_str()) {
        return Ok(None);
    }
    let part = |name: &str, value: &Option<String>| {
        let text = value.as_deref().ok_or_else(|| format!("{name} is missing"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("{name} is no base64url"))
    };
    let of_length = |name: &str, value: Vec<u8>, length: usize| {
        if value.len() == length { Ok(value) } else { Err(format!("{name} has not {length} bytes")) }
    };
    let (material, decoding) = match algorithm {
        Algorithm::Hs256 if public => return Err("a secret in a set that is fetched is none".into()),
        Algorithm::Hs256 => {
            let secret = part("k", &jwk.k)?;
            let decoding = hmac(&secret)?;
            (vec![secret], decoding)
        }
        Algorithm::EdDsa => {
            let x = of_length("x", part("x", &jwk.x)?, 32)?;
            let decoding = DecodingKey::from_ed_der(&x);
            (vec![x], decoding)
        }
        Algorithm::Es256 => {
            let x = of_length("x", part("x", &jwk.x)?, 32)?;
            let y = of_length("y", part("y", &jwk.y)?, 32)?;
            // The uncompressed form of a point.
            let decoding = DecodingKey::from_ec_der(&[&[4], &x[..], &y[..]].concat());
            (vec![x, y], decoding)
        }
        Algorithm::Rs256 => {
            let (n, e) = (part("n", &jwk.n)?, part("e", &jwk.e)?);
            // Some write a zero before the modulus.
            let n = n.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &n[at..]).to_vec();
            if n.len() < 256 {
                return Err("an RSA key of less than 2048 bits".into());
            }
            let decoding = DecodingKey::from_rsa_raw_components(&n, &e);
            (vec![n, e], decoding)
        }
    };
    let material: Vec<&[u8]> = material.iter().map(Vec::as_slice).collect();
    Ok(Some(Key::new(jwk.kid, algorithm, &material, decoding)))
}

/// Checks what a token says whose signature is right.
fn check(
    claims: &Map<String, Value>,
    config: &JwtConfig,
    now: SystemTime,
    key: Mark,
) -> Result<Verified, Denied> {
    let refused = |why: String| Denied::Jwt(why);
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| {
                UNIX_EPOCH.checked_add(since)?.checked_add(config.leeway).map(|_| UNIX_EPOCH + since)
            })
            .map(Some)
            .ok_or_else(|| refused(format!("its claim `{name}` is no time (seconds since 1970)"))),
    };
    let subject = text("sub").unwrap_or_default();
    if subject.is_empty() || subject.len() > SUBJECT_BYTES_MAX || subject.chars().any(char::is_control) {
        return Err(refused(format!(
            "its claim `sub` is missing, or not 1 to {SUBJECT_BYTES_MAX} bytes of plain text"
        )));
    }
    let account = || format!("jwt:{subject}");
    if let Some(issuer) = &config.issuer
        && text("iss") != Some(issuer)
    {
        let given = text("iss").map(cut);
        return Err(refused(format!("{}: its claim `iss` is {given:?}: expected {issuer:?}", account())));
    }
    let is_ours = |one: &str| config.audience.iter().any(|audience| audience == one);
    let meant_for_us = match claims.get("aud") {
        None => config.audience.is_empty(),
        Some(Value::String(one)) => is_ours(one),
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).any(is_ours),
        Some(_) => false,
    };
    if !meant_for_us {
        let text = match config.audience.is_empty() {
            true => "it has a claim `aud`, and the broker was not told which audience it is".to_owned(),
            false => format!("its claim `aud` holds none of {:?}", config.audience),
        };
        return Err(refused(format!("{}: {text}", account())));
    }
    let expires =
        time("exp")?.ok_or_else(|| refused(format!("{}: its claim `exp` is missing", account())))?;
    let expires = expires + config.leeway;
    if expires <= now {
        return Err(Denied::Expired { account: account() });
    }
    if time("nbf")?.is_some_and(|not_before| not_before > now + config.leeway) {
        return Err(refused(format!("{}: it is not valid yet (`nbf`)", account())));
    }
    let claim = &config.claim;
    let rules = claims
        .get(claim)
        .and_then(Value::as_array)
        .and_then(|rules| rules.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
        .ok_or_else(|| refused(format!("{}: its claim `{claim}` is no list of rules", account())))?;
    let grants =
        Grants::parse(rules).map_err(|e| refused(format!("{}: its claim `{claim}`: {e}", account())))?;
    Ok(Verified { subject: subject.to_owned(), grants, expires, key })
}

/// Keys and tokens for the tests here and beside.
#[cfg(test)]
pub(super) mod forge {
    use std::sync::LazyLock;

    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
    };
    use base64::engine::general_purpose::STANDARD;
    use jsonwebtoken::EncodingKey;
    use serde_json::json;

    use super::*;

    /// A private key with all forms of its public one.
    pub(in crate::auth) struct Pair {
        pub(in crate::auth) algorithm: Algorithm,
        signing: EncodingKey,
        pub(in crate::auth) pem: String,
        pub(in crate::auth) jwk: Value,
    }

    fn pem(der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    pub(in crate::auth) fn ed(kid: &str) -> Pair {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let public = pair.public_key().as_ref();
        // SubjectPublicKeyInfo of RFC 8410 is this and the key.
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        Pair {
            algorithm: Algorithm::EdDsa,
            signing: EncodingKey::from_ed_der(pkcs8.as_ref()),
            pem: pem(&[&head[..], public].concat()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "use": "sig", "x": URL_SAFE_NO_PAD.encode(public)}),
        }
    }

    pub(in crate::auth) fn es(kid: &str) -> Pair {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        Pair {
            algorithm: Algorithm::Es256,
            signing: EncodingKey::from_ec_der(pkcs8.as_ref()),
            pem: pem(der.as_ref()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid,
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}),
        }
    }

    /// Slow to make, so there is one.
    pub(in crate::auth) fn rs() -> &'static Pair {
        static PAIR: LazyLock<Pair> = LazyLock::new(|| {
            let pair = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
            let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
            let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
            let big = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            Pair {
                algorithm: Algorithm::Rs256,
                signing: EncodingKey::from_rsa_pem(
                    pem(private.as_ref()).replace("PUBLIC", "PRIVATE").as_bytes(),
                )
                .unwrap(),
                pem: pem(public.as_ref()),
                jwk: json!({"kty": "RSA", "kid": "r", "use": "sig",
                    "n": big(pair.public_key().modulus().big_endian_without_leading_zero()),
                    "e": big(pair.public_key().exponent().big_endian_without_leading_zero())}),
            }
        });
        &PAIR
    }

    impl Pair {
        pub(in crate::auth) fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
            let mut header = jsonwebtoken::Header::new(self.algorithm.theirs());
            header.kid = kid.map(str::to_owned);
            jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
        }
    }

    pub(in crate::auth) fn hs(secret: &[u8], claims: &Value) -> String {
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    /// A token with any header, signed (if it is) by HMAC.
    pub(in crate::auth) fn with_header(header: &Value, claims: &Value, secret: Option<&[u8]>) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = secret.map_or_else(String::new, |secret| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
            URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, message.as_bytes()))
        });
        format!("{message}.{signature}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::forge::{ed, es, hs, rs, with_header};
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn config() -> JwtConfig {
        JwtConfig::new(JwtKeys::SetFile(PathBuf::new()))
    }

    fn claims() -> Value {
        json!({"sub": "ci", "exp": NOW + 60, "taskyard": ["submit:emails*", "observe:*"]})
    }

    fn without(name: &str) -> Value {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        claims
    }

    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut claims = claims();
        claims[name] = value.into();
        claims
    }

    fn secret_keys() -> Keys {
        Keys::of_file(SECRET, Algorithm::Hs256).unwrap()
    }

    fn judged(config: &JwtConfig, claims: &Value) -> Result<Verified, Denied> {
        secret_keys().verify(&hs(SECRET, claims), config, now())
    }

    fn set(keys: &[&Value]) -> Vec<u8> {
        json!({"keys": keys}).to_string().into_bytes()
    }

    #[test]
    fn each_algorithm_is_taken_from_a_file_and_from_a_set() {
        let (ed, es) = (ed("e"), es("p"));
        let all = Keys::of_set(&set(&[&ed.jwk, &es.jwk, &rs().jwk]), true).unwrap();
        assert_eq!(all.1, [""; 0]);
        for pair in [&ed, &es, rs()] {
            let token = pair.sign(None, &claims());
            let alone = Keys::of_file(pair.pem.as_bytes(), pair.algorithm).unwrap();
            for keys in [&alone, &all.0] {
                let verified = keys.verify(&token, &config(), now()).unwrap();
                assert_eq!(
                    (verified.subject.as_str(), verified.grants.to_string()),
                    ("ci", "submit:emails* observe:*".into())
                );
                assert_eq!(verified.expires, now() + Duration::from_secs(90));
                assert!(keys.has(&verified.key));
            }
            // A changed letter of what it says, or of the signature.
            for at in [token.find('.').unwrap() + 5, token.rfind('.').unwrap() + 5] {
                let mut changed = token.clone().into_bytes();
                changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(changed).unwrap();
                assert!(matches!(all.0.verify(&changed, &config(), now()), Err(Denied::Jwt(_))));
            }
        }
        assert!(judged(&config(), &claims()).is_ok());
    }

    #[test]
    fn a_public_key_is_no_secret() {
        // The token that an attacker makes who knows the public key, as everybody does.
        let keys = Keys::of_file(rs().pem.as_bytes(), Algorithm::Rs256).unwrap();
        for secret in [rs().pem.as_bytes(), rs().pem.trim_end().as_bytes()] {
            let error = keys.verify(&hs(secret, &claims()), &config(), now()).unwrap_err();
            assert_eq!(error, Denied::UnknownKey { algorithm: Algorithm::Hs256, kid: None });
        }
        // And nobody can be talked into it.
        let error = Keys::of_file(rs().pem.as_bytes(), Algorithm::Hs256).unwrap_err();
        assert!(error.contains("PEM"), "{error}");
    }

    #[test]
    fn the_header_chooses_no_other_algorithm_and_no_key_of_its_own() {
        let ed = ed("e");
        let keys = Keys::of_set(
            &set(&[&ed.jwk, &rs().jwk, &json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET)})]),
            false,
        );
        let keys = keys.unwrap().0;
        let judge = |header: Value, secret: Option<&[u8]>| {
            keys.verify(&with_header(&header, &claims(), secret), &config(), now()).map(|_| ())
        };
        assert_eq!(judge(json!({"alg": "HS256"}), Some(SECRET)), Ok(()));
        for none in ["none", "None", "NONE", ""] {
            assert!(matches!(judge(json!({"alg": none}), None), Err(Denied::Jwt(_))));
            assert!(matches!(judge(json!({"alg": none}), Some(SECRET)), Err(Denied::Jwt(_))));
        }
        assert!(matches!(judge(json!({}), Some(SECRET)), Err(Denied::Jwt(_))));
        for other in ["HS384", "HS512", "RS384", "PS256", "ES384"] {
            let error = judge(json!({"alg": other}), Some(SECRET)).unwrap_err().to_string();
            assert!(error.contains("none of HS256"), "{error}");
        }
        assert!(judge(json!({"alg": "RS256"}), Some(SECRET)).is_err());
        assert!(judge(json!({"alg": "HS256"}), None).is_err(), "no signature");
        let crit = judge(json!({"alg": "HS256", "crit": ["exp"], "exp": 1}), Some(SECRET)).unwrap_err();
        assert!(crit.to_string().contains("crit"));
        // Keys that a header brings along are not looked at: this one would verify it.
        let own = forge::ed("e");
        let header = json!({"alg": "EdDSA", "kid": "e", "jwk": own.jwk, "jku": "https://example.org/keys", "x5u": "https://example.org/x"});
        let signed = own.sign(Some("e"), &claims());
        let (_, tail) = signed.split_once('.').unwrap();
        let forged = format!("{}.{tail}", URL_SAFE_NO_PAD.encode(header.to_string()));
        assert!(keys.verify(&forged, &config(), now()).is_err());
        // Nor is one refused for naming them.
        let header =
            json!({"alg": "HS256", "jku": "https://example.org/keys", "x5u": "https://example.org/x"});
        assert_eq!(judge(header, Some(SECRET)), Ok(()));
    }

    #[test]
    fn a_kid_selects_among_keys_that_have_one() {
        let (a, b) = (ed("a"), ed("b"));
        let keys = Keys::of_set(&set(&[&a.jwk, &b.jwk]), true).unwrap().0;
        let judge =
            |pair: &forge::Pair, kid| keys.verify(&pair.sign(kid, &claims()), &config(), now()).map(|_| ());
        assert_eq!(judge(&a, Some("a")), Ok(()));
        assert_eq!(judge(&b, Some("b")), Ok(()));
        assert_eq!(judge(&b, None), Ok(()), "each is tried");
        assert!(matches!(judge(&a, Some("b")), Err(Denied::Jwt(_))));
        let unknown = Denied::UnknownKey { algorithm: Algorithm::EdDsa, kid: Some("c".into()) };
        assert_eq!(judge(&a, Some("c")), Err(unknown));
        // A key without a name is for tokens with any.
        let alone = Keys::of_file(a.pem.as_bytes(), Algorithm::EdDsa).unwrap();
        assert!(alone.verify(&a.sign(Some("any"), &claims()), &config(), now()).is_ok());
    }

    #[test]
    fn what_a_token_says_must_hold() {
        let refused = |config: &JwtConfig, claims: &Value, word: &str| {
            let error = judged(config, claims).unwrap_err().to_string();
            assert!(error.contains(word), "{claims}: {error}");
        };
        let plain = config();
        refused(&plain, &without("exp"), "`exp` is missing");
        refused(&plain, &with("exp", "soon"), "`exp` is no time");
        refused(&plain, &with("exp", -5), "`exp` is no time");
        refused(&plain, &with("exp", 1e300), "`exp` is no time");
        refused(&plain, &without("sub"), "`sub`");
        refused(&plain, &with("sub", ""), "`sub`");
        refused(&plain, &with("sub", 7), "`sub`");
        refused(&plain, &with("sub", "a\nb"), "`sub`");
        refused(&plain, &with("sub", "x".repeat(257)), "`sub`");
        refused(&plain, &without("taskyard"), "`taskyard` is no list");
        refused(&plain, &with("taskyard", "submit:a"), "`taskyard` is no list");
        refused(&plain, &with("taskyard", json!(["submit:a", 1])), "`taskyard` is no list");
        refused(&plain, &with("taskyard", json!(["submit:a", "submit:*a"])), "submit:*a");
        refused(&plain, &with("aud", "x"), "`aud`");
        refused(&plain, &with("aud", json!([])), "`aud`");
        refused(&plain, &with("nbf", NOW + 31), "nbf");
        refused(&plain, &with("nbf", json!([])), "`nbf` is no time");
        assert!(judged(&plain, &with("nbf", NOW + 29)).is_ok());
        assert!(judged(&plain, &with("iss", "anybody")).is_ok());

        let strict =
            JwtConfig { audience: vec!["tasks".into()], issuer: Some("https://id".into()), ..config() };
        let good = |aud: Value| {
            let mut claims = with("iss", "https://id");
            claims["aud"] = aud;
            claims
        };
        assert!(judged(&strict, &good(json!("tasks"))).is_ok());
        assert!(judged(&strict, &good(json!(["other", "tasks"]))).is_ok());
        for aud in [json!("other"), json!(["other"]), json!([["tasks"]]), json!({"tasks": 1}), json!(null)] {
            refused(&strict, &good(aud), "`aud`");
        }
        refused(&strict, &with("iss", "https://id"), "`aud`");
        refused(&strict, &with("aud", "tasks"), "`iss`");
        refused(
            &strict,
            &{
                let mut c = good(json!("tasks"));
                c["iss"] = json!("https://id/");
                c
            },
            "`iss`",
        );
        refused(
            &strict,
            &{
                let mut c = good(json!("tasks"));
                c["iss"] = json!(["https://id"]);
                c
            },
            "`iss`",
        );

        let other = JwtConfig { claim: "https://example.org/may".into(), ..config() };
        refused(&other, &claims(), "example.org/may");
        let claims = with("https://example.org/may", json!(["consume:q"]));
        assert_eq!(judged(&other, &claims).unwrap().grants.to_string(), "consume:q");
    }

    #[test]
    fn the_leeway_is_for_clocks_that_go_wrong() {
        let at = |leeway: u64, exp: u64| {
            let config = JwtConfig { leeway: Duration::from_secs(leeway), ..config() };
            judged(&config, &with("exp", exp)).map(|verified| verified.expires)
        };
        assert_eq!(at(30, NOW - 29), Ok(now() + Duration::from_secs(1)));
        assert_eq!(at(30, NOW - 30), Err(Denied::Expired { account: "jwt:ci".into() }));
        assert_eq!(at(0, NOW), Err(Denied::Expired { account: "jwt:ci".into() }));
        assert_eq!(at(0, NOW + 1), Ok(now() + Duration::from_secs(1)));
        assert!(judged(&config(), &with("exp", NOW as f64 + 0.5)).is_ok());
    }

    #[test]
    fn keys_that_cannot_be_say_why() {
        let file = |bytes: &[u8], algorithm, word: &str| {
            let error = Keys::of_file(bytes, algorithm).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        let (ed, es) = (ed("e"), es("p"));
        file(b"short", Algorithm::Hs256, "5 bytes");
        file(&SECRET[1..], Algorithm::Hs256, "at least 32");
        file(SECRET, Algorithm::Rs256, "no PEM");
        file(ed.pem.replace("PUBLIC", "PRIVATE").as_bytes(), Algorithm::EdDsa, "private key");
        file(ed.pem.replace("PUBLIC KEY", "CERTIFICATE").as_bytes(), Algorithm::EdDsa, "another kind");
        file(ed.pem.as_bytes(), Algorithm::Es256, "not a public key for ES256");
        file(ed.pem.as_bytes(), Algorithm::Rs256, "not a public key for RS256");
        file(es.pem.as_bytes(), Algorithm::EdDsa, "not a public key for EdDSA");
        file(rs().pem.as_bytes(), Algorithm::Es256, "not a public key for ES256");
        file(
            b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n",
            Algorithm::Es256,
            "not a public key",
        );

        // The newline that a shell adds to a secret is not meant.
        let lined = Keys::of_file(&[SECRET, b"\n"].concat(), Algorithm::Hs256).unwrap();
        assert_eq!(lined, secret_keys());
        let binary = Keys::of_file(&[&[0xff; 32][..], b"\n"].concat(), Algorithm::Hs256).unwrap();
        assert_ne!(binary, Keys::of_file(&[0xff; 32], Algorithm::Hs256).unwrap());
    }

    #[test]
    fn a_set_is_taken_for_what_is_for_us_in_it() {
        let ed = ed("e");
        let oct = json!({"kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode(SECRET)});
        let kids = |keys: &[&Value], public| {
            let (keys, left_out) = Keys::of_set(&set(keys), public)?;
            Ok::<_, String>((
                keys.0.iter().map(|key| key.kid.clone().unwrap()).collect::<Vec<_>>(),
                left_out.len(),
            ))
        };
        let changed = |name: &str, value: Value| {
            let mut jwk = ed.jwk.clone();
            jwk[name] = value;
            jwk["kid"] = json!("x");
            jwk
        };
        assert_eq!(kids(&[&oct, &ed.jwk], false), Ok((vec!["s".into(), "e".into()], 0)));
        assert_eq!(kids(&[&oct, &ed.jwk], true), Ok((vec!["e".into()], 1)), "no secrets of an address");
        for (jwk, left_out) in [
            (changed("use", json!("enc")), 0),
            (changed("key_ops", json!(["sign"])), 0),
            (changed("alg", json!("HS256")), 0),
            (changed("crv", json!("X25519")), 0),
            (changed("kty", json!("new")), 0),
            (changed("x", json!("AAAA")), 1),
            (changed("x", json!("?")), 1),
            (changed("x", json!(7)), 1),
            (json!("no key"), 1),
            (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), 1),
            (json!({"kty": "EC", "crv": "P-256", "x": ed.jwk["x"]}), 1),
            (json!({"kty": "oct", "k": "c2hvcnQ"}), 1),
        ] {
            assert_eq!(kids(&[&jwk, &ed.jwk], false), Ok((vec!["e".into()], left_out)), "{jwk}");
            assert!(kids(&[&jwk], false).unwrap_err().contains("no key for signatures"), "{jwk}");
        }
        for text in ["", "[]", "{}", "{\"keys\": 1}"] {
            assert!(Keys::of_set(text.as_bytes(), true).unwrap_err().contains("JWKS"));
        }
        let many: Vec<&Value> = std::iter::repeat_n(&ed.jwk, KEYS_MAX + 1).collect();
        assert!(kids(&many, true).unwrap_err().contains("at most 32"));
    }
}
