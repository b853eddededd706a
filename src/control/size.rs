//! Sizes and durations as people write and read them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Units, largest first: name and bytes.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes, written like `4GiB`, `256MiB`, `4096` or `4096B`. `K`, `M`, `G`, `T` mean the binary units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// What is wrong with a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("`{0}` is not a size: write a whole number and a unit, like 4GiB, 256MiB or 4096B")]
    Malformed(String),
    /// A unit of powers of ten, or none that is known.
    #[error("`{0}` has no unit of binary size: use KiB, MiB, GiB or TiB")]
    Unit(String),
    /// Beyond 2^64 - 1 bytes.
    #[error("`{0}` is beyond 16 EiB")]
    Huge(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let digits_end = trimmed.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(digits_end);
        if digits.is_empty() {
            return Err(SizeError::Malformed(text.to_owned()));
        }
        let unit = unit.trim().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" | "b" => 1,
            "k" | "ki" | "kib" => 1 << 10,
            "m" | "mi" | "mib" => 1 << 20,
            "g" | "gi" | "gib" => 1 << 30,
            "t" | "ti" | "tib" => 1_u64 << 40,
            _ if unit.starts_with(|letter: char| letter.is_ascii_alphabetic()) => {
                return Err(SizeError::Unit(text.to_owned()));
            }
            _ => return Err(SizeError::Malformed(text.to_owned())),
        };
        let number: u64 = digits.parse().map_err(|_| SizeError::Huge(text.to_owned()))?;
        number.checked_mul(factor).map(Self).ok_or_else(|| SizeError::Huge(text.to_owned()))
    }
}

/// Exact: the largest unit that divides the number. What it prints, it parses.
impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) =
            UNITS.into_iter().find(|(_, factor)| self.0.is_multiple_of(*factor)).expect("1 divides all");
        if self.0 == 0 { formatter.write_str("0B") } else { write!(formatter, "{}{name}", self.0 / factor) }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size like \"4GiB\" or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Bytes for a person's eye: three digits and a unit, rounded down. `1.50 GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let (name, factor) = UNITS.into_iter().find(|(_, factor)| bytes >= *factor).unwrap_or(("B", 1));
    let (whole, hundredths) = (bytes / factor, u128::from(bytes % factor) * 100 / u128::from(factor));
    match whole {
        _ if factor == 1 => format!("{bytes} B"),
        0..10 => format!("{whole}.{hundredths:02} {name}"),
        10..100 => format!("{whole}.{} {name}", hundredths / 10),
        _ => format!("{whole} {name}"),
    }
}

/// A duration in nanoseconds for a person's eye. `850 ns`, `12.3 us`, `4.00 s`, `3m 20s`, `2h 05m`, `3d 04h`.
#[must_use]
pub fn show_ns(nanos: u64) -> String {
    let scaled = |factor: u64, unit: &str| {
        let (whole, rest) = (nanos / factor, nanos % factor);
        match whole {
            0..10 => format!("{whole}.{:02} {unit}", rest * 100 / factor),
            10..100 => format!("{whole}.{} {unit}", rest * 10 / factor),
            _ => format!("{whole} {unit}"),
        }
    };
    let seconds = nanos / 1_000_000_000;
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => scaled(1_000, "us"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        _ if seconds < 120 => scaled(1_000_000_000, "s"),
        _ if seconds < 3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4k", 4096),
            ("4 KiB", 4096),
            ("256MiB", 256 << 20),
            (" 4gib ", 4 << 30),
            ("16T", 16 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_to_write() {
        let error = |text: &str| text.parse::<ByteSize>().expect_err(text);
        assert!(matches!(error("4GB"), SizeError::Unit(_)), "powers of ten are not guessed at");
        assert!(matches!(error("GiB"), SizeError::Malformed(_)));
        assert!(matches!(error(""), SizeError::Malformed(_)));
        assert!(matches!(error("-1"), SizeError::Malformed(_)));
        assert!(matches!(error("1.5GiB"), SizeError::Malformed(_)));
        assert!(matches!(error("18446744073709551616"), SizeError::Huge(_)));
        assert!(matches!(error("16777216TiB"), SizeError::Huge(_)));
        assert_eq!("16777215TiB".parse(), Ok(ByteSize(16_777_215 << 40)));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 4 << 30, (4 << 30) + 1, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(4 << 30).to_string(), "4GiB");
    }

    #[test]
    fn figures_for_people_have_three_digits() {
        assert_eq!(show_bytes(0), "0 B");
        assert_eq!(show_bytes(1023), "1023 B");
        assert_eq!(show_bytes(3 << 29), "1.50 GiB");
        assert_eq!(show_bytes(u64::MAX), "16777215 TiB");
        assert_eq!(show_ns(999), "999 ns");
        assert_eq!(show_ns(12_345), "12.3 us");
        assert_eq!(show_ns(4_000_000_000), "4.00 s");
        assert_eq!(show_ns(200 * 1_000_000_000), "3m 20s");
        assert_eq!(show_ns(7500 * 1_000_000_000), "2h 05m");
    }
}
