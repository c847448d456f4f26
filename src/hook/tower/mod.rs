//! The weights of an encoder of images or sound that takes turns with the language model: in host memory always, on the device while
//! something is encoded.
//!
//! A tenant of its own beside the language models': units, page-locks and files in host memory, an arena, a ring and a copy lane on
//! the device. Small weights are resident as long as it has an arena, all others are streamed through the ring; where that is as
//! large as all of them, they stay there from one image to the next. Owns the mapping of its file. Knows no budget and no language
//! model: [`super::answers::encode`] says when it gets memory and how much.

pub mod units;

use super::config::Config;
use super::gate::NewShape;
use super::residency::{CarveError, Residency};
use super::weights::{describe, Weights};
use crate::arena::unit::LoadedUnit;
use crate::lanes::device::Device;
use crate::lanes::file_mapping::FileMapping;
use pipeshard_gguf::GgufFile;
use pipeshard_model::inventory::LoadedTensor;
use pipeshard_plan::plan::{Plan, PlanError, Unit};
use pipeshard_sys as ffi;
use std::collections::HashMap;
use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;
use units::{plan_of_all, plan_within, units_of, Placed, Rounding};

type Tensor = *mut ffi::ggml_tensor;

/// What decides how large a graph's compute buffers are: the size of its pixels.
pub type About = [i64; 4];

/// An encoder's weights.
pub struct Tower {
    /// In host memory.
    pub weights: Weights,
    /// On the device.
    pub residency: Residency,
    /// A graph was refused compute buffers of so many bytes until there is room for them.
    pub wanted: Option<u64>,
    /// Bytes of compute buffers that graphs were seen to want.
    pub known: HashMap<About, u64>,
    config: Arc<Config>,
    device: Device,
    rounding: Rounding,
    /// Its tensors, in no particular order.
    tensors: Vec<Tensor>,
    /// With all weights side by side; none until a graph has shown the order of their use.
    all: Option<Plan>,
    /// Last: everything above reads it.
    mapping: FileMapping,
}

// SAFETY: tensors of an encoder that says when they go; used under the runtime's lock.
unsafe impl Send for Tower {}

/// The tensors of a context.
unsafe fn tensors_of(context: *mut ffi::ggml_context) -> Vec<Tensor> {
    let next = |&tensor: &Tensor| {
        let next = ffi::ggml_get_next_tensor(context, tensor);
        (!next.is_null()).then_some(next)
    };
    let first = ffi::ggml_get_first_tensor(context);
    std::iter::successors((!first.is_null()).then_some(first), next).collect()
}

unsafe fn name_of(tensor: Tensor) -> String {
    CStr::from_ptr((*tensor).name.as_ptr())
        .to_string_lossy()
        .into_owned()
}

unsafe fn loaded(tensor: Tensor) -> LoadedTensor {
    LoadedTensor {
        name: name_of(tensor),
        ggml_type: (*tensor).type_,
        ne: (*tensor).ne,
        nbytes: ffi::ggml_nbytes(tensor) as u64,
    }
}

/// Where an encoder's weights lie in its file.
struct Places<'f> {
    file: &'f GgufFile,
    mapping: &'f FileMapping,
}

impl Places<'_> {
    /// The addresses of these tensors' weights.
    unsafe fn of(&self, tensors: &[Tensor]) -> Result<Vec<*mut u8>, String> {
        let held = self.file.tensors().zip(self.file.offsets());
        let held: HashMap<String, (LoadedTensor, u64)> = held
            .map(|(tensor, offset)| (tensor.name.clone(), (tensor, offset)))
            .collect();
        let place = |&tensor: &Tensor| {
            let name = name_of(tensor);
            let bytes = ffi::ggml_nbytes(tensor) as u64;
            let there = held.get(&name).filter(|(of_file, _)| {
                (of_file.ggml_type, of_file.nbytes) == ((*tensor).type_, bytes)
            });
            let place = there.and_then(|(_, offset)| self.mapping.at(*offset, bytes));
            place.ok_or_else(|| format!("it has no such tensor as {name}"))
        };
        tensors.iter().map(place).collect()
    }
}

impl Tower {
    /// Maps the file and gives the tensors of `context` their places in it. They lie in the buffer, which the caller frees first.
    ///
    /// # Errors
    /// Why that cannot be done; the tensors are as they were.
    ///
    /// # Safety
    /// The tensors have no memory, and stay until the tower is dropped; nothing is written to them.
    pub unsafe fn map(
        path: &Path,
        context: *mut ffi::ggml_context,
        (device, granularity): (Device, u64),
        config: &Arc<Config>,
    ) -> Result<(Self, ffi::ggml_backend_buffer_t), String> {
        let file = GgufFile::open(path).map_err(|why| why.to_string())?;
        let mapping = FileMapping::open(path);
        let mapping =
            mapping.map_err(|why| format!("{} cannot be mapped: {why}", path.display()))?;
        let tensors = tensors_of(context);
        let places = Places {
            file: &file,
            mapping: &mapping,
        };
        let places = places.of(&tensors)?;
        let mut residency = Residency::of_encoder(Arc::clone(config));
        residency.attach(device);
        residency.open(device)?;
        let buffer = mapping.buffer().ok_or("ggml refused a buffer over it")?;
        for (&tensor, &place) in tensors.iter().zip(&places) {
            ffi::ggml_backend_tensor_alloc(buffer, tensor, place.cast());
        }
        let tower = Tower {
            weights: Weights::default(),
            residency,
            wanted: None,
            known: HashMap::new(),
            config: Arc::clone(config),
            device,
            rounding: Rounding {
                granularity,
                alignment: device.alignment(),
            },
            tensors,
            all: None,
            mapping,
        };
        Ok((tower, buffer))
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        // SAFETY: the tensors are there as long as the tower is.
        let bytes = |&tensor: &Tensor| unsafe { ffi::ggml_nbytes(tensor) as u64 };
        self.tensors.iter().map(bytes).sum()
    }

