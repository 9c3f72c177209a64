/* waits.c: what every family needs around a park: clocks, patience, back-off, the instant.
 *
 * The family files call it; it calls gate.c to park. It asks the kernel for everything it must know
 * of an fd (or facts.c, and the kernel when the wait lasts): no table of fds is kept, so dup, fork and
 * passed fds need no tracking.
 * Invariant: an fd's own O_NONBLOCK is changed only between pp_instant_begin and pp_instant_end.
 */
#include "interpose.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>

#define SECOND 1000000000LL

/* How long a wait rests on what was remembered of a socket: so much later does a call notice that
 * another process has made the socket they share non-blocking, or given it a timeout. */
#define LOOK_AGAIN 50000000LL

int64_t pp_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

int64_t pp_nanoseconds(time_t s, long ns)
{
    int64_t total;
    if (__builtin_mul_overflow((int64_t)s, SECOND, &total) ||
        __builtin_add_overflow(total, (int64_t)ns, &total))
        return PP_FOREVER;
    return total;
}

int64_t pp_after(int64_t nanoseconds)
{
    int64_t deadline;
    if (nanoseconds < 0 || __builtin_add_overflow(pp_now(), nanoseconds, &deadline))
        return PP_FOREVER;
    return deadline;
}

int pp_milliseconds_left(int64_t deadline)
{
    if (deadline == PP_FOREVER)
        return -1;
    int64_t left = deadline - pp_now();
    if (left <= 0)
        return 0;
    left = (left + 999999) / 1000000;
    return left > INT32_MAX ? INT32_MAX : (int)left;
}

/* ---- patience ----------------------------------------------------------------------------- */

/* One instant at a time in this process: else a thread would see another's O_NONBLOCK as its caller's. */
static pthread_mutex_t instant = PTHREAD_MUTEX_INITIALIZER;

/* This thread's instants that have not ended: a second one is a signal handler's that struck in the
 * first, whose write or connect would wait for itself if it wanted the mutex. */
static PP_THREAD_LOCAL unsigned instants;

static void lock_instant(void)
{
    if (instants++ == 0)
        real_pthread_mutex_lock(&instant);
}

static void unlock_instant(void)
{
    if (instants == 1)
        pthread_mutex_unlock(&instant);
    instants--;
}

void pp_instant_reset(void)
{
    pthread_mutex_init(&instant, NULL);
}

bool pp_is_nonblocking(int fd)
{
    int flags = pp_flags(fd, F_GETFL, 0);
    if (flags < 0 || !(flags & O_NONBLOCK))
        return flags < 0;
    /* Perhaps only another thread's instant. */
    lock_instant();
    flags = pp_flags(fd, F_GETFL, 0);
    unlock_instant();
    return flags < 0 || (flags & O_NONBLOCK);
}

int64_t pp_patience(int fd, int option)
{
    struct timeval t;
    socklen_t len = sizeof t;
    if (pp_is_nonblocking(fd))
        return PP_NOT_AT_ALL;
    if (!option || getsockopt(fd, SOL_SOCKET, option, &t, &len) < 0 ||
        (t.tv_sec == 0 && t.tv_usec == 0))
        return PP_FOREVER;
    return pp_after(pp_nanoseconds(t.tv_sec, t.tv_usec * 1000));
}

int64_t pp_remembered_patience(int fd, int option, struct pp_spin *spin)
{
    enum pp_fact no_timeout = option == SO_RCVTIMEO ? PP_FACT_NO_RCVTIMEO : PP_FACT_NO_SNDTIMEO;
    if (pp_fact(fd, PP_FACT_BLOCKING) && pp_fact(fd, no_timeout)) {
        spin->remembered = true;
        return PP_FOREVER;
    }
    uint64_t key = pp_fact_key(fd);
    int64_t deadline = pp_patience(fd, option);
    if (deadline != PP_NOT_AT_ALL)
        pp_fact_learn(fd, key, PP_FACT_BLOCKING);
    if (deadline == PP_FOREVER)
        pp_fact_learn(fd, key, no_timeout);
    return deadline;
}

