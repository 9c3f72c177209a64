/* conditions.c: what Condition, Event, Semaphore and queue.Queue do oftenest, in C.
 *
 * Called first thing by threading's and queue's own functions, into which patches/_shortcuts.py puts
 * the call; calls locks.c. The classes stay the standard library's, and so does the state: the lock, the
 * deque of waiters, the flag, the value are the Python attributes, read and written here as the Python
 * code would. Whatever is not the usual case (a subclass's method, a lock that is not ours or not free, a
 * timeout that would have to be awaited, an error) is refused, before anything was changed, and the
 * Python code goes on. Waiting goes through the Python function Condition.wait, so stacks and tracebacks
 * have the frames they have natively. Invariant: nothing is raised between a lock's taking and its release
 * that leaves it locked.
 */
#include "locks.h"

#include "exceptions.h"

#if PY_VERSION_HEX >= 0x030D0000
PyAPI_FUNC(int)
    _PyObject_GetMethod(PyObject *, PyObject *, PyObject **); /* exported, not declared */
#endif

static PyObject *refused; /* the answer that means: do it in Python */
static PyTypeObject *condition_type, *deque_type;
static PyObject *condition_notify;             /* Condition's own function */
static unsigned condition_version;             /* of the type, when it was seen to be there */
static PyObject *deque_append, *deque_popleft; /* method descriptors */
static PyObject *queue_functions[3], *queue_names[3]; /* Queue's own _qsize, _get, _put */
static PyObject *one;

enum { QSIZE, GET, PUT };

static PyObject *s_lock, *s_waiters, *s_notify, *s_wait, *s_append, *s_popleft, *s_remove, *s_cond,
    *s_flag, *s_value, *s_initial_value, *s_not_empty, *s_not_full, *s_queue, *s_maxsize,
    *s_unfinished_tasks;
#if !BEFORE_313
static PyObject *s_is_shutdown;
#endif

static PyObject *refuse(void)
{
    PyErr_Clear();
    return Py_NewRef(refused);
}

/* Not where a tracer or profiler wants to see each call. */
static int is_unwatched(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    return condition_type && !tstate->c_tracefunc && !tstate->c_profilefunc;
}

/* Nor where a cancellation waits: the Python code finds it before it takes a lock. */
static int may_help(void)
{
    if (!is_unwatched()) {
        return 0;
    }
    Strand *strand = strand_current();
    return !strand || !strand->thrown;
}

static PyObject *deque_pop(PyObject *deque)
{
    return PyObject_Vectorcall(deque_popleft, &deque, 1, NULL);
}

static PyObject *deque_push(PyObject *deque, PyObject *item)
{
    PyObject *args[2] = {deque, item};
    return PyObject_Vectorcall(deque_append, args, 2, NULL);
}

/* ---- Condition ------------------------------------------------------------------------------------ */

typedef struct {
    PyObject *object;  /* borrowed */
    PyObject *lock;    /* owned: a Lock or RLock of ours */
    PyObject *waiters; /* owned: a deque of Locks that are locked */
} Condition;

static void condition_close(Condition *condition)
{
    Py_CLEAR(condition->lock);
    Py_CLEAR(condition->waiters);
}

/* Nobody has put another notify() into the class. */
static int condition_is_itself(void)
{
    if (condition_type->tp_version_tag != condition_version || !condition_version) {
        if (_PyType_Lookup(condition_type, s_notify) != condition_notify) {
            return 0;
        }
        condition_version = condition_type->tp_version_tag;
    }
    return 1;
}

/* 1, or 0 without an exception: not one we know all about. */
static int condition_open(Condition *condition, PyObject *object)
{
    *condition = (Condition){.object = object};
    if (!object || !Py_IS_TYPE(object, condition_type) || !condition_is_itself()) {
        PyErr_Clear();
        return 0;
    }
    condition->lock = PyObject_GetAttr(object, s_lock);
    condition->waiters = condition->lock ? PyObject_GetAttr(object, s_waiters) : NULL;
    if (condition->waiters && Py_IS_TYPE(condition->waiters, deque_type) &&
        (Py_IS_TYPE(condition->lock, rlock_type) ||
         (Py_IS_TYPE(condition->lock, lock_type) && !((GreenLock *)condition->lock)->barging))) {
        return 1;
    }
    PyErr_Clear();
    condition_close(condition);
    return 0;
}

