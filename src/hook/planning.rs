//! The plan for what the books say now.

use super::choosing::Settling;
use super::runtime::Runtime;
use pipeshard_plan::plan::{plan, BatchFetch, Plan, PlanError, PlanInput, StreamShare};

impl Runtime {
    /// What is to be planned for now, with `extra_scratch` bytes of compute buffers to come; nothing is decided in it.
    pub fn plan_problem(&self, extra_scratch: u64) -> PlanInput {
        let mut input = PlanInput::new(self.plan_units.clone(), Vec::new(), self.budget);
        let debug = &self.config.debug;
        input.expert_min_rows = debug.expert_rows;
        input.chunk_target = debug.chunk_bytes.unwrap_or(input.chunk_target);
        input.chosen_percent = debug.chosen_percent.unwrap_or(input.chosen_percent);
        input.output_on_host = self.retry.output_on_host && !debug.like_stock;
        input.keep_in_ring = !debug.like_stock;
        input.output_streams = debug.like_stock;
        input.kv_fixed = Some(self.ledger.kv_placements());
        let known = self.ledger.scratch() + extra_scratch;
        input.scratch = known
            .max(self.retry.expected_scratch)
            .max(self.retry.freed_scratch);
        input.reserve = self.reserve();
        input.granularity = self.granularity();
        input.alignment = self.device.map_or(256, |d| d.alignment());
        input
    }

    /// The same with what was decided.
    pub fn plan_input(&self, extra_scratch: u64) -> PlanInput {
        let mut input = self.plan_problem(extra_scratch);
        let debug = &self.config.debug;
        if !self.retry.smallest {
            input.decide(&self.decisions);
        }
        input.expert_min_rows = debug.expert_rows.or(input.expert_min_rows);
        if let Some(percent) = debug.decode_stream {
            input.short_streams.retain(|share| share.min_rows > 1);
            input.short_streams.push(StreamShare {
                min_rows: 1,
                percent,
            });
        }
        if let Some(fetched) = debug.fetched_experts {
            input.fetched_experts = fetched;
        }
        if let Some(rows) = debug.fetched_rows {
            let experts = input.fetched_experts;
            input.fetched_by_batches = vec![BatchFetch { rows, experts }];
            let streamed = input.expert_min_rows.unwrap_or(input.stream_min_rows);
            input.expert_min_rows = Some(streamed.max(rows.saturating_add(1)));
        }
        if self.models.len() != 1 || debug.like_stock {
            input.fetched_experts = 0;
            input.fetched_by_batches.clear();
        }
        if self.retry.smallest || debug.like_stock {
            input.host_cells_min_rows = u32::MAX;
        }
        input.fixed = self.fixed_plan();
        input
    }

    /// Plans for now, with `extra_scratch` bytes of compute buffers to come.
    pub fn make_plan(&self, extra_scratch: u64) -> Result<Plan, PlanError> {
        let mut input = self.plan_input(extra_scratch);
        let made = plan(&input)?;
        if !self.retry.smallest || made.minimum_budget >= input.budget {
            return Ok(made);
        }
        input.budget = made.minimum_budget;
        plan(&input)
    }

    /// The plan for now, made again if something changed.
    pub fn current_plan(&mut self) -> Result<&Plan, PlanError> {
        if self.plan.is_none() {
            let made = self.make_plan(0)?;
            self.outcome.plans += 1;
            self.plan = Some(made);
        }
        match &self.plan {
            Some(plan) => Ok(plan),
            None => Err(PlanError::InvalidInput("no plan".to_string())),
        }
    }

    /// A plan to measure graphs by. Where the budget is too small, that of the smallest budget that is not: so that the
    /// compute buffers become known, and with them the smallest budget that works.
    pub fn plan_for_measuring(&mut self) -> Result<(), String> {
        match self.current_plan() {
            Ok(_) => Ok(()),
            Err(
                PlanError::BudgetTooSmall {
                    minimum: enough, ..
                }
                | PlanError::FixedDoesNotFit { needed: enough, .. },
            ) => {
                let mut input = self.plan_input(0);
                input.budget = enough;
                self.plan = Some(plan(&input).map_err(|e| e.to_string())?);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Something that the plan depends on has changed.
    pub fn replan(&mut self) {
        self.plan = None;
    }

    /// The memory that was decided for has become more or less.
    pub fn outdate(&mut self) {
        if self.settling == Settling::Settled {
            self.settling = Settling::Outdated;
        }
    }

    /// Changes the budget; residents move before the next pass.
    pub fn set_budget(&mut self, bytes: u64) -> Result<(), String> {
        let before = std::mem::replace(&mut self.budget, bytes);
        let fits = plan(&self.plan_input(0));
        match fits {
            Ok(made) => {
                self.plan = Some(made);
                self.outdate();
                self.void_graphs();
                self.outcome.budget_changes += 1;
                Ok(())
            }
            Err(error) => {
                self.budget = before;
                Err(error.to_string())
            }
        }
    }
}
