//! What no small encoder decides by itself: `tests/towers/foreseen.rs` compares the others with ggml's allocator.

use super::*;

const SIZES: Sizes = Sizes {
    width: 1024,
    inner: 2816,
    heads: 16,
    experts_used: 0,
    patch: 14,
    merge: 2,
    mel: 128,
    sam: (0, 0),
    block: 0,
};

fn tensor(name: &str, ne: [i64; 4]) -> LoadedTensor {
    LoadedTensor {
        name: name.to_owned(),
        ggml_type: 1,
        ne,
        nbytes: 2 * ne.iter().product::<i64>() as u64,
    }
}

fn gated() -> Vec<LoadedTensor> {
    let names = ["attn_q", "attn_k", "attn_v", "attn_out"];
    let square = names.map(|name| tensor(&format!("v.blk.0.{name}.weight"), [1024, 1024, 1, 1]));
    let wide = ["ffn_gate", "ffn_up"];
    let wide = wide.map(|name| tensor(&format!("v.blk.0.{name}.weight"), [1024, 2816, 1, 1]));
    square.into_iter().chain(wide).collect()
}

#[test]
fn features_that_wait_for_the_end_are_counted_for_each_row() {
    let plain = gated();
    let mut waiting = gated();
    for layer in [3, 6, 9] {
        waiting.push(tensor(
            &format!("v.deepstack.{layer}.fc2.weight"),
            [4096, 2048, 1, 1],
        ));
    }
    let [plain, waiting] =
        [plain, waiting].map(|tensors| Stages::of("qwen3vl_merger", "v", SIZES, &tensors));
    // three tokens of 2,048 values for four rows
    let rows = 4000;
    assert_eq!(
        waiting.bytes(rows) - plain.bytes(rows),
        rows * 3 * 2048 / 4 * FLOAT
    );
}

#[test]
fn pairs_of_moments_decide_for_long_sound() {
    let convolution = tensor("a.conv2d.0.weight", [3, 3, 1, 16]);
    let stages = Stages::of("parakeet", "a", SIZES, &[convolution]);
    let (long, twice) = (stages.bytes(24_000), stages.bytes(48_000));
    assert!(twice > 3 * long, "{long} {twice}");
}

#[test]
fn tables_are_counted_whatever_the_number_of_rows() {
    let [without, with] = [1, 4096].map(|rows| {
        let table = tensor("a.rvq.codebook.0", [1024, rows, 1, 1]);
        Stages::of("mimo_audio", "a", SIZES, &[table])
    });
    for rows in [0, 100, 3000] {
        assert_eq!(
            with.bytes(rows) - without.bytes(rows),
            2 * 1024 * 4095 * FLOAT
        );
    }
}

#[test]
fn no_smaller_image_takes_more_than_what_is_planned_for() {
    let stages = Stages::of("qwen2vl_merger", "v", SIZES, &gated());
    let mut most = 0;
    let mut more_than_larger = 0;
    for rows in 1..2000 {
        more_than_larger += u64::from(stages.bytes(rows) < most);
        most = most.max(stages.bytes(rows));
        assert!(stages.bytes_up_to(rows) >= most, "{rows}");
    }
    // in one piece 511 rows take more than 512 in two
    assert!(more_than_larger > 100, "{more_than_larger}");
}
