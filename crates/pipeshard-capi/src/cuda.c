// What ggml-cuda takes of the GPU: memory, page-locked memory, streams. build.rs has the linker bring its calls here (--wrap), in builds
// with CUDA only; pipeshard itself calls CUDA through ggml alone. ggml-cuda calls two functions more, which this library never gets to:
// cudaMallocManaged, which a variable of the environment asks for, and cudaHostAlloc, between several GPUs. cudaHostRegister
// page-locks memory that is there already.
#include <stddef.h>

// What CUDA's header has of it.
typedef int cuda_error;
enum { CUDA_OK = 0, CUDA_OUT_OF_MEMORY = 2 };

cuda_error cudaDeviceSynchronize(void);
cuda_error __real_cudaMalloc(void ** memory, size_t size);
cuda_error __wrap_cudaMalloc(void ** memory, size_t size);
cuda_error __real_cudaFree(void * memory);
cuda_error __wrap_cudaFree(void * memory);
cuda_error __real_cudaMallocHost(void ** memory, size_t size);
cuda_error __wrap_cudaMallocHost(void ** memory, size_t size);
cuda_error __real_cudaFreeHost(void * memory);
cuda_error __wrap_cudaFreeHost(void * memory);
cuda_error __real_cudaStreamCreateWithFlags(void ** stream, unsigned flags);
cuda_error __wrap_cudaStreamCreateWithFlags(void ** stream, unsigned flags);
cuda_error __real_cudaStreamDestroy(void * stream);
cuda_error __wrap_cudaStreamDestroy(void * stream);

int pipeshard_memory_is_buffer(void);

// Rust's side. `allocate` says where memory comes from.
enum { FROM_CUDA = 0, FROM_HOST = 1, REFUSED = 2 };
struct supply {
    int (*allocate)(void ** memory, size_t size, int page_locked, int is_buffer);
    int (*has)(void * memory, int page_locked);
    void (*release)(void * memory, int page_locked);
    void (*stream)(void * stream, int is_open);
};

void pipeshard_cuda_tell(const struct supply * tell);

static const struct supply * supply;

// Set once, before ggml-cuda is used.
void pipeshard_cuda_tell(const struct supply * tell) {
    supply = tell;
}

static int allocate(void ** memory, size_t size, int page_locked) {
    return supply != NULL ? supply->allocate(memory, size, page_locked, pipeshard_memory_is_buffer()) : FROM_CUDA;
}

static cuda_error answered(int from) {
    return from == REFUSED ? CUDA_OUT_OF_MEMORY : CUDA_OK;
}

// As CUDA does before it frees memory: what uses it has ended. Zero: it is CUDA's own.
static int release(void * memory, int page_locked, cuda_error * error) {
    if (memory == NULL || supply == NULL || !supply->has(memory, page_locked)) {
        return 0;
    }
    *error = cudaDeviceSynchronize();
    supply->release(memory, page_locked);
    return 1;
}

cuda_error __wrap_cudaMalloc(void ** memory, size_t size) {
    int from = allocate(memory, size, 0);
    return from == FROM_CUDA ? __real_cudaMalloc(memory, size) : answered(from);
}

cuda_error __wrap_cudaFree(void * memory) {
    cuda_error error;
    return release(memory, 0, &error) ? error : __real_cudaFree(memory);
}

cuda_error __wrap_cudaMallocHost(void ** memory, size_t size) {
    int from = allocate(memory, size, 1);
    return from == FROM_CUDA ? __real_cudaMallocHost(memory, size) : answered(from);
}

cuda_error __wrap_cudaFreeHost(void * memory) {
    cuda_error error;
    return release(memory, 1, &error) ? error : __real_cudaFreeHost(memory);
}

cuda_error __wrap_cudaStreamCreateWithFlags(void ** stream, unsigned flags) {
    cuda_error error = __real_cudaStreamCreateWithFlags(stream, flags);
    if (error == CUDA_OK && supply != NULL) {
        supply->stream(*stream, 1);
    }
    return error;
}

cuda_error __wrap_cudaStreamDestroy(void * stream) {
    if (supply != NULL) {
        supply->stream(stream, 0);
    }
    return __real_cudaStreamDestroy(stream);
}
