/* semaphores.c: multiprocessing's locks and semaphores wait without stopping other green threads.
 *
 * Called in place of _multiprocessing.SemLock's methods (swaps.c). Such a semaphore is shared with
 * other processes and has no fd; so a worker of the native pool waits for it to become free, gives it
 * back at once and thereby tells the parked strand to try. Invariants: only the strand itself takes
 * the semaphore, through the native method; a worker never waits longer than a slice, and the
 * semaphore object lives as long as a worker looks at it. Of an RLock the native owner is the OS
 * thread: which strand of it owns it is remembered here.
 */
#include "locks.h"
#include "swaps.h"

#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

typedef PyObject *(*FastWithKeywords)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

static FastWithKeywords native_acquire;
static PyCFunction native_release, native_is_mine, native_after_fork;

/* ---- recursive ones: their owner among the strands of this OS thread ---------------------------- */

typedef struct Owner {
    PyObject *lock; /* borrowed: owned locks are alive */
    unsigned long key, count;
    struct Owner *next;
} Owner;

static Owner *owners;

static Owner **owner_link(PyObject *lock)
{
    Owner **link = &owners;
    while (*link && (*link)->lock != lock) {
        link = &(*link)->next;
    }
    return link;
}

static int is_recursive(PyObject *lock)
{
    PyObject *kind = PyObject_GetAttrString(lock, "kind");
    int recursive = kind && PyLong_AsLong(kind) == 0;
    Py_XDECREF(kind);
    PyErr_Clear();
    return recursive;
}

/* ---- taking ------------------------------------------------------------------------------------- */

/* 1 taken, 0 not, -1 an exception is set. */
static int take(PyObject *lock, int recursive)
{
    unsigned long key = strand_key();
    if (recursive && *owner_link(lock) && (*owner_link(lock))->key != key) {
        return 0; /* natively it would be re-entered */
    }
    PyObject *not_blocking[] = {Py_False};
    PyObject *result = native_acquire(lock, not_blocking, 1, NULL);
    int taken = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    if (taken > 0 && recursive) {
        Owner *owner = *owner_link(lock);
        if (!owner && (owner = calloc(1, sizeof *owner))) {
            *owner = (Owner){.lock = lock, .key = key, .next = owners};
            owners = owner;
        }
        if (owner) {
            owner->count++;
        }
    }
    return taken;
}

/* ---- waiting ------------------------------------------------------------------------------------ */

enum { SLICE_NS = 200000000 };

typedef struct Look {
    sem_t *semaphore;
    struct timespec until; /* CLOCK_MONOTONIC */
    PyObject *lock;        /* owned; released by the strand, or later by forget_looks */
    atomic_int over;       /* a worker whose strand has given up has done with it */
    struct Look *next;
} Look;

static Look *abandoned;

static void look(void *arg)
{
    Look *self = arg;
    if (sem_clockwait(self->semaphore, CLOCK_MONOTONIC, &self->until) == 0) {
        sem_post(self->semaphore);
    }
}

static void look_abandoned(void *arg)
{
    Look *self = arg;
    atomic_store(&self->over, 1);
}

static void forget_looks(void)
{
    for (Look **link = &abandoned; *link;) {
        Look *self = *link;
        if (atomic_load(&self->over)) {
            *link = self->next;
            Py_DECREF(self->lock);
            free(self);
        } else {
            link = &self->next;
        }
    }
}

/* Wait until it is worth trying again. 0, or -1 with an exception set; 1: only blocking is left. */
static int wait_for_hint(Strand *strand, PyObject *lock, int64_t deadline, int owned_here)
{
    int64_t until = deadline_after(owned_here ? SLICE_NS / 100 : SLICE_NS);
    until = until < deadline ? until : deadline;
    enum pp_outcome outcome;
    if (owned_here) { /* by another strand of this thread: its release is not told */
        outcome = strand_park(strand, PARK_LOCK, -1, lock, until);
    } else {
        PyObject *handle = PyObject_GetAttrString(lock, "handle");
        Look *self = handle ? calloc(1, sizeof *self) : NULL;
        if (!self) {
            Py_XDECREF(handle);
            return PyErr_Occurred() ? -1 : 1;
        }
        self->semaphore = PyLong_AsVoidPtr(handle);
        Py_DECREF(handle);
        self->until = (struct timespec){until / 1000000000, until % 1000000000};
        Py_INCREF(lock);
        self->lock = lock;
        forget_looks();
        outcome = hub_offload(PARK_LOCK, look, look_abandoned, self, 1);
        if (outcome == PP_READY || outcome == PP_BLOCK) {
            Py_DECREF(lock);
            free(self);
        } else {
            self->next = abandoned;
            abandoned = self;
        }
    }
    if (outcome == PP_EINTR || outcome == PP_CANCELED) {
        return PyErr_Occurred() || strand_check(strand) < 0 ? -1 : 0;
    }
    return outcome == PP_BLOCK;
}

