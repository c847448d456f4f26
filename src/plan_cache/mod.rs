//! Plans that are kept, so that the same command has the same plan, and what runs have observed for `pipeshard tune`.
//!
//! ```text
//! place         which folder: the user's, another one, or none
//! plans         kept plans; the first writer wins
//! observations  times of passes; only `pipeshard tune` reads them
//! ```

mod observations;
mod place;
mod plans;

pub use crate::files::Stored;
pub use place::{Place, PlaceError, PLAN_CACHE};
pub use plans::{CannotKeep, PlanCache};
