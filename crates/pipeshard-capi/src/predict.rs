//! What a model would do within a budget, by its file's header.

use crate::boundary::{call, read, required, write};
use crate::device::{CDevice, Device, DEVICES};
use crate::failure::{CError, Code, Failure};
use crate::session::{kv_type, BATCH};
use crate::types::{Prediction, PredictionQuery};
use pipeshard_gguf::inventory_of;
use pipeshard_model::inventory::{DType, Inventory};
use pipeshard_plan::constants::conversation::UBATCHES;
use pipeshard_plan::plan::PlanError;
use pipeshard_plan::profile::{Origin, Profile};
use pipeshard_plan::request::{ContextRequest, StatedWorkload};
use runtime::hook::planning::foresee::{request_of, ForeseenDevice};
use runtime::profile::{key_of, of_simulated, read_file, Stored};
use std::ffi::c_int;
use std::path::Path;

fn failure_of(error: PlanError) -> Failure {
    let text = error.to_string();
    match error {
        PlanError::BudgetTooSmall { minimum, .. }
        | PlanError::FixedDoesNotFit {
            needed: minimum, ..
        } => Failure {
            minimum,
            ..Failure::new(Code::BudgetTooSmall, text)
        },
        _ => Failure::invalid(text),
    }
}

impl Device {
    /// What is known of this machine: what a run measured, what is kept or was named, or else what is assumed.
    fn profile(&self) -> Profile {
        let runtime = self.gate().plain();
        if let Some(measured) = &runtime.tenant.planner.measured {
            return measured.clone();
        }
        let config = &runtime.config;
        let threads = u32::try_from(self.threads).unwrap_or(1);
        if let Some(spec) = &config.sim {
            return of_simulated(spec, threads, None);
        }
        if let Some(named) = config
            .profile
            .as_deref()
            .and_then(|path| read_file(path).ok())
        {
            return named;
        }
        let (kept, device) = (config.profile_place.profiles(), runtime.accounts.device());
        if let (Ok(Some(kept)), Some(device)) = (kept, device) {
            if let Stored::Valid(profile) = kept.load(&key_of(device, threads)) {
                return *profile;
            }
        }
        Profile::assumed()
    }

    unsafe fn predict(&self, query: &PredictionQuery) -> Result<Prediction, Failure> {
        let path = required(query.path, "path")?;
        let types = (
            kv_type(query.type_k, "type_k")?,
            kv_type(query.type_v, "type_v")?,
        );
        let inventory = inventory_of(Path::new(path))
            .map_err(|why| Failure::new(Code::File, format!("{path}: {why}")))?;
        let (budget, simulated, granularity) = {
            let runtime = self.gate().plain();
            let accounts = &runtime.accounts;
            let simulated = runtime.config.sim.is_some();
            (accounts.budget(), simulated, accounts.granularity())
        };
        let budget = match query.budget {
            0 => budget,
            stated => stated,
        };
        let context = context_of(query, &inventory, budget, types)?;
        let workload = StatedWorkload {
            prompt: (query.prompt_tokens > 0).then_some(query.prompt_tokens),
            generate: (query.answer_tokens > 0).then_some(query.answer_tokens),
        };
        if workload.is_too_long(context.each()) {
            return Err(Failure::new(
                Code::ContextFull,
                format!(
                    "a prompt of {} tokens leaves no room for an answer in a context of {}",
                    query.prompt_tokens,
                    context.each()
                ),
            ));
        }
        let device = ForeseenDevice {
            real_card: !simulated,
            granularity,
            reserve: None,
        };
        let profile = self.profile();
        let request = request_of(&inventory, context, workload, device, budget);
        let found = request.solve(&profile).map_err(failure_of)?;
        let (prompt, answer) = workload.in_context(context.each());
        Ok(Prediction {
            size: 0,
            measured: u32::from(profile.origin == Origin::Measured),
            budget,
            minimum: found.plan.minimum_budget,
            everything: found.plan.full_budget,
            context: u32::try_from(context.tokens()).unwrap_or(u32::MAX),
            ubatch: found.ubatch,
            prompt_tokens: prompt,
            answer_tokens: answer,
            first_token_ms: found.prediction.ttft * 1e3,
            tokens_per_second: found.prediction.tps,
        })
    }
}

/// The context of a session with the query's settings.
fn context_of(
    query: &PredictionQuery,
    inventory: &Inventory,
    budget: u64,
    (type_k, type_v): (&'static DType, &'static DType),
) -> Result<ContextRequest, Failure> {
    let wanted = match query.context {
        0 => inventory.context_length,
        wanted => wanted,
    };
    if wanted == 0 {
        return Err(Failure::invalid(
            "the model does not say which context it was trained for: state one",
        ));
    }
    let mut context = ContextRequest {
        context: wanted,
        batch: BATCH,
        ubatch: UBATCHES[0],
        ubatch_is_free: true,
        sequences: 1,
        shared_cache: false,
        full_windows: false,
        outputs: 1,
        type_k,
        type_v,
    };
    if query.context == 0 {
        context.context = context.fitting(inventory, budget);
    }
    Ok(context)
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_predict(
    device: *mut CDevice,
    query: *const PredictionQuery,
    prediction: *mut Prediction,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        if query.is_null() {
            return Err(Failure::invalid("query is NULL"));
        }
        let found = DEVICES
            .get(device, "device")?
            .predict(&read(query, "pipeshard_prediction_query")?)?;
        write(prediction, &found, "pipeshard_prediction")
    })
}
