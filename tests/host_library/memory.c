// The host's allocators, hooks on threads, and the list of streams: what the host counts is what the library says that it holds; each
// request is refused once, and all that was given comes back, once.
#define _GNU_SOURCE
#include "host.h"

#include <ctype.h>

// ------------------------------------------------------------------------------------------------------------ allocators

enum { MOST = 4096, KINDS = 7, GRANULARITY = 256 };

typedef struct {
    void * address;
    size_t size;
    int    kind;
    int    page_locked;
} allocation;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static allocation      live[MOST];
static int             live_count;
static uint64_t        held[2][KINDS]; // of the device, page-locked
static int             requests[2];
static int             refuse_from[2], refuse_to[2]; // the how manieth requests are refused
static int             shifted;                      // what is given has the wrong alignment

static void * give(int page_locked, int kind, size_t size, size_t alignment) {
    CHECK(kind >= PIPESHARD_MEMORY_WEIGHTS && kind <= PIPESHARD_MEMORY_OTHER && size > 0);
    CHECK(alignment >= 256 && (alignment & (alignment - 1)) == 0);
    pthread_mutex_lock(&lock);
    int    request = ++requests[page_locked];
    void * memory  = NULL;
    if (request < refuse_from[page_locked] || request > refuse_to[page_locked]) {
        // no neighbour of another allocation, and no more aligned than it has to be
        char * block = aligned_alloc(2 * alignment, (size + 6 * alignment) & ~(2 * alignment - 1));
        CHECK(block != NULL && live_count < MOST);
        memory = block + alignment + shifted;
        live[live_count++] = (allocation) { memory, size, kind, page_locked };
        held[page_locked][kind] += (size + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    }
    pthread_mutex_unlock(&lock);
    return memory;
}

static void take(int page_locked, int kind, void * memory, size_t size) {
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < live_count && live[at].address != memory) {
        at++;
    }
    if (at == live_count || live[at].size != size || live[at].kind != kind || live[at].page_locked != page_locked) {
        FAIL("%zu bytes of kind %d come back that were not given, or not so", size, kind);
    }
    held[page_locked][kind] -= (size + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    live[at] = live[--live_count];
    pthread_mutex_unlock(&lock);
    memset(memory, 0xFF, size);
    free((char *) memory - 256 - shifted);
}

static void * allocate(void * user, int kind, size_t size, size_t alignment) {
    CHECK(user == live);
    return give(0, kind, size, alignment);
}

static void release(void * user, int kind, void * memory, size_t size) {
    CHECK(user == live);
    take(0, kind, memory, size);
}

static void * allocate_host(void * user, int kind, size_t size, size_t alignment) {
    CHECK(user == live);
    return give(1, kind, size, alignment);
}

static void release_host(void * user, int kind, void * memory, size_t size) {
    CHECK(user == live);
    take(1, kind, memory, size);
}

static pipeshard_device_config with_allocators(uint64_t budget) {
    pipeshard_device_config d = device_config(budget);
    d.allocate      = allocate;
    d.release       = release;
    d.allocate_host = allocate_host;
    d.release_host  = release_host;
    d.memory_user   = live;
    return d;
}

static pipeshard_device * gpu;

#define SAME_BOOKS() same_books(__LINE__)
static void same_books(int line) {
    pipeshard_limits now     = limits_of(gpu);
    uint64_t         said[6] = { now.held_weights, now.held_kv, now.held_ring, now.held_buffers, now.held_vision, now.held_other };
    uint64_t         sum     = 0;
    for (int kind = 1; kind < KINDS; kind++) {
        if (held[0][kind] != said[kind - 1]) {
            fail(__FILE__, line, "kind %d: the host counts %llu, the library says %llu", kind, (unsigned long long) held[0][kind],
                 (unsigned long long) said[kind - 1]);
        }
        sum += held[0][kind];
    }
    CHECK(sum == now.held && sum == reported(gpu, "current_bytes"));
}

static int piece(void * user, const char * text, size_t length) {
    SAME_BOOKS();
    return collect(user, text, length);
}

static void says(pipeshard_session * session, const char * expected) {
    static answer             said;
    pipeshard_generate_config how = tokens(number("tokens"));
    said.length = 0, said.calls = 0;
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_generate(session, &how, piece, &said, &error));
    SAME(said.bytes, expected);
    SAME_BOOKS();
}

