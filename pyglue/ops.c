/* ops.c: the crossing: what the interposer's calls land on (portal_abi.h's operations).
 *
 * Called by libportalpatch.so from inside recv, poll, nanosleep ..., usually without the GIL (CPython
 * and well-behaved extensions release it around blocking calls), sometimes with it. Calls hub.c and
 * strand.c. Invariants: the GIL and errno are left as they were found; a cancelled wait is answered
 * with EINTR once, so that CPython's PEP 475 code raises the exception on the spot, and with
 * ECANCELED from then on, so that a C library which retries EINTR gives up too.
 */
#include "core.h"
#include "exceptions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A busy loop lets parked ones look for events this often: ns. */
#define YIELD_INTERVAL 50000

/* A wait on the fd that the strand waited on last tells the kernel nothing. Had the number been closed
 * and used again past our hooks (raw system calls), no event would ever come: so much later it is told
 * anew: ns. */
#define TELL_AGAIN 60000000

static unsigned char *select_calls; /* by enum pp_call: a loop's wait for events */
static PyObject *carrier;           /* class whose call returns the strand's pending exception */

int ops_call_is_select(int call)
{
    return call >= 0 && select_calls && select_calls[call];
}

struct crossing {
    Hub *hub;
    int had_gil;
    int saved_errno;
};

/* 0, or -1: this thread cannot park here. */
static int enter(struct crossing *crossing)
{
    crossing->saved_errno = errno;
    Hub *hub = crossing->hub = hub_get();
    if (!hub || !strand_may_park(hub)) {
        return -1;
    }
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *holder = PyThreadState_GetUnchecked();
#else
    PyThreadState *holder = _PyThreadState_UncheckedGet();
#endif
    crossing->had_gil = holder == hub->tstate;
#if PY_VERSION_HEX >= 0x030C0000
    if (holder && !crossing->had_gil) {
        return -1; /* a subinterpreter runs in this thread */
    }
#endif
    if (!crossing->had_gil) {
        PyEval_RestoreThread(hub->tstate);
    }
    return 0;
}

static void leave(struct crossing *crossing)
{
    if (!crossing->had_gil) {
        PyEval_SaveThread();
    }
    errno = crossing->saved_errno;
}

/* Arrange that the pending exception (or signal) is raised where the call returns to Python. */
static enum pp_outcome answer(Strand *strand, int fd, enum pp_outcome outcome)
{
    Hub *hub = strand->hub;
    if (outcome == PP_EINTR) {
        strand_rearm_signals(strand);
    }
    if (outcome != PP_CANCELED) {
        return outcome;
    }
    strand->refused_fd = fd;
    strand->refused_generation = pp_fd_generation(fd);
    strand->refused_frame = frame_executing(hub->tstate);
    if (strand->tripped) {
        return outcome;
    }
    strand->tripped = 1;
    canceled_arm(hub);
    if (hub->is_main_thread) {
        PyErr_SetInterruptEx(CANCEL_SIGNAL);
        return PP_EINTR;
    }
    if (carrier) {
        PyThreadState_SetAsyncExc(hub->tstate->thread_id, carrier);
    }
    return PP_CANCELED;
}

static enum pp_outcome wait_watching(Strand *strand, int call, int fd, unsigned events,
                                     int64_t deadline)
{
    FdWait *wait = &strand->fd_wait;
    /* A loop's own wait may be ended by PP_TIMEOUT at any time (portal_hosts.c), and is not prolonged. */
    int sure = hub_watch(wait, fd, events) || ops_call_is_select(call);
    int64_t until = sure ? PP_FOREVER : strand->hub->stats.run_began + TELL_AGAIN;
    enum pp_outcome outcome =
        strand_park(strand, call, fd, NULL, until < deadline ? until : deadline);
    hub_unwatch(wait);
    if (outcome != PP_TIMEOUT) {
        return outcome;
    }
    wait->io.fd = -1; /* the next wait tells */
    return until < deadline ? wait_watching(strand, call, fd, events, deadline) : outcome;
}

static enum pp_outcome op_wait_fd(int call, int fd, unsigned events, int64_t deadline)
{
    struct crossing crossing;
    if (enter(&crossing) < 0) {
        errno = crossing.saved_errno;
        return PP_BLOCK;
    }
    Strand *strand = crossing.hub->current;
    enum pp_outcome outcome;
    if (hub_start(crossing.hub) < 0) {
        PyErr_Clear();
        outcome = PP_BLOCK;
    } else {
        outcome = answer(strand, fd, wait_watching(strand, call, fd, events, deadline));
    }
    leave(&crossing);
    return outcome;
}

