/* Measures libpipeshard.so.0 on a card: budgets that change, cancelling, sleeping, opening and closing. NVML says what the process holds.
 * host MODEL LARGE_MIB SMALL_MIB CHANGES; a line per result, FAIL where a promise is broken. */
#define _GNU_SOURCE
#include "pipeshard.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)

static int failures;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void nap(double ms) { usleep((useconds_t) (ms * 1e3)); }

static void need(const char * what, int code, pipeshard_error * error) {
    if (code != PIPESHARD_OK) {
        printf("FAIL %s: %s: %s (%llu)\n", what, pipeshard_result_name(code), pipeshard_error_text(error),
            (unsigned long long) pipeshard_error_minimum(error));
        exit(1);
    }
}

/* NVML's structs of a process, version 3 of the call, and of memory. */
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } nvml_process;
typedef struct { unsigned long long total, free, used; } nvml_memory;
static int (*nvml_processes)(void *, unsigned *, nvml_process *);
static int (*nvml_memory_of)(void *, nvml_memory *);
static void * nvml_card;

static void nvml_open(void) {
    void * nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    int (*init)(void) = nvml ? (int (*)(void)) dlsym(nvml, "nvmlInit_v2") : NULL;
    int (*by_index)(unsigned, void **) = nvml ? (int (*)(unsigned, void **)) dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2") : NULL;
    if (!init || !by_index || init() || by_index(0, &nvml_card)) {
        printf("no NVML: the driver's figures are missing\n");
        return;
    }
    nvml_processes = (int (*)(void *, unsigned *, nvml_process *)) dlsym(nvml, "nvmlDeviceGetComputeRunningProcesses_v3");
    nvml_memory_of = (int (*)(void *, nvml_memory *)) dlsym(nvml, "nvmlDeviceGetMemoryInfo");
}

/* MiB of the whole card; nobody else is on it. */
static long card_mib(void) {
    nvml_memory memory;
    return nvml_memory_of && !nvml_memory_of(nvml_card, &memory) ? (long) (memory.used / MIB) : -1;
}

/* MiB of this process, or of the only process that NVML shows: containers number processes in their own way. */
static long process_mib(void) {
    nvml_process all[64];
    unsigned count = 64;
    if (!nvml_processes || nvml_processes(nvml_card, &count, all) || count == 0) { return -1; }
    for (unsigned i = 0; i < count; i++) {
        if (all[i].pid == (unsigned) getpid()) { return (long) (all[i].used / MIB); }
    }
    return count == 1 ? (long) (all[0].used / MIB) : -1;
}

