//! The parts of the runtime of a process, put together. No logic: the table's callbacks lock it and hand its parts to the answers.

use super::accounts::Accounts;
use super::config::Config;
use super::encoders::Encoders;
use super::planning::planner::Planner;
use super::planning::saved::PlanFile;
use super::residency::Residency;
use super::schedulers::Schedulers;
use super::telemetry::Telemetry;
use super::tenant::Tenant;
use super::weights::Weights;
use std::sync::Arc;

/// All state, in one [`super::gate::Gate`].
pub struct Runtime {
    /// What was asked for.
    pub config: Arc<Config>,
    /// The device's memory, and who holds how much of it.
    pub accounts: Accounts,
    /// The language models of the process. There can be more tenants of the same accounts.
    pub tenant: Tenant,
    /// Encoders of images and sound.
    pub encoders: Encoders,
    /// ggml's schedulers.
    pub schedulers: Schedulers,
    /// What happened.
    pub telemetry: Telemetry,
}

impl Runtime {
    /// A runtime that has seen nothing yet. `file`: the saved plan to follow, if there is one.
    pub fn new(config: Config, file: Option<PlanFile>) -> Self {
        let config = Arc::new(config);
        let telemetry = Telemetry::new(&config);
        Runtime {
            accounts: Accounts::new(Arc::clone(&config)),
            tenant: Tenant {
                weights: Weights::default(),
                residency: Residency::new(Arc::clone(&config), telemetry.trace.clone()),
                planner: Planner::new(Arc::clone(&config), file),
            },
            encoders: Encoders::default(),
            schedulers: Schedulers::default(),
            telemetry,
            config,
        }
    }
}
