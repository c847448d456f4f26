/* pipeshard.h - language and vision models of llama.cpp inside a VRAM budget that you can change at any time.
 *
 *     pipeshard_device  * gpu  = NULL;
 *     pipeshard_model   * lm   = NULL;
 *     pipeshard_session * chat = NULL;
 *
 *     pipeshard_device_config d = PIPESHARD_INIT(pipeshard_device_config);
 *     d.budget = 4ull << 30;
 *     pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);
 *     m.path = "model.gguf";
 *
 *     pipeshard_device_open(&d, &gpu, NULL);
 *     pipeshard_model_open(gpu, &m, &lm, NULL);
 *     pipeshard_session_open(lm, NULL, &chat, NULL);
 *     pipeshard_session_add(chat, "user", "Who goes there?", NULL);
 *     pipeshard_generate(chat, NULL, print_it, NULL, NULL);
 *
 * One library holds all of it: llama.cpp is inside, and nothing but the functions below is visible outside. A program that already has
 * a llama.cpp keeps it.
 *
 * RULES FOR ALL FUNCTIONS
 *
 *  Results.   Functions that can fail return PIPESHARD_OK (0) or a negative PIPESHARD_E_ code. Their last argument takes an error object
 *             with a sentence for people; pass NULL if you do not want it. Where a function fails, its out-arguments are NULL or zero
 *             and nothing has changed, unless its comment says otherwise.
 *  Handles.   A handle belongs to the process that opened it; after fork() the child gets PIPESHARD_E_FORKED. Closing NULL does
 *             nothing. Devices, models and sessions may be closed in any order: what is below stays until it is closed as well, and
 *             memory goes with the last one. A handle that was closed must not be used again; most such uses are found out
 *             (PIPESHARD_E_INVALID), but do not rely on it.
 *  Structs.   The first member is the size that your compiler knows; PIPESHARD_INIT sets it and makes everything else zero. Zero is
 *             always the default. A library that is older than your header refuses members that it does not know and that are not
 *             zero (PIPESHARD_E_VERSION). Structs only ever grow at their end.
 *  Memory.    What you pass in is read during the call and not kept. Texts that you get (char *) are yours: pipeshard_free. Texts that
 *             a callback or an event gets are the library's, and valid until it returns, or until the next pipeshard_wait.
 *  Texts.     UTF-8 that ends with a zero byte, paths as well. Sizes are in bytes, times in milliseconds.
 *  Threads.   Every function may be called from any thread at any time. A session does one thing at a time: a second call gets
 *             PIPESHARD_E_BUSY, and only pipeshard_cancel, pipeshard_wait and pipeshard_session_get_state do not count. No lock is
 *             held while a callback runs. From a callback of a session you may call anything on other handles, and on this session
 *             pipeshard_cancel, pipeshard_session_get_state and pipeshard_session_close, which ends the generation and takes effect
 *             when that has returned. Callbacks must return: no exception, no longjmp.
 *  Process.   Nothing is written to standard output or standard error, no signal handler, no exit handler, no locale or directory is
 *             changed, and no variable of the environment is read or set, but for those that CUDA's own libraries read. When the
 *             last handle is closed, no thread is left, and the library can be unloaded.
 */
#ifndef PIPESHARD_H
#define PIPESHARD_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PIPESHARD_API __declspec(dllimport)
#else
#define PIPESHARD_API
#endif

/* A struct with its size set, and all else zero:  pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config); */
#ifdef __cplusplus
template <typename T> inline T pipeshard_init() {
    T value = T();
    value.size = (uint32_t) sizeof(T);
    return value;
}
#define PIPESHARD_INIT(type) pipeshard_init<type>()
#else
#define PIPESHARD_INIT(type) { .size = (uint32_t) sizeof(type) }
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header: major << 16 | minor. While major is 0, a library fits the headers of its own minor version. */
#define PIPESHARD_VERSION 0x00000002u

typedef struct pipeshard_device  pipeshard_device;
typedef struct pipeshard_model   pipeshard_model;
typedef struct pipeshard_session pipeshard_session;
typedef struct pipeshard_error   pipeshard_error;

