//! Repeating what is measured, and what the repetitions say.

use std::time::{Duration, Instant};

use pipeshard_plan::profile::Quantity;

/// How long something is repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// No repetition begins after this.
    pub limit: Duration,
    /// So many there are in any case.
    pub least: usize,
}

impl Pace {
    /// Repeats `once`, which answers in seconds, and tells the median and the spread.
    pub fn repeat<E>(self, mut once: impl FnMut() -> Result<f64, E>) -> Result<Quantity, E> {
        let start = Instant::now();
        let mut values = Vec::new();
        while values.len() < self.least.max(1)
            || (start.elapsed() < self.limit && values.len() < 1000)
        {
            values.push(once()?);
        }
        Ok(quantity(&mut values))
    }
}

/// How long something takes, in seconds.
pub(super) fn seconds_of<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<f64, E> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64().max(1e-9))
}

/// Values that are this far apart were disturbed: threads waited for one that did not run.
const DISTURBED: f64 = 0.5;

/// Median, and half the distance of the quartiles as a share of it. Nothing for no values. What disturbs only ever makes a time
/// longer: where the values are far apart, the lower quartile takes the median's place.
pub(super) fn quantity(values: &mut [f64]) -> Quantity {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (values.len() - 1) as f64;
        let (low, high) = (
            values[place.floor() as usize],
            values[place.ceil() as usize],
        );
        low + (high - low) * place.fract()
    };
    if values.is_empty() {
        return Quantity::default();
    }
    let median = at(0.5);
    let spread = match median > 0.0 {
        true => (at(0.75) - at(0.25)) / 2.0 / median,
        false => 0.0,
    };
    match spread > DISTURBED {
        true => Quantity {
            median: at(0.25),
            spread,
        },
        false => Quantity { median, spread },
    }
}

/// Of what was measured at several moments, the one in the middle: what disturbed one of three moments is left out. The spread is at
/// least that between the moments. Nothing for none.
pub(super) fn middle(mut moments: Vec<Quantity>) -> Quantity {
    moments.sort_by(|a, b| a.median.total_cmp(&b.median));
    let (Some(first), Some(last)) = (moments.first(), moments.last()) else {
        return Quantity::default();
    };
    let middle = moments[moments.len() / 2];
    let apart = match middle.median > 0.0 {
        true => (last.median - first.median) / 2.0 / middle.median,
        false => 0.0,
    };
    Quantity {
        spread: middle.spread.max(apart),
        ..middle
    }
}

/// A time turned into a rate: `amount` per second.
pub(super) fn rate(amount: f64, time: Quantity) -> Quantity {
    Quantity {
        median: if time.median > 0.0 {
            amount / time.median
        } else {
            0.0
        },
        spread: time.spread,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles() {
        let figure = quantity(&mut [5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(figure.median, 3.0);
        assert!((figure.spread - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(quantity(&mut [2.0, 4.0]).median, 3.0);
        assert_eq!(quantity(&mut [7.0]), Quantity::stated(7.0));
        assert_eq!(quantity(&mut []), Quantity::default());
        // as without what disturbed half of them
        let disturbed = quantity(&mut [1.0, 1.1, 1.0, 90.0, 40.0]);
        assert!(
            disturbed.median < 1.2 && disturbed.spread > 0.5,
            "{disturbed:?}"
        );
    }

    #[test]
    fn what_disturbs_one_moment_of_three_is_left_out() {
        let at = |median| Quantity {
            median,
            spread: 0.01,
        };
        let figure = middle(vec![at(1.0), at(50.0), at(1.2)]);
        assert_eq!(figure.median, 1.2);
        assert!(figure.spread > 1.0, "and it shows: {figure:?}");
        assert_eq!(middle(vec![at(2.0); 3]), at(2.0));
        assert_eq!(middle(Vec::new()), Quantity::default());
    }

    #[test]
    fn one_that_takes_long_is_not_repeated_for_long() {
        let mut runs = 0;
        let pace = Pace {
            limit: Duration::from_millis(2),
            least: 3,
        };
        let figure = pace.repeat(|| {
            runs += 1;
            std::thread::sleep(Duration::from_millis(3));
            Ok::<_, ()>(1.0)
        });
        assert_eq!((figure, runs), (Ok(Quantity::stated(1.0)), 3));
        assert_eq!(pace.repeat(|| Err::<f64, _>("no")), Err("no"));
    }
}
