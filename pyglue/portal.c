/* portal.c: the coroutine type between a task and the user's coroutine, and await_.
 *
 * The host loop steps the portal (am_send, throw); the portal runs the user's coroutine in a pooled
 * runner greenlet. Whatever the coroutine's synchronous callees await_ is yielded to the task by
 * switching back to the stepper, from any depth and from foreign greenlets too. When a libc call or
 * a lock parks inside a step, the task is given one future (portal_detach_and_wait) and the hub
 * resumes the greenlet directly, as often as it parks, with the task set as current; the task is
 * stepped again only when its coroutine really yields, returns or raises, or it is cancelled.
 *
 * Called by asyncio's Task, Trio's runner, strand.c. Invariant: exactly one of attached (inside a
 * step), detached (a future is out) or neither (suspended at a yield, not started, finished) holds,
 * and `out` is set only between the end of a run and its delivery to the task. No C stack owns its
 * portal, so one that is dropped while suspended is closed as a coroutine would be; what keeps it
 * alive is whoever steps it, and the hub from detaching on until that run ends (`held`).
 */
#include "swaps.h"

#include <greenlet/greenlet.h>

#include <frameobject.h>
#include <structmember.h>

#if PY_VERSION_HEX < 0x030D0000
#define PyObject_GetOptionalAttr _PyObject_LookupAttr
#endif

/* AUTO becomes one of the others when its step first has to give the task something to wait for. */
enum portal_host { HOST_AUTO, HOST_ASYNCIO, HOST_TRIO, HOST_OTHER };
enum portal_out { OUT_NONE, OUT_YIELD, OUT_RETURN, OUT_RAISE };

typedef struct {
    PyObject_HEAD PyObject *weakrefs;
    Strand strand;
    PyObject *inner; /* the user's coroutine; with `call_args` a function to call instead */
    PyObject *call_args, *call_kwargs;
    uint64_t awaits; /* await_ calls and parks so far */
    int forbidden;   /* inside forbid_await() */
    enum portal_host host;
    PyObject *context;      /* owned: the stepper's contextvars context at the last step */
    PyGreenlet *stepper;    /* owned, while attached: who called am_send */
    Strand *stepper_strand; /* its strand, while attached */
    PyObject *step_task;    /* borrowed, only compared: the task of the last step, where known */
    Strand *home;           /* the strand that runs the host loop, from the first step on */
    PyGreenlet *suspended;  /* owned: stopped inside await_, else NULL */
    PyObject *awaited;      /* borrowed, valid while suspended: what that await_ iterates over */
    PyObject *in_value;     /* owned: what to send, or the exception to throw */
    int in_throw;
    enum portal_out out; /* how the run ended, until the task has it */
    PyObject *out_value; /* owned */
    char attached, detached, direct, finished;
    char refused;            /* the coroutine did not accept the first value: it is not finished */
    char held;               /* the hub owns a reference: from detaching to the end of the run */
    char abort_refused;      /* Trio: while it ran directly; asked again when it parks */
    char rescheduled;        /* Trio: the task will be stepped, whatever the waiter says */
    PyObject *waiter;        /* owned, while detached: the future the task waits for */
    PyObject *task;          /* owned, while detached */
    PyObject *previous_task; /* owned, while direct: whom asyncio/Trio thought current */
    Py_ssize_t ready_len, scheduled_len; /* the loop's queues before a direct run */
    PyObject *scheduled_head;            /* borrowed, only compared */
} Portal;

static PyTypeObject Portal_Type;

static PyObject *future_type, *current_tasks, *swap_current_task, *current_task_function;
static PyObject *trio_run_context, *trio_wait_rescheduled, *trio_reschedule, *trio_value;
static PyObject *trio_abort_succeeded, *trio_abort_failed;
static PyObject *noop;

static PyObject *s_ready, *s_scheduled, *s_done, *s_set_result, *s_blocking, *s_throw, *s_cancel,
    *s_task, *s_runner, *s_runq, *s_loop, *s_close, *s_call_soon_threadsafe, *s_unwrap, *s_value,
    *s_await, *s_deadlines, *s_next_deadline, *s_send, *s_asyncio, *s_trio, *s_get_running_loop;

static inline Portal *portal_of(Strand *strand)
{
    return (Portal *)((char *)strand - offsetof(Portal, strand));
}

int portal_is_attached(Strand *strand)
{
    return portal_of(strand)->attached;
}

static int load_trio(void);
static PyObject *get_current_task(Portal *portal);

/* ---- hosts: what differs between asyncio and Trio ------------------------------------------------ */

static int load_asyncio(void)
{
    if (future_type) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("_asyncio");
    if (!module) {
        return -1;
    }
    current_tasks = PyObject_GetAttrString(module, "_current_tasks");
    if (current_tasks && !PyDict_Check(current_tasks)) {
        Py_CLEAR(current_tasks);
    }
    if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
    }
    if (!current_tasks) { /* 3.14: the current task lives in the thread state */
        swap_current_task = PyObject_GetAttrString(module, "_swap_current_task");
        current_task_function = PyObject_GetAttrString(module, "current_task");
    }
    PyObject *function = PyObject_GetAttrString(module, "Future");
    Py_DECREF(module);
    if (!function || PyErr_Occurred()) {
        Py_XDECREF(function);
        return -1;
    }
    future_type = function;
    return 0;
}

/* Who steps this portal, found out as late as possible: most portals never need to know. */
static int find_host(Portal *portal)
{
    if (portal->host != HOST_AUTO) {
        return 0;
    }
    PyObject *loop = NULL, *asyncio = PyImport_GetModule(s_asyncio);
    if (asyncio) {
        loop = PyObject_CallMethodNoArgs(asyncio, s_get_running_loop);
        Py_DECREF(asyncio);
        if (!loop) {
            return -1;
        }
        if (loop == Py_None) {
            Py_CLEAR(loop);
        } else {
            if (load_asyncio() < 0) {
                Py_DECREF(loop);
                return -1;
            }
            Py_XSETREF(portal->strand.loop, loop);
            portal->host = HOST_ASYNCIO;
            PyObject *task = get_current_task(portal);
            if (task) {
                Py_DECREF(task);
                return 0;
            }
            portal->host = HOST_AUTO; /* a callback, or Trio as the guest of this loop */
        }
    }
    PyObject *trio = PyImport_GetModule(s_trio);
    if (trio) {
        Py_DECREF(trio);
        if (load_trio() < 0) {
            return -1;
        }
        PyObject *task = PyObject_GetAttr(trio_run_context, s_task);
        if (task) {
            Py_DECREF(task);
            portal->host = HOST_TRIO;
            return 0;
        }
        PyErr_Clear();
    }
    portal->host = loop ? HOST_ASYNCIO : HOST_OTHER;
    return 0;
}

static int load_trio(void)
{
    if (trio_value) {
        return 0;
    }
    PyObject *run = PyImport_ImportModule("trio._core._run");
    PyObject *traps = PyImport_ImportModule("trio._core._traps");
    PyObject *outcome = PyImport_ImportModule("outcome");
    PyObject *abort = traps ? PyObject_GetAttrString(traps, "Abort") : NULL;
    if (run && traps && outcome && abort) {
        trio_run_context = PyObject_GetAttrString(run, "GLOBAL_RUN_CONTEXT");
        trio_reschedule = PyObject_GetAttrString(run, "reschedule");
        trio_wait_rescheduled = PyObject_GetAttrString(traps, "WaitTaskRescheduled");
        trio_abort_succeeded = PyObject_GetAttrString(abort, "SUCCEEDED");
        trio_abort_failed = PyObject_GetAttrString(abort, "FAILED");
        PyObject *value_type = PyObject_GetAttrString(outcome, "Value");
        if (value_type) {
            trio_value = PyObject_CallOneArg(value_type, Py_None);
            Py_DECREF(value_type);
        }
    }
    Py_XDECREF(run);
    Py_XDECREF(traps);
    Py_XDECREF(outcome);
    Py_XDECREF(abort);
    return trio_value && !PyErr_Occurred() ? 0 : -1;
}

