//! What the host does for a pass next to products.

use serde::{Deserialize, Serialize};

/// Work of the host's cores, mostly of one of them, in seconds. A profile measures what it can; the rest is as measured on the host of
/// an H100 (16 cores of a Xeon at 2 to 3 GHz, November 2026).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostCosts {
    /// Deciding whether a token may look at another one, when the mask is filled.
    pub mask_look: f64,
    /// Copying the mask of a token from the row of the token before it.
    pub mask_copy: f64,
    /// An element of an embedding that one thread looks up. Measured with the profile.
    pub embedding: f64,
    /// The same where several threads share the tokens, see [`MANY_EMBEDDINGS`](crate::constants::graph::MANY_EMBEDDINGS). Scaled
    /// with `embedding`.
    pub shared_embedding: f64,
    /// Submitting the copies of two experts.
    pub submit_experts: f64,
    /// Storing a token's keys, or its values, in a KV cache in host memory: ggml leaves that to one thread, and each goes to a row of
    /// its own. Measured with the profile.
    pub store_row: f64,
    /// The same for each of its floats. Measured with the profile. On the hosts of an H100 and an H200, both stores of a layer took
    /// 0.45 ms for 512 tokens of 1,024 floats, 5.0 ms for 4,096 of them, 4.5 ms for 4,096 of 512 floats.
    pub store_float: f64,
    /// Sampling, for each token of the vocabulary.
    pub sampling: f64,
    /// A rest behind which the CPU's threads have to be woken, which takes
    /// [`cpu_wake`](super::Overheads::cpu_wake).
    pub rest: f64,
}

impl HostCosts {
    /// Figures that nobody measured on this machine.
    pub const ASSUMED: HostCosts = HostCosts {
        mask_look: 4e-9,
        mask_copy: 0.5e-9,
        embedding: 1.1e-9,
        shared_embedding: 0.35e-9,
        submit_experts: 3e-6,
        store_row: 0.4e-6,
        store_float: 0.15e-9,
        sampling: 1e-9,
        rest: 0.1,
    };

    /// With what was measured: seconds of an element of an embedding, of a row that is stored, and of each of its floats.
    pub fn measured(embedding: f64, store_row: f64, store_float: f64) -> Self {
        let assumed = Self::ASSUMED;
        HostCosts {
            embedding,
            shared_embedding: assumed.shared_embedding * embedding / assumed.embedding,
            store_row,
            store_float,
            ..assumed
        }
    }
}

impl Default for HostCosts {
    fn default() -> Self {
        Self::ASSUMED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_without_them_has_those_that_are_assumed() {
        let read: HostCosts = serde_json::from_str("{\"sampling\": 2e-9}").unwrap();
        assert_eq!(read.sampling, 2e-9);
        assert_eq!(read.mask_look, HostCosts::ASSUMED.mask_look);
    }

    #[test]
    fn threads_that_share_embeddings_are_as_fast_as_one_is() {
        let slow = HostCosts::measured(2.2e-9, 1e-6, 1e-9);
        assert!((slow.shared_embedding / HostCosts::ASSUMED.shared_embedding - 2.0).abs() < 1e-12);
        assert_eq!((slow.store_row, slow.store_float), (1e-6, 1e-9));
    }
}
