//! Models.

use crate::boundary::{c_text, call, handle, optional, read, required, text};
use crate::chat::Chat;
use crate::device::{CDevice, Device, DEVICES};
use crate::failure::{CError, Code, Failure};
use crate::files::{HostFile, HostFiles, Reader};
use crate::handles::Table;
use crate::locks::locked;
use crate::media::Encoder;
use crate::process::with_errors;
use crate::types::{ModelConfig, ProgressFn};
use pipeshard_llama as llama;
use pipeshard_sys as ffi;
use std::ffi::{c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// C's name for a handle.
pub enum CModel {}

/// All that are open.
pub static MODELS: Table<Model> = Table::new();

/// The encoder of a model's images and sound, which is loaded once the first context is there.
pub struct Projector {
    pub path: PathBuf,
    pub image_max_tokens: i32,
    /// Used by one session at a time.
    pub encoder: Mutex<Option<Encoder>>,
}

/// A model that is open. Members are dropped in their order.
pub struct Model {
    pub projector: Option<Projector>,
    /// None where the model has no template: it is not for conversations.
    pub chat: Option<Chat>,
    pub llama: llama::Model,
    /// What the two were loaded from, if the host read it.
    _files: Option<HostFiles>,
    pub device: Arc<Device>,
}

/// What loading asks.
struct Loading {
    progress: ProgressFn,
    user: *mut c_void,
    stopped: bool,
    /// What was done ahead of loading, of 1.
    ahead: f32,
}

impl Loading {
    /// False ends it.
    unsafe fn tell(&mut self, done: f32) -> bool {
        self.stopped = (self.progress)(self.user, done) != 0;
        !self.stopped
    }
}

unsafe extern "C" fn loading(done: f32, user: *mut c_void) -> bool {
    let loading = &mut *user.cast::<Loading>();
    let rest = 1.0 - loading.ahead;
    let done = match done >= 1.0 {
        true => 1.0,
        false => loading.ahead + rest * done,
    };
    loading.tell(done)
}

/// What of the way to a model that the host reads is reading.
const READING: f32 = 0.9;

fn readable(path: &str, what: &str) -> Result<(), Failure> {
    std::fs::File::open(path)
        .map(|_| ())
        .map_err(|why| Failure::new(Code::File, format!("{what} {path} cannot be read: {why}")))
}

impl Model {
    unsafe fn open(device: Arc<Device>, config: &ModelConfig) -> Result<Self, Failure> {
        if config.flags != 0 || config.reserved != 0 {
            return Err(Failure::new(
                Code::Version,
                "flags are set that this library does not know",
            ));
        }
        let path = required(config.path, "path")?;
        let mmproj = optional(config.mmproj, "mmproj")?;
        let template = optional(config.chat_template, "chat_template")?;
        let mut asks = config.progress.map(|progress| Loading {
            progress,
            user: config.progress_user,
            stopped: false,
            ahead: 0.0,
        });
        let files = match Reader::of(config)? {
            Some(reader) => {
                let mut told = |done: f64| match &mut asks {
                    Some(asks) => asks.tell(done as f32 * READING),
                    None => true,
                };
                Some(reader.read(path, mmproj, &mut told)?)
            }
            None => {
                readable(path, "the model")?;
                if let Some(mmproj) = mmproj {
                    readable(mmproj, "the encoder")?;
                }
                None
            }
        };
        if let (Some(asks), Some(_)) = (&mut asks, &files) {
            asks.ahead = READING;
        }
        let paths: Vec<PathBuf> = match &files {
            Some(files) => files.model.iter().map(HostFile::path).collect(),
            None => vec![path.into()],
        };
        let encoder = files.as_ref().and_then(|files| files.encoder.as_ref());
        let encoder = encoder.map(HostFile::path).or(mmproj.map(PathBuf::from));
        let options = llama::ModelOptions {
            gpu_layers: -1,
            progress: asks.as_mut().map(|asks| llama::Progress {
                function: loading,
                user: std::ptr::from_mut(asks).cast(),
            }),
            ..llama::ModelOptions::default()
        };
        let (loaded, errors) = with_errors(|| llama::Model::load_pieces(&paths, &options));
        let llama = loaded.map_err(|_| match asks {
            Some(Loading { stopped: true, .. }) => {
                Failure::new(Code::Cancelled, "the progress callback ended loading")
            }
            _ => {
                let code = match errors.of_runtime {
                    true => Code::NoMemory,
                    false => Code::File,
                };
                device.refused(code, errors.or("the model cannot be loaded"))
            }
        })?;
        let chat = Chat::open(&llama, template)
            .map_err(|why| Failure::invalid(format!("the chat template cannot be used: {why}")))?;
        Ok(Model {
            projector: encoder.map(|path| Projector {
                path,
                image_max_tokens: config.image_max_tokens,
                encoder: Mutex::new(None),
            }),
            chat: chat.is_explicit().then_some(chat),
            llama,
            _files: files,
            device,
        })
    }

    /// Does something with the encoder, which sessions use one after the other.
    ///
    /// # Errors
    /// The model was opened without one, or what `work` fails with.
    pub fn with_encoder<T>(
        &self,
        work: impl FnOnce(&Encoder) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let encoder = self.projector.as_ref().map(|p| locked(&p.encoder));
        match encoder.as_deref() {
            Some(Some(encoder)) => work(encoder),
            _ => Err(Failure::new(
                Code::Unsupported,
                "the model was opened without an encoder of images and sound: state mmproj in pipeshard_model_config",
            )),
        }
    }

    /// The encoder gives its memory back. It is opened again with the next context.
    pub fn close_encoder(&self) {
        if let Some(projector) = &self.projector {
            *locked(&projector.encoder) = None;
        }
    }

    /// What the file calls itself.
    pub fn description(&self) -> String {
        let mut text = [0u8; 256];
        // SAFETY: the model is alive, and the text is as long as said.
        let length = unsafe {
            ffi::llama_model_desc(self.llama.raw(), text.as_mut_ptr().cast(), text.len())
        };
        let length = usize::try_from(length).unwrap_or(0).min(text.len() - 1);
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// A name for what a KV cache fits: another model's would be read as nonsense.
    pub fn identity(&self) -> String {
        // SAFETY: the model is alive.
        let (parameters, bytes) = unsafe {
            (
                ffi::llama_model_n_params(self.llama.raw()),
                ffi::llama_model_size(self.llama.raw()),
            )
        };
        let (layers, words) = (self.llama.layers(), self.llama.vocabulary());
        format!(
            "{} {parameters} {bytes} {layers} {words}",
            self.description()
        )
    }

    fn info(&self) -> String {
        let raw = self.llama.raw();
        let capable = self.projector.as_ref().map(|projector| {
            let path = c_text(&projector.path.to_string_lossy());
            // SAFETY: the text lives through the call, which reads a header.
            unsafe { ffi::mtmd_get_cap_from_file(path.as_ptr()) }
        });
        // SAFETY: the model is alive.
        let (parameters, bytes, trained) = unsafe {
            (
                ffi::llama_model_n_params(raw),
                ffi::llama_model_size(raw),
                ffi::llama_model_n_ctx_train(raw),
            )
        };
        serde_json::json!({
            "description": self.description(),
            "parameters": parameters,
            "bytes": bytes,
            "layers": self.llama.layers(),
            "context_trained": trained,
            "vocabulary": self.llama.vocabulary(),
            "images": capable.is_some_and(|caps| caps.inp_vision),
            "sound": capable.is_some_and(|caps| caps.inp_audio),
            "chat_template": self.chat.is_some(),
        })
        .to_string()
    }
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_model_open(
    device: *mut CDevice,
    config: *const ModelConfig,
    model: *mut *mut CModel,
    error: *mut *mut CError,
) -> c_int {
    call(error, || {
        let place = handle(model, "model")?;
        let device = DEVICES.get(device, "device")?;
        let opened = Model::open(device, &read(config, "pipeshard_model_config")?)?;
        *place = MODELS.open(Arc::new(opened));
        Ok(())
    })
}

#[cfg_attr(feature = "exports", no_mangle)]
pub unsafe extern "C" fn pipeshard_model_close(model: *mut CModel) {
    call(std::ptr::null_mut(), || {
        drop(MODELS.close(model));
        Ok(())
    });
}

#[cfg_attr(feature = "exports", no_mangle)]
pub extern "C" fn pipeshard_model_info(model: *mut CModel) -> *mut c_char {
    text(|| Some(MODELS.get(model, "model").ok()?.info()))
}