    /// What a device does to sizes.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Units of its tensors, in no particular order.
    pub fn units(&self) -> Vec<Unit> {
        // SAFETY: the tensors are there as long as the tower is.
        let loaded = |&tensor: &Tensor| unsafe { loaded(tensor) };
        units_of(&self.tensors.iter().map(loaded).collect::<Vec<_>>())
    }

    /// A graph of the encoder shows in which order weights are used: the first one decides, for all have the same.
    ///
    /// # Safety
    /// The nodes are those of a valid graph, in order.
    pub unsafe fn know_order(&mut self, nodes: &[Tensor]) -> Result<&Plan, String> {
        if self.all.is_none() {
            let mut used: HashMap<Tensor, usize> = HashMap::new();
            for &node in nodes {
                for source in (*node).src.into_iter().filter(|source| !source.is_null()) {
                    let root = (*source).view_src;
                    let at = used.len();
                    used.entry(match root.is_null() {
                        true => source,
                        false => root,
                    })
                    .or_insert(at);
                }
            }
            let mut order = self.tensors.clone();
            order.sort_by_key(|tensor| used.get(tensor).copied().unwrap_or(usize::MAX));
            let units = order.iter().map(|&tensor| loaded(tensor));
            let units = units_of(&units.collect::<Vec<_>>());
            let described = describe(&order)?;
            let (device, granularity) = (self.device, self.rounding.granularity);
            let key = self.mapping.at(0, 0).map_or(0, |base| base as usize);
            let config = &self.config;
            self.weights
                .add_units(key, described, units, &order, device, granularity, config)?;
        }
        match &mut self.all {
            Some(all) => Ok(all),
            none => {
                let made = plan_of_all(self.weights.described(), self.rounding);
                Ok(none.insert(made.map_err(|why| why.to_string())?))
            }
        }
    }

    /// The plan with all weights side by side.
    pub fn plan_of_all(&self) -> Option<&Plan> {
        self.all.as_ref()
    }

    /// The least room that its weights need while it computes, in bytes.
    ///
    /// # Errors
    /// There is no plan for them, whatever the room.
    pub fn least_room(&self) -> Result<u64, PlanError> {
        match &self.all {
            Some(all) => Ok(all.minimum_budget),
            None => plan_of_all(&self.units(), self.rounding).map(|all| all.minimum_budget),
        }
    }

    /// The plan that graphs are decided by: the arena's, or where it has none the one with all weights, whose places are none.
    pub fn plan(&self) -> Option<&Plan> {
        self.residency.carved().or(self.all.as_ref())
    }

    /// A plan for so much room.
    pub fn plan_within(&self, room: u64) -> Result<Plan, String> {
        let made = plan_within(self.weights.described(), room, self.rounding);
        made.map_err(|why| why.to_string())
    }

    /// Bytes that it holds as long as it is there, and those of its arena.
    pub fn holds(&self) -> (u64, u64) {
        let holds = self.residency.holdings(self.rounding.granularity);
        (
            holds.own,
            holds.arena.map_or(0, |(chunks, ring)| chunks + ring),
        )
    }

    /// What happens to its weights while something is encoded; none while it has no arena.
    pub fn placed(&self) -> Option<Placed> {
        let plan = self.residency.carved()?;
        Some(Placed::of(self.weights.described(), plan))
    }

    /// Gives units that have no place an address, so that graphs can be measured.
    pub fn place_for_measuring(&mut self) {
        if let Some(placeholder) = self.residency.placeholder() {
            self.weights.place_for_measuring(placeholder);
        }
    }

    /// Gives the arena the shape of a plan. All weights stay page-locked from here on: the few small ones, too, for locking them for each
    /// encode anew takes longer than streaming all others. Answers why some are not.
    ///
    /// # Errors
    /// Why it has no shape now, and no memory.
    pub fn carve(&mut self, plan: &Plan, proof: NewShape<'_>) -> Result<Option<String>, String> {
        if let Some(shrunk) = self.weights.shrunk_file() {
            return Err(shrunk.to_string());
        }
        self.residency.drain();
        let all = vec![true; self.weights.described().len()];
        // SAFETY: the lanes were drained.
        let refused = unsafe { self.weights.lock_for(self.device, &all, &[]) };
        let units = self.weights.units_mut();
        let carved = self.residency.carve(plan, units, proof);
        match carved {
            Ok(()) => Ok(refused),
            Err(CarveError::Other(why)) => Err(why),
            Err(CarveError::Refused(why)) => Err(why.to_string()),
        }
    }

    /// Gives the arena's memory back, if it has some.
    pub fn release(&mut self, proof: NewShape<'_>) {
        let units: &mut [LoadedUnit] = self.weights.units_mut();
        self.residency.release(units, proof);
    }
}
