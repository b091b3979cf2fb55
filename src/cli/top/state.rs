//! What is shown, and what keys make of it. No terminal and no socket.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::model::{self, Column, Line, Samples};

/// A filter is part of a name.
const FILTER_MAX: usize = 128;
/// How far a page key goes, whatever the terminal's height.
const PAGE: isize = 10;

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// Samples come, or are about to.
    Up,
    /// It was lost; the client makes it anew.
    Down {
        /// In words.
        why: String,
    },
}

/// What fills the screen.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Page {
    /// All queues.
    Queues,
    /// One of them.
    Queue {
        /// Its name.
        name: String,
        /// `GET /v1/queues/{q}` and its latest dead letters; none: not here yet.
        detail: Option<Box<Detail>>,
    },
    /// Who is connected; none: not here yet.
    Workers(Option<Vec<Value>>),
}

/// One queue in detail.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detail {
    /// What is known of it.
    pub(super) queue: Value,
    /// The latest of its dead letters, the latest first.
    pub(super) dead: Vec<Value>,
}

/// What is asked before it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confirm {
    /// Which queue.
    pub(super) queue: String,
    /// Whether it is to be paused; else it is to deliver again.
    pub(super) pause: bool,
}

/// What is said in the last line until the next key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    /// In words.
    pub(super) text: String,
    /// Whether something went wrong.
    pub(super) bad: bool,
}

/// What a key asks for that is not done here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// To leave.
    Quit,
    /// What the page shows that does not come by itself.
    Refresh,
    /// To pause a queue, or end its pause.
    Pause(Confirm),
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct State {
    /// Where the broker is.
    pub(super) url: String,
    pub(super) samples: Samples,
    pub(super) link: Link,
    /// For how long nothing was heard of the broker, in milliseconds.
    pub(super) silent_ms: u64,
    /// How often samples come.
    pub(super) every_ms: u64,
    pub(super) page: Page,
    pub(super) help: bool,
    pub(super) confirm: Option<Confirm>,
    pub(super) notice: Option<Notice>,
    pub(super) sort: Column,
    pub(super) reversed: bool,
    pub(super) filter: String,
    /// Whether letters go into the filter.
    pub(super) typing: bool,
    /// The queue that is marked, wherever it is in the list.
    pub(super) selected: Option<String>,
    /// The first worker that is shown.
    pub(super) scroll: usize,
}

impl State {
    pub(super) fn new(url: &str, every_ms: u64) -> State {
        State {
            url: url.to_owned(),
            samples: Samples::default(),
            link: Link::Up,
            silent_ms: 0,
            every_ms,
            page: Page::Queues,
            help: false,
            confirm: None,
            notice: None,
            sort: Column::Queued,
            reversed: false,
            filter: String::new(),
            typing: false,
            selected: None,
            scroll: 0,
        }
    }

    /// The queues in their order, without those that the filter stops.
    pub(super) fn lines(&self) -> Vec<Line> {
        model::arrange(self.samples.lines(), &self.filter, self.sort, self.reversed)
    }

    /// Where the marked one is among them: the first where it is not there.
    pub(super) fn selection(&self, lines: &[Line]) -> Option<usize> {
        let found = self.selected.as_ref().and_then(|name| lines.iter().position(|line| line.name == *name));
        found.or((!lines.is_empty()).then_some(0))
    }

    /// Whether what is shown is old.
    pub(super) fn is_stale(&self) -> bool {
        self.link != Link::Up || self.silent_ms > 2 * self.every_ms + 1000
    }

