//! The guides and the README, as a newcomer follows them: every command in them is run, and does what it says.
//!
//! A guide is a session in one shell. Its blocks of `sh`, `js` and `python` run in turn, against a broker of their own
//! in the place of localhost:7070; a section (`##`) with a `taskyard serve` in it brings its own. A block of `text` right
//! behind one of them is what it prints: `…` stands for anything, alone on a line for any lines, and any task's id for
//! every other. A block of `toml` is a configuration, and is checked as one. A comment before a block says what else
//! there is to know:
//!
//! - `<!-- runs on -->`: it does not end by itself, and goes on beside the rest of its section, which begins when the
//!   first line that it is to print is there.
//! - `<!-- fails -->`: its last command does, and is meant to.
//! - `<!-- not run: WHY -->`: with a reason.
//!
//! A section that needs a program which this machine has not is skipped as a whole, loudly.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Broker, Output, command};

/// How long a block may take. A block is a few commands.
const BLOCK: Duration = Duration::from_secs(60);

/// The programs that a guide may call, beside those of every system; for each what fails where it is of no use.
const PROGRAMS: &[(&str, &[&str])] = &[
    // 7.82 or later.
    ("curl", &["--json", "{}", "--version"]),
    ("node", &["--version"]),
    ("openssl", &["version"]),
    ("python3", &["-c", "import websockets.asyncio.client"]),
];

/// A test for each guide, so that they run beside each other and fail by name.
macro_rules! guides {
    ($($name:ident: $file:literal,)*) => {
        const GUIDES: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $name() {
                follow($file);
            }
        )*
    };
}

guides! {
    readme: "README.md",
    run_it: "docs/run-it.md",
    write_a_worker: "docs/write-a-worker.md",
    write_a_producer: "docs/write-a-producer.md",
    retries: "docs/retries.md",
    broadcast: "docs/broadcast.md",
    browser: "docs/browser.md",
    secure_it: "docs/secure-it.md",
    watch_it: "docs/watch-it.md",
    operate_it: "docs/operate-it.md",
    troubleshoot: "docs/troubleshoot.md",
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Shell,
    JavaScript,
    Python,
    /// A configuration file.
    Toml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    RunsOn,
    Fails,
    NotRun,
}

#[derive(Debug)]
struct Block {
    language: Language,
    text: String,
    line: usize,
    mark: Option<Mark>,
    expected: Option<String>,
}

#[derive(Debug, Default)]
struct Section {
    blocks: Vec<Block>,
}

impl Section {
    fn brings_its_broker(&self) -> bool {
        self.run().any(|block| block.text.contains("taskyard serve"))
    }

    /// The blocks that are run.
    fn run(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(|block| block.mark != Some(Mark::NotRun))
    }

