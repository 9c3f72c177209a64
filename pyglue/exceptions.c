/* exceptions.c: the pending exception as one owned object, and back.
 *
 * Called by whatever in this module carries an exception from one place to another. CPython 3.12 made
 * this form its own; until then an exception is three objects that must stay together.
 */
#include "exceptions.h"

#include <frameobject.h>
#include <string.h>

PyObject *exception_take(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) {
        PyException_SetTraceback(value, traceback);
        Py_DECREF(traceback);
    }
    Py_XDECREF(type);
    return value;
}

void exception_give(PyObject *exception)
{
    PyObject *traceback = PyException_GetTraceback(exception);
    PyObject *type = (PyObject *)Py_TYPE(exception);
    Py_INCREF(type);
    PyErr_Restore(type, exception, traceback);
}

void exception_from_cause(PyObject *kind, const char *format, const char *text)
{
    PyObject *cause = exception_take();
    PyErr_Format(kind, format, text);
    PyObject *exception = exception_take();
    Py_INCREF(cause);
    PyException_SetCause(exception, cause); /* both steal */
    PyException_SetContext(exception, cause);
    exception_give(exception);
}

PyObject *exception_stop_iteration(PyObject *value)
{
    if (value == Py_None) {
        Py_DECREF(value);
        PyErr_SetNone(PyExc_StopIteration);
        return NULL;
    }
    /* made by hand: a tuple or an exception as value must not be unpacked */
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (stop) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

int exception_is_own_frame(PyObject *frame)
{
    PyObject *globals = PyObject_GetAttrString(frame, "f_globals");
    PyObject *name = globals ? PyDict_GetItemString(globals, "__name__") : NULL;
    const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    int is_own = text && strncmp(text, "portalpatch.", strlen("portalpatch.")) == 0;
    Py_XDECREF(globals);
    PyErr_Clear();
    return is_own;
}

void exception_hide_own_frames(void)
{
    PyObject *exception = exception_take();
    if (!exception) {
        return;
    }
    PyObject *traceback = PyException_GetTraceback(exception), *next = traceback;
    while (next && exception_is_own_frame((PyObject *)((PyTracebackObject *)next)->tb_frame)) {
        next = (PyObject *)((PyTracebackObject *)next)->tb_next;
    }
    if (next != traceback) {
        PyException_SetTraceback(exception, next ? next : Py_None);
    }
    Py_XDECREF(traceback);
    exception_give(exception);
}
