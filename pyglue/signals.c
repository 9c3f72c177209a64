/* signals.c: Python signal handlers run in the main line of control only, masks are a thread's own.
 *
 * CPython runs handlers in whatever Python code its main OS thread executes: a green thread's as
 * well. So signal.signal(), exchanged in place by swaps.c, installs a gate around a callable
 * handler; the gate calls it in the main strand (or a task of its loop), and elsewhere interrupts
 * the main strand's wait and raises the signal again there. Where the main strand is a loop that has
 * nothing to do, natively the thread would be blocked inside the call of a task: that task's wait is
 * interrupted then, and what the handler raises is raised there. Invariants: signal.signal() and
 * getsignal() speak of the user's handlers, never of gates; a gate adds no frame to tracebacks.
 */
#include "swaps.h"

#include <signal.h>
#include <stddef.h>
#include <structmember.h>

typedef PyObject *(*FastFunction)(PyObject *, PyObject *const *, Py_ssize_t);

static PyTypeObject *gate_type;
static PyObject *raise_thrown; /* ops.c's own handler */
static PyObject *default_int_handler;
static PyObject *signal_module;
static FastFunction native_signal;
static PyCFunction native_getsignal;

typedef struct {
    PyObject_HEAD PyObject *handler;
} Gate;

static PyObject *gate_new(PyObject *handler)
{
    Gate *self = PyObject_GC_New(Gate, gate_type);
    if (self) {
        Py_INCREF(handler);
        self->handler = handler;
        PyObject_GC_Track(self);
    }
    return (PyObject *)self;
}

static int gate_traverse(Gate *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->handler);
    return 0;
}

static int gate_clear(Gate *self)
{
    Py_CLEAR(self->handler);
    return 0;
}

