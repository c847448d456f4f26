// What ggml allocates, and as what: the functions below say so to Rust, around ggml's own. build.rs has the linker bring calls from
// Rust and between files of ggml here (--wrap).
#include <stdbool.h>
#include <stddef.h>

struct compute {
    int (*begins)(void);
    void (*ended)(int before);
};

void pipeshard_memory_tell(const struct compute * tell);
int  pipeshard_memory_is_buffer(void);

static const struct compute * compute;

// Set once, before ggml is used.
void pipeshard_memory_tell(const struct compute * tell) {
    compute = tell;
}

// This thread is making a buffer: ggml can do without. What else a backend allocates it has to have.
static __thread int in_buffer;

int pipeshard_memory_is_buffer(void) {
    return in_buffer;
}

void * __real_ggml_backend_buft_alloc_buffer(void * type, size_t size);
void * __wrap_ggml_backend_buft_alloc_buffer(void * type, size_t size);

void * __wrap_ggml_backend_buft_alloc_buffer(void * type, size_t size) {
    in_buffer++;
    void * buffer = __real_ggml_backend_buft_alloc_buffer(type, size);
    in_buffer--;
    return buffer;
}

// A scheduler's compute buffers.

bool __real_ggml_gallocr_reserve_n(void * allocator, void * graph, const int * nodes, const int * leafs);
bool __wrap_ggml_gallocr_reserve_n(void * allocator, void * graph, const int * nodes, const int * leafs);
bool __real_ggml_gallocr_alloc_graph(void * allocator, void * graph);
bool __wrap_ggml_gallocr_alloc_graph(void * allocator, void * graph);

bool __wrap_ggml_gallocr_reserve_n(void * allocator, void * graph, const int * nodes, const int * leafs) {
    int  before = compute != NULL ? compute->begins() : 0;
    bool done   = __real_ggml_gallocr_reserve_n(allocator, graph, nodes, leafs);
    if (compute != NULL) {
        compute->ended(before);
    }
    return done;
}

bool __wrap_ggml_gallocr_alloc_graph(void * allocator, void * graph) {
    int  before = compute != NULL ? compute->begins() : 0;
    bool done   = __real_ggml_gallocr_alloc_graph(allocator, graph);
    if (compute != NULL) {
        compute->ended(before);
    }
    return done;
}
