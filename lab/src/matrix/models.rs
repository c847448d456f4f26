//! The models of the matrix, and the files that go with them.

use super::feature::Need;
use super::lora::write_lora;
use crate::synth::{shape, write, WriteOptions};
use pipeshard_sys as ffi;
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// What a model can do differs by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Attention and one feed-forward network per layer.
    Dense,
    /// Several experts per layer.
    Mixture,
    /// Some layers look back over a window only.
    Windowed,
    /// A state in place of attention, in some layers or in all.
    Recurrent,
    /// No generation: embeddings only.
    Encoder,
}

/// A model of random weights.
#[derive(Debug)]
pub struct MatrixModel {
    /// Short name, for the names of cases.
    pub name: &'static str,
    /// What it stands for, for users.
    pub title: &'static str,
    /// Kind.
    pub kind: Kind,
    /// One that stands for an architecture, or for a type of tensors.
    pub stands_for: StandsFor,
    shape: &'static str,
    types: Option<&'static str>,
}

/// What a model is in the matrix for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandsFor {
    /// An architecture.
    Architecture,
    /// A type of tensors.
    Type,
}

const fn architecture(
    name: &'static str,
    title: &'static str,
    kind: Kind,
    shape: &'static str,
) -> MatrixModel {
    MatrixModel {
        name,
        title,
        kind,
        stands_for: StandsFor::Architecture,
        shape,
        types: None,
    }
}

const fn typed(name: &'static str, types: &'static str) -> MatrixModel {
    MatrixModel {
        name,
        title: types,
        kind: Kind::Dense,
        stands_for: StandsFor::Type,
        shape: "tiny-llama",
        types: Some(types),
    }
}

/// All models.
pub static MODELS: &[MatrixModel] = &[
    architecture("llama", "llama", Kind::Dense, "tiny-llama"),
    architecture(
        "llama-576",
        "llama, padded rows",
        Kind::Dense,
        "tiny-llama-576",
    ),
    architecture("qwen2", "qwen2 (biases)", Kind::Dense, "tiny-qwen2"),
    architecture("qwen3", "qwen3", Kind::Dense, "tiny-qwen3"),
    architecture("phi3", "phi3 (fused QKV)", Kind::Dense, "tiny-phi3"),
    architecture(
        "qwen2vl",
        "qwen2vl (text side)",
        Kind::Dense,
        "tiny-qwen2vl",
    ),
    architecture(
        "gemma3",
        "gemma3 (sliding windows)",
        Kind::Windowed,
        "tiny-gemma3",
    ),
    architecture(
        "qwen3moe",
        "qwen3moe (experts)",
        Kind::Mixture,
        "tiny-qwen3moe",
    ),
    architecture(
        "mixtral",
        "mixtral (experts)",
        Kind::Mixture,
        "tiny-mixtral",
    ),
    architecture(
        "gpt-oss",
        "gpt-oss (sinks, windows, MXFP4 experts)",
        Kind::Mixture,
        "tiny-gpt-oss",
    ),
    architecture(
        "deepseek2",
        "deepseek2 (latent attention, shared experts)",
        Kind::Mixture,
        "tiny-deepseek2",
    ),
    architecture(
        "mamba2",
        "mamba2 (recurrent)",
        Kind::Recurrent,
        "tiny-mamba2",
    ),
    architecture(
        "granite-hybrid",
        "granitehybrid (recurrent and attention)",
        Kind::Recurrent,
        "tiny-granite-hybrid",
    ),
    architecture(
        "qwen3next",
        "qwen3next (delta nets and attention)",
        Kind::Recurrent,
        "tiny-qwen3next",
    ),
    architecture("bert", "bert (embeddings)", Kind::Encoder, "tiny-bert"),
    architecture(
        "bert-rank",
        "bert (reranking)",
        Kind::Encoder,
        "tiny-bert-rank",
    ),
    typed("f16", "f16"),
    typed("bf16", "bf16"),
    typed("q8_0", "q8_0"),
    typed("q4_0", "q4_0"),
    typed("q4_K", "q4_K"),
    typed("q6_K", "q6_K"),
    typed("iq4_nl", "iq4_nl"),
    typed("mxfp4", "mxfp4"),
];

/// Layers of every model: enough for some to be resident and some not, and for a whole period of windows.
const LAYERS: u32 = 4;
/// Layers of a draft model.
const DRAFT_LAYERS: u32 = 2;
const VOCABULARY: u32 = 512;
/// Ranks of the adapters.
pub const RANKS: [u32; 2] = [4, 16];
const PARTS: usize = 3;

/// The model of that name.
pub fn named(name: &str) -> Option<&'static MatrixModel> {
    MODELS.iter().find(|m| m.name == name)
}

/// The adapter of that rank for a model.
pub fn lora(model: &Path, rank: u32) -> PathBuf {
    model.with_extension(format!("lora{rank}.gguf"))
}

/// The smaller model that goes with a model.
pub fn draft(model: &Path) -> PathBuf {
    model.with_extension("draft.gguf")
}

/// One of a model's parts, counted from 0.
pub fn part(model: &Path, index: usize) -> PathBuf {
    model.with_extension(format!("parts-{:05}-of-{PARTS:05}.gguf", index + 1))
}

