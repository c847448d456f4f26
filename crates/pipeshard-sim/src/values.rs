//! Reads the values of a simulated GPU's specification: sizes, rates, durations, counts and switches.

use super::error::SpecError;
use super::faults::Faults;
use super::pins::PinPolicy;
use pipeshard_model::size::ByteSize;

pub(super) fn size(key: &str, value: &str) -> Result<u64, SpecError> {
    value
        .parse::<ByteSize>()
        .map(u64::from)
        .map_err(|source| SpecError::Size {
            key: key.to_owned(),
            source,
        })
}

pub(super) fn number(key: &str, value: &str, least: u64) -> Result<u64, SpecError> {
    value
        .parse::<u64>()
        .ok()
        .filter(|n| *n >= least)
        .ok_or_else(|| SpecError::Number {
            key: key.to_owned(),
            value: value.to_owned(),
            least,
        })
}

pub(super) fn faults(key: &str, value: &str) -> Result<Faults, SpecError> {
    Faults::parse(value).ok_or_else(|| SpecError::Number {
        key: key.to_owned(),
        value: value.to_owned(),
        least: 1,
    })
}

pub(super) fn switch(key: &str, value: &str) -> Result<bool, SpecError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(SpecError::Switch {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
    }
}

pub(super) fn pin_policy(key: &str, value: &str) -> Result<PinPolicy, SpecError> {
    match switch(key, value) {
        Ok(true) => Ok(PinPolicy::Unlimited),
        Ok(false) => Ok(PinPolicy::Refused),
        Err(neither) => match value.parse::<ByteSize>() {
            Ok(size) => Ok(PinPolicy::Limited(size.0)),
            Err(_) => Err(neither),
        },
    }
}

/// Splits `12.5us` into the number and `us`. The number is plain decimal, so it is finite and not negative.
fn decimal(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// A product as a whole number, if one can hold it.
fn whole(number: f64, factor: f64) -> Option<u64> {
    let product = (number * factor).round();
    (product < 1e18).then_some(product as u64)
}

pub(super) fn rate(key: &str, value: &str) -> Result<u64, SpecError> {
    let parse = || {
        let (number, unit) = decimal(value)?;
        let factor = match unit.to_ascii_uppercase().as_str() {
            "" => 1.0,
            "K" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "P" => 1e15,
            _ => return None,
        };
        whole(number, factor).filter(|n| *n > 0)
    };
    parse().ok_or_else(|| SpecError::Rate {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

/// Nanoseconds; `plain` is what a number without a unit counts in.
pub(super) fn duration_ns(key: &str, value: &str, plain: u64) -> Result<u64, SpecError> {
    let parse = || {
        let (number, unit) = decimal(value)?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" => plain as f64,
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            _ => return None,
        };
        whole(number, factor)
    };
    parse().ok_or_else(|| SpecError::Duration {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}
