/* The seam between llama.cpp and pipeshard: one versioned table of C callbacks.
 *
 * ggml's scheduler and a few places in llama.cpp ask the questions below; libpipeshard.so answers them. The provider is
 * process-wide, so that every scheduler is covered. Without a provider each call site is one test of a null pointer
 * and everything runs as in stock llama.cpp.
 *
 * Rules of the contract:
 *  - Callbacks are called on the thread that drives the scheduler. They may use ggml's public functions on the
 *    scheduler that they are given, but never split, reserve, allocate or compute a graph with it.
 *  - Nothing unwinds out of a callback.
 *  - Callbacks that return nothing cannot fail. Where one returns false or a status other than GGML_STATUS_SUCCESS, the
 *    caller fails the operation that it is in the middle of, cleanly.
 *  - The table and the strings in it stay valid for the life of the process.
 */
#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GGML_SCHED_HOOK_ABI 9

/* A context that is about to be made. */
struct ggml_sched_hook_context {
    uint32_t n_ctx;         /* tokens in all; what the model was trained for where the user gave none */
    bool     n_ctx_is_free; /* the user gave none: the provider may set n_ctx */
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_expert_used; /* of a token, the most of any layer; 0 for a dense model */
    int32_t  n_threads;     /* of the CPU, for generation */
    int32_t  type_k;        /* enum ggml_type of the KV cells */
    int32_t  type_v;
    uint32_t n_outputs_max; /* rows of a batch that may get logits; 0: all of them */
    bool     kv_unified;    /* the sequences share one KV cache */
    bool     swa_full;      /* layers with a sliding window cache the whole context */
};

struct ggml_sched_hook {
    /* handshake: checked by ggml_sched_hook_set before anything else is used */
    uint32_t     abi;         /* GGML_SCHED_HOOK_ABI */
    uint32_t     table_size;  /* sizeof(struct ggml_sched_hook) */
    uint32_t     tensor_size; /* sizeof(struct ggml_tensor) */
    const char * build_id;    /* GGML_PIPESHARD_BUILD_ID that the provider was built with */

    void * user; /* first argument of every callback */

    /* --- scheduler ------------------------------------------------------------------------------------------------ */

    /* The compute buffers of a scheduler are freed, and it is about to be: its address may come back. */
    void (*sched_freed)(void * user, ggml_backend_sched_t sched);

    /* A graph is about to be divided into splits; a scheduler's first graph is how the callback learns of the scheduler. It may
     * replace nodes' sources by device tensors, pin nodes to a backend (ggml_backend_sched_set_tensor_backend) and rewrite
     * nodes. An input that no node reads any more loses GGML_TENSOR_FLAG_INPUT: nobody sets it. measuring: the graph will never run.
     * Called once more for the same graph, with nodes and sources as they were, if scratch_wanted refused what it takes. */
    bool (*graph_begin)(void * user, ggml_backend_sched_t sched, struct ggml_cgraph * graph, bool measuring);

    /* Must a new split start at this node? Asked in order of execution, once per node that computes. */
    bool (*cut)(void * user, ggml_backend_sched_t sched, const struct ggml_tensor * node);

    /* Split number `split` of the graph runs these nodes on this backend. Called for every split, in order. */
    void (*split_made)(void * user, ggml_backend_sched_t sched, int split, ggml_backend_t backend, struct ggml_cgraph * nodes);

    /* The compute buffers of this scheduler on this backend are about to become `size` bytes (in all). */
    bool (*scratch_wanted)(void * user, ggml_backend_sched_t sched, ggml_backend_t backend, size_t size, bool measuring);
    /* The device refused compute buffers that scratch_wanted allowed: what is left is what ggml_backend_sched_get_buffer_size says. */
    void (*scratch_failed)(void * user, ggml_backend_sched_t sched);
    /* The graph that graph_begin saw last will not run: it was measured, it was refused, or there is no memory for it. */
    void (*graph_dropped)(void * user, ggml_backend_sched_t sched);

    /* An input of a split is about to be copied from one backend to another, to a tensor of the same layout.
     * true: the callback sees to it that `copy` is there when the split is computed, and that `input` stays until then. */
    bool (*input_copy)(void * user, ggml_backend_sched_t sched, ggml_backend_t from, ggml_backend_t to,
                       const struct ggml_tensor * input, struct ggml_tensor * copy);

