//! Models whose weights are loaded: their units, page-locked memory and files.
//!
//! Owns what is known of weights in host memory, and the tensors that stand for them on the device. Models come and go by
//! [`super::answers::loading`]; everybody else looks units up. Knows of no plan; where a unit lies on the device is written by the
//! arena.

mod page_lock;
#[cfg(test)]
mod page_lock_tests;

use crate::arena::unit::LoadedUnit;
use crate::hook::config::Config;
use crate::lanes::device::{Buffer, Device};
use crate::lanes::host_memory::LockedMemory;
use crate::lanes::mapped_file::{FileId, MappedFiles, Shrunk};
use page_lock::{device_bytes_of, Locking, PageLocks, Part, Which};
use pipeshard_gguf::GgufFile;
use pipeshard_model::inventory::{layer_of, Inventory, LoadedTensor};
use pipeshard_plan::plan::{
    default_small_threshold, units_from_inventory, Unit, UnitClass, UnitId,
};
use pipeshard_sys as ffi;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::ops::Range;
use std::path::Path;

/// A model whose weights are loaded.
pub struct Model {
    /// llama.cpp's address of it.
    pub key: usize,
    /// Its tensors.
    pub inventory: Inventory,
    /// Its units, as a range of all units.
    units: Range<usize>,
    /// Its page-locked memory.
    locked: LockedMemory,
    /// The files that its weights are mapped from.
    files: MappedFiles,
    /// Device memory that holds weights which the user put there, in bytes.
    placed_by_user: u64,
}

/// A model that was looked at, and may become units.
pub struct Described {
    inventory: Inventory,
    tensors: HashMap<String, *mut ffi::ggml_tensor>,
}

/// The weights of all models.
#[derive(Default)]
pub struct Weights {
    models: Vec<Model>,
    /// All units of all models, as the planner sees them.
    described: Vec<Unit>,
    /// The same units, loaded.
    units: Vec<LoadedUnit>,
    /// Which unit a loaded tensor is.
    index: HashMap<usize, UnitId>,
    locks: PageLocks,
}

/// Looks at a model's weights. Weights outside host memory are not pipeshard's.
///
/// # Safety
/// The tensors are valid.
pub unsafe fn describe(tensors: &[*mut ffi::ggml_tensor]) -> Result<Described, String> {
    let in_host = |t: *mut ffi::ggml_tensor| {
        !(*t).data.is_null()
            && !(*t).buffer.is_null()
            && ffi::ggml_backend_buffer_is_host((*t).buffer)
    };
    let mut by_name: HashMap<String, *mut ffi::ggml_tensor> = HashMap::new();
    let mut layers = 1;
    for &tensor in tensors {
        let name = CStr::from_ptr((*tensor).name.as_ptr());
        let name = name.to_string_lossy().into_owned();
        // the user may have put all of a layer elsewhere, or all layers
        layers = layers.max(layer_of(&name).map_or(1, |layer| layer + 1));
        if in_host(tensor) {
            by_name.entry(name).or_insert(tensor);
        }
    }
    let loaded = by_name.iter().map(|(name, &t)| LoadedTensor {
        name: name.clone(),
        ggml_type: (*t).type_,
        ne: (*t).ne,
        nbytes: ffi::ggml_nbytes(t) as u64,
    });
    let extents: Vec<_> = (by_name.values())
        .map(|&t| ((*t).data as usize, ffi::ggml_nbytes(t)))
        .collect();
    let of_file = header(&MappedFiles::of(&extents));
    let of_file = of_file.and_then(|keys| Inventory::from_loaded(loaded.clone(), &keys).ok());
    let inventory = match of_file {
        Some(inventory) => inventory,
        // a model that is not mapped, or no language model: tensors say all but windows and the like
        None => {
            let keys = BTreeMap::from([
                ("general.architecture".to_string(), "loaded".to_string()),
                ("loaded.block_count".to_string(), layers.to_string()),
            ]);
            Inventory::from_loaded(loaded, &keys).map_err(|e| e.to_string())?
        }
    };
    Ok(Described {
        inventory,
        tensors: by_name,
    })
}

/// The metadata of a model that is mapped from these files: that of the only one, or of the first piece.
fn header(files: &MappedFiles) -> Option<GgufFile> {
    GgufFile::open(Path::new(&files.first()?)).ok()
}