static void books(void) {
    pipeshard_device_config d = with_allocators(number("budget") * MIB);
    OK(pipeshard_device_open(&d, &gpu, &error));
    CHECK(limits_of(gpu).held == 0 && live_count == 0);
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    SAME_BOOKS();
    says(session, argument("expected"));
    CHECK(held[0][PIPESHARD_MEMORY_WEIGHTS] > 0 && held[0][PIPESHARD_MEMORY_KV] > 0 && held[0][PIPESHARD_MEMORY_BUFFERS] > 0);
    uint64_t page_locked = 0;
    for (int kind = 1; kind < KINDS; kind++) {
        page_locked += held[1][kind];
    }
    CHECK(page_locked > 0);
    set_budget(gpu, limits_of(gpu).minimum);
    SAME_BOOKS();
    says(session, argument("expected"));
    CHECK(held[0][PIPESHARD_MEMORY_RING] > 0);
    set_budget(gpu, number("budget") * MIB);
    pipeshard_session * second = open_session(model);
    SAME_BOOKS();
    says(second, argument("expected"));
    pipeshard_session_close(second);
    SAME_BOOKS();
    OK(pipeshard_sleep(gpu, &error));
    SAME_BOOKS();
    OK(pipeshard_wake(gpu, &error));
    says(session, argument("expected"));
    pipeshard_session_close(session);
    SAME_BOOKS();
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    CHECK(live_count == 0 && requests[0] > 8 && requests[1] > 0);
}

// The same with an encoder of images, which has a class of its own.
static void books_of_images(void) {
    pipeshard_device_config d = with_allocators(number("budget") * MIB);
    OK(pipeshard_device_open(&d, &gpu, &error));
    pipeshard_model_config m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_model *      model = NULL;
    m.path   = argument("chat");
    m.mmproj = argument("mmproj");
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    pipeshard_session_config s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_session *      session = NULL;
    s.context = 2048;
    OK(pipeshard_session_open(model, &s, &session, &error));
    SAME_BOOKS();
    const uint64_t budgets[] = { number("budget") * MIB, limits_of(gpu).minimum, number("budget") * MIB };
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        static answer             said;
        static unsigned char      pixels[3 * 112 * 112];
        pipeshard_media           image = PIPESHARD_INIT(pipeshard_media);
        pipeshard_generate_config how   = tokens(4);
        memset(pixels, 16 * (int) i, sizeof pixels);
        image.rgb   = pixels;
        image.width = image.height = 112;
        set_budget(gpu, budgets[i]);
        SAME_BOOKS();
        OK(pipeshard_session_clear(session, &error));
        OK(pipeshard_session_add_media(session, &image, &error));
        OK(pipeshard_session_add(session, "user", "what is this", &error));
        said.length = 0;
        OK(pipeshard_generate(session, &how, piece, &said, &error));
        SAME_BOOKS();
    }
    CHECK(held[0][PIPESHARD_MEMORY_VISION] > 0);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    CHECK(live_count == 0);
}

// -------------------------------------------------------------------------------------------------------------- refusals

// What a host does, up to the first thing that fails. Its code.
static int everything(char * why, size_t room) {
    static answer             said;
    pipeshard_device_config   d       = with_allocators(number("small") * MIB);
    pipeshard_model_config    m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_generate_config how     = tokens(8);
    pipeshard_budget_request  request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_limits          limits  = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_model *         model   = NULL;
    pipeshard_session *       session = NULL;
    pipeshard_error *         error   = NULL;
    int                       code    = 0;
    m.path      = argument("model");
    s.context   = 256;
    said.length = 0;
    requests[0] = requests[1] = 0;
    (void) ((code = pipeshard_device_open(&d, &gpu, &error)) || (code = pipeshard_model_open(gpu, &m, &model, &error)) ||
            (code = pipeshard_session_open(model, &s, &session, &error)) ||
            (code = pipeshard_session_add(session, NULL, argument("prompt"), &error)) ||
            (code = pipeshard_generate(session, &how, collect, &said, &error)) ||
            (code = pipeshard_get_limits(gpu, &limits, &error)) || (request.budget = limits.minimum, 0) ||
            (code = pipeshard_set_budget(gpu, &request, NULL, &error)) ||
            (code = pipeshard_generate(session, &how, collect, &said, &error)));
    snprintf(why, room, "%s", pipeshard_error_text(error));
    CHECK(pipeshard_error_code(error) == code && (code == PIPESHARD_OK || strlen(why) > 8));
    CHECK(said.length == 0 || strncmp(said.bytes, argument("expected"), said.length) == 0);
    pipeshard_error_free(error);
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    CHECK(live_count == 0);
    return code;
}

// The n-th request is refused, for each n; `lasting`: and all that follow.
static void refusals(int page_locked, int lasting) {
    int failed = 0, n = 1;
    for (;; n++) {
        char why[1024];
        refuse_from[page_locked] = n;
        refuse_to[page_locked]   = lasting ? 1 << 30 : n;
        int code = everything(why, sizeof why);
        if (code == PIPESHARD_OK && requests[page_locked] < n) {
            break;
        }
        failed += code != PIPESHARD_OK;
        if (code != PIPESHARD_OK && code != PIPESHARD_E_NO_MEMORY && code != PIPESHARD_E_BUDGET_TOO_SMALL &&
            code != PIPESHARD_E_NO_DEVICE) {
            FAIL("request %d: %s: %s", n, pipeshard_result_name(code), why);
        }
        CHECK(n < 400);
    }
    refuse_from[page_locked] = refuse_to[page_locked] = 0;
    // page-locked memory can be done without
    if (page_locked ? failed != 0 || n < 2 : failed < 3) {
        FAIL("%d of %d refusals failed", failed, n - 1);
    }
}

