//! The authority as a whole: tokens of all kinds, and what changes while it runs.

use std::fs;
use std::time::UNIX_EPOCH;

use serde_json::json;
use tempfile::TempDir;

use super::jwt::forge::{ed, hs};
use super::token::NewToken;
use super::*;
use crate::core::Action;

const NOW: u64 = 1_800_000_000;
const ADMIN_TOKEN: &str = "an-administrator's-own-words";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn now() -> SystemTime {
    at(NOW)
}

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tokens.toml")
    }

    fn config(&self) -> AuthConfig {
        AuthConfig {
            tokens_file: self.path(),
            admin_token: None,
            jwt: None,
            default_limits: Limits { connections: Some(100), ..Limits::default() },
        }
    }

    fn authority(&self) -> Authority {
        Authority::open(self.config()).unwrap()
    }

    fn create(&self, name: &str, rules: &[&str], lasts: Option<u64>, limits: Limits) -> String {
        let new = NewToken {
            name: name.into(),
            allow: Grants::parse(rules.iter().copied()).unwrap(),
            lasts: lasts.map(Duration::from_secs),
            limits,
        };
        token::create(&self.path(), new, now()).unwrap().unwrap().expose().to_owned()
    }

    fn plain(&self, name: &str) -> String {
        self.create(name, &["submit:emails*"], None, Limits::default())
    }

    fn replace(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.path(), text.replace(from, to)).unwrap();
    }
}

#[test]
fn without_any_token_there_is_no_authentication() {
    let place = Place::new();
    let authority = place.authority();
    assert!(!authority.is_on());
    let anyone = authority.anyone();
    assert_eq!((&*anyone.account, &*anyone.grants), (ANYONE, &Grants::all()));
    assert_eq!(authority.standing(&anyone, now()), Standing::Same);
    assert_eq!(authority.authenticate("anything", now()).unwrap_err(), Denied::Unknown);

    let token = place.plain("ci");
    assert!(authority.reload().unwrap());
    assert!(authority.is_on());
    assert_eq!(authority.standing(&anyone, now()), Standing::Revoked);
    assert!(authority.authenticate(&token, now()).is_ok());
    assert!(place.authority().is_on());
}

#[test]
fn a_token_of_the_file_is_known_by_all_of_it() {
    let place = Place::new();
    let limits = Limits { messages_per_s: Some(5), queued_tasks: Some(7), ..Limits::default() };
    let token = place.create("ci", &["submit:emails*", "manage:x"], None, limits);
    let other = place.plain("other");
    let authority = place.authority();
    let identity = authority.authenticate(&token, now()).unwrap();
    assert_eq!(&*identity.account, "ci");
    assert!(identity.grants.may(Action::Submit, "emails-2") && identity.grants.may(Action::Observe, "x"));
    assert!(!identity.grants.may(Action::Submit, "x"));
    assert_eq!(identity.limits, Limits { connections: Some(100), ..limits }, "its own, then the defaults");
    assert_eq!(authority.standing(&identity, now()), Standing::Same);
    assert_eq!(&*authority.authenticate(&other, now()).unwrap().account, "other");

    for nth in 0..token.len() {
        let mut wrong = token.clone().into_bytes();
        wrong[nth] = if wrong[nth] == b'a' { b'b' } else { b'a' };
        let wrong = String::from_utf8(wrong).unwrap();
        assert_eq!(authority.authenticate(&wrong, now()).unwrap_err(), Denied::Unknown, "character {nth}");
    }
    // Of one the public part, of the other the secret.
    let crossed = format!("{}{}", &token[..12], &other[12..]);
    for wrong in ["", "ty_", &token[1..], &token[..54], &format!("{token}x"), &crossed, &token.to_uppercase()]
    {
        assert_eq!(authority.authenticate(wrong, now()).unwrap_err(), Denied::Unknown, "{wrong}");
    }
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(authority.authenticate(&long, now()).unwrap_err(), Denied::TooLong(8193));
}