/* The condition in an attribute of `owner`; kept alive by `*kept`. */
static int condition_open_attribute(Condition *condition, PyObject *owner, PyObject *name,
                                    PyObject **kept)
{
    *kept = PyObject_GetAttr(owner, name);
    if (condition_open(condition, *kept)) {
        return 1;
    }
    Py_CLEAR(*kept);
    return 0;
}

/* Wake up to n waiters. 0, or -1 with an exception set. */
static int condition_wake(Condition *condition, Py_ssize_t n)
{
    while (n > 0 && PyObject_Size(condition->waiters) > 0) {
        PyObject *waiter = deque_pop(condition->waiters);
        if (!waiter) {
            return -1;
        }
        if (!Py_IS_TYPE(waiter, lock_type)) { /* from before patching */
            PyObject *done = PyObject_CallMethod(waiter, "release", NULL);
            if (!done && !PyErr_ExceptionMatches(PyExc_RuntimeError)) {
                Py_DECREF(waiter);
                return -1;
            }
            PyErr_Clear(); /* woken before */
            n -= done != NULL;
            Py_XDECREF(done);
        } else if (((GreenLock *)waiter)->locked) { /* else it has been woken before */
            lock_release((GreenLock *)waiter);
            n--;
        }
        Py_DECREF(waiter);
    }
    return 0;
}

/* The lock, where it is free and a Lock, is taken: `with condition:`. 1, or 0. */
static int condition_enter(Condition *condition)
{
    GreenLock *lock = (GreenLock *)condition->lock;
    if (!Py_IS_TYPE(lock, lock_type) || lock->locked) {
        return 0;
    }
    lock->locked = 1;
    lock->holder = strand_ident();
    return 1;
}

static void condition_leave(Condition *condition)
{
    GreenLock *lock = (GreenLock *)condition->lock;
    if (lock->locked) {
        lock_release(lock);
    }
}

/* condition.wait(timeout) as Python code calls it; the lock is held before and after. */
static PyObject *condition_wait_in_python(Condition *condition, PyObject *timeout)
{
    PyObject *args[2] = {condition->object, timeout};
    return PyObject_VectorcallMethod(s_wait, args, timeout ? 2 : 1, NULL);
}

/* A timeout in seconds as waiter.acquire(True, timeout) takes it; 0: let Python judge it. */
static int patience_of(PyObject *timeout, Patience *patience)
{
    if (timeout == Py_None) {
        *patience = -1;
        return 1;
    }
    if ((!PyFloat_CheckExact(timeout) && !PyLong_CheckExact(timeout)) ||
        timeout_from_object(timeout, patience) < 0) {
        return 0;
    }
    if (*patience < 0) {
        *patience = 0;
    }
    return 1;
}

/* Take the waiter off the list. 1, 0: it had been notified, -1 with an exception set. */
static int condition_forget(Condition *condition, PyObject *waiter)
{
    PyObject *done = PyObject_CallMethodOneArg(condition->waiters, s_remove, waiter);
    Py_XDECREF(done);
    if (done) {
        return 1;
    }
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) {
        return -1;
    }
    PyErr_Clear();
    return 0;
}

static PyObject *condition_wait_held(Condition *condition, Patience patience)
{
    GreenLock *waiter = lock_new();
    if (!waiter) {
        return NULL;
    }
    waiter->locked = 1;
    waiter->holder = strand_ident();
    PyObject *done = deque_push(condition->waiters, (PyObject *)waiter);
    if (!done) {
        Py_DECREF(waiter);
        return NULL;
    }
    Py_DECREF(done);
    unsigned long count = lock_let_go(condition->lock);
    PyObject *result = lock_wait(waiter, patience);
    PyObject *raised = result ? NULL : exception_take();
    if (lock_take_back(condition->lock, count) < 0) {
        if (raised) {
            PyErr_Clear();
        } else {
            raised = exception_take();
        }
    }
    if (result != Py_True || raised) {
        int forgotten = condition_forget(condition, (PyObject *)waiter);
        if (forgotten == 0 && raised) {
            forgotten =
                condition_wake(condition, 1); /* told, and will not act on it: the next one */
        }
        if (forgotten < 0 && raised) {
            PyErr_Clear();
        } else if (forgotten < 0) {
            raised = exception_take();
        }
    }
    Py_DECREF(waiter);
    if (raised) {
        Py_XDECREF(result);
        exception_give(raised);
        return NULL;
    }
    return result;
}

