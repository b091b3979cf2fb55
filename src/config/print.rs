//! The configuration as a file that says what each key is for.

use super::keys::{KEYS, Key, Kind, SECTIONS};
use super::{ADMIN_TOKEN, Value, Values};

/// How wide comments get.
const WIDTH: usize = 100;

const HEAD: &str = "Taskyard's configuration, for `taskyard serve --config FILE`. Each key may also be given as a flag or \
                    in the environment, where one is named. Flags win over the environment, that over this file, \
                    that over the defaults. `taskyard config check FILE` finds what is wrong. SIGHUP makes a broker read \
                    it again: keys with \"Reload: yes\" take effect at once, the others at the next start.";

/// The configuration that `values` give, with where each is from; its secrets are not shown.
pub fn effective(values: &Values) -> String {
    file(Some(values))
}

/// A file with every key, and all of them left to their defaults.
pub fn template() -> String {
    file(None)
}

fn file(values: Option<&Values>) -> String {
    let mut text = String::new();
    comment(&mut text, HEAD);
    text.push_str("#\n");
    let secret = match values.map(|values| values.admin_token.is_some()) {
        None => "",
        Some(true) => " It is set.",
        Some(false) => " It is not set.",
    };
    comment(
        &mut text,
        &format!("{ADMIN_TOKEN}, a token that may do all, is given in the environment alone.{secret}"),
    );
    for section in SECTIONS {
        if !section.name.is_empty() {
            text.push('\n');
            comment(&mut text, section.doc);
            text.push_str(&format!("[{}]\n", section.name));
        }
        // A default that is written out would turn such a section on.
        let off = section.optional && values.is_none_or(|values| !values.any(section.name));
        for key in KEYS.iter().filter(|key| key.section() == section.name) {
            text.push('\n');
            entry(&mut text, key, values, off);
        }
    }
    text
}

fn entry(text: &mut String, key: &Key, values: Option<&Values>, off: bool) {
    comment(text, key.doc);
    let default = match key.default.map(|default| Value::parse(&key.kind, default)) {
        Some(Ok(value)) if key.default_words == "none" => toml(&value),
        _ => key.default_words.to_owned(),
    };
    let kind = match key.kind {
        Kind::Number { .. } => format!("A number, {}", key.kind),
        _ => {
            let kind = key.kind.to_string();
            kind[..1].to_uppercase() + &kind[1..]
        }
    };
    let reload = if key.reload { "yes" } else { "no" };
    comment(text, &format!("{kind}. Default: {default}. Reload: {reload}."));
    if let (Some(flag), Some(variable)) = (key.flag, key.variable()) {
        comment(text, &format!("--{flag}, {variable}"));
    }
    let stands = values.and_then(|values| values.get(key.name)).filter(|_| !off);
    if let Some(values) = values {
        let from = match values.given(key.name) {
            Some((_, source)) => format!("From: {}", source.place(key)),
            None if stands.is_some() || key.name == "tokens_file" => "From: the default".to_owned(),
            None => "Not given: the line below is an example".to_owned(),
        };
        comment(text, &from);
    }
    let (mark, value) = match stands {
        Some(value) => ("", value),
        None => ("#", shown(key, values)),
    };
    text.push_str(&format!("{mark}{} = {}\n", key.short(), toml(&value)));
}

/// The value to show for a key that has none: what it defaults to, or an example.
fn shown(key: &Key, values: Option<&Values>) -> Value {
    if key.name == "tokens_file" {
        let values = values.cloned().unwrap_or_default();
        let Some(Value::Text(data_dir)) = values.get("data_dir") else {
            unreachable!("it has a default, and is text by the table")
        };
        return Value::Text(format!("{}/tokens.toml", data_dir.trim_end_matches('/')));
    }
    // An example of a list says more than an empty one.
    let text = if key.example.is_empty() { key.default.unwrap_or_default() } else { key.example };
    Value::parse(&key.kind, text).expect("the table's texts are tested")
}

/// Adds a comment, wrapped.
fn comment(text: &mut String, words: &str) {
    let mut width = 0;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if width == 0 || width + 1 + length > WIDTH {
            text.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        text.push(' ');
        text.push_str(word);
        width += 1 + length;
    }
    text.push('\n');
}

fn toml(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Number(number) => number.to_string(),
        Value::Switch(switch) => switch.to_string(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control.is_control() => out.push_str(&format!("\\U{:08X}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Secret, Source};
    use super::*;

    fn read(text: &str) -> Values {
        let mut problems = Vec::new();
        let values = Values::of_text("f", text, &mut problems);
        assert_eq!(problems, [], "{text}");
        values
    }

    #[test]
    fn what_is_printed_is_read_as_the_same() {
        let values = read(
            "listen = \"127.0.0.1:1\"\ndata_dir = \"a \\\"b\\\\\\u0001\"\nallow_origins = [\"https://a.example\", \"*\"]\n\
             [auth.jwt]\nalgorithms = [\"EdDSA\"]\nkey_file = \"k\"\n[limits]\nconnections = 5",
        );
        let printed = effective(&values);
        let again = read(&printed);
        for key in KEYS {
            assert_eq!(again.get(key.name), values.get(key.name), "{}", key.name);
        }
        assert!(printed.contains("# From: f:1\nlisten ="), "{printed}");
        assert!(printed.contains("# From: the default\nping_ms = 25000\n"), "{printed}");
        let mut problems = Vec::new();
        let nothing = effective(&Values::default());
        let again = Values::of_text("f", &nothing, &mut problems).resolve().unwrap();
        assert_eq!((again.tls, again.jwt), (None, None), "an example turns nothing on");
    }

    #[test]
    fn the_template_leaves_everything_to_its_default_and_shows_every_key() {
        let template = template();
        assert_eq!(read(&template), Values::default());
        let shown =
            template.lines().filter(|line| line.starts_with('#') && !line.starts_with("# ") && *line != "#");
        let shown: Vec<&str> = shown.map(|line| line[1..].split(' ').next().unwrap()).collect();
        assert_eq!(shown, KEYS.iter().map(Key::short).collect::<Vec<_>>());
        // Taken out of its comment, each is a value that the key takes.
        let (mut section, mut lines) = (String::new(), 0);
        for line in template.lines() {
            if line.starts_with('[') {
                section = line.to_owned();
            } else if line.starts_with('#') && !line.starts_with("# ") && line != "#" {
                read(&format!("{section}\n{}", &line[1..]));
                lines += 1;
            }
        }
        assert_eq!(lines, KEYS.len());
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut values = Values::default();
        values.set("ping_ms", "200", Source::Environment).unwrap();
        assert!(effective(&values).contains("It is not set."));
        values.admin_token = Some(Secret::new("hidden-it-is"));
        let text = effective(&values);
        assert!(text.contains("It is set.") && !text.contains("hidden-it-is"), "{text}");
        assert!(text.contains("# From: TASKYARD_PING_MS\nping_ms = 200\n"), "{text}");
    }
}
