//! What a profile measures for a model is what the cost model looks up for it. The lab tries this with every shape that it can
//! write.

use crate::test_support::priced;
use pipeshard_model::inventory::Inventory;
use pipeshard_model::test_support::{dense, moe, LLAMA_8B, QWEN_235B_A22B, QWEN_30B_A3B, SMALL};

fn models() -> Vec<Inventory> {
    let described = [LLAMA_8B, QWEN_30B_A3B, QWEN_235B_A22B, SMALL];
    let mut models: Vec<Inventory> = described.iter().map(|of| of.inventory()).collect();
    models.extend([dense(), moe()]);
    models
}

#[test]
fn a_product_that_is_priced_is_one_that_is_measured() {
    models().iter().for_each(priced::products);
}

#[test]
fn attention_that_is_priced_is_what_is_measured() {
    let looked_up: usize = models().iter().map(priced::attention).sum();
    assert!(looked_up > 100, "{looked_up}");
}