/* condition_wait(condition, timeout) */
static PyObject *condition_wait(PyObject *Py_UNUSED(module), PyObject *const *args,
                                Py_ssize_t Py_UNUSED(nargs))
{
    Condition condition;
    Patience patience;
    if (!may_help() || !patience_of(args[1], &patience) || !condition_open(&condition, args[0])) {
        return refuse();
    }
    PyObject *result =
        lock_is_held(condition.lock) ? condition_wait_held(&condition, patience) : refuse();
    condition_close(&condition);
    return result;
}

/* condition_notify(condition, n) */
static PyObject *condition_notify_some(PyObject *Py_UNUSED(module), PyObject *const *args,
                                       Py_ssize_t Py_UNUSED(nargs))
{
    Condition condition;
    Py_ssize_t n = PyLong_CheckExact(args[1]) ? PyLong_AsSsize_t(args[1]) : -1;
    if (n < 0 || !may_help() || !condition_open(&condition, args[0])) {
        return refuse();
    }
    PyObject *result;
    if (lock_is_held(condition.lock)) {
        result = condition_wake(&condition, n) < 0 ? NULL : Py_NewRef(Py_None);
    } else {
        result = refuse();
    }
    condition_close(&condition);
    return result;
}

/* ---- Event ---------------------------------------------------------------------------------------- */

static PyObject *event_put(PyObject *event, PyObject *flag)
{
    Condition condition;
    PyObject *kept;
    if (!may_help() || !condition_open_attribute(&condition, event, s_cond, &kept)) {
        return refuse();
    }
    PyObject *result = NULL;
    if (!condition_enter(&condition)) {
        result = refuse();
    } else {
        int failed = PyObject_SetAttr(event, s_flag, flag) < 0 ||
                     (flag == Py_True && condition_wake(&condition, PY_SSIZE_T_MAX) < 0);
        condition_leave(&condition);
        result = failed ? NULL : Py_NewRef(Py_None);
    }
    condition_close(&condition);
    Py_DECREF(kept);
    return result;
}

/* event_set(event) */
static PyObject *event_set(PyObject *Py_UNUSED(module), PyObject *const *args,
                           Py_ssize_t Py_UNUSED(nargs))
{
    return event_put(args[0], Py_True);
}

/* event_clear(event) */
static PyObject *event_clear(PyObject *Py_UNUSED(module), PyObject *const *args,
                             Py_ssize_t Py_UNUSED(nargs))
{
    return event_put(args[0], Py_False);
}

/* event_wait(event, timeout) */
static PyObject *event_wait(PyObject *Py_UNUSED(module), PyObject *const *args,
                            Py_ssize_t Py_UNUSED(nargs))
{
    Condition condition;
    PyObject *kept;
    if (!may_help() || !condition_open_attribute(&condition, args[0], s_cond, &kept)) {
        return refuse();
    }
    PyObject *result;
    if (!condition_enter(&condition)) {
        result = refuse();
    } else {
        result = PyObject_GetAttr(args[0], s_flag);
        if (result == Py_False) {
            Py_DECREF(result);
            result = condition_wait_in_python(&condition, args[1]);
        } else if (result && result != Py_True) {
            Py_DECREF(result);
            result = refuse();
        }
        condition_leave(&condition);
    }
    condition_close(&condition);
    Py_DECREF(kept);
    return result;
}

/* ---- Semaphore ------------------------------------------------------------------------------------ */

/* An attribute that is a small int: its value, or -1 without an exception. */
static Py_ssize_t number_in(PyObject *object, PyObject *name)
{
    PyObject *number = PyObject_GetAttr(object, name);
    Py_ssize_t value = number && PyLong_CheckExact(number) ? PyLong_AsSsize_t(number) : -1;
    Py_XDECREF(number);
    PyErr_Clear();
    return value;
}

static int put_number(PyObject *object, PyObject *name, Py_ssize_t value)
{
    PyObject *number = PyLong_FromSsize_t(value);
    int failed = number ? PyObject_SetAttr(object, name, number) : -1;
    Py_XDECREF(number);
    return failed;
}

static PyObject *semaphore_acquire_entered(PyObject *semaphore, Condition *condition,
                                           PyObject *blocking, PyObject *timeout)
{
    Py_ssize_t value;
    while ((value = number_in(semaphore, s_value)) == 0) {
        if (blocking != Py_True || timeout != Py_None) {
            return refuse();
        }
        PyObject *woken = condition_wait_in_python(condition, timeout);
        Py_XDECREF(woken);
        if (!woken) {
            return NULL;
        }
    }
    if (value < 0) {
        return refuse();
    }
    return put_number(semaphore, s_value, value - 1) < 0 ? NULL : Py_NewRef(Py_True);
}