impl Weights {
    /// Takes a model in: its weights become units. Nothing is page-locked before there is a plan, see [`Self::lock_for`].
    ///
    /// # Safety
    /// The tensors are those that were described; they are valid and stay so until [`Self::remove`] is called with the same key.
    pub unsafe fn add(
        &mut self,
        key: usize,
        described: Described,
        tensors: &[*mut ffi::ggml_tensor],
        device: Device,
        granularity: u64,
        config: &Config,
    ) -> Result<(), String> {
        let inventory = &described.inventory;
        let units = units_from_inventory(inventory, default_small_threshold(inventory));
        self.add_units(key, described, units, tensors, device, granularity, config)
    }

    /// The same, with units that were made of its tensors, in the order of their use.
    ///
    /// # Safety
    /// As for [`Self::add`].
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn add_units(
        &mut self,
        key: usize,
        described: Described,
        units: Vec<Unit>,
        tensors: &[*mut ffi::ggml_tensor],
        device: Device,
        granularity: u64,
        config: &Config,
    ) -> Result<(), String> {
        let Described {
            inventory,
            tensors: by_name,
        } = described;
        let first = self.units.len();
        for mut unit in units {
            let Some(&tensor) = by_name.get(&unit.name) else {
                continue;
            };
            unit.device_bytes = device.alloc_size(tensor);
            let id = u32::try_from(self.units.len());
            let id = UnitId(id.map_err(|_| "too many tensors".to_string())?);
            if unit.class != UnitClass::HostOnly {
                self.index.insert(tensor as usize, id);
            }
            self.units.push(LoadedUnit::new(tensor, unit.device_bytes));
            self.described.push(unit);
        }
        let extent = |unit: &LoadedUnit| (unit.host() as usize, unit.bytes());
        let ranges: Vec<_> = self.units[first..].iter().map(extent).collect();
        let files = MappedFiles::of(&ranges);
        self.locks.locking = Locking::new(config);
        self.models.push(Model {
            key,
            inventory,
            units: first..self.units.len(),
            locked: self.locks.locking.memory(),
            files,
            placed_by_user: device_bytes_of(tensors, granularity),
        });
        if let Some(added) = self.parts().0.last_mut() {
            added.note_pinned(device);
        }
        Ok(())
    }

    /// Forgets a model: nothing may read its weights any more. False if it is not known.
    pub fn remove(&mut self, key: usize) -> bool {
        let Some(at) = self.models.iter().position(|m| m.key == key) else {
            return false;
        };
        let gone = self.models.remove(at);
        let count = gone.units.len();
        self.units.drain(gone.units.clone());
        self.described.drain(gone.units.clone());
        let later = self.models.iter_mut();
        for later in later.filter(|m| m.units.start >= gone.units.end) {
            later.units = later.units.start - count..later.units.end - count;
        }
        self.index.clear();
        for (i, (unit, info)) in self.units.iter().zip(&self.described).enumerate() {
            if info.class != UnitClass::HostOnly {
                self.index.insert(unit.source() as usize, UnitId(i as u32));
            }
        }
        true
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Weights::default();
    }

    /// The models.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model with this address.
    pub fn model(&self, key: usize) -> Option<&Model> {
        self.models.iter().find(|m| m.key == key)
    }

    /// The model, where there is only one.
    pub fn only_model(&self) -> Option<&Model> {
        match self.models.as_slice() {
            [model] => Some(model),
            _ => None,
        }
    }

    /// All units, as the planner sees them.
    pub fn described(&self) -> &[Unit] {
        &self.described
    }

    /// The same units, loaded.
    pub fn units(&self) -> &[LoadedUnit] {
        &self.units
    }

    /// The same, for the arena to place.
    pub fn units_mut(&mut self) -> &mut [LoadedUnit] {
        &mut self.units
    }

    /// Which unit a loaded tensor is, by its address.
    pub fn index(&self) -> &HashMap<usize, UnitId> {
        &self.index
    }

    /// Takes all places on the device away.
    pub fn unplace(&mut self) {
        self.units.iter_mut().for_each(LoadedUnit::unplace);
    }

    /// Gives units that have no place an address, so that ggml does not put them into compute buffers.
    pub fn place_for_measuring(&mut self, placeholder: &Buffer) {
        let unplaced = self.units.iter_mut().filter(|unit| !unit.is_placed());
        unplaced.for_each(|unit| unit.place_for_measuring(placeholder));
    }

