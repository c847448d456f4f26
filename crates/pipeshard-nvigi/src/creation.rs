//! createInstance: parameters, model, context.

use crate::abi::{
    result, Base, CommonCreationParameters, CudaParameters, GptCreationParameters,
    GptRuntimeParameters, InferenceInstance, PipeshardCreationParameters,
};
use crate::boundary::c_text;
use crate::chain::{check, field, text, View};
use crate::cuda::HostCuda;
use crate::face;
use crate::host_files::{self, HostFiles, Reader};
use crate::inputs::{refuse_loras, Sampling, Settings};
use crate::instance::{self, Instance};
use crate::model::{pipeshard_model_close, pipeshard_model_info, pipeshard_model_open, CModel};
use crate::models::{self, Found};
use crate::predict::pipeshard_predict;
use crate::refusal::{call, library, note, Refusal};
use crate::session::exports::{pipeshard_session_open, CSession};
use crate::shared::{Share, Wanted};
use crate::types::{
    ModelConfig, Prediction, PredictionQuery, ReadFn, SessionConfig, SizeFn, NO_PAGE_LOCK,
};
use std::ffi::CStr;
use std::mem::{size_of, zeroed};

/// `PipeshardCreationParameters.flags`: blocking evaluations call back with each piece, as others do.
const STREAM: u32 = 2;

/// For models that bring no template, as NVIGI has it.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Folders of models.
///
/// # Safety
/// Texts of the struct end with a zero byte.
pub unsafe fn roots(
    common: Option<View<CommonCreationParameters>>,
) -> Result<Vec<String>, Refusal> {
    let none = std::ptr::null();
    let first = field!(common, CommonCreationParameters.models, 1, none);
    let more = field!(common, CommonCreationParameters.additional_models, 1, none);
    let roots = [
        text(first, "utf8PathToModels")?,
        text(more, "utf8PathToAdditionalModels")?,
    ];
    let roots: Vec<String> = roots.into_iter().flatten().collect();
    match roots.is_empty() {
        true => Err(Refusal::invalid(
            "utf8PathToModels is not set: it is the folder with nvigi.plugin.gpt.ggml in it",
        )),
        false => Ok(roots),
    }
}

/// A budget in bytes from megabytes of 1024 * 1024; 0: none is stated.
fn budget_of(megabytes: usize) -> Result<u64, Refusal> {
    match megabytes {
        // hosts that never set it pass one or the other
        0 | usize::MAX => Ok(0),
        stated => (stated as u64)
            .checked_mul(1 << 20)
            .ok_or_else(|| Refusal::invalid(format!("vramBudgetMB is {stated}"))),
    }
}

/// ggml's name for one of its types.
fn kv_type(number: i32, field: &str) -> Result<&'static CStr, Refusal> {
    Ok(match number {
        0 => c"f32",
        1 => c"f16",
        2 => c"q4_0",
        3 => c"q4_1",
        6 => c"q5_0",
        7 => c"q5_1",
        8 => c"q8_0",
        20 => c"iq4_nl",
        30 => c"bf16",
        other => {
            return Err(Refusal::invalid(format!(
                "{field} is {other}, which is not a type of the KV cache; 1 is f16, 8 is q8_0"
            )))
        }
    })
}

/// The device that is wanted, and how the session is made.
struct Asked {
    device: Wanted,
    ubatch: u32,
    streams: bool,
}

unsafe fn asked(chain: *const Base) -> Result<Asked, Refusal> {
    type Ours = PipeshardCreationParameters;
    let common = View::<CommonCreationParameters>::find(chain);
    let ours = View::<Ours>::find(chain);
    let cuda = View::<CudaParameters>::find(chain);
    let none = std::ptr::null();
    let flags = field!(ours, Ours.flags, 1, 0);
    if flags & !(NO_PAGE_LOCK | STREAM) != 0 || field!(ours, Ours.reserved, 1, 0) != 0 {
        return Err(Refusal::invalid(
            "PipeshardCreationParameters: flags or reserved are set that this version does not know",
        ));
    }
    let number = field!(cuda, CudaParameters.device, 1, 0);
    let named = text(field!(ours, Ours.device, 1, none), "device")?;
    let name = match (named, number) {
        (Some(name), _) => Some(name),
        (None, 0) => None,
        (None, number) => Some(format!("CUDA{number}")),
    };
    // an empty text is a simulated GPU with defaults
    let simulated = field!(ours, Ours.simulated, 1, none);
    let simulated = match simulated.is_null() {
        true => None,
        false => Some(text(simulated, "simulated")?.unwrap_or_default()),
    };
    let threads = field!(common, CommonCreationParameters.threads, 1, 1);
    Ok(Asked {
        device: Wanted {
            name,
            simulated,
            cache_dir: text(field!(ours, Ours.cache_dir, 1, none), "cacheDir")?,
            profile: text(field!(ours, Ours.profile, 1, none), "profile")?,
            flags: flags & NO_PAGE_LOCK,
            // NVIGI's default is 1, and its CUDA build takes 1 whatever is said: not a choice of the host's
            threads: if threads <= 1 { 0 } else { threads },
            cuda: HostCuda::of(chain)?,
        },
        ubatch: field!(ours, Ours.ubatch, 1, 0),
        streams: flags & STREAM != 0,
    })
}