/* block and timeout where they are of the usual types; 0: let the native method judge them. */
static int parse(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, int *block,
                 int64_t *deadline)
{
    PyObject *blocking = nargs > 0 ? args[0] : Py_True, *timeout = nargs > 1 ? args[1] : Py_None;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (nargs < 1 && PyUnicode_CompareWithASCIIString(name, "block") == 0) {
            blocking = args[nargs + i];
        } else if (nargs < 2 && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            timeout = args[nargs + i];
        } else {
            return 0;
        }
    }
    if (nargs > 2 || !PyBool_Check(blocking)) {
        return 0;
    }
    *block = blocking == Py_True;
    *deadline = PP_FOREVER;
    if (timeout != Py_None) {
        double seconds = PyFloat_Check(timeout)  ? PyFloat_AS_DOUBLE(timeout)
                         : PyLong_Check(timeout) ? PyLong_AsDouble(timeout)
                                                 : -1e30;
        if (!(seconds > -1e29 && seconds < 1e9)) {
            PyErr_Clear();
            return 0;
        }
        *deadline = deadline_after(seconds > 0 ? (int64_t)(seconds * 1e9) + 1 : 0);
    }
    return 1;
}

static PyObject *acquire(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Strand *strand = strand_current();
    int block;
    int64_t deadline;
    if (!strand || !parse(args, nargs, kwnames, &block, &deadline)) {
        return native_acquire(self, args, nargs, kwnames);
    }
    int recursive = is_recursive(self);
    for (;;) {
        int taken = take(self, recursive);
        if (taken || !block || (deadline != PP_FOREVER && hub_now() >= deadline)) {
            return taken < 0 ? NULL : PyBool_FromLong(taken);
        }
        int waited = wait_for_hint(strand, self, deadline, recursive && *owner_link(self) != NULL);
        if (waited) {
            return waited < 0 ? NULL : native_acquire(self, args, nargs, kwnames);
        }
    }
}

static PyObject *enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return acquire(self, NULL, 0, NULL);
}

static PyObject *release(PyObject *self, PyObject *unused)
{
    Owner **link = owner_link(self), *owner = *link;
    if (owner && owner->key != strand_key()) {
        PyErr_SetString(PyExc_AssertionError,
                        "attempt to release recursive lock not owned by thread");
        return NULL;
    }
    PyObject *result = native_release(self, unused);
    if (result && owner && --owner->count == 0) {
        *link = owner->next;
        free(owner);
    }
    return result;
}

static PyObject *leave(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(n))
{
    return release(self, NULL);
}

static PyObject *is_mine(PyObject *self, PyObject *unused)
{
    Owner *owner = *owner_link(self);
    return owner && owner->key != strand_key() ? Py_NewRef(Py_False) : native_is_mine(self, unused);
}

static PyObject *after_fork(PyObject *self, PyObject *unused)
{
    Owner **link = owner_link(self), *owner = *link;
    if (owner) {
        *link = owner->next;
        free(owner);
    }
    return native_after_fork(self, unused);
}

/* ---- module ------------------------------------------------------------------------------------- */

static const Stand_in stand_ins[] = {
    {"_multiprocessing.SemLock.acquire", (PyCFunction)(void (*)(void))acquire,
     METH_FASTCALL | METH_KEYWORDS},
    {"_multiprocessing.SemLock.__enter__", enter, METH_NOARGS},
    {"_multiprocessing.SemLock.release", release, METH_NOARGS},
    {"_multiprocessing.SemLock.__exit__", (PyCFunction)(void (*)(void))leave, METH_FASTCALL},
    {"_multiprocessing.SemLock._is_mine", is_mine, METH_NOARGS},
    {"_multiprocessing.SemLock._after_fork", after_fork, METH_NOARGS},
    {NULL, NULL, 0},
};

PyDoc_STRVAR(use_semlock_doc,
             "use_semlock(type)\n--\n\n"
             "Take _multiprocessing.SemLock's own methods, before they are swapped.");

static PyObject *use_semlock(PyObject *Py_UNUSED(module), PyObject *type)
{
    native_acquire = (FastWithKeywords)(void (*)(void))swaps_native(type, "acquire");
    native_release = swaps_native(type, "release");
    native_is_mine = swaps_native(type, "_is_mine");
    native_after_fork = swaps_native(type, "_after_fork");
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"use_semlock", use_semlock, METH_O, use_semlock_doc},
    {NULL, NULL, 0, NULL},
};

int semaphores_exec(PyObject *module)
{
    return swaps_announce(stand_ins) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