    /// Device memory that holds weights which the user put there, in bytes.
    pub fn placed_by_user(&self) -> u64 {
        self.models.iter().map(|m| m.placed_by_user).sum()
    }

    /// Memory that is page-locked for models that are loaded, in bytes.
    pub fn page_locked_bytes(&self) -> u64 {
        self.models.iter().map(|m| m.locked.bytes()).sum()
    }

    /// Bytes of units that the device addresses in place, or will, where that is known.
    pub fn addressed_bytes(&self) -> u64 {
        let none = self.locks.locking.off().is_some() || self.locks.refused.is_some();
        let units = self.units.iter().zip(&self.described);
        let addressed = units.filter(|(unit, info)| match none {
            true => unit.pinned(),
            false => info.class != UnitClass::HostOnly,
        });
        addressed.map(|(unit, _)| unit.bytes() as u64).sum()
    }

    /// Reports whether nothing is page-locked, and why.
    pub fn locking_off(&self) -> Option<String> {
        self.locks.locking.off()
    }

    /// The page-locked parts of the models, and what locks them.
    fn parts(&mut self) -> (Vec<Part<'_>>, &mut PageLocks) {
        let mut rest = &mut self.units[..];
        let mut at = 0;
        let mut parts = Vec::with_capacity(self.models.len());
        // a model that comes later has later units
        for model in &mut self.models {
            let (_, from) = std::mem::take(&mut rest).split_at_mut(model.units.start - at);
            let (units, behind) = from.split_at_mut(model.units.len());
            (rest, at) = (behind, model.units.end);
            parts.push(Part {
                first: model.units.start,
                units,
                locked: &mut model.locked,
                files: &model.files,
            });
        }
        (parts, &mut self.locks)
    }

    /// Page-locks what is read from host memory from here on, see [`PageLocks::lock_for`].
    ///
    /// # Safety
    /// Nothing is being copied from the units.
    pub unsafe fn lock_for(
        &mut self,
        device: Device,
        read: Which<'_>,
        uploaded: Which<'_>,
    ) -> Option<String> {
        let (mut parts, locks) = self.parts();
        locks.lock_for(&mut parts, device, read, uploaded)
    }

    /// Where a copy of a host tensor has to be cut, for it lies in page-locked memory in part, or in several pieces of it: the driver
    /// refuses it as a whole. Those are weights that the user keeps on the host, which share pages with weights that are streamed.
    ///
    /// # Safety
    /// The tensor is valid.
    pub unsafe fn pieces_of(&self, tensor: *const ffi::ggml_tensor) -> Option<Vec<Range<usize>>> {
        let buffer = (*tensor).buffer;
        let usage = ffi::GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        if buffer.is_null() || ffi::ggml_backend_buffer_get_usage(buffer) != usage {
            return None;
        }
        let (base, bytes) = ((*tensor).data.cast_const().cast(), ffi::ggml_nbytes(tensor));
        let mut pieces = self
            .models
            .iter()
            .map(|model| model.locked.pieces(base, bytes));
        let cut = pieces.find(|pieces| pieces.clone().nth(1).is_some())?;
        Some(cut.collect())
    }

    /// Unlocks what was only locked to be uploaded.
    ///
    /// # Safety
    /// Nothing is being copied from the units.
    pub unsafe fn unlock_others(&mut self, device: Device, read: Which<'_>) {
        let (mut parts, locks) = self.parts();
        locks.unlock_others(&mut parts, device, read);
    }

    /// A file that has become shorter since its weights were loaded.
    pub fn shrunk_file(&self) -> Option<Shrunk> {
        self.models.iter().find_map(|model| model.files.shrunk())
    }

    /// The files that a graph reads from: what `read` of its units lie in, and the embeddings of the models that `bound`, all of its
    /// units, belong to, which are looked up without being asked for.
    pub fn files_read(&self, bound: &[UnitId], read: &[UnitId]) -> Vec<FileId> {
        let mut files = Vec::new();
        for model in &self.models {
            if !bound.iter().any(|id| model.units.contains(&id.index())) {
                continue;
            }
            let looked_up = model.units.clone();
            let looked_up = looked_up.filter(|&at| self.described[at].class == UnitClass::HostOnly);
            let read = read.iter().map(|id| id.index());
            let read = read.filter(|at| model.units.contains(at));
            for unit in looked_up.chain(read).map(|at| &self.units[at]) {
                for index in model.files.holding(unit.host(), unit.bytes()) {
                    let id = FileId {
                        model: model.key,
                        index,
                    };
                    if !files.contains(&id) {
                        files.push(id);
                    }
                }
            }
        }
        files
    }

