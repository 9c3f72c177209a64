/* native_entry.c: Python entered by an OS thread of our own while the interpreter may be ending.
 *
 * Called by ops.c for the pool's workers, and by hub.c where a native thread ends. PyGILState_Ensure()
 * makes a Python state for a thread that has none, and crashes where the interpreter is freed at that
 * moment. Here the end of the interpreter and the making of a state exclude each other. Invariant: the
 * GIL is not waited for with the lock held, nor is the lock by a thread that has a state and so may hold
 * the GIL. A thread that waits for it when the interpreter ends stays there, or ends (until 3.13), as
 * CPython's own daemon threads.
 */
#include "core.h"

#include <pthread.h>
#include <stdatomic.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(PyInterpreterState *) interpreter; /* NULL: it has been cleared; set with the lock */

int python_is_ending(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

/* Whether tracemalloc is on: it takes the GIL for each raw allocation, and PyThreadState_New() makes
 * one. (No block is ever at address 0; PyTraceMalloc_Untrack() says -2 when it is off.) */
static int allocations_wait_for_gil(void)
{
    return PyTraceMalloc_Untrack(0, 0) != -2;
}

int python_enter(PythonEntry *entry)
{
    *entry = (PythonEntry){0};
    if (atomic_load(&interpreter) && PyGILState_GetThisThreadState()) {
        entry->gil = PyGILState_Ensure();
        return 0;
    }
    pthread_mutex_lock(&lock);
    PyInterpreterState *own = python_is_ending() ? NULL : interpreter;
    int is_locked = own && !allocations_wait_for_gil();
    if (!is_locked) {
        pthread_mutex_unlock(&lock); /* under tracemalloc no safer than PyGILState_Ensure() */
    }
    if (own) {
        entry->made = PyThreadState_New(own);
    }
    if (is_locked) {
        pthread_mutex_unlock(&lock);
    }
    if (!entry->made) {
        return -1;
    }
    PyEval_RestoreThread(entry->made);
    return 0;
}

void python_leave(PythonEntry *entry)
{
    if (entry->made) {
        PyThreadState_Clear(entry->made);
        PyThreadState_DeleteCurrent();
    } else {
        PyGILState_Release(entry->gil);
    }
}

/* The interpreter clears its dict once nothing else of it can be used. */
static void interpreter_cleared(PyObject *capsule)
{
    (void)capsule;
    pthread_mutex_lock(&lock);
    interpreter = NULL;
    pthread_mutex_unlock(&lock);
}

static void unlock_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
}

int native_entry_exec(PyObject *module)
{
    (void)module;
    if (interpreter) {
        return 0;
    }
    PyInterpreterState *own = PyInterpreterState_Get();
    PyObject *dict = PyInterpreterState_GetDict(own); /* borrowed */
    PyObject *capsule = dict ? PyCapsule_New(&lock, NULL, interpreter_cleared) : NULL;
    int done = capsule ? PyDict_SetItemString(dict, "portalpatch", capsule) : -1;
    Py_XDECREF(capsule);
    if (done < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_SystemError, "the interpreter has no dict");
        }
        return -1;
    }
    interpreter = own;
    pthread_atfork(NULL, NULL, unlock_in_child);
    return 0;
}