/* ---------------------------------------------------------------------------------------------------------------- results */

#define PIPESHARD_OK                    0
#define PIPESHARD_E_INVALID            -1 /* an argument makes no sense, or a handle is none */
#define PIPESHARD_E_VERSION            -2 /* a struct of a newer header has a member that this library does not know */
#define PIPESHARD_E_BUSY               -3 /* the session does something already; or a second device was opened */
#define PIPESHARD_E_BUDGET_TOO_SMALL   -4 /* pipeshard_error_minimum says which budget works */
#define PIPESHARD_E_DEADLINE           -5 /* the pass that was under way did not end in time */
#define PIPESHARD_E_NO_MEMORY          -6 /* the device or the host has no memory left */
#define PIPESHARD_E_NO_DEVICE          -7 /* there is no such GPU, or none that works */
#define PIPESHARD_E_DEVICE_LOST        -8 /* the GPU failed; close everything on it */
#define PIPESHARD_E_FILE               -9 /* a model or another file cannot be read, or is not what it should be */
#define PIPESHARD_E_CONTEXT_FULL      -10 /* the session has no room for more tokens */
#define PIPESHARD_E_CANCELLED         -11 /* pipeshard_cancel, or a callback, ended it */
#define PIPESHARD_E_TIMEOUT           -12 /* pipeshard_wait: nothing has happened yet */
#define PIPESHARD_E_FORKED            -13 /* the handle belongs to the parent process */
#define PIPESHARD_E_UNSUPPORTED       -14 /* this model, or this build, cannot do that */
#define PIPESHARD_E_INTERNAL          -15 /* a bug: please report the text; close everything on the device */

/* The name of a code, such as "PIPESHARD_E_BUSY"; "PIPESHARD_OK" for 0. Never NULL. */
PIPESHARD_API const char * pipeshard_result_name(int code);

/* What happened, what it means, what to do. Valid until the error is freed. NULL gives code 0, an empty text, 0. */
PIPESHARD_API int          pipeshard_error_code(const pipeshard_error * error);
PIPESHARD_API const char * pipeshard_error_text(const pipeshard_error * error);
/* The smallest budget, in bytes, that would have worked (PIPESHARD_E_BUDGET_TOO_SMALL); else 0. */
PIPESHARD_API uint64_t     pipeshard_error_minimum(const pipeshard_error * error);
PIPESHARD_API void         pipeshard_error_free(pipeshard_error * error);

/* ---------------------------------------------------------------------------------------------------------------- library */

/* The version of the library, as PIPESHARD_VERSION. Compare it where you load the library yourself. */
PIPESHARD_API uint32_t     pipeshard_version(void);
/* Which llama.cpp, and which patches: for reports of bugs. */
PIPESHARD_API const char * pipeshard_build_id(void);
/* Frees a text that a function returned. */
PIPESHARD_API void         pipeshard_free(char * text);

#define PIPESHARD_LOG_ERROR   1
#define PIPESHARD_LOG_WARNING 2
#define PIPESHARD_LOG_INFO    3
#define PIPESHARD_LOG_DEBUG   4

/* One message, without a newline at its end. May be called on any thread, also on several at once. */
typedef void (*pipeshard_log_fn)(void * user, int level, const char * text);

/* Messages up to `level` go to `log`; NULL: nowhere, which is how it begins. For the whole process. */
PIPESHARD_API void pipeshard_set_log(pipeshard_log_fn log, void * user, int level);

/* `name` is the thread's, such as "pipeshard-cpu". */
typedef void (*pipeshard_thread_fn)(void * user, const char * name);

/* Calls `started` on each thread that the library starts from now on, before it does anything, and `ending` when it has done all: for
 * priorities, affinity, and what an engine keeps by thread. Those of CUDA's own libraries are not known. From these two nothing of
 * pipeshard may be called. NULL: nobody is called, which is how it begins; threads that `started` was called on end as they began. For
 * the whole process. */
PIPESHARD_API void pipeshard_set_thread_hooks(pipeshard_thread_fn started, pipeshard_thread_fn ending, void * user);

