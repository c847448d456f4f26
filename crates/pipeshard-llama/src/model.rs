//! Models.

use super::LlamaError;
use pipeshard_sys as ffi;
use std::ffi::{c_void, CString};
use std::path::Path;

/// How a file is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadMode {
    /// Mapped, llama.cpp's default.
    #[default]
    Mmap,
    /// Read into buffers.
    None,
    /// Read and locked.
    Mlock,
    /// Mapped and locked.
    MmapMlock,
    /// Read past the page cache.
    DirectIo,
}

impl LoadMode {
    fn raw(self) -> ffi::llama_load_mode {
        match self {
            LoadMode::Mmap => ffi::LLAMA_LOAD_MODE_MMAP,
            LoadMode::None => ffi::LLAMA_LOAD_MODE_NONE,
            LoadMode::Mlock => ffi::LLAMA_LOAD_MODE_MLOCK,
            LoadMode::MmapMlock => ffi::LLAMA_LOAD_MODE_MMAP_MLOCK,
            LoadMode::DirectIo => ffi::LLAMA_LOAD_MODE_DIRECT_IO,
        }
    }
}

/// Where a tensor override puts what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Host memory.
    Host,
    /// Memory of the first GPU.
    Device,
}

/// Told how far loading is, from 0 to 1; false ends it.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What is called, on the thread that loads.
    pub function: unsafe extern "C" fn(f32, *mut c_void) -> bool,
    /// Its last argument.
    pub user: *mut c_void,
}

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Layers on the GPU; negative: all.
    pub gpu_layers: i32,
    /// No GPU at all, neither for weights nor for operations.
    pub cpu_only: bool,
    /// Load mode.
    pub load_mode: LoadMode,
    /// Tensor overrides: patterns, and where what they match goes.
    pub overrides: Vec<(String, Side)>,
    /// Do without the GPU's page-locked buffers.
    pub no_host: bool,
    /// Who is told how far it is.
    pub progress: Option<Progress>,
}

/// A loaded model.
pub struct Model(*mut ffi::llama_model);

// SAFETY: llama.cpp allows a loaded model to be used from several threads; it is changed by loading adapters only, for
// which `Lora::load` asks for it by reference on the thread that owns it.
unsafe impl Sync for Model {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned, freed once, after its contexts, which borrow it.
        unsafe { ffi::llama_model_free(self.0) }
    }
}

pub(super) fn path_text(path: &Path) -> Result<CString, LlamaError> {
    let text = path.to_string_lossy();
    CString::new(text.as_bytes()).map_err(|_| LlamaError::Text(text.into_owned()))
}

/// The memory of the first GPU, or of the host where there is none.
fn device_memory() -> ffi::ggml_backend_buffer_type_t {
    // SAFETY: no preconditions; devices live as long as the process.
    unsafe {
        let device = ffi::ggml_backend_dev_by_type(ffi::GGML_BACKEND_DEVICE_TYPE_GPU);
        match device.is_null() {
            true => ffi::ggml_backend_cpu_buffer_type(),
            false => ffi::ggml_backend_dev_buffer_type(device),
        }
    }
}

impl Model {
    /// Loads a file.
    ///
    /// # Errors
    /// [`LlamaError::Model`] when llama.cpp or pipeshard refuses it.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Self, LlamaError> {
        Self::load_pieces(&[path], options)
    }

    /// Loads the pieces of a file, in order; llama.cpp finds those of a single path by its name.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn load_pieces<P: AsRef<Path>>(
        paths: &[P],
        options: &ModelOptions,
    ) -> Result<Self, LlamaError> {
        // SAFETY: no preconditions.
        let mut params = unsafe { ffi::llama_model_default_params() };
        params.use_extra_bufts = false;
        params.load_mode = options.load_mode.raw();
        params.n_gpu_layers = options.gpu_layers;
        params.no_host = options.no_host;
        if let Some(progress) = options.progress {
            params.progress_callback = Some(progress.function);
            params.progress_callback_user_data = progress.user;
        }
        let mut no_devices = [std::ptr::null_mut()];
        if options.cpu_only {
            params.devices = no_devices.as_mut_ptr();
        }
        let patterns: Vec<CString> = options
            .overrides
            .iter()
            .map(|(p, _)| CString::new(p.as_str()).map_err(|_| LlamaError::Text(p.clone())))
            .collect::<Result<_, _>>()?;
        let sides = options.overrides.iter().map(|(_, side)| *side);
        let mut overrides: Vec<ffi::llama_model_tensor_buft_override> = patterns
            .iter()
            .zip(sides)
            .map(|(p, side)| ffi::llama_model_tensor_buft_override {
                pattern: p.as_ptr(),
                buft: match side {
                    // SAFETY: no preconditions.
                    Side::Host => unsafe { ffi::ggml_backend_cpu_buffer_type() },
                    Side::Device => device_memory(),
                },
            })
            .collect();
        if !overrides.is_empty() {
            overrides.push(ffi::llama_model_tensor_buft_override {
                pattern: std::ptr::null(),
                buft: std::ptr::null_mut(),
            });
            params.tensor_buft_overrides = overrides.as_ptr();
        }
        let texts = paths.iter().map(|path| path_text(path.as_ref()));
        let texts: Vec<CString> = texts.collect::<Result<_, _>>()?;
        let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: texts, devices and overrides live through the call, and the lists end with null, or with their length.
        let model = unsafe {
            match pointers[..] {
                [one] => ffi::llama_model_load_from_file(one, params),
                _ => {
                    let list = pointers.as_mut_ptr();
                    ffi::llama_model_load_from_splits(list, pointers.len(), params)
                }
            }
        };
        match model.is_null() {
            true => Err(LlamaError::Model(
                paths
                    .first()
                    .map(|path| path.as_ref().to_path_buf())
                    .unwrap_or_default(),
            )),
            false => Ok(Model(model)),
        }
    }

    /// llama.cpp's own, for functions that have no wrapper here. It lives as long as this does.
    pub fn raw(&self) -> *mut ffi::llama_model {
        self.0
    }

    /// Its vocabulary, as [`Model::raw`].
    pub fn raw_vocabulary(&self) -> *const ffi::llama_vocab {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_get_vocab(self.0) }
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> i32 {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_vocab_n_tokens(self.raw_vocabulary()) }
    }

    /// Width of the residual stream.
    pub fn embedding(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_n_embd(self.0) }.max(0) as usize
    }

    /// Number of layers.
    pub fn layers(&self) -> i32 {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_n_layer(self.0) }
    }

    /// Reports whether it has a recurrent state, in some layers or in all.
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_is_recurrent(self.0) || ffi::llama_model_is_hybrid(self.0) }
    }

    /// Outputs of a classification head; 1 without one.
    pub fn classes(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { ffi::llama_model_n_cls_out(self.0) }.max(1) as usize
    }
}
