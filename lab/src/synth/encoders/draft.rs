//! An encoder's file while it is put together: what it says of itself, and its tensors.

use crate::synth::layout::{Builder, TensorPlan};
use crate::synth::spec::{SynthSpec, Vision};
use crate::synth::SynthError;
use pipeshard_gguf::container::Value;

/// What norms add to the variance before they divide by its root.
const NORM_EPSILON: f32 = 1e-6;

/// Red, green and blue.
const COLOURS: u64 = 3;

/// Deviations of positions and learned tokens, and of biases.
const LEARNED: f32 = 0.5;
const BIAS: f32 = 0.3;

/// What a layer of a transformer consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    /// Queries, keys and values come from one matrix.
    pub fused: bool,
    /// Projections have biases.
    pub biased: bool,
    /// Keys, too.
    pub biased_keys: bool,
    /// The feed-forward network has a gate.
    pub gated: bool,
    /// Norms have biases.
    pub centred: bool,
}

/// The usual vision transformer: SigLIP's and CLIP's.
pub(super) const PLAIN: Layer = Layer {
    fused: false,
    biased: true,
    biased_keys: true,
    gated: false,
    centred: true,
};

/// The same with queries, keys and values in one matrix.
pub(super) const FUSED: Layer = Layer {
    fused: true,
    ..PLAIN
};

/// As in language models: gated, no biases.
pub(super) const GATED: Layer = Layer {
    fused: false,
    biased: false,
    biased_keys: false,
    gated: true,
    centred: false,
};

/// How a tensor's values are distributed.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// A matrix, whose outputs are about as large as its inputs.
    Matrix,
    /// A convolution, with so many inputs to each output.
    Convolution(u64),
    /// Numbers around a mean.
    Numbers { mean: f32, deviation: f32 },
}

/// An encoder's file.
pub(super) struct Draft<'a> {
    spec: &'a SynthSpec,
    vision: Vision,
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, Role)>,
    /// What names of tensors and keys begin with: of images or of sound.
    prefix: &'static str,
    modality: &'static str,
    /// Layers that it says it has.
    blocks: u32,
}

impl<'a> Draft<'a> {
    pub fn new(spec: &'a SynthSpec, vision: Vision) -> Self {
        Draft {
            spec,
            vision,
            keys: Vec::new(),
            tensors: Vec::new(),
            prefix: "v",
            modality: "vision",
            blocks: spec.layers,
        }
    }

    /// What the file says of itself.
    pub fn keys(self) -> Vec<(String, Value)> {
        self.keys
    }

    /// The tensors, laid out.
    pub fn tensors(self) -> Result<Vec<TensorPlan>, SynthError> {
        let mut builder = Builder::new();
        let types = self.spec.types;
        // convolutions want floats
        let float = match types.feed_forward.quantised {
            true => builder.f32,
            false => types.feed_forward,
        };
        for (name, shape, role) in self.tensors {
            match role {
                Role::Matrix => builder.projection(name, &shape, types.feed_forward, 1.0)?,
                Role::Convolution(inputs) => {
                    // the builder divides by the root of the row only
                    let gain = (shape[0] as f32 / inputs as f32).sqrt();
                    builder.projection(name, &shape, float, gain)?;
                }
                Role::Numbers { mean, deviation } => {
                    builder.around(name, &shape, mean, deviation)?;
                }
            }
        }
        Ok(builder.tensors)
    }

    /// Width of the residual stream.
    pub fn width(&self) -> u64 {
        u64::from(self.spec.embedding)
    }

    /// Width of the feed-forward network.
    pub fn inner(&self) -> u64 {
        u64::from(self.spec.feed_forward)
    }

    /// Width of the language model.
    pub fn out(&self) -> u64 {
        u64::from(self.vision.projection)
    }

    /// Heads of attention.
    pub fn heads(&self) -> u64 {
        u64::from(self.spec.heads)
    }

    /// Layers.
    pub fn count(&self) -> u32 {
        self.spec.layers
    }

