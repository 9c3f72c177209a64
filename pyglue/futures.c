/* futures.c: portalpatch.Future: asyncio's future protocol, completed from any OS thread.
 *
 * For extensions and native threads: they complete it, and whoever awaits it, natively or through
 * await_, goes on in its own loop. Tasks of asyncio take it as they take asyncio.Future (the
 * `_asyncio_future_blocking` protocol), Trio tasks await it through _future_trio.py.
 * Invariant: everything happens with the GIL held; callbacks run in the loop, by call_soon where
 * the loop runs in the calling thread and by call_soon_threadsafe elsewhere; without a loop they
 * are called at once and must be ready for any thread.
 */
#include "exceptions.h"
#include "swaps.h"

#include <structmember.h>

#include "future_api.h"

enum future_state { PENDING, FINISHED, CANCELLED };

typedef struct {
    PyObject_HEAD PyObject *weakrefs;
    PyObject *loop; /* or NULL */
    enum future_state state;
    PyObject *result, *exception, *message;
    PyObject *callbacks; /* list of (function, context or None), or NULL */
    char blocking;       /* _asyncio_future_blocking */
} Future;

static PyTypeObject *future_type, *waiter_type;

/* ---- completing ------------------------------------------------------------------------------ */

static PyObject *asyncio_attribute(const char *module, const char *name)
{
    PyObject *found = PyImport_ImportModule(module);
    PyObject *attribute = found ? PyObject_GetAttrString(found, name) : NULL;
    Py_XDECREF(found);
    return attribute;
}

static int is_running_here(PyObject *loop)
{
    PyObject *running;
    if (running_loop(&running) < 0) {
        return -1;
    }
    int here = running == loop;
    Py_XDECREF(running);
    return here;
}

static int schedule(Future *self, PyObject *function, PyObject *context)
{
    PyObject *done;
    if (!self->loop) {
        done = PyObject_CallOneArg(function, (PyObject *)self);
    } else {
        int here = is_running_here(self->loop);
        PyObject *method =
            here < 0
                ? NULL
                : PyObject_GetAttrString(self->loop, here ? "call_soon" : "call_soon_threadsafe");
        PyObject *args = method ? PyTuple_Pack(2, function, (PyObject *)self) : NULL;
        PyObject *kwargs = context != Py_None ? Py_BuildValue("{s:O}", "context", context) : NULL;
        done = args ? PyObject_Call(method, args, kwargs) : NULL;
        Py_XDECREF(method);
        Py_XDECREF(args);
        Py_XDECREF(kwargs);
    }
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int run_callbacks(Future *self)
{
    PyObject *callbacks = self->callbacks;
    self->callbacks = NULL;
    int failed = 0;
    for (Py_ssize_t i = 0; callbacks && i < PyList_GET_SIZE(callbacks); i++) {
        PyObject *pair = PyList_GET_ITEM(callbacks, i);
        if (schedule(self, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)) < 0) {
            if (failed) {
                PyErr_WriteUnraisable(pair);
            }
            failed = -1;
        }
    }
    Py_XDECREF(callbacks);
    return failed;
}

static int invalid_state(const char *text)
{
    PyObject *error = asyncio_attribute("asyncio", "InvalidStateError");
    if (error) {
        PyErr_SetString(error, text);
        Py_DECREF(error);
    }
    return -1;
}

static int set_result(PyObject *object, PyObject *value)
{
    Future *self = (Future *)object;
    if (self->state != PENDING) {
        return 1;
    }
    self->state = FINISHED;
    self->result = Py_NewRef(value);
    return run_callbacks(self);
}

static int set_exception(PyObject *object, PyObject *exception)
{
    Future *self = (Future *)object;
    if (self->state != PENDING) {
        return 1;
    }
    PyObject *instance =
        PyExceptionClass_Check(exception) ? PyObject_CallNoArgs(exception) : Py_NewRef(exception);
    if (!instance) {
        return -1;
    }
    if (!PyExceptionInstance_Check(instance) ||
        PyErr_GivenExceptionMatches(instance, PyExc_StopIteration)) {
        PyErr_Format(PyExc_TypeError, "a Future cannot be given %R as its exception", instance);
        Py_DECREF(instance);
        return -1;
    }
    self->state = FINISHED;
    self->exception = instance;
    return run_callbacks(self);
}

