/* threads.c: the part of the _thread module that starts and names threads, made green.
 *
 * threading.Thread stands on these functions unchanged. Calls strand_spawn to run a green thread;
 * the calling OS thread runs it. A native thread (an executor's worker, a thread made by C code) goes
 * on to start native threads: a green one would run only while that one waits, and never again once
 * it has ended. Invariants: what CPython does as a thread state dies (release the sentinel lock, mark the
 * handle done) happens after the thread's own threading.local values have died, so a joiner sees
 * what it would natively; messages, audit events and signatures are those of this CPython.
 */
#include "locks.h"
#include "swaps.h"

#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

static PyTypeObject *ending_type;
static PyObject *native_start, *native_count; /* _thread's own functions */
static PyObject *native_start_joinable;       /* 3.13 */
static PyObject *native_shutdown;             /* 3.13 */
static PyTypeObject *native_handle_type;      /* 3.13 */
static PyCFunction native_functions[7];       /* see find_native_functions */
static PyObject *native_mark;                 /* "_portalpatch_native", see wants_native */
static long green_count;
static PyObject *empty_tuple;

/* ---- handles (used from 3.13 on) ------------------------------------------------------------------ */

enum handle_state { NOT_STARTED, STARTING, RUNNING, DONE };

typedef struct Handle {
    PyObject_HEAD unsigned long ident; /* valid from RUNNING on */
    enum handle_state state;
    char joined_at_shutdown; /* of a non-daemon thread */
    WaitQueue joiners;
    struct Handle *next, **pprev; /* in all_handles */
} Handle;

static PyTypeObject *handle_type;
static Handle *all_handles;

static void handle_set_done(Handle *self)
{
    self->state = DONE;
    waiters_grant_all(&self->joiners);
}

/* ---- the end of a thread ----------------------------------------------------------------------- */

/* Callable, called once the thread is over. A native thread calls it first to begin with. */
typedef struct Ending {
    PyObject_HEAD GreenLock
        *sentinel;  /* borrowed, cleared by the lock as it dies: what _set_sentinel gave */
    Handle *handle; /* owned, or NULL */
    PyObject *function, *args, *kwargs; /* owned; native only, until it runs */
} Ending;

static __thread Ending *native_ending; /* borrowed: of the native thread we started */

static Ending *ending_new(Handle *handle)
{
    Ending *self = PyObject_New(Ending, ending_type);
    if (self) {
        self->sentinel = NULL;
        Py_XINCREF(handle);
        self->handle = handle;
        self->function = self->args = self->kwargs = NULL;
    }
    return self;
}

static void ending_dealloc(Ending *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->sentinel) {
        self->sentinel->sentinel_of = NULL;
    }
    Py_XDECREF(self->handle);
    Py_XDECREF(self->function);
    Py_XDECREF(self->args);
    Py_XDECREF(self->kwargs);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static void ending_tell(Ending *self)
{
    GreenLock *sentinel = self->sentinel;
    if (sentinel) {
        self->sentinel = NULL;
        sentinel->sentinel_of = NULL;
        if (sentinel->locked) {
            lock_release(sentinel);
        }
    }
    if (self->handle) {
        handle_set_done(self->handle);
        Py_CLEAR(self->handle);
    }
}

void threads_report_exception(PyObject *function);

/* What CPython does with an exception that leaves a thread's function. */
void threads_report_exception(PyObject *function)
{
    if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        PyErr_Clear();
        return;
    }
#if BEFORE_313
    _PyErr_WriteUnraisableMsg("in thread started by", function);
#else
    PyErr_FormatUnraisable("Exception ignored in thread started by %R", function);
#endif
}

static void run_native_thread(Ending *self)
{
    native_ending = self;
    if (self->handle) {
        self->handle->ident = PyThread_get_thread_ident();
        self->handle->state = RUNNING;
    }
    PyObject *function = self->function;
    self->function = NULL;
    PyObject *result = PyObject_Call(function, self->args, self->kwargs);
    if (!result) {
        threads_report_exception(function);
    }
    Py_XDECREF(result);
    Py_DECREF(function);
    Py_CLEAR(self->args);
    Py_CLEAR(self->kwargs);
    native_ending = NULL;
}

static PyObject *ending_call(Ending *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    if (self->function) {
        run_native_thread(self);
    } else {
        green_count--;
    }
    ending_tell(self);
    Py_RETURN_NONE;
}

