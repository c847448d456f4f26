//! What runs of a model have shown of a machine, beside what was measured of it.
//!
//! A profile is measured in seconds, with some hundred MiB of weights; a run reads all of a model's, pass after pass, while the
//! copy lane reads others. On some machines the CPU is faster then, on some slower, by a third, and not by the same for each
//! model. So each model's passes say what of the profile does not hold for it, and the next plans for it go by that.

use std::borrow::Cow;

use super::types::{Learned, Processor, Profile};
use crate::constants::runs::{CONVINCING, FEW, MANY};
use pipeshard_model::inventory::Inventory;

impl Learned {
    /// Whether its figures can be those of a machine.
    pub(super) fn is_possible(&self) -> bool {
        let positive = |figure: f64| figure.is_finite() && figure > 0.0;
        positive(self.cpu) && self.link_during_cpu.is_none_or(positive)
    }

    /// What lies between what was known before and this, in logarithms: the closer to this, the more passes said so. What a run says
    /// nothing of goes back to what was `measured`, or a plan that once was best to avoid it would never be left again.
    fn mixed_with(self, before: &Learned, measured: f64) -> Learned {
        let passes = self.passes as f64;
        let weight = passes / (passes + CONVINCING);
        let between = |a: f64, b: f64| a * (b / a).powf(weight);
        let (known, shown) = (before.link_during_cpu, self.link_during_cpu);
        let link = known.or(shown).map(|either| {
            let measured = if measured > 0.0 { measured } else { either };
            between(known.unwrap_or(measured), shown.unwrap_or(measured))
        });
        Learned {
            cpu: between(before.cpu, self.cpu),
            link_during_cpu: link,
            passes: before.passes.saturating_add(self.passes),
            ..self
        }
    }

    /// What is known of a model before any run: what was measured holds.
    pub fn before_any_run(model: String) -> Self {
        Learned {
            model,
            cpu: 1.0,
            link_during_cpu: None,
            passes: 0,
        }
    }
}

/// What tells a model from others that take the CPU another time: its size and what most of it consists of.
pub fn model_label(inventory: &Inventory) -> String {
    let mut types: Vec<(&str, u64)> = Vec::new();
    for tensor in &inventory.tensors {
        match types.iter_mut().find(|(name, _)| *name == tensor.type_name) {
            Some((_, bytes)) => *bytes = bytes.saturating_add(tensor.bytes),
            None => types.push((&tensor.type_name, tensor.bytes)),
        }
    }
    let most = types.iter().max_by_key(|(_, bytes)| *bytes);
    let experts = match inventory.expert_count {
        0 => String::new(),
        count => format!(", {count} experts"),
    };
    format!(
        "{} layers of {}{experts}, {}",
        inventory.layer_count,
        inventory.embedding_length,
        most.map_or("empty", |(name, _)| name)
    )
}

impl Profile {
    /// What runs have shown of a model.
    pub fn learned_of(&self, model: &str) -> Option<&Learned> {
        self.learned.iter().find(|known| known.model == model)
    }

    /// Keeps what a run has shown, as far as its passes convince beside what is known.
    pub fn learn(&mut self, new: Learned) {
        let measured = self.link.pinned_cpu_busy.median;
        let known = self.learned.iter_mut().find(|of| of.model == new.model);
        match known {
            Some(known) => *known = new.mixed_with(known, measured),
            None => {
                let before = Learned::before_any_run(new.model.clone());
                self.learned.push(new.mixed_with(&before, measured));
            }
        }
    }

    /// The profile as runs of the model have shown it to be.
    pub fn for_model(&self, inventory: &Inventory) -> Cow<'_, Profile> {
        if self.learned.is_empty() {
            return Cow::Borrowed(self);
        }
        match self.learned_of(&model_label(inventory)) {
            Some(learned) => Cow::Owned(self.corrected(learned)),
            None => Cow::Borrowed(self),
        }
    }

    /// The profile with the figures that `learned` says are others.
    pub fn corrected(&self, learned: &Learned) -> Profile {
        let mut profile = self.clone();
        for curve in profile.curves.iter_mut() {
            if curve.on == Processor::Cpu {
                for point in &mut curve.points {
                    let factor = at_rows(learned.cpu, point.rows);
                    point.seconds *= factor;
                    point.copy_busy = point.copy_busy.map(|seconds| seconds * factor);
                }
            }
        }
        profile.memory.cpu.median /= learned.cpu;
        profile.memory.cpu_copy_busy.median /= learned.cpu;
        profile.cpu.bytes /= learned.cpu;
        if let Some(link) = learned.link_during_cpu {
            profile.link.pinned_cpu_busy.median = link.min(profile.link.pinned.median);
        }
        profile
    }
}

