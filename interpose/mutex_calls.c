/* mutex_calls.c: pthread_mutex_lock, where another greenlet of this OS thread holds the mutex.
 *
 * exports.c always calls pp_pthread_mutex_lock. Some C libraries hold a mutex of theirs across a blocking
 * call (psycopg2 its connection's, across all of libpq). The caller parks in there, and a second one that
 * wants the mutex would block the OS thread that the first needs to go on. So a mutex that is busy and
 * belongs to this very OS thread is waited for parked, with pauses that grow to a few milliseconds.
 * Everything else is libc's: a mutex that is free, one that another OS thread holds (CPython's GIL and
 * its own locks among them), one that says itself what relocking means (recursive, error-checking).
 * Invariant: the call never fails for a reason that libc's does not have: a cancellation or a
 * signal that comes meanwhile stays pending, since callers do not look at the result.
 */
#include "interpose.h"

#include <pthread.h>
#include <sys/syscall.h>

#define SHORTEST_PAUSE 50000  /* ns */
#define LONGEST_PAUSE 8000000 /* ns */

/* Locking it again would block for ever: so it is another greenlet's, or a mistake. */
static bool is_ours_already(const pthread_mutex_t *mutex)
{
    enum { PLAIN = PTHREAD_MUTEX_TIMED_NP, ADAPTIVE = PTHREAD_MUTEX_ADAPTIVE_NP, TYPE = 3 };
    int type = mutex->__data.__kind & TYPE;
    return (type == PLAIN || type == ADAPTIVE) && mutex->__data.__owner == (int)syscall(SYS_gettid);
}

static __attribute__((noinline)) int lock_parked(pthread_mutex_t *mutex)
{
    int saved = errno;
    int r = pthread_mutex_trylock(mutex);
    for (int64_t pause = SHORTEST_PAUSE; r == EBUSY && is_ours_already(mutex);) {
        if (!pp_park_through(PP_CALL_pthread_mutex_lock, pp_after(pause)))
            break;
        pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
        r = pthread_mutex_trylock(mutex);
    }
    errno = saved;
    return r == EBUSY ? real_pthread_mutex_lock(mutex) : r;
}

/* One that is free is not this OS thread's, nor can it become so meanwhile. CPython's GIL mostly is. */
static bool is_free(const pthread_mutex_t *mutex)
{
    return !__atomic_load_n(&mutex->__data.__lock, __ATOMIC_RELAXED);
}

int pp_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (PP_LIKELY(!pp_gate || pp_busy || is_free(mutex)))
        return real_pthread_mutex_lock(mutex);
    return lock_parked(mutex);
}
