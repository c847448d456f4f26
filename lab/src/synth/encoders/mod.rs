//! Small encoders of images and sound for tests: one for each projector type that llama.cpp's multimodal library knows, as far as
//! possible. Each is a file beside that of a language model of the right width.

mod conformer;
mod draft;
mod dynamic;
mod sound;
mod square;
mod table;
mod tiled;

use super::layout::TensorPlan;
use super::spec::{SynthSpec, Vision};
use super::{Architecture, SynthError};
use draft::Draft;
use pipeshard_gguf::container::Value;
use std::fmt;

pub use table::PROJECTORS;

/// What names of their shapes begin with.
const PREFIX: &str = "tiny-mmproj-";

/// Numbers of a small encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub layers: u32,
    /// Width of the residual stream, and of the feed-forward network.
    pub width: u32,
    pub inner: u32,
    /// Heads, those of keys, and elements of one.
    pub heads: u32,
    pub kv_heads: u32,
    pub head: u32,
    /// Pixels along a side of a patch, and of the square that it is made for.
    pub patch: u32,
    pub image: u32,
    /// Width of its output: the language model's, as a rule.
    pub out: u32,
}

/// What most of them have.
const USUAL: Size = Size {
    layers: 2,
    width: 128,
    inner: 256,
    heads: 2,
    kv_heads: 2,
    head: 64,
    patch: 14,
    image: 112,
    out: 256,
};

/// A projector type, as a small encoder.
pub struct Projector {
    /// llama.cpp's name, or that and what is particular about this one.
    pub name: &'static str,
    /// What it brings.
    pub about: &'static str,
    size: Size,
    draft: fn(&mut Draft<'_>),
}

impl PartialEq for Projector {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Projector {}

impl fmt::Debug for Projector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(formatter)
    }
}

impl Projector {
    /// The name of its shape.
    pub fn shape(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn spec(&'static self) -> SynthSpec {
        let Size {
            layers,
            width,
            inner,
            heads,
            kv_heads,
            head,
            patch,
            image,
            out,
        } = self.size;
        SynthSpec {
            name: self.shape(),
            architecture: Architecture::Clip,
            layers,
            embedding: width,
            feed_forward: inner,
            heads,
            kv_heads,
            head_dim: head,
            vocabulary: 0,
            vision: Some(Vision {
                patch,
                image,
                window_period: 0,
                projection: out,
                projector: Some(self),
            }),
            ..super::shapes::tiny_tower()
        }
    }
}

/// The specification of an encoder that is named.
pub(super) fn shape(name: &str) -> Option<SynthSpec> {
    let wanted = name.strip_prefix(PREFIX)?;
    let found = PROJECTORS
        .iter()
        .find(|projector| projector.name.eq_ignore_ascii_case(wanted));
    found.map(Projector::spec)
}

fn drafted<'a>(spec: &'a SynthSpec, vision: Vision, projector: &Projector) -> Draft<'a> {
    let mut draft = Draft::new(spec, vision);
    (projector.draft)(&mut draft);
    draft
}

/// What an encoder says of itself.
pub(super) fn keys(
    spec: &SynthSpec,
    vision: Vision,
    projector: &Projector,
) -> Vec<(String, Value)> {
    drafted(spec, vision, projector).keys()
}

/// Its tensors.
pub(super) fn tensors(
    spec: &SynthSpec,
    vision: Vision,
    projector: &Projector,
) -> Result<Vec<TensorPlan>, SynthError> {
    drafted(spec, vision, projector).tensors()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn all_are_small_and_have_names_of_their_own() {
        let mut names = HashSet::new();
        for projector in PROJECTORS {
            assert!(names.insert(projector.name), "{}", projector.name);
            let spec = shape(&projector.shape()).unwrap();
            spec.check().unwrap();
            let vision = spec.vision.unwrap();
            let tensors = tensors(&spec, vision, projector).unwrap();
            let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            assert!(bytes < 10 << 20, "{}: {bytes}", projector.name);
            let distinct: HashSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            assert_eq!(distinct.len(), tensors.len(), "{}", projector.name);
            let keys = keys(&spec, vision, projector);
            let distinct: HashSet<_> = keys.iter().map(|(key, _)| key).collect();
            assert_eq!(distinct.len(), keys.len(), "{}", projector.name);
        }
        assert!(shape("tiny-mmproj-nothing").is_none() && shape("tiny-llama").is_none());
    }
}
