//! Draws what the state holds. Colours only where they tell something; without them the words do.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline};
use serde_json::Value;

use super::model::{self, Column, HOPS, Latency, Line, Rates};
use super::state::{Detail, Link, Page, State};
use crate::cli::output::{clean, count};
use crate::cli::{queues, span, tasks, workers};

/// On less nothing can be read.
const LEAST: (u16, u16) = (40, 8);
/// From this height on there is room for graphs.
const GRAPHS_FROM: u16 = 26;
const GRAPH_HEIGHT: u16 = 5;
/// From this one on for an empty line.
const AIRY_FROM: u16 = 20;
/// The least that is left of a queue's name.
const NAME_LEAST: usize = 12;
/// Behind the name of a queue that delivers nothing; the sign where there is no room for the word.
const PAUSED: [&str; 2] = [" (paused)", " ‖"];
/// All get this much if there is room: numbers should not move when a name comes.
const NAME_WIDE: usize = 26;
/// Columns from here on leave so that names can be read.
const LEAVES_FOR_NAMES: u8 = 6;
/// A task that has waited so long is told.
const OLD_MS: u64 = 60_000;
/// Inline graphs are of so many samples.
const GRAPH_LETTERS: usize = 12;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How what is to be noticed is set off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    /// Whether colours are wanted: <https://no-color.org>.
    pub(super) colours: bool,
}

