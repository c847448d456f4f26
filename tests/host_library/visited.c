// A host that lets `pipeshard top` in: one line of JSON through its socket, one back. A child that was forked holds nothing up.
#include "host.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void address(struct sockaddr_un * at) {
    memset(at, 0, sizeof *at);
    at->sun_family = AF_UNIX;
    snprintf(at->sun_path, sizeof at->sun_path, "%s/pipeshard/%d.process", getenv("XDG_RUNTIME_DIR"), (int) getpid());
}

static int is_there(void) {
    struct sockaddr_un at;
    address(&at);
    return access(at.sun_path, F_OK) == 0;
}

static const char * asked(const char * question) {
    static char        said[1 << 20];
    struct sockaddr_un at;
    address(&at);
    int    here   = socket(AF_UNIX, SOCK_STREAM, 0);
    size_t length = 0;
    CHECK(here >= 0 && connect(here, (struct sockaddr *) &at, sizeof at) == 0);
    CHECK(write(here, question, strlen(question)) == (ssize_t) strlen(question));
    for (ssize_t got; (got = read(here, said + length, sizeof said - 1 - length)) > 0; length += (size_t) got) {}
    said[length] = 0;
    close(here);
    return said;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    pipeshard_device * gpu = open_device(number("budget") * MIB);
    CHECK(!is_there()); // nobody is let in who was not asked for
    pipeshard_device_close(gpu);
    pipeshard_device_config d = device_config(number("budget") * MIB);
    d.flags = PIPESHARD_DEVICE_SOCKET;
    OK(pipeshard_device_open(&d, &gpu, &error));
    CHECK(is_there());
    CHECK(strstr(asked("{\"path\": \"/nothing\"}\n"), "\"status\":404"));
    pipeshard_model *   model   = open_model(gpu);
    pipeshard_session * session = open_session(model);
    static answer       said;
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    CHECK(strstr(asked("{\"path\": \"/pipeshard\"}\n"), "\"status\":200"));
    CHECK(strstr(asked("{\"path\": \"/props\"}\n"), ".gguf"));
    CHECK(strstr(asked("{\"path\": \"/pipeshard/budget\", \"body\": \"{\\\"size\\\": \\\"minimum\\\"}\"}\n"), "\"status\":200"));
    pipeshard_limits now = limits_of(gpu);
    CHECK(now.budget == now.minimum && now.held <= now.budget);
    SAME(continues(session, argument("prompt"), number("tokens"), &said), argument("expected"));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { // lives until it is killed
        for (;;) pause();
    }
    pipeshard_session_close(session);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    CHECK(!is_there());
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
    return 0;
}
