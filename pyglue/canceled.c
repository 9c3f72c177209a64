/* canceled.c: the OSError that a cancelled call becomes is the cancellation itself.
 *
 * A call that ended because its task was cancelled returns ECANCELED, and CPython's C code makes an
 * OSError of that: PyErr_SetFromErrno calls the type and raises what it gets. So while patched,
 * calling OSError(ECANCELED, ...) in a strand with a pending exception gives that exception: it is
 * raised at the very line, in any OS thread. C libraries that make an error of their own of it are
 * ops.c's business. Called by CPython through OSError's tp_vectorcall, which is otherwise unset and
 * never inherited: tp_new and tp_init stay as they are, since by their identity OSError tells which
 * of the two a subclass means to take its arguments. Started and stopped by ops.c.
 * Invariant: without a pending exception OSError is untouched, and its subclasses always are.
 */
#include "core.h"

#include <errno.h>

static int is_canceled(PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || !PyLong_CheckExact(args[0])) {
        return 0;
    }
    int overflow;
    return PyLong_AsLongAndOverflow(args[0], &overflow) == ECANCELED;
}

/* What calling a type without tp_vectorcall does. */
static PyObject *call_type(PyObject *type, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *result = NULL, *keywords = NULL;
    PyObject *positional = PyTuple_New(count);
    if (!positional) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        PyTuple_SET_ITEM(positional, i, args[i]);
    }
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    int failed = named && !(keywords = PyDict_New());
    for (Py_ssize_t i = 0; i < named && !failed; i++) {
        failed = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) < 0;
    }
    if (!failed) {
        result = PyType_Type.tp_call(type, positional, keywords);
    }
    Py_DECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

static PyObject *oserror_call(PyObject *type, PyObject *const *args, size_t flagged_count,
                              PyObject *names)
{
    Hub *hub = hub_get();
    Py_ssize_t count = PyVectorcall_NARGS(flagged_count);
    if (hub && hub->current->thrown && !hub->polling && is_canceled(args, count)) {
        PyObject *exception = hub->current->thrown;
        hub->current->thrown = NULL;
        hub->current->tripped = 0;
        if (!hub->is_main_thread) {
            PyThreadState_SetAsyncExc(hub->tstate->thread_id, NULL); /* it would come again */
        }
        return exception;
    }
    return call_type(type, args, count, names);
}

void canceled_start(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (!type->tp_vectorcall) {
        type->tp_vectorcall = oserror_call;
    }
}

void canceled_stop(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (type->tp_vectorcall == oserror_call) {
        type->tp_vectorcall = NULL;
    }
}
