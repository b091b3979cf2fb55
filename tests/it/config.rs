//! The configuration: shown, checked, and read again while the broker runs.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Broker, Output, command, handshake, until, upgrade_request};

/// A file of this text, and the directory that it goes with.
fn file(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("taskyard.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(&["config"]);
    Output::of(command.args(arguments).envs(environment.iter().copied()))
}

fn check(path: &Path) -> Output {
    config(&["check", path.to_str().unwrap()], &[])
}

#[test]
fn the_example_is_what_the_binary_prints() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("taskyard.example.toml");
    let printed = config(&["print", "--defaults"], &[("TASKYARD_PING_MS", "2222")]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    if std::env::var_os("TASKYARD_BLESS").is_some() {
        std::fs::write(&example, &printed.out).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&example).unwrap_or_default(),
        printed.out,
        "TASKYARD_BLESS=1 writes it anew"
    );
    let checked = check(&example);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn what_is_printed_says_where_it_is_from_and_is_a_good_file_itself() {
    let (directory, path) = file("engine = \"memory\"\nping_ms = 1111\n\n[limits]\nconnections = 5\n");
    let printed = config(
        &["print", "--config", path.to_str().unwrap(), "--drain-ms", "7", "--compression"],
        &[("TASKYARD_PING_MS", "2222"), ("TASKYARD_ADMIN_TOKEN", "hidden-it-is-from-all")],
    );
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for expected in [
        &format!("# From: {}:1\nengine = \"memory\"\n", path.display()),
        &format!("# From: {}:5\nconnections = 5\n", path.display()),
        "# From: TASKYARD_PING_MS\nping_ms = 2222\n",
        "# From: --drain-ms\ndrain_ms = 7\n",
        "# From: --compression\nenabled = true\n",
        "# From: the default\nmessage_bytes = 1048576\n",
        "It is set.",
    ] {
        assert!(printed.out.contains(expected), "{expected}:\n{}", printed.out);
    }
    assert!(!printed.out.contains("hidden-it-is-from-all"), "{}", printed.out);
    let again = directory.path().join("again.toml");
    std::fs::write(&again, &printed.out).unwrap();
    let checked = check(&again);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.out.contains("is good"), "{checked:?}");
}

#[test]
fn a_check_tells_everything_that_is_wrong_with_its_line() {
    let (_directory, path) =
        file("listn = \"a\"\nping_ms = \"often\"\n\n[tls]\ncert_fiel = \"c\"\nlisten = \"b\"\n");
    let checked = check(&path);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    for (line, said) in [
        (1, "unknown key \"listn\": did you mean \"listen\"?"),
        (2, "ping_ms: expected 100 to 86400000, got the text \"often\""),
        (5, "unknown key \"cert_fiel\" in [tls]: did you mean \"cert_file\"?"),
        (6, "unknown key \"listen\" in [tls]: \"listen\" stands at the top level"),
    ] {
        let expected = format!("{}:{line}: {said}", path.display());
        assert!(checked.err.contains(&expected), "{expected}:\n{}", checked.err);
    }
    // What each key may be is good; how they go together is not.
    let (_directory, path) =
        file("proxy_protocol = true\n[tls]\nkey_file = \"k\"\n[auth.jwt]\nissuer = \"i\"\n");
    let checked = check(&path);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    for said in ["1: proxy_protocol", "3: tls.key_file", "auth.jwt.algorithms", "key_file or jwks_url"] {
        assert!(checked.err.contains(said), "{said}:\n{}", checked.err);
    }
    // Flags and environment are checked with it, and so are the files that it names.
    let (_directory, path) = file("[tls]\ncert_file = \"no-such-cert\"\nkey_file = \"no-such-key\"\n");
    let checked = config(&["check", path.to_str().unwrap(), "--listen", "0.0.0.0:0"], &[]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    for said in ["--listen: refusing", "2: tls.cert_file: cannot read no-such-cert", "3: tls.key_file"] {
        assert!(checked.err.contains(said), "{said}:\n{}", checked.err);
    }
    let checked = config(&["check"], &[("TASKYARD_PING_MS", "1"), ("TASKYARD_DRAIN_MS", "x")]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert!(checked.err.contains("TASKYARD_PING_MS: ") && checked.err.contains("TASKYARD_DRAIN_MS: "));
    let (_directory, path) = file("admin_token = \"x\"\n");
    assert!(check(&path).err.contains("TASKYARD_ADMIN_TOKEN"));
}

#[test]
fn a_public_listener_without_authentication_or_tls_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens.toml");
    let refused = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = command(&["serve", "--listen", "0.0.0.0:0", "--engine", "memory", "--tokens-file"]);
        let output = Output::of(command.arg(&tokens).args(arguments).envs(environment.iter().copied()));
        assert_eq!(output.code, Some(2), "{output:?}");
        output.err
    };
    let token = "taskyard token create operator --allow 'manage:*' --allow 'submit:*' --allow 'consume:*'";
    let (no_token, no_tls) = (refused(&["--behind-tls-proxy"], &[]), |err: &str| {
        assert!(err.contains("--tls-cert-file") && !err.contains(token), "{err}");
    });
    assert!(no_token.contains(token) && !no_token.contains("--tls-cert-file"), "{no_token}");
    assert!(no_token.contains(&format!("--tokens-file {}", tokens.display())), "{no_token}");
    no_tls(&refused(&[], &[("TASKYARD_ADMIN_TOKEN", "a-token-that-is-long-enough")]));
    let both = refused(&[], &[]);
    assert!(both.contains(token) && both.contains("--behind-tls-proxy"), "{both}");
    std::fs::write(&tokens, "").unwrap();
    assert!(refused(&["--behind-tls-proxy"], &[]).contains(token), "an empty file holds no token");
}

