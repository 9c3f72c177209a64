/* gate.c: the state behind the one decision: this thread's gate, the process's portal, fork.
 *
 * Every pp_x parks through pp_park_*; the portal installs itself with pp_install_portal and opens
 * and closes the gate as it switches. Calls the portal's operations, and pool.c and fd_calls.c after a fork.
 * Invariant: a process that is not the one the portal was installed in (a vfork child, a raw
 * clone) never reaches the portal: its calls block, and change nothing of its parent's.
 */
#include "interpose.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

PP_THREAD_LOCAL int pp_gate;
PP_THREAD_LOCAL int pp_busy;
PP_THREAD_LOCAL uint64_t pp_my_parks;

static _Atomic(const struct pp_portal_ops *) portal;
static pid_t home; /* the process that may park; 0 until a portal was installed */

int *pp_gate_of_this_thread(void)
{
    return &pp_gate;
}

int pp_install_portal(const struct pp_portal_ops *ops)
{
    if (ops && (ops->version != PP_ABI_VERSION || ops->size < sizeof *ops)) {
        errno = EINVAL;
        return -1;
    }
    if (ops) {
        /* Workers and hooked slots may outlive the module that loaded us: stay mapped. */
        Dl_info self;
        if (dladdr((void *)&portal, &self) && self.dli_fname)
            (void)dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
        home = (pid_t)syscall(SYS_getpid);
    }
    atomic_store(&portal, ops);
    return 0;
}

/* Who we are is a question only after a vfork. */
bool pp_is_vfork_child(void)
{
    if (PP_LIKELY(!pp_forked))
        return false;
    if ((pid_t)syscall(SYS_getpid) != home)
        return true;
    pp_forked = 0; /* the parent again */
    return false;
}

/* The portal, if this very process may use it. */
static const struct pp_portal_ops *portal_here(void)
{
    const struct pp_portal_ops *ops = atomic_load_explicit(&portal, memory_order_acquire);
    return pp_is_vfork_child() ? NULL : ops;
}

static const char *outcome_name(enum pp_outcome outcome)
{
    static const char *const names[] = {"ready",    "timeout", "interrupted",
                                        "canceled", "closed",  "cannot park"};
    return (unsigned)outcome < sizeof names / sizeof *names ? names[outcome] : "?";
}

/* Before and after each park. A park that was refused is not one. */
static void parking(int call)
{
    PP_TRACE(1, "%s parks", pp_call_name(call));
}

static enum pp_outcome parked(int call, enum pp_outcome outcome)
{
    if (outcome != PP_BLOCK) {
        pp_my_parks++;
        pp_count_parked(call);
    }
    PP_TRACE(1, "%s resumes: %s", pp_call_name(call), outcome_name(outcome));
    return outcome;
}

static __attribute__((noinline)) enum pp_outcome
park_fd_with_care(int call, int fd, unsigned events, int64_t deadline)
{
    const struct pp_portal_ops *ops = portal_here();
    if (!ops)
        return PP_BLOCK;
    parking(call);
    return parked(call, ops->wait_fd(call, fd, events, deadline));
}

/* Nearly always neither a question nor a trace comes before the wait: then little lies on the stack that is
 * copied while it lasts. */
enum pp_outcome pp_park_fd(int call, int fd, unsigned events, int64_t deadline)
{
    const struct pp_portal_ops *ops = atomic_load_explicit(&portal, memory_order_acquire);
    if (PP_UNLIKELY(!ops || pp_forked || pp_trace_level > 0))
        return park_fd_with_care(call, fd, events, deadline);
    return parked(call, ops->wait_fd(call, fd, events, deadline));
}

enum pp_outcome pp_park_many(int call, const struct pp_want *wants, size_t n, int64_t deadline)
{
    const struct pp_portal_ops *ops = portal_here();
    if (!ops)
        return PP_BLOCK;
    parking(call);
    if (n == 0)
        return parked(call, ops->sleep_until(call, deadline));
    if (n == 1)
        return parked(call, ops->wait_fd(call, wants->fd, wants->events, deadline));
    return parked(call, ops->wait_many(call, wants, n, deadline));
}

enum pp_outcome pp_park_until(int call, int64_t deadline)
{
    const struct pp_portal_ops *ops = portal_here();
    if (!ops)
        return PP_BLOCK;
    parking(call);
    return parked(call, ops->sleep_until(call, deadline));
}

bool pp_park_through(int call, int64_t deadline)
{
    const struct pp_portal_ops *ops = portal_here();
    if (!ops || !ops->sleep_through)
        return false;
    parking(call);
    return parked(call, ops->sleep_through(call, deadline)) != PP_BLOCK;
}

void pp_yield(int call)
{
    const struct pp_portal_ops *ops = portal_here();
    if (ops && ops->yield)
        ops->yield(call);
}

enum pp_outcome pp_offload(int call, void (*run)(void *), void (*drop)(void *), void *arg)
{
    const struct pp_portal_ops *ops = portal_here();
    if (!ops)
        return PP_BLOCK;
    parking(call);
    return parked(call, ops->offload(call, run, drop, arg));
}

void pp_tell_closing(int fd)
{
    const struct pp_portal_ops *ops = portal_here();
    if (ops)
        ops->fd_closing(fd);
}

static void in_fork_child(void)
{
    pp_gate = 0;
    pp_busy = 0;
    if (home)
        home = (pid_t)syscall(SYS_getpid);
    pp_forget_watches();
    pp_instant_reset();
    pp_pool_reset();
    pp_system_reset();
}

/* Runs before every other constructor (-z initfirst), so the environment is what the loader hands
 * over: libc's own copy is not there yet. */
__attribute__((constructor(101))) static void start(int argc, char **argv, char **environment)
{
    (void)argc;
    (void)argv;
    pp_resolve_all();
    pp_read_settings(environment);
    pp_find_streams();
    pthread_atfork(NULL, NULL, in_fork_child);
}
