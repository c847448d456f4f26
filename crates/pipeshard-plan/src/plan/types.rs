//! What goes into the planner and what comes out of it.

use serde::{Deserialize, Serialize};

/// Version of the JSON form of [`Plan`]; raised whenever a reader of the old form would be misled.
pub const PLAN_SCHEMA_VERSION: u32 = 3;

const MIB: u64 = 1 << 20;

/// Index of a unit in [`PlanInput::units`] and [`Plan::units`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitId(pub u32);

impl UnitId {
    /// The id as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a unit is to the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitClass {
    /// Norms, biases, factors and other small tensors: always resident.
    Small,
    /// Weights of attention or of a recurrent mixer.
    Attention,
    /// Dense feed-forward weights, routers and shared experts: every token needs them.
    FeedForward,
    /// Routed experts: a token needs a few of them.
    Experts,
    /// The output head.
    Output,
    /// Looked up row by row on the CPU (token embeddings): never on the device.
    HostOnly,
}

impl UnitClass {
    /// Every class, in the order in which tables list them.
    pub const ALL: [UnitClass; 6] = [
        UnitClass::Small,
        UnitClass::Attention,
        UnitClass::FeedForward,
        UnitClass::Experts,
        UnitClass::Output,
        UnitClass::HostOnly,
    ];

    /// The name that tables use.
    pub fn label(self) -> &'static str {
        match self {
            UnitClass::Small => "small",
            UnitClass::Attention => "attention",
            UnitClass::FeedForward => "ffn",
            UnitClass::Experts => "experts",
            UnitClass::Output => "output",
            UnitClass::HostOnly => "host only",
        }
    }
}

/// What is placed as one: a weight tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The tensor's name in the model.
    pub name: String,
    /// The layer it belongs to; none for what precedes and follows the layers.
    pub layer: Option<u32>,
    /// What it is to the planner.
    pub class: UnitClass,
    /// Bytes in host memory.
    pub bytes: u64,
    /// Bytes of a device allocation for it, padding included.
    pub device_bytes: u64,
    /// Number of experts stacked in it; 0 for a tensor that is not one of experts.
    pub expert_count: u32,
}

/// The KV cache of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayer {
    /// The layer.
    pub layer: u32,
    /// Bytes of its keys and values for the whole context.
    pub bytes: u64,
}

/// Where the KV cache of one layer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPlacement {
    /// The layer.
    pub layer: u32,
    /// On the device, or else in host memory.
    pub device: bool,
    /// Bytes of its keys and values.
    pub bytes: u64,
}

/// Everything that the planner looks at. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanInput {
    /// The model's tensors in the order in which a pass uses them.
    pub units: Vec<Unit>,
    /// The KV cache, in layer order.
    pub kv: Vec<KvLayer>,
    /// The most device memory that may be held.
    pub budget: u64,
    /// Compute buffers.
    pub scratch: u64,
    /// `scratch` is an estimate from the model's shapes, not a measured figure.
    pub scratch_estimated: bool,
    /// What the backend holds on its own account (pools, work spaces).
    pub reserve: u64,
    /// Weights and compute buffers of encoders of images and sound, which no plan moves.
    #[serde(default)]
    pub encoders: u64,
    /// What an encoder takes while it computes, for which weights make way: at least so much is left to both in turn.
    #[serde(default)]
    pub in_turn: u64,
    /// Every weight that is not small is streamed through the ring, whatever the room.
    #[serde(default)]
    pub all_in_ring: bool,
    /// Alignment of every tensor on the device; a power of two.
    pub alignment: u64,
    /// The driver's allocation granularity: each chunk, the ring and the KV cache are rounded up
    /// to a multiple of it.
    pub granularity: u64,
    /// Where the KV cache already lives, if it has been allocated; takes the place of `kv`.
    pub kv_fixed: Option<Vec<KvPlacement>>,
    /// Large units in the order in which they are given room; those that are not named follow in the usual order.
    #[serde(default)]
    pub order: Vec<UnitId>,
    /// Layers whose KV cache goes to host memory whatever the budget.
    #[serde(default)]
    pub kv_on_host: Vec<u32>,
    /// Compute the output head on the CPU whatever the budget: its logits then need no room among
    /// the compute buffers.
    pub output_on_host: bool,
    /// Stream the output head for long batches. Off, it is computed on the CPU unless resident: a
    /// prompt usually needs one row of it.
    pub output_streams: bool,
    /// Short batches use what the ring holds; else the CPU computes all that is not resident.
    pub keep_in_ring: bool,
    /// Batches that are too short to stream everything stream part of it, through this share of the ring, while the CPU computes
    /// the rest. Each entry holds from its number of rows to the next one's; none: nothing is streamed.
    #[serde(default)]
    pub short_streams: Vec<StreamShare>,
    /// Consecutive tensors of a layer and class are copied as one group up to this many bytes.
    pub group_target: u64,
    /// Size of the ring of slots; none derives it from the budget.
    pub ring_target: Option<u64>,
    /// Operations that see at least this many rows stream their weights.
    pub stream_min_rows: u32,
    /// The same for stacked experts; none: as many as for other weights.
    pub expert_min_rows: Option<u32>,
    /// Of streamed experts only those are fetched that a batch has chosen, while it is expected to choose at most this share
    /// of them, in percent. Beyond, all are, ahead of their use. 0: always all.
    pub chosen_percent: u32,
    /// Of the experts that a token has chosen in a layer whose experts are on the host, so many are fetched and computed by the
    /// device, and the others by the CPU meanwhile.
    #[serde(default)]
    pub fetched_experts: u32,
    /// The same for each token of small batches, ascending; larger ones are not served like that.
    #[serde(default)]
    pub fetched_by_batches: Vec<BatchFetch>,
    /// Batches of at least so many tokens attend on the device to KV cache in host memory, which is copied for it; smaller
    /// ones on the CPU.
    #[serde(default = "host_kv_min_rows")]
    pub host_kv_min_rows: u32,
    /// Residents are packed into chunks of about this size.
    pub chunk_target: u64,
    /// What an earlier plan decided: placed as it says.
    #[serde(default)]
    pub fixed: Option<FixedPlan>,
}

