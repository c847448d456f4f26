//! Machines that are not here, by name or by what is different about them: for predictions.
//!
//! A named machine has the figures of public data sheets, less what is known to be lost on the way: 15 % of a link, 20 % of the
//! host's memory, 10 % of a card's memory, 40 % of its arithmetic rate.

use std::str::FromStr;

use super::stated::{shared, Rates};
use super::types::{Curve, Origin, Processor, Profile, ProfileKey, Quantity, Roofline};
use crate::constants::machine::{CPU_SHARE, DRAM_SHARE, FLOPS_SHARE, LINK_SHARE, MEMBW_SHARE};
use pipeshard_model::size::ByteSize;

/// A machine by the data sheets of its parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// What it is called in arguments.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// The card's memory, in bytes.
    pub vram: u64,
    /// The link in one direction, in bytes per second.
    pub link: f64,
    /// The host's memory, in bytes per second.
    pub dram: f64,
    /// The card's memory, in bytes per second.
    pub membw: f64,
    /// Dense products of f16 that are added up in f32, in operations per second.
    pub flops: f64,
}

/// The machines that have names.
pub const MACHINES: [Machine; 3] = [
    Machine {
        name: "laptop-12g",
        title: "12 GB laptop card, PCIe 4 x8, two channels of DDR5-5600",
        vram: 12 << 30,
        link: 15.75e9,
        dram: 89.6e9,
        membw: 432e9,
        flops: 49e12,
    },
    Machine {
        name: "desktop-16g",
        title: "16 GB desktop card, PCIe 4 x16, two channels of DDR5-6000",
        vram: 16 << 30,
        link: 31.5e9,
        dram: 96e9,
        membw: 717e9,
        flops: 97.5e12,
    },
    Machine {
        name: "desktop-32g",
        title: "32 GB desktop card, PCIe 5 x16, two channels of DDR5-6000",
        vram: 32 << 30,
        link: 63e9,
        dram: 96e9,
        membw: 1792e9,
        flops: 209e12,
    },
];

impl Machine {
    /// The machine of that name.
    pub fn named(name: &str) -> Option<&'static Machine> {
        MACHINES.iter().find(|machine| machine.name == name)
    }

    /// What is left of the data sheet's figures in practice.
    pub fn rates(&self) -> Rates {
        Rates {
            pcie: self.link * LINK_SHARE,
            pageable: (self.link * LINK_SHARE).min(8e9),
            cpu: self.dram * CPU_SHARE,
            dram: self.dram * DRAM_SHARE,
            membw: self.membw * MEMBW_SHARE,
            flops: self.flops * FLOPS_SHARE,
            launch: 3e-6,
        }
    }

    /// Its profile, with so many threads of the CPU.
    pub fn profile(&self, threads: u32) -> Profile {
        self.rates().profile(ProfileKey {
            device: self.title.to_owned(),
            driver: "data sheet".to_owned(),
            cpu: "data sheet".to_owned(),
            threads,
            ..ProfileKey::default()
        })
    }
}

/// What is different about a machine: `pcie=12G,vram=8G`, or `laptop-12g,vram=8G`.
///
/// ```
/// # use pipeshard_plan::profile::{Profile, WhatIf};
/// let slower: WhatIf = "pcie=12G,vram=8G".parse().unwrap();
/// assert_eq!(slower.vram(), Some(8 << 30));
/// assert_eq!(slower.apply(&Profile::assumed()).link.pinned.median, 12e9);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WhatIf {
    /// The machine to start from; none: the one at hand.
    pub machine: Option<&'static Machine>,
    vram: Option<u64>,
    /// The link, in bytes per second.
    pub pcie: Option<f64>,
    /// Weights that the CPU reads, in bytes per second.
    pub cpu: Option<f64>,
    /// What CPU and link read of the host's memory together, in bytes per second.
    pub dram: Option<f64>,
    /// The device's memory, in bytes per second.
    pub membw: Option<f64>,
    /// The device in large products, in floating-point operations per second.
    pub flops: Option<f64>,
    /// What each kernel costs besides its work, in seconds.
    pub launch: Option<f64>,
}