static void gate_dealloc(Gate *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->handler);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Woken, and not in its own frames yet: a resume may run Python code (Trio's next_deadline()). */
static int is_on_its_way(Strand *taker)
{
    return taker && taker->outcome == PP_EINTR &&
           (taker->state == STRAND_READY || taker == taker->hub->current);
}

/* Parked in a task of the loop that the main strand runs. */
static int is_blocked(Hub *hub, Strand *task)
{
    return task->state == STRAND_PARKED && task->locals_owner == &hub->main &&
           (!task->loop || task->loop == hub->main.loop);
}

int signals_taken_by(Strand *strand)
{
    Hub *hub = strand->hub;
    Strand *taker = hub->signal_taker;
    int is_waited_for = is_on_its_way(taker) || (taker && is_blocked(hub, taker));
    return taker == strand || (strand->kind == STRAND_MAIN && !is_waited_for);
}

/* The task of the main strand's loop that is parked the longest: the one that natively would not have let
 * the others go on. One that runs a loop of its own only if there is no other. NULL: none. */
static Strand *blocked_task(Hub *hub)
{
    Strand *found = NULL, *looping = NULL;
    if (hub->main.state != STRAND_PARKED ||
        (hub->main.wait_call != PARK_LOOP && !hub->main.wait_is_select)) {
        return NULL;
    }
    for (Strand *strand = hub->parked_tasks; strand; strand = strand->all_next) {
        if (is_blocked(hub, strand)) {
            *(strand->wait_is_select ? &looping : &found) = strand;
        }
    }
    return found ? found : looping;
}

void signals_interrupt(Hub *hub)
{
    if (is_on_its_way(hub->signal_taker)) {
        return;
    }
    Strand *task = hub->signal_taker = blocked_task(hub);
    strand_wake(task ? task : &hub->main, PP_EINTR);
}

/* May user code run now that belongs in the main line of control? A task that was woken for it goes first. */
static int in_main_line(Hub *hub)
{
    return !hub || (!hub->polling && hub->current->locals_owner == &hub->main &&
                    !is_on_its_way(hub->signal_taker));
}

static PyObject *gate_call(Gate *self, PyObject *args, PyObject *kwargs)
{
    Hub *hub = hub_get();
    if (in_main_line(hub)) {
        return PyObject_Call(self->handler, args, kwargs);
    }
    long number = PyTuple_GET_SIZE(args) ? PyLong_AsLong(PyTuple_GET_ITEM(args, 0)) : 0;
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (number >= 1 && number <= 64) {
        hub->deferred_signals |= 1ull << (number - 1);
        signals_interrupt(hub);
    }
    Py_RETURN_NONE;
}

/* Not by tripping the signals themselves: that writes their numbers to signal.set_wakeup_fd()'s fd a
 * second time, and asyncio would run its handlers twice. */
void signals_make_due(Hub *hub, uint64_t signals)
{
    hub->due_signals |= signals;
    PyErr_SetInterruptEx(CANCEL_SIGNAL);
}

/* All that is due is Ctrl-C, and natively it would end the loop. */
static int is_plain_interrupt(Hub *hub)
{
    PyObject *number = PyLong_FromLong(SIGINT);
    PyObject *gate = number ? native_getsignal(signal_module, number) : NULL;
    int is_plain = gate && Py_IS_TYPE(gate, gate_type) &&
                   ((Gate *)gate)->handler == default_int_handler &&
                   hub->deferred_signals == 1ull << (SIGINT - 1);
    Py_XDECREF(gate);
    Py_XDECREF(number);
    PyErr_Clear();
    return is_plain;
}

/* C code that was interrupted (libpq, say) waits on. Natively the handlers run when it comes back to Python:
 * to wake it again would only keep it busy. But the loop need not wait for a task that has them, unless
 * all it would get is a KeyboardInterrupt that belongs there. */
void signals_put_off(Hub *hub)
{
    Strand *task = hub->due_taker;
    hub->deferred_signals |= hub->due_signals;
    hub->due_signals = 0;
    if (!task || is_on_its_way(hub->signal_taker)) {
        return;
    }
    hub->signal_taker = is_blocked(hub, task) && is_plain_interrupt(hub) ? task : NULL;
    if (!hub->signal_taker) {
        strand_wake(&hub->main, PP_EINTR);
    }
}

int signals_run_due(Hub *hub, PyObject *args)
{
    PyObject *frame = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : Py_None;
    if (!in_main_line(hub)) {
        signals_put_off(hub);
        return 0;
    }
    while (hub->due_signals) {
        int number = __builtin_ctzll(hub->due_signals) + 1;
        hub->due_signals &= hub->due_signals - 1;
        PyObject *signum = PyLong_FromLong(number);
        PyObject *gate = signum ? native_getsignal(signal_module, signum) : NULL;
        PyObject *result = gate;
        if (gate && PyCallable_Check(gate)) {
            result = PyObject_CallFunctionObjArgs(gate, signum, frame, NULL);
            Py_DECREF(gate);
        }
        Py_XDECREF(signum);
        if (!result) {
            return -1;
        }
        Py_DECREF(result);
    }
    return 0;
}

static PyType_Slot gate_slots[] = {
    {Py_tp_dealloc, gate_dealloc},
    {Py_tp_traverse, gate_traverse},
    {Py_tp_clear, gate_clear},
    {Py_tp_call, gate_call},
    {0, NULL},
};

static PyType_Spec gate_spec = {
    .name = "portalpatch._core._SignalGate",
    .basicsize = sizeof(Gate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = gate_slots,
};

/* Handlers of portalpatch's own signals: they belong in whatever strand runs, and are not shown. */
static int is_ours(PyObject *handler)
{
    return handler == raise_thrown || handler == preempt_handler();
}

/* What the user knows of a handler; steals and returns a reference. */
static PyObject *without_gate(PyObject *handler)
{
    PyObject *shown = handler;
    if (handler && Py_IS_TYPE(handler, gate_type)) {
        shown = ((Gate *)handler)->handler;
    } else if (handler && is_ours(handler)) {
        shown = PyLong_FromLong(0); /* SIG_DFL */
        Py_DECREF(handler);
        return shown;
    }
    if (shown != handler) {
        Py_INCREF(shown);
        Py_DECREF(handler);
    }
    return shown;
}

static int wants_gate(PyObject *handler)
{
    return PyCallable_Check(handler) && !is_ours(handler) && !Py_IS_TYPE(handler, gate_type);
}

/* Natively only the main thread may install handlers: that is how Trio finds out that it is the main one. */
static int is_refused(const char *function)
{
    Hub *hub = hub_get();
    if (!hub || hub->polling || hub->current->locals_owner == &hub->main ||
        !in_main_interpreter()) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s only works in main thread of the main interpreter",
                 function);
    return 1;
}

static PyObject *gated_signal(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs == 2 && PyLong_Check(args[0]) && !is_ours(args[1]) && is_refused("signal")) {
        return NULL;
    }
    if (nargs == 2 && PyLong_Check(args[0]) && args[1] != preempt_handler()) {
        preempt_stop((int)PyLong_AsLong(args[0]));
        PyErr_Clear();
    }
    if (nargs != 2 || !wants_gate(args[1]) || !in_main_interpreter()) {
        return without_gate(native_signal(module, args, nargs));
    }
    PyObject *gate = gate_new(args[1]);
    if (!gate) {
        return NULL;
    }
    PyObject *gated[] = {args[0], gate};
    PyObject *previous = without_gate(native_signal(module, gated, 2));
    Py_DECREF(gate);
    return previous;
}

