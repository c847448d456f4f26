//! LoRA adapters of random weights.

use pipeshard_gguf::inventory_of;
use pipeshard_model::inventory::{Role, TensorInfo};
use pipeshard_sys as ffi;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use std::ffi::{CStr, CString};
use std::path::Path;

/// Frees a gguf and a ggml context at the end of a scope.
struct Contexts {
    gguf: *mut ffi::gguf_context,
    ggml: *mut ffi::ggml_context,
}

impl Drop for Contexts {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; both calls take null.
        unsafe {
            ffi::gguf_free(self.gguf);
            ffi::ggml_free(self.ggml);
        }
    }
}

/// Writes a LoRA adapter of random weights for the model in `base`: one pair of matrices of the given rank for each weight of
/// attention, recurrent layers and dense feed-forward networks.
///
/// # Errors
/// A text for the user: the model cannot be read, or the file cannot be written.
pub fn write_lora(base: &Path, rank: u32, seed: u64, out: &Path) -> Result<(), String> {
    let inventory = inventory_of(base).map_err(|e| e.to_string())?;
    let takes_part = |t: &&TensorInfo| {
        let adaptable = match t.role {
            Role::Attention | Role::DenseFeedForward => t.name.ends_with(".weight"),
            Role::Recurrent => ["ssm_in.weight", "ssm_out.weight"]
                .iter()
                .any(|name| t.name.ends_with(name)),
            _ => false,
        };
        adaptable && t.is_matrix() && t.shape[2] == 1
    };
    let tensors: Vec<&TensorInfo> = inventory.tensors.iter().filter(takes_part).collect();
    if tensors.is_empty() {
        return Err(format!("{} has no weights to adapt", base.display()));
    }
    let floats = |t: &TensorInfo| (t.shape[0] + t.shape[1]) * u64::from(rank);
    let bytes: u64 = tensors.iter().map(|t| 4 * floats(t) + 4096).sum();
    let params = ffi::ggml_init_params {
        mem_size: bytes as usize,
        mem_buffer: std::ptr::null_mut(),
        no_alloc: false,
    };
    let mut generator = Pcg64Mcg::seed_from_u64(seed);
    let text = |t: &str| CString::new(t).map_err(|e| e.to_string());
    // SAFETY: the ggml context has room for the tensors, both contexts live until the file is written, and texts are valid
    // during the calls.
    unsafe {
        let contexts = Contexts {
            gguf: ffi::gguf_init_empty(),
            ggml: ffi::ggml_init(params),
        };
        if contexts.gguf.is_null() || contexts.ggml.is_null() {
            return Err("out of memory".to_string());
        }
        let set = |key: &CStr, value: &CStr| {
            ffi::gguf_set_val_str(contexts.gguf, key.as_ptr(), value.as_ptr());
        };
        set(c"general.type", c"adapter");
        set(c"general.architecture", &text(&inventory.architecture)?);
        set(c"adapter.type", c"lora");
        ffi::gguf_set_val_f32(
            contexts.gguf,
            c"adapter.lora.alpha".as_ptr(),
            2.0 * rank as f32,
        );
        for tensor in tensors {
            for (suffix, ne, scale) in [
                ("lora_a", [tensor.shape[0], u64::from(rank)], 1.0),
                ("lora_b", [u64::from(rank), tensor.shape[1]], 0.5),
            ] {
                let made = ffi::ggml_new_tensor_2d(
                    contexts.ggml,
                    ffi::GGML_TYPE_F32,
                    ne[0] as i64,
                    ne[1] as i64,
                );
                let name = text(&format!("{}.{suffix}", tensor.name))?;
                ffi::ggml_set_name(made, name.as_ptr());
                let count = (ne[0] * ne[1]) as usize;
                let values = std::slice::from_raw_parts_mut((*made).data.cast::<f32>(), count);
                fill(values, &mut generator, scale / (ne[0] as f32).sqrt());
                ffi::gguf_add_tensor(contexts.gguf, made);
            }
        }
        let path = CString::new(out.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        match ffi::gguf_write_to_file(contexts.gguf, path.as_ptr(), false) {
            true => Ok(()),
            false => Err(format!("{} could not be written", out.display())),
        }
    }
}

fn fill(values: &mut [f32], generator: &mut impl Rng, scale: f32) {
    for value in values {
        *value = (generator.random::<f32>() * 2.0 - 1.0) * scale;
    }
}
