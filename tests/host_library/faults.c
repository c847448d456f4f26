// A device that refuses the n-th allocation, for each n, and one that is lost after n operations, for some n: everything works, or a
// call returns a code with a text; what is open is closed, and the next device is a good one.
#include "host.h"

static char   spec[256];
static answer said;

// What a host does, up to the first thing that fails. Its code.
static int everything(char * why, size_t room) {
    pipeshard_device_config   d       = device_config(number("small") * MIB);
    pipeshard_model_config    m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_generate_config how     = tokens(8);
    pipeshard_budget_request  request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_limits          limits  = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_device *        gpu     = NULL;
    pipeshard_model *         model   = NULL;
    pipeshard_session *       session = NULL;
    pipeshard_error *         error   = NULL;
    int                       code    = 0;
    d.simulated = spec;
    m.path      = argument("model");
    s.context   = 256;
    said.length = 0;
    (void) ((code = pipeshard_device_open(&d, &gpu, &error)) || (code = pipeshard_model_open(gpu, &m, &model, &error)) ||
            (code = pipeshard_session_open(model, &s, &session, &error)) ||
            (code = pipeshard_session_add(session, NULL, argument("prompt"), &error)) ||
            (code = pipeshard_generate(session, &how, collect, &said, &error)) ||
            (code = pipeshard_get_limits(gpu, &limits, &error)) || (request.budget = limits.minimum, 0) ||
            (code = pipeshard_set_budget(gpu, &request, NULL, &error)) ||
            (code = pipeshard_generate(session, &how, collect, &said, &error)));
    snprintf(why, room, "%s", pipeshard_error_text(error));
    CHECK(pipeshard_error_code(error) == code && (code == PIPESHARD_OK || strlen(why) > 8));
    if (said.length > 0) { // nothing wrong was said
        CHECK(strncmp(said.bytes, argument("expected"), said.length) == 0);
    }
    pipeshard_error_free(error);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return code;
}

static void sweep(const char * fault, int from, int step, int most) {
    int failed = 0, worked = 0;
    for (int n = from; n < most && worked < 3; n += step) {
        char why[1024];
        snprintf(spec, sizeof spec, "%s,%s=%d", argument("simulated"), fault, n);
        int code = everything(why, sizeof why);
        if (code == PIPESHARD_OK) {
            worked++; // it happened later, or there was another way
            continue;
        }
        worked = 0;
        failed++;
        int expected = code == PIPESHARD_E_NO_MEMORY || code == PIPESHARD_E_DEVICE_LOST || code == PIPESHARD_E_BUDGET_TOO_SMALL ||
                       code == PIPESHARD_E_NO_DEVICE;
        if (!expected) {
            FAIL("%s=%d ends with %s: %s", fault, n, pipeshard_result_name(code), why);
        }
    }
    fprintf(stderr, "%s: %d failed\n", fault, failed);
    CHECK(failed > 0 || strcmp(fault, "failevent") == 0); // without events there are other ways
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    char why[1024];
    sweep("failalloc", 1, 1, 200);
    sweep("failcopy", 1, 19, 200);
    sweep("failevent", 1, 3, 100);
    sweep("lost", 1, 97, 2000);
    snprintf(spec, sizeof spec, "%s,pin=off", argument("simulated"));
    CHECK(everything(why, sizeof why) == PIPESHARD_OK);
    snprintf(spec, sizeof spec, "%s", argument("simulated"));
    if (everything(why, sizeof why) != PIPESHARD_OK) {
        FAIL("after all of that: %s", why);
    }
    return 0;
}
