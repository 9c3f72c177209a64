/* interpose.h: what the files of interpose/ share. The contract with the portal is portal_abi.h.
 *
 * Naming: real_x is libc's, pp_x is ours, a bare x is only ever an exported symbol (exports.c).
 * How a call runs: exports.c looks at the gate; open, it calls pp_x, which tries without blocking,
 * asks the kernel whether its caller meant to block, parks (gate.c), and tries again.
 * Invariant: nothing in here calls a bare interposed x: it would look at the gate again.
 */
#ifndef INTERPOSE_H
#define INTERPOSE_H

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <resolv.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#pragma GCC visibility push(default)
#include "portal_abi.h"
#pragma GCC visibility pop

#define PP_LIKELY(x) __builtin_expect(!!(x), 1)
#define PP_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PP_EXPORTED __attribute__((visibility("default")))
#define PP_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))

enum pp_call {
#define PP_CALL(ret, name, params, args, failed) PP_CALL_##name,
#define PP_KEEP(ret, name, params, args) PP_CALL_##name,
#include "symbols.def"
    PP_CALL_COUNT
};

/* real_x: libc's functions. Valid from the first instruction on: each starts as a stub that resolves
 * itself (real.c), so the hot path is one load and one jump. */
#define PP_CALL(ret, name, params, args, failed) extern ret(*real_##name) params;
#define PP_KEEP(ret, name, params, args) extern ret(*real_##name) params;
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) extern ret(*real_##name) params;
#include "symbols.def"

/* pp_x: ours. entry_x: what is exported as x (exports.c). */
#define PP_CALL(ret, name, params, args, failed) \
    ret pp_##name params;                        \
    ret entry_##name params;
#define PP_KEEP(ret, name, params, args) \
    ret pp_##name params;                \
    ret entry_##name params;
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) ret entry_##name params;
#include "symbols.def"

void *pp_find_real(const char *name); /* libc's function of that name, or NULL (real.c) */
void pp_resolve_all(void);
void pp_resolve_forks(void);          /* vfork.c */
extern PP_THREAD_LOCAL int pp_forked; /* this thread called vfork or the like: who are we? */

/* ---- gate.c: the state of this thread and process ------------------------------------------ */

extern PP_THREAD_LOCAL int pp_gate; /* may this thread park now? The portal writes it */
extern PP_THREAD_LOCAL int
    pp_busy; /* inside a libc call that makes calls of its own: pass through */
extern PP_THREAD_LOCAL uint64_t pp_my_parks; /* how often this thread has parked */

enum pp_outcome pp_park_fd(int call, int fd, unsigned events, int64_t deadline);
enum pp_outcome pp_park_many(int call, const struct pp_want *wants, size_t n, int64_t deadline);
enum pp_outcome pp_park_until(int call, int64_t deadline);
bool pp_park_through(int call, int64_t deadline); /* sleep_through; false: it cannot be had */
void pp_yield(int call);                          /* let others have a turn: see portal_abi.h */
enum pp_outcome pp_offload(int call, void (*run)(void *), void (*drop)(void *), void *arg);
void pp_tell_closing(int fd); /* the portal's fd_closing, unless we are a vfork child */
bool pp_is_vfork_child(void);
extern _Atomic unsigned pp_streams_gone; /* a bit for each of 0, 1, 2 that is no standard stream */

/* A standard stream, and not just a socket that has got its number (fd_calls.c). */
static inline bool pp_is_stdio(int fd)
{
    return (unsigned)fd <= 2 && !pp_park_stdio && !(pp_streams_gone & (1u << fd));
}

/* ---- observe.c ------------------------------------------------------------------------------ */

void pp_count_passed(int call);
void pp_count_parked(int call);
void pp_count_blocked(int call);
void pp_read_settings(char **environment);

/* ---- waits.c: what every family needs around a park ------------------------------------------ */

/* How a park ended, for the caller's loop. */
enum pp_turn {
    PP_AGAIN, /* try the call again */
    PP_FAIL,  /* errno is set: the call is over */
    PP_PLAIN, /* cannot park: make the blocking call */
};

/* Deadline of a call that has not yet asked, and of one whose caller asked not to block. */
#define PP_UNASKED (-1)
#define PP_NOT_AT_ALL (-2)

int64_t pp_now(void);                  /* CLOCK_MONOTONIC, ns */
int64_t pp_after(int64_t nanoseconds); /* now plus that, saturating; negative or FOREVER: FOREVER */
int64_t pp_nanoseconds(time_t s, long ns);  /* saturating */
int pp_milliseconds_left(int64_t deadline); /* rounded up, for poll; -1 for ever */

/* ---- facts.c: answers of the kernel about sockets that still hold ---------------------------------- */

