//! Finding budgets on the simulated GPU, which has exactly as many bytes, and comparing at each.

use super::cases::Budget;
use super::scenario::StepResult;
use super::verdict::{report_of, CaseResult};
use super::work::{Measured, Stopped, Work, TRIES};
use std::time::Instant;

/// Budgets between no KV on the device and all of it that are tried where halving the distance finds none.
const STEPS: u64 = 32;

/// Looks for budgets, and compares at each.
pub(super) struct Search<'a> {
    work: &'a Work<'a>,
    stock: &'a [StepResult],
    everything: &'a Measured,
    smallest: Option<u64>,
    kv_host: Option<u64>,
    /// The smallest budget, where it already has room for all KV cache: what follows the KV cache onto the device needs more.
    whole_kv_at_least: Option<u64>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        work: &'a Work<'a>,
        stock: &'a [StepResult],
        everything: &'a Measured,
    ) -> Self {
        Search {
            work,
            stock,
            everything,
            smallest: None,
            kv_host: None,
            whole_kv_at_least: None,
        }
    }

    /// The case at a budget.
    pub(super) fn case(&mut self, budget: Budget) -> CaseResult {
        let start = Instant::now();
        let bytes = match self.bytes(budget) {
            Ok(bytes) => bytes,
            Err(why) => return self.work.result(budget, None, Err(why), start),
        };
        let repeats = self.work.group.feature.repeats;
        let ran = self.work.ours(bytes, false, repeats).and_then(|ours| {
            self.work
                .judge(self.stock, &ours.steps, Some(budget), bytes)?;
            let split = self.kv_is_split(&ours) || Some(bytes) == self.whole_kv_at_least;
            if budget == Budget::KvHost && !split {
                return Err(Stopped::Failed(format!(
                    "{} of {} bytes of KV are on the device, which is not some of it",
                    ours.kv, self.everything.kv
                )));
            }
            Ok(ours)
        });
        self.work.result(budget, Some(bytes), ran, start)
    }

    fn kv_is_split(&self, ours: &Measured) -> bool {
        ours.kv > 0 && ours.kv < self.everything.kv
    }

    fn bytes(&mut self, budget: Budget) -> Result<u64, Stopped> {
        match budget {
            Budget::Min => self.smallest(),
            Budget::KvHost => self.kv_host(),
            Budget::Mid => {
                let low = match self.work.group.feature.has_kv && self.everything.kv > 0 {
                    true => self.floor() + self.everything.kv,
                    false => self.floor(),
                };
                Ok(low + self.everything.peak.saturating_sub(low) / 2)
            }
            Budget::All => Ok(self.everything.peak),
        }
    }

    /// The smallest budget that works: the one that is named when less is refused.
    fn smallest(&mut self) -> Result<u64, Stopped> {
        if let Some(bytes) = self.smallest {
            return Ok(bytes);
        }
        let mut budget = 1;
        loop {
            match self.work.ours(budget, true, 1) {
                Err(Stopped::TooSmall(named)) if named > budget => budget = named,
                Err(why) => {
                    return Err(Stopped::Failed(format!("at {budget} bytes: {}", why.why())))
                }
                Ok(_) => break,
            }
        }
        self.smallest = Some(budget);
        Ok(budget)
    }

    /// A budget at which some layers' KV is on the host.
    fn kv_host(&mut self) -> Result<u64, Stopped> {
        if let Some(bytes) = self.kv_host {
            return Ok(bytes);
        }
        let (mut low, mut high) = (self.floor(), self.everything.peak);
        let mut budget = low + self.everything.kv / 2;
        let mut last = None;
        for _ in 0..TRIES {
            match self.work.ours(budget, true, 1) {
                Ok(found) if self.kv_is_split(&found) => {
                    self.kv_host = Some(budget);
                    return Ok(budget);
                }
                Ok(found) if found.kv >= self.everything.kv => high = budget,
                Ok(_) | Err(Stopped::TooSmall(_)) => low = budget,
                Err(why) => (low, last) = (budget, Some(why)),
            }
            budget = low + high.saturating_sub(low) / 2;
        }
        // more KV on the device can leave too little room for what comes later, so a larger budget may be refused
        let floor = self.floor();
        for step in 1..STEPS {
            let budget = floor + self.everything.kv / STEPS * step;
            if matches!(self.work.ours(budget, true, 1), Ok(found) if self.kv_is_split(&found)) {
                self.kv_host = Some(budget);
                return Ok(budget);
            }
        }
        if let Ok(smallest) = self.smallest() {
            let least = self.work.ours(smallest, true, 1);
            if least.is_ok_and(|found| found.kv >= self.everything.kv) {
                self.whole_kv_at_least = Some(smallest);
                return Ok(smallest);
            }
        }
        Err(last.unwrap_or_else(|| {
            Stopped::Failed(format!(
                "no budget was found at which some of the {} bytes of KV are on the device",
                self.everything.kv
            ))
        }))
    }

    /// A budget to search from: the smallest that works, or, where that cannot be found out, the smallest that the plan with
    /// room for everything could have been made for, less the KV that it had on the device.
    fn floor(&mut self) -> u64 {
        let planned = self
            .everything
            .steps
            .iter()
            .filter_map(|s| report_of(s).ok());
        let planned = planned.map(|r| r.minimum_budget).max();
        let without_kv = planned.unwrap_or(0).saturating_sub(self.everything.kv);
        self.smallest().unwrap_or(without_kv)
    }
}
