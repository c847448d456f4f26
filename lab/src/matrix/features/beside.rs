//! Contexts that are made, measured, used and freed while another thread generates.

use super::setups::case;
use crate::matrix::feature::{as_it_is, report_of_value, Failure, Feature, Need, Outcome, Stage};
use crate::matrix::models;
use pipeshard_llama::{largest, Batch, Context, ContextOptions, LlamaError, Model};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};

/// Contexts that are made during the generation.
const CONTEXTS: usize = 6;
/// Shapes that the arena takes at most for a context that comes, runs and goes: room for it, its plan, its tries, and back.
const SHAPES: u64 = 6;
/// Tokens that are generated, at least, after each step of the thread that makes contexts.
const BETWEEN: usize = 2;

/// All features of this family.
pub const FEATURES: &[Feature] = &[
    Feature {
        check: Some(little_is_moved),
        ..Feature::new(
            "contexts-beside",
            "contexts made and freed while another thread generates",
            as_it_is,
            &[case(on_one_model)],
        )
        .not_on_gpu()
    },
    Feature {
        check: Some(little_is_moved),
        ..Feature::new(
            "models-beside",
            "a second model loaded, used and freed while another thread generates",
            as_it_is,
            &[case(on_two_models)],
        )
        .needs(&[Need::Draft])
        .not_on_gpu()
    },
    // who measures gives its compute buffers back, and which of the threads takes the room depends on their order
    Feature {
        check: Some(little_is_moved),
        has_smallest: false,
        ..Feature::new(
            "measured-beside",
            "graphs measured again while another thread loads a second model and makes contexts",
            as_it_is,
            &[case(on_two_models_measured_again)],
        )
        .needs(&[Need::Draft])
        .not_on_gpu()
    },
];

/// The thread that generates: the same prompt and tokens again and again, each time compared with the first.
struct Generation<'a, 'm> {
    context: &'a mut Context<'m>,
    prompt: &'a [i32],
    /// Told of each token.
    tokens: Sender<()>,
    /// The other thread is done.
    over: &'a AtomicBool,
    /// Whether graphs are measured again before each prompt.
    measures: bool,
}

