//! Encoders of images and sound come and go, and compute: whether their weights and compute buffers fit beside the language model.

use super::graph::Begun;
use super::{loading, shape};
use crate::arena::ledger::OfEncoder;
use crate::hook::accounts::backend_reserve::WORKSPACE;
use crate::hook::accounts::expected::Expected;
use crate::hook::accounts::Accounts;
use crate::hook::encoders::Encoders;
use crate::hook::gate::{NewShape, NoPass};
use crate::hook::log;
use crate::hook::schedulers::{computes_on, Schedulers};
use crate::hook::telemetry::Telemetry;
use crate::hook::tenant::Tenant;
use crate::vision::header::{EncoderFile, Kind};
use crate::vision::Backends;
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{Plan, PlanError};
use pipeshard_sys as ffi;
use std::path::Path;

/// Compute buffers of images of other shapes are up to so much larger than the number of their patches says, in percent.
const PACKING: u64 = 25;
/// Fewer tokens tell a model nothing of an image.
const FEW_TOKENS: u64 = 16;

/// Encoders that will be loaded with the next language model.
#[derive(Debug, Clone, Copy)]
pub struct Announced<'a> {
    /// Their file.
    pub path: &'a Path,
    /// Where they will compute; null for the first GPU.
    pub device: ffi::ggml_backend_dev_t,
    /// The user's limit on the tokens of an image; 0 for none.
    pub limit: u64,
}

/// Encoders will be loaded: plans leave room for them from here on.
pub fn expected(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    telemetry: &mut Telemetry,
    announced: Announced<'_>,
    _: NewShape<'_>,
) {
    accounts.expected = Expected::default();
    tenant.planner.replan();
    let Some(device) = loading::device(accounts, tenant, telemetry) else {
        return;
    };
    if !announced.device.is_null() && announced.device != device.raw() {
        log::info(&format!(
            "images and sound are encoded on another device than {}: there the budget does not hold",
            device.name()
        ));
        return;
    }
    let file = match EncoderFile::read(announced.path) {
        Ok(file) => file,
        // llama.cpp says more when it loads it
        Err(why) => return log::warn(&format!("no room is left for an encoder: {why}")),
    };
    let real = accounts.is_real();
    let scratch = file.encoders.iter().map(|encoder| {
        let rows = encoder.rows(announced.limit);
        let own = if real {
            encoder.pool(rows) + WORKSPACE
        } else {
            0
        };
        accounts.rounded(encoder.scratch(rows)).saturating_add(own)
    });
    let scratch = scratch.fold(0, u64::saturating_add);
    accounts.expected = Expected::new(accounts.rounded(file.weights), scratch);
}

/// An encoder that is being loaded.
#[derive(Debug, Clone, Copy)]
pub struct Loading<'a> {
    /// Its scheduler.
    pub sched: ffi::ggml_backend_sched_t,
    /// Its file.
    pub path: &'a Path,
    /// What it takes in.
    pub kind: Kind,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Whether an encoder's weights may be loaded. One that computes elsewhere may, and is none of ours.
///
/// # Safety
/// As the contract says of `encoder_wanted`.
pub unsafe fn wanted(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    loading: Loading<'_>,
    proof: NewShape<'_>,
) -> bool {
    if loading::device(accounts, tenant, telemetry).is_none() {
        return false;
    }
    let backend = ffi::ggml_backend_sched_get_backend(loading.sched, 0);
    if !computes_on(backend, accounts.device()) {
        return true;
    }
    let sched = loading.sched as usize;
    let file = loading.path.file_name().unwrap_or(loading.path.as_os_str());
    let shape = EncoderFile::read(loading.path).ok();
    let shape = shape.and_then(|file| file.encoder(loading.kind).cloned());
    let file = file.to_string_lossy().into_owned();
    encoders.add(sched, file, loading.kind, shape);
    let holds = OfEncoder {
        weights: accounts.rounded(loading.bytes),
        scratch: 0,
    };
    match take(accounts, tenant, (sched, holds)) {
        Ok(()) => {
            if accounts.spoken_for() > accounts.budget() {
                shape::release(accounts, tenant, proof);
            }
            hold(accounts, encoders, sched);
            true
        }
        Err(error) => {
            let encoder = encoders.get(sched);
            let coming = encoder.map_or(0, |encoder| encoder.scratch_at_load());
            // compute buffers are asked for next
            let held = accounts.ledger.encoders() + holds.weights;
            let room = accounts.expected.total().saturating_sub(held);
            let refused = Refused {
                what: encoder.map(|e| e.name()).unwrap_or_default(),
                of: "its weights".to_owned(),
                needed: holds.weights,
                coming: coming.saturating_sub(room),
                tokens: None,
            };
            let why = refused.sentence(accounts.budget(), &error);
            encoders.remove(sched);
            // llama.cpp asks twice, for it looks first how much would be taken
            if !telemetry.counters.errors().contains(&why) {
                log::error(&why);
            }
            telemetry.counters.note_error(why);
            false
        }
    }
}

