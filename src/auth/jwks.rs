//! Keys of signed tokens that are fetched from an address, again and again.
//!
//! How bytes are fetched is somebody else's business; here is when, and what happens if it fails.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::jwt::Keys;

/// How often keys are fetched, unless told otherwise.
pub const REFRESH_EVERY: Duration = Duration::from_secs(600);

/// The least time between two fetches, whoever asks for them: a stranger can, with made-up key names. Unless
/// they are fetched more often than that anyway.
pub const REFRESH_MIN: Duration = Duration::from_secs(30);

/// Many times what a set of keys has.
pub const SET_BYTES_MAX: usize = 256 << 10;

/// Longer than this nobody waits for an answer of a few kilobytes.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

/// Somebody who gets bytes from an address: given the address and the most bytes to read, it
/// answers with the body of a successful answer, or with what went wrong. It need not mind the time.
#[derive(Clone)]
pub struct Fetch(Arc<dyn Fn(String, usize) -> Answer + Send + Sync>);

impl Fetch {
    /// Fetches with this function. Redirects to other hosts must not be followed by it.
    pub fn new<F, A>(fetch: F) -> Fetch
    where
        F: Fn(String, usize) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Vec<u8>, String>> + Send + 'static,
    {
        Fetch(Arc::new(move |url, max| Box::pin(fetch(url, max))))
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetch(…)")
    }
}

/// Whether an address may be the source of keys: whoever can change the answer can sign tokens.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    let uri: hyper::Uri =
        url.parse().map_err(|_| format!("{url:?} is no address of the form https://HOST/PATH"))?;
    let local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if local => Ok(()),
        _ => Err(format!(
            "{url:?} is not safe to fetch keys from: who can change the answer on its way can make tokens; expected \
             https://, or http:// on this machine"
        )),
    }
}