/* ----------------------------------------------------------------------------------------------------------------- device */

/* What memory is for. The first six are the classes of pipeshard_limits. */
#define PIPESHARD_MEMORY_WEIGHTS 1 /* weights that stay */
#define PIPESHARD_MEMORY_KV      2 /* KV caches and recurrent states */
#define PIPESHARD_MEMORY_RING    3 /* what weights are streamed through */
#define PIPESHARD_MEMORY_BUFFERS 4 /* compute buffers */
#define PIPESHARD_MEMORY_VISION  5 /* encoders of images and sound */
#define PIPESHARD_MEMORY_OTHER   6 /* pools and work spaces of ggml-cuda, experts that are fetched */

/* Returns `size` bytes at a multiple of `alignment`, or NULL: there is no memory, and what needed it fails with an error or does
 * without. `release` gets it back once, with the same numbers, when all work of the GPU on it is done; nothing is left when the device
 * and all on it are closed. Both are called on any thread, also on several at once, and with locks held: they may call nothing of
 * pipeshard. */
typedef void * (*pipeshard_allocate_fn)(void * user, int memory, size_t size, size_t alignment);
typedef void   (*pipeshard_release_fn)(void * user, int memory, void * address, size_t size);

#define PIPESHARD_DEVICE_NO_PAGE_LOCK 1u /* never page-lock weights: less host memory that cannot be swapped, slower copies */
#define PIPESHARD_DEVICE_SOCKET       2u /* `pipeshard top` of the same user sees this process and may change its budget, through a
                                          * socket in XDG_RUNTIME_DIR: weights alone move then. One more thread */

typedef struct {
    uint32_t     size;
    uint32_t     flags;     /* PIPESHARD_DEVICE_ */
    uint64_t     budget;    /* bytes of VRAM that models, caches and buffers may take, together; 0: what is free, less a margin */
    const char * name;      /* a GPU as pipeshard_devices names it, such as "CUDA0"; NULL: the first */
    const char * simulated; /* a simulated GPU in place of a real one, such as "vram=8G,link=12G"; "" for one with defaults. For tests */
    const char * cache_dir; /* measured profiles and plans are kept there, in whole paths; NULL: nothing is written, and each first
                             * model measures this machine, for some seconds */
    const char * profile;   /* a file that `pipeshard profile` wrote, in place of measuring; NULL: none */
    int32_t      threads;   /* of the CPU; 0: one for each physical core */
    int32_t      reserved;

    /* In place of cudaMalloc and cudaFree; NULL: those. It has to be ordinary device memory of the context that is current, not managed.
     * For a simulated GPU it is memory that the CPU can use. What CUDA's own libraries allocate for themselves does not come from here.
     * Where PIPESHARD_MEMORY_OTHER is refused that ggml-cuda would end the process for, cudaMalloc is asked, and the log says so. */
    pipeshard_allocate_fn allocate;
    pipeshard_release_fn  release;
    /* In place of cudaMallocHost and cudaFreeHost: page-locked memory of the host. Where it is refused, other memory is used, which is
     * slower. Weights are not copied there: they are page-locked where they lie. */
    pipeshard_allocate_fn allocate_host;
    pipeshard_release_fn  release_host;
    void *                memory_user;  /* first argument of these four */
    void *                cuda_context; /* a CUcontext of the GPU that computes: current on each thread that comes into the library, while
                                         * it is there, and on the library's own. Keep it until the device and all on it are closed.
                                         * NULL: the primary context, which CUDA makes current on threads that come in */
} pipeshard_device_config;

/* The GPUs that can be used, as a JSON array of {"name", "description", "vram", "free"}, in bytes. */
PIPESHARD_API char * pipeshard_devices(void);

/* Opens the GPU of this process. There can be one at a time: PIPESHARD_E_BUSY while another is open, or closed with models open.
 * `config` NULL: all defaults. */
PIPESHARD_API int  pipeshard_device_open(const pipeshard_device_config * config, pipeshard_device ** device, pipeshard_error ** error);
PIPESHARD_API void pipeshard_device_close(pipeshard_device * device);

