/* portal_await.c: await_, `await` from a synchronous function.
 *
 * Called by user code and statements.c. In a portal the awaitable's iterator is driven here, without a
 * Python frame in between, and what it yields goes to the task (portal_yield); elsewhere Python code
 * explains, or runs it on the hub's own loop. Semantics: the interpreter's GET_AWAITABLE and SEND.
 */
#include "portal.h"

static PyObject *s_close, *s_throw;

Portal *portal_current(Hub *hub)
{
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        return NULL;
    }
    Portal *portal = portal_of(hub->current);
    PyObject *context = hub->tstate->context;
    if (context && context == portal->context) {
        return portal; /* the context of its step, which no other task or callback can enter */
    }
    return host_is_current(portal) ? portal : NULL;
}

static int is_generator_coroutine(PyObject *object)
{
    if (!PyGen_CheckExact(object)) {
        return 0;
    }
    PyObject *code = PyObject_GetAttrString(object, "gi_code");
    int iterable = code && (((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE);
    Py_XDECREF(code);
    return iterable;
}

/* The iterator `await` would use, new reference; the TypeError native await gives. */
static PyObject *awaitable_iterator(PyObject *awaitable)
{
    if (PyCoro_CheckExact(awaitable) || Py_TYPE(awaitable) == &Portal_Type ||
        is_generator_coroutine(awaitable)) {
        Py_INCREF(awaitable);
        return awaitable;
    }
    PyAsyncMethods *methods = Py_TYPE(awaitable)->tp_as_async;
    if (!methods || !methods->am_await) {
#if PY_VERSION_HEX >= 0x030E0000
        const char *message = "'%.100s' object can't be awaited";
#else
        const char *message = "object %.100s can't be used in 'await' expression";
#endif
        PyErr_Format(PyExc_TypeError, message, Py_TYPE(awaitable)->tp_name);
        return NULL;
    }
    PyObject *iterator = methods->am_await(awaitable);
    if (!iterator) {
        return NULL;
    }
    if (PyCoro_CheckExact(iterator)) {
        PyErr_SetString(PyExc_TypeError, "__await__() returned a coroutine");
        Py_CLEAR(iterator);
    } else if (!PyIter_Check(iterator)) {
        PyErr_Format(PyExc_TypeError, "__await__() returned non-iterator of type '%.100s'",
                     Py_TYPE(iterator)->tp_name);
        Py_CLEAR(iterator);
    }
    return iterator;
}

/* What a throw into a delegating `await` does: GeneratorExit closes the inner iterator, anything
 * else goes to its throw method if it has one. */
static PySendResult throw_into(PyObject *iterator, PyObject **result)
{
    PyObject *exception = exception_take();
    PySendResult status = PYGEN_ERROR;
    if (PyObject_TypeCheck(exception, (PyTypeObject *)PyExc_GeneratorExit)) {
        PyObject *close = NULL;
        if (PyObject_GetOptionalAttr(iterator, s_close, &close) >= 0) {
            PyObject *closed = close ? PyObject_CallNoArgs(close) : Py_NewRef(Py_None);
            Py_XDECREF(close);
            if (closed) {
                Py_DECREF(closed);
                exception_give(exception);
                return PYGEN_ERROR;
            }
        }
    } else {
        PyObject *method = NULL;
        if (PyObject_GetOptionalAttr(iterator, s_throw, &method) >= 0) {
            if (!method) {
                exception_give(exception);
                return PYGEN_ERROR;
            }
            Py_DECREF(method);
            status = portal_drive(iterator, 1, exception, result);
        }
    }
    Py_DECREF(exception);
    return status;
}

/* Steals the iterator. */
static PyObject *await_iterator(Portal *portal, PyObject *iterator)
{
    PyObject *result = NULL, *sent = Py_None;
    Py_INCREF(sent);
    PySendResult status = PyIter_Send(iterator, sent, &result);
    Py_DECREF(sent);
    while (status == PYGEN_NEXT) {
        sent = portal_yield(portal, iterator, result);
        result = NULL;
        if (sent) {
            status = PyIter_Send(iterator, sent, &result);
            Py_DECREF(sent);
        } else {
            status = throw_into(iterator, &result);
        }
    }
    Py_DECREF(iterator);
    return result;
}

static PyObject *core_awaitable_iterator(PyObject *module, PyObject *awaitable)
{
    (void)module;
    if (PyCoro_CheckExact(awaitable) || Py_TYPE(awaitable)->tp_as_async) {
        Py_RETURN_NONE; /* checked in full when it is awaited */
    }
    PyObject *iterator = awaitable_iterator(awaitable);
    if (!iterator) {
        return NULL;
    }
    Py_DECREF(iterator);
    Py_RETURN_NONE;
}

int portal_is_awaitable(PyObject *object)
{
    PyAsyncMethods *methods = Py_TYPE(object)->tp_as_async;
    return (methods && methods->am_await) || is_generator_coroutine(object);
}

/* Outside a portal Python code explains, or runs the awaitable on the hub's own loop. */
static PyObject *await_outside(PyObject *awaitable)
{
    static PyObject *function;
    if (!function) {
        PyObject *module = PyImport_ImportModule("portalpatch._portal");
        function = module ? PyObject_GetAttrString(module, "_await_outside") : NULL;
        Py_XDECREF(module);
        if (!function) {
            return NULL;
        }
    }
    PyObject *result = PyObject_CallOneArg(function, awaitable);
    if (!result) {
        exception_hide_own_frames();
    }
    return result;
}

/* await_(awaitable). With `invalid`, what cannot be awaited is a TypeError of that text (%s is its
 * type), caused by the one that await gives. */
PyObject *portal_await(PyObject *awaitable, const char *invalid)
{
    Hub *hub = hub_get();
    Portal *portal = portal_current(hub);
    if (!portal || portal->forbidden) {
        if (invalid && !portal_is_awaitable(awaitable)) {
            PyErr_Format(PyExc_TypeError, invalid, Py_TYPE(awaitable)->tp_name);
            return NULL;
        }
        return await_outside(awaitable);
    }
    portal->awaits++;
    PyObject *iterator = awaitable_iterator(awaitable);
    if (iterator) {
        return await_iterator(portal, iterator);
    }
    if (invalid) {
        exception_from_cause(PyExc_TypeError, invalid, Py_TYPE(awaitable)->tp_name);
    }
    return NULL;
}

static PyObject *core_await(PyObject *module, PyObject *awaitable)
{
    (void)module;
    return portal_await(awaitable, NULL);
}

PyDoc_STRVAR(
    await_doc,
    "await_($module, awaitable, /)\n--\n\n"
    "`await awaitable`, from a synchronous function.\n\n"
    "In a task, the task's portal yields to its loop. Where no loop runs and `patch_all()`\n"
    "is in force, the awaitable runs on the hub's own loop and this line of control waits.\n"
    "\n"
    "Returns: what `await` would return.\n"
    "Raises:\n"
    "    RuntimeError: this task has no portal; the message says how to make one.\n"
    "    TypeError: not an awaitable, as native `await` says it.\n");

static PyMethodDef methods[] = {
    {"await_", core_await, METH_O, await_doc},
    {"awaitable_iterator", core_awaitable_iterator, METH_O,
     PyDoc_STR("Raise native await's TypeError for what cannot be awaited.")},
    {NULL, NULL, 0, NULL}};

int await_exec(PyObject *module)
{
    static const struct {
        PyObject **where;
        const char *text;
    } names[] = {{&s_close, "close"}, {&s_throw, "throw"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!*names[i].where && !(*names[i].where = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, methods);
}
