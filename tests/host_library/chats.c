// A conversation in the model's chat template: the answer is that of llama-server, also the second time, and a question that was
// taken back leaves no trace.
#include "host.h"

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer             said;
    pipeshard_model_config    m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_state           state   = PIPESHARD_INIT(pipeshard_state);
    pipeshard_generate_config how     = tokens(24);
    pipeshard_device *        gpu     = open_device(60 * MIB);
    pipeshard_model *         model   = NULL;
    pipeshard_session *       session = NULL;
    m.path    = argument("chat");
    s.context = 1024;
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    OK(pipeshard_session_open(model, &s, &session, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &how, collect, &said, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, "nobody", "x", &error));
    OK(pipeshard_session_add(session, "user", argument("question"), &error));
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, NULL, "text without a role", &error));
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.messages == 2 && state.reused_tokens == 0);
    uint32_t prompt = state.prompt_tokens;

    // goes on, and most of it is there already
    OK(pipeshard_session_add(session, "user", "And of Italy?", &error));
    OK(pipeshard_generate(session, &how, NULL, NULL, &error));
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.messages == 4 && state.reused_tokens >= prompt);

    // back to the first question
    OK(pipeshard_session_truncate(session, 1, &error));
    said.length = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));

    // an answer that follows a grammar, and one that a text ends
    OK(pipeshard_session_truncate(session, 1, &error));
    how.grammar = "root ::= \"yes\" | \"no\"";
    said.length = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    CHECK(strcmp(said.bytes, "yes") == 0 || strcmp(said.bytes, "no") == 0);
    how.grammar     = NULL;
    how.json_schema = "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"boolean\"}}, \"required\": [\"a\"], "
                      "\"additionalProperties\": false}";
    OK(pipeshard_session_truncate(session, 1, &error));
    said.length = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    CHECK(said.bytes[0] == '{' && strstr(said.bytes, "\"a\"") != NULL);
    const char * stops[] = { "nowhere at all", "Paris" };
    how.json_schema = NULL;
    how.stop        = stops;
    how.stop_count  = 2;
    OK(pipeshard_session_truncate(session, 1, &error));
    said.length   = 0;
    said.bytes[0] = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    const char * end = strstr(argument("answer"), "Paris");
    CHECK(end != NULL && said.length == (size_t) (end - argument("answer")));
    CHECK(strncmp(said.bytes, argument("answer"), said.length) == 0);

    // a temperature: the same seed, the same answer
    static answer first, second;
    how             = tokens(24);
    how.temperature    = 3.0f;
    how.top_k          = 40;
    how.min_p          = 0.001f;
    how.repeat_penalty = 1.1f;
    how.seed           = 7;
    OK(pipeshard_session_truncate(session, 1, &error));
    OK(pipeshard_generate(session, &how, collect, &first, &error));
    OK(pipeshard_session_truncate(session, 1, &error));
    OK(pipeshard_generate(session, &how, collect, &second, &error));
    SAME(second.bytes, first.bytes);
    CHECK(strcmp(first.bytes, argument("answer")) != 0);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