static enum pp_outcome op_wait_many(int call, const struct pp_want *wants, size_t n,
                                    int64_t deadline)
{
    if (n == 1) {
        return op_wait_fd(call, wants->fd, wants->events, deadline);
    }
    struct crossing crossing;
    if (enter(&crossing) < 0) {
        errno = crossing.saved_errno;
        return PP_BLOCK;
    }
    Strand *strand = crossing.hub->current;
    FdWait *waits = n ? calloc(n, sizeof *waits) : NULL;
    if ((n && !waits) || hub_start(crossing.hub) < 0) {
        PyErr_Clear();
        free(waits);
        leave(&crossing);
        return PP_BLOCK;
    }
    for (size_t i = 0; i < n; i++) {
        waits[i].strand = strand;
        waits[i].io.fd = -1;
        hub_watch(&waits[i], wants[i].fd, wants[i].events);
    }
    int fd = n ? wants[0].fd : -1;
    enum pp_outcome outcome = answer(strand, -1, strand_park(strand, call, fd, NULL, deadline));
    for (size_t i = 0; i < n; i++) {
        hub_unwatch(&waits[i]);
    }
    free(waits);
    leave(&crossing);
    return outcome;
}

static enum pp_outcome op_sleep_until(int call, int64_t deadline)
{
    return op_wait_many(call, NULL, 0, deadline);
}

static enum pp_outcome op_sleep_through(int call, int64_t deadline)
{
    struct crossing crossing;
    if (enter(&crossing) < 0) {
        errno = crossing.saved_errno;
        return PP_BLOCK;
    }
    Strand *strand = crossing.hub->current;
    PyObject *thrown = strand->thrown;
    strand->thrown = NULL;
    strand_rearm_signals(strand); /* deferred ones would end each park before it began */
    enum pp_outcome outcome = strand_park(strand, call, -1, NULL, deadline);
    if (thrown) {
        Py_XSETREF(strand->thrown, thrown);
    }
    leave(&crossing);
    return outcome;
}

/* Without the GIL unless there is something to do: loops ask at each turn. */
static void op_yield(int call)
{
    Hub *hub = hub_get();
    if (!hub || !strand_may_park(hub) || !hub->ev) {
        return;
    }
    int may_be_due = hub->fd_waits || hub->heap_len || hub->offloads_running || hub->mailbox;
    if (hub->ready_head || hub->computing ||
        (may_be_due && hub_now() - hub->last_poll >= YIELD_INTERVAL)) {
        op_wait_many(call, NULL, 0, 0);
    }
}

static enum pp_outcome op_offload(int call, void (*run)(void *), void (*drop)(void *), void *arg)
{
    struct crossing crossing;
    if (enter(&crossing) < 0) {
        errno = crossing.saved_errno;
        return PP_BLOCK;
    }
    Strand *strand = crossing.hub->current;
    enum pp_outcome outcome = answer(strand, -1, hub_offload(call, run, drop, arg, 0));
    leave(&crossing);
    return outcome;
}

static void op_fd_closing(int fd)
{
    /* Any OS thread of the process. One without a Python state cannot hold the GIL. */
    int saved_errno = errno;
    PyGILState_STATE gil = PyGILState_Ensure();
    hub_fd_closing(fd);
    PyGILState_Release(gil);
    errno = saved_errno;
}

/* ---- offload of Python calls --------------------------------------------------------------------- */

struct python_call {
    PyObject *function, *result, *exception;
};

/* On a native worker. */
static void run_python_call(void *arg)
{
    struct python_call *call = arg;
    PythonEntry entry;
    if (python_enter(&entry) < 0) {
        return; /* nobody waits for it any more */
    }
    call->result = PyObject_CallNoArgs(call->function);
    if (!call->result) {
        call->exception = exception_take();
    }
    python_leave(&entry);
}

static void free_python_call(struct python_call *call)
{
    Py_XDECREF(call->function);
    Py_XDECREF(call->result);
    Py_XDECREF(call->exception);
    free(call);
}

static void drop_python_call(void *arg)
{
    PythonEntry entry;
    if (python_enter(&entry) == 0) {
        free_python_call(arg);
        python_leave(&entry);
    }
}

