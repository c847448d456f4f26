// Preloaded into a process, prints how much memory of the first GPU is in use whenever that changes: by NVML, whose figure budgets
// are held to, and by the CUDA driver (total less free), whose figure a process gets. Both in MiB.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

typedef int (*call)();

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)(t.tv_sec % 1000) + t.tv_nsec / 1e9;
}

static void *watch(void *unused) {
    (void)unused;
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW), *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!nvml || !cuda) return NULL;
    call nvml_memory = (call)dlsym(nvml, "nvmlDeviceGetMemoryInfo");
    call state = (call)dlsym(cuda, "cuDevicePrimaryCtxGetState"), retain = (call)dlsym(cuda, "cuDevicePrimaryCtxRetain");
    call current = (call)dlsym(cuda, "cuCtxSetCurrent"), driver_memory = (call)dlsym(cuda, "cuMemGetInfo_v2");
    void *gpu = NULL, *context = NULL;
    if (((call)dlsym(nvml, "nvmlInit_v2"))() || ((call)dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2"))(0u, &gpu)) return NULL;
    unsigned long long last_nvml = 0;
    size_t last_driver = 0;
    for (;; usleep(2000)) {
        unsigned long long m[3] = {0};
        size_t free = 0, total = 0;
        unsigned flags = 0;
        int active = 0;
        nvml_memory(gpu, m);
        // the process's own context, once it has one: asking does not make it
        if (!context && !state(0, &flags, &active) && active && !retain(&context, 0)) current(context);
        if (context) driver_memory(&free, &total);
        unsigned long long n = m[2] >> 20;
        size_t d = (total - free) >> 20;
        if (n != last_nvml || d != last_driver)
            fprintf(stderr, "memory %8.3f nvml %6llu of %llu, driver %6zu of %zu\n", now(), n, m[0] >> 20, d, total >> 20);
        last_nvml = n;
        last_driver = d;
    }
}

__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, watch, NULL);
}
