/* preempt.c: a green thread that computes without ever waiting lets the others run now and then.
 *
 * Threads are promised progress; a loop like `while not done: pass` would starve every other green
 * thread for ever. A timer that counts the main OS thread's own CPU time sends it a signal; the C handler
 * asks, as a Python signal would, for `preempt` to be run between two bytecodes, and that yields.
 * Called by threads.c when the first green thread starts. Invariants: only green threads, and the
 * main program, are interrupted so; where they run an event loop, none of its tasks runs meanwhile
 * (strand_schedule sees to it): to a task nothing happens between its waits but what other threads
 * do, as natively. Tasks' portals are not interrupted; nothing happens while nobody else can run.
 */
#include "swaps.h"

#include <frameobject.h> /* PyFrame_GetBack in 3.10 */
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SLICE_NS = 5000000 }; /* time without a wait: what sys.getswitchinterval() is natively */

/* How often in a row a chance is passed up that may lie within a C function. */
enum { REFUSALS_MAX = 100 };

static int refusals;
static unsigned char gives_way[256]; /* by opcode: it looks for signals, and runs no C function */

static Hub *volatile watched;
static pid_t watching_pid; /* the process that has the timer */
static timer_t timer;
static PyObject *preempt_function;
static PyObject *import_lock_held; /* _imp.lock_held */

PyObject *preempt_handler(void)
{
    return preempt_function;
}

static int may_preempt(Hub *hub)
{
    Strand *strand = hub->current;
    return *hub->gate && (strand->kind == STRAND_GREEN ||
                          (strand->kind == STRAND_MAIN && (hub->green || strand->loop)));
}

/* SIGURG, as Go does for the same purpose: by default it is ignored, so a program that resets all
 * handlers, or the end of the interpreter, does not make it deadly. */
#define SLICE_SIGNAL SIGURG

/* The signal's handler: async-signal-safe, on the hub's own OS thread. */
static void slice_ended(int number)
{
    Hub *hub = watched;
    if (hub && hub->pid == watching_pid && may_preempt(hub) &&
        hub_now() - hub->stats.run_began >= SLICE_NS) {
        PyErr_SetInterruptEx(number);
    }
}

/* Is asyncio's loop in what it calls to wait, a selector that never does: neither in a callback nor in
 * bookkeeping of its own? Then tasks may run, as they may where a loop waits. */
static int loop_is_selecting(PyFrameObject *frame)
{
    int found = 0, selecting = 0;
    Py_XINCREF(frame);
    while (frame && !found) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        found = PyUnicode_CompareWithASCIIString(code->co_name, "_run_once") == 0;
        if (!found) { /* Handle._run() is what runs a callback */
            selecting = PyUnicode_CompareWithASCIIString(code->co_name, "_run") != 0;
        }
        Py_DECREF(code);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return found && selecting;
}

/* Did a jump or a function's begin ask for signals? C functions do so too, as _io's buffered objects with
 * their lock held, which take whoever runs next for its owner. */
static int is_between_bytecodes(PyObject *frame)
{
    int between = 0;
    PyObject *last = frame ? PyObject_GetAttrString(frame, "f_lasti") : NULL;
    PyObject *code = last ? PyObject_GetAttrString(frame, "f_code") : NULL;
    PyObject *bytes = code ? PyObject_GetAttrString(code, "co_code") : NULL;
    if (bytes && PyBytes_Check(bytes)) {
        Py_ssize_t at = PyLong_AsSsize_t(last);
        between = at < 0 || (at < PyBytes_GET_SIZE(bytes) &&
                             gives_way[(unsigned char)PyBytes_AS_STRING(bytes)[at]]);
    }
    PyErr_Clear();
    Py_XDECREF(last);
    Py_XDECREF(code);
    Py_XDECREF(bytes);
    return between;
}

/* Finders and importlib's own table of locks rely on the import lock, which CPython lets in whoever is of the
 * OS thread that has it. Nothing waits under it (but finders that do), so only a switch here could tell. */
static int is_under_import_lock(void)
{
    PyObject *held = import_lock_held ? PyObject_CallNoArgs(import_lock_held) : NULL;
    PyErr_Clear();
    Py_XDECREF(held);
    return held == Py_True;
}

