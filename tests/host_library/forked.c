// A child that is forked while everything is open gets PIPESHARD_E_FORKED at once, and ends without a word; the parent goes on.
#define _GNU_SOURCE
#include "host.h"

#include <sys/wait.h>

static pipeshard_device *  gpu;
static pipeshard_model *   model;
static pipeshard_session * session;

static void child(void) {
    pipeshard_limits          limits  = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_budget_request  request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_state           state   = PIPESHARD_INIT(pipeshard_state);
    pipeshard_event           event   = PIPESHARD_INIT(pipeshard_event);
    pipeshard_model_config    m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_model *         other   = NULL;
    pipeshard_session *       another = NULL;
    pipeshard_prediction_query ask    = PIPESHARD_INIT(pipeshard_prediction_query);
    pipeshard_prediction      prediction = PIPESHARD_INIT(pipeshard_prediction);
    char *                    data    = NULL;
    size_t                    size    = 0;
    alarm(60); // a call that waits for ever ends the child
    request.budget = number("small") * MIB;
    ask.path       = argument("model");
    m.path         = argument("model");
    GETS(PIPESHARD_E_FORKED, pipeshard_get_limits(gpu, &limits, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_set_budget(gpu, &request, NULL, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_predict(gpu, &ask, &prediction, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_sleep(gpu, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_wake(gpu, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_model_open(gpu, &m, &other, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_session_open(model, NULL, &another, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_session_add(session, NULL, "x", &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_session_clear(session, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_session_save(session, &data, &size, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_session_get_state(session, &state, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_generate(session, NULL, NULL, NULL, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_submit(session, NULL, &error));
    GETS(PIPESHARD_E_FORKED, pipeshard_wait(session, 1000, &event, &error));
    CHECK(pipeshard_cancel(session) == PIPESHARD_E_FORKED);
    CHECK(pipeshard_report(gpu) == NULL && pipeshard_metrics(gpu) == NULL && pipeshard_model_info(model) == NULL);
    CHECK(other == NULL && another == NULL && data == NULL && size == 0);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    exit(0);
}

static void fork_once(void) {
    int   status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        child();
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        FAIL("the child ended with %s %d", WIFEXITED(status) ? "code" : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    }
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer             said;
    pipeshard_generate_config how   = tokens(number("tokens"));
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    gpu     = open_device(number("small") * MIB);
    model   = open_model(gpu);
    session = open_session(model);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    fork_once();
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    // also while other threads have the library's locks
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_submit(session, &how, &error));
    for (int round = 0; round < 10; round++) {
        fork_once();
    }
    said.length = 0;
    for (event.kind = 0; event.kind != PIPESHARD_EVENT_DONE;) {
        OK(pipeshard_wait(session, 60000, &event, &error));
        CHECK(event.kind == PIPESHARD_EVENT_TEXT || event.kind == PIPESHARD_EVENT_DONE);
        if (event.kind == PIPESHARD_EVENT_TEXT) {
            collect(&said, event.text, event.length);
        }
    }
    SAME(said.bytes, argument("expected"));
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