/* The task that the host says is current; new reference or NULL without an error. */
static PyObject *get_current_task(Portal *portal)
{
    PyObject *task = NULL;
    if (portal->host == HOST_ASYNCIO) {
        if (current_tasks) {
            task = PyDict_GetItemWithError(current_tasks, portal->strand.loop);
            Py_XINCREF(task);
        } else {
            task = PyObject_CallOneArg(current_task_function, portal->strand.loop);
        }
    } else if (portal->host == HOST_TRIO) {
        task = PyObject_GetAttr(trio_run_context, s_task);
    }
    if (!task) {
        PyErr_Clear();
    } else if (task == Py_None) {
        Py_CLEAR(task);
    }
    return task;
}

/* Make `task` (NULL: none) current; returns the one before, new reference, or NULL. */
static PyObject *exchange_current_task(Portal *portal, PyObject *task)
{
    PyObject *before = NULL;
    if (portal->host == HOST_ASYNCIO) {
        PyObject *loop = portal->strand.loop;
        if (current_tasks) {
            before = PyDict_GetItemWithError(current_tasks, loop);
            Py_XINCREF(before);
            if (task) {
                PyDict_SetItem(current_tasks, loop, task);
            } else if (before) {
                PyDict_DelItem(current_tasks, loop);
            }
        } else {
            PyObject *args[2] = {loop, task ? task : Py_None};
            before = PyObject_Vectorcall(swap_current_task, args, 2, NULL);
        }
    } else if (portal->host == HOST_TRIO) {
        before = PyObject_GetAttr(trio_run_context, s_task);
        if (!before) { /* between tasks, Trio leaves no attribute behind */
            PyErr_Clear();
        }
        if (task) {
            PyObject_SetAttr(trio_run_context, s_task, task);
        } else if (before) {
            PyObject_DelAttr(trio_run_context, s_task);
        }
    }
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable((PyObject *)portal);
    }
    if (before == Py_None) {
        Py_CLEAR(before);
    }
    return before;
}

/* Lengths of the loop's queues, to see after a direct run whether the loop must look again.
 * 0: known; -1: this loop does not tell (uvloop): wake it always. */
static int read_queues(Portal *portal, Py_ssize_t *ready_len, Py_ssize_t *scheduled_len,
                       PyObject **head)
{
    *ready_len = *scheduled_len = 0;
    *head = NULL;
    int known = -1;
    if (portal->host == HOST_ASYNCIO) {
        PyObject *ready = PyObject_GetAttr(portal->strand.loop, s_ready);
        PyObject *scheduled = ready ? PyObject_GetAttr(portal->strand.loop, s_scheduled) : NULL;
        if (scheduled && PyList_Check(scheduled)) {
            *ready_len = PyObject_Size(ready);
            *scheduled_len = PyList_GET_SIZE(scheduled);
            *head = *scheduled_len ? PyList_GET_ITEM(scheduled, 0) : NULL;
            known = 0;
        }
        Py_XDECREF(ready);
        Py_XDECREF(scheduled);
    } else if (portal->host == HOST_TRIO && portal->task) {
        PyObject *runner = PyObject_GetAttr(trio_run_context, s_runner);
        PyObject *runq = runner ? PyObject_GetAttr(runner, s_runq) : NULL;
        PyObject *deadlines = runq ? PyObject_GetAttr(runner, s_deadlines) : NULL;
        PyObject *next = deadlines ? PyObject_CallMethodNoArgs(deadlines, s_next_deadline) : NULL;
        if (next) {
            *ready_len = PyObject_Size(runq);
            double when = PyFloat_AsDouble(next);
            *scheduled_len = when > 1e15 ? -1 : (Py_ssize_t)(when * 1e6);
            known = 0;
        }
        Py_XDECREF(runner);
        Py_XDECREF(runq);
        Py_XDECREF(deadlines);
        Py_XDECREF(next);
    }
    PyErr_Clear();
    return known;
}

/* The loop has something to do: if it is parked in its own select, let that return empty. */
/* From 3.12 a task may be stepped inside another's step, eagerly; the portal around it is not its own. So
 * each step remembers its task, and await_ compares. */
static void note_step_task(Portal *portal)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (portal->host == HOST_ASYNCIO) {
        PyObject *task = get_current_task(portal);
        portal->step_task = task;
        Py_XDECREF(task);
    }
#else
    (void)portal;
#endif
}

/* The portal that await_ can use here: that of the task which is current, in its own loop. */
static Portal *current_portal(Hub *hub)
{
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        return NULL;
    }
    Portal *portal = portal_of(hub->current);
    if (portal->host != HOST_ASYNCIO) {
        return portal;
    }
    if (tasks_running_loop(&portal->strand) != portal->strand.loop) {
        return NULL; /* a callback of a loop that this task's plain function runs */
    }
    if (portal->step_task) {
        PyObject *task = get_current_task(portal);
        Py_XDECREF(task);
        if (task != portal->step_task) {
            return NULL;
        }
    }
    return portal;
}

/* Keep the strand that runs this portal's loop, or drop it (NULL). A green thread may end and leave its
 * tasks behind: its strand then stays, as DONE, until the last of them lets go. */
static void set_home(Portal *portal, Strand *home)
{
    Strand *before = portal->home;
    if (home == before) {
        return;
    }
    if (home && home->kind == STRAND_PORTAL) {
        Py_INCREF(portal_of(home));
    } else if (home) {
        home->holders++;
    }
    portal->home = home;
    if (before && before->kind == STRAND_PORTAL) {
        Py_DECREF(portal_of(before));
    } else if (before) {
        strand_drop(before);
    }
}

/* Who runs the loop that steps this portal now: usually the strand that steps it; of a task started
 * eagerly inside another's step it is whoever runs that one; of a loop that a task's plain function
 * runs it is that task's own strand. */
static Strand *home_of_step(Portal *portal, Strand *stepper)
{
    if (stepper->kind == STRAND_PORTAL && portal->strand.loop &&
        portal->strand.loop == stepper->loop && portal_of(stepper)->home) {
        return portal_of(stepper)->home;
    }
    return stepper;
}

static void kick_loop(Portal *portal, int known)
{
    Strand *home = portal->home;
    if (known < 0 && portal->host == HOST_ASYNCIO) {
        PyObject *done =
            PyObject_CallMethodOneArg(portal->strand.loop, s_call_soon_threadsafe, noop);
        if (!done) {
            PyErr_Clear(); /* the loop was closed meanwhile: nobody to wake */
        }
        Py_XDECREF(done);
        return;
    }
    if (home && home->state == STRAND_PARKED &&
        (home->wait_call == PARK_LOOP || home->wait_is_select)) {
        strand_wake(home, PP_TIMEOUT);
    }
}

static int waiter_done(Portal *portal)
{
    if (portal->host != HOST_ASYNCIO || !portal->waiter) {
        return 0;
    }
    PyObject *done = PyObject_CallMethodNoArgs(portal->waiter, s_done);
    int is_done = done == Py_True;
    Py_XDECREF(done);
    PyErr_Clear();
    return is_done;
}

/* Trio asks to abort the wait (a cancellation): the exception arrives through the task's step. */
static PyObject *trio_abort(PyObject *self, PyObject *raise_cancel)
{
    Portal *portal = (Portal *)self;
    PyObject *answer = trio_abort_succeeded;
    (void)raise_cancel;
    if (portal->direct) { /* running just now: its next wait is the checkpoint */
        portal->abort_refused = 1;
        answer = trio_abort_failed;
    } else {
        portal->rescheduled = 1;
    }
    Py_INCREF(answer);
    return answer;
}

static PyMethodDef trio_abort_method = {"abort", trio_abort, METH_O, NULL};

