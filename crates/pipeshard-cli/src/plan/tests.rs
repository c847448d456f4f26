//! What the command answers, and what it says where it cannot.

use super::*;
use clap::Parser;
use pipeshard_model::test_support as models;
use pipeshard_plan::plan::Plan;

#[derive(Debug, Parser)]
struct Tool {
    #[command(flatten)]
    args: PlanArgs,
}

fn args(line: &str) -> Result<PlanArgs, clap::Error> {
    // whatever was measured on the machine that runs the tests
    let machine = match line.contains("--profile") || line.contains("--sim") {
        true => "",
        false => "--profile assumed",
    };
    let words = ["plan"].into_iter().chain(line.split_whitespace());
    let words = words.chain(machine.split_whitespace());
    Tool::try_parse_from(words).map(|tool| tool.args)
}

fn shown(inventory: &Inventory, line: &str) -> Result<String, PlanCommandError> {
    let args = args(line).unwrap();
    let text = match args.map {
        true => map::render(inventory, &args)?,
        false => render(&answered(inventory, &args)?, &args)?,
    };
    Ok(anstream::adapter::strip_str(&text).to_string())
}

#[test]
fn a_dense_model() {
    let line = "m.gguf --vram 40M --ctx 1000 --ubatch 64 --granularity 64K";
    insta::assert_snapshot!(shown(&models::dense(), line).unwrap());
}

#[test]
fn a_mixture_with_several_sequences() {
    let line = "m.gguf --vram 20M --ctx 2048 --parallel 4 --ubatch 64 --granularity 64K --details";
    insta::assert_snapshot!(shown(&models::moe(), line).unwrap());
}

#[test]
fn another_machine() {
    let line = "m.gguf --vram 30M --ctx 1024 --ubatch 64 --granularity 64K --reserve 0 \
                --profile laptop-12g --what-if pcie=6G,vram=20M";
    insta::assert_snapshot!(shown(&models::dense(), line).unwrap());
}

#[test]
fn a_map() {
    let line = "m.gguf --map --profile desktop-16g --reserve 0";
    insta::assert_snapshot!(shown(&models::moe(), line).unwrap());
}

#[test]
fn why_this_plan() {
    let line =
        "m.gguf --vram 24M --ctx 2048 --granularity 64K --explain --profile laptop-12g --reserve 0";
    let text = shown(&models::moe(), line).unwrap();
    let explained = text.find("Best plan for each ubatch").unwrap();
    insta::assert_snapshot!(&text[explained..]);
    assert!(
        text.lines().all(|line| line.chars().count() <= 96),
        "{text}"
    );
}

