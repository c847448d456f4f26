//! The experts of a few tokens divided between the device and the CPU: a graph rewrite.
//!
//! In a layer whose experts are on the host, the operations on them
//!
//! ```text
//! up = experts(x, chosen)   gate = experts(x, chosen)   activation(gate, up)   down = experts(activation, chosen)
//! ```
//!
//! are put in twice: on the CPU for the last of those that each token has chosen, then on the device for the first, which it fetches
//! while the CPU computes; and the results, side by side in the order of choice, take the place of the whole. So the sum over
//! experts is formed from the same terms in the same order. What does not look like that (biases, adapters, results that somebody
//! else reads) is left to the CPU as a whole.

use super::nodes::{graph_nodes, is_view, sources, Backends};
use crate::arena::unit::LoadedUnit;
use crate::lanes::fetch::{ChoiceLayout, ExpertFetcher, ExpertStack};
use crate::rewrite::{compute, room, set_nodes, Tensor, TensorContext};
use pipeshard_plan::plan::{ExpertLayer, UnitId};
use pipeshard_sys as ffi;
use std::collections::{HashMap, HashSet};

/// Nodes that are put in for a layer at most.
const NODES: usize = 10;
/// Further tensors that they need: memory that experts are fetched to, and their numbers.
const LEAVES: usize = 4;

/// A layer that was divided.
#[derive(Debug)]
pub struct DividedLayer {
    /// Where its experts are fetched to.
    pub kit: usize,
    /// Its tensors of experts.
    pub stacks: Vec<ExpertStack>,
    /// The router's choice.
    pub chosen: Tensor,
    /// How the choices of the tokens lie in it.
    pub choice: ChoiceLayout,
}

/// What a split does for a divided layer, by the layer's index.
#[derive(Debug, Clone, Copy, Default)]
pub struct SplitShare {
    /// The CPU's part: the device's begins to be fetched.
    pub fetches: Option<usize>,
    /// The device's part.
    pub reads: Option<usize>,
}

/// The divided layers of a graph.
#[derive(Debug, Default)]
pub struct Divided {
    /// In order of execution.
    pub layers: Vec<DividedLayer>,
    /// Which layer a node belongs to, and whether it is in the CPU's part.
    part_of: HashMap<usize, (usize, bool)>,
    /// The first node of each layer's CPU part.
    begins: HashSet<usize>,
    splits: Vec<SplitShare>,
}

// SAFETY: pointers to weights and to tensors of a graph that lives as long as this describes it, used under the runtime's lock.
unsafe impl Send for Divided {}

impl Divided {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.layers.clear();
        self.part_of.clear();
        self.begins.clear();
        self.splits.clear();
    }

    /// Reports whether a new split has to start at this node: the choice has to be known before, also where the CPU makes it.
    pub fn cuts(&self, node: usize) -> bool {
        self.begins.contains(&node)
    }

    /// The next split consists of these nodes.
    pub fn add_split(&mut self, nodes: &[Tensor]) {
        let mut share = SplitShare::default();
        if !self.layers.is_empty() {
            for node in nodes {
                match self.part_of.get(&(*node as usize)) {
                    Some(&(layer, true)) => share.fetches = Some(layer),
                    Some(&(layer, false)) => share.reads = Some(layer),
                    None => {}
                }
            }
        }
        self.splits.push(share);
    }

    /// What this split does.
    pub fn share(&self, split: usize) -> SplitShare {
        self.splits.get(split).copied().unwrap_or_default()
    }
}

/// What dividing is decided from.
pub struct Divider<'a> {
    /// Which unit a loaded tensor is.
    pub index: &'a HashMap<usize, UnitId>,
    /// The units.
    pub units: &'a [LoadedUnit],
    /// By unit, whether its layer's experts are divided.
    pub shared: &'a [bool],
    /// What the device's share is fetched with.
    pub fetcher: &'a ExpertFetcher,
    /// Who computes.
    pub backends: Backends,
    /// Nodes that were sent to the CPU.
    pub on_cpu: &'a HashMap<usize, ()>,
}

