// What the hosts of tests/host_library.rs share: arguments, checks, and the calls that each of them makes.
#ifndef HOST_H
#define HOST_H

#include <pipeshard.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef BY_NAME
#include "by_name.h"
#endif

#define MIB (1024ull * 1024)

__attribute__((format(printf, 3, 4))) static inline void fail(const char * file, int line, const char * format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    _exit(1);
}

#define FAIL(...) fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition) ((condition) ? (void) 0 : FAIL("%s", #condition))
#define SAME(text, expected) same(__FILE__, __LINE__, text, expected)

static inline void same(const char * file, int line, const char * text, const char * expected) {
    if (text == NULL || strcmp(text, expected) != 0) {
        fail(file, line, "is\n  %s\nexpected\n  %s", text == NULL ? "(nothing)" : text, expected);
    }
}

// A call that has to return `wanted`, with an error object that says the same.
static inline uint64_t returns(const char * file, int line, const char * what, int wanted, int code, pipeshard_error * error) {
    uint64_t minimum = pipeshard_error_minimum(error);
    if (code != wanted) {
        fail(file, line, "%s: %s in place of %s: %s", what, pipeshard_result_name(code), pipeshard_result_name(wanted),
             pipeshard_error_text(error));
    }
    if (pipeshard_error_code(error) != code) {
        fail(file, line, "%s: the error says %d, the call %d", what, pipeshard_error_code(error), code);
    }
    /* flags of the tools mean nothing to programs */
    if (strstr(pipeshard_error_text(error), " --") || strstr(pipeshard_error_text(error), "(-ub)") || strstr(pipeshard_error_text(error), "(-c)")) {
        fail(file, line, "%s: the error's text names flags: %s", what, pipeshard_error_text(error));
    }
    if ((code == PIPESHARD_OK) != (error == NULL) || (code != PIPESHARD_OK && strlen(pipeshard_error_text(error)) < 8)) {
        fail(file, line, "%s: the error's text is '%s'", what, pipeshard_error_text(error));
    }
    pipeshard_error_free(error);
    return minimum;
}

// `call` uses the variable `error`. The smallest budget that the error names.
#define GETS(wanted, call)                                                  \
    __extension__({                                                         \
        pipeshard_error * error = (pipeshard_error *) 1;                    \
        int               code  = (call);                                   \
        returns(__FILE__, __LINE__, #call, (wanted), code, error);          \
    })
#define OK(call) ((void) GETS(PIPESHARD_OK, call))

static int     host_argc;
static char ** host_argv;

static inline void arguments(int argc, char ** argv) {
    host_argc = argc;
    host_argv = argv;
}

// The value of the argument name=value; NULL where it was not given.
static inline const char * given(const char * name) {
    size_t length = strlen(name);
    for (int i = 1; i < host_argc; i++) {
        if (strncmp(host_argv[i], name, length) == 0 && host_argv[i][length] == '=') {
            return host_argv[i] + length + 1;
        }
    }
    return NULL;
}

static inline const char * argument(const char * name) {
    const char * value = given(name);
    if (value == NULL) {
        FAIL("the argument %s= is missing", name);
    }
    return value;
}

static inline uint32_t number(const char * name) {
    return (uint32_t) strtoul(argument(name), NULL, 10);
}

// A device on one thread, as tests compare with stock llama.cpp on one.
static inline pipeshard_device_config device_config(uint64_t budget) {
    pipeshard_device_config d = PIPESHARD_INIT(pipeshard_device_config);
    d.budget    = budget;
    d.simulated = argument("simulated");
    d.threads   = 1;
    return d;
}

static inline pipeshard_device * open_device(uint64_t budget) {
    pipeshard_device_config d   = device_config(budget);
    pipeshard_device *      gpu = NULL;
    OK(pipeshard_device_open(&d, &gpu, &error));
    CHECK(gpu != NULL);
    return gpu;
}

static inline pipeshard_model * open_model(pipeshard_device * gpu) {
    pipeshard_model_config m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_model *      model = NULL;
    m.path = argument("model");
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    CHECK(model != NULL);
    return model;
}

static inline pipeshard_session * open_session(pipeshard_model * model) {
    pipeshard_session_config s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_session *      session = NULL;
    s.context = 512;
    OK(pipeshard_session_open(model, &s, &session, &error));
    CHECK(session != NULL);
    return session;
}

// A text that grows.
typedef struct {
    char   bytes[1 << 16];
    size_t length;
    int    calls;
} answer;

static inline int collect(void * user, const char * text, size_t length) {
    answer * into = user;
    into->calls++;
    if (length + into->length >= sizeof into->bytes) {
        FAIL("an answer without an end");
    }
    memcpy(into->bytes + into->length, text, length);
    into->length += length;
    into->bytes[into->length] = 0;
    return 0;
}

static inline pipeshard_generate_config tokens(uint32_t count) {
    pipeshard_generate_config how = PIPESHARD_INIT(pipeshard_generate_config);
    how.max_tokens = count;
    return how;
}

// What the model says behind `prompt`, as text without a chat: the session has said nothing before, or forgets it.
static inline const char * continues(pipeshard_session * session, const char * prompt, uint32_t count, answer * into) {
    pipeshard_generate_config how = tokens(count);
    into->length   = 0;
    into->bytes[0] = 0;
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, prompt, &error));
    OK(pipeshard_generate(session, &how, collect, into, &error));
    return into->bytes;
}

static inline pipeshard_limits limits_of(pipeshard_device * gpu) {
    pipeshard_limits now = PIPESHARD_INIT(pipeshard_limits);
    OK(pipeshard_get_limits(gpu, &now, &error));
    return now;
}

// A number of the report, such as "current_bytes" of the simulated GPU.
static inline uint64_t reported(pipeshard_device * gpu, const char * name) {
    char * report = pipeshard_report(gpu);
    char   key[64];
    if (report == NULL) {
        FAIL("no report");
    }
    snprintf(key, sizeof key, "\"%s\":", name);
    const char * at = strstr(report, key);
    if (at == NULL) {
        FAIL("no %s in %s", name, report);
    }
    uint64_t value = strtoull(at + strlen(key), NULL, 10);
    pipeshard_free(report);
    return value;
}

static inline pipeshard_limits set_budget(pipeshard_device * gpu, uint64_t budget) {
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_limits         now     = PIPESHARD_INIT(pipeshard_limits);
    request.budget = budget;
    OK(pipeshard_set_budget(gpu, &request, &now, &error));
    return now;
}


#endif
