// What crates/pipeshard-capi/src/cuda.c does with the calls of ggml-cuda, between a CUDA runtime that only writes down what it is asked,
// and a host that gives, refuses or leaves it to CUDA. Linked as the library is (--wrap), with memory.c.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) ((condition) ? (void) 0 : (fprintf(stderr, "%s:%d: %s; said: %s\n", __FILE__, __LINE__, #condition, said), exit(1)))

static char said[256];

static void say(const char * what) {
    strncat(said, what, sizeof said - strlen(said) - 1);
}

static int was(const char * expected) {
    int same = strcmp(said, expected) == 0;
    if (same) {
        said[0] = 0;
    }
    return same;
}

// CUDA
static char block[64];

int cudaDeviceSynchronize(void) { return say("synchronize "), 0; }
int cudaMalloc(void ** memory, size_t size) { return say("malloc "), *memory = block + size, 0; }
int cudaFree(void * memory) { return say(memory ? "free " : "free-null "), 0; }
int cudaMallocHost(void ** memory, size_t size) { return say("malloc-host "), *memory = block + size, 0; }
int cudaFreeHost(void * memory) { return say(memory ? "free-host " : "free-null "), 0; }
int cudaStreamCreateWithFlags(void ** stream, unsigned flags) { return say("stream "), *stream = block, flags == 7 ? 2 : 0; }
int cudaStreamDestroy(void * stream) { return say(stream ? "stream-gone " : ""), 0; }

// ggml
void * ggml_backend_buft_alloc_buffer(void * type, size_t size);
int    ggml_gallocr_reserve_n(void * a, void * b, const int * c, const int * d);
int    ggml_gallocr_alloc_graph(void * a, void * b);

// The host
enum { FROM_CUDA, FROM_HOST, REFUSED };
static int  answer, asked_for_buffer, asked_page_locked;
static char of_host[64];

static int give(void ** memory, size_t size, int page_locked, int is_buffer) {
    asked_for_buffer = is_buffer, asked_page_locked = page_locked;
    *memory = answer == FROM_HOST ? of_host + size : NULL;
    return answer;
}

static int has(void * memory, int page_locked) {
    return (char *) memory >= of_host && (char *) memory < of_host + sizeof of_host && page_locked == asked_page_locked;
}

static void release(void * memory, int page_locked) {
    say(memory && page_locked == asked_page_locked ? "release " : "wrong ");
}

static void stream(void * stream, int is_open) {
    say(!stream ? "wrong " : is_open ? "opened " : "closed ");
}

static int  purpose = 6;
static int  begins(void) { return say("compute "), purpose; }
static void ended(int before) { say(before == purpose ? "computed " : "wrong "); }

struct supply { int (*give)(void **, size_t, int, int); int (*has)(void *, int); void (*release)(void *, int); void (*stream)(void *, int); };
struct compute { int (*begins)(void); void (*ended)(int); };
void pipeshard_cuda_tell(const struct supply * tell);
void pipeshard_memory_tell(const struct compute * tell);
int  allocates(void * out, int page_locked); // cuda_caller.c
int  frees(void * memory, int page_locked);
int  makes_stream(void ** stream, unsigned flags);
int  destroys_stream(void * stream);
void * makes_buffer(size_t size);
int  computes(void);

void * ggml_backend_buft_alloc_buffer(void * type, size_t size) {
    void * memory = NULL;
    return (void) type, (void) size, allocates(&memory, 0) ? NULL : memory;
}
int ggml_gallocr_reserve_n(void * a, void * b, const int * c, const int * d) { return say("reserve "), a == b && c == d; }
int ggml_gallocr_alloc_graph(void * a, void * b) { return say("graph "), a == b; }

int main(void) {
    const struct supply  supply  = { give, has, release, stream };
    const struct compute compute = { begins, ended };
    void *               memory  = NULL;
    // before anybody listens everything is CUDA's
    CHECK(allocates(&memory, 0) == 0 && was("malloc ") && frees(memory, 0) == 0 && was("free "));
    CHECK(makes_stream(&memory, 0) == 0 && was("stream ") && destroys_stream(memory) == 0 && was("stream-gone "));
    CHECK(computes() == 1 && was("reserve graph "));
    pipeshard_cuda_tell(&supply);
    pipeshard_memory_tell(&compute);
    for (int page_locked = 0; page_locked < 2; page_locked++) {
        answer = FROM_CUDA;
        CHECK(allocates(&memory, page_locked) == 0 && was(page_locked ? "malloc-host " : "malloc "));
        CHECK(asked_page_locked == page_locked && asked_for_buffer == 0);
        CHECK(frees(memory, page_locked) == 0 && was(page_locked ? "free-host " : "free "));
        answer = FROM_HOST;
        CHECK(allocates(&memory, page_locked) == 0 && was("") && (char *) memory == of_host + 16);
        // not before all work is done
        CHECK(frees(memory, page_locked) == 0 && was("synchronize release "));
        answer = REFUSED;
        CHECK(allocates(&memory, page_locked) == 2 && was("") && memory == NULL);
        CHECK(frees(NULL, page_locked) == 0 && was("free-null "));
    }
    // buffers, which can be done without
    answer = FROM_HOST;
    CHECK(makes_buffer(16) == of_host + 16 && asked_for_buffer == 1 && allocates(&memory, 0) == 0 && asked_for_buffer == 0);
    answer = REFUSED;
    CHECK(makes_buffer(16) == NULL && asked_for_buffer == 1);
    CHECK(computes() == 1 && was("compute reserve computed compute graph computed "));
    CHECK(makes_stream(&memory, 0) == 0 && was("stream opened ") && destroys_stream(memory) == 0 && was("closed stream-gone "));
    CHECK(makes_stream(&memory, 7) == 2 && was("stream "));
    return 0;
}
