//! `pipeshard-lab routing`: how many experts a prompt touches, layer by layer. What streaming experts costs depends on it.

use clap::Args;
use pipeshard_cli::habits::{self, llama_threads, threads, ModelFile, NoPrompt};
use pipeshard_sys as ffi;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void, CStr, CString};
use std::path::PathBuf;

/// Count the experts that prompts touch.
///
/// Runs stock llama.cpp on the CPU and looks at what the routers choose. A layer that only some of the tokens reach, as
/// the last one in most models, is left out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pipeshard-lab routing model.gguf --prompt-tokens 32,512\n  \
                  pipeshard-lab routing model.gguf --prompt-tokens 512 --text book.txt"
)]
pub struct RoutingArgs {
    #[command(flatten)]
    pub model: ModelFile,
    #[command(flatten)]
    pub no_prompt: NoPrompt,
    /// Prompt lengths in tokens
    #[arg(long = "prompt-tokens", value_delimiter = ',', default_value = "32,512", value_parser = habits::count)]
    pub prompts: Vec<u32>,
    /// Threads of the CPU [default: as llama.cpp, one per (performance) core]
    #[arg(short, long, value_parser = threads)]
    pub threads: Option<u32>,
    /// Take the prompts from the start of this file instead of random tokens
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Seed of random tokens
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What one prompt touched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Length of the prompt in tokens.
    pub prompt: u32,
    /// Distinct experts in each layer that has any.
    pub distinct: BTreeMap<u32, usize>,
    /// In each of these layers, the share of all choices that fell on the expert chosen most often.
    pub busiest: BTreeMap<u32, f64>,
}

/// How often each expert of each layer was chosen.
#[derive(Default)]
struct Choices(BTreeMap<u32, LayerChoices>);

#[derive(Default)]
struct LayerChoices {
    tokens: u32,
    counts: BTreeMap<i32, u64>,
}

impl LayerChoices {
    /// The experts that one token chose.
    fn add(&mut self, experts: &[i32]) {
        self.tokens += 1;
        for &expert in experts {
            *self.counts.entry(expert).or_default() += 1;
        }
    }

    fn busiest(&self) -> f64 {
        let all: u64 = self.counts.values().sum();
        let most = self.counts.values().max().copied().unwrap_or(0);
        most as f64 / all.max(1) as f64
    }
}

impl Choices {
    fn touched(&self, prompt: u32) -> Touched {
        let whole = || self.0.iter().filter(|(_, layer)| layer.tokens == prompt);
        Touched {
            prompt,
            distinct: whole().map(|(&l, c)| (l, c.counts.len())).collect(),
            busiest: whole().map(|(&l, c)| (l, c.busiest())).collect(),
        }
    }
}

/// The layer in the name of a tensor that holds the chosen experts.
fn layer_of_choice(name: &str) -> Option<u32> {
    name.strip_prefix("ffn_moe_topk-")?.parse().ok()
}

unsafe extern "C" fn look(tensor: *mut ffi::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    let name = CStr::from_ptr((*tensor).name.as_ptr()).to_string_lossy();
    let Some(layer) = layer_of_choice(&name) else {
        // no need to stop here; or nothing to see
        return !ask;
    };
    if ask {
        return true;
    }
    let choices = &mut *data.cast::<Choices>();
    let layer = choices.0.entry(layer).or_default();
    let (per_token, tokens) = ((*tensor).ne[0] as usize, (*tensor).ne[1] as usize);
    let mut row = vec![0_i32; per_token];
    for token in 0..tokens {
        ffi::ggml_backend_tensor_get(
            tensor,
            row.as_mut_ptr().cast(),
            token * (*tensor).nb[1],
            per_token * size_of::<i32>(),
        );
        layer.add(&row);
    }
    true
}

unsafe extern "C" fn quiet(level: ffi::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == ffi::GGML_LOG_LEVEL_ERROR || level == ffi::GGML_LOG_LEVEL_WARN {
        eprint!("{}", CStr::from_ptr(text).to_string_lossy());
    }
}

