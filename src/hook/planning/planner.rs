//! The plan for what is held now, and everything else that it depends on.
//!
//! Owns the plan, the decisions for the context that is being made or used ([`ContextPlan`]), what is known of contexts that did
//! not fit ([`Attempts`]), the machine's profile and the saved plan that is followed. Asked through [`super::super::tenant`], which
//! adds what weights and accounts say. Knows no device and no scheduler.

use super::attempts::Attempts;
use super::context::{ContextPlan, Freshness};
use super::saved::{FollowedPlan, PlanFile};
use crate::hook::config::Config;
use pipeshard_plan::plan::{plan, BatchFetch, Decisions, Plan, PlanError, PlanInput, StreamShare};
use pipeshard_plan::profile::Profile;
use std::sync::Arc;

/// What plans are made of and made by.
pub struct Planner {
    config: Arc<Config>,
    /// The plan for what is held now; none when it has to be made again.
    plan: Option<Plan>,
    /// Where there is none within the budget, that of the smallest budget that works: graphs are measured by it, and never run.
    beyond_budget: Option<Plan>,
    /// Plans that were made.
    plans: u64,
    /// What the machine does per second, once it was asked for.
    pub measured: Option<Profile>,
    /// The saved plan that is followed.
    pub followed: FollowedPlan,
    /// What was decided for the context that was made last.
    context: Option<ContextPlan>,
    /// Contexts that are being made.
    pub attempts: Attempts,
    /// Passes have run under some plan.
    in_use: bool,
}

impl Planner {
    /// Nothing is planned yet.
    pub fn new(config: Arc<Config>, file: Option<PlanFile>) -> Self {
        Planner {
            config,
            plan: None,
            beyond_budget: None,
            plans: 0,
            measured: None,
            followed: FollowedPlan::new(file),
            context: None,
            attempts: Attempts::default(),
            in_use: false,
        }
    }

    /// `problem` with what contexts that did not fit have taught, and with `extra_scratch` bytes of compute buffers to come in
    /// addition those that are in it; nothing is decided.
    pub fn undecided(&self, mut problem: PlanInput, extra_scratch: u64) -> PlanInput {
        let debug = &self.config.debug;
        problem.expert_min_rows = debug.expert_rows;
        problem.chunk_target = debug.chunk_bytes.unwrap_or(problem.chunk_target);
        problem.chosen_percent = debug.chosen_percent.unwrap_or(problem.chosen_percent);
        problem.output_on_host = self.attempts.output_on_host() && !debug.like_stock;
        problem.keep_in_ring = !debug.like_stock;
        problem.output_streams = debug.like_stock;
        let known = problem.scratch + extra_scratch;
        problem.scratch = known.max(self.attempts.expected_scratch());
        problem
    }

