//! What follows from several looks: rates, and how they went over the last minutes.

use super::look::{Look, State};
use super::metrics::Counters;
use std::collections::VecDeque;
use std::time::Duration;

/// How far back the curves go.
pub const SPAN: Duration = Duration::from_secs(180);

/// Differences of counters between two looks, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Tokens of answers. llama.cpp counts them when an answer ends, so these are decode passes times requests in work.
    pub tokens: f64,
    /// Tokens of prompts.
    pub prompt_tokens: Option<f64>,
    /// Bytes of weights over the link.
    pub link_bytes: f64,
    /// Stalls.
    pub stalls: f64,
}

impl Rates {
    /// None where no time went by, or the counters began anew: another process.
    pub fn between(before: &Counters, now: &Counters, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        let counts = |c: &Counters| {
            [
                c.decode_passes,
                c.prompt_passes,
                c.streamed_bytes,
                c.uploaded_bytes,
                c.stalls,
            ]
        };
        let anew = counts(before)
            .iter()
            .zip(counts(now))
            .any(|(before, now)| now < *before);
        let prompts = before.prompt_tokens.zip(now.prompt_tokens);
        if seconds <= 0.0 || anew || prompts.is_some_and(|(before, now)| now < before) {
            return None;
        }
        let passes = (now.decode_passes - before.decode_passes) as f64;
        // an answer may begin and end between two looks
        let requests = before.requests.into_iter().chain(now.requests);
        let sequences = requests.fold(1.0, f64::max);
        Some(Self {
            tokens: passes * sequences / seconds,
            prompt_tokens: prompts.map(|(before, now)| (now - before) / seconds),
            link_bytes: (now.link_bytes() - before.link_bytes()) as f64 / seconds,
            stalls: (now.stalls - before.stalls) as f64 / seconds,
        })
    }
}

/// A point of the curves.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    at: Duration,
    held: u64,
    tokens: Option<f64>,
}

/// A server as it was seen so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    look: Option<Look>,
    rates: Option<Rates>,
    counted: Option<(Duration, Counters)>,
    points: VecDeque<Point>,
}

impl History {
    /// Another look, `at` a time since the start.
    pub fn add(&mut self, at: Duration, look: Look) {
        match (look.state, look.counters) {
            (State::Unreachable | State::Loading | State::Locked, _) => {
                // whether the next counters go on from these is not known
                (self.counted, self.rates) = (None, None);
            }
            (_, Some(now)) => {
                let since = self.counted.as_ref();
                self.rates = since.and_then(|(then, before)| {
                    Rates::between(before, &now, at.saturating_sub(*then))
                });
                self.counted = Some((at, now));
            }
            (_, None) => self.rates = None,
        }
        self.points.push_back(Point {
            at,
            held: look.limits.map_or(0, |limits| limits.held_total),
            tokens: self.rates.map(|rates| rates.tokens),
        });
        while self
            .points
            .front()
            .is_some_and(|first| first.at + SPAN < at)
        {
            self.points.pop_front();
        }
        self.look = Some(look);
    }

    /// The latest look; none before the first.
    pub fn look(&self) -> Option<&Look> {
        self.look.as_ref()
    }

    /// Rates between the latest two looks.
    pub fn rates(&self) -> Option<Rates> {
        self.rates
    }

    /// Bytes held over the last [`SPAN`], the newest last, in `columns`. The largest of each column; 0 where nothing was seen.
    pub fn held(&self, columns: usize) -> Vec<u64> {
        self.curve(columns, |point| point.held)
    }

    /// Tokens per second, likewise.
    pub fn tokens(&self, columns: usize) -> Vec<u64> {
        self.curve(columns, |point| {
            point.tokens.unwrap_or_default().round() as u64
        })
    }

