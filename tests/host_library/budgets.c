// A thousand budgets while two sessions generate: the tokens are those of a budget that does not change, and what is on the device is
// at most the budget whenever pipeshard_set_budget returns.
#include "host.h"

#include <sched.h>

static int over;

typedef struct {
    pipeshard_session * session;
    const char *        prompt;
    const char *        expected;
    int                 answers;
} speaker;

// How many the slower one has given.
static int answers(speaker * of) {
    int a = __atomic_load_n(&of[0].answers, __ATOMIC_SEQ_CST), b = __atomic_load_n(&of[1].answers, __ATOMIC_SEQ_CST);
    return a < b ? a : b;
}

static void * speaks(void * user) {
    speaker * s    = user;
    answer *  said = calloc(1, sizeof *said);
    while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST)) {
        SAME(continues(s->session, s->prompt, number("tokens"), said), s->expected);
        __atomic_fetch_add(&s->answers, 1, __ATOMIC_SEQ_CST);
    }
    free(said);
    return NULL;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    const uint64_t      largest   = number("budget") * MIB;
    const uint32_t      deadlines[] = { 0, 0, 1000, 20 };
    pipeshard_device *  gpu       = open_device(largest);
    pipeshard_model *   model     = open_model(gpu);
    speaker             speakers[2] = {
        { open_session(model), argument("prompt"), argument("expected"), 0 },
        { open_session(model), argument("prompt2"), argument("expected2"), 0 },
    };
    static answer       said;
    pthread_t           threads[2];
    unsigned            random   = 1;
    int                 changes  = 0, late = 0;
    SAME(continues(speakers[0].session, speakers[0].prompt, number("tokens"), &said), speakers[0].expected);
    SAME(continues(speakers[1].session, speakers[1].prompt, number("tokens"), &said), speakers[1].expected);
    pipeshard_limits first = limits_of(gpu);
    CHECK(first.minimum < first.budget);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, speaks, &speakers[i]) == 0);
    }
    uint64_t before = largest;
    for (int i = 0; i < 1000 || answers(speakers) < 2; i++) {
        pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
        pipeshard_limits         now     = PIPESHARD_INIT(pipeshard_limits);
        pipeshard_error *        error   = NULL;
        random         = random * 1103515245u + 12345u;
        double part    = i % 3 == 0 ? 0 : i % 3 == 1 ? 1 : (random >> 8 & 0xFFFF) / 65536.0;
        request.budget = first.minimum + (uint64_t) (part * (double) (largest - first.minimum));
        request.deadline_ms = deadlines[i % 4];
        int code = pipeshard_set_budget(gpu, &request, &now, &error);
        if (code == PIPESHARD_E_DEADLINE && request.deadline_ms != 0) {
            // nothing has changed
            CHECK(limits_of(gpu).budget == before);
            pipeshard_error_free(error);
            late++;
            continue;
        }
        returns(__FILE__, __LINE__, "pipeshard_set_budget", PIPESHARD_OK, code, error);
        sched_yield(); // a host that does nothing else leaves the sessions no time
        CHECK(now.budget == request.budget && now.held <= now.budget);
        uint64_t on_device = reported(gpu, "current_bytes");
        if (on_device > now.budget) {
            FAIL("%llu bytes are on the device in a budget of %llu", (unsigned long long) on_device, (unsigned long long) now.budget);
        }
        before = request.budget;
        changes++;
    }
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    pipeshard_state state = PIPESHARD_INIT(pipeshard_state);
    OK(pipeshard_session_get_state(speakers[0].session, &state, &error));
    CHECK(speakers[0].answers > 0 && speakers[1].answers > 0 && changes >= 750);
    CHECK(reported(gpu, "unaccounted_bytes") == 0);
    CHECK(limits_of(gpu).peak <= largest);
    fprintf(stderr, "%d changes, %d too late, %d and %d answers\n", changes, late, speakers[0].answers, speakers[1].answers);
    for (int i = 0; i < 2; i++) {
        pipeshard_session_close(speakers[i].session);
    }
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
