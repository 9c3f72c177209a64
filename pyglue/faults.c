/* faults.c: faulthandler names green threads and shows their stacks.
 *
 * Its functions are exchanged in place by swaps.c. Where CPython's C handler of a signal writes a dump,
 * ours is called in its place: it calls CPython's, with the thread that executes under its own ident, and
 * then writes the stacks that CPython does not see (stack_dumps.c). Invariants: the handlers are
 * async-signal-safe, and no libc call parks in them; with no green thread the bytes are CPython's.
 */
#include "stack_dumps.h"
#include "swaps.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SIGNALS = 65 };

/* A signal whose handler of CPython's we stand before. */
static struct {
    struct sigaction native;
    int fd;
    int all_threads;
} watched[SIGNALS];

static const int fatal_signals[] = {SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSEGV};
enum { FATAL = sizeof fatal_signals / sizeof *fatal_signals };

/* ---- a dump ---------------------------------------------------------------------------------------- */

/* From here on what is written does not park, and the thread that executes has its own ident. Returns what
 * end_dump wants. */
static int begin_dump(Hub *hub)
{
    int gate = hub ? *hub->gate : 0;
    if (hub) {
        *hub->gate = 0;
    }
    stack_dumps_name_current(1);
    return gate;
}

/* CPython has written; fd: where the parked threads' stacks go; -1: nowhere. */
static void end_dump(Hub *hub, int gate, int fd)
{
    stack_dumps_name_current(0);
    if (fd >= 0) {
        stack_dumps_write_parked(fd);
    }
    if (hub) {
        *hub->gate = gate;
    }
}

/* ---- the handlers -------------------------------------------------------------------------------- */

static void call_native(int number, siginfo_t *info, void *context)
{
    struct sigaction *native = &watched[number].native;
    Hub *hub = hub_get();
    int gate = begin_dump(hub);
    if (native->sa_flags & SA_SIGINFO) {
        native->sa_sigaction(number, info, context);
    } else {
        native->sa_handler(number);
    }
    end_dump(hub, gate, watched[number].all_threads ? watched[number].fd : -1);
}

/* CPython's handler puts back what was there before it, writes, and raises the signal again, which ends
 * the program: not before we have written as well. */
static void fatal(int number, siginfo_t *info, void *context)
{
    sigset_t this_one, before;
    sigemptyset(&this_one);
    sigaddset(&this_one, number);
    pthread_sigmask(SIG_BLOCK, &this_one, &before);
    call_native(number, info, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void stand_before(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction ours = watched[number].native;
    ours.sa_flags |= SA_SIGINFO;
    ours.sa_sigaction = handler;
    sigaction(number, &ours, NULL);
}

static void asked(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    call_native(number, info, context);
    struct sigaction now; /* with chain=True CPython has installed its own handler again */
    if (sigaction(number, NULL, &now) == 0 && now.sa_handler == watched[number].native.sa_handler) {
        stand_before(number, asked);
    }
    errno = saved;
}

static void watch(int number, const struct sigaction *now, int fd, int all_threads)
{
    watched[number].fd = fd;
    watched[number].all_threads = all_threads;
    if (now->sa_sigaction != fatal && now->sa_sigaction != asked) {
        watched[number].native = *now;
    }
}

/* faulthandler is enabled: all fatal signals have one handler, but for those that the program took. */
static void watch_fatal(int fd, int all_threads)
{
    struct sigaction now[FATAL];
    for (int i = 0; i < FATAL; i++) {
        sigaction(fatal_signals[i], NULL, &now[i]);
    }
    for (int i = 0; i < FATAL; i++) {
        int same = 0;
        for (int k = 0; k < FATAL; k++) {
            same += now[k].sa_handler == now[i].sa_handler;
        }
        if (same > FATAL / 2 && now[i].sa_handler != SIG_DFL && now[i].sa_handler != SIG_IGN) {
            watch(fatal_signals[i], &now[i], fd, all_threads);
            stand_before(fatal_signals[i], fatal);
        }
    }
}

/* ---- the functions ------------------------------------------------------------------------------- */

static PyObject *native_call(PyObject *module, const char *name, PyObject *args, PyObject *kwargs)
{
    PyCFunction native = swaps_native(module, name);
    return native ? ((PyCFunctionWithKeywords)(void (*)(void))native)(module, args, kwargs) : NULL;
}

/* As faulthandler finds it, for what it has taken or is about to take. -1: no such thing, no exception. */
static int descriptor_of(PyObject *file)
{
    PyObject *number = NULL;
    if (!file || file == Py_None) {
        file = PySys_GetObject("stderr");
    }
    if (file && file != Py_None) {
        number = PyLong_Check(file) ? Py_NewRef(file) : PyObject_CallMethod(file, "fileno", NULL);
    }
    long fd = number && PyLong_Check(number) ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    PyErr_Clear();
    return fd >= 0 && fd <= 0x7fffffff ? (int)fd : -1;
}

static void flush_file(PyObject *file)
{
    if (!file || file == Py_None) {
        file = PySys_GetObject("stderr");
    }
    if (file && !PyLong_Check(file)) {
        Py_XDECREF(PyObject_CallMethod(file, "flush", NULL));
        PyErr_Clear();
    }
}

static PyObject *enable(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"file", "all_threads", "c_stack", NULL};
    PyObject *result = native_call(module, "enable", args, kwargs), *file = NULL;
    int all_threads = 1, unused = 0, fd;
    if (!result) {
        return NULL;
    }
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "|Oii", names, &file, &all_threads, &unused) &&
        (fd = descriptor_of(file)) >= 0) {
        watch_fatal(fd, all_threads);
    }
    PyErr_Clear();
    return result;
}