/* The CUDA streams that the library has now, as CUstream: their number in `count`, and the first `room` of them in `streams`, which
 * may be NULL for none. All work of the library is on these and, for copies that it waits for at once, on the per-thread default
 * stream. ggml-cuda makes streams when it first needs them: ask again after an answer. A stream is valid until the session that uses
 * it, or the device, is closed. Those of a simulated GPU are numbers that say nothing. */
PIPESHARD_API int  pipeshard_streams(pipeshard_device * device, void ** streams, size_t room, size_t * count, pipeshard_error ** error);

/* ----------------------------------------------------------------------------------------------------------------- budget */

/* How far a change of the budget may go, where moving weights is not enough. */
#define PIPESHARD_BUDGET_ROUND_TRIP 1u /* contexts are made again: KV caches go through host memory, and may stay there. Takes as long as
                                        * sleeping and waking. Sessions that generate make way between two tokens */
#define PIPESHARD_BUDGET_SLEEP      2u /* and where even that is not enough, everything is given back, as by pipeshard_sleep. Answers under
                                        * way end with PIPESHARD_E_BUDGET_TOO_SMALL; the conversations are kept */

typedef struct {
    uint32_t size;
    uint32_t deadline_ms; /* how long the change may wait for passes under way; 0: as long as they take */
    uint64_t budget;      /* bytes */
    uint32_t allow;       /* PIPESHARD_BUDGET_; 0: weights move, and nothing else */
    uint32_t reserved;
} pipeshard_budget_request;

typedef struct {
    uint32_t size;
    uint32_t asleep;             /* sessions that sleep */
    uint64_t budget;             /* as stated, or found, in bytes */
    uint64_t minimum;            /* the smallest that works now: caches and buffers stay where they are, and nothing is encoded */
    uint64_t everything;         /* with this one nothing would be streamed; 0: not known */
    uint64_t held;               /* what is allocated now */
    uint64_t peak;               /* the most that was allocated */
    uint64_t held_weights;       /* of `held`: weights that stay */
    uint64_t held_kv;            /* KV caches and recurrent states */
    uint64_t held_ring;          /* what weights are streamed through */
    uint64_t held_buffers;       /* compute buffers */
    uint64_t held_vision;        /* encoders of images and sound */
    uint64_t held_other;         /* what the GPU's libraries took for themselves */
    uint64_t by_driver;          /* of this process, as the driver counts, less what it held before the first model; 0: not known */
    double   waited_ms;          /* pipeshard_set_budget: how long it waited for passes */
    double   moved_ms;           /* and how long memory took to move */
    uint64_t minimum_round_trip; /* about the smallest with PIPESHARD_BUDGET_ROUND_TRIP: all KV caches are in host memory then */
} pipeshard_limits;

/* Changes the budget while models are loaded, also while tokens are generated.
 *
 * A smaller budget has given its memory back when this returns: what is allocated is at most `budget`. Tokens that are being generated
 * come a little later, and are the same. Where a pass would not end within the deadline, it is ended and computed again. A larger
 * budget returns at once, and fills up with the next passes; with PIPESHARD_BUDGET_ROUND_TRIP contexts that were made within a smaller
 * one are made again, and their KV caches come back. PIPESHARD_E_BUSY for that in a callback of a session that generates.
 *
 * PIPESHARD_E_BUDGET_TOO_SMALL: pipeshard_error_minimum says what works. PIPESHARD_E_DEADLINE. Nothing has changed then.
 * `now` (NULL: not wanted) gets what is true afterwards. */
PIPESHARD_API int pipeshard_set_budget(pipeshard_device * device, const pipeshard_budget_request * request, pipeshard_limits * now,
                                       pipeshard_error ** error);

/* What is held, and what is possible now. Waits for nothing. Before a model is open only budget, held and peak are known. */
PIPESHARD_API int pipeshard_get_limits(pipeshard_device * device, pipeshard_limits * limits, pipeshard_error ** error);

/* Gives all VRAM back but what the driver and the GPU's libraries keep for the process: weights, KV caches, buffers, encoders. Conversations
 * are kept in host memory. PIPESHARD_E_BUSY where a session does something; nothing has changed then. */
