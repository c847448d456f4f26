//! Encoders of images and sound (`--mmproj`) that compute on the device.
//!
//! Owns what is known of each by its scheduler: the file's header, its weights if it takes turns with the language model, the tensors
//! of its rewritten graph, what has to be true when that runs; and what all of them have done. How much memory they hold is in the
//! accounts' ledger.

use super::graph::nodes::graph_nodes;
use super::pass_error::PassError;
use super::pool_estimate::bytes_for;
use super::tower::{About, Tower};
use crate::report::{EncoderReport, VisionReport};
use crate::rewrite::TensorContext;
use crate::trace::Since;
use crate::vision::attention::{self, batch_windows, nodes_of, Declined};
use crate::vision::header::{EncoderShape, Kind};
use crate::vision::windows::Grid;
use crate::vision::{blocks, order, rows, Backends};
use pipeshard_sys as ffi;
use std::collections::HashMap;
use std::ffi::CStr;
use std::time::Instant;

/// clip.cpp's name for an image's pixels.
const PIXELS: &CStr = c"inp_raw";

/// A graph that was rewritten for windows of an image, which have to be in the order that the rewrite expects.
#[derive(Debug, Clone, Copy)]
struct Windows {
    grid: Grid,
    /// What holds the order when the graph runs.
    order: *const ffi::ggml_tensor,
    /// Attentions, and windows of all of them.
    attentions: u64,
    windows: u64,
}

// SAFETY: a tensor of the graph that its scheduler has split last, looked at while that runs.
unsafe impl Send for Windows {}

/// An encoder.
pub struct Encoder {
    file: String,
    kind: Kind,
    /// Its weights, if it takes turns with the language model.
    tower: Option<Tower>,
    /// None where its file's header could not be read.
    shape: Option<EncoderShape>,
    /// Tensors that were put in for windows, for pieces, and for blocks.
    tensors: [Option<TensorContext>; 3],
    windows: Option<Windows>,
    /// Pieces that feed-forward networks of the latest graph are computed in.
    pieces: u64,
    /// Blocks of queries that its attention is computed in.
    blocks: u64,
    /// Rows of activations of the graph that was split last, where they are known.
    rows: u64,
    /// That graph has the mask that it came with.
    has_mask: bool,
    /// What its latest graph is about, as far as compute buffers are concerned.
    about: Option<About>,
    /// When its pass began, by the trace and by the host's clock, and the bytes of weights that had been copied until then.
    began: Option<(Since, Instant, u64)>,
}

/// All encoders.
#[derive(Default)]
pub struct Encoders {
    by_sched: HashMap<usize, Encoder>,
    /// What was noted of those that were ever there.
    seen: Vec<EncoderReport>,
    counts: VisionReport,
    /// The language model has given way, and does not have its memory back yet.
    lent: bool,
    /// The user's limit on the tokens of an image; 0 for none.
    pub limit: u64,
}

/// What was copied for a tower.
fn add_copies(counts: &mut VisionReport, tower: &Tower) {
    if let Some(arena) = tower.residency.arena() {
        counts.bytes_streamed += arena.streamed_bytes();
        counts.bytes_uploaded += arena.uploaded_bytes();
        counts.stalls += arena.stalls();
    }
    counts.staged_bytes += tower.residency.copies().staged_bytes;
}

/// Bytes of weights that were copied for a tower's encodes.
fn copied(tower: &Tower) -> u64 {
    tower
        .residency
        .arena()
        .map_or(0, |arena| arena.streamed_bytes())
}

/// The outcome of an encoder's graph.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begun {
    /// What the device's backend is expected to take from its pool, in bytes.
    pub pool: u64,
    /// Nodes that were put in.
    pub nodes: u64,
}

impl Encoder {
    /// As messages call it.
    pub fn name(&self) -> String {
        format!("the encoder of {} in {}", self.kind.name(), self.file)
    }

    /// Its shape, and tokens of the graph that was split last, if a limit on an image's tokens makes it smaller.
    pub fn limited(&self) -> Option<(&EncoderShape, u64)> {
        let shape = self.shape.as_ref().filter(|shape| shape.is_limited())?;
        let tokens = self.rows / shape.rows_per_token;
        (tokens > 0).then_some((shape, tokens))
    }

