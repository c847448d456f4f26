//! All features, one file per family.

mod adapters;
mod beside;
mod embeddings;
mod lifetimes;
mod sampling;
mod sequences;
mod setups;
mod speculative;
mod state;

use super::feature::Feature;

/// All features, in the order in which users read of them.
pub fn all() -> impl Iterator<Item = &'static Feature> {
    let families: [&'static [Feature]; 9] = [
        setups::FEATURES,
        sequences::FEATURES,
        state::FEATURES,
        adapters::FEATURES,
        speculative::FEATURES,
        embeddings::FEATURES,
        sampling::FEATURES,
        lifetimes::FEATURES,
        beside::FEATURES,
    ];
    families.into_iter().flatten()
}

/// The feature of that name.
pub fn named(name: &str) -> Option<&'static Feature> {
    all().find(|f| f.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for feature in all() {
            assert_eq!(all().filter(|f| f.name == feature.name).count(), 1);
            assert_eq!(named(feature.name).map(|f| f.title), Some(feature.title));
            assert!(!feature.steps.is_empty());
        }
    }
}
