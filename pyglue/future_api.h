/* future_api.h: portalpatch.Future for C code: make one, hand it to Python to await, complete it.
 *
 *   struct pp_future_api *api = PyCapsule_Import("portalpatch._core._future_api", 0);
 *   PyObject *future = api->make(loop);            (loop: the asyncio loop, or NULL for Trio's)
 *   ... return it to Python; later, on any OS thread that holds the GIL:
 *   api->set_result(future, value);                (or set_exception with an instance)
 *
 * make returns a new reference, or NULL with an exception set. The setters steal nothing and return 0,
 * 1 when the future was done already (cancelled, most likely: drop the value), or -1 with an
 * exception set. What waits is woken through its own loop, as call_soon_threadsafe would.
 */
#ifndef PORTALPATCH_FUTURE_API_H
#define PORTALPATCH_FUTURE_API_H

#include <Python.h>

struct pp_future_api {
    unsigned version; /* 1 */
    PyObject *(*make)(PyObject *loop);
    int (*set_result)(PyObject *future, PyObject *value);
    int (*set_exception)(PyObject *future, PyObject *exception);
};

#endif
