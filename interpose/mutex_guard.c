/* mutex_guard.c: in named libraries, no call parks while a mutex of theirs is held. Off by default.
 *
 * A library that holds a mutex across its blocking call would park with it; the next green thread of
 * the same OS thread to enter the library waits for that mutex, and the OS thread with it: a deadlock.
 * So attach.c rewrites, in the libraries on the list only, the slots of the locking functions; these
 * count, for each line of control, what it holds. exports.c asks before it does anything: a call made
 * with a count above 0 really blocks, and is counted.
 * (mutex_calls.c helps where a plain mutex is waited for; this is for what it cannot know.)
 * Invariants: nothing here is exported, so a program without the list never passes through it; a
 * lock taken where nothing can park is not counted; the count never falls below 0.
 */
#include "interpose.h"

#include <fnmatch.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

int pp_guarding;

static char *patterns; /* separated by commas; replaced, never freed: another thread may read */

static PP_THREAD_LOCAL int own_count; /* where the portal keeps no count for each of its callers */
static PP_THREAD_LOCAL int *count;

int **pp_mutex_count_of_this_thread(void)
{
    return &count;
}

static int *held(void)
{
    return count ? count : &own_count;
}

bool pp_must_block(int call)
{
    if (*held() <= 0)
        return false;
    pp_count_blocked(call);
    return true;
}

/* ---- the functions ------------------------------------------------------------------------------- */

static int locked(int r)
{
    if ((r == 0 || r == EOWNERDEAD) && pp_gate)
        ++*held();
    return r;
}

static int unlocked(int r)
{
    if (r == 0 && *held() > 0)
        --*held();
    return r;
}

/* X(function, what became of the result, parameters, arguments) */
#define FUNCTIONS(X)                                                                            \
    X(pthread_mutex_lock, locked, (pthread_mutex_t * m), (m))                                   \
    X(pthread_mutex_trylock, locked, (pthread_mutex_t * m), (m))                                \
    X(pthread_mutex_timedlock, locked, (pthread_mutex_t * m, const struct timespec *t), (m, t)) \
    X(pthread_mutex_unlock, unlocked, (pthread_mutex_t * m), (m))                               \
    X(pthread_rwlock_rdlock, locked, (pthread_rwlock_t * m), (m))                               \
    X(pthread_rwlock_tryrdlock, locked, (pthread_rwlock_t * m), (m))                            \
    X(pthread_rwlock_timedrdlock, locked, (pthread_rwlock_t * m, const struct timespec *t),     \
      (m, t))                                                                                   \
    X(pthread_rwlock_wrlock, locked, (pthread_rwlock_t * m), (m))                               \
    X(pthread_rwlock_trywrlock, locked, (pthread_rwlock_t * m), (m))                            \
    X(pthread_rwlock_timedwrlock, locked, (pthread_rwlock_t * m, const struct timespec *t),     \
      (m, t))                                                                                   \
    X(pthread_rwlock_unlock, unlocked, (pthread_rwlock_t * m), (m))                             \
    X(pthread_spin_lock, locked, (pthread_spinlock_t * m), (m))                                 \
    X(pthread_spin_trylock, locked, (pthread_spinlock_t * m), (m))                              \
    X(pthread_spin_unlock, unlocked, (pthread_spinlock_t * m), (m))                             \
    X(mtx_lock, locked, (mtx_t * m), (m))                                                       \
    X(mtx_trylock, locked, (mtx_t * m), (m))                                                    \
    X(mtx_timedlock, locked, (mtx_t * m, const struct timespec *t), (m, t))                     \
    X(mtx_unlock, unlocked, (mtx_t * m), (m))

#define GUARDED(name, result, params, args) \
    static int guarded_##name params        \
    {                                       \
        return result(name args);           \
    }
FUNCTIONS(GUARDED)

struct pp_hook pp_guard_hooks[] = {
#define HOOK(name, result, params, args) {#name, (uintptr_t)guarded_##name, 0, 0},
    FUNCTIONS(HOOK)};

const size_t pp_guard_hook_count = sizeof pp_guard_hooks / sizeof *pp_guard_hooks;

bool pp_is_guard_hook(const struct pp_hook *hook)
{
    return hook >= pp_guard_hooks && hook < pp_guard_hooks + pp_guard_hook_count;
}

/* ---- the list ------------------------------------------------------------------------------------- */

bool pp_is_guarded(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *name = slash ? slash + 1 : path;
    if (!pp_guarding || !name || !*name)
        return false;
    for (const char *at = patterns; *at;) {
        const char *end = strchrnul(at, ',');
        char pattern[256];
        if ((size_t)(end - at) < sizeof pattern) {
            memcpy(pattern, at, (size_t)(end - at));
            pattern[end - at] = 0;
            if (fnmatch(pattern, name, 0) == 0)
                return true;
        }
        at = *end ? end + 1 : end;
    }
    return false;
}

int pp_guard_mutexes(const char *names)
{
    char *copy = names && *names ? strdup(names) : NULL;
    if (names && *names && !copy) {
        errno = ENOMEM;
        return -1;
    }
    if (copy)
        patterns = copy;
    __atomic_store_n(&pp_guarding, copy != NULL, __ATOMIC_RELEASE);
    return 0;
}