/* Trio asks once a wait, and was refused: as at a checkpoint, what is pending by now is delivered. */
static void offer_trio_abort(Portal *portal)
{
    PyObject *task = portal->task, *runner = PyObject_GetAttr(trio_run_context, s_runner);
    PyObject *main_task = runner ? PyObject_GetAttrString(runner, "main_task") : NULL;
    PyObject *interrupted = main_task ? PyObject_GetAttrString(runner, "ki_pending") : NULL;
    PyObject *abort = interrupted ? PyCFunction_New(&trio_abort_method, (PyObject *)portal) : NULL;
    PyObject *done = NULL;
    if (abort && PyObject_SetAttrString(task, "_abort_func", abort) == 0) {
        if (interrupted == Py_True && task == main_task) {
            done = PyObject_CallMethod(task, "_attempt_delivery_of_pending_ki", NULL);
            Py_XDECREF(done);
        }
        done = PyErr_Occurred()
                   ? NULL
                   : PyObject_CallMethod(task, "_attempt_delivery_of_any_pending_cancel", NULL);
    }
    if (!done) {
        PyErr_WriteUnraisable(task);
    }
    Py_XDECREF(done);
    Py_XDECREF(abort);
    Py_XDECREF(interrupted);
    Py_XDECREF(main_task);
    Py_XDECREF(runner);
}

/* What the task waits for while its greenlet is parked. */
static PyObject *make_waiter(Portal *portal)
{
    if (portal->host == HOST_ASYNCIO) {
        PyObject *args[1] = {portal->strand.loop};
        PyObject *names = PyTuple_Pack(1, s_loop);
        PyObject *future = names ? PyObject_Vectorcall(future_type, args, 0, names) : NULL;
        Py_XDECREF(names);
        if (future && PyObject_SetAttr(future, s_blocking, Py_True) < 0) {
            Py_CLEAR(future);
        }
        return future;
    }
    if (portal->host == HOST_TRIO) {
        PyObject *abort = PyCFunction_New(&trio_abort_method, (PyObject *)portal);
        PyObject *waiter = abort ? PyObject_CallOneArg(trio_wait_rescheduled, abort) : NULL;
        Py_XDECREF(abort);
        return waiter;
    }
    PyErr_SetString(PyExc_RuntimeError, "this host loop cannot park a synchronous call");
    return NULL;
}

static PyObject *reschedule_trio_task(Portal *portal)
{
    if (portal->rescheduled) {
        Py_RETURN_NONE;
    }
    portal->rescheduled = 1;
    PyObject *args[2] = {portal->task, trio_value};
    return PyObject_Vectorcall(trio_reschedule, args, 2, NULL);
}

/* A detached run has ended: let the task be stepped so that it takes the outcome. */
static void complete_waiter(Portal *portal)
{
    PyObject *done = NULL;
    if (portal->host == HOST_ASYNCIO) {
        if (waiter_done(portal)) {
            kick_loop(portal, 0);
            return; /* cancelled: the task is being stepped anyway */
        }
        done = PyObject_CallMethodOneArg(portal->waiter, s_set_result, Py_None);
    } else if (portal->host == HOST_TRIO) {
        done = reschedule_trio_task(portal);
    }
    if (!done) {
        PyErr_WriteUnraisable((PyObject *)portal);
    }
    Py_XDECREF(done);
    portal->strand.hub->stats.task_resumes++;
    Py_ssize_t a, b;
    PyObject *c;
    kick_loop(portal, portal->host == HOST_ASYNCIO ? read_queues(portal, &a, &b, &c) : 0);
}

/* ---- parking inside a step ------------------------------------------------------------------------- */

static void leave_step(Portal *portal)
{
    portal->attached = 0;
    strand_make_current(portal->strand.hub, portal->stepper_strand);
    tell_running_loop(portal->strand.hub, tasks_running_loop(portal->stepper_strand));
}

int portal_detach_and_wait(Strand *strand)
{
    Portal *portal = portal_of(strand);
    PyObject *waiter = find_host(portal) == 0 ? make_waiter(portal) : NULL;
    if (!waiter) {
        PyErr_Clear();
        return -1;
    }
    portal->awaits++;
    Py_XSETREF(portal->task, get_current_task(portal));
    Py_INCREF(waiter);
    Py_XSETREF(portal->waiter, waiter);
    portal->out = OUT_YIELD;
    portal->out_value = waiter;
    portal->detached = portal->held = 1;
    portal->rescheduled = 0;
    Py_INCREF(portal);
    strand->greenlet = PyGreenlet_GetCurrent();
    leave_step(portal);
    PyGreenlet *stepper = portal->stepper;
    portal->stepper = NULL;
    greenlet_switch(stepper);
    Py_DECREF(stepper);
    return 0;
}

int portal_may_resume(Strand *strand)
{
    Portal *portal = portal_of(strand);
    if (!portal->detached || !(portal->rescheduled || waiter_done(portal))) {
        return 1;
    }
    kick_loop(portal, 0);
    return 0;
}

void portal_before_resume(Strand *strand)
{
    Portal *portal = portal_of(strand);
    portal->direct = 1;
    strand->hub->stats.direct_resumes++;
    read_queues(portal, &portal->ready_len, &portal->scheduled_len, &portal->scheduled_head);
    portal->previous_task = exchange_current_task(portal, portal->task);
}

void portal_after_run(Strand *strand)
{
    Portal *portal = portal_of(strand);
    if (!portal->direct) {
        return;
    }
    portal->direct = 0;
    PyObject *previous = portal->previous_task;
    portal->previous_task = NULL;
    Py_XDECREF(exchange_current_task(portal, previous));
    Py_XDECREF(previous);
    if (portal->abort_refused) {
        portal->abort_refused = 0;
        if (strand->state == STRAND_PARKED) { /* else what it yields is a checkpoint of its own */
            offer_trio_abort(portal);
        }
    }
    Py_ssize_t ready_len, scheduled_len;
    PyObject *head;
    int known = read_queues(portal, &ready_len, &scheduled_len, &head);
    if (known < 0 || ready_len != portal->ready_len || scheduled_len != portal->scheduled_len ||
        head != portal->scheduled_head) {
        kick_loop(portal, known);
    }
}

/* ---- one step --------------------------------------------------------------------------------------- */

/* A coroutine's send or throw as one call: PYGEN_NEXT/RETURN with *result, PYGEN_ERROR. */
static PySendResult drive(PyObject *coroutine, int is_throw, PyObject *value, PyObject **result)
{
    if (!is_throw) {
        return PyIter_Send(coroutine, value, result);
    }
    *result = PyObject_CallMethodOneArg(coroutine, s_throw, value);
    if (*result) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *type, *stop, *traceback;
    PyErr_Fetch(&type, &stop, &traceback);
    PyErr_NormalizeException(&type, &stop, &traceback);
    *result = PyObject_GetAttr(stop, s_value);
    Py_XDECREF(type);
    Py_XDECREF(stop);
    Py_XDECREF(traceback);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *take_exception(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) {
        PyException_SetTraceback(value, traceback);
        Py_DECREF(traceback);
    }
    Py_XDECREF(type);
    return value;
}

static void give_exception(PyObject *exception)
{
    PyObject *traceback = PyException_GetTraceback(exception);
    PyObject *type = (PyObject *)Py_TYPE(exception);
    Py_INCREF(type);
    PyErr_Restore(type, exception, traceback);
}

static void set_context(PyThreadState *tstate, PyObject *context)
{
    PyObject *before = tstate->context;
    tstate->context = context;
    tstate->context_ver++;
    Py_XDECREF(before);
}

/* An exception came from the interpreter, not from the coroutine, which has not ended. */
static int coroutine_goes_on(PyObject *coroutine)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *frame = PyObject_GetAttrString(coroutine, "cr_frame");
    int goes_on = frame && frame != Py_None;
    Py_XDECREF(frame);
    PyErr_Restore(type, value, traceback);
    return goes_on;
}

/* The hub will not resume it any more. */
static void let_go(Portal *portal)
{
    if (portal->held) {
        portal->held = 0;
        Py_DECREF(portal);
    }
}

