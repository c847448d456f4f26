/* libpipeshard.so.0 on a card with the host's allocators and the host's CUDA context: what the host counts is what the library holds, and
 * what NVML sees; nothing is in the primary context; streams are those of the host's context.
 * host_memory MODEL LARGE_MIB SMALL_MIB; a line per result, FAIL where a promise is broken. */
#define _GNU_SOURCE
#include "pipeshard.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define FAIL(...) (printf("FAIL " __VA_ARGS__), putchar('\n'), failures++)

static int failures;

/* CUDA's driver, without its header: 0 is success. */
static int (*init)(unsigned);
static int (*context_create)(void **, unsigned, int);
static int (*context_destroy)(void *);
static int (*context_push)(void *);
static int (*context_pop)(void **);
static int (*context_current)(void **);
static int (*primary_state)(int, unsigned *, int *);
static int (*allocate_device)(unsigned long long *, size_t);
static int (*free_device)(unsigned long long);
static int (*allocate_pinned)(void **, size_t, unsigned);
static int (*free_pinned)(void *);
static int (*stream_context)(void *, void **);

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } nvml_process;
static int (*nvml_processes)(void *, unsigned *, nvml_process *);
static void * nvml_card;

static void * symbol(void * library, const char * name) {
    void * found = library ? dlsym(library, name) : NULL;
    if (!found) { printf("FAIL there is no %s\n", name); exit(1); }
    return found;
}

#define FIND(library, function, name) (*(void **) &(function) = symbol(library, name))

static void find_functions(void) {
    void * cuda = dlopen("libcuda.so.1", RTLD_NOW), * nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    int (*nvml_init)(void), (*by_index)(unsigned, void **);
    FIND(cuda, init, "cuInit");
    FIND(cuda, context_create, "cuCtxCreate_v2");
    FIND(cuda, context_destroy, "cuCtxDestroy_v2");
    FIND(cuda, context_push, "cuCtxPushCurrent_v2");
    FIND(cuda, context_pop, "cuCtxPopCurrent_v2");
    FIND(cuda, context_current, "cuCtxGetCurrent");
    FIND(cuda, primary_state, "cuDevicePrimaryCtxGetState");
    FIND(cuda, allocate_device, "cuMemAlloc_v2");
    FIND(cuda, free_device, "cuMemFree_v2");
    FIND(cuda, allocate_pinned, "cuMemHostAlloc");
    FIND(cuda, free_pinned, "cuMemFreeHost");
    FIND(cuda, stream_context, "cuStreamGetCtx");
    FIND(nvml, nvml_init, "nvmlInit_v2");
    FIND(nvml, by_index, "nvmlDeviceGetHandleByIndex_v2");
    FIND(nvml, nvml_processes, "nvmlDeviceGetComputeRunningProcesses_v3");
    if (init(0) || nvml_init() || by_index(0, &nvml_card)) { printf("FAIL no card\n"); exit(1); }
}

/* MiB of the only process that is on the card. */
static long process_mib(void) {
    nvml_process all[8];
    unsigned count = 8;
    return nvml_processes(nvml_card, &count, all) || count != 1 ? -1 : (long) (all[0].used / MIB);
}

/* What was given. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { unsigned long long at; size_t size; int kind; } live[8192];
static int live_count, given;
static uint64_t held[7], rounded; /* by kind; in all, in the driver's pages of 2 MiB, if each has its own */
static void * context;
static int wrong_context;

static uint64_t pages(size_t size) { return (size + 2 * MIB - 1) / (2 * MIB) * (2 * MIB); }

static void check_context(void) {
    void * now = NULL;
    if (context_current(&now) || now != context) { wrong_context++; }
}

static void * allocate(void * user, int kind, size_t size, size_t alignment) {
    unsigned long long at = 0;
    (void) user;
    check_context();
    if (allocate_device(&at, size) || at % alignment) { return NULL; }
    pthread_mutex_lock(&lock);
    live[live_count].at = at, live[live_count].size = size, live[live_count++].kind = kind;
    held[kind] += size, rounded += pages(size), given++;
    pthread_mutex_unlock(&lock);
    return (void *) at;
}

static void release(void * user, int kind, void * memory, size_t size) {
    (void) user;
    check_context();
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < live_count && live[i].at != (unsigned long long) memory) { i++; }
    if (i == live_count || live[i].kind != kind || live[i].size != size) { FAIL("%p comes back, which was not given so", memory); }
    else { live[i] = live[--live_count]; held[kind] -= size, rounded -= pages(size); }
    pthread_mutex_unlock(&lock);
    if (free_device((unsigned long long) memory)) { FAIL("cuMemFree"); }
}

static void * allocate_host(void * user, int kind, size_t size, size_t alignment) {
    void * memory = NULL;
    (void) user; (void) kind; (void) alignment;
    check_context();
    return allocate_pinned(&memory, size, 1) ? NULL : memory;
}

