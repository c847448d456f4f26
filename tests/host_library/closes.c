// Closes a session right behind pipeshard_submit, while its thread has hardly begun: closing waits for it, so that the device can be
// opened again at once, and no thread is left.
#include "host.h"

#include <dirent.h>

static int threads(void) {
    DIR * opened = opendir("/proc/self/task");
    CHECK(opened != NULL);
    int count = 0;
    for (struct dirent * task; (task = readdir(opened)) != NULL;) {
        count += task->d_name[0] != '.';
    }
    closedir(opened);
    return count;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    for (int round = 0; round < 20; round++) {
        pipeshard_device *  gpu     = open_device(number("budget") * MIB);
        pipeshard_model *   model   = open_model(gpu);
        pipeshard_session * session = open_session(model);
        pipeshard_generate_config wanted = tokens(40);
        OK(pipeshard_session_add(session, NULL, argument("prompt"), &error));
        OK(pipeshard_submit(session, &wanted, &error));
        pipeshard_session_close(session);
        pipeshard_model_close(model);
        pipeshard_device_close(gpu);
        CHECK(threads() == 1);
    }
    return 0;
}
