/* portal.c: the coroutine type between a task and the user's coroutine.
 *
 * The host loop steps the portal (am_send, throw); the portal runs the user's coroutine in a pooled
 * runner greenlet (portal_steps.c). Whatever the coroutine's synchronous callees await_ is yielded to
 * the task by switching back to the stepper, from any depth and from foreign greenlets too
 * (portal_await.c). Here: making portals, their coroutine methods, and their end.
 *
 * Called by asyncio's Task, Trio's runner. The invariant is portal.h's.
 */
#include "portal.h"

#include <structmember.h>

static PyObject *portal_close(PyObject *self, PyObject *unused);

static PyObject *new_portal(PyObject *inner, enum portal_host host, PyObject *loop)
{
    Hub *hub = hub_ensure();
    if (!hub) {
        return NULL;
    }
    Portal *portal = PyObject_GC_New(Portal, &Portal_Type);
    if (!portal) {
        return NULL;
    }
    memset((char *)portal + sizeof(PyObject), 0, sizeof *portal - sizeof(PyObject));
    strand_init(&portal->strand, hub, STRAND_PORTAL);
    portal->host = host;
    Py_INCREF(inner);
    portal->inner = inner;
    if (host == HOST_ASYNCIO) {
        Py_INCREF(loop);
        portal->strand.loop = loop;
    }
    hub->stats.portals++;
    if (!hub->gate_open && hub_primary()) {
        hub_open_gate(
            hub); /* a loop in another OS thread of a patched process: its tasks park too */
    }
    PyObject_GC_Track(portal);
    return (PyObject *)portal;
}

PyObject *portal_of_task(PyObject *coroutine, PyObject *loop)
{
    if (host_load_asyncio() < 0) {
        return NULL;
    }
    if (Py_TYPE(coroutine) == &Portal_Type) {
        Py_INCREF(coroutine);
        return coroutine;
    }
    return new_portal(coroutine, HOST_ASYNCIO, loop);
}

static PyObject *portal_coroutine(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "portal_coroutine(coroutine, loop)");
        return NULL;
    }
    return portal_of_task(args[0], args[1]);
}

static PyObject *portal_coroutine_trio(PyObject *module, PyObject *coroutine)
{
    (void)module;
    if (host_load_trio() < 0) {
        return NULL;
    }
    if (Py_TYPE(coroutine) == &Portal_Type) {
        Py_INCREF(coroutine);
        return coroutine;
    }
    return new_portal(coroutine, HOST_TRIO, NULL);
}

static PyObject *portal_coroutine_other(PyObject *module, PyObject *coroutine)
{
    (void)module;
    return new_portal(coroutine, HOST_OTHER, NULL);
}

/* A portal for a part of the task that runs now. */
static PyObject *new_auto_portal(PyObject *inner)
{
    PyObject *portal = new_portal(inner, HOST_AUTO, NULL);
#if PY_VERSION_HEX >= 0x030C0000
    if (portal && host_find((Portal *)portal) == 0) {
        portal_note_task((Portal *)portal);
    }
    PyErr_Clear();
#endif
    return portal;
}

static PyObject *portal_coroutine_auto(PyObject *module, PyObject *coroutine)
{
    (void)module;
    return new_auto_portal(coroutine);
}

static PyObject *portal_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3 || !PyTuple_Check(args[1]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "portal_call(function, args, kwargs)");
        return NULL;
    }
    PyObject *portal = new_auto_portal(args[0]);
    if (portal) {
        Py_INCREF(args[1]);
        ((Portal *)portal)->strand.args = args[1];
        Py_INCREF(args[2]);
        ((Portal *)portal)->strand.kwargs = args[2];
    }
    return portal;
}

static PyObject *await_count(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_get();
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLongLong(portal_of(hub->current)->awaits);
}

