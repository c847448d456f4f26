//! Times of passes, measured and predicted. Owned by [`super::Telemetry`]; decides nothing.
//!
//! A pass is timed from the end of the one before to its own end: what tokens per second are made of. The host's end of a pass
//! is when its last split was submitted, and the device may still compute; but before the next pass is submitted the host waits
//! for it, so over a row of like passes the two are equal. Only a pass that follows one like it counts, without a pause
//! between them. What is predicted for it is the price of such a pass under the plan that the arena has, with as many tokens in
//! the cache as its graph reads.

use crate::hook::graph::split_graph::SplitGraph;
use crate::report::PROMPT_ROWS;
use pipeshard_plan::cost::{Calibration, Forecast, Lane, PassSeconds, PassShape};
use std::time::{Duration, Instant};

/// The longest time between two passes that does not count as a pause: sampling, detokenising, an answer on its way.
const SHORT: Duration = Duration::from_millis(20);
/// Where the device still computes when a pass has been submitted, the next one begins late for that: by this many times what is
/// predicted at most.
const LATE: f64 = 4.0;
/// Numbers of rows that are compared at most; others are not.
const SHAPES: usize = 32;

/// A pass whose last split was submitted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ended {
    sched: usize,
    rows: u32,
    /// Tokens in the cache that its graph reads, its own and those of all sequences included.
    kv_tokens: u64,
    at: Instant,
}

/// Passes of so many rows: what is predicted for them, and what they took.
#[derive(Debug)]
pub struct Compared {
    forecast: Forecast,
    /// What those took that were compared.
    pub lane: Lane,
    /// Tokens of each sequence that were in the cache before, summed over them.
    kv_tokens: u64,
}

impl Compared {
    fn new(forecast: Forecast) -> Self {
        Compared {
            forecast,
            lane: Lane::default(),
            kv_tokens: 0,
        }
    }

    /// Their shape, with as many tokens in the cache as there were on average.
    pub fn shape(&self) -> PassShape {
        PassShape {
            kv_tokens: self.kv_tokens / self.lane.passes().max(1),
            ..shape_of(self.forecast.rows())
        }
    }
}

/// A pass of so many rows over an empty cache.
pub fn shape_of(rows: u32) -> PassShape {
    PassShape {
        rows,
        sequences: sequences(rows),
        kv_tokens: 0,
        outputs: sequences(rows),
    }
}

/// The passes of a run, as they end.
#[derive(Debug, Default)]
pub struct PassClock {
    /// Something is predicted, so passes are timed: not on virtual clocks.
    runs: bool,
    /// What was compared so far.
    pub counts: Calibration,
    /// The generation of addresses that the forecasts are for.
    generation: u64,
    compared: Vec<Compared>,
    began: Option<Instant>,
    /// When the split began that the CPU computes now.
    cpu_began: Option<Instant>,
    /// What the CPU's splits of this pass took.
    cpu: Duration,
    last: Option<Ended>,
}

/// Rows below a prompt's are one token each of so many sequences.
fn sequences(rows: u32) -> u32 {
    match rows < PROMPT_ROWS {
        true => rows.max(1),
        false => 1,
    }
}

impl PassClock {
    /// A context is about to be made; `runs`: its passes are timed.
    pub fn context(&mut self, runs: bool) {
        self.runs = runs;
        self.price_anew();
    }

    /// The time, where passes are timed.
    pub fn now(&self) -> Option<Instant> {
        self.runs.then(Instant::now)
    }

    /// What was priced is not valid any more.
    pub fn price_anew(&mut self) {
        self.compared.clear();
        self.last = None;
    }

    /// The number of rows, below a prompt's, with the most compared passes.
    pub fn most_compared(&self) -> Option<&Compared> {
        let few = |compared: &&Compared| compared.forecast.rows() < PROMPT_ROWS;
        let few = self.compared.iter().filter(few);
        few.max_by_key(|compared| compared.lane.passes())
    }