impl Theme {
    fn coloured(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn careful(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    fn good(self) -> Style {
        self.coloured(Color::Green)
    }

    fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// The whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("at least {}×{} letters are needed", LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let graphs = area.height >= GRAPHS_FROM && state.page == Page::Queues;
    let head = head(state, theme, usize::from(area.width), !graphs);
    let gap = usize::from(area.height >= AIRY_FROM);
    let [top, middle, body, foot] = Layout::vertical([
        Constraint::Length(u16::try_from(head.len() + gap).unwrap_or(u16::MAX)),
        Constraint::Length(if graphs { GRAPH_HEIGHT } else { 0 }),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    if graphs {
        draw_graphs(frame, state, theme, middle);
    }
    let lines = match &state.page {
        Page::Queues => queue_rows(state, theme, usize::from(body.width), usize::from(body.height)),
        Page::Queue { name, detail } => detail_rows(state, theme, name, detail.as_deref(), body.width),
        Page::Workers(workers) => worker_rows(theme, workers.as_deref(), state.scroll, body.width),
    };
    frame.render_widget(Paragraph::new(lines), body);
    frame.render_widget(Paragraph::new(footer(state, theme, usize::from(foot.width))), foot);
    if state.help {
        draw_help(frame, area);
    }
}

/// One sample for pipes.
pub(super) fn plain(state: &State, width: u16) -> String {
    let (theme, width) = (Theme { colours: false }, usize::from(width));
    let mut lines = head(state, theme, width, true);
    lines.push(Text::default());
    lines.extend(queue_rows(state, theme, width, usize::MAX));
    let text: Vec<String> = lines.iter().map(|line| line.to_string().trim_end().to_owned()).collect();
    text.join("\n")
}

/// Text cut to a width; all of ours is of letters one column wide but for what others wrote.
fn cut(text: &str, width: usize) -> String {
    let line = Span::raw(text);
    if line.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    for letter in text.chars() {
        if Span::raw(format!("{out}{letter}…")).width() > width {
            break;
        }
        out.push(letter);
    }
    out.push('…');
    out
}

/// Parts beside each other, as many as there is room for.
fn fitting(parts: Vec<Span<'static>>, width: usize) -> Text<'static> {
    let (mut line, mut used) = (Text::default(), 0);
    for part in parts {
        let wide = part.width() + if used > 0 { 2 } else { 0 };
        if used + wide > width {
            break;
        }
        if used > 0 {
            line.push_span("  ");
        }
        used += wide;
        line.push_span(part);
    }
    line
}

fn head(state: &State, theme: Theme, width: usize, with_rates: bool) -> Vec<Text<'static>> {
    let mut lines = vec![first_line(state, theme, width)];
    let Some(now) = state.samples.latest() else { return lines };
    let totals = &now.totals;
    let standing = |number: u64, of: &str| Span::raw(format!("{} {of}", model::amount(number)));
    let mut parts = vec![standing(totals.counts.queued, "queued"), standing(totals.counts.leased, "leased")];
    parts.push(if totals.counts.dead > 0 {
        standing(totals.counts.dead, "dead").style(theme.bad())
    } else {
        standing(0, "dead")
    });
    if let Some(ms) = totals.oldest_ms {
        parts.push(Span::styled(format!("oldest {}", span::short(ms)), age_style(theme, Some(ms))));
    }
    parts.push(standing(totals.counts.retrying, "retrying"));
    parts.push(standing(totals.counts.scheduled, "scheduled"));
    parts.push(Span::raw(format!("{} refused", model::amount(totals.events.refused))));
    parts.push(Span::raw(format!("{} redelivered", model::amount(totals.events.redelivered))));
    lines.push(fitting(parts, width));
    let mut parts: Vec<Span<'static>> = vec![
        count(now.workers, "worker").into(),
        count(now.connections, "connection").into(),
        count(now.queues_total, "queue").into(),
    ];
    if let Some((process, share)) = state.samples.process() {
        parts.push(model::bytes(process.rss_bytes).into());
        parts.extend(share.map(|share| Span::raw(format!("{:.0} % CPU", share * 100.0))));
        parts.push(count(process.open_fds, "file").into());
    }
    parts.push(count(now.schedules, "schedule").into());
    lines.push(fitting(parts, width));
    if with_rates {
        lines.push(rate_line(state, width));
    }
    lines.extend(latency_lines(state, theme, width));
    lines
}

/// Who it is, and how the connection is.
fn first_line(state: &State, theme: Theme, width: usize) -> Text<'static> {
    let (status, style) = match (&state.link, state.samples.latest()) {
        (Link::Down { why }, _) => (format!("connection lost, trying again: {}", clean(why)), theme.bad()),
        (Link::Up, None) => ("waiting for the first sample".to_owned(), theme.quiet()),
        (Link::Up, Some(_)) if state.is_stale() => {
            (format!("nothing heard for {}", span::short(state.silent_ms)), theme.bad())
        }
        (Link::Up, Some(now)) if now.draining => ("shutting down".to_owned(), theme.careful()),
        (Link::Up, Some(_)) => ("live".to_owned(), theme.good()),
    };
    let status = cut(&status, width * 2 / 3);
    let room = width.saturating_sub(Span::raw(&status).width() + 2);
    let mut parts = vec![Span::styled("taskyard", theme.title())];
    if let Some(now) = state.samples.latest() {
        let kind = if now.durable { "" } else { ", in memory only" };
        parts = vec![
            Span::styled(format!("taskyard {}", clean(now.version.as_str())), theme.title()),
            Span::raw(format!("up {}", span::short(now.uptime_ms))),
            Span::raw(format!("{}{kind}", clean(now.engine.as_str()))),
        ];
    }
    parts.push(Span::styled(clean(&state.url), theme.quiet()));
    let mut line = fitting(parts, room);
    let gap = width.saturating_sub(line.width() + Span::raw(&status).width());
    line.push_span(" ".repeat(gap));
    line.push_span(Span::styled(status, style));
    line
}

type OfRates = fn(Rates) -> f64;
const GRAPHED: [(&str, OfRates); 3] = [
    ("accepted", |rates| rates.accepted),
    ("delivered", |rates| rates.delivered),
    ("settled", |rates| rates.settled),
];

fn rate_line(state: &State, width: usize) -> Text<'static> {
    let rates = state.samples.rates();
    let mut line = Text::default();
    for (name, of) in GRAPHED {
        let room = width / GRAPHED.len();
        let number = rates.map_or_else(|| "-".into(), |rates| model::rate(of(rates)));
        let text = format!("{name} {number}/s ");
        let letters = GRAPH_LETTERS.min(room.saturating_sub(text.len() + 1));
        line.push_span(format!("{:room$}", format!("{text}{}", bars(state, of, letters))));
    }
    line
}

/// The last rates as letters, of the height of the greatest among them.
fn bars(state: &State, of: OfRates, letters: usize) -> String {
    let all: Vec<f64> = state.samples.history().rev().take(letters).map(of).collect();
    let most = all.iter().copied().fold(0.0, f64::max);
    let bar = |rate: &f64| {
        let step = if most > 0.0 { (rate / most * (BARS.len() - 1) as f64).round() as usize } else { 0 };
        BARS[step.min(BARS.len() - 1)]
    };
    all.iter().rev().map(bar).collect()
}

fn draw_graphs(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    let places: [Rect; 3] = Layout::horizontal([Constraint::Fill(1); 3]).spacing(2).areas(area);
    let rates = state.samples.rates();
    for ((name, of), place) in GRAPHED.into_iter().zip(places) {
        let mut data: Vec<u64> = state
            .samples
            .history()
            .rev()
            .take(usize::from(place.width))
            .map(|rates| of(rates).round() as u64)
            .collect();
        let most = data.iter().copied().max().unwrap_or(0);
        // The latest is at the right.
        data.resize(usize::from(place.width), 0);
        data.reverse();
        let number = rates.map_or_else(|| "-".into(), |rates| model::rate(of(rates)));
        let title = Text::from(vec![
            Span::styled(format!("{name} {number}/s"), theme.title()),
            Span::styled(format!("  most {}/s", model::rate(most as f64)), theme.quiet()),
        ]);
        let graph = Sparkline::default().data(data).block(Block::new().title(title));
        frame.render_widget(graph, place);
    }
}

/// A stretch of the way by its name, and how long it took.
type Told = (&'static str, Option<Latency>);

fn latency_lines(state: &State, theme: Theme, width: usize) -> Vec<Text<'static>> {
    let Some(latencies) = state.samples.latencies() else { return Vec::new() };
    let log = state.samples.log();
    let mut columns: Vec<Told> = HOPS.into_iter().zip(latencies).collect();
    if let Some((_, sync)) = log {
        columns.push(("disk sync", sync));
    }
    let row = |title: &'static str, cell: &dyn Fn(&Told) -> String| {
        let cells: String = columns.iter().map(|column| format!("{:>11}", cell(column))).collect();
        format!("{title:<4}{cells}")
    };
    let value = |latency: &Option<Latency>, of: fn(&Latency) -> model::Quantile| {
        latency.as_ref().map_or_else(|| "-".into(), |latency| model::duration(of(latency)))
    };
    let beside = log.map_or([const { String::new() }; 3], |(log, _)| {
        let live = log.live_bytes.saturating_mul(100).checked_div(log.bytes).unwrap_or(0);
        [
            format!("log {}", model::bytes(log.bytes)),
            format!("{live} % in use"),
            format!("{:.1} records/sync", log.batch_records_avg.get()),
        ]
    });
    let widest = beside.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let rows = [
        Span::styled(row("", &|column| column.0.to_owned()), theme.quiet()),
        Span::raw(row("p50", &|column| value(&column.1, |latency| latency.p50))),
        Span::raw(row("p99", &|column| value(&column.1, |latency| latency.p99))),
    ];
    rows.into_iter()
        .zip(beside)
        .map(|(row, beside)| {
            // A column that does not fit whole is left out with its head.
            let row = Span::styled(whole_columns(&row.content, width), row.style);
            let room = width.saturating_sub(row.width() + 2);
            let mut line = Text::from(row);
            if widest > 0 && widest <= room {
                line.push_span(Span::styled(format!("  {beside}"), theme.quiet()));
            }
            line
        })
        .collect()
}

