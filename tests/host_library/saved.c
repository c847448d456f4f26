// A conversation is saved, and goes on in another session, under another budget and in another process, with the same tokens.
// write=FILE: says the first half, saves, says the rest. read=FILE: restores it, says the rest.
#include "host.h"

static answer said;

static void rest(pipeshard_session * session) {
    pipeshard_generate_config how = tokens(number("tokens") / 2);
    pipeshard_state           state = PIPESHARD_INIT(pipeshard_state);
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("expected"));
    OK(pipeshard_session_get_state(session, &state, &error));
    // of what was said so far the KV cache is there
    CHECK(state.reused_tokens > 0 && state.prompt_tokens <= 2);
}

static void first_half(void) {
    size_t half = strlen(argument("half"));
    CHECK(strncmp(argument("expected"), argument("half"), half) == 0);
    memcpy(said.bytes, argument("half"), half + 1);
    said.length = half;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    const char *              path = given("write") != NULL ? given("write") : argument("read");
    pipeshard_generate_config how  = tokens(number("tokens") / 2);
    char *                    data = NULL;
    size_t                    size = 0;
    pipeshard_device *        gpu     = open_device(number(given("write") != NULL ? "budget" : "small") * MIB);
    pipeshard_model *         model   = open_model(gpu);
    pipeshard_session *       session = open_session(model);
    if (given("write") != NULL) {
        OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
        OK(pipeshard_generate(session, &how, collect, &said, &error));
        SAME(said.bytes, argument("half"));
        OK(pipeshard_session_save(session, &data, &size, &error));
        CHECK(data != NULL && size > 1000);
        rest(session);
        FILE * file = fopen(path, "wb");
        CHECK(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
        // the same session goes back
        OK(pipeshard_session_restore(session, data, size, &error));
        first_half();
        set_budget(gpu, limits_of(gpu).minimum);
        rest(session);
        // what is damaged is refused, and no harm is done
        for (size_t length = 0; length < size; length += length < 256 ? 1 : size / 50) {
            CHECK(pipeshard_session_restore(session, data, length, NULL) != PIPESHARD_OK);
        }
        for (size_t at = 0; at < size; at += at < 512 ? 1 : size / 50) {
            data[at] ^= 0x55;
            (void) pipeshard_session_restore(session, data, size, NULL); // a number within the KV cache is as good as any
            data[at] ^= 0x55;
        }
        OK(pipeshard_session_restore(session, data, size, &error));
        first_half();
        rest(session);
        pipeshard_free(data);
    } else {
        FILE * file = fopen(path, "rb");
        CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
        size = (size_t) ftell(file);
        data = malloc(size);
        rewind(file);
        CHECK(data != NULL && fread(data, 1, size, file) == size);
        fclose(file);
        OK(pipeshard_session_restore(session, data, size, &error));
        first_half();
        rest(session);
        free(data);
    }
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
