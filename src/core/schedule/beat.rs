//! When a rhythm beats: periods, and cron patterns in the time of a zone. Pure computing; `Time` is taken as
//! microseconds since 1970.

use chrono::{DateTime, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::Cron;
use croner::parser::{CronParser, Year};
use taskyard_proto::message::YEAR_MS;
use taskyard_proto::{Error, ErrorCode};

use super::Rhythm;
use crate::core::time::Time;

/// The shortest period.
pub const EVERY_MS_MIN: u64 = 100;
/// The longest period: 365 days.
pub const EVERY_MS_MAX: u64 = YEAR_MS;
/// The longest pattern, in bytes: twice what the longest sensible one has.
const PATTERN_BYTES_MAX: usize = 512;
/// What can be written instead of five fields.
const NICKNAMES: [&str; 6] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"];
/// How a pattern looks.
const EXAMPLE: &str =
    "a pattern is MINUTE HOUR DAY MONTH WEEKDAY, or six fields with SECOND in front, like \"30 2 * * 1-5\"";
/// The fields of a pattern, and what they hold.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, L (the last), or 15W (the working day nearest to the 15th)"),
    ("month", "1 to 12, or JAN to DEC"),
    ("weekday", "0 to 7 (0 and 7 are Sunday), SUN to SAT, 5#2 (the second Friday), or 5L (the last)"),
];
/// Zones that a wrong name is told of, at most.
const SUGGESTIONS: usize = 3;

/// A rhythm that was read: it knows its times.
///
/// Where a zone's clock is put forward, a time of day that does not exist is made up for by the first moment that
/// does, if the pattern names single times (`30 2 * * *`); one that repeats within the hour or the day
/// (`*/15 * * * *`) leaves it out. Where the clock is put back, single times beat once, at the first of the two;
/// those that repeat beat in both hours.
///
/// One with a pattern takes about 6 KB.
#[derive(Debug, Clone)]
pub struct Beat(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Every { us: u64 },
    Cron { cron: Box<Cron>, tz: Tz },
}

impl Rhythm {
    /// Reads the rhythm; the error names the field at fault.
    pub fn read(&self) -> Result<Beat, Error> {
        match self {
            Rhythm::Every { ms } if (EVERY_MS_MIN..=EVERY_MS_MAX).contains(ms) => {
                Ok(Beat(Kind::Every { us: ms * 1000 }))
            }
            Rhythm::Every { ms } => Err(wrong(
                "every_ms",
                format!("expected an integer of {EVERY_MS_MIN} to {EVERY_MS_MAX} (365 days), got {ms}"),
            )),
            Rhythm::Cron { pattern, tz } => {
                let zone = zone(tz)?;
                Ok(Beat(Kind::Cron { cron: Box::new(cron(pattern)?), tz: zone }))
            }
        }
    }
}

impl Rhythm {
    /// Refuses what cannot be read, and what has no time behind `now`.
    pub fn check(&self, now: Time) -> Result<Beat, Error> {
        let beat = self.read()?;
        if beat.next(now, now).is_none() {
            return Err(never(self));
        }
        Ok(beat)
    }
}

impl Beat {
    /// The first time behind `after`; none: never again. Periods are counted from `made`.
    pub fn next(&self, made: Time, after: Time) -> Option<Time> {
        match &self.0 {
            Kind::Every { us } => {
                let beats = after.micros_since(made) / us + 1;
                Some(Time(made.0.checked_add(beats.checked_mul(*us)?)?))
            }
            Kind::Cron { cron, tz } => {
                let second = i64::try_from(after.0 / 1_000_000).ok()?;
                let after = DateTime::<Utc>::from_timestamp(second, 0)?.with_timezone(tz);
                let next = cron.find_next_occurrence(&after, false).ok()?;
                Some(Time(u64::try_from(next.timestamp_micros()).ok()?))
            }
        }
    }

