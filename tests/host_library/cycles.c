// Opens, generates four tokens and closes a hundred times: nothing is left but what the first times left.
#include "host.h"

#include <dirent.h>

static int entries(const char * folder) {
    DIR * opened = opendir(folder);
    CHECK(opened != NULL);
    int count = 0;
    while (readdir(opened) != NULL) {
        count++;
    }
    closedir(opened);
    return count;
}

// Every thread of the library has a name of its own.
static void check_names(void) {
    DIR * tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    char            process[32] = "", path[300], name[32];
    struct dirent * task;
    FILE *          file = fopen("/proc/self/comm", "r");
    CHECK(file != NULL && fgets(process, sizeof process, file) != NULL);
    fclose(file);
    while ((task = readdir(tasks)) != NULL) {
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file != NULL) {
            if (fgets(name, sizeof name, file) != NULL && strcmp(name, process) == 0 && atoi(task->d_name) != getpid()) {
                FAIL("a thread without a name of its own: %s", name);
            }
            fclose(file);
        }
    }
    closedir(tasks);
}

static long resident_pages(void) {
    FILE * file  = fopen("/proc/self/statm", "r");
    long   pages = 0;
    CHECK(file != NULL && fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return pages;
}

int main(int argc, char ** argv) {
    arguments(argc, argv);
    static answer said;
    char          first[64] = "";
    int           threads = 0, files = 0;
    long          pages  = 0;
    const int     rounds = 100;
    for (int round = 1; round <= rounds; round++) {
        pipeshard_device *  gpu     = open_device((round % 2 ? number("budget") : number("small")) * MIB);
        pipeshard_model *   model   = open_model(gpu);
        pipeshard_session * session = open_session(model);
        continues(session, argument("prompt"), 4, &said);
        if (round == 1) {
            strncpy(first, said.bytes, sizeof first - 1);
            check_names();
        }
        SAME(said.bytes, first);
        pipeshard_session_close(session);
        pipeshard_model_close(model);
        pipeshard_device_close(gpu);
        CHECK(entries("/proc/self/task") == 3); // this one, ".", ".."
        if (round == 10) {
            threads = entries("/proc/self/task");
            files   = entries("/proc/self/fd");
            pages   = resident_pages();
        }
    }
    CHECK(entries("/proc/self/task") == threads);
    CHECK(entries("/proc/self/fd") == files);
    long grown = resident_pages() - pages;
    if (grown > 512) {
        FAIL("%ld pages more after %d times than after 10", grown, rounds);
    }
    return 0;
}
