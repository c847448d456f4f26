// What a host can do wrong: each call returns a code with a text, and everything works afterwards.
#include "host.h"

static pipeshard_device *  gpu;
static pipeshard_model *   model;
static pipeshard_session * session;

static void still_works(void) {
    static answer said;
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    CHECK(reported(gpu, "unaccounted_bytes") == 0);
}

// Calls every function that takes a handle with handles that are none.
static void with_handles(int wanted, void * bad) {
    pipeshard_device *       d       = bad;
    pipeshard_model *        m       = bad;
    pipeshard_session *      s       = bad;
    pipeshard_model *        m_out   = (pipeshard_model *) 1;
    pipeshard_session *      s_out   = (pipeshard_session *) 1;
    pipeshard_model_config   config  = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_limits         limits  = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_state          state   = PIPESHARD_INIT(pipeshard_state);
    pipeshard_event          event   = PIPESHARD_INIT(pipeshard_event);
    pipeshard_media          media   = PIPESHARD_INIT(pipeshard_media);
    char *                   data    = (char *) 1;
    size_t                   size    = 1;
    config.path     = argument("model");
    request.budget  = number("budget") * MIB;
    media.file      = "BM";
    media.file_size = 2;
    GETS(wanted, pipeshard_get_limits(d, &limits, &error));
    GETS(wanted, pipeshard_set_budget(d, &request, &limits, &error));
    GETS(wanted, pipeshard_sleep(d, &error));
    GETS(wanted, pipeshard_wake(d, &error));
    GETS(wanted, pipeshard_model_open(d, &config, &m_out, &error));
    GETS(wanted, pipeshard_session_open(m, NULL, &s_out, &error));
    GETS(wanted, pipeshard_session_add(s, "user", "x", &error));
    GETS(wanted, pipeshard_session_add_media(s, &media, &error));
    GETS(wanted, pipeshard_session_clear(s, &error));
    GETS(wanted, pipeshard_session_truncate(s, 0, &error));
    GETS(wanted, pipeshard_session_save(s, &data, &size, &error));
    GETS(wanted, pipeshard_session_restore(s, "x", 1, &error));
    GETS(wanted, pipeshard_session_get_state(s, &state, &error));
    GETS(wanted, pipeshard_generate(s, NULL, NULL, NULL, &error));
    GETS(wanted, pipeshard_submit(s, NULL, &error));
    GETS(wanted, pipeshard_wait(s, 0, &event, &error));
    GETS(wanted, pipeshard_set_wakeup(s, NULL, NULL, &error));
    CHECK(pipeshard_cancel(s) == wanted);
    CHECK(pipeshard_report(d) == NULL && pipeshard_metrics(d) == NULL && pipeshard_model_info(m) == NULL);
    CHECK(m_out == NULL && s_out == NULL && data == NULL && size == 0);
    // without a place for the error
    CHECK(pipeshard_get_limits(d, &limits, NULL) == wanted);
    CHECK(pipeshard_generate(s, NULL, NULL, NULL, NULL) == wanted);
    pipeshard_session_close(s);
    pipeshard_model_close(m);
    pipeshard_device_close(d);
}