    /// The last time that is not behind `now`, if `due` is one such.
    pub(super) fn latest(&self, made: Time, due: Time, now: Time) -> Time {
        if let Kind::Every { us } = &self.0 {
            return Time(made.0 + now.micros_since(made) / us * us).max(due);
        }
        let next = |at: Time| self.next(made, at).filter(|next| *next <= now);
        let Some(mut latest) = next(due) else { return due };
        // Between two beats lies a second at least, and a year may have gone: halve, do not count.
        let (mut low, mut high) = (due, now);
        while high.micros_since(low) > 1_000_000 {
            let middle = Time(low.0 + high.micros_since(low) / 2);
            match next(middle) {
                Some(found) => (low, latest) = (middle, found),
                None => high = middle,
            }
        }
        // The first beat behind `low`, and no second one fits in what is left.
        latest
    }
}

fn wrong(field: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::BadRequest, format!("schedule, field `{field}`: {what}")).field(field)
}

/// What is refused of a rhythm that has no time at all.
fn never(rhythm: &Rhythm) -> Error {
    match rhythm {
        Rhythm::Cron { pattern, .. } => wrong(
            "cron",
            format!(
                "{pattern:?} never comes: there is no such day, as the 30th of February is none; take another day"
            ),
        ),
        Rhythm::Every { .. } => wrong("every_ms", "the time would be too far away"),
    }
}

fn cron(pattern: &str) -> Result<Cron, Error> {
    let shown = shown(pattern);
    if pattern.len() > PATTERN_BYTES_MAX {
        let text = format!("a pattern has at most {PATTERN_BYTES_MAX} bytes, {shown} has {}", pattern.len());
        return Err(wrong("cron", text));
    }
    let trimmed = pattern.trim();
    let parser = CronParser::builder().year(Year::Disallowed).build();
    if trimmed.starts_with('@') {
        if !NICKNAMES.iter().any(|name| name.eq_ignore_ascii_case(trimmed)) {
            let text = format!("{shown} is no pattern: expected one of {}; {EXAMPLE}", NICKNAMES.join(", "));
            return Err(wrong("cron", text));
        }
        return parser.parse(trimmed).map_err(|error| wrong("cron", format!("{shown}: {error}; {EXAMPLE}")));
    }
    let fields: Vec<&str> = trimmed.split_whitespace().collect();
    let Some(first) = FIELDS.len().checked_sub(fields.len()).filter(|first| *first <= 1) else {
        let text = format!("{shown} has {} fields, expected 5 or 6: {EXAMPLE}", fields.len());
        return Err(wrong("cron", text));
    };
    // One by one: the parser does not say which it means.
    for (nth, (name, holds)) in FIELDS.iter().enumerate().skip(first) {
        let field = fields[nth - first];
        let mut alone = ["*"; FIELDS.len()];
        alone[nth] = field;
        // It takes a month's name for a number wherever it stands, and an empty place in a list for nothing.
        let astray = nth < 3 && field.contains(|c: char| c.is_ascii_alphabetic());
        let gap = field.split(',').any(str::is_empty);
        if astray || gap || !field.is_ascii() || parser.parse(&alone.join(" ")).is_err() {
            let text = format!(
                "{shown}: {} is no {name}: expected {holds}; lists 1,2, ranges 1-5 and steps */2 or 1-9/2 of these, \
                 or *; {EXAMPLE}",
                self::shown(field)
            );
            return Err(wrong("cron", text));
        }
    }
    parser.parse(trimmed).map_err(|error| wrong("cron", format!("{shown}: {error}; {EXAMPLE}")))
}

fn zone(name: &str) -> Result<Tz, Error> {
    name.parse().map_err(|_| {
        let near = near(name);
        let hint =
            if near.is_empty() { String::from(".") } else { format!(": did you mean {}?", near.join(", ")) };
        let text = format!(
            "there is no time zone {}{hint} Expected a name of the IANA database, like Europe/Zurich or UTC",
            shown(name)
        );
        wrong("tz", text)
    })
}

