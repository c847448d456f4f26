// Ends of threads, in a library that can be unloaded. What Rust's thread::spawn, thread::current and parking_lot have to do when a
// thread ends they leave with glibc, on whichever thread calls them. For threads of this library that is right, for they end before it
// is unloaded. With a thread of the host it is not:
//
//  * while a destructor of a thread-local is registered, glibc does not unmap the library, and afterwards not before something else is
//    unloaded;
//  * the destructor of a pthread key is called after the library is gone.
//
// So what belongs to the host's threads hangs on a key of ours, and keys are deleted when the library goes. build.rs has the linker
// bring all calls here (--wrap). So each thread of this library, whoever starts it, has a name, and the host is told of it.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

int __real_pthread_create(pthread_t * thread, const pthread_attr_t * attributes, void * (*run)(void *), void * argument);
int __real_pthread_key_create(pthread_key_t * key, void (*destroy)(void *));
int __real___cxa_thread_atexit_impl(void (*destroy)(void *), void * object, void * library);
int __wrap_pthread_create(pthread_t * thread, const pthread_attr_t * attributes, void * (*run)(void *), void * argument);
int __wrap_pthread_key_create(pthread_key_t * key, void (*destroy)(void *));
int __wrap___cxa_thread_atexit_impl(void (*destroy)(void *), void * object, void * library);

// This thread was started by this library.
static __thread int is_ours;

// ---------------------------------------------------------------------------------------------------------------- threads

// As long as Linux has them, with the zero at the end.
enum { NAME_SIZE = 16 };

// The name of the thread that this one is about to start.
static __thread char next_name[NAME_SIZE];

void pipeshard_threads_next(const char * name, size_t length);
void pipeshard_threads_tell(void * (*started)(const char *), void (*ending)(void *));

void pipeshard_threads_next(const char * name, size_t length) {
    length = length < NAME_SIZE - 1 ? length : NAME_SIZE - 1;
    memcpy(next_name, name, length);
    next_name[length] = 0;
}

// Called on each thread of this library, before all else and behind it. What the first one returns goes to the second. Set once, before
// there is a thread.
static void * (*told_started)(const char *);
static void (*told_ending)(void *);

void pipeshard_threads_tell(void * (*started)(const char *), void (*ending)(void *)) {
    told_started = started;
    told_ending  = ending;
}

struct start {
    void * (*run)(void *);
    void * argument;
    char   name[NAME_SIZE];
};

static void * begin(void * given) {
    struct start start = *(struct start *) given;
    free(given);
    is_ours = 1;
    pthread_setname_np(pthread_self(), start.name);
    void * noted  = told_started != NULL ? told_started(start.name) : NULL;
    void * result = start.run(start.argument);
    if (noted != NULL) {
        told_ending(noted);
    }
    return result;
}

int __wrap_pthread_create(pthread_t * thread, const pthread_attr_t * attributes, void * (*run)(void *), void * argument) {
    struct start * start = malloc(sizeof *start);
    if (start == NULL) {
        return EAGAIN;
    }
    start->run      = run;
    start->argument = argument;
    // ggml's and the standard libraries' say no name
    strcpy(start->name, next_name[0] ? next_name : "pipeshard-cpu");
    next_name[0] = 0;
    int failed      = __real_pthread_create(thread, attributes, begin, start);
    if (failed) {
        free(start);
    }
    return failed;
}

// ------------------------------------------------------------------------------------------------------------------- keys

// The standard library makes two or three.
enum { MOST_KEYS = 16 };

static pthread_key_t   keys[MOST_KEYS];
static int             key_count;
static pthread_mutex_t keys_lock = PTHREAD_MUTEX_INITIALIZER;

int __wrap_pthread_key_create(pthread_key_t * key, void (*destroy)(void *)) {
    int failed = EAGAIN;
    pthread_mutex_lock(&keys_lock);
    if (key_count < MOST_KEYS) {
        failed = __real_pthread_key_create(key, destroy);
        if (!failed) {
            keys[key_count++] = *key;
        }
    }
    pthread_mutex_unlock(&keys_lock);
    return failed;
}

// ------------------------------------------------------------------------------------------------- threads of the host end

// Something to be done when a thread ends; the latest first.
struct end {
    void (*destroy)(void *);
    void *       object;
    struct end * next;
};

static pthread_key_t  ends;
static pthread_once_t ends_once = PTHREAD_ONCE_INIT;
static int            ends_exist;

// The value of the key is NULL meanwhile: what is registered by a destructor is called in glibc's next round.
static void run_ends(void * list) {
    for (struct end * end = list; end != NULL;) {
        struct end * next = end->next;
        end->destroy(end->object);
        free(end);
        end = next;
    }
}

static void make_ends(void) {
    ends_exist = __wrap_pthread_key_create(&ends, run_ends) == 0;
}

int __wrap___cxa_thread_atexit_impl(void (*destroy)(void *), void * object, void * library) {
    if (is_ours) {
        return __real___cxa_thread_atexit_impl(destroy, object, library);
    }
    pthread_once(&ends_once, make_ends);
    struct end * end = ends_exist ? malloc(sizeof *end) : NULL;
    if (end == NULL) {
        return 0; // a few bytes stay behind
    }
    end->destroy = destroy;
    end->object  = object;
    end->next    = pthread_getspecific(ends);
    pthread_setspecific(ends, end);
    return 0;
}

// The library is unloaded, by this thread: it ends for the library. What other threads have left behind are a few bytes each.
__attribute__((destructor)) static void unloaded(void) {
    if (ends_exist) {
        void * list = pthread_getspecific(ends);
        pthread_setspecific(ends, NULL);
        run_ends(list);
    }
    pthread_mutex_lock(&keys_lock);
    while (key_count > 0) {
        pthread_key_delete(keys[--key_count]);
    }
    pthread_mutex_unlock(&keys_lock);
}
