// Loads the library, uses it and unloads it a hundred times, each time on a thread that ends: it is not mapped afterwards.
#define _GNU_SOURCE
#include "host.h"

static int is_mapped(void) {
    FILE * maps = fopen("/proc/self/maps", "r");
    char   line[4096];
    int    found = 0;
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        found |= strstr(line, "libpipeshard") != NULL;
    }
    fclose(maps);
    return found;
}

static void * once(void * user) {
    static answer said;
    char *        first   = user;
    void *        library = dlopen(argument("library"), RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        FAIL("%s", dlerror());
    }
    find_functions(library);
    CHECK(is_mapped());
    pipeshard_device *  gpu     = open_device(number("budget") * MIB);
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    continues(session, argument("prompt"), 4, &said);
    if (first[0] == 0) {
        strncpy(first, said.bytes, 63);
    }
    SAME(said.bytes, first);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    CHECK(dlclose(library) == 0);
    return NULL;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    char first[64] = "";
    for (int round = 1; round <= 100; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, once, first) == 0);
        pthread_join(thread, NULL);
        if (is_mapped()) {
            FAIL("still mapped after dlclose, the %dth time", round);
        }
    }
    CHECK(strncmp(argument("expected"), first, strlen(first)) == 0 && first[0] != 0);
    return 0;
}
