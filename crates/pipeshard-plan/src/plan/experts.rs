//! How many of a layer's experts a batch is expected to choose, and what is streamed for it.

use super::types::Tier;
use pipeshard_model::inventory::expected_distinct;

impl Tier {
    /// Reports whether an operation on `rows` rows fetches only the chosen experts; each row chooses `used` of `experts`.
    ///
    /// Chosen experts are known only when the router has been computed, so their copy cannot run ahead of it; all experts
    /// can. What is saved has to make up for that: the tier says up to which share of the experts it does.
    pub fn fetches_chosen(&self, experts: u32, used: u32, rows: u32) -> bool {
        let most = f64::from(experts) * f64::from(self.chosen_percent) / 100.0;
        experts > 1 && expected_distinct(experts, used, rows) <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tier(chosen_percent: u32) -> Tier {
        Tier {
            name: String::new(),
            min_rows: 1,
            max_rows: None,
            placements: Vec::new(),
            chosen_percent,
        }
    }

    #[test]
    fn a_few_rows_choose_a_few_of_many_experts() {
        for (rows, expected) in [(0, 0), (1, 8), (8, 52), (32, 112), (128, 128)] {
            let found = expected_distinct(128, 8, rows).round();
            assert_eq!(found, f64::from(expected), "{rows} rows");
        }
        assert_eq!(expected_distinct(0, 8, 10), 0.0);
        assert_eq!(expected_distinct(4, 9, 1), 4.0);
    }

    #[test]
    fn break_even_is_where_nearly_all_are_chosen() {
        let last = |percent, experts, used| {
            let chosen = |&rows: &u32| tier(percent).fetches_chosen(experts, used, rows);
            (0..10_000).take_while(chosen).last()
        };
        assert_eq!(last(90, 128, 8), Some(35));
        assert_eq!(last(90, 128, 4), Some(72));
        assert_eq!(last(50, 128, 8), Some(10));
        assert_eq!(last(0, 128, 8), Some(0));
        // a dense tensor, and one whose experts are all used
        assert!(!tier(100).fetches_chosen(1, 1, 1));
        assert!(!tier(90).fetches_chosen(8, 8, 1));
    }

    proptest! {
        #[test]
        fn more_rows_choose_more_and_never_more_than_there_are(
            experts in 0u32..600, used in 0u32..600, rows in 0u32..5000, more in 0u32..100,
        ) {
            let (few, many) = (
                expected_distinct(experts, used, rows),
                expected_distinct(experts, used, rows + more),
            );
            prop_assert!(few <= many && many <= f64::from(experts));
            prop_assert!(f64::from(rows.min(1) * used.min(experts)) <= few + 1e-9);
        }
    }
}