    pub(super) fn say(&mut self, text: impl Into<String>, bad: bool) {
        self.notice = Some(Notice { text: text.into(), bad });
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Some(Ask::Quit);
        }
        self.notice = None;
        if let Some(confirm) = self.confirm.take() {
            return matches!(key.code, KeyCode::Char('y' | 'Y')).then_some(Ask::Pause(confirm));
        }
        if self.typing {
            self.type_filter(key.code, control);
            return None;
        }
        if self.help {
            self.help = false;
            return (key.code == KeyCode::Char('q')).then_some(Ask::Quit);
        }
        match key.code {
            KeyCode::Char('q') => return Some(Ask::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('w') | KeyCode::Tab => return self.other_page(),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::PageUp => self.go(-PAGE),
            KeyCode::PageDown => self.go(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Char('p') => self.ask_to_pause(),
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            _ if self.page == Page::Queues => return self.key_of_queues(key.code),
            _ => {}
        }
        None
    }

    fn key_of_queues(&mut self, code: KeyCode) -> Option<Ask> {
        match code {
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('s' | '>') | KeyCode::Right => self.sort_by_next(1),
            KeyCode::Char('S' | '<') | KeyCode::Left => self.sort_by_next(Column::ALL.len() - 1),
            KeyCode::Enter => {
                let name = self.marked()?.name;
                self.selected = Some(name.clone());
                self.page = Page::Queue { name, detail: None };
                return Some(Ask::Refresh);
            }
            _ => {}
        }
        None
    }

    fn type_filter(&mut self, code: KeyCode, control: bool) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Char('u') if control => self.filter.clear(),
            KeyCode::Char(letter) if !control && !letter.is_control() && self.filter.len() < FILTER_MAX => {
                self.filter.push(letter);
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Up => self.go(-1),
            KeyCode::Down => self.go(1),
            _ => {}
        }
    }

    fn marked(&self) -> Option<Line> {
        let mut lines = self.lines();
        self.selection(&lines).map(|at| lines.swap_remove(at))
    }

    fn other_page(&mut self) -> Option<Ask> {
        self.scroll = 0;
        self.page = match self.page {
            Page::Workers(_) => Page::Queues,
            Page::Queues | Page::Queue { .. } => Page::Workers(None),
        };
        (self.page != Page::Queues).then_some(Ask::Refresh)
    }

    fn back(&mut self) {
        match self.page {
            Page::Queues => self.filter.clear(),
            Page::Queue { .. } | Page::Workers(_) => self.page = Page::Queues,
        }
    }

    fn go(&mut self, by: isize) {
        match &self.page {
            Page::Queues => {
                let lines = self.lines();
                let Some(at) = self.selection(&lines) else { return };
                let at = at.saturating_add_signed(by).min(lines.len() - 1);
                self.selected = Some(lines[at].name.clone());
            }
            Page::Workers(workers) => {
                let last = workers.as_ref().map_or(0, |workers| workers.len().saturating_sub(1));
                self.scroll = self.scroll.saturating_add_signed(by).min(last);
            }
            Page::Queue { .. } => {}
        }
    }

    fn sort_by_next(&mut self, steps: usize) {
        let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
        self.sort = Column::ALL[(at + steps) % Column::ALL.len()];
        self.reversed = false;
    }