#[test]
fn a_token_ends() {
    let place = Place::new();
    let token = place.create("ci", &["submit:*"], Some(60), Limits::default());
    let authority = place.authority();
    let identity = authority.authenticate(&token, at(NOW + 59)).unwrap();
    assert_eq!(identity.expires, Some(at(NOW + 60)));
    assert_eq!(authority.standing(&identity, at(NOW + 59)), Standing::Same);
    assert_eq!(authority.standing(&identity, at(NOW + 60)), Standing::Expired);
    let denied = authority.authenticate(&token, at(NOW + 60)).unwrap_err();
    assert_eq!(denied, Denied::Expired { account: "ci".into() });
    // That it has ended is only for who has it.
    let guessed = format!("{}{}", &token[..12], "x".repeat(43));
    assert_eq!(authority.authenticate(&guessed, at(NOW + 60)).unwrap_err(), Denied::Unknown);
}

#[test]
fn the_administrator_may_do_all_and_must_not_be_guessed() {
    let place = Place::new();
    let open =
        |token: &str| Authority::open(AuthConfig { admin_token: Some(Secret::new(token)), ..place.config() });
    let authority = open(ADMIN_TOKEN).unwrap();
    assert!(authority.is_on());
    let admin = authority.authenticate(ADMIN_TOKEN, now()).unwrap();
    assert_eq!((&*admin.account, &*admin.grants, admin.limits), (ADMIN, &Grants::all(), Limits::default()));
    assert_eq!(authority.standing(&admin, now()), Standing::Same);
    assert_eq!(authority.authenticate("an-administrator's-own-word", now()).unwrap_err(), Denied::Unknown);
    for (token, word) in [
        ("", "0 bytes"),
        ("fifteen-letters", "at least 16"),
        ("sixteen letters and more", "space"),
        ("sixteen-letters-and-more\n", "line"),
        (&"x".repeat(8193), "at most 8192"),
    ] {
        let error = open(token).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("TASKYARD_ADMIN_TOKEN"), "{error}");
        assert!(token.is_empty() || !error.contains(token.trim_end()), "{error}");
    }
}

#[test]
fn a_change_of_the_file_reaches_those_who_are_known() {
    let place = Place::new();
    let (token, other) = (place.plain("ci"), place.plain("other"));
    let authority = place.authority();
    let mut changes = authority.changes();
    changes.mark_unchanged();
    let known = authority.authenticate(&token, now()).unwrap();
    let bystander = authority.authenticate(&other, now()).unwrap();
    let stands = |identity: &Identity| authority.standing(identity, now());

    assert!(!authority.reload().unwrap(), "nothing is different");
    assert!(!changes.has_changed().unwrap());

    place.replace("name = \"ci\"", "name = \"builds\"");
    assert!(authority.reload().unwrap());
    assert!(changes.has_changed().unwrap());
    assert_eq!((stands(&known), stands(&bystander)), (Standing::Changed, Standing::Same));
    let renewed = authority.current(&known).unwrap();
    assert_eq!((&*renewed.account, stands(&renewed)), ("builds", Standing::Same));
    place.replace("name = \"builds\"", "name = \"ci\"");
    assert!(authority.reload().unwrap());
    assert_eq!(stands(&known), Standing::Same, "as it was");
    assert!(Arc::ptr_eq(&authority.current(&known).unwrap().meter, &known.meter));

    let before = fs::read_to_string(place.path()).unwrap();
    fs::write(place.path(), before.replacen("submit:emails*", "submit:other", 1)).unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!((stands(&known), stands(&bystander)), (Standing::Changed, Standing::Same));
    fs::write(place.path(), format!("{before}[token.limits]\nconnections = 1\n")).unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!((stands(&known), stands(&bystander)), (Standing::Same, Standing::Changed));
    fs::write(place.path(), before.replacen("created", "expires = \"2020-01-01T00:00:00Z\"\ncreated", 1))
        .unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!(stands(&known), Standing::Expired);

    // Another secret under the same public part is another token.
    let hash = before.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(place.path(), before.replace(hash, &"ab".repeat(32))).unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!((stands(&known), stands(&bystander)), (Standing::Revoked, Standing::Same));

    fs::write(place.path(), "").unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!((stands(&known), stands(&bystander)), (Standing::Revoked, Standing::Revoked));
    assert!(authority.current(&known).is_none());
    assert_eq!(authority.authenticate(&token, now()).unwrap_err(), Denied::Unknown);
    assert!(authority.is_on(), "who deletes the last token does not let everybody in");
}

