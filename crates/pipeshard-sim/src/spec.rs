//! What a simulated GPU is like: `vram=8G,pcie=25G,…`.

use std::fmt;
use std::str::FromStr;

use pipeshard_model::size::ByteSize;

use super::error::SpecError;
use super::faults::Faults;
use super::pins::PinPolicy;
use super::values::{duration_ns, faults, number, pin_policy, rate, size, switch};

/// The most memory a simulated GPU may have: its address space is reserved several times over.
const MAX_VRAM: u64 = 4 << 40;

/// Pageable memory moves no faster than the processor copies it into the driver's staging buffers, bytes per second.
const PAGEABLE_RATE: u64 = 8_000_000_000;

/// The properties of a simulated GPU. Sizes are bytes, rates are per second, times are as their names say.
///
/// The defaults are those of a mid-range desktop card: a 25 GB/s link, 40 TFLOP/s, 450 GB/s of memory bandwidth.
///
/// ```
/// # use pipeshard_sim::SimSpec;
/// let spec: SimSpec = "vram=8G,pcie=12.5G,launch=3us".parse().unwrap();
/// assert_eq!((spec.vram, spec.pcie, spec.launch_ns), (8 << 30, 12_500_000_000, 3_000));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimSpec {
    /// Capacity in bytes.
    pub vram: u64,
    /// Link bandwidth in bytes per second, in each direction, to and from page-locked memory.
    pub pcie: u64,
    /// Link bandwidth in bytes per second to and from memory that is not page-locked.
    pub pageable: u64,
    /// Arithmetic rate in floating-point operations per second.
    pub flops: u64,
    /// Bandwidth of the device's own memory in bytes per second.
    pub membw: u64,
    /// Overhead of each kernel, in nanoseconds.
    pub launch_ns: u64,
    /// The rate at which the host computes, in bytes of weights per second; `None`: not stated.
    pub cpu: Option<u64>,
    /// What each allocation is rounded up to, in bytes.
    pub granularity: u64,
    /// Seed of the random delays.
    pub seed: u64,
    /// The longest random delay before a copy or a kernel, in microseconds of real time; 0 for none.
    pub delay_us: u64,
    /// Whether host memory may be page-locked.
    pub pin: PinPolicy,
    /// Bytes that are in use from the start, as by a driver's context.
    pub context: u64,
    /// Allocations of device memory that fail, counted from 1.
    pub fail_alloc: Option<Faults>,
    /// Events that cannot be made, counted from 1.
    pub fail_event: Option<Faults>,
    /// This asynchronous copy fails, counted from 1, and takes the device down with it.
    pub fail_copy: Option<u64>,
    /// After so many operations (allocations, copies, graphs, events, streams) the device is gone.
    pub lost: Option<u64>,
    /// Whether page-locked memory is released when it is asked for. Off, it stays locked.
    pub unpin: bool,
    /// Whether memory that is not yet filled, or not any more, reads as NaN.
    pub poison: bool,
    /// Whether kernels compute. Off, they only take their time: for graphs that this machine could not compute, what they
    /// would have written keeps what it held, and choices are all 0.
    pub compute: bool,
    /// Freeing memory waits until the streams are idle, as CUDA's does. Off: what still uses the memory reads freed memory.
    pub free_waits: bool,
}

impl SimSpec {
    /// A card with this many bytes of memory and defaults for the rest.
    pub fn with_vram(vram: u64) -> Self {
        Self {
            vram,
            pcie: 25_000_000_000,
            pageable: PAGEABLE_RATE,
            flops: 40_000_000_000_000,
            membw: 450_000_000_000,
            launch_ns: 2_000,
            cpu: None,
            granularity: 256,
            seed: 1,
            delay_us: 0,
            pin: PinPolicy::Unlimited,
            context: 0,
            fail_alloc: None,
            fail_event: None,
            fail_copy: None,
            lost: None,
            unpin: true,
            poison: true,
            compute: true,
            free_waits: true,
        }
    }