    fn curve(&self, columns: usize, of: impl Fn(&Point) -> u64) -> Vec<u64> {
        let mut curve = vec![0; columns];
        let (Some(last), true) = (self.points.back(), columns > 0) else {
            return curve;
        };
        // columns begin at multiples of their width: a point stays in its column until the curve moves
        let width = (SPAN.as_millis() / columns as u128).max(1);
        let newest = last.at.as_millis() / width;
        for point in &self.points {
            let back = (newest - point.at.as_millis() / width) as usize;
            if let Some(column) = columns.checked_sub(back + 1) {
                curve[column] = curve[column].max(of(point));
            }
        }
        curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeshard::report::Limits;

    const SECOND: Duration = Duration::from_secs(1);

    fn counters(passes: u64) -> Counters {
        Counters {
            decode_passes: passes,
            prompt_tokens: Some(passes as f64 * 2.0),
            streamed_bytes: passes * 100,
            uploaded_bytes: passes * 10,
            stalls: passes,
            ..Counters::default()
        }
    }

    fn seen(passes: u64, held: u64) -> Look {
        let limits = Limits {
            held_total: held,
            ..Limits::default()
        };
        Look {
            state: State::Awake,
            reason: None,
            limits: Some(limits),
            counters: Some(counters(passes)),
            ..Look::only(State::Awake, String::new())
        }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let rates = Rates::between(&counters(10), &counters(20), 2 * SECOND).expect("rates");
        let expected = Rates {
            tokens: 5.0,
            prompt_tokens: Some(10.0),
            link_bytes: 550.0,
            stalls: 5.0,
        };
        assert_eq!(rates, expected);
        let three = Counters {
            requests: Some(3.0),
            ..counters(20)
        };
        assert_eq!(
            Rates::between(&counters(10), &three, SECOND)
                .expect("rates")
                .tokens,
            30.0
        );
    }

    #[test]
    fn a_server_that_began_anew_has_no_rate() {
        assert_eq!(Rates::between(&counters(20), &counters(10), SECOND), None);
        let as_many_prompts = Counters {
            prompt_tokens: Some(40.0),
            ..counters(10)
        };
        let rates = Rates::between(&counters(20), &as_many_prompts, SECOND);
        assert_eq!(rates, None);
        assert_eq!(
            Rates::between(&counters(10), &counters(20), Duration::ZERO),
            None
        );
        let mut history = History::default();
        history.add(SECOND, seen(10, 1));
        assert_eq!(history.rates(), None);
        history.add(2 * SECOND, seen(30, 1));
        assert_eq!(history.rates().expect("rates").tokens, 20.0);
        history.add(
            3 * SECOND,
            Look::only(State::Unreachable, "gone".to_owned()),
        );
        assert_eq!(history.rates(), None);
        history.add(4 * SECOND, seen(40, 1));
        assert_eq!(
            history.rates(),
            None,
            "another process may have more passes"
        );
    }

    #[test]
    fn a_look_without_counters_is_bridged() {
        let mut history = History::default();
        history.add(SECOND, seen(10, 1));
        history.add(
            2 * SECOND,
            Look {
                counters: None,
                ..seen(0, 1)
            },
        );
        assert_eq!(history.rates(), None);
        history.add(3 * SECOND, seen(30, 1));
        assert_eq!(history.rates().expect("rates").tokens, 10.0);
    }

    #[test]
    fn curves_end_with_the_newest_and_forget_the_oldest() {
        let mut history = History::default();
        assert_eq!(history.held(3), [0, 0, 0]);
        let column = SPAN / 3;
        history.add(Duration::ZERO, seen(0, 9));
        history.add(column, seen(60, 5));
        history.add(column + SECOND, seen(60, 7));
        assert_eq!(history.held(3), [0, 9, 7]);
        assert_eq!(history.tokens(3), [0, 0, 1]);
        history.add(SPAN + SECOND, seen(61, 2));
        assert_eq!(history.held(3), [7, 0, 2]);
        assert_eq!(
            history.points.len(),
            3,
            "the first is older than the curves"
        );
        assert!(history.held(0).is_empty());
    }
}
