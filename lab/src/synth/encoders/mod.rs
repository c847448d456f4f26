//! Small encoders of images and sound for tests: one for each projector type that llama.cpp's multimodal library knows, where
//! possible. Each is a file next to that of a language model of the right width.

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

impl Projector {
    /// The name of its shape.
    pub fn shape(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn spec(&self, like: SynthSpec) -> SynthSpec {
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
                projector: Some(self.name),
            }),
            ..like
        }
    }
}

/// The specification of an encoder that is named, with what is not an encoder's own from another one.
pub(super) fn shape(name: &str, like: SynthSpec) -> Option<SynthSpec> {
    let wanted = name.strip_prefix(PREFIX)?;
    let found = PROJECTORS
        .iter()
        .find(|projector| projector.name.eq_ignore_ascii_case(wanted));
    found.map(|projector| projector.spec(like))
}

/// Puts a specification's file together, if it is one of these encoders.
fn drafted(spec: &SynthSpec) -> Option<Draft<'_>> {
    let vision = spec.vision?;
    let name = vision.projector?;
    let projector = PROJECTORS.iter().find(|p| p.name == name)?;
    let mut draft = Draft::new(spec, vision);
    (projector.draft)(&mut draft);
    Some(draft)
}

/// What it says of itself.
pub(super) fn keys(spec: &SynthSpec) -> Option<Vec<(String, Value)>> {
    Some(drafted(spec)?.keys())
}

/// Its tensors.
pub(super) fn tensors(spec: &SynthSpec) -> Option<Result<Vec<TensorPlan>, SynthError>> {
    let draft = drafted(spec)?;
    Some(spec.check().and_then(|()| draft.tensors()))
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
            let spec = crate::synth::shape(&projector.shape()).unwrap();
            let tensors = tensors(&spec).unwrap().unwrap();
            let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            assert!(bytes < 10 << 20, "{}: {bytes}", projector.name);
            let distinct: HashSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            assert_eq!(distinct.len(), tensors.len(), "{}", projector.name);
            let keys = keys(&spec).unwrap();
            let distinct: HashSet<_> = keys.iter().map(|(key, _)| key).collect();
            assert_eq!(distinct.len(), keys.len(), "{}", projector.name);
        }
        let other = crate::synth::shape("tiny-llama").unwrap();
        assert!(tensors(&other).is_none() && keys(&other).is_none());
        assert!(shape("tiny-mmproj-nothing", other).is_none());
    }
}
