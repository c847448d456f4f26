// Four threads do anything with three sessions at once: no call does harm, and in the end everything works.
#include "host.h"

enum { THREADS = 4, SESSIONS = 3, STEPS = 300 };

static pipeshard_device *  gpu;
static pipeshard_model *   model;
static pipeshard_session * sessions[SESSIONS]; // read and written atomically: each is a handle that another thread may have closed
static int                 counts[32];

// What a call may say while others do something else with the same handles.
static void may(const char * what, int code, pipeshard_error * error) {
    switch (code) {
        case PIPESHARD_OK:
        case PIPESHARD_E_INVALID:
        case PIPESHARD_E_BUSY:
        case PIPESHARD_E_CANCELLED:
        case PIPESHARD_E_TIMEOUT:
        case PIPESHARD_E_DEADLINE:
        case PIPESHARD_E_CONTEXT_FULL:
        case PIPESHARD_E_BUDGET_TOO_SMALL:
            __atomic_fetch_add(&counts[-code], 1, __ATOMIC_SEQ_CST);
            break;
        default:
            FAIL("%s: %s: %s", what, pipeshard_result_name(code), pipeshard_error_text(error));
    }
    pipeshard_error_free(error);
}

#define MAY(call)                        \
    do {                                 \
        pipeshard_error * error = NULL;  \
        int               code  = (call); \
        may(#call, code, error);         \
    } while (0)

static int piece(void * user, const char * text, size_t length) {
    CHECK(text != NULL && strlen(text) == length);
    return ++*(int *) user > 6;
}

static void step(uint32_t random) {
    pipeshard_session **      place   = &sessions[random / 16 % SESSIONS];
    pipeshard_session *       session = __atomic_load_n(place, __ATOMIC_SEQ_CST);
    pipeshard_generate_config how     = tokens(1 + random / 64 % 8);
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_budget_request  request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_limits          limits  = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_state           state   = PIPESHARD_INIT(pipeshard_state);
    pipeshard_event           event   = PIPESHARD_INIT(pipeshard_event);
    pipeshard_session *       opened  = NULL;
    char *                    data    = NULL;
    size_t                    size    = 0;
    int                       pieces  = 0;
    switch (random % 16) {
        case 0:
            s.context = 256;
            MAY(pipeshard_session_open(model, &s, &opened, &error));
            if (opened != NULL) {
                pipeshard_session_close(__atomic_exchange_n(place, opened, __ATOMIC_SEQ_CST));
            }
            break;
        case 1:
        case 2:
            MAY(pipeshard_submit(session, &how, &error));
            break;
        case 3:
            MAY(pipeshard_cancel(session));
            break;
        case 4:
        case 5:
            MAY(pipeshard_wait(session, random / 64 % 4, &event, &error));
            break;
        case 6:
            request.budget      = (number("small") + random / 64 % 60) * MIB;
            request.deadline_ms = random / 4096 % 2 * 5;
            MAY(pipeshard_set_budget(gpu, &request, &limits, &error));
            break;
        case 7:
            MAY(pipeshard_sleep(gpu, &error));
            break;
        case 8:
            MAY(pipeshard_wake(gpu, &error));
            break;
        case 9:
            MAY(pipeshard_session_save(session, &data, &size, &error));
            if (data != NULL) {
                MAY(pipeshard_session_restore(__atomic_load_n(&sessions[0], __ATOMIC_SEQ_CST), data, size, &error));
            }
            pipeshard_free(data);
            break;
        case 10:
            pipeshard_free(pipeshard_report(gpu));
            pipeshard_free(pipeshard_metrics(gpu));
            pipeshard_free(pipeshard_model_info(model));
            break;
        case 11:
            MAY(pipeshard_session_get_state(session, &state, &error));
            MAY(pipeshard_get_limits(gpu, &limits, &error));
            break;
        case 12:
            MAY(pipeshard_session_clear(session, &error));
            break;
        default:
            MAY(pipeshard_session_add(session, NULL, "abc", &error));
            MAY(pipeshard_generate(session, &how, piece, &pieces, &error));
    }
}

static void * run(void * user) {
    uint32_t random = (uint32_t) (size_t) user;
    for (int i = 0; i < STEPS; i++) {
        random = random * 1664525u + 1013904223u;
        step(random >> 8);
    }
    return NULL;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer said;
    pthread_t     threads[THREADS];
    gpu   = open_device(number("budget") * MIB);
    model = open_model(gpu);
    for (int i = 0; i < SESSIONS; i++) {
        sessions[i] = open_session(model);
    }
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, run, (void *) (i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(counts[0] > 100 && counts[-PIPESHARD_E_BUSY] > 0);
    for (int i = 0; i < SESSIONS; i++) {
        pipeshard_session_close(sessions[i]); // whatever it does
    }
    pipeshard_session * session = open_session(model);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    CHECK(reported(gpu, "unaccounted_bytes") == 0);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    fprintf(stderr, "%d calls worked, %d were refused as busy\n", counts[0], counts[-PIPESHARD_E_BUSY]);
    return 0;
}