    /// A program that it needs and this machine has not.
    fn misses(&self) -> Option<&'static str> {
        let needs = |program: &str| {
            self.run().any(|block| match block.language {
                Language::Shell => {
                    block.text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == program)
                }
                Language::JavaScript => program == "node",
                Language::Python => program == "python3",
                Language::Toml => false,
            })
        };
        static MISSING: LazyLock<Vec<&str>> = LazyLock::new(|| {
            let mut missing: Vec<&str> =
                PROGRAMS.iter().filter(|(name, probe)| !works(name, probe)).map(|(name, _)| *name).collect();
            if node_with_sockets().is_none() && !missing.contains(&"node") {
                missing.push("node");
            }
            missing
        });
        MISSING.iter().copied().find(|program| needs(program))
    }
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// How Node is started so that it has a WebSocket, as browsers do: since 22 it has.
fn node_with_sockets() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&[], &["--experimental-websocket"]];
    let probe = "process.exit(typeof WebSocket === 'undefined' ? 1 : 0)";
    ways.into_iter().find(|way| works("node", &[way, &["-e", probe][..]].concat()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sections of a guide. A block that this test does not know what to do with is an error.
fn read(file: &str) -> Vec<Section> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let mut sections = vec![Section::default()];
    let (mut mark, mut expects) = (None, false);
    let mut lines = text.lines().enumerate();
    while let Some((nth, line)) = lines.next() {
        let place = format!("{file}:{}", nth + 1);
        if line.starts_with("## ") {
            sections.push(Section::default());
        }
        let Some(fence) = line.trim_start().strip_prefix("```") else {
            if let Some(comment) = line.strip_prefix("<!-- ") {
                mark = Some(read_mark(comment.strip_suffix(" -->").unwrap_or(comment), &place));
            } else if !line.is_empty() {
                assert!(mark.is_none(), "{place}: a mark stands right before its block");
            }
            expects &= line.is_empty();
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let mut text = String::new();
        loop {
            let (_, line) = lines.next().unwrap_or_else(|| panic!("{place}: this block has no end"));
            if line.trim() == "```" {
                break;
            }
            writeln!(text, "{}", line.get(indent..).unwrap_or_default()).unwrap();
        }
        let blocks = &mut sections.last_mut().expect("there is a first one").blocks;
        let language = match fence {
            "sh" => Language::Shell,
            "js" => Language::JavaScript,
            "python" => Language::Python,
            "toml" => Language::Toml,
            "text" => {
                if expects {
                    blocks.last_mut().expect("it stands behind a block").expected = Some(text);
                }
                expects = false;
                continue;
            }
            "json" | "html" | "yaml" | "rust" => {
                expects = false;
                continue;
            }
            other => {
                panic!("{place}: is {other:?} run or not? Say sh, js, python, toml, text, json, html or yaml")
            }
        };
        blocks.push(Block { language, text, line: nth + 1, mark: mark.take(), expected: None });
        expects = true;
    }
    sections
}

fn read_mark(comment: &str, place: &str) -> Mark {
    match comment.split_once(": ") {
        Some(("not run", why)) if !why.trim().is_empty() => Mark::NotRun,
        None if comment == "runs on" => Mark::RunsOn,
        None if comment == "fails" => Mark::Fails,
        _ => panic!("{place}: {comment:?} is no mark: `runs on`, `fails` or `not run: WHY`"),
    }
}

/// Goes through a guide.
fn follow(file: &str) {
    if !works("bash", &["--version"]) {
        eprintln!("SKIPPED: {file} is not tested: this machine has no bash");
        return;
    }
    let mut session = Session::start(file);
    let mut broker: Option<Broker> = None;
    for section in read(file) {
        let Some(first) = section.run().next() else { continue };
        if let Some(program) = section.misses() {
            eprintln!(
                "SKIPPED: {file}:{} ff.: this machine has no {program} that is good for it",
                first.line
            );
            continue;
        }
        let port = match section.brings_its_broker() {
            true => free_port(),
            false => broker.get_or_insert_with(Broker::start).address.port(),
        };
        session.go_through(&section, port);
    }
}

/// A port that is free, and that the system gives to nobody who asks for just any.
fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    // At random: others look for one at the same moment.
    std::iter::repeat_with(|| rand::random_range(20_000..32_000))
        .find(free)
        .expect("it looks until there is one")
}

/// The shell that a guide is followed in.
struct Session {
    file: String,
    shell: Child,
    input: ChildStdin,
    directory: TempDir,
    steps: usize,
}

/// A block that goes on.
struct Beside<'a> {
    block: &'a Block,
    output: PathBuf,
    group: String,
}

impl Session {
    fn start(file: &str) -> Session {
        let directory = tempfile::tempdir().unwrap();
        let programs = directory.path().join("bin");
        fs::create_dir(&programs).unwrap();
        fs::create_dir(directory.path().join("here")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_taskyard"), programs.join("taskyard")).unwrap();
        let mut path = programs.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell.args(["--noprofile", "--norc"]).current_dir(directory.path().join("here")).env("PATH", path);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("TASKYARD_")) {
            shell.env_remove(key);
        }
        let log = File::create(directory.path().join("shell.log")).unwrap();
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut shell = shell.spawn().unwrap();
        let input = shell.stdin.take().unwrap();
        let mut session = Session { file: file.into(), shell, input, directory, steps: 0 };
        // What goes on in the background is a group, so that it can be ended as a whole.
        session.say("set -m -o pipefail");
        session
    }

    fn say(&mut self, line: &str) {
        // A shell that has ended is noticed where its answer is waited for.
        let _ = writeln!(self.input, "{line}");
    }

    fn go_through(&mut self, section: &Section, port: u16) {
        self.say(&format!("export TASKYARD_URL=http://localhost:{port} TASKYARD_LISTEN=127.0.0.1:{port}"));
        let mut beside: Vec<Beside<'_>> = Vec::new();
        for block in section.run() {
            match block.language {
                Language::Toml => self.check_configuration(block),
                _ if block.mark == Some(Mark::RunsOn) => beside.push(self.run_beside(block, port)),
                _ => self.run(block, port),
            }
        }
        for Beside { block, output, .. } in &beside {
            let Some(expected) = &block.expected else { continue };
            let said = || shown(&fs::read_to_string(output).unwrap(), port);
            let place = self.place(block);
            let came = self.wait(|| fits(expected, &said()).then_some(()));
            assert!(came.is_some(), "{place} says\n{}\nand not\n{expected}", said());
        }
        while let Some(Beside { block, group, .. }) = beside.pop() {
            let place = self.place(block);
            kill("TERM", &group);
            let ended = self.wait(|| (!kill("0", &group)).then_some(()));
            assert!(ended.is_some(), "{place} does not end when it is asked to");
        }
    }

