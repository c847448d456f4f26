//! The runtime in this process: attached to the hook of llama.cpp's scheduler, and detached again.
//!
//! The hook is one for the process, so at most one runtime is attached at a time. The plug-in attaches for the life of the process
//! ([`super::library`]); a host attaches and detaches as often as it likes.

use super::config::{Config, ConfigError};
use super::gate::Gate;
use super::helpers::Helpers;
use super::log;
use super::planning::saved::PlanFile;
use super::runtime::Runtime;
use super::sharing::Service;
use super::stopping::MemoryWanted;
use super::table::{table, PanicAt, Shared};
use super::visits::Visits;
use crate::profile::read_file;
use crate::share::shares::Sharing;
use pipeshard_sys::{self as ffi, BUILD_ID};
use std::ffi::CString;
use std::io;
use std::sync::Arc;

/// Why nothing is attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The settings make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A profile that was named is not used.
    #[error(transparent)]
    Profile(#[from] crate::profile::ProfileFileError),
    /// A switch for tests.
    #[error("{0}")]
    Switch(String),
    /// Something is attached already.
    #[error("another copy of this library is attached to this process already; load one of them")]
    Attached,
    /// The budget cannot be shared.
    #[error("{0}")]
    Share(String),
    /// The program has another llama.cpp.
    #[error(
        "this library was built for llama.cpp {BUILD_ID}, which is not the build of the program that loads it; use the \
         libpipeshard.so that came with the program"
    )]
    OtherBuild,
}

/// What ggml's table refers to.
struct Parts {
    /// First: both use what is shared.
    visits: Option<Visits>,
    service: Option<Service>,
    table: Box<ffi::ggml_sched_hook>,
    shared: Box<Shared>,
    /// The table points to its text.
    _build_id: CString,
}

/// A runtime that is attached until it is dropped.
pub struct Attached(Option<Parts>);

// SAFETY: the table's pointers are to the other parts, which are `Sync` and do not move.
unsafe impl Send for Attached {}
// SAFETY: as above; nothing is changed but what is behind the gate.
unsafe impl Sync for Attached {}

impl Attached {
    /// Attaches a new runtime: every model that this process loads from here on belongs to it.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    pub fn attach(mut config: Config) -> Result<Self, AttachError> {
        let file = config.plan.as_deref().map(|path| {
            PlanFile::read(path, config.budget).map_err(|why| ConfigError::Plan {
                path: path.display().to_string(),
                why,
            })
        });
        let file = file.transpose()?;
        config.budget = config.budget.or(file.as_ref().map(PlanFile::budget));
        // a profile that was named is used, or nothing runs
        config.profile.as_deref().map(read_file).transpose()?;
        let panic_at = config.debug.panic_at.as_deref().map(PanicAt::parse);
        let panic_at = panic_at
            .transpose()
            .map_err(|e| AttachError::Switch(e.to_string()))?;
        // SAFETY: no preconditions.
        if !unsafe { ffi::ggml_sched_hook_get() }.is_null() {
            return Err(AttachError::Attached);
        }
        let share = config.share.as_ref().map(Sharing::begin);
        let share = share.transpose().map_err(AttachError::Share)?;
        let shared = Box::new(Shared::new(config, file, panic_at));
        let service = share.map(|(sharing, listener)| {
            shared.gate.plain().accounts.set_share(Arc::clone(&sharing));
            // SAFETY: the box is dropped after the service, and does not move.
            unsafe { Service::start(sharing, listener, &shared.gate) }
        });
        let service = service.transpose();
        let service = service.map_err(|why| AttachError::Share(why.to_string()))?;
        let visits = shared.gate.plain().config.socket;
        // SAFETY: as above.
        let visits = visits.then(|| unsafe { Visits::start(&shared.gate) });
        let visits = visits.and_then(|visits| {
            let why = |why: &io::Error| {
                log::info(&format!("pipeshard top will not see this process: {why}"));
            };
            visits.inspect_err(why).ok()
        });
        let build_id = CString::new(BUILD_ID).unwrap_or_default();
        let parts = Parts {
            visits,
            service,
            table: Box::new(table(&shared, &build_id)),
            shared,
            _build_id: build_id,
        };
        // SAFETY: the table is laid out as the header says, and stays where it is until it is taken back.
        if !unsafe { ffi::ggml_sched_hook_set(&*parts.table) } {
            return Err(AttachError::OtherBuild);
        }
        Helpers::of_process().start(Helpers::usual());
        Ok(Attached(Some(parts)))
    }

    /// The runtime.
    ///
    /// # Panics
    /// Never: it is there until this is dropped.
    pub fn gate(&self) -> &Gate<Runtime> {
        &self.0.as_ref().expect("attached until dropped").shared.gate
    }

    /// Who waits for memory: passes that may be repeated end early then.
    ///
    /// # Panics
    /// As [`Attached::gate`].
    pub fn memory_is_wanted(&self) -> &MemoryWanted {
        let parts = self.0.as_ref();
        &parts
            .expect("attached until dropped")
            .shared
            .memory_is_wanted
    }

    /// Reports whether llama.cpp still has something that would ask the runtime: a model, a context, an encoder.
    pub fn is_in_use(&self) -> bool {
        let runtime = self.gate().plain();
        !runtime.tenant.weights.models().is_empty()
            || !runtime.schedulers.is_empty()
            || !runtime.encoders.is_empty()
    }
}

impl Drop for Attached {
    /// Detaches. What is still in use would ask a runtime that is gone, so the runtime stays then, for good.
    fn drop(&mut self) {
        if self.is_in_use() {
            std::mem::forget(self.0.take());
            return;
        }
        // SAFETY: no preconditions; nobody is in a callback, for there is nothing to ask about.
        unsafe { ffi::ggml_sched_hook_set(std::ptr::null()) };
        if let Some(parts) = &mut self.0 {
            (parts.visits, parts.service) = (None, None);
        }
        Helpers::of_process().stop();
    }
}
