/* process_calls.c: wait and its relatives, system, pclose.
 *
 * exports.c calls pp_x while the gate is open. A wait is libc's own with WNOHANG, a park on pidfds,
 * and the same again: the kernel alone decides who is waited for and reaps it. What no pidfd
 * tells (a stop or continue, a child made meanwhile) is looked for at growing intervals.
 * Invariant: nothing is reaped but by the call the caller made.
 */
#include "interpose.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define MOST_CHILDREN 64 /* watched at once; the others are looked for */

extern char **environ;

static int open_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* What one call waits for. */
struct wait_state {
    int call;
    pid_t pid;       /* one child, or <= 0: several */
    bool exits_only; /* not for a stop or continue */
    int pidfd;       /* of the one child, or -1 */
    bool owned;      /* pidfd is ours to close */
    unsigned rounds;
};

/* ---- several children -------------------------------------------------------------------------- */

/* The file lists what the thread of that directory has forked. Those that have ended already are not
 * what the call waits for, or it would be over. */
static size_t add_children(int tasks, const char *task, struct pp_want *wants, size_t n)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "%.40s/children", task);
    int fd = openat(tasks, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return n;
    ssize_t used = real_read(fd, text, sizeof text - 1);
    pp_close(fd);
    text[used > 0 ? used : 0] = '\0';
    char *next = text, *end;
    for (long pid; n < MOST_CHILDREN && (pid = strtol(next, &end, 10), end != next); next = end) {
        struct pollfd p = {.fd = open_pidfd((pid_t)pid), .events = POLLIN};
        if (p.fd >= 0 && real_poll(&p, 1, 0) == 0)
            wants[n++] = (struct pp_want){.fd = p.fd, .events = PP_READ};
        else if (p.fd >= 0)
            pp_close(p.fd);
    }
    return n;
}

static size_t open_children(struct pp_want *wants)
{
    size_t n = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *task; tasks && (task = readdir(tasks));)
        if (task->d_name[0] != '.')
            n = add_children(dirfd(tasks), task->d_name, wants, n);
    if (tasks)
        closedir(tasks);
    return n;
}

/* ---- one park ------------------------------------------------------------------------------------- */

/* Until something may have happened: at once for an exit, within 64 ms for what no pidfd tells. */
static enum pp_turn wait_for_news(struct wait_state *w)
{
    struct pp_want wants[MOST_CHILDREN];
    size_t n = 0;
    if (w->pidfd >= 0)
        wants[n++] = (struct pp_want){.fd = w->pidfd, .events = PP_READ};
    else
        n = open_children(wants);
    int64_t look = w->pidfd >= 0 && w->exits_only ? PP_FOREVER : pp_after(1000000LL << w->rounds);
    if (w->rounds < 6)
        w->rounds++;
    enum pp_outcome outcome = pp_park_many(w->call, wants, n, look);
    for (size_t i = 0; w->pidfd < 0 && i < n; i++)
        pp_close(wants[i].fd);
    return pp_turn_of(outcome == PP_TIMEOUT ? PP_READY : outcome, EINTR);
}

static void begin(struct wait_state *w)
{
    if (w->pidfd < 0 && w->pid > 0) {
        w->pidfd = open_pidfd(w->pid);
        w->owned = w->pidfd >= 0;
    }
}

static void end(const struct wait_state *w)
{
    int saved = errno;
    if (w->owned)
        pp_close(w->pidfd);
    errno = saved;
}

/* ---- the calls ------------------------------------------------------------------------------------ */

static pid_t wait_parked(int call, pid_t pid, int *status, int options, struct rusage *usage)
{
    pid_t r = real_wait4(pid, status, options | WNOHANG, usage);
    if (r != 0 || (options & WNOHANG))
        return r;
    struct wait_state w = {
        .call = call, .pid = pid, .exits_only = !(options & (WUNTRACED | WCONTINUED)), .pidfd = -1};
    begin(&w);
    do {
        enum pp_turn turn = wait_for_news(&w);
        if (turn == PP_FAIL)
            r = -1;
        else
            r = real_wait4(pid, status, turn == PP_PLAIN ? options : options | WNOHANG, usage);
    } while (r == 0);
    end(&w);
    return r;
}

pid_t pp_wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
    return wait_parked(PP_CALL_wait4, pid, status, options, usage);
}

pid_t pp_wait3(int *status, int options, struct rusage *usage)
{
    return wait_parked(PP_CALL_wait3, -1, status, options, usage);
}

