// Sleep gives the device's memory back, and conversations go on afterwards as if nothing had been.
#include "host.h"

static pipeshard_device * gpu;
static answer             said;

static void asleep(uint32_t sessions) {
    pipeshard_limits now = limits_of(gpu);
    if (now.held > 4096 || reported(gpu, "current_bytes") > 4096 || now.asleep != sessions) {
        FAIL("%llu bytes are held, %u sessions sleep", (unsigned long long) now.held, now.asleep);
    }
}

static int sleeps(void * user, const char * text, size_t length) {
    collect(user, text, length);
    GETS(PIPESHARD_E_BUSY, pipeshard_sleep(gpu, &error));
    return 0;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    pipeshard_generate_config half    = tokens(number("tokens") / 2);
    pipeshard_budget_request  request = PIPESHARD_INIT(pipeshard_budget_request);
    char *                    data    = NULL;
    size_t                    size    = 0;
    gpu = open_device(number("budget") * MIB);
    OK(pipeshard_sleep(gpu, &error)); // nothing is open yet
    OK(pipeshard_wake(gpu, &error));
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    pipeshard_session * other   = open_session(model);
    const uint64_t      awake   = limits_of(gpu).held;
    for (int round = 0; round < 10; round++) {
        said.length = 0;
        OK(pipeshard_session_clear(session, &error));
        OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
        OK(pipeshard_generate(session, &half, collect, &said, &error));
        OK(pipeshard_sleep(gpu, &error));
        asleep(2);
        OK(pipeshard_sleep(gpu, &error)); // again: nothing happens
        if (round % 2) {
            OK(pipeshard_wake(gpu, &error));
            CHECK(limits_of(gpu).asleep == 0);
        }
        if (round == 4) { // what is saved in its sleep goes on elsewhere
            OK(pipeshard_session_save(session, &data, &size, &error));
            asleep(2);
            OK(pipeshard_session_restore(other, data, size, &error));
            pipeshard_free(data);
        }
        OK(pipeshard_generate(round == 4 ? other : session, &half, collect, &said, &error)); // wakes by itself
        SAME(said.bytes, argument("expected"));
    }
    CHECK(limits_of(gpu).held >= awake / 2 && reported(gpu, "unaccounted_bytes") == 0);

    // a generation is not disturbed
    said.length = 0;
    half        = tokens(number("tokens"));
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_generate(session, &half, sleeps, &said, &error));
    SAME(said.bytes, argument("expected"));

    // another budget, set while all sleep, holds when they wake; one in which nothing can wake leaves them asleep
    OK(pipeshard_sleep(gpu, &error));
    request.budget = number("small") * MIB;
    int code       = pipeshard_set_budget(gpu, &request, NULL, NULL);
    CHECK(code == PIPESHARD_OK);
    asleep(2);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    CHECK(limits_of(gpu).held <= number("small") * MIB && reported(gpu, "current_bytes") <= number("small") * MIB);
    OK(pipeshard_sleep(gpu, &error));
    // closed asleep
    pipeshard_session_close(other);
    asleep(1);
    pipeshard_session_close(session);
    asleep(0);
    pipeshard_model_close(model);
    GETS(PIPESHARD_E_INVALID, pipeshard_sleep(NULL, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_wake((pipeshard_device *) model, &error));
    pipeshard_device_close(gpu);
    return 0;
}
