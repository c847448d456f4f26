//! Which element type each kind of weight has.

use super::{SynthError, WRITABLE};
use pipeshard_model::inventory::DType;

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
    /// In some layers, values of attention and down projections instead; see [`TypeMix::finer_in`].
    pub finer: Option<&'static DType>,
}

/// Mixes that llama.cpp's quantiser makes under these names, and the type that most weights have.
const MIXES: &[(&str, &str)] = &[("q4_K_M", "q4_K"), ("q5_K_M", "q5_K")];

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
            finer: None,
        }
    }

    /// The mix of the quantiser that is called `name`.
    fn named(name: &str) -> Option<Self> {
        let (_, base) = MIXES
            .iter()
            .find(|(mix, _)| mix.eq_ignore_ascii_case(name))?;
        let finer = DType::from_name("q6_K")?;
        Some(TypeMix {
            output: finer,
            finer: Some(finer),
            ..TypeMix::uniform(DType::from_name(base)?)
        })
    }

    /// `dtype`, or the finer type if this layer is among those that get it: the first and last eighth, and every third
    /// between them.
    pub(super) fn finer_in(
        &self,
        layer: u32,
        layers: u32,
        dtype: &'static DType,
    ) -> &'static DType {
        let (first, last) = (layers / 8, 7 * layers / 8);
        let chosen = layer < first || layer >= last || (layer - first) % 3 == 2;
        match self.finer {
            Some(finer) if chosen => finer,
            _ => dtype,
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
            if let (None, Some(mix)) = (key, TypeMix::named(name)) {
                self = mix;
                continue;
            }
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
        let mix = TypeMix::uniform(f16).with("Q4_K_M").unwrap();
        let name = |layer| mix.finer_in(layer, 32, mix.feed_forward).name;
        assert_eq!(mix.output.name, "q6_K");
        assert_eq!(
            [0, 4, 5, 6, 27, 28, 31].map(name),
            ["q6_K", "q4_K", "q4_K", "q6_K", "q6_K", "q6_K", "q6_K"]
        );
        for wrong in [
            "attention=q4_K_M",
            "",
            "q4",
            "iq1_s",
            "attention=",
            "norms=f16",
            "q4_0,",
        ] {
            let error = TypeMix::uniform(f16).with(wrong).unwrap_err().to_string();
            assert!(error.contains("q4_0"), "{error}");
        }
    }
}
