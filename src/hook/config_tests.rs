//! What the environment may say.

use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_lookup(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_string()))
}

#[test]
fn nothing_set_means_off() {
    let config = read(&[]).unwrap();
    assert!(!config.attach && config.budget.is_none() && config.sim.is_none());
}

#[test]
fn reads_what_the_flags_set() {
    let config = read(&[
        ("LLAMA_ARG_PIPESHARD", "1"),
        ("LLAMA_ARG_PIPESHARD_VRAM", "40M"),
    ])
    .unwrap();
    assert!(config.attach);
    assert_eq!(config.budget, Some(40 << 20));
    assert_eq!((config.trace, config.trace_passes), (None, TRACE_PASSES));
    let config = read(&[
        ("LLAMA_ARG_PIPESHARD_TRACE", "trace.json"),
        ("LLAMA_ARG_PIPESHARD_TRACE_PASSES", "3"),
    ])
    .unwrap();
    assert_eq!(config.trace, Some(PathBuf::from("trace.json")));
    assert_eq!(config.trace_passes, 3);
}

#[test]
fn values_of_files_for_containers_are_understood() {
    let attached = |value| read(&[("LLAMA_ARG_PIPESHARD", value)]).map(|c| c.attach);
    for value in ["1", "True", "TRUE", "on", "ON", "Yes", "y", "Enabled"] {
        assert!(attached(value).unwrap(), "{value}");
    }
    for value in ["0", "False", "off", "No", "disabled"] {
        assert!(!attached(value).unwrap(), "{value}");
    }
    let why = attached("maybe").unwrap_err().to_string();
    assert!(
        why.contains("LLAMA_ARG_PIPESHARD: invalid value 'maybe'"),
        "{why}"
    );
}

#[test]
fn a_budget_alone_turns_it_on_unless_it_is_turned_off() {
    let vram = ("LLAMA_ARG_PIPESHARD_VRAM", "1G");
    assert!(read(&[vram]).unwrap().attach);
    assert!(
        !read(&[vram, ("LLAMA_ARG_PIPESHARD", "off")])
            .unwrap()
            .attach
    );
    assert!(
        !read(&[("LLAMA_ARG_PIPESHARD_SIM", "vram=1G")])
            .unwrap()
            .attach
    );
}

#[test]
fn a_model_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, b"GGUF\x03").unwrap();
    let text = path.display().to_string();
    let config = read(&[("LLAMA_ARG_PIPESHARD_REPORT", &text)]).unwrap();
    let why = config.check_outputs().unwrap_err().to_string();
    assert!(
        why.contains("--pipeshard-report") && why.contains(&text),
        "{why}"
    );
    std::fs::write(&path, b"{}").unwrap();
    config.check_outputs().unwrap();
}

#[test]
fn says_which_setting_is_wrong() {
    let error = read(&[("LLAMA_ARG_PIPESHARD_VRAM", "lots")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--pipeshard-vram") && error.contains("lots"),
        "{error}"
    );
    let error = read(&[("LLAMA_ARG_PIPESHARD_SIM", "vram=")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("--pipeshard-sim"), "{error}");
    let error = read(&[("LLAMA_ARG_PIPESHARD_TRACE_PASSES", "-3")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("'-3'"), "{error}");
    let error = read(&[("PIPESHARD_DEBUG_DROP_WAIT", "all")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("'all'"), "{error}");
}

#[test]
fn switches_for_tests_are_no_part_of_a_release() {
    let check = |hooks, name: &str| {
        let names = ["PATH", name].map(str::to_owned);
        check_switches(hooks, names.into_iter()).map_err(|e| e.to_string())
    };
    assert_eq!(check(false, "PIPESHARD_RESERVE"), Ok(()));
    assert_eq!(check(true, "PIPESHARD_DEBUG_DROP_WAIT"), Ok(()));
    let refused = check(false, "PIPESHARD_DEBUG_DROP_WAIT").unwrap_err();
    assert!(refused.contains("PIPESHARD_DEBUG_DROP_WAIT is a switch for tests"));
    let unknown = check(true, "PIPESHARD_DEBUG_DROP_WAITS").unwrap_err();
    assert!(unknown.contains("unknown switch PIPESHARD_DEBUG_DROP_WAITS"));
}

#[test]
fn a_workload_and_a_place_for_plans_are_read() {
    let config = read(&[]).unwrap();
    assert_eq!(config.workload, StatedWorkload::default());
    assert_eq!(config.plan_cache, Place::Usual);
    let config = read(&[
        ("LLAMA_ARG_PIPESHARD_WORKLOAD", "prompt=2K,generate=512"),
        ("PIPESHARD_PLAN_CACHE", "off"),
    ])
    .unwrap();
    assert_eq!(config.workload.prompt, Some(2048));
    assert_eq!(config.plan_cache, Place::Off);
    let why = read(&[("LLAMA_ARG_PIPESHARD_WORKLOAD", "2K")]).unwrap_err();
    let why = why.to_string();
    assert!(
        why.starts_with("LLAMA_ARG_PIPESHARD_WORKLOAD: '2K' is no workload")
            && why.contains("prompt=2K"),
        "{why}"
    );
    let why = read(&[("PIPESHARD_PLAN_CACHE", "here")]).unwrap_err();
    assert!(why.to_string().contains("whole path"), "{why}");
}
