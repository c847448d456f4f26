// Opens, generates, changes the budget, closes in another order than it opened.
#include "host.h"

static int messages;

static void count_messages(void * user, int level, const char * text) {
    CHECK(user == &messages && level >= PIPESHARD_LOG_ERROR && level <= PIPESHARD_LOG_INFO);
    size_t length = strlen(text);
    CHECK(length > 0 && text[length - 1] != '\n');
    __sync_fetch_and_add(&messages, 1);
}

static int progressed(void * user, float done) {
    float * last = user;
    CHECK(done >= *last && done <= 1.0f);
    *last = done;
    return 0;
}

static void check_limits(const pipeshard_limits * l) {
    uint64_t classes = l->held_weights + l->held_kv + l->held_ring + l->held_buffers + l->held_vision + l->held_other;
    CHECK(l->size == sizeof *l);
    CHECK(l->held <= l->budget && l->held <= l->peak);
    if (classes != l->held) {
        FAIL("the classes amount to %llu, held are %llu", (unsigned long long) classes, (unsigned long long) l->held);
    }
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer      said;
    uint32_t           count    = number("tokens");
    const char *       prompt   = argument("prompt");
    const char *       expected = argument("expected");
    const uint64_t     roomy    = number("budget") * MIB;
    pipeshard_device * gpu      = NULL;
    pipeshard_device * second   = NULL;

    CHECK(pipeshard_version() == PIPESHARD_VERSION);
    CHECK(strlen(pipeshard_build_id()) > 8);
    CHECK(strcmp(pipeshard_result_name(0), "PIPESHARD_OK") == 0);
    CHECK(strcmp(pipeshard_result_name(PIPESHARD_E_BUSY), "PIPESHARD_E_BUSY") == 0);
    CHECK(strcmp(pipeshard_result_name(PIPESHARD_E_INTERNAL), "PIPESHARD_E_INTERNAL") == 0);
    CHECK(pipeshard_result_name(-1000) != NULL && pipeshard_result_name(7) != NULL);
    char * devices = pipeshard_devices();
    CHECK(devices != NULL && devices[0] == '[');
    pipeshard_free(devices);
    pipeshard_set_log(count_messages, &messages, PIPESHARD_LOG_INFO);

    gpu = open_device(roomy);
    pipeshard_limits before = limits_of(gpu);
    CHECK(before.budget == roomy && before.held == 0);

    pipeshard_model_config m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_model *      model = NULL;
    float                  done  = 0;
    m.path          = argument("model");
    m.progress      = progressed;
    m.progress_user = &done;
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    CHECK(done == 1.0f);
    char * info = pipeshard_model_info(model);
    CHECK(info != NULL && strstr(info, "\"layers\"") != NULL && strstr(info, "\"context_trained\"") != NULL);
    pipeshard_free(info);

    pipeshard_session * session = open_session(model);
    SAME(continues(session, prompt, count, &said), expected);
    CHECK(said.calls > 1);
    pipeshard_state state = PIPESHARD_INIT(pipeshard_state);
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.context >= 512 && state.generated_tokens == count && state.busy == 0 && state.prompt_tokens > 1);
    CHECK(state.used >= state.prompt_tokens + count - 1 && state.generate_ms > 0 && state.prompt_ms > 0);

    // what there is room for is used, and a smaller budget is obeyed
    pipeshard_limits now = limits_of(gpu);
    check_limits(&now);
    CHECK(now.held_weights > 0 && now.held_kv > 0 && now.minimum < now.budget && now.minimum > 0 && now.everything > now.minimum);
    uint64_t minimum = now.minimum;
    now = set_budget(gpu, minimum);
    check_limits(&now);
    CHECK(now.budget == minimum && reported(gpu, "current_bytes") <= minimum);
    SAME(continues(session, prompt, count, &said), expected);
    pipeshard_budget_request less = PIPESHARD_INIT(pipeshard_budget_request);
    less.budget = minimum - 1;
    uint64_t named = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_set_budget(gpu, &less, NULL, &error));
    CHECK(named > less.budget && named <= minimum);
    CHECK(limits_of(gpu).budget == minimum);
    now = set_budget(gpu, roomy);
    SAME(continues(session, prompt, count, &said), expected);
    now = limits_of(gpu);
    check_limits(&now);
    CHECK(now.held > minimum && now.peak <= roomy);
    CHECK(reported(gpu, "unaccounted_bytes") == 0);
    char * metrics = pipeshard_metrics(gpu);
    CHECK(metrics != NULL && strstr(metrics, "pipeshard") != NULL);
    pipeshard_free(metrics);

    // one device at a time, and the first ends with what is open on it
    pipeshard_device_config d = device_config(roomy);
    GETS(PIPESHARD_E_BUSY, pipeshard_device_open(&d, &second, &error));
    CHECK(second == NULL);
    pipeshard_device_close(gpu);
    GETS(PIPESHARD_E_BUSY, pipeshard_device_open(&d, &second, &error));
    SAME(continues(session, prompt, count, &said), expected);
    pipeshard_model_close(model);
    SAME(continues(session, prompt, count, &said), expected);
    pipeshard_session_close(session);
    OK(pipeshard_device_open(&d, &second, &error));
    CHECK(second != NULL && second != gpu);
    pipeshard_device_close(second);

    CHECK(messages > 0);
    pipeshard_set_log(NULL, NULL, 0);
    int told = messages;
    pipeshard_device_close(open_device(roomy));
    CHECK(messages == told);
    return 0;
}