#[test]
fn a_bad_file_keeps_the_old_tokens_and_at_a_start_is_refused() {
    let place = Place::new();
    let token = place.plain("ci");
    let authority = place.authority();
    place.replace("allow", "alow");
    let error = authority.reload().unwrap_err().to_string();
    for word in ["tokens.toml", "\"ci\"", "\"alow\""] {
        assert!(error.contains(word), "{error}");
    }
    assert!(authority.authenticate(&token, now()).is_ok());
    assert_eq!(Authority::open(place.config()).unwrap_err().exit_code(), 2);
    fs::remove_file(place.path()).unwrap();
    assert!(authority.reload().unwrap_err().to_string().contains("is gone"));
    assert!(authority.authenticate(&token, now()).is_ok() && authority.is_on());
}

#[tokio::test(start_paused = true)]
async fn the_file_is_read_again_by_itself() {
    let place = Place::new();
    let authority = Arc::new(place.authority());
    let cancel = CancellationToken::new();
    let keeper = tokio::spawn(Arc::clone(&authority).keep_fresh(cancel.clone()));
    let mut changes = authority.changes();
    let wait = || tokio::time::sleep(POLL * 3);
    wait().await;
    assert!(!authority.is_on());

    let token = place.plain("ci");
    tokio::time::timeout(POLL * 3, changes.changed()).await.unwrap().unwrap();
    assert!(authority.is_on() && authority.authenticate(&token, now()).is_ok());

    let whole = fs::read(place.path()).unwrap();
    fs::write(place.path(), "rubbish").unwrap();
    wait().await;
    assert!(authority.authenticate(&token, now()).is_ok());
    fs::remove_file(place.path()).unwrap();
    wait().await;
    assert!(authority.is_on() && authority.authenticate(&token, now()).is_ok());
    assert!(authority.files.lock().unwrap().tokens.trouble.as_ref().unwrap().contains("is gone"));
    assert!(!changes.has_changed().unwrap());

    fs::write(place.path(), whole).unwrap();
    wait().await;
    assert!(authority.files.lock().unwrap().tokens.trouble.is_none());
    assert!(!changes.has_changed().unwrap(), "the same tokens again");
    token::revoke(&place.path(), "ci").unwrap();
    tokio::time::timeout(POLL * 3, changes.changed()).await.unwrap().unwrap();
    assert!(authority.is_on() && authority.authenticate(&token, now()).is_err());
    cancel.cancel();
    keeper.await.unwrap();
}

#[test]
fn signed_tokens_are_known_by_the_keys_of_a_file() {
    let place = Place::new();
    let secret = b"0123456789abcdef0123456789abcdef";
    let path = place.directory.path().join("secret");
    fs::write(&path, secret).unwrap();
    let keys = JwtKeys::File { path: path.clone(), algorithm: Algorithm::Hs256 };
    let open = |jwt| Authority::open(AuthConfig { jwt: Some(jwt), ..place.config() });
    let authority = open(JwtConfig::new(keys.clone())).unwrap();
    assert!(authority.is_on());
    let sign = |secret: &[u8]| hs(secret, &json!({"sub": "ci", "exp": NOW + 60, "taskyard": ["submit:a"]}));
    let token = sign(secret);
    let identity = authority.authenticate(&token, now()).unwrap();
    assert_eq!((&*identity.account, identity.expires), ("jwt:ci", Some(at(NOW + 90))));
    assert_eq!((identity.limits.connections, identity.grants.to_string()), (Some(100), "submit:a".into()));
    assert!(Arc::ptr_eq(&identity.meter, &authority.authenticate(&token, now()).unwrap().meter));
    assert_eq!(authority.standing(&identity, now()), Standing::Same);
    assert_eq!(authority.standing(&identity, at(NOW + 90)), Standing::Expired);
    assert!(authority.current(&identity).is_none());
    let wrong = authority.authenticate(&sign(b"another secret of thirty-two bytes"), now()).unwrap_err();
    assert!(!wrong.to_string().contains(&token[..20]), "{wrong}");
    assert!(!format!("{authority:?}").contains("abcdef0"));

    // Its length is looked at before all else.
    let long = format!("{token}{}", "A".repeat(TOKEN_BYTES_MAX));
    assert!(matches!(authority.authenticate(&long, now()), Err(Denied::TooLong(_))));

    fs::write(&path, b"another secret of thirty-two bytes").unwrap();
    assert!(authority.reload().unwrap());
    assert_eq!(authority.standing(&identity, now()), Standing::Revoked);
    assert!(authority.authenticate(&token, now()).is_err());
    fs::write(&path, b"short").unwrap();
    assert!(authority.reload().unwrap_err().to_string().contains("5 bytes"));
    assert!(open(JwtConfig::new(keys.clone())).unwrap_err().to_string().contains("secret: the secret has 5"));
    fs::remove_file(&path).unwrap();
    assert!(open(JwtConfig::new(keys.clone())).is_err());
    let leeway = JwtConfig { leeway: Duration::from_secs(301), ..JwtConfig::new(keys) };
    assert!(open(leeway).unwrap_err().to_string().contains("leeway"));
}

