//! A tenant of a device: models, what of them is on the device, and the plan for it.
//!
//! Language models of one process are one tenant; a vision tower, or models on a second GPU, would be others, each with units, a
//! plan and an arena of its own. [`Accounts`] of the device are above all of them. The parts do not know each other: what one has to
//! know of another passes through here. Called by the answers.

use super::accounts::Accounts;
use super::planning::context::Asked;
use super::planning::planner::Planner;
use super::residency::Residency;
use super::weights::Weights;
use pipeshard_model::inventory::Inventory;
use pipeshard_plan::cost::ModelShape;
use pipeshard_plan::plan::{Plan, PlanError, PlanInput};
use pipeshard_plan::profile::Profile;

/// Models, what of them is on the device, and why.
pub struct Tenant {
    /// In host memory.
    pub weights: Weights,
    /// On the device.
    pub residency: Residency,
    /// What should be there.
    pub planner: Planner,
}

/// What passes are priced with.
pub struct Pricing<'a> {
    /// What was asked for.
    pub asked: Asked,
    inventory: Inventory,
    /// What the machine does per second.
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

/// What is to be planned for, by what weights and accounts say.
fn problem(weights: &Weights, accounts: &Accounts) -> PlanInput {
    let units = weights.described().to_vec();
    let mut input = PlanInput::new(units, Vec::new(), accounts.budget());
    input.kv_fixed = Some(accounts.ledger.kv_placements());
    input.scratch = accounts.ledger.scratch();
    input.reserve = accounts.reserved();
    input.encoders = accounts.for_encoders();
    input.in_turn = accounts.expected.in_turn();
    input.granularity = accounts.granularity();
    input.alignment = accounts.device().map_or(256, |d| d.alignment());
    input
}

impl Tenant {
    /// What is to be planned for now; nothing is decided in it.
    pub fn plan_problem(&self, accounts: &Accounts) -> PlanInput {
        self.planner.undecided(problem(&self.weights, accounts), 0)
    }

    /// The same with what was decided, and with `extra_scratch` bytes of compute buffers to come.
    pub fn plan_input(&self, accounts: &Accounts, extra_scratch: u64) -> PlanInput {
        let models = self.weights.models().len();
        let problem = problem(&self.weights, accounts);
        self.planner.decided(problem, extra_scratch, models)
    }

    /// Plans for now, with `extra_scratch` bytes of compute buffers to come.
    pub fn make_plan(&self, accounts: &Accounts, extra_scratch: u64) -> Result<Plan, PlanError> {
        self.planner.make(self.plan_input(accounts, extra_scratch))
    }

    /// The plan for now, made again if something changed.
    pub fn current_plan(&mut self, accounts: &Accounts) -> Result<&Plan, PlanError> {
        let models = self.weights.models().len();
        let weights = &self.weights;
        let input = |planner: &Planner| planner.decided(problem(weights, accounts), 0, models);
        self.planner.current(input, accounts.ledger.scratch())
    }

    /// A plan to measure graphs by, see [`Planner::for_measuring`].
    pub fn plan_for_measuring(&mut self, accounts: &Accounts) -> Result<&Plan, String> {
        let models = self.weights.models().len();
        let weights = &self.weights;
        let input = |planner: &Planner| planner.decided(problem(weights, accounts), 0, models);
        self.planner.for_measuring(input, accounts.ledger.scratch())
    }

    /// Gives units that have no place an address, so that ggml does not put them into compute buffers.
    pub fn place_for_measuring(&mut self) {
        if let Some(placeholder) = self.residency.placeholder() {
            self.weights.place_for_measuring(placeholder);
        }
    }

    /// Reports whether the arena has another shape than the plan for now, which may have to be made. Where there is none, it
    /// has not.
    pub fn wants_another_shape(&mut self, accounts: &Accounts) -> bool {
        if self.current_plan(accounts).is_err() {
            return false;
        }
        let plan = self.planner.plan();
        plan.is_some_and(|plan| !self.residency.has_shape(plan))
    }

    /// Notes what it holds.
    pub fn note_holdings(&self, accounts: &mut Accounts) {
        let mut holds = self.residency.holdings(accounts.granularity());
        holds.own += self.weights.placed_by_user();
        accounts.note(holds);
    }

    /// Notes how much host memory the device will address.
    pub fn note_page_locked(&self, accounts: &mut Accounts) {
        let addressed = self.weights.addressed_bytes() + accounts.addressed_of_encoders;
        accounts.reserve.expect_page_locked(addressed);
    }

    /// What passes are priced with, where something was asked for the one model that is loaded and the arena has a plan.
    pub fn pricing(&self) -> Option<Pricing<'_>> {
        let model = self.weights.only_model()?;
        let asked = self.planner.context_of(model.key)?.asked;
        Some(Pricing {
            inventory: model.inventory.using_experts(asked.experts_used),
            asked,
            profile: self.planner.measured.as_ref()?,
            plan: self.residency.carved()?,
        })
    }
}