fn whole_columns(row: &str, width: usize) -> String {
    let letters = row.chars().count();
    let fit = if letters <= width { letters } else { 4 + (width.saturating_sub(4)) / 11 * 11 };
    row.chars().take(fit).collect()
}

fn age_style(theme: Theme, oldest_ms: Option<u64>) -> Style {
    if oldest_ms.is_some_and(|ms| ms >= OLD_MS) { theme.careful() } else { Style::new() }
}

/// The columns that fit, and what is left for names.
fn columns(width: usize, longest: usize) -> (Vec<Column>, usize) {
    let mut shown = Column::ALL.to_vec();
    loop {
        let rest: usize = shown.iter().skip(1).map(|column| column_width(*column)).sum();
        let last = shown.iter().map(|column| column.leaves()).max().unwrap_or(0);
        let least = if last >= LEAVES_FOR_NAMES { longest.clamp(NAME_LEAST, NAME_WIDE) } else { NAME_LEAST };
        if rest + least <= width || last == 0 {
            return (shown, width.saturating_sub(rest).clamp(NAME_LEAST, longest.max(NAME_WIDE)));
        }
        shown.retain(|column| column.leaves() != last);
    }
}

/// With the gap before it, and room for the mark of what it is sorted by.
fn column_width(column: Column) -> usize {
    let least = if column == Column::Oldest { 7 } else { 5 };
    column.head().len().max(least) + 2
}