/// The encoder with this scheduler is gone.
pub fn gone(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    sched: usize,
    _: NoPass<'_>,
) {
    if encoders.knows(sched) {
        encoders.remove(sched);
        accounts
            .ledger
            .set_encoder(sched, OfEncoder::default(), true);
        tenant.planner.replan();
    }
}

/// Books what an encoder is about to hold, if the language model can make room for it: that is the plan for now.
fn take(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    (sched, holds): (usize, OfEncoder),
) -> Result<(), PlanError> {
    let before = accounts.ledger.encoder(sched);
    accounts.ledger.set_encoder(sched, holds, false);
    let mut made = plan_beside(accounts, tenant);
    if made.is_err() && accounts.expected.total() > accounts.ledger.encoders() {
        // what is here goes before what may come
        accounts.expected = Expected::default();
        made = plan_beside(accounts, tenant);
    }
    match made {
        Ok(Some(made)) => {
            tenant.planner.set(made);
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => {
            accounts.ledger.set_encoder(sched, before, false);
            tenant.planner.replan();
            Err(error)
        }
    }
}

/// The plan for the language models beside encoders, if there are any.
fn plan_beside(accounts: &Accounts, tenant: &Tenant) -> Result<Option<Plan>, PlanError> {
    if !tenant.weights.models().is_empty() {
        return tenant.make_plan(accounts, 0).map(Some);
    }
    let minimum = accounts
        .reserved()
        .saturating_add(accounts.ledger.encoders());
    match minimum <= accounts.budget() {
        true => Ok(None),
        false => Err(PlanError::BudgetTooSmall {
            budget: accounts.budget(),
            minimum,
            contributors: Vec::new(),
        }),
    }
}

/// What was booked is held from here on.
fn hold(accounts: &mut Accounts, encoders: &mut Encoders, sched: usize) {
    let holds = accounts.ledger.encoder(sched);
    accounts.ledger.set_encoder(sched, holds, true);
    encoders.note_held(sched, holds.weights, holds.scratch);
}

/// A graph of an encoder is about to be split; others are left alone.
///
/// # Safety
/// As the contract says of `graph_begin`.
pub unsafe fn begin(
    accounts: &mut Accounts,
    encoders: &mut Encoders,
    schedulers: &Schedulers,
    telemetry: &mut Telemetry,
    begun: Begun,
) {
    let sched = begun.sched as usize;
    let Some(entry) = schedulers.get(sched).filter(|_| encoders.knows(sched)) else {
        return;
    };
    let Some(&device) = entry.device_backends.first() else {
        return;
    };
    let backends = Backends {
        sched: begun.sched,
        device,
        cpu: entry.cpu_backend,
    };
    let made = encoders.begin(begun.graph, backends);
    if !begun.measuring {
        telemetry.counters.rewritten_nodes += made.nodes;
    }
    accounts.reserve.expect_product(sched, made.pool);
}

/// Whether encoders were expected and are loaded.
pub fn may_settle(accounts: &Accounts, encoders: &Encoders) -> bool {
    !encoders.is_empty() && accounts.expected.total() > 0
}

/// The first batch runs beside encoders that are loaded: from here on only what they hold is left alone.
pub fn settle(accounts: &mut Accounts, tenant: &mut Tenant, _: NoPass<'_>) {
    let expected = std::mem::take(&mut accounts.expected);
    if expected.total() > accounts.ledger.encoders() {
        tenant.planner.replan();
        tenant.planner.decide_again();
    }
}

/// Compute buffers of an encoder are about to become `bytes` on the device, for graphs that are only measured.
pub fn scratch_measured(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    wanted: (usize, u64),
    proof: NewShape<'_>,
) -> bool {
    let taken = scratch(accounts, tenant, encoders, telemetry, wanted);
    if taken {
        if accounts.spoken_for() > accounts.budget() {
            shape::release(accounts, tenant, proof);
        }
        hold(accounts, encoders, wanted.0);
    }
    taken
}

/// The same for a graph that will run. Where the arena is in the way, the scheduler divides the graph once more, and the arena makes
/// room before that.
pub fn scratch_grows(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &mut Encoders,
    telemetry: &mut Telemetry,
    wanted: (usize, u64),
    _: NoPass<'_>,
) -> bool {
    let known = accounts.ledger.encoder(wanted.0).scratch;
    if !scratch(accounts, tenant, encoders, telemetry, wanted) {
        return false;
    }
    let grows = accounts.ledger.encoder(wanted.0).scratch > known;
    if grows && accounts.spoken_for() > accounts.budget() {
        tenant.planner.replan();
        tenant.residency.void_graphs();
        return false;
    }
    hold(accounts, encoders, wanted.0);
    true
}

/// Books compute buffers. False, after saying why, where the language model cannot make room for them.
fn scratch(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    encoders: &Encoders,
    telemetry: &mut Telemetry,
    (sched, bytes): (usize, u64),
) -> bool {
    let before = accounts.ledger.encoder(sched);
    let holds = OfEncoder {
        scratch: accounts.rounded(bytes),
        ..before
    };
    if holds.scratch <= before.scratch {
        return true;
    }
    let Err(error) = take(accounts, tenant, (sched, holds)) else {
        return true;
    };
    let encoder = encoders.get(sched);
    let tokens = encoder.and_then(|encoder| encoder.tokens());
    let of_image = tokens.map(|tokens| format!(" of an image of {tokens} tokens"));
    let refused = Refused {
        what: encoder.map(|e| e.name()).unwrap_or_default(),
        of: "compute buffers".to_owned() + &of_image.unwrap_or_default(),
        needed: holds.scratch,
        coming: 0,
        tokens,
    };
    let why = refused.sentence(accounts.budget(), &error);
    log::error(&why);
    telemetry.counters.note_error(why);
    false
}

/// An encoder will not have all the compute buffers that it was allowed: the device refused them, or the graph that wanted them will not
/// run. Books what there is.
///
/// # Safety
/// `sched` is alive.
pub unsafe fn scratch_there_is(
    accounts: &mut Accounts,
    tenant: &mut Tenant,
    schedulers: &Schedulers,
    sched: usize,
    _: NoPass<'_>,
) {
    let there_is = schedulers.scratch_there_is(sched, |bytes| accounts.rounded(bytes));
    let before = accounts.ledger.encoder(sched);
    if before.scratch != there_is {
        let holds = OfEncoder {
            scratch: there_is,
            ..before
        };
        accounts.ledger.set_encoder(sched, holds, true);
        tenant.planner.replan();
    }
}

/// An encoder's memory that has no room.
struct Refused {
    /// Whose it is.
    what: String,
    /// What it is for.
    of: String,
    /// Bytes.
    needed: u64,
    /// Bytes that will be needed besides.
    coming: u64,
    /// Tokens of the image, if less of them would need less.
    tokens: Option<u64>,
}

impl Refused {
    fn sentence(&self, budget: u64, error: &PlanError) -> String {
        let Refused { what, of, .. } = self;
        let needed = ByteSize(self.needed);
        let minimum = match error {
            PlanError::BudgetTooSmall { minimum, .. } => *minimum,
            PlanError::FixedDoesNotFit { needed, .. } => *needed,
            other => return format!("{what} needs {needed} for {of}: {other}"),
        };
        let left = self.needed.saturating_sub(minimum.saturating_sub(budget));
        let enough = minimum.saturating_add(self.coming);
        let fitting = |tokens: u64| {
            let fit = u128::from(tokens) * u128::from(left) * 100;
            (fit / u128::from(self.needed.max(1)) / u128::from(100 + PACKING)) as u64
        };
        let fewer = self.tokens.map(fitting).filter(|&few| few >= FEW_TOKENS);
        let fewer = fewer.map(|few| format!("limit images with --image-max-tokens {few}, "));
        format!(
            "{what} needs {needed} for {of}, and {} of the budget of {} are left for it: raise that to --pipeshard-vram {} ({enough} \
             bytes), {}or leave the encoder to the CPU with --no-mmproj-offload, which takes longer",
            ByteSize(left),
            ByteSize(budget),
            ByteSize(enough).to_flag(),
            fewer.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn refused(tokens: Option<u64>) -> String {
        let refused = Refused {
            what: "the encoder".to_owned(),
            of: "compute buffers".to_owned(),
            needed: 500 * MIB,
            coming: 0,
            tokens,
        };
        let error = PlanError::BudgetTooSmall {
            budget: 1000 * MIB,
            minimum: 1300 * MIB,
            contributors: Vec::new(),
        };
        refused.sentence(1000 * MIB, &error)
    }

    #[test]
    fn a_refusal_says_what_would_work() {
        let said = refused(Some(4000));
        for part in [
            "needs 500 MiB for compute buffers",
            "200 MiB of the budget of 1000 MiB are left",
            "--pipeshard-vram 1300M (1363148800 bytes)",
            // 1,600 would fit if compute buffers went by the number of patches alone
            "--image-max-tokens 1280,",
            "--no-mmproj-offload",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!refused(None).contains("--image-max-tokens"));
        assert!(!refused(Some(20)).contains("--image-max-tokens"));
    }
}
