// The host's CUDA context: current in the library, on whatever thread, and nowhere else. The driver is a stand-in (libcuda.c).
#include "host.h"

#include <dlfcn.h>

int    cuCtxPushCurrent_v2(void * context);
int    cuCtxPopCurrent_v2(void ** context);
int    fake_depth(void);
void * fake_current(void);

static void * const CONTEXT   = (void *) 0xC0DE0;
static void * const DESTROYED = (void *) 0xDEAD0;
static void * const ANOTHER   = (void *) 0x07E40; // what the host computes in

static int pieces, progresses, allocations, threads;

static void inside(int * counter) {
    CHECK(fake_current() == CONTEXT);
    __sync_fetch_and_add(counter, 1);
}

static int progressed(void * user, float done) {
    inside(user);
    return done < 0;
}

static int piece(void * user, const char * text, size_t length) {
    CHECK(text != NULL && length > 0);
    inside(user);
    return 0;
}

static void * allocate(void * user, int kind, size_t size, size_t alignment) {
    CHECK(kind > 0);
    inside(user);
    return aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
}

static void release(void * user, int kind, void * memory, size_t size) {
    CHECK(kind > 0 && size > 0);
    inside(user);
    free(memory);
}

static void started(void * user, const char * name) {
    CHECK(name[0] && fake_depth() == 1);
    inside(user);
}

static void ending(void * user, const char * name) {
    CHECK(name[0] && fake_depth() == 1);
    CHECK(fake_current() == CONTEXT);
    __sync_fetch_and_sub((int *) user, 1);
}

// A thread of the host's without a context.
static void * elsewhere(void * given) {
    pipeshard_session *       session = given;
    pipeshard_generate_config how     = tokens(4);
    CHECK(fake_depth() == 0);
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_generate(session, &how, piece, &pieces, &error));
    CHECK(fake_depth() == 0);
    return NULL;
}

#define OUTSIDE() CHECK(fake_depth() == 1 && fake_current() == ANOTHER)

int main(int argc, char ** argv) {
    arguments(argc, argv);
    pipeshard_device *      gpu   = NULL;
    pipeshard_model *       model = NULL;
    pipeshard_model_config  m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_device_config d     = device_config(number("budget") * MIB);
    CHECK(cuCtxPushCurrent_v2(ANOTHER) == 0);
    d.threads      = 3;
    d.allocate     = allocate;
    d.release      = release;
    d.memory_user  = &allocations;
    d.cuda_context = DESTROYED;
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &gpu, &error));
    OUTSIDE();
    d.cuda_context = CONTEXT;
    pipeshard_set_thread_hooks(started, ending, &threads);
    OK(pipeshard_device_open(&d, &gpu, &error));
    OUTSIDE();
    m.path          = argument("model");
    m.progress      = progressed;
    m.progress_user = &progresses;
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    OUTSIDE();
    pipeshard_session * session = open_session(model);
    OUTSIDE();
    CHECK(threads > 2);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, elsewhere, session) == 0 && pthread_join(thread, NULL) == 0);
    pipeshard_generate_config how   = tokens(4);
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    OK(pipeshard_submit(session, &how, &error));
    do {
        OK(pipeshard_wait(session, 600000, &event, &error));
        OUTSIDE();
    } while (event.kind == PIPESHARD_EVENT_TEXT);
    CHECK(event.kind == PIPESHARD_EVENT_DONE);
    OK(pipeshard_sleep(gpu, &error));
    OK(pipeshard_wake(gpu, &error));
    pipeshard_free(pipeshard_report(gpu));
    OUTSIDE();
    // memory goes with the last handle
    pipeshard_device_close(gpu);
    pipeshard_model_close(model);
    pipeshard_session_close(session);
    OUTSIDE();
    CHECK(threads == 0 && pieces > 1 && progresses > 1 && allocations > 8);
    pipeshard_set_thread_hooks(NULL, NULL, NULL);

    // it is the device's: the next one has none
    d.cuda_context = NULL;
    d.allocate     = NULL;
    d.release      = NULL;
    OK(pipeshard_device_open(&d, &gpu, &error));
    m.progress = NULL;
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    OUTSIDE();
    return 0;
}