/// How much of a factor for single tokens holds for so many.
fn at_rows(factor: f64, rows: u32) -> f64 {
    let rows = f64::from(rows).clamp(FEW, MANY);
    let share = 1.0 - (rows / FEW).ln() / (MANY / FEW).ln();
    factor.powf(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Curve, Op, Point};

    fn learned(cpu: f64, link: Option<f64>) -> Learned {
        Learned {
            model: "a model".to_owned(),
            cpu,
            link_during_cpu: link,
            passes: 10,
        }
    }

    fn with_curve() -> Profile {
        let point = |rows| Point {
            rows,
            seconds: 1e-3,
            spread: 0.0,
            copy_busy: (rows == 1).then_some(2e-3),
        };
        let op = Op::Product {
            type_name: "f16".to_owned(),
            columns: 64,
            rows: 64,
        };
        let curve = |on| Curve {
            on,
            op: op.clone(),
            points: [1, 4, 16, 64, 512].map(point).to_vec(),
        };
        let mut profile = Profile::assumed();
        profile.curves = vec![curve(Processor::Cpu), curve(Processor::Gpu)];
        profile
    }

    #[test]
    fn few_tokens_take_the_cpu_longer_and_many_what_was_measured() {
        let before = with_curve();
        let after = before.corrected(&learned(2.0, Some(30e9)));
        let times = |of: usize| -> Vec<f64> {
            let points = after.curves[of].points.iter();
            points
                .map(|p| (p.seconds * 1e3 * 100.0).round() / 100.0)
                .collect()
        };
        assert_eq!(times(0), [2.0, 2.0, 1.41, 1.0, 1.0]);
        assert_eq!(times(1), [1.0; 5], "the device's stay");
        assert_eq!(after.curves[0].points[0].copy_busy, Some(4e-3));
        assert_eq!(after.memory.cpu.median, before.memory.cpu.median / 2.0);
        assert_eq!(after.cpu.flops, before.cpu.flops);
        let link = before.link.pinned.median;
        assert_eq!(after.link.pinned_cpu_busy.median, 30e9_f64.min(link));
        assert_eq!(after.link.pinned.median, link);
        let most = before.corrected(&learned(1.0, Some(1e15)));
        assert_eq!(most.link.pinned_cpu_busy.median, link);
    }

    fn shown(cpu: f64, link: Option<f64>, passes: u64) -> Learned {
        Learned {
            passes,
            ..learned(cpu, link)
        }
    }

    #[test]
    fn as_many_passes_as_convince_count_as_much_as_what_was_known() {
        let mut profile = Profile::assumed();
        profile.link.pinned_cpu_busy.median = 40e9;
        profile.learn(shown(4.0, None, 32));
        let known = profile.learned_of("a model").unwrap();
        assert_eq!((known.cpu, known.link_during_cpu), (2.0, None));
        profile.learn(shown(0.5, Some(10e9), 32));
        let known = profile.learned_of("a model").unwrap();
        assert!((known.cpu - 1.0).abs() < 1e-9 && known.passes == 64);
        assert!((known.link_during_cpu.unwrap() / 20e9 - 1.0).abs() < 1e-9);
        assert_eq!(profile.learned.len(), 1);
        assert_eq!(profile.learned_of("another"), None);
    }

    #[test]
    fn a_few_disturbed_passes_change_little_and_many_say_how_it_is() {
        let link_after = |passes| {
            let mut profile = Profile::assumed();
            profile.link.pinned_cpu_busy.median = 42e9;
            profile.learn(shown(1.0, Some(21e9), passes));
            profile.learned[0].link_during_cpu.unwrap() / 1e9
        };
        assert!((34.0..38.0).contains(&link_after(10)), "{}", link_after(10));
        assert!((21.0..22.0).contains(&link_after(1000)));
    }

    #[test]
    fn a_link_that_runs_say_nothing_of_goes_back_to_what_was_measured() {
        let mut profile = Profile::assumed();
        let measured = profile.link.pinned_cpu_busy.median;
        profile.learn(shown(2.0, Some(measured / 2.0), 1000));
        (0..20).for_each(|_| profile.learn(shown(2.0, None, 32)));
        let known = profile.learned_of("a model").unwrap();
        let link = known.link_during_cpu.unwrap();
        assert!((link / measured - 1.0).abs() < 1e-3, "{link} {measured}");
        assert!((known.cpu / 2.0 - 1.0).abs() < 0.03);
        // a profile that says nothing of it
        profile.link.pinned_cpu_busy.median = 0.0;
        profile.learned.clear();
        profile.learn(shown(1.0, Some(20e9), 10));
        profile.learn(shown(1.0, None, 10));
        assert_eq!(profile.learned[0].link_during_cpu, Some(20e9));
    }
}
