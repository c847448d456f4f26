// The calls of ggml-cuda for cuda_calls.c, in a file of their own: the linker redirects calls between files.
#include <stddef.h>

int    cudaMalloc(void ** memory, size_t size);
int    cudaFree(void * memory);
int    cudaMallocHost(void ** memory, size_t size);
int    cudaFreeHost(void * memory);
int    cudaStreamCreateWithFlags(void ** stream, unsigned flags);
int    cudaStreamDestroy(void * stream);
void * ggml_backend_buft_alloc_buffer(void * type, size_t size);
int    ggml_gallocr_reserve_n(void * a, void * b, const int * c, const int * d);
int    ggml_gallocr_alloc_graph(void * a, void * b);
int    allocates(void * out, int page_locked);
int    frees(void * memory, int page_locked);
int    makes_stream(void ** stream, unsigned flags);
int    destroys_stream(void * stream);
void * makes_buffer(size_t size);
int    computes(void);

int allocates(void * out, int page_locked) {
    return page_locked ? cudaMallocHost(out, 16) : cudaMalloc(out, 16);
}

int frees(void * memory, int page_locked) {
    return page_locked ? cudaFreeHost(memory) : cudaFree(memory);
}

int makes_stream(void ** stream, unsigned flags) {
    return cudaStreamCreateWithFlags(stream, flags);
}

int destroys_stream(void * stream) {
    return cudaStreamDestroy(stream);
}

void * makes_buffer(size_t size) {
    return ggml_backend_buft_alloc_buffer(NULL, size);
}

int computes(void) {
    return ggml_gallocr_reserve_n(NULL, NULL, NULL, NULL) && ggml_gallocr_alloc_graph(NULL, NULL);
}