PyGreenlet *portal_run_step(Strand *strand)
{
    Portal *portal = portal_of(strand);
    Hub *hub = strand->hub;
    Py_XINCREF(portal->context);
    set_context(hub->tstate, portal->context);
    PyObject *value = portal->in_value, *result = NULL;
    portal->in_value = NULL;
    PySendResult status;
    if (portal->call_args && !portal->in_throw && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        status = PYGEN_ERROR;
        portal->refused = 1;
    } else if (portal->call_args && !portal->in_throw) {
        result = PyObject_Call(portal->inner, portal->call_args, portal->call_kwargs);
        status = result ? PYGEN_RETURN : PYGEN_ERROR;
    } else if (portal->call_args) { /* cancelled before it began */
        Py_INCREF(value);
        give_exception(value);
        status = PYGEN_ERROR;
    } else {
        status = drive(portal->inner, portal->in_throw, value, &result);
        portal->refused = status == PYGEN_ERROR && !portal->in_throw && value != Py_None &&
                          PyErr_ExceptionMatches(PyExc_TypeError) &&
                          coroutine_goes_on(portal->inner);
    }
    Py_DECREF(value);
    if (status == PYGEN_ERROR) {
        portal->out = OUT_RAISE;
        result = take_exception();
    } else {
        portal->out = status == PYGEN_NEXT ? OUT_YIELD : OUT_RETURN;
    }
    portal->out_value = result;
    set_context(hub->tstate, NULL);
    PyGreenlet *next = NULL;
    if (portal->attached) {
        next = portal->stepper;
        portal->stepper = NULL;
        leave_step(portal);
    } else {
        portal_after_run(strand);
        complete_waiter(portal);
        let_go(portal);
    }
    return next;
}

/* Yield `value` to the task from synchronous code and return what it sends; NULL: it threw. */
static PyObject *yield_to_task(Portal *portal, PyObject *iterator, PyObject *value)
{
    Hub *hub = portal->strand.hub;
    PyObject *context =
        portal->context; /* borrowed, only compared: ours, unless in Context.run() */
    portal->out = OUT_YIELD;
    portal->out_value = value;
    portal->suspended = PyGreenlet_GetCurrent();
    portal->awaited = iterator;
    if (portal->attached) {
        PyGreenlet *stepper = portal->stepper;
        portal->stepper = NULL;
        leave_step(portal);
        greenlet_switch(stepper);
        Py_DECREF(stepper);
    } else {
        portal_after_run(&portal->strand);
        complete_waiter(portal);
        if (Py_REFCNT(portal) > 1) { /* else nobody is left to step it, and this is its own stack */
            let_go(portal);
        }
        strand_schedule(hub, NULL);
    }
    if (portal->context != context && hub->tstate->context == context) {
        Py_XINCREF(portal->context); /* the task was given another one meanwhile */
        set_context(hub->tstate, portal->context);
    }
    PyObject *sent = portal->in_value;
    portal->in_value = NULL;
    if (PyErr_Occurred()) { /* greenlet.throw, or the greenlet is being destroyed */
        Py_CLEAR(sent);
    } else if (portal->in_throw && sent) {
        give_exception(sent);
        sent = NULL;
    } else if (!sent) {
        PyErr_SetString(PyExc_RuntimeError,
                        "a greenlet suspended in await_ was switched to by something else");
    }
    return sent;
}

/* After a cancellation reached a run whose outcome the task does not know yet, act as the task
 * would have: the awaited future is cancelled, a return becomes the cancellation.
 * 1: the exception still has to be thrown into the coroutine. */
static int cancel_undelivered(Portal *portal, PyObject *exception)
{
    if (portal->out == OUT_YIELD) {
        PyObject *done = NULL, *args = PyObject_GetAttrString(exception, "args");
        PyObject *cancel = args ? PyObject_GetAttr(portal->out_value, s_cancel) : NULL;
        if (cancel) {
            done = PyObject_CallObject(cancel, args);
        }
        Py_XDECREF(args);
        Py_XDECREF(cancel);
        PyErr_Clear();
        int cancelled = done && PyObject_IsTrue(done);
        Py_XDECREF(done);
        if (cancelled) {
            return 0;
        }
        portal->out = OUT_NONE;
        Py_CLEAR(portal->out_value);
        return 1;
    }
    if (portal->out == OUT_RETURN) {
        portal->out = OUT_RAISE;
        Py_INCREF(exception);
        Py_XSETREF(portal->out_value, exception);
    }
    return 0;
}

static PySendResult deliver(Portal *portal, PyObject **result)
{
    enum portal_out out = portal->out;
    PyObject *value = portal->out_value;
    portal->out = OUT_NONE;
    portal->out_value = NULL;
    if (out == OUT_YIELD) {
        *result = value;
        return PYGEN_NEXT;
    }
    portal->finished = !portal->refused;
    portal->refused = 0;
    Py_CLEAR(portal->context);
    if (out == OUT_RETURN) {
        *result = value;
        return PYGEN_RETURN;
    }
    *result = NULL;
    give_exception(value);
    return PYGEN_ERROR;
}

/* One step of the task. Steals nothing. */
static PySendResult step(Portal *portal, int is_throw, PyObject *value, PyObject **result)
{
    Strand *strand = &portal->strand;
    *result = NULL;
    if (portal->attached || portal->direct) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return PYGEN_ERROR;
    }
    if (portal->finished) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    Hub *hub = strand->hub = hub_ensure();
    if (!hub) {
        return PYGEN_ERROR;
    }
    PyObject *error = NULL; /* owned: an Outcome from Trio that carries an exception */
    if (portal->detached) {
        if (portal->host == HOST_TRIO && !is_throw && portal->out == OUT_NONE) {
            PyObject *unwrapped = value == trio_value /* it can be unwrapped once */
                                      ? Py_NewRef(Py_None)
                                      : PyObject_CallMethodNoArgs(value, s_unwrap);
            if (!unwrapped) {
                is_throw = 1;
                value = error = take_exception();
            }
            Py_XDECREF(unwrapped);
        }
        portal->rescheduled = 0;
        if (portal->out == OUT_NONE) {
            if (is_throw && strand->state == STRAND_READY && hub_unready(hub, strand)) {
                strand->state = STRAND_PARKED;
            }
            if (!is_throw || strand->state != STRAND_PARKED) {
                /* Woken by somebody else, or cancelled just as it became ready: the task waits
                 * on, the strand continues directly (with the exception, if there is one). */
                if (is_throw) {
                    Py_INCREF(value);
                    Py_XSETREF(strand->thrown, value);
                    strand->outcome = PP_CANCELED;
                }
                Py_XDECREF(error);
                PyObject *waiter = make_waiter(portal);
                if (!waiter) {
                    return PYGEN_ERROR;
                }
                Py_INCREF(waiter);
                Py_XSETREF(portal->waiter, waiter);
                *result = waiter;
                return PYGEN_NEXT;
            }
            portal->detached = 0;
            Py_CLEAR(portal->waiter);
            Py_CLEAR(portal->task);
            Py_INCREF(value);
            Py_XSETREF(strand->thrown, value);
            strand->outcome = PP_CANCELED;
        } else {
            portal->detached = 0;
            Py_CLEAR(portal->waiter);
            Py_CLEAR(portal->task);
            if (!is_throw || !cancel_undelivered(portal, value)) {
                return deliver(portal, result);
            }
        }
    }
    Py_INCREF(portal);
    let_go(portal);
    portal->attached = 1;
    portal->stepper = PyGreenlet_GetCurrent();
    portal->stepper_strand = hub->current;
    /* an eager task is first stepped inside another one */
    set_home(portal, home_of_step(portal, hub->current));
    if (portal->context != hub->tstate->context) {
        Py_XINCREF(hub->tstate->context);
        Py_XSETREF(portal->context, hub->tstate->context);
    }
    strand->locals_owner = hub->current->locals_owner;
    note_step_task(portal);
    if (portal->host == HOST_AUTO && !strand->loop) {
        strand->loop = hub->current->loop;
        Py_XINCREF(strand->loop);
    }
    strand->state = STRAND_RUNNING;
    strand_make_current(hub, strand);
    int failed;
    if (strand->greenlet) { /* parked in a wait that was cancelled: `thrown` is set */
        PyGreenlet *parked = strand->greenlet;
        strand->greenlet = NULL;
        failed = greenlet_switch(parked);
        Py_DECREF(parked);
    } else {
        portal->in_throw = is_throw;
        Py_INCREF(value);
        Py_XSETREF(portal->in_value, value);
        if (portal->suspended) {
            PyGreenlet *suspended = portal->suspended;
            portal->suspended = NULL;
            failed = greenlet_switch(suspended);
            Py_DECREF(suspended);
        } else {
            failed = runner_start(hub, strand);
        }
    }
    Py_XDECREF(error);
    if (failed || portal->out == OUT_NONE) {
        if (portal->attached) {
            leave_step(portal);
            Py_CLEAR(portal->stepper);
        }
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError,
                            "the greenlet of a portal switched back without an outcome");
        }
        Py_DECREF(portal);
        return PYGEN_ERROR;
    }
    PySendResult status = deliver(portal, result);
    Py_DECREF(portal);
    return status;
}

