//! What passes take, beside what is predicted for them.
//!
//! A pass is timed from the end of the one before to its own end: what tokens per second are made of. The host's end of a pass
//! is when its last split was submitted, and the device may still compute; but before the next pass is submitted the host waits
//! for it, so over a row of like passes the two come to the same. Only a pass that follows one like it counts, without a pause
//! between them. What is predicted for it is the price of such a pass under the plan that the arena has, with as many tokens in
//! the cache as its graph reads.

use super::runtime::Runtime;
use crate::report::{CalibrationCounts, PassTimes, Predicted, ProfileKind, PROMPT_ROWS};
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::cost::{
    Calibration, Costs, Forecast, Lane, Limit, ModelShape, PassSeconds, PassShape, Workload,
};
use pipeshard_plan::plan::Plan;
use pipeshard_plan::profile::{Origin, Profile};
use pipeshard_sys as ffi;
use std::time::{Duration, Instant};

/// Time between two passes that is no pause: sampling, detokenising, an answer on its way.
const SHORT: Duration = Duration::from_millis(20);
/// Where the device still computes when a pass has been submitted, the next one begins late for that: by this many times what is
/// predicted at most.
const LATE: f64 = 4.0;
/// Numbers of rows that are compared at most; others are not.
const SHAPES: usize = 32;

/// What a prediction was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// The conversation.
    pub workload: Workload,
    /// Tokens that each sequence has room for.
    pub context: u64,
    /// Experts that a token uses; 0 for a dense model.
    pub experts_used: u32,
    /// ggml's name of the type of the keys.
    pub type_k: &'static str,
    /// ggml's name of the type of the values.
    pub type_v: &'static str,
}

impl Asked {
    /// The model that was asked for: an inventory with [`Asked::experts_used`], and the cache's types.
    pub fn model<'a>(&self, inventory: &'a Inventory) -> ModelShape<'a> {
        ModelShape {
            inventory,
            type_k: self.type_k,
            type_v: self.type_v,
        }
    }
}

/// What passes are priced with.
pub(super) struct Pricing<'a> {
    asked: Asked,
    inventory: Inventory,
    pub profile: &'a Profile,
    /// The plan that the arena has.
    pub plan: &'a Plan,
}

impl Pricing<'_> {
    /// The model that passes compute.
    pub fn model(&self) -> ModelShape<'_> {
        self.asked.model(&self.inventory)
    }
}

/// A pass whose last split was submitted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ended {
    sched: usize,
    rows: u32,
    /// Tokens in the cache that its graph reads, its own and those of all sequences included.
    cells: u64,
    at: Instant,
}

/// Passes of so many rows: what is predicted for them, and what they took.
#[derive(Debug)]
pub struct Compared {
    forecast: Forecast,
    /// What those took that were compared.
    pub lane: Lane,
    /// Tokens of each sequence that were in the cache before, summed over them.
    cells: u64,
}

impl Compared {
    fn new(forecast: Forecast) -> Self {
        Compared {
            forecast,
            lane: Lane::default(),
            cells: 0,
        }
    }

    /// Their shape, with as many tokens in the cache as there were on average.
    pub fn shape(&self) -> PassShape {
        PassShape {
            cells: self.cells / self.lane.passes().max(1),
            ..shape_of(self.forecast.rows())
        }
    }
}

/// A pass of so many rows over an empty cache.
fn shape_of(rows: u32) -> PassShape {
    PassShape {
        rows,
        sequences: sequences(rows),
        cells: 0,
        outputs: sequences(rows),
    }
}

/// The passes of a run, as they end.
#[derive(Debug, Default)]
pub struct Calibrating {
    /// What was asked for the context that was made last.
    pub asked: Option<Asked>,
    /// What was compared so far.
    pub counts: Calibration,
    /// [`Runtime::carving`] that the forecasts are for.
    carving: u64,
    compared: Vec<Compared>,
    /// What passes took is explained by what was learned from them.
    pub explained: bool,
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

impl Calibrating {
    /// A context is about to be made, for which this was asked; none where nothing was predicted.
    pub fn context(&mut self, asked: Option<Asked>) {
        self.asked = asked;
        self.price_anew();
    }

    /// What was priced is not valid any more.
    pub fn price_anew(&mut self) {
        self.compared.clear();
        self.last = None;
    }

    /// The passes below a prompt's of which most were compared.
    pub fn most_compared(&self) -> Option<&Compared> {
        let few = |compared: &&Compared| compared.forecast.rows() < PROMPT_ROWS;
        let few = self.compared.iter().filter(few);
        few.max_by_key(|compared| compared.lane.passes())
    }

    /// The arena has another shape: what was priced for the one before is not valid any more.
    fn shape(&mut self, carving: u64) {
        if std::mem::replace(&mut self.carving, carving) != carving {
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
        let earlier = pass.cells.saturating_sub(u64::from(pass.rows));
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
            compared.cells = compared.cells.saturating_add(earlier);
        }
        false
    }