static PyObject *forbid_await(PyObject *module, PyObject *delta)
{
    (void)module;
    long by = PyLong_AsLong(delta);
    Hub *hub = hub_get();
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        return PyLong_FromLong(0);
    }
    portal_of(hub->current)->forbidden += (int)by;
    return PyLong_FromLong(portal_of(hub->current)->forbidden);
}

static PyObject *portal_host(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Portal *portal = portal_current(hub_get());
    if (!portal) {
        Py_RETURN_NONE;
    }
    if (host_find(portal) < 0) {
        return NULL;
    }
    const char *name = portal->host == HOST_ASYNCIO ? "asyncio"
                       : portal->host == HOST_TRIO  ? "trio"
                                                    : "other";
    return PyUnicode_FromString(name);
}

static PyObject *in_context(PyObject *module, PyObject *context)
{
    (void)module;
    return PyBool_FromLong(PyThreadState_Get()->context == context);
}

static PyObject *in_portal(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(portal_current(hub_get()) != NULL);
}

Strand *portal_strand(PyObject *object, PyGreenlet **greenlet)
{
    if (Py_TYPE(object) != &Portal_Type) {
        return NULL;
    }
    Portal *portal = (Portal *)object;
    *greenlet = portal->strand.greenlet ? portal->strand.greenlet : portal->suspended;
    return &portal->strand;
}

static PyObject *is_portal(PyObject *module, PyObject *object)
{
    (void)module;
    return PyBool_FromLong(Py_TYPE(object) == &Portal_Type);
}

static PyObject *portal_inner(PyObject *module, PyObject *object)
{
    (void)module;
    PyObject *inner = Py_TYPE(object) == &Portal_Type ? ((Portal *)object)->inner : object;
    Py_INCREF(inner);
    return inner;
}

/* Put a portal in the place of a running C Task's coroutine: the field is found by its value. */
static PyObject *replace_task_coroutine(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "replace_task_coroutine(task, old, new)");
        return NULL;
    }
    PyObject *task = args[0], *old = args[1], *new = args[2];
    static Py_ssize_t known_offset;
    size_t size = (size_t)Py_TYPE(task)->tp_basicsize;
    if (known_offset && (size_t)known_offset + sizeof(PyObject *) <= size) {
        PyObject **field = (PyObject **)((char *)task + known_offset);
        if (*field == old) {
            Py_INCREF(new);
            *field = new;
            Py_DECREF(old);
            Py_RETURN_TRUE;
        }
    }
    PyObject **found = NULL;
    for (size_t at = sizeof(PyObject); at + sizeof(PyObject *) <= size; at += sizeof(PyObject *)) {
        PyObject **field = (PyObject **)((char *)task + at);
        if (*field == old) {
            if (found) {
                Py_RETURN_FALSE; /* ambiguous: leave it alone */
            }
            found = field;
        }
    }
    if (!found) {
        Py_RETURN_FALSE;
    }
    known_offset = (char *)found - (char *)task;
    Py_INCREF(new);
    *found = new;
    Py_DECREF(old);
    Py_RETURN_TRUE;
}

static PySendResult portal_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return portal_step((Portal *)self, 0, value, result);
}

static PyObject *as_method_result(PySendResult status, PyObject *result)
{
    return status == PYGEN_RETURN ? exception_stop_iteration(result) : result;
}

static PyObject *portal_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = portal_step((Portal *)self, 0, value, &result);
    return as_method_result(status, result);
}

static PyObject *portal_next(PyObject *self)
{
    return portal_send(self, Py_None);
}

/* The exception that throw(*args) means, new reference; the errors of a native coroutine's throw. */
static PyObject *exception_to_throw(PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw expected at %s %d argument%s, got %zd",
                     nargs < 1 ? "least" : "most", nargs < 1 ? 1 : 3, nargs < 1 ? "" : "s", nargs);
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030C0000
    if (nargs > 1 && PyErr_WarnEx(PyExc_DeprecationWarning,
                                  "the (type, exc, tb) signature of throw() is deprecated, "
                                  "use the single-arg signature instead.",
                                  1) < 0) {
        return NULL;
    }