/* semaphore_acquire(semaphore, blocking, timeout) */
static PyObject *semaphore_acquire(PyObject *Py_UNUSED(module), PyObject *const *args,
                                   Py_ssize_t Py_UNUSED(nargs))
{
    Condition condition;
    PyObject *kept;
    if (!may_help() || !PyBool_Check(args[1]) || (args[1] == Py_False && args[2] != Py_None) ||
        !condition_open_attribute(&condition, args[0], s_cond, &kept)) {
        return refuse();
    }
    PyObject *result;
    if (!condition_enter(&condition)) {
        result = refuse();
    } else {
        result = semaphore_acquire_entered(args[0], &condition, args[1], args[2]);
        condition_leave(&condition);
    }
    condition_close(&condition);
    Py_DECREF(kept);
    return result;
}

/* A task takes the lock however long that takes. What was raised meanwhile is left in *raised, for when the
 * work is done: as in POSIX, to wait for a mutex that is held for an instant is no point to be cancelled at.
 * Else a task cancelled just there would keep its permit for ever. 1, or 0: not free, and no task. */
static int condition_enter_in_the_end(Condition *condition, PyObject **raised)
{
    if (condition_enter(condition)) {
        return 1;
    }
    Strand *strand = strand_current();
    if (!strand || strand->kind != STRAND_PORTAL || !Py_IS_TYPE(condition->lock, lock_type)) {
        return 0;
    }
    if (lock_take_back(condition->lock, 1) < 0) {
        *raised = exception_take();
    }
    return 1;
}

static PyObject *semaphore_release_entered(PyObject *semaphore, Condition *condition,
                                           PyObject *limit)
{
    Py_ssize_t value = number_in(semaphore, s_value);
    Py_ssize_t most = limit ? number_in(semaphore, limit) : PY_SSIZE_T_MAX;
    if (value < 0 || value >= most) {
        return refuse();
    }
    int failed = put_number(semaphore, s_value, value + 1) < 0 || condition_wake(condition, 1) < 0;
    return failed ? NULL : Py_NewRef(Py_None);
}

/* At most this value may be reached. */
static PyObject *semaphore_release_up_to(PyObject *semaphore, PyObject *number, PyObject *limit)
{
    Condition condition;
    PyObject *kept, *raised = NULL;
    if (!PyLong_CheckExact(number) || PyLong_AsLong(number) != 1 || !is_unwatched() ||
        !condition_open_attribute(&condition, semaphore, s_cond, &kept)) {
        return refuse();
    }
    PyObject *result;
    if (!condition_enter_in_the_end(&condition, &raised)) {
        result = refuse();
    } else {
        result = semaphore_release_entered(semaphore, &condition, limit);
        condition_leave(&condition);
    }
    condition_close(&condition);
    Py_DECREF(kept);
    if (raised) {
        Py_XDECREF(result);
        PyErr_Clear();
        exception_give(raised);
        return NULL;
    }
    return result;
}

/* semaphore_release(semaphore, n) */
static PyObject *semaphore_release(PyObject *Py_UNUSED(module), PyObject *const *args,
                                   Py_ssize_t Py_UNUSED(nargs))
{
    return semaphore_release_up_to(args[0], args[1], NULL);
}

/* bounded_semaphore_release(semaphore, n) */
static PyObject *bounded_semaphore_release(PyObject *Py_UNUSED(module), PyObject *const *args,
                                           Py_ssize_t Py_UNUSED(nargs))
{
    return semaphore_release_up_to(args[0], args[1], s_initial_value);
}

/* ---- queue.Queue ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject *object;               /* borrowed */
    PyObject *items;                /* owned: the deque, or NULL: ask its methods */
    PyObject *not_empty, *not_full; /* owned */
    Condition empty, full;
} Queue;

static void queue_close(Queue *queue)
{
    condition_close(&queue->empty);
    condition_close(&queue->full);
    Py_CLEAR(queue->items);
    Py_CLEAR(queue->not_empty);
    Py_CLEAR(queue->not_full);
}

/* 1 where its method, whatever overrides it, is Queue's own. */
static int queue_has_own(PyObject *object, int which)
{
    PyObject *method = NULL;
    int unbound = _PyObject_GetMethod(object, queue_names[which], &method);
    int own = unbound && method == queue_functions[which];
    Py_XDECREF(method);
    return own;
}

