//! Reading a plan that was saved as JSON: it may be cut short, of another version, or edited by hand.

use super::types::{Plan, UnitId, PLAN_SCHEMA_VERSION};

/// A text that is not a valid plan.
#[derive(Debug, thiserror::Error)]
pub enum ReadPlanError {
    /// Not the JSON of a plan.
    #[error("this is not a plan: {0}. Make it again with pipeshard plan --json.")]
    Json(#[from] serde_json::Error),
    /// A plan of another form.
    #[error(
        "the plan is of version {found}, and this build reads version {PLAN_SCHEMA_VERSION}. \
         Make it again with pipeshard plan --json."
    )]
    Version {
        /// What the plan says.
        found: u32,
    },
    /// A plan that contradicts itself.
    #[error("the plan contradicts itself: {0}. Make it again with pipeshard plan --json.")]
    Contradiction(String),
}

impl Plan {
    /// Reads a plan that was saved as JSON. What is not refused can be used: it refers to units that it has, and its
    /// sizes add up.
    ///
    /// # Errors
    /// [`ReadPlanError`] if the text is not a plan, has another version, or contradicts itself.
    pub fn from_json(text: &[u8]) -> Result<Self, ReadPlanError> {
        let plan: Self = serde_json::from_slice(text)?;
        plan.check()?;
        Ok(plan)
    }

    /// Reports whether a plan that came from outside can be used.
    ///
    /// # Errors
    /// As [`Plan::from_json`].
    pub(crate) fn check(&self) -> Result<(), ReadPlanError> {
        if self.schema_version != PLAN_SCHEMA_VERSION {
            let found = self.schema_version;
            return Err(ReadPlanError::Version { found });
        }
        match self.contradiction() {
            None => Ok(()),
            Some(what) => Err(ReadPlanError::Contradiction(what)),
        }
    }

    fn contradiction(&self) -> Option<String> {
        let unknown = |id: &UnitId| id.index() >= self.units.len();
        if let Some(id) = self.residents.iter().find(|id| unknown(id)) {
            return Some(format!("a resident is tensor {}, which it has not", id.0));
        }
        let chunks = self.chunks.iter().map(|c| ("chunk", c.bytes, &c.units));
        let groups = self.ring.groups.iter();
        let groups = groups.map(|group| ("ring", self.ring.bytes, &group.units));
        for (holder, bytes, held) in chunks.chain(groups) {
            for (id, offset) in held {
                if unknown(id) {
                    return Some(format!(
                        "a {holder} holds tensor {}, which it has not",
                        id.0
                    ));
                }
                if *offset > bytes {
                    return Some(format!("tensor {} lies outside its {holder}", id.0));
                }
            }
        }
        for tier in &self.tiers {
            if tier.placements.len() != self.units.len() {
                return Some(format!(
                    "a tier places {} tensors of {}",
                    tier.placements.len(),
                    self.units.len()
                ));
            }
            if tier.name.chars().any(char::is_control) {
                return Some("a tier's name is not a string".to_owned());
            }
        }
        let ledger = &self.ledger;
        let held = [
            ledger.resident,
            ledger.slots,
            ledger.kv,
            ledger.scratch,
            ledger.reserve,
            ledger.encoders,
        ];
        let fits = sum(held.into_iter())
            .and(sum(self.units.iter().map(|unit| unit.bytes)))
            .and(sum(self.kv.iter().map(|layer| layer.bytes)));
        match fits {
            Some(_) => None,
            None => Some("its sizes add up to more than 64 bits hold".to_owned()),
        }
    }
}

fn sum(mut sizes: impl Iterator<Item = u64>) -> Option<u64> {
    sizes.try_fold(0, u64::checked_add)
}

#[cfg(test)]
mod tests {
    use super::super::{plan, units_from_inventory, Placement, PlanInput};
    use super::*;
    use pipeshard_model::test_support as models;

    fn made() -> Plan {
        let units = units_from_inventory(&models::moe(), 1024);
        let roomy = plan(&PlanInput::new(units.clone(), Vec::new(), 1 << 40)).unwrap();
        let middle = (roomy.minimum_budget + roomy.full_budget) / 2;
        plan(&PlanInput::new(units, Vec::new(), middle)).unwrap()
    }

    fn refusal(change: impl FnOnce(&mut Plan)) -> String {
        let mut changed = made();
        change(&mut changed);
        let text = serde_json::to_vec(&changed).unwrap();
        Plan::from_json(&text).unwrap_err().to_string()
    }

    #[test]
    fn what_was_saved_is_read() {
        let made = made();
        assert!(!made.chunks.is_empty() && !made.ring.groups.is_empty());
        let text = serde_json::to_vec(&made).unwrap();
        assert_eq!(Plan::from_json(&text).unwrap(), made);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        assert!(refusal(|plan| plan.schema_version = 7).contains("version 7"));
        let far = UnitId(u32::MAX);
        assert!(refusal(|plan| plan.residents.push(far)).contains("a resident is"));
        let chunk = refusal(|plan| plan.chunks[0].units[0].0 = far);
        assert!(chunk.contains("a chunk holds"), "{chunk}");
        let ring = refusal(|plan| plan.ring.groups[0].units[0].0 = far);
        assert!(ring.contains("a ring holds"), "{ring}");
        let outside = refusal(|plan| plan.ring.groups[0].units[0].1 = u64::MAX);
        assert!(outside.contains("outside its ring"), "{outside}");
        let more = refusal(|plan| plan.tiers[0].placements.push(Placement::Host));
        assert!(more.contains("a tier places"), "{more}");
        let colours = refusal(|plan| plan.tiers[0].name = "\u{1b}[31m".to_owned());
        assert!(colours.contains("not a string"), "{colours}");
        let units = refusal(|plan| plan.units[0].bytes = u64::MAX);
        assert!(units.contains("add up"), "{units}");
        assert!(refusal(|plan| plan.ledger.kv = u64::MAX).contains("add up"));
        let cut = Plan::from_json(b"{\"schema_version\":1").unwrap_err();
        assert!(cut.to_string().contains("this is not a plan"), "{cut}");
    }
}