#endif
    PyObject *type = args[0], *value = nargs > 1 ? args[1] : NULL;
    PyObject *traceback = nargs > 2 && args[2] != Py_None ? args[2] : NULL;
    if (traceback && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        if (value && value != Py_None) {
            PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
            return NULL;
        }
        value = type;
        Py_INCREF(value);
    } else if (PyExceptionClass_Check(type)) {
        PyObject *unused = NULL;
        Py_INCREF(type);
        Py_XINCREF(value);
        PyErr_NormalizeException(&type, &value, &unused);
        Py_XDECREF(type);
        Py_XDECREF(unused);
    } else {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    if (traceback && PyException_SetTraceback(value, traceback) < 0) {
        Py_CLEAR(value);
    }
    return value;
}

/* Stopped at an await of its own or below. Keeps a pending exception. */
static int is_suspended(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (portal->suspended || portal->detached || portal->attached || portal->strand.args) {
        return portal->suspended || (portal->detached && !portal->direct);
    }
    PyObject *exception = exception_take();
    PyObject *awaited = PyObject_GetAttrString(portal->inner, "cr_await");
    int suspended = awaited && awaited != Py_None;
    Py_XDECREF(awaited);
    PyErr_Clear();
    exception_give(exception);
    return suspended;
}

static PyObject *portal_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *exception = exception_to_throw(args, nargs);
    if (!exception) {
        /* Whatever the coroutine awaits would refuse the arguments: raised there, so to speak. */
        if (PyErr_ExceptionMatches(PyExc_Warning) || nargs < 1 || nargs > 3 ||
            !is_suspended(self)) {
            return NULL;
        }
        exception = exception_take();
    }
    PyObject *result;
    PySendResult status = portal_step((Portal *)self, 1, exception, &result);
    Py_DECREF(exception);
    return as_method_result(status, result);
}

static PyObject *portal_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    if (portal->finished) {
        Py_RETURN_NONE;
    }
    if (portal->attached || portal->direct) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    if (portal->detached && portal->out != OUT_NONE) { /* its task will not take the outcome */
        portal->detached = 0;
        Py_CLEAR(portal->waiter);
        Py_CLEAR(portal->task);
        Py_CLEAR(portal->out_value);
        portal->finished = portal->out != OUT_YIELD;
        portal->out = OUT_NONE;
        if (portal->finished) {
            Py_RETURN_NONE;
        }
    }
    if (!portal->suspended && !portal->detached) {
        portal->finished = 1;
        if (portal->strand.args) {
            Py_RETURN_NONE;
        }
        PyObject *closed = PyObject_CallMethod(portal->inner, "close", NULL);
        if (!closed && portal_inner_goes_on(portal->inner)) {
            portal->finished = 0; /* it ignored GeneratorExit */
        }
        return closed;
    }
    PyObject *exit = PyObject_CallNoArgs(PyExc_GeneratorExit), *result;
    if (!exit) {
        return NULL;
    }
    PySendResult status = portal_step(portal, 1, exit, &result);
    Py_DECREF(exit);
    if (status == PYGEN_NEXT) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "coroutine ignored GeneratorExit");
        return NULL;
    }
    if (status == PYGEN_ERROR) {
        if (!PyErr_ExceptionMatches(PyExc_GeneratorExit) &&
            !PyErr_ExceptionMatches(PyExc_StopIteration)) {
            return NULL;
        }
        PyErr_Clear();
    }
#if PY_VERSION_HEX >= 0x030D0000
    if (status == PYGEN_RETURN) {
        return result; /* what a coroutine that catches GeneratorExit returns */
    }
#endif
    Py_XDECREF(result);
    Py_RETURN_NONE;
}

static PyObject *portal_am_await(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyObject *portal_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(((Portal *)self)->inner, name);
}