static PyObject *register_signal(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"signum", "file", "all_threads", "chain", NULL};
    PyObject *result = native_call(module, "register", args, kwargs), *file = NULL;
    int number, all_threads = 1, chain = 0, fd;
    struct sigaction now;
    if (!result) {
        return NULL;
    }
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "i|Oii", names, &number, &file, &all_threads,
                                    &chain) &&
        number > 0 && number < SIGNALS && (fd = descriptor_of(file)) >= 0 &&
        sigaction(number, NULL, &now) == 0) {
        watch(number, &now, fd, all_threads);
        stand_before(number, asked);
    }
    PyErr_Clear();
    return result;
}

static PyObject *dump_traceback(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"file", "all_threads", NULL};
    PyObject *file = NULL;
    int all_threads = 1, fd = -1;
    if (in_main_interpreter() && stack_dumps_needed() &&
        PyArg_ParseTupleAndKeywords(args, kwargs, "|Oi", names, &file, &all_threads) &&
        all_threads) {
        fd = descriptor_of(file);
    }
    PyErr_Clear();
    if (fd < 0) {
        return native_call(module, "dump_traceback", args, kwargs);
    }
    flush_file(file);
    PyObject *plain = Py_BuildValue("(ii)", fd, 1);
    if (!plain) {
        return NULL;
    }
    Hub *hub = hub_get();
    int gate = begin_dump(hub);
    PyObject *result = native_call(module, "dump_traceback", plain, NULL);
    end_dump(hub, gate, result ? fd : -1);
    Py_DECREF(plain);
    return result;
}

/* ---- dump_traceback_later() ------------------------------------------------------------------------- */

/* CPython's thread writes OS threads only, and nobody can stand before it: so a thread of our own writes
 * the whole. It never takes the GIL. */
static struct {
    pthread_t thread;
    pid_t pid;      /* the process it runs in; 0: none runs */
    PyObject *file; /* owned: keeps the fd open */
    int fd, repeat, exit, canceled;
    int64_t period; /* ns */
    char header[80];
    pthread_mutex_t lock;
    pthread_cond_t changed;
} later;

static void *write_later(void *unused)
{
    (void)unused;
    int64_t due = hub_now();
    pthread_mutex_lock(&later.lock);
    do {
        due += later.period;
        struct timespec until = {due / 1000000000, due % 1000000000};
        int outcome = 0;
        while (!later.canceled && outcome != ETIMEDOUT) {
            outcome = pthread_cond_timedwait(&later.changed, &later.lock, &until);
        }
        if (later.canceled) {
            break;
        }
        if (write(later.fd, later.header, strlen(later.header)) < 0) {
            break;
        }
        stack_dumps_write_all(later.fd);
        if (later.exit) {
            _exit(1);
        }
        due = hub_now();
    } while (later.repeat);
    pthread_mutex_unlock(&later.lock);
    return NULL;
}

static void cancel_later(void)
{
    if (later.pid == getpid()) {
        pthread_mutex_lock(&later.lock);
        later.canceled = 1;
        pthread_cond_signal(&later.changed);
        pthread_mutex_unlock(&later.lock);
        pthread_join(later.thread, NULL);
    }
    later.pid = 0;
    Py_CLEAR(later.file);
}

/* The interpreter ends, as this object does with it. */
static void cancel_at_end(PyObject *Py_UNUSED(capsule))
{
    cancel_later();
}

static int cancel_when_interpreter_ends(void)
{
    static const char name[] = "portalpatch._core.later";
    PyObject *kept = PyInterpreterState_GetDict(PyInterpreterState_Get());
    PyObject *capsule = kept ? PyCapsule_New(&later, name, cancel_at_end) : NULL;
    int result = capsule ? 0 : -1;
    if (capsule && !PyDict_GetItemString(kept, name)) {
        result = PyDict_SetItemString(kept, name, capsule);
    } else if (capsule) {
        PyCapsule_SetDestructor(capsule, NULL);
    }
    Py_XDECREF(capsule);
    return result;
}

