/* c_portal.c: a portal in plain C, for tests: real waiting, no Python, no greenlets.
 *
 * Preloaded after libportalpatch.so; with PORTALPATCH_C_PORTAL=1 it installs itself, opens the gate
 * of every thread and of every fork child, and so sends any program through the whole parking path. It
 * waits with ppoll in the calling thread, by raw system calls: nothing here is interposed.
 * Invariant: the program cannot tell: a signal handler interrupts, or does not (SA_RESTART), just
 * what it would in the kernel's own blocking call.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "portal_abi.h"

#define OUT_OF_THE_WAY 200 /* our fds sit up here where they can: programs count on low numbers */

struct kernel_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

static int lift(int fd)
{
    int high = fd < 0 ? -1 : (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, OUT_OF_THE_WAY);
    if (high < 0)
        return fd;
    syscall(SYS_close, fd);
    return high;
}

/* ---- who waits on what, for fd_closing ------------------------------------------------------------ */

struct waiter {
    struct waiter *next;
    const struct pollfd *fds;
    size_t n;
    int wake; /* eventfd */
    _Atomic bool closed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct waiter *waiters;

static void fd_closing(int fd)
{
    int saved = errno;
    uint64_t one = 1;
    pthread_mutex_lock(&lock);
    for (struct waiter *w = waiters; w; w = w->next)
        for (size_t i = 0; i < w->n; i++)
            if (w->fds[i].fd == fd && !w->closed) {
                w->closed = true;
                syscall(SYS_write, w->wake, &one, sizeof one);
            }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void enroll(struct waiter *w)
{
    pthread_mutex_lock(&lock);
    w->next = waiters;
    waiters = w;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < w->n; i++)
        pp_fd_watch(w->fds[i].fd);
}

static void leave(struct waiter *w)
{
    for (size_t i = 0; i < w->n; i++)
        pp_fd_unwatch(w->fds[i].fd);
    pthread_mutex_lock(&lock);
    struct waiter **p = &waiters;
    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
    pthread_mutex_unlock(&lock);
}

/* ---- signals ------------------------------------------------------------------------------------ */

/* signal(7): calls that SA_RESTART never restarts, however long they may wait. */
static bool never_restarts(const char *call)
{
    static const char *const names[] = {"poll",         "select", "sleep",      "sigwaitinfo",
                                        "sigtimedwait", "pause",  "epoll_wait", "epoll_pwait"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strstr(call, names[i]))
            return true;
    return false;
}

/* Calls with a time limit are not restarted either. A socket's limit is its SO_RCVTIMEO or SO_SNDTIMEO: a
 * deadline may also mean that the interposer wants to look again. */
static bool is_timed(const struct pollfd *fds, size_t n, int64_t deadline)
{
    struct timeval limits[2] = {{0, 0}, {0, 0}};
    socklen_t len = sizeof *limits;
    if (n != 1 || getsockopt(fds->fd, SOL_SOCKET, SO_RCVTIMEO, &limits[0], &len) < 0 ||
        getsockopt(fds->fd, SOL_SOCKET, SO_SNDTIMEO, &limits[1], &len) < 0)
        return deadline != PP_FOREVER;
    const struct timeval *limit = &limits[fds->events & POLLIN ? 0 : 1];
    return limit->tv_sec || limit->tv_usec;
}

/* With all signals blocked: would letting in the pending ones interrupt this call? */
static bool interrupts(int call, bool timed, uint64_t old_mask)
{
    uint64_t pending = 0;
    bool answer = false;
    syscall(SYS_rt_sigpending, &pending, sizeof pending);
    for (int s = 1; s <= 64; s++) {
        struct kernel_sigaction action;
        if (!((pending & ~old_mask) >> (s - 1) & 1) ||
            syscall(SYS_rt_sigaction, s, NULL, &action, sizeof action.mask) < 0)
            continue;
        if (action.handler == SIG_IGN || action.handler == SIG_DFL)
            continue;
        if (!(action.flags & SA_RESTART) || timed || never_restarts(pp_call_name(call)))
            answer = true;
    }
    return answer;
}

/* ---- waiting ---------------------------------------------------------------------------------------- */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* fds has two places more than n. Signals are blocked and watched by a signalfd, so that none
 * slips in unseen between two looks; handlers run when the old mask is back. */
static enum pp_outcome wait_polled(int call, struct pollfd *fds, size_t n, int64_t deadline)
{
    int *gate = pp_gate_of_this_thread(), saved = errno;
    *gate = 0;
    uint64_t everything = ~(1ULL << (SIGKILL - 1) | 1ULL << (SIGSTOP - 1) | 0xfULL << 30), old;
    struct waiter w = {.fds = fds, .n = n, .wake = lift((int)syscall(SYS_eventfd2, 0, 0))};
    fds[n] = (struct pollfd){.fd = w.wake, .events = POLLIN};
    enroll(&w);
    enum pp_outcome outcome;
    for (;;) {
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &everything, &old, sizeof old);
        uint64_t seen = ~old;
        int sigfd = lift((int)syscall(SYS_signalfd4, -1, &seen, sizeof seen, 0));
        fds[n + 1] = (struct pollfd){.fd = sigfd, .events = POLLIN};
        int64_t left = deadline == PP_FOREVER ? 0 : deadline - now();
        struct timespec t = {.tv_sec = left > 0 ? left / 1000000000 : 0,
                             .tv_nsec = left > 0 ? left % 1000000000 : 0};
        long r =
            syscall(SYS_ppoll, fds, n + 2, deadline == PP_FOREVER ? NULL : &t, NULL, sizeof old);
        if (sigfd >= 0)
            syscall(SYS_close, sigfd);
        bool signaled = r > 0 && fds[n + 1].revents;
        bool ready = r > (signaled != 0) + (r > 0 && fds[n].revents != 0);
        bool stop = signaled && interrupts(call, is_timed(fds, n, deadline), old);
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof old); /* handlers run here */
        if (w.closed)
            outcome = PP_BADF;
        else if (ready)
            outcome = PP_READY;
        else if (stop)
            outcome = PP_EINTR;
        else if (r == 0)
            outcome = PP_TIMEOUT;
        else
            continue;
        break;
    }
    leave(&w);
    if (w.wake >= 0)
        syscall(SYS_close, w.wake);
    errno = saved;
    *gate = 1;
    return outcome;
}

