//! The device of the process, and its budget.

use crate::boundary::{call, handle, optional, read, text, write};
use crate::cuda_context;
use crate::failure::{CError, Code, Failure};
use crate::handles::Table;
use crate::host_memory::{self, HostMemory};
use crate::locks::locked;
use crate::orders::{Follower, Orders};
use crate::process::{self, Errors, Use};
use crate::types::{DeviceConfig, Limits, NO_PAGE_LOCK, SOCKET};
use pipeshard_sim as sim;
use pipeshard_sys as ffi;
use runtime::hook::answers::budget::BudgetError;
use runtime::hook::attach::Attached;
use runtime::hook::config::{Config, Ubatch};
use runtime::hook::control::{self, ControlError};
use runtime::hook::gate::Gate;
use runtime::hook::runtime::Runtime;
use runtime::hook::stopping::MemoryWanted;
use runtime::hook::{log, publish};
use runtime::lanes::device::Device as Gpu;
use runtime::plan_cache::Place;
use runtime::profile::default_threads;
use runtime::report::MemoryHeld;
use std::ffi::{c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

/// C's name for a handle.
pub enum CDevice {}

/// All that are open.
pub static DEVICES: Table<Device> = Table::new();

/// A simulated GPU that ggml knows of.
struct Simulated(ffi::ggml_backend_reg_t);

// SAFETY: a handle of ggml's, used when it is made and when it is dropped.
unsafe impl Send for Simulated {}
// SAFETY: as above.
unsafe impl Sync for Simulated {}

impl Simulated {
    fn make(spec: sim::SimSpec, supply: Arc<dyn sim::Supply>) -> Result<Self, Failure> {
        sim::compute_alone();
        let registry = sim::registry_with(spec, Some(supply));
        if registry.is_null() {
            let why = "there is no address space for the memory of the simulated GPU; state a smaller vram";
            return Err(Failure::new(Code::NoMemory, why));
        }
        // SAFETY: a registry that lives until `drop`.
        unsafe { ffi::ggml_backend_register(registry) };
        Ok(Simulated(registry))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // SAFETY: made by `sim::registry`. What was opened on the device holds it by an Arc, so nothing is left of it.
        unsafe {
            ffi::ggml_backend_unload(self.0);
            sim::forget(self.0);
        }
    }
}

/// What is open on a device, and can give its memory back.
pub trait Sleeper: Send + Sync {
    /// Keeps others from using it.
    ///
    /// # Errors
    /// Somebody uses it.
    fn claim(&self) -> Result<Box<dyn Claimed + '_>, Failure>;

    /// Waits until it follows the order of that number, or does nothing.
    ///
    /// # Errors
    /// It was not before `until`, or could not follow it.
    fn follow(
        &self,
        number: u64,
        until: Option<Instant>,
    ) -> Result<Box<dyn Follower + '_>, Failure>;

    /// Reports whether this thread uses it.
    fn is_used_here(&self) -> bool;

    /// The budget that its context was made within, in bytes.
    fn made_within(&self) -> u64;

    /// Takes its memory again, unless somebody uses it, who does so.
    ///
    /// # Errors
    /// There is no room for it: it goes on sleeping.
    fn wake(&self) -> Result<(), Failure>;

    /// Reports whether it sleeps; one that is used does not.
    fn is_asleep(&self) -> bool;
}

/// Such a thing while nobody else can use it.
pub trait Claimed {
    /// Gives its memory back.
    ///
    /// # Errors
    /// The host has no memory for what has to be kept.
    fn sleep(&self) -> Result<(), Failure>;
}

/// A device that is open. Members are dropped in their order.
pub struct Device {
    attached: Attached,
    _simulated: Option<Simulated>,
    /// Threads of the CPU.
    pub threads: i32,
    /// What is said ahead of each context: whether its ubatch is the plan's.
    ubatch_is_free: Arc<AtomicBool>,
    /// Sessions that were opened, for those who put them to sleep.
    sessions: Mutex<Vec<Weak<dyn Sleeper>>>,
    /// One context is made at a time.
    making: Mutex<()>,
    /// What sessions have to do.
    pub orders: Orders,
    /// One budget at a time is reached by making contexts again.
    pub trip: Mutex<()>,
    _memory: host_memory::InUse,
    _context: cuda_context::InUse,
    _use: Use,
}

impl Device {
    unsafe fn open(config: &DeviceConfig) -> Result<Self, Failure> {
        let flags = config.flags & !(NO_PAGE_LOCK | SOCKET);
        if flags != 0 || config.reserved != 0 {
            return Err(Failure::new(
                Code::Version,
                format!("flags {flags:#x} are not known to this library"),
            ));
        }
        let path = |text, name| optional(text, name).map(|text| text.map(PathBuf::from));
        let cache = path(config.cache_dir, "cache_dir")?;
        if cache.as_ref().is_some_and(|folder| !folder.is_absolute()) {
            return Err(Failure::invalid("cache_dir is not a whole path"));
        }
        let spec = optional(config.simulated, "simulated")?.map(sim::SimSpec::parse);
        let spec = spec
            .transpose()
            .map_err(|why| Failure::invalid(format!("simulated: {why}")))?;
        let ubatch_is_free = Arc::new(AtomicBool::new(true));
        let settings = Config {
            attach: true,
            budget: (config.budget > 0).then_some(config.budget),
            sim: spec.clone(),
            device: optional(config.name, "name")?.map(str::to_owned),
            profile: path(config.profile, "profile")?,
            plan_cache: match &cache {
                Some(folder) => Place::Folder(folder.join("plans")),
                None => Place::Off,
            },
            profile_place: cache.map_or(Place::Off, Place::Folder),
            no_page_lock: config.flags & NO_PAGE_LOCK != 0,
            socket: config.flags & SOCKET != 0,
            ubatch: Ubatch::AsTheHostSays(Arc::clone(&ubatch_is_free)),
            ..Config::default()
        };
        let threads = match config.threads {
            0 => i32::try_from(default_threads()).unwrap_or(1),
            1.. => config.threads,
            _ => return Err(Failure::invalid("threads is negative")),
        };
        let memory = HostMemory::of(config)?;
        host_memory::check(&memory, spec.is_some())?;
        let in_use = Use::take()?;
        process::begin();
        process::allow_page_lock(config.flags & NO_PAGE_LOCK == 0);
        // ggml-cuda has looked at the GPUs by now, which makes another context current
        let context = cuda_context::InUse::begin(config.cuda_context)?;
        let _here = cuda_context::enter();
        let memory = host_memory::InUse::begin(memory);
        let is_simulated = spec.is_some();
        let simulated = spec
            .map(|spec| Simulated::make(spec, memory.supply()))
            .transpose()?;
        let attached = log::after(|| Attached::attach(settings));
        let attached = attached.map_err(|why| Failure::invalid(why.to_string()))?;
        let opened = log::after(|| control::open_device(attached.gate()));
        opened.map_err(|why| Failure::new(Code::NoDevice, why))?;
        let gpu = attached.gate().plain().accounts.device();
        if let Some(gpu) = gpu.filter(|_| !is_simulated) {
            cuda_context::check_device(&gpu.name())?;
        }
        Ok(Device {
            attached,
            _simulated: simulated,
            threads,
            ubatch_is_free,
            sessions: Mutex::new(Vec::new()),
            making: Mutex::new(()),
            orders: Orders::default(),
            trip: Mutex::new(()),
            _memory: memory,
            _context: context,
            _use: in_use,
        })
    }

    /// The runtime.
    pub fn gate(&self) -> &Gate<Runtime> {
        self.attached.gate()
    }

    /// Who waits for memory: passes that may be repeated end early then.
    pub fn memory_is_wanted(&self) -> &MemoryWanted {
        self.attached.memory_is_wanted()
    }

    /// Makes a context by `make`, whose ubatch is the plan's if it is free.
    pub fn make_context<T>(&self, ubatch_is_free: bool, make: impl FnOnce() -> T) -> T {
        let _one = locked(&self.making);
        self.ubatch_is_free.store(ubatch_is_free, Ordering::Relaxed);
        make()
    }

    /// Why something was not done that llama.cpp refused with these errors.
    pub fn refused(&self, otherwise: Code, errors: Errors) -> Failure {
        let runtime = self.gate().plain();
        if let Some(why) = runtime.accounts.device_failure() {
            return Failure::new(Code::DeviceLost, why);
        }
        drop(runtime);
        let Errors { text, minimum, .. } = errors;
        let code = match minimum {
            0 => otherwise,
            _ => Code::BudgetTooSmall,
        };
        Failure {
            code,
            text,
            minimum,
        }
    }

    /// A session was opened.
    pub fn opened(&self, session: &Arc<dyn Sleeper>) {
        let mut sessions = locked(&self.sessions);
        sessions.push(Arc::downgrade(session));
    }

    /// The sessions that are open.
    pub fn sessions(&self) -> Vec<Arc<dyn Sleeper>> {
        let mut sessions = locked(&self.sessions);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.iter().filter_map(Weak::upgrade).collect()
    }

    fn sleep(&self) -> Result<(), Failure> {
        let sessions = self.sessions();
        // all of them, or none
        let busy = sessions.iter().map(|session| session.claim());
        let busy: Vec<_> = busy.collect::<Result<_, _>>()?;
        busy.iter().try_for_each(|session| session.sleep())?;
        self.give_back().map_err(|why| failure_of(&why))
    }

    /// Gives back all memory of weights, while no context is being made.
    ///
    /// # Errors
    /// As [`control::give_back`].
    pub fn give_back(&self) -> Result<(), ControlError> {
        let _none = locked(&self.making);
        log::after(|| control::give_back(self.gate(), None))
    }

    fn wake(&self) -> Result<(), Failure> {
        let sessions = self.sessions();
        sessions.iter().try_for_each(|session| session.wake())
    }

    fn asleep(&self) -> u32 {
        let sessions = self.sessions();
        sessions
            .iter()
            .filter(|session| session.is_asleep())
            .count() as u32
    }

    /// What is held, and what is possible now.
    pub fn limits(&self) -> Limits {
        let limits = log::after(|| control::limits(self.gate()));
        let peak = self.gate().plain().accounts.ledger.peak_total();
        let found = limits.unwrap_or_else(|_| runtime::report::Limits {
            budget: self.gate().plain().accounts.budget(),
            ..runtime::report::Limits::default()
        });
        Limits {
            asleep: self.asleep(),
            ..limits_for_c(&found, peak)
        }
    }

    /// Why the budget is what it was.
    pub fn not_changed(&self, why: &ControlError) -> Failure {
        match failure_of(why) {
            failure if failure.code == Code::Internal => {
                let errors = Errors {
                    text: failure.text,
                    ..Errors::default()
                };
                self.refused(failure.code, errors)
            }
            failure => failure,
        }
    }
}

/// The same as C gets it.
pub fn failure_of(why: &ControlError) -> Failure {
    let (code, minimum) = match why {
        ControlError::Budget(BudgetError::TooSmall { minimum, .. }) => {
            (Code::BudgetTooSmall, *minimum)
        }
        ControlError::Budget(BudgetError::NothingLoaded) => (Code::Invalid, 0),
        ControlError::Budget(BudgetError::Failed(_)) | ControlError::Broken => (Code::Internal, 0),
        ControlError::Deadline(_) => (Code::Deadline, 0),
    };
    Failure {
        code,
        text: why.to_string(),
        minimum,
    }
}

fn limits_for_c(found: &runtime::report::Limits, peak: u64) -> Limits {
    let MemoryHeld {
        resident,
        kv,
        slots,
        scratch,
        vision,
        other,
    } = found.held;
    Limits {
        size: 0,
        asleep: 0,
        budget: found.budget,
        minimum: found.minimum,
        minimum_round_trip: found.minimum.saturating_sub(kv),
        everything: found.everything_resident.unwrap_or(0),
        held: found.held_total,
        peak,
        held_weights: resident,
        held_kv: kv,
        held_ring: slots,
        held_buffers: scratch,
        held_vision: vision,
        held_other: other,
        by_driver: found.by_driver,
        waited_ms: 0.0,
        moved_ms: 0.0,
    }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_devices() -> *mut c_char {
    text(|| {
        process::check("devices").ok()?;
        process::begin();
        let all = Gpu::gpus().into_iter().map(|gpu| {
            let (free, total) = gpu.memory();
            serde_json::json!({
                "name": gpu.name(),
                "description": gpu.description(),
                "vram": total,
                "free": free,
            })
        });
        Some(serde_json::Value::Array(all.collect()).to_string())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_device_open(
    config: *const DeviceConfig,
    device: *mut *mut CDevice,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let place = handle(device, "device")?;
        let opened = Device::open(&read(config, "pipeshard_device_config")?)?;
        *place = DEVICES.open(Arc::new(opened));
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_device_close(device: *mut CDevice) {
    call(std::ptr::null_mut(), || {
        drop(DEVICES.close(device));
        Ok(())
    });
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_streams(
    device: *mut CDevice,
    streams: *mut *mut c_void,
    room: usize,
    count: *mut usize,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let count = count.as_mut();
        let count = count.ok_or_else(|| Failure::invalid("count is NULL"))?;
        *count = 0;
        if streams.is_null() && room > 0 {
            return Err(Failure::invalid("streams is NULL, and room is not 0"));
        }
        DEVICES.get(device, "device")?;
        let all = host_memory::streams();
        for (at, &stream) in all.iter().take(room).enumerate() {
            *streams.add(at) = stream as *mut c_void;
        }
        *count = all.len();
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_get_limits(
    device: *mut CDevice,
    limits: *mut Limits,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let found = DEVICES.get(device, "device")?.limits();
        write(limits, &found, "pipeshard_limits")
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_sleep(device: *mut CDevice, error: *mut *mut CError) -> c_int {
    call(error, || DEVICES.get(device, "device")?.sleep())
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_wake(device: *mut CDevice, error: *mut *mut CError) -> c_int {
    call(error, || DEVICES.get(device, "device")?.wake())
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_report(device: *mut CDevice) -> *mut c_char {
    text(|| {
        let device = DEVICES.get(device, "device").ok()?;
        let report = publish::report(&device.gate().plain());
        Some(report.to_json())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_metrics(device: *mut CDevice) -> *mut c_char {
    text(|| {
        let device = DEVICES.get(device, "device").ok()?;
        let report = publish::report(&device.gate().plain());
        Some(report.to_prometheus())
    })
}