static PyObject *preempt(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *frame = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : NULL;
    Strand *strand = strand_current();
    if (strand && strand->hub == watched && strand->hub->tstate == PyThreadState_Get() &&
        may_preempt(strand->hub) && !is_under_import_lock()) {
        if (refusals < REFUSALS_MAX && !is_between_bytecodes(frame)) {
            refusals++;
            PyErr_SetInterruptEx(SLICE_SIGNAL); /* at the next chance */
            Py_RETURN_NONE;
        }
        refusals = 0;
        strand->preempted = !(strand->loop && frame && PyFrame_Check(frame) &&
                              loop_is_selecting((PyFrameObject *)frame));
        strand->computes = 1;
        enum pp_outcome outcome = strand_yield(strand);
        strand->preempted = strand->computes = 0;
        if ((outcome == PP_EINTR || outcome == PP_CANCELED) && strand_check(strand) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef preempt_method = {"_preempt", preempt, METH_VARARGS, NULL};

static int find_import_lock(void)
{
    PyObject *module = PyImport_ImportModule("_imp");
    Py_XSETREF(import_lock_held, module ? PyObject_GetAttrString(module, "lock_held") : NULL);
    Py_XDECREF(module);
    return import_lock_held ? 0 : -1;
}

static int find_opcodes(void)
{
    PyObject *module = PyImport_ImportModule("opcode");
    PyObject *opcodes = module ? PyObject_GetAttrString(module, "opmap") : NULL;
    Py_XDECREF(module);
    if (!opcodes) {
        return -1;
    }
    PyObject *name, *number;
    for (Py_ssize_t at = 0; PyDict_Next(opcodes, &at, &name, &number);) {
        const char *text = PyUnicode_AsUTF8(name);
        long opcode = PyLong_AsLong(number);
        if (text && opcode >= 0 && opcode < 256) {
            gives_way[opcode] = strstr(text, "JUMP") || strcmp(text, "RESUME") == 0;
        }
    }
    Py_DECREF(opcodes);
    return PyErr_Occurred() ? -1 : 0;
}

int preempt_start(void)
{
    pid_t pid = getpid();
    if (watching_pid == pid || gettid() != pid) {
        return 0;
    }
    watching_pid = pid; /* one attempt: without a timer green threads are merely cooperative */
    watched = hub_get();
    int number = SLICE_SIGNAL;
    struct sigaction action = {.sa_handler = slice_ended, .sa_flags = SA_RESTART | SA_ONSTACK};
    struct sigaction before;
    if (!watched || sigaction(number, NULL, &before) < 0 ||
        (before.sa_handler != SIG_DFL && before.sa_handler != slice_ended)) {
        watched = NULL;
        return 0; /* the program uses this signal */
    }
    if (find_opcodes() < 0 || find_import_lock() < 0) {
        return -1;
    }
    PyObject *signals = PyImport_ImportModule("_signal");
    PyObject *previous =
        signals ? PyObject_CallMethod(signals, "signal", "iO", number, preempt_function) : NULL;
    Py_XDECREF(signals);
    if (!previous) {
        return -1;
    }
    Py_DECREF(previous);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number};
    event._sigev_un._tid = pid;
    struct itimerspec slice = {.it_value = {.tv_nsec = SLICE_NS},
                               .it_interval = {.tv_nsec = SLICE_NS}};
    if (sigaction(number, &action, NULL) < 0 ||
        timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) < 0) {
        watched = NULL;
        return 0;
    }
    timer_settime(timer, 0, &slice, NULL);
    return 0;
}

void preempt_stop(int number)
{
    if (number == SLICE_SIGNAL && watched && watching_pid == getpid()) {
        timer_delete(timer);
        signal(SLICE_SIGNAL, SIG_DFL);
        watched = NULL;
    }
}

static PyObject *stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    preempt_stop(SLICE_SIGNAL);
    watching_pid = 0;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"stop_preempting", stop, METH_NOARGS,
     PyDoc_STR("stop_preempting()\n--\n\nGreen threads run until they wait, from now on.")},
    {NULL, NULL, 0, NULL},
};

int preempt_exec(PyObject *module)
{
    if (!preempt_function) {
        preempt_function = PyCFunction_New(&preempt_method, NULL);
    }
    return preempt_function ? PyModule_AddFunctions(module, functions) : -1;
}
