/* canceled.c: the OSError that a cancelled call becomes is the cancellation itself.
 *
 * A call that ended because its task was cancelled returns ECANCELED, and CPython's C code makes an
 * OSError of that: PyErr_SetFromErrno calls the type and raises what it gets. So while patched,
 * making an OSError(ECANCELED, ...) in a strand with a pending exception gives that exception: it is
 * raised at the very line, in any OS thread. C libraries that make an error of their own of it are
 * ops.c's business. Called by CPython through OSError's tp_new; started and stopped by ops.c.
 * Invariant: without a pending exception OSError is untouched.
 */
#include "core.h"

#include <errno.h>

static newfunc native_new;

static int is_canceled(PyObject *args)
{
    if (PyTuple_GET_SIZE(args) < 1 || !PyLong_CheckExact(PyTuple_GET_ITEM(args, 0))) {
        return 0;
    }
    int overflow;
    return PyLong_AsLongAndOverflow(PyTuple_GET_ITEM(args, 0), &overflow) == ECANCELED;
}

static PyObject *oserror_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Hub *hub = hub_get();
    if (hub && hub->current->thrown && !hub->polling && is_canceled(args)) {
        PyObject *exception = hub->current->thrown;
        hub->current->thrown = NULL;
        hub->current->tripped = 0;
        if (!hub->is_main_thread) {
            PyThreadState_SetAsyncExc(hub->tstate->thread_id, NULL); /* it would come again */
        }
        return exception;
    }
    return native_new(type, args, kwargs);
}

void canceled_start(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (type->tp_new != oserror_new) {
        native_new = type->tp_new;
        type->tp_new = oserror_new;
    }
}

void canceled_stop(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (type->tp_new == oserror_new) {
        type->tp_new = native_new;
    }
}