/// The zones whose names are most like this one, or whose city is.
fn near(name: &str) -> Vec<&'static str> {
    let folded = |text: &str| text.to_ascii_lowercase().replace([' ', '-'], "_");
    let wanted: String = folded(name).chars().take(64).collect();
    let likeness = |zone: &str| {
        let zone = folded(zone);
        let city = zone.rsplit('/').next().unwrap_or_default();
        strsim::jaro_winkler(&zone, &wanted).max(strsim::jaro_winkler(city, &wanted))
    };
    let mut all: Vec<(f64, &str)> = TZ_VARIANTS.iter().map(|tz| (likeness(tz.name()), tz.name())).collect();
    all.retain(|(likeness, _)| *likeness > 0.85);
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    all.truncate(SUGGESTIONS);
    all.into_iter().map(|(_, name)| name).collect()
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        Time(DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros() as u64)
    }

    fn told(time: Time) -> String {
        DateTime::<Utc>::from_timestamp_micros(time.0 as i64)
            .unwrap()
            .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
    }

    fn beat(pattern: &str, tz: &str) -> Beat {
        Rhythm::Cron { pattern: pattern.into(), tz: tz.into() }.read().unwrap()
    }

    /// The first times behind `from`, in UTC.
    fn times(pattern: &str, tz: &str, from: &str, count: usize) -> Vec<String> {
        let beat = beat(pattern, tz);
        let next = |time: &Time| beat.next(Time(0), *time);
        std::iter::successors(next(&at(from)), next).take(count).map(told).collect()
    }

    fn refused(pattern: &str, tz: &str) -> Error {
        Rhythm::Cron { pattern: pattern.into(), tz: tz.into() }.read().unwrap_err()
    }

    #[test]
    fn a_period_is_counted_from_the_making_without_drift() {
        let made = at("2027-01-01T00:00:00.123456Z");
        let beat = Rhythm::Every { ms: 1500 }.read().unwrap();
        assert_eq!(beat.next(made, made), Some(made.plus_ms(1500)));
        assert_eq!(beat.next(made, made.plus_ms(1499)), Some(made.plus_ms(1500)));
        assert_eq!(beat.next(made, made.plus_ms(1500)), Some(made.plus_ms(3000)));
        assert_eq!(beat.next(made, made.plus_ms(1_000_000_000)), Some(made.plus_ms(1_000_000_500)));
        assert_eq!(beat.next(made, Time(0)), Some(made.plus_ms(1500)), "a clock that went back");
        assert_eq!(beat.next(made, Time(u64::MAX)), None);
        assert_eq!(beat.latest(made, made.plus_ms(1500), made.plus_ms(7499)), made.plus_ms(6000));
        assert_eq!(beat.latest(made, made.plus_ms(1500), made.plus_ms(1500)), made.plus_ms(1500));
        for ms in [0, 99, YEAR_MS + 1, u64::MAX] {
            let error = Rhythm::Every { ms }.read().unwrap_err();
            assert!(error.message.as_str().contains("100 to 31536000000"), "{error:?}");
        }
        assert!(Rhythm::Every { ms: 100 }.read().is_ok() && Rhythm::Every { ms: YEAR_MS }.read().is_ok());
    }

    #[test]
    fn patterns_of_five_fields_six_fields_and_nicknames() {
        let from = "2027-01-01T12:00:00Z";
        assert_eq!(times("* * * * *", "UTC", from, 2), ["2027-01-01T12:01:00Z", "2027-01-01T12:02:00Z"]);
        assert_eq!(times("*/20 * * * * *", "UTC", from, 2), ["2027-01-01T12:00:20Z", "2027-01-01T12:00:40Z"]);
        assert_eq!(times("@daily", "UTC", from, 1), ["2027-01-02T00:00:00Z"]);
        assert_eq!(times("@HOURLY", "UTC", from, 1), ["2027-01-01T13:00:00Z"]);
        // A Friday that day; Monday follows.
        assert_eq!(times("0 9 * * mon-fri", "UTC", from, 1), ["2027-01-04T09:00:00Z"]);
        assert_eq!(times("0 9 * * 1-5", "UTC", from, 1), ["2027-01-04T09:00:00Z"]);
        assert_eq!(times("0 0 L * *", "UTC", from, 2), ["2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z"]);
        assert_eq!(times("0 0 * * 5#2", "UTC", from, 1), ["2027-01-08T00:00:00Z"]);
        assert_eq!(times("0 9 * * *", "Asia/Tokyo", from, 1), ["2027-01-02T00:00:00Z"]);
        // Between two seconds, and at the very one.
        assert_eq!(times("* * * * * *", "UTC", "2027-01-01T12:00:00.5Z", 1), ["2027-01-01T12:00:01Z"]);
        assert_eq!(times("0 12 * * *", "UTC", from, 1), ["2027-01-02T12:00:00Z"]);
    }

    #[test]
    fn a_leap_day_comes_every_four_years() {
        let leap = ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"];
        assert_eq!(times("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2), leap);
        // No leap year is 2100.
        let leap = ["2096-02-29T00:00:00Z", "2104-02-29T00:00:00Z"];
        assert_eq!(times("0 0 29 2 *", "UTC", "2093-01-01T00:00:00Z", 2), leap);
    }

    #[test]
    fn a_day_that_never_comes_has_no_time() {
        for pattern in ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(beat(pattern, "UTC").next(Time(0), at("2027-01-01T00:00:00Z")), None, "{pattern}");
        }
    }

    #[test]
    fn a_time_that_the_clock_skips_is_made_up_for_once() {
        // On 2027-03-28 in Zurich 02:00 is 03:00, which is 01:00 UTC.
        let from = "2027-03-27T12:00:00Z";
        let single = ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"];
        assert_eq!(times("30 2 * * *", "Europe/Zurich", from, 2), single);
        let repeated = times("*/30 * * * *", "Europe/Zurich", "2027-03-28T00:00:00Z", 4);
        let expected =
            ["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z", "2027-03-28T02:00:00Z"];
        assert_eq!(repeated, expected, "each half hour of real time");
        // Two times within the skipped hour are, by its fields, one that repeats.
        let both = times("0,30 2 * * *", "Europe/Zurich", from, 2);
        assert_eq!(both, ["2027-03-29T00:00:00Z", "2027-03-29T00:30:00Z"]);
    }

    #[test]
    fn a_time_that_comes_twice_is_the_first_unless_it_repeats() {
        // On 2027-10-31 in Zurich 03:00 is 02:00 again, at 01:00 UTC.
        let from = "2027-10-30T12:00:00Z";
        let single = ["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"];
        assert_eq!(times("30 2 * * *", "Europe/Zurich", from, 2), single);
        let repeated = times("*/30 2 * * *", "Europe/Zurich", from, 5);
        let expected = [
            "2027-10-31T00:00:00Z",
            "2027-10-31T00:30:00Z",
            "2027-10-31T01:00:00Z",
            "2027-10-31T01:30:00Z",
            "2027-11-01T01:00:00Z",
        ];
        assert_eq!(repeated, expected);
    }

    #[test]
    fn the_latest_time_is_found_without_counting() {
        let now = at("2027-10-31T01:10:00Z");
        let cases = [
            ("30 2 * * *", "Europe/Zurich", "2027-10-28T00:30:00Z", "2027-10-31T00:30:00Z"),
            ("*/30 2 * * *", "Europe/Zurich", "2027-10-28T00:30:00Z", "2027-10-31T01:00:00Z"),
            ("* * * * * *", "UTC", "2020-01-01T00:00:00Z", "2027-10-31T01:10:00Z"),
            ("0 0 29 2 *", "UTC", "2020-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
            ("10 1 * * *", "UTC", "2027-10-30T01:10:00Z", "2027-10-31T01:10:00Z"),
        ];
        for (pattern, tz, due, latest) in cases {
            assert_eq!(told(beat(pattern, tz).latest(Time(0), at(due), now)), latest, "{pattern}");
        }
        // Against counting, across both changes of the clock.
        for pattern in ["17 2 * * *", "*/7 * * * *", "0 3 * * 0", "59 2,3 * * *"] {
            let beat = beat(pattern, "Europe/Zurich");
            for from in ["2027-03-26T00:00:00Z", "2027-10-29T00:00:00Z"] {
                let first = beat.next(Time(0), at(from)).unwrap();
                let mut counted = first;
                for hours in 0..96 {
                    let now = first.plus_ms(hours * 3_600_000 + 123);
                    while let Some(next) = beat.next(Time(0), counted).filter(|next| *next <= now) {
                        counted = next;
                    }
                    assert_eq!(beat.latest(Time(0), first, now), counted, "{pattern} {from} {hours}");
                }
            }
        }
    }

    #[test]
    fn a_wrong_pattern_is_told_which_field_and_what_it_should_be() {
        for (pattern, part) in [
            ("", "has 0 fields"),
            ("* * * *", "has 4 fields"),
            ("* * * * * * *", "has 7 fields"),
            ("60 * * * *", "\"60\" is no minute: expected 0 to 59"),
            ("* 24 * * *", "\"24\" is no hour"),
            ("* * 32 * *", "\"32\" is no day of the month"),
            ("* * 0 * *", "\"0\" is no day of the month"),
            ("* * * 13 *", "\"13\" is no month"),
            ("* * * * 8", "\"8\" is no weekday"),
            ("61 * * * * *", "\"61\" is no second"),
            ("SUN * * * *", "\"SUN\" is no minute"),
            (", * * * *", "\",\" is no minute"),
            ("5-1 * * * *", "is no minute"),
            ("*/0 * * * *", "is no minute"),
            ("1/ * * * *", "is no minute"),
            ("* * * * MONDAY", "is no weekday"),
            ("* * ٣ * *", "is no day of the month"),
            ("@noon", "expected one of @yearly"),
            ("@daily @daily", "expected one of"),
        ] {
            let error = refused(pattern, "UTC");
            assert_eq!(error.code, ErrorCode::BadRequest);
            assert!(error.message.as_str().contains(part), "{pattern}: {}", error.message.as_str());
            assert!(error.message.as_str().contains("30 2 * * 1-5"), "{}", error.message.as_str());
            assert_eq!(error.field.0.as_ref().unwrap().as_str(), "cron");
        }
        assert!(refused(&"1,".repeat(300), "UTC").message.as_str().contains("at most 512 bytes"));
    }

    #[test]
    fn an_unknown_zone_is_told_of_those_like_it() {
        for (given, meant) in [
            ("Europe/Zurch", "Europe/Zurich"),
            ("europe/zurich", "Europe/Zurich"),
            ("Zurich", "Europe/Zurich"),
            ("America/New York", "America/New_York"),
            ("Tokyo", "Asia/Tokyo"),
        ] {
            let error = refused("* * * * *", given);
            assert!(error.message.as_str().contains(&format!("did you mean {meant}")), "{error:?}");
            assert_eq!(error.field.0.as_ref().unwrap().as_str(), "tz");
        }
        let error = refused("* * * * *", "qqqqqq");
        assert!(error.message.as_str().contains("IANA"), "{error:?}");
        refused("* * * * *", &"x".repeat(100_000));
    }

    /// Whatever is put together of what patterns are made of is read or refused, and asked for its times in
    /// bounded work.
    #[test]
    fn no_pattern_stops_the_clock() {
        let parts = [
            "*", "0", "7", "59", "31", "L", "W", "15W", "LW", "#", "5#2", "5L", "-", "/", ",", "?", "+",
            "65535",
        ];
        let mut state = 1_u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut read = 0;
        for _ in 0..3000 {
            let mut field = || match draw(3) {
                0 => (0..1 + draw(3)).map(|_| parts[draw(parts.len())]).collect(),
                1 => parts[draw(5)].to_owned(),
                _ => "*".to_owned(),
            };
            let pattern: Vec<String> = (0..5).map(|_| field()).collect();
            let rhythm = Rhythm::Cron { pattern: pattern.join(" ").into(), tz: "Europe/Zurich".into() };
            if let Ok(beat) = rhythm.read() {
                read += 1;
                let from = at("2027-03-28T00:59:59Z");
                assert!(beat.next(Time(0), from).is_none_or(|next| next > from), "{rhythm:?}");
            }
        }
        assert!(read > 100, "{read}");
    }
}