    /// A pass begins.
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
    fn forecast(&mut self, forecast: Forecast) {
        self.compared.push(Compared::new(forecast));
        self.last = None;
    }
}

impl Runtime {
    /// The time, where passes are compared: not on virtual clocks.
    pub fn calibration_clock(&self) -> Option<Instant> {
        let compared = self.on_wall_clock() && self.calibrating.asked.is_some();
        compared.then(Instant::now)
    }

    pub(super) fn on_wall_clock(&self) -> bool {
        self.config.sim.is_none() || self.config.debug.calibrate
    }

    /// A pass is about to be submitted.
    pub fn calibration_begins(&mut self) {
        let now = self.calibration_clock();
        self.calibrating.begins(now);
    }

    /// What `backend` is given next is complete; if it is the CPU, this call computes it.
    pub fn calibration_split_begins(
        &mut self,
        backend: ffi::ggml_backend_t,
        cpu: ffi::ggml_backend_t,
    ) {
        self.calibrating.cpu_began = match backend == cpu {
            true => self.calibration_clock(),
            false => None,
        };
    }

    /// The split was computed or submitted.
    pub fn calibration_split_ends(&mut self) {
        if self.calibrating.cpu_began.is_some() {
            let now = self.calibration_clock();
            self.calibrating.cpu_ends(now);
        }
    }

    /// The last split of a pass was submitted, and its inputs read, by this time; or it failed.
    pub fn calibration_ends(&mut self, sched: usize, succeeded: bool, at: Option<Instant>) {
        let (Some(at), Some(entry)) = (at, self.scheds.get(&sched)) else {
            return;
        };
        let graph = &entry.graph;
        // graphs without weights, of a sampler for example, are none of ours, but they take time
        if !succeeded || graph.carving != Some(self.carving) {
            self.calibrating.last = None;
            return;
        }
        self.calibrating.shape(self.carving);
        let pass = Ended {
            sched,
            rows: graph.rows,
            cells: graph.cells,
            at,
        };
        if self.calibrating.ends(pass) {
            if let Some(forecast) = self.forecast(pass.rows) {
                self.calibrating.forecast(forecast);
            }
        }
    }

    /// Prices passes of so many rows under the plan that the arena has. Takes as long as some passes are simulated: once for each
    /// number of rows.
    fn forecast(&self, rows: u32) -> Option<Forecast> {
        let with = self.pricing()?;
        let costs = Costs::new(with.model(), with.profile);
        Some(Forecast::of(
            &costs,
            with.plan,
            shape_of(rows),
            with.asked.context,
        ))
    }

    /// What passes are priced with, where something was asked for the one model that is loaded and the arena has a plan.
    pub(super) fn pricing(&self) -> Option<Pricing<'_>> {
        let asked = self.calibrating.asked?;
        let ([model], Some(profile), Some(plan)) =
            (self.models.as_slice(), &self.measured, &self.carved)
        else {
            return None;
        };
        Some(Pricing {
            inventory: model.inventory.using_experts(asked.experts_used),
            asked,
            profile,
            plan,
        })
    }

    /// What was predicted of the context that was made last.
    pub fn predicted(&self) -> Option<Predicted> {
        let (found, asked) = (self.prediction?, self.calibrating.asked?);
        let passes = asked.workload.prompt.div_ceil(asked.workload.ubatch.max(1));
        Some(Predicted {
            ttft: found.ttft,
            tps: found.tps,
            e2el: found.e2el,
            decode_pass_seconds: found.decode.seconds,
            decode_bytes_streamed: found.decode.bytes_streamed,
            prompt_pass_seconds: found.prompt.seconds / f64::from(passes.max(1)),
            prompt_tokens: asked.workload.prompt,
            generated_tokens: asked.workload.generated,
            limit: name(found.decode.limit).to_string(),
            prompt_limit: name(found.prompt.limit).to_string(),
            profile: kind(self.measured.as_ref()?),
        })
    }

    /// What passes took beside what was predicted for them, or why they are not compared.
    pub fn calibration(&self) -> Result<CalibrationCounts, &'static str> {
        if !self.on_wall_clock() {
            return Err(
                "the GPU is simulated: the time of its clocks is not the time that passes take",
            );
        }
        if self.calibrating.asked.is_none() {
            return Err("nothing was predicted for the context that was made last");
        }
        let counts = &self.calibrating.counts;
        Ok(CalibrationCounts {
            decode: times(&counts.decode),
            prompt: times(&counts.prompt),
            learned: self.learned(),
            explained: self.calibrating.explained,
        })
    }
}

