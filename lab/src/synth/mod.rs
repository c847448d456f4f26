//! Models of random weights: small ones for tests, and the shapes of real ones for measurements, as fast as the disk
//! takes them. They load in any llama.cpp tool, tokenize text and generate varied tokens; what they say means nothing.

mod architecture;
mod blocks;
mod encoders;
mod error;
mod half;
mod layout;
mod metadata;
mod shapes;
mod spec;
mod type_mix;
mod write;

pub use architecture::Architecture;
pub use blocks::WRITABLE;
pub use encoders::{Projector, PROJECTORS};
pub use error::SynthError;
pub use shapes::{shape, Shape, SHAPES};
pub use spec::{Latent, Pooling, StateSpace, SynthSpec, Vision, Window};
pub use type_mix::TypeMix;
pub use write::{write, Layout, Summary, WriteOptions};

#[cfg(test)]
pub(crate) mod tests;
