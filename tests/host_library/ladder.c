// Budgets that moving weights alone does not reach: KV caches go to host memory and come back, also while sessions generate, and no
// token changes. Where nothing is left to move, everything goes to sleep.
#include "host.h"

#include <sched.h>

static pipeshard_device * gpu;
static uint64_t           small_budget;
static int                over;

typedef struct {
    pipeshard_session * session;
    const char *        prompt;
    const char *        expected;
    int                 answers;
} speaker;

static int changed(uint64_t budget, uint32_t allow, pipeshard_limits * now, pipeshard_error ** error) {
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    request.budget = budget;
    request.allow  = allow;
    return pipeshard_set_budget(gpu, &request, now, error);
}

static pipeshard_limits change(uint64_t budget, uint32_t allow) {
    pipeshard_limits now = PIPESHARD_INIT(pipeshard_limits);
    OK(changed(budget, allow, &now, &error));
    uint64_t on_device = reported(gpu, "current_bytes");
    if (now.budget != budget || now.held > budget || on_device > budget) {
        FAIL("%llu bytes are held and %llu on the device in a budget of %llu, which is said to be %llu", (unsigned long long) now.held,
             (unsigned long long) on_device, (unsigned long long) budget, (unsigned long long) now.budget);
    }
    return now;
}

// Asks for what it would have to make way for itself.
static int asks(void * user, const char * text, size_t length) {
    collect(user, text, length);
    uint64_t before = limits_of(gpu).budget;
    GETS(PIPESHARD_E_BUSY, changed(small_budget, PIPESHARD_BUDGET_ROUND_TRIP, NULL, &error));
    CHECK(limits_of(gpu).budget == before);
    return 0;
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
    const uint64_t            largest = number("budget") * MIB;
    const uint32_t            trip    = PIPESHARD_BUDGET_ROUND_TRIP;
    pipeshard_generate_config half    = tokens(number("tokens") / 2);
    static answer             said;
    gpu                          = open_device(largest);
    pipeshard_model *   model    = open_model(gpu);
    pipeshard_session * session  = open_session(model);
    pipeshard_session * sleeping = open_session(model);
    pipeshard_limits    first    = limits_of(gpu);
    CHECK(first.held_kv > 0 && first.minimum_round_trip < first.minimum);

    // half of an answer, KV caches to the host, the other half, and back
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_generate(session, &half, collect, &said, &error));
    uint64_t works = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, changed(1, trip, NULL, &error));
    CHECK(works > 0 && works < first.minimum && limits_of(gpu).budget == largest && limits_of(gpu).asleep == 0);
    small_budget = works + (first.minimum - works) / 4;
    GETS(PIPESHARD_E_BUDGET_TOO_SMALL, changed(small_budget, 0, NULL, &error)); // nothing else may move
    CHECK(limits_of(gpu).budget == largest);
    pipeshard_limits low = change(small_budget, trip);
    CHECK(low.held_kv < first.held_kv && low.asleep == 0);
    OK(pipeshard_generate(session, &half, collect, &said, &error));
    SAME(said.bytes, argument("expected"));
    CHECK(change(largest, 0).held_kv == low.held_kv); // weights alone
    CHECK(change(largest, trip).held_kv == first.held_kv);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));

    // the budget that a refusal names works
    GETS(PIPESHARD_E_BUDGET_TOO_SMALL, changed(works - MIB, trip, NULL, &error));
    change(works, trip);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    CHECK(change(largest, trip).held_kv == first.held_kv);

    // a session that generates cannot make way for its own callback
    said.length = 0;
    half        = tokens(number("tokens"));
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_generate(session, &half, asks, &said, &error));
    SAME(said.bytes, argument("expected"));

    // nothing is left to move
    pipeshard_limits gone = change(MIB / 2, trip | PIPESHARD_BUDGET_SLEEP);
    CHECK(gone.asleep == 2 && gone.held <= 4096);
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_generate(session, &half, NULL, NULL, &error));
    change(largest, trip);
    OK(pipeshard_wake(gpu, &error));
    CHECK(limits_of(gpu).asleep == 0);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    GETS(PIPESHARD_E_VERSION, changed(largest, 4, NULL, &error));

    // one generates, one is asleep, one does nothing
    OK(pipeshard_sleep(gpu, &error));
    speaker   speakers[2] = {
        { session, argument("prompt"), argument("expected"), 0 },
        { open_session(model), argument("prompt2"), argument("expected2"), 0 },
    };
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, speaks, &speakers[i]) == 0);
    }
    int trips = 0;
    for (; trips < 40 || speakers[0].answers < 2 || speakers[1].answers < 2; trips++) {
        change(trips % 2 ? largest : small_budget, trip);
        sched_yield(); // a host that does nothing else leaves the sessions no time
    }
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(limits_of(gpu).asleep == 1); // nobody woke it
    CHECK(reported(gpu, "unaccounted_bytes") == 0 && limits_of(gpu).peak <= largest);
    fprintf(stderr, "%d round trips, %d and %d answers\n", trips, speakers[0].answers, speakers[1].answers);
    pipeshard_session_close(sleeping);
    for (int i = 0; i < 2; i++) {
        pipeshard_session_close(speakers[i].session);
    }
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
