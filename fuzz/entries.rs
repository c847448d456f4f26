//! What reads foreign bytes, one function per reader: whatever the bytes are, it answers or refuses with a message. It
//! does not crash, hang, or ask for memory out of proportion.
//!
//! `fuzz_targets/` hands them to libFuzzer; `tests/fuzz_corpus.rs` replays the committed corpus through them.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use pipeshard::report::Report;
use pipeshard_gguf::inventory_of;
use pipeshard_model::inventory::{
    canonical_order, layer_of, role_of, DType, Inventory, LoadedTensor, TensorInfo,
};
use pipeshard_model::size::ByteSize;
use pipeshard_plan::plan::{
    default_small_threshold, estimate_scratch, units_from_inventory, FixedPlan, KvLayer, Plan,
    PlanError, PlanInput, SavedPlan,
};
use pipeshard_sim::SimSpec;

/// A reader.
pub type Entry = fn(&[u8]);

/// All of them, by the name of their folder in the corpus.
pub const ENTRIES: [(&str, Entry); 8] = [
    ("size", size),
    ("sim_spec", sim_spec),
    ("plan", plan),
    ("plan_input", plan_input),
    ("report", report),
    ("names", names),
    ("loaded", loaded),
    ("gguf", gguf),
];

/// The planner is quadratic in the number of tensors; a fuzzer's time is better spent on many small models.
const MOST_UNITS: usize = 300;

fn explained(error: &dyn std::fmt::Display) {
    assert!(!error.to_string().is_empty(), "an error without a message");
}

/// A size as typed on a command line.
pub fn size(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<ByteSize>() {
        Ok(size) => {
            let flag = size.to_flag();
            let typed: ByteSize = flag.parse().expect("what is printed can be typed");
            assert!(typed >= size, "{flag} is less than {size}");
            // rounded to three digits, so the largest of all rounds up beyond 64 bits
            if size.0 < 1 << 63 {
                let shown = size.to_string();
                let back: ByteSize = shown.parse().expect("what is shown can be typed");
                assert!(back.0.abs_diff(size.0) <= size.0 / 150, "{shown}");
            }
        }
        Err(error) => explained(&error),
    }
}

/// The specification of a simulated GPU.
pub fn sim_spec(data: &[u8]) {
    match SimSpec::parse(&String::from_utf8_lossy(data)) {
        Ok(spec) => {
            assert!(spec.context < spec.vram && spec.granularity <= spec.vram);
            assert!(spec.granularity > 0 && spec.pcie > 0 && spec.pageable > 0);
            explained(&spec);
            let _ = spec.host_ns(u64::MAX);
        }
        Err(error) => explained(&error),
    }
}

/// A plan that was saved.
pub fn plan(data: &[u8]) {
    match Plan::from_json(data) {
        Ok(plan) => {
            use_plan(&plan);
            follow(&plan);
        }
        Err(error) => explained(&error),
    }
    match SavedPlan::from_json(data) {
        Ok(saved) => {
            let text = saved.to_json().expect("a saved plan is plain data");
            assert_eq!(
                SavedPlan::from_json(text.as_bytes()).expect("it was read before"),
                saved
            );
            follow(&saved.plan);
        }
        Err(error) => explained(&error),
    }
}

/// Plans as a plan from outside says, with room for it and without.
fn follow(plan: &Plan) {
    if plan.units.len() > MOST_UNITS {
        return;
    }
    for budget in [plan.budget, plan.budget / 2, u64::MAX] {
        let fixed = FixedPlan {
            dropped_percent: 100,
            ..FixedPlan::from_plan(plan, plan.units.len(), Some)
        };
        use_input(&PlanInput {
            fixed: Some(fixed),
            ..PlanInput::new(plan.units.clone(), Vec::new(), budget)
        });
    }
}

fn use_plan(plan: &Plan) {
    let text = plan.explain();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    assert_eq!(plan.locations().len(), plan.units.len());
    for rows in [0, 1, 31, 32, u32::MAX] {
        let _ = plan.tier(rows);
    }
    let _ = plan.ledger.total();
    assert_eq!(plan.shared_chunks(plan), plan.chunks.len());
    let text = serde_json::to_string(plan).expect("a plan is plain data");
    let back = Plan::from_json(text.as_bytes()).expect("what was written can be read");
    assert_eq!(&back, plan);
}

/// What goes into the planner.
pub fn plan_input(data: &[u8]) {
    match serde_json::from_slice::<PlanInput>(data) {
        Ok(input) if input.units.len() <= MOST_UNITS => use_input(&input),
        Ok(_) => {}
        Err(error) => explained(&error),
    }
}