    /// Those of these files that have become shorter since their weights were loaded.
    pub fn shrunk_among<'a>(&'a self, files: &'a [FileId]) -> impl Iterator<Item = Shrunk> + 'a {
        let shrunk = |id: &FileId| self.model(id.model)?.files.shrunk_file(id.index);
        files.iter().filter_map(shrunk)
    }

    /// Files of models, of each the first.
    pub fn model_files(&self) -> Vec<String> {
        let first = |model: &Model| model.files.first();
        self.models.iter().filter_map(first).collect()
    }

    /// Times that the length of a file was asked for.
    pub fn file_looks(&self) -> u64 {
        self.models.iter().map(|model| model.files.looks()).sum()
    }

    /// Files that were written to while they are in use, each once.
    pub fn written_files(&mut self) -> impl Iterator<Item = String> + '_ {
        let models = self.models.iter_mut();
        models.filter_map(|model| model.files.written())
    }

    /// Reports whether rows of embeddings, which are looked up without being asked for, are lost.
    pub fn lookups_lost(&self, shrunk: &Shrunk) -> bool {
        let lost = |unit: &LoadedUnit| shrunk.affects(unit.host(), unit.bytes());
        let mut units = self.units.iter().zip(&self.described);
        units.any(|(unit, info)| info.class == UnitClass::HostOnly && lost(unit))
    }
}

#[cfg(test)]
impl Weights {
    /// Units without a model.
    pub(in crate::hook) fn of_test(units: Vec<LoadedUnit>, described: Vec<Unit>) -> Self {
        Weights {
            units,
            described,
            ..Weights::default()
        }
    }

    /// Adds a model of these units.
    pub(in crate::hook) fn add_of_test(
        &mut self,
        key: usize,
        units: Vec<LoadedUnit>,
        described: Vec<Unit>,
    ) {
        let extent = |unit: &LoadedUnit| (unit.host() as usize, unit.bytes());
        let extents: Vec<_> = units.iter().map(extent).collect();
        let first = self.units.len();
        self.units.extend(units);
        self.described.extend(described);
        let weight = LoadedTensor {
            name: "blk.0.ffn_up.weight".to_string(),
            ggml_type: ffi::GGML_TYPE_F32,
            ne: [64, 64, 1, 1],
            nbytes: 4 * 64 * 64,
        };
        let keys = [
            ("general.architecture", "loaded"),
            ("loaded.block_count", "1"),
        ];
        let keys = keys.map(|(key, value)| (key.to_string(), value.to_string()));
        self.models.push(Model {
            key,
            inventory: Inventory::from_loaded([weight].into_iter(), &BTreeMap::from(keys))
                .expect("a model"),
            units: first..self.units.len(),
            locked: LockedMemory::default(),
            files: MappedFiles::of(&extents),
            placed_by_user: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::test_card::card;

    #[test]
    fn what_was_page_locked_for_a_model_that_is_gone_does_not_count() {
        let device = card("vram=64M");
        let memory = vec![0; 4 << 20];
        let (first, second) = memory.split_at(3 << 20);
        let mut weights = Weights::default();
        for (key, memory) in [(1, first), (2, &second[8192..])] {
            weights.add_of_test(key, Vec::new(), Vec::new());
            let locked = &mut weights.models[key - 1].locked;
            // SAFETY: the memory outlives the model.
            let done = unsafe { locked.lock(device, memory.as_ptr(), memory.len()) };
            assert_eq!(done, Ok(()));
        }
        let both = weights.page_locked_bytes();
        assert!(weights.remove(1));
        let one = weights.page_locked_bytes();
        assert!(one > 0 && one + (3 << 20) <= both, "{one} of {both}");
        assert!(!weights.remove(1));
        assert!(weights.remove(2));
        assert_eq!(weights.page_locked_bytes(), 0);
    }
}
