// Writes nothing to standard output and standard error, also where they are closed and a file of the host's has their numbers, and
// changes nothing that belongs to the process.
#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <fenv.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

extern char ** environ;

// What a process has one of.
typedef struct {
    void (*handlers[65])(int);
    sigset_t      masked;
    char          folder[4096], environment[1 << 16], locale[512];
    mode_t        mask;
    int           rounding, exceptions;
    struct rlimit locked;
} effects;

static void look(effects * e) {
    memset(e, 0, sizeof *e);
    for (int number = 1; number < 65; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0) {
            e->handlers[number] = action.sa_handler;
        }
    }
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &e->masked) == 0);
    CHECK(getcwd(e->folder, sizeof e->folder) != NULL);
    size_t length = 0;
    for (char ** variable = environ; *variable != NULL; variable++) {
        length += (size_t) snprintf(e->environment + length, sizeof e->environment - length, "%s\n", *variable);
        CHECK(length < sizeof e->environment);
    }
    strncpy(e->locale, setlocale(LC_ALL, NULL), sizeof e->locale - 1);
    e->mask = umask(0);
    umask(e->mask);
    e->rounding   = fegetround();
    e->exceptions = fegetexcept();
    CHECK(getrlimit(RLIMIT_MEMLOCK, &e->locked) == 0);
}

static void use(uint64_t budget) {
    static answer            said;
    pipeshard_device *       gpu     = open_device(budget);
    pipeshard_model *        model   = open_model(gpu);
    pipeshard_session *      session = open_session(model);
    pipeshard_model *        none    = NULL;
    pipeshard_model_config   m       = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_budget_request one     = PIPESHARD_INIT(pipeshard_budget_request);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    // what fails says so to nobody but the caller
    m.path = "/nowhere/model.gguf";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &none, &error));
    m.path = "/proc/self/exe";
    GETS(PIPESHARD_E_FILE, pipeshard_model_open(gpu, &m, &none, &error));
    one.budget = 1;
    GETS(PIPESHARD_E_BUDGET_TOO_SMALL, pipeshard_set_budget(gpu, &one, NULL, &error));
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static effects before, after;
    const char *   numbers  = given("files"); // names of files that take the numbers 1 and 2, with %d in it
    int            kept[3]  = { 0 };
    struct stat    written;
    CHECK(setlocale(LC_ALL, "") != NULL);
    umask(027);
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 1; fd <= 2 && numbers != NULL; fd++) {
        char name[4096];
        snprintf(name, sizeof name, "%s%d", numbers, fd);
        // so that messages of this program have a place to go
        kept[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 10);
        close(fd);
        CHECK(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600) == fd);
    }
    look(&before);
    use(number("small") * MIB);
    use(number("budget") * MIB);
    look(&after);
    for (int fd = 1; fd <= 2 && numbers != NULL; fd++) {
        CHECK(fstat(fd, &written) == 0);
        off_t bytes = written.st_size;
        dup2(kept[fd], fd);
        if (bytes != 0) {
            FAIL("%ld bytes were written into the file with number %d", (long) bytes, fd);
        }
    }
    CHECK(memcmp(before.handlers, after.handlers, sizeof before.handlers) == 0);
    CHECK(memcmp(&before.masked, &after.masked, sizeof before.masked) == 0);
    SAME(after.folder, before.folder);
    SAME(after.environment, before.environment);
    SAME(after.locale, before.locale);
    CHECK(before.mask == after.mask);
    CHECK(before.rounding == after.rounding && before.exceptions == after.exceptions);
    CHECK(before.locked.rlim_cur == after.locked.rlim_cur);
    return 0;
}