static PyObject *portal_repr(PyObject *self)
{
    return PyObject_Repr(((Portal *)self)->inner);
}

/* To whoever looks coroutines up, or compares them, it is its own. */
static Py_hash_t portal_hash(PyObject *self)
{
    Py_hash_t hash = PyObject_Hash(((Portal *)self)->inner);
    if (hash == -1) { /* something like a coroutine, that cannot be in a set */
        PyErr_Clear();
        hash = _Py_HashPointer(self);
    }
    return hash;
}

static PyObject *portal_compare(PyObject *self, PyObject *other, int operation)
{
    if (operation != Py_EQ && operation != Py_NE) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    int equal = self == other || ((Portal *)self)->inner == other;
    return PyBool_FromLong(equal == (operation == Py_EQ));
}

static PyObject *portal_class(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)Py_TYPE(((Portal *)self)->inner));
}

static PyObject *portal_name(PyObject *self, void *name)
{
    return PyObject_GetAttrString(((Portal *)self)->inner, name);
}

static int portal_traverse(PyObject *self, visitproc visit, void *arg)
{
    Portal *portal = (Portal *)self;
    if (portal->home && portal->home->kind == STRAND_PORTAL) {
        Py_VISIT(portal_of(portal->home));
    }
    Py_VISIT(portal->inner);
    Py_VISIT(portal->strand.args);
    Py_VISIT(portal->strand.kwargs);
    Py_VISIT(portal->context);
    Py_VISIT(portal->in_value);
    Py_VISIT(portal->out_value);
    Py_VISIT(portal->waiter);
    Py_VISIT(portal->task);
    Py_VISIT(portal->previous_task);
    Py_VISIT(portal->suspended);
    Py_VISIT(portal->stepper);
    Py_VISIT(portal->strand.greenlet);
    Py_VISIT(portal->strand.loop);
    Py_VISIT(portal->strand.thrown);
    return 0;
}

static int portal_tp_clear(PyObject *self)
{
    Portal *portal = (Portal *)self;
    portal_set_home(portal, NULL);
    if (portal->runner && portal->strand.hub == hub_get()) {
        runner_release(portal->strand.hub, portal->runner);
    }
    portal->runner = NULL;
    Py_CLEAR(portal->inner);
    Py_CLEAR(portal->strand.args);
    Py_CLEAR(portal->strand.kwargs);
    Py_CLEAR(portal->context);
    Py_CLEAR(portal->in_value);
    Py_CLEAR(portal->handled);
    Py_CLEAR(portal->out_value);
    Py_CLEAR(portal->waiter);
    Py_CLEAR(portal->task);
    Py_CLEAR(portal->previous_task);
    Py_CLEAR(portal->suspended);
    Py_CLEAR(portal->stepper);
    return 0;
}

/* A portal dropped while its greenlet is suspended ends it as a coroutine's own finalizer would. */
static void portal_finalize(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (portal->finished || portal->attached || !(portal->suspended || portal->detached)) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (portal->strand.hub == hub_get()) {
        PyObject *closed = portal_close(self, NULL);
        if (!closed) {
            PyErr_WriteUnraisable(portal->inner);
        }
        Py_XDECREF(closed);
    }
    if (portal->suspended || portal->detached) {
        /* It ignored GeneratorExit, or its OS thread is another one: its greenlet cannot be
         * unwound, and C code on that stack still refers to this object. */
        Py_INCREF(self);
    }
    PyErr_Restore(type, value, traceback);
}

