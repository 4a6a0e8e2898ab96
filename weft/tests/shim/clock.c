/* A wall clock that tests can step while a process runs.
 *
 * Preloaded (LD_PRELOAD) into a process, it adds an offset to CLOCK_REALTIME and leaves every other clock alone, as a
 * correction by an operator or by NTP does. The offset, in nanoseconds, is a signed 64-bit number of the machine's byte order
 * in the file that WEFT_TEST_CLOCK names. The file is mapped, so that a write to it takes effect at once. Without the
 * variable, or where the file cannot be mapped, the clock is the machine's.
 *
 *     cc -shared -fPIC -O2 -o clock.so clock.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS INT64_C(1000000000)

static volatile int64_t *offset_ns;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("WEFT_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        offset_ns = page;
}

/* The system call and not the vDSO: the C library's own function has our name. */
int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (failed || !offset_ns || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t ns = (int64_t)at->tv_sec * SECOND_NS + at->tv_nsec + *offset_ns;
    at->tv_sec = ns / SECOND_NS;
    at->tv_nsec = ns % SECOND_NS;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return (time_t)-1;
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

/* jemalloc's threads wait until a time by the wall clock. The kernel does not know of the offset: without this, a step backwards
 * would end each wait at once, and the threads would spin. A time of a monotonic clock is small. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    if (until->tv_sec < 1000000000)
        return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, until);
    int64_t ns = (int64_t)until->tv_sec * SECOND_NS + until->tv_nsec - (offset_ns ? *offset_ns : 0);
    struct timespec real = {.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &real);
}