pid_t pp_waitpid(pid_t pid, int *status, int options)
{
    return wait_parked(PP_CALL_waitpid, pid, status, options, NULL);
}

pid_t pp_wait(int *status)
{
    return wait_parked(PP_CALL_wait, -1, status, 0, NULL);
}

int pp_waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
    siginfo_t unwanted;
    siginfo_t *seen = info ? info : &unwanted;
    int r = real_waitid(type, id, seen, options | WNOHANG);
    if (r < 0 || (options & WNOHANG) || seen->si_pid != 0)
        return r;
    struct wait_state w = {.call = PP_CALL_waitid,
                           .pid = type == P_PID ? (pid_t)id : -1,
                           .exits_only = !(options & (WSTOPPED | WCONTINUED)),
                           .pidfd = type == P_PIDFD ? (int)id : -1};
    if (type == P_PIDFD && pp_is_nonblocking((int)id))
        return real_waitid(type, id, info, options); /* its EAGAIN */
    begin(&w);
    do {
        enum pp_turn turn = wait_for_news(&w);
        if (turn == PP_FAIL)
            r = -1;
        else
            r = real_waitid(type, id, seen, turn == PP_PLAIN ? options : options | WNOHANG);
    } while (r == 0 && seen->si_pid == 0);
    end(&w);
    return r;
}

/* ---- system ---------------------------------------------------------------------------------------- */

/* SIGINT and SIGQUIT are ignored while any thread is in here, as POSIX wants. SIGCHLD is not blocked
 * as libc would: the thread's other work must go on. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static struct sigaction old_int, old_quit;

static void ignore_keys(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        sigaction(SIGINT, &ignore, &old_int);
        sigaction(SIGQUIT, &ignore, &old_quit);
    }
    pthread_mutex_unlock(&lock);
}

static void restore_keys(void)
{
    pthread_mutex_lock(&lock);
    if (--users == 0) {
        sigaction(SIGINT, &old_int, NULL);
        sigaction(SIGQUIT, &old_quit, NULL);
    }
    pthread_mutex_unlock(&lock);
}

void pp_system_reset(void)
{
    pthread_mutex_init(&lock, NULL);
    users = 0;
}

static int spawn_shell(const char *command, pid_t *pid)
{
    char *argv[] = {"sh", "-c", (char *)(uintptr_t)command, NULL};
    posix_spawnattr_t attr;
    sigset_t defaults;
    sigemptyset(&defaults);
    if (old_int.sa_handler != SIG_IGN)
        sigaddset(&defaults, SIGINT);
    if (old_quit.sa_handler != SIG_IGN)
        sigaddset(&defaults, SIGQUIT);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
    int error = posix_spawn(pid, "/bin/sh", NULL, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    return error;
}

int pp_system(const char *command)
{
    if (!command)
        return real_system(NULL);
    int status = 127 << 8; /* as if the shell had not been found by the child */
    pid_t pid;
    ignore_keys();
    int error = spawn_shell(command, &pid);
    while (error == 0 && wait_parked(PP_CALL_system, pid, &status, 0, NULL) < 0) {
        if (errno == EINTR)
            continue;
        error = errno;
        status = -1;
        if (error == ECANCELED) {
            kill(pid, SIGKILL);
            real_wait4(pid, NULL, 0, NULL);
        }
    }
    restore_keys();
    if (error)
        errno = error;
    return status;
}

/* ---- pclose ------------------------------------------------------------------------------------------ */

/* libc keeps the child's number to itself, and closes the pipe before it waits: all on a worker. */
struct pclose_job {
    FILE *file;
    int result;
    int error;
};

static void run_pclose(void *arg)
{
    struct pclose_job *job = arg;
    job->result = real_pclose(job->file);
    job->error = errno;
}

int pp_pclose(FILE *file)
{
    struct pclose_job *job = malloc(sizeof *job);
    if (!job)
        return real_pclose(file);
    *job = (struct pclose_job){.file = file};
    pp_note_closing(fileno(file));
    enum pp_turn turn = pp_turn_of(pp_offload(PP_CALL_pclose, run_pclose, free, job), EINTR);
    if (turn == PP_FAIL)
        return -1; /* the worker still closes it */
    int result = job->result, error = job->error;
    free(job);
    if (turn == PP_PLAIN)
        return real_pclose(file);
    errno = error;
    return result;
}
