//! Sizes, block size ranges and durations as people write them, and the way back.
//!
//! `4k`, `4K`, `4KiB` and `4096` are the same size: all multiples are powers of 1024. A duration is a number with `ms`, `s`
//! (the default), `m` or `h`.

use std::time::Duration;

/// The longest duration that is accepted: 30 days. Keeps every sum of instants far from overflow.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The lengths of requests, in bytes: every one lies in `min..=max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRange {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

/// Reads a size in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a size: write for example 4096, 4k or 1GiB"))?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(format!("`{text}`: unknown unit `{unit}`: use k, m, g or t")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is larger than 2^64 bytes"))
}

/// Reads one size (`4k`) or a range of sizes (`512-64k`), from 1 byte to 32 MiB.
pub(crate) fn parse_blocks(text: &str) -> Result<BlockRange, String> {
    let (min, max) = match text.split_once('-') {
        Some((min, max)) => (parse_size(min)?, parse_size(max)?),
        None => (parse_size(text)?, parse_size(text)?),
    };
    if min == 0 || max < min {
        return Err(format!("`{text}`: the sizes must be at least 1 byte and in ascending order"));
    }
    if max > 32 << 20 {
        return Err(format!("`{text}`: a request carries at most 32 MiB"));
    }
    Ok(BlockRange { min, max })
}

/// Reads a duration, at most 30 days.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("`{text}` is not a duration: write for example 10, 1.5s, 200ms or 2m");
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    match Duration::try_from_secs_f64(number * factor) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(format!("`{text}` is longer than 30 days")),
    }
}

/// A byte count or position as an index into memory: both have 64 bits on every platform that is supported.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("64-bit platforms only")
}

/// A length in memory as a byte count.
pub(crate) fn bytes(length: usize) -> u64 {
    u64::try_from(length).expect("64-bit platforms only")
}

/// A duration in nanoseconds; 584 years at most.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `part` per second of `elapsed`; zero when no time passed.
pub(crate) fn per_second(part: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { part as f64 / seconds } else { 0.0 }
}

/// Bytes for people, for example `1.50 GiB`.
pub(crate) fn show_bytes(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{value:.0} B") } else { format!("{value:.2} {unit}") }
}

/// A count or rate for people, for example `12.3 k`.
pub(crate) fn show_count(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{:.2} M", c / 1e6),
        c if c >= 1e4 => format!("{:.1} k", c / 1e3),
        c if c >= 100.0 || c.fract() == 0.0 => format!("{c:.0}"),
        c => format!("{c:.1}"),
    }
}

/// A latency for people, for example `12.3 us`.
pub(crate) fn show_latency(nanoseconds: u64) -> String {
    match nanoseconds as f64 {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.1} us", n / 1e3),
        n if n < 1e9 => format!("{:.2} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_up_to_the_bound() {
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size(" 1 GiB"), Ok(1 << 30));
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_size("16777215t"), Ok(16_777_215 << 40));
        for bad in ["", "k", "-1", "4x", "1.5k", "16777216t", "18446744073709551616", "4k4"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn block_ranges_are_ordered_and_bounded() {
        assert_eq!(parse_blocks("4k"), Ok(BlockRange { min: 4096, max: 4096 }));
        assert_eq!(parse_blocks("512-64k"), Ok(BlockRange { min: 512, max: 65536 }));
        assert_eq!(parse_blocks("32m"), Ok(BlockRange { min: 32 << 20, max: 32 << 20 }));
        for bad in ["0", "0-4k", "8k-4k", "33554433", "-", "4k-", "-4k", "1-2-3"] {
            assert!(parse_blocks(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("0.5m"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("720h"), Ok(LONGEST));
        for bad in ["", "s", "-1", "721h", "1e400", "nan", "1..5", "5d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_are_shown_for_people() {
        assert_eq!(show_bytes(1536.0), "1.50 KiB");
        assert_eq!(show_bytes(12.0), "12 B");
        assert_eq!(show_count(123_456.0), "123.5 k");
        assert_eq!(show_latency(12_345), "12.3 us");
    }
}