fn cell(line: &Line, column: Column, theme: Theme) -> Span<'static> {
    let rate = |of: OfRates| line.rates.map_or_else(|| "-".into(), |rates| model::rate(of(rates)));
    let (text, style) = match column {
        Column::Queue => (clean(&line.name), Style::new()),
        Column::Queued => (model::amount(line.queued), Style::new()),
        Column::Leased => (model::amount(line.leased), Style::new()),
        Column::Retrying => (model::amount(line.retrying), Style::new()),
        Column::Scheduled => (model::amount(line.scheduled), Style::new()),
        Column::Dead if line.dead > 0 => (model::amount(line.dead), theme.bad()),
        Column::Dead => ("0".into(), Style::new()),
        Column::Oldest => {
            (line.oldest_ms.map_or_else(|| "-".into(), span::short), age_style(theme, line.oldest_ms))
        }
        Column::Accepted => (rate(|rates| rates.accepted), Style::new()),
        Column::Delivered => (rate(|rates| rates.delivered), Style::new()),
        Column::Settled => (rate(|rates| rates.settled), Style::new()),
        Column::Workers if line.is_deserted() => ("none".into(), theme.careful()),
        Column::Workers => (model::amount(line.workers), Style::new()),
        Column::InFlight => (model::amount(line.in_flight), Style::new()),
        Column::Credit => (model::amount(line.credit_free), Style::new()),
    };
    Span::styled(text, style)
}

/// The table of queues, as many as fit, around the one that is marked.
fn queue_rows(state: &State, theme: Theme, width: usize, height: usize) -> Vec<Text<'static>> {
    let lines = state.lines();
    // Further from its numbers than that a name is hard to follow.
    let name =
        |line: &Line| Span::raw(&line.name).width() + 1 + if line.paused { PAUSED[0].len() } else { 0 };
    let (columns, name_width) = columns(width, lines.iter().map(name).max().unwrap_or(0));
    let mut head = Text::default();
    for column in &columns {
        let ascending = (*column == Column::Queue) != state.reversed;
        let mark = match (*column == state.sort, ascending) {
            (false, _) => "",
            (true, true) => "▴",
            (true, false) => "▾",
        };
        let text = format!("{mark}{}", column.head());
        let text = match column {
            Column::Queue => format!("{text:name_width$}"),
            other => format!("{text:>width$}", width = column_width(*other)),
        };
        let style = if mark.is_empty() { theme.quiet() } else { theme.title() };
        head.push_span(Span::styled(text, style));
    }
    let mut rows = vec![head];
    if lines.is_empty() && state.samples.latest().is_some() {
        rows.push(Text::from(match state.filter.is_empty() {
            true => "no queues yet: the first task makes one, see `taskyard submit --help`".to_owned(),
            false => format!("no queue's name has \"{}\" in it", clean(&state.filter)),
        }));
    }
    let selection = state.selection(&lines).unwrap_or(0);
    let room = height.saturating_sub(1).max(1);
    let first = selection.saturating_sub(room / 2).min(lines.len().saturating_sub(room));
    for (at, line) in lines.iter().enumerate().skip(first).take(room) {
        let mut row = Text::default();
        for column in &columns {
            if *column == Column::Queue {
                let paused = paused(line, name_width);
                let wide = Span::raw(paused).width();
                let name = cut(&clean(&line.name), name_width.saturating_sub(wide + 1));
                let gap = name_width.saturating_sub(Span::raw(&name).width() + wide);
                row.push_span(name);
                row.push_span(Span::styled(paused, theme.careful()));
                row.push_span(" ".repeat(gap));
            } else {
                let cell = cell(line, *column, theme);
                let width = column_width(*column);
                row.push_span(" ".repeat(width.saturating_sub(cell.width())));
                row.push_span(cell);
            }
        }
        // In a pipe nothing is marked.
        if at == selection && height != usize::MAX {
            row = row.style(Style::new().add_modifier(Modifier::REVERSED));
        }
        rows.push(row);
    }
    rows
}