impl PlanInput {
    /// An input with the usual settings, no scratch and no reserve.
    pub fn new(units: Vec<Unit>, kv: Vec<KvLayer>, budget: u64) -> Self {
        Self {
            units,
            kv,
            budget,
            scratch: 0,
            scratch_estimated: false,
            reserve: 0,
            encoders: 0,
            in_turn: 0,
            all_in_ring: false,
            alignment: 256,
            granularity: 2 * MIB,
            kv_fixed: None,
            order: Vec::new(),
            kv_on_host: Vec::new(),
            output_on_host: false,
            output_streams: false,
            keep_in_ring: true,
            short_streams: Vec::new(),
            group_target: 32 * MIB,
            ring_target: None,
            stream_min_rows: 32,
            expert_min_rows: None,
            chosen_percent: 90,
            fetched_experts: 0,
            fetched_by_batches: Vec::new(),
            host_kv_min_rows: host_kv_min_rows(),
            chunk_target: 64 * MIB,
            fixed: None,
        }
    }
}

fn host_kv_min_rows() -> u32 {
    1
}

/// How much of the ring batches of a size stream through.
#[derive(Debug, Clone, Copy, PartialEq, Hash, Eq, Serialize, Deserialize)]
pub struct StreamShare {
    /// The fewest rows of such a batch.
    pub min_rows: u32,
    /// The share of the ring, in percent; what lies in the rest stays there.
    pub percent: u32,
}

/// What is fetched for small batches.
#[derive(Debug, Clone, Copy, PartialEq, Hash, Eq, Serialize, Deserialize)]
pub struct BatchFetch {
    /// Batches of up to so many tokens.
    pub rows: u32,
    /// Experts for each token: the first of those that it has chosen.
    pub experts: u32,
}

/// Where a unit's weights are when an operation needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// In a chunk of device memory that is never recycled.
    Resident,
    /// In its place in the ring, where it stays until a longer batch streams something else through that place.
    Kept,
    /// Copied into the ring for each pass.
    Streamed,
    /// In host memory, computed by the CPU.
    Host,
}

/// One allocation for residents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Size, a multiple of the granularity.
    pub bytes: u64,
    /// What it holds, with the offset of each in bytes.
    pub units: Vec<(UnitId, u64)>,
}

/// Consecutive streamed tensors that are copied and waited for as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamGroup {
    /// Where the group begins in the ring, in bytes.
    pub offset: u64,
    /// Size of its slot.
    pub bytes: u64,
    /// Its units in order of use, with the offset of each *in the ring*.
    pub units: Vec<(UnitId, u64)>,
}

impl StreamGroup {
    /// Reports whether the two cannot be in the ring at once.
    pub fn overlaps(&self, other: &StreamGroup) -> bool {
        self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

/// The slots that streamed groups take turns in, one allocation.
///
/// Groups that follow each other, the last and the first included, never overlap, so a copy can
/// always run ahead of the computation by one group at least.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Size, a multiple of the granularity; 0 when nothing is streamed.
    pub bytes: u64,
    /// The groups in order of use.
    pub groups: Vec<StreamGroup>,
}

impl Ring {
    /// The first groups in order of use, as many as lie in the ring side by side: what has been copied ahead when a pass
    /// begins, and what stays in place while no longer batch is evaluated.
    pub fn first_lap(&self) -> &[StreamGroup] {
        let apart = |index: usize| {
            let group = &self.groups[index];
            let mut before = self.groups[..index].iter();
            before.all(|other| !group.overlaps(other))
        };
        let count = (0..self.groups.len()).take_while(|&index| apart(index));
        &self.groups[..count.count()]
    }
}

/// One range of rows and what happens to every unit in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// `decode`, `prompt`, or `batch` for what is between: experts and other weights stream from different numbers of rows.
    pub name: String,
    /// The fewest rows that an operation of this tier sees.
    pub min_rows: u32,
    /// The most rows, or no limit.
    pub max_rows: Option<u32>,
    /// Per unit, in the order of [`Plan::units`].
    pub placements: Vec<Placement>,
    /// [`PlanInput::chosen_percent`] for what this tier streams.
    #[serde(default)]
    pub chosen_percent: u32,
}