    fn place(&self, block: &Block) -> String {
        format!("{}:{}", self.file, block.line)
    }

    /// The command that runs a block, and the file of what it prints.
    fn prepare(&mut self, block: &Block, port: u16) -> (String, PathBuf) {
        self.steps += 1;
        let (suffix, run) = match block.language {
            Language::Shell => ("sh", "set -e; .".to_owned()),
            Language::JavaScript => {
                ("mjs", format!("set -e; node --no-warnings {}", node_with_sockets().unwrap().join(" ")))
            }
            Language::Python => ("py", "set -e; python3".to_owned()),
            Language::Toml => unreachable!("it is not run"),
        };
        let script = self.directory.path().join(format!("step{}.{suffix}", self.steps));
        let text = block.text.replace("localhost:7070", &format!("localhost:{port}"));
        fs::write(&script, text.replace("127.0.0.1:7070", &format!("127.0.0.1:{port}"))).unwrap();
        let output = self.directory.path().join(format!("step{}.out", self.steps));
        (format!("{run} {}", script.display()), output)
    }

    fn run(&mut self, block: &Block, port: u16) {
        let (command, output) = self.prepare(block, port);
        let done = output.with_extension("code");
        let out = output.display();
        // Outside of a subshell, so that the variables it sets are there for the next.
        let run = match block.mark {
            Some(Mark::Fails) => format!("({command}) >{out} 2>&1 </dev/null"),
            _ => format!("{{ {command}; }} >{out} 2>&1 </dev/null; set +e"),
        };
        self.say(&format!("{run}; echo $? >{out}.code; mv {out}.code {}", done.display()));
        let code = self.wait(|| fs::read_to_string(&done).ok());
        let said = shown(&fs::read_to_string(&output).unwrap_or_default(), port);
        let place = self.place(block);
        let code = code.unwrap_or_else(|| panic!("{place} failed, or did not end:\n{}\n{said}", block.text));
        if block.mark == Some(Mark::Fails) {
            assert_ne!(code.trim(), "0", "{place} does not fail:\n{said}");
        }
        if let Some(expected) = &block.expected {
            assert!(fits(expected, &said), "{place} says\n{said}\nand not\n{expected}");
        }
    }

