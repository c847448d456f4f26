//! The matrix: the same answer, whatever pipeshard is combined with.
//!
//! One declarative list of cases ([`cases`]): a model, a feature of llama.cpp, a budget and a number of threads. Each case
//! runs a feature's scenario in processes of their own, once by stock llama.cpp and once with pipeshard, and compares tokens
//! and the bits of all results ([`group`]). That pipeshard did the work, inside its budget, is checked as well
//! ([`verdict`]): a case cannot pass with the hook off.
//!
//! | file | holds |
//! |---|---|
//! | [`feature`] | what a feature is, and what its scenario has to work with |
//! | [`features`] | all features, one file per family |
//! | [`models`] | the models, and the adapters, parts and drafts that go with them |
//! | [`cases`] | which feature is tried with which model, at which budgets |
//! | `lora` | adapters of random weights |
//! | [`scenario`] | one step of a scenario in this process |
//! | [`group`], `search` | the cases that share a reference: finding budgets, comparing |
//! | [`work`] | their processes, and what these gave |
//! | [`run`] | many groups at once, and the outcome |
//! | [`document`] | the outcome as a page for users |

pub mod cases;
pub mod document;
pub mod feature;
pub mod features;
pub mod group;
mod lora;
pub mod models;

pub mod run;
pub mod scenario;
mod search;
pub mod seed;
pub mod verdict;
pub mod work;