static enum pp_outcome wait_many(int call, const struct pp_want *wants, size_t n, int64_t deadline)
{
    struct pollfd few[34], *fds = few;
    if (n + 2 > 34 && !(fds = malloc((n + 2) * sizeof *fds)))
        return PP_BLOCK;
    for (size_t i = 0; i < n; i++) {
        short events = (short)((wants[i].events & PP_READ ? POLLIN : 0) |
                               (wants[i].events & PP_WRITE ? POLLOUT : 0));
        fds[i] = (struct pollfd){.fd = wants[i].fd, .events = events};
    }
    enum pp_outcome outcome = wait_polled(call, fds, n, deadline);
    if (fds != few)
        free(fds);
    return outcome;
}

static enum pp_outcome wait_fd(int call, int fd, unsigned events, int64_t deadline)
{
    struct pp_want want = {.fd = fd, .events = events};
    return wait_many(call, &want, 1, deadline);
}

static enum pp_outcome sleep_until(int call, int64_t deadline)
{
    return wait_many(call, NULL, 0, deadline);
}

/* ---- offload --------------------------------------------------------------------------------------- */

static void tell(void *arg)
{
    uint64_t one = 1;
    syscall(SYS_write, (int)(intptr_t)arg, &one, sizeof one);
}

/* Handlers run meanwhile, but do not interrupt: what is offloaded restarts by itself in libc. With
 * PORTALPATCH_C_PORTAL_ABANDON set, every waiter gives up at once, to test that path. */