static PyObject *offload(PyObject *module, PyObject *function)
{
    (void)module;
    Strand *strand = strand_current();
    if (!strand || python_is_ending()) {
        return PyObject_CallNoArgs(function);
    }
    struct python_call *call = calloc(1, sizeof *call);
    if (!call) {
        return PyErr_NoMemory();
    }
    Py_INCREF(function);
    call->function = function;
    enum pp_outcome outcome = hub_offload(PARK_OFFLOAD, run_python_call, drop_python_call, call, 1);
    if (outcome == PP_BLOCK) {
        free_python_call(call);
        return PyObject_CallNoArgs(function);
    }
    if (outcome != PP_READY) { /* given up: the worker drops it */
        if (!PyErr_Occurred() && strand_check(strand) == 0) {
            PyErr_SetString(PyExc_RuntimeError, "an offloaded call was abandoned");
        }
        return NULL;
    }
    PyObject *result = call->result;
    call->result = NULL;
    if (!result) {
        exception_give(call->exception);
        call->exception = NULL;
    }
    free_python_call(call);
    return result;
}

static const struct pp_portal_ops portal_ops = {
    .version = PP_ABI_VERSION,
    .size = sizeof portal_ops,
    .wait_fd = op_wait_fd,
    .wait_many = op_wait_many,
    .sleep_until = op_sleep_until,
    .offload = op_offload,
    .fd_closing = op_fd_closing,
    .yield = op_yield,
    .sleep_through = op_sleep_through,
};

/* ---- Python functions --------------------------------------------------------------------------- */