PIPESHARD_API int pipeshard_sleep(pipeshard_device * device, pipeshard_error ** error);

/* Takes the memory of all sleeping sessions again. A session that is used wakes by itself. PIPESHARD_E_BUDGET_TOO_SMALL and
 * PIPESHARD_E_NO_MEMORY leave asleep what there is no room for; a later call may have more luck. The tokens that follow are those
 * that would have followed without. */
PIPESHARD_API int pipeshard_wake(pipeshard_device * device, pipeshard_error ** error);

/* All that was counted, as JSON (docs/report.md), and for Prometheus. NULL where the handle is none. */
PIPESHARD_API char * pipeshard_report(pipeshard_device * device);
PIPESHARD_API char * pipeshard_metrics(pipeshard_device * device);

/* ---------------------------------------------------------------------------------------------------------------- predict */

typedef struct {
    uint32_t     size;
    uint32_t     context;       /* tokens; 0: as many as the model was trained for, or as fit */
    const char * path;          /* the GGUF, whose header is read */
    const char * type_k;        /* of the KV cache: "f16" (NULL), "q8_0", ... */
    const char * type_v;
    uint64_t     budget;        /* bytes; 0: the device's */
    uint32_t     prompt_tokens; /* of the conversation that is predicted; 0: what is usual for the context */
    uint32_t     answer_tokens; /* 0: what is usual */
} pipeshard_prediction_query;

typedef struct {
    uint32_t size;
    uint32_t measured;          /* 1: this machine was measured; 0: the figures are those of a stated or an assumed machine */
    uint64_t budget;            /* bytes that the prediction is for */
    uint64_t minimum;           /* the smallest budget that works */
    uint64_t everything;        /* with this one nothing would be streamed */
    uint32_t context;           /* tokens */
    uint32_t ubatch;            /* tokens per pass that suit the budget */
    uint32_t prompt_tokens;     /* of the conversation */
    uint32_t answer_tokens;
    double   first_token_ms;
    double   tokens_per_second; /* of the answer */
} pipeshard_prediction;

/* What a model would do within a budget, before it is loaded: some hundred milliseconds, and no memory of the GPU. It is within some 15 %
 * of what runs take where this machine was measured: by the first session that is opened, or by `pipeshard profile`, kept in
 * cache_dir or named as profile. PIPESHARD_E_BUDGET_TOO_SMALL: pipeshard_error_minimum says what works. */
PIPESHARD_API int pipeshard_predict(pipeshard_device * device, const pipeshard_prediction_query * query, pipeshard_prediction * prediction,
                                    pipeshard_error ** error);

/* ------------------------------------------------------------------------------------------------------------------ model */

/* How far loading is, from 0 to 1. Return 0 to go on, anything else to stop (PIPESHARD_E_CANCELLED). */
typedef int (*pipeshard_progress_fn)(void * user, float done);

/* Files of the host's own: an archive, a network, memory. `path` is that of the config, or of a further piece of a model in several
 * files, whose names follow from the first ("NAME-00002-of-00003.gguf"). Both are called on the thread that opens the model, and not
 * afterwards. */
/* The file's bytes; negative: there is none. */
typedef int64_t (*pipeshard_size_fn)(void * user, const char * path);
/* Reads up to `size` bytes from byte `offset` on. Returns how many, at least 1; negative: it cannot be read (PIPESHARD_E_FILE), or, with
 * PIPESHARD_E_CANCELLED, loading is to end. `progress` is asked before each call. */
typedef int64_t (*pipeshard_read_fn)(void * user, const char * path, uint64_t offset, void * into, uint64_t size);

typedef struct {
    uint32_t              size;
    uint32_t              flags;            /* none yet */
    const char *          path;             /* the GGUF; of one in several files, the first */
    const char *          mmproj;           /* the encoder of images and sound; NULL: none */
    const char *          chat_template;    /* Jinja, in place of the model's own; NULL: the model's own */
    pipeshard_progress_fn progress;         /* NULL: none */
    void *                progress_user;
    int32_t               image_max_tokens; /* of an image; 0: as many as the model allows */
    int32_t               reserved;
    pipeshard_size_fn     file_size;        /* how path and mmproj are read; NULL: by the system. Linux only. What is read stays in memory
                                             * until the model is closed, once, and the system can not take it back as it can a file's */
    pipeshard_read_fn     read_file;
    void *                files_user;       /* first argument of the two */
} pipeshard_model_config;

