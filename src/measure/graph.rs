//! Graphs of ggml's whose tensors are placed by hand.

use std::marker::PhantomData;

use super::error::MeasureError;
use crate::lanes::device::Buffer;
use pipeshard_sys as ffi;

/// A tensor of a [`Graph`]; good as long as that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor(*mut ffi::ggml_tensor);

impl Tensor {
    /// ggml's handle.
    pub fn raw(self) -> *mut ffi::ggml_tensor {
        self.0
    }
}

/// Tensors in given places, and the order in which they are computed. What it refers to outlives it.
pub(super) struct Graph<'b> {
    context: *mut ffi::ggml_context,
    graph: *mut ffi::ggml_cgraph,
    tensors_left: std::cell::Cell<usize>,
    places: PhantomData<&'b Buffer>,
}

impl<'b> Graph<'b> {
    /// Room for so many tensors, nodes included.
    pub fn new(tensors: usize) -> Result<Self, MeasureError> {
        // SAFETY: the context has room for the tensors and the graph; both results are checked.
        unsafe {
            let context = ffi::ggml_init(ffi::ggml_init_params {
                mem_size: (tensors + 1) * ffi::ggml_tensor_overhead()
                    + ffi::ggml_graph_overhead_custom(tensors.max(1), false),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if context.is_null() {
                return Err(MeasureError::NoContext(tensors));
            }
            Ok(Graph {
                context,
                graph: ffi::ggml_new_graph_custom(context, tensors.max(1), false),
                tensors_left: std::cell::Cell::new(tensors),
                places: PhantomData,
            })
        }
    }

    /// ggml's handle.
    pub fn raw(&self) -> *mut ffi::ggml_cgraph {
        self.graph
    }

    fn count(&self) -> Result<(), MeasureError> {
        let left = self.tensors_left.get().checked_sub(1);
        self.tensors_left
            .set(left.ok_or(MeasureError::NoContext(0))?);
        Ok(())
    }

    fn place(
        &self,
        tensor: *mut ffi::ggml_tensor,
        buffer: &'b Buffer,
        offset: u64,
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: the tensor is this context's and the buffer is live; that the tensor fits is checked here, because ggml ends
        // the process where it does not.
        unsafe {
            let bytes = ffi::ggml_backend_buffer_get_alloc_size(buffer.raw(), tensor) as u64;
            let room = buffer.size().saturating_sub(offset);
            if bytes > room {
                return Err(MeasureError::NoRoom { bytes, room });
            }
            let address = buffer.base().wrapping_add(offset as usize);
            ffi::ggml_backend_tensor_alloc(buffer.raw(), tensor, address.cast());
        }
        Ok(Tensor(tensor))
    }

    /// A tensor at an offset in a buffer.
    pub fn tensor(
        &self,
        kind: ffi::ggml_type,
        ne: [i64; 3],
        buffer: &'b Buffer,
        offset: u64,
    ) -> Result<Tensor, MeasureError> {
        self.count()?;
        // SAFETY: the context has room for it: it was counted.
        let raw = unsafe { ffi::ggml_new_tensor_3d(self.context, kind, ne[0], ne[1], ne[2]) };
        self.place(raw, buffer, offset)
    }

    /// A KV cache at an offset in a buffer, as attention sees it: elements of a head, tokens, heads. A token's heads are adjacent.
    pub fn cache(
        &self,
        kind: ffi::ggml_type,
        [head, kv_tokens, heads]: [i64; 3],
        buffer: &'b Buffer,
        offset: u64,
    ) -> Result<Tensor, MeasureError> {
        self.count()?;
        // SAFETY: as for `tensor`; the strides describe the same bytes in another order.
        let raw = unsafe {
            let raw = ffi::ggml_new_tensor_3d(self.context, kind, head, kv_tokens, heads);
            let row = ffi::ggml_row_size(kind, head);
            (*raw).nb[1] = row * heads as usize;
            (*raw).nb[2] = row;
            raw
        };
        self.place(raw, buffer, offset)
    }

    /// Computes `raw`, which belongs to this context, into an offset of a buffer, after all that was added before.
    fn add(
        &self,
        raw: *mut ffi::ggml_tensor,
        buffer: &'b Buffer,
        offset: u64,
    ) -> Result<Tensor, MeasureError> {
        self.count()?;
        let node = self.place(raw, buffer, offset)?;
        // SAFETY: the graph was made for as many nodes as tensors were counted.
        unsafe {
            (*raw).flags |= ffi::GGML_TENSOR_FLAG_COMPUTE as i32;
            ffi::ggml_graph_add_node(self.graph, raw);
        }
        Ok(node)
    }

    /// The product of weights `[columns, rows]` with rows of f32 `[columns, tokens]`.
    pub fn product(
        &self,
        weights: Tensor,
        x: Tensor,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: both are this graph's, and callers give them as many columns.
        let raw = unsafe { ffi::ggml_mul_mat(self.context, weights.0, x.0) };
        self.add(raw, buffer, offset)
    }

    /// The same with the experts `ids` `[used, tokens]` of a stack.
    pub fn experts(
        &self,
        stack: Tensor,
        x: Tensor,
        ids: Tensor,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: as for `product`; there is a list of experts for each row of `x`.
        let raw = unsafe { ffi::ggml_mul_mat_id(self.context, stack.0, x.0, ids.0) };
        self.add(raw, buffer, offset)
    }

    /// Rows `ids` of a table, as f32.
    pub fn rows_of(
        &self,
        table: Tensor,
        ids: Tensor,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: both are this graph's; ids are within the table, as callers fill them.
        let raw = unsafe { ffi::ggml_get_rows(self.context, table.0, ids.0) };
        self.add(raw, buffer, offset)
    }

    /// Stores rows of f32 to the rows `ids` of a cache.
    pub fn store_rows(
        &self,
        cache: Tensor,
        values: Tensor,
        ids: Tensor,
    ) -> Result<Tensor, MeasureError> {
        self.count()?;
        // SAFETY: all are this graph's and have rows of one length; ids are within the cache, as callers fill them. The result is a
        // view of the cache, which has its place, and the graph has room for it: it was counted.
        unsafe {
            let raw = ffi::ggml_set_rows(self.context, cache.0, values.0, ids.0);
            if (*raw).buffer.is_null() {
                ffi::ggml_backend_view_init(raw);
            }
            (*raw).flags |= ffi::GGML_TENSOR_FLAG_COMPUTE as i32;
            ffi::ggml_graph_add_node(self.graph, raw);
            Ok(Tensor(raw))
        }
    }

    /// Attention of queries `[head, tokens, heads]` to a cache, with a mask `[kv_tokens, tokens]`.
    pub fn attention(
        &self,
        [queries, keys, values, mask]: [Tensor; 4],
        head: u32,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        let scale = 1.0 / f64::from(head.max(1)).sqrt();
        // SAFETY: all are this graph's, and callers give them matching sizes.
        let raw = unsafe {
            let raw = ffi::ggml_flash_attn_ext(
                self.context,
                queries.0,
                keys.0,
                values.0,
                mask.0,
                scale as f32,
                0.0,
                0.0,
            );
            ffi::ggml_flash_attn_ext_set_prec(raw, ffi::GGML_PREC_F32);
            raw
        };
        self.add(raw, buffer, offset)
    }

    /// The sum of two tensors of one shape: an operation that does next to nothing.
    pub fn sum(
        &self,
        a: Tensor,
        b: Tensor,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: both are this graph's and have one shape.
        let raw = unsafe { ffi::ggml_add(self.context, a.0, b.0) };
        self.add(raw, buffer, offset)
    }

    /// A multiple of a tensor: an operation that does next to nothing.
    pub fn scaled(
        &self,
        a: Tensor,
        (buffer, offset): (&'b Buffer, u64),
    ) -> Result<Tensor, MeasureError> {
        // SAFETY: it is this graph's.
        let raw = unsafe { ffi::ggml_scale(self.context, a.0, 0.5) };
        self.add(raw, buffer, offset)
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the code that runs a graph waits for it before it is dropped.
        unsafe { ffi::ggml_free(self.context) }
    }
}

/// Writes to a buffer, wherever it is, before this returns.
pub(super) fn write(buffer: &Buffer, offset: u64, data: &[u8]) -> Result<(), MeasureError> {
    let graph = Graph::new(1)?;
    let place = graph.tensor(ffi::GGML_TYPE_I8, [data.len() as i64, 1, 1], buffer, offset)?;
    // SAFETY: the tensor has as many bytes as the data.
    unsafe { ffi::ggml_backend_tensor_set(place.0, data.as_ptr().cast(), 0, data.len()) };
    Ok(())
}
