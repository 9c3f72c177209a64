/* stalls.c: what an OS thread sleeps in, and the stall report where the GIL is held as well.
 *
 * The kernel says which system call a thread of this process is in, with its arguments (proc(5),
 * /proc/self/task/TID/syscall): true of every call, those that nobody can stand before as well. _reports.py
 * asks for its reports; where code that stalls keeps the GIL no Python thread can report, so a thread of
 * our own looks too: it writes what it can without the GIL and sends a signal, at which faulthandler
 * writes the Python stack. Invariant: that thread touches no Python object, and reads of the hub only
 * what is a plain number.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* ---- what a thread sleeps in --------------------------------------------------------------------- */

/* System calls that may wait, as the libc functions that make them; those of an fd first. */
static const struct {
    long number;
    const char *name;
    int of_fd;
} calls[] = {
    {SYS_read, "read", 1},
    {SYS_readv, "readv", 1},
    {SYS_write, "write", 1},
    {SYS_writev, "writev", 1},
    {SYS_recvfrom, "recv", 1},
    {SYS_recvmsg, "recvmsg", 1},
    {SYS_sendto, "send", 1},
    {SYS_sendmsg, "sendmsg", 1},
    {SYS_connect, "connect", 1},
    {SYS_accept, "accept", 1},
    {SYS_accept4, "accept4", 1},
    {SYS_epoll_pwait, "epoll_wait", 1},
    {SYS_flock, "flock", 1},
    {SYS_fcntl, "fcntl", 1},
    {SYS_fsync, "fsync", 1},
    {SYS_fdatasync, "fdatasync", 1},
    {SYS_sendfile, "sendfile", 1},
    {SYS_ppoll, "poll", 0},
    {SYS_pselect6, "select", 0},
#ifdef SYS_poll /* the older ones, where the machine has them */
    {SYS_poll, "poll", 0},
    {SYS_select, "select", 0},
    {SYS_pause, "pause", 0},
    {SYS_epoll_wait, "epoll_wait", 1},
#endif
    {SYS_nanosleep, "nanosleep", 0},
    {SYS_clock_nanosleep, "clock_nanosleep", 0},
    {SYS_wait4, "waitpid", 0},
    {SYS_waitid, "waitid", 0},
    {SYS_rt_sigtimedwait, "sigtimedwait", 0},
    {SYS_openat, "open", 0},
};

/* glibc's pthread_mutex_t begins with: lock word, count, owner (its native thread id). */
static const char *describe_lock(pid_t thread, unsigned long address)
{
    int mutex[3];
    struct iovec here = {.iov_base = mutex, .iov_len = sizeof mutex};
    struct iovec there = {.iov_base = (void *)address, .iov_len = sizeof mutex};
    if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof mutex && mutex[0] &&
        mutex[2] == thread) {
        return "a mutex that this thread holds itself: some green thread or task is parked inside "
               "the library (see --mutex-guard)";
    }
    return "a lock";
}

struct native_call {
    char text[200];
    int fd;              /* of which it is, or -1 */
    unsigned long stack; /* where the thread's C stack is */
};

/* 1; 0: it runs, or the kernel does not say. Needs no GIL. */
static int describe(pid_t thread, struct native_call *call)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)thread);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, line, sizeof line - 1);
    if (file >= 0) {
        close(file);
    }
    line[n > 0 ? n : 0] = 0;
    long number;
    unsigned long first;
    if (sscanf(line, "%ld %lx %*x %*x %*x %*x %*x %lx", &number, &first, &call->stack) != 3 ||
        number < 0) {
        return 0;
    }
    call->fd = -1;
    if (number == SYS_futex) {
        snprintf(call->text, sizeof call->text, "%s", describe_lock(thread, first));
        return 1;
    }
    snprintf(call->text, sizeof call->text, "system call %ld", number);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (calls[i].number == number) {
            call->fd = calls[i].of_fd ? (int)first : -1;
            snprintf(call->text, sizeof call->text, call->fd >= 0 ? "%s on fd %d" : "%s",
                     calls[i].name, call->fd);
            break;
        }
    }
    return 1;
}

static PyObject *native_call(PyObject *Py_UNUSED(module), PyObject *thread)
{
    struct native_call call;
    long id = PyLong_AsLong(thread);
    if (id == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!describe((pid_t)id, &call)) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("sik", call.text, call.fd, call.stack);
}

/* ---- with the GIL held --------------------------------------------------------------------------- */

static _Atomic int64_t limit;    /* ns; 0: nobody is to watch */
static _Atomic int64_t asked_at; /* when the Python watchdog last had the GIL */
static int report_signal;
static pid_t watcher_pid; /* the process whose watcher runs */

static int64_t last_wait_of(Hub *hub)
{
    return __atomic_load_n(&hub->stats.last_wait, __ATOMIC_RELAXED);
}

static void report(Hub *hub, int64_t stalled)
{
    struct native_call call;
    char line[400];
    int blocked = describe(hub->pid, &call);
    int n = snprintf(
        line, sizeof line, "portalpatch: stall: no wait for %.3f s, %s%s, with the GIL held:\n",
        (double)stalled / 1e9, blocked ? "blocked in " : "running", blocked ? call.text : "");
    ssize_t ignored = write(2, line, (size_t)n);
    (void)ignored;
    syscall(SYS_tgkill, getpid(), hub->pid, report_signal);
}

static void *watch(void *Py_UNUSED(unused))
{
    int64_t told = 0, every;
    while ((every = limit / 4) > 0) {
        struct timespec pause = {.tv_sec = every / 1000000000, .tv_nsec = every % 1000000000};
        nanosleep(&pause, NULL);
        Hub *hub = hub_primary();
        if (!hub || !hub->is_main_thread || hub->polling || !limit) {
            continue;
        }
        int64_t now = hub_now(), since = last_wait_of(hub);
        /* The Python watchdog comes first: it has had its chance, for a whole limit. */
        if (now - since >= 2 * limit && now - asked_at >= limit && since != told) {
            told = since;
            report(hub, now - since);
        }
    }
    return NULL;
}

void stalls_stop(void)
{
    limit = 0;
}

void stalls_asked(void)
{
    asked_at = hub_now();
}

static PyObject *watch_stalls(PyObject *Py_UNUSED(module), PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "di", &seconds, &report_signal)) {
        return NULL;
    }
    limit = (int64_t)(seconds * 1e9);
    stalls_asked();
    if (!limit || watcher_pid == getpid()) {
        Py_RETURN_NONE; /* to be ended, or still there */
    }
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_detach(thread);
    watcher_pid = getpid();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"native_call", native_call, METH_O,
     PyDoc_STR(
         "native_call($module, thread, /)\n--\n\n(what the OS thread of that native id sleeps "
         "in, the fd or -1, its stack pointer); None: it runs.")},
    {"watch_stalls", watch_stalls, METH_VARARGS,
     PyDoc_STR("watch_stalls($module, seconds, signal, /)\n--\n\nReport stalls with the GIL held; "
               "0: no more.")},
    {NULL, NULL, 0, NULL}};

int stalls_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