/// The operations on one layer's experts.
struct Found<'a> {
    layer: &'a ExpertLayer,
    choice: ChoiceLayout,
    gate: Tensor,
    /// None where one tensor holds both.
    up: Option<Tensor>,
    activation: Tensor,
    down: Tensor,
    /// Who reads the result, and as which source.
    readers: Vec<(Tensor, usize)>,
}

impl Divider<'_> {
    /// Divides what can be. Returns the divided layers and how many nodes were put in.
    ///
    /// # Safety
    /// `graph` is a valid graph that has been decided about and not been split yet. `context` holds nothing that is still used.
    pub unsafe fn divide(
        &self,
        graph: *mut ffi::ggml_cgraph,
        context: &mut Option<TensorContext>,
        replaced: usize,
    ) -> (Divided, u64) {
        let mut divided = Divided::default();
        let nodes = graph_nodes(graph).to_vec();
        let found = self.find(&nodes);
        if found.is_empty() {
            return (divided, 0);
        }
        // both the graph and the scheduler's table of tensors have to hold what is put in
        let mut known: HashSet<usize> = nodes.iter().map(|&node| node as usize).collect();
        nodes
            .iter()
            .for_each(|&node| known.extend(sources(node).map(|s| s as usize)));
        let room = room(graph, known.len() + replaced);
        let most = (room.tensors / (NODES + LEAVES)).min(room.nodes / NODES);
        let Some(context) = TensorContext::emptied(context, found.len() * (NODES + LEAVES)) else {
            return (divided, 0);
        };
        let mut removed: HashSet<usize> = HashSet::new();
        let mut inserted: HashMap<usize, Vec<Tensor>> = HashMap::new();
        for found in found.into_iter().take(most) {
            if let Some(parts) = self.put_in(context, &found, &mut divided) {
                let whole = [
                    Some(found.gate),
                    found.up,
                    Some(found.activation),
                    Some(found.down),
                ];
                removed.extend(whole.into_iter().flatten().map(|node| node as usize));
                inserted.insert(found.down as usize, parts);
            }
        }
        let mut order: Vec<Tensor> = Vec::with_capacity(nodes.len() + NODES * inserted.len());
        for &node in &nodes {
            match inserted.remove(&(node as usize)) {
                Some(parts) => order.extend(parts),
                None if removed.contains(&(node as usize)) => {}
                None => order.push(node),
            }
        }
        let more = order.len().saturating_sub(nodes.len());
        set_nodes(graph, &order);
        (divided, more as u64)
    }

    /// The layers whose operations look as expected.
    unsafe fn find(&self, nodes: &[Tensor]) -> Vec<Found<'_>> {
        let layout = self.fetcher.layout();
        let mut readers: HashMap<usize, Vec<(Tensor, usize)>> = HashMap::new();
        for &node in nodes {
            for (slot, &source) in (*node).src.iter().enumerate() {
                if !source.is_null() && (self.unit_of(source).is_some() || is_inner(source)) {
                    readers
                        .entry(source as usize)
                        .or_default()
                        .push((node, slot));
                }
            }
        }
        let downs = nodes.iter().copied();
        downs
            .filter_map(|down| self.layer_of(down, &readers, &layout.layers))
            .collect()
    }

    /// The unit that the operation on experts reads, if it is one of a divided layer.
    unsafe fn unit_of(&self, node: Tensor) -> Option<usize> {
        if (*node).op != ffi::GGML_OP_MUL_MAT_ID || !self.on_cpu.contains_key(&(node as usize)) {
            return None;
        }
        let id = self.index.get(&((*node).src[0] as usize))?.index();
        let unit = &self.units[id];
        (self.shared[id] && unit.pinned() && unit.experts().is_some()).then_some(id)
    }

    unsafe fn layer_of<'l>(
        &self,
        down: Tensor,
        readers: &HashMap<usize, Vec<(Tensor, usize)>>,
        layers: &'l [ExpertLayer],
    ) -> Option<Found<'l>> {
        let last = self.unit_of(down)?;
        let activation = (*down).src[1];
        if !is_inner(activation) || self.unit_of(activation).is_some() {
            return None;
        }
        let (gate, up) = ((*activation).src[0], (*activation).src[1]);
        let first = self.unit_of(gate)?;
        let mut units = vec![first, last];
        let up = (!up.is_null()).then_some(up);
        if let Some(up) = up {
            units.push(self.unit_of(up)?);
        }
        units.sort_unstable();
        let layer = layers.iter().find(|layer| layer.units == units)?;
        let alike = |up: Tensor| (*up).src[1] == (*gate).src[1] && (*up).src[2] == (*gate).src[2];
        let (chosen, x) = ((*gate).src[2], (*gate).src[1]);
        let tokens = (*chosen).ne[1];
        let rows = u32::try_from(tokens).ok()?;
        let fetched = self.fetcher.shape().experts(rows);
        let choice = ChoiceLayout {
            rows: rows as usize,
            stride: (*chosen).nb[1],
            experts: fetched as usize,
        };
        let of_tokens = matches!((*x).ne, [_, 1, of, 1] if of == tokens)
            && matches!((*chosen).ne, [_, _, 1, 1]);
        let numbers = (*chosen).type_ == ffi::GGML_TYPE_I32 && (*chosen).nb[0] == 4;
        let used = u32::try_from((*chosen).ne[0]).ok()?;
        let whole = (*down).src[2] == chosen && up.is_none_or(alike);
        // else an expert that many chose would be computed another way by each for its share of them
        let one_by_one = |&unit: &usize| rows <= self.units[unit].rows_one_by_one();
        let few = self.fetcher.serves(choice) && units.iter().all(one_by_one);
        let few = few && used > fetched && fetched > 0;
        if !(of_tokens && numbers && whole && few) {
            return None;
        }
        // nothing else reads what is in between
        let once = |node: Tensor| {
            let wanted = (*node).flags & ffi::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
            !wanted
                && readers
                    .get(&(node as usize))
                    .is_some_and(|readers| readers.len() == 1)
        };
        if !(once(gate) && up.is_none_or(once) && once(activation)) {
            return None;
        }
        let readers = readers.get(&(down as usize))?;
        let direct = |&(reader, _): &(Tensor, usize)| !is_view(reader);
        let asked = (*down).flags & ffi::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
        if asked || !readers.iter().all(direct) {
            return None;
        }
        Some(Found {
            layer,
            choice,
            gate,
            up,
            activation,
            down,
            readers: readers.clone(),
        })
    }

    /// Makes both parts and has the readers of the whole read them; the nodes in order, or nothing if the device lacks an operation.
    unsafe fn put_in(
        &self,
        context: &TensorContext,
        found: &Found<'_>,
        divided: &mut Divided,
    ) -> Option<Vec<Tensor>> {
        let fetched = found.choice.experts;
        let count = fetched as i64;
        let context = context.raw();
        let (chosen, x) = ((*found.gate).src[2], (*found.gate).src[1]);
        let [used, tokens, ..] = (*chosen).ne;
        let kit = found.layer.kit;
        let places = &self.fetcher.layout().kits[kit];
        let at = |bytes: u64| self.fetcher.memory().base().wrapping_add(bytes as usize);
        let place = |tensor: Tensor, bytes: u64| {
            (*tensor).buffer = self.fetcher.memory().raw();
            (*tensor).data = at(bytes).cast();
            tensor
        };
        let stack_of = |node: Tensor| {
            let source = (*node).src[0];
            let id = self.index.get(&(source as usize))?.index();
            let position = found.layer.units.iter().position(|&unit| unit == id)?;
            let unit = &self.units[id];
            let experts = unit.experts()?;
            let ([columns, rows, ..], kind) = ((*source).ne, (*source).type_);
            let most = (count * tokens).min(i64::from(experts));
            let target = ffi::ggml_new_tensor_3d(context, kind, columns, rows, most);
            let target = place(target, places.tensors[position]);
            Some(ExpertStack {
                host: unit.host(),
                each: unit.bytes() / experts as usize,
                experts,
                seams: unit.seams(),
                target,
            })
        };
        let (gate, down) = (stack_of(found.gate)?, stack_of(found.down)?);
        let up = match found.up {
            Some(up) => Some((up, stack_of(up)?)),
            None => None,
        };
        let part = |ids: Tensor, weights: &dyn Fn(Tensor, &ExpertStack) -> Tensor| {
            let product = |of: Tensor, stack: &ExpertStack, input: Tensor| {
                let made = ffi::ggml_mul_mat_id(context, weights(of, stack), input, ids);
                ffi::ggml_set_name(made, (*of).name.as_ptr());
                made
            };
            let mut nodes = vec![product(found.gate, &gate, x)];
            nodes.extend(up.map(|(node, stack)| product(node, &stack, x)));
            let kind = (*found.activation).op_params[0] as ffi::ggml_glu_op;
            let swapped = (*found.activation).op_params[1] != 0;
            let active = match nodes[..] {
                [gate, up] => ffi::ggml_glu_split(context, gate, up, kind),
                _ => ffi::ggml_glu(context, nodes[0], kind, swapped),
            };
            (*active).op_params = (*found.activation).op_params;
            ffi::ggml_set_name(active, (*found.activation).name.as_ptr());
            nodes.push(active);
            nodes.push(product(found.down, &down, active));
            nodes
        };
        let rest = ffi::ggml_view_2d(
            context,
            chosen,
            used - count,
            tokens,
            (*chosen).nb[1],
            4 * fetched,
        );
        let numbers = ffi::ggml_new_tensor_2d(context, ffi::GGML_TYPE_I32, count, tokens);
        let numbers = place(numbers, places.numbers);
        let on_cpu = part(rest, &|of, _| (*of).src[0]);
        let on_device = part(numbers, &|_, stack| stack.target);
        let (cpu_result, device_result) = (*on_cpu.last()?, *on_device.last()?);
        let both = ffi::ggml_concat(context, device_result, cpu_result, 1);
        ffi::ggml_set_name(both, (*found.down).name.as_ptr());
        let Backends { sched, device, cpu } = self.backends;
        let able = |&node: &Tensor| ffi::ggml_backend_supports_op(device, node);
        if !on_device.iter().all(able) || !able(&both) {
            return None;
        }
        let layer = divided.layers.len();
        divided
            .begins
            .extend(on_cpu.first().map(|&node| node as usize));
        for &node in &on_cpu {
            ffi::ggml_backend_sched_set_tensor_backend(sched, node, cpu);
            divided.part_of.insert(node as usize, (layer, true));
        }
        for &node in on_device.iter().chain([&both]) {
            ffi::ggml_backend_sched_set_tensor_backend(sched, node, device);
            divided.part_of.insert(node as usize, (layer, false));
        }
        for &(reader, slot) in &found.readers {
            (*reader).src[slot] = both;
        }
        let mut order = vec![rest];
        order.extend(on_cpu);
        order.extend(on_device);
        order.push(both);
        order.iter().for_each(|&node| compute(node));
        let stacks = [Some(gate), up.map(|(_, stack)| stack), Some(down)];
        divided.layers.push(DividedLayer {
            kit,
            stacks: stacks.into_iter().flatten().collect(),
            chosen,
            choice: found.choice,
        });
        Some(order)
    }
}

/// An activation with a gate, which may stand between two operations on experts.
unsafe fn is_inner(node: Tensor) -> bool {
    (*node).op == ffi::GGML_OP_GLU
}
