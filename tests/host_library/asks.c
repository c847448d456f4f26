// Shows that watch_env.c sees a library of that name ask: the library (-DASKING), and a host that loads it.
#ifdef ASKING
#include <stdlib.h>

const char * asks(void);

const char * asks(void) {
    return getenv("HOME");
}
#else
#include "host.h"

int main(int argc, char ** argv) {
    arguments(argc, argv);
    void * library = dlopen(argument("asking"), RTLD_NOW);
    const char * (*asks)(void);
    CHECK(library != NULL);
    *(void **) &asks = dlsym(library, "asks");
    CHECK(asks != NULL);
    (void) asks();
    return 0;
}
#endif