static void release_host(void * user, int kind, void * memory, size_t size) {
    (void) user; (void) kind; (void) size;
    check_context();
    if (free_pinned(memory)) { FAIL("cuMemFreeHost"); }
}

static void need(const char * what, int code, pipeshard_error * error) {
    if (code) { printf("FAIL %s: %s: %s\n", what, pipeshard_result_name(code), pipeshard_error_text(error)); exit(1); }
}

static pipeshard_device * gpu;
static long least_difference = 1 << 30, most_difference = -1;

/* The library's books, the host's and the driver's. */
static void look(const char * when) {
    pipeshard_limits now = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_get_limits(gpu, &now, NULL);
    uint64_t ours[7] = { 0, now.held_weights, now.held_kv, now.held_ring, now.held_buffers, now.held_vision, now.held_other }, sum = 0;
    printf("%s:", when);
    for (int kind = 1; kind < 7; kind++) {
        printf(" %llu/%llu", (unsigned long long) (held[kind] / MIB), (unsigned long long) (ours[kind] / MIB));
        sum += held[kind];
        /* each allocation may be rounded up in the library's books; pools and their like are known by what the driver tells */
        if (kind < 6 && (held[kind] > ours[kind] || ours[kind] - held[kind] > 64 * 2 * MIB)) { FAIL("kind %d", kind); }
    }
    long process = process_mib(), difference = process - (long) (rounded / MIB);
    printf(" MiB host/library; host %llu, in pages %llu, process %ld, of its own %ld\n", (unsigned long long) (sum / MIB),
        (unsigned long long) (rounded / MIB), process, difference);
    least_difference = difference < least_difference ? difference : least_difference;
    most_difference = difference > most_difference ? difference : most_difference;
}

int main(int argc, char ** argv) {
    if (argc < 4) { return 2; }
    uint64_t sizes[] = { strtoull(argv[2], 0, 0) * MIB, strtoull(argv[3], 0, 0) * MIB };
    void * popped = NULL, * streams[64];
    size_t count = 0;
    unsigned flags = 0;
    int primary = 1;
    pipeshard_error * e = NULL;
    pipeshard_model * model = NULL;
    pipeshard_session * chat = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    find_functions();
    if (context_create(&context, 0, 0) || context_pop(&popped)) { printf("FAIL no context\n"); return 1; }
    pipeshard_device_config d = PIPESHARD_INIT(pipeshard_device_config);
    pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config s = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_generate_config g = PIPESHARD_INIT(pipeshard_generate_config);
    pipeshard_budget_request r = PIPESHARD_INIT(pipeshard_budget_request);
    d.budget = sizes[0];
    d.cache_dir = getenv("HOST_CACHE");
    d.allocate = allocate, d.release = release, d.allocate_host = allocate_host, d.release_host = release_host;
    d.cuda_context = context;
    m.path = argv[1];
    s.context = 4096;
    g.max_tokens = 16;
    need("device", pipeshard_device_open(&d, &gpu, &e), e);
    need("model", pipeshard_model_open(gpu, &m, &model, &e), e);
    need("session", pipeshard_session_open(model, &s, &chat, &e), e);
    look("open");
    for (int i = 0; i < 6; i++) {
        char when[64];
        need("clear", pipeshard_session_clear(chat, &e), e);
        need("add", pipeshard_session_add(chat, NULL, "Once upon a time there was", &e), e);
        need("generate", pipeshard_generate(chat, &g, NULL, NULL, &e), e);
        snprintf(when, sizeof when, "answer within %llu MiB", (unsigned long long) (sizes[i % 2] / MIB));
        look(when);
        r.budget = sizes[(i + 1) % 2];
        need("budget", pipeshard_set_budget(gpu, &r, NULL, &e), e);
    }
    if (pipeshard_streams(gpu, streams, 64, &count, NULL) || count == 0 || count > 64) { FAIL("%zu streams", count); }
    for (size_t i = 0; i < count && i < 64; i++) {
        void * of = NULL;
        if (stream_context(streams[i], &of) || of != context) { FAIL("stream %zu is not of the host's context", i); }
    }
    if (primary_state(0, &flags, &primary) || primary) { FAIL("the primary context is in use"); }
    printf("%zu streams, %d allocations; what the process has of its own changed by %ld MiB\n", count, given, most_difference - least_difference);
    need("sleep", pipeshard_sleep(gpu, &e), e);
    look("asleep");
    pipeshard_session_close(chat);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    if (live_count) { FAIL("%d allocations are left", live_count); }
    if (wrong_context) { FAIL("%d callbacks with another context", wrong_context); }
    if (context_current(&popped) || popped) { FAIL("a context is left on this thread"); }
    context_destroy(context);
    printf("%d promises broken\n", failures);
    return failures != 0;
}
