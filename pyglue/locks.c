/* locks.c: Lock and RLock, drop-in for _thread's, for green and native threads at once.
 *
 * Called by Python code in place of _thread.allocate_lock() and _thread.RLock once patched; calls
 * waiters.c to wait. Invariants: the GIL guards the state; a lock with waiters is locked, for
 * release hands it to the first waiter instead of unlocking it (fair, and no wake-up is wasted);
 * an acquire that need not wait neither switches nor allocates. Reprs, messages and signatures are
 * those of the CPython this is compiled for.
 */
#include "locks.h"
#include "exceptions.h"
#include "swaps.h"

#include <stddef.h>
#include <structmember.h>

PyTypeObject *lock_type, *rlock_type;

/* ---- arguments of acquire --------------------------------------------------------------------- */

#define FOREVER_PATIENCE ((Patience)-1)

static int patience_from(int blocking, PyObject *timeout, Patience *patience)
{
    const int64_t unset = -1000000000;
    int64_t nanoseconds = unset;
    if (timeout && timeout_from_object(timeout, &nanoseconds) < 0) {
        return -1;
    }
    if (!blocking && nanoseconds != unset) {
        PyErr_SetString(PyExc_ValueError, "can't specify a timeout for a non-blocking call");
        return -1;
    }
    if (nanoseconds < 0 && nanoseconds != unset) {
        PyErr_SetString(PyExc_ValueError, BEFORE_313
                                              ? "timeout value must be positive"
                                              : "timeout value must be a non-negative number");
        return -1;
    }
    *patience = !blocking ? 0 : nanoseconds == unset ? FOREVER_PATIENCE : nanoseconds;
    return 0;
}

int acquire_arguments(PyObject *args, PyObject *kwargs, Patience *patience)
{
    static char *names[] = {"blocking", "timeout", NULL};
    int blocking = 1;
    PyObject *timeout = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, BEFORE_312 ? "|iO:acquire" : "|pO:acquire",
                                     names, &blocking, &timeout)) {
        return -1;
    }
    return patience_from(blocking, timeout, patience);
}

int arguments_pack(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                   PyObject **positional, PyObject **keywords)
{
    *keywords = NULL;
    *positional = PyTuple_New(nargs);
    if (!*positional) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        Py_INCREF(args[i]);
        PyTuple_SET_ITEM(*positional, i, args[i]);
    }
    if (!kwnames) {
        return 0;
    }
    *keywords = PyDict_New();
    for (Py_ssize_t i = 0; *keywords && i < PyTuple_GET_SIZE(kwnames); i++) {
        if (PyDict_SetItem(*keywords, PyTuple_GET_ITEM(kwnames, i), args[nargs + i]) < 0) {
            Py_CLEAR(*keywords);
        }
    }
    if (!*keywords) {
        Py_CLEAR(*positional);
        return -1;
    }
    return 0;
}

/* Whatever parse_acquire does not know: let CPython's own parser decide, and word the error. */
static int parse_acquire_slowly(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                                Patience *patience)
{
    PyObject *positional, *keywords;
    if (arguments_pack(args, nargs, kwnames, &positional, &keywords) < 0) {
        return -1;
    }
    int result = acquire_arguments(positional, keywords, patience);
    Py_DECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

static int parse_acquire(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                         Patience *patience)
{
    PyObject *blocking = nargs > 0 ? args[0] : Py_True;
    PyObject *timeout = nargs > 1 ? args[1] : NULL;
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (nargs < 2 && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            timeout = args[nargs + i];
        } else if (nargs < 1 && PyUnicode_CompareWithASCIIString(name, "blocking") == 0) {
            blocking = args[nargs + i];
        } else {
            return parse_acquire_slowly(args, nargs, kwnames, patience);
        }
    }
    if (nargs > 2 || !PyBool_Check(blocking)) {
        return parse_acquire_slowly(args, nargs, kwnames, patience);
    }
    return patience_from(blocking == Py_True, timeout, patience);
}

/* 1 with the exception set when the caller has been cancelled and does not know yet: it must learn
 * of that before it takes a lock, for between acquire() and what releases it nothing may be raised. */