fn paused(line: &Line, room: usize) -> &'static str {
    let [word, sign] = PAUSED;
    match line.paused {
        false => "",
        true if Span::raw(&line.name).width() + word.len() < room => word,
        true => sign,
    }
}

fn owned(text: &str) -> impl Iterator<Item = Text<'static>> {
    text.lines().map(|line| Text::from(line.to_owned()))
}

fn detail_rows(
    state: &State,
    theme: Theme,
    name: &str,
    detail: Option<&Detail>,
    width: u16,
) -> Vec<Text<'static>> {
    let mut rows = vec![Text::styled(format!("Queue {}", clean(name)), theme.title())];
    let Some(detail) = detail else {
        rows.push(Text::styled("asking the broker…", theme.quiet()));
        return rows;
    };
    if let Some(line) = state.samples.lines().into_iter().find(|line| line.name == name)
        && line.is_deserted()
    {
        rows.push(Text::styled("tasks wait, and no worker is subscribed", theme.careful()));
    }
    // The name is said already.
    rows.extend(owned(&queues::describe(&detail.queue)).skip(1));
    if !detail.dead.is_empty() {
        rows.push(Text::default());
        rows.push(Text::styled("Dead letters, the latest first", theme.bad()));
        rows.extend(owned(&tasks::table(&detail.dead, Some(width))));
    }
    rows
}

fn worker_rows(theme: Theme, list: Option<&[Value]>, scroll: usize, width: u16) -> Vec<Text<'static>> {
    let Some(list) = list else { return vec![Text::styled("asking the broker…", theme.quiet())] };
    let text = workers::table(list, Some(width));
    let mut rows = owned(&text);
    let mut shown = vec![rows.next().unwrap_or_default().style(theme.quiet())];
    shown.extend(rows.skip(scroll));
    shown
}

fn footer(state: &State, theme: Theme, width: usize) -> Text<'static> {
    if let Some(confirm) = &state.confirm {
        let queue = cut(&clean(&confirm.queue), width.saturating_sub(30));
        let text = match confirm.pause {
            true => format!("Pause {queue}? y/N  Nothing is delivered from it until it is unpaused."),
            false => format!("Let {queue} deliver again? y/N"),
        };
        return Text::styled(cut(&text, width), theme.careful());
    }
    if state.typing {
        return Text::from(format!("/{}▏", cut(&clean(&state.filter), width.saturating_sub(3))));
    }
    if let Some(notice) = &state.notice {
        let style = if notice.bad { theme.bad() } else { theme.title() };
        return Text::styled(cut(&clean(&notice.text), width), style);
    }
    let keys: &[&str] = match state.page {
        Page::Queues => &[
            "q quit",
            "? help",
            "⏎ detail",
            "/ filter",
            "s sort",
            "w workers",
            "p pause",
            "r reverse",
            "↑↓ move",
        ],
        Page::Queue { .. } => &["q quit", "? help", "esc back", "p pause", "w workers"],
        Page::Workers(_) => &["q quit", "? help", "esc back", "↑↓ scroll"],
    };
    let shown = shown(state);
    let room = width.saturating_sub(shown.chars().count() + 2);
    let mut line = fitting(keys.iter().map(|key| Span::styled(*key, theme.quiet())).collect(), room);
    let gap = width.saturating_sub(line.width() + shown.chars().count());
    line.push_span(" ".repeat(gap));
    line.push_span(shown);
    line
}

