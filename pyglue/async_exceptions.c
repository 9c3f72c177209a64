/* async_exceptions.c: PyThreadState_SetAsyncExc knows green threads, for who calls it through ctypes.
 *
 * Programs that stop a thread from outside (timeouts around functions, notebooks) give it the ident of
 * a threading.Thread; CPython's own looks it up among OS threads. patches/green_threads.py puts this
 * one into ctypes.pythonapi. Invariant: tstate->async_exc is the executing green thread's; strand_install
 * calls async_exceptions_exchange() where another's is needed. As natively, a thread that waits
 * gets the exception once its wait is over.
 */
#include "swaps.h"

static Strand *find_green(unsigned long ident)
{
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        if (hub->main.ident == ident) {
            return &hub->main;
        }
        for (Strand *strand = hub->green; strand; strand = strand->all_next) {
            if (strand->ident == ident) {
                return strand;
            }
        }
    }
    return NULL;
}

/* As CPython's: how many threads now have `exception` (a class; NULL takes one back) pending: 0, 1. */
static int set_async_exception(unsigned long ident, PyObject *exception)
{
    Strand *strand = in_main_interpreter() ? find_green(ident) : NULL;
    if (!strand) {
        return PyThreadState_SetAsyncExc(ident, exception);
    }
    Hub *hub = strand->hub;
    if (hub->installed == strand) {
        return PyThreadState_SetAsyncExc(hub->tstate->thread_id, exception);
    }
    Py_XINCREF(exception);
    Py_XSETREF(strand->async_exception, exception);
    return 1;
}

void async_exceptions_exchange(Hub *hub, Strand *from, Strand *to)
{
    unsigned long ident = hub->tstate->thread_id;
    if (hub->tstate->async_exc) {
        Py_INCREF(hub->tstate->async_exc);
        Py_XSETREF(from->async_exception, hub->tstate->async_exc);
        PyThreadState_SetAsyncExc(ident, NULL);
    }
    if (to->async_exception) {
        PyObject *exception = to->async_exception;
        to->async_exception = NULL;
        PyThreadState_SetAsyncExc(ident, exception);
        Py_DECREF(exception);
    }
}

int async_exceptions_exec(PyObject *module)
{
    return PyModule_AddObject(module, "set_async_exception",
                              PyLong_FromVoidPtr((void *)set_async_exception));
}
