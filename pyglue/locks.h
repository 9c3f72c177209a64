/* locks.h: the green Lock, as threads.c needs it (the sentinel of a thread is one). */
#ifndef PORTALPATCH_LOCKS_H
#define PORTALPATCH_LOCKS_H

#include "waiters.h"

typedef struct GreenLock {
    PyObject_HEAD PyObject *weakrefs;
    WaitQueue waiters;
    unsigned long holder;           /* who acquired it last, for dumps: valid while locked */
    struct GreenLock **sentinel_of; /* where threads.c remembers it, or NULL; cleared as it dies */
    char locked;
    char
        barging; /* a sentinel's: release unlocks and wakes a waiter, as natively; threading asserts it */
} GreenLock;

GreenLock *lock_new(void);          /* unlocked, or NULL with an exception set */
void lock_release(GreenLock *lock); /* must be locked */

/* What acquire may do: not wait (0), wait for ever (-1), or wait so many nanoseconds. */
typedef int64_t Patience;
/* Wait for a lock that is locked: True, False, or NULL with an exception set. */
PyObject *lock_wait(GreenLock *lock, Patience patience);

extern PyTypeObject *lock_type, *rlock_type;
/* For Condition.wait: a Lock or RLock of ours is let go of, and taken back. */
int lock_is_held(PyObject *lock);          /* RLock: by the caller; Lock: by anybody */
unsigned long lock_let_go(PyObject *lock); /* must be held; returns the count of an RLock */
/* 0, or -1 with an exception set that came meanwhile: the lock is held again either way. */
int lock_take_back(PyObject *lock, unsigned long count);

/* Parse the arguments of acquire. 0, or -1 with the exception CPython would raise. */
int acquire_arguments(PyObject *args, PyObject *kwargs, Patience *patience);

/* A fast call's arguments as a tuple and a dict (or NULL), new references. 0, or -1. */
int arguments_pack(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                   PyObject **positional, PyObject **keywords);

int queues_exec(PyObject *module);     /* queues.c */
int conditions_exec(PyObject *module); /* conditions.c */

/* Who may re-enter an RLock: get_ident(), but every task of a loop differs. */
unsigned long strand_key(void);

/* Add functions to our module that say they belong to _thread: reprs, pickles and help() then do not
 * change. 0, or -1 with an exception set. */
int add_functions_of_thread_module(PyObject *module, PyMethodDef *methods);

#endif