    fn run_beside<'a>(&mut self, block: &'a Block, port: u16) -> Beside<'a> {
        let (command, output) = self.prepare(block, port);
        let id = output.with_extension("pid");
        let (out, temporary) = (output.display(), id.with_extension("tmp"));
        self.say(&format!("({command}) >{out} 2>&1 </dev/null &"));
        self.say(&format!("echo $! >{}; mv {} {}", temporary.display(), temporary.display(), id.display()));
        let place = self.place(block);
        let group = self.wait(|| fs::read_to_string(&id).ok()).unwrap_or_else(|| panic!("{place}: no shell"));
        if block.text.contains("taskyard serve") {
            let listens = || fs::read_to_string(&output).unwrap_or_default().contains("listening on");
            let began = self.wait(|| listens().then_some(()));
            assert!(began.is_some(), "{place} did not start:\n{}", fs::read_to_string(&output).unwrap());
        }
        if let Some(first) = block.expected.as_ref().and_then(|expected| expected.lines().next()) {
            let said = || shown(&fs::read_to_string(&output).unwrap_or_default(), port);
            let began =
                self.wait(|| said().lines().next().is_some_and(|line| fits(first, line)).then_some(()));
            assert!(began.is_some(), "{place} says\n{}\nand not at first\n{first}", said());
        }
        Beside { block, output, group: group.trim().to_owned() }
    }

    fn check_configuration(&self, block: &Block) {
        let file = self.directory.path().join("checked.toml");
        fs::write(&file, &block.text).unwrap();
        let mut command = command(&["config", "check"]);
        let output = Output::of(command.arg(&file).current_dir(self.directory.path().join("here")));
        // Files that it names are those of whoever reads it.
        let only_files = output.err.lines().all(|line| line.contains("cannot read /"));
        assert!(output.code == Some(0) || only_files, "{}: {output:?}", self.place(block));
    }

    /// Waits for something, as long as the shell lives and a block may take.
    fn wait<T>(&mut self, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
        let began = Instant::now();
        loop {
            let ended = self.shell.try_wait().unwrap().is_some();
            if let Some(found) = probe() {
                return Some(found);
            }
            if ended || began.elapsed() > BLOCK {
                return None;
            }
            #[expect(clippy::disallowed_methods, reason = "only asked about, never told")]
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever a failed test has left: each block that goes on has told its number.
        let steps = (1..=self.steps).map(|step| self.directory.path().join(format!("step{step}.pid")));
        for group in steps.filter_map(|file| fs::read_to_string(file).ok()) {
            kill("KILL", group.trim());
        }
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Sends a signal to a group of processes; whether there is one.
fn kill(signal: &str, group: &str) -> bool {
    let mut command = Command::new("kill");
    command.args(["-s", signal, "--", &format!("-{group}")]).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// What a command has printed, as a guide shows it.
fn shown(text: &str, port: u16) -> String {
    text.replace(&format!(":{port}"), ":7070")
}

/// Whether a text is what a guide says that it is: see the top of this file.
fn fits(expected: &str, text: &str) -> bool {
    // Tables are as wide as what stands in them.
    let lines = |text: &str| -> Vec<String> {
        let line = |line: &str| any_task(&line.split_whitespace().collect::<Vec<_>>().join(" "));
        text.lines().map(line).filter(|line| !line.is_empty()).collect()
    };
    matches(&lines(expected), &lines(text), &|line| line == "…", &|expected, line| {
        let pieces: Vec<char> = expected.chars().collect();
        matches(&pieces, &line.chars().collect::<Vec<_>>(), &|c| *c == '…', &|a, b| a == b)
    })
}

/// Whether `items` are what `pattern` says, in which some stand for any number of items.
fn matches<T>(pattern: &[T], items: &[T], any: &impl Fn(&T) -> bool, same: &impl Fn(&T, &T) -> bool) -> bool {
    // Where to go on if it does not fit: behind the last that stands for any, and one item further.
    let (mut at, mut item, mut again) = (0, 0, None);
    while item < items.len() {
        if pattern.get(at).is_some_and(any) {
            again = Some((at, item));
            at += 1;
        } else if pattern.get(at).is_some_and(|pattern| same(pattern, &items[item])) {
            (at, item) = (at + 1, item + 1);
        } else if let Some((from, tried)) = again {
            again = Some((from, tried + 1));
            (at, item) = (from + 1, tried + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(any)
}

/// The line with one id in the place of every task's.
fn any_task(line: &str) -> String {
    const LENGTH: usize = 36;
    let is_task = |bytes: &[u8]| {
        bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let (mut told, mut rest) = (String::new(), line);
    while let Some(next) = rest.chars().next() {
        if rest.as_bytes().get(..LENGTH).is_some_and(is_task) {
            told.push_str("TASK");
            rest = &rest[LENGTH..];
        } else {
            told.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    told
}

#[test]
fn what_a_guide_shows_is_compared_as_it_says() {
    assert!(fits("a  …\n", "a b c\n") && fits("…", "a\nb\n") && fits("a\n…\nz", "a\nb\nc\nz"));
    assert!(fits("…\nz", "z") && fits("a … c … e", "a b c d e") && fits("x…", "x"));
    assert!(!fits("a", "a\nb") && !fits("a\n…\nz", "a\nz\nb") && !fits("a … c", "a b d") && !fits("a", ""));
    let (one, other) = ("0198c0de-0000-7000-8000-000000000001", "0199c0de-aaaa-7bbb-8ccc-00000000dddd");
    assert!(fits(&format!("task {one} is done"), &format!("task {other} is done")));
    assert!(!fits(one, &other[1..]));
}

#[test]
fn every_guide_is_followed_and_little_is_left_out() {
    let mut there: Vec<String> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md") && name != "docs/README.md")
        .collect();
    there.push("README.md".into());
    there.sort();
    let mut followed = GUIDES.to_vec();
    followed.sort_unstable();
    assert_eq!(there, followed, "each guide has a line in `guides!`");
    let sections: Vec<Section> = GUIDES.iter().flat_map(|file| read(file)).collect();
    let all = sections.iter().map(|section| section.blocks.len()).sum::<usize>();
    let run = sections.iter().map(|section| section.run().count()).sum::<usize>();
    assert!(run * 10 >= all * 8, "only {run} of {all} blocks are run");
}

#[test]
fn every_link_of_a_guide_leads_somewhere() {
    for file in GUIDES.iter().copied().chain(["docs/README.md"]) {
        let path = root().join(file);
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let there = target.starts_with("http") || path.parent().unwrap().join(target).exists();
            assert!(there, "{file}: {target} does not exist");
        }
    }
    // And the index names each of them.
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    for file in GUIDES.iter().filter_map(|file| file.strip_prefix("docs/")) {
        assert!(index.contains(&format!("]({file})")), "docs/README.md does not name {file}");
    }
}
