// Callbacks that call back, generations that are ended from all sides, polling.
#include "host.h"

#include <semaphore.h>

static pipeshard_device *  gpu;
static pipeshard_model *   model;
static pipeshard_session * session;
static pipeshard_session * other;
static answer              said, second;

static void begin(pipeshard_session * with) {
    OK(pipeshard_session_clear(with, &error));
    OK(pipeshard_session_add(with, NULL, argument("prompt"), &error));
}

static void still_works(pipeshard_session * with) {
    SAME(continues(with, argument("prompt"), number("tokens"), &said), argument("expected"));
}

// From a callback of a session: its state, nothing else that it does; anything on other handles.
static int call_back(void * user, const char * text, size_t length) {
    pipeshard_generate_config how   = tokens(4);
    pipeshard_state           state = PIPESHARD_INIT(pipeshard_state);
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    collect(user, text, length);
    if (said.calls != 2) {
        return 0;
    }
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.busy == 1 && state.generated_tokens > 0);
    GETS(PIPESHARD_E_BUSY, pipeshard_generate(session, &how, NULL, NULL, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_submit(session, &how, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_session_clear(session, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_session_truncate(session, 0, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_session_add(session, NULL, "more", &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_wait(session, 0, &event, &error));
    OK(pipeshard_generate(other, &how, collect, &second, &error));
    CHECK(limits_of(gpu).held > 0);
    char * report = pipeshard_report(gpu);
    CHECK(report != NULL);
    pipeshard_free(report);
    return 0;
}

static void calling_back(void) {
    pipeshard_generate_config how = tokens(number("tokens"));
    begin(session);
    begin(other);
    said.calls = 0, said.length = 0, second.length = 0;
    OK(pipeshard_generate(session, &how, call_back, &said, &error));
    SAME(said.bytes, argument("expected"));
    CHECK(second.length > 0 && strncmp(second.bytes, argument("expected"), second.length) == 0);
}

// The budget is changed from a callback.
static int shrink(void * user, const char * text, size_t length) {
    collect(user, text, length);
    uint64_t minimum = limits_of(gpu).minimum;
    uint64_t budget  = said.calls % 2 ? minimum : number("budget") * MIB;
    CHECK(set_budget(gpu, budget).held <= budget);
    return 0;
}

static void budgets_from_callbacks(void) {
    pipeshard_generate_config how = tokens(number("tokens"));
    begin(session);
    said.calls = 0, said.length = 0;
    OK(pipeshard_generate(session, &how, shrink, &said, &error));
    SAME(said.bytes, argument("expected"));
    set_budget(gpu, number("budget") * MIB);
}

static int stop_at_three(void * user, const char * text, size_t length) {
    collect(user, text, length);
    return said.calls == 3;
}

static int cancel_at_three(void * user, const char * text, size_t length) {
    collect(user, text, length);
    if (said.calls == 3) {
        CHECK(pipeshard_cancel(session) == PIPESHARD_OK);
    }
    return 0;
}

// What was said up to the end is kept, and the session goes on from it with the tokens that it would have had.
static void cancelled(pipeshard_piece_fn how_it_ends) {
    pipeshard_generate_config how   = tokens(number("tokens"));
    pipeshard_state           state = PIPESHARD_INIT(pipeshard_state);
    begin(session);
    said.calls = 0, said.length = 0;
    GETS(PIPESHARD_E_CANCELLED, pipeshard_generate(session, &how, how_it_ends, &said, &error));
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.busy == 0 && state.generated_tokens >= 3 && state.generated_tokens < number("tokens"));
    CHECK(said.length > 0 && strncmp(said.bytes, argument("expected"), said.length) == 0);
    how.max_tokens = number("tokens") - state.generated_tokens;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("expected"));
}

// One thread generates for ever, and another ends it.
static sem_t begun;

static int go_on(void * user, const char * text, size_t length) {
    (void) user, (void) text, (void) length;
    sem_post(&begun);
    return 0;
}

static void * generates(void * user) {
    pipeshard_generate_config how = tokens(400);
    GETS(PIPESHARD_E_CANCELLED, pipeshard_generate(user, &how, go_on, NULL, &error));
    return NULL;
}

static void ended_by_another_thread(int by_closing) {
    pthread_t           thread;
    pipeshard_session * runs = open_session(model);
    begin(runs);
    sem_init(&begun, 0, 0);
    CHECK(pthread_create(&thread, NULL, generates, runs) == 0);
    sem_wait(&begun);
    if (by_closing) {
        pipeshard_session_close(runs);
    } else {
        CHECK(pipeshard_cancel(runs) == PIPESHARD_OK);
    }
    pthread_join(thread, NULL);
    if (!by_closing) {
        CHECK(pipeshard_cancel(runs) == PIPESHARD_OK); // there is nothing to cancel
        still_works(runs);
        pipeshard_session_close(runs);
    }
    still_works(session);
}

static int close_from_within(void * user, const char * text, size_t length) {
    (void) text, (void) length;
    pipeshard_session_close(*(pipeshard_session **) user);
    return 0;
}

static void closed_from_a_callback(void) {
    pipeshard_session *       runs = open_session(model);
    pipeshard_generate_config how  = tokens(400);
    pipeshard_state           state = PIPESHARD_INIT(pipeshard_state);
    begin(runs);
    GETS(PIPESHARD_E_CANCELLED, pipeshard_generate(runs, &how, close_from_within, &runs, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_get_state(runs, &state, &error));
    still_works(session);
}

static int woken;

static void wake(void * user) {
    CHECK(user == &woken);
    __sync_fetch_and_add(&woken, 1);
    sem_post(&begun);
}

// What pipeshard_wait tells, up to the last event of the generation.
static pipeshard_event events(pipeshard_session * with, uint32_t timeout, int by_wakeup) {
    pipeshard_event event = PIPESHARD_INIT(pipeshard_event);
    said.length = 0, said.bytes[0] = 0;
    for (;;) {
        if (by_wakeup) {
            sem_wait(&begun);
        }
        pipeshard_error * error = NULL;
        int               code  = pipeshard_wait(with, timeout, &event, &error);
        if (code == PIPESHARD_E_TIMEOUT) {
            returns(__FILE__, __LINE__, "pipeshard_wait", PIPESHARD_E_TIMEOUT, code, error);
            CHECK(event.kind == PIPESHARD_EVENT_NONE && event.text == NULL && event.length == 0);
            continue;
        }
        returns(__FILE__, __LINE__, "pipeshard_wait", PIPESHARD_OK, code, error);
        if (event.kind != PIPESHARD_EVENT_TEXT) {
            return event;
        }
        CHECK(event.length > 0 && strlen(event.text) == event.length && event.code == PIPESHARD_OK);
        collect(&said, event.text, event.length);
    }
}

static void polled(uint32_t timeout, int by_wakeup) {
    pipeshard_generate_config how   = tokens(number("tokens"));
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    pipeshard_state           state = PIPESHARD_INIT(pipeshard_state);
    sem_init(&begun, 0, 0);
    woken = 0;
    OK(pipeshard_set_wakeup(session, by_wakeup ? wake : NULL, &woken, &error));
    begin(session);
    OK(pipeshard_submit(session, &how, &error));
    event = events(session, timeout, by_wakeup);
    CHECK(event.kind == PIPESHARD_EVENT_DONE && event.code == PIPESHARD_OK);
    SAME(said.bytes, argument("expected"));
    GETS(PIPESHARD_E_INVALID, pipeshard_wait(session, 0, &event, &error));
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.busy == 0 && state.generated_tokens == number("tokens"));
    CHECK(by_wakeup == (woken > 0));
    OK(pipeshard_set_wakeup(session, NULL, NULL, &error));
}

static void ended_while_polled(void) {
    pipeshard_generate_config how   = tokens(400);
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    begin(session);
    GETS(PIPESHARD_E_INVALID, pipeshard_wait(session, 0, &event, &error));
    OK(pipeshard_submit(session, &how, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_submit(session, &how, &error));
    GETS(PIPESHARD_E_BUSY, pipeshard_generate(session, &how, NULL, NULL, &error));
    OK(pipeshard_wait(session, 60000, &event, &error));
    CHECK(event.kind == PIPESHARD_EVENT_TEXT);
    CHECK(pipeshard_cancel(session) == PIPESHARD_OK);
    event = events(session, 60000, 0);
    CHECK(event.kind == PIPESHARD_EVENT_ENDED && event.code == PIPESHARD_E_CANCELLED && strlen(event.text) > 8);
    still_works(session);
    // closed while it generates, without a look at its events
    pipeshard_session * runs = open_session(model);
    begin(runs);
    OK(pipeshard_submit(runs, &how, &error));
    pipeshard_session_close(runs);
    // as many tokens as there is room for
    pipeshard_session_config s = PIPESHARD_INIT(pipeshard_session_config);
    s.context                  = 256;
    OK(pipeshard_session_open(model, &s, &runs, &error));
    begin(runs);
    how.max_tokens = 0;
    OK(pipeshard_submit(runs, &how, &error));
    event = events(runs, 60000, 0);
    CHECK(event.kind == PIPESHARD_EVENT_ENDED && event.code == PIPESHARD_E_CONTEXT_FULL);
    CHECK(strncmp(said.bytes, argument("expected"), strlen(argument("expected"))) == 0);
    pipeshard_session_close(runs);
    still_works(session);
}

static int end_loading(void * user, float done) {
    (void) done;
    ++*(int *) user;
    return 1;
}

static void loading_that_is_ended(void) {
    pipeshard_model_config m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_model *      none  = NULL;
    int                    calls = 0;
    m.path          = argument("model");
    m.progress      = end_loading;
    m.progress_user = &calls;
    GETS(PIPESHARD_E_CANCELLED, pipeshard_model_open(gpu, &m, &none, &error));
    CHECK(none == NULL && calls > 0);
    still_works(session);
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    gpu     = open_device(number("budget") * MIB);
    model   = open_model(gpu);
    session = open_session(model);
    other   = open_session(model);
    calling_back();
    budgets_from_callbacks();
    cancelled(stop_at_three);
    cancelled(cancel_at_three);
    ended_by_another_thread(0);
    ended_by_another_thread(1);
    closed_from_a_callback();
    polled(0, 0);
    polled(60000, 0);
    polled(0, 1);
    ended_while_polled();
    loading_that_is_ended();
    // in another order than they were opened
    pipeshard_device_close(gpu);
    pipeshard_model_close(model);
    pipeshard_session_close(other);
    pipeshard_session_close(session);
    return 0;
}
