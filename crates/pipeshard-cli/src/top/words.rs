//! Figures and classes, as the view and the text of `--once` show them.

use pipeshard::report::MemoryHeld;
use pipeshard_model::size::ByteSize;

/// A class of device memory: its name, what the bar is made of, and its bytes.
pub type Class = (&'static str, char, u64);

/// All classes, in the order of the bar.
pub fn classes(held: &MemoryHeld) -> [Class; 6] {
    [
        ("resident", '\u{2588}', held.resident),
        ("kv", '\u{2593}', held.kv),
        ("slots", '\u{2592}', held.slots),
        ("scratch", '\u{2591}', held.scratch),
        ("vision", '#', held.vision),
        ("other", '+', held.other),
    ]
}

/// How many of `width` columns each class takes of a bar that stands for `whole` bytes. What is held has a column at least, while
/// there are any; the sum is `width` at most.
pub fn columns(held: &MemoryHeld, whole: u64, width: usize) -> [usize; 6] {
    let whole = u128::from(whole.max(held.total()).max(1));
    let mut left = width;
    classes(held).map(|(_, _, bytes)| {
        let share = (u128::from(bytes) * width as u128 + whole / 2) / whole;
        let share = (share as usize).max(usize::from(bytes > 0)).min(left);
        left -= share;
        share
    })
}

/// A number per second, with three digits.
pub fn per_second(number: f64) -> String {
    match number {
        n if n >= 100.0 => format!("{n:.0}/s"),
        n if n >= 10.0 => format!("{n:.1}/s"),
        n if n > 0.0 => format!("{n:.2}/s"),
        _ => "0/s".to_owned(),
    }
}

/// Bytes per second.
pub fn bytes_per_second(bytes: f64) -> String {
    format!("{}/s", ByteSize(bytes.max(0.0) as u64))
}

/// A count with its thousands set apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whole percents; of nothing none.
pub fn percent(part: u64, whole: u64) -> Option<u64> {
    let whole = u128::from(whole);
    (u128::from(part) * 100 + whole / 2)
        .checked_div(whole)
        .map(|percent| u64::try_from(percent).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_each_class_and_fits() {
        let held = MemoryHeld {
            resident: 50,
            kv: 25,
            slots: 1,
            ..MemoryHeld::default()
        };
        assert_eq!(columns(&held, 100, 40), [20, 10, 1, 0, 0, 0]);
        let sum =
            |held: &MemoryHeld, whole, width| columns(held, whole, width).iter().sum::<usize>();
        assert_eq!(sum(&held, 10, 40), 40, "more is held than the budget");
        let all = MemoryHeld {
            resident: u64::MAX / 8,
            kv: 1,
            slots: 1,
            scratch: 1,
            vision: 1,
            other: 1,
        };
        assert_eq!(sum(&all, u64::MAX / 8, 20), 20);
        assert_eq!(sum(&MemoryHeld::default(), 0, 20), 0);
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(
            [0.0, 0.256, 3.0, 31.26, 1234.4].map(per_second),
            ["0/s", "0.26/s", "3.00/s", "31.3/s", "1234/s"]
        );
        assert_eq!(bytes_per_second(2.5 * f64::from(1 << 30)), "2.5 GiB/s");
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!((percent(1, 3), percent(1, 0)), (Some(33), None));
    }
}