/// Which of the queues are listed, where that is not all of them.
fn shown(state: &State) -> String {
    let Some(now) = state.samples.latest().filter(|_| state.page == Page::Queues) else {
        return String::new();
    };
    let told = now.queues.len() as u64;
    let all = now.queues_total;
    if !state.filter.is_empty() {
        return format!("\"{}\": {} of {all}", cut(&clean(&state.filter), 20), state.lines().len());
    }
    if told < all { format!("{told} of {all} queues") } else { String::new() }
}

const HELP: &str = "\
↑ ↓  j k       move; page up, page down, g and G too
⏎              a queue in detail, with its latest dead letters
/              show only queues whose name holds this; esc: all
s S  > <       sort by the next, by the last column
r              the other way round
p              pause a queue, or let it deliver again
w  tab         the workers, and back
esc            back
q  ^C          quit

QUEUED wait for a worker, FLIGHT are with workers unsettled,
FREE: as many more they would take; ‖ is paused. IN, OUT, DONE:
accepted, delivered, settled. p50 and p99: what half, and 99 of
100, take: to durable, from there to assigned, sent, settled.
Rates are of the last 3 s, latencies of the last 10.

Of many queues the 50 with most tasks are told; name others:
taskyard top QUEUE…";

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let widest = HELP.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = u16::try_from(widest + 4).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(HELP.lines().count() + 2).unwrap_or(u16::MAX).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys ").title_bottom(" any key: back ");
    frame.render_widget(Paragraph::new(HELP).block(block), place);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;
    use serde_json::json;

    use super::super::model::tests::{overview, queue, sample};
    use super::super::state::Confirm;
    use super::*;

    fn state(names: &[&str]) -> State {
        let mut state = State::new("http://127.0.0.1:7070", 1000);
        for n in 0..3 {
            let queues: Vec<Value> =
                names.iter().enumerate().map(|(at, name)| queue(name, 10 * at as u64, 100 * n)).collect();
            state.samples.push(overview(&sample(86_400_000 + n * 1000, &queues)));
        }
        state
    }

    fn screen(state: &State, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("there is memory");
        terminal.draw(|frame| draw(frame, state, Theme { colours: true })).expect("memory does not fail");
        terminal.backend().buffer().clone()
    }

    fn text(buffer: &Buffer) -> Vec<String> {
        let letters: Vec<&str> = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
        letters.chunks(usize::from(buffer.area.width)).map(|row| row.concat().trim_end().to_owned()).collect()
    }

    fn row<'a>(rows: &'a [String], begin: &str) -> &'a str {
        rows.iter()
            .find(|row| row.starts_with(begin))
            .unwrap_or_else(|| panic!("{begin}:\n{}", rows.join("\n")))
    }

    /// The colours of a word's letters.
    fn colour(buffer: &Buffer, word: &str) -> Color {
        let rows = text(buffer);
        let (y, row) = rows.iter().enumerate().find(|(_, row)| row.contains(word)).expect("it is there");
        let x = row[..row.find(word).expect("it is there")].chars().count();
        buffer[(u16::try_from(x).expect("small"), u16::try_from(y).expect("small"))].fg
    }

    #[test]
    fn all_is_there_at_80_by_24() {
        let rows = text(&screen(&state(&["emails", "thumbs"]), 80, 24));
        assert!(
            rows[0].starts_with("taskyard 0.1.0  up 24 h  embedded") && rows[0].ends_with("live"),
            "{rows:#?}"
        );
        assert!(row(&rows, "10 queued").contains("6 leased") || rows[1].contains("10 queued"), "{rows:#?}");
        row(&rows, "4 workers  9 connections  2 queues  120 MiB  25 % CPU  40 files");
        assert!(row(&rows, "accepted 200/s ██").contains("settled 0/s"), "{rows:#?}");
        assert!(
            row(&rows, "    ").contains("durable   assigned       sent    settled  disk sync"),
            "{rows:#?}"
        );
        row(&rows, "p50       10 µs");
        row(&rows, "p99       98 µs");
        let head = row(&rows, "QUEUE ");
        for column in ["▾QUEUED", "LEASED", "DEAD", "OLDEST", "IN/S", "DONE/S", "WORKERS"] {
            assert!(head.contains(column), "{column}: {head}");
        }
        let thumbs = row(&rows, "thumbs");
        assert_eq!(thumbs.split_whitespace().take(2).collect::<Vec<_>>(), ["thumbs", "10"]);
        assert!(rows[23].starts_with("q quit  ? help"), "{rows:#?}");
        // What is to be read from top to bottom stands below each other, to the letter.
        let end = |row: &str, word: &str| row.find(word).map(|at| row[..at + word.len()].chars().count());
        assert_eq!(end(thumbs, " 10"), end(head, "QUEUED"));
    }

    #[test]
    fn a_small_terminal_shows_what_counts_and_a_large_one_more() {
        let all = state(&["emails", "thumbs"]);
        let small = screen(&all, 60, 15);
        let rows = text(&small);
        let head = row(&rows, "QUEUE");
        assert!(head.contains("▾QUEUED") && head.contains("DONE/S") && head.contains("OLDEST"), "{head}");
        row(&rows, "emails");
        row(&rows, "p99");
        let rows = text(&screen(&all, 200, 50));
        let head = row(&rows, "QUEUE");
        assert!(Column::ALL.iter().all(|column| head.contains(column.head())), "{head}");
        assert!(row(&rows, "accepted 200/s").contains("most 200/s"), "{rows:#?}");
        assert!(row(&rows, "p99").contains("12.5 records/sync"), "{rows:#?}");
        // However small, nothing fails.
        for width in 1..100 {
            for height in [1, 2, 7, 8, 9, 14, 26, 27] {
                for page in
                    [Page::Queues, Page::Workers(None), Page::Queue { name: "emails".into(), detail: None }]
                {
                    let mut any = state(&["emails"]);
                    (any.page, any.help) = (page, width % 2 == 0);
                    screen(&any, width, height);
                }
            }
        }
        assert!(text(&screen(&all, 30, 5))[0].starts_with("at least 40×8"), "it says why");
    }

    #[test]
    fn colours_and_words_tell_what_is_wrong() {
        let mut all = state(&[]);
        let mut bad = queue("bad", 7, 0);
        bad["counts"]["dead"] = json!(3);
        bad["oldest_ms"] = json!(3_600_000);
        bad["paused"] = json!(true);
        bad["workers"] = json!(0);
        all.samples.push(overview(&sample(86_403_000, &[bad, queue("good", 0, 0)])));
        all.selected = Some("good".into());
        let seen = screen(&all, 120, 24);
        assert_eq!(colour(&seen, "(paused)"), Color::Yellow);
        assert_eq!(colour(&seen, "none"), Color::Yellow);
        assert_eq!(colour(&seen, "1 h"), Color::Yellow);
        assert_eq!(colour(&seen, "live"), Color::Green);
        let good = text(&seen).iter().position(|row| row.starts_with("good")).expect("it is there");
        let marked = |x| seen[(x, u16::try_from(good).expect("small"))].modifier.contains(Modifier::REVERSED);
        assert!(marked(0) && marked(50), "the whole row is marked");
        assert!((0..120).all(|x| seen[(x, good as u16)].fg == Color::Reset), "nothing is wrong with it");

        all.link = Link::Down { why: "the broker restarts\u{1b}[2J".into() };
        let seen = screen(&all, 80, 24);
        assert_eq!(colour(&seen, "connection lost, trying again: the broker restarts"), Color::Red);
        all.link = Link::Up;
        all.silent_ms = 5000;
        assert_eq!(colour(&screen(&all, 80, 24), "nothing heard for 5.0 s"), Color::Red);

        // Without colours the words are the same.
        let mut terminal = Terminal::new(TestBackend::new(120, 24)).expect("there is memory");
        terminal.draw(|frame| draw(frame, &all, Theme { colours: false })).expect("memory does not fail");
        let buffer = terminal.backend().buffer();
        assert!(buffer.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        assert!(text(buffer).iter().any(|row| row.contains("bad (paused)")));
    }

    #[test]
    fn the_marked_queue_is_always_in_sight() {
        let names: Vec<String> = (0..50).map(|n| format!("queue-{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut all = state(&names);
        for name in &names {
            all.selected = Some((*name).to_owned());
            let seen = screen(&all, 80, 15);
            let y = text(&seen).iter().position(|row| row.starts_with(name)).expect("it is in sight");
            assert!(seen[(0, y as u16)].modifier.contains(Modifier::REVERSED));
        }
        all.filter = "-4".into();
        let rows = text(&screen(&all, 80, 24));
        assert!(rows[23].ends_with("\"-4\": 10 of 50"), "{rows:#?}");
        all.filter = "nowhere".into();
        row(&text(&screen(&all, 80, 24)), "no queue's name has \"nowhere\"");
    }

    #[test]
    fn the_last_line_asks_and_tells() {
        let mut all = state(&["emails"]);
        let last = |all: &State| text(&screen(all, 100, 24))[23].clone();
        all.confirm = Some(Confirm { queue: "emails".into(), pause: true });
        assert!(last(&all).starts_with("Pause emails? y/N  Nothing is delivered"), "{}", last(&all));
        all.confirm = Some(Confirm { queue: "q".repeat(128), pause: false });
        assert!(text(&screen(&all, 60, 15))[14].ends_with("… deliver again? y/N"), "the question is whole");
        all.confirm = Some(Confirm { queue: "emails".into(), pause: false });
        assert!(last(&all).starts_with("Let emails deliver again?"), "{}", last(&all));
        all.confirm = None;
        all.say("emails is paused", false);
        assert_eq!(last(&all), "emails is paused");
        all.notice = None;
        (all.typing, all.filter) = (true, "em".into());
        assert_eq!(last(&all), "/em▏");
        all.help = true;
        let rows = text(&screen(&all, 80, 24));
        assert!(rows.iter().any(|row| row.contains("pause a queue, or let it deliver again")), "{rows:#?}");
    }

    #[test]
    fn a_queue_is_shown_with_its_dead_letters() {
        let mut all = state(&["emails"]);
        all.page = Page::Queue { name: "emails".into(), detail: None };
        row(&text(&screen(&all, 80, 24)), "asking the broker");
        let detail = Detail {
            queue: json!({"queue": "emails", "paused": null, "counts": {"queued": 3, "dead": 1}, "oldest_ms": 5,
                "rates": {"accepted": 1.0}, "workers": 2, "in_flight": 1, "credit_free": 4,
                "settings": {"max_tasks": 7}}),
            dead: vec![json!({"task": "0198c0de-0000-7000-8000-000000000001", "state": "dead", "attempt": 5,
                "max_attempts": 5, "age_ms": 61_000, "worker": "w", "error": "smtp: 451"})],
        };
        all.page = Page::Queue { name: "emails".into(), detail: Some(Box::new(detail)) };
        let rows = text(&screen(&all, 80, 24));
        assert_eq!(row(&rows, "Max tasks"), "Max tasks:       7");
        row(&rows, "Dead letters, the latest first");
        assert!(row(&rows, "0198c0de-0000-7000-8000-000000000001").contains("smtp: 451"), "{rows:#?}");
    }

    #[test]
    fn workers_are_listed() {
        let mut all = state(&["emails"]);
        let worker = |n: usize| {
            json!({"worker": format!("mailer-{n:02}"), "groups": [], "client": "mailer 2.3", "connected_ms": 7_200_000,
                "in_flight": 3, "draining": n == 0, "silent": false,
                "subscriptions": [{"queue": "emails", "credit": 10, "unsettled": 3}]})
        };
        all.page = Page::Workers(Some((0..40).map(worker).collect()));
        assert!(row(&text(&screen(&all, 80, 24)), "mailer-00").contains("draining"));
        all.scroll = 39;
        let rows = text(&screen(&all, 80, 24));
        row(&rows, "WORKER");
        assert!(row(&rows, "mailer-39").contains("emails (3/10)"));
    }

    #[test]
    fn a_pipe_gets_all_of_it_as_text() {
        let names: Vec<String> = (0..50).map(|n| format!("queue-{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = plain(&state(&names), 100);
        assert!(names.iter().all(|name| text.contains(name)), "{text}");
        assert!(text.starts_with("taskyard 0.1.0") && !text.contains('\u{1b}'), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