#[test]
fn what_was_tried_as_json() {
    let json = |flags: &str| {
        let line = format!("m.gguf --vram 24M --ctx 2048 --granularity 64K --json {flags}");
        let text = shown(&models::moe(), &line).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(json("").get("explanation"), None);
    let explained = &json("--explain")["explanation"];
    let best = explained["ubatches"].as_array().unwrap().iter();
    let least = best
        .map(|best| best["score"].as_f64().unwrap())
        .fold(f64::INFINITY, f64::min);
    let chosen = explained["chosen"]["score"].as_f64().unwrap();
    assert!(chosen <= least * 1.005, "{explained}");
    let priced = |tried: &serde_json::Value| tried["priced"].as_u64().unwrap();
    let tried: u64 = explained["tried"]
        .as_array()
        .unwrap()
        .iter()
        .map(priced)
        .sum();
    assert!(tried > 10 && tried <= explained["priced"].as_u64().unwrap());
}

#[test]
fn a_head_on_the_device_is_taken_only_where_its_score_is_better() {
    // a head that fits, but whose logits take room from everything else
    let mut on_host = 0;
    for vram in (24..64).step_by(4) {
        let line =
            format!("m.gguf --vram {vram}M --ctx 2048 --outputs 0 --granularity 64K --explain");
        let answer = answered(&models::moe(), &args(&line).unwrap()).unwrap();
        let explained = answer.explanation.unwrap();
        let (chosen, all) = (explained.chosen, &explained.ubatches);
        let least = all
            .iter()
            .map(|best| best.score)
            .fold(f64::INFINITY, f64::min);
        assert!(chosen.score <= least * 1.005, "{vram}: {explained:?}");
        let both = all.iter().any(|best| !best.output_on_host);
        on_host += u32::from(both && chosen.output_on_host);
    }
    assert!(on_host > 0);
}

#[test]
fn what_runs_of_a_model_have_shown_counts_for_it_alone() {
    use pipeshard_plan::profile::{model_label, Learned, Profile};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile.json");
    let mut profile = Profile::assumed();
    profile.learn(Learned {
        model: model_label(&models::dense()),
        cpu: 3.0,
        link_during_cpu: None,
        passes: 1 << 20,
    });
    std::fs::write(&file, serde_json::to_vec(&profile).unwrap()).unwrap();
    let line = |profile: &str| {
        format!("m.gguf --vram 40M --ctx 1000 --ubatch 64 --granularity 64K --profile {profile}")
    };
    let told = |inventory: &Inventory, profile: &str| {
        let args = args(&line(profile)).unwrap();
        let answer = answered(inventory, &args).unwrap();
        (answer.profile.note.clone(), answer.prediction.tps)
    };
    let taught = file.display().to_string();
    let (note, tps) = told(&models::dense(), &taught);
    let shows = "CPU slowdown factor from 1048576 passes of this model: 3.00.";
    assert!(note.ends_with(shows), "{note}");
    assert!(tps < told(&models::dense(), "assumed").1);
    let (note, tps) = told(&models::moe(), &taught);
    assert!(!note.contains("passes of this model"), "{note}");
    assert_eq!(tps, told(&models::moe(), "assumed").1);
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    for model in [models::dense(), models::moe()] {
        for vram in ["12M", "20M", "40M", "2G"] {
            let line =
                format!("m.gguf --vram {vram} --ctx 512 --ubatch 32 --granularity 64K --details");
            let text = shown(&model, &line).unwrap();
            assert!(
                text.lines().all(|line| line.chars().count() <= 96),
                "{text}"
            );
        }
    }
}

#[test]
fn colours_are_escape_sequences_and_nothing_else() {
    let asked = answered(
        &models::dense(),
        &args("m.gguf --vram 40M --ctx 512").unwrap(),
    );
    let text = text::render(&asked.unwrap());
    assert!(text.contains("\u{1b}["));
    let plain = anstream::adapter::strip_str(&text).to_string();
    assert!(!plain.contains('\u{1b}'));
}

#[test]
fn prints_json() {
    let line = "m.gguf --vram 40M -c 1024 --cache-type-k q8_0 --what-if vram=30M --json";
    let text = shown(&models::moe(), line).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["context"], 1024);
    assert_eq!(json["cache_type_k"], "q8_0");
    assert_eq!(json["plan"]["budget"], 40 << 20);
    assert_eq!(json["plan"]["scratch_estimated"], true);
    assert_eq!(json["profile"]["origin"], "stated");
    assert_eq!(json["alternative"]["budget"], 30 << 20);
    assert!(json["prediction"]["tps"].as_f64().unwrap() > 0.0);
    assert_eq!(json["budgets"].as_array().unwrap().len(), 3);
    let plan: Plan = serde_json::from_value(json["plan"].clone()).unwrap();
    assert!(plan.ledger.total() <= plan.budget);
}

#[test]
fn the_context_defaults_to_the_models() {
    let asked = |line: &str| answered(&models::dense(), &args(line).unwrap()).unwrap();
    assert_eq!(asked("m.gguf --vram 1G").context, 4096);
    assert_eq!(asked("m.gguf --vram 1G --ctx-size 1000").context, 1024);
    let mut silent = models::dense();
    silent.context_length = 0;
    let error = shown(&silent, "m.gguf --vram 1G").unwrap_err();
    assert!(error.to_string().contains("--ctx 4096"));
}

#[test]
fn prompt_and_answer_fit_the_context() {
    let workload = |line: &str| {
        let args = args(&format!("m.gguf --vram 1G {line}")).unwrap();
        answered(&models::dense(), &args).unwrap().workload
    };
    assert_eq!(workload("").prompt, 3072);
    assert_eq!(workload("--ctx 1024 --parallel 4").prompt, 192);
    assert_eq!(workload("--ctx 65536").prompt, 16384);
    assert_eq!(workload("--ctx 1024 --prompt-tokens 1000").generated, 24);
    let long = shown(
        &models::dense(),
        "m.gguf --vram 1G --ctx 1024 --prompt-tokens 1024",
    );
    assert!(long
        .unwrap_err()
        .to_string()
        .contains("smaller --prompt-tokens"));
}

#[test]
fn a_real_card_keeps_some_memory_for_itself() {
    let reserve = |line: &str| {
        let args = args(&format!("m.gguf --vram 2G --ctx 512 {line}")).unwrap();
        let asked = answered(&models::dense(), &args).unwrap();
        asked.plan.ledger.reserve
    };
    // a buffer to measure graphs with, as small as the driver allows
    assert_eq!(reserve(""), 2 << 20);
    assert!(reserve("--profile laptop-12g") > 64 << 20);
    assert_eq!(reserve("--profile laptop-12g --reserve 3M"), 5 << 20);
}

