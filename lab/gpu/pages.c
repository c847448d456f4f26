// How fast threads read host memory by where it lies, and what the link gets beside them: `pages THREADS GIB|FILE`. Chunks in random
// order, each read by all threads together, as ggml reads weights: of the size of an expert's matrix, and of a dense layer's. From so
// many GiB of anonymous memory with small and with huge pages; or from FILE, mapped, while copies go to the device from the first part
// of it, page-locked in place. One line for each: GB/s, median and worst of some repetitions.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { REPETITIONS = 9, MOST_CHUNKS = 2048, COMMAND = 4 << 20 };
static const size_t EXPERT = 884736, DENSE = 117440512, READ = (size_t)1 << 30;

static int threads;
static const uint8_t *memory;
static size_t chunk_bytes, chunks, offsets[MOST_CHUNKS];
static _Atomic uint64_t sum;
static pthread_barrier_t barrier;
static atomic_int over;
static atomic_int arrived, generation;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// Threads spin where they meet, as ggml's do.
static void meet(void) {
    int seen = atomic_load(&generation);
    if (atomic_fetch_add(&arrived, 1) == threads - 1) {
        atomic_store(&arrived, 0);
        atomic_fetch_add(&generation, 1);
    } else {
        while (atomic_load(&generation) == seen) __builtin_ia32_pause();
    }
}

static void read_chunks(int thread) {
    uint64_t sums[8] = {0};
    size_t share = chunk_bytes / threads / 64 * 64;
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        const uint64_t *at = (const uint64_t *)(memory + offsets[chunk] + share * thread);
        for (size_t i = 0; i < share / 8; i += 8)
            for (int k = 0; k < 8; k++) sums[k] += at[i + k];
        // a token's 8 experts of a layer's 3 matrices
        if (chunk % 8 == 7 || chunk_bytes > EXPERT) meet();
    }
    for (int k = 0; k < 8; k++) atomic_fetch_add(&sum, sums[k]);
}