PIPESHARD_API int  pipeshard_model_open(pipeshard_device * device, const pipeshard_model_config * config, pipeshard_model ** model,
                                        pipeshard_error ** error);
PIPESHARD_API void pipeshard_model_close(pipeshard_model * model);

/* {"description", "parameters", "bytes", "layers", "context_trained", "vocabulary", "images", "sound", "chat_template"} as JSON. */
PIPESHARD_API char * pipeshard_model_info(pipeshard_model * model);

/* ---------------------------------------------------------------------------------------------------------------- session */

typedef struct {
    uint32_t     size;
    uint32_t     context; /* tokens; 0: as many as the model was trained for, or as fit */
    uint32_t     ubatch;  /* tokens per pass; 0: what suits the budget */
    uint32_t     flags;   /* none yet */
    const char * type_k;  /* of the KV cache: "f16" (NULL), "q8_0", ... */
    const char * type_v;
} pipeshard_session_config;

/* A conversation, with a KV cache of its own. `config` NULL: all defaults. */
PIPESHARD_API int  pipeshard_session_open(pipeshard_model * model, const pipeshard_session_config * config, pipeshard_session ** session,
                                          pipeshard_error ** error);
/* Ends what the session does, and waits for it. */
PIPESHARD_API void pipeshard_session_close(pipeshard_session * session);

/* Adds a message by "system", "user", "assistant" or "tool"; it is evaluated with the next generation, in the model's chat template.
 * What is generated is added as a message of the assistant. `role` NULL: text for a model without a chat, which is continued as it
 * is. A session has one or the other. */
PIPESHARD_API int pipeshard_session_add(pipeshard_session * session, const char * role, const char * text, pipeshard_error ** error);

typedef struct {
    uint32_t     size;
    uint32_t     width;   /* pixels, for `rgb`; 0 for `file` */
    uint32_t     height;
    uint32_t     stride;  /* bytes from one row to the next; 0: three times the width */
    const void * rgb;     /* rows of red, green, blue, from the top */
    const void * file;    /* or an image or sound as it is in a file: PNG, JPEG, BMP, WAV, MP3, FLAC */
    size_t       file_size;
} pipeshard_media;

/* Adds an image or sound, which belongs to the message that is added next: to where its text says <__media__>, or ahead of it. */
PIPESHARD_API int pipeshard_session_add_media(pipeshard_session * session, const pipeshard_media * media, pipeshard_error ** error);

/* Forgets all messages. */
PIPESHARD_API int pipeshard_session_clear(pipeshard_session * session, pipeshard_error ** error);
/* Forgets the messages from number `count` on, as if they had not been said, and images that wait for the next one. */
PIPESHARD_API int pipeshard_session_truncate(pipeshard_session * session, uint32_t count, pipeshard_error ** error);

/* The conversation as bytes, KV cache included: `data` is freed with pipeshard_free. A session with another budget, or in another
 * process with the same model and library, goes on from it with the same tokens. */
PIPESHARD_API int pipeshard_session_save(pipeshard_session * session, char ** data, size_t * size, pipeshard_error ** error);
/* Takes over a saved conversation, in place of the session's own. */
PIPESHARD_API int pipeshard_session_restore(pipeshard_session * session, const void * data, size_t size, pipeshard_error ** error);

typedef struct {
    uint32_t size;
    uint32_t context;          /* tokens that there is room for */
    uint32_t used;             /* tokens that are taken */
    uint32_t ubatch;           /* tokens per pass */
    uint32_t messages;
    uint32_t busy;             /* 1: something is being generated */
    uint32_t prompt_tokens;    /* of the latest generation: evaluated ahead of it */
    uint32_t reused_tokens;    /* and what did not have to be, for it was in the KV cache */
    uint32_t generated_tokens; /* so far */
    uint32_t evaluated_again;  /* passes that were ended for a smaller budget, and computed again */
    double   prompt_ms;        /* to the first token */
    double   generate_ms;      /* from there on */
} pipeshard_state;

