//! What a feature is, and what its scenario has to work with.

use pipeshard::report::Report;
use pipeshard_llama::{
    largest, random_tokens, Batch, Context, ContextOptions, Fingerprint, Library, LlamaError,
    Model, ModelOptions,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Why a scenario did not finish.
#[derive(Debug)]
pub enum Failure {
    /// llama.cpp cannot do this with this model, by its own account.
    Unsupported(String),
    /// Something went wrong.
    Failed(String),
}

impl From<LlamaError> for Failure {
    fn from(error: LlamaError) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

/// The result of a scenario's step.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Who runs a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// pipeshard at the case's budget.
    Case,
    /// pipeshard with room for everything.
    Roomy,
    /// Stock llama.cpp.
    Stock,
}

/// One process of a scenario. In the reference all of them are stock llama.cpp's.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Who runs it.
    pub side: Side,
    /// What it does.
    pub run: fn(&mut Stage) -> Outcome,
}

/// Files that a feature needs in addition to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// LoRA adapters of several ranks.
    Loras,
    /// The model in several files.
    Parts,
    /// A smaller model with the same vocabulary.
    Draft,
}

/// A check of what pipeshard says about a step (`units`, `report`); an error says what is wrong.
pub type Check = fn(&serde_json::Value) -> Result<(), String>;

/// Something that llama.cpp offers, as a scenario.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// Short name, for the names of cases.
    pub name: &'static str,
    /// What users call it.
    pub title: &'static str,
    /// How model and context are made.
    pub setup: fn(&mut Setup),
    /// The processes, in order.
    pub steps: &'static [Step],
    /// Files in addition to the model.
    pub needs: &'static [Need],
    /// How often the scenario is to be repeated in its process, where it repeats anything.
    pub repeats: u32,
    /// Stock llama.cpp at the same placement on a real GPU is a reference for it.
    pub comparable_on_gpu: bool,
    /// Some operations see 32 rows or more.
    pub has_prompts: bool,
    /// Layers of the cache may be on the host.
    pub has_kv: bool,
    /// The smallest budget is the same in every run: not so where it depends on which of two threads is first.
    pub has_smallest: bool,
    /// Checks beyond the common ones.
    pub check: Option<Check>,
}

impl Feature {
    /// A feature of one step.
    pub const fn new(
        name: &'static str,
        title: &'static str,
        setup: fn(&mut Setup),
        steps: &'static [Step],
    ) -> Self {
        Feature {
            name,
            title,
            setup,
            steps,
            needs: &[],
            repeats: 1,
            comparable_on_gpu: true,
            has_prompts: true,
            has_kv: true,
            has_smallest: true,
            check: None,
        }
    }

    /// With further files.
    pub const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// A scenario that stock llama.cpp on a GPU cannot follow with the same placement.
    pub const fn not_on_gpu(mut self) -> Self {
        self.comparable_on_gpu = false;
        self
    }
}

/// How model and context are made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The model.
    pub model: ModelOptions,
    /// The context.
    pub context: ContextOptions,
}

/// Changes nothing.
pub fn as_it_is(_: &mut Setup) {}

/// What one step of a scenario saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// What it is of.
    pub what: String,
    /// Tokens that were chosen.
    pub tokens: Vec<i32>,
    /// Hash of all bits.
    pub hash: String,
}

/// What a scenario's step has to work with.
pub struct Stage {
    /// How model and context are made.
    pub setup: Setup,
    /// The model's file.
    pub model_path: PathBuf,
    /// A folder that the steps of one scenario share.
    pub folder: PathBuf,
    /// How often to repeat, where the scenario repeats anything.
    pub repeats: u32,
    /// libpipeshard.
    pub library: Library,
    /// What was seen so far.
    pub seen: Vec<Observation>,
    /// The latest report while a model was loaded.
    pub report: Option<serde_json::Value>,
    /// The units of the loaded weights.
    pub units: Option<serde_json::Value>,
}

impl Stage {
    /// Loads the model.
    pub fn load(&self) -> Outcome<Model> {
        self.load_from(&self.model_path)
    }