    /// Tokens of the largest image, where the user's limit is `limit` (0: none), and of the largest whose compute buffers take no more
    /// than `room` bytes (0: none does); none where no limit makes images smaller.
    pub fn tokens_within(&self, room: u64, limit: u64) -> Option<(u64, u64)> {
        let shape = self.shape.as_ref().filter(|shape| shape.is_limited())?;
        let most = (shape.rows(limit) / shape.rows_per_token).max(1);
        Some((most, shape.tokens_within(room, most).unwrap_or(0)))
    }

    /// Bytes of compute buffers that it is expected to want when it is loaded.
    pub fn scratch_at_load(&self) -> u64 {
        let shape = self.shape.as_ref();
        shape.map_or(0, |shape| shape.scratch(shape.rows_at_load(0)))
    }
}

impl Encoders {
    /// An encoder is being loaded.
    pub fn add(&mut self, sched: usize, file: String, kind: Kind, shape: Option<EncoderShape>) {
        let added = Encoder {
            file,
            kind,
            tower: None,
            shape,
            tensors: [None, None, None],
            windows: None,
            pieces: 0,
            blocks: 0,
            rows: 0,
            has_mask: false,
            about: None,
            began: None,
        };
        self.by_sched.insert(sched, added);
    }

    /// It takes turns with the language model.
    pub fn set_tower(&mut self, sched: usize, tower: Tower) {
        if let Some(encoder) = self.by_sched.get_mut(&sched) {
            encoder.tower = Some(tower);
        }
    }

    /// It is gone.
    pub fn remove(&mut self, sched: usize) {
        let gone = self.by_sched.remove(&sched);
        if let Some(tower) = gone.and_then(|gone| gone.tower) {
            add_copies(&mut self.counts, &tower);
        }
    }

    /// Reports whether the encoder with this scheduler takes turns with the language model.
    pub fn takes_turns(&self, sched: usize) -> bool {
        self.tower(sched).is_some()
    }

    /// The weights of one that does.
    pub fn tower(&self, sched: usize) -> Option<&Tower> {
        self.by_sched.get(&sched)?.tower.as_ref()
    }

    /// The same.
    pub fn tower_mut(&mut self, sched: usize) -> Option<&mut Tower> {
        self.by_sched.get_mut(&sched)?.tower.as_mut()
    }

    /// The weights of all that do, by their schedulers.
    pub fn towers_mut(&mut self) -> impl Iterator<Item = (usize, &mut Tower)> {
        let all = self.by_sched.iter_mut();
        all.filter_map(|(&sched, encoder)| Some((sched, encoder.tower.as_mut()?)))
    }

    /// Reports whether weights of one that takes turns have device memory.
    pub fn hold_memory(&self) -> bool {
        let mut towers = self.by_sched.values().filter_map(|e| e.tower.as_ref());
        towers.any(|tower| tower.residency.holds_memory())
    }

    /// A graph has operations on weights that were left to ggml's scheduler.
    pub fn note_left(&mut self) {
        let why = "the device does not support an operation on weights: ggml's scheduler places it";
        *self.counts.declined.entry(why.to_owned()).or_default() += 1;
    }

    /// A graph was split before there was memory for it.
    pub fn note_split_in_vain(&mut self) {
        self.counts.split_twice += 1;
    }

    /// The language model gave way to an encoder, and lost so many bytes of residents.
    pub fn note_lent(&mut self, evicted: u64) {
        self.counts.phase_changes += 1;
        self.counts.bytes_evicted += evicted;
        self.lent = true;
    }

    /// The arena of the language model has its shape again, for which `uploaded` bytes were copied.
    pub fn note_restored(&mut self, uploaded: u64) {
        if std::mem::take(&mut self.lent) {
            self.counts.phase_changes += 1;
            self.counts.bytes_restored += uploaded;
        }
    }

    /// Reports whether a scheduler is an encoder's.
    pub fn knows(&self, sched: usize) -> bool {
        self.by_sched.contains_key(&sched)
    }

    /// The encoder with this scheduler.
    pub fn get(&self, sched: usize) -> Option<&Encoder> {
        self.by_sched.get(&sched)
    }