static void bad_allocators(void) {
    char                    why[1024];
    pipeshard_device_config d = with_allocators(number("small") * MIB);
    d.release = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &gpu, &error));
    d              = with_allocators(number("small") * MIB);
    d.allocate_host = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &gpu, &error));
    CHECK(gpu == NULL);
    shifted  = 8;
    int code = everything(why, sizeof why);
    shifted  = 0;
    CHECK(code != PIPESHARD_OK && requests[0] > 0);
}

// --------------------------------------------------------------------------------------------------- threads and streams

static __thread int    of_library;
static __thread char   started_as[64];
static pthread_mutex_t threads_lock = PTHREAD_MUTEX_INITIALIZER;
static int             threads_now, threads_ever, streams_now, cpu_threads_ever;

static int is_stream(const char * name) {
    return strncmp(name, "SIM0.", 5) == 0 && isdigit((unsigned char) name[5]);
}

static void count(const char * name, int by) {
    pthread_mutex_lock(&threads_lock);
    threads_now += by;
    streams_now += is_stream(name) ? by : 0;
    threads_ever += by > 0;
    cpu_threads_ever += by > 0 && strcmp(name, "pipeshard-cpu") == 0;
    pthread_mutex_unlock(&threads_lock);
}

static void started(void * user, const char * name) {
    char known[64];
    CHECK(user == &threads_now && of_library == 0 && (is_stream(name) || strncmp(name, "pipeshard", 9) == 0));
    CHECK(pthread_getname_np(pthread_self(), known, sizeof known) == 0);
    SAME(known, name);
    of_library = 1;
    snprintf(started_as, sizeof started_as, "%s", name);
    count(name, 1);
}

static void ending(void * user, const char * name) {
    CHECK(user == &threads_now && of_library == 1);
    SAME(name, started_as);
    of_library = 0;
    count(name, -1);
}

static size_t stream_count(void) {
    void * few[1]  = { NULL };
    void * all[64] = { NULL };
    size_t n = 99, again = 0, first = 0;
    OK(pipeshard_streams(gpu, NULL, 0, &n, &error));
    OK(pipeshard_streams(gpu, few, 1, &first, &error));
    OK(pipeshard_streams(gpu, all, 64, &again, &error));
    CHECK(n == again && n == first && n < 64 && few[0] == all[0]);
    for (size_t i = 0; i < n; i++) {
        CHECK(all[i] != NULL);
        for (size_t j = 0; j < i; j++) {
            CHECK(all[i] != all[j]);
        }
    }
    CHECK(all[n] == NULL);
    return n;
}

static void threads_and_streams(void) {
    static answer said;
    pipeshard_set_thread_hooks(started, ending, &threads_now);
    pipeshard_device_config d = device_config(number("small") * MIB);
    d.threads = 3;
    OK(pipeshard_device_open(&d, &gpu, &error));
    CHECK((int) stream_count() == streams_now);
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    continues(session, argument("prompt"), 4, &said);
    size_t while_open = stream_count();
    CHECK(while_open > 1 && (int) while_open == streams_now && cpu_threads_ever >= 2);
    pipeshard_generate_config how   = tokens(4);
    pipeshard_event           event = PIPESHARD_INIT(pipeshard_event);
    int                       ever  = threads_ever;
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    OK(pipeshard_submit(session, &how, &error));
    do {
        OK(pipeshard_wait(session, 600000, &event, &error));
    } while (event.kind == PIPESHARD_EVENT_TEXT);
    CHECK(event.kind == PIPESHARD_EVENT_DONE && threads_ever > ever);
    pipeshard_session_close(session);
    CHECK((int) stream_count() == streams_now && stream_count() < while_open);
    // those who were told of a beginning are told of the end
    pipeshard_set_thread_hooks(NULL, NULL, NULL);
    pipeshard_model_close(model);
    size_t n = 5;
    GETS(PIPESHARD_E_INVALID, pipeshard_streams(gpu, NULL, 0, NULL, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_streams(gpu, NULL, 1, &n, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_streams(NULL, NULL, 0, &n, &error));
    CHECK(n == 0);
    pipeshard_device_close(gpu);
    CHECK(threads_now == 0 && streams_now == 0);
    ever = threads_ever;
    pipeshard_device_close(open_device(number("small") * MIB));
    CHECK(threads_ever == ever);
}

// A host that was compiled with the header of 0.2's beginning.
static void older_header(void) {
    pipeshard_device_config d = with_allocators(number("small") * MIB);
    d.size     = (uint32_t) offsetof(pipeshard_device_config, allocate);
    d.allocate = (pipeshard_allocate_fn) (uintptr_t) 1; // another member of the host's own
    d.release  = NULL;
    OK(pipeshard_device_open(&d, &gpu, &error));
    pipeshard_device_close(gpu);
    d.size -= 4;
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &gpu, &error));
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    older_header();
    books();
    books_of_images();
    refusals(0, 0);
    refusals(0, 1);
    refusals(1, 0);
    refusals(1, 1);
    bad_allocators();
    threads_and_streams();
    return 0;
}