impl MatrixModel {
    /// Writes the model, and what else is needed, into `folder`, unless they are there. Returns the model's path.
    ///
    /// # Errors
    /// A text for the user.
    pub fn prepare(&self, folder: &Path, needs: &[Need]) -> Result<PathBuf, String> {
        let path = folder.join(format!("{}.gguf", self.name));
        self.write_once(&path, LAYERS, 0)?;
        for need in needs {
            match need {
                Need::Draft => self.write_once(&draft(&path), DRAFT_LAYERS, 9)?,
                Need::Loras => {
                    for rank in RANKS {
                        once(&lora(&path, rank), |out| {
                            write_lora(&path, rank, u64::from(rank), out)
                        })?;
                    }
                }
                Need::Parts => {
                    for index in 0..PARTS {
                        once(&part(&path, index), |out| write_part(&path, index, out))?;
                    }
                }
            }
        }
        Ok(path)
    }

    fn write_once(&self, path: &Path, layers: u32, seed: u64) -> Result<(), String> {
        once(path, |out| {
            let mut spec = shape(self.shape).map_err(|e| e.to_string())?;
            spec.layers = layers.min(spec.layers);
            spec.vocabulary = VOCABULARY;
            spec.seed = seed;
            if let Some(types) = self.types {
                spec.types = spec.types.with(types).map_err(|e| e.to_string())?;
            }
            let options = WriteOptions {
                threads: Some(1),
                replace: true,
                ..WriteOptions::default()
            };
            write(&spec, out, options, &|_| {}).map_err(|e| e.to_string())?;
            Ok(())
        })
    }
}

/// Makes a file that may be asked for from several threads: whole, or not at all.
fn once(path: &Path, make: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    make(&unfinished)?;
    std::fs::rename(&unfinished, path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Frees what was read of a model at the end of a scope.
struct Read {
    gguf: *mut ffi::gguf_context,
    ggml: *mut ffi::ggml_context,
}

impl Drop for Read {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; both calls take null.
        unsafe {
            ffi::gguf_free(self.gguf);
            ffi::ggml_free(self.ggml);
        }
    }
}

/// Writes one of a model's parts, as llama-gguf-split does: the first one has the metadata.
fn write_part(model: &Path, index: usize, out: &Path) -> Result<(), String> {
    let text =
        |path: &Path| CString::new(path.to_string_lossy().as_bytes()).map_err(|e| e.to_string());
    let (from, to) = (text(model)?, text(out)?);
    // SAFETY: texts are valid during the calls; the tensors that the new file refers to live until it is written.
    unsafe {
        let mut read = Read {
            gguf: std::ptr::null_mut(),
            ggml: std::ptr::null_mut(),
        };
        let params = ffi::gguf_init_params {
            no_alloc: false,
            ctx: &mut read.ggml,
        };
        read.gguf = ffi::gguf_init_from_file(from.as_ptr(), params);
        if read.gguf.is_null() {
            return Err(format!("{} could not be read", model.display()));
        }
        let part = Read {
            gguf: ffi::gguf_init_empty(),
            ggml: std::ptr::null_mut(),
        };
        if index == 0 {
            ffi::gguf_set_kv(part.gguf, read.gguf);
        }
        let tensors = ffi::gguf_get_n_tensors(read.gguf) as usize;
        let number = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        ffi::gguf_set_val_u16(part.gguf, c"split.no".as_ptr(), number(index));
        ffi::gguf_set_val_u16(part.gguf, c"split.count".as_ptr(), number(PARTS));
        ffi::gguf_set_val_i32(part.gguf, c"split.tensors.count".as_ptr(), tensors as i32);
        for at in tensors * index / PARTS..tensors * (index + 1) / PARTS {
            let name = ffi::gguf_get_tensor_name(read.gguf, at as i64);
            ffi::gguf_add_tensor(part.gguf, ffi::ggml_get_tensor(read.ggml, name));
        }
        match ffi::gguf_write_to_file(part.gguf, to.as_ptr(), false) {
            true => Ok(()),
            false => Err(format!("{} could not be written", out.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_a_shape_and_types() {
        for model in MODELS {
            let spec = shape(model.shape).unwrap();
            if let Some(types) = model.types {
                spec.types.with(types).unwrap();
            }
            assert_eq!(named(model.name).map(|m| m.title), Some(model.title));
        }
    }

    #[test]
    fn parts_hold_all_tensors_and_adapters_fit() {
        let folder = tempfile::tempdir().unwrap();
        let model = named("q4_0").unwrap();
        let path = model
            .prepare(folder.path(), &[Need::Parts, Need::Loras, Need::Draft])
            .unwrap();
        let count = |path: &Path| {
            let inventory = pipeshard_gguf::inventory_of(path);
            inventory.map(|i| i.tensors.len())
        };
        let whole = count(&path).unwrap();
        assert!(count(&draft(&path)).unwrap() < whole);
        for rank in RANKS {
            assert!(lora(&path, rank).metadata().unwrap().len() > 1000);
        }
        let bytes: u64 = (0..PARTS)
            .map(|i| part(&path, i).metadata().unwrap().len())
            .sum();
        assert!(bytes >= path.metadata().unwrap().len());
    }
}
