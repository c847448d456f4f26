// A driver of CUDA that knows nothing but stacks of contexts, one for each thread, as the real one has.
#include <stddef.h>

enum { MOST = 64 };
static __thread void * stack[MOST];
static __thread int    depth;

int cuCtxPushCurrent_v2(void * context);
int cuCtxPopCurrent_v2(void ** context);
int cuCtxGetDevice(int * device);
int    fake_depth(void);
void * fake_current(void);

// One that was destroyed.
static void * const DESTROYED = (void *) 0xDEAD0;

int cuCtxPushCurrent_v2(void * context) {
    if (context == DESTROYED || context == NULL || depth == MOST) {
        return 201; // invalid context
    }
    stack[depth++] = context;
    return 0;
}

int cuCtxPopCurrent_v2(void ** context) {
    if (depth == 0) {
        return 201;
    }
    *context = stack[--depth];
    return 0;
}

int cuCtxGetDevice(int * device) {
    *device = 0;
    return depth ? 0 : 201;
}

int fake_depth(void) {
    return depth;
}

void * fake_current(void) {
    return depth ? stack[depth - 1] : NULL;
}