static PyType_Slot ending_slots[] = {
    {Py_tp_dealloc, ending_dealloc},
    {Py_tp_call, ending_call},
    {0, NULL},
};

static PyType_Spec ending_spec = {
    .name = "portalpatch._core._Ending",
    .basicsize = sizeof(Ending),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = ending_slots,
};

/* ---- starting ---------------------------------------------------------------------------------- */

/* A Thread whose class says so is a native one: it is started as thread._bootstrap. */
static int wants_native(PyObject *function)
{
    if (!PyMethod_Check(function)) {
        return 0;
    }
    return _PyType_Lookup(Py_TYPE(PyMethod_GET_SELF(function)), native_mark) != NULL;
}

/* Green threads run in the main OS thread, or in that of patch_all(). */
static int is_place_of_green_threads(void)
{
    Hub *hub = hub_get();
    return gettid() == getpid() || (hub && hub == hub_primary());
}

#if !BEFORE_312 && BEFORE_313
/* 3.12 refuses from the moment it begins to join threads; this tells without its internals. */
static int threading_is_shutting_down(void)
{
    PyObject *modules = PyImport_GetModuleDict();
    PyObject *threading = modules ? PyDict_GetItemString(modules, "threading") : NULL;
    PyObject *variables = threading ? PyModule_GetDict(threading) : NULL;
    return variables && PyDict_GetItemString(variables, "_SHUTTING_DOWN") == Py_True;
}
#endif

static int may_start(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    if (Py_IsFinalizing()) {
        PyErr_SetString(PyExc_PythonFinalizationError,
                        "can't create new thread at interpreter shutdown");
        return 0;
    }
#elif PY_VERSION_HEX >= 0x030C0000
    if (_Py_IsFinalizing() || threading_is_shutting_down()) {
        PyErr_SetString(PyExc_RuntimeError, "can't create new thread at interpreter shutdown");
        return 0;
    }
#endif
    return 1;
}

static unsigned long start_natively(Ending *ending, PyObject *function, PyObject *args,
                                    PyObject *kwargs)
{
    Py_INCREF(function);
    ending->function = function;
    Py_INCREF(args);
    ending->args = args;
    Py_XINCREF(kwargs);
    ending->kwargs = kwargs;
    PyObject *ident = PyObject_CallFunctionObjArgs(native_start, ending, empty_tuple, NULL);
    if (!ident) {
        return 0;
    }
    unsigned long number = PyLong_AsUnsignedLong(ident);
    Py_DECREF(ident);
    return number;
}

static PyObject *first_thread_hook; /* called once, before the next green thread starts; or NULL */

static void call_first_thread_hook(void)
{
    PyObject *hook = first_thread_hook;
    first_thread_hook = NULL;
    PyObject *done = PyObject_CallNoArgs(hook);
    if (!done) {
        PyErr_WriteUnraisable(hook);
    }
    Py_XDECREF(done);
    Py_DECREF(hook);
}

static PyObject *on_first_thread(PyObject *Py_UNUSED(module), PyObject *hook)
{
    PyObject *value = hook == Py_None ? NULL : Py_NewRef(hook);
    Py_XSETREF(first_thread_hook, value);
    Py_RETURN_NONE;
}

static PyMethodDef own_functions[] = {
    {"on_first_thread", on_first_thread, METH_O,
     PyDoc_STR("on_first_thread(hook)\n--\n\nCall hook() once, before a green thread starts.")},
    {NULL, NULL, 0, NULL},
};

static void let_begin(unsigned long ident)
{
    Strand *strand = strand_current();
    if (strand) {
        strand_lend(strand, ident);
    }
}

/* ident, or 0 with an exception set */
static unsigned long start_thread(PyObject *function, PyObject *args, PyObject *kwargs,
                                  Handle *handle)
{
    if (!may_start()) {
        return 0;
    }
    Ending *ending = ending_new(handle);
    if (!ending) {
        return 0;
    }
    unsigned long ident;
    if (wants_native(function) || !is_place_of_green_threads()) {
        ident = start_natively(ending, function, args, kwargs);
    } else {
        if (first_thread_hook) {
            call_first_thread_hook();
        }
        ident = strand_spawn(function, args, kwargs, (PyObject *)ending);
        green_count += ident != 0;
        if (ident && preempt_start() < 0) {
            PyErr_Clear(); /* then it is cooperative only */
        }
    }
    Py_DECREF(ending);
    return ident;
}

