//! What is in `grafana/` and what the broker shows are the same metrics; and the alerts do what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Broker, Output};
use crate::tls::metrics_over_tls;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana")
}

fn read(place: impl AsRef<Path>) -> String {
    let place = folder().join(place);
    std::fs::read_to_string(&place).unwrap_or_else(|error| panic!("{}: {error}", place.display()))
}

fn dashboards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(folder().join("dashboards")).unwrap().map(|entry| entry.unwrap().path());
    let parse = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let board = serde_json::from_str(&std::fs::read_to_string(&path).unwrap());
        (name, board.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    files.map(parse).collect()
}

fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// The metrics that a text names: words that begin as ours do, without what a histogram appends.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|word| word.starts_with("taskyard_") || word.starts_with("process_"))
        .map(|word| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        })
        .collect()
}

/// The metrics that there are.
fn shown() -> BTreeSet<String> {
    let broker = Broker::start();
    broker.submit("q", &json!({}));
    let plain = broker.get("/metrics").text().to_owned();
    let names = |text: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    names(&plain).union(&names(&metrics_over_tls())).cloned().collect()
}

/// What the panels ask, and what fills their variables.
fn asked(board: &Value) -> Vec<String> {
    let targets = panels(board).flat_map(|panel| panel["targets"].as_array().unwrap());
    let variables = board["templating"]["list"].as_array().unwrap().iter();
    let annotations = board["annotations"]["list"].as_array().unwrap().iter();
    targets
        .chain(annotations)
        .filter_map(|target| target["expr"].as_str())
        .chain(variables.filter_map(|variable| variable["query"]["query"].as_str()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn panels_and_alerts_use_metrics_that_there_are_and_no_metric_is_forgotten() {
    let shown = shown();
    let mut used = named(&read("alerts/taskyard.rules.yaml"));
    let in_rules_only = used.clone();
    for (name, board) in dashboards() {
        let asked: BTreeSet<String> = asked(&board).iter().flat_map(|expr| named(expr)).collect();
        let unknown: Vec<_> = asked.difference(&shown).collect();
        assert!(unknown.is_empty(), "{name} asks for what no broker shows: {unknown:?}");
        used.extend(asked);
    }
    let unknown: Vec<_> = in_rules_only.difference(&shown).collect();
    assert!(unknown.is_empty(), "the alerts ask for what no broker shows: {unknown:?}");
    let unknown: Vec<_> =
        named(&read("alerts/taskyard.rules.test.yaml")).difference(&shown).cloned().collect();
    assert!(unknown.is_empty(), "the tests of the alerts give what no broker shows: {unknown:?}");

    // The words of the table alone: the text may speak of others.
    let readme = read("README.md");
    let explained: BTreeSet<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .flat_map(named)
        .collect();
    let stale: Vec<_> = explained.difference(&shown).collect();
    assert!(stale.is_empty(), "README.md explains what no broker shows: {stale:?}");
    let forgotten: Vec<_> =
        shown.iter().filter(|name| !used.contains(*name) && !explained.contains(*name)).collect();
    assert!(forgotten.is_empty(), "in no panel and no alert, and not explained in README.md: {forgotten:?}");
}

#[test]
fn the_protocol_lists_every_metric() {
    let protocol =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proto/PROTOCOL.md")).unwrap();
    let section = protocol.split("\n### Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    assert_eq!(named(section), shown());
}

#[test]
fn each_panel_says_what_it_shows_and_in_which_unit() {
    let boards = dashboards();
    assert!(["overview.json", "queue.json", "internals.json"].iter().all(|name| boards.contains_key(*name)));
    let uids: BTreeSet<&str> = boards.values().map(|board| text(board, "uid")).collect();
    assert_eq!(uids.len(), boards.len(), "{uids:?}");
    for (name, board) in &boards {
        assert!(board["schemaVersion"].as_u64() >= Some(39), "{name} is older than Grafana 11");
        let variables: Vec<&str> = board["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| text(variable, "name"))
            .collect();
        assert!(variables.starts_with(&["datasource", "instance"]), "{name}: {variables:?}");
        let (mut ids, mut taken, mut titles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for panel in board["panels"].as_array().unwrap() {
            let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: an id stands twice in {panel}");
            assert!(at("x") + at("w") <= 24, "{name}: beyond the right end: {panel}");
            for (x, y) in
                (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
            {
                assert!(taken.insert((x, y)), "{name}: {} lies on another", text(panel, "title"));
            }
        }
        let mut count = 0;
        for panel in panels(board) {
            count += 1;
            let title = text(panel, "title");
            assert!(titles.insert(title), "{name}: two panels are called {title:?}");
            assert!(text(panel, "description").ends_with('.'), "{name}: {title}");
            assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{name}: {title}");
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
                let chart = panel["type"] == "timeseries";
                assert!(!chart || !text(target, "legendFormat").is_empty(), "{name}: {title}");
                let expr = text(target, "expr");
                assert!(expr.contains("$instance"), "{name}: {title} is of one broker too: {expr}");
                assert_eq!(expr.contains("$queue"), name == "queue.json", "{name}: {title}: {expr}");
            }
        }
        assert!(count > 10, "{name}");
    }
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    let present =
        Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if present.is_err() {
        eprintln!("SKIPPED: promtool is not installed: on Debian, apt-get install prometheus");
        return;
    }
    for arguments in
        [["check", "rules", "taskyard.rules.yaml"], ["test", "rules", "taskyard.rules.test.yaml"]]
    {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(folder().join("alerts"));
        let output = Output::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        assert_eq!(output.code, Some(0), "{arguments:?}: {}{}", output.out, output.err);
    }
    // Each alert is one that a test names.
    let (rules, tests) = (read("alerts/taskyard.rules.yaml"), read("alerts/taskyard.rules.test.yaml"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(tests.matches(alert).count() >= 2, "{alert} is tested when it is to be silent, and when not");
    }
}
