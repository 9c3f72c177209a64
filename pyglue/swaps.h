/* swaps.h: built-in functions and methods that are exchanged in place. */
#ifndef PORTALPATCH_SWAPS_H
#define PORTALPATCH_SWAPS_H

#include "core.h"

/* A C function that can take the place of a built-in one with the same calling convention. */
typedef struct {
    const char *name; /* what patches/ calls it by: "_thread.get_ident", "_thread.lock.acquire" */
    PyCFunction function;
    int flags; /* the METH_ flags that the target must have */
} Stand_in;

/* Method tables are shared by all interpreters of the process; green threads exist in the main one. */
static inline int in_main_interpreter(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}

/* Announce stand-ins (an array ended by a NULL name, kept for ever). */
int swaps_announce(const Stand_in *stand_ins);

/* The method definition behind a built-in function or a method descriptor; NULL, with an exception
 * set, for anything else. */
PyMethodDef *swaps_definition(PyObject *callable);

/* A built-in function that does what `function` does, also while that is swapped: made before.
 * New reference, or NULL with an exception set. */
PyObject *swaps_keep_original(PyObject *function);

/* The C function of a module's built-in function as it was before any swap; NULL with an exception. */
PyCFunction swaps_native(PyObject *module, const char *name);

/* The loop asyncio shall see as running in this strand: borrowed, or NULL. A task whose plain function
 * runs a loop of its own sees that one. tasks.c */
PyObject *tasks_running_loop(Strand *strand);

/* Whether a task's plain function wants this loop to run, which is the task's own. tasks.c */
int tasks_ask_for_own_loop(PyObject *loop);

int swaps_exec(PyObject *module);
int native_locks_exec(PyObject *module);     /* native_locks.c */
int signals_exec(PyObject *module);          /* signals.c */
int tasks_exec(PyObject *module);            /* tasks.c */
int preempt_exec(PyObject *module);          /* preempt.c */
int semaphores_exec(PyObject *module);       /* semaphores.c */
int frames_exec(PyObject *module);           /* frames.c */
int async_exceptions_exec(PyObject *module); /* async_exceptions.c */
/* `from`'s pending exception is put away, `to`'s becomes the thread's; called where one has one. */
void async_exceptions_exchange(Hub *hub, Strand *from, Strand *to);
int tracing_exec(PyObject *module); /* tracing.c */

/* Exchange the trace and profile functions of two lines of control, as one is installed in the place
 * of the other; and drop those of the one that ends. tracing.c */
void tracing_exchange(Hub *hub, Strand *from, Strand *to);
void tracing_end(void);

void signals_forget(Strand *strand); /* it ends: signals.c keeps nothing of it */

/* See that no green thread starves the others, from now on. 0, or -1 with an exception set. */
int preempt_start(void);
void preempt_stop(int number);   /* the program wants this signal for itself */
PyObject *preempt_handler(void); /* borrowed: what it installs as a signal handler */

#endif
