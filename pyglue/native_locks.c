/* native_locks.c: CPython's own Lock, RLock, SimpleQueue and thread handle objects, made before
 * patching, wait greenly.
 *
 * Called in place of their methods once swaps.c has exchanged them. New locks are locks.c's; but
 * modules loaded earlier hold native ones (logging, random, concurrent.futures, user code), in
 * globals, closures, conditions and slots. A green thread that blocked in one would stop every other
 * green thread of its OS thread, the holder included. So their methods try without blocking, and a
 * strand that must wait parks in a queue beside the lock.
 * Invariants: a native lock is held exactly while somebody owns it, so native threads, reprs and an
 * unpatched process agree; a Lock is free after release (threading asserts it), an RLock is handed
 * over still held. C code can release a lock behind our back (the end of a native thread does):
 * whoever waits here tries again now and then.
 */
#include "locks.h"
#include "swaps.h"

enum { BUCKETS = 64 };
static const int64_t FIRST_PAUSE = 1000000, LONGEST_PAUSE = 64000000; /* ns between such tries */

/* What we know of a native lock beside itself; exists while it is used. */
typedef struct Side {
    PyObject *lock; /* borrowed: its waiters and its owner's code hold it */
    struct Side *next;
    WaitQueue waiters;
    int users;           /* callers inside wait_beside */
    unsigned long owner; /* RLock: ident; 0: nobody whom we know */
    unsigned long key;   /* RLock: as in locks.c */
    unsigned long count; /* RLock */
} Side;

static Side *sides[BUCKETS];

static PyCFunctionWithKeywords native_acquire, native_rlock_acquire;
static PyCFunction native_release, native_locked, native_reinit;
static PyCFunction native_rlock_release, native_rlock_release_save, native_rlock_acquire_restore;
static PyCFunction native_rlock_is_owned, native_rlock_reinit;
static PyCFunction native_handle_join, native_handle_is_done;
static PyObject *not_blocking; /* (False,) */

static int may_park(void)
{
    Strand *strand = strand_current();
    return strand && strand->hub->tstate == PyThreadState_Get();
}

static Side **side_link(PyObject *lock)
{
    Side **link = &sides[((uintptr_t)lock >> 4) % BUCKETS];
    while (*link && (*link)->lock != lock) {
        link = &(*link)->next;
    }
    return link;
}

static Side *side_ensure(PyObject *lock)
{
    Side **link = side_link(lock);
    if (!*link) {
        *link = PyMem_Calloc(1, sizeof **link);
        if (!*link) {
            PyErr_NoMemory();
            return NULL;
        }
        (*link)->lock = lock;
    }
    return *link;
}

static void side_drop_unused(PyObject *lock)
{
    Side **link = side_link(lock), *side = *link;
    if (side && !side->users && !side->count && !side->waiters.first) {
        *link = side->next;
        PyMem_Free(side);
    }
}

/* 1 truth, 0, or -1 with an exception set; steals. */
static int truth_of(PyObject *result)
{
    int truth = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return truth;
}

/* Park until a release hands the lock over (1), or `take` gets it (1), or the deadline (0). -1: an
 * exception is set, nothing is taken; a hand-over that came meanwhile goes to give_back. `hinted`:
 * a release hands nothing over, it only says that it is worth trying. */
static int wait_beside(PyObject *lock, int64_t deadline, int hinted, int (*take)(PyObject *),
                       void (*give_back)(PyObject *))
{
    int64_t pause = FIRST_PAUSE;
    Side *side = side_ensure(lock);
    if (!side) {
        return -1;
    }
    side->users++;
    int result = -2;
    while (result == -2) {
        int64_t until = deadline_after(pause);
        pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
        switch (waiters_wait(&side->waiters, lock, until < deadline ? until : deadline)) {
        case WAITED_GRANTED:
            if (!hinted) {
                result = 1;
                break;
            }
            /* fall through */
        case WAITED_TIMEOUT:
            result = take(lock);
            if (result == 0 && hub_now() < deadline) {
                result = -2;
            }
            break;
        case WAITED_RAISED_GRANTED:
            give_back(lock);
            result = -1;
            break;
        case WAITED_RAISED:
            result = -1;
            break;
        }
    }
    side->users--;
    side_drop_unused(lock);
    return result;
}