static void handles(void) {
    static char somewhere[256];
    with_handles(PIPESHARD_E_INVALID, NULL);
    with_handles(PIPESHARD_E_INVALID, somewhere);
    with_handles(PIPESHARD_E_INVALID, (void *) ~(uintptr_t) 0);
    // a handle of another kind
    pipeshard_limits limits = PIPESHARD_INIT(pipeshard_limits);
    GETS(PIPESHARD_E_INVALID, pipeshard_get_limits((pipeshard_device *) model, &limits, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_clear((pipeshard_session *) gpu, &error));
    pipeshard_session_close((pipeshard_session *) model);
    // one that was closed
    pipeshard_session * closed = open_session(model);
    pipeshard_session_close(closed);
    with_handles(PIPESHARD_E_INVALID, closed);
    pipeshard_session_close(closed);
    // what is done with errors that are none
    CHECK(pipeshard_error_code(NULL) == 0 && pipeshard_error_minimum(NULL) == 0 && strcmp(pipeshard_error_text(NULL), "") == 0);
    pipeshard_error_free(NULL);
    pipeshard_free(NULL);
    still_works();
}

// A struct with room behind it, for what a newer header may have there.
#define NEWER(type)           \
    struct {                  \
        type     known;       \
        uint64_t unknown[4];  \
    }

static void structs(void) {
    NEWER(pipeshard_model_config) m     = { PIPESHARD_INIT(pipeshard_model_config), { 0 } };
    NEWER(pipeshard_generate_config) g  = { PIPESHARD_INIT(pipeshard_generate_config), { 0 } };
    NEWER(pipeshard_session_config) s   = { PIPESHARD_INIT(pipeshard_session_config), { 0 } };
    NEWER(pipeshard_device_config) d    = { PIPESHARD_INIT(pipeshard_device_config), { 0 } };
    NEWER(pipeshard_budget_request) b   = { PIPESHARD_INIT(pipeshard_budget_request), { 0 } };
    NEWER(pipeshard_limits) l           = { PIPESHARD_INIT(pipeshard_limits), { 0 } };
    pipeshard_model *   other           = NULL;
    pipeshard_session * another         = NULL;
    pipeshard_device *  second          = NULL;
    const uint32_t      sizes[]         = { 0, 1, 3, 4, 7, 0xFFFFFFFF, 0x7FFFFFFF };
    m.known.path   = argument("model");
    b.known.budget = number("budget") * MIB;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        m.known.size = g.known.size = s.known.size = d.known.size = b.known.size = l.known.size = sizes[i];
        GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m.known, &other, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_session_open(model, &s.known, &another, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g.known, NULL, NULL, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_submit(session, &g.known, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_set_budget(gpu, &b.known, NULL, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_get_limits(gpu, &l.known, &error));
        GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d.known, &second, &error));
    }
    // newer, and what is unknown is zero: as if it were not there
    m.known.size = sizeof m, s.known.size = sizeof s, b.known.size = sizeof b, l.known.size = sizeof l, g.known.size = sizeof g;
    memset(l.unknown, 0xAA, sizeof l.unknown);
    OK(pipeshard_model_open(gpu, &m.known, &other, &error));
    OK(pipeshard_session_open(other, &s.known, &another, &error));
    pipeshard_session_close(another);
    pipeshard_model_close(other);
    OK(pipeshard_set_budget(gpu, &b.known, &l.known, &error));
    CHECK(l.known.size == sizeof l && l.known.budget == number("budget") * MIB && l.unknown[0] == 0 && l.unknown[3] == 0);
    // newer, and set
    m.unknown[3] = s.unknown[3] = b.unknown[3] = g.unknown[3] = d.unknown[3] = 1;
    d.known.size = sizeof d;
    GETS(PIPESHARD_E_VERSION, pipeshard_model_open(gpu, &m.known, &other, &error));
    GETS(PIPESHARD_E_VERSION, pipeshard_session_open(model, &s.known, &another, &error));
    GETS(PIPESHARD_E_VERSION, pipeshard_set_budget(gpu, &b.known, NULL, &error));
    GETS(PIPESHARD_E_VERSION, pipeshard_generate(session, &g.known, NULL, NULL, &error));
    GETS(PIPESHARD_E_VERSION, pipeshard_device_open(&d.known, &second, &error));
    // behind the size nothing is read, and nothing is written
    m.known.size = sizeof m.known, s.known.size = sizeof s.known, l.known.size = sizeof l.known;
    memset(m.unknown, 0xAA, sizeof m.unknown);
    memset(s.unknown, 0xAA, sizeof s.unknown);
    memset(l.unknown, 0xAA, sizeof l.unknown);
    OK(pipeshard_model_open(gpu, &m.known, &other, &error));
    OK(pipeshard_session_open(other, &s.known, &another, &error));
    OK(pipeshard_get_limits(gpu, &l.known, &error));
    CHECK(l.unknown[0] == 0xAAAAAAAAAAAAAAAAull && l.unknown[3] == 0xAAAAAAAAAAAAAAAAull);
    // one of an older host, which ends in the middle
    memset(&l, 0xAA, sizeof l);
    l.known.size = 24;
    OK(pipeshard_get_limits(gpu, &l.known, &error));
    CHECK(l.known.budget == number("budget") * MIB && l.known.everything == 0xAAAAAAAAAAAAAAAAull);
    pipeshard_session_close(another);
    pipeshard_model_close(other);
    // members that are reserved, and flags that there are not
    m.known.reserved = 1;
    GETS(PIPESHARD_E_VERSION, pipeshard_model_open(gpu, &m.known, &other, &error));
    m.known.reserved = 0, m.known.flags = 1u << 31;
    GETS(PIPESHARD_E_VERSION, pipeshard_model_open(gpu, &m.known, &other, &error));
    s.known.flags = 1;
    GETS(PIPESHARD_E_VERSION, pipeshard_session_open(model, &s.known, &another, &error));
    CHECK(other == NULL && another == NULL && second == NULL);
    still_works();
}