static enum pp_outcome offload(int call, void (*run)(void *), void (*drop)(void *), void *arg)
{
    if (getenv("PORTALPATCH_C_PORTAL_ABANDON"))
        return pp_pool_submit(run, arg, drop, arg) == 0 ? PP_CANCELED : PP_BLOCK;
    int event = lift((int)syscall(SYS_eventfd2, 0, 0));
    if (event < 0)
        return PP_BLOCK;
    enum pp_outcome outcome = PP_BLOCK;
    if (pp_pool_submit(run, arg, tell, (void *)(intptr_t)event) == 0)
        while ((outcome = wait_fd(call, event, PP_READ, PP_FOREVER)) != PP_READY)
            ;
    syscall(SYS_close, event);
    return outcome;
}

/* ---- switching it on -------------------------------------------------------------------------------- */

static bool on;

static void open_gate(void)
{
    *pp_gate_of_this_thread() = 1;
}

static void in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    waiters = NULL;
    open_gate();
}

struct thread_start {
    void *(*run)(void *);
    void *arg;
};

static void *run_thread(void *arg)
{
    struct thread_start start = *(struct thread_start *)arg;
    free(arg);
    open_gate();
    return start.run(start.arg);
}

/* pool.c's workers take no signals. Who calls does not tell: a sanitizer may have stepped between. */
static bool starts_worker(void)
{
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    return sigismember(&blocked, SIGSEGV) == 1;
}

/* Every thread of the program may park; the library's own workers must not. */
__attribute__((visibility("default"))) int
pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    struct thread_start *start = on && !starts_worker() ? malloc(sizeof *start) : NULL;
    if (!start)
        return real(thread, attr, run, arg);
    *start = (struct thread_start){.run = run, .arg = arg};
    int error = real(thread, attr, run_thread, start);
    if (error)
        free(start);
    return error;
}

/* PORTALPATCH_C_PORTAL_OLD_KERNEL=1: preadv2 and pwritev2 know no RWF_NOWAIT, as with sockets, pipes and
 * eventfds on Linux before 6.4. Children inherit it. */
static void be_an_old_kernel(void)
{
#define RWF_NOWAIT_BIT 8
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_preadv2, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwritev2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, RWF_NOWAIT_BIT, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        abort();
}

__attribute__((constructor)) static void switch_on(void)
{
    static const struct pp_portal_ops ops = {.version = PP_ABI_VERSION,
                                             .size = sizeof ops,
                                             .wait_fd = wait_fd,
                                             .wait_many = wait_many,
                                             .sleep_until = sleep_until,
                                             .offload = offload,
                                             .fd_closing = fd_closing};
    const char *wanted = getenv("PORTALPATCH_C_PORTAL");
    if (!wanted || strcmp(wanted, "1") != 0 || pp_install_portal(&ops) < 0)
        return;
    if (getenv("PORTALPATCH_C_PORTAL_OLD_KERNEL"))
        be_an_old_kernel();
    on = true;
    pthread_atfork(NULL, NULL, in_child);
    open_gate();
}

/* PORTALPATCH_C_PORTAL_COUNTS names a file: each process that exits adds how many calls went without a
 * wait and with one, so that a test can tell that its program was in the parking path at all. */
__attribute__((destructor)) static void say_counts(void)
{
    const char *path = getenv("PORTALPATCH_C_PORTAL_COUNTS");
    int fd = on && path
                 ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0600)
                 : -1;
    if (fd < 0)
        return;
    const struct pp_call_stats *stats = pp_call_statistics();
    uint64_t passed = 0, parked = 0;
    for (int i = 0; i < pp_call_count(); i++)
        passed += stats[i].passed, parked += stats[i].parked;
    char line[64];
    int n = snprintf(line, sizeof line, "%llu %llu\n", (unsigned long long)passed,
                     (unsigned long long)parked);
    syscall(SYS_write, fd, line, (size_t)n);
    syscall(SYS_close, fd);
}