static int by_size(const void * a, const void * b) {
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static void spread(const char * what, double * values, int count) {
    if (count == 0) { printf("%s: none\n", what); return; }
    qsort(values, count, sizeof *values, by_size);
    int last = (int) (0.99 * count);
    printf("%s: %d; median %.1f ms, 99th %.1f, most %.1f\n", what, count, values[count / 2], values[last < count ? last : count - 1], values[count - 1]);
}

static pipeshard_device * gpu;
static pipeshard_model * model;
static pipeshard_session * chat;
static char * prompt; /* about 4,000 tokens */
static long before;   /* MiB of the card ahead of everything */

static pipeshard_state state(void) {
    pipeshard_state s = PIPESHARD_INIT(pipeshard_state);
    pipeshard_session_get_state(chat, &s, NULL);
    return s;
}

static void submit(const char * text, unsigned tokens) {
    pipeshard_error * e = NULL;
    pipeshard_generate_config g = PIPESHARD_INIT(pipeshard_generate_config);
    g.max_tokens = tokens;
    need("clear", pipeshard_session_clear(chat, &e), e);
    need("add", pipeshard_session_add(chat, NULL, text, &e), e);
    need("submit", pipeshard_submit(chat, &g, &e), e);
}

/* Waits for the end; the code that it has. */
static int finish(void) {
    pipeshard_event event = PIPESHARD_INIT(pipeshard_event);
    for (;;) {
        int code = pipeshard_wait(chat, 120000, &event, NULL);
        if (code != PIPESHARD_OK) { return code; }
        if (event.kind == PIPESHARD_EVENT_DONE) { return 0; }
        if (event.kind == PIPESHARD_EVENT_ENDED) {
            if (event.code != PIPESHARD_E_CANCELLED) { printf("ended: %s\n", event.text); }
            return event.code;
        }
    }
}

/* Polls as a frame loop would: is something being done? 1 yes, 0 it has just ended. */
static int going(void) {
    pipeshard_event event = PIPESHARD_INIT(pipeshard_event);
    int code = pipeshard_wait(chat, 0, &event, NULL);
    if (code == PIPESHARD_E_TIMEOUT) { return 1; }
    if (code == PIPESHARD_OK && event.kind == PIPESHARD_EVENT_ENDED) { printf("FAIL ended: %s\n", event.text); failures++; }
    return code == PIPESHARD_OK && event.kind == PIPESHARD_EVENT_TEXT;
}

static void budgets(const char * what, const char * text, unsigned tokens, unsigned deadline, uint64_t large, uint64_t small, int count) {
    double * shrink = calloc(count, sizeof *shrink), * grow = calloc(count, sizeof *grow), * moved = calloc(count, sizeof *moved);
    int shrunk = 0, grown = 0, late = 0;
    long most_card = 0, most_process = 0;
    uint64_t over = 0;
    unsigned again = 0, last = 0;
    submit(text, tokens);
    for (int i = 0; i < count * 2; i++) {
        if (!going()) { submit(text, tokens); }
        nap(40 + rand() % 250);
        pipeshard_budget_request r = PIPESHARD_INIT(pipeshard_budget_request);
        pipeshard_limits l = PIPESHARD_INIT(pipeshard_limits);
        pipeshard_error * e = NULL;
        r.budget = i % 2 ? large : small;
        r.deadline_ms = deadline;
        double begin = now_ms();
        int code = pipeshard_set_budget(gpu, &r, &l, &e);
        double took = now_ms() - begin;
        unsigned now = state().evaluated_again;
        again += now > last ? now - last : 0;
        last = now;
        if (code == PIPESHARD_E_DEADLINE) { late++; pipeshard_error_free(e); continue; }
        need("set_budget", code, e);
        if (i % 2) { grow[grown++] = took; continue; }
        shrink[shrunk] = took;
        moved[shrunk++] = l.moved_ms;
        long card = card_mib(), process = process_mib();
        most_card = card > most_card ? card : most_card;
        most_process = process > most_process ? process : most_process;
        over = l.held > r.budget && l.held - r.budget > over ? l.held - r.budget : over;
        if (l.by_driver > r.budget) { over = l.by_driver - r.budget > over ? l.by_driver - r.budget : over; }
    }
    pipeshard_cancel(chat);
    finish();
    printf("%s, deadline %u ms:\n", what, deadline);
    spread("  shrink", shrink, shrunk);
    spread("  of that, memory moved for", moved, shrunk);
    spread("  grow", grow, grown);
    printf("  too late: %d; passes computed again: %u; right after shrinking to %llu MiB: card %ld MiB, process %ld MiB at most; over the budget by %llu bytes\n",
        late, again, (unsigned long long) (small / MIB), most_card, most_process, (unsigned long long) over);
    if (over > 0) { printf("FAIL %s: over the budget\n", what); failures++; }
    free(shrink); free(grow); free(moved);
}

/* Contexts are made again while tokens are generated: KV caches go to the host and come back. */
static void round_trips(uint64_t large, int count) {
    double * down = calloc(count, sizeof *down), * up = calloc(count, sizeof *up), * waited = calloc(count, sizeof *waited);
    pipeshard_limits l = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_get_limits(gpu, &l, NULL);
    uint64_t kv = l.held_kv, small = l.minimum_round_trip + 128 * MIB;
    uint64_t over = 0;
    submit("Once upon a time", 0);
    for (int i = 0; i < count; i++) {
        for (int back = 0; back < 2; back++) {
            if (!going()) { submit("Once upon a time", 0); }
            nap(40 + rand() % 250);
            pipeshard_budget_request r = PIPESHARD_INIT(pipeshard_budget_request);
            pipeshard_error * e = NULL;
            r.budget = back ? large : small;
            r.allow  = PIPESHARD_BUDGET_ROUND_TRIP;
            double begin = now_ms();
            need("round trip", pipeshard_set_budget(gpu, &r, &l, &e), e);
            (back ? up : down)[i] = now_ms() - begin;
            if (l.by_driver > r.budget && l.by_driver - r.budget > over) { over = l.by_driver - r.budget; }
            if (l.held > r.budget) { printf("FAIL held more than the budget\n"); failures++; }
            if (!back) {
                waited[i] = l.waited_ms;
                if (l.held_kv >= kv) { printf("FAIL %llu MiB of KV cache stayed\n", (unsigned long long) (l.held_kv / MIB)); failures++; }
            } else if (l.held_kv != kv) { printf("FAIL %llu MiB of KV cache came back\n", (unsigned long long) (l.held_kv / MIB)); failures++; }
        }
    }
    printf("round trips between %llu and %llu MiB, KV cache %llu MiB; by the driver over the budget by %llu bytes\n",
        (unsigned long long) (large / MIB), (unsigned long long) (small / MIB), (unsigned long long) (kv / MIB), (unsigned long long) over);
    spread("  down", down, count);
    spread("    of it until sessions had made way", waited, count);
    spread("  up", up, count);
    pipeshard_cancel(chat);
    finish();
    free(down); free(up); free(waited);
}

static void cancels(const char * what, const char * text, int in_prompt, int count) {
    double * took = calloc(count, sizeof *took);
    int done = 0;
    for (int i = 0; i < count; i++) {
        submit(text, 0);
        if (in_prompt) { nap(30 + rand() % 300); } else {
            while (state().generated_tokens < 3) { nap(1); }
            nap(rand() % 60);
        }
        double begin = now_ms();
        pipeshard_cancel(chat);
        int code = finish();
        if (code == PIPESHARD_E_CANCELLED) { took[done++] = now_ms() - begin; }
    }
    spread(what, took, done);
    free(took);
}

/* The KV cache after the same tokens as bytes' sum: what was generated, where a vocabulary has no text. */
static unsigned long long fingerprint(void) {
    char * data = NULL;
    size_t size = 0;
    unsigned long long hash = 1469598103934665603ull;
    if (pipeshard_session_save(chat, &data, &size, NULL) != PIPESHARD_OK) { return 0; }
    /* the head, which has the tokens, ends where the cache begins: its length stands at byte 8 */
    unsigned long long head;
    memcpy(&head, data + 8, 8);
    for (unsigned long long i = 32; i < 32 + head; i++) { hash = (hash ^ (unsigned char) data[i]) * 1099511628211ull; }
    pipeshard_free(data);
    return hash;
}

static void open_all(const char * path, uint64_t budget, unsigned context) {
    pipeshard_error * e = NULL;
    pipeshard_device_config d = PIPESHARD_INIT(pipeshard_device_config);
    pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config s = PIPESHARD_INIT(pipeshard_session_config);
    d.budget = budget;
    d.cache_dir = getenv("HOST_CACHE");
    d.threads = getenv("HOST_THREADS") ? atoi(getenv("HOST_THREADS")) : 0;
    d.simulated = getenv("HOST_SIMULATED");
    m.path = path;
    s.context = context;
    need("device", pipeshard_device_open(&d, &gpu, &e), e);
    need("model", pipeshard_model_open(gpu, &m, &model, &e), e);
    need("session", pipeshard_session_open(model, &s, &chat, &e), e);
}

static void close_all(void) {
    pipeshard_session_close(chat);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
}

static void on_log(void * user, int level, const char * text) {
    (void) user;
    fprintf(stderr, "[%d] %s\n", level, text);
}

int main(int argc, char ** argv) {
    if (argc < 5) { fprintf(stderr, "host MODEL LARGE_MIB SMALL_MIB CHANGES\n"); return 2; }
    uint64_t large = strtoull(argv[2], 0, 0) * MIB, small = strtoull(argv[3], 0, 0) * MIB;
    int changes = atoi(argv[4]), length = getenv("HOST_PROMPT") ? atoi(getenv("HOST_PROMPT")) : 4000;
    setvbuf(stdout, NULL, _IOLBF, 0);
    nvml_open();
    before = card_mib();
    pipeshard_set_log(on_log, NULL, PIPESHARD_LOG_INFO);
    prompt = malloc(length + 1);
    srand(1);
    for (int i = 0; i < length; i++) { prompt[i] = "abcdefghijklmnopqrstuvwxyz"[rand() % 26]; }
    prompt[length] = 0;
    double begin = now_ms();
    open_all(argv[1], large, getenv("HOST_CONTEXT") ? (unsigned) atoi(getenv("HOST_CONTEXT")) : 8192);
    printf("%s; open in %.0f ms; card before %ld MiB, now %ld, process %ld\n", pipeshard_build_id(), now_ms() - begin, before, card_mib(), process_mib());

    submit("Once upon a time", 48);
    finish();
    unsigned long long first = fingerprint();
    pipeshard_state s = state();
    printf("%llu MiB: %.2f tokens/s\n", (unsigned long long) (large / MIB), s.generated_tokens * 1e3 / s.generate_ms);
    submit("Once upon a time", 48);
    finish();
    printf("the same again: %s tokens, %.2f tokens/s\n", fingerprint() == first ? "the same" : "OTHER", state().generated_tokens * 1e3 / state().generate_ms);
    submit(prompt, 1);
    finish();
    printf("prompt: %u tokens in %.0f ms\n", state().prompt_tokens, state().prompt_ms);
    if (getenv("HOST_SPEED")) { close_all(); return 0; }

    budgets("while tokens are generated", "Once upon a time", 0, 0, large, small, changes);
    budgets("while tokens are generated", "Once upon a time", 0, 50, large, small, changes);
    budgets("in prompts", prompt, 1, 0, large, small, changes);
    budgets("in prompts", prompt, 1, 100, large, small, changes);

    pipeshard_budget_request r = PIPESHARD_INIT(pipeshard_budget_request);
    r.budget = large;
    need("set_budget", pipeshard_set_budget(gpu, &r, NULL, NULL), NULL);
    submit("Once upon a time", 48);
    finish();
    printf("the same after all that: %s tokens\n", fingerprint() == first ? "the same" : "OTHER");
    cancels("cancel while tokens are generated", "Once upon a time", 0, changes * 2);
    cancels("cancel in prompts", prompt, 1, changes * 2);
    r.budget = small;
    need("set_budget", pipeshard_set_budget(gpu, &r, NULL, NULL), NULL);
    cancels("cancel while tokens are generated, small budget", "Once upon a time", 0, changes * 2);
    cancels("cancel in prompts, small budget", prompt, 1, changes * 2);
    r.budget = large;
    need("set_budget", pipeshard_set_budget(gpu, &r, NULL, NULL), NULL);

    round_trips(large, 10);
    submit("Once upon a time", 48);
    finish();
    printf("the same after round trips: %s tokens\n", fingerprint() == first ? "the same" : "OTHER");

    for (int i = 0; i < 5; i++) {
        submit(prompt, 4);
        finish();
        pipeshard_error * e = NULL;
        pipeshard_limits l = PIPESHARD_INIT(pipeshard_limits);
        double a = now_ms();
        need("sleep", pipeshard_sleep(gpu, &e), e);
        double b = now_ms();
        long asleep = card_mib(), process = process_mib();
        pipeshard_get_limits(gpu, &l, NULL);
        double c = now_ms();
        need("wake", pipeshard_wake(gpu, &e), e);
        double d = now_ms();
        pipeshard_generate_config g = PIPESHARD_INIT(pipeshard_generate_config);
        g.max_tokens = 1;
        need("add", pipeshard_session_add(chat, NULL, " then", &e), e);
        need("generate", pipeshard_generate(chat, &g, NULL, NULL, &e), e);
        double f = now_ms();
        printf("sleep %.0f ms; asleep: held %llu bytes, card %ld MiB, process %ld; wake %.0f ms, to the next token %.0f ms (%u tokens evaluated, %u kept)\n",
            b - a, (unsigned long long) l.held, asleep, process, d - c, f - d, state().prompt_tokens, state().reused_tokens);
    }
    close_all();
    printf("closed: card %ld MiB, process %ld\n", card_mib(), process_mib());
    for (int i = 0; i < 10; i++) {
        open_all(argv[1], small, 2048);
        submit("Once upon a time", 4);
        int code = finish();
        close_all();
        printf("open and close %d: %d; card %ld MiB\n", i, code, card_mib());
    }
    printf("%d promises broken\n", failures);
    return failures != 0;
}