static void *thread(void *number) {
    for (;;) {
        pthread_barrier_wait(&barrier);
        if (atomic_load(&over)) return NULL;
        read_chunks((int)(intptr_t)number);
        pthread_barrier_wait(&barrier);
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Bytes that were copied to the device so far.
static atomic_size_t copied;

static void measure(const char *name, const uint8_t *from, size_t bytes, size_t chunk) {
    double rates[REPETITIONS], links[REPETITIONS];
    memory = from;
    chunk_bytes = chunk;
    chunks = READ / chunk;
    for (int i = 0; i < REPETITIONS; i++) {
        for (size_t k = 0; k < chunks; k++) offsets[k] = (size_t)(drand48() * (bytes / chunk - 1)) * chunk;
        double start = now();
        size_t before = atomic_load(&copied);
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        double seconds = now() - start;
        rates[i] = (double)chunk * chunks / seconds / 1e9;
        links[i] = (double)(atomic_load(&copied) - before) / seconds / 1e9;
    }
    qsort(rates, REPETITIONS, sizeof *rates, ascending);
    qsort(links, REPETITIONS, sizeof *links, ascending);
    printf("%2d threads, %-30s %6.1f GB/s, %6.1f at worst; link %5.1f\n", threads, name, rates[REPETITIONS / 2], rates[0], links[REPETITIONS / 2]);
    fflush(stdout);
}

static void *fill(void *part) {
    uint8_t **range = part;
    for (uint8_t *at = range[0]; at < range[1]; at += 8) *(uint64_t *)at = (uintptr_t)at * 0x9E3779B97F4A7C15ull;
    return NULL;
}

static void anonymous(const char *name, size_t bytes, int advice, size_t read) {
    size_t huge = 2 << 20;
    uint8_t *all = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) {
        perror(name);
        return;
    }
    uint8_t *from = (uint8_t *)(((uintptr_t)all + huge - 1) / huge * huge);
    if (madvise(from, bytes, advice)) perror("madvise");
    pthread_t fillers[64];
    uint8_t *ranges[64][2];
    for (int i = 0; i < threads; i++) {
        ranges[i][0] = from + bytes / threads / 4096 * 4096 * i;
        ranges[i][1] = i + 1 == threads ? from + bytes : from + bytes / threads / 4096 * 4096 * (i + 1);
        pthread_create(&fillers[i], NULL, fill, ranges[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(fillers[i], NULL);
    char label[64];
    snprintf(label, sizeof label, "%s, %zu MiB", name, read >> 20);
    measure(label, from, read, EXPERT);
    if (read != bytes) {
        snprintf(label, sizeof label, "%s, %zu MiB", name, bytes >> 20);
        measure(label, from, bytes, EXPERT);
    }
    munmap(all, bytes + huge);
}

// What is used of CUDA's driver, which is loaded at run time.
static struct {
    int (*init)(unsigned), (*device)(int *, int), (*retain)(void **, int), (*current)(void *), (*lock)(void *, size_t, unsigned),
        (*unlock)(void *), (*allocate)(uint64_t *, size_t), (*stream)(void **, unsigned),
        (*copy)(uint64_t, const void *, size_t, void *), (*wait)(void *);
} cuda;
static void *context;

static int open_cuda(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 0;
    const char *names[] = {"cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemHostRegister_v2",
        "cuMemHostUnregister", "cuMemAlloc_v2", "cuStreamCreate", "cuMemcpyHtoDAsync_v2", "cuStreamSynchronize"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *found = dlsym(library, names[i]);
        if (!found) return fprintf(stderr, "no %s\n", names[i]), 0;
        memcpy((char *)&cuda + i * sizeof found, &found, sizeof found);
    }
    int device;
    return !cuda.init(0) && !cuda.device(&device, 0) && !cuda.retain(&context, device) && !cuda.current(context);
}

// What is copied, over and over, until its size is 0.
static const uint8_t *source;
static atomic_size_t source_bytes;

static void *copier(void *unused) {
    (void)unused;
    void *streams[2];
    uint64_t target;
    if (cuda.current(context) || cuda.allocate(&target, COMMAND) || cuda.stream(&streams[0], 1) || cuda.stream(&streams[1], 1))
        return fprintf(stderr, "no room to copy to\n"), NULL;
    size_t at = 0, bytes;
    for (int turn = 0; (bytes = atomic_load(&source_bytes)); turn ^= 1) {
        for (int i = 0; i < 4; i++, at += COMMAND) {
            if (at + COMMAND > bytes) at = 0;
            if (cuda.copy(target, source + at, COMMAND, streams[turn])) return fprintf(stderr, "a copy failed\n"), NULL;
        }
        cuda.wait(streams[turn ^ 1]);
        atomic_fetch_add(&copied, 4 * (size_t)COMMAND);
    }
    cuda.wait(streams[0]);
    cuda.wait(streams[1]);
    return NULL;
}

static int file(const char *path) {
    int descriptor = open(path, O_RDONLY);
    struct stat about;
    if (descriptor < 0 || fstat(descriptor, &about)) return perror(path), 1;
    size_t bytes = about.st_size;
    uint8_t *from = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, descriptor, 0);
    if (from == MAP_FAILED) return perror(path), 1;
    measure("experts", from, bytes, EXPERT);
    measure("dense", from, bytes, DENSE);
    if (!open_cuda()) return 1;
    size_t sizes[] = {(size_t)128 << 20, (size_t)1 << 30, (size_t)4 << 30, bytes};
    for (int i = 0; i < 4; i++) {
        size_t locked = sizes[i] / 4096 * 4096;
        // read only, 0x08
        if (locked > bytes || cuda.lock(from, locked, 0x08)) return fprintf(stderr, "%zu MiB cannot be page-locked\n", locked >> 20), 1;
        source = from;
        atomic_store(&source_bytes, locked);
        pthread_t copies;
        pthread_create(&copies, NULL, copier, NULL);
        usleep(100000);
        size_t before = atomic_load(&copied);
        usleep(200000);
        printf("%zu MiB page-locked: %.1f GB/s alone\n", locked >> 20, (atomic_load(&copied) - before) / 0.2 / 1e9);
        char label[64];
        snprintf(label, sizeof label, "experts, copies of %zu MiB", locked >> 20);
        measure(label, from, bytes, EXPERT);
        snprintf(label, sizeof label, "dense, copies of %zu MiB", locked >> 20);
        measure(label, from, bytes, DENSE);
        // the CPU reads no more than the profile does
        snprintf(label, sizeof label, "1.2 GB, copies of %zu MiB", locked >> 20);
        measure(label, from + bytes - (size_t)1200 * 1000 * 1000, (size_t)1200 * 1000 * 1000, DENSE / 4);
        atomic_store(&source_bytes, 0);
        pthread_join(copies, NULL);
        cuda.unlock(from);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: pages THREADS GIB|FILE\n"), 2;
    threads = atoi(argv[1]);
    char *behind;
    size_t bytes = (size_t)strtoul(argv[2], &behind, 10) << 30;
    if (threads < 1 || threads > 64 || (!*behind && !bytes)) return 2;
    pthread_barrier_init(&barrier, NULL, threads + 1);
    pthread_t all[64];
    for (int i = 0; i < threads; i++) pthread_create(&all[i], NULL, thread, (void *)(intptr_t)i);
    int code = 0;
    if (*behind) {
        code = file(argv[2]);
    } else {
        anonymous("small pages", bytes, MADV_NOHUGEPAGE, (size_t)512 << 20);
        anonymous("huge pages", bytes, MADV_HUGEPAGE, (size_t)512 << 20);
    }
    atomic_store(&over, 1);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
    return code;
}