PyDoc_STRVAR(start_new_thread_doc,
             "start_new_thread($module, function, args, kwargs={}, /)\n--\n\n"
             "Start a thread that calls function(*args, **kwargs); returns its ident.");

static PyObject *start_new_thread(PyObject *Py_UNUSED(module), PyObject *all)
{
    PyObject *function, *args, *kwargs = NULL;
    if (!PyArg_UnpackTuple(all, "start_new_thread", 2, 3, &function, &args, &kwargs)) {
        return NULL;
    }
    if (!PyCallable_Check(function)) {
        PyErr_SetString(PyExc_TypeError, "first arg must be callable");
        return NULL;
    }
    if (!PyTuple_Check(args)) {
        PyErr_SetString(PyExc_TypeError, "2nd arg must be a tuple");
        return NULL;
    }
    if (kwargs && !PyDict_Check(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "optional 3rd arg must be a dictionary");
        return NULL;
    }
    if (PySys_Audit("_thread.start_new_thread", "OOO", function, args, kwargs ? kwargs : Py_None) <
        0) {
        return NULL;
    }
    unsigned long ident = start_thread(function, args, kwargs, NULL);
    if (ident) {
        let_begin(ident);
    }
    return ident ? PyLong_FromUnsignedLong(ident) : NULL;
}

PyDoc_STRVAR(get_ident_doc, "get_ident($module, /)\n--\n\n"
                            "The ident of the calling thread, green or native: a nonzero integer.");

static PyObject *get_ident(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(strand_ident());
}

PyDoc_STRVAR(count_doc, "_count($module, /)\n--\n\nHow many threads, green and native, Python has "
                        "started that still run.");

static PyObject *count(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *natives = PyObject_CallNoArgs(native_count);
    if (!natives) {
        return NULL;
    }
    long sum = PyLong_AsLong(natives) + green_count;
    Py_DECREF(natives);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(sum);
}

/* ---- the sentinel lock (up to 3.12) ------------------------------------------------------------- */

static Ending *ending_of_caller(void)
{
    Strand *strand = strand_current();
    if (!strand) {
        return native_ending;
    }
    if (strand->kind == STRAND_PORTAL) {
        strand = strand->locals_owner; /* a loop inside a green thread */
    }
    return strand->on_done && Py_IS_TYPE(strand->on_done, ending_type) ? (Ending *)strand->on_done
                                                                       : NULL;
}

PyDoc_STRVAR(set_sentinel_doc, "_set_sentinel($module, /)\n--\n\n"
                               "A lock that is released when the calling thread has ended.");

static PyObject *set_sentinel(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    GreenLock *lock = lock_new();
    Ending *ending = ending_of_caller();
    if (lock) {
        lock->barging = 1;
    }
    if (lock && ending) {
        if (ending->sentinel) {
            ending->sentinel->sentinel_of = NULL;
        }
        ending->sentinel = lock;
        lock->sentinel_of = &ending->sentinel;
    }
    return (PyObject *)lock;
}

/* ---- handles' Python side ----------------------------------------------------------------------- */

static Handle *handle_new(void)
{
    Handle *self = PyObject_New(Handle, handle_type);
    if (self) {
        self->ident = 0;
        self->state = NOT_STARTED;
        self->joined_at_shutdown = 0;
        self->joiners = (WaitQueue){NULL, NULL};
        self->next = all_handles;
        self->pprev = &all_handles;
        if (all_handles) {
            all_handles->pprev = &self->next;
        }
        all_handles = self;
    }
    return self;
}

static PyObject *handle_tp_new(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) || (kwargs && PyDict_GET_SIZE(kwargs))) {
        PyErr_SetString(PyExc_TypeError, "_ThreadHandle() takes no arguments");
        return NULL;
    }
    return (PyObject *)handle_new();
}