static PyObject *future_set_result(PyObject *self, PyObject *value)
{
    int status = set_result(self, value);
    if (status > 0) {
        invalid_state("the future is done already");
    }
    return status ? NULL : Py_NewRef(Py_None);
}

static PyObject *future_set_exception(PyObject *self, PyObject *exception)
{
    int status = set_exception(self, exception);
    if (status > 0) {
        invalid_state("the future is done already");
    }
    return status ? NULL : Py_NewRef(Py_None);
}

static PyObject *future_cancel(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    Future *self = (Future *)object;
    PyObject *message = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O", names, &message)) {
        return NULL;
    }
    if (self->state != PENDING) {
        Py_RETURN_FALSE;
    }
    self->state = CANCELLED;
    self->message = message && message != Py_None ? Py_NewRef(message) : NULL;
    return run_callbacks(self) < 0 ? NULL : Py_NewRef(Py_True);
}

/* ---- asking ------------------------------------------------------------------------------------ */

static int raise_cancelled(Future *self)
{
    PyObject *error = asyncio_attribute("asyncio", "CancelledError");
    PyObject *instance = NULL;
    if (error) {
        instance =
            self->message ? PyObject_CallOneArg(error, self->message) : PyObject_CallNoArgs(error);
    }
    if (instance) {
        PyErr_SetObject(error, instance);
    }
    Py_XDECREF(instance);
    Py_XDECREF(error);
    return -1;
}

static PyObject *future_result(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Future *self = (Future *)object;
    if (self->state == PENDING) {
        invalid_state("Result is not set.");
        return NULL;
    }
    if (self->state == CANCELLED) {
        raise_cancelled(self);
        return NULL;
    }
    if (self->exception) {
        PyErr_SetObject((PyObject *)Py_TYPE(self->exception), self->exception);
        return NULL;
    }
    return Py_NewRef(self->result);
}

static PyObject *future_exception(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Future *self = (Future *)object;
    if (self->state == PENDING) {
        invalid_state("Exception is not set.");
        return NULL;
    }
    if (self->state == CANCELLED) {
        raise_cancelled(self);
        return NULL;
    }
    return Py_NewRef(self->exception ? self->exception : Py_None);
}

static PyObject *future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((Future *)self)->state != PENDING);
}

static PyObject *future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((Future *)self)->state == CANCELLED);
}

static PyObject *future_get_loop(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Future *self = (Future *)object;
    if (!self->loop) {
        PyErr_SetString(PyExc_RuntimeError, "this future was made without an asyncio loop");
        return NULL;
    }
    return Py_NewRef(self->loop);
}

static PyObject *future_add_done_callback(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "context", NULL};
    Future *self = (Future *)object;
    PyObject *function, *context = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:add_done_callback", names, &function,
                                     &context)) {
        return NULL;
    }
    PyObject *current = NULL;
    if (context == Py_None) {
        current = PyContext_CopyCurrent();
        if (!current) {
            return NULL;
        }
        context = current;
    }
    int failed;
    if (self->state != PENDING) {
        failed = schedule(self, function, context);
    } else {
        PyObject *pair = PyTuple_Pack(2, function, context);
        if (!self->callbacks) {
            self->callbacks = PyList_New(0);
        }
        failed = pair && self->callbacks ? PyList_Append(self->callbacks, pair) : -1;
        Py_XDECREF(pair);
    }
    Py_XDECREF(current);
    return failed < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *future_remove_done_callback(PyObject *object, PyObject *function)
{
    Future *self = (Future *)object;
    Py_ssize_t removed = 0;
    for (Py_ssize_t i = self->callbacks ? PyList_GET_SIZE(self->callbacks) : 0; i-- > 0;) {
        PyObject *pair = Py_NewRef(PyList_GET_ITEM(self->callbacks, i));
        int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), function, Py_EQ);
        Py_DECREF(pair);
        if (same < 0 ||
            (same && self->callbacks && PyList_SetSlice(self->callbacks, i, i + 1, NULL) < 0)) {
            return NULL;
        }
        removed += same;
    }
    return PyLong_FromSsize_t(removed);
}

