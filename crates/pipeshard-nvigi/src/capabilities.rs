//! What a host is told before it creates anything: models, and that samplers can be set.

use crate::abi::{
    result, Base, CommonCapabilities, CommonCreationParameters, GptSamplerParameters, Struct,
};
use crate::boundary::c_text;
use crate::chain::{check, field, text, View};
use crate::creation::{roots, smallest_budgets};
use crate::host_files::HostFiles;
use crate::instance;
use crate::locks::locked;
use crate::models;
use crate::refusal::{call, note, Refusal};
use std::ffi::{c_char, CString};
use std::sync::Mutex;

/// CPU and GPU.
const BACKENDS: u32 = 1 | 2;

/// An answer, with what it points to. It stays until Deregister: hosts may have kept the pointer.
struct Answer {
    _texts: Vec<CString>,
    _guids: Vec<*const c_char>,
    _names: Vec<*const c_char>,
    _budgets: Vec<usize>,
    _flags: Vec<u32>,
    _samplers: Box<GptSamplerParameters>,
    common: Box<CommonCapabilities>,
}

// SAFETY: never written after it was made.
unsafe impl Send for Answer {}

static ANSWERS: Mutex<Vec<Answer>> = Mutex::new(Vec::new());

/// Frees all answers.
pub fn forget() {
    *locked(&ANSWERS) = Vec::new();
}

fn answer(found: &[models::Found], budgets: Vec<usize>) -> Answer {
    let texts: Vec<CString> = found
        .iter()
        .flat_map(|model| [c_text(&model.guid), c_text(&model.name)])
        .collect();
    let guids: Vec<*const c_char> = texts.iter().step_by(2).map(|t| t.as_ptr()).collect();
    let names: Vec<*const c_char> = texts
        .iter()
        .skip(1)
        .step_by(2)
        .map(|t| t.as_ptr())
        .collect();
    let flags = vec![0; found.len()];
    let samplers = Box::new(GptSamplerParameters::usual());
    let mut base = Base::new(CommonCapabilities::UID, CommonCapabilities::VERSION);
    base.next = std::ptr::from_ref(&*samplers).cast();
    Answer {
        common: Box::new(CommonCapabilities {
            base,
            count: found.len(),
            guids: guids.as_ptr(),
            names: names.as_ptr(),
            budgets_mb: budgets.as_ptr(),
            backends: BACKENDS,
            flags: flags.as_ptr(),
        }),
        _texts: texts,
        _guids: guids,
        _names: names,
        _budgets: budgets,
        _flags: flags,
        _samplers: samplers,
    }
}

pub unsafe extern "C" fn get_capabilities(out: *mut *const Base, parameters: *const Base) -> u32 {
    call(|| {
        let out = out.as_mut().ok_or_else(|| {
            Refusal::invalid("getCapsAndRequirements: the pointer for the answer is null")
        })?;
        *out = std::ptr::null();
        check(parameters, "getCapsAndRequirements")?;
        let common = View::<CommonCreationParameters>::find(parameters);
        if common.is_none() {
            return Err(Refusal::invalid(
                "getCapsAndRequirements: CommonCreationParameters is not in the chain",
            ));
        }
        let guid = field!(
            common,
            CommonCreationParameters.model_guid,
            1,
            std::ptr::null()
        );
        let card = field!(
            common,
            CommonCreationParameters.model_card,
            2,
            std::ptr::null()
        );
        let card = text(card, "modelCardJSON")?;
        let guid = text(guid, "modelGUID")?;
        let by_host = HostFiles::of(parameters)?.is_some();
        let roots = match by_host {
            true => Vec::new(),
            false => roots(common)?,
        };
        let found = match guid {
            Some(guid) if by_host => vec![models::of_host(&guid, card.as_deref())?],
            Some(guid) => vec![models::find(&guid, &roots, card.as_deref())?],
            None => {
                let guids = models::guids(&roots);
                let all = guids.iter().map(|guid| models::find(guid, &roots, None));
                // one that cannot be used hides no other
                all.filter_map(|found| found.inspect_err(note).ok())
                    .collect()
            }
        };
        if found.is_empty() {
            return Err(Refusal::new(
                result::NOT_FOUND,
                format!("there is no model in {}", roots.join(" or ")),
            ));
        }
        let _one = instance::one_at_a_time();
        let smallest = match by_host {
            // a header is read by its path
            true => vec![0; found.len()],
            false => smallest_budgets(parameters, &found),
        };
        let answer = answer(&found, smallest);
        *out = std::ptr::from_ref(&*answer.common).cast();
        let mut answers = locked(&ANSWERS);
        answers.push(answer);
        Ok(())
    })
}
