//! Sizes in bytes as people type and read them.
//!
//! Units are binary throughout, as in llama.cpp's own messages: `4G`, `4GB` and `4GiB` all mean
//! 4 × 2³⁰ bytes. Case does not matter, and a blank before the unit is allowed, so that whatever
//! [`ByteSize`] prints can be typed back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A number of bytes.
///
/// Parses `4G`, `1500M`, `512K`, `1T`, `4GiB`, `1.5G` and plain bytes (`123456`, `123456B`);
/// prints `4 GiB`, `1.46 GiB`, `312 MiB`. In JSON it is a plain number.
///
/// ```
/// # use pipeshard_model::size::ByteSize;
/// assert_eq!("1.5G".parse::<ByteSize>().unwrap(), ByteSize(3 << 29));
/// assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
/// ```
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// An invalid size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Nothing, or only blanks.
    #[error("invalid size '{0}': it is empty; write 4G, 1500M or a number of bytes")]
    Empty(String),
    /// Does not start with a plain decimal number.
    #[error("invalid size '{0}': it must start with a number; write 4G, 1.5G or 1500M")]
    NoNumber(String),
    /// An unknown unit follows the number.
    #[error(
        "invalid size '{text}': unknown unit '{unit}'; use K, M, G or T (powers of 1024), or no unit for bytes"
    )]
    UnknownUnit {
        /// What was typed.
        text: String,
        /// The part after the number.
        unit: String,
    },
    /// A fraction of a byte.
    #[error(
        "invalid size '{0}': a number of bytes must be whole; add a unit (K, M, G or T) for fractions"
    )]
    FractionOfByte(String),
    /// Does not fit 64 bits.
    #[error("invalid size '{0}': it is more than the largest one, 16777215T")]
    TooLarge(String),
}

impl ByteSize {
    /// Mebibytes, rounded down.
    pub fn mib(self) -> u64 {
        self.0 / MIB
    }

    /// The shortest text for a command line that names this many bytes or just above: whole
    /// mebibytes, rounded up, or plain bytes where that would overflow.
    pub fn to_flag(self) -> String {
        if self.0.is_multiple_of(GIB) && self.0 > 0 {
            return format!("{}G", self.0 / GIB);
        }
        match self.0.checked_next_multiple_of(MIB) {
            Some(up) => format!("{}M", up / MIB),
            None => self.0.to_string(),
        }
    }
}

impl From<u64> for ByteSize {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

/// Why a text is not a number of things.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid number '{0}': write a whole number such as 4096, or 4k or 1M (powers of 1024)")]
pub struct ParseCountError(String);

/// A number of tokens, rows or the like: `4096`, `4k`, `4K` or `1.5K`. Units are powers of 1024, as in [`ByteSize`].
///
/// # Errors
/// Anything else, and what does not come out as a whole number.
///
/// ```
/// # use pipeshard_model::size::parse_count;
/// assert_eq!(parse_count("16k").unwrap(), 16384);
/// assert!(parse_count("16kB").is_err());
/// ```
pub fn parse_count(text: &str) -> Result<u64, ParseCountError> {
    let wrong = || ParseCountError(text.to_owned());
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    if !matches!(unit, "" | "k" | "K" | "m" | "M" | "g" | "G") {
        return Err(wrong());
    }
    let ByteSize(count) = text.parse().map_err(|_| wrong())?;
    let (_, fraction) = number.split_once('.').unwrap_or_default();
    // no fraction of a token is rounded away: d digits times a unit are whole where 10^d divides them
    let digits = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    let scaled = fraction.parse::<u64>().ok().zip(unit_factor(unit));
    let whole = match (scaled, 10_u64.checked_pow(digits)) {
        (Some((part, factor)), Some(scale)) => part
            .checked_mul(factor)
            .is_some_and(|n| n.is_multiple_of(scale)),
        _ => fraction.is_empty(),
    };
    whole.then_some(count).ok_or_else(wrong)
}

fn unit_factor(unit: &str) -> Option<u64> {
    match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kb" | "kib" => Some(KIB),
        "m" | "mb" | "mib" => Some(MIB),
        "g" | "gb" | "gib" => Some(GIB),
        "t" | "tb" | "tib" => Some(TIB),
        _ => None,
    }
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(ParseSizeError::Empty(text.to_owned()));
        }
        let end = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = unit.trim_start();
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (number, None),
        };
        let fraction_is_bad = fraction.is_some_and(|f| f.is_empty() || f.contains('.'));
        if whole.is_empty() || fraction_is_bad {
            return Err(ParseSizeError::NoNumber(text.to_owned()));
        }
        let factor = unit_factor(unit).ok_or_else(|| ParseSizeError::UnknownUnit {
            text: text.to_owned(),
            unit: unit.to_owned(),
        })?;
        if fraction.is_some() && factor == 1 {
            return Err(ParseSizeError::FractionOfByte(text.to_owned()));
        }
        let too_large = || ParseSizeError::TooLarge(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let whole = whole.checked_mul(factor).ok_or_else(too_large)?;
        let part = fraction.map_or(0, |digits| fraction_of(digits, factor));
        whole.checked_add(part).map(ByteSize).ok_or_else(too_large)
    }
}