    /// Loads another file with the same options.
    pub fn load_from(&self, path: &Path) -> Outcome<Model> {
        Ok(Model::load(path, &self.setup.model)?)
    }

    /// Makes a context.
    pub fn context<'m>(&self, model: &'m Model) -> Outcome<Context<'m>> {
        Ok(Context::new(model, &self.setup.context)?)
    }

    /// Random tokens of the model's vocabulary.
    pub fn tokens(&self, model: &Model, seed: u64, count: u32) -> Vec<i32> {
        random_tokens(seed, count, model.vocabulary())
    }

    fn keep(&mut self, what: String, tokens: Vec<i32>, hash: Fingerprint) {
        self.seen.push(Observation {
            what,
            tokens,
            hash: hash.hex(),
        });
        self.report = self.library.report();
        self.units = self.library.units();
    }

    /// Notes bytes.
    pub fn note_bytes(&mut self, what: impl Into<String>, bytes: &[u8]) {
        let mut hash = Fingerprint::default();
        hash.bytes(bytes);
        self.keep(what.into(), Vec::new(), hash);
    }

    /// Notes tokens.
    pub fn note_tokens(&mut self, what: impl Into<String>, tokens: Vec<i32>) {
        self.keep(what.into(), tokens, Fingerprint::default());
    }

    /// Notes floats.
    pub fn note_floats(&mut self, what: impl Into<String>, floats: &[f32]) {
        let mut hash = Fingerprint::default();
        hash.floats(floats);
        self.keep(what.into(), Vec::new(), hash);
    }

    /// Evaluates a batch and notes all logits that it wants. Returns the likeliest token for each.
    pub fn decode(
        &mut self,
        what: impl Into<String>,
        context: &mut Context<'_>,
        mut batch: Batch,
    ) -> Outcome<Vec<i32>> {
        context.decode(&mut batch)?;
        self.note_logits(what, context, &batch)
    }

    /// Notes all logits that an evaluated batch wanted. Returns the likeliest token for each.
    pub fn note_logits(
        &mut self,
        what: impl Into<String>,
        context: &Context<'_>,
        batch: &Batch,
    ) -> Outcome<Vec<i32>> {
        let mut hash = Fingerprint::default();
        let mut tokens = Vec::new();
        for index in batch.wanted() {
            let logits = context.logits(index)?;
            hash.floats(logits);
            tokens.push(largest(logits));
        }
        self.keep(what.into(), tokens.clone(), hash);
        Ok(tokens)
    }

    /// Evaluates a sequence's tokens from position `from` on, in batches of the context's size, and notes the last one's
    /// logits. Returns the token that follows.
    pub fn prompt(
        &mut self,
        what: &str,
        context: &mut Context<'_>,
        sequence: i32,
        from: i32,
        tokens: &[i32],
    ) -> Outcome<i32> {
        let most = self.setup.context.batch as usize;
        let mut at = from;
        let mut next = 0;
        for part in tokens.chunks(most) {
            let last = at + part.len() as i32 == from + tokens.len() as i32;
            let mut batch = Batch::of(sequence, at, part);
            match last {
                true => next = self.decode(what, context, batch)?[0],
                false => context.decode(&mut batch)?,
            }
            at += part.len() as i32;
        }
        Ok(next)
    }

    /// Generates `count` tokens greedily from `first` at position `from`. Returns the token after the last.
    pub fn generate(
        &mut self,
        what: &str,
        context: &mut Context<'_>,
        sequence: i32,
        from: i32,
        first: i32,
        count: i32,
    ) -> Outcome<i32> {
        let mut next = first;
        for i in 0..count {
            let batch = Batch::of(sequence, from + i, &[next]);
            next = self.decode(format!("{what}, token {i}"), context, batch)?[0];
        }
        Ok(next)
    }
}

/// A report of its JSON.
///
/// # Errors
/// It is none of this build.
pub fn report_of_value(value: &serde_json::Value) -> Result<Report, String> {
    Report::deserialize(value).map_err(|e| format!("the report cannot be read: {e}"))
}