    /// Patches of the square that it is made for.
    pub fn patches(&self) -> u64 {
        let side = u64::from(self.vision.image / self.vision.patch.max(1));
        side * side
    }

    /// Pixels along a side of that square.
    pub fn side(&self) -> u32 {
        self.vision.image
    }

    /// Numbers of the pixels in a patch.
    pub fn pixels(&self) -> u64 {
        let patch = u64::from(self.vision.patch);
        COLOURS * patch * patch
    }

    /// States that there are no layers of the usual kind.
    pub fn without_layers(&mut self) {
        self.blocks = 0;
    }

    /// Begins an encoder of images.
    pub fn images(&mut self, projector: &str) {
        (self.prefix, self.modality) = ("v", "vision");
        self.begin(projector);
        let vision = self.vision;
        self.number("vision.image_size", vision.image);
        self.number("vision.patch_size", vision.patch);
        let colours = |value: [f32; 3]| Value::F32s(value.to_vec());
        self.add("vision.image_mean", colours([0.48, 0.46, 0.41]));
        self.add("vision.image_std", colours([0.27, 0.26, 0.28]));
    }

    /// Begins an encoder of sound, which is cut into so many bands.
    pub fn sound(&mut self, projector: &str, bands: u32) {
        (self.prefix, self.modality) = ("a", "audio");
        self.begin(projector);
        self.number("audio.num_mel_bins", bands);
    }

    fn begin(&mut self, projector: &str) {
        let (spec, modality) = (self.spec, self.modality);
        self.flag(&format!("has_{modality}_encoder"));
        let projector = Value::Text(projector.to_owned());
        self.add(&format!("{modality}.projector_type"), projector);
        for (key, number) in [
            ("embedding_length", spec.embedding),
            ("feed_forward_length", spec.feed_forward),
            ("projection_dim", self.vision.projection),
            ("block_count", self.blocks),
            ("attention.head_count", spec.heads),
            ("attention.head_count_kv", spec.kv_heads),
        ] {
            self.number(&format!("{modality}.{key}"), number);
        }
        let epsilon = Value::F32(NORM_EPSILON);
        self.add(&format!("{modality}.attention.layer_norm_epsilon"), epsilon);
    }

    /// Reports something under a key.
    pub fn add(&mut self, key: &str, value: Value) {
        self.keys.push((format!("clip.{key}"), value));
    }

    /// Reports a number.
    pub fn number(&mut self, key: &str, number: u32) {
        self.add(key, Value::U32(number));
    }

    /// Reports several numbers.
    pub fn numbers(&mut self, key: &str, numbers: &[i32]) {
        self.add(key, Value::I32s(numbers.to_vec()));
    }

    /// States that something is so.
    pub fn flag(&mut self, key: &str) {
        self.add(key, Value::Bool(true));
    }

    fn push(&mut self, name: &str, shape: &[u64], role: Role) {
        self.tensors.push((name.to_owned(), shape.to_vec(), role));
    }

    /// A matrix, with its whole name.
    pub fn matrix(&mut self, name: &str, shape: &[u64]) {
        self.push(name, shape, Role::Matrix);
    }

    /// A matrix and its bias.
    pub fn linear(&mut self, base: &str, inputs: u64, outputs: u64) {
        self.matrix(&format!("{base}.weight"), &[inputs, outputs]);
        self.bias(base, outputs);
    }

    /// A bias.
    pub fn bias(&mut self, base: &str, width: u64) {
        self.learned(&format!("{base}.bias"), &[width], BIAS);
    }

    /// A convolution, with its whole name.
    pub fn convolution(&mut self, name: &str, shape: &[u64]) {
        let inputs = shape[..shape.len() - 1].iter().product();
        self.push(name, shape, Role::Convolution(inputs));
    }

    /// The weights of a norm.
    pub fn scale(&mut self, base: &str, width: u64) {
        let (mean, deviation) = (1.0, 0.1);
        let role = Role::Numbers { mean, deviation };
        self.push(&format!("{base}.weight"), &[width], role);
    }

