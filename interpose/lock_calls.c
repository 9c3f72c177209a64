/* lock_calls.c: flock, lockf, and fcntl's F_SETLKW and F_OFD_SETLKW.
 *
 * exports.c calls pp_x while the gate is open, and pp_fcntl always: F_SETFL makes facts void (facts.c),
 * every other command that waits for no lock goes straight to libc. No
 * fd tells when a file lock is free, and a worker that waits for one could get it after its caller
 * has gone: so the lock is tried, with pauses that grow to a few milliseconds.
 * Invariant: a lock is only ever taken by the thread, and in the call, that asked for it. The price:
 * the kernel sees no waiter, so it cannot report EDEADLK.
 */
#include "interpose.h"

#include <fcntl.h>
#include <sys/file.h>

struct attempt {
    int fd;
    int command;
    void *arg;
    off_t size;
};

static int try_flock(void *arg)
{
    struct attempt *a = arg;
    return real_flock(a->fd, a->command | LOCK_NB);
}

int pp_flock(int fd, int operation)
{
    struct attempt a = {.fd = fd, .command = operation};
    if (operation & LOCK_NB)
        return real_flock(fd, operation);
    int r = pp_try_until(PP_CALL_flock, try_flock, &a);
    return r == -2 ? real_flock(fd, operation) : r;
}

static int try_setlk(void *arg)
{
    struct attempt *a = arg;
    return real_fcntl(a->fd, a->command == F_SETLKW ? F_SETLK : F_OFD_SETLK, a->arg);
}

int pp_fcntl(int fd, int command, void *arg)
{
    if (PP_LIKELY((command != F_SETLKW && command != F_OFD_SETLKW) || !pp_gate || pp_busy ||
                  (pp_guarding && pp_must_block(PP_CALL_fcntl)))) {
        int r = real_fcntl(fd, command, arg);
        if (command == F_SETFL)
            pp_facts_void();
        return r;
    }
    struct attempt a = {.fd = fd, .command = command, .arg = arg};
    int saved = errno, r = pp_try_until(PP_CALL_fcntl, try_setlk, &a);
    if (r == -2)
        return real_fcntl(fd, command, arg);
    if (r == 0)
        errno = saved;
    return r;
}

static int try_lockf(void *arg)
{
    struct attempt *a = arg;
    return real_lockf(a->fd, F_TLOCK, a->size);
}

int pp_lockf(int fd, int command, off_t size)
{
    struct attempt a = {.fd = fd, .size = size};
    if (command != F_LOCK)
        return real_lockf(fd, command, size);
    int r = pp_try_until(PP_CALL_lockf, try_lockf, &a);
    return r == -2 ? real_lockf(fd, command, size) : r;
}
