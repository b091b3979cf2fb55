//! Plots, as SVG inside of HTML. Positions along the x axis are percentages and texts are not scaled, so
//! that a plot is as wide as its window; labels are HTML and wrap.

use std::fmt::Write as _;

use crate::compare::summary::{Row, Spread};

/// What a text means in HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Ours, the floor's, or a peer's: the colour.
pub(crate) fn class(row: &Row) -> &'static str {
    match (row.is_ours(), row.is_floor()) {
        (true, _) => "ours",
        (_, true) => "floor",
        _ => "peer",
    }
}

/// A bar.
pub(crate) struct Bar<'a> {
    pub(crate) row: &'a Row,
    pub(crate) spread: Spread,
    /// What stands behind it.
    pub(crate) text: String,
}

/// Bars from zero to a common end, with whiskers from the least to the most.
pub(crate) fn bars(bars: &[Bar<'_>], end: f64) -> String {
    let percent = |value: f64| (value / end.max(f64::MIN_POSITIVE) * 100.0).clamp(0.0, 100.0);
    let mut out = String::from("<div class=rows>\n");
    for Bar { row, spread, text } in bars {
        let title = format!("{}: {} … {}", row.label(), number(spread.min), number(spread.max));
        let (low, middle, high) = (percent(spread.min), percent(spread.median), percent(spread.max));
        // A text takes what is written to it.
        let _ = writeln!(
            out,
            "<div class=label>{}</div><svg class=bar role=img aria-label=\"{title}\"><title>{title}</title>\
             <rect class={} x=0 y=3 height=14 width=\"{middle:.2}%\" rx=2 />\
             <g class=whisker><line x1=\"{low:.2}%\" x2=\"{high:.2}%\" y1=10 y2=10 />\
             <line x1=\"{low:.2}%\" x2=\"{low:.2}%\" y1=6 y2=14 />\
             <line x1=\"{high:.2}%\" x2=\"{high:.2}%\" y1=6 y2=14 /></g></svg><div class=value>{text}</div>",
            label(row),
            class(row),
            title = escape(&title),
        );
    }
    out.push_str("</div>\n");
    out
}

fn label(row: &Row) -> String {
    let setting = escape(&row.setting);
    format!("<b class={}>{}</b> <span>{setting}</span>", class(row), escape(&row.system))
}

/// From the first to the last of some figures of each row, on a logarithmic scale: a dot for each.
pub(crate) fn ranges(rows: &[(&Row, Vec<f64>, String)], legend: &str) -> String {
    let all = rows.iter().flat_map(|(_, figures, _)| figures.iter().copied());
    let Some(scale) = Scale::logarithmic(all) else { return String::new() };
    let mut out = format!("<p class=legend>{legend}</p><div class=rows>\n<div></div><svg class=axis>");
    for tick in &scale.ticks {
        let _ = write!(out, "<text x=\"{:.2}%\" y=12>{}</text>", scale.percent(*tick), number(*tick));
    }
    out.push_str("</svg><div></div>\n");
    for (row, figures, text) in rows {
        let _ = write!(
            out,
            "<div class=label>{}</div><svg class=bar><title>{}</title>",
            label(row),
            escape(text)
        );
        for tick in &scale.ticks {
            let at = scale.percent(*tick);
            let _ = write!(out, "<line class=grid x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=0 y2=20 />");
        }
        if let (Some(first), Some(last)) = (figures.first(), figures.last()) {
            let (from, to) = (scale.percent(*first), scale.percent(*last));
            let _ = write!(
                out,
                "<line class=\"range {}\" x1=\"{from:.2}%\" x2=\"{to:.2}%\" y1=10 y2=10 />",
                class(row)
            );
        }
        for (nth, figure) in figures.iter().enumerate() {
            let at = scale.percent(*figure);
            let radius = if nth == 0 { 6 } else { 4 };
            let _ = write!(out, "<circle class={} cx=\"{at:.2}%\" cy=10 r={radius} />", class(row));
        }
        let _ = writeln!(out, "</svg><div class=value>{}</div>", escape(text));
    }
    out.push_str("</div>\n");
    out
}

/// A line of a curve plot.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Drawn stronger.
    pub(crate) ours: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// How an axis is divided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Scale {
    /// Around some figures, at 1, 2 and 5 of each decade; at fewer where they would touch.
    pub(crate) fn logarithmic(figures: impl Iterator<Item = f64>) -> Option<Scale> {
        let (mut low, mut high) = (f64::INFINITY, 0f64);
        for figure in figures.filter(|figure| *figure > 0.0 && figure.is_finite()) {
            (low, high) = (low.min(figure), high.max(figure));
        }
        if high <= 0.0 {
            return None;
        }
        let (low, high) = (low / 1.2, high * 1.2);
        let wide = (high / low).log10() > 2.0;
        let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        let ticks = ticks.filter(|tick| (low..=high).contains(tick)).collect();
        Some(Scale { low, high, log: true, ticks })
    }

    /// From zero, in some five steps of 1, 2 or 5.
    pub(crate) fn linear(most: f64) -> Scale {
        let raw = most.max(f64::MIN_POSITIVE) / 4.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw);
        let step = step.unwrap_or(raw);
        let count = (most / step).ceil().max(1.0) as u32;
        Scale {
            low: 0.0,
            high: step * f64::from(count),
            log: false,
            ticks: (0..=count).map(|nth| step * f64::from(nth)).collect(),
        }
    }

    /// Where a figure is, in percent of the axis.
    pub(crate) fn percent(&self, figure: f64) -> f64 {
        let part = match self.log {
            true => (figure.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (figure - self.low) / (self.high - self.low),
        };
        (part * 100.0).clamp(0.0, 100.0)
    }
}