fn times(lane: &Lane) -> PassTimes {
    let (measured, predicted) = lane.seconds_per_pass();
    PassTimes {
        passes: lane.passes(),
        measured_seconds_per_pass: measured.all,
        predicted_seconds_per_pass: predicted.all,
        measured_cpu_seconds_per_pass: measured.cpu,
        predicted_cpu_seconds_per_pass: predicted.cpu,
        off_by: lane.off_by(),
        too_far_off: lane.too_far_off().is_some(),
    }
}

fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::Link => "link",
        Limit::Dram => "dram",
        Limit::Gpu => "gpu",
        Limit::Cpu => "cpu",
    }
}

fn kind(profile: &Profile) -> ProfileKind {
    match profile.origin {
        Origin::Measured => ProfileKind::Measured,
        Origin::Stated if profile.key == Profile::assumed().key => ProfileKind::Assumed,
        Origin::Stated => ProfileKind::Stated,
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
    fn with_forecast(rows: u32) -> Calibrating {
        let mut calibrating = Calibrating::default();
        calibrating.forecast(Forecast::constant(rows, EXPECTED));
        calibrating
    }

    /// A clock that is moved by hand, in milliseconds.
    struct Clock(Instant);

    impl Clock {
        /// A pass that begins after `idle` and takes `busy`, half of that for a split of the CPU.
        fn pass(&mut self, of: &mut Calibrating, rows: u32, idle: u64, busy: u64) -> bool {
            self.0 += Duration::from_millis(idle);
            of.begins(Some(self.0));
            self.0 += Duration::from_millis(busy) / 2;
            of.cpu_began = Some(self.0);
            self.0 += Duration::from_millis(busy) / 2;
            of.cpu_ends(Some(self.0));
            of.ends(Ended {
                sched: 1,
                rows,
                cells: 256,
                at: self.0,
            })
        }
    }

    fn clock() -> Clock {
        Clock(Instant::now())
    }

    #[test]
    fn a_pass_takes_from_the_end_of_the_one_before_to_its_own() {
        let (mut calibrating, mut clock) = (with_forecast(ROWS), clock());
        for _ in 0..9 {
            assert!(!clock.pass(&mut calibrating, ROWS, 5, 10));
        }
        let decode = calibrating.counts.decode;
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
        assert!(calibrating.counts.too_far_off());
        assert_eq!(calibrating.counts.prompt, Lane::default());
    }

    #[test]
    fn pauses_and_other_passes_are_left_out() {
        let (mut calibrating, mut clock) = (with_forecast(ROWS), clock());
        clock.pass(&mut calibrating, ROWS, 0, 10);
        clock.pass(&mut calibrating, ROWS, 61, 10);
        assert_eq!(calibrating.counts, Calibration::default(), "a pause");
        clock.pass(&mut calibrating, ROWS, 59, 10);
        assert_eq!(calibrating.counts.decode.passes(), 1, "the device computed");
        clock.pass(&mut calibrating, 7, 1, 10);
        clock.pass(&mut calibrating, ROWS, 1, 10);
        assert_eq!(calibrating.counts.decode.passes(), 1, "another before it");
        calibrating.last = None;
        clock.pass(&mut calibrating, ROWS, 1, 10);
        assert_eq!(
            calibrating.counts.decode.passes(),
            1,
            "a failed one before it"
        );
        calibrating.last.as_mut().unwrap().sched = 2;
        clock.pass(&mut calibrating, ROWS, 1, 10);
        assert_eq!(calibrating.counts.decode.passes(), 1, "another context");
        clock.pass(&mut calibrating, ROWS, 1, 10);
        assert_eq!(calibrating.counts.decode.passes(), 2);
    }

    #[test]
    fn passes_of_many_rows_are_those_of_a_prompt() {
        let (mut calibrating, mut clock) = (with_forecast(PROMPT_ROWS), clock());
        clock.pass(&mut calibrating, PROMPT_ROWS, 1, 10);
        clock.pass(&mut calibrating, PROMPT_ROWS, 1, 10);
        assert_eq!(calibrating.counts.prompt.passes(), 1);
        assert_eq!(calibrating.counts.decode, Lane::default());
    }

    #[test]
    fn a_forecast_is_asked_for_when_passes_of_its_rows_follow_each_other() {
        let (mut calibrating, mut clock) = (Calibrating::default(), clock());
        assert!(!clock.pass(&mut calibrating, 3, 1, 10));
        assert!(clock.pass(&mut calibrating, 3, 1, 10));
        calibrating.forecast(Forecast::constant(3, EXPECTED));
        // pricing took a while
        assert!(!clock.pass(&mut calibrating, 3, 1, 10));
        assert_eq!(calibrating.counts, Calibration::default());
        assert!(!clock.pass(&mut calibrating, 3, 1, 10));
        assert_eq!(calibrating.counts.decode.passes(), 1);
        calibrating.shape(1);
        assert!(!clock.pass(&mut calibrating, 3, 1, 10), "the arena changed");
        assert!(clock.pass(&mut calibrating, 3, 1, 10));
    }
}