static PyCFunction native_set_wakeup_fd;

#if PY_VERSION_HEX >= 0x030D0000
static PyObject *main_set_wakeup_fd(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *names)
{
    if (is_refused("set_wakeup_fd")) {
        return NULL;
    }
    return ((_PyCFunctionFastWithKeywords)(void (*)(void))native_set_wakeup_fd)(module, args, nargs,
                                                                                names);
}
enum { WAKEUP_FLAGS = METH_FASTCALL | METH_KEYWORDS };
#else
static PyObject *main_set_wakeup_fd(PyObject *module, PyObject *args, PyObject *kwargs)
{
    if (is_refused("set_wakeup_fd")) {
        return NULL;
    }
    return ((PyCFunctionWithKeywords)(void (*)(void))native_set_wakeup_fd)(module, args, kwargs);
}
enum { WAKEUP_FLAGS = METH_VARARGS | METH_KEYWORDS };
#endif

static PyObject *ungated_getsignal(PyObject *module, PyObject *number)
{
    return without_gate(native_getsignal(module, number));
}

/* ---- masks and pthread_kill of green threads ----------------------------------------------------- */

/* A green thread's signal mask is a matter between it and itself: handlers run in the main thread,
 * and the OS thread's real mask is the main thread's, or a helper thread that blocks all signals for
 * itself (multiprocessing's resource sharer) would block them for the program. */
typedef struct Mask {
    Strand *strand;
    PyObject *blocked; /* set of ints, owned */
    struct Mask *next;
} Mask;

static Mask *masks;
static FastFunction native_pthread_sigmask, native_pthread_kill;

static Mask **mask_link(Strand *strand)
{
    Mask **link = &masks;
    while (*link && (*link)->strand != strand) {
        link = &(*link)->next;
    }
    return link;
}

void signals_forget(Strand *strand)
{
    Mask **link = mask_link(strand), *mask = *link;
    if (mask) {
        *link = mask->next;
        Py_DECREF(mask->blocked);
        PyMem_Free(mask);
    }
}

static Mask *mask_ensure(PyObject *module, Strand *strand)
{
    Mask **link = mask_link(strand);
    if (*link) {
        return *link;
    }
    PyObject *nothing = PyTuple_New(0), *block = PyLong_FromLong(SIG_BLOCK);
    PyObject *args[] = {block, nothing};
    PyObject *blocked = nothing && block ? native_pthread_sigmask(module, args, 2) : NULL;
    Py_XDECREF(nothing);
    Py_XDECREF(block);
    Mask *mask = blocked ? PyMem_Malloc(sizeof *mask) : NULL;
    if (mask) {
        *mask = (Mask){.strand = strand, .blocked = blocked, .next = masks};
        masks = mask;
    } else {
        Py_XDECREF(blocked);
    }
    return mask;
}

/* The set of signal numbers in an iterable, or NULL with the exception of the native function: that
 * is asked to block what it refuses before it blocks anything. */
static PyObject *signal_set(PyObject *module, PyObject *signals)
{
    PyObject *set = PySet_New(signals), *iterator = set ? PyObject_GetIter(set) : NULL, *item;
    int valid = iterator != NULL;
    while (valid && (item = PyIter_Next(iterator))) {
        long number = PyLong_AsLong(item);
        valid = number >= 1 && number <= 64;
        Py_DECREF(item);
    }
    Py_XDECREF(iterator);
    if (!valid && set) {
        PyErr_Clear();
        PyObject *how = PyLong_FromLong(SIG_BLOCK), *args[] = {how, set};
        Py_XDECREF(how ? native_pthread_sigmask(module, args, 2) : NULL);
        Py_XDECREF(how);
        Py_CLEAR(set);
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "signal number out of range");
        }
    }
    return set;
}