enum pp_fact {
    PP_FACT_BLOCKING = 1,
    PP_FACT_NO_RCVTIMEO = 2,
    PP_FACT_NO_SNDTIMEO = 4,
    PP_FACT_RCVLOWAT_1 = 8,
    PP_FACT_SOCKET = 16,
};
uint64_t pp_fact_key(int fd); /* before asking the kernel; to hand to pp_fact_learn */
bool pp_fact(int fd, enum pp_fact fact);
void pp_fact_learn(int fd, uint64_t key, enum pp_fact fact);
void pp_facts_forget(int fd); /* of this one */
void pp_facts_void(void);

/* Sockets whose first try found nothing so many times in a row are waited for before they are tried. */
#define PP_STREAK 4u
bool pp_wait_comes_first(int fd);
void pp_first_try(int fd, bool found_nothing);

/* What a call's waits have to know of each other. `rounds` detects readiness that is none: the wait says
 * ready, the call says EAGAIN, over and over (an unconnected unix datagram socket, a nearly full
 * eventfd); then the thread sleeps a little. `remembered`: the patience rests on facts that another
 * process may have changed meanwhile, so a wait that lasts ends early, for the kernel to be asked. */
struct pp_spin {
    unsigned rounds;
    bool remembered;
};

/* How long the caller of a call on fd wants to wait: a deadline from SO_RCVTIMEO or SO_SNDTIMEO
 * (option; 0 for what is no socket), PP_FOREVER, or PP_NOT_AT_ALL where the fd is O_NONBLOCK. */
int64_t pp_patience(int fd, int option);
/* The same of a socket, from facts where there are some. Callers ask again when pp_wait_turn has
 * taken spin->remembered back. */
int64_t pp_remembered_patience(int fd, int option, struct pp_spin *spin);
bool pp_is_nonblocking(int fd);

/* Park on one fd and translate the outcome; a timeout fails with `timeout_errno`. PP_AGAIN with
 * spin->remembered gone: nothing happened for a while, and the patience is no longer sure. */
enum pp_turn pp_wait_turn(int call, int fd, unsigned events, int64_t deadline, int timeout_errno,
                          struct pp_spin *spin);
enum pp_turn pp_turn_of(enum pp_outcome outcome, int timeout_errno);
enum pp_turn pp_back_off(int call, int64_t deadline, int timeout_errno, struct pp_spin *spin);

/* O_NONBLOCK for an instant, for the calls that have no flag of their own. begin returns the flags
 * to hand to end; -1 with errno; or PP_ALREADY_NONBLOCKING when it was set (then no end). Nothing
 * between the two may park or be a cancellation point: use syscall(). */
#define PP_ALREADY_NONBLOCKING (-2)
int pp_instant_begin(int fd);
void pp_instant_end(int fd, int flags);
void pp_instant_reset(void); /* in a fork child */

/* Copy from or to memory of our caller that may be a bad pointer: 0, or -1 with EFAULT. */
int pp_copy_in(void *to, const void *from, size_t n);
int pp_copy_out(void *to, const void *from, size_t n);

/* fcntl for what is about descriptors and their flags. */
static inline int pp_flags(int fd, int command, long arg)
{
    return real_fcntl(fd, command, (void *)arg);
}

/* A blocking call that cannot be waited for (a file lock): try until it succeeds, with growing pauses.
 * `attempt` returns -1 with errno EAGAIN or EACCES while it would block. */
int pp_try_until(int call, int (*attempt)(void *), void *arg);

/* ---- fd_calls.c, pool.c ---------------------------------------------------------------------- */

void pp_find_streams(void);   /* once, at the start */
void pp_forget_watches(void); /* in a fork child */
void pp_note_closing(int fd); /* before an fd that is no longer the caller's is closed elsewhere */
void pp_pool_reset(void);     /* in a fork child */
void pp_system_reset(void);   /* in a fork child (process_calls.c) */

/* ---- mutex_guard.c ------------------------------------------------------------------------------- */

extern int pp_guarding;       /* some libraries are on the list */
bool pp_must_block(int call); /* this caller holds a guarded mutex; counts it */
bool pp_is_guarded(const char *path);

/* One function of which attach.c rewrites the slots. */
struct pp_hook {
    const char *name;
    uintptr_t ours;
    uintptr_t real; /* 0: this libc has none */
    uintptr_t
        other; /* dlopen: what a library preloaded before libc calls so, which we call; or 0 */
};
extern struct pp_hook pp_guard_hooks[];
extern const size_t pp_guard_hook_count;
bool pp_is_guard_hook(const struct pp_hook *hook);

/* ---- attach.c ----------------------------------------------------------------------------------- */

extern _Atomic int pp_rescan_due; /* something was loaded past us: look again when it is cheap */
void pp_rescan(void);

#define PP_TRACE(level, ...)                        \
    do {                                            \
        if (PP_UNLIKELY(pp_trace_level >= (level))) \
            pp_trace(__VA_ARGS__);                  \
    } while (0)

#endif
