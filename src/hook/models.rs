//! Weights that come and go.

use super::log;
use super::runtime::{Model, Runtime};
use crate::arena::unit::LoadedUnit;
use crate::lanes::device::Memory;
use crate::lanes::host_memory::LockedMemory;
use crate::lanes::mapped_file::MappedFiles;
use pipeshard_model::inventory::{Inventory, LoadedTensor};
use pipeshard_plan::plan::{default_small_threshold, units_from_inventory, UnitClass, UnitId};
use pipeshard_sys as ffi;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;

impl Runtime {
    /// A model's weights are loaded: they become units. Returns why the model cannot be served.
    ///
    /// # Safety
    /// The tensors are valid and stay so until [`Runtime::weights_gone`] is called with the same model.
    pub unsafe fn weights_ready(
        &mut self,
        model: usize,
        tensors: &[*mut ffi::ggml_tensor],
    ) -> Result<(), String> {
        let Some(device) = self.find_device() else {
            return Err("there is no device".to_string());
        };
        self.open_lanes()?;
        self.check_saved_model(tensors)?;
        let in_host = |t: *mut ffi::ggml_tensor| {
            !(*t).data.is_null()
                && !(*t).buffer.is_null()
                && ffi::ggml_backend_buffer_is_host((*t).buffer)
        };
        let mut by_name: HashMap<String, *mut ffi::ggml_tensor> = HashMap::new();
        for &tensor in tensors.iter().filter(|&&t| in_host(t)) {
            by_name.entry(tensor_name(tensor)).or_insert(tensor);
        }
        let loaded = by_name.iter().map(|(name, &t)| LoadedTensor {
            name: name.clone(),
            ggml_type: (*t).type_,
            ne: (*t).ne,
            nbytes: ffi::ggml_nbytes(t) as u64,
        });
        let layers = by_name
            .keys()
            .filter_map(|n| pipeshard_model::inventory::layer_of(n))
            .max()
            .map_or(0, |l| l + 1);
        let keys = BTreeMap::from([
            ("general.architecture".to_string(), "loaded".to_string()),
            ("loaded.block_count".to_string(), layers.to_string()),
        ]);
        let inventory = Inventory::from_loaded(loaded, &keys).map_err(|e| e.to_string())?;
        self.release_arena();
        self.replan();
        let first = self.units.len();
        for mut unit in units_from_inventory(&inventory, default_small_threshold(&inventory)) {
            let Some(&tensor) = by_name.get(&unit.name) else {
                continue;
            };
            unit.device_bytes = device.alloc_size(tensor);
            let id = UnitId(
                u32::try_from(self.units.len()).map_err(|_| "too many tensors".to_string())?,
            );
            if unit.class != UnitClass::HostOnly {
                self.index.insert(tensor as usize, id);
            }
            self.units.push(LoadedUnit::new(tensor, unit.device_bytes));
            self.plan_units.push(unit);
        }
        let extent = |unit: &LoadedUnit| (unit.host() as usize, unit.bytes());
        let ranges: Vec<_> = self.units[first..].iter().map(extent).collect();
        let files = MappedFiles::of(&ranges);
        let locked = self.page_lock(first, tensors);
        let placed_by_user = self.device_bytes_of(tensors);
        self.models.push(Model {
            key: model,
            inventory,
            units: first..self.units.len(),
            locked,
            files,
            placed_by_user,
        });
        self.note_arena();
        self.outcome.models += 1;
        self.follow_saved_plan()
    }

    /// Bytes of the device's buffers that hold any of these tensors: the user's tensor overrides put them there.
    unsafe fn device_bytes_of(&self, tensors: &[*mut ffi::ggml_tensor]) -> u64 {
        let mut buffers: Vec<ffi::ggml_backend_buffer_t> = Vec::new();
        for &tensor in tensors {
            let buffer = (*tensor).buffer;
            if !buffer.is_null()
                && !ffi::ggml_backend_buffer_is_host(buffer)
                && !buffers.contains(&buffer)
            {
                buffers.push(buffer);
            }
        }
        let sizes = buffers
            .iter()
            .map(|&b| ffi::ggml_backend_buffer_get_size(b) as u64);
        sizes
            .map(|size| size.next_multiple_of(self.granularity()))
            .sum()
    }

