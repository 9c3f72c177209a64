/* hidden.c: functions of this package that leave no frame of theirs in a traceback.
 *
 * Called by _portal.py and others, which write them in Python. A traceback gets an entry for each Python
 * function that an exception leaves, so hiding one takes a caller in C: Hidden calls the function, HiddenCoroutine
 * steps the coroutine that it made, and both take this package's own entries off the top of what is
 * raised. To inspect, pickle and introspection they are the function and the coroutine they stand for.
 */
#include "exceptions.h"
#include "swaps.h"

#include <structmember.h>

static PyTypeObject Hidden_Type, HiddenCoroutine_Type;

/* ---- coroutines ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD PyObject *inner; /* the coroutine of an `async def` of this package */
    PyObject *weakrefs;
} HiddenCoroutine;

static PyObject *hidden_coroutine(PyObject *inner)
{
    HiddenCoroutine *self = PyObject_GC_New(HiddenCoroutine, &HiddenCoroutine_Type);
    if (!self) {
        Py_DECREF(inner);
        return NULL;
    }
    self->inner = inner;
    self->weakrefs = NULL;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PySendResult coroutine_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    PySendResult status = PyIter_Send(((HiddenCoroutine *)self)->inner, value, result);
    if (status == PYGEN_ERROR) {
        exception_hide_own_frames();
    }
    return status;
}

static PyObject *coroutine_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = coroutine_am_send(self, value, &result);
    return status == PYGEN_RETURN ? exception_stop_iteration(result) : result;
}

static PyObject *coroutine_next(PyObject *self)
{
    return coroutine_send(self, Py_None);
}

static PyObject *call_inner(PyObject *self, const char *name, PyObject *args)
{
    PyObject *method = PyObject_GetAttrString(((HiddenCoroutine *)self)->inner, name);
    PyObject *result = method ? PyObject_Call(method, args, NULL) : NULL;
    Py_XDECREF(method);
    if (!result) {
        exception_hide_own_frames();
    }
    return result;
}

static PyObject *coroutine_throw(PyObject *self, PyObject *args)
{
    return call_inner(self, "throw", args);
}

static PyObject *coroutine_close(PyObject *self, PyObject *args)
{
    return call_inner(self, "close", args);
}

static PyObject *coroutine_am_await(PyObject *self)
{
    return Py_NewRef(self);
}

static PyObject *coroutine_class(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)Py_TYPE(((HiddenCoroutine *)self)->inner));
}

static PyObject *coroutine_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(((HiddenCoroutine *)self)->inner, name);
}

static PyObject *coroutine_repr(PyObject *self)
{
    return PyObject_Repr(((HiddenCoroutine *)self)->inner);
}

/* What it awaits, behind this package's own coroutines; new reference, the innermost of these at least. */
static PyObject *behind(PyObject *self)
{
    PyObject *at = Py_NewRef(((HiddenCoroutine *)self)->inner);
    for (;;) {
        PyObject *awaited = PyObject_GetAttrString(at, "cr_await");
        int has_frame =
            awaited && awaited != Py_None && PyObject_HasAttrString(awaited, "cr_frame");
        PyObject *frame = has_frame ? PyObject_GetAttrString(at, "cr_frame") : NULL;
        int is_own = frame && frame != Py_None && exception_is_own_frame(frame);
        Py_XDECREF(frame);
        if (!is_own) {
            Py_XDECREF(awaited);
            PyErr_Clear();
            return at;
        }
        Py_SETREF(at, awaited);
    }
}

static PyObject *coroutine_shown(PyObject *self, void *name)
{
    PyObject *at = behind(self), *value = PyObject_GetAttrString(at, name);
    Py_DECREF(at);
    return value;
}

static int coroutine_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((HiddenCoroutine *)self)->inner);
    return 0;
}

static int coroutine_tp_clear(PyObject *self)
{
    Py_CLEAR(((HiddenCoroutine *)self)->inner);
    return 0;
}

static void coroutine_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (((HiddenCoroutine *)self)->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    coroutine_tp_clear(self);
    PyObject_GC_Del(self);
}

