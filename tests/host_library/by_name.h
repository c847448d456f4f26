// Calls the library through dlsym, for hosts that load it while they run: -DBY_NAME.
#ifndef BY_NAME_H
#define BY_NAME_H

#include <dlfcn.h>

#define FUNCTIONS(DO)             \
    DO(pipeshard_result_name)     \
    DO(pipeshard_error_code)      \
    DO(pipeshard_error_text)      \
    DO(pipeshard_error_minimum)   \
    DO(pipeshard_error_free)      \
    DO(pipeshard_free)            \
    DO(pipeshard_device_open)     \
    DO(pipeshard_device_close)    \
    DO(pipeshard_set_budget)      \
    DO(pipeshard_get_limits)      \
    DO(pipeshard_report)          \
    DO(pipeshard_model_open)      \
    DO(pipeshard_model_close)     \
    DO(pipeshard_session_open)    \
    DO(pipeshard_session_close)   \
    DO(pipeshard_session_add)     \
    DO(pipeshard_session_clear)   \
    DO(pipeshard_generate)

#define DECLARE(name) static __typeof__(&name) found_##name;
FUNCTIONS(DECLARE)

static inline void find_functions(void * library) {
#define FIND(name) *(void **) &found_##name = dlsym(library, #name);
    FUNCTIONS(FIND)
}

#define pipeshard_result_name   found_pipeshard_result_name
#define pipeshard_error_code    found_pipeshard_error_code
#define pipeshard_error_text    found_pipeshard_error_text
#define pipeshard_error_minimum found_pipeshard_error_minimum
#define pipeshard_error_free    found_pipeshard_error_free
#define pipeshard_free          found_pipeshard_free
#define pipeshard_device_open   found_pipeshard_device_open
#define pipeshard_device_close  found_pipeshard_device_close
#define pipeshard_set_budget    found_pipeshard_set_budget
#define pipeshard_get_limits    found_pipeshard_get_limits
#define pipeshard_report        found_pipeshard_report
#define pipeshard_model_open    found_pipeshard_model_open
#define pipeshard_model_close   found_pipeshard_model_close
#define pipeshard_session_open  found_pipeshard_session_open
#define pipeshard_session_close found_pipeshard_session_close
#define pipeshard_session_add   found_pipeshard_session_add
#define pipeshard_session_clear found_pipeshard_session_clear
#define pipeshard_generate      found_pipeshard_generate

#endif
