//! Layers with a recurrent block in the place of attention.

use crate::cost::{pass_cost, PassShape};
use crate::test_support::{all_resident, shape, Machine};
use pipeshard_model::inventory::{Inventory, Role};
use pipeshard_model::test_support::SMALL;

/// Seconds of the device for one token after `kv_tokens` others.
fn seconds(model: &Inventory, kv_tokens: u64) -> f64 {
    let pass = PassShape {
        rows: 1,
        sequences: 1,
        kv_tokens,
        outputs: 1,
    };
    let profile = Machine::measured().profile();
    pass_cost(&all_resident(model), &shape(model), &profile, pass).gpu
}

/// So many of the last layers are recurrent: behind layers with a cache, which they must not be taken to read.
fn with_recurrent_layers(count: u32) -> Inventory {
    let mut model = SMALL.inventory();
    let from = model.layer_count - count;
    model.kv.layers.retain(|kv| kv.layer < from);
    for tensor in &mut model.tensors {
        let late = tensor.layer.is_some_and(|layer| layer >= from);
        if late && tensor.role == Role::Attention {
            tensor.role = Role::Recurrent;
        }
    }
    model
}

#[test]
fn their_weights_have_the_same_price_and_no_cache_is_read() {
    let layers = SMALL.inventory().layer_count;
    assert!(layers > 1);
    let of_caches = |model: &Inventory| seconds(model, 100_000) - seconds(model, 0);
    let each = of_caches(&with_recurrent_layers(0)) / f64::from(layers);
    assert!(each > 0.0);
    for recurrent in 0..=layers {
        let model = with_recurrent_layers(recurrent);
        let expected = each * f64::from(layers - recurrent);
        let found = of_caches(&model);
        assert!(
            (found - expected).abs() <= 1e-6 * each,
            "{recurrent} layers: {found}, not {expected}"
        );
        // all that goes away is the attention of the one token to itself
        let (mixed, usual) = (seconds(&model, 0), seconds(&SMALL.inventory(), 0));
        assert!(mixed <= usual && mixed > 0.5 * usual, "{mixed}, {usual}");
    }
}