static PyMethodDef coroutine_methods[] = {
    {"send", coroutine_send, METH_O, NULL},
    {"throw", coroutine_throw, METH_VARARGS, NULL},
    {"close", coroutine_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef coroutine_getset[] = {{"__class__", coroutine_class, NULL, NULL, NULL},
                                         {"cr_frame", coroutine_shown, NULL, NULL, "cr_frame"},
                                         {"cr_await", coroutine_shown, NULL, NULL, "cr_await"},
                                         {"cr_code", coroutine_shown, NULL, NULL, "cr_code"},
                                         {NULL, NULL, NULL, NULL, NULL}};

static PyAsyncMethods coroutine_async = {.am_await = coroutine_am_await,
                                         .am_send = coroutine_am_send};

static PyTypeObject HiddenCoroutine_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.HiddenCoroutine",
    .tp_doc = PyDoc_STR("A coroutine of this package, whose own frames are not shown."),
    .tp_basicsize = sizeof(HiddenCoroutine),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = coroutine_dealloc,
    .tp_traverse = coroutine_traverse,
    .tp_clear = coroutine_tp_clear,
    .tp_repr = coroutine_repr,
    .tp_getattro = coroutine_getattro,
    .tp_as_async = &coroutine_async,
    .tp_iternext = coroutine_next,
    .tp_methods = coroutine_methods,
    .tp_getset = coroutine_getset,
    .tp_weaklistoffset = offsetof(HiddenCoroutine, weakrefs),
};

/* ---- functions ------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD PyObject *function, *dict, *weakrefs;
    PyObject *nested; /* called instead where a task's plain function calls it for its own loop */
    vectorcallfunc vectorcall;
} Hidden;

static PyObject *hidden_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf,
                                   PyObject *names)
{
    PyObject *function = ((Hidden *)self)->function, *nested = ((Hidden *)self)->nested;
    if (nested) {
        if (PyVectorcall_NARGS(nargsf) == 0 || !tasks_ask_for_own_loop(args[0])) {
            return PyObject_Vectorcall(function, args, nargsf, names);
        }
        function = nested;
    }
    Py_INCREF(function);
    PyObject *result = PyObject_Vectorcall(function, args, nargsf, names);
    if (!result) {
        exception_hide_own_frames();
    } else if (PyCoro_CheckExact(result) && PyFunction_Check(function) &&
               (((PyCodeObject *)PyFunction_GET_CODE(function))->co_flags & CO_COROUTINE)) {
        result = hidden_coroutine(result);
    }
    Py_DECREF(function);
    return result;
}

static PyObject *hidden_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"function", "nested", NULL};
    PyObject *function, *nested = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:Hidden", names, &function, &nested)) {
        return NULL;
    }
    Hidden *self = (Hidden *)type->tp_alloc(type, 0);
    if (self) {
        self->function = Py_NewRef(function);
        self->nested = Py_XNewRef(nested);
        self->vectorcall = hidden_vectorcall;
    }
    return (PyObject *)self;
}

static PyObject *hidden_bind(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object && object != Py_None ? PyMethod_New(self, object) : Py_NewRef(self);
}

static PyObject *hidden_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(((Hidden *)self)->function, name);
}

static PyObject *hidden_repr(PyObject *self)
{
    return PyObject_Repr(((Hidden *)self)->function);
}

/* As functions are: by name. */
static PyObject *hidden_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetAttrString(self, "__qualname__");
}

static int hidden_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((Hidden *)self)->function);
    Py_VISIT(((Hidden *)self)->nested);
    Py_VISIT(((Hidden *)self)->dict);
    return 0;
}

static int hidden_clear(PyObject *self)
{
    Py_CLEAR(((Hidden *)self)->function);
    Py_CLEAR(((Hidden *)self)->nested);
    Py_CLEAR(((Hidden *)self)->dict);
    return 0;
}

static void hidden_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (((Hidden *)self)->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    hidden_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef hidden_methods[] = {
    {"__reduce__", hidden_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef hidden_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject Hidden_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.Hidden",
    .tp_doc =
        PyDoc_STR("Hidden(function, nested=None)\n--\n\nCalls function; its frames are not shown."),
    .tp_basicsize = sizeof(Hidden),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = hidden_new,
    .tp_dealloc = hidden_dealloc,
    .tp_traverse = hidden_traverse,
    .tp_clear = hidden_clear,
    .tp_repr = hidden_repr,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Hidden, vectorcall),
    .tp_getattro = hidden_getattro,
    .tp_descr_get = hidden_bind,
    .tp_methods = hidden_methods,
    .tp_getset = hidden_getset,
    .tp_dictoffset = offsetof(Hidden, dict),
    .tp_weaklistoffset = offsetof(Hidden, weakrefs),
};

int hidden_exec(PyObject *module)
{
    return PyType_Ready(&HiddenCoroutine_Type) < 0 ? -1 : PyModule_AddType(module, &Hidden_Type);
}
