/* What the code in this library learns from the environment: nothing that is meant for programs of llama.cpp. The library is linked with
 * --wrap=getenv, so every call of it ends here, also those of llama.cpp and of Rust's standard library. Others' variables, such as
 * CUDA_VISIBLE_DEVICES, are answered as they are. */

#include <stddef.h>
#include <string.h>

char * __real_getenv(const char * name);
char * __wrap_getenv(const char * name);
void   pipeshard_environment_page_lock(int allowed);

static int page_lock = 1;

/* Whether ggml-cuda page-locks memory of the host where it is asked to, for which it wants a variable. */
void pipeshard_environment_page_lock(int allowed) {
    page_lock = allowed;
}

char * __wrap_getenv(const char * name) {
    static const char * const ours[] = { "PIPESHARD_", "LLAMA_", "GGML_", "MTMD_", "XDG_CACHE_HOME", "HOME", "RUST_" };
    static char yes[] = "1";
    if (strcmp(name, "GGML_CUDA_REGISTER_HOST") == 0) {
        return page_lock ? yes : NULL;
    }
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        if (strncmp(name, ours[i], strlen(ours[i])) == 0) {
            return NULL;
        }
    }
    return __real_getenv(name);
}