/* ---- await_ ------------------------------------------------------------------------------------------ */

static int is_generator_coroutine(PyObject *object)
{
    if (!PyGen_CheckExact(object)) {
        return 0;
    }
    PyObject *code = PyObject_GetAttrString(object, "gi_code");
    int iterable = code && (((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE);
    Py_XDECREF(code);
    return iterable;
}

/* The iterator `await` would use, new reference; the TypeError native await gives. */
static PyObject *awaitable_iterator(PyObject *awaitable)
{
    if (PyCoro_CheckExact(awaitable) || Py_TYPE(awaitable) == &Portal_Type ||
        is_generator_coroutine(awaitable)) {
        Py_INCREF(awaitable);
        return awaitable;
    }
    PyAsyncMethods *methods = Py_TYPE(awaitable)->tp_as_async;
    if (!methods || !methods->am_await) {
        PyErr_Format(PyExc_TypeError, "object %.100s can't be used in 'await' expression",
                     Py_TYPE(awaitable)->tp_name);
        return NULL;
    }
    PyObject *iterator = methods->am_await(awaitable);
    if (!iterator) {
        return NULL;
    }
    if (PyCoro_CheckExact(iterator)) {
        PyErr_SetString(PyExc_TypeError, "__await__() returned a coroutine");
        Py_CLEAR(iterator);
    } else if (!PyIter_Check(iterator)) {
        PyErr_Format(PyExc_TypeError, "__await__() returned non-iterator of type '%.100s'",
                     Py_TYPE(iterator)->tp_name);
        Py_CLEAR(iterator);
    }
    return iterator;
}

/* What a throw into a delegating `await` does: GeneratorExit closes the inner iterator, anything
 * else goes to its throw method if it has one. */
static PySendResult throw_into(PyObject *iterator, PyObject **result)
{
    PyObject *exception = take_exception();
    PySendResult status = PYGEN_ERROR;
    if (PyObject_TypeCheck(exception, (PyTypeObject *)PyExc_GeneratorExit)) {
        PyObject *close = NULL;
        if (PyObject_GetOptionalAttr(iterator, s_close, &close) >= 0) {
            PyObject *closed = close ? PyObject_CallNoArgs(close) : Py_NewRef(Py_None);
            Py_XDECREF(close);
            if (closed) {
                Py_DECREF(closed);
                give_exception(exception);
                return PYGEN_ERROR;
            }
        }
    } else {
        PyObject *method = NULL;
        if (PyObject_GetOptionalAttr(iterator, s_throw, &method) >= 0) {
            if (!method) {
                give_exception(exception);
                return PYGEN_ERROR;
            }
            Py_DECREF(method);
            status = drive(iterator, 1, exception, result);
        }
    }
    Py_DECREF(exception);
    return status;
}

/* Steals the iterator. */
static PyObject *await_iterator(Portal *portal, PyObject *iterator)
{
    PyObject *result = NULL, *sent = Py_None;
    Py_INCREF(sent);
    PySendResult status = PyIter_Send(iterator, sent, &result);
    Py_DECREF(sent);
    while (status == PYGEN_NEXT) {
        sent = yield_to_task(portal, iterator, result);
        result = NULL;
        if (sent) {
            status = PyIter_Send(iterator, sent, &result);
            Py_DECREF(sent);
        } else {
            status = throw_into(iterator, &result);
        }
    }
    Py_DECREF(iterator);
    return result;
}

static PyObject *core_awaitable_iterator(PyObject *module, PyObject *awaitable)
{
    (void)module;
    if (PyCoro_CheckExact(awaitable) || Py_TYPE(awaitable)->tp_as_async) {
        Py_RETURN_NONE; /* checked in full when it is awaited */
    }
    PyObject *iterator = awaitable_iterator(awaitable);
    if (!iterator) {
        return NULL;
    }
    Py_DECREF(iterator);
    Py_RETURN_NONE;
}

/* A new exception whose cause is the pending one. `format` may have one %s, for `text`. */
void portal_format_from_cause(PyObject *kind, const char *format, const char *text)
{
    PyObject *cause = take_exception();
    PyErr_Format(kind, format, text);
    PyObject *exception = take_exception();
    Py_INCREF(cause);
    PyException_SetCause(exception, cause); /* both steal */
    PyException_SetContext(exception, cause);
    give_exception(exception);
}

int portal_is_awaitable(PyObject *object)
{
    PyAsyncMethods *methods = Py_TYPE(object)->tp_as_async;
    return (methods && methods->am_await) || is_generator_coroutine(object);
}

/* Whether a traceback entry is of a function of this package. */
static int is_own_frame(PyTracebackObject *entry)
{
    PyObject *globals = PyObject_GetAttrString((PyObject *)entry->tb_frame, "f_globals");
    PyObject *name = globals ? PyDict_GetItemString(globals, "__name__") : NULL;
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    int is_own = text && strncmp(text, "portalpatch.", strlen("portalpatch.")) == 0;
    Py_XDECREF(globals);
    return is_own;
}

/* Outside a portal Python code explains, or runs the awaitable on the hub's own loop. */
static PyObject *await_outside(PyObject *awaitable)
{
    static PyObject *function;
    if (!function) {
        PyObject *module = PyImport_ImportModule("portalpatch._portal");
        function = module ? PyObject_GetAttrString(module, "_await_outside") : NULL;
        Py_XDECREF(module);
        if (!function) {
            return NULL;
        }
    }
    PyObject *result = PyObject_CallOneArg(function, awaitable);
    if (result) {
        return result;
    }
    PyObject *exception = take_exception();
    PyObject *traceback = PyException_GetTraceback(exception), *next = traceback;
    while (next && is_own_frame((PyTracebackObject *)next)) {
        next = (PyObject *)((PyTracebackObject *)next)->tb_next;
    }
    PyErr_Clear();
    PyException_SetTraceback(exception, next ? next : Py_None);
    Py_XDECREF(traceback);
    give_exception(exception);
    return NULL;
}

/* await_(awaitable). With `invalid`, what cannot be awaited is a TypeError of that text (%s is its
 * type), caused by the one that await gives. */
PyObject *portal_await(PyObject *awaitable, const char *invalid)
{
    Hub *hub = hub_get();
    Portal *portal = current_portal(hub);
    if (!portal || portal->forbidden) {
        if (invalid && !portal_is_awaitable(awaitable)) {
            PyErr_Format(PyExc_TypeError, invalid, Py_TYPE(awaitable)->tp_name);
            return NULL;
        }
        return await_outside(awaitable);
    }
    portal->awaits++;
    PyObject *iterator = awaitable_iterator(awaitable);
    if (iterator) {
        return await_iterator(portal, iterator);
    }
    if (invalid) {
        portal_format_from_cause(PyExc_TypeError, invalid, Py_TYPE(awaitable)->tp_name);
    }
    return NULL;
}

static PyObject *core_await(PyObject *module, PyObject *awaitable)
{
    (void)module;
    return portal_await(awaitable, NULL);
}

/* ---- the type ------------------------------------------------------------------------------------------ */

static PyObject *new_portal(PyObject *inner, enum portal_host host, PyObject *loop)
{
    Hub *hub = hub_ensure();
    if (!hub) {
        return NULL;
    }
    Portal *portal = PyObject_GC_New(Portal, &Portal_Type);
    if (!portal) {
        return NULL;
    }
    memset((char *)portal + sizeof(PyObject), 0, sizeof *portal - sizeof(PyObject));
    strand_init(&portal->strand, hub, STRAND_PORTAL);
    portal->host = host;
    Py_INCREF(inner);
    portal->inner = inner;
    if (host == HOST_ASYNCIO) {
        Py_INCREF(loop);
        portal->strand.loop = loop;
    }
    hub->stats.portals++;
    if (!hub->gate_open && hub_primary()) {
        hub_open_gate(
            hub); /* a loop in another OS thread of a patched process: its tasks park too */
    }
    PyObject_GC_Track(portal);
    return (PyObject *)portal;
}

static PyObject *portal_coroutine(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "portal_coroutine(coroutine, loop)");
        return NULL;
    }
    if (load_asyncio() < 0) {
        return NULL;
    }
    if (Py_TYPE(args[0]) == &Portal_Type) {
        Py_INCREF(args[0]);
        return args[0];
    }
    return new_portal(args[0], HOST_ASYNCIO, args[1]);
}

