/* Writes every kernel, copy and fill that a CUDA program runs to a file, from CUPTI's activity records: what our own trace cannot
 * see, since it stands between passes and not between kernels. Loaded by the driver itself, into any program, stock ones too:
 *   CUDA_INJECTION64_PATH=libkernels.so KERNELS_OUT=FILE llama-bench ...
 * kernels.py reads the file. Records of 40 bytes (struct record), then the names, then the trailer (struct trailer). */
#include <cuda.h>
#include <cupti.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct record { uint64_t start, end, bytes; uint32_t name, stream, graph, blocks; };
struct trailer { uint64_t records, names_bytes, lost; };

enum { BUFFER_BYTES = 8 << 20, MOST_NAMES = 4096 };
static FILE *out;
static struct trailer trailer;
static char *names[MOST_NAMES];
static uint32_t named;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint32_t name_of(const char *name) {
    for (uint32_t i = 0; i < named; i++)
        if (strcmp(names[i], name) == 0) return i;
    if (named == MOST_NAMES) return MOST_NAMES - 1;
    names[named] = strdup(name);
    return named++;
}

static void CUPTIAPI request(uint8_t **buffer, size_t *size, size_t *most) {
    *size = BUFFER_BYTES;
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *most = 0;
}

static void write_one(struct record r) {
    fwrite(&r, sizeof r, 1, out);
    trailer.records++;
}

static void CUPTIAPI complete(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)size;
    CUpti_Activity *a = NULL;
    pthread_mutex_lock(&lock);
    while (cuptiActivityGetNextRecord(buffer, valid, &a) == CUPTI_SUCCESS) {
        if (a->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            CUpti_ActivityKernel10 *k = (CUpti_ActivityKernel10 *)a;
            write_one((struct record){k->start, k->end, 0, name_of(k->name), k->streamId, k->graphId,
                                      (uint32_t)(k->gridX * k->gridY * k->gridZ)});
        } else if (a->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            static const char *ways[] = {"copy", "copy to device", "copy to host", "copy", "copy", "copy", "copy", "copy", "copy on device"};
            CUpti_ActivityMemcpy6 *c = (CUpti_ActivityMemcpy6 *)a;
            const char *way = c->copyKind < 9 ? ways[c->copyKind] : "copy";
            write_one((struct record){c->start, c->end, c->bytes, name_of(way), c->streamId, c->graphId, 0});
        } else if (a->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            CUpti_ActivityMemset4 *m = (CUpti_ActivityMemset4 *)a;
            write_one((struct record){m->start, m->end, m->bytes, name_of("fill"), m->streamId, m->graphId, 0});
        }
    }
    size_t lost = 0;
    cuptiActivityGetNumDroppedRecords(context, stream, &lost);
    trailer.lost += lost;
    pthread_mutex_unlock(&lock);
    free(buffer);
}

static void at_end(void) {
    cuptiActivityFlushAll(1);
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < named; i++) {
        fwrite(names[i], strlen(names[i]) + 1, 1, out);
        trailer.names_bytes += strlen(names[i]) + 1;
    }
    fwrite(&trailer, sizeof trailer, 1, out);
    fclose(out);
    pthread_mutex_unlock(&lock);
}

/* The driver calls this when the program first asks for a device. */
int InitializeInjection(void) {
    const char *path = getenv("KERNELS_OUT");
    if (!path || !(out = fopen(path, "wb"))) {
        fprintf(stderr, "kernels: set KERNELS_OUT to a file that can be written; nothing is recorded\n");
        return 1;
    }
    static const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};
    CUptiResult result = cuptiActivityRegisterCallbacks(request, complete);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && result == CUPTI_SUCCESS; i++) result = cuptiActivityEnable(kinds[i]);
    if (result != CUPTI_SUCCESS) {
        const char *why = "unknown";
        cuptiGetResultString(result, &why);
        fprintf(stderr, "kernels: CUPTI refuses to record: %s\n", why);
    }
    atexit(at_end);
    return 1;
}
