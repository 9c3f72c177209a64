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

/* Raw switch that keeps a pending exception of the caller. 0, or -1 with an exception thrown here. */
static inline __attribute__((always_inline)) int greenlet_switch(PyGreenlet *to)
{
    if (PyErr_Occurred()) {
        return greenlet_switch_with_error(to);
    }
    PyObject *result = PyGreenlet_Switch(to, greenlet_resumed_args, NULL);
    if (result != greenlet_resumed && !(result = greenlet_pass_on(result))) {
        return -1;
    }
    Py_DECREF(result);
    return 0;
}

#endif