    /// Reads `key=value,key=value,…`; only `vram` must be there.
    ///
    /// Sizes are binary (`8G` is 8 GiB), rates decimal (`25G` is 25·10⁹ per second), `launch` without a unit is
    /// nanoseconds and `delay` without a unit microseconds.
    ///
    /// # Errors
    /// Says which property is wrong, and what one looks like that is not.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::with_vram(0);
        let mut seen: Vec<String> = Vec::new();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| SpecError::NoValue(item.to_owned()))?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            spec.set(&key, value)?;
            if seen.contains(&key) {
                return Err(SpecError::Twice(key));
            }
            seen.push(key);
        }
        let given = |key: &str| seen.iter().any(|k| k == key);
        if !given("vram") {
            return Err(SpecError::NoVram);
        }
        if !given("pageable") {
            spec.pageable = spec.pageable.min(spec.pcie);
        }
        spec.check()?;
        Ok(spec)
    }

    /// How long the host computes with this many bytes of weights, in nanoseconds; nothing if its rate was not given.
    pub fn host_ns(&self, bytes: u64) -> Option<u64> {
        self.cpu.map(|rate| super::clock::transfer_ns(bytes, rate))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        match key {
            "vram" => self.vram = size(key, value)?,
            "pcie" => self.pcie = rate(key, value)?,
            "pageable" => self.pageable = rate(key, value)?,
            "flops" => self.flops = rate(key, value)?,
            "membw" => self.membw = rate(key, value)?,
            "launch" => self.launch_ns = duration_ns(key, value, 1)?,
            "cpu" => self.cpu = Some(rate(key, value)?),
            "granularity" => self.granularity = size(key, value)?,
            "seed" => self.seed = number(key, value, 0)?,
            "delay" => self.delay_us = duration_ns(key, value, 1_000)?.div_ceil(1_000),
            "pin" => self.pin = pin_policy(key, value)?,
            "context" => self.context = size(key, value)?,
            "failalloc" => self.fail_alloc = Some(faults(key, value)?),
            "failevent" => self.fail_event = Some(faults(key, value)?),
            "failcopy" => self.fail_copy = Some(number(key, value, 1)?),
            "lost" => self.lost = Some(number(key, value, 0)?),
            "unpin" => self.unpin = switch(key, value)?,
            "poison" => self.poison = switch(key, value)?,
            "compute" => self.compute = switch(key, value)?,
            "freewait" => self.free_waits = switch(key, value)?,
            _ => return Err(SpecError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), SpecError> {
        let range = |key: &str, value: u64, ok: bool, allowed: String| {
            ok.then_some(()).ok_or_else(|| SpecError::Range {
                key: key.to_owned(),
                value: ByteSize(value),
                allowed,
            })
        };
        let vram_ok = (1..=MAX_VRAM).contains(&self.vram);
        let most = format!("more than 0 and at most {}", ByteSize(MAX_VRAM));
        range("vram", self.vram, vram_ok, most)?;
        let context_ok = self.context < self.vram;
        let below = format!("below vram, {}", ByteSize(self.vram));
        range("context", self.context, context_ok, below)?;
        let granularity_ok = (1..=self.vram).contains(&self.granularity);
        let at_most = format!("at least 1 byte and at most vram, {}", ByteSize(self.vram));
        range("granularity", self.granularity, granularity_ok, at_most)
    }
}

impl FromStr for SimSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SimSpec {
    /// One line for people: what the device calls itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "simulated GPU ({}, link {} GB/s, {} TFLOP/s, memory {} GB/s)",
            ByteSize(self.vram),
            self.pcie as f64 / 1e9,
            self.flops as f64 / 1e12,
            self.membw as f64 / 1e9
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        SimSpec::parse(text)
            .expect_err("a wrong specification was accepted")
            .to_string()
    }

    #[test]
    fn only_the_capacity_is_required() {
        let spec = SimSpec::parse("vram=1G").expect("a capacity is enough");
        assert_eq!(spec, SimSpec::with_vram(1 << 30));
        assert_eq!(
            (spec.pcie, spec.flops, spec.membw),
            (25_000_000_000, 40_000_000_000_000, 450_000_000_000)
        );
        assert!(spec.poison);
    }

    #[test]
    fn every_property_is_read() {
        let text = "vram=8G, pcie=12.5G,pageable=3G,flops=80T,membw=1.2T,launch=5us,cpu=40G,granularity=2M,\
                    seed=7,delay=500,pin=1G,context=300M,failalloc=3+,failevent=2,failcopy=4,lost=9,unpin=off,\
                    poison=off,compute=off,freewait=off";
        let spec = SimSpec::parse(text).expect("all properties at once");
        let expected = SimSpec {
            vram: 8 << 30,
            pcie: 12_500_000_000,
            pageable: 3_000_000_000,
            flops: 80_000_000_000_000,
            membw: 1_200_000_000_000,
            launch_ns: 5_000,
            cpu: Some(40_000_000_000),
            granularity: 2 << 20,
            seed: 7,
            delay_us: 500,
            pin: PinPolicy::Limited(1 << 30),
            context: 300 << 20,
            fail_alloc: Faults::parse("3+"),
            fail_event: Faults::parse("2"),
            fail_copy: Some(4),
            lost: Some(9),
            unpin: false,
            poison: false,
            compute: false,
            free_waits: false,
        };
        assert_eq!(spec, expected);
        assert_eq!(spec.host_ns(40), Some(1));
    }

    #[test]
    fn units_of_time_and_of_memory() {
        let launch =
            |value: &str| SimSpec::parse(&format!("vram=1M,launch={value}")).map(|s| s.launch_ns);
        assert_eq!(launch("250"), Ok(250));
        assert_eq!(launch("1.5us"), Ok(1_500));
        assert_eq!(launch("2ms"), Ok(2_000_000));
        let delay =
            |value: &str| SimSpec::parse(&format!("vram=1M,delay={value}")).map(|s| s.delay_us);
        assert_eq!(delay("200us"), Ok(200));
        assert_eq!(delay("2ms"), Ok(2_000));
        assert_eq!(delay("1ns"), Ok(1));
        let pin = |value: &str| SimSpec::parse(&format!("vram=1M,pin={value}")).map(|s| s.pin);
        assert_eq!(pin("on"), Ok(PinPolicy::Unlimited));
        assert_eq!(pin("off"), Ok(PinPolicy::Refused));
        assert_eq!(pin("64K"), Ok(PinPolicy::Limited(64 << 10)));
    }

    #[test]
    fn a_slow_link_is_no_faster_from_pageable_memory() {
        let rate = |text: &str| SimSpec::parse(text).map(|s| s.pageable);
        assert_eq!(rate("vram=1G,pcie=3G"), Ok(3_000_000_000));
        assert_eq!(rate("vram=1G,pcie=50G"), Ok(PAGEABLE_RATE));
        assert_eq!(rate("vram=1G,pcie=3G,pageable=5G"), Ok(5_000_000_000));
    }

    #[test]
    fn wrong_specifications_say_what_is_wrong() {
        for (text, part) in [
            ("", "needs to know its memory"),
            ("pcie=25G", "needs to know its memory"),
            ("vram", "'vram' in the simulated"),
            (
                "vram=1G,vran=2",
                "'vran' is not a property of a simulated GPU; known: vram, pcie",
            ),
            ("vram=1G,vram=2G", "'vram' is given twice"),
            (
                "vram=lots",
                "vram of the simulated GPU: invalid size 'lots'",
            ),
            ("vram=0", "vram=0 B of the simulated GPU is out of range"),
            ("vram=100T", "at most 4 TiB"),
            (
                "vram=1G,context=1G",
                "context=1 GiB of the simulated GPU is out of range: it must be below vram",
            ),
            ("vram=1G,granularity=0", "granularity=0 B"),
            (
                "vram=1G,pcie=0",
                "pcie of the simulated GPU: invalid rate '0'",
            ),
            ("vram=1G,pcie=-3G", "invalid rate '-3G'"),
            ("vram=1G,pcie=1e9", "invalid rate '1e9'"),
            ("vram=1G,pcie=..G", "invalid rate '..G'"),
            ("vram=1G,flops=9999999999999T", "invalid rate"),
            ("vram=1G,launch=fast", "invalid duration 'fast'"),
            ("vram=1G,delay=5min", "invalid duration '5min'"),
            ("vram=1G,seed=x", "'x' is not a whole number"),
            ("vram=1G,failcopy=0", "'0' is not a whole number above 0"),
            ("vram=1G,failalloc=2-", "'2-' is not a whole number above 0"),
            ("vram=1G,lost=soon", "'soon' is not a whole number"),
            ("vram=1G,poison=yes", "'yes' is neither on nor off"),
            (
                "vram=1G,pin=some",
                "'some' is neither on nor off, nor a size",
            ),
        ] {
            let message = error(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn says_what_it_is() {
        let text = SimSpec::with_vram(8 << 30).to_string();
        assert_eq!(
            text,
            "simulated GPU (8 GiB, link 25 GB/s, 40 TFLOP/s, memory 450 GB/s)"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9=,.GMKTµ -]{0,40}") {
            let _ = SimSpec::parse(&text);
            let _ = SimSpec::parse(&format!("vram=1G,{text}"));
        }
    }
}
