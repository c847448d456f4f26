//! What happened in a run: whether pipeshard was engaged, what it held and what it moved.
//!
//! The figures are counted where things happen; but for what is called predicted, nothing is derived from a plan. A report
//! is written as JSON for programs ([`Report::write_json`]), as three lines for people ([`Report::render_lines`]), as a table for
//! those who want to know everything ([`Report::render_table`]), and while the process runs as Prometheus' text ([`Report::to_prometheus`]).

mod calibration;
mod limits;
mod lines;
mod metrics;
mod table;
mod timeline;
mod types;
mod vision;
mod write;

pub use calibration::{CalibrationCounts, NotCalibrated, PassTimes, Predicted, ProfileKind};
pub use limits::{BudgetChanged, Limits};
pub use timeline::{LaneDuringGap, LinkGap, TierTimeline, TimelineSummary};
pub use types::{
    ExpertCounts, HostWaits, MemoryHeld, MemoryPeak, PassCounts, PlanUse, Report, SavedPlanUse,
    UnitCounts, UnitPlacements, PROMPT_ROWS, REPORT_SCHEMA_VERSION,
};
pub use vision::{EncoderReport, VisionReport};
pub use write::{is_model, ReportError};
