/* statements.c: `async with` and `async for` for synchronous code: async_context and async_iter.
 *
 * Called by user code; awaits through portal.c. In C so that tracebacks show the user's frames only,
 * and because the errors for malformed objects quote C type names. Semantics: the interpreter's own
 * instructions of the running version (BEFORE_ASYNC_WITH, GET_AITER, GET_ANEXT, GET_AWAITABLE).
 */
#include "core.h"
#include "exceptions.h"

#include <structmember.h>

/* Look up a special method as the interpreter does: on the type, bound. NULL: no error set when
 * there is none. */
static PyObject *special(PyObject *object, const char *name)
{
    PyObject *key = PyUnicode_InternFromString(name);
    PyObject *method = key ? _PyType_Lookup(Py_TYPE(object), key) : NULL; /* borrowed */
    Py_XDECREF(key);
    if (!method) {
        return NULL;
    }
    descrgetfunc get = Py_TYPE(method)->tp_descr_get;
    Py_INCREF(method);
    if (!get) {
        return method;
    }
    PyObject *bound = get(method, object, (PyObject *)Py_TYPE(object));
    Py_DECREF(method);
    return bound;
}

/* Await what a special method returned; `what` names it in the error for what cannot be awaited. */
static PyObject *await_result(PyObject *awaitable, const char *what)
{
    if (!awaitable) {
        return NULL;
    }
    PyObject *result = NULL;
    if (portal_is_awaitable(awaitable)) {
        result = portal_await(awaitable, NULL);
    } else {
        PyErr_Format(PyExc_TypeError,
                     "'async with' received an object from %s that does not implement __await__: "
                     "%.100s",
                     what, Py_TYPE(awaitable)->tp_name);
    }
    Py_DECREF(awaitable);
    return result;
}

/* ---- async with ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD PyObject *manager;
    PyObject *leave; /* bound __aexit__, set while inside */
} AsyncContext;

static int context_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"manager", NULL};
    PyObject *manager;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:async_context", names, &manager)) {
        return -1;
    }
    Py_INCREF(manager);
    Py_XSETREF(((AsyncContext *)self)->manager, manager);
    return 0;
}

static PyObject *no_manager(PyObject *manager, const char *missing)
{
    if (PyErr_Occurred()) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030E0000
    PyTypeObject *type = Py_TYPE(manager);
    int synchronous = PyObject_HasAttrString((PyObject *)type, "__enter__") &&
                      PyObject_HasAttrString((PyObject *)type, "__exit__");
    PyErr_Format(PyExc_TypeError,
                 "'%T' object does not support the asynchronous context manager protocol "
                 "(missed %s method)%s",
                 manager, missing,
                 synchronous ? " but it supports the context manager protocol. "
                               "Did you mean to use 'with'?"
                             : "");
#elif PY_VERSION_HEX >= 0x030B0000
    PyErr_Format(PyExc_TypeError,
                 "'%.200s' object does not support the asynchronous context manager protocol%s",
                 Py_TYPE(manager)->tp_name,
                 strcmp(missing, "__aexit__") == 0 ? " (missed __aexit__ method)" : "");
#else
    (void)manager;
    PyErr_SetString(PyExc_AttributeError, missing);
#endif
    return NULL;
}

static PyObject *context_enter(PyObject *self, PyObject *unused)
{
    (void)unused;
    AsyncContext *context = (AsyncContext *)self;
    PyObject *manager = context->manager;
    if (!manager) {
        PyErr_SetString(PyExc_RuntimeError, "async_context was not initialized");
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030E0000
    static const char *const names[] = {"__aexit__", "__aenter__"};
#else
    static const char *const names[] = {"__aenter__", "__aexit__"};
#endif
    PyObject *first = special(manager, names[0]);
    if (!first) {
        return no_manager(manager, names[0]);
    }
    PyObject *second = special(manager, names[1]);
    if (!second) {
        Py_DECREF(first);
        return no_manager(manager, names[1]);
    }
    int leaves_first = PY_VERSION_HEX >= 0x030E0000;
    PyObject *enter = leaves_first ? second : first;
    PyObject *leave = leaves_first ? first : second;
    Py_XSETREF(context->leave, leave);
    PyObject *awaitable = PyObject_CallNoArgs(enter);
    Py_DECREF(enter);
    return await_result(awaitable, "__aenter__");
}

static PyObject *context_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *leave = ((AsyncContext *)self)->leave;
    if (!leave || nargs != 3) {
        PyErr_SetString(PyExc_RuntimeError, "async_context: __exit__() without __enter__()");
        return NULL;
    }
    Py_INCREF(leave);
    PyObject *awaitable = PyObject_Vectorcall(leave, args, 3, NULL);
    Py_DECREF(leave);
    return await_result(awaitable, "__aexit__");
}