static PyObject *portal_coroutine_trio(PyObject *module, PyObject *coroutine)
{
    (void)module;
    if (load_trio() < 0) {
        return NULL;
    }
    if (Py_TYPE(coroutine) == &Portal_Type) {
        Py_INCREF(coroutine);
        return coroutine;
    }
    return new_portal(coroutine, HOST_TRIO, NULL);
}

static PyObject *portal_coroutine_other(PyObject *module, PyObject *coroutine)
{
    (void)module;
    return new_portal(coroutine, HOST_OTHER, NULL);
}

/* A portal for a part of the task that runs now. */
static PyObject *new_auto_portal(PyObject *inner)
{
    PyObject *portal = new_portal(inner, HOST_AUTO, NULL);
#if PY_VERSION_HEX >= 0x030C0000
    if (portal && find_host((Portal *)portal) == 0) {
        note_step_task((Portal *)portal);
    }
    PyErr_Clear();
#endif
    return portal;
}

static PyObject *portal_coroutine_auto(PyObject *module, PyObject *coroutine)
{
    (void)module;
    return new_auto_portal(coroutine);
}

static PyObject *portal_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3 || !PyTuple_Check(args[1]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "portal_call(function, args, kwargs)");
        return NULL;
    }
    PyObject *portal = new_auto_portal(args[0]);
    if (portal) {
        Py_INCREF(args[1]);
        ((Portal *)portal)->call_args = args[1];
        Py_INCREF(args[2]);
        ((Portal *)portal)->call_kwargs = args[2];
    }
    return portal;
}

static PyObject *await_count(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_get();
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLongLong(portal_of(hub->current)->awaits);
}

static PyObject *forbid_await(PyObject *module, PyObject *delta)
{
    (void)module;
    long by = PyLong_AsLong(delta);
    Hub *hub = hub_get();
    if (!hub || hub->current->kind != STRAND_PORTAL) {
        return PyLong_FromLong(0);
    }
    portal_of(hub->current)->forbidden += (int)by;
    return PyLong_FromLong(portal_of(hub->current)->forbidden);
}

static PyObject *portal_host(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_get();
    Portal *portal = hub && hub->current->kind == STRAND_PORTAL ? portal_of(hub->current) : NULL;
    if (!portal) {
        Py_RETURN_NONE;
    }
    if (find_host(portal) < 0) {
        return NULL;
    }
    const char *name = portal->host == HOST_ASYNCIO ? "asyncio"
                       : portal->host == HOST_TRIO  ? "trio"
                                                    : "other";
    return PyUnicode_FromString(name);
}

static PyObject *in_portal(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(current_portal(hub_get()) != NULL);
}

Strand *portal_strand(PyObject *object, PyGreenlet **greenlet)
{
    if (Py_TYPE(object) != &Portal_Type) {
        return NULL;
    }
    Portal *portal = (Portal *)object;
    *greenlet = portal->strand.greenlet ? portal->strand.greenlet : portal->suspended;
    return &portal->strand;
}

static PyObject *is_portal(PyObject *module, PyObject *object)
{
    (void)module;
    return PyBool_FromLong(Py_TYPE(object) == &Portal_Type);
}

static PyObject *portal_inner(PyObject *module, PyObject *object)
{
    (void)module;
    PyObject *inner = Py_TYPE(object) == &Portal_Type ? ((Portal *)object)->inner : object;
    Py_INCREF(inner);
    return inner;
}

/* Put a portal in the place of a running C Task's coroutine: the field is found by its value. */
static PyObject *replace_task_coroutine(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "replace_task_coroutine(task, old, new)");
        return NULL;
    }
    PyObject *task = args[0], *old = args[1], *new = args[2];
    static Py_ssize_t known_offset;
    size_t size = (size_t)Py_TYPE(task)->tp_basicsize;
    if (known_offset && (size_t)known_offset + sizeof(PyObject *) <= size) {
        PyObject **field = (PyObject **)((char *)task + known_offset);
        if (*field == old) {
            Py_INCREF(new);
            *field = new;
            Py_DECREF(old);
            Py_RETURN_TRUE;
        }
    }
    PyObject **found = NULL;
    for (size_t at = sizeof(PyObject); at + sizeof(PyObject *) <= size; at += sizeof(PyObject *)) {
        PyObject **field = (PyObject **)((char *)task + at);
        if (*field == old) {
            if (found) {
                Py_RETURN_FALSE; /* ambiguous: leave it alone */
            }
            found = field;
        }
    }
    if (!found) {
        Py_RETURN_FALSE;
    }
    known_offset = (char *)found - (char *)task;
    Py_INCREF(new);
    *found = new;
    Py_DECREF(old);
    Py_RETURN_TRUE;
}

static PySendResult portal_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return step((Portal *)self, 0, value, result);
}

static PyObject *as_method_result(PySendResult status, PyObject *result)
{
    if (status == PYGEN_NEXT || status == PYGEN_ERROR) {
        return result;
    }
    if (result == Py_None) {
        Py_DECREF(result);
        PyErr_SetNone(PyExc_StopIteration);
        return NULL;
    }
    /* StopIteration(value), where a tuple or exception as value must not be unpacked */
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *portal_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = step((Portal *)self, 0, value, &result);
    return as_method_result(status, result);
}

static PyObject *portal_next(PyObject *self)
{
    return portal_send(self, Py_None);
}

/* The exception that throw(*args) means, new reference; the errors of a native coroutine's throw. */
static PyObject *exception_to_throw(PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw expected at %s %d argument%s, got %zd",
                     nargs < 1 ? "least" : "most", nargs < 1 ? 1 : 3, nargs < 1 ? "" : "s", nargs);
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030C0000
    if (nargs > 1 && PyErr_WarnEx(PyExc_DeprecationWarning,
                                  "the (type, exc, tb) signature of throw() is deprecated, "
                                  "use the single-arg signature instead.",
                                  1) < 0) {
        return NULL;
    }
#endif
    PyObject *type = args[0], *value = nargs > 1 ? args[1] : NULL;
    PyObject *traceback = nargs > 2 && args[2] != Py_None ? args[2] : NULL;
    if (traceback && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        if (value && value != Py_None) {
            PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
            return NULL;
        }
        value = type;
        Py_INCREF(value);
    } else if (PyExceptionClass_Check(type)) {
        PyObject *unused = NULL;
        Py_INCREF(type);
        Py_XINCREF(value);
        PyErr_NormalizeException(&type, &value, &unused);
        Py_XDECREF(type);
        Py_XDECREF(unused);
    } else {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    if (traceback && PyException_SetTraceback(value, traceback) < 0) {
        Py_CLEAR(value);
    }
    return value;
}

/* Stopped at an await of its own or below. Keeps a pending exception. */
static int is_suspended(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (portal->suspended || portal->detached || portal->attached || portal->call_args) {
        return portal->suspended || (portal->detached && !portal->direct);
    }
    PyObject *exception = take_exception();
    PyObject *awaited = PyObject_GetAttrString(portal->inner, "cr_await");
    int suspended = awaited && awaited != Py_None;
    Py_XDECREF(awaited);
    PyErr_Clear();
    give_exception(exception);
    return suspended;
}

static PyObject *portal_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *exception = exception_to_throw(args, nargs);
    if (!exception) {
        /* Whatever the coroutine awaits would refuse the arguments: raised there, so to speak. */
        if (PyErr_ExceptionMatches(PyExc_Warning) || nargs < 1 || nargs > 3 ||
            !is_suspended(self)) {
            return NULL;
        }
        exception = take_exception();
    }
    PyObject *result;
    PySendResult status = step((Portal *)self, 1, exception, &result);
    Py_DECREF(exception);
    return as_method_result(status, result);
}