impl Tier {
    /// Reports whether an operation that sees this many rows belongs to the tier.
    pub fn contains(&self, rows: u32) -> bool {
        rows >= self.min_rows && self.max_rows.is_none_or(|max| rows <= max)
    }
}

/// What the budget is spent on, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Chunks of residents, small tensors included.
    pub resident: u64,
    /// The ring.
    pub slots: u64,
    /// The part of the KV cache that is on the device.
    pub kv: u64,
    /// Compute buffers.
    pub scratch: u64,
    /// The backend's own reserve, and fetched experts.
    pub reserve: u64,
    /// [`PlanInput::encoders`].
    #[serde(default)]
    pub encoders: u64,
}

impl Ledger {
    /// The sum of all classes; at most the budget.
    pub fn total(&self) -> u64 {
        self.resident + self.slots + self.kv + self.scratch + self.reserve + self.encoders
    }
}

/// Where a unit has its place on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In a chunk of residents.
    Chunk {
        /// Index in [`Plan::chunks`].
        chunk: usize,
        /// Offset in the chunk, in bytes.
        offset: u64,
    },
    /// In the ring, while its group is.
    Ring {
        /// Index in [`Ring::groups`].
        group: usize,
        /// Offset in the ring, in bytes.
        offset: u64,
    },
    /// Nowhere: the CPU computes it in every tier.
    Host,
}

/// What lives where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_SCHEMA_VERSION`] of the build that made it.
    pub schema_version: u32,
    /// The budget that was planned for, in bytes.
    pub budget: u64,
    /// The smallest budget for which planning the same input succeeds.
    pub minimum_budget: u64,
    /// The smallest budget under which every weight that may be resident is.
    pub full_budget: u64,
    /// `ledger.scratch` is an estimate.
    pub scratch_estimated: bool,
    /// The units that were planned, in order of use.
    pub units: Vec<Unit>,
    /// Resident units in the order in which they are given room: small ones first.
    pub residents: Vec<UnitId>,
    /// Allocations that hold the residents, in the same order.
    pub chunks: Vec<Chunk>,
    /// Slots for what is streamed.
    pub ring: Ring,
    /// Where each layer's KV cache lives.
    pub kv: Vec<KvPlacement>,
    /// What happens to every unit, by the number of rows; the tiers cover 1 and up without a gap.
    pub tiers: Vec<Tier>,
    /// [`PlanInput::fetched_experts`].
    #[serde(default)]
    pub fetched_experts: u32,
    /// [`PlanInput::fetched_by_batches`].
    #[serde(default)]
    pub fetched_by_batches: Vec<BatchFetch>,
    /// [`PlanInput::host_kv_min_rows`].
    #[serde(default = "host_kv_min_rows")]
    pub host_kv_min_rows: u32,
    /// What the budget is spent on.
    pub ledger: Ledger,
}

/// What an earlier plan decided, in terms of the units of the input that it is to be applied to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedPlan {
    /// Residents, those that give way last first. Small units are resident whether they are listed or not.
    pub residents: Vec<UnitId>,
    /// What shares a slot of the ring, in order of use, and where; the places hold as long as the same groups are streamed.
    pub ring: Ring,
    /// Layers whose KV cache is on the device.
    pub kv_on_device: Vec<u32>,
    /// What happens to every unit, by the number of rows.
    pub tiers: Vec<Tier>,
    /// Experts that are fetched for a token and layer.
    #[serde(default)]
    pub fetched_experts: u32,
    /// The same for each token of small batches.
    #[serde(default)]
    pub fetched_by_batches: Vec<BatchFetch>,
    /// [`PlanInput::host_kv_min_rows`].
    #[serde(default = "host_kv_min_rows")]
    pub host_kv_min_rows: u32,
    /// The largest share of the residents' bytes that may be dropped, in percent.
    pub dropped_percent: u32,
}

impl Plan {
    /// The tier of an operation that sees `rows` rows.
    pub fn tier(&self, rows: u32) -> Option<&Tier> {
        self.tiers.iter().find(|tier| tier.contains(rows))
    }

    /// Where each unit has its place on the device, in the order of [`Plan::units`].
    pub fn locations(&self) -> Vec<Location> {
        let mut locations = vec![Location::Host; self.units.len()];
        for (chunk, held) in self.chunks.iter().enumerate() {
            for &(id, offset) in &held.units {
                locations[id.index()] = Location::Chunk { chunk, offset };
            }
        }
        for (group, held) in self.ring.groups.iter().enumerate() {
            for &(id, offset) in &held.units {
                locations[id.index()] = Location::Ring { group, offset };
            }
        }
        locations
    }

    /// How many leading chunks two plans of one model have in common: what a change from one to
    /// the other may leave where it is.
    pub fn shared_chunks(&self, other: &Plan) -> usize {
        let pairs = self.chunks.iter().zip(&other.chunks);
        pairs.take_while(|(mine, theirs)| mine == theirs).count()
    }
}