    /// The weights of a norm, and its biases.
    pub fn norm(&mut self, base: &str, width: u64) {
        self.scale(base, width);
        self.bias(base, width);
    }

    fn learned(&mut self, name: &str, shape: &[u64], deviation: f32) {
        let mean = 0.0;
        self.push(name, shape, Role::Numbers { mean, deviation });
    }

    /// Numbers that are above 0, with their whole name.
    pub fn positive(&mut self, name: &str, width: u64) {
        let (mean, deviation) = (1.0, 0.1);
        self.push(name, &[width], Role::Numbers { mean, deviation });
    }

    /// Positions, learned tokens: numbers around 0.
    pub fn table(&mut self, name: &str, shape: &[u64]) {
        self.learned(name, shape, LEARNED);
    }

    /// The patch embedding: a convolution.
    pub fn patches_from_pixels(&mut self) {
        let patch = u64::from(self.vision.patch);
        let shape = [patch, patch, COLOURS, self.width()];
        self.convolution("v.patch_embd.weight", &shape);
    }

    /// The same of models that take in pairs of frames.
    pub fn patches_from_frames(&mut self) {
        self.patches_from_pixels();
        let patch = u64::from(self.vision.patch);
        let shape = [patch, patch, COLOURS, self.width()];
        self.convolution("v.patch_embd.weight.1", &shape);
    }

    /// Learned positions, so many.
    pub fn positions(&mut self, count: u64) {
        let name = format!("{}.position_embd.weight", self.prefix);
        self.table(&name, &[self.width(), count]);
    }

    /// A matrix and another, as projectors have them.
    pub fn two_layers(&mut self, bases: [&str; 2], widths: [u64; 3]) {
        self.linear(bases[0], widths[0], widths[1]);
        self.linear(bases[1], widths[1], widths[2]);
    }

    /// All layers.
    pub fn layers(&mut self, kind: Layer) {
        for layer in 0..self.spec.layers {
            self.attention(layer, kind);
            self.feed_forward(layer, kind);
        }
    }

    /// All layers, without their feed-forward networks.
    pub fn attentions(&mut self, kind: Layer) {
        for layer in 0..self.spec.layers {
            self.attention(layer, kind);
        }
    }

    fn at(&self, layer: u32, name: &str) -> String {
        format!("{}.blk.{layer}.{name}", self.prefix)
    }

    fn attention(&mut self, layer: u32, kind: Layer) {
        let width = self.width();
        let head = u64::from(self.spec.head_dim);
        let (queries, keys) = (self.heads() * head, u64::from(self.spec.kv_heads) * head);
        for norm in ["ln1", "ln2"] {
            let base = self.at(layer, norm);
            self.scale(&base, width);
            if kind.centred {
                self.bias(&base, width);
            }
        }
        let mut projection = |name: &str, inputs, outputs, biased| {
            let base = self.at(layer, name);
            self.projection(&base, inputs, outputs, biased);
        };
        if kind.fused {
            projection("attn_qkv", width, queries + 2 * keys, kind.biased);
        } else {
            projection("attn_q", width, queries, kind.biased);
            projection("attn_k", width, keys, kind.biased_keys);
            projection("attn_v", width, keys, kind.biased);
        }
        projection("attn_out", queries, width, kind.biased);
    }

    fn feed_forward(&mut self, layer: u32, kind: Layer) {
        let (width, inner) = (self.width(), self.inner());
        if kind.gated {
            let base = self.at(layer, "ffn_gate");
            self.projection(&base, width, inner, kind.biased);
        }
        for (name, inputs, outputs) in [("ffn_up", width, inner), ("ffn_down", inner, width)] {
            let base = self.at(layer, name);
            self.projection(&base, inputs, outputs, kind.biased);
        }
    }

    /// A matrix, and its bias if it has one.
    pub fn projection(&mut self, base: &str, inputs: u64, outputs: u64, biased: bool) {
        match biased {
            true => self.linear(base, inputs, outputs),
            false => self.matrix(&format!("{base}.weight"), &[inputs, outputs]),
        }
    }
}
