//! Predicted against measured, pass by pass.

use crate::constants::runs::{ENOUGH_PASSES, TOLERANCE};

/// What a pass takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PassSeconds {
    /// In all.
    pub all: f64,
    /// Of that, the CPU's splits.
    pub cpu: f64,
}

impl PassSeconds {
    fn is_time(self) -> bool {
        let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        time(self.all) && time(self.cpu) && self.all > 0.0
    }

    fn add(&mut self, other: PassSeconds) {
        self.all += other.all;
        self.cpu += other.cpu;
    }

    fn by(self, passes: u64) -> PassSeconds {
        let passes = passes.max(1) as f64;
        PassSeconds {
            all: self.all / passes,
            cpu: self.cpu / passes,
        }
    }
}

/// Passes of one kind, and what they took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lane {
    passes: u64,
    measured: PassSeconds,
    predicted: PassSeconds,
}

impl Lane {
    /// What a pass took, and what was predicted. Times that are none are left out.
    pub fn record(&mut self, measured: PassSeconds, predicted: PassSeconds) {
        if measured.is_time() && predicted.is_time() {
            self.passes += 1;
            self.measured.add(measured);
            self.predicted.add(predicted);
        }
    }

    /// By which part the passes took longer than predicted, less than 0 where they were faster; none without passes.
    pub fn off_by(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.measured.all / self.predicted.all - 1.0)
    }

    /// [`Lane::off_by`], where enough passes say that it is too much.
    pub fn too_far_off(&self) -> Option<f64> {
        self.off_by_enough_passes()
            .filter(|off| off.abs() > TOLERANCE)
    }

    /// [`Lane::off_by`], where there are enough passes.
    pub fn off_by_enough_passes(&self) -> Option<f64> {
        self.off_by().filter(|_| self.passes >= ENOUGH_PASSES)
    }

    /// Passes that were recorded.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What one of them took and what was predicted for it, on average; 0 without passes.
    pub fn seconds_per_pass(&self) -> (PassSeconds, PassSeconds) {
        (
            self.measured.by(self.passes),
            self.predicted.by(self.passes),
        )
    }
}

/// Passes of both kinds. Of fixed size: recording allocates nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Calibration {
    /// Passes of fewer rows than a prompt's.
    pub decode: Lane,
    /// Passes of prompts.
    pub prompt: Lane,
}

impl Calibration {
    /// Whether passes of either kind are too far from what was predicted.
    pub fn too_far_off(&self) -> bool {
        self.decode.too_far_off().is_some() || self.prompt.too_far_off().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass a quarter of which are the CPU's splits.
    fn pass(all: f64) -> PassSeconds {
        let cpu = all / 4.0;
        PassSeconds { all, cpu }
    }

    fn lane(passes: u64, measured: f64, predicted: f64) -> Lane {
        let mut lane = Lane::default();
        (0..passes).for_each(|_| lane.record(pass(measured), pass(predicted)));
        lane
    }

    #[test]
    fn sums_of_both_are_compared() {
        let mut lane = lane(3, 2.0, 1.0);
        lane.record(pass(4.0), pass(5.0));
        assert_eq!(lane.off_by(), Some(0.25));
        assert_eq!(lane.passes(), 4);
        assert_eq!(lane.seconds_per_pass(), (pass(2.5), pass(2.0)));
        assert_eq!(Lane::default().off_by(), None);
        assert_eq!(Lane::default().seconds_per_pass(), Default::default());
    }

    #[test]
    fn eight_passes_say_that_a_quarter_is_too_much() {
        assert_eq!(lane(7, 2.0, 1.0).too_far_off(), None);
        assert_eq!(lane(8, 2.0, 1.0).too_far_off(), Some(1.0));
        assert_eq!(lane(8, 1.0, 2.0).too_far_off(), Some(-0.5));
        assert_eq!(lane(100, 5.0, 4.0).too_far_off(), None);
        assert_eq!(lane(100, 3.0, 4.0).too_far_off(), None);
    }

    #[test]
    fn what_is_no_time_is_left_out() {
        for (measured, predicted) in [
            (0.0, 1.0),
            (1.0, 0.0),
            (-1.0, 1.0),
            (f64::NAN, 1.0),
            (1.0, f64::INFINITY),
        ] {
            assert_eq!(lane(8, measured, predicted), Lane::default());
        }
    }

    #[test]
    fn either_kind_may_be_too_far_off() {
        let (good, bad) = (lane(8, 1.0, 1.0), lane(8, 3.0, 1.0));
        let far = |decode, prompt| Calibration { decode, prompt }.too_far_off();
        assert!(!far(good, good));
        assert!(far(bad, good) && far(good, bad));
        assert!(!Calibration::default().too_far_off());
    }
}