/// Why a text does not say what would be different.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// Neither a machine nor `key=value`.
    #[error("'{0}' is neither a machine ({names}) nor of the form key=value, such as pcie=12G", names = names())]
    NoValue(String),
    /// A key that does not exist.
    #[error("'{0}' cannot be changed; known: vram, pcie, cpu, dram, membw, flops, launch")]
    UnknownKey(String),
    /// Twice the same.
    #[error("'{0}' is given twice; leave one out")]
    Twice(String),
    /// A size that is none.
    #[error("vram: {0}")]
    Size(#[from] pipeshard_model::size::ParseSizeError),
    /// A rate that is none.
    #[error("{key}: invalid rate '{value}'; write a number above 0 per second with K, M, G or T (powers of 1000), such as 12G")]
    Rate {
        /// The key.
        key: String,
        /// What was typed.
        value: String,
    },
    /// A time that is none.
    #[error("launch: invalid duration '{0}'; write a number with ns, us, ms or s, such as 3us")]
    Duration(String),
}

fn names() -> String {
    MACHINES.map(|machine| machine.name).join(", ")
}

/// A plain decimal number and the factor of the unit behind it.
fn decimal(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let factor = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let number: f64 = digits.parse().ok()?;
    Some(number * factor.1).filter(|n| n.is_finite() && *n > 0.0)
}

const RATES: [(&str, f64); 5] = [("", 1.0), ("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];
const TIMES: [(&str, f64); 4] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];

impl FromStr for WhatIf {
    type Err = WhatIfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut what = WhatIf::default();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            if let Some(machine) = Machine::named(item) {
                if what.machine.replace(machine).is_some() {
                    return Err(WhatIfError::Twice("the machine".to_owned()));
                }
                continue;
            }
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| WhatIfError::NoValue(item.to_owned()))?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            let rate = || {
                decimal(value, &RATES).ok_or_else(|| WhatIfError::Rate {
                    key: key.clone(),
                    value: value.to_owned(),
                })
            };
            let before = match key.as_str() {
                "vram" => {
                    let size: ByteSize = value.parse()?;
                    what.vram.replace(size.0).is_some()
                }
                "pcie" => what.pcie.replace(rate()?).is_some(),
                "cpu" => what.cpu.replace(rate()?).is_some(),
                "dram" => what.dram.replace(rate()?).is_some(),
                "membw" => what.membw.replace(rate()?).is_some(),
                "flops" => what.flops.replace(rate()?).is_some(),
                "launch" => {
                    let time = decimal(value, &TIMES);
                    let time = time.ok_or_else(|| WhatIfError::Duration(value.to_owned()))?;
                    what.launch.replace(time).is_some()
                }
                _ => return Err(WhatIfError::UnknownKey(key)),
            };
            if before {
                return Err(WhatIfError::Twice(key));
            }
        }
        Ok(what)
    }
}

fn scaled(quantity: &mut Quantity, factor: f64) {
    quantity.median *= factor;
}

/// `new / old`, and 1 where there was nothing.
fn ratio(new: f64, old: f64) -> f64 {
    if old > 0.0 {
        new / old
    } else {
        1.0
    }
}

impl WhatIf {
    /// The card's memory in bytes, where it is said.
    pub fn vram(&self) -> Option<u64> {
        self.vram.or(self.machine.map(|machine| machine.vram))
    }

    /// The profile of a machine that differs from that of `profile` (or from the named machine) in what is said. Measured curves
    /// are stretched by what the rooflines before and after say. The result counts as stated.
    pub fn apply(&self, profile: &Profile) -> Profile {
        let named = self
            .machine
            .map(|machine| machine.profile(profile.key.threads));
        let before = named.unwrap_or_else(|| profile.clone());
        let mut after = before.clone();
        after.origin = Origin::Stated;
        if let Some(pcie) = self.pcie {
            let factor = ratio(pcie, before.link.pinned.median);
            after.link.pinned = Quantity::stated(pcie);
            scaled(&mut after.link.back, factor);
            after.link.pageable.median = after.link.pageable.median.min(pcie);
        }
        if let Some(cpu) = self.cpu {
            let factor = ratio(cpu, before.memory.cpu.median);
            after.memory.cpu = Quantity::stated(cpu);
            after.cpu.bytes *= factor;
            after.cpu.flops *= factor;
        }
        if let Some(membw) = self.membw {
            after.gpu.bytes = membw;
        }
        if let Some(flops) = self.flops {
            after.gpu.flops = flops;
        }
        if let Some(launch) = self.launch {
            after.overheads.launch = Quantity::stated(launch);
            after.gpu.launch = launch;
        }
        if self.pcie.or(self.cpu).or(self.dram).is_some() {
            self.share_memory(&before, &mut after);
            // what runs have shown of the two is about another memory or link
            for learned in &mut after.learned {
                learned.link_during_cpu = None;
            }
        }
        let rooflines = [after.cpu, after.gpu];
        for curve in &mut after.curves {
            let new = match curve.on {
                Processor::Cpu => &rooflines[0],
                Processor::Gpu => &rooflines[1],
            };
            stretch(curve, before.roofline(curve.on), new);
        }
        after
    }