static PyObject *portal_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    if (portal->finished) {
        Py_RETURN_NONE;
    }
    if (portal->attached || portal->direct) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    if (portal->detached && portal->out != OUT_NONE) { /* its task will not take the outcome */
        portal->detached = 0;
        Py_CLEAR(portal->waiter);
        Py_CLEAR(portal->task);
        Py_CLEAR(portal->out_value);
        portal->finished = portal->out != OUT_YIELD;
        portal->out = OUT_NONE;
        if (portal->finished) {
            Py_RETURN_NONE;
        }
    }
    if (!portal->suspended && !portal->detached) {
        portal->finished = 1;
        if (portal->call_args) {
            Py_RETURN_NONE;
        }
        PyObject *closed = PyObject_CallMethodNoArgs(portal->inner, s_close);
        if (!closed && coroutine_goes_on(portal->inner)) {
            portal->finished = 0; /* it ignored GeneratorExit */
        }
        return closed;
    }
    PyObject *exit = PyObject_CallNoArgs(PyExc_GeneratorExit), *result;
    if (!exit) {
        return NULL;
    }
    PySendResult status = step(portal, 1, exit, &result);
    Py_DECREF(exit);
    if (status == PYGEN_NEXT) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "coroutine ignored GeneratorExit");
        return NULL;
    }
    if (status == PYGEN_ERROR) {
        if (!PyErr_ExceptionMatches(PyExc_GeneratorExit) &&
            !PyErr_ExceptionMatches(PyExc_StopIteration)) {
            return NULL;
        }
        PyErr_Clear();
    }
#if PY_VERSION_HEX >= 0x030D0000
    if (status == PYGEN_RETURN) {
        return result; /* what a coroutine that catches GeneratorExit returns */
    }
#endif
    Py_XDECREF(result);
    Py_RETURN_NONE;
}

static PyObject *portal_am_await(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyObject *portal_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(((Portal *)self)->inner, name);
}

static PyObject *portal_repr(PyObject *self)
{
    return PyObject_Repr(((Portal *)self)->inner);
}

/* ---- introspection: a suspended portal shows the frames of its greenlet as a chain of awaits ---- */

/* The user's frames on the stacks of this greenlet and of the raw greenlets below it, outermost
 * first; asking for gr_frame makes them safe to look at. */
static PyObject *frames_of(PyGreenlet *greenlet)
{
    PyObject *frames = PyList_New(0);
    Py_XINCREF(greenlet);
    while (frames && greenlet) {
        PyObject *frame = PyObject_GetAttrString((PyObject *)greenlet, "gr_frame");
        while (frame && frame != Py_None) {
            if (PyList_Append(frames, frame) < 0) {
                break;
            }
            Py_SETREF(frame, PyObject_GetAttrString(frame, "f_back"));
        }
        Py_XDECREF(frame);
        PyGreenlet *parent = PyErr_Occurred() ? NULL : PyGreenlet_GetParent(greenlet);
        Py_SETREF(greenlet, parent);
        if (parent && PyGreenlet_MAIN(parent)) { /* it was a runner */
            Py_CLEAR(greenlet);
        }
    }
    Py_XDECREF(greenlet);
    if (frames && (PyErr_Occurred() || PyList_Reverse(frames) < 0)) {
        Py_CLEAR(frames);
    }
    return frames;
}

/* One synchronous or asynchronous frame of a suspended portal, as debuggers expect a coroutine. */
typedef struct {
    PyObject_HEAD PyObject *frames; /* list: all of them, outermost first */
    Py_ssize_t at;
} AwaitFrame;

static PyTypeObject AwaitFrame_Type;

static PyObject *await_frame(PyObject *frames, Py_ssize_t at)
{
    if (at >= PyList_GET_SIZE(frames)) {
        Py_RETURN_NONE;
    }
    if (!PyFrame_Check(PyList_GET_ITEM(frames, at))) { /* the last await_'s: a native awaitable */
        return Py_NewRef(PyList_GET_ITEM(frames, at));
    }
    AwaitFrame *self = PyObject_New(AwaitFrame, &AwaitFrame_Type);
    if (self) {
        Py_INCREF(frames);
        self->frames = frames;
        self->at = at;
    }
    return (PyObject *)self;
}

static void await_frame_dealloc(PyObject *self)
{
    Py_DECREF(((AwaitFrame *)self)->frames);
    PyObject_Free(self);
}

static PyObject *await_frame_frame(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(PyList_GET_ITEM(((AwaitFrame *)self)->frames, ((AwaitFrame *)self)->at));
}

static PyObject *await_frame_code(PyObject *self, void *unused)
{
    return (PyObject *)PyFrame_GetCode((PyFrameObject *)await_frame_frame(self, unused));
}

static PyObject *await_frame_await(PyObject *self, void *unused)
{
    (void)unused;
    return await_frame(((AwaitFrame *)self)->frames, ((AwaitFrame *)self)->at + 1);
}

static PyObject *always_false(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    Py_RETURN_FALSE;
}