/// Counts in this process.
///
/// # Errors
/// A text for the user when the model cannot be loaded or run, or has no experts.
pub fn count(args: &RoutingArgs) -> Result<Vec<Touched>, String> {
    let name = args.model.display();
    let path = CString::new(args.model.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    let mut no_devices = [std::ptr::null_mut()];
    let text = match &args.text {
        Some(file) => Some(std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?),
        None => None,
    };
    let longest = args.prompts.iter().copied().max().unwrap_or(1);
    // SAFETY: llama.cpp's API with valid arguments, from one thread; `no_devices` outlives the load, `choices` outlives
    // each context that writes to it, and the model outlives its contexts.
    unsafe {
        ffi::llama_log_set(Some(quiet), std::ptr::null_mut());
        ffi::ggml_backend_load_all();
        ffi::llama_backend_init();
        let mut params = ffi::llama_model_default_params();
        params.devices = no_devices.as_mut_ptr();
        params.use_extra_bufts = false;
        let model = ffi::llama_model_load_from_file(path.as_ptr(), params);
        if model.is_null() {
            return Err(format!("{name} could not be loaded (see above)"));
        }
        let vocab = ffi::llama_model_get_vocab(model);
        let vocabulary = ffi::llama_vocab_n_tokens(vocab);
        let touched = args
            .prompts
            .iter()
            .map(|&prompt| {
                let mut choices = Choices::default();
                let mut params = ffi::llama_context_default_params();
                params.n_ctx = longest;
                params.n_batch = longest;
                params.n_threads = llama_threads(args.threads);
                params.n_threads_batch = llama_threads(args.threads);
                params.cb_eval = Some(look);
                params.cb_eval_user_data = std::ptr::from_mut(&mut choices).cast();
                let context = ffi::llama_init_from_model(model, params);
                if context.is_null() {
                    return Err("no context could be made (see above)".to_owned());
                }
                let mut tokens = match &text {
                    Some(text) => text_tokens(vocab, text, prompt)?,
                    None => random_tokens(args.seed, prompt, vocabulary),
                };
                let batch = ffi::llama_batch_get_one(tokens.as_mut_ptr(), prompt as i32);
                let code = ffi::llama_decode(context, batch);
                ffi::llama_synchronize(context);
                ffi::llama_free(context);
                if code != 0 {
                    return Err(format!("llama_decode failed with {code} (see above)"));
                }
                Ok(choices.touched(prompt))
            })
            .collect::<Result<Vec<_>, _>>();
        ffi::llama_model_free(model);
        let touched = touched?;
        if touched.iter().all(|one| one.distinct.is_empty()) {
            return Err(format!(
                "{name} has no experts: there is nothing to count. Give a mixture of experts"
            ));
        }
        Ok(touched)
    }
}

/// Runs the command.
///
/// # Errors
/// As [`count`].
pub fn run(args: &RoutingArgs) -> Result<(), String> {
    let touched = count(args)?;
    if args.json {
        let text = serde_json::to_string(&touched).map_err(|e| e.to_string())?;
        println!("{text}");
        return Ok(());
    }
    for one in &touched {
        println!("{}", told(one));
    }
    Ok(())
}

/// A few lines about one prompt.
fn told(touched: &Touched) -> String {
    let mut text = format!("{} tokens: distinct experts by layer", touched.prompt);
    for (index, (layer, count)) in touched.distinct.iter().enumerate() {
        text.push_str(if index % 8 == 0 { "\n " } else { "" });
        text.push_str(&format!(" {layer:>3}: {count:<4}"));
    }
    let counts = || touched.distinct.values();
    let mean = counts().sum::<usize>() as f64 / touched.distinct.len().max(1) as f64;
    let busiest = touched.busiest.values().fold(0.0, |a: f64, &b| a.max(b));
    text.push_str(&format!(
        "\n  mean {mean:.1}, fewest {}, most {}; busiest expert {:.1} % of a layer's choices",
        counts().min().unwrap_or(&0),
        counts().max().unwrap_or(&0),
        busiest * 100.0
    ));
    text
}

/// The first tokens of a text.
///
/// # Safety
/// `vocab` belongs to a loaded model.
unsafe fn text_tokens(
    vocab: *const ffi::llama_vocab,
    text: &[u8],
    count: u32,
) -> Result<Vec<i32>, String> {
    let length = i32::try_from(text.len()).map_err(|_| "the text is too long".to_owned())?;
    // a token for each byte, and one before the text
    let mut tokens = vec![0_i32; text.len() + 8];
    let room = i32::try_from(tokens.len()).map_err(|_| "the text is too long".to_owned())?;
    let start = text.as_ptr().cast();
    let found = ffi::llama_tokenize(vocab, start, length, tokens.as_mut_ptr(), room, true, false);
    let found = usize::try_from(found).unwrap_or(0);
    if found < count as usize {
        return Err(format!(
            "the text has {found} tokens, {count} are asked for. Give a longer text or a shorter --prompt-tokens"
        ));
    }
    tokens.truncate(count as usize);
    Ok(tokens)
}

/// Tokens that look like nothing in particular, the same for the same seed.
fn random_tokens(seed: u64, count: u32, vocabulary: i32) -> Vec<i32> {
    use rand::Rng;
    let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) << 1 | 1);
    let vocabulary = vocabulary.max(1) as u64;
    (0..count)
        .map(|_| ((rng.next_u64() >> 16) % vocabulary) as i32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_counted() {
        let mut choices = Choices::default();
        for (layer, experts) in [
            (0, [3, 1]),
            (0, [3, 5]),
            (2, [7, 0]),
            (2, [7, 0]),
            (3, [1, 2]),
        ] {
            choices.0.entry(layer).or_default().add(&experts);
        }
        let touched = choices.touched(2);
        // the last layer saw one token only
        assert_eq!(touched.distinct, BTreeMap::from([(0, 3), (2, 2)]));
        assert_eq!(touched.busiest, BTreeMap::from([(0, 0.5), (2, 0.5)]));
        let text = told(&touched);
        assert!(text.contains("mean 2.5, fewest 2, most 3"), "{text}");
    }

    #[test]
    fn names_of_choices() {
        assert_eq!(layer_of_choice("ffn_moe_topk-12"), Some(12));
        assert_eq!(layer_of_choice("ffn_moe_topk-12 (view)"), None);
        assert_eq!(layer_of_choice("ffn_moe_argsort-1"), None);
    }
}