/* ---- awaiting ------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD Future *future;
} Waiter;

static PySendResult waiter_send(PyObject *object, PyObject *Py_UNUSED(value), PyObject **result)
{
    Waiter *self = (Waiter *)object;
    *result = NULL;
    if (!self->future) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited future's iterator");
        return PYGEN_ERROR;
    }
    if (self->future->state == PENDING) {
        if (self->future->blocking) {
            PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
            return PYGEN_ERROR;
        }
        self->future->blocking = 1;
        *result = Py_NewRef((PyObject *)self->future);
        return PYGEN_NEXT;
    }
    Future *future = self->future;
    self->future = NULL;
    *result = future_result((PyObject *)future, NULL);
    Py_DECREF(future);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *waiter_next(PyObject *self)
{
    PyObject *result;
    if (waiter_send(self, Py_None, &result) != PYGEN_RETURN) {
        return result;
    }
    return exception_stop_iteration(result);
}

static void waiter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(((Waiter *)self)->future);
    type->tp_free(self);
    Py_DECREF(type);
}

static int waiter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Waiter *)self)->future);
    return 0;
}

static PyType_Slot waiter_slots[] = {
    {Py_tp_dealloc, waiter_dealloc}, {Py_tp_traverse, waiter_traverse},
    {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, waiter_next},
    {Py_am_send, waiter_send},       {0, NULL}};

static PyType_Spec waiter_spec = {.name = "portalpatch._core._FutureIterator",
                                  .basicsize = sizeof(Waiter),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  .slots = waiter_slots};

static PyObject *future_await(PyObject *object)
{
    Future *self = (Future *)object;
    if (!self->loop && self->state == PENDING) {
        PyObject *wait = asyncio_attribute("portalpatch._future_trio", "wait");
        PyObject *coroutine = wait ? PyObject_CallOneArg(wait, object) : NULL;
        PyObject *iterator = coroutine ? PyObject_CallMethod(coroutine, "__await__", NULL) : NULL;
        Py_XDECREF(wait);
        Py_XDECREF(coroutine);
        return iterator;
    }
    Waiter *waiter = (Waiter *)waiter_type->tp_alloc(waiter_type, 0);
    if (waiter) {
        Py_INCREF(self);
        waiter->future = self;
    }
    return (PyObject *)waiter;
}

/* ---- the type -------------------------------------------------------------------------------------- */

static PyObject *make(PyObject *loop)
{
    Future *self = (Future *)future_type->tp_alloc(future_type, 0);
    if (self && loop && loop != Py_None) {
        self->loop = Py_NewRef(loop);
    }
    return (PyObject *)self;
}

