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
#include <time.h>
#include <unistd.h>

enum { SLICE_NS = 5000000 }; /* time without a wait: what sys.getswitchinterval() is natively */

static Hub *volatile watched;
static pid_t watching_pid; /* the process that has the timer */
static timer_t timer;
static PyObject *preempt_function;

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

static PyObject *preempt(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *frame = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : NULL;
    Strand *strand = strand_current();
    if (strand && strand->hub == watched && strand->hub->tstate == PyThreadState_Get() &&
        may_preempt(strand->hub)) {
        strand->preempted = !(strand->loop && frame && PyFrame_Check(frame) &&
                              loop_is_selecting((PyFrameObject *)frame));
        enum pp_outcome outcome = strand_yield(strand);
        strand->preempted = 0;
        if ((outcome == PP_EINTR || outcome == PP_CANCELED) && strand_check(strand) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef preempt_method = {"_preempt", preempt, METH_VARARGS, NULL};

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