    /// Page-locks the buffers that hold the weights from unit `first` on.
    unsafe fn page_lock(
        &mut self,
        first: usize,
        tensors: &[*mut ffi::ggml_tensor],
    ) -> LockedMemory {
        let mut locked = match self.config.debug.lock_step {
            Some(step) => LockedMemory::with_step(step as usize),
            None => LockedMemory::default(),
        };
        let Some(device) = self.device else {
            return locked;
        };
        let pinned_type = device.pinned_memory();
        let mut buffers: Vec<ffi::ggml_backend_buffer_t> = Vec::new();
        for &tensor in tensors {
            let buffer = (*tensor).buffer;
            if !buffer.is_null() && !buffers.contains(&buffer) {
                buffers.push(buffer);
            }
        }
        if !self.config.no_page_lock {
            for &buffer in &buffers {
                let already = Some(Memory::of(buffer)) == pinned_type;
                if ffi::ggml_backend_buffer_is_host(buffer) && !already {
                    let base = ffi::ggml_backend_buffer_get_base(buffer).cast::<u8>();
                    locked.lock(device, base, ffi::ggml_backend_buffer_get_size(buffer));
                }
            }
        }
        for unit in &mut self.units[first..] {
            let buffer = (*unit.source()).buffer;
            let made_pinned = Some(Memory::of(buffer)) == pinned_type;
            let pinned = made_pinned || locked.covers(unit.host(), unit.bytes());
            unit.set_pinned(pinned, locked.seams(unit.host(), unit.bytes()));
        }
        let refused = match self.config.no_page_lock {
            true => Some("page-locking is switched off".to_string()),
            false => locked.refused().map(str::to_string),
        };
        if let Some(why) = refused {
            log::warn(&format!("{why}; what is streamed goes through a small staging ring instead, which is slower"));
            self.outcome.page_lock_refused = Some(why);
        }
        self.outcome.page_locked_bytes += locked.bytes();
        self.note_page_locked();
        locked
    }

    fn note_page_locked(&mut self) {
        let pinned = self.units.iter().filter(|unit| unit.pinned());
        let bytes = pinned.map(LoadedUnit::bytes).map(|bytes| bytes as u64);
        self.pools.expect_page_locked(bytes.sum());
    }

    /// Says which files were written to while they are in use. Nobody can tell whether the weights are still the same.
    pub fn note_written_files(&mut self) {
        for model in &mut self.models {
            if let Some(path) = model.files.written() {
                let what = format!(
                    "{path} was written to while it is in use: answers may be wrong from here on; load the model again"
                );
                log::warn(&what);
                self.outcome.note_error(what);
            }
        }
    }

    /// A model's weights are about to be freed: nothing may read them any more.
    pub fn weights_gone(&mut self, model: usize) {
        let Some(at) = self.models.iter().position(|m| m.key == model) else {
            return;
        };
        self.release_arena();
        self.drain();
        self.outcome.note_fetched(self.fetcher.take());
        let gone = self.models.remove(at);
        let count = gone.units.len();
        self.units.drain(gone.units.clone());
        self.plan_units.drain(gone.units.clone());
        for later in self
            .models
            .iter_mut()
            .filter(|m| m.units.start >= gone.units.end)
        {
            later.units = later.units.start - count..later.units.end - count;
        }
        self.index.clear();
        for (i, (unit, info)) in self.units.iter().zip(&self.plan_units).enumerate() {
            if info.class != UnitClass::HostOnly {
                self.index.insert(unit.source() as usize, UnitId(i as u32));
            }
        }
        self.retry = Default::default();
        self.followed = Default::default();
        self.void_graphs();
        self.note_page_locked();
        self.replan();
        self.note_arena();
    }
}

unsafe fn tensor_name(tensor: *const ffi::ggml_tensor) -> String {
    CStr::from_ptr((*tensor).name.as_ptr())
        .to_string_lossy()
        .into_owned()
}