    /// The arena has another shape: what was priced for the one before is not valid any more.
    fn shape(&mut self, generation: u64) {
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.price_anew();
        }
    }

    /// A pass has ended. Compares it where it follows one like it; answers whether it would, if a forecast for its rows were
    /// there.
    fn ends(&mut self, pass: Ended) -> bool {
        let before = self.last.replace(pass);
        let (Some(began), Some(before)) = (self.began.take(), before) else {
            return false;
        };
        if (before.sched, before.rows) != (pass.sched, pass.rows) {
            return false;
        }
        let mut compared = self.compared.iter_mut();
        let Some(compared) = compared.find(|compared| compared.forecast.rows() == pass.rows) else {
            return self.compared.len() < SHAPES;
        };
        let earlier = pass.kv_tokens.saturating_sub(u64::from(pass.rows));
        let earlier = earlier / u64::from(sequences(pass.rows));
        let predicted = compared.forecast.seconds(earlier);
        let idle = began.saturating_duration_since(before.at).as_secs_f64();
        if idle <= SHORT.as_secs_f64() + LATE * predicted.all {
            let lane = match pass.rows >= PROMPT_ROWS {
                true => &mut self.counts.prompt,
                false => &mut self.counts.decode,
            };
            let measured = pass.at.saturating_duration_since(before.at);
            let measured = PassSeconds {
                all: measured.as_secs_f64(),
                cpu: self.cpu.as_secs_f64(),
            };
            lane.record(measured, predicted);
            compared.lane.record(measured, predicted);
            compared.kv_tokens = compared.kv_tokens.saturating_add(earlier);
        }
        false
    }

    /// A pass is about to be submitted.
    pub fn pass_begins(&mut self) {
        let now = self.now();
        self.begins(now);
    }

    /// What is submitted next is complete; `by_cpu`: this call computes it.
    pub fn split_begins(&mut self, by_cpu: bool) {
        self.cpu_began = match by_cpu {
            true => self.now(),
            false => None,
        };
    }

    /// The split was computed or submitted.
    pub fn split_ends(&mut self) {
        if self.cpu_began.is_some() {
            let now = self.now();
            self.cpu_ends(now);
        }
    }

    /// The last split of a pass was submitted, and its inputs read, by this time; or it failed. `generation`: that of the arena.
    /// True if a forecast for so many rows is wanted.
    pub fn pass_ends(
        &mut self,
        sched: usize,
        graph: &SplitGraph,
        generation: u64,
        succeeded: bool,
        at: Instant,
    ) -> bool {
        // graphs without weights, of a sampler for example, are not pipeshard's, but they take time
        if !succeeded || graph.addresses != Some(generation) {
            self.last = None;
            return false;
        }
        self.shape(generation);
        self.ends(Ended {
            sched,
            rows: graph.rows,
            kv_tokens: graph.kv_tokens,
            at,
        })
    }

    fn begins(&mut self, at: Option<Instant>) {
        self.began = at;
        self.cpu_began = None;
        self.cpu = Duration::ZERO;
    }

    /// The CPU has computed the split that it began.
    fn cpu_ends(&mut self, at: Option<Instant>) {
        if let (Some(began), Some(at)) = (self.cpu_began.take(), at) {
            self.cpu += at.saturating_duration_since(began);
        }
    }

    /// A forecast was made, which took a while: the next pass is not compared with the end of this one.
    pub fn forecast(&mut self, forecast: Forecast) {
        self.compared.push(Compared::new(forecast));
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: u32 = 1;

    const EXPECTED: PassSeconds = PassSeconds {
        all: 0.010,
        cpu: 0.004,
    };

    /// Passes that take 10 ms each by prediction.
    fn with_forecast(rows: u32) -> PassClock {
        let mut clock_of_passes = PassClock::default();
        clock_of_passes.forecast(Forecast::constant(rows, EXPECTED));
        clock_of_passes
    }

    /// A clock that is moved by hand, in milliseconds.
    struct Clock(Instant);

    impl Clock {
        /// A pass that begins after `idle` and takes `busy`, half of that for a split of the CPU.
        fn pass(&mut self, of: &mut PassClock, rows: u32, idle: u64, busy: u64) -> bool {
            self.0 += Duration::from_millis(idle);
            of.begins(Some(self.0));
            self.0 += Duration::from_millis(busy) / 2;
            of.cpu_began = Some(self.0);
            self.0 += Duration::from_millis(busy) / 2;
            of.cpu_ends(Some(self.0));
            of.ends(Ended {
                sched: 1,
                rows,
                kv_tokens: 256,
                at: self.0,
            })
        }
    }

    fn clock() -> Clock {
        Clock(Instant::now())
    }

    #[test]
    fn a_pass_takes_from_the_end_of_the_one_before_to_its_own() {
        let (mut clock_of_passes, mut clock) = (with_forecast(ROWS), clock());
        for _ in 0..9 {
            assert!(!clock.pass(&mut clock_of_passes, ROWS, 5, 10));
        }
        let decode = clock_of_passes.counts.decode;
        assert_eq!(
            decode.passes(),
            8,
            "nothing is known of when the first began"
        );
        let (measured, predicted) = decode.seconds_per_pass();
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        near(measured.all, 0.015);
        near(measured.cpu, 0.005);
        near(predicted.all, 0.010);
        near(predicted.cpu, 0.004);
        assert!(clock_of_passes.counts.too_far_off());
        assert_eq!(clock_of_passes.counts.prompt, Lane::default());
    }

    #[test]
    fn pauses_and_other_passes_are_left_out() {
        let (mut clock_of_passes, mut clock) = (with_forecast(ROWS), clock());
        clock.pass(&mut clock_of_passes, ROWS, 0, 10);
        clock.pass(&mut clock_of_passes, ROWS, 61, 10);
        assert_eq!(clock_of_passes.counts, Calibration::default(), "a pause");
        clock.pass(&mut clock_of_passes, ROWS, 59, 10);
        assert_eq!(
            clock_of_passes.counts.decode.passes(),
            1,
            "the device computed"
        );
        clock.pass(&mut clock_of_passes, 7, 1, 10);
        clock.pass(&mut clock_of_passes, ROWS, 1, 10);
        assert_eq!(
            clock_of_passes.counts.decode.passes(),
            1,
            "another before it"
        );
        clock_of_passes.last = None;
        clock.pass(&mut clock_of_passes, ROWS, 1, 10);
        assert_eq!(
            clock_of_passes.counts.decode.passes(),
            1,
            "a failed one before it"
        );
        clock_of_passes.last.as_mut().unwrap().sched = 2;
        clock.pass(&mut clock_of_passes, ROWS, 1, 10);
        assert_eq!(clock_of_passes.counts.decode.passes(), 1, "another context");
        clock.pass(&mut clock_of_passes, ROWS, 1, 10);
        assert_eq!(clock_of_passes.counts.decode.passes(), 2);
    }

    #[test]
    fn passes_of_many_rows_are_those_of_a_prompt() {
        let (mut clock_of_passes, mut clock) = (with_forecast(PROMPT_ROWS), clock());
        clock.pass(&mut clock_of_passes, PROMPT_ROWS, 1, 10);
        clock.pass(&mut clock_of_passes, PROMPT_ROWS, 1, 10);
        assert_eq!(clock_of_passes.counts.prompt.passes(), 1);
        assert_eq!(clock_of_passes.counts.decode, Lane::default());
    }

    #[test]
    fn a_forecast_is_asked_for_when_passes_of_its_rows_follow_each_other() {
        let (mut clock_of_passes, mut clock) = (PassClock::default(), clock());
        assert!(!clock.pass(&mut clock_of_passes, 3, 1, 10));
        assert!(clock.pass(&mut clock_of_passes, 3, 1, 10));
        clock_of_passes.forecast(Forecast::constant(3, EXPECTED));
        // pricing took a while
        assert!(!clock.pass(&mut clock_of_passes, 3, 1, 10));
        assert_eq!(clock_of_passes.counts, Calibration::default());
        assert!(!clock.pass(&mut clock_of_passes, 3, 1, 10));
        assert_eq!(clock_of_passes.counts.decode.passes(), 1);
        clock_of_passes.shape(1);
        assert!(
            !clock.pass(&mut clock_of_passes, 3, 1, 10),
            "the arena changed"
        );
        assert!(clock.pass(&mut clock_of_passes, 3, 1, 10));
    }
}
