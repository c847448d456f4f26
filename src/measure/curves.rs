//! How long an operation takes over batch sizes.

use std::time::Duration;

use super::clock::{middle, quantity, seconds_of, Pace};
use super::engine::Engine;
use super::error::MeasureError;
use super::graph::Graph;
use super::place::{Filler, Operands, Place};
use super::traffic::{Beside, Traffic};
use pipeshard_plan::profile::{Curve, Op, Point, Processor, Quantity};

/// Operations in one graph at most, and graphs of one series.
const MOST_NODES: usize = 256;
const MOST_GRAPHS: usize = 16;
/// A rest as long as the CPU has in a streamed prompt. Behind 50 ms nothing was seen on a machine where 200 ms cost 5.
const REST: Duration = Duration::from_millis(250);
const RESTS: usize = 3;

/// One processor, its memory, and how it is to be measured.
pub(super) struct Bench<'e, 'b> {
    pub on: Processor,
    pub engine: &'e Engine,
    pub place: Place<'b>,
    /// Batch sizes in tokens, rising.
    pub batches: &'e [u32],
    pub pace: Pace,
    /// What one repetition should take, in seconds: long compared with the cost of submitting it.
    pub repetition: f64,
    /// Bytes per second that are certainly not exceeded, for a first guess.
    pub best_rate: f64,
    /// An operation that is predicted to take longer than this many seconds is left out.
    pub longest: f64,
    /// Batch sizes up to which the copy lane's influence is measured.
    pub busy_up_to: u32,
}

/// What reading memory takes.
pub(super) struct Read {
    /// Seconds of one operation.
    pub alone: Quantity,
    /// The same while copies are under way, and what the link gets meanwhile.
    pub busy: Option<Beside>,
    /// Additional seconds for a series of operations after a rest.
    pub wake: Quantity,
}

/// Graphs that are run in turn, how many operations each has, and about how many seconds it takes.
struct Series<'b> {
    graphs: Vec<Graph<'b>>,
    nodes: usize,
    seconds: f64,
}