static PyGetSetDef await_frame_getset[] = {{"cr_frame", await_frame_frame, NULL, NULL, NULL},
                                           {"cr_code", await_frame_code, NULL, NULL, NULL},
                                           {"cr_await", await_frame_await, NULL, NULL, NULL},
                                           {"cr_running", always_false, NULL, NULL, NULL},
                                           {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject AwaitFrame_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch._core.AwaitFrame",
    .tp_doc = PyDoc_STR("A frame of a suspended portal, in the form of a coroutine's attributes."),
    .tp_basicsize = sizeof(AwaitFrame),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = await_frame_dealloc,
    .tp_getset = await_frame_getset,
};

/* The greenlet that its coroutine is stopped in; NULL: it runs, or is suspended natively. */
static PyGreenlet *stopped_greenlet(Portal *portal)
{
    if (portal->suspended) {
        return portal->suspended;
    }
    return portal->detached && !portal->direct ? portal->strand.greenlet : NULL;
}

static PyObject *frame_or_none(PyObject *frames, Py_ssize_t at)
{
    PyObject *frame = at < PyList_GET_SIZE(frames) ? PyList_GET_ITEM(frames, at) : Py_None;
    Py_INCREF(frame);
    return frame;
}

static PyObject *portal_cr_frame(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    PyGreenlet *greenlet = stopped_greenlet(portal);
    if (greenlet) {
        PyObject *frames = frames_of(greenlet);
        PyObject *frame = frames ? frame_or_none(frames, 0) : NULL;
        Py_XDECREF(frames);
        return frame;
    }
    if (portal->call_args) {
        Py_RETURN_NONE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_frame");
}

static PyObject *portal_cr_await(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    PyGreenlet *greenlet = stopped_greenlet(portal);
    if (greenlet) {
        PyObject *frames = frames_of(greenlet);
        if (frames && portal->suspended && PyList_Append(frames, portal->awaited) < 0) {
            Py_CLEAR(frames);
        }
        PyObject *next = frames ? await_frame(frames, 1) : NULL;
        Py_XDECREF(frames);
        return next;
    }
    if (portal->call_args || portal->attached || portal->direct) {
        Py_RETURN_NONE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_await");
}

static PyObject *portal_cr_running(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    return PyBool_FromLong(portal->attached || portal->direct);
}

static PyObject *portal_cr_suspended(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    if (stopped_greenlet(portal)) {
        Py_RETURN_TRUE;
    }
    if (portal->call_args || portal->attached || portal->direct) {
        Py_RETURN_FALSE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_suspended");
}

static PyObject *portal_class(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)Py_TYPE(((Portal *)self)->inner));
}

static PyObject *portal_name(PyObject *self, void *name)
{
    return PyObject_GetAttrString(((Portal *)self)->inner, name);
}

static int portal_traverse(PyObject *self, visitproc visit, void *arg)
{
    Portal *portal = (Portal *)self;
    if (portal->home && portal->home->kind == STRAND_PORTAL) {
        Py_VISIT(portal_of(portal->home));
    }
    Py_VISIT(portal->inner);
    Py_VISIT(portal->call_args);
    Py_VISIT(portal->call_kwargs);
    Py_VISIT(portal->context);
    Py_VISIT(portal->in_value);
    Py_VISIT(portal->out_value);
    Py_VISIT(portal->waiter);
    Py_VISIT(portal->task);
    Py_VISIT(portal->previous_task);
    Py_VISIT(portal->suspended);
    Py_VISIT(portal->stepper);
    Py_VISIT(portal->strand.greenlet);
    Py_VISIT(portal->strand.loop);
    Py_VISIT(portal->strand.thrown);
    return 0;
}

static int portal_tp_clear(PyObject *self)
{
    Portal *portal = (Portal *)self;
    set_home(portal, NULL);
    Py_CLEAR(portal->inner);
    Py_CLEAR(portal->call_args);
    Py_CLEAR(portal->call_kwargs);
    Py_CLEAR(portal->context);
    Py_CLEAR(portal->in_value);
    Py_CLEAR(portal->out_value);
    Py_CLEAR(portal->waiter);
    Py_CLEAR(portal->task);
    Py_CLEAR(portal->previous_task);
    Py_CLEAR(portal->suspended);
    Py_CLEAR(portal->stepper);
    return 0;
}

/* A portal dropped while its greenlet is suspended ends it as a coroutine's own finalizer would. */
static void portal_finalize(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (portal->finished || portal->attached || !(portal->suspended || portal->detached)) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (portal->strand.hub == hub_get()) {
        PyObject *closed = portal_close(self, NULL);
        if (!closed) {
            PyErr_WriteUnraisable(portal->inner);
        }
        Py_XDECREF(closed);
    }
    if (portal->suspended || portal->detached) {
        /* It ignored GeneratorExit, or its OS thread is another one: its greenlet cannot be
         * unwound, and C code on that stack still refers to this object. */
        Py_INCREF(self);
    }
    PyErr_Restore(type, value, traceback);
}

static void portal_dealloc(PyObject *self)
{
    Portal *portal = (Portal *)self;
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (portal->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    portal_tp_clear(self);
    strand_clear(&portal->strand);
    PyObject_GC_Del(self);
}

static PyMethodDef portal_methods[] = {
    {"send", portal_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))portal_throw, METH_FASTCALL, NULL},
    {"close", portal_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef portal_getset[] = {{"cr_await", portal_cr_await, NULL, NULL, NULL},
                                      {"cr_frame", portal_cr_frame, NULL, NULL, NULL},
                                      {"cr_running", portal_cr_running, NULL, NULL, NULL},
                                      {"cr_suspended", portal_cr_suspended, NULL, NULL, NULL},
                                      {"__class__", portal_class, NULL, NULL, NULL},
                                      {"__name__", portal_name, NULL, NULL, "__name__"},
                                      {"__qualname__", portal_name, NULL, NULL, "__qualname__"},
                                      {NULL, NULL, NULL, NULL, NULL}};

static PyAsyncMethods portal_async = {.am_await = portal_am_await, .am_send = portal_am_send};

static PyTypeObject Portal_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.Portal",
    .tp_doc = PyDoc_STR("The coroutine a host loop steps in the place of the user's."),
    .tp_basicsize = sizeof(Portal),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_FINALIZE,
    .tp_dealloc = portal_dealloc,
    .tp_finalize = portal_finalize,
    .tp_traverse = portal_traverse,
    .tp_clear = portal_tp_clear,
    .tp_repr = portal_repr,
    .tp_getattro = portal_getattro,
    .tp_as_async = &portal_async,
    .tp_iternext = portal_next,
    .tp_iter = NULL,
    .tp_methods = portal_methods,
    .tp_getset = portal_getset,
    .tp_weaklistoffset = offsetof(Portal, weakrefs),
};

static PyObject *noop_function(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    Py_RETURN_NONE;
}

static PyMethodDef noop_method = {"wake", noop_function, METH_VARARGS, NULL};

PyDoc_STRVAR(
    await_doc,
    "await_($module, awaitable, /)\n--\n\n"
    "`await awaitable`, from a synchronous function.\n\n"
    "In a task, the task's portal yields to its loop. Where no loop runs and `patch_all()`\n"
    "is in force, the awaitable runs on the hub's own loop and this line of control waits.\n"
    "\n"
    "Returns: what `await` would return.\n"
    "Raises:\n"
    "    RuntimeError: this task has no portal; the message says how to make one.\n"
    "    TypeError: not an awaitable, as native `await` says it.\n");

static PyMethodDef methods[] = {
    {"await_", core_await, METH_O, await_doc},
    {"awaitable_iterator", core_awaitable_iterator, METH_O,
     PyDoc_STR("Raise native await's TypeError for what cannot be awaited.")},
    {"portal_coroutine", (PyCFunction)(void (*)(void))portal_coroutine, METH_FASTCALL,
     PyDoc_STR("Wrap an asyncio task's coroutine: portal_coroutine(coroutine, loop).")},
    {"portal_coroutine_trio", portal_coroutine_trio, METH_O,
     PyDoc_STR("Wrap a Trio task's coroutine.")},
    {"portal_coroutine_other", portal_coroutine_other, METH_O,
     PyDoc_STR("Wrap a coroutine of any other host: await_ works, libc calls do not park.")},
    {"portal_coroutine_auto", portal_coroutine_auto, METH_O,
     PyDoc_STR("Wrap a coroutine; which host steps it is found out when that matters.")},
    {"portal_call", (PyCFunction)(void (*)(void))portal_call, METH_FASTCALL,
     PyDoc_STR("An awaitable that runs function(*args, **kwargs) with a portal.")},
    {"await_count", await_count, METH_NOARGS,
     PyDoc_STR("How often the current portal awaited or parked; None outside one.")},
    {"forbid_await", forbid_await, METH_O,
     PyDoc_STR("Add to the current portal's depth of forbid_await; returns it.")},
    {"portal_host", portal_host, METH_NOARGS,
     PyDoc_STR("The current portal's host: asyncio, trio, other; None outside one.")},
    {"in_portal", in_portal, METH_NOARGS, PyDoc_STR("True inside a portal's step.")},
    {"is_portal", is_portal, METH_O, NULL},
    {"portal_inner", portal_inner, METH_O, PyDoc_STR("The user's coroutine of a portal.")},
    {"replace_task_coroutine", (PyCFunction)(void (*)(void))replace_task_coroutine, METH_FASTCALL,
     PyDoc_STR("replace_task_coroutine(task, old, new) -> bool")},
    {NULL, NULL, 0, NULL}};

int portal_exec(PyObject *module)
{
    static const struct {
        PyObject **where;
        const char *text;
    } names[] = {{&s_ready, "_ready"},
                 {&s_scheduled, "_scheduled"},
                 {&s_done, "done"},
                 {&s_set_result, "set_result"},
                 {&s_blocking, "_asyncio_future_blocking"},
                 {&s_throw, "throw"},
                 {&s_cancel, "cancel"},
                 {&s_task, "task"},
                 {&s_runner, "runner"},
                 {&s_runq, "runq"},
                 {&s_loop, "loop"},
                 {&s_close, "close"},
                 {&s_call_soon_threadsafe, "call_soon_threadsafe"},
                 {&s_unwrap, "unwrap"},
                 {&s_value, "value"},
                 {&s_await, "__await__"},
                 {&s_deadlines, "deadlines"},
                 {&s_next_deadline, "next_deadline"},
                 {&s_send, "send"},
                 {&s_asyncio, "asyncio"},
                 {&s_trio, "trio"},
                 {&s_get_running_loop, "_get_running_loop"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!*names[i].where && !(*names[i].where = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    PyGreenlet_Import();
    if (!_PyGreenlet_API) {
        return -1;
    }
    if (!noop && !(noop = PyCFunction_New(&noop_method, NULL))) {
        return -1;
    }
    if (PyType_Ready(&AwaitFrame_Type) < 0 || PyType_Ready(&Portal_Type) < 0 ||
        PyModule_AddType(module, &Portal_Type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