/// A model that is open.
struct OpenModel(*mut CModel);

impl Drop for OpenModel {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; sessions keep what they need.
        unsafe { pipeshard_model_close(self.0) };
    }
}

fn open_model(
    share: &Share,
    found: &Found,
    template: Option<&str>,
    files: Option<HostFiles>,
) -> Result<OpenModel, Refusal> {
    let open = |template: Option<&str>| {
        let path = c_text(&found.file.to_string_lossy());
        let encoder = found
            .encoder
            .as_ref()
            .map(|file| c_text(&file.to_string_lossy()));
        let template = template.map(c_text);
        let mut reader = files.map(Reader::new);
        let user = reader.as_mut().map_or(std::ptr::null_mut(), |reader| {
            std::ptr::from_mut(reader).cast()
        });
        let config = ModelConfig {
            size: size_of::<ModelConfig>() as u32,
            flags: 0,
            path: path.as_ptr(),
            mmproj: encoder.as_ref().map_or(std::ptr::null(), |e| e.as_ptr()),
            chat_template: template.as_ref().map_or(std::ptr::null(), |t| t.as_ptr()),
            progress: None,
            progress_user: std::ptr::null_mut(),
            image_max_tokens: 0,
            reserved: 0,
            file_size: files.map(|_| host_files::size as SizeFn),
            read_file: files.map(|_| host_files::read as ReadFn),
            files_user: user,
        };
        let mut model = std::ptr::null_mut();
        // SAFETY: texts live through the call, and so does what reads files.
        library(|error| unsafe { pipeshard_model_open(share.device, &config, &mut model, error) })?;
        Ok(OpenModel(model))
    };
    let model = open(template)?;
    match has_template(&model) {
        true => Ok(model),
        false => {
            drop(model);
            open(Some(CHATML))
        }
    }
}

