//! A graph that is about to be split: who computes what, from which copy of the weights. Called by
//! [`super::answers::graph`]; what is written down here is read by the passes of the graph.
//!
//! | file | |
//! |---|---|
//! | [`bind`] | the same for an encoder of images or sound |
//! | [`decide`] | each node's backend, and the copy of a weight that it reads |
//! | [`divide`] | the experts of a few tokens, divided between the device and the CPU |
//! | [`lookup`] | embeddings that several threads look up |
//! | [`rewrite`] | a rewrite for tests |
//! | [`routing`] | which experts a batch has chosen |
//! | [`split_graph`] | what is known of a graph that was split |
//! | [`nodes`] | how nodes are looked at |

pub mod bind;
pub mod decide;
pub mod divide;
pub mod lookup;
pub mod nodes;
pub mod rewrite;
pub mod routing;
pub mod split_graph;
