//! Which element type each kind of weight has.

use super::{SynthError, WRITABLE};
use crate::inventory::DType;

/// The element type of each kind of weight. Norms and routers are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeMix {
    /// Token embedding, and the output head where it is tied.
    pub embedding: &'static DType,
    /// Projections of attention.
    pub attention: &'static DType,
    /// Dense feed-forward networks.
    pub feed_forward: &'static DType,
    /// Routed experts.
    pub experts: &'static DType,
    /// The output head.
    pub output: &'static DType,
}

impl TypeMix {
    /// The names that [`TypeMix::with`] understands on the left of a `=`.
    pub const KEYS: &'static [&'static str] = &[
        "embedding",
        "attention",
        "feed-forward",
        "experts",
        "output",
    ];

    /// One type for all.
    pub fn uniform(dtype: &'static DType) -> Self {
        TypeMix {
            embedding: dtype,
            attention: dtype,
            feed_forward: dtype,
            experts: dtype,
            output: dtype,
        }
    }

    /// This mix changed by a text such as `q4_0`, `attention=f16` or `q4_0,attention=f16,output=q8_0`.
    ///
    /// # Errors
    /// [`SynthError::UnknownType`] where the text names a type that cannot be written or a weight that is none.
    pub fn with(mut self, text: &str) -> Result<Self, SynthError> {
        let wrong = |reason: String| SynthError::UnknownType {
            text: text.to_owned(),
            reason,
        };
        for item in text.split(',') {
            let (key, name) = match item.split_once('=') {
                Some((key, name)) => (Some(key.trim()), name.trim()),
                None => (None, item.trim()),
            };
            let dtype = DType::from_name(name)
                .filter(|dtype| WRITABLE.contains(&dtype.name))
                .ok_or_else(|| wrong(format!("'{name}' is none of the types")))?;
            match key {
                None => self = TypeMix::uniform(dtype),
                Some("embedding") => self.embedding = dtype,
                Some("attention") => self.attention = dtype,
                Some("feed-forward") => self.feed_forward = dtype,
                Some("experts") => self.experts = dtype,
                Some("output") => self.output = dtype,
                Some(key) => return Err(wrong(format!("'{key}' is none of the weights"))),
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_mixes() {
        let q8_0 = DType::from_name("q8_0").unwrap();
        let f16 = DType::from_name("f16").unwrap();
        let mix = TypeMix::uniform(f16).with("q8_0,attention=F16").unwrap();
        assert_eq!((mix.output, mix.attention), (q8_0, f16));
        let mix = TypeMix::uniform(f16).with("experts=q8_0").unwrap();
        assert_eq!((mix.experts, mix.feed_forward), (q8_0, f16));
        for wrong in ["", "q4", "iq1_s", "attention=", "norms=f16", "q4_0,"] {
            let error = TypeMix::uniform(f16).with(wrong).unwrap_err().to_string();
            assert!(error.contains("q4_0"), "{error}");
        }
    }
}
