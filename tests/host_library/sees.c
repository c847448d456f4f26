// Images in a conversation: the answer is that of stock llama-mtmd-cli, whether the image came as a file or as pixels, under a small
// budget, after a restore, and without encoding the image again.
#include "host.h"

static unsigned char file[1 << 20];
static size_t        file_size;

static uint32_t at(size_t place) {
    return file[place] | file[place + 1] << 8 | file[place + 2] << 16 | (uint32_t) file[place + 3] << 24;
}

static void read_picture(void) {
    FILE * opened = fopen(argument("picture"), "rb");
    CHECK(opened != NULL);
    file_size = fread(file, 1, sizeof file, opened);
    CHECK(file_size > 54 && file_size < sizeof file);
    fclose(opened);
}

// The pixels of the bitmap, which has them from the bottom and as blue, green, red; with some bytes behind each row.
static pipeshard_media pixels(unsigned char * rgb, size_t room) {
    pipeshard_media media = PIPESHARD_INIT(pipeshard_media);
    media.width  = at(18);
    media.height = at(22);
    media.stride = media.width * 3 + 7;
    media.rgb    = rgb;
    CHECK((size_t) media.stride * media.height <= room);
    memset(rgb, 0xAA, room);
    size_t row = (media.width * 3 + 3) / 4 * 4;
    for (uint32_t y = 0; y < media.height; y++) {
        for (uint32_t x = 0; x < media.width; x++) {
            const unsigned char * from = file + 54 + (media.height - 1 - y) * row + x * 3;
            unsigned char *       to   = rgb + (size_t) y * media.stride + x * 3;
            to[0] = from[2], to[1] = from[1], to[2] = from[0];
        }
    }
    return media;
}

static answer said;

static void asks(pipeshard_session * session, const pipeshard_media * media) {
    pipeshard_generate_config how = tokens(8);
    said.length = 0, said.bytes[0] = 0;
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add_media(session, media, &error));
    OK(pipeshard_session_add(session, "user", argument("question"), &error));
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static unsigned char      rgb[1 << 20];
    pipeshard_model_config    m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_media           media   = PIPESHARD_INIT(pipeshard_media);
    pipeshard_state           state   = PIPESHARD_INIT(pipeshard_state);
    pipeshard_generate_config how     = tokens(8);
    pipeshard_device *        gpu     = open_device(400 * MIB);
    pipeshard_model *         model   = NULL;
    pipeshard_session *       session = NULL;
    pipeshard_session *       other   = NULL;
    char *                    data    = NULL;
    size_t                    size    = 0;
    read_picture();
    m.path    = argument("chat");
    m.mmproj  = argument("mmproj");
    s.context = 2048;
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    OK(pipeshard_session_open(model, &s, &session, &error));
    char * info = pipeshard_model_info(model);
    CHECK(info != NULL && strstr(info, "\"images\":true") != NULL);
    pipeshard_free(info);

    media.file      = file;
    media.file_size = file_size;
    asks(session, &media);
    OK(pipeshard_session_get_state(session, &state, &error));
    uint32_t prompt = state.prompt_tokens;
    // what is said next finds the image in the KV cache
    OK(pipeshard_session_add(session, "user", "And then?", &error));
    OK(pipeshard_generate(session, &how, NULL, NULL, &error));
    OK(pipeshard_session_get_state(session, &state, &error));
    CHECK(state.reused_tokens >= prompt && state.prompt_tokens < prompt);

    pipeshard_media as_pixels = pixels(rgb, sizeof rgb);
    asks(session, &as_pixels);
    // a budget in which the model works, and the encoder does not: the error says which one does
    set_budget(gpu, limits_of(gpu).minimum);
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add_media(session, &as_pixels, &error));
    OK(pipeshard_session_add(session, "user", argument("question"), &error));
    uint64_t wanted = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_generate(session, &how, NULL, NULL, &error));
    CHECK(wanted > limits_of(gpu).budget);
    set_budget(gpu, wanted);
    said.length = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));
    asks(session, &as_pixels);
    set_budget(gpu, 400 * MIB);

    // saved with the question alone, and with the answer
    OK(pipeshard_session_truncate(session, 1, &error));
    OK(pipeshard_session_save(session, &data, &size, &error));
    OK(pipeshard_session_open(model, &s, &other, &error));
    OK(pipeshard_session_restore(other, data, size, &error));
    pipeshard_free(data);
    said.length = 0;
    OK(pipeshard_generate(other, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));

    // what is no image
    OK(pipeshard_session_clear(session, &error));
    media.file      = "none of any kind";
    media.file_size = 16;
    GETS(PIPESHARD_E_FILE, pipeshard_session_add_media(session, &media, &error));
    media.file = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add_media(session, &media, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add_media(session, NULL, &error));
    as_pixels.stride = 5;
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add_media(session, &as_pixels, &error));
    as_pixels.stride = 0, as_pixels.width = 0;
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add_media(session, &as_pixels, &error));
    as_pixels.width = as_pixels.height = 0xFFFFFFFF;
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add_media(session, &as_pixels, &error));
    // two places in the text, and one image
    as_pixels = pixels(rgb, sizeof rgb);
    OK(pipeshard_session_add_media(session, &as_pixels, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, "user", "<__media__> and <__media__>", &error));
    OK(pipeshard_session_add(session, "user", argument("question"), &error));
    said.length = 0;
    OK(pipeshard_generate(session, &how, collect, &said, &error));
    SAME(said.bytes, argument("answer"));
    pipeshard_session_close(other);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