/* Opened, and its mutex taken: 1. Else 0, without an exception. `with_full`: not_full is needed. */
static int queue_enter(Queue *queue, PyObject *object, int method, int with_full)
{
    *queue = (Queue){.object = object};
    if (queue_has_own(object, QSIZE) && queue_has_own(object, method)) {
        queue->items = PyObject_GetAttr(object, s_queue);
        if (!queue->items || !Py_IS_TYPE(queue->items, deque_type)) {
            Py_CLEAR(queue->items);
        }
    }
    PyErr_Clear();
    int entered = condition_open_attribute(&queue->empty, object, s_not_empty, &queue->not_empty) &&
                  (!with_full ||
                   (condition_open_attribute(&queue->full, object, s_not_full, &queue->not_full) &&
                    queue->full.lock == queue->empty.lock)) &&
                  condition_enter(&queue->empty);
    if (!entered) {
        PyErr_Clear();
        queue_close(queue);
    }
    return entered;
}

static PyObject *queue_leave(Queue *queue, PyObject *result)
{
    condition_leave(&queue->empty);
    queue_close(queue);
    return result;
}

/* -1: an exception is set. */
static Py_ssize_t queue_size(Queue *queue)
{
    if (queue->items) {
        return PyObject_Size(queue->items);
    }
    PyObject *number = PyObject_CallMethodNoArgs(queue->object, queue_names[QSIZE]);
    Py_ssize_t size = number ? PyNumber_AsSsize_t(number, NULL) : -1;
    Py_XDECREF(number);
    if (size < 0 && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "negative queue size");
    }
    return size;
}

/* Refuse where it has been shut down, from 3.13 on. */
static int queue_is_open(PyObject *object)
{
#if BEFORE_313
    (void)object;
    return 1;
#else
    PyObject *shut = PyObject_GetAttr(object, s_is_shutdown);
    PyErr_Clear();
    Py_XDECREF(shut);
    return shut == Py_False;
#endif
}

/* queue_get(queue, block, timeout) */
static PyObject *queue_get(PyObject *Py_UNUSED(module), PyObject *const *args,
                           Py_ssize_t Py_UNUSED(nargs))
{
    Queue queue;
    PyObject *block = args[1], *timeout = args[2];
    Patience patience;
    if (!may_help() || !PyBool_Check(block) || !patience_of(timeout, &patience) ||
        (timeout != Py_None && patience == 0) || !queue_enter(&queue, args[0], GET, 1)) {
        return refuse();
    }
    for (;;) {
        Py_ssize_t size = queue_size(&queue);
        if (size < 0) {
            return queue_leave(&queue, NULL);
        }
        if (size > 0) {
            break;
        }
        if (block == Py_False || timeout != Py_None || !queue_is_open(args[0])) {
            return queue_leave(&queue, refuse());
        }
        PyObject *woken = condition_wait_in_python(&queue.empty, NULL);
        Py_XDECREF(woken);
        if (!woken) {
            return queue_leave(&queue, NULL);
        }
    }
    PyObject *item =
        queue.items ? deque_pop(queue.items) : PyObject_CallMethodNoArgs(args[0], queue_names[GET]);
    if (item && condition_wake(&queue.full, 1) < 0) {
        Py_CLEAR(item);
    }
    return queue_leave(&queue, item);
}

/* queue_put(queue, item, block, timeout) */
static PyObject *queue_put(PyObject *Py_UNUSED(module), PyObject *const *args,
                           Py_ssize_t Py_UNUSED(nargs))
{
    Queue queue;
    Py_ssize_t limit = number_in(args[0], s_maxsize);
    if (!may_help() || limit < 0 || (limit > 0 && (!PyBool_Check(args[2]) || args[3] != Py_None)) ||
        !queue_is_open(args[0]) || !queue_enter(&queue, args[0], PUT, limit > 0)) {
        return refuse();
    }
    while (limit > 0) {
        Py_ssize_t size = queue_size(&queue);
        if (size < 0) {
            return queue_leave(&queue, NULL);
        }
        if (size < limit) {
            break;
        }
        if (args[2] == Py_False) {
            return queue_leave(&queue, refuse());
        }
        PyObject *woken = condition_wait_in_python(&queue.full, NULL);
        Py_XDECREF(woken);
        if (!woken) {
            return queue_leave(&queue, NULL);
        }
        if (!queue_is_open(args[0])) {
            return queue_leave(&queue, refuse());
        }
    }
    PyObject *done = queue.items ? deque_push(queue.items, args[1])
                                 : PyObject_CallMethodOneArg(args[0], queue_names[PUT], args[1]);
    PyObject *before = done ? PyObject_GetAttr(args[0], s_unfinished_tasks) : NULL;
    PyObject *after = before ? PyNumber_Add(before, one) : NULL;
    int failed = !after || PyObject_SetAttr(args[0], s_unfinished_tasks, after) < 0 ||
                 condition_wake(&queue.empty, 1) < 0;
    Py_XDECREF(done);
    Py_XDECREF(before);
    Py_XDECREF(after);
    return queue_leave(&queue, failed ? NULL : Py_NewRef(Py_None));
}

