//! Errors of planning.

use std::fmt;

use pipeshard_model::size::ByteSize;

/// What takes up a budget that is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contribution {
    /// Small tensors, and larger ones that take less room resident than slots would.
    Resident,
    /// The smallest ring of slots.
    Slots,
    /// The KV cache that has been allocated on the device.
    Kv,
    /// Compute buffers.
    Scratch,
    /// The backend's reserve.
    Reserve,
    /// Encoders of images and sound.
    Encoders,
}

impl Contribution {
    fn label(self) -> &'static str {
        match self {
            Contribution::Resident => "weights that cannot be offloaded",
            Contribution::Slots => "slots for the two largest neighbouring weight groups",
            Contribution::Kv => "KV cache",
            Contribution::Scratch => "compute buffers",
            Contribution::Reserve => "backend reserve and what -ot puts on the device",
            Contribution::Encoders => "encoder of images or sound (--mmproj)",
        }
    }

    fn remedy(self) -> Option<&'static str> {
        match self {
            Contribution::Slots => Some("a stronger quantisation of the model (smaller tensors)"),
            Contribution::Kv => Some("a shorter context (-c)"),
            Contribution::Scratch => Some("a smaller micro-batch (-ub) or a shorter context (-c)"),
            Contribution::Encoders => Some("leaving that encoder to the CPU (--no-mmproj-offload)"),
            Contribution::Resident | Contribution::Reserve => None,
        }
    }
}

/// One share of the smallest budget that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contributor {
    /// What it is.
    pub what: Contribution,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The reason why planning failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Even with all that can be moved to the host moved there, the budget does not suffice.
    #[error("{}", too_small(*.budget, *.minimum, .contributors))]
    BudgetTooSmall {
        /// The budget in bytes.
        budget: u64,
        /// The smallest budget, in bytes, with which planning succeeds.
        minimum: u64,
        /// What the minimum consists of, largest first; the sum is `minimum`.
        contributors: Vec<Contributor>,
    },
    /// A setting with which nothing can be planned.
    #[error("cannot plan: {0}")]
    InvalidInput(String),
    /// A saved plan needs more than there is.
    #[error(
        "the saved plan does not fit: it needs {} now, and the budget is {} (KV cache {}, compute buffers {}, backend reserve {}). \
         Raise the budget to {}, or make the plan again with what is known now: pipeshard plan --reserve {} ... --save",
        ByteSize(*.needed), ByteSize(*.budget), ByteSize(*.kv), ByteSize(*.scratch), ByteSize(*.reserve),
        ByteSize(*.needed).to_flag(), ByteSize(*.reserve).to_flag()
    )]
    FixedDoesNotFit {
        /// The budget in bytes.
        budget: u64,
        /// What all of the plan would take, in bytes.
        needed: u64,
        /// Bytes of compute buffers.
        scratch: u64,
        /// Bytes of the backend's reserve.
        reserve: u64,
        /// Bytes of KV cache on the device.
        kv: u64,
    },
    /// The sizes add up to more than 64 bits hold.
    #[error(
        "cannot plan: the sizes of the model's tensors add up to more than any device could hold; \
         the file is damaged or not a model"
    )]
    Overflow,
}

impl PlanError {
    /// The smallest budget with which planning succeeds, in bytes, where a larger one helps.
    pub fn enough(&self) -> Option<u64> {
        match self {
            PlanError::BudgetTooSmall { minimum, .. } => Some(*minimum),
            PlanError::FixedDoesNotFit { needed, .. } => Some(*needed),
            PlanError::InvalidInput(_) | PlanError::Overflow => None,
        }
    }
}

fn too_small(budget: u64, minimum: u64, contributors: &[Contributor]) -> impl fmt::Display {
    let shares: Vec<String> = contributors
        .iter()
        .map(|share| format!("{} {}", ByteSize(share.bytes), share.what.label()))
        .collect();
    let mut remedies: Vec<&str> = contributors
        .iter()
        .filter_map(|share| share.what.remedy())
        .collect();
    remedies.truncate(2);
    let mut text = format!(
        "a budget of {} is too small: the smallest that works is {} ({minimum} bytes): {}",
        ByteSize(budget),
        ByteSize(minimum).to_flag(),
        shares.join(", "),
    );
    if !remedies.is_empty() {
        text += &format!(
            ". Raise it to {}, or lower what is needed by {}",
            ByteSize(minimum).to_flag(),
            remedies.join(", or by "),
        );
    }
    if contributors
        .iter()
        .all(|share| share.what != Contribution::Kv)
    {
        text += "; the KV cache is not counted, it moves to host memory by itself";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_minimum_and_what_lowers_it() {
        let error = PlanError::BudgetTooSmall {
            budget: 40 << 20,
            minimum: (52 << 20) + 7,
            contributors: vec![
                Contributor {
                    what: Contribution::Slots,
                    bytes: 30 << 20,
                },
                Contributor {
                    what: Contribution::Scratch,
                    bytes: (22 << 20) + 7,
                },
            ],
        };
        assert_eq!(
            error.to_string(),
            "a budget of 40 MiB is too small: the smallest that works is 53M (54525959 bytes): \
             30 MiB slots for the two largest neighbouring weight groups, 22 MiB compute buffers. \
             Raise it to 53M, or lower what is needed by a stronger quantisation of the model \
             (smaller tensors), or by a smaller micro-batch (-ub) or a shorter context (-c); \
             the KV cache is not counted, it moves to host memory by itself"
        );
    }
}