    enum ggml_status (*pass_begin)  (void * user, ggml_backend_sched_t sched);
    /* The split's inputs are copied, or asked about; it is about to be computed. */
    enum ggml_status (*split_before)(void * user, ggml_backend_sched_t sched, int split, ggml_backend_t backend);
    enum ggml_status (*split_after) (void * user, ggml_backend_sched_t sched, int split, ggml_backend_t backend);
    void             (*pass_end)    (void * user, ggml_backend_sched_t sched, enum ggml_status status);

    /* Grows whenever graphs that were split before must not be reused. Asked ahead of each pass of this scheduler. */
    uint64_t (*epoch)(void * user, ggml_backend_sched_t sched);

    /* --- llama ---------------------------------------------------------------------------------------------------- */

    /* The device that computes; NULL (after logging why) refuses to load the model. */
    ggml_backend_dev_t (*device)(void * user);

    /* A model's weights are loaded, in host memory; `tensors` is only valid during the call. false refuses the model. */
    bool (*weights_ready)(void * user, const void * model, struct ggml_tensor * const * tensors, size_t n_tensors);
    void (*weights_gone) (void * user, const void * model);

    /* The ubatch of a context that is about to be made: n_ubatch, or what suits the budget where the user gave none. */
    uint32_t (*ubatch)(void * user, const void * model, struct ggml_sched_hook_context * context);

    /* Should the KV cells (or the recurrent state) of this layer, so many bytes, be kept in host memory? */
    bool (*kv_on_host)(void * user, const void * model, const void * owner, int layer, size_t size);
    void (*kv_gone)   (void * user, const void * owner);
    /* Did kv_on_host answer true for any KV of this layer? */
    bool (*layer_on_host)(void * user, const void * model, int layer);

    /* Work of the host that the device waits for. Calls part(data, i) once for each i below `parts`, on this thread and on others
     * side by side; all are over on return. */
    void (*in_parts)(void * user, size_t parts, void (*part)(void * data, size_t i), void * data);

    /* The context that `ubatch` was asked for on this thread is made. */
    void (*context_made)(void * user, const void * model);
    /* It could not be made, or has no room for the graphs that it wants to run from now on. true: try again, the answers will
     * differ. */
    bool (*context_failed)(void * user, const void * model);

    /* --- mtmd: encoders of images and sound ----------------------------------------------------------------------- */

    /* The encoders in this file will be loaded once the next model's context is made, to compute on `device` (NULL: the first
     * GPU): its plan leaves room for them. image_max_tokens: the user's limit on an image, or not above 0. */
    void (*encoder_expected)(void * user, const char * path, ggml_backend_dev_t device, int32_t image_max_tokens);

    /* An encoder of this file is being loaded: that of the tensors whose names begin with `prefix` ("v", "a", "a.gen.code"), which
     * are in `tensors` and have no memory yet. May it compute on its scheduler's first backend? false (after logging why) fails the
     * load. Where *host is set, that buffer holds the weights, all tensors lie in it, and the caller frees it. Then the device has
     * weights and compute buffers only while something is encoded: the caller measures graphs without reserving buffers for them
     * (ggml_backend_sched_reserve_size), and ends each encode with ggml_backend_sched_release and encode_done. Else the weights may
     * take `size` bytes of the backend's memory. */
    bool (*encoder_wanted)(void * user, ggml_backend_sched_t sched, const char * path, const char * prefix,
                           struct ggml_context * tensors, size_t size, ggml_backend_buffer_t * host);
    /* What was encoded was read, or will not be: compute buffers are freed. */
    void (*encode_done) (void * user, ggml_backend_sched_t sched);
    /* They are freed, after the scheduler, or never were there. */
    void (*encoder_gone)(void * user, ggml_backend_sched_t sched);
};

/* Attaches the provider; NULL detaches. Refuses (and logs) a table of another ABI, layout or build. */
GGML_API bool                           ggml_sched_hook_set(const struct ggml_sched_hook * hook);
GGML_API const struct ggml_sched_hook * ggml_sched_hook_get(void);

/* Frees the compute buffers of a scheduler, which asks for others when its next graph is allocated. */
GGML_API void                           ggml_backend_sched_release(ggml_backend_sched_t sched);

#ifdef __cplusplus
}
#endif
