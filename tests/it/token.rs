//! `taskyard token`: tokens are made, listed and revoked in a file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Child, Output, command};

struct Tokens {
    directory: TempDir,
}

impl Tokens {
    fn new() -> Tokens {
        Tokens { directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("data/tokens.toml")
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command(&["token"]);
        command.args(arguments);
        command.env("TASKYARD_DATA_DIR", self.directory.path().join("data"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Output::of(&mut self.command(arguments))
    }

    /// Creates a token; what is printed is the token and nothing else.
    fn create(&self, arguments: &[&str]) -> String {
        let output = Output::of(self.command(&["create"]).args(arguments));
        assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{output:?}");
        let token = output.out.strip_suffix('\n').unwrap().to_owned();
        let parts: Vec<&str> = token.split('_').collect();
        assert!(
            matches!(parts[..], ["ty", id, secret] if id.len() == 8 && secret.len() == 43
                && token.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())),
            "{token}"
        );
        token
    }

    fn list(&self) -> Value {
        let output = self.run(&["list", "--output", "json"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        let value: Value = serde_json::from_str(&output.out).unwrap();
        value["tokens"].clone()
    }

    fn fails(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{arguments:?}: {output:?}");
        for word in words {
            assert!(output.err.contains(word), "{arguments:?}: {output:?}");
        }
    }
}

#[test]
fn tokens_are_created_listed_and_revoked() {
    let tokens = Tokens::new();
    let empty = tokens.run(&["list"]);
    assert!(empty.code == Some(0) && empty.out.contains("no tokens"), "{empty:?}");
    assert!(!tokens.file().exists(), "looking makes nothing");
    assert_eq!(tokens.list(), json!([]));

    let ci = tokens.create(&["ci", "--allow", "submit:emails*", "--allow", "consume:emails"]);
    let mode = || std::fs::metadata(tokens.file()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let limits = [
        "--messages-per-s",
        "100",
        "--connections",
        "5",
        "--queued-tasks",
        "1000",
        "--queued-bytes",
        "1048576",
    ];
    let ops = tokens.create(&[&["ops", "--allow", "manage:*", "--expires", "90d"], &limits[..]].concat());
    assert_ne!(ci, ops);
    assert_eq!(mode(), 0o600);

    let text = std::fs::read_to_string(tokens.file()).unwrap();
    for token in [&ci, &ops] {
        assert!(!text.contains(&token[12..]), "the file holds a secret");
    }
    let list = tokens.list();
    assert_eq!(list.as_array().unwrap().len(), 2, "the second keeps the first");
    assert_eq!((&list[0]["name"], &list[0]["id"]), (&json!("ci"), &json!(ci[3..11])));
    assert_eq!(
        (&list[0]["allow"], &list[0]["expires"]),
        (&json!(["submit:emails*", "consume:emails"]), &json!(null))
    );
    assert_eq!(list[0]["limits"]["connections"], json!(null));
    let expected =
        json!({"messages_per_s": 100, "connections": 5, "queued_tasks": 1000, "queued_bytes": 1_048_576});
    assert_eq!(list[1]["limits"], expected);
    assert!(list[1]["expires"].as_str().unwrap() > list[1]["created"].as_str().unwrap());
    let table = tokens.run(&["list"]).out;
    for word in ["NAME", "EXPIRES", "ci", "never", "submit:emails* consume:emails", "connections=5"] {
        assert!(table.contains(word), "{word}:\n{table}");
    }

    let revoked = tokens.run(&["revoke", "ci"]);
    assert_eq!((revoked.code, revoked.out.as_str(), revoked.err.as_str()), (Some(0), "", ""), "{revoked:?}");
    assert_eq!(tokens.list().as_array().unwrap().len(), 1);
    tokens.fails(&["revoke", "ci"], &["\"ci\"", "token list"]);
    let last = tokens.run(&["revoke", "ops"]);
    assert!(last.code == Some(0) && last.err.contains("last token"), "{last:?}");
    assert_eq!(tokens.list(), json!([]));
}

#[test]
fn what_cannot_be_a_token_is_bad_usage_and_says_why() {
    let tokens = Tokens::new();
    tokens.fails(&["create", "ci"], &["--allow", "taskyard token create ci"]);
    tokens.fails(&["create", "ci", "--allow", "emails"], &["emails", "ACTION:NAME"]);
    tokens.fails(&["create", "ci", "--allow", "read:emails"], &["submit, consume, observe or manage"]);
    tokens.fails(&["create", "ci", "--allow", "submit:*", "--allow", "submit:*s"], &["submit:*s", "last"]);
    tokens.fails(&["create", "a b", "--allow", "submit:*"], &["a b", "letters"]);
    tokens.fails(&["create", "admin", "--allow", "submit:*"], &["another name"]);
    tokens.fails(&["create", "ci", "--allow", "submit:*", "--expires", "soon"], &["90d"]);
    tokens.fails(&["create", "ci", "--allow", "submit:*", "--expires", "9999999d"], &["9999"]);
    tokens.fails(&["create", "ci", "--allow", "submit:*", "--connections", "0"], &["1.."]);
    assert!(!tokens.file().exists());

    tokens.create(&["ci", "--allow", "submit:*"]);
    let before = std::fs::read(tokens.file()).unwrap();
    tokens.fails(&["create", "ci", "--allow", "observe:*"], &["\"ci\"", "token revoke ci"]);
    assert_eq!(std::fs::read(tokens.file()).unwrap(), before);
    std::fs::write(tokens.file(), "[[token]]\nname = \"x\"\n").unwrap();
    tokens.fails(&["create", "y", "--allow", "observe:*"], &["tokens.toml", "\"x\"", "\"id\""]);
    tokens.fails(&["list"], &["tokens.toml"]);
}

#[test]
fn the_file_can_be_another_one() {
    let tokens = Tokens::new();
    let other = tokens.directory.path().join("other.toml");
    tokens.create(&["flag", "--allow", "submit:*", "--tokens-file", other.to_str().unwrap()]);
    let output = Output::of(
        tokens.command(&["create", "variable", "--allow", "submit:*"]).env("TASKYARD_TOKENS_FILE", &other),
    );
    assert_eq!(output.code, Some(0), "{output:?}");
    let listed = tokens.run(&["list", "--tokens-file", other.to_str().unwrap()]);
    assert!(listed.out.contains("flag") && listed.out.contains("variable"), "{listed:?}");
    assert!(!tokens.file().exists());
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
    let warned = tokens.run(&["list", "--tokens-file", other.to_str().unwrap()]);
    assert!(warned.code == Some(0) && warned.err.contains("chmod 600"), "{warned:?}");

    // A mistyped directory is not made.
    let nowhere = tokens.directory.path().join("nowhere/tokens.toml");
    let output =
        tokens.run(&["create", "x", "--allow", "submit:*", "--tokens-file", nowhere.to_str().unwrap()]);
    assert!(output.code == Some(1) && output.err.contains("nowhere"), "{output:?}");
}

#[test]
fn tokens_that_are_created_at_once_all_survive() {
    let tokens = Tokens::new();
    let names: Vec<String> = (0..8).map(|nth| format!("t{nth}")).collect();
    let children: Vec<Child> = names
        .iter()
        .map(|name| Child::of(&mut tokens.command(&["create", name, "--allow", "submit:*"])))
        .collect();
    for child in children {
        let output = child.output();
        assert_eq!(output.code, Some(0), "{output:?}");
    }
    let list = tokens.list();
    let mut found: Vec<&str> =
        list.as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, names);
}
