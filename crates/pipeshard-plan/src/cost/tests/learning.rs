//! What passes of another machine than the profile's show of it.

use crate::cost::{learn, Costs, Observed, PassSeconds, PassShape};
use crate::plan::{Plan, StreamShare};
use crate::profile::{model_label, Learned};
use crate::test_support::{plan_input, planned, shape, Machine, GIB};
use pipeshard_model::inventory::Inventory;
use pipeshard_model::test_support::{LLAMA_8B, QWEN_30B_A3B};

const PASS: PassShape = PassShape {
    rows: 1,
    sequences: 1,
    kv_tokens: 1000,
    outputs: 1,
};

/// So many that what they show is what is known.
const MANY: u64 = 1 << 20;

/// What a pass takes on a machine.
fn took(machine: &Machine, model: &Inventory, plan: &Plan) -> PassSeconds {
    let profile = machine.profile();
    let cost = Costs::new(shape(model), &profile).pass(plan, PASS);
    PassSeconds {
        all: cost.seconds,
        cpu: cost.cpu,
    }
}

/// Generation that streams so much of the ring while the CPU computes the rest.
fn streaming(model: &Inventory, percent: u32) -> Plan {
    let mut input = plan_input(model, 4 * GIB, 1024, 512);
    input.short_streams = vec![StreamShare {
        min_rows: 1,
        percent,
    }];
    crate::plan::plan(&input).unwrap()
}

#[test]
fn the_cpu_and_the_link_of_another_machine_are_found_from_its_passes() {
    let model = LLAMA_8B.inventory();
    let here = Machine::measured();
    for (cpu, link) in [(1.0, 51e9), (1.3, 30e9), (0.75, 45e9), (0.9, 27e9)] {
        let there = Machine {
            cpu: here.cpu / cpu,
            cpu_copy_busy: here.cpu_copy_busy / cpu,
            link_cpu_busy: link,
            ..here
        };
        // the link is waited for where it is to move most, and the pass depends on it
        let plan = streaming(&model, 90);
        let observed = Observed {
            plan: &plan,
            shape: PASS,
            passes: MANY,
            measured: took(&there, &model, &plan),
        };
        let (found, after) = learn(shape(&model), &here.profile(), &observed).unwrap();
        assert_eq!(
            (found.model.as_str(), found.passes),
            (model_label(&model).as_str(), MANY)
        );
        let near = |a: f64, b: f64| (a / b).ln().abs() < 0.03;
        assert!(near(found.cpu, cpu), "{cpu}: {found:?}");
        assert!(
            near(found.link_during_cpu.unwrap(), link),
            "{link}: {found:?}"
        );
        assert!(near(after.all, observed.measured.all), "{after:?}");
        // and so passes under another plan, whose price was off, are priced right
        let other = streaming(&model, 40);
        let mut taught = here.profile();
        taught.learn(found);
        let costs = Costs::new(shape(&model), &taught);
        let expected = took(&there, &model, &other);
        let priced = costs.pass(&other, PASS);
        assert!(
            near(priced.seconds, expected.all),
            "{priced:?} {expected:?}"
        );
        assert!(near(priced.cpu, expected.cpu), "{priced:?} {expected:?}");
    }
}

#[test]
fn a_little_more_time_is_not_a_link_that_hardly_moves() {
    let model = LLAMA_8B.inventory();
    let here = Machine::measured();
    // it hardly waits for what it streams, so no link explains it
    let plan = streaming(&model, 40);
    let mut measured = took(&here, &model, &plan);
    measured.all *= 1.5;
    let observed = Observed {
        plan: &plan,
        shape: PASS,
        passes: MANY,
        measured,
    };
    let profile = here.profile();
    let (found, after) = learn(shape(&model), &profile, &observed).unwrap();
    let least = profile.link.pinned_cpu_busy.median / 2.0;
    let link = found.link_during_cpu.unwrap();
    assert!(link >= least && link < least * 1.02, "{found:?}");
    assert!(
        after.all < measured.all * 0.95,
        "it is not explained: {after:?}"
    );
}

#[test]
fn without_copies_nothing_is_said_of_the_link_and_without_the_cpu_nothing_at_all() {
    let model = QWEN_30B_A3B.inventory();
    let here = Machine::measured();
    let there = Machine {
        cpu: here.cpu / 1.5,
        cpu_copy_busy: here.cpu_copy_busy / 1.5,
        link_cpu_busy: 5e9,
        ..here
    };
    let plan = planned(&model, 4 * GIB, 1024, 512);
    let observed = |plan| Observed {
        plan,
        shape: PASS,
        passes: 9,
        measured: took(&there, &model, plan),
    };
    let (found, _) = learn(shape(&model), &here.profile(), &observed(&plan)).unwrap();
    assert!((found.cpu - 1.5).abs() < 0.05, "{found:?}");
    assert_eq!(found.link_during_cpu, None);
    let all = planned(&model, 1 << 42, 1024, 512);
    assert_eq!(learn(shape(&model), &here.profile(), &observed(&all)), None);
}

#[test]
fn what_was_learned_of_one_model_is_not_applied_to_another() {
    let (dense, mixture) = (LLAMA_8B.inventory(), QWEN_30B_A3B.inventory());
    let mut profile = Machine::measured().profile();
    let plan = planned(&mixture, 4 * GIB, 1024, 512);
    let seconds = |profile: &_| {
        Costs::new(shape(&mixture), profile)
            .pass(&plan, PASS)
            .seconds
    };
    let before = seconds(&profile);
    let learned = |model: &Inventory| Learned {
        model: model_label(model),
        cpu: 2.0,
        link_during_cpu: None,
        passes: MANY,
    };
    profile.learn(learned(&dense));
    assert_eq!(seconds(&profile), before);
    profile.learn(learned(&mixture));
    assert!(seconds(&profile) > 1.2 * before);
}