static PyObject *future_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", NULL};
    PyObject *loop = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:Future", names, &loop)) {
        return NULL;
    }
    Future *self = (Future *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    if (loop != Py_None) {
        self->loop = Py_NewRef(loop);
        return (PyObject *)self;
    }
    if (running_loop(&self->loop) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int future_traverse(PyObject *object, visitproc visit, void *arg)
{
    Future *self = (Future *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->result);
    Py_VISIT(self->exception);
    Py_VISIT(self->message);
    Py_VISIT(self->callbacks);
    return 0;
}

static int future_clear(PyObject *object)
{
    Future *self = (Future *)object;
    Py_CLEAR(self->loop);
    Py_CLEAR(self->result);
    Py_CLEAR(self->exception);
    Py_CLEAR(self->message);
    Py_CLEAR(self->callbacks);
    return 0;
}

static void future_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((Future *)self)->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    future_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *future_get_blocking(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((Future *)self)->blocking);
}

static int future_set_blocking(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = value ? PyObject_IsTrue(value) : -1;
    if (truth < 0) {
        if (!value) {
            PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        }
        return -1;
    }
    ((Future *)self)->blocking = (char)truth;
    return 0;
}

static PyObject *future_repr(PyObject *object)
{
    static const char *const states[] = {"pending", "finished", "cancelled"};
    Future *self = (Future *)object;
    if (self->exception) {
        return PyUnicode_FromFormat("<portalpatch.Future finished exception=%R>", self->exception);
    }
    if (self->state == FINISHED) {
        return PyUnicode_FromFormat("<portalpatch.Future finished result=%R>", self->result);
    }
    return PyUnicode_FromFormat("<portalpatch.Future %s>", states[self->state]);
}

#define FUNCTION(name) ((PyCFunction)(void (*)(void))name)

static PyMethodDef future_methods[] = {
    {"set_result", future_set_result, METH_O,
     PyDoc_STR("set_result($self, result, /)\n--\n\n"
               "Complete with a result, from any thread. InvalidStateError where it is done.")},
    {"set_exception", future_set_exception, METH_O,
     PyDoc_STR("set_exception($self, exception, /)\n--\n\n"
               "Complete with an exception, from any thread. InvalidStateError where it is done.")},
    {"cancel", FUNCTION(future_cancel), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("cancel($self, /, msg=None)\n--\n\nCancel; False where it is done already.")},
    {"result", future_result, METH_NOARGS,
     PyDoc_STR("result($self, /)\n--\n\nThe result, or raise the exception.")},
    {"exception", future_exception, METH_NOARGS,
     PyDoc_STR("exception($self, /)\n--\n\nThe exception, or None.")},
    {"done", future_done, METH_NOARGS, PyDoc_STR("done($self, /)\n--\n\nWhether it is complete.")},
    {"cancelled", future_cancelled, METH_NOARGS,
     PyDoc_STR("cancelled($self, /)\n--\n\nWhether it was cancelled.")},
    {"get_loop", future_get_loop, METH_NOARGS,
     PyDoc_STR("get_loop($self, /)\n--\n\nThe asyncio loop it belongs to.")},
    {"add_done_callback", FUNCTION(future_add_done_callback), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("add_done_callback($self, fn, /, *, context=None)\n--\n\n"
               "Call fn(self) in the loop once it is complete.")},
    {"remove_done_callback", future_remove_done_callback, METH_O,
     PyDoc_STR("remove_done_callback($self, fn, /)\n--\n\nHow many were removed.")},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef future_getset[] = {
    {"_asyncio_future_blocking", future_get_blocking, future_set_blocking, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef future_members[] = {
    {"_loop", T_OBJECT, offsetof(Future, loop), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Future, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};

PyDoc_STRVAR(future_doc,
             "Future(*, loop=None)\n--\n\n"
             "An awaitable that C code and Python code can complete from any OS thread.\n\n"
             "loop: the asyncio loop whose tasks await it; default: the running one; where none\n"
             "runs (Trio), any Trio task may. Semantics: asyncio.Future. C: future_api.h.");

static PyType_Slot future_slots[] = {
    {Py_tp_doc, (void *)future_doc}, {Py_tp_new, future_new},
    {Py_tp_dealloc, future_dealloc}, {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},     {Py_tp_repr, future_repr},
    {Py_tp_methods, future_methods}, {Py_tp_getset, future_getset},
    {Py_tp_members, future_members}, {Py_am_await, future_await},
    {Py_tp_iter, future_await},      {0, NULL}};

static PyType_Spec future_spec = {.name = "portalpatch.Future",
                                  .basicsize = sizeof(Future),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  .slots = future_slots};

static struct pp_future_api api = {1, make, set_result, set_exception};

int futures_exec(PyObject *module)
{
    future_type = (PyTypeObject *)PyType_FromSpec(&future_spec);
    waiter_type = (PyTypeObject *)PyType_FromSpec(&waiter_spec);
    PyObject *capsule = PyCapsule_New(&api, "portalpatch._core._future_api", NULL);
    if (!future_type || !waiter_type || !capsule ||
        PyModule_AddObjectRef(module, "Future", (PyObject *)future_type) < 0 ||
        PyModule_AddObjectRef(module, "_future_api", capsule) < 0) {
        Py_XDECREF(capsule);
        return -1;
    }
    Py_DECREF(capsule);
    return 0;
}
