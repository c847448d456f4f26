#define _DEFAULT_SOURCE
/* Random numbers of C++'s library (std::random_device), which is inside this one. It takes them from arc4random, which glibc has since
 * 2.36 only; everything else in here is content with 2.34. The library is linked with --wrap=arc4random, so calls end here. */

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>

uint32_t __wrap_arc4random(void);

uint32_t __wrap_arc4random(void) {
    uint32_t value = 0;
    while (getrandom(&value, sizeof value, 0) != (ssize_t) sizeof value) {
        /* So few bytes come whole, or not at all. A kernel that has none to give ends the process in glibc's arc4random as well: the
         * function cannot fail, and a number that is not random is worse. */
        if (errno != EINTR) {
            abort();
        }
    }
    return value;
}
