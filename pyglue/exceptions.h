/* exceptions.h: the pending exception as one owned object, and back. Implementation: exceptions.c. */
#ifndef PORTALPATCH_EXCEPTIONS_H
#define PORTALPATCH_EXCEPTIONS_H

#include <Python.h>

/* Take the pending exception, normalized, with its traceback; new reference, NULL: none is pending. */
PyObject *exception_take(void);
/* Make it the pending one as it is, traceback included. Steals it. */
void exception_give(PyObject *exception);
/* A new exception whose cause is the pending one. `format` may have one %s, for `text`. */
void exception_from_cause(PyObject *kind, const char *format, const char *text);
/* Raise StopIteration(value), as a coroutine that returned it does. Steals it; returns NULL. */
PyObject *exception_stop_iteration(PyObject *value);
/* Whether it is a frame of a module of this package. Raises nothing; not with an exception pending. */
int exception_is_own_frame(PyObject *frame);
/* Take such frames off the top of the pending exception's traceback: the outermost ones. */
void exception_hide_own_frames(void);

#endif