impl<'b> Bench<'_, 'b> {
    /// The curve of `op`; without points where it cannot be measured here: an unknown type, no room, no kernel.
    pub fn curve(
        &self,
        op: &Op,
        traffic: &Traffic<'b>,
        filler: &mut Filler<'_, 'b>,
    ) -> Result<Curve, MeasureError> {
        let mut curve = Curve {
            on: self.on,
            op: op.clone(),
            points: Vec::new(),
        };
        let Some(operands) = self.place.prepare(op, filler)? else {
            return Ok(curve);
        };
        // a CPU is faster at one moment than at the next, and what it takes for one token decides most
        let mut moments = Vec::new();
        for &tokens in self.batches {
            if curve.points.len() == 3 {
                moments.extend(self.token_again(&operands, &curve)?);
            }
            let last = curve
                .points
                .last()
                .map_or((0, 0.0), |p| (p.rows, p.seconds));
            let guess = match last.0 {
                0 => op.work(tokens).bytes / self.best_rate,
                rows if last.1 * f64::from(tokens) / f64::from(rows) > self.longest => break,
                _ => last.1,
            };
            // where inputs and outputs do not fit, fewer tokens may
            let halves = std::iter::successors(Some(tokens), |tokens| Some(tokens / 2));
            let mut found = None;
            for tokens in halves.take_while(|tokens| *tokens > last.0) {
                found = self
                    .series(&operands, tokens, guess)?
                    .map(|series| (tokens, series));
                if found.is_some() {
                    break;
                }
            }
            let Some((tokens, series)) = found else {
                break;
            };
            let time = self.time(&series)?;
            let busy = match tokens <= self.busy_up_to {
                true => self.time_beside(&series, time.median, traffic)?,
                false => None,
            };
            curve.points.push(Point {
                rows: tokens,
                seconds: time.median,
                spread: time.spread,
                copy_busy: busy.map(|beside| beside.seconds),
            });
        }
        moments.extend(self.token_again(&operands, &curve)?);
        if let (Some(point), false) = (curve.points.first_mut(), moments.is_empty()) {
            moments.push(Quantity {
                median: point.seconds,
                spread: point.spread,
            });
            let time = middle(moments);
            (point.seconds, point.spread) = (time.median, time.spread);
        }
        Ok(curve)
    }

    /// What one token takes the CPU now, if the curve begins with that. What chooses its experts is made anew: larger batches have
    /// written over it.
    fn token_again(
        &self,
        operands: &Operands,
        curve: &Curve,
    ) -> Result<Option<Quantity>, MeasureError> {
        let first = curve.points.first().filter(|point| point.rows == 1);
        let (Processor::Cpu, Some(point)) = (self.on, first) else {
            return Ok(None);
        };
        let series = self.series(operands, 1, point.seconds)?;
        series.map(|series| self.time(&series)).transpose()
    }

    /// Batch 1 alone, during copies, and after a rest.
    pub fn read(
        &self,
        op: &Op,
        traffic: &Traffic<'b>,
        filler: &mut Filler<'_, 'b>,
    ) -> Result<Option<Read>, MeasureError> {
        let Some(operands) = self.place.prepare(op, filler)? else {
            return Ok(None);
        };
        let guess = op.work(1).bytes / self.best_rate;
        let Some(series) = self.series(&operands, 1, guess)? else {
            return Ok(None);
        };
        let alone = self.time(&series)?;
        let busy = self.time_beside(&series, alone.median, traffic)?;
        let wake = self.wake(&series, alone.median)?;
        Ok(Some(Read { alone, busy, wake }))
    }

    /// Graphs of a length that is worth measuring. `guess`: seconds of one operation, rather too few than too many.
    fn series(
        &self,
        operands: &Operands,
        tokens: u32,
        guess: f64,
    ) -> Result<Option<Series<'b>>, MeasureError> {
        let Some(probe) = self.place.graph(self.engine, operands, tokens, 0, 1)? else {
            return Ok(None);
        };
        let first = seconds_of(|| self.engine.run(&probe))?;
        // what comes first sets things up, and says too much: CUDA loads kernels and libraries then, and the CPU may be disturbed
        let again = seconds_of(|| self.engine.run(&probe))?;
        let one = match self.on {
            Processor::Cpu => first.min(again).max(guess),
            Processor::Gpu => again.max(guess),
        };
        let wanted = (self.repetition / one.max(1e-7)).ceil() as usize;
        let nodes = wanted.clamp(1, MOST_NODES);
        // the CPU goes round in all weights with one graph after the other, the device with one that it learns
        let (nodes, count) = match self.on {
            Processor::Gpu if tokens == 1 => (nodes.max(operands.copies).min(MOST_NODES), 1),
            Processor::Gpu => (nodes, 1),
            Processor::Cpu => (
                nodes,
                operands.turns(tokens).div_ceil(nodes).min(MOST_GRAPHS),
            ),
        };
        let mut graphs = Vec::with_capacity(count);
        for index in 0..count {
            let first = index * nodes;
            match self
                .place
                .graph(self.engine, operands, tokens, first, nodes)?
            {
                Some(graph) => graphs.push(graph),
                None => return Ok(None),
            }
        }
        // what a backend remembers of a graph (CUDA records it) it learns now
        let seconds = one * nodes as f64;
        if seconds < 5.0 * self.repetition {
            for _ in 0..2 {
                self.engine.run(&graphs[0])?;
            }
        }
        Ok(Some(Series {
            graphs,
            nodes,
            seconds,
        }))
    }

    /// Seconds of one operation, nothing else going on.
    fn time(&self, series: &Series<'b>) -> Result<Quantity, MeasureError> {
        let mut turn = 0;
        let mut pace = self.pace;
        if series.seconds > pace.limit.as_secs_f64() {
            pace.least = 1;
        }
        // the device works on one graph while the host submits the next
        let submits = match self.on {
            Processor::Gpu => (2.0 * self.repetition / series.seconds).clamp(1.0, 4.0) as usize,
            Processor::Cpu => 1,
        };
        let all = pace.repeat(|| {
            turn += 1;
            let graph = &series.graphs[turn % series.graphs.len()];
            seconds_of(|| {
                let submitted = (0..submits).try_for_each(|_| self.engine.submit(graph));
                self.engine.wait();
                submitted
            })
        })?;
        Ok(Quantity {
            median: all.median / (series.nodes * submits) as f64,
            ..all
        })
    }

    /// Returns by how many seconds longer all operations take after a rest.
    fn wake(&self, series: &Series<'b>, alone: f64) -> Result<Quantity, MeasureError> {
        let mut longer = Vec::with_capacity(RESTS);
        for turn in 0..RESTS {
            std::thread::sleep(REST);
            let graph = &series.graphs[turn % series.graphs.len()];
            let took = seconds_of(|| self.engine.run(graph))?;
            longer.push((took - alone * series.nodes as f64).max(0.0));
        }
        Ok(quantity(&mut longer))
    }

    /// The same while copies are under way; the median of some.
    fn time_beside(
        &self,
        series: &Series<'b>,
        alone: f64,
        traffic: &Traffic<'b>,
    ) -> Result<Option<Beside>, MeasureError> {
        let mut lasting = alone * series.nodes as f64 * 2.5;
        let mut found: Vec<Beside> = Vec::new();
        let start = std::time::Instant::now();
        let limit = self.pace.limit.max(Duration::from_millis(5));
        let least = match series.seconds > limit.as_secs_f64() {
            true => 1,
            false => 3,
        };
        while found.len() < least || (start.elapsed() < limit && found.len() < 25) {
            let graph = &series.graphs[found.len() % series.graphs.len()];
            match traffic.beside(&mut lasting, || self.engine.run(graph))? {
                Some(beside) => found.push(beside),
                None => return Ok(None),
            }
        }
        found.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let middle = found[found.len() / 2];
        Ok(Some(Beside {
            seconds: middle.seconds / series.nodes as f64,
            link: middle.link,
        }))
    }
}
