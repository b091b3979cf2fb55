//! Variables that look as if they were for the broker, and are not.

use super::keys::{KEYS, Key};
use super::options::{ADMIN_TOKEN, is_near};

const PREFIX: &str = "TASKYARD_";

/// What is no key's: for commands, for those whom `taskyard work` starts, and for this project's tests.
const OTHERS: &[&str] = &[
    ADMIN_TOKEN,
    "TASKYARD_CONFIG",
    "TASKYARD_URL",
    "TASKYARD_TOKEN",
    "TASKYARD_CA_FILE",
    "TASKYARD_CLIENT_CERT_FILE",
    "TASKYARD_CLIENT_KEY_FILE",
    "TASKYARD_TASK",
    "TASKYARD_QUEUE",
    "TASKYARD_ATTEMPT",
    "TASKYARD_REDELIVERED",
];

/// What to say of each of the environment's variables that nobody reads: most are a slip, and would go unnoticed.
pub fn unknown_variables() -> Vec<String> {
    unknown(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

/// The same, of these.
pub(crate) fn unknown(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut unknown: Vec<String> = names
        .into_iter()
        .filter(|name| name.starts_with(PREFIX) && !is_known(name) && !is_of_kubernetes(name))
        .collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| describe(name)).collect()
}

fn is_known(name: &str) -> bool {
    OTHERS.contains(&name) || KEYS.iter().any(|key| key.variable().is_some_and(|known| known == name))
}

/// Kubernetes tells each container of every service beside it, and one may be called `taskyard`, or `taskyard-…`:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_<name>`, `…_PORT`, `…_PORT_<number>_<protocol>…`.
fn is_of_kubernetes(name: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP"))
}

fn describe(name: &str) -> String {
    let what = format!("{name} is set, and nothing reads it");
    let word = name[PREFIX.len()..].to_ascii_lowercase();
    // As the whole name of a key that stands in a file alone: `[section] key` is `section.key`.
    let of_file = |key: &&Key| key.variable().is_none() && key.name.replace('.', "_") == word;
    if let Some(key) = KEYS.iter().find(of_file) {
        return format!("{what}: {} is given in the configuration file alone", key.name);
    }
    let known = KEYS.iter().filter_map(Key::variable).chain(OTHERS.iter().map(|other| (*other).to_owned()));
    // Without the prefix, which is the same for all.
    let near =
        known.filter_map(|known| Some((is_near(&known[PREFIX.len()..], &name[PREFIX.len()..])?, known)));
    match near.min() {
        Some((_, known)) => format!("{what}: did you mean {known}?"),
        None => format!("{what}: `taskyard serve --help` names those that it reads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<String> {
        unknown(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_slip_is_told() {
        assert_eq!(
            of(&["TASKYARD_PING_MSS", "TASKYARD_DATADIR"]),
            [
                "TASKYARD_DATADIR is set, and nothing reads it: did you mean TASKYARD_DATA_DIR?",
                "TASKYARD_PING_MSS is set, and nothing reads it: did you mean TASKYARD_PING_MS?",
            ]
        );
        assert_eq!(
            of(&["TASKYARD_COLOUR_OF_THE_SKY"]),
            [
                "TASKYARD_COLOUR_OF_THE_SKY is set, and nothing reads it: `taskyard serve --help` names those that it reads"
            ]
        );
    }

    #[test]
    fn a_key_that_has_no_variable_is_sent_to_the_file() {
        let key = KEYS.iter().find(|key| key.variable().is_none()).unwrap();
        let name = format!("TASKYARD_{}", key.name.replace('.', "_").to_ascii_uppercase());
        let told = format!(
            "{name} is set, and nothing reads it: {} is given in the configuration file alone",
            key.name
        );
        assert_eq!(of(&[&name]), [told]);
    }

    #[test]
    fn what_somebody_reads_or_others_set_is_not() {
        let every = KEYS.iter().filter_map(Key::variable);
        assert_eq!(unknown(every), [""; 0]);
        let others = [
            "PATH",
            "TASKYARDS_LISTEN",
            "TASKYARD_TOKEN",
            "TASKYARD_SERVICE_HOST",
            "TASKYARD_SERVICE_PORT_HTTP",
            "TASKYARD_PORT",
            "TASKYARD_PORT_7070_TCP_ADDR",
            "TASKYARD_UI_SERVICE_PORT",
        ];
        assert_eq!(of(&others), [""; 0]);
    }
}