#[test]
fn a_workload_can_be_said_in_one_word() {
    let workload = |line: &str| {
        let args = args(&format!("m.gguf --vram 1G --ctx 4096 {line}")).unwrap();
        answered(&models::dense(), &args).unwrap().workload
    };
    let said = workload("--workload prompt=2K,generate=512");
    assert_eq!((said.prompt, said.generated), (2048, 512));
    let apart = workload("--prompt-tokens 2048 --generate 512");
    assert_eq!(said, apart);
    assert_eq!(workload("--workload generate=7").prompt, 3072);
    // sequences that share a cache are not taken to be computed side by side
    assert_eq!(workload("--parallel 4").sequences, 4);
    assert_eq!(workload("--parallel 4 --kv-unified").sequences, 1);
    let why = args("m.gguf --vram 1G --workload 2K")
        .unwrap_err()
        .to_string();
    assert!(why.contains("no workload"), "{why}");
    assert!(args("m.gguf --vram 1G --workload prompt=1 --prompt-tokens 2").is_err());
}

#[test]
fn a_simulated_gpu_is_planned_for_as_it_is() {
    let line = "m.gguf --ctx 512 -t 3 --sim vram=48M,pcie=4G,granularity=4K --explain";
    let asked = answered(&models::dense(), &args(line).unwrap()).unwrap();
    assert_eq!(asked.plan.budget, 48 << 20);
    assert_eq!(asked.plan.ledger.reserve, 4 << 10);
    assert_eq!(asked.profile.key.threads, 3);
    assert!(asked.profile.note.contains("simulated GPU"));
}

#[test]
fn what_is_saved_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.json");
    let line = format!(
        "m.gguf --vram 30M --ctx 512 --parallel 2 --cache-type-v q8_0 --save {}",
        file.display()
    );
    let args = args(&line).unwrap();
    let asked = answered(&models::moe(), &args).unwrap();
    save(&models::moe(), &args, &asked, &file).unwrap();
    let saved = SavedPlan::from_json(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved.plan, asked.plan);
    assert_eq!((saved.settings.context, saved.settings.parallel), (512, 2));
    let text = render(&asked, &args).unwrap();
    assert!(text.contains("-c 512 -ub 512 -ctv q8_0 -np 2"), "{text}");
    let nowhere = folder.path().join("no/such/folder");
    let error = save(&models::moe(), &args, &asked, &nowhere).unwrap_err();
    assert!(error.to_string().contains("cannot write the plan"));
}

#[test]
fn the_minimum_that_is_named_works() {
    for model in [models::dense(), models::moe()] {
        let error = shown(&model, "m.gguf --vram 1M --ctx 1024").unwrap_err();
        let PlanCommandError::Plan(PlanError::BudgetTooSmall { minimum, .. }) = error else {
            panic!("{error}");
        };
        let named = ByteSize(minimum).to_flag();
        shown(&model, &format!("m.gguf --vram {named} --ctx 1024")).unwrap();
        shown(&model, &format!("m.gguf --vram {} --ctx 1024", minimum - 1)).unwrap_err();
    }
}

#[test]
fn bad_arguments_are_explained() {
    for (line, part) in [
        ("m.gguf --vram 4X", "invalid size '4X'"),
        (
            "m.gguf --vram 1G --cache-type-k q2_K",
            "use one of f32, f16",
        ),
        ("m.gguf --vram 1G --ubatch 0", "must be 1 or more"),
        ("m.gguf --vram 1G --parallel 0", "must be 1 or more"),
        ("m.gguf --vram 1G --granularity 0", "multiples of zero"),
        ("m.gguf --map --json", "cannot be used with"),
        ("--vram 1G", "<MODEL>"),
    ] {
        let message = args(line).unwrap_err().to_string();
        assert!(message.contains(part), "{line}: {message}");
    }
    for (line, part) in [
        ("m.gguf", "give a budget, for example --vram 4G"),
        ("m.gguf --sim vram=0", "--sim: "),
        ("m.gguf --vram 1G --what-if pci=3G", "--what-if: 'pci'"),
        (
            "m.gguf --vram 1G --profile no/such/file",
            "--profile: the profile no/such/file cannot",
        ),
    ] {
        let message = shown(&models::dense(), line).unwrap_err().to_string();
        assert!(message.contains(part), "{line}: {message}");
    }
}

#[test]
fn a_model_that_is_missing_is_an_error() {
    let args = args("no/such/model.gguf --vram 1G").unwrap();
    let error = run(args).unwrap_err();
    assert!(error.to_string().contains("no/such/model.gguf"), "{error}");
}