static int start_later(void)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&later.changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&later.lock, NULL);
    sigset_t all, before; /* signals are for the program's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&later.thread, NULL, write_later, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) {
        later.pid = getpid();
    }
    return failed ? -1 : 0;
}

/* As faulthandler says it; rounded up to microseconds. */
static void format_period(int64_t period)
{
    unsigned long microseconds = (unsigned long)((period + 999) / 1000);
    unsigned long seconds = microseconds / 1000000, rest = microseconds % 1000000;
    int length = snprintf(later.header, sizeof later.header, "Timeout (%lu:%02lu:%02lu",
                          seconds / 3600, seconds / 60 % 60, seconds % 60);
    if (rest) {
        length +=
            snprintf(later.header + length, sizeof later.header - (size_t)length, ".%06lu", rest);
    }
    snprintf(later.header + length, sizeof later.header - (size_t)length, ")!\n");
}

static PyObject *cancel_native_later(PyObject *module)
{
    PyCFunction cancel = swaps_native(module, "cancel_dump_traceback_later");
    return cancel ? cancel(module, NULL) : NULL;
}

static PyObject *dump_traceback_later(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", "repeat", "file", "exit", NULL};
    PyObject *timeout, *file = NULL;
    int repeat = 0, ends = 0, fd = -1;
    double seconds = -1;
    if (in_main_interpreter() && PyArg_ParseTupleAndKeywords(args, kwargs, "O|iOi", names, &timeout,
                                                             &repeat, &file, &ends)) {
        seconds = PyFloat_AsDouble(timeout);
        fd = seconds > 0 && seconds < 1e6 ? descriptor_of(file) : -1;
    }
    PyErr_Clear();
    if (fd < 0) { /* wrong in some way, or for ever */
        return native_call(module, "dump_traceback_later", args, kwargs);
    }
    flush_file(file);
    PyObject *done = cancel_native_later(module);
    if (!done || cancel_when_interpreter_ends() < 0) {
        Py_XDECREF(done);
        return NULL;
    }
    cancel_later();
    double whole, rest = modf(seconds, &whole);
    later.period = (int64_t)whole * 1000000000 + (int64_t)ceil(rest * 1e9);
    format_period(later.period);
    later.fd = fd;
    later.repeat = repeat;
    later.exit = ends;
    later.canceled = 0;
    later.file = file ? file : PySys_GetObject("stderr");
    Py_XINCREF(later.file);
    if (start_later() < 0) {
        Py_DECREF(done);
        PyErr_SetString(PyExc_RuntimeError, "unable to start watchdog thread");
        return NULL;
    }
    return done;
}

static PyObject *cancel_dump_traceback_later(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    cancel_later();
    return cancel_native_later(module);
}

/* ---- turned on and off ------------------------------------------------------------------------------ */

static PyObject *watch_faults(PyObject *Py_UNUSED(core), PyObject *module)
{
    PyObject *enabled = PyObject_CallMethod(module, "is_enabled", NULL);
    if (enabled == Py_True) { /* by -X faulthandler: it writes to the fd of standard error */
        watch_fatal(STDERR_FILENO, 1);
    }
    Py_XDECREF(enabled);
    return enabled ? Py_NewRef(Py_None) : NULL;
}

static PyObject *unwatch_faults(PyObject *Py_UNUSED(core), PyObject *Py_UNUSED(ignored))
{
    cancel_later();
    for (int number = 1; number < SIGNALS; number++) {
        struct sigaction now;
        if (sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
            (now.sa_sigaction == fatal || now.sa_sigaction == asked)) {
            sigaction(number, &watched[number].native, NULL);
        }
    }
    Py_RETURN_NONE;
}

#define WITH_KEYWORDS(function) \
    (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static const Stand_in stand_ins[] = {
    {"faulthandler.enable", WITH_KEYWORDS(enable)},
    {"faulthandler.register", WITH_KEYWORDS(register_signal)},
    {"faulthandler.dump_traceback", WITH_KEYWORDS(dump_traceback)},
    {"faulthandler.dump_traceback_later", WITH_KEYWORDS(dump_traceback_later)},
    {"faulthandler.cancel_dump_traceback_later", cancel_dump_traceback_later, METH_NOARGS},
    {NULL, NULL, 0},
};

static PyMethodDef functions[] = {
    {"watch_faults", watch_faults, METH_O,
     PyDoc_STR(
         "watch_faults(faulthandler)\n--\n\nShow green threads where it is enabled already.")},
    {"unwatch_faults", unwatch_faults, METH_NOARGS,
     PyDoc_STR("unwatch_faults()\n--\n\nGive faulthandler its signals back.")},
    {NULL, NULL, 0, NULL},
};

int faults_exec(PyObject *module)
{
    return swaps_announce(stand_ins) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
