// What is predicted before a model is loaded is what is found when it is.
#include "host.h"

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer              said;
    pipeshard_prediction_query ask      = PIPESHARD_INIT(pipeshard_prediction_query);
    pipeshard_prediction       foreseen = PIPESHARD_INIT(pipeshard_prediction);
    pipeshard_prediction       other    = PIPESHARD_INIT(pipeshard_prediction);
    pipeshard_device *         gpu      = open_device(number("budget") * MIB);
    ask.path    = argument("model");
    ask.context = 512;
    OK(pipeshard_predict(gpu, &ask, &foreseen, &error));
    CHECK(foreseen.budget == number("budget") * MIB && foreseen.context == 512 && foreseen.ubatch > 0);
    CHECK(foreseen.minimum > 0 && foreseen.minimum < foreseen.everything && foreseen.everything <= foreseen.budget);
    CHECK(foreseen.first_token_ms > 0 && foreseen.tokens_per_second > 0 && foreseen.prompt_tokens + foreseen.answer_tokens <= 512);
    CHECK(limits_of(gpu).held == 0);
    // a smaller budget is no faster; the smallest works, and one byte less is refused
    ask.budget = foreseen.minimum;
    OK(pipeshard_predict(gpu, &ask, &other, &error));
    CHECK(other.budget == foreseen.minimum && other.tokens_per_second <= foreseen.tokens_per_second);
    ask.budget = 1;
    uint64_t minimum = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_predict(gpu, &ask, &other, &error));
    CHECK(minimum > 1 && minimum <= foreseen.minimum);
    ask.budget = minimum;
    OK(pipeshard_predict(gpu, &ask, &other, &error));

    // what makes no sense
    ask.type_k = "f17";
    GETS(PIPESHARD_E_INVALID, pipeshard_predict(gpu, &ask, &other, &error));
    ask.type_k        = NULL;
    ask.prompt_tokens = 4096;
    GETS(PIPESHARD_E_CONTEXT_FULL, pipeshard_predict(gpu, &ask, &other, &error));
    ask.prompt_tokens = 0;
    ask.path          = "/proc/self/exe";
    GETS(PIPESHARD_E_FILE, pipeshard_predict(gpu, &ask, &other, &error));
    ask.path = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_predict(gpu, &ask, &other, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_predict(gpu, NULL, &other, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_predict(NULL, &ask, &other, &error));

    // the model itself
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    pipeshard_limits now = limits_of(gpu);
    // the reserve for the libraries of a card, and small compute buffers, are not known to the byte
    CHECK(now.everything <= foreseen.everything * 5 / 4 && foreseen.everything <= now.everything * 5 / 4);
    set_budget(gpu, now.minimum > foreseen.minimum ? now.minimum : foreseen.minimum);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