/* ---- Lock -------------------------------------------------------------------------------------- */

static int lock_take(PyObject *lock)
{
    return truth_of(native_acquire(lock, not_blocking, NULL));
}

static void lock_hint(PyObject *lock)
{
    Side *side = *side_link(lock);
    if (side) {
        waiters_grant(&side->waiters);
    }
}

static PyObject *lock_acquire(PyObject *self, PyObject *args, PyObject *kwargs)
{
    if (!may_park()) {
        return native_acquire(self, args, kwargs);
    }
    Patience patience;
    if (acquire_arguments(args, kwargs, &patience) < 0) {
        return NULL;
    }
    int taken = lock_take(self);
    if (taken == 0 && patience != 0) {
        int64_t deadline = patience < 0 ? PP_FOREVER : deadline_after(patience);
        taken = wait_beside(self, deadline, 1, lock_take, lock_hint);
    }
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *lock_release_native(PyObject *self, PyObject *Py_UNUSED(args))
{
    PyObject *result = native_release(self, NULL);
    if (result) {
        lock_hint(self);
    }
    return result;
}

static PyObject *lock_reinit(PyObject *self, PyObject *unused)
{
    Side *side = *side_link(self);
    if (side) {
        waiters_forget(&side->waiters);
    }
    return native_reinit(self, unused);
}

/* ---- RLock ------------------------------------------------------------------------------------- */

/* Natively all green threads of an OS thread are one owner, so we keep count; the native lock is
 * held once on behalf of our owner. */

/* Held natively by this OS thread since before the patch: only its main strand may re-enter. */
static int rlock_held_from_before(PyObject *lock)
{
    return truth_of(native_rlock_is_owned(lock, NULL));
}

static int rlock_take(PyObject *lock)
{
    Side *side = side_ensure(lock);
    if (!side || side->count) {
        return side ? 0 : -1;
    }
    int before = rlock_held_from_before(lock);
    if (before < 0 || (before && strand_current()->kind != STRAND_MAIN)) {
        return before < 0 ? -1 : 0;
    }
    int taken = truth_of(native_rlock_acquire(lock, not_blocking, NULL));
    if (taken == 1 && !before) {
        side->count = 1;
    }
    return taken;
}

/* Not held any more: hand it over still natively held, or let go. */
static void rlock_pass_on(PyObject *lock)
{
    Side *side = *side_link(lock);
    side->owner = 0;
    side->count = (unsigned long)waiters_grant(&side->waiters);
    if (!side->count) {
        Py_XDECREF(native_rlock_release(lock, NULL));
        side_drop_unused(lock);
    }
}

static void rlock_own(PyObject *lock, unsigned long count)
{
    Side *side = *side_link(lock);
    if (side && side->count) { /* else the main strand re-entered what it held from before */
        side->owner = strand_ident();
        side->key = strand_key();
        side->count = count;
    } else {
        side_drop_unused(lock);
    }
}

static int rlock_wait(PyObject *self, Patience patience)
{
    int taken = rlock_take(self);
    if (taken == 0 && patience != 0) {
        int64_t deadline = patience < 0 ? PP_FOREVER : deadline_after(patience);
        taken = wait_beside(self, deadline, 0, rlock_take, rlock_pass_on);
    }
    return taken;
}

/* Our record of it when the caller owns it, or NULL. */
static Side *rlock_mine(PyObject *self)
{
    Side *side = *side_link(self);
    return side && side->owner && side->owner == strand_ident() ? side : NULL;
}

static PyObject *rlock_acquire(PyObject *self, PyObject *args, PyObject *kwargs)
{
    Side *side = *side_link(self);
    if (side && side->owner && side->key == strand_key()) {
        Patience ignored;
        if (acquire_arguments(args, kwargs, &ignored) < 0) {
            return NULL;
        }
        side->count++;
        Py_RETURN_TRUE;
    }
    if (!may_park()) {
        return native_rlock_acquire(self, args, kwargs);
    }
    Patience patience;
    if (acquire_arguments(args, kwargs, &patience) < 0) {
        return NULL;
    }
    int taken = rlock_wait(self, patience);
    if (taken > 0) {
        rlock_own(self, 1);
    } else {
        side_drop_unused(self);
    }
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *rlock_release(PyObject *self, PyObject *unused)
{
    Side *side = *side_link(self);
    if (!side || !side->count) {
        return native_rlock_release(self, unused);
    }
    if (!rlock_mine(self)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return NULL;
    }
    if (--side->count == 0) {
        rlock_pass_on(self);
    }
    Py_RETURN_NONE;
}

static PyObject *rlock_exit(PyObject *self, PyObject *Py_UNUSED(args))
{
    return rlock_release(self, NULL);
}

static PyObject *rlock_release_save(PyObject *self, PyObject *unused)
{
    Side *side = *side_link(self);
    if (!side || !side->count) {
        return native_rlock_release_save(self, unused);
    }
    PyObject *state = Py_BuildValue("(kk)", side->count, side->owner);
    if (state) {
        rlock_pass_on(self);
    }
    return state;
}

static PyObject *rlock_acquire_restore(PyObject *self, PyObject *args)
{
    unsigned long count, owner;
    if (!may_park()) {
        return native_rlock_acquire_restore(self, args);
    }
    if (!PyArg_ParseTuple(args, "(kk):_acquire_restore", &count, &owner)) {
        return NULL;
    }
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    while (rlock_wait(self, -1) < 0) { /* as in locks.c: owned again whatever happens */
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
            return NULL;
        }
        if (type) {
            PyErr_Clear();
        } else {
            PyErr_Fetch(&type, &value, &traceback);
        }
    }
    rlock_own(self, count);
    if (type) {
        PyErr_Restore(type, value, traceback);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *rlock_is_owned(PyObject *self, PyObject *unused)
{
    Side *side = *side_link(self);
    if (!side || !side->count) {
        return native_rlock_is_owned(self, unused);
    }
    return PyBool_FromLong(rlock_mine(self) != NULL);
}

static PyObject *rlock_reinit(PyObject *self, PyObject *unused)
{
    Side *side = *side_link(self);
    if (side) {
        waiters_forget(&side->waiters);
        side->owner = side->count = 0;
        side_drop_unused(self);
    }
    return native_rlock_reinit(self, unused);
}

/* ---- thread handles (3.13): joining a thread that was started natively --------------------------- */

static PyObject *handle_join(PyObject *self, PyObject *args)
{
    Strand *strand = strand_current();
    PyObject *timeout = NULL;
    int64_t nanoseconds = -1;
    if (!may_park()) {
        return native_handle_join(self, args);
    }
    if (!PyArg_ParseTuple(args, "|O:join", &timeout) ||
        (timeout && timeout != Py_None && timeout_from_object(timeout, &nanoseconds) < 0)) {
        return NULL;
    }
    int64_t deadline = nanoseconds < 0 ? PP_FOREVER : deadline_after(nanoseconds);
    for (int64_t pause = FIRST_PAUSE;;) {
        int done = truth_of(native_handle_is_done(self, NULL));
        if (done != 0) {
            return done < 0 ? NULL : native_handle_join(self, args);
        }
        int64_t until = deadline_after(pause);
        pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
        enum pp_outcome outcome =
            strand_park(strand, PARK_LOCK, -1, self, until < deadline ? until : deadline);
        if (outcome == PP_BLOCK) {
            return native_handle_join(self, args);
        }
        if ((outcome == PP_EINTR || outcome == PP_CANCELED) && strand_check(strand) < 0) {
            return NULL;
        }
        if (hub_now() >= deadline) {
            Py_RETURN_NONE;
        }
    }
}

/* ---- SimpleQueue --------------------------------------------------------------------------------- */

typedef PyObject *(*FastWithClass)(PyObject *, PyTypeObject *, PyObject *const *, size_t,
                                   PyObject *);
typedef PyObject *(*FastWithKeywords)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

static FastWithClass native_get;
static FastWithKeywords native_put, native_put_nowait;
static PyTypeObject *queue_class;
static PyObject *empty_error, *got; /* got: what queue_take took, owned, until its caller has it */

static int queue_take(PyObject *queue)
{
    PyObject *args[1] = {Py_False};
    got = native_get(queue, queue_class, args, 1, NULL);
    if (!got && PyErr_ExceptionMatches(empty_error)) {
        PyErr_Clear();
        return 0;
    }
    return got ? 1 : -1;
}

/* The usual arguments of get(); 0: let the native method judge them. */
static int parse_get(PyObject *const *args, size_t nargs, PyObject *kwnames, int64_t *deadline)
{
    PyObject *block = nargs > 0 ? args[0] : Py_True, *timeout = nargs > 1 ? args[1] : Py_None;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (nargs < 1 && PyUnicode_CompareWithASCIIString(name, "block") == 0) {
            block = args[nargs + (size_t)i];
        } else if (nargs < 2 && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            timeout = args[nargs + (size_t)i];
        } else {
            return 0;
        }
    }
    int64_t nanoseconds;
    *deadline = PP_FOREVER;
    if (nargs > 2 || block != Py_True) {
        return 0;
    }
    if (timeout != Py_None) {
        if (timeout_from_object(timeout, &nanoseconds) < 0 || nanoseconds < 0) {
            PyErr_Clear();
            return 0;
        }
        *deadline = deadline_after(nanoseconds);
    }
    return 1;
}

static PyObject *queue_get(PyObject *self, PyTypeObject *class, PyObject *const *args, size_t nargs,
                           PyObject *kwnames)
{
    int64_t deadline;
    if (!may_park() || !parse_get(args, nargs, kwnames, &deadline)) {
        return native_get(self, class, args, nargs, kwnames);
    }
    int taken = queue_take(self);
    if (taken == 0) {
        taken = wait_beside(self, deadline, 1, queue_take, lock_hint);
    }
    if (taken <= 0) {
        if (taken == 0) {
            PyErr_SetNone(empty_error);
        }
        return NULL;
    }
    PyObject *item = got;
    got = NULL;
    return item;
}

static PyObject *queue_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                           PyObject *kwnames)
{
    PyObject *result = native_put(self, args, nargs, kwnames);
    lock_hint(self);
    return result;
}

static PyObject *queue_put_nowait(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames)
{
    PyObject *result = native_put_nowait(self, args, nargs, kwnames);
    lock_hint(self);
    return result;
}

PyDoc_STRVAR(use_simple_queue_doc,
             "use_simple_queue(type, Empty)\n--\n\n"
             "Take _queue.SimpleQueue's own methods, before they are swapped.");

static PyObject *use_simple_queue(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *type, *empty;
    if (!PyArg_ParseTuple(args, "O!O:use_simple_queue", &PyType_Type, &type, &empty)) {
        return NULL;
    }
    native_get = (FastWithClass)(void (*)(void))swaps_native(type, "get");
    native_put = (FastWithKeywords)(void (*)(void))swaps_native(type, "put");
    native_put_nowait = (FastWithKeywords)(void (*)(void))swaps_native(type, "put_nowait");
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_INCREF(empty);
    Py_XSETREF(empty_error, empty);
    Py_INCREF(type);
    queue_class = (PyTypeObject *)type; /* kept: those made before live on */
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"use_simple_queue", use_simple_queue, METH_VARARGS, use_simple_queue_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- module ------------------------------------------------------------------------------------- */

#define AS_IS(function) (PyCFunction)(void (*)(void))(function)
#define KEYWORDS (METH_VARARGS | METH_KEYWORDS)

static const Stand_in stand_ins[] = {
    {"_thread.lock.acquire", AS_IS(lock_acquire), KEYWORDS},
    {"_thread.lock.release", lock_release_native, METH_NOARGS},
    {"_thread.lock.__exit__", lock_release_native, METH_VARARGS},
    {"_thread.lock._at_fork_reinit", lock_reinit, METH_NOARGS},
    {"_thread.RLock.acquire", AS_IS(rlock_acquire), KEYWORDS},
    {"_thread.RLock.release", rlock_release, METH_NOARGS},
    {"_thread.RLock.__exit__", rlock_exit, METH_VARARGS},
    {"_thread.RLock._release_save", rlock_release_save, METH_NOARGS},
    {"_thread.RLock._acquire_restore", rlock_acquire_restore, METH_VARARGS},
    {"_thread.RLock._is_owned", rlock_is_owned, METH_NOARGS},
    {"_thread.RLock._at_fork_reinit", rlock_reinit, METH_NOARGS},
    {"_thread._ThreadHandle.join", handle_join, METH_VARARGS},
    {"_queue.SimpleQueue.get", AS_IS(queue_get), METH_METHOD | METH_FASTCALL | METH_KEYWORDS},
    {"_queue.SimpleQueue.put", AS_IS(queue_put), METH_FASTCALL | METH_KEYWORDS},
    {"_queue.SimpleQueue.put_nowait", AS_IS(queue_put_nowait), METH_FASTCALL | METH_KEYWORDS},
    {NULL, NULL, 0},
};

static PyCFunction method_of(PyTypeObject *type, const char *name)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, name);
    PyMethodDef *definition = descriptor ? swaps_definition(descriptor) : NULL;
    Py_XDECREF(descriptor);
    return definition ? definition->ml_meth : NULL;
}

