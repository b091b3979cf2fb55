//! Spans of time: how they are given on the command line, and how they are shown.

use std::time::Duration;

/// The longest span of the protocol: 365 days.
const YEAR_MS: u64 = taskyard_proto::message::YEAR_MS;

/// A span of time as a number and a unit, in milliseconds; 0 is one.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number and a unit, as 500ms, 30s, 15m, 12h or 90d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    if number.is_empty() {
        return Err(wrong());
    }
    let number: Option<u64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(unit_ms)).ok_or_else(|| "expected a shorter time".to_owned())
}

/// A span of at least a millisecond and at most a year: what the protocol can say.
pub(super) fn within_a_year(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("expected a time longer than nothing".into()),
        ms if ms > YEAR_MS => Err("expected at most 365d".into()),
        ms => Ok(ms),
    }
}

/// The same, or nothing.
pub(super) fn up_to_a_year(text: &str) -> Result<u64, String> {
    match parse(text)? {
        ms if ms > YEAR_MS => Err("expected at most 365d".into()),
        ms => Ok(ms),
    }
}

/// How long a token is good: what ends in the distant future is checked by who knows the time.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    match parse(text) {
        Ok(ms) if ms >= 1000 => Ok(Duration::from_millis(ms)),
        Ok(_) => Err("expected a time from 1s on".into()),
        Err(error) => Err(error),
    }
}

/// A span of time as people say it, in at most seven letters; rounded down.
pub(super) fn short(ms: u64) -> String {
    // A small number of a long unit says too little without its tenths.
    let of = |unit: u64, name: &str| match (ms / unit, ms / (unit / 10) % 10) {
        (whole @ 0..10, tenths @ 1..) => format!("{whole}.{tenths} {name}"),
        (whole, _) => format!("{whole} {name}"),
    };
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", (ms / 100) as f64 / 10.0),
        60_000..3_600_000 => of(60_000, "min"),
        3_600_000..172_800_000 => of(3_600_000, "h"),
        _ => of(86_400_000, "d"),
    }
}

/// The same, exactly, as [`parse`] reads it.
pub(super) fn exact(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_and_a_unit() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("15m", 900_000),
            ("12h", 43_200_000),
            ("90d", 7_776_000_000),
        ] {
            assert_eq!(parse(text), Ok(ms));
            assert_eq!(parse(&exact(ms)), Ok(ms), "what is shown can be given");
        }
        for text in
            ["", "s", "30", "1w", "-1s", "+1s", "1.5h", " 1s", "1é", "1 s", "1sm", "99999999999999999999d"]
        {
            assert!(parse(text).unwrap_err().contains("expected"), "{text}");
        }
        assert!(within_a_year("0s").is_err() && up_to_a_year("0s").is_ok());
        assert!(within_a_year("365d").is_ok() && within_a_year("366d").is_err());
        assert!(lifetime("999ms").is_err() && lifetime("1s").is_ok() && lifetime("9999d").is_ok());
    }

    #[test]
    fn spans_are_shown_as_people_say_them() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (119_999, "1.9 min"),
            (659_999, "10 min"),
            (3_600_000, "1 h"),
            (172_799_999, "47 h"),
            (172_800_000, "2 d"),
            (216_000_000, "2.5 d"),
        ] {
            assert_eq!(short(ms), text);
        }
        assert_eq!((exact(90_000).as_str(), exact(60_000).as_str()), ("90s", "1m"));
    }
}