impl Generation<'_, '_> {
    fn run(self) -> Outcome<Vec<f32>> {
        let mut first: Option<Vec<f32>> = None;
        loop {
            let over = self.over.load(Ordering::SeqCst);
            if self.measures {
                // still without a control vector, but the graphs are measured again
                self.context.set_control_vector(&[], 0, 0)?;
            }
            let logits = conversation(self.context, self.prompt, || {
                // the other thread may have failed, which it says itself
                let _ = self.tokens.send(());
            })?;
            match &first {
                None => first = Some(logits),
                Some(first) if bits(first) == bits(&logits) => {}
                Some(_) => return failed("the thread that generates got other logits than before"),
            }
            if let (true, Some(first)) = (over, &mut first) {
                return Ok(std::mem::take(first));
            }
        }
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn failed<T>(why: &str) -> Outcome<T> {
    Err(Failure::Failed(why.to_string()))
}

/// A prompt and some tokens: all logits, one after the other. `token` is called after each.
fn conversation(
    context: &mut Context<'_>,
    prompt: &[i32],
    token: impl Fn(),
) -> Result<Vec<f32>, LlamaError> {
    let mut all = Vec::new();
    context.clear();
    context.decode(&mut Batch::of(0, 0, prompt))?;
    all.extend_from_slice(context.logits(-1)?);
    for i in 0..6 {
        let next = largest(context.logits(-1)?);
        let at = prompt.len() as i32 + i;
        context.decode(&mut Batch::of(0, at, &[next]))?;
        all.extend_from_slice(context.logits(-1)?);
        token();
    }
    Ok(all)
}

/// Options of the contexts that come and go: like the one that generates, longer, and wider than was estimated for it.
fn options(base: &ContextOptions, number: usize) -> ContextOptions {
    let mut options = base.clone();
    match number % 3 {
        0 => {}
        1 => {
            options.ctx = base.ctx * 4;
            options.outputs = 1;
        }
        _ => {
            options.ctx = base.ctx * 2;
            options.sequences = 4;
            options.ubatch = base.batch;
        }
    }
    options
}

/// Waits until the other thread has generated some tokens from now on.
fn let_generate(tokens: &Receiver<()>) -> Outcome {
    while tokens.try_recv().is_ok() {}
    for _ in 0..BETWEEN {
        if tokens.recv().is_err() {
            return failed("the thread that generates ended early");
        }
    }
    Ok(())
}

/// Makes contexts one after the other, with tokens of the other thread between all steps; and what they gave.
fn come_and_go(stage: &Stage, model: &Model, tokens: &Receiver<()>) -> Outcome<Vec<f32>> {
    let mut all = Vec::new();
    for number in 0..CONTEXTS {
        let_generate(tokens)?;
        let mut context = Context::new(model, &options(&stage.setup.context, number))?;
        let_generate(tokens)?;
        let prompt = stage.tokens(model, 130 + number as u64, 34);
        all.extend(conversation(&mut context, &prompt, || ())?);
        let_generate(tokens)?;
    }
    Ok(all)
}

/// Runs `steps` while another thread generates, and notes what both gave.
fn beside(
    stage: &mut Stage,
    measures: bool,
    steps: impl FnOnce(&Stage, &Model, &Receiver<()>) -> Outcome<Vec<f32>>,
) -> Outcome {
    let model = stage.load()?;
    let mut context = stage.context(&model)?;
    let prompt = stage.tokens(&model, 129, 45);
    let over = AtomicBool::new(false);
    let (sender, tokens) = channel();
    let generation = Generation {
        context: &mut context,
        prompt: &prompt,
        tokens: sender,
        over: &over,
        measures,
    };
    let (generated, made) = std::thread::scope(|scope| {
        let generating = scope.spawn(|| generation.run());
        let made = steps(stage, &model, &tokens);
        over.store(true, Ordering::SeqCst);
        (generating.join(), made)
    });
    let generated = match generated {
        Ok(generated) => generated?,
        Err(_) => return failed("the thread that generates panicked"),
    };
    stage.note_floats("the thread that generates", &generated);
    stage.note_floats("contexts that came and went", &made?);
    Ok(())
}

fn on_one_model(stage: &mut Stage) -> Outcome {
    beside(stage, false, come_and_go)
}

fn on_two_models(stage: &mut Stage) -> Outcome {
    two_models(stage, false)
}

fn on_two_models_measured_again(stage: &mut Stage) -> Outcome {
    two_models(stage, true)
}

fn two_models(stage: &mut Stage, measures: bool) -> Outcome {
    beside(stage, measures, |stage, _, tokens| {
        let mut all = Vec::new();
        for _ in 0..2 {
            let_generate(tokens)?;
            let other = stage.load_from(&models::draft(&stage.model_path))?;
            all.extend(come_and_go(stage, &other, tokens)?);
            drop(other);
            let_generate(tokens)?;
        }
        Ok(all)
    })
}

/// The arena takes another shape a few times per context and not per layer or token, and uploads no more than that explains.
fn little_is_moved(evidence: &serde_json::Value) -> Result<(), String> {
    let report = report_of_value(&evidence["report"])?;
    let shapes = SHAPES * (report.contexts + report.models);
    if report.recarvings > shapes {
        return Err(format!(
            "the arena took another shape {} times for {} contexts",
            report.recarvings, report.contexts
        ));
    }
    let most = (shapes + 1) * report.peak.resident;
    if report.bytes_uploaded > most {
        return Err(format!(
            "{} bytes were uploaded, where {most} would do",
            report.bytes_uploaded
        ));
    }
    Ok(())
}