/// The status of an upgrade from a page of this origin.
fn status(broker: &Broker, origin: &str) -> u16 {
    let request = upgrade_request(broker.address, "/ws", &format!("Origin: {origin}\r\n"));
    handshake(broker.address, request.as_bytes()).0.status
}

fn reloads(broker: &Broker, result: &str) -> u64 {
    let metrics = broker.get("/metrics").text().to_owned();
    let name = format!("taskyard_config_reloads_total{{result=\"{result}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

#[test]
fn a_reload_reaches_new_connections_and_says_what_needs_a_restart() {
    let (_directory, path) = file("allow_origins = [\"https://a.example\"]\ndrain_ms = 1000\n");
    let broker =
        Broker::with(&["--engine", "memory", "--ping-ms", "4000", "--config", path.to_str().unwrap()]);
    let mut ws = broker.ws();
    assert_eq!(status(&broker, "https://a.example"), 101);
    assert_eq!(status(&broker, "https://b.example"), 403);

    let text = "allow_origins = [\"https://*.example\", \"https://*.b.example\"]\n";
    std::fs::write(&path, text).unwrap();
    broker.signal("HUP");
    assert!(broker.logged("allow_origins: expected").contains("ERROR"), "a top-level domain is refused");

    std::fs::write(&path, "allow_origins = [\"https://*.b.example\"]\ndrain_ms = 2000\nping_ms = 5000\n")
        .unwrap();
    broker.signal("HUP");
    broker.logged("reloaded allow_origins");
    assert!(broker.logged("drain_ms has changed").contains("WARN"));
    assert_eq!(status(&broker, "https://a.example"), 403);
    assert_eq!(status(&broker, "https://a.b.example"), 101);
    assert_eq!((reloads(&broker, "ok"), reloads(&broker, "failed")), (1, 1));

    // A flag wins over the file still, so that nothing has changed there; and who was connected stays.
    let welcome = ws.gets("welcome", json!({"type": "hello"}));
    assert_eq!(welcome["ping_ms"], 4000);
    std::fs::write(&path, "allow_origins = [\"https://*.b.example\"]\nping_ms = 6000\ndrain_ms = 1000\n")
        .unwrap();
    broker.signal("HUP");
    broker.logged("nothing in it has changed");
}

#[test]
fn a_bad_file_at_a_reload_changes_nothing() {
    let (_directory, path) = file("allow_origins = [\"https://a.example\"]\n");
    let broker = Broker::with(&["--engine", "memory", "--config", path.to_str().unwrap()]);
    std::fs::write(&path, "allow_origins = []\nlistn = 1\nping_ms = 1\n").unwrap();
    broker.signal("HUP");
    let line = broker.logged("is not reloaded");
    assert!(line.contains("ERROR") && line.contains("did you mean") && line.contains("ping_ms"), "{line}");
    assert_eq!(status(&broker, "https://a.example"), 101);
    std::fs::remove_file(&path).unwrap();
    broker.signal("HUP");
    until("the second failure to be counted", || (reloads(&broker, "failed") == 2).then_some(()));
    assert_eq!(status(&broker, "https://a.example"), 101);
    std::fs::write(&path, "allow_origins = []\n").unwrap();
    broker.signal("HUP");
    broker.logged("reloaded allow_origins");
    assert_eq!(status(&broker, "https://a.example"), 403);
}

#[test]
fn every_origin_is_allowed_only_with_a_warning_and_by_itself() {
    let broker = Broker::with(&["--engine", "memory", "--allow-origins", "*"]);
    assert!(broker.logged("any site").contains("WARN"));
    assert_eq!(status(&broker, "https://any.example"), 101);
    let checked = config(&["check", "--allow-origins", "*,https://a.example"], &[]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
}

/// A variable with a slip in its name went unnoticed, and the broker ran with the default.
#[test]
fn a_variable_that_nothing_reads_is_told() {
    let broker = Broker::with_environment(&[("TASKYARD_DATADIR", "/elsewhere")], &[]);
    assert!(broker.logged("did you mean TASKYARD_DATA_DIR?").contains("WARN"));

    let checked =
        config(&["check"], &[("TASKYARD_DATADIR", "/elsewhere"), ("TASKYARD_URL", "http://localhost:1")]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let told =
        "taskyard: warning: TASKYARD_DATADIR is set, and nothing reads it: did you mean TASKYARD_DATA_DIR?\n";
    assert_eq!(checked.err, told);
    assert_eq!(checked.out, "flags and environment are good; no file was named\n");
}

/// Limits are an account's, and nobody has one without authentication: they did nothing, and nothing said so.
#[test]
fn limits_that_limit_nobody_are_told() {
    let limits = ["--limits-queued-tasks", "5"];
    let broker = Broker::with(&[&["--engine", "memory"], &limits[..]].concat());
    assert!(broker.logged("[limits] are each account's").contains("WARN"));

    let checked = config(&[&["check"], &limits[..]].concat(), &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.err.contains("taskyard token create"), "{checked:?}");
    let checked = config(&[&["check"], &limits[..]].concat(), &[("TASKYARD_ADMIN_TOKEN", &"x".repeat(40))]);
    assert_eq!((checked.code, checked.err.as_str()), (Some(0), ""), "{checked:?}");
}
