/* The loop of a game: 60 frames per second, in which somebody answers the player, and a level that needs VRAM for itself.
 *
 *     cc -std=c99 game.c -o game $(pkg-config --cflags --libs pipeshard)
 *     ./game model.gguf 6144 2048              6 GiB for the model, of which a level takes 2 GiB back
 *     ./game model.gguf 6144 2048 vram=8G      on a simulated GPU, where there is none
 *
 * No call below waits for the GPU, but pipeshard_set_budget, which belongs where a game shows "loading".
 */
#define _POSIX_C_SOURCE 200809L /* for clock_nanosleep */
#include <pipeshard.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MIB (1024.0 * 1024.0)

enum { FRAMES_PER_SECOND = 60, LEVEL_BEGINS = 30, LEVEL_ENDS = 90 };

typedef struct {
    pipeshard_device *  gpu;
    pipeshard_model *   model;
    pipeshard_session * guard;   /* what this character has said and heard */
    int                 talking; /* the guard has not finished */
    unsigned long       frame;
} game;

/* A game goes on without its characters' answers: what fails is logged, and 0 is returned. */
static int works(int code, const char * what, pipeshard_error ** error) {
    if (code != PIPESHARD_OK) {
        fprintf(stderr, "game: %s: %s (%s)\n", what, pipeshard_error_text(*error), pipeshard_result_name(code));
        pipeshard_error_free(*error);
        *error = NULL;
    }
    return code == PIPESHARD_OK;
}

/* Once, while the game starts: reading the model takes seconds. */
static int load_characters(game * g, const char * model, double budget, const char * simulated) {
    pipeshard_device_config  d     = PIPESHARD_INIT(pipeshard_device_config);
    pipeshard_model_config   m     = PIPESHARD_INIT(pipeshard_model_config);
    pipeshard_session_config s     = PIPESHARD_INIT(pipeshard_session_config);
    pipeshard_error *        error = NULL;
    d.budget    = (uint64_t) budget;
    d.simulated = simulated;
    m.path      = model;
    s.context   = 2048; /* tokens: a short conversation, a small KV cache */
    return works(pipeshard_device_open(&d, &g->gpu, &error), "no device", &error) &&
           works(pipeshard_model_open(g->gpu, &m, &g->model, &error), "no model", &error) &&
           works(pipeshard_session_open(g->model, &s, &g->guard, &error), "no session", &error) &&
           works(pipeshard_session_add(g->guard, "system", "You guard the gate. You are brief.", &error), "no role", &error);
}

/* The player says something. Returns at once; the answer comes with the frames. */
static void say(game * g, const char * text) {
    pipeshard_generate_config how   = PIPESHARD_INIT(pipeshard_generate_config);
    pipeshard_error *         error = NULL;
    how.max_tokens        = 60;
    how.temperature       = 0.7f;
    how.top_p             = 0.9f;
    how.seed              = 1;
    how.tokens_per_second = 30; /* as fast as one reads: the GPU has the rest of the time for frames */
    g->talking = works(pipeshard_session_add(g->guard, "user", text, &error), "not heard", &error) &&
                 works(pipeshard_submit(g->guard, &how, &error), "no answer", &error);
}

/* In each frame: what came since the last one. Waits for nothing. */
static void listen(game * g) {
    pipeshard_event event = PIPESHARD_INIT(pipeshard_event);
    while (g->talking) {
        int code = pipeshard_wait(g->guard, 0, &event, NULL);
        if (code != PIPESHARD_OK) { /* PIPESHARD_E_TIMEOUT: nothing yet */
            g->talking = code == PIPESHARD_E_TIMEOUT;
            return;
        }
        switch (event.kind) {
            case PIPESHARD_EVENT_TEXT:
                printf("%.*s", (int) event.length, event.text);
                break;
            case PIPESHARD_EVENT_ENDED: /* such as PIPESHARD_E_CONTEXT_FULL; what was said so far stays */
                fprintf(stderr, "game: the guard falls silent: %s\n", event.text);
                g->talking = 0;
                break;
            case PIPESHARD_EVENT_DONE:
                printf("\n");
                g->talking = 0;
                break;
        }
        fflush(stdout);
    }
}

/* Takes VRAM from the model, or gives it back. When it succeeds, the memory can be allocated; the guard goes on talking. */
static int model_may_have(game * g, double bytes) {
    pipeshard_budget_request request = PIPESHARD_INIT(pipeshard_budget_request);
    pipeshard_limits         now     = PIPESHARD_INIT(pipeshard_limits);
    pipeshard_error *        error   = NULL;
    request.budget      = (uint64_t) bytes;
    request.deadline_ms = 500;
    if (!works(pipeshard_set_budget(g->gpu, &request, &now, &error), "the budget stays", &error)) {
        return 0;
    }
    fprintf(stderr, "[frame %lu: the model may have %.0f MiB and holds %.0f, after %.1f ms]\n", g->frame, (double) now.budget / MIB,
            (double) now.held / MIB, now.waited_ms + now.moved_ms);
    return 1;
}

static void draw_frame(const game * g) {
    (void) g; /* yours */
}

int main(int argc, char ** argv) {
    game            g = { NULL, NULL, NULL, 0, 0 };
    struct timespec next;
    if (argc < 4) {
        fprintf(stderr, "usage: game MODEL BUDGET_IN_MIB LEVEL_IN_MIB [SIMULATED_GPU]\n");
        return 2;
    }
    double budget = strtod(argv[2], NULL) * MIB;
    double level  = strtod(argv[3], NULL) * MIB;
    int    loaded = load_characters(&g, argv[1], budget, argc > 4 ? argv[4] : NULL);
    int    fits   = 0; /* the level's textures are in VRAM */
    if (loaded) {
        say(&g, "Who goes there?");
        clock_gettime(CLOCK_MONOTONIC, &next);
        for (; g.talking || g.frame <= LEVEL_ENDS; g.frame++) {
            listen(&g);
            if (g.frame == LEVEL_BEGINS) {
                fits = model_may_have(&g, budget > level ? budget - level : 1);
                /* load the level's textures here, and smaller ones where they do not fit */
            } else if (g.frame == LEVEL_ENDS && fits) {
                /* free the textures first */
                model_may_have(&g, budget);
            }
            draw_frame(&g);
            next.tv_nsec += 1000000000L / FRAMES_PER_SECOND;
            next.tv_sec += next.tv_nsec / 1000000000L;
            next.tv_nsec %= 1000000000L;
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        }
    }
    /* in any order, also while somebody talks */
    pipeshard_session_close(g.guard);
    pipeshard_model_close(g.model);
    pipeshard_device_close(g.gpu);
    return loaded ? 0 : 1;
}
