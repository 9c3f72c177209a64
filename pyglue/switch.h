/* switch.h: the raw greenlet switch.
 *
 * Inline, since greenlet copies what is on the stack between its two ends at each switch.
 */
#ifndef PORTALPATCH_SWITCH_H
#define PORTALPATCH_SWITCH_H

#include "core.h"

#include <greenlet/greenlet.h>

/* strand.c: what a switch of ours brings, and that in a tuple; anything else is somebody's own. */
extern PyObject *greenlet_resumed, *greenlet_resumed_args;
PyObject *greenlet_pass_on(PyObject *result); /* steals it */
int greenlet_switch_with_error(PyGreenlet *to);

/* The objects whose deallocation this thread of control has put off (a __del__ deep down in a chain of them
 * may wait, or be interrupted): taken out of the thread's state while another one runs, as an OS thread's are its
 * own. From 3.13 on greenlet counts a reference to the first of them, which is dead, and frees it twice. */
static inline PyObject *trash_take(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *tstate = PyThreadState_Get();
    PyObject *trash = tstate->delete_later;
    tstate->delete_later = NULL;
    return trash;
#else
    return NULL;
#endif
}

static inline void trash_put_back(PyObject *trash)
{
#if PY_VERSION_HEX >= 0x030D0000
    if (trash) {
        PyThreadState_Get()->delete_later = trash;
    }
#else
    (void)trash;
#endif
}

/* Raw switch that keeps a pending exception of the caller. 0, or -1 with an exception thrown here. */
static inline __attribute__((always_inline)) int greenlet_switch(PyGreenlet *to)
{
    if (PyErr_Occurred()) {
        return greenlet_switch_with_error(to);
    }
    PyObject *trash = trash_take();
    PyObject *result = PyGreenlet_Switch(to, greenlet_resumed_args, NULL);
    trash_put_back(trash);
    if (result != greenlet_resumed && !(result = greenlet_pass_on(result))) {
        return -1;
    }
    Py_DECREF(result);
    return 0;
}

#endif
