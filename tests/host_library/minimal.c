// As little as a host does, for valgrind.
#include "host.h"

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer said;
    for (int round = 0; round < 2; round++) {
        pipeshard_device *  gpu     = open_device(number("small") * MIB);
        pipeshard_model *   model   = open_model(gpu);
        pipeshard_session * session = open_session(model);
        pipeshard_session * none    = NULL;
        continues(session, "abc", 2, &said);
        set_budget(gpu, limits_of(gpu).minimum);
        GETS(PIPESHARD_E_INVALID, pipeshard_session_open((pipeshard_model *) gpu, NULL, &none, &error));
        char * report = pipeshard_report(gpu);
        CHECK(report != NULL);
        pipeshard_free(report);
        pipeshard_session_close(session);
        pipeshard_model_close(model);
        pipeshard_device_close(gpu);
    }
    return 0;
}