static int context_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((AsyncContext *)self)->manager);
    Py_VISIT(((AsyncContext *)self)->leave);
    return 0;
}

static int context_clear(PyObject *self)
{
    Py_CLEAR(((AsyncContext *)self)->manager);
    Py_CLEAR(((AsyncContext *)self)->leave);
    return 0;
}

static void dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_TYPE(self)->tp_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef context_methods[] = {
    {"__enter__", context_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))context_exit, METH_FASTCALL, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    context_doc,
    "async_context(manager)\n--\n\n"
    "Use an async context manager in a synchronous `with`.\n\n"
    "Raises: what `async with` raises for an object that is not an async context manager.");

static PyTypeObject AsyncContext_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.async_context",
    .tp_doc = context_doc,
    .tp_basicsize = sizeof(AsyncContext),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = context_init,
    .tp_dealloc = dealloc,
    .tp_traverse = context_traverse,
    .tp_clear = context_clear,
    .tp_methods = context_methods,
};

/* ---- async for ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD PyObject *iterator;
} AsyncIter;

static PyTypeObject AsyncIter_Type, AsyncGenerator_Type;

static int is_generator(PyObject *iterator)
{
    return PyObject_HasAttrString(iterator, "asend") &&
           PyObject_HasAttrString(iterator, "athrow") && PyObject_HasAttrString(iterator, "aclose");
}

static PyObject *iter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"iterable", NULL};
    PyObject *iterable;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:async_iter", names, &iterable)) {
        return NULL;
    }
    PyAsyncMethods *methods = Py_TYPE(iterable)->tp_as_async;
    if (!methods || !methods->am_aiter) {
        PyErr_Format(PyExc_TypeError,
                     "'async for' requires an object with __aiter__ method, got %.100s",
                     Py_TYPE(iterable)->tp_name);
        return NULL;
    }
    PyObject *iterator = methods->am_aiter(iterable);
    if (!iterator) {
        return NULL;
    }
    methods = Py_TYPE(iterator)->tp_as_async;
    if (!methods || !methods->am_anext) {
        PyErr_Format(PyExc_TypeError,
                     "'async for' received an object from __aiter__ that does not implement "
                     "__anext__: %.100s",
                     Py_TYPE(iterator)->tp_name);
        Py_DECREF(iterator);
        return NULL;
    }
    if (type == &AsyncIter_Type && is_generator(iterator)) {
        type = &AsyncGenerator_Type;
    }
    AsyncIter *self = (AsyncIter *)type->tp_alloc(type, 0);
    if (!self) {
        Py_DECREF(iterator);
        return NULL;
    }
    self->iterator = iterator;
    return (PyObject *)self;
}

/* The pending exception as a synchronous iterator raises it. Returns NULL. */
static PyObject *end_of_iteration(void)
{
    if (PyErr_ExceptionMatches(PyExc_StopAsyncIteration)) {
        PyObject *end = exception_take(), *args = PyObject_GetAttrString(end, "args");
        PyErr_Clear();
        if (args && PyTuple_Check(args) && PyTuple_GET_SIZE(args)) {
            PyErr_SetObject(PyExc_StopIteration, args);
        }
        Py_XDECREF(args);
        Py_DECREF(end);
    } else if (PyErr_ExceptionMatches(PyExc_StopIteration)) { /* PEP 479 */
        exception_from_cause(PyExc_RuntimeError, "coroutine raised StopIteration", NULL);
    }
    return NULL;
}