static int find_natives(void)
{
    PyObject *thread_module = PyImport_ImportModule("_thread");
    if (!thread_module) {
        return -1;
    }
    PyTypeObject *lock = (PyTypeObject *)PyObject_GetAttrString(thread_module, "LockType");
    PyTypeObject *rlock = (PyTypeObject *)PyObject_GetAttrString(thread_module, "RLock");
    PyTypeObject *handle = NULL;
    if (PyObject_HasAttrString(thread_module, "_ThreadHandle")) {
        handle = (PyTypeObject *)PyObject_GetAttrString(thread_module, "_ThreadHandle");
    }
    not_blocking = Py_BuildValue("(O)", Py_False);
    if (lock && rlock && not_blocking) {
        native_acquire = (PyCFunctionWithKeywords)(void (*)(void))method_of(lock, "acquire");
        native_release = method_of(lock, "release");
        native_locked = method_of(lock, "locked");
        native_reinit = method_of(lock, "_at_fork_reinit");
        native_rlock_acquire = (PyCFunctionWithKeywords)(void (*)(void))method_of(rlock, "acquire");
        native_rlock_release = method_of(rlock, "release");
        native_rlock_release_save = method_of(rlock, "_release_save");
        native_rlock_acquire_restore = method_of(rlock, "_acquire_restore");
        native_rlock_is_owned = method_of(rlock, "_is_owned");
        native_rlock_reinit = method_of(rlock, "_at_fork_reinit");
    }
    if (handle) {
        native_handle_join = method_of(handle, "join");
        native_handle_is_done = method_of(handle, "is_done");
    }
    Py_XDECREF(lock);
    Py_XDECREF(rlock);
    Py_XDECREF(handle);
    Py_DECREF(thread_module);
    return PyErr_Occurred() ? -1 : 0;
}

int native_locks_exec(PyObject *module)
{
    if (!not_blocking && find_natives() < 0) {
        return -1;
    }
    return swaps_announce(stand_ins) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