    /// The same with what was decided. `models`: how many share the budget.
    pub fn decided(&self, problem: PlanInput, extra_scratch: u64, models: usize) -> PlanInput {
        let mut input = self.undecided(problem, extra_scratch);
        let debug = &self.config.debug;
        let smallest = self.attempts.smallest();
        if !smallest {
            match &self.context {
                Some(context) => input.decide(&context.decisions),
                None => input.decide(&Decisions::default()),
            }
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
        if models != 1 || debug.like_stock {
            input.fetched_experts = 0;
            input.fetched_by_batches.clear();
        }
        if smallest || debug.like_stock {
            input.host_kv_min_rows = u32::MAX;
        }
        input.fixed = self.followed.fixed(self.in_use);
        input
    }

    /// Plans for `input`, which was decided.
    pub fn make(&self, mut input: PlanInput) -> Result<Plan, PlanError> {
        let made = plan(&input)?;
        if !self.attempts.smallest() || made.minimum_budget >= input.budget {
            return Ok(made);
        }
        input.budget = made.minimum_budget;
        plan(&input)
    }

    /// The plan for now, made again of what `input` says if something changed. `known_scratch`: bytes of the compute buffers that
    /// there are.
    pub fn current(
        &mut self,
        input: impl FnOnce(&Self) -> PlanInput,
        known_scratch: u64,
    ) -> Result<&Plan, PlanError> {
        let made = match self.plan.take() {
            Some(plan) => plan,
            None => {
                let mut input = input(self);
                let mut made = self.make(input.clone());
                // what another thread's context may need later must not stop this one's graph
                if made.is_err() && !self.attempts.makes_here() && input.scratch > known_scratch {
                    input.scratch = known_scratch;
                    made = self.make(input);
                }
                let made = made?;
                self.plans += 1;
                made
            }
        };
        Ok(self.plan.insert(made))
    }

    /// A plan to measure graphs by. Where the budget is too small, that of the smallest budget that is not: so that the
    /// compute buffers become known, and with them the smallest budget that works. It does not become the plan for now: another
    /// thread's graph may run before this one's buffers are refused.
    pub fn for_measuring(
        &mut self,
        input: impl Fn(&Self) -> PlanInput,
        known_scratch: u64,
    ) -> Result<&Plan, String> {
        if self.beyond_budget.is_none() {
            let enough = match self.current(&input, known_scratch) {
                Ok(_) => None,
                Err(
                    PlanError::BudgetTooSmall {
                        minimum: enough, ..
                    }
                    | PlanError::FixedDoesNotFit { needed: enough, .. },
                ) => Some(enough),
                Err(error) => return Err(error.to_string()),
            };
            if let Some(enough) = enough {
                let mut input = input(self);
                input.budget = enough;
                self.beyond_budget = Some(plan(&input).map_err(|e| e.to_string())?);
            }
        }
        self.plan_of_measured().ok_or_else(|| "no plan".to_string())
    }

    /// What graphs are measured by, if it was made.
    pub fn plan_of_measured(&self) -> Option<&Plan> {
        self.beyond_budget.as_ref().or(self.plan.as_ref())
    }

    /// The plan for now, if it was made.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// This is the plan for now.
    pub fn set(&mut self, plan: Plan) {
        self.plan = Some(plan);
        self.beyond_budget = None;
    }

    /// Something that the plan depends on has changed.
    pub fn replan(&mut self) {
        self.plan = None;
        self.beyond_budget = None;
    }

    /// Plans that were made.
    pub fn plans(&self) -> u64 {
        self.plans
    }

    /// What was decided for the context that was made last, if something was.
    pub fn context(&self) -> Option<&ContextPlan> {
        self.context.as_ref()
    }

    /// The same, to decide again.
    pub fn context_mut(&mut self) -> Option<&mut ContextPlan> {
        self.context.as_mut()
    }

    /// Another context is decided about; none if nothing is decided for it.
    pub fn set_context(&mut self, context: Option<ContextPlan>) {
        self.context = context;
    }

    /// What was decided for a context of this model.
    pub fn context_of(&self, model: usize) -> Option<&ContextPlan> {
        self.context.as_ref().filter(|c| c.model == model)
    }

    /// Reports whether nothing is left to decide before a graph runs.
    pub fn is_decided(&self) -> bool {
        let left = |context: &ContextPlan| context.freshness != Freshness::Fresh;
        !self.context().is_some_and(left)
    }

    /// The memory that was decided for has become more or less: what was decided is looked at again.
    pub fn decide_again(&mut self) {
        if let Some(context) = &mut self.context {
            if context.freshness == Freshness::Fresh {
                context.freshness = Freshness::Outdated;
            }
        }
    }

    /// The device refused memory for fetched experts: nothing is decided about them any more.
    pub fn fetch_nothing(&mut self) {
        if let Some(context) = &mut self.context {
            context.decisions.fetched_experts = 0;
            context.decisions.fetched_by_batches.clear();
        }
        self.replan();
    }

    /// A pass of `sched` was submitted by the calling thread.
    pub fn pass_succeeded(&mut self, sched: usize) {
        self.in_use = true;
        self.attempts.succeeded(sched);
    }

    /// Reports whether passes have run.
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// A model is gone, and with it what was decided and learned for its contexts. Units have other numbers from here on.
    pub fn forget_model(&mut self, model: usize) {
        if self.context_of(model).is_some() {
            self.context = None;
        }
        self.attempts.forget_model(model);
        self.followed.forget_model();
        self.replan();
    }

    /// After an internal error nothing that was planned or learned is relied on.
    pub fn start_over(&mut self) {
        self.attempts = Attempts::default();
        self.context = None;
        self.replan();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::planning::attempts::Failed;
    use crate::hook::planning::context::{Asked, PlanSource};
    use pipeshard_plan::cost::Workload;
    use pipeshard_plan::plan::{Unit, UnitClass};

    fn planner() -> Planner {
        Planner::new(Arc::new(Config::default()), None)
    }

    /// One weight that has to be on the device, and a budget of so many bytes.
    fn problem(budget: u64) -> PlanInput {
        let unit = Unit {
            name: "blk.0.attn_norm.weight".to_string(),
            layer: Some(0),
            class: UnitClass::Small,
            bytes: 4096,
            device_bytes: 4096,
            expert_count: 0,
        };
        let mut input = PlanInput::new(vec![unit], Vec::new(), budget);
        input.granularity = 1;
        input
    }

    fn context(model: usize) -> ContextPlan {
        ContextPlan {
            model,
            decisions: Decisions {
                kv_on_host: vec![3],
                ..Decisions::default()
            },
            freshness: Freshness::Fresh,
            prediction: None,
            asked: Asked {
                workload: Workload {
                    prompt: 512,
                    generated: 128,
                    sequences: 1,
                    ubatch: 512,
                },
                context: 4096,
                experts_used: 0,
                type_k: "f16",
                type_v: "f16",
            },
            planned: plan(&problem(1 << 20)).expect("room"),
            kv_as_planned: true,
            source: PlanSource::Searched,
            kept: None,
        }
    }

    #[test]
    fn a_plan_beyond_the_budget_is_measured_by_and_never_run() {
        let mut planner = planner();
        let too_small = |planner: &Planner| planner.decided(problem(100), 0, 1);
        let measured = planner
            .for_measuring(too_small, 0)
            .expect("it says what works");
        assert!(measured.ledger.total() > 100);
        // another thread's graph is about to run
        assert!(planner.current(too_small, 0).is_err());
        assert!(planner.plan().is_none());
        // the second graph is measured by the same, until something changes
        assert!(planner.for_measuring(too_small, 0).is_ok());
        planner.replan();
        let enough = |planner: &Planner| planner.decided(problem(1 << 20), 0, 1);
        assert_eq!(
            planner.for_measuring(enough, 0).map(|p| p.budget),
            Ok(1 << 20)
        );
        assert!(planner.current(enough, 0).is_ok());
    }

    #[test]
    fn what_another_threads_context_may_want_stops_no_graph_that_has_room() {
        let mut planner = planner();
        let attempts = &mut planner.attempts;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                attempts.begin(1);
                // the head goes to the host first, then the next try expects what this one wanted
                for _ in 0..2 {
                    attempts.fail_for_scratch(2 << 20, &PlanError::Overflow);
                    assert_eq!(attempts.failed(true, true), Failed::Again);
                    attempts.begin(1);
                }
            });
        });
        let input = |planner: &Planner| planner.decided(problem(1 << 20), 0, 1);
        assert!(planner.make(input(&planner)).is_err());
        assert!(planner.current(input, 0).is_ok());
        // the thread that makes a context finds out that it has no room
        planner.replan();
        planner.attempts.begin(1);
        assert!(planner.current(input, 0).is_err());
    }

    #[test]
    fn what_was_decided_for_a_model_goes_with_it_and_is_no_other_ones() {
        let mut planner = planner();
        planner.set_context(Some(context(1)));
        assert!(planner.context_of(1).is_some());
        // a draft model's layer 3 is not the large model's
        assert!(planner.context_of(2).is_none());
        planner.forget_model(2);
        assert!(planner.context().is_some());
        planner.forget_model(1);
        assert!(planner.context().is_none());
        let input = planner.decided(problem(1 << 20), 0, 1);
        assert_eq!(input.kv_on_host, Vec::<u32>::new());
    }

    #[test]
    fn decisions_are_looked_at_again_when_there_is_other_memory() {
        let mut planner = planner();
        planner.decide_again();
        planner.set_context(Some(context(1)));
        planner.decide_again();
        let freshness = planner.context().map(|c| c.freshness);
        assert_eq!(freshness, Some(Freshness::Outdated));
    }
}