static int was_cancelled(void)
{
    Strand *strand = strand_current();
    return strand && strand->thrown && strand_check(strand) < 0;
}

/* ---- Lock ------------------------------------------------------------------------------------- */

GreenLock *lock_new(void)
{
    GreenLock *self = PyObject_New(GreenLock, lock_type);
    if (self) {
        self->weakrefs = NULL;
        self->waiters = (WaitQueue){NULL, NULL};
        self->holder = 0;
        self->sentinel_of = NULL;
        self->locked = self->barging = 0;
    }
    return self;
}

#if !BEFORE_313
static PyObject *lock_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (kwargs && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "lock() takes no keyword arguments");
        return NULL;
    }
    if (PyTuple_GET_SIZE(args)) {
        PyErr_Format(PyExc_TypeError, "lock expected 0 arguments, got %zd", PyTuple_GET_SIZE(args));
        return NULL;
    }
    (void)type;
    return (PyObject *)lock_new();
}
#endif

static void lock_dealloc(GreenLock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    if (self->sentinel_of) {
        *self->sentinel_of = NULL;
    }
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyObject *lock_wait(GreenLock *self, Patience patience)
{
    if (patience == 0) {
        Py_RETURN_FALSE;
    }
    int64_t deadline = patience < 0 ? PP_FOREVER : deadline_after(patience);
    for (;;) {
        switch (waiters_wait(&self->waiters, (PyObject *)self, deadline)) {
        case WAITED_GRANTED:
            if (self->barging && self->locked) {
                continue;
            }
            self->locked = 1;
            self->holder = strand_ident();
            Py_RETURN_TRUE;
        case WAITED_TIMEOUT:
            Py_RETURN_FALSE;
        case WAITED_RAISED_GRANTED:
            if (!self->barging || !self->locked) {
                lock_release(self);
            }
            return NULL;
        case WAITED_RAISED:
            return NULL;
        }
    }
}

PyDoc_STRVAR(lock_acquire_doc, "acquire($self, /, blocking=True, timeout=-1)\n--\n\n"
                               "Lock the lock, waiting until it is free: for ever, at most timeout "
                               "seconds, or not at all.\nReturns whether it was acquired.");

static PyObject *lock_acquire(GreenLock *self, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    Patience patience = FOREVER_PATIENCE;
    if ((nargs || kwnames) && parse_acquire(args, nargs, kwnames, &patience) < 0) {
        return NULL;
    }
    if (was_cancelled()) {
        return NULL;
    }
    if (!self->locked) {
        self->locked = 1;
        self->holder = strand_ident();
        Py_RETURN_TRUE;
    }
    return lock_wait(self, patience);
}

static PyObject *lock_enter(GreenLock *self, PyObject *Py_UNUSED(ignored))
{
    return lock_acquire(self, NULL, 0, NULL);
}

void lock_release(GreenLock *self)
{
    if (!waiters_grant(&self->waiters) || self->barging) {
        self->locked = 0;
    }
}

PyDoc_STRVAR(lock_release_doc, "release($self, /)\n--\n\n"
                               "Unlock the lock, or hand it to whoever waits longest.\n"
                               "RuntimeError when it is not locked.");

static PyObject *lock_py_release(GreenLock *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->locked) {
        PyErr_SetString(PyExc_RuntimeError, "release unlocked lock");
        return NULL;
    }
    lock_release(self);
    Py_RETURN_NONE;
}

static PyObject *lock_exit(GreenLock *self, PyObject *const *Py_UNUSED(args),
                           Py_ssize_t Py_UNUSED(nargs))
{
    return lock_py_release(self, NULL);
}

PyDoc_STRVAR(lock_locked_doc, "locked($self, /)\n--\n\nWhether the lock is locked.");

static PyObject *lock_locked(GreenLock *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->locked);
}

PyDoc_STRVAR(lock_at_fork_reinit_doc, "_at_fork_reinit($self, /)\n--\n\n"
                                      "Unlock and forget who waits: for a forked child.");

static PyObject *lock_at_fork_reinit(GreenLock *self, PyObject *Py_UNUSED(ignored))
{
    waiters_forget(&self->waiters);
    self->locked = 0;
    Py_RETURN_NONE;
}