/// `0.digits × factor`, rounded down. Digits past the 18th are below one byte for every unit.
fn fraction_of(digits: &str, factor: u64) -> u64 {
    let mut value: u128 = 0;
    let mut scale: u128 = 1;
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    // value < scale <= 10^18 and factor <= 2^40: the product fits, and the quotient is < factor.
    (value * u128::from(factor) / scale) as u64
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (factor, unit) = match self.0 {
            n if n >= TIB => (TIB, "TiB"),
            n if n >= GIB => (GIB, "GiB"),
            n if n >= MIB => (MIB, "MiB"),
            n if n >= KIB => (KIB, "KiB"),
            n => return f.pad(&format!("{n} B")),
        };
        // Three significant digits or more, rounded to nearest, in whole-number arithmetic.
        let decimals = match self.0 / factor {
            0..=9 => 2,
            10..=99 => 1,
            _ => 0,
        };
        let scale = 10u128.pow(decimals);
        let scaled = (u128::from(self.0) * scale + u128::from(factor) / 2) / u128::from(factor);
        let (whole, part) = (scaled / scale, scaled % scale);
        if part == 0 {
            return f.pad(&format!("{whole} {unit}"));
        }
        let digits = format!("{part:0width$}", width = decimals as usize);
        f.pad(&format!("{whole}.{} {unit}", digits.trim_end_matches('0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<u64, ParseSizeError> {
        text.parse::<ByteSize>().map(u64::from)
    }

    #[test]
    fn counts_are_whole_numbers_with_a_unit() {
        for (text, count) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("1.5K", 1536),
            ("1.25k", 1280),
            ("2M", 2 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        for text in [
            "",
            "k",
            "4kB",
            "4KiB",
            "4T",
            "4 b",
            "1.5",
            "1.55k",
            "-1",
            "4x",
            "1e3",
            "0.3333333333333333333333k",
        ] {
            let why = parse_count(text).expect_err(text).to_string();
            assert!(why.contains(text) && why.contains("4k"), "{why}");
        }
    }

    #[test]
    fn reads_what_people_type() {
        for (text, bytes) in [
            ("4G", 4 * GIB),
            ("1500M", 1500 * MIB),
            ("512K", 512 * KIB),
            ("2t", 2 * TIB),
            ("4GiB", 4 * GIB),
            ("4gb", 4 * GIB),
            ("1.5G", GIB + GIB / 2),
            ("0.1K", 102),
            (" 40 M ", 40 * MIB),
            ("123456", 123_456),
            ("123B", 123),
            ("0", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn says_why_a_text_is_no_size() {
        for (text, part) in [
            ("", "it is empty"),
            ("  ", "it is empty"),
            ("G", "must start with a number"),
            ("-4G", "must start with a number"),
            (".5G", "must start with a number"),
            ("1.G", "must start with a number"),
            ("1.2.3G", "must start with a number"),
            ("4X", "unknown unit 'X'"),
            ("4G4", "unknown unit 'G4'"),
            ("0x10", "unknown unit 'x10'"),
            ("1e9", "unknown unit 'e9'"),
            ("4,5G", "unknown unit ',5G'"),
            ("1.5", "must be whole"),
            ("99999999999999999999", "more than the largest"),
            ("16777216T", "more than the largest"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("invalid size '{text}': ")),
                "{message}"
            );
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn prints_for_reading_and_for_typing() {
        for (bytes, text, flag) in [
            (0, "0 B", "0M"),
            (1023, "1023 B", "1M"),
            (KIB, "1 KiB", "1M"),
            (1536 * MIB, "1.5 GiB", "1536M"),
            (4 * GIB, "4 GiB", "4G"),
            (4 * GIB + 1, "4 GiB", "4097M"),
            (12_345_678, "11.8 MiB", "12M"),
            (312 * MIB, "312 MiB", "312M"),
            (u64::MAX, "16777216 TiB", "18446744073709551615"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(ByteSize(bytes).to_flag(), flag);
        }
        assert_eq!(format!("{:>9}|", ByteSize(GIB)), "    1 GiB|");
    }

    #[test]
    fn is_a_number_in_json() {
        assert_eq!(serde_json::to_string(&ByteSize(7)).unwrap(), "7");
        assert_eq!(serde_json::from_str::<ByteSize>("7").unwrap(), ByteSize(7));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_text(text in ".{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_units_round_trip(n in 0u64..1 << 23, unit in 0usize..5) {
            let suffix = ["", "K", "M", "G", "T"][unit];
            let bytes = parse(&format!("{n}{suffix}")).unwrap();
            prop_assert_eq!(bytes, n << (10 * unit));
        }

        #[test]
        fn what_is_printed_can_be_typed(bytes in 0u64..1 << 60) {
            let back = parse(&ByteSize(bytes).to_string()).unwrap();
            // Three digits are kept.
            prop_assert!(back.abs_diff(bytes) <= bytes / 150, "{} {}", bytes, back);
            prop_assert!(parse(&ByteSize(bytes).to_flag()).unwrap() >= bytes);
        }
    }
}
