//! What commands print: tables for people, JSON and bare ids for programs; and what they ask before they destroy.

use std::io::{BufRead as _, IsTerminal as _};

use comfy_table::{CellAlignment, ColumnConstraint, Row, Table, Width, presets};
use serde_json::Value;

use super::{Failed, print};

/// How to print what is one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// How to print a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ListOutput {
    /// For people
    Table,
    /// For programs
    Json,
    /// For pipes: the ids or names alone, one a line
    Id,
}

/// How a command that shows one thing prints it.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Shown {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

/// How a command that shows a list prints it.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Listed {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = ListOutput::Table)]
    pub(super) output: ListOutput,
}

/// The space between two columns.
const GAP: u16 = 2;
/// What is cut is never cut to less.
const CUT_MIN: u16 = 12;

/// One column of a listing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    head: &'static str,
    right: bool,
    cut: bool,
    /// On a narrow terminal the highest goes first; 0 stays.
    leaves: u8,
}

impl Column {
    pub(super) const fn text(head: &'static str) -> Column {
        Column { head, right: false, cut: false, leaves: 0 }
    }

    pub(super) const fn number(head: &'static str) -> Column {
        Column { head, right: true, cut: false, leaves: 0 }
    }

    /// Cut to what is left of a terminal's width.
    pub(super) const fn cut(self) -> Column {
        Column { cut: true, ..self }
    }

    /// Left out where a terminal is too narrow; the highest first.
    pub(super) const fn leaves(self, leaves: u8) -> Column {
        Column { leaves, ..self }
    }
}

/// A table for people: as wide as it has to be in a pipe, as wide as may be on a terminal.
#[derive(Debug)]
pub(super) struct Listing {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Listing {
    pub(super) fn new(columns: &[Column]) -> Listing {
        Listing { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table for a terminal of this width; none: for whatever is no terminal.
    pub(super) fn render(&self, terminal: Option<u16>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_truncation_indicator("…");
        // What is cut is cut where the room ends, not where a word does: no cell has this letter.
        table.set_delimiter('\0');
        table.set_header(self.columns.iter().map(|column| column.head));
        for cells in &self.rows {
            let mut row = Row::from(cells);
            row.max_height(1);
            table.add_row(row);
        }
        let natural = table.column_max_content_widths();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let least = |shown: &[usize]| -> u16 {
            let width = |at: &usize| match self.columns[*at].cut {
                true => natural[*at].min(CUT_MIN),
                false => natural[*at],
            };
            shown.iter().map(width).fold(0, u16::saturating_add)
                + GAP * u16::try_from(shown.len().saturating_sub(1)).unwrap_or(u16::MAX / GAP)
        };
        if let Some(terminal) = terminal {
            while least(&shown) > terminal {
                let Some(leaver) = (0..shown.len())
                    .filter(|at| self.columns[shown[*at]].leaves > 0)
                    .max_by_key(|at| self.columns[shown[*at]].leaves)
                else {
                    break;
                };
                shown.remove(leaver);
            }
        }
        // What is left over goes to the columns that would be cut, the first of them first.
        let mut spare = terminal.map(|terminal| terminal.saturating_sub(least(&shown)));
        for (at, column) in self.columns.iter().enumerate() {
            let Some(made) = table.column_mut(at) else { continue };
            made.set_padding((0, GAP));
            if column.right {
                made.set_cell_alignment(CellAlignment::Right);
            }
            if !shown.contains(&at) {
                made.set_constraint(ColumnConstraint::Hidden);
            } else if column.cut
                && let Some(spare) = &mut spare
            {
                let base = natural[at].min(CUT_MIN);
                let more = (natural[at] - base).min(*spare);
                *spare -= more;
                // The padding is part of a column's width.
                made.set_constraint(ColumnConstraint::Absolute(Width::Fixed(base + more + GAP)));
            } else {
                made.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.trim_fmt()
    }
}

/// What is told of one thing: a name and a value a line.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<(String, String)>);

impl Facts {
    pub(super) fn add(&mut self, name: &str, value: impl Into<String>) -> &mut Facts {
        self.0.push((name.to_owned(), clean(&value.into())));
        self
    }

    pub(super) fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 1;
        let line = |(name, value): &(String, String)| format!("{:width$}  {value}", format!("{name}:"));
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Text that others wrote, so that it cannot speak to the terminal: control characters are written out.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            letter if letter.is_control() => clean.extend(letter.escape_default()),
            // Marks that turn the direction of what follows.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => clean.extend(letter.escape_unicode()),
            letter => clean.push(letter),
        }
    }
    clean
}

/// Reads JSON of others. A number that no float holds is valid there, and becomes its text.
pub(super) fn read(json: &str) -> Result<Value, serde_json::Error> {
    match serde_json::from_str(json) {
        Err(error) if error.is_syntax() => serde_json::from_str(&without_infinities(json)),
        read => read,
    }
}

fn without_infinities(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = if let Some(inside) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = inside.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E')));
            end.unwrap_or(rest.len())
        };
        let (token, behind) = rest.split_at(end);
        match token.parse::<f64>() {
            Ok(number) if number.is_infinite() => out.extend(["\"", token, "\""]),
            _ => out.push_str(token),
        }
        rest = behind;
    }
    out + rest
}

/// JSON with a line for each item; numbers and texts stay as they are written.
pub(super) fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0;
    let mut letters = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                out.push('"');
                while let Some(inside) = letters.next() {
                    out.push(inside);
                    match inside {
                        '\\' => out.extend(letters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                out.push(letter);
                while letters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                match letters.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(letter);
            }
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            letter if letter.is_ascii_whitespace() => {}
            letter => out.push(letter),
        }
    }
    out
}

