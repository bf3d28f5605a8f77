//! Numbers and texts as people read them: rounded, with a unit, and printable. What has to be read back is in [`crate::units`].

use std::time::Duration;

/// What others have said, for a terminal, which must not obey it. It may have those of `plain`, such as ends of lines.
pub(crate) fn printable(text: &str, plain: &[char]) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() && !plain.contains(&c) { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// A time on this machine's clock.
pub(crate) fn time(unix_ms: u64) -> String {
    local(unix_ms, "%Y-%m-%d %H:%M:%S")
}

/// The same without its day.
pub(crate) fn time_of_day(unix_ms: u64) -> String {
    local(unix_ms, "%H:%M:%S")
}

fn local(unix_ms: u64, format: &str) -> String {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).strftime(format).to_string()
}

/// Bytes.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// How long something took.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// How long something has been: the two largest units, which is all that a person reads.
pub(crate) fn duration(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => format!("{}m {}s", secs / 60, secs % 60),
        3_600..86_400 => format!("{}h {}m", secs / 3_600, secs % 3_600 / 60),
        _ => format!("{}d {}h", secs / 86_400, secs % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_for_people() {
        assert_eq!([size(12), size(5 << 20)], ["12 B", "5 MiB"]);
    }

    #[test]
    fn times_are_rounded_for_people() {
        assert_eq!([micros(999), micros(1_250), micros(2_500_000)], ["999µs", "1.2ms", "2.5s"]);
        assert_eq!([duration(Duration::from_secs(59)), duration(Duration::from_secs(90_000))], ["59s", "1d 1h"]);
    }
}