/* What the session holds and does. Waits for nothing. */
PIPESHARD_API int pipeshard_session_get_state(pipeshard_session * session, pipeshard_state * state, pipeshard_error ** error);

/* --------------------------------------------------------------------------------------------------------------- generate */

typedef struct {
    uint32_t             size;
    uint32_t             max_tokens;        /* 0: until the model ends, or the context is full */
    float                temperature;       /* 0: always the likeliest token */
    int32_t              top_k;             /* 0: all */
    float                top_p;             /* 0: all */
    float                min_p;             /* 0: all */
    float                repeat_penalty;    /* 0: none */
    uint32_t             seed;              /* with a temperature; 0 is a seed like any other */
    const char *         grammar;           /* GBNF that the answer follows; NULL: none */
    const char *         json_schema;       /* or a schema that it follows, as JSON; NULL: none */
    const char * const * stop;              /* texts that end the answer; they are not part of it */
    size_t               stop_count;
    float                tokens_per_second; /* at most, evenly; 0: as many as can be had */
    uint32_t             reserved;
} pipeshard_generate_config;

/* A piece of the answer: whole characters, never empty but for the last call of an answer without text. Return 0 to go on, anything
 * else to end the generation (PIPESHARD_E_CANCELLED). */
typedef int (*pipeshard_piece_fn)(void * user, const char * text, size_t length);

/* Answers, on the calling thread. `piece` NULL: the answer is only added to the conversation. `config` NULL: all defaults.
 * After PIPESHARD_E_CANCELLED what was generated so far is a message like any other, and the session can go on. */
PIPESHARD_API int pipeshard_generate(pipeshard_session * session, const pipeshard_generate_config * config, pipeshard_piece_fn piece,
                                     void * user, pipeshard_error ** error);

/* The same on a thread of the session's own: returns at once; pipeshard_wait tells what comes. */
PIPESHARD_API int pipeshard_submit(pipeshard_session * session, const pipeshard_generate_config * config, pipeshard_error ** error);

#define PIPESHARD_EVENT_NONE  0
#define PIPESHARD_EVENT_TEXT  1 /* `text`: what came since the last event */
#define PIPESHARD_EVENT_DONE  2 /* the answer is complete */
#define PIPESHARD_EVENT_ENDED 3 /* it is not: `code` says why, `text` in a sentence */

typedef struct {
    uint32_t     size;
    int32_t      kind;   /* PIPESHARD_EVENT_ */
    int32_t      code;   /* PIPESHARD_E_ */
    uint32_t     reserved;
    const char * text;   /* until the next call for this session */
    size_t       length;
} pipeshard_event;

/* What came of pipeshard_submit: waits up to `timeout_ms` (0: not at all). PIPESHARD_E_TIMEOUT: nothing yet. Each generation has one
 * DONE or ENDED, the last of its events; PIPESHARD_E_INVALID where none was submitted. */
PIPESHARD_API int pipeshard_wait(pipeshard_session * session, uint32_t timeout_ms, pipeshard_event * event, pipeshard_error ** error);

/* Called whenever pipeshard_wait would have something, on a thread of the library's: wake your own, and call nothing here.
 * NULL: no more, and when this has returned it is not called any more. */
typedef void (*pipeshard_wakeup_fn)(void * user);
PIPESHARD_API int pipeshard_set_wakeup(pipeshard_session * session, pipeshard_wakeup_fn wakeup, void * user, pipeshard_error ** error);

/* Ends what the session does, soon: at the next piece of the pass that is being computed. Returns at once; the generation returns
 * PIPESHARD_E_CANCELLED, or has PIPESHARD_EVENT_ENDED. Does nothing where nothing is generated. */
PIPESHARD_API int pipeshard_cancel(pipeshard_session * session);

#ifdef __cplusplus
}
#endif

#endif /* PIPESHARD_H */
