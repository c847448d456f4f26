// Preloaded: writes down which variables of the environment a library named libpipeshard asks for or sets, into the file WATCHED.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void note(const char * what, const char * name, void * caller) {
    Dl_info of;
    if (dladdr(caller, &of) == 0 || of.dli_fname == NULL || strstr(of.dli_fname, "libpipeshard") == NULL) {
        return;
    }
    static char * (*find)(const char *);
    if (find == NULL) {
        *(void **) &find = dlsym(RTLD_NEXT, "getenv");
    }
    char line[256];
    int  length = snprintf(line, sizeof line, "%s %s\n", what, name);
    int  file   = open(find("WATCHED"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, (size_t) length) != length) {
        abort();
    }
    close(file);
}

#define CALLER __builtin_return_address(0)

char * getenv(const char * name) {
    note("getenv", name, CALLER);
    char * (*next)(const char *);
    *(void **) &next = dlsym(RTLD_NEXT, "getenv");
    return next(name);
}

char * secure_getenv(const char * name) {
    note("secure_getenv", name, CALLER);
    char * (*next)(const char *);
    *(void **) &next = dlsym(RTLD_NEXT, "secure_getenv");
    return next(name);
}

int setenv(const char * name, const char * value, int instead) {
    note("setenv", name, CALLER);
    int (*next)(const char *, const char *, int);
    *(void **) &next = dlsym(RTLD_NEXT, "setenv");
    return next(name, value, instead);
}

int unsetenv(const char * name) {
    note("unsetenv", name, CALLER);
    int (*next)(const char *);
    *(void **) &next = dlsym(RTLD_NEXT, "unsetenv");
    return next(name);
}

int putenv(char * text) {
    note("putenv", text, CALLER);
    int (*next)(char *);
    *(void **) &next = dlsym(RTLD_NEXT, "putenv");
    return next(text);
}