static void portal_dealloc(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (portal->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    portal_tp_clear(self);
    strand_forget_task(&portal->strand);
    strand_clear(&portal->strand);
    PyObject_GC_Del(self);
}

static PyMethodDef portal_methods[] = {
    {"send", portal_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))portal_throw, METH_FASTCALL, NULL},
    {"close", portal_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef portal_getset[] = {{"cr_await", portal_cr_await, NULL, NULL, NULL},
                                      {"cr_frame", portal_cr_frame, NULL, NULL, NULL},
                                      {"cr_running", portal_cr_running, NULL, NULL, NULL},
                                      {"cr_suspended", portal_cr_suspended, NULL, NULL, NULL},
                                      {"__class__", portal_class, NULL, NULL, NULL},
                                      {"__name__", portal_name, NULL, NULL, "__name__"},
                                      {"__qualname__", portal_name, NULL, NULL, "__qualname__"},
                                      {NULL, NULL, NULL, NULL, NULL}};

static PyAsyncMethods portal_async = {.am_await = portal_am_await, .am_send = portal_am_send};

PyTypeObject Portal_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.Portal",
    .tp_doc = PyDoc_STR("The coroutine a host loop steps in the place of the user's."),
    .tp_basicsize = sizeof(Portal),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_FINALIZE,
    .tp_dealloc = portal_dealloc,
    .tp_finalize = portal_finalize,
    .tp_traverse = portal_traverse,
    .tp_clear = portal_tp_clear,
    .tp_repr = portal_repr,
    .tp_hash = portal_hash,
    .tp_richcompare = portal_compare,
    .tp_getattro = portal_getattro,
    .tp_as_async = &portal_async,
    .tp_iternext = portal_next,
    .tp_iter = NULL,
    .tp_methods = portal_methods,
    .tp_getset = portal_getset,
    .tp_weaklistoffset = offsetof(Portal, weakrefs),
};

static PyMethodDef methods[] = {
    {"portal_coroutine", (PyCFunction)(void (*)(void))portal_coroutine, METH_FASTCALL,
     PyDoc_STR("Wrap an asyncio task's coroutine: portal_coroutine(coroutine, loop).")},
    {"portal_coroutine_trio", portal_coroutine_trio, METH_O,
     PyDoc_STR("Wrap a Trio task's coroutine.")},
    {"portal_coroutine_other", portal_coroutine_other, METH_O,
     PyDoc_STR("Wrap a coroutine of any other host: await_ works, libc calls do not park.")},
    {"portal_coroutine_auto", portal_coroutine_auto, METH_O,
     PyDoc_STR("Wrap a coroutine; which host steps it is found out when that matters.")},
    {"portal_call", (PyCFunction)(void (*)(void))portal_call, METH_FASTCALL,
     PyDoc_STR("An awaitable that runs function(*args, **kwargs) with a portal.")},
    {"await_count", await_count, METH_NOARGS,
     PyDoc_STR("How often the current portal awaited or parked; None outside one.")},
    {"forbid_await", forbid_await, METH_O,
     PyDoc_STR("Add to the current portal's depth of forbid_await; returns it.")},
    {"portal_host", portal_host, METH_NOARGS,
     PyDoc_STR("The current portal's host: asyncio, trio, other; None outside one.")},
    {"in_context", in_context, METH_O,
     PyDoc_STR("Whether this contextvars context is the current one itself.")},
    {"in_portal", in_portal, METH_NOARGS, PyDoc_STR("True inside a portal's step.")},
    {"is_portal", is_portal, METH_O, NULL},
    {"portal_inner", portal_inner, METH_O, PyDoc_STR("The user's coroutine of a portal.")},
    {"replace_task_coroutine", (PyCFunction)(void (*)(void))replace_task_coroutine, METH_FASTCALL,
     PyDoc_STR("replace_task_coroutine(task, old, new) -> bool")},
    {NULL, NULL, 0, NULL}};

int portal_exec(PyObject *module)
{
    if (host_exec() < 0 || steps_exec() < 0 || await_exec(module) < 0 ||
        create_task_exec(module) < 0 || trio_coroutines_exec(module) < 0 ||
        frames_of_portals_exec() < 0 || PyType_Ready(&Portal_Type) < 0 ||
        PyModule_AddType(module, &Portal_Type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