/// How high the curves are, and the texts below them, in pixels.
const HEIGHT: f64 = 260.0;
const BOTTOM: f64 = 22.0;

/// Curves with a legend. `x_ticks` are places on the x axis and what is written there.
pub(crate) fn curves(lines: &[Line], (x, y): (&Scale, &Scale), x_ticks: &[(f64, String)]) -> String {
    let down = |figure: f64| HEIGHT * (1.0 - y.percent(figure) / 100.0);
    let mut out = format!("<div class=plot><div class=ys style=\"height:{HEIGHT}px\">");
    for tick in &y.ticks {
        let _ = write!(out, "<span style=\"top:{:.1}px\">{}</span>", down(*tick), number(*tick));
    }
    let _ = write!(out, "</div><svg class=curves height={}>", HEIGHT + BOTTOM);
    for tick in &y.ticks {
        let at = down(*tick);
        let _ = write!(out, "<line class=grid x1=0 x2=\"100%\" y1={at:.1} y2={at:.1} />");
    }
    for (place, text) in x_ticks {
        let at = x.percent(*place);
        let anchor = match at {
            ..5.0 => "start",
            95.0.. => "end",
            _ => "middle",
        };
        let _ = write!(
            out,
            "<text x=\"{at:.2}%\" y={} text-anchor={anchor}>{}</text>",
            HEIGHT + BOTTOM - 6.0,
            escape(text)
        );
    }
    let _ = write!(
        out,
        "<svg x=0 y=0 width=\"100%\" height={HEIGHT} viewBox=\"0 0 100 {HEIGHT}\" preserveAspectRatio=none>"
    );
    for (nth, line) in lines.iter().enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|(a, b)| format!("{:.2},{:.1}", x.percent(*a), down(*b))).collect();
        let (colour, dash) = style(nth);
        let _ = write!(
            out,
            "<polyline class=\"{colour}{}\" stroke-dasharray=\"{dash}\" points=\"{}\">\
             <title>{}</title></polyline>",
            if line.ours { " strong" } else { "" },
            points.join(" "),
            escape(&line.name)
        );
    }
    out.push_str("</svg></svg></div><p class=legend>");
    for (nth, line) in lines.iter().enumerate() {
        let (colour, dash) = style(nth);
        let _ = write!(
            out,
            "<span class=key><svg width=28 height=10><line class={colour} stroke-dasharray=\"{dash}\" x1=0 \
             x2=28 y1=5 y2=5 /></svg>{}</span> ",
            escape(&line.name)
        );
    }
    out.push_str("</p>\n");
    out
}

/// How the n-th line looks: eight colours, then dashed.
fn style(nth: usize) -> (String, &'static str) {
    (format!("c{}", nth % COLOURS), ["none", "6 3", "2 2"][nth / COLOURS % 3])
}

const COLOURS: usize = 8;

/// A number as short as it is clear: 1.2M, 340k, 87, 3.5.
pub(crate) fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled.abs() >= 100.0 {
        0
    } else if scaled.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.57, 3.5, 87.26, 340.4, 1000.0, 121_900.0, 1_234_567.0].map(number);
        assert_eq!(texts, ["0", "0.57", "3.5", "87.3", "340", "1k", "122k", "1.23M"]);
    }

    #[test]
    fn scales_hold_what_they_are_made_for() {
        let log = Scale::logarithmic([90.0, 0.0, 450.0].into_iter()).expect("figures above zero");
        assert_eq!(log.ticks, [100.0, 200.0, 500.0]);
        assert!(log.percent(90.0) > 0.0 && log.percent(450.0) < 100.0);
        assert!(Scale::logarithmic([0.0].into_iter()).is_none());
        let linear = Scale::linear(870.0);
        assert_eq!(linear.ticks, [0.0, 500.0, 1000.0]);
        assert_eq!(linear.percent(500.0), 50.0);
    }
}
