/* Chats inside a VRAM budget, which keys change while the answer is written: '-' halves it, '+' doubles it; 'q' ends the answer.
 *
 *     cc -std=c99 chat.c -o chat $(pkg-config --cflags --libs pipeshard)
 *     ./chat model.gguf 4096            with a budget in MiB
 *     ./chat model.gguf 4096 vram=8G    on a simulated GPU, where there is none
 */
#define _POSIX_C_SOURCE 200809L /* for termios, poll and sigaction */
#include <pipeshard.h>

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#define MIB (1024.0 * 1024.0)

static int                   next_byte = -1; /* was read from the keyboard and is not a key: the next line begins with it */
static volatile sig_atomic_t interrupted;

static void interrupt(int number) {
    (void) number;
    interrupted = 1;
}

/* Why a call failed. Functions return a code, and fill in an error for people. */
static void complain(const char * what, pipeshard_error * error) {
    fprintf(stderr, "chat: %s: %s\n", what, pipeshard_error_text(error));
    pipeshard_error_free(error);
}

/* The next byte of standard input, -1 at its end. Not through stdio, whose buffer poll does not know of. */
static int read_byte(void) {
    unsigned char byte;
    return read(STDIN_FILENO, &byte, 1) == 1 ? byte : -1;
}

/* The next line, or what fits of it. 0 where there is none. */
static int read_line(char * line, size_t room) {
    size_t length = 0;
    int    byte   = next_byte >= 0 ? next_byte : read_byte();
    int    found  = byte >= 0;
    next_byte     = -1;
    for (; byte >= 0 && byte != '\n'; byte = read_byte()) {
        if (length + 1 < room) {
            line[length++] = (char) byte;
        }
    }
    line[length] = '\0';
    return found;
}

/* Another budget. A smaller one has given its memory back when pipeshard_set_budget returns. */
static void change_budget(pipeshard_device * gpu, double factor) {
    pipeshard_limits         now     = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_error *        error   = NULL;
    int                      code    = pipeshard_get_limits(gpu, &now, &error);
    if (code == PIPESHARD_OK) {
        request.budget = (uint64_t) ((double) now.budget * factor);
        request.budget = request.budget < now.minimum ? now.minimum : request.budget;
        code           = pipeshard_set_budget(gpu, &request, &now, &error);
    }
    if (code == PIPESHARD_OK) {
        fprintf(stderr, "[budget %.1f MiB, in use %.1f MiB]", (double) now.budget / MIB, (double) now.held / MIB);
    } else {
        complain("the budget stays", error);
    }
}

/* Obeys the keys that were pressed. What is none is left for the next line. */
static void obey_keys(pipeshard_device * gpu, pipeshard_session * chat) {
    struct pollfd keyboard = { STDIN_FILENO, POLLIN, 0 };
    while (next_byte < 0 && poll(&keyboard, 1, 0) == 1 && (next_byte = read_byte()) >= 0) {
        switch (next_byte) {
            case '-': change_budget(gpu, 0.5); break;
            case '+': change_budget(gpu, 2.0); break;
            case 'q': pipeshard_cancel(chat); break;
            default: return;
        }
        next_byte = -1;
    }
}

/* Writes the answer to what was said. 0 where the conversation cannot go on. */
static int answer(pipeshard_device * gpu, pipeshard_session * chat) {
    pipeshard_event   event = PIPESHARD_INIT(pipeshard_event);
    pipeshard_error * error = NULL;
    if (pipeshard_submit(chat, NULL, &error) != PIPESHARD_OK) {
        complain("no answer", error);
        return 0;
    }
    while (event.kind != PIPESHARD_EVENT_DONE && event.kind != PIPESHARD_EVENT_ENDED) {
        int code = pipeshard_wait(chat, 20, &event, NULL);
        if (code == PIPESHARD_OK && event.kind == PIPESHARD_EVENT_TEXT) {
            fwrite(event.text, 1, event.length, stdout);
            fflush(stdout);
        } else if (code != PIPESHARD_OK && code != PIPESHARD_E_TIMEOUT) {
            fprintf(stderr, "chat: %s\n", pipeshard_result_name(code));
            return 0;
        }
        obey_keys(gpu, chat);
        if (interrupted) pipeshard_cancel(chat);
    }
    putchar('\n');
    if (event.kind == PIPESHARD_EVENT_ENDED) fprintf(stderr, "chat: the answer ends here: %s\n", event.text);
    return !interrupted && (event.kind == PIPESHARD_EVENT_DONE || event.code == PIPESHARD_E_CANCELLED);
}

int main(int argc, char ** argv) {
    pipeshard_device_config d     = PIPESHARD_INIT(pipeshard_device_config);
    pipeshard_model_config  m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_device *      gpu   = NULL;
    pipeshard_model *       model = NULL;
    pipeshard_session *     chat  = NULL;
    pipeshard_error *       error = NULL;
    struct sigaction        ended = { .sa_handler = interrupt };
    struct termios          shown = { 0 }, keys;
    char                    line[4096];
    int                     terminal = tcgetattr(STDIN_FILENO, &shown) == 0; /* and not a pipe */
    if (argc < 3) {
        fprintf(stderr, "usage: chat MODEL BUDGET_IN_MIB [SIMULATED_GPU]\n");
        return 2;
    }
    m.path      = argv[1];
    d.budget    = (uint64_t) (strtod(argv[2], NULL) * MIB);
    d.simulated = argc > 3 ? argv[3] : NULL;
    int talking = !pipeshard_device_open(&d, &gpu, &error) && !pipeshard_model_open(gpu, &m, &model, &error) &&
                  !pipeshard_session_open(model, NULL, &chat, &error);
    if (!talking) complain("cannot begin", error);
    sigaction(SIGINT, &ended, NULL);
    keys = shown; /* as the terminal is while an answer is written: keys come one by one, and are not shown */
    keys.c_lflag &= ~(tcflag_t) (ICANON | ECHO);
    while (talking && (fputs("> ", stderr), read_line(line, sizeof line))) {
        if (pipeshard_session_add(chat, "user", line, &error) != PIPESHARD_OK) {
            complain("cannot say that", error);
            talking = 0;
            break;
        }
        if (terminal) tcsetattr(STDIN_FILENO, TCSANOW, &keys);
        talking = answer(gpu, chat);
        if (terminal) tcsetattr(STDIN_FILENO, TCSANOW, &shown);
    }
    pipeshard_session_close(chat);
    pipeshard_model_close(model);
    pipeshard_device_close(gpu);
    return talking ? 0 : 1;
}
