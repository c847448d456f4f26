// Two llama.cpps in one process: the host's own, and the one inside the library. Both say what stock llama.cpp says, in turn and at
// the same time.
//
// load=linked: both are linked, the host's first. load=local or global: the library is loaded by dlopen (compiled with -DBY_NAME).
#define _GNU_SOURCE
#include "host.h"

#include <ggml-backend.h>
#include <llama.h>

static void quiet(enum ggml_log_level level, const char * text, void * user) {
    (void) level, (void) text, (void) user;
}

// The greedy answer of the host's own llama.cpp, on the CPU.
static void stock(answer * into) {
    struct llama_model_params   of_model   = llama_model_default_params();
    struct llama_context_params of_context = llama_context_default_params();
    const char *                prompt     = argument("prompt");
    llama_token                 list[512];
    ggml_backend_dev_t          none = NULL;
    of_model.devices            = &none;
    of_model.use_extra_bufts    = false;
    of_context.n_ctx            = 512;
    of_context.n_threads        = 1;
    of_context.n_threads_batch  = 1;
    struct llama_model * model  = llama_model_load_from_file(argument("model"), of_model);
    CHECK(model != NULL);
    struct llama_context *     context    = llama_init_from_model(model, of_context);
    const struct llama_vocab * vocabulary = llama_model_get_vocab(model);
    CHECK(context != NULL);
    int count      = llama_tokenize(vocabulary, prompt, (int) strlen(prompt), list, 512, true, true);
    into->length   = 0;
    into->bytes[0] = 0;
    CHECK(count > 0);
    for (uint32_t said = 0; said < number("tokens"); said++) {
        CHECK(llama_decode(context, llama_batch_get_one(list, count)) == 0);
        const float * logits = llama_get_logits_ith(context, -1);
        llama_token   best   = 0;
        for (llama_token token = 1; token < llama_vocab_n_tokens(vocabulary); token++) {
            best = logits[token] > logits[best] ? token : best;
        }
        char piece[64];
        int  length = llama_token_to_piece(vocabulary, best, piece, sizeof piece, 0, false);
        CHECK(length >= 0);
        collect(into, piece, (size_t) length);
        list[0] = best;
        count   = 1;
    }
    llama_free(context);
    llama_model_free(model);
}

static void * stock_thread(void * user) {
    for (int i = 0; i < 3; i++) {
        stock(user);
        SAME(((answer *) user)->bytes, argument("expected"));
    }
    return NULL;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer theirs, ours;
    const char *  load     = argument("load");
    const char *  expected = argument("expected");
    uint32_t      count    = number("tokens");
    llama_log_set(quiet, NULL);
#ifdef BY_NAME
    void * library = dlopen(argument("library"), RTLD_NOW | (strcmp(load, "global") == 0 ? RTLD_GLOBAL : RTLD_LOCAL));
    if (library == NULL) {
        FAIL("%s", dlerror());
    }
    find_functions(library);
#else
    CHECK(strcmp(load, "linked") == 0);
#endif
    ggml_backend_load_all_from_path(argument("backends"));
    llama_backend_init();
    stock(&theirs);
    SAME(theirs.bytes, expected);

    pipeshard_device *  gpu     = open_device(number("small") * MIB);
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    SAME(continues(session, argument("prompt"), count, &ours), expected);
    stock(&theirs);
    SAME(theirs.bytes, expected);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, stock_thread, &theirs) == 0);
    for (int i = 0; i < 3; i++) {
        SAME(continues(session, argument("prompt"), count, &ours), expected);
    }
    pthread_join(thread, NULL);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
#ifdef BY_NAME
    CHECK(dlclose(library) == 0);
#endif
    stock(&theirs);
    SAME(theirs.bytes, expected);
    llama_backend_free();
    return 0;
}