static PyObject *green_pthread_sigmask(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Strand *strand = strand_current();
    long how = nargs == 2 && PyLong_Check(args[0]) ? PyLong_AsLong(args[0]) : -1;
    if (!strand || strand->kind != STRAND_GREEN ||
        (how != SIG_BLOCK && how != SIG_UNBLOCK && how != SIG_SETMASK)) {
        return native_pthread_sigmask(module, args, nargs);
    }
    Mask *mask = mask_ensure(module, strand);
    PyObject *given = mask ? signal_set(module, args[1]) : NULL;
    if (!given) {
        return NULL;
    }
    PyObject *after = how == SIG_BLOCK     ? PyNumber_Or(mask->blocked, given)
                      : how == SIG_UNBLOCK ? PyNumber_Subtract(mask->blocked, given)
                                           : Py_NewRef(given);
    Py_DECREF(given);
    if (!after) {
        return NULL;
    }
    PyObject *before = mask->blocked;
    mask->blocked = after;
    return before;
}

/* The ident of a green thread is no pthread_t: the OS thread that runs it gets the signal. */
static PyObject *green_pthread_kill(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    unsigned long ident = nargs == 2 && PyLong_Check(args[0]) ? PyLong_AsUnsignedLong(args[0]) : 0;
    PyErr_Clear();
    for (Hub *hub = ident ? hub_first() : NULL; hub; hub = hub_next(hub)) {
        for (Strand *strand = hub->green; strand; strand = strand->all_next) {
            if (strand->ident == ident) {
                PyObject *owner = PyLong_FromUnsignedLong(hub->main.ident);
                PyObject *real[] = {owner, args[1]};
                PyObject *result = owner ? native_pthread_kill(module, real, 2) : NULL;
                Py_XDECREF(owner);
                return result;
            }
        }
    }
    return native_pthread_kill(module, args, nargs);
}

static const Stand_in stand_ins[] = {
    {"_signal.pthread_sigmask", (PyCFunction)(void (*)(void))green_pthread_sigmask, METH_FASTCALL},
    {"_signal.pthread_kill", (PyCFunction)(void (*)(void))green_pthread_kill, METH_FASTCALL},
    {"_signal.signal", (PyCFunction)(void (*)(void))gated_signal, METH_FASTCALL},
    {"_signal.getsignal", ungated_getsignal, METH_O},
    {"_signal.set_wakeup_fd", (PyCFunction)(void (*)(void))main_set_wakeup_fd, WAKEUP_FLAGS},
    {NULL, NULL, 0},
};

PyDoc_STRVAR(gate_signals_doc, "gate_signals(on)\n--\n\n"
                               "Put gates around all handlers installed now, or take them away. "
                               "Only the main thread can.");

static PyObject *gate_signals(PyObject *Py_UNUSED(module), PyObject *on)
{
    int put = PyObject_IsTrue(on);
    for (long number = 1; put >= 0 && number <= 64; number++) {
        PyObject *signum = PyLong_FromLong(number);
        PyObject *handler = signum ? native_getsignal(signal_module, signum) : NULL;
        PyObject *other = NULL;
        if (handler && put && wants_gate(handler)) {
            other = gate_new(handler);
        } else if (handler && !put && Py_IS_TYPE(handler, gate_type)) {
            other = ((Gate *)handler)->handler;
            Py_INCREF(other);
        }
        if (other) {
            PyObject *args[] = {signum, other};
            PyObject *previous = native_signal(signal_module, args, 2);
            Py_XDECREF(previous);
        }
        Py_XDECREF(other);
        Py_XDECREF(handler);
        Py_XDECREF(signum);
        PyErr_Clear(); /* a number that is no signal, or not the main thread */
    }
    if (put < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"gate_signals", gate_signals, METH_O, gate_signals_doc},
    {NULL, NULL, 0, NULL},
};

int signals_exec(PyObject *module)
{
    if (!gate_type) {
        gate_type = (PyTypeObject *)PyType_FromSpec(&gate_spec);
        signal_module = PyImport_ImportModule("_signal");
        raise_thrown = PyObject_GetAttrString(module, "raise_thrown");
        default_int_handler =
            signal_module ? PyObject_GetAttrString(signal_module, "default_int_handler") : NULL;
        if (!gate_type || !default_int_handler || !raise_thrown) {
            return -1;
        }
        native_signal = (FastFunction)(void (*)(void))swaps_native(signal_module, "signal");
        native_getsignal = swaps_native(signal_module, "getsignal");
        native_set_wakeup_fd = swaps_native(signal_module, "set_wakeup_fd");
        native_pthread_sigmask =
            (FastFunction)(void (*)(void))swaps_native(signal_module, "pthread_sigmask");
        native_pthread_kill =
            (FastFunction)(void (*)(void))swaps_native(signal_module, "pthread_kill");
    }
    if (PyErr_Occurred() || swaps_announce(stand_ins) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
