/* portal_abi.h: the only contract between interpose/ (plain C) and whatever can park a call.
 *
 *  Python code                C extension (libpq, libcurl, OpenSSL, _socket, select, time ...)
 *      |                                    |  libc symbol: recv, poll, clock_nanosleep ...
 *  patches/                            interpose/        one decision per call: pass through or park
 *  threads, locks, signals,                 |
 *  what libc cannot see                     |  this header
 *      |                                    |
 *      +--------------->  pyglue/ portal  <-+            park / resume: the only place that switches
 *                            |
 *                         pyglue/ hub                    libev: fds, timers, wake-ups, ready list
 *
 * The interposer asks; the portal (pyglue, or the plain C portal of tests/interpose) answers.
 * Invariants: every function of struct pp_portal_ops may be called with or without the GIL, keeps
 * errno, and never keeps a pointer into the caller's stack beyond its own return: a parked stack
 * may be moved. After PP_READY the caller re-issues its real, non-blocking call: readiness is a hint.
 */
#ifndef PORTAL_ABI_H
#define PORTAL_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PP_ABI_VERSION 1u

/* Deadlines are absolute CLOCK_MONOTONIC nanoseconds. */
#define PP_FOREVER INT64_MAX

/* Directions of one fd wait. */
#define PP_READ 1u
#define PP_WRITE 2u

/* How a wait ended. */
enum pp_outcome {
    PP_READY = 0,    /* may be ready (or always ready, as a regular file): try again */
    PP_TIMEOUT = 1,  /* the deadline passed first; epoll_wait then returns even if it has not */
    PP_EINTR = 2,    /* a signal handler wants to run in this caller: return -1/EINTR */
    PP_CANCELED = 3, /* the task was cancelled: return -1/ECANCELED */
    PP_BADF = 4,     /* the fd was closed while waiting: return -1/EBADF */
    PP_BLOCK = 5     /* cannot park here and now: make the plain blocking call */
};

/* One entry of wait_many. The array may be on the caller's stack: it is copied before parking. */
struct pp_want {
    int fd;
    unsigned events; /* PP_READ | PP_WRITE, not 0 */
};

/* What the portal offers. `call` is the enum pp_call of the interposed function, for statistics,
 * the trace, and dumps ("waiting in recv"). All fields are set; `size` is sizeof the struct. */
struct pp_portal_ops {
    uint32_t version; /* PP_ABI_VERSION */
    uint32_t size;

    /* Park until fd is ready in one of `events`, or the deadline. */
    enum pp_outcome (*wait_fd)(int call, int fd, unsigned events, int64_t deadline);

    /* Park until one of n fds is ready, or the deadline. n may be 0 (then it is a sleep). */
    enum pp_outcome (*wait_many)(int call, const struct pp_want *wants, size_t n, int64_t deadline);

    /* Park until the deadline: PP_TIMEOUT is the normal end. */
    enum pp_outcome (*sleep_until)(int call, int64_t deadline);

    /* Run run(arg) on a native worker thread and park until it has finished. `arg` is heap memory.
     * PP_READY: run(arg) has returned and the caller owns arg again. PP_BLOCK: nothing was started,
     * the caller still owns arg. Anything else: the caller has given arg up; drop(arg) is called on
     * the worker once run(arg) has returned (or at once where it never started). */
    enum pp_outcome (*offload)(int call, void (*run)(void *), void (*drop)(void *), void *arg);

    /* fd is about to be closed or replaced (close, dup2 onto it, ...) by this thread: its waiters
     * must end with PP_BADF. Called only while pp_fd_watched(fd) is true, from any thread. */
    void (*fd_closing)(int fd);

    /* A loop's wait for events ends at once, for there are some or its timeout is 0: whoever is
     * parked and due has a turn before it returns. May be NULL. */
    void (*yield)(int call);

    /* Park until the deadline, for a call that cannot fail: a cancellation or a signal that comes
     * meanwhile stays pending and is told to the next wait that can. It may end early. PP_BLOCK:
     * cannot park. May be NULL. */
    enum pp_outcome (*sleep_through)(int call, int64_t deadline);
};

/* ---- what libportalpatch.so gives to the portal ------------------------------------------- */

/* The gate of the calling thread: nonzero when a blocking call made now may park. The portal
 * owns it; the interposer only reads it. The address is fixed for the thread's life. */
int *pp_gate_of_this_thread(void);

/* Install (or with NULL remove) the portal of this process. 0, or -1 with errno EINVAL when the
 * version does not match. A forked child starts with gates closed and, for its own sake,
 * no parked caller; the installed ops stay. */
int pp_install_portal(const struct pp_portal_ops *ops);

/* Counts how often an fd number (hashed: collisions only cost a needless re-arm) was closed or
 * replaced in this process. A watcher armed at generation g is still about the same open file
 * while pp_fd_generation(fd) == g. Safe from any thread. */
uint32_t pp_fd_generation(int fd);

/* The portal brackets every fd wait with these, so close() knows cheaply whether anyone waits.
 * Safe from any thread; counted, hashed like the generation. */
void pp_fd_watch(int fd);
void pp_fd_unwatch(int fd);

/* The native worker pool behind offload. run(arg) then done(done_arg) are called on a worker.
 * The pool grows on demand to pp_pool_set_limit's bound (default 64), then queues; idle workers
 * leave after a while. Workers block all signals and never park.
 * Returns 0, or an errno (ENOMEM, EAGAIN) when no worker could be had and none exists. */
int pp_pool_submit(void (*run)(void *), void *arg, void (*done)(void *), void *done_arg);
void pp_pool_set_limit(unsigned limit);

/* Interposed functions, by number. Names in the order of the table (interpose/symbols.def). */
int pp_call_count(void);
const char *pp_call_name(int call);

/* Per-call counters of this process, index = call: attempts made while a gate was open that ended
 * without parking (`passed`), and waits (`parked`). */
struct pp_call_stats {
    uint64_t passed;
    uint64_t parked;
    uint64_t blocked; /* made while the caller held a guarded mutex */
};
const struct pp_call_stats *pp_call_statistics(void);

/* The mutex guard (mutex_guard.c): glob patterns of libraries' file names, separated by commas; in
 * these no call parks while a mutex is held. "" or NULL: off, the default. To be called before
 * pp_attach. 0, or -1 with errno ENOMEM. */
int pp_guard_mutexes(const char *names);

/* Where the portal may put the address of a count of its own for whoever executes in the calling
 * thread: how many guarded mutexes that one holds. NULL: one count for the thread. */
int **pp_mutex_count_of_this_thread(void);

/* 1 when the library came by LD_PRELOAD (its symbols win over libc's in the global scope). */
int pp_is_preloaded(void);

/* Hook every loaded object's GOT slots (and those loaded later) for the table's symbols, as
 * LD_PRELOAD would. Idempotent: a second call hooks what was loaded since. pp_detach restores
 * every slot that still holds ours. 0, or -1 with errno. */
struct pp_attach_report {
    unsigned objects; /* loaded objects with at least one hooked slot */
    unsigned slots;   /* hooked slots in all of them */
};
int pp_attach(void);
int pp_detach(void);
void pp_attach_statistics(struct pp_attach_report *report);

/* Trace level: 0 off, 1 each park/resume, 2 each decision. Set from PORTALPATCH_LOG at load. */
extern int pp_trace_level;
void pp_trace(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether calls on fds 0, 1 and 2 may park (default 0). */
extern int pp_park_stdio;

#ifdef __cplusplus
}
#endif
#endif