fn use_input(input: &PlanInput) {
    match pipeshard_plan::plan::plan(input) {
        Ok(plan) => {
            assert!(plan.ledger.total() <= input.budget);
            use_plan(&plan);
        }
        Err(error) => {
            explained(&error);
            if let PlanError::BudgetTooSmall { minimum, .. } = error {
                let enough = PlanInput {
                    budget: minimum,
                    ..input.clone()
                };
                let plan =
                    pipeshard_plan::plan::plan(&enough).expect("the minimum that is named works");
                assert!(plan.ledger.total() <= minimum);
            }
        }
    }
}

/// A report that was saved.
pub fn report(data: &[u8]) {
    match serde_json::from_slice::<Report>(data) {
        Ok(report) => {
            let table = report.render_table();
            assert!(table.starts_with("pipeshard: "));
            for line in table.lines() {
                assert!(line.chars().count() <= 80, "{line}");
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
            let back: Report =
                serde_json::from_str(&report.to_json()).expect("what was written can be read");
            assert_eq!(back, report);
        }
        Err(error) => explained(&error),
    }
}

/// Names of tensors, one a line.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let tensor = |name: &str| TensorInfo {
        name: name.to_owned(),
        layer: layer_of(name),
        role: role_of(name),
        type_name: "f32".to_owned(),
        ggml_type: 0,
        shape: [1; 4],
        bytes: 4,
        device_bytes: 4,
    };
    let mut tensors: Vec<TensorInfo> = text.lines().take(MOST_UNITS).map(tensor).collect();
    tensors.sort_by(canonical_order);
    for pair in tensors.windows(2) {
        assert!(canonical_order(&pair[0], &pair[1]).is_le());
        assert!(canonical_order(&pair[1], &pair[0]).is_ge());
    }
}

/// The metadata and tensors of a loaded model, one a line: `key=value`, or `name type ne0 ne1 ne2 ne3`.
pub fn loaded(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut keys = BTreeMap::new();
    let mut tensors = Vec::new();
    for line in text.lines().take(MOST_UNITS) {
        if let Some((key, value)) = line.split_once('=') {
            keys.insert(key.to_owned(), value.to_owned());
            continue;
        }
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok());
        let ggml_type = number().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let ne: [i64; 4] = std::array::from_fn(|_| number().unwrap_or(1));
        let shape = ne.map(|n| u64::try_from(n).unwrap_or(0));
        tensors.push(LoadedTensor {
            name,
            ggml_type,
            ne,
            nbytes: DType::from_id(ggml_type).map_or(0, |dtype| dtype.bytes(shape)),
        });
    }
    match Inventory::from_loaded(tensors.into_iter(), &keys) {
        Ok(inventory) => use_inventory(&inventory),
        Err(error) => explained(&error),
    }
}

/// A model file.
pub fn gguf(data: &[u8]) {
    // SAFETY: the name is a string that ends in a null byte; the descriptor is owned by the file made of it.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"gguf".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "no file in memory");
        File::from_raw_fd(descriptor)
    };
    file.write_all(data).expect("a small file fits memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match inventory_of(Path::new(&path)) {
        Ok(inventory) => use_inventory(&inventory),
        Err(error) => explained(&error),
    }
}

/// What `pipeshard plan` and the hook do with an inventory.
fn use_inventory(inventory: &Inventory) {
    let text = serde_json::to_string(inventory).expect("an inventory is plain data");
    let back: Inventory = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(&back, inventory);
    if inventory.tensors.len() > MOST_UNITS {
        return;
    }
    let _ = inventory.weight_bytes();
    let f16 = DType::from_name("f16").expect("a type of ggml");
    let q8_0 = DType::from_name("q8_0").expect("a type of ggml");
    let units = units_from_inventory(inventory, default_small_threshold(inventory));
    let context = u64::from(inventory.context_length).next_multiple_of(256);
    let kv = inventory.kv.layers.iter().map(|layer| {
        let kv_tokens = layer.kv_tokens(context, 512, 1);
        KvLayer {
            layer: layer.layer,
            bytes: pipeshard_model::inventory::kv_bytes(layer, kv_tokens, f16, q8_0),
        }
    });
    let kv: Vec<KvLayer> = kv.collect();
    let kv_tokens = u32::try_from(context).unwrap_or(u32::MAX);
    for budget in [0, 1 << 30, u64::MAX] {
        use_input(&PlanInput {
            scratch: estimate_scratch(inventory, 512, kv_tokens, 512),
            scratch_estimated: true,
            ..PlanInput::new(units.clone(), kv.clone(), budget)
        });
    }
}