#[tokio::test(start_paused = true)]
async fn signed_tokens_are_known_by_the_keys_of_an_address() {
    let place = Place::new();
    let (old, new) = (ed("old"), ed("new"));
    let answer = Arc::new(Mutex::new(json!({"keys": [old.jwk]}).to_string()));
    let said = Arc::clone(&answer);
    let fetch = Fetch::new(move |_, _| {
        let answer = said.lock().unwrap().clone().into_bytes();
        async { Ok(answer) }
    });
    let keys = |url: &str| JwtKeys::Url { url: url.into(), every: REFRESH_EVERY, fetch: fetch.clone() };
    let config = |url| AuthConfig { jwt: Some(JwtConfig::new(keys(url))), ..place.config() };
    assert!(Authority::open(config("http://id.example.org/keys")).is_err());
    let authority = Arc::new(Authority::open(config("https://id.example.org/keys")).unwrap());
    assert!(authority.is_on());

    let claims = json!({"sub": "ci", "exp": NOW + 60, "taskyard": []});
    let (first, second) = (old.sign(Some("old"), &claims), new.sign(Some("new"), &claims));
    let early = authority.authenticate(&first, now()).unwrap_err();
    assert!(early == Denied::NoKeys && early.is_temporary());
    let cancel = CancellationToken::new();
    let keeper = tokio::spawn(Arc::clone(&authority).keep_fresh(cancel.clone()));
    let mut changes = authority.changes();
    changes.changed().await.unwrap();
    let identity = authority.authenticate(&first, now()).unwrap();

    // A key that is new is fetched when the first token of it comes.
    tokio::time::sleep(Duration::from_secs(60)).await;
    *answer.lock().unwrap() = json!({"keys": [new.jwk]}).to_string();
    let denied = authority.authenticate(&second, now()).unwrap_err();
    assert!(matches!(denied, Denied::UnknownKey { .. }) && !denied.is_temporary(), "{denied}");
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    assert!(authority.authenticate(&second, now()).is_ok());
    assert_eq!(authority.standing(&identity, now()), Standing::Revoked);
    assert_eq!(authority.key_failures(), 0);
    cancel.cancel();
    keeper.await.unwrap();
}

#[test]
fn limits_are_an_account_s_own_or_the_defaults() {
    let own = Limits { connections: Some(1), ..Limits::default() };
    let defaults = Limits { connections: Some(9), queued_tasks: Some(5), ..Limits::default() };
    assert_eq!(own.or(defaults), Limits { connections: Some(1), queued_tasks: Some(5), ..Limits::default() });
    let place = Place::new();
    let zero = AuthConfig { default_limits: Limits { queued_bytes: Some(0), ..own }, ..place.config() };
    assert!(Authority::open(zero).unwrap_err().to_string().contains("queued_bytes"));

    let token = place.create("ci", &["submit:*"], None, Limits { messages_per_s: Some(3), ..own });
    let authority = place.authority();
    let (one, two) =
        (authority.authenticate(&token, now()).unwrap(), authority.authenticate(&token, now()).unwrap());
    let permit = one.connect().unwrap();
    assert_eq!(two.connect().unwrap_err(), TooManyConnections { max: 1 });
    drop(permit);
    assert!(two.connect().is_ok());
    assert_eq!((0..9).filter(|nth| [&one, &two][nth % 2].meter.message().is_ok()).count(), 3);
    place.replace("messages_per_s = 3", "messages_per_s = 6");
    assert!(authority.reload().unwrap());
    assert_eq!((0..9).filter(|_| one.meter.message().is_ok()).count(), 6, "also on what is connected");
}