static void texts(void) {
    static const char        broken[] = "abc\xC3(\xFF";
    pipeshard_model_config   m        = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config s        = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_generate_config g       = PIPESHARD_INIT(pipeshard_generate_config);
    pipeshard_model *        other    = NULL;
    pipeshard_session *      another  = NULL;
    const char *             stops[]  = { "x", broken, NULL };
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, &other, &error));
    m.path = broken;
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, &other, &error));
    m.path = "";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &other, &error));
    m.path = "/proc/self/exe";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &other, &error));
    m.path = "/proc/self";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &other, &error));
    m.path = argument("cut");
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &other, &error));
    m.path   = argument("model");
    m.mmproj = "/nowhere/mmproj.gguf";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &other, &error));
    m.mmproj        = NULL;
    m.chat_template = broken;
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, &other, &error));
    m.chat_template = "{% for %}{{";
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, &other, &error));
    m.chat_template = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, NULL, &other, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, NULL, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_open(model, NULL, NULL, &error));
    s.type_k = "f17";
    GETS(PIPESHARD_E_INVALID, pipeshard_session_open(model, &s, &another, &error));
    s.type_k = broken;
    GETS(PIPESHARD_E_INVALID, pipeshard_session_open(model, &s, &another, &error));
    s.type_k  = NULL;
    s.context = 0xFFFFFFFF;
    CHECK(pipeshard_session_open(model, &s, &another, NULL) != PIPESHARD_OK);
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, broken, "x", &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, NULL, broken, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_add(session, NULL, NULL, &error));
    OK(pipeshard_session_clear(session, &error));
    OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
    g.grammar = "root ::= (";
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g, NULL, NULL, &error));
    g.grammar = broken;
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g, NULL, NULL, &error));
    g.grammar     = NULL;
    g.json_schema = "{";
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g, NULL, NULL, &error));
    g.json_schema = NULL;
    g.stop        = stops;
    g.stop_count  = 3;
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g, NULL, NULL, &error));
    g.stop = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_generate(session, &g, NULL, NULL, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_session_restore(session, NULL, 100, &error));
    GETS(PIPESHARD_E_FILE, pipeshard_session_restore(session, "none of ours, but long enough to be one", 39, &error));
    CHECK(other == NULL && another == NULL);
    still_works();
}