    /// What both readers get when they read at once.
    fn share_memory(&self, before: &Profile, after: &mut Profile) {
        let alone = before.memory.cpu.median;
        let both = before.memory.cpu_copy_busy.median + before.link.pinned_cpu_busy.median;
        let limit = self.dram.unwrap_or(match self.cpu {
            // another CPU brings another memory, in proportion
            Some(cpu) => both * ratio(cpu, alone),
            None => both,
        });
        // both may have got all that they asked for, so this is the least that there is
        let limit = limit.max(match self.dram {
            Some(_) => 0.0,
            None => after.memory.cpu.median,
        });
        let (cpu, link) = shared(after.memory.cpu.median, after.link.pinned.median, limit);
        after.memory.cpu_copy_busy = Quantity::stated(cpu);
        after.link.pinned_cpu_busy = Quantity::stated(link);
    }
}

/// Makes the points of a curve longer or shorter as its operation becomes on the roofline.
fn stretch(curve: &mut Curve, old: &Roofline, new: &Roofline) {
    for point in &mut curve.points {
        let work = curve.op.work(point.rows);
        let factor = ratio(new.seconds(work), old.seconds(work));
        point.seconds *= factor;
        point.copy_busy = point.copy_busy.map(|seconds| seconds * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Op, Point};

    fn what(text: &str) -> WhatIf {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<WhatIf>().unwrap_err().to_string()
    }

    #[test]
    fn wrong_texts_are_refused_with_a_reason() {
        assert!(refused("pcie").contains("laptop-12g"));
        assert!(refused("pci=12G").contains("known: vram"));
        assert!(refused("pcie=12G,pcie=13G").contains("twice"));
        assert!(refused("laptop-12g,desktop-16g").contains("twice"));
        assert!(refused("pcie=fast").contains("such as 12G"));
        assert!(refused("pcie=0").contains("above 0"));
        assert!(refused("vram=8X").contains("vram"));
        assert!(refused("launch=3").contains("3us"));
    }

    #[test]
    fn nothing_said_changes_no_figure() {
        let assumed = Profile::assumed();
        assert_eq!(what("").apply(&assumed), assumed);
    }

    #[test]
    fn named_machines_are_started_from() {
        let laptop = what("laptop-12g,pcie=6G").apply(&Profile::assumed());
        assert_eq!(what("laptop-12g,vram=8G").vram(), Some(8 << 30));
        assert_eq!(what("laptop-12g").vram(), Some(12 << 30));
        assert_eq!(laptop.link.pinned.median, 6e9);
        let sheet = Machine::named("laptop-12g").unwrap().rates();
        assert_eq!(laptop.gpu.bytes, sheet.membw);
        for machine in MACHINES {
            let rates = machine.rates();
            assert!(rates.cpu < rates.dram && rates.dram < machine.dram);
        }
    }

    #[test]
    fn a_slow_memory_is_shared() {
        let shared = what("cpu=40G,dram=44G,pcie=24G").apply(&Profile::assumed());
        let both = shared.memory.cpu_copy_busy.median + shared.link.pinned_cpu_busy.median;
        assert!((both - 44e9).abs() < 1.0, "{both}");
        assert!(shared.copy_slows_cpu() > 1.4);
    }

    #[test]
    fn curves_follow_what_limits_them() {
        let op = Op::Product {
            type_name: "f16".to_owned(),
            columns: 4096,
            rows: 4096,
        };
        let point = |rows, seconds| Point {
            rows,
            seconds,
            spread: 0.0,
            copy_busy: Some(seconds),
        };
        let mut profile = Profile::assumed();
        profile.gpu.launch = 0.0;
        profile.curves.push(Curve {
            on: Processor::Gpu,
            op,
            points: vec![point(1, 1e-4), point(2048, 1e-3)],
        });
        let half = format!("membw={}", profile.gpu.bytes / 2.0);
        let slower = what(&half).apply(&profile);
        let times: Vec<f64> = slower.curves[0].points.iter().map(|p| p.seconds).collect();
        assert!((times[0] - 2e-4).abs() < 1e-9, "bound by memory: {times:?}");
        assert!(
            (times[1] - 1e-3).abs() < 1e-9,
            "bound by arithmetic: {times:?}"
        );
    }
}