/// Prints text and the end of its line.
pub(super) fn print_line(text: &str) -> Result<(), Failed> {
    print(format!("{text}\n").as_bytes())
}

/// Something that is said beside the answer, for a user and not for pipes.
#[expect(clippy::print_stderr, reason = "what is said beside the answer goes to the user, not into pipes")]
pub(super) fn hint(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{text}");
    }
}

/// Something that went wrong with a part of what was asked, where the rest goes on.
#[expect(clippy::print_stderr, reason = "what went wrong goes to the user, not into pipes")]
pub(super) fn complain(text: &str) {
    eprintln!("taskyard: {text}");
}

/// How many letters a line of standard output has; none: it is no terminal.
pub(super) fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    // A terminal that does not know says 0.
    (size.ws_col > 0).then_some(size.ws_col)
}

/// Whether a command that destroys something may go on.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Consent {
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
}

impl Consent {
    /// Asks on a terminal; without one nothing is destroyed that was not said to be.
    pub(super) fn to(self, what: &str) -> Result<(), Failed> {
        if self.yes {
            return Ok(());
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Failed::usage(format!(
                "this would {what}: say --yes if that is meant (on a terminal it is asked)"
            )));
        }
        ask(&format!("This will {what}. Go on? [y/N] "));
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        match (read, answer.trim().to_ascii_lowercase().as_str()) {
            (Ok(_), "y" | "yes") => Ok(()),
            _ => Err(Failed::other("nothing was done")),
        }
    }
}

#[expect(clippy::print_stderr, reason = "a question goes to the user, not into pipes")]
fn ask(question: &str) {
    eprint!("{question}");
}

/// A text of the broker's; empty where there is none.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The same, or a dash.
pub(super) fn text_or_dash(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// A number of the broker's, or a dash.
pub(super) fn number(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { "-".to_owned() }
}

/// So many of something.
pub(super) fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let mut listing = Listing::new(&[
            Column::text("NAME"),
            Column::number("COUNT"),
            Column::number("LATE").leaves(1),
            Column::text("ERROR").cut(),
        ]);
        listing.row(["a".into(), "1".into(), "20000".into(), "short".into()]);
        listing.row(["b-long".into(), "1234".into(), "-".into(), "an error that goes on\nand on ü".into()]);
        listing
    }

    #[test]
    fn a_table_is_as_wide_as_it_has_to_be_where_there_is_no_terminal() {
        assert_eq!(
            listing().render(None),
            "NAME    COUNT   LATE  ERROR\n\
             a           1  20000  short\n\
             b-long   1234      -  an error that goes on\\nand on ü"
        );
    }

    #[test]
    fn a_terminal_s_width_is_kept() {
        assert_eq!(
            listing().render(Some(40)),
            "NAME    COUNT   LATE  ERROR\n\
             a           1  20000  short\n\
             b-long   1234      -  an error that goe…"
        );
        assert_eq!(
            listing().render(Some(30)),
            "NAME    COUNT  ERROR\n\
             a           1  short\n\
             b-long   1234  an error that …"
        );
        for width in 27..60 {
            let table = listing().render(Some(width));
            let longest = table.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(usize::from(width)), "{width}:\n{table}");
        }
    }

    #[test]
    fn what_others_wrote_cannot_speak_to_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\r\u{202e}"), "a\\u{1b}[2Jb\\u{9b}c\\r\\u{202e}");
        assert_eq!(clean("größe 漢"), "größe 漢");
    }

    #[test]
    fn json_is_laid_out_and_stays_what_it_is() {
        let json = r#"{"a":[1.0, 1e999,{}],"b":"x,\"{:\\", "c" : [ ] }"#;
        let expected =
            "{\n  \"a\": [\n    1.0,\n    1e999,\n    {}\n  ],\n  \"b\": \"x,\\\"{:\\\\\",\n  \"c\": []\n}";
        assert_eq!(pretty(json), expected);
        assert_eq!(pretty(expected), expected);
        assert_eq!(pretty("null"), "null");
    }

    #[test]
    fn json_with_numbers_beyond_floats_is_read() {
        let value = read(r#"{"a":[1e999,-1E+400,1.5,-0],"b":"1e999 \" 1e999\\","c":1e999}"#);
        assert_eq!(
            value.expect("valid JSON"),
            serde_json::json!({"a": ["1e999", "-1E+400", 1.5, -0.0], "b": "1e999 \" 1e999\\", "c": "1e999"})
        );
        assert!(read("{1e999").is_err() && read("\"1e999").is_err() && read("").is_err());
    }

    #[test]
    fn facts_stand_below_each_other() {
        let mut facts = Facts::default();
        facts.add("Queue", "emails").add("Max tasks", "7");
        assert_eq!(facts.render(), "Queue:      emails\nMax tasks:  7");
    }
}