static void budgets(void) {
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    uint64_t                 before  = limits_of(gpu).budget, minimum;
    GETS(PIPESHARD_E_INVALID, pipeshard_set_budget(gpu, NULL, NULL, &error));
    GETS(PIPESHARD_E_INVALID, pipeshard_set_budget(gpu, &request, NULL, &error));
    request.budget = 1;
    minimum        = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_set_budget(gpu, &request, NULL, &error));
    CHECK(minimum > 1 && limits_of(gpu).budget == before);
    request.budget = minimum;
    OK(pipeshard_set_budget(gpu, &request, NULL, &error));
    still_works();
    for (int huge = 0; huge < 3; huge++) { // more than any GPU has: allowed, or refused with a text
        uint64_t         old   = limits_of(gpu).budget;
        pipeshard_error * error = NULL;
        request.budget = huge == 0 ? 1ull << 63 : huge == 1 ? ~0ull : 1ull << 45;
        int code       = pipeshard_set_budget(gpu, &request, NULL, &error);
        CHECK(code == PIPESHARD_OK || (pipeshard_error_code(error) == code && limits_of(gpu).budget == old));
        pipeshard_error_free(error);
        still_works();
    }
    request.budget = before;
    OK(pipeshard_set_budget(gpu, &request, NULL, &error));
}

static void devices(void) {
    pipeshard_device_config d     = device_config(number("budget") * MIB);
    pipeshard_device *      other = NULL;
    pipeshard_model *       m_out = NULL;
    pipeshard_model_config  m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_error *       error = NULL;
    d.simulated = "vram=lots";
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &other, &error));
    d.simulated = argument("simulated");
    d.cache_dir = "not/a/whole/path";
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &other, &error));
    d.cache_dir = NULL;
    d.threads   = -1;
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, &other, &error));
    d.threads = 1;
    d.flags   = 1u << 30;
    GETS(PIPESHARD_E_VERSION, pipeshard_device_open(&d, &other, &error));
    d.flags = 0;
    d.name  = "CUDA77";
    GETS(PIPESHARD_E_NO_DEVICE, pipeshard_device_open(&d, &other, &error));
    d.name    = NULL;
    d.profile = "/nowhere/profile.json";
    m.path    = argument("model");
    // a profile is read with the device, or with the first model
    int code = pipeshard_device_open(&d, &other, &error);
    if (code == PIPESHARD_OK) {
        code = pipeshard_model_open(other, &m, &m_out, &error);
    }
    CHECK(code == PIPESHARD_E_FILE || code == PIPESHARD_E_INVALID);
    pipeshard_error_free(error);
    pipeshard_device_close(other);
    GETS(PIPESHARD_E_INVALID, pipeshard_device_open(&d, NULL, &error));
    d.profile = NULL;
    // one byte, and more bytes than there are
    d.budget = 1;
    other    = NULL;
    OK(pipeshard_device_open(&d, &other, &error));
    uint64_t minimum; // is found out with the model, or with its first session
    error = NULL;
    code  = pipeshard_model_open(other, &m, &m_out, &error);
    if (code == PIPESHARD_OK) {
        pipeshard_session * s_out = NULL;
        minimum = GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_session_open(m_out, NULL, &s_out, &error));
        CHECK(s_out == NULL);
    } else {
        minimum = returns(__FILE__, __LINE__, "pipeshard_model_open", PIPESHARD_E_BUDGET_TOO_SMALL, code, error);
    }
    CHECK(minimum > 1);
    pipeshard_model_close(m_out);
    pipeshard_device_close(other);
    d.budget = 1ull << 63;
    code     = pipeshard_device_open(&d, &other, &error);
    CHECK(code == PIPESHARD_OK || strlen(pipeshard_error_text(error)) > 8);
    pipeshard_error_free(code == PIPESHARD_OK ? NULL : error);
    pipeshard_device_close(other);
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    devices();
    gpu     = open_device(number("budget") * MIB);
    model   = open_model(gpu);
    session = open_session(model);
    still_works();
    handles();
    structs();
    texts();
    budgets();
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return 0;
}