static PyObject *start(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_ensure();
    if (!hub) {
        return NULL;
    }
    if (pp_install_portal(&portal_ops) < 0 || pp_attach() < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    hub_set_primary(hub);
    canceled_start();
    hub_open_gate(hub);
    Py_RETURN_NONE;
}

static PyObject *close_gates(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    stalls_stop();
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        hub->gate_open = 0;
        *hub->gate = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *open_gate(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_ensure();
    if (!hub) {
        return NULL;
    }
    hub_open_gate(hub);
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *module, PyObject *unused)
{
    Py_DECREF(close_gates(module, unused));
    hub_set_primary(NULL);
    canceled_stop();
    if (pp_detach() < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* The collector may run between the wait and the C code's look for signals, and from 3.12 on in that: what
 * it calls would be told of the exception, which is ignored there. (Unless that itself waited.) */
static int is_in_finalizer(Hub *hub)
{
    return hub->current->refused_frame != frame_executing(hub->tstate) && python_is_collecting();
}

static PyObject *raise_thrown(PyObject *module, PyObject *args)
{
    (void)module;
    Hub *hub = hub_get();
    if (hub && hub->due_signals && signals_run_due(hub, args) < 0) {
        if (hub->due_signals || hub->current->thrown) {
            PyErr_SetInterruptEx(CANCEL_SIGNAL);
        }
        return NULL;
    }
    if (hub && !hub->polling && hub->current->thrown &&
        (hub->tstate->tracing || is_in_finalizer(hub))) {
        PyErr_SetInterruptEx(CANCEL_SIGNAL); /* a tracer that raises is a tracer lost: after it */
        Py_RETURN_NONE;
    }
    if (hub && !hub->polling && hub->current->thrown) {
        PyObject *exception = hub->current->thrown;
        hub->current->thrown = NULL;
        hub->current->tripped = 0;
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *take_thrown(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_get();
    PyObject *exception = hub ? hub->current->thrown : NULL;
    if (!exception) {
        Py_RETURN_NONE;
    }
    hub->current->thrown = NULL;
    hub->current->tripped = 0;
    return exception;
}

static PyObject *set_carrier(PyObject *module, PyObject *class)
{
    (void)module;
    Py_INCREF(class);
    Py_XSETREF(carrier, class);
    Py_RETURN_NONE;
}

static PyObject *native_enter(PyObject *module, PyObject *delta)
{
    (void)module;
    long by = PyLong_AsLong(delta);
    Hub *hub = hub_get();
    if (hub) {
        hub->current->native_depth += (int)by;
        strand_make_current(hub, hub->current);
    }
    Py_RETURN_NONE;
}

static int put(PyObject *dict, const char *name, PyObject *value)
{
    int failed = !value || PyDict_SetItemString(dict, name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

static PyObject *statistics(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    struct hub_statistics sum;
    memset(&sum, 0, sizeof sum);
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        sum.switches += hub->stats.switches;
        sum.direct_resumes += hub->stats.direct_resumes;
        sum.task_resumes += hub->stats.task_resumes;
        sum.offloads += hub->stats.offloads;
        sum.green_threads += hub->stats.green_threads;
        sum.portals += hub->stats.portals;
        sum.lock_waits += hub->stats.lock_waits;
        if (hub->stats.longest_run > sum.longest_run) {
            sum.longest_run = hub->stats.longest_run;
        }
    }
    PyObject *dict = PyDict_New(), *waits = PyDict_New(), *passed = PyDict_New(),
             *blocked = PyDict_New();
    const struct pp_call_stats *calls = pp_call_statistics();
    struct pp_attach_report attached;
    pp_attach_statistics(&attached);
    int failed = !dict || !waits || !passed || !blocked;
    for (int call = 0; !failed && call < pp_call_count(); call++) {
        if (calls[call].parked) {
            failed |=
                put(waits, pp_call_name(call), PyLong_FromUnsignedLongLong(calls[call].parked));
        }
        if (calls[call].passed) {
            failed |=
                put(passed, pp_call_name(call), PyLong_FromUnsignedLongLong(calls[call].passed));
        }
    }
    if (!failed && sum.lock_waits) {
        failed |= put(waits, "lock", PyLong_FromUnsignedLongLong(sum.lock_waits));
    }
    for (int call = 0; !failed && call < pp_call_count(); call++) {
        if (calls[call].blocked) {
            failed |=
                put(blocked, pp_call_name(call), PyLong_FromUnsignedLongLong(calls[call].blocked));
        }
    }
    if (!failed) {
        failed |= put(dict, "blocked_by_call", Py_NewRef(blocked));
        failed |= put(dict, "waits_by_call", Py_NewRef(waits));
        failed |= put(dict, "passed_by_call", Py_NewRef(passed));
        failed |= put(dict, "switches", PyLong_FromUnsignedLongLong(sum.switches));
        failed |= put(dict, "direct_resumes", PyLong_FromUnsignedLongLong(sum.direct_resumes));
        failed |= put(dict, "task_resumes", PyLong_FromUnsignedLongLong(sum.task_resumes));
        failed |= put(dict, "offloads", PyLong_FromUnsignedLongLong(sum.offloads));
        failed |=
            put(dict, "green_threads_started", PyLong_FromUnsignedLongLong(sum.green_threads));
        failed |= put(dict, "portals", PyLong_FromUnsignedLongLong(sum.portals));
        failed |= put(dict, "longest_run", PyFloat_FromDouble((double)sum.longest_run / 1e9));
        failed |= put(dict, "hooked_objects", PyLong_FromUnsignedLong(attached.objects));
        failed |= put(dict, "hooked_slots", PyLong_FromUnsignedLong(attached.slots));
        failed |= put(dict, "preloaded", PyBool_FromLong(pp_is_preloaded()));
    }
    Py_XDECREF(waits);
    Py_XDECREF(passed);
    Py_XDECREF(blocked);
    if (failed) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *guard_mutexes(PyObject *module, PyObject *names)
{
    (void)module;
    const char *text = PyUnicode_AsUTF8(names);
    if (!text) {
        return NULL;
    }
    return pp_guard_mutexes(text) < 0 ? PyErr_NoMemory() : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"guard_mutexes", guard_mutexes, METH_O,
     PyDoc_STR(
         "guard_mutexes($module, patterns, /)\n--\n\nBefore start(): libraries in which no call "
         "parks while a mutex is held.")},
    {"start", start, METH_NOARGS,
     PyDoc_STR("Install the portal, hook every loaded object, open this thread's gate.")},
    {"close_gates", close_gates, METH_NOARGS,
     PyDoc_STR("From now on every call really blocks: the interpreter is about to end.")},
    {"open_gate", open_gate, METH_NOARGS,
     PyDoc_STR("Give this OS thread a hub and open its gate.")},
    {"stop", stop, METH_NOARGS, PyDoc_STR("Close every gate and restore every hooked slot.")},
    {"offload", offload, METH_O,
     PyDoc_STR("Call function() on a native worker while this strand is parked.")},
    {"raise_thrown", raise_thrown, METH_VARARGS,
     PyDoc_STR("Signal handler that raises the current strand's pending exception.")},
    {"take_thrown", take_thrown, METH_NOARGS, NULL},
    {"set_carrier", set_carrier, METH_O, NULL},
    {"native_enter", native_enter, METH_O,
     PyDoc_STR("Add to the current strand's native() depth.")},
    {"statistics", statistics, METH_NOARGS, PyDoc_STR("Counters as a dict.")},
    {NULL, NULL, 0, NULL}};

int ops_exec(PyObject *module)
{
    int count = pp_call_count();
    select_calls = calloc((size_t)count + 1, 1);
    if (!select_calls) {
        PyErr_NoMemory();
        return -1;
    }
    for (int call = 0; call < count; call++) {
        select_calls[call] = strncmp(pp_call_name(call), "epoll_", 6) == 0;
    }
    if (PyModule_AddIntConstant(module, "CANCEL_SIGNAL", CANCEL_SIGNAL) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
