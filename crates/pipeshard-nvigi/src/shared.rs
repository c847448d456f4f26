//! The one device of the process, which all instances share, and their budgets.
//!
//! Each instance states how much VRAM it may take; the device's budget is the sum. It holds for all of them together: what one leaves
//! over another may take.

use crate::cuda::{self, HostCuda};
use crate::device::{pipeshard_device_close, pipeshard_device_open, pipeshard_get_limits, CDevice};
use crate::ladder::pipeshard_set_budget;
use crate::locks::locked;
use crate::refusal::{library, tell, Kind, Refusal};
use crate::types::{BudgetRequest, DeviceConfig, Limits};
use std::ffi::CString;
use std::mem::size_of;
use std::sync::{Mutex, MutexGuard};

/// What a device is opened with, but for the budget.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    pub name: Option<String>,
    pub simulated: Option<String>,
    pub cache_dir: Option<String>,
    pub profile: Option<String>,
    pub flags: u32,
    pub threads: i32,
    pub cuda: HostCuda,
}

struct Open {
    device: *mut CDevice,
    /// What its allocators get.
    _cuda: Box<HostCuda>,
    wanted: Wanted,
    users: u32,
    /// The sum, in bytes; 0 where none was stated.
    budget: u64,
}

// SAFETY: handles may be used on any thread.
unsafe impl Send for Open {}

static OPEN: Mutex<Option<Open>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Open>> {
    locked(&OPEN)
}

/// An instance's part of the device, which closes with the last one.
pub struct Share {
    pub device: *mut CDevice,
    budget: u64,
}

// SAFETY: as above.
unsafe impl Send for Share {}
// SAFETY: as above.
unsafe impl Sync for Share {}

fn open(wanted: &Wanted, budget: u64) -> Result<(*mut CDevice, Box<HostCuda>), Refusal> {
    let mut cuda = Box::new(wanted.cuda);
    let allocates = cuda.allocates();
    let c = |text: &Option<String>| text.as_deref().map(crate::boundary::c_text);
    let texts = [
        c(&wanted.name),
        c(&wanted.simulated),
        c(&wanted.cache_dir),
        c(&wanted.profile),
    ];
    let at = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
    let config = DeviceConfig {
        size: size_of::<DeviceConfig>() as u32,
        flags: wanted.flags,
        budget,
        name: at(&texts[0]),
        simulated: at(&texts[1]),
        cache_dir: at(&texts[2]),
        profile: at(&texts[3]),
        threads: wanted.threads,
        reserved: 0,
        allocate: allocates.then_some(cuda::allocate),
        release: allocates.then_some(cuda::release),
        allocate_host: None,
        release_host: None,
        memory_user: std::ptr::from_mut(&mut *cuda).cast(),
        cuda_context: wanted.cuda.context(),
    };
    let mut device = std::ptr::null_mut();
    // SAFETY: texts live through the call, and what allocators get as long as the device.
    library(|error| unsafe { pipeshard_device_open(&config, &mut device, error) })?;
    Ok((device, cuda))
}

/// Changes the budget of all instances. `now` gets what is true then.
///
/// # Safety
/// `now` is null or a struct with its size set.
unsafe fn change(
    device: *mut CDevice,
    budget: u64,
    deadline_ms: u32,
    now: *mut Limits,
) -> Result<(), Refusal> {
    let request = BudgetRequest {
        size: size_of::<BudgetRequest>() as u32,
        allow: 0,
        reserved: 0,
        deadline_ms,
        budget,
    };
    library(|error| pipeshard_set_budget(device, &request, now, error))
}

impl Share {
    /// `budget` in bytes; 0: all that is free, less a margin.
    pub fn take(wanted: &Wanted, budget: u64) -> Result<Self, Refusal> {
        let mut open_now = lock();
        let Some(open_now) = &mut *open_now else {
            let (device, cuda) = open(wanted, budget)?;
            *open_now = Some(Open {
                device,
                _cuda: cuda,
                wanted: wanted.clone(),
                users: 1,
                budget,
            });
            return Ok(Share { device, budget });
        };
        if open_now.wanted != *wanted {
            return Err(Refusal::invalid(
                "other instances of this process use the GPU with other settings (device, threads, CudaParameters, PipeshardCreationParameters): \
                 a process has one GPU; use the same settings, or destroy them first",
            ));
        }
        if (open_now.budget == 0) != (budget == 0) {
            return Err(Refusal::invalid(
                "some instances of this process state vramBudgetMB and others do not: state it for all of them, or for none",
            ));
        }
        if budget > 0 {
            let all = open_now.budget.saturating_add(budget);
            // SAFETY: nothing is wanted back.
            unsafe { change(open_now.device, all, 0, std::ptr::null_mut())? };
            open_now.budget = all;
        }
        open_now.users += 1;
        Ok(Share {
            device: open_now.device,
            budget,
        })
    }

    /// The device to ask something of it, which leaves the budget as it is: the one that is open, whatever its settings, or another.
    pub fn borrow(wanted: &Wanted) -> Result<Self, Refusal> {
        if let Some(open_now) = &mut *lock() {
            open_now.users += 1;
            return Ok(Share {
                device: open_now.device,
                budget: 0,
            });
        }
        Self::take(wanted, 0)
    }

    /// As `IPipeshard` has it: the budget of all instances from now on, in bytes.
    ///
    /// # Safety
    /// As for [`change`].
    pub unsafe fn set_budget(
        &self,
        budget: u64,
        deadline_ms: u32,
        now: *mut Limits,
    ) -> Result<(), Refusal> {
        let mut open_now = lock();
        change(self.device, budget, deadline_ms, now)?;
        if let Some(open_now) = &mut *open_now {
            open_now.budget = budget;
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = lock();
        let Some(open_now) = &mut *held else {
            return;
        };
        open_now.users -= 1;
        if open_now.users == 0 {
            // SAFETY: what was opened on it is closed: it is dropped first.
            unsafe { pipeshard_device_close(open_now.device) };
            *held = None;
            return;
        }
        let rest = open_now.budget.saturating_sub(self.budget);
        if self.budget == 0 || rest == 0 {
            return;
        }
        // SAFETY: nothing is wanted back.
        match unsafe { change(open_now.device, rest, 0, std::ptr::null_mut()) } {
            Ok(()) => open_now.budget = rest,
            Err(refusal) => tell(
                Kind::Warning,
                &format!(
                    "the budget stays {} bytes after an instance was destroyed: {}",
                    open_now.budget, refusal.text
                ),
            ),
        }
    }
}

/// What is held, and what is possible.
///
/// # Safety
/// `limits` has its size set.
pub unsafe fn limits(device: *mut CDevice, limits: *mut Limits) -> Result<(), Refusal> {
    library(|error| pipeshard_get_limits(device, limits, error))
}
