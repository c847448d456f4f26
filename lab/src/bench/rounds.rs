//! Steps that depend on what was measured before: the search, pipeshard's placement in stock, and the rounds of the best.

use super::analysis::{rows, Row};
use super::clock::job_seconds;
use super::job::{Job, Step};
use super::runner::Run;
use super::search::{Need, Strategy};
use super::types::{Approach, Measurement, Outcome, Test, Work};

/// Part of a budget that a placement may be off by from one run to the next.
const MARGIN: u64 = 512;

impl Run<'_> {
    /// Looks for the placement of a kind that just fits, by running it; what was measured corrects what was assumed.
    pub(super) fn search(
        &mut self,
        model: usize,
        budget: u64,
        strategy: Strategy,
        ubatch: u32,
        tests: &[Test],
        what: &str,
    ) -> Result<(), String> {
        let mut tests: Vec<Test> = tests.to_vec();
        tests.retain(|t| !self.found_before(model, budget, strategy, ubatch, *t));
        let key = (model, strategy, ubatch);
        for attempt in 0..3 {
            if tests.is_empty() {
                return Ok(());
            }
            let context = tests.iter().map(|t| t.context()).max().unwrap_or(0);
            let need = Need { context, ubatch };
            let beside = self.beside.get(&key).copied();
            let Some(inventory) = self.inventories.get(model) else {
                return Ok(());
            };
            let fitted = strategy.fit(inventory, need, budget, beside).or_else(|| {
                // what was assumed may be too much: the least that this kind can take tells
                let least = strategy.placement(inventory, inventory.layer_count, need);
                (beside.is_none() && least.weights + least.kv < budget).then_some(least)
            });
            let Some(placed) = fitted else {
                let why = format!("{what}: no placement of this kind fits");
                self.notes.push(why);
                return Ok(());
            };
            let mut job =
                Job::new(model, Some(budget), Approach::Search, tests.clone()).ubatch(ubatch);
            job.setting.clone_from(&placed.setting);
            job.flags.clone_from(&placed.flags);
            let estimate = job_seconds(&job, self.fact(model), self.tools.repetitions);
            if attempt > 0 && !self.clock.has_time_for(estimate) {
                return Ok(());
            }
            let measured = self.run_job(&job)?;
            let Some(peak) = measured.iter().filter_map(|m| m.peak).max() else {
                return Ok(());
            };
            let margin = budget / MARGIN;
            let found = peak.saturating_sub(placed.weights + placed.kv) + margin;
            let over = |m: &&Measurement| matches!(m.outcome, Outcome::OverBudget { .. });
            let went_over: Vec<Test> = measured.iter().filter(over).map(|m| m.test).collect();
            if went_over.is_empty() {
                self.beside.insert(key, found);
                let unused = budget.saturating_sub(peak);
                let is_worth_it = self.settings.grid.full_search || unused > budget / 10;
                let better = strategy.fit(&self.inventories[model], need, budget, Some(found));
                if !is_worth_it || better.is_none_or(|b| b.weights <= placed.weights) {
                    return Ok(());
                }
            } else {
                // whatever the figures say, the same must not come back
                self.beside
                    .insert(key, found.max(beside.unwrap_or(0) + margin.max(1)));
                tests = went_over;
            }
        }
        Ok(())
    }

    fn found_before(
        &self,
        model: usize,
        budget: u64,
        strategy: Strategy,
        ubatch: u32,
        test: Test,
    ) -> bool {
        let name = self.name(model);
        self.store.measurements.iter().any(|m| {
            let same_kind = Strategy::parse(&m.setting).is_some_and(|(s, _)| s == strategy);
            same_kind
                && m.is_valid()
                && m.model == name
                && (m.budget, m.approach, m.ubatch, m.test, m.round)
                    == (Some(budget), Approach::Search, Some(ubatch), test, 1)
        })
    }

    /// Runs stock llama.cpp with the placement that pipeshard had in a test.
    pub(super) fn same_placement(
        &mut self,
        model: usize,
        budget: u64,
        ubatch: u32,
        test: Test,
        what: &str,
    ) -> Result<(), String> {
        let name = self.name(model);
        let counted = self.store.measurements.iter().find_map(|m| {
            let same = m.model == name
                && (m.budget, m.approach, m.ubatch, m.test)
                    == (Some(budget), Approach::Pipeshard, Some(ubatch), test);
            m.counted.as_ref().filter(|_| same)
        });
        let Some(counted) = counted else {
            self.notes
                .push(format!("{what}: pipeshard was not measured there"));
            return Ok(());
        };
        let names: Vec<String> = counted
            .not_resident
            .iter()
            .map(|n| regex::escape(n))
            .collect();
        let mut job = Job::new(model, Some(budget), Approach::SamePlacement, vec![test]);
        job.flags = ["-ngl", "999"].map(str::to_owned).to_vec();
        if !names.is_empty() {
            job.flags
                .extend(["-ot".to_owned(), format!("^({})$=CPU", names.join("|"))]);
        }
        self.run_job(&job.ubatch(ubatch)).map(|_| ())
    }

    /// The fastest baseline and pipeshard once more, for each test.
    pub(super) fn duel(&mut self, model: usize, budget: u64, round: u32) -> Result<(), String> {
        let name = self.name(model);
        let of_cell = |m: &&Measurement| m.model == name && m.budget == Some(budget);
        // what earlier rounds found: this one must not change its own choice when it is taken up again
        let earlier: Vec<Measurement> = self
            .store
            .measurements
            .iter()
            .filter(|m| of_cell(m) && m.round < round)
            .cloned()
            .collect();
        let timed = earlier.iter().filter(|m| m.is_valid()).map(|m| m.test);
        let mut tests: Vec<Test> = timed.filter(|t| t.work != Work::FirstToken).collect();
        tests.sort_unstable();
        tests.dedup();
        let mut theirs: Vec<Job> = Vec::new();
        let mut ours: Vec<Job> = Vec::new();
        for test in tests {
            let all = rows(&earlier, &name, Some(budget), test.comparable());
            let fastest = |pick: &dyn Fn(&Row) -> bool| {
                let picked = all.iter().filter(|row| pick(row));
                picked.min_by(|a, b| a.time.median.total_cmp(&b.time.median))
            };
            if let Some(row) = fastest(&|row| row.approach.is_baseline()) {
                let job = self.again(model, budget, row, test, round);
                let known = theirs.iter_mut().find(|j| {
                    (j.approach, &j.setting, j.ubatch) == (job.approach, &job.setting, job.ubatch)
                });
                match known {
                    Some(known) => known.tests.push(test),
                    None => theirs.push(job),
                }
            }
            let is_ours = |row: &Row| row.approach == Approach::Pipeshard;
            let plans = fastest(&|row| is_ours(row) && row.ubatch.is_none());
            let best = fastest(&is_ours);
            let mut picked: Vec<&Row> = plans.into_iter().chain(best).collect();
            picked.dedup();
            ours.extend(
                picked
                    .into_iter()
                    .map(|row| self.again(model, budget, row, test, round)),
            );
        }
        // in turn, while there are as many
        let mut theirs = theirs.into_iter();
        for job in ours {
            if let Some(their) = theirs.next() {
                self.job_in_time(their)?;
            }
            self.job_in_time(job)?;
        }
        theirs.try_for_each(|job| self.job_in_time(job))
    }

    fn job_in_time(&mut self, job: Job) -> Result<(), String> {
        let estimate = job_seconds(&job, self.fact(job.model), self.tools.repetitions);
        if self.clock.has_time_for(estimate) {
            return self.job(job);
        }
        self.notes
            .push(format!("{}: time was up", self.describe(&Step::Run(job))));
        Ok(())
    }

    /// The job that a row came from, for one test.
    fn again(&self, model: usize, budget: u64, row: &Row, test: Test, round: u32) -> Job {
        let mut job = Job::new(model, Some(budget), row.approach, vec![test]).in_round(round);
        job.ubatch = row.ubatch;
        job.setting.clone_from(&row.setting);
        if let (Some((strategy, layers)), Some(inventory), Some(ubatch)) = (
            Strategy::parse(&row.setting),
            self.inventories.get(model),
            row.ubatch,
        ) {
            let need = Need {
                context: test.context(),
                ubatch,
            };
            job.flags = strategy.placement(inventory, layers, need).flags;
        }
        job
    }
}
