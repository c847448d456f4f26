//! A model's metadata as a lookup, wherever it comes from.

use std::collections::BTreeMap;

/// Key-value metadata of a model. A GGUF file answers every question; a loaded llama.cpp model only keeps scalars, as
/// text.
pub trait KeyValues {
    /// A whole number that is not negative (booleans count as 0 and 1).
    fn number(&self, key: &str) -> Option<u64>;
    /// An array of whole numbers.
    fn numbers(&self, key: &str) -> Option<Vec<u64>>;
    /// Text.
    fn string(&self, key: &str) -> Option<String>;
}

/// What `llama_model_meta_key_by_index` and `llama_model_meta_val_str_by_index` give, collected.
impl KeyValues for BTreeMap<String, String> {
    fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)?.as_str() {
            "true" => Some(1),
            "false" => Some(0),
            text => text.parse().ok(),
        }
    }

    fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        let list = self.get(key)?.strip_prefix('[')?.strip_suffix(']')?;
        list.split(',')
            .map(|item| match item.trim() {
                "true" => Some(1),
                "false" => Some(0),
                text => text.parse().ok(),
            })
            .collect()
    }

    fn string(&self, key: &str) -> Option<String> {
        self.get(key).cloned()
    }
}

/// A number of each layer.
pub(super) enum PerLayer {
    Same(Option<u64>),
    Each(Vec<u64>),
}

impl PerLayer {
    /// That of one layer.
    pub fn of(&self, layer: u32) -> Option<u64> {
        match self {
            PerLayer::Same(value) => *value,
            PerLayer::Each(values) => values.get(layer as usize).copied(),
        }
    }
}

/// The keys of one architecture, and the questions that several places ask.
pub(super) struct ArchKeys<'a> {
    pub keys: &'a dyn KeyValues,
    pub architecture: &'a str,
}

impl ArchKeys<'_> {
    /// The number under `<architecture>.<key>`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.keys.number(&format!("{}.{key}", self.architecture))
    }

    /// The array under `<architecture>.<key>`.
    pub fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        self.keys.numbers(&format!("{}.{key}", self.architecture))
    }

    /// The value of a key that holds either one number for all layers or one per layer. A list is copied as a whole,
    /// so this is asked once and not for every layer.
    pub fn per_layer(&self, key: &str) -> PerLayer {
        match self.numbers(key) {
            Some(values) => PerLayer::Each(values),
            None => PerLayer::Same(self.number(key)),
        }
    }

    /// The largest value of a key that holds either one number or one per layer.
    pub fn largest(&self, key: &str) -> Option<u64> {
        match self.numbers(key) {
            Some(values) => values.into_iter().max(),
            None => self.number(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_metadata() {
        let keys: BTreeMap<String, String> = [
            ("llama.block_count", "30"),
            ("llama.flag", "true"),
            ("llama.pattern", "[true, false]"),
            ("llama.list", "[1, 2,3]"),
            ("general.name", "A model"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let arch = ArchKeys {
            keys: &keys,
            architecture: "llama",
        };
        assert_eq!(arch.number("block_count"), Some(30));
        assert_eq!(arch.number("flag"), Some(1));
        assert_eq!(arch.numbers("pattern"), Some(vec![1, 0]));
        assert_eq!(arch.per_layer("list").of(2), Some(3));
        assert_eq!(arch.per_layer("list").of(3), None);
        assert_eq!(arch.per_layer("block_count").of(3), Some(30));
        assert_eq!(arch.largest("list"), Some(3));
        assert_eq!(arch.number("list"), None);
        assert_eq!(keys.string("general.name").as_deref(), Some("A model"));
    }
}
