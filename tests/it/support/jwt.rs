//! Signed tokens, and the keys that sign them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// A private key, with its public one as PEM and as JWK.
pub struct Pair {
    algorithm: Algorithm,
    signing: EncodingKey,
    pub pem: String,
    pub jwk: Value,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the broker looks at the same clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind} KEY-----\n{}\n-----END {kind} KEY-----\n", STANDARD.encode(der))
}

impl Pair {
    pub fn ed25519(kid: &str) -> Pair {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let public = pair.public_key().as_ref();
        // SubjectPublicKeyInfo of RFC 8410 is this and the key.
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        Pair {
            algorithm: Algorithm::EdDSA,
            signing: EncodingKey::from_ed_der(pkcs8.as_ref()),
            pem: pem("PUBLIC", &[&head[..], public].concat()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64url(public)}),
        }
    }

    pub fn p256(kid: &str) -> Pair {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        Pair {
            algorithm: Algorithm::ES256,
            signing: EncodingKey::from_ec_der(pkcs8.as_ref()),
            pem: pem("PUBLIC", der.as_ref()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": base64url(&point[1..33]), "y": base64url(&point[33..])}),
        }
    }

    pub fn rsa(kid: &str) -> Pair {
        let pair = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
        Pair {
            algorithm: Algorithm::RS256,
            signing: EncodingKey::from_rsa_pem(pem("PRIVATE", private.as_ref()).as_bytes()).unwrap(),
            pem: pem("PUBLIC", public.as_ref()),
            jwk: json!({"kty": "RSA", "kid": kid, "n": base64url(n.big_endian_without_leading_zero()),
                "e": base64url(e.big_endian_without_leading_zero())}),
        }
    }

    pub fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::EdDSA => "EdDSA",
            Algorithm::ES256 => "ES256",
            _ => "RS256",
        }
    }

    /// A token with the key's own algorithm.
    pub fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
    }

    /// A token with any header, signed with this key.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, self.algorithm);
        format!("{message}.{}", signature.unwrap())
    }
}

/// A token with any header, signed with HMAC, or not at all.
pub fn hmac(header: &Value, claims: &Value, secret: Option<&[u8]>) -> String {
    let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
    let signature = secret.map_or_else(String::new, |secret| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        base64url(aws_lc_rs::hmac::sign(&key, message.as_bytes()))
    });
    format!("{message}.{signature}")
}