    fn ask_to_pause(&mut self) {
        let line = match &self.page {
            Page::Queues => self.marked(),
            Page::Queue { name, .. } => self.samples.lines().into_iter().find(|line| line.name == *name),
            Page::Workers(_) => return,
        };
        match line {
            Some(line) => self.confirm = Some(Confirm { queue: line.name, pause: !line.paused }),
            None => self.say("there is no queue to pause", true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{overview, queue, sample};
    use super::*;

    fn state() -> State {
        let mut state = State::new("http://127.0.0.1:7070", 1000);
        let queues = [queue("a", 3, 0), queue("b", 2, 0), queue("c", 1, 0)];
        state.samples.push(overview(&sample(1000, &queues)));
        state
    }

    fn press(state: &mut State, keys: &str) -> Vec<Ask> {
        let code = |letter| match letter {
            '↑' => KeyCode::Up,
            '↓' => KeyCode::Down,
            '⏎' => KeyCode::Enter,
            '⎋' => KeyCode::Esc,
            '⌫' => KeyCode::Backspace,
            letter => KeyCode::Char(letter),
        };
        keys.chars().filter_map(|letter| state.key(code(letter).into())).collect()
    }

    fn marked(state: &State) -> Option<String> {
        state.marked().map(|line| line.name)
    }

    #[test]
    fn the_mark_stays_on_its_queue() {
        let mut state = state();
        assert_eq!(marked(&state).as_deref(), Some("a"));
        press(&mut state, "↓");
        assert_eq!(marked(&state).as_deref(), Some("b"));
        // It is now the first, and still the one.
        let queues = [queue("a", 3, 0), queue("b", 20, 0), queue("c", 1, 0)];
        state.samples.push(overview(&sample(2000, &queues)));
        assert_eq!((marked(&state).as_deref(), state.selection(&state.lines())), (Some("b"), Some(0)));
        press(&mut state, "G");
        assert_eq!(marked(&state).as_deref(), Some("c"));
        press(&mut state, "jjj");
        assert_eq!(marked(&state).as_deref(), Some("c"), "there is nothing below");
        press(&mut state, "g↑");
        assert_eq!(marked(&state).as_deref(), Some("b"));
        // One that is gone gives its mark to the first.
        state.samples.push(overview(&sample(3000, &[queue("x", 1, 0)])));
        assert_eq!(marked(&state).as_deref(), Some("x"));
        state.samples.push(overview(&sample(4000, &[])));
        press(&mut state, "↓⏎p");
        assert_eq!((marked(&state), &state.page, &state.confirm), (None, &Page::Queues, &None));
    }

    #[test]
    fn letters_go_into_the_filter_while_it_is_open() {
        let mut state = state();
        assert_eq!(press(&mut state, "/qc⌫⌫b"), []);
        assert_eq!((state.filter.as_str(), state.typing), ("b", true));
        assert_eq!(state.lines().len(), 1);
        press(&mut state, "⏎");
        assert_eq!((state.filter.as_str(), state.typing), ("b", false));
        press(&mut state, "⎋");
        assert_eq!(state.lines().len(), 3);
        press(&mut state, "/x⎋");
        assert_eq!((state.filter.as_str(), state.typing), ("", false));
        assert_eq!(press(&mut state, "/"), []);
        press(&mut state, &"x".repeat(300));
        assert_eq!(state.filter.len(), FILTER_MAX);
    }

    #[test]
    fn nothing_is_paused_without_a_yes() {
        let mut state = state();
        assert_eq!(press(&mut state, "p"), []);
        let confirm = Confirm { queue: "a".into(), pause: true };
        assert_eq!(state.confirm, Some(confirm.clone()));
        assert_eq!(press(&mut state, "n"), []);
        assert_eq!(state.confirm, None);
        assert_eq!(press(&mut state, "pq"), [], "the answer is no command");
        assert_eq!(press(&mut state, "py"), [Ask::Pause(confirm)]);
        let mut paused = queue("a", 3, 0);
        paused["paused"] = true.into();
        state.samples.push(overview(&sample(2000, &[paused])));
        assert_eq!(press(&mut state, "py"), [Ask::Pause(Confirm { queue: "a".into(), pause: false })]);
    }

    #[test]
    fn pages_lead_to_each_other_and_back() {
        let mut state = state();
        assert_eq!(press(&mut state, "↓⏎"), [Ask::Refresh]);
        assert_eq!(state.page, Page::Queue { name: "b".into(), detail: None });
        press(&mut state, "p");
        assert_eq!(state.confirm.as_ref().map(|confirm| confirm.queue.as_str()), Some("b"));
        press(&mut state, "n⎋");
        assert_eq!((&state.page, marked(&state).as_deref()), (&Page::Queues, Some("b")));
        assert_eq!(press(&mut state, "w"), [Ask::Refresh]);
        assert_eq!(state.page, Page::Workers(None));
        assert_eq!(press(&mut state, "w"), []);
        assert_eq!(state.page, Page::Queues);
        press(&mut state, "?");
        assert!(state.help);
        press(&mut state, "x");
        assert!(!state.help);
        assert_eq!(press(&mut state, "?q"), [Ask::Quit]);
        assert_eq!(press(&mut state, "q"), [Ask::Quit]);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut state, "/");
        assert_eq!(state.key(interrupt), Some(Ask::Quit), "also while the filter is open");
    }

    #[test]
    fn the_order_goes_round_the_columns() {
        let mut state = state();
        press(&mut state, "r");
        assert!(state.reversed);
        press(&mut state, "s");
        assert_eq!((state.sort, state.reversed), (Column::Leased, false));
        press(&mut state, "SSS");
        assert_eq!(state.sort, Column::Credit);
        press(&mut state, "s");
        assert_eq!(state.sort, Column::Queue);
    }

    #[test]
    fn what_is_old_is_known_to_be() {
        let mut state = state();
        assert!(!state.is_stale());
        state.silent_ms = 3001;
        assert!(state.is_stale());
        state.silent_ms = 0;
        state.link = Link::Down { why: "it restarts".into() };
        assert!(state.is_stale());
    }
}