static void handle_dealloc(Handle *self)
{
    PyTypeObject *type = Py_TYPE(self);
    *self->pprev = self->next;
    if (self->next) {
        self->next->pprev = self->pprev;
    }
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int handle_join(Handle *self, int64_t deadline)
{
    if (self->state < RUNNING) {
        PyErr_SetString(PyExc_RuntimeError, "thread not started");
        return -1;
    }
    if (self->state == RUNNING && self->ident == strand_ident()) {
        PyErr_SetString(PyExc_RuntimeError, "Cannot join current thread");
        return -1;
    }
    while (self->state != DONE) {
        switch (waiters_wait(&self->joiners, (PyObject *)self, deadline)) {
        case WAITED_GRANTED:
            break;
        case WAITED_TIMEOUT:
            return 0;
        case WAITED_RAISED:
        case WAITED_RAISED_GRANTED:
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(handle_join_doc, "join($self, timeout=None, /)\n--\n\n"
                              "Wait until the thread is done, or for timeout seconds.");

static PyObject *handle_py_join(Handle *self, PyObject *args)
{
    PyObject *timeout = NULL;
    int64_t nanoseconds = -1;
    if (!PyArg_ParseTuple(args, "|O:join", &timeout) ||
        (timeout && timeout != Py_None && timeout_from_object(timeout, &nanoseconds) < 0) ||
        handle_join(self, nanoseconds < 0 ? PP_FOREVER : deadline_after(nanoseconds)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *handle_is_done(Handle *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->state == DONE);
}

static PyObject *handle_py_set_done(Handle *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state < RUNNING) {
        PyErr_SetString(PyExc_RuntimeError, "thread not started");
        return NULL;
    }
    if (self->state == RUNNING) {
        handle_set_done(self);
    }
    Py_RETURN_NONE;
}

static PyObject *handle_get_ident(Handle *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(self->ident);
}

static PyObject *handle_repr(Handle *self)
{
    return PyUnicode_FromFormat("<%s object: ident=%lu>", Py_TYPE(self)->tp_name, self->ident);
}

#define METHOD(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef handle_methods[] = {
    {"join", METHOD(handle_py_join), METH_VARARGS, handle_join_doc},
    {"is_done", METHOD(handle_is_done), METH_NOARGS, NULL},
    {"_set_done", METHOD(handle_py_set_done), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef handle_getset[] = {
    {"ident", (getter)handle_get_ident, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_dealloc, handle_dealloc}, {Py_tp_repr, handle_repr},  {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},   {Py_tp_new, handle_tp_new}, {0, NULL},
};

static PyType_Spec handle_spec = {
    .name = "_thread._ThreadHandle",
    .basicsize = sizeof(Handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = handle_slots,
};

PyDoc_STRVAR(
    start_joinable_thread_doc,
    "start_joinable_thread($module, /, function, handle=None, daemon=True)\n--\n\n"
    "Start a thread that calls function(); returns its handle, the given one or a new one.");

static PyObject *start_joinable_thread(PyObject *Py_UNUSED(module), PyObject *args,
                                       PyObject *kwargs)
{
    static char *names[] = {"function", "handle", "daemon", NULL};
    PyObject *function, *given = NULL;
    int daemon = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Op:start_joinable_thread", names, &function,
                                     &given, &daemon)) {
        return NULL;
    }
    if (!PyCallable_Check(function)) {
        PyErr_SetString(PyExc_TypeError, "thread function must be callable");
        return NULL;
    }
    if (given && native_handle_type && Py_IS_TYPE(given, native_handle_type)) {
        /* a Thread made before patching: it becomes a native thread */
        return PyObject_Call(native_start_joinable, args, kwargs);
    }
    if (given && given != Py_None && !Py_IS_TYPE(given, handle_type)) {
        PyErr_SetString(PyExc_TypeError, "'handle' must be a _ThreadHandle");
        return NULL;
    }
    if (PySys_Audit("_thread.start_joinable_thread", "OiO", function, daemon,
                    given ? given : Py_None) < 0) {
        return NULL;
    }
    Handle *handle = (Handle *)given;
    if (given && given != Py_None) {
        Py_INCREF(handle);
    } else if (!(handle = handle_new())) {
        return NULL;
    }
    if (handle->state != NOT_STARTED) {
        PyErr_SetString(PyExc_RuntimeError, "thread already started");
        Py_DECREF(handle);
        return NULL;
    }
    handle->state = STARTING;
    unsigned long ident = start_thread(function, empty_tuple, NULL, handle);
    if (!ident) {
        handle->state = NOT_STARTED;
        Py_DECREF(handle);
        return NULL;
    }
    if (handle->state == STARTING) { /* a native one may already be over */
        handle->state = RUNNING;
    }
    handle->ident = ident;
    handle->joined_at_shutdown = !daemon;
    let_begin(ident);
    return (PyObject *)handle;
}

static PyObject *make_thread_handle(PyObject *Py_UNUSED(module), PyObject *ident)
{
    if (!PyLong_Check(ident)) {
        PyErr_SetString(PyExc_TypeError, "ident must be an integer");
        return NULL;
    }
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Handle *self = handle_new();
    if (self) {
        self->ident = number;
        self->state = RUNNING;
    }
    return (PyObject *)self;
}

static Handle *next_to_join_at_shutdown(void)
{
    for (Handle *handle = all_handles; handle; handle = handle->next) {
        if (handle->joined_at_shutdown && handle->state != DONE &&
            handle->ident != strand_ident()) {
            return handle;
        }
    }
    return NULL;
}

PyDoc_STRVAR(shutdown_doc, "_shutdown($module, /)\n--\n\nJoin all threads that are not daemons.");

static PyObject *shutdown(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    for (Handle *handle; (handle = next_to_join_at_shutdown());) {
        Py_INCREF(handle);
        int joined = handle_join(handle, PP_FOREVER);
        Py_DECREF(handle);
        if (joined < 0) { /* Ctrl-C: as CPython, report it and go on to the end */
#if PY_VERSION_HEX >= 0x030E0000
            PyErr_FormatUnraisable(
                "Exception ignored while joining a thread in _thread._shutdown()");
#else
            PyErr_WriteUnraisable(NULL);
#endif
            Py_RETURN_NONE;
        }
    }
    if (native_shutdown) {
        return PyObject_CallNoArgs(native_shutdown);
    }
    Py_RETURN_NONE;
}

/* ---- fork --------------------------------------------------------------------------------------- */

static unsigned long main_ident; /* in a forked child: of the thread that forked; else 0 */

/* In the child: only the caller still exists. */
static void forget_other_threads(void)
{
    unsigned long caller = strand_ident();
    main_ident = caller;
    Strand *strand = strand_current();
    green_count = strand && strand->kind == STRAND_GREEN;
    for (Handle *handle = all_handles; handle; handle = handle->next) {
        waiters_forget(&handle->joiners);
        if (handle->state != NOT_STARTED && handle->ident != caller) {
            handle->state = DONE;
        }
    }
}

PyDoc_STRVAR(get_main_thread_ident_doc, "_get_main_thread_ident($module, /)\n--\n\n"
                                        "The ident of the main thread; in a forked child of the "
                                        "thread that forked.");

static PyObject *get_main_thread_ident(PyObject *module, PyObject *unused)
{
    return main_ident && in_main_interpreter() ? PyLong_FromUnsignedLong(main_ident)
                                               : native_functions[5](module, unused);
}

/* ---- module ------------------------------------------------------------------------------------- */

/* All of them on every version: patches/green_threads.py says which _thread has which. */
static PyMethodDef thread_functions[] = {
    {"start_new_thread", start_new_thread, METH_VARARGS, start_new_thread_doc},
    {"start_new", start_new_thread, METH_VARARGS, start_new_thread_doc},
    {"get_ident", get_ident, METH_NOARGS, get_ident_doc},
    {"_count", count, METH_NOARGS, count_doc},
    {"_set_sentinel", set_sentinel, METH_NOARGS, set_sentinel_doc},
    {"start_joinable_thread", METHOD(start_joinable_thread), METH_VARARGS | METH_KEYWORDS,
     start_joinable_thread_doc},
    {"_make_thread_handle", make_thread_handle, METH_O,
     PyDoc_STR(
         "_make_thread_handle($module, ident, /)\n--\n\nA handle of a thread that runs already.")},
    {"_shutdown", shutdown, METH_NOARGS, shutdown_doc},
    {"_get_main_thread_ident", get_main_thread_ident, METH_NOARGS, get_main_thread_ident_doc},
    {NULL, NULL, 0, NULL},
};

/* The same for code of a subinterpreter, whose threads stay native. */

static PyObject *start_new_thread_anywhere(PyObject *module, PyObject *args)
{
    return in_main_interpreter() ? start_new_thread(module, args)
                                 : native_functions[0](module, args);
}

static PyObject *set_sentinel_anywhere(PyObject *module, PyObject *unused)
{
    return in_main_interpreter() ? set_sentinel(module, unused)
                                 : native_functions[1](module, unused);
}

static PyObject *make_thread_handle_anywhere(PyObject *module, PyObject *ident)
{
    return in_main_interpreter() ? make_thread_handle(module, ident)
                                 : native_functions[2](module, ident);
}

static PyObject *shutdown_anywhere(PyObject *module, PyObject *unused)
{
    return in_main_interpreter() ? shutdown(module, unused) : native_functions[3](module, unused);
}

static PyObject *start_joinable_thread_anywhere(PyObject *module, PyObject *args, PyObject *kwargs)
{
    if (in_main_interpreter()) {
        return start_joinable_thread(module, args, kwargs);
    }
    PyCFunctionWithKeywords native = (PyCFunctionWithKeywords)(void (*)(void))native_functions[4];
    return native(module, args, kwargs);
}

/* A green thread's name is not its OS thread's, which is the main thread's own: that would be the name
 * of the whole process. */
static PyObject *set_name(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *names)
{
    Strand *strand = in_main_interpreter() ? strand_current() : NULL;
    int is_green = strand && strand->locals_owner->kind == STRAND_GREEN;
    if (is_green && nargs == 1 && !names && PyUnicode_Check(args[0])) {
        Py_RETURN_NONE;
    }
    _PyCFunctionFastWithKeywords native =
        (_PyCFunctionFastWithKeywords)(void (*)(void))native_functions[6];
    return native(module, args, nargs, names);
}

static int find_native_functions(PyObject *thread_module)
{
    static const char *const names[] = {
        "start_new_thread", "_set_sentinel",         "_make_thread_handle",
        "_shutdown",        "start_joinable_thread", "_get_main_thread_ident",
        "set_name"};
    for (int i = 0; i < 7; i++) {
        if (PyObject_HasAttrString(thread_module, names[i]) &&
            !(native_functions[i] = swaps_native(thread_module, names[i]))) {
            return -1;
        }
    }
    return 0;
}

static const Stand_in stand_ins[] = {
    {"_thread.start_new_thread", start_new_thread_anywhere, METH_VARARGS},
    {"_thread.get_ident", get_ident, METH_NOARGS},
    {"_thread._count", count, METH_NOARGS},
    {"_thread._set_sentinel", set_sentinel_anywhere, METH_NOARGS},
    {"_thread.start_joinable_thread", METHOD(start_joinable_thread_anywhere),
     METH_VARARGS | METH_KEYWORDS},
    {"_thread._make_thread_handle", make_thread_handle_anywhere, METH_O},
    {"_thread._shutdown", shutdown_anywhere, METH_NOARGS},
    {"_thread._get_main_thread_ident", get_main_thread_ident, METH_NOARGS},
    {"_thread.set_name", METHOD(set_name), METH_FASTCALL | METH_KEYWORDS},
    {NULL, NULL, 0},
};

static PyObject *keep_original(PyObject *thread_module, const char *name)
{
    PyObject *function = PyObject_GetAttrString(thread_module, name);
    PyObject *original = function ? swaps_keep_original(function) : NULL;
    Py_XDECREF(function);
    return original;
}

static int make_types(void)
{
    PyObject *thread_module = PyImport_ImportModule("_thread");
    if (!thread_module) {
        return -1;
    }
    native_start = keep_original(thread_module, "start_new_thread");
    native_count = keep_original(thread_module, "_count");
    if (find_native_functions(thread_module) < 0) {
        return -1;
    }
    if (PyObject_HasAttrString(thread_module, "_ThreadHandle")) {
        native_start_joinable = keep_original(thread_module, "start_joinable_thread");
        native_shutdown = keep_original(thread_module, "_shutdown");
        native_handle_type = (PyTypeObject *)PyObject_GetAttrString(thread_module, "_ThreadHandle");
    }
    Py_DECREF(thread_module);
    native_mark = PyUnicode_InternFromString("_portalpatch_native");
    empty_tuple = PyTuple_New(0);
    ending_type = (PyTypeObject *)PyType_FromSpec(&ending_spec);
    handle_type = (PyTypeObject *)PyType_FromSpec(&handle_spec);
    if (!native_start || !native_count || !native_mark || !empty_tuple || !ending_type ||
        !handle_type) {
        return -1;
    }
    pthread_atfork(NULL, NULL, forget_other_threads);
    return 0;
}

int threads_exec(PyObject *module)
{
    if (!handle_type && make_types() < 0) {
        return -1;
    }
    if (PyModule_AddObjectRef(module, "_ThreadHandle", (PyObject *)handle_type) < 0 ||
        PyModule_AddFunctions(module, own_functions) < 0) {
        return -1;
    }
    if (swaps_announce(stand_ins) < 0 || preempt_exec(module) < 0 || semaphores_exec(module) < 0 ||
        frames_exec(module) < 0 || async_exceptions_exec(module) < 0 || tracing_exec(module) < 0 ||
        signals_exec(module) < 0) {
        return -1;
    }
    return add_functions_of_thread_module(module, thread_functions);
}