    /// Reports whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_sched.is_empty()
    }

    /// Reports whether an encoder like this one, of its file and kind, was noted before: llama.cpp makes one to see what it
    /// takes.
    pub fn was_seen(&self, sched: usize) -> bool {
        self.by_sched.get(&sched).is_some_and(|encoder| {
            let mut seen = self.seen.iter();
            seen.any(|of| of.file == encoder.file && of.kind == encoder.kind.name())
        })
    }

    /// Notes what an encoder holds now, in bytes, for the report.
    pub fn note_held(&mut self, sched: usize, weights: u64, scratch: u64) {
        let Some(encoder) = self.by_sched.get(&sched) else {
            return;
        };
        let same = |seen: &&mut EncoderReport| {
            seen.file == encoder.file && seen.kind == encoder.kind.name()
        };
        let seen = match self.seen.iter_mut().find(same) {
            Some(seen) => seen,
            None => {
                let shape = encoder.shape.as_ref();
                self.seen.push(EncoderReport {
                    file: encoder.file.clone(),
                    kind: encoder.kind.name().to_owned(),
                    projector: shape.map(|s| s.projector.clone()).unwrap_or_default(),
                    in_turn: encoder.tower.is_some(),
                    ..EncoderReport::default()
                });
                let last = self.seen.len() - 1;
                &mut self.seen[last]
            }
        };
        seen.weights = seen.weights.max(weights);
        seen.scratch_peak = seen.scratch_peak.max(scratch);
    }

    /// What the latest graph of an encoder is about.
    pub fn about(&self, sched: usize) -> Option<About> {
        self.by_sched.get(&sched)?.about
    }

    /// A graph of an encoder is about to be split: rewrites it where that is known to give the same.
    ///
    /// # Safety
    /// `graph` is a valid graph of the scheduler in `backends`, which has not split it yet.
    pub unsafe fn begin(&mut self, graph: *mut ffi::ggml_cgraph, backends: Backends) -> Begun {
        let Some(encoder) = self.by_sched.get_mut(&(backends.sched as usize)) else {
            return Begun::default();
        };
        let pixels = ffi::ggml_graph_get_tensor(graph, PIXELS.as_ptr());
        let patch = encoder.shape.as_ref().and_then(|shape| shape.windowed);
        encoder.windows = None;
        encoder.has_mask = false;
        encoder.about = pixels.as_ref().map(|pixels| pixels.ne);
        encoder.rows = match (encoder.shape.as_ref(), pixels.as_ref()) {
            (Some(shape), Some(pixels)) if shape.kind == Kind::Images => {
                shape.rows_of_pixels(pixels.ne)
            }
            _ => rows_of(graph),
        };
        let mut begun = Begun::default();
        let projector = encoder.shape.as_ref().map(|shape| &shape.projector[..]);
        if projector.is_some_and(order::pays) {
            order::finish_each(graph);
        }
        if let (Some(windowed), Some(pixels)) = (patch, pixels.as_ref()) {
            let [width, height, ..] = pixels.ne;
            let grid = Grid::of(width, height, windowed);
            let batched = match grid {
                Some(grid) => {
                    let windows = attention::Windows {
                        runs: &grid.runs(nodes_of),
                        patches: grid.patches(),
                        fills_mask: windowed.order.fills_mask(),
                    };
                    let order = windowed.order.input();
                    let order = ffi::ggml_graph_get_tensor(graph, order.as_ptr());
                    let batched = match order.is_null() {
                        true => Err(Declined::OtherMask),
                        false => batch_windows(graph, &mut encoder.tensors[0], backends, windows),
                    };
                    batched.map(|batched| batched.map(|batched| (grid, order, batched)))
                }
                None => Err(Declined::OtherMask),
            };
            match batched {
                Ok(Some((grid, order, batched))) => {
                    begun.nodes = batched.nodes;
                    encoder.windows = Some(Windows {
                        grid,
                        order,
                        attentions: batched.attentions,
                        windows: batched.windows,
                    });
                }
                Ok(None) => {}
                Err(why) => {
                    encoder.has_mask = true;
                    *self.counts.declined.entry(why.to_string()).or_default() += 1;
                }
            }
        }
        let divided = rows::divide(graph, &mut encoder.tensors[1], backends);
        encoder.pieces = divided.pieces;
        begun.nodes += divided.nodes;
        let divided = blocks::divide(graph, &mut encoder.tensors[2], backends);
        encoder.blocks = divided.blocks;
        begun.nodes += divided.nodes;
        let of_nodes = graph_nodes(graph).iter().map(|&node| bytes_for(node));
        begun.pool = of_nodes.max().unwrap_or(0);
        begun
    }

    /// The graph that was split last is about to run: its inputs are set.
    ///
    /// # Errors
    /// [`PassError::OtherWindows`] where it is about other windows than it was rewritten for.
    ///
    /// # Safety
    /// `sched` is an encoder's, and about to run its latest graph.
    pub unsafe fn check(&self, sched: usize) -> Result<(), PassError> {
        let windows = self.by_sched.get(&sched).and_then(|e| e.windows.as_ref());
        let Some(windows) = windows else {
            return Ok(());
        };
        let order = &*windows.order;
        let readable = !order.data.is_null()
            && !order.buffer.is_null()
            && ffi::ggml_backend_buffer_is_host(order.buffer)
            && order.type_ == ffi::GGML_TYPE_I32
            && order.ne[1..] == [1, 1, 1];
        let count = usize::try_from(order.ne[0]).unwrap_or(0);
        let known = readable
            && windows
                .grid
                .is_order(std::slice::from_raw_parts(order.data.cast::<i32>(), count));
        match known {
            true => Ok(()),
            false => Err(PassError::OtherWindows),
        }
    }

    /// A graph of an encoder that takes turns is about to run.
    pub fn began(&mut self, sched: usize, since: Since) {
        if let Some(encoder) = self.by_sched.get_mut(&sched) {
            let copied = encoder.tower.as_ref().map_or(0, copied);
            encoder.began = Some((since, Instant::now(), copied));
        }
    }

    /// Its result was read: since when it ran, its rows, and the bytes of weights that were copied for it. None where none ran.
    pub fn was_read(&mut self, sched: usize) -> Option<(Since, u64, u64)> {
        let encoder = self.by_sched.get_mut(&sched)?;
        let (since, began, before) = encoder.began.take()?;
        let copied = encoder.tower.as_ref().map_or(0, copied);
        let elapsed = u64::try_from(began.elapsed().as_micros());
        self.counts.encode_us += elapsed.unwrap_or(u64::MAX);
        Some((since, encoder.rows, copied.saturating_sub(before)))
    }

    /// Notes how the weights of one that takes turns are placed, and what all hold together while it computes, in bytes.
    pub fn note_phase(&mut self, sched: usize, held: u64) {
        self.counts.phase_peak = self.counts.phase_peak.max(held);
        let Some(encoder) = self.by_sched.get(&sched) else {
            return;
        };
        let Some(placed) = encoder.tower.as_ref().and_then(Tower::placed) else {
            return;
        };
        let mut seen = self.seen.iter_mut();
        let same = |seen: &&mut EncoderReport| {
            seen.file == encoder.file && seen.kind == encoder.kind.name()
        };
        if let Some(seen) = seen.find(same) {
            (seen.resident, seen.streamed) = (placed.resident, placed.streamed);
            seen.ring = seen.ring.max(placed.ring);
        }
    }

    /// A graph of the encoder has run.
    pub fn ran(&mut self, sched: usize) {
        let Some(encoder) = self.by_sched.get(&sched) else {
            return;
        };
        self.counts.encodes += 1;
        self.counts.rows += encoder.rows;
        self.counts.pieces += encoder.pieces;
        self.counts.blocks += encoder.blocks;
        self.counts.masks_kept += u64::from(encoder.has_mask);
        if let Some(windows) = &encoder.windows {
            self.counts.masks_skipped += 1;
            self.counts.attentions_batched += windows.attentions;
            self.counts.windows_batched += windows.windows;
        }
    }

    /// What they have done; none where there never was one.
    pub fn report(&self) -> Option<VisionReport> {
        if self.seen.is_empty() {
            return None;
        }
        let mut report = VisionReport {
            encoders: self.seen.clone(),
            ..self.counts.clone()
        };
        for tower in self.by_sched.values().filter_map(|e| e.tower.as_ref()) {
            add_copies(&mut report, tower);
        }
        Some(report)
    }
}

/// Rows of activations of an encoder's graph: the most that a product with a matrix of weights has in one of its first layers.
unsafe fn rows_of(graph: *mut ffi::ggml_cgraph) -> u64 {
    let nodes = graph_nodes(graph).iter();
    let products = nodes.filter(|&&node| (*node).op == ffi::GGML_OP_MUL_MAT);
    let of_weights = products.filter(|&&node| {
        let weights = (*node).src[0];
        (*weights).op == ffi::GGML_OP_NONE && (*weights).ne[2] == 1
    });
    let rows = of_weights.map(|&node| {
        let [_, rows, batch, others] = (*node).ne;
        [rows, batch, others]
            .map(|n| n.max(0) as u64)
            .iter()
            .product()
    });
    rows.max().unwrap_or(0)
}
