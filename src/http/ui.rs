//! The web UI: three files that are part of the broker, made from `ui/` by `ui/build.mjs`.
//!
//! Anybody gets them: what they show is asked for with a token, as by any other client.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use taskyard_proto::{Encoding, Error, ErrorCode};

use super::body;
use super::request::Segment;

/// Only files of this broker, no script or style in the page itself, nobody may frame it, and it speaks to nobody
/// else. The icon is in the page.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// A file as it is sent.
struct File {
    name: &'static str,
    kind: HeaderValue,
    plain: Bytes,
    gzip: Bytes,
    /// The beginning of its hash: a browser that has the file asks whether it still is this one.
    hash: String,
}

static PAGE: LazyLock<File> = LazyLock::new(|| {
    File::new("index.html", "text/html; charset=utf-8", include_bytes!("../../ui/dist/index.html"))
});
static OTHERS: LazyLock<[File; 2]> = LazyLock::new(|| {
    [
        File::new("app.js", "text/javascript; charset=utf-8", include_bytes!("../../ui/dist/app.js")),
        File::new("app.css", "text/css; charset=utf-8", include_bytes!("../../ui/dist/app.css")),
    ]
});

impl File {
    fn new(name: &'static str, kind: &'static str, bytes: &'static [u8]) -> File {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(bytes).expect("memory takes all");
        let hash = Sha256::digest(bytes);
        File {
            name,
            kind: HeaderValue::from_static(kind),
            plain: Bytes::from_static(bytes),
            gzip: packed.finish().expect("memory takes all").into(),
            hash: hash[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn send(&self, asked: &HeaderMap) -> Response {
        let packed = takes_gzip(asked);
        // Each form of a file has a tag of its own.
        let tag = format!("\"{}{}\"", self.hash, if packed { "-gz" } else { "" });
        let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|known| has(known, &tag));
        let mut response = if known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Body::from(if packed { self.gzip.clone() } else { self.plain.clone() }).into_response()
        };
        let headers = response.headers_mut();
        if !known {
            headers.insert(header::CONTENT_TYPE, self.kind.clone());
            if packed {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        headers.insert(header::ETAG, HeaderValue::try_from(tag).expect("a hash is plain ASCII"));
        for (name, value) in [
            // The page of one version must not run the script of another: each is asked for again.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::VARY, HeaderValue::from_static("accept, accept-encoding")),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        ] {
            headers.insert(name, value);
        }
        response
    }
}

/// Whether a header that lists tags has this one, or all.
fn has(list: &HeaderValue, tag: &str) -> bool {
    let list = list.to_str().unwrap_or_default();
    list.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

fn takes_gzip(asked: &HeaderMap) -> bool {
    let codings =
        asked.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let taken = |wanted: &str| {
        codings.split(',').find_map(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
            (name.trim() == wanted).then_some(!refused)
        })
    };
    // The star is for those that are not named.
    taken("gzip").or_else(|| taken("*")).unwrap_or(false)
}

/// Whether a browser asks, for a page.
pub(super) fn is_wanted(asked: &HeaderMap) -> bool {
    let kinds = asked.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kinds.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html"))
}

/// The page.
pub(super) fn page(asked: &HeaderMap) -> Response {
    PAGE.send(asked)
}

/// What the page is made with.
pub(super) async fn file(name: Segment, asked: HeaderMap) -> Response {
    // What is no text names no file either.
    let name = name.ok().map(|Path(name)| name);
    match OTHERS.iter().find(|file| Some(file.name) == name.as_deref()) {
        Some(file) => file.send(&asked),
        None => {
            let text =
                "the UI has no such file: it begins at /, and a page of another version is loaded anew";
            body::refused(Encoding::Json, Error::new(ErrorCode::NotFound, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn packed_is_what_was_asked_for_so() {
        for (codings, packed) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, gzip;q=0.8", true),
            ("*", true),
            ("", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("*, gzip;q=0", false),
            ("*;q=0, gzip", true),
            ("x-gzipped", false),
        ] {
            assert_eq!(takes_gzip(&asked(header::ACCEPT_ENCODING, codings)), packed, "{codings}");
        }
    }

    #[test]
    fn a_page_is_for_who_takes_pages() {
        for (kinds, wanted) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("application/json, text/html; charset=utf-8", true),
            ("*/*", false),
            ("text/plain", false),
            ("application/x-text/html", false),
        ] {
            assert_eq!(is_wanted(&asked(header::ACCEPT, kinds)), wanted, "{kinds}");
        }
    }

    #[test]
    fn a_tag_is_found_in_a_list() {
        for (list, found) in
            [("\"a\"", true), ("\"b\", W/\"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            assert_eq!(has(&HeaderValue::from_static(list), "\"a\""), found, "{list}");
        }
    }
}
