// Models that are nowhere on a disk: the host reads them from its memory, in short pieces; it fails at each place, and it ends loading.
#include "host.h"

#include <dirent.h>

enum { MOST = 64 };

// What the host calls its files, and their bytes.
static struct {
    char   name[64];
    char * bytes;
    size_t size;
} archive[MOST];
static int      archived;
static unsigned seed = 1;
static int      reads, stop_at, short_reads;
static int64_t  fail_with;
static int      fail_at;
static int64_t  lie; // added to the size

static void put(const char * name, const char * path) {
    FILE * file = fopen(path, "rb");
    CHECK(file != NULL && archived < MOST && fseek(file, 0, SEEK_END) == 0);
    archive[archived].size  = (size_t) ftell(file);
    archive[archived].bytes = malloc(archive[archived].size);
    rewind(file);
    CHECK(fread(archive[archived].bytes, 1, archive[archived].size, file) == archive[archived].size);
    fclose(file);
    snprintf(archive[archived++].name, sizeof archive->name, "%s", name);
}

static int find(const char * name) {
    for (int i = 0; i < archived; i++) {
        if (strcmp(archive[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static int64_t size_of(void * user, const char * path) {
    CHECK(user == archive);
    int i = find(path);
    return i < 0 ? -7 : (int64_t) archive[i].size + lie;
}

static int64_t read_at(void * user, const char * path, uint64_t offset, void * into, uint64_t size) {
    CHECK(user == archive);
    int i = find(path);
    CHECK(i >= 0 && size > 0 && offset + size <= archive[i].size + (uint64_t) lie);
    if (++reads == fail_at) {
        return fail_with;
    }
    if (short_reads) {
        seed = seed * 1103515245u + 12345u;
        uint64_t most = 1 + (seed >> 8) % 700000;
        size = size < most ? size : most;
    }
    if (offset >= archive[i].size) {
        return 0;
    }
    size = offset + size > archive[i].size ? archive[i].size - offset : size;
    memcpy(into, archive[i].bytes + offset, size);
    return (int64_t) size;
}

static float last;

// Somebody has pressed a key meanwhile.
static int progressed(void * user, float done) {
    CHECK(user == &last && done >= last && done <= 1.0f);
    last = done;
    return stop_at > 0 && reads >= stop_at;
}

static int descriptors(void) {
    DIR * folder = opendir("/proc/self/fd");
    int   count  = 0;
    CHECK(folder != NULL);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

static int mapped(void) {
    char   line[512];
    int    count = 0;
    FILE * maps  = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        count += strstr(line, "/memfd:pipeshard") != NULL;
    }
    fclose(maps);
    return count;
}

static pipeshard_model_config of_archive(const char * name) {
    pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);
    m.path          = name;
    m.file_size     = size_of;
    m.read_file     = read_at;
    m.files_user    = archive;
    m.progress      = progressed;
    m.progress_user = &last;
    reads = 0, last = 0;
    return m;
}

static pipeshard_device * gpu;

static void answers(const char * name, uint64_t minimum, int64_t expected_reads) {
    static answer          said;
    pipeshard_model *      model = NULL;
    pipeshard_model_config m     = of_archive(name);
    OK(pipeshard_model_open(gpu, &m, &model, &error));
    CHECK(last == 1.0f && reads >= expected_reads && mapped() > 0);
    int all = reads;
    pipeshard_session * session = open_session(model);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    // it is the same model to the planner
    CHECK(limits_of(gpu).minimum == minimum);
    set_budget(gpu, minimum);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    OK(pipeshard_sleep(gpu, &error));
    set_budget(gpu, number("budget") * MIB);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    CHECK(reads == all && mapped() == 0);
}

static void refused(int wanted, const char * name, const char * mmproj) {
    pipeshard_model *      model = NULL;
    pipeshard_model_config m     = of_archive(name);
    int                    before = descriptors();
    m.mmproj = mmproj;
    GETS(wanted, pipeshard_model_open(gpu, &m, &model, &error));
    CHECK(model == NULL && mapped() == 0);
    if (descriptors() != before) {
        FAIL("%d descriptors, %d before", descriptors(), before);
    }
    fail_at = stop_at = 0;
    lie     = 0;
}

static void failures(void) {
    pipeshard_model_config m     = of_archive("a/model.gguf");
    pipeshard_model *      model = NULL;
    m.read_file = NULL;
    GETS(PIPESHARD_E_INVALID, pipeshard_model_open(gpu, &m, &model, &error));
    refused(PIPESHARD_E_FILE, "a/nothing.gguf", NULL);
    refused(PIPESHARD_E_FILE, "a/model.gguf", "a/nothing.gguf");
    CHECK(reads == 0);
    refused(PIPESHARD_E_INVALID, "a/piece-00002-of-00003.gguf", NULL);
    refused(PIPESHARD_E_FILE, "a/empty.gguf", NULL);
    refused(PIPESHARD_E_FILE, "a/noise.gguf", NULL);
    refused(PIPESHARD_E_FILE, "a/piece-00001-of-00002.gguf", NULL); // the second piece is missing
    short_reads = 1;
    for (fail_at = 1; fail_at < 30; fail_at += 7) {
        const int64_t values[] = { -1, PIPESHARD_E_BUSY, 1 << 30, INT64_MIN, 0 };
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            int at    = fail_at;
            fail_with = values[i];
            refused(PIPESHARD_E_FILE, "a/model.gguf", NULL);
            CHECK(reads == at);
            fail_at = at;
        }
        int at    = fail_at;
        fail_with = PIPESHARD_E_CANCELLED;
        refused(PIPESHARD_E_CANCELLED, "a/model.gguf", NULL);
        stop_at = at;
        refused(PIPESHARD_E_CANCELLED, "a/model.gguf", NULL);
        CHECK(reads == at);
        fail_at = at;
    }
    fail_at = 0;
    lie     = 5; // the file is shorter than was said
    refused(PIPESHARD_E_FILE, "a/model.gguf", NULL);
    lie = -1000;
    refused(PIPESHARD_E_FILE, "a/model.gguf", NULL);
}

// An encoder of images as well, which is loaded again after a sleep.
static void sees(const pipeshard_model_config * config, answer * said) {
    static unsigned char      pixels[3 * 112 * 112];
    pipeshard_model *         model   = NULL;
    pipeshard_session *       session = NULL;
    pipeshard_session_config  s       = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_media           image   = PIPESHARD_INIT(pipeshard_media);
    pipeshard_generate_config how     = tokens(8);
    for (size_t i = 0; i < sizeof pixels; i++) {
        pixels[i] = (unsigned char) (i * 7);
    }
    image.rgb   = pixels;
    image.width = image.height = 112;
    s.context   = 2048;
    OK(pipeshard_model_open(gpu, config, &model, &error));
    char * info = pipeshard_model_info(model);
    CHECK(strstr(info, "\"images\":true") != NULL);
    pipeshard_free(info);
    OK(pipeshard_session_open(model, &s, &session, &error));
    said->length = 0;
    for (int i = 0; i < 2; i++) {
        OK(pipeshard_session_clear(session, &error));
        OK(pipeshard_session_add_media(session, &image, &error));
        OK(pipeshard_session_add(session, "user", "what is this", &error));
        OK(pipeshard_generate(session, &how, collect, said, &error));
        OK(pipeshard_sleep(gpu, &error));
    }
    pipeshard_session_close(session);
    pipeshard_model_close(model);
}

static void images(void) {
    static answer          of_files, of_memory;
    pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);
    m.path   = argument("chat");
    m.mmproj = argument("mmproj");
    sees(&m, &of_files);
    m        = of_archive("images.gguf");
    m.mmproj = "encoder";
    sees(&m, &of_memory);
    CHECK(of_files.length > 0);
    SAME(of_memory.bytes, of_files.bytes);
    CHECK(mapped() == 0);
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    int count = (int) number("count");
    put("a/model.gguf", argument("model"));
    put("images.gguf", argument("chat"));
    put("encoder", argument("mmproj"));
    for (int i = 1; i <= count; i++) {
        char name[64], path[1024];
        snprintf(name, sizeof name, "b/piece-%05d-of-%05d.gguf", i, count);
        snprintf(path, sizeof path, "%s%s", argument("pieces"), strrchr(name, '/'));
        put(name, path);
    }
    snprintf(archive[archived++].name, sizeof archive->name, "a/empty.gguf");
    archive[archived].size  = 100000;
    archive[archived].bytes = calloc(1, 100000);
    snprintf(archive[archived++].name, sizeof archive->name, "a/noise.gguf");
    put("a/piece-00001-of-00002.gguf", argument("model"));

    gpu = open_device(number("budget") * MIB);
    int before = descriptors();
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    static answer       said;
    continues(session, argument("prompt"), 1, &said);
    uint64_t minimum = limits_of(gpu).minimum;
    pipeshard_session_close(session);
    pipeshard_model_close(model);

    answers("a/model.gguf", minimum, 1);
    short_reads = 1;
    answers("a/model.gguf", minimum, 30);
    char first[64];
    snprintf(first, sizeof first, "b/piece-00001-of-%05d.gguf", count);
    answers(first, minimum, 30);
    short_reads = 0;
    answers(first, minimum, count);
    failures();
    images();
    CHECK(descriptors() == before);
    pipeshard_device_close(gpu);
    return 0;
}