/* ---- module --------------------------------------------------------------------------------------- */

PyDoc_STRVAR(use_condition_doc, "use_condition(Condition, deque)\n--\n\n"
                                "Take threading's class, and the type of its _waiters.");

static PyObject *use_condition(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *condition, *deque;
    if (!PyArg_ParseTuple(args, "O!O!:use_condition", &PyType_Type, &condition, &PyType_Type,
                          &deque)) {
        return NULL;
    }
    PyObject *append = PyObject_GetAttr((PyObject *)deque, s_append);
    PyObject *popleft = PyObject_GetAttr((PyObject *)deque, s_popleft);
    if (!append || !popleft) {
        Py_XDECREF(append);
        return NULL;
    }
    Py_XSETREF(deque_append, append);
    Py_XSETREF(deque_popleft, popleft);
    PyObject *notify = _PyType_Lookup(condition, s_notify);
    Py_XINCREF(notify);
    Py_XSETREF(condition_notify, notify);
    Py_INCREF(condition);
    Py_INCREF(deque);
    Py_XSETREF(condition_type, condition);
    Py_XSETREF(deque_type, deque);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(use_queue_doc, "use_queue(Queue)\n--\n\nTake queue.Queue's own methods.");

static PyObject *use_queue(PyObject *Py_UNUSED(module), PyObject *type)
{
    for (int i = 0; i < 3; i++) {
        PyObject *function = PyObject_GetAttr(type, queue_names[i]);
        if (!function) {
            return NULL;
        }
        Py_XSETREF(queue_functions[i], function);
    }
    Py_RETURN_NONE;
}

#define SHORTCUT(name, function)                                         \
    {                                                                    \
        name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL \
    }

static PyMethodDef functions[] = {
    {"use_condition", use_condition, METH_VARARGS, use_condition_doc},
    {"use_queue", use_queue, METH_O, use_queue_doc},
    SHORTCUT("condition_wait", condition_wait),
    SHORTCUT("condition_notify", condition_notify_some),
    SHORTCUT("event_set", event_set),
    SHORTCUT("event_clear", event_clear),
    SHORTCUT("event_wait", event_wait),
    SHORTCUT("semaphore_acquire", semaphore_acquire),
    SHORTCUT("semaphore_release", semaphore_release),
    SHORTCUT("bounded_semaphore_release", bounded_semaphore_release),
    SHORTCUT("queue_get", queue_get),
    SHORTCUT("queue_put", queue_put),
    {NULL, NULL, 0, NULL},
};

int conditions_exec(PyObject *module)
{
    static const struct {
        PyObject **where;
        const char *text;
    } names[] = {
        {&s_lock, "_lock"},
        {&s_waiters, "_waiters"},
        {&s_notify, "notify"},
        {&s_wait, "wait"},
        {&s_append, "append"},
        {&s_popleft, "popleft"},
        {&s_remove, "remove"},
        {&s_cond, "_cond"},
        {&s_flag, "_flag"},
        {&s_value, "_value"},
        {&s_initial_value, "_initial_value"},
        {&s_not_empty, "not_empty"},
        {&s_not_full, "not_full"},
        {&s_queue, "queue"},
        {&s_maxsize, "maxsize"},
        {&s_unfinished_tasks, "unfinished_tasks"},
#if !BEFORE_313
        {&s_is_shutdown, "is_shutdown"},
#endif
        {&queue_names[QSIZE], "_qsize"},
        {&queue_names[GET], "_get"},
        {&queue_names[PUT], "_put"}
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!*names[i].where && !(*names[i].where = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    if (!one && !(one = PyLong_FromLong(1))) {
        return -1;
    }
    if (!refused && !(refused = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type))) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "REFUSED", refused) < 0
               ? -1
               : PyModule_AddFunctions(module, functions);
}
