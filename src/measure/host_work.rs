//! What one thread of the host does for a pass: looking up embeddings, and storing to a KV cache.

use super::clock::{seconds_of, Pace};
use super::engine::Engine;
use super::error::MeasureError;
use super::graph::{write, Graph};
use super::place::Room;
use pipeshard_plan::profile::HostCosts;
use pipeshard_sys as ffi;

/// Tokens of a pass: fewer than threads share.
const TOKENS: i64 = 128;
/// Rows of the table of embeddings and of the KV cache, at most: more than a core's own caches hold.
const MOST_ROWS: i64 = 4096;
/// Elements of an embedding.
const WIDTH: i64 = 4096;
/// Floats of a token's keys, of which two figures tell what a row takes and what a float takes.
const FLOATS: [i64; 2] = [256, 1024];

/// Numbers of rows out of `rows`, far from each other.
fn scattered(rows: i64) -> impl Iterator<Item = i64> {
    (0..TOKENS).map(move |token| (token * 1237) % rows)
}

/// Seconds of one pass with `graph`, at the pace.
fn seconds(engine: &Engine, graph: &Graph, pace: Pace) -> Result<f64, MeasureError> {
    engine.run(graph)?;
    let took = pace.repeat(|| seconds_of(|| engine.run(graph)))?;
    Ok(took.median)
}

/// Measures with one thread: `engine` has no more. `table` has room for the embeddings and for a KV cache, `rest` for activations.
pub(super) fn measure(
    engine: &Engine,
    (table, rest): (Room<'_>, Room<'_>),
    pace: Pace,
) -> Result<HostCosts, MeasureError> {
    let rows = (table.bytes as i64 / (2 * WIDTH)).min(MOST_ROWS);
    let activations = 4096 + 4 * TOKENS * WIDTH;
    if rows < TOKENS || rest.bytes < activations as u64 {
        return Ok(HostCosts::ASSUMED);
    }
    let ids = (rest.buffer, rest.offset);
    let values = (rest.buffer, rest.offset + 4096);

    let graph = Graph::new(4)?;
    let half = ffi::GGML_TYPE_F16;
    let embeddings = graph.tensor(half, [WIDTH, rows, 1], table.buffer, table.offset)?;
    let wanted = graph.tensor(ffi::GGML_TYPE_I32, [TOKENS, 1, 1], ids.0, ids.1)?;
    let numbers: Vec<u8> = scattered(rows)
        .flat_map(|row| (row as i32).to_ne_bytes())
        .collect();
    write(ids.0, ids.1, &numbers)?;
    graph.rows_of(embeddings, wanted, values)?;
    let looked_up = seconds(engine, &graph, pace)? / (TOKENS * WIDTH) as f64;

    let mut stores = [0.0; 2];
    for (floats, took) in FLOATS.into_iter().zip(&mut stores) {
        let graph = Graph::new(5)?;
        let cache = graph.tensor(half, [floats, rows, 1], table.buffer, table.offset)?;
        let wanted = graph.tensor(ffi::GGML_TYPE_I64, [TOKENS, 1, 1], ids.0, ids.1)?;
        let numbers: Vec<u8> = scattered(rows).flat_map(i64::to_ne_bytes).collect();
        write(ids.0, ids.1, &numbers)?;
        let keys = [floats, TOKENS, 1];
        let keys = graph.tensor(ffi::GGML_TYPE_F32, keys, values.0, values.1)?;
        graph.store_rows(cache, keys, wanted)?;
        *took = seconds(engine, &graph, pace)? / TOKENS as f64;
    }
    let per_float = (stores[1] - stores[0]) / (FLOATS[1] - FLOATS[0]) as f64;
    let per_float = per_float.max(0.0);
    let per_row = (stores[0] - per_float * FLOATS[0] as f64).max(0.0);
    Ok(HostCosts::measured(looked_up, per_row, per_float))
}