fn has_template(model: &OpenModel) -> bool {
    let info = pipeshard_model_info(model.0);
    if info.is_null() {
        return false;
    }
    // SAFETY: a text of the library's, freed once.
    let text = unsafe { CStr::from_ptr(info) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: as above.
    unsafe { crate::boundary::pipeshard_free(info) };
    let info: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    info["chat_template"].as_bool().unwrap_or(false)
}

/// The smallest budget that works for a model, in bytes, by its header: no weights are read.
fn smallest_budget(
    share: &Share,
    found: &Found,
    gpt: Option<View<GptCreationParameters>>,
) -> Result<u64, Refusal> {
    let path = c_text(&found.file.to_string_lossy());
    let context = field!(gpt, GptCreationParameters.context, 1, 512);
    let type_k = field!(gpt, GptCreationParameters.type_k, 2, 1);
    let type_v = field!(gpt, GptCreationParameters.type_v, 2, 1);
    // SAFETY: valid with all bits zero.
    let (mut query, mut told): (PredictionQuery, Prediction) = unsafe { zeroed() };
    query.size = size_of::<PredictionQuery>() as u32;
    query.path = path.as_ptr();
    query.context = u32::try_from(context).unwrap_or(0);
    query.type_k = kv_type(type_k, "cacheTypeK")?.as_ptr();
    query.type_v = kv_type(type_v, "cacheTypeV")?.as_ptr();
    told.size = size_of::<Prediction>() as u32;
    // SAFETY: texts live through the call.
    let predicted =
        library(|error| unsafe { pipeshard_predict(share.device, &query, &mut told, error) });
    match predicted {
        Ok(()) => Ok(told.minimum),
        Err(why) if why.minimum > 0 => Ok(why.minimum),
        Err(why) => Err(why),
    }
}

/// The smallest budgets of models, in MB of 1024 * 1024 bytes, rounded up; 0 where one cannot be found. The GPU is opened for it, unless
/// instances have it open.
///
/// # Safety
/// A chain of a host's.
pub unsafe fn smallest_budgets(chain: *const Base, found: &[Found]) -> Vec<usize> {
    let gpt = View::<GptCreationParameters>::find(chain);
    let share = asked(chain).and_then(|asked| Share::borrow(&asked.device));
    let share = match share {
        Ok(share) => share,
        Err(why) => {
            note(&why);
            return vec![0; found.len()];
        }
    };
    let smallest = found.iter().map(|found| {
        let bytes = smallest_budget(&share, found, gpt).inspect_err(note);
        bytes.unwrap_or(0).div_ceil(1 << 20) as usize
    });
    smallest.collect()
}

unsafe fn open_session(
    model: &OpenModel,
    gpt: Option<View<GptCreationParameters>>,
    ubatch: u32,
) -> Result<*mut CSession, Refusal> {
    let context = field!(gpt, GptCreationParameters.context, 1, 512);
    let type_k = field!(gpt, GptCreationParameters.type_k, 2, 1);
    let type_v = field!(gpt, GptCreationParameters.type_v, 2, 1);
    let config = SessionConfig {
        size: size_of::<SessionConfig>() as u32,
        context: u32::try_from(context)
            .map_err(|_| Refusal::invalid(format!("contextSize is {context}")))?,
        ubatch,
        flags: 0,
        type_k: kv_type(type_k, "cacheTypeK")?.as_ptr(),
        type_v: kv_type(type_v, "cacheTypeV")?.as_ptr(),
    };
    let mut session = std::ptr::null_mut();
    library(|error| pipeshard_session_open(model.0, &config, &mut session, error))?;
    Ok(session)
}

unsafe fn create(chain: *const Base) -> Result<*mut InferenceInstance, Refusal> {
    check(chain, "createInstance")?;
    let common = View::<CommonCreationParameters>::find(chain);
    let gpt = View::<GptCreationParameters>::find(chain);
    if common.is_none() || gpt.is_none() {
        return Err(Refusal::invalid(
            "createInstance: CommonCreationParameters and GPTCreationParameters have to be in the chain",
        ));
    }
    let files = HostFiles::of(chain)?;
    refuse_loras(field!(gpt, GptCreationParameters.lora_count, 3, 0))?;
    let sampling = Sampling::read(chain)?;
    let none = std::ptr::null();
    let guid = field!(common, CommonCreationParameters.model_guid, 1, none);
    let guid = text(guid, "modelGUID")?
        .ok_or_else(|| Refusal::invalid("modelGUID is not set: it names the model's folder"))?;
    let card = field!(common, CommonCreationParameters.model_card, 2, none);
    let card = text(card, "modelCardJSON")?;
    let found = match files {
        Some(_) => models::of_host(&guid, card.as_deref())?,
        None => models::find(&guid, &roots(common)?, card.as_deref())?,
    };
    let megabytes = field!(
        common,
        CommonCreationParameters.vram_budget_mb,
        1,
        usize::MAX
    );
    let asked = asked(chain)?;
    let runtime = View::<GptRuntimeParameters>::find(chain);
    let template = field!(runtime, GptRuntimeParameters.chat_template, 5, none);
    let template = text(template, "chatTemplate")?;
    let share = Share::take(&asked.device, budget_of(megabytes)?)?;
    let model = open_model(
        &share,
        &found,
        template.as_deref().or(found.chat_template.as_deref()),
        files,
    )?;
    let session = open_session(&model, gpt, asked.ubatch)?;
    let settings = Settings {
        max_tokens: field!(gpt, GptCreationParameters.max_tokens, 1, 200),
        seed: field!(gpt, GptCreationParameters.seed, 1, -1),
        sampling,
        streams: asked.streams,
        chat_template: template,
    };
    Ok(Instance::open(face::new(), session, share, settings))
}

pub unsafe extern "C" fn create_instance(
    parameters: *const Base,
    out: *mut *mut InferenceInstance,
) -> u32 {
    call(|| {
        let out = out.as_mut().ok_or_else(|| {
            Refusal::new(
                result::INVALID_PARAMETER,
                "createInstance: the pointer for the instance is null",
            )
        })?;
        *out = std::ptr::null_mut();
        let _one = instance::one_at_a_time();
        *out = create(parameters)?;
        Ok(())
    })
}
