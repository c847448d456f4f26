// How fast threads read memory after a pause, by what they did in it: `rest THREADS MIB`. One line for each, times in ms for all
// of the memory: the median and the worst of some repetitions. The first thread spins all the time, as one does that waits for a GPU.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { REPETITIONS = 7 };

// What the other threads do until there is work: an action, and how long before it they begin to spin (ms, 0: not at all).
enum action { SPIN, YIELD, NAP, BLOCK };
struct mode {
    const char *name;
    enum action action;
    double nap, awake;
};
static const struct mode modes[] = {
    {"spin", SPIN, 0, 0},           {"yield", YIELD, 0, 0},        {"nap 0.05 ms", NAP, 0.05, 0},
    {"nap 0.2 ms", NAP, 0.2, 0},    {"nap 1 ms", NAP, 1, 0},       {"sleep", BLOCK, 0, 0},
    {"awake for 1", BLOCK, 0, 1},   {"awake for 3", BLOCK, 0, 3},  {"awake for 10", BLOCK, 0, 10},
    {"awake for 30", BLOCK, 0, 30}, {"awake for 90", BLOCK, 0, 90},
};

static int threads;
static size_t words;
static uint64_t *memory;
static atomic_int turn, ready;
static _Atomic(const struct mode *) mode;
static _Atomic uint64_t sum;
static atomic_llong awake_at;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void sleep_for(double ms) {
    struct timespec t = {(time_t)(ms / 1e3), (long)(ms * 1e6) % 1000000000};
    nanosleep(&t, NULL);
}

static void read_share(int thread) {
    size_t share = words / threads;
    const uint64_t *at = memory + share * thread;
    uint64_t sums[8] = {0};
    for (size_t i = 0; i + 8 <= share; i += 8)
        for (int k = 0; k < 8; k++) sums[k] += at[i + k];
    for (int k = 0; k < 8; k++) atomic_fetch_add(&sum, sums[k]);
}

static void rest(int seen) {
    while (atomic_load(&turn) == seen) {
        const struct mode *m = atomic_load(&mode);
        if (m->action == BLOCK && now() * 1e6 < atomic_load(&awake_at))
            syscall(SYS_futex, &turn, FUTEX_WAIT, seen, NULL, NULL, 0);
        else if (m->action == YIELD)
            sched_yield();
        else if (m->action == NAP)
            sleep_for(m->nap);
        else
            __builtin_ia32_pause();
    }
}

static void *thread(void *number) {
    for (int seen = 0;; seen++) {
        rest(seen);
        read_share((int)(intptr_t)number);
        atomic_fetch_add(&ready, 1);
    }
    return NULL;
}

static double read_all(void) {
    double begin = now();
    atomic_store(&ready, 0);
    atomic_fetch_add(&turn, 1);
    syscall(SYS_futex, &turn, FUTEX_WAKE, 1 << 20, NULL, NULL, 0);
    read_share(0);
    while (atomic_load(&ready) < threads - 1) __builtin_ia32_pause();
    return now() - begin;
}

static int by_size(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

int main(int count, char **args) {
    threads = count > 1 ? atoi(args[1]) : 4;
    words = ((size_t)(count > 2 ? atoi(args[2]) : 256) << 20) / 8;
    memory = aligned_alloc(1 << 21, words * 8);
    if (threads < 1 || !memory) return 1;
    for (size_t i = 0; i < words; i++) memory[i] = i * 0x9e3779b97f4a7c15u;
    atomic_store(&mode, &modes[0]);
    for (intptr_t i = 1; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, NULL, thread, (void *)i)) return 1;
    }
    const double pauses[] = {3, 10, 50, 200};
    printf("%d threads, %zu MiB; ms at the median and at worst behind a pause of\n%-14s", threads, words >> 17, "");
    for (int p = 0; p < 4; p++) printf("%14.0f ms", pauses[p]);
    printf("\n");
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        printf("%-14s", modes[m].name);
        for (int p = 0; p < 4; p++) {
            double times[REPETITIONS];
            if (modes[m].awake >= pauses[p]) {
                printf("%17s", "");
                continue;
            }
            for (int r = 0; r < REPETITIONS; r++) {
                atomic_store(&mode, &modes[0]);
                for (int warm = 0; warm < 2; warm++) read_all();
                double end = now() + pauses[p], wake = modes[m].awake > 0 ? end - modes[m].awake : 1e18;
                atomic_store(&awake_at, (long long)(wake * 1e6));
                atomic_store(&mode, &modes[m]);
                while (now() < wake && now() < end) __builtin_ia32_pause();
                // those that block look again, and spin from now on
                if (now() < end) syscall(SYS_futex, &turn, FUTEX_WAKE, 1 << 20, NULL, NULL, 0);
                while (now() < end) __builtin_ia32_pause();
                times[r] = read_all();
            }
            qsort(times, REPETITIONS, sizeof *times, by_size);
            printf("%9.1f %7.1f", times[REPETITIONS / 2], times[REPETITIONS - 1]);
        }
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
