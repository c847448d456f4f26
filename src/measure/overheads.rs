//! Overheads apart from bytes and products: launches, waking threads, hand-overs between the lanes.

use std::time::Instant;

use super::clock::{middle, quantity, seconds_of, Pace};
use super::engine::Engine;
use super::error::MeasureError;
use super::graph::Graph;
use super::place::Room;
use pipeshard_plan::constants::machine::ASSUMED_PASS;
use pipeshard_plan::profile::{Overheads, Quantity};
use pipeshard_sys as ffi;

/// Floats of the tiny tensors: 16 KiB, which is what a token's activations are.
const FLOATS: i64 = 4096;
const BYTES: usize = 4 * FLOATS as usize;
/// Operations in a long row of tiny ones.
const LONG: usize = 512;

/// A row of operations that do next to nothing, with their first input.
struct Tiny<'b> {
    graph: Graph<'b>,
    input: super::graph::Tensor,
    result: super::graph::Tensor,
}

/// `count` operations, each on the result of the one before. `sums`: such as all threads of the CPU take part in.
fn tiny(room: Room<'_>, count: usize, sums: bool) -> Result<Tiny<'_>, MeasureError> {
    let graph = Graph::new(2 * count + 4)?;
    let place = |index: u64| room.offset + index * BYTES as u64;
    let float = ffi::GGML_TYPE_F32;
    let input = graph.tensor(float, [FLOATS, 1, 1], room.buffer, place(0))?;
    let mut result = input;
    for index in 0..count {
        let to = (room.buffer, place(1 + index as u64 % 2));
        result = match sums {
            true => graph.sum(result, input, to)?,
            false => graph.scaled(result, to)?,
        };
    }
    Ok(Tiny {
        graph,
        input,
        result,
    })
}

/// Of what was measured at several moments, each figure's middle.
pub(super) fn middle_of(moments: &[Overheads]) -> Overheads {
    let of = |figure: fn(&Overheads) -> Quantity| middle(moments.iter().map(figure).collect());
    Overheads {
        to_cpu: of(|o| o.to_cpu),
        to_gpu: of(|o| o.to_gpu),
        launch: of(|o| o.launch),
        cpu_op: of(|o| o.cpu_op),
        pass: of(|o| o.pass),
        ..Overheads::default()
    }
}

/// Seconds of one operation in a long row.
fn in_a_row(
    engine: &Engine,
    room: Room<'_>,
    sums: bool,
    pace: Pace,
) -> Result<Quantity, MeasureError> {
    let long = tiny(room, LONG, sums)?;
    for _ in 0..3 {
        engine.run(&long.graph)?;
    }
    let all = pace.repeat(|| seconds_of(|| engine.run(&long.graph)))?;
    Ok(Quantity {
        median: all.median / LONG as f64,
        ..all
    })
}

/// Measures the overheads. A hand-over is what happens between a split of the device and one of the CPU (`lanes::hand_over`):
/// the device computes and copies its result to the host, which waits for both, computes on the CPU, and submits the copy back
/// with what the device computes next.
pub(super) fn measure(
    (gpu, gpu_room): (&Engine, Room<'_>),
    (cpu, cpu_room): (&Engine, Room<'_>),
    pace: Pace,
) -> Result<Overheads, MeasureError> {
    let launch = in_a_row(gpu, gpu_room, false, pace)?;
    let cpu_op = in_a_row(cpu, cpu_room, true, pace)?;
    let device = tiny(gpu_room, 1, false)?;
    let host = tiny(cpu_room, 1, true)?;
    let activations = gpu.host_memory(BYTES as u64)?;
    let at = activations.base();
    let (mut to_cpu, mut to_gpu) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 16 || (start.elapsed() < pace.limit && rounds < 2000) {
        let begin = Instant::now();
        // SAFETY: tensor and memory have as many bytes; the host touches neither, and the wait below comes before the end of both.
        unsafe { gpu.upload(device.input, at, BYTES) };
        gpu.submit(&device.graph)?;
        let submitted = Instant::now();
        // SAFETY: as above.
        unsafe { gpu.download(device.result, at, BYTES) };
        gpu.wait();
        cpu.run(&host.graph)?;
        let end = Instant::now();
        // the first rounds set things up
        if rounds >= 4 {
            let there = (end - submitted).as_secs_f64() - launch.median - cpu_op.median;
            to_cpu.push(there.max(0.0));
            to_gpu.push((submitted - begin).as_secs_f64());
        }
        rounds += 1;
    }
    Ok(Overheads {
        to_cpu: quantity(&mut to_cpu),
        to_gpu: quantity(&mut to_gpu),
        launch,
        cpu_op,
        pass: Quantity::stated(ASSUMED_PASS),
        // a rest is measured with what reads the host's memory
        ..Overheads::default()
    })
}