int pp_instant_begin(int fd)
{
    lock_instant();
    int flags = pp_flags(fd, F_GETFL, 0);
    if (flags >= 0 && (flags & O_NONBLOCK))
        flags = PP_ALREADY_NONBLOCKING;
    else if (flags >= 0 && pp_flags(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        flags = -1;
    if (flags < 0)
        unlock_instant();
    return flags;
}

void pp_instant_end(int fd, int flags)
{
    int saved = errno;
    pp_flags(fd, F_SETFL, flags);
    unlock_instant();
    errno = saved;
}

/* ---- waiting -------------------------------------------------------------------------------- */

enum pp_turn pp_turn_of(enum pp_outcome outcome, int timeout_errno)
{
    switch (outcome) {
    case PP_READY:
        return PP_AGAIN;
    case PP_TIMEOUT:
        errno = timeout_errno;
        return PP_FAIL;
    case PP_EINTR:
        errno = EINTR;
        return PP_FAIL;
    case PP_CANCELED:
        errno = ECANCELED;
        return PP_FAIL;
    case PP_BADF:
        errno = EBADF;
        return PP_FAIL;
    case PP_BLOCK:
        break;
    }
    return PP_PLAIN;
}

enum pp_turn pp_back_off(int call, int64_t deadline, int timeout_errno, struct pp_spin *spin)
{
    unsigned step = spin->rounds < 8 ? spin->rounds : 8;
    int64_t wake = pp_after(100000LL << step);
    bool last = wake >= deadline;
    enum pp_outcome outcome = pp_park_until(call, last ? deadline : wake);
    if (outcome == PP_TIMEOUT && !last)
        outcome = PP_READY;
    return pp_turn_of(outcome, timeout_errno);
}

/* Out of line: what lies on the stack while a call is parked is copied with it. */
static __attribute__((noinline)) bool says_it_is_ready(int fd, unsigned events)
{
    struct pollfd p = {
        .fd = fd,
        .events = (short)((events & PP_READ ? POLLIN : 0) | (events & PP_WRITE ? POLLOUT : 0))};
    return real_poll(&p, 1, 0) > 0;
}

/* These two keep little on the stack while they wait. */
static __attribute__((noinline)) enum pp_turn park_turn(int call, int fd, unsigned events,
                                                        int64_t deadline, int timeout_errno)
{
    return pp_turn_of(pp_park_fd(call, fd, events, deadline), timeout_errno);
}

static __attribute__((noinline)) enum pp_turn park_until_look(int call, int fd, unsigned events,
                                                              int64_t look, int timeout_errno,
                                                              struct pp_spin *spin)
{
    enum pp_outcome outcome = pp_park_fd(call, fd, events, look);
    if (outcome == PP_TIMEOUT) {
        spin->remembered = false;
        spin->rounds = 0;
        pp_facts_forget(fd);
        outcome = PP_READY;
    }
    return pp_turn_of(outcome, timeout_errno);
}

enum pp_turn pp_wait_turn(int call, int fd, unsigned events, int64_t deadline, int timeout_errno,
                          struct pp_spin *spin)
{
    if (spin->rounds++ >= 2) {
        /* Woken for nothing, twice. If another reader took what was there, the fd is not ready now,
         * and to wait for it is right; if it says ready still, its readiness means nothing. */
        if (says_it_is_ready(fd, events))
            return pp_back_off(call, deadline, timeout_errno, spin);
        spin->rounds = 1;
    }
    if (!spin->remembered)
        return park_turn(call, fd, events, deadline, timeout_errno);
    return park_until_look(call, fd, events, pp_after(LOOK_AGAIN), timeout_errno, spin);
}

int pp_try_until(int call, int (*attempt)(void *), void *arg)
{
    struct pp_spin spin = {0};
    for (;;) {
        int r = attempt(arg);
        if (r >= 0 || (errno != EAGAIN && errno != EACCES))
            return r;
        spin.rounds++;
        switch (pp_back_off(call, PP_FOREVER, EAGAIN, &spin)) {
        case PP_AGAIN:
            break;
        case PP_FAIL:
            return -1;
        case PP_PLAIN:
            errno = EDEADLK; /* says: nobody waited, make the blocking call */
            return -2;
        }
    }
}

/* ---- memory that may not be there --------------------------------------------------------------- */

/* Where callers keep their small structures nearly always. Zero until asked once. */
static PP_THREAD_LOCAL uintptr_t stack_top;

/* Between our own frame and the top of this thread's stack: memory that is there. */
static bool is_on_stack(const void *p, size_t n)
{
    if (!stack_top) {
        pthread_attr_t attributes;
        void *lowest;
        size_t size;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            if (pthread_attr_getstack(&attributes, &lowest, &size) == 0)
                stack_top = (uintptr_t)lowest + size;
            pthread_attr_destroy(&attributes);
        }
        if (!stack_top)
            stack_top = 1; /* not to be known: never */
    }
    uintptr_t here = (uintptr_t)__builtin_frame_address(0), at = (uintptr_t)p;
    return at > here && at < stack_top && n <= stack_top - at;
}

static int copy(long number, void *to, const void *from, size_t n, void *remote)
{
    struct iovec local = {.iov_base = number == SYS_process_vm_readv ? to : (void *)(uintptr_t)from,
                          .iov_len = n};
    struct iovec there = {.iov_base = remote, .iov_len = n};
    if (is_on_stack(remote, n)) {
        memcpy(to, from, n);
        return 0;
    }
    int saved = errno;
    long r = syscall(number, syscall(SYS_getpid), &local, 1L, &there, 1L, 0L);
    if (r == (long)n)
        return 0;
    if (r < 0 && errno != EFAULT) { /* forbidden here (seccomp): trust the caller */
        errno = saved;
        memcpy(to, from, n);
        return 0;
    }
    errno = EFAULT;
    return -1;
}

int pp_copy_in(void *to, const void *from, size_t n)
{
    return copy(SYS_process_vm_readv, to, from, n, (void *)(uintptr_t)from);
}

int pp_copy_out(void *to, const void *from, size_t n)
{
    return copy(SYS_process_vm_writev, to, from, n, to);
}