static PyObject *iter_next(PyObject *self)
{
    PyObject *iterator = ((AsyncIter *)self)->iterator;
    PyAsyncMethods *methods = iterator ? Py_TYPE(iterator)->tp_as_async : NULL;
    if (!methods || !methods->am_anext) {
        PyErr_Format(PyExc_TypeError,
                     "'async for' requires an iterator with __anext__ method, "
                     "got %.100s",
                     iterator ? Py_TYPE(iterator)->tp_name : "NULL");
        return NULL;
    }
    PyObject *awaitable = methods->am_anext(iterator), *result = NULL;
    if (awaitable) {
        result = portal_await(awaitable, "'async for' received an invalid object from __anext__: "
                                         "%.100s");
        Py_DECREF(awaitable);
    }
    return result ? result : end_of_iteration();
}

static int iter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((AsyncIter *)self)->iterator);
    return 0;
}

static int iter_clear(PyObject *self)
{
    Py_CLEAR(((AsyncIter *)self)->iterator);
    return 0;
}

static PyMethodDef iter_methods[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(iter_doc,
             "async_iter(iterable)\n--\n\n"
             "Iterate over an async iterable with a synchronous `for`.\n\n"
             "Raises: what `async for` raises for an object that is not an async iterable.");

static PyTypeObject AsyncIter_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.async_iter",
    .tp_doc = iter_doc,
    .tp_basicsize = sizeof(AsyncIter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = iter_new,
    .tp_dealloc = dealloc,
    .tp_traverse = iter_traverse,
    .tp_clear = iter_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = iter_next,
    .tp_methods = iter_methods,
};

/* ---- async generators: what `yield from` passes on ---------------------------------------------- */

static PyObject *await_method(PyObject *self, const char *name, PyObject *args)
{
    PyObject *method = PyObject_GetAttrString(((AsyncIter *)self)->iterator, name);
    PyObject *awaitable = method ? PyObject_Call(method, args, NULL) : NULL, *result = NULL;
    Py_XDECREF(method);
    if (awaitable) {
        result = portal_await(awaitable, NULL);
        Py_DECREF(awaitable);
    }
    return result ? result : end_of_iteration();
}

/* A method, unlike tp_iternext, says StopIteration. */
static PyObject *no_more(void)
{
    if (!PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    return NULL;
}

static PyObject *generator_send(PyObject *self, PyObject *value)
{
    PyObject *args = PyTuple_Pack(1, value),
             *result = args ? await_method(self, "asend", args) : NULL;
    Py_XDECREF(args);
    return result ? result : no_more();
}

static PyObject *generator_throw(PyObject *self, PyObject *args)
{
    PyObject *result = await_method(self, "athrow", args);
    return result ? result : no_more();
}

static PyObject *generator_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    PyObject *args = PyTuple_New(0), *result = args ? await_method(self, "aclose", args) : NULL;
    Py_XDECREF(args);
    return result;
}

static PyMethodDef generator_methods[] = {
    {"send", generator_send, METH_O, PyDoc_STR("asend(value), awaited.")},
    {"throw", generator_throw, METH_VARARGS, PyDoc_STR("athrow(...), awaited.")},
    {"close", generator_close, METH_NOARGS, PyDoc_STR("aclose(), awaited.")},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject AsyncGenerator_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.async_generator",
    .tp_doc = PyDoc_STR("async_iter of an async generator: it can be sent to, and closed."),
    .tp_basicsize = sizeof(AsyncIter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_base = &AsyncIter_Type,
    .tp_new = iter_new,
    .tp_dealloc = dealloc,
    .tp_traverse = iter_traverse,
    .tp_clear = iter_clear,
    .tp_methods = generator_methods,
};

int statements_exec(PyObject *module)
{
    return PyModule_AddType(module, &AsyncContext_Type) < 0 ||
                   PyModule_AddType(module, &AsyncIter_Type) < 0 ||
                   PyType_Ready(&AsyncGenerator_Type) < 0
               ? -1
               : 0;
}