static PyObject *lock_repr(GreenLock *self)
{
    return PyUnicode_FromFormat("<%s %s object at %p>", self->locked ? "locked" : "unlocked",
                                Py_TYPE(self)->tp_name, self);
}

#define WITH_KEYWORDS METH_FASTCALL | METH_KEYWORDS
#define METHOD(function) (PyCFunction)(void (*)(void))(function)

PyDoc_STRVAR(lock_acquire_lock_doc, "acquire_lock($self, /, blocking=True, timeout=-1)\n--\n\n"
                                    "An obsolete synonym of acquire().");
PyDoc_STRVAR(exit_doc, "__exit__($self, /, *exc_info)\n--\n\nRelease the lock.");

static PyMethodDef lock_methods[] = {
    {"acquire", METHOD(lock_acquire), WITH_KEYWORDS, lock_acquire_doc},
    {"acquire_lock", METHOD(lock_acquire), WITH_KEYWORDS, lock_acquire_lock_doc},
    {"release", METHOD(lock_py_release), METH_NOARGS, lock_release_doc},
    {"release_lock", METHOD(lock_py_release), METH_NOARGS, lock_release_doc},
    {"locked", METHOD(lock_locked), METH_NOARGS, lock_locked_doc},
    {"locked_lock", METHOD(lock_locked), METH_NOARGS, lock_locked_doc},
    {"__enter__", METHOD(lock_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(lock_exit), METH_FASTCALL, exit_doc},
    {"_at_fork_reinit", METHOD(lock_at_fork_reinit), METH_NOARGS, lock_at_fork_reinit_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef lock_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GreenLock, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

#define LOCK_DOC "A lock for green and native threads; the same as _thread.lock for its users."

static PyType_Slot lock_slots[] = {
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_repr, lock_repr},
    {Py_tp_methods, lock_methods},
    {Py_tp_members, lock_members},
#if !BEFORE_313
    {Py_tp_new, lock_tp_new},
    {Py_tp_doc, "lock()\n--\n\n" LOCK_DOC},
#else
    {Py_tp_doc, LOCK_DOC},
#endif
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "_thread.lock",
    .basicsize = sizeof(GreenLock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE
#if BEFORE_313
             | Py_TPFLAGS_DISALLOW_INSTANTIATION
#endif
    ,
    .slots = lock_slots,
};

/* ---- RLock ------------------------------------------------------------------------------------ */

/* Two tasks of one loop have one get_ident(), yet one may be parked inside `with rlock:` when the
 * other comes: to be re-entered it takes the same strand (`key`). Releasing it asks for the same
 * ident only, as plain code may release in a loop callback what a task acquired. */
typedef struct {
    PyObject_HEAD PyObject *weakrefs;
    WaitQueue waiters;
    unsigned long owner;     /* its get_ident(); 0: unlocked */
    unsigned long owner_key; /* a task's strand, else the same as owner; valid while owned */
    unsigned long count;     /* 0: unlocked */
} GreenRLock;

unsigned long strand_key(void)
{
    Hub *hub = hub_get();
    if (hub && hub->current->kind == STRAND_PORTAL && PyThreadState_Get() == hub->tstate) {
        return (unsigned long)(uintptr_t)hub->current;
    }
    return strand_ident();
}

static PyObject *rlock_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                              PyObject *Py_UNUSED(kwargs))
{
    GreenRLock *self = (GreenRLock *)type->tp_alloc(type, 0); /* zeroed: unlocked, no waiters */
    return (PyObject *)self;
}

static void rlock_dealloc(GreenRLock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static void rlock_own(GreenRLock *self, unsigned long key, unsigned long count)
{
    self->owner = strand_ident();
    self->owner_key = key;
    self->count = count;
}

static void rlock_pass_on(GreenRLock *self)
{
    self->owner = 0;
    /* Handed over it stays counted, so no third caller can take it before the new owner runs. */
    self->count = (unsigned long)waiters_grant(&self->waiters);
}

/* 1 owned, 0 not in time, -1 an exception is set. The caller does not own it yet. */
static int rlock_take(GreenRLock *self, unsigned long key, unsigned long count, Patience patience)
{
    if (self->count == 0) {
        rlock_own(self, key, count);
        return 1;
    }
    if (patience == 0) {
        return 0;
    }
    int64_t deadline = patience < 0 ? PP_FOREVER : deadline_after(patience);
    switch (waiters_wait(&self->waiters, (PyObject *)self, deadline)) {
    case WAITED_GRANTED:
        rlock_own(self, key, count);
        return 1;
    case WAITED_TIMEOUT:
        return 0;
    case WAITED_RAISED_GRANTED:
        rlock_pass_on(self);
        break;
    case WAITED_RAISED:
        break;
    }
    return -1;
}

PyDoc_STRVAR(rlock_acquire_doc, "acquire($self, /, blocking=True, timeout=-1)\n--\n\n"
                                "Lock the lock, or count once more when the caller has it.\n"
                                "Waits as Lock.acquire; returns whether it was acquired.");

static PyObject *rlock_acquire(GreenRLock *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    Patience patience = FOREVER_PATIENCE;
    if ((nargs || kwnames) && parse_acquire(args, nargs, kwnames, &patience) < 0) {
        return NULL;
    }
    if (was_cancelled()) {
        return NULL;
    }
    unsigned long key = strand_key();
    if (self->owner && self->owner_key == key) {
        if (self->count + 1 == 0) {
            PyErr_SetString(PyExc_OverflowError, "Internal lock count overflowed");
            return NULL;
        }
        self->count++;
        Py_RETURN_TRUE;
    }
    int taken = rlock_take(self, key, 1, patience);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *rlock_enter(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    return rlock_acquire(self, NULL, 0, NULL);
}

static int rlock_owned(GreenRLock *self)
{
    return self->owner && self->owner == strand_ident();
}

PyDoc_STRVAR(rlock_release_doc, "release($self, /)\n--\n\n"
                                "Undo one acquire; the last one unlocks it, or hands it to whoever "
                                "waits longest.\nRuntimeError when the caller does not own it.");

static PyObject *rlock_release(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    if (!rlock_owned(self)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return NULL;
    }
    if (--self->count == 0) {
        rlock_pass_on(self);
    }
    Py_RETURN_NONE;
}

static PyObject *rlock_exit(GreenRLock *self, PyObject *const *Py_UNUSED(args),
                            Py_ssize_t Py_UNUSED(nargs))
{
    return rlock_release(self, NULL);
}

PyDoc_STRVAR(rlock_release_save_doc,
             "_release_save($self, /)\n--\n\n"
             "Unlock it whole; returns (count, owner) for _acquire_restore. "
             "For Condition.");

static PyObject *rlock_release_save(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    if (self->count == 0) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return NULL;
    }
    PyObject *state = Py_BuildValue("(kk)", self->count, self->owner);
    if (state) {
        rlock_pass_on(self);
    }
    return state;
}

PyDoc_STRVAR(rlock_acquire_restore_doc, "_acquire_restore($self, state, /)\n--\n\n"
                                        "Lock it again as it was before _release_save.");

static PyObject *rlock_acquire_restore(GreenRLock *self, PyObject *args)
{
    unsigned long owner;
#if PY_VERSION_HEX >= 0x030E0000
    Py_ssize_t count;
    const char *format = "(nk):_acquire_restore";
#else
    unsigned long count;
    const char *format = "(kk):_acquire_restore";
#endif
    if (!PyArg_ParseTuple(args, format, &count, &owner)) {
        return NULL;
    }
    /* Condition.wait() counts on owning the lock again whatever happens, as natively: an exception
     * that comes meanwhile is raised with the lock held. */
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    while (rlock_take(self, strand_key(), count, FOREVER_PATIENCE) < 0) {
        if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
            break;
        }
        if (type) {
            PyErr_Clear();
        } else {
            PyErr_Fetch(&type, &value, &traceback);
        }
    }
    if (owner != self->owner && rlock_owned(self)) {
        self->owner = self->owner_key = owner;
    }
    if (type) {
        PyErr_Restore(type, value, traceback);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- for Condition.wait -------------------------------------------------------------------------- */

int lock_is_held(PyObject *lock)
{
    return Py_IS_TYPE(lock, lock_type) ? ((GreenLock *)lock)->locked
                                       : rlock_owned((GreenRLock *)lock);
}

unsigned long lock_let_go(PyObject *lock)
{
    if (Py_IS_TYPE(lock, lock_type)) {
        lock_release((GreenLock *)lock);
        return 1;
    }
    unsigned long count = ((GreenRLock *)lock)->count;
    rlock_pass_on((GreenRLock *)lock);
    return count;
}

static int lock_try_to_take(PyObject *lock, unsigned long count)
{
    if (!Py_IS_TYPE(lock, lock_type)) {
        return rlock_take((GreenRLock *)lock, strand_key(), count, FOREVER_PATIENCE);
    }
    GreenLock *self = (GreenLock *)lock;
    if (self->locked) {
        PyObject *taken = lock_wait(self, FOREVER_PATIENCE);
        Py_XDECREF(taken);
        return taken ? 1 : -1;
    }
    self->locked = 1;
    self->holder = strand_ident();
    return 1;
}

int lock_take_back(PyObject *lock, unsigned long count)
{
    PyObject *raised = NULL;
    while (lock_try_to_take(lock, count) < 0) {
        PyObject *exception = exception_take();
        if (raised) {
            Py_DECREF(exception);
        } else {
            raised = exception;
        }
    }
    if (raised) {
        exception_give(raised);
    }
    return raised ? -1 : 0;
}

PyDoc_STRVAR(rlock_is_owned_doc, "_is_owned($self, /)\n--\n\nWhether the caller owns it.");

static PyObject *rlock_is_owned(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(rlock_owned(self));
}

#if PY_VERSION_HEX >= 0x030E0000
PyDoc_STRVAR(rlock_locked_doc, "locked($self, /)\n--\n\nWhether anybody owns it.");

static PyObject *rlock_locked(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->count != 0);
}
#endif

PyDoc_STRVAR(rlock_recursion_count_doc, "_recursion_count($self, /)\n--\n\n"
                                        "How often the caller has acquired it.");

static PyObject *rlock_recursion_count(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(rlock_owned(self) ? self->count : 0);
}

static PyObject *rlock_at_fork_reinit(GreenRLock *self, PyObject *Py_UNUSED(ignored))
{
    waiters_forget(&self->waiters);
    self->owner = self->owner_key = self->count = 0;
    Py_RETURN_NONE;
}

static PyObject *rlock_repr(GreenRLock *self)
{
    return PyUnicode_FromFormat("<%s %s object owner=%lu count=%lu at %p>",
                                self->count ? "locked" : "unlocked", Py_TYPE(self)->tp_name,
                                self->owner, self->count, self);
}

static PyMethodDef rlock_methods[] = {
    {"acquire", METHOD(rlock_acquire), WITH_KEYWORDS, rlock_acquire_doc},
    {"release", METHOD(rlock_release), METH_NOARGS, rlock_release_doc},
    {"__enter__", METHOD(rlock_enter), METH_NOARGS, NULL},
    {"__exit__", METHOD(rlock_exit), METH_FASTCALL, exit_doc},
#if PY_VERSION_HEX >= 0x030E0000
    {"locked", METHOD(rlock_locked), METH_NOARGS, rlock_locked_doc},
#endif
    {"_is_owned", METHOD(rlock_is_owned), METH_NOARGS, rlock_is_owned_doc},
    {"_recursion_count", METHOD(rlock_recursion_count), METH_NOARGS, rlock_recursion_count_doc},
    {"_release_save", METHOD(rlock_release_save), METH_NOARGS, rlock_release_save_doc},
    {"_acquire_restore", METHOD(rlock_acquire_restore), METH_VARARGS, rlock_acquire_restore_doc},
    {"_at_fork_reinit", METHOD(rlock_at_fork_reinit), METH_NOARGS, lock_at_fork_reinit_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef rlock_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GreenRLock, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot rlock_slots[] = {
    {Py_tp_dealloc, rlock_dealloc}, {Py_tp_repr, rlock_repr},  {Py_tp_methods, rlock_methods},
    {Py_tp_members, rlock_members}, {Py_tp_new, rlock_tp_new}, {0, NULL},
};

static PyType_Spec rlock_spec = {
    .name = "_thread.RLock",
    .basicsize = sizeof(GreenRLock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = rlock_slots,
};

/* ---- module ----------------------------------------------------------------------------------- */

static PyObject *allocate_lock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return (PyObject *)lock_new();
}

PyDoc_STRVAR(lock_state_doc,
             "lock_state(lock)\n--\n\n"
             "(ident of the holder or 0, number of waiters) of a Lock or RLock, for dumps; "
             "TypeError for anything else.");

static PyObject *lock_state(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (Py_IS_TYPE(object, lock_type)) {
        GreenLock *lock = (GreenLock *)object;
        return Py_BuildValue("(kn)", lock->locked ? lock->holder : 0,
                             waiters_count(&lock->waiters));
    }
    if (PyObject_TypeCheck(object, rlock_type)) {
        GreenRLock *lock = (GreenRLock *)object;
        return Py_BuildValue("(kn)", lock->owner, waiters_count(&lock->waiters));
    }
    return PyErr_Format(PyExc_TypeError, "a lock is required, not %.200s",
                        Py_TYPE(object)->tp_name);
}

static PyMethodDef thread_functions[] = {
    {"allocate_lock", allocate_lock, METH_NOARGS,
     PyDoc_STR("allocate_lock($module, /)\n--\n\nA new, unlocked lock.")},
    {"allocate", allocate_lock, METH_NOARGS,
     PyDoc_STR("allocate($module, /)\n--\n\nAn obsolete synonym of allocate_lock().")},
    {NULL, NULL, 0, NULL},
};

static PyObject *py_strand_key(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(strand_key());
}

static PyMethodDef own_functions[] = {
    {"strand_key", py_strand_key, METH_NOARGS,
     PyDoc_STR("strand_key()\n--\n\nAs get_ident(), but every task of a loop has its own.")},
    {"lock_state", lock_state, METH_O, lock_state_doc},
    {NULL, NULL, 0, NULL},
};

static PyCFunction native_allocate;

static PyObject *allocate_any_lock(PyObject *module, PyObject *unused)
{
    return in_main_interpreter() ? (PyObject *)lock_new() : native_allocate(module, unused);
}

static const Stand_in stand_ins[] = {
    {"_thread.allocate_lock", allocate_any_lock, METH_NOARGS},
    {NULL, NULL, 0},
};

int add_functions_of_thread_module(PyObject *module, PyMethodDef *methods)
{
    PyObject *owner = PyImport_ImportModule("_thread");
    PyObject *name = PyUnicode_InternFromString("_thread");
    int result = owner && name ? 0 : -1;
    for (; result == 0 && methods->ml_name; methods++) {
        PyObject *function = PyCFunction_NewEx(methods, owner, name);
        result = function ? PyModule_AddObjectRef(module, methods->ml_name, function) : -1;
        Py_XDECREF(function);
    }
    Py_XDECREF(owner);
    Py_XDECREF(name);
    return result;
}

int locks_exec(PyObject *module)
{
    if (!lock_type) {
        lock_type = (PyTypeObject *)PyType_FromSpec(&lock_spec);
        rlock_type = (PyTypeObject *)PyType_FromSpec(&rlock_spec);
        PyObject *thread_module = PyImport_ImportModule("_thread");
        if (!lock_type || !rlock_type || !thread_module) {
            return -1;
        }
        native_allocate = swaps_native(thread_module, "allocate_lock");
        Py_DECREF(thread_module);
        if (!native_allocate) {
            return -1;
        }
    }
    if (PyModule_AddObjectRef(module, "Lock", (PyObject *)lock_type) < 0 ||
        PyModule_AddObjectRef(module, "RLock", (PyObject *)rlock_type) < 0 ||
        PyModule_AddFunctions(module, own_functions) < 0) {
        return -1;
    }
    if (swaps_exec(module) < 0 || queues_exec(module) < 0 || conditions_exec(module) < 0 ||
        tasks_exec(module) < 0 || native_locks_exec(module) < 0 || swaps_announce(stand_ins) < 0) {
        return -1;
    }
    return add_functions_of_thread_module(module, thread_functions);
}