/// The keys of an address, and how old they may get.
pub(super) struct Jwks {
    url: String,
    every: Duration,
    fetch: Fetch,
    /// `None` until they were fetched once.
    keys: RwLock<Option<Arc<Keys>>>,
    asked: Notify,
    failures: AtomicU64,
    failing: AtomicBool,
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks").field("url", &self.url).field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Jwks {
    pub(super) fn new(url: String, every: Duration, fetch: Fetch) -> Jwks {
        Jwks {
            url,
            every: every.max(Duration::from_secs(1)),
            fetch,
            keys: RwLock::default(),
            asked: Notify::new(),
            failures: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// The keys; `None` until they were fetched once.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for newer keys, soon.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// How often fetching has failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Fetches the keys; whether they are others than before. If it fails, the old ones stay.
    pub(super) async fn refresh(&self) -> Result<bool, String> {
        match self.try_refresh().await {
            Ok((changed, left_out)) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(url = %self.url, "keys of signed tokens are fetched again");
                }
                if changed {
                    for why in left_out {
                        tracing::warn!(url = %self.url, "a key of signed tokens is not used: {why}");
                    }
                }
                Ok(changed)
            }
            Err(why) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                // Said once: who looks at the log can see that it has not ended since.
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(url = %self.url, "cannot fetch the keys of signed tokens, those known stay in use: {why}");
                }
                Err(why)
            }
        }
    }

    async fn try_refresh(&self) -> Result<(bool, Vec<String>), String> {
        let answer = timeout(FETCH_TIMEOUT, (self.fetch.0)(self.url.clone(), SET_BYTES_MAX));
        let bytes = answer.await.map_err(|_| format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))??;
        if bytes.len() > SET_BYTES_MAX {
            return Err(format!("the answer is longer than {SET_BYTES_MAX} bytes"));
        }
        let (new, left_out) = Keys::of_set(&bytes, true)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let changed = keys.as_deref() != Some(&new);
        if changed {
            *keys = Some(Arc::new(new));
        }
        Ok((changed, left_out))
    }

    /// Fetches for ever: at once, then regularly, sooner when asked or after a failure.
    pub(super) async fn keep_fresh(&self, changed: impl Fn()) {
        loop {
            let began = Instant::now();
            let refreshed = self.refresh().await;
            if refreshed == Ok(true) {
                changed();
            }
            let sooner = self.every.min(REFRESH_MIN);
            let every = if refreshed.is_ok() { self.every } else { sooner };
            tokio::select! {
                () = sleep_until(began + every) => {}
                () = self.asked.notified() => sleep_until(began + sooner).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};

    use super::super::jwt::forge::ed;
    use super::*;

    /// An issuer that answers as it is told, and counts.
    #[derive(Default, Clone)]
    struct Issuer {
        answer: Arc<Mutex<Option<Vec<u8>>>>,
        asked: Arc<AtomicU64>,
    }

    impl Issuer {
        fn says(&self, keys: &[&Value]) {
            *self.answer.lock().unwrap() = Some(json!({"keys": keys}).to_string().into_bytes());
        }

        fn asked(&self) -> u64 {
            self.asked.load(Ordering::Relaxed)
        }

        fn jwks(&self) -> Arc<Jwks> {
            let issuer = self.clone();
            let fetch = Fetch::new(move |url, max| {
                assert_eq!((url.as_str(), max), ("https://id/keys", SET_BYTES_MAX));
                issuer.asked.fetch_add(1, Ordering::Relaxed);
                let answer = issuer.answer.lock().unwrap().clone();
                async move { answer.ok_or_else(|| "out of order".to_owned()) }
            });
            Arc::new(Jwks::new("https://id/keys".into(), REFRESH_EVERY, fetch))
        }
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_fetched_at_once_and_then_every_ten_minutes() {
        let (issuer, a, b) = (Issuer::default(), ed("a"), ed("b"));
        issuer.says(&[&a.jwk]);
        let jwks = issuer.jwks();
        assert!(jwks.keys().is_none());
        let changes = Arc::new(AtomicU64::new(0));
        let (keeper, counted) = (Arc::clone(&jwks), Arc::clone(&changes));
        let task = tokio::spawn(async move {
            keeper
                .keep_fresh(|| {
                    counted.fetch_add(1, Ordering::Relaxed);
                })
                .await;
        });
        pass(1).await;
        assert_eq!((issuer.asked(), changes.load(Ordering::Relaxed)), (1, 1));
        pass(598).await;
        assert_eq!(issuer.asked(), 1);
        pass(2).await;
        assert_eq!((issuer.asked(), changes.load(Ordering::Relaxed)), (2, 1), "the same keys are no change");
        issuer.says(&[&a.jwk, &b.jwk]);
        pass(600).await;
        assert_eq!((issuer.asked(), changes.load(Ordering::Relaxed)), (3, 2));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_heard_once_in_thirty_seconds() {
        let (issuer, a) = (Issuer::default(), ed("a"));
        issuer.says(&[&a.jwk]);
        let jwks = issuer.jwks();
        let keeper = Arc::clone(&jwks);
        let task = tokio::spawn(async move { keeper.keep_fresh(|| ()).await });
        pass(100).await;
        assert_eq!(issuer.asked(), 1);
        jwks.ask();
        pass(1).await;
        assert_eq!(issuer.asked(), 2, "long after the last one: at once");
        for _ in 0..2800 {
            jwks.ask();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(issuer.asked(), 2 + 280 / 30);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_keeps_the_keys_and_tries_again_sooner() {
        let (issuer, a) = (Issuer::default(), ed("a"));
        let jwks = issuer.jwks();
        let keeper = Arc::clone(&jwks);
        let task = tokio::spawn(async move { keeper.keep_fresh(|| ()).await });
        pass(1).await;
        assert_eq!((issuer.asked(), jwks.failures(), jwks.keys().is_none()), (1, 1, true));
        issuer.says(&[&a.jwk]);
        pass(30).await;
        let keys = jwks.keys().unwrap();
        assert_eq!((issuer.asked(), jwks.failures()), (2, 1));
        for bad in [&b"{}"[..], b"<html>", &[b' '; SET_BYTES_MAX + 1]] {
            *issuer.answer.lock().unwrap() = Some(bad.to_vec());
            assert!(jwks.refresh().await.is_err());
            assert!(Arc::ptr_eq(&jwks.keys().unwrap(), &keys));
        }
        assert_eq!(jwks.failures(), 4);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_given_up() {
        let fetch = Fetch::new(|_, _| std::future::pending());
        let jwks = Jwks::new("https://id/keys".into(), REFRESH_EVERY, fetch);
        let began = Instant::now();
        assert_eq!(jwks.refresh().await, Err("no answer within 10 s".into()));
        assert_eq!(began.elapsed(), FETCH_TIMEOUT);
    }

    #[test]
    fn keys_come_by_a_safe_way() {
        for good in [
            "https://id.example.org/keys",
            "http://localhost:8080/k",
            "http://127.0.0.1/k",
            "http://[::1]:1/k",
        ] {
            assert_eq!(check_url(good), Ok(()));
        }
        for bad in [
            "http://id.example.org/keys",
            "ftp://x/y",
            "/keys",
            "",
            "https://",
            "http://localhost.example.org/",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
