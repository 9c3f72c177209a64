/* portal_steps.c: one step of a task through its portal, and what happens between two steps.
 *
 * The host loop steps the portal; the user's coroutine runs in a pooled runner greenlet and switches
 * back to the stepper where it yields. When a libc call or a lock parks inside a step, the task is given
 * one future (portal_detach_and_wait) and the hub resumes the greenlet directly, as often as it parks,
 * with the task set as current; the task is stepped again only when its coroutine really yields,
 * returns or raises, or it is cancelled. Called by portal.c, portal_await.c and strand.c. The invariant
 * is portal.h's.
 */
#include "portal.h"

static PyObject *s_throw, *s_cancel, *s_value;

int portal_is_attached(Strand *strand)
{
    return portal_of(strand)->attached;
}

/* ---- whose step it is ------------------------------------------------------------------------------- */

/* From 3.12 a task may be stepped inside another's step, eagerly; the portal around it is not its own. So
 * each step remembers its task, and await_ compares. */
void portal_note_task(Portal *portal)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (portal->host == HOST_ASYNCIO) {
        PyObject *task = host_current_task(portal);
        portal->step_task = task;
        Py_XDECREF(task);
    }
#else
    (void)portal;
#endif
}

/* A green thread may end and leave its tasks behind: its strand then stays, as DONE, until the last of
 * them lets go. */
void portal_set_home(Portal *portal, Strand *home)
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
    Between before = between_begin(strand->hub);
    PyObject *waiter = host_find(portal) == 0 ? host_make_waiter(portal) : NULL;
    if (!waiter) {
        PyErr_Clear();
        between_end(strand->hub, before);
        return -1;
    }
    portal->awaits++;
    Py_XSETREF(portal->task, host_current_task(portal));
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
    between_end(strand->hub, before);
    greenlet_switch(stepper);
    Py_DECREF(stepper);
    return 0;
}

int portal_may_resume(Strand *strand)
{
    Portal *portal = portal_of(strand);
    if (!portal->detached || !(portal->rescheduled || host_waiter_done(portal))) {
        return 1;
    }
    Between before = between_begin(strand->hub);
    host_kick(portal, 0);
    between_end(strand->hub, before);
    return 0;
}

void portal_before_resume(Strand *strand)
{
    Portal *portal = portal_of(strand);
    portal->direct = 1;
    strand->hub->stats.direct_resumes++;
    Between before = between_begin(strand->hub);
    host_read_queues(portal, &portal->ready_len, &portal->scheduled_len, &portal->scheduled_head);
    portal->previous_task = host_exchange_task(portal, portal->task);
    between_end(strand->hub, before);
}

static void after_direct_run(Strand *strand)
{
    Portal *portal = portal_of(strand);
    portal->direct = 0;
    PyObject *previous = portal->previous_task;
    portal->previous_task = NULL;
    Py_XDECREF(host_exchange_task(portal, previous));
    Py_XDECREF(previous);
    if (portal->abort_refused) {
        portal->abort_refused = 0;
        if (strand->state == STRAND_PARKED) { /* else what it yields is a checkpoint of its own */
            host_offer_abort(portal);
        }
    }
    Py_ssize_t ready_len, scheduled_len;
    PyObject *head;
    int known = host_read_queues(portal, &ready_len, &scheduled_len, &head);
    if (known < 0 || ready_len != portal->ready_len || scheduled_len != portal->scheduled_len ||
        head != portal->scheduled_head) {
        host_kick(portal, known);
    }
}

void portal_after_run(Strand *strand)
{
    if (portal_of(strand)->direct) {
        Between before = between_begin(strand->hub);
        after_direct_run(strand);
        between_end(strand->hub, before);
    }
}

/* A direct run has ended: its task is told. */
static void end_direct_run(Portal *portal)
{
    Between before = between_begin(portal->strand.hub);
    portal_after_run(&portal->strand);
    host_complete_waiter(portal);
    between_end(portal->strand.hub, before);
}

/* ---- one step --------------------------------------------------------------------------------------- */

/* A coroutine's send or throw as one call: PYGEN_NEXT/RETURN with *result, PYGEN_ERROR. */
PySendResult portal_drive(PyObject *coroutine, int is_throw, PyObject *value, PyObject **result)
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
    PyObject *stop = exception_take();
    *result = PyObject_GetAttr(stop, s_value);
    Py_DECREF(stop);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

/* The exception that an `except` around here is handling, new reference, or NULL. */
static PyObject *handled_exception(void)
{
#if PY_VERSION_HEX >= 0x030B0000
    return PyErr_GetHandledException();
#else
    PyObject *type, *value, *traceback;
    PyErr_GetExcInfo(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    if (value == Py_None) {
        Py_CLEAR(value);
    }
    return value;
#endif
}

/* In a greenlet of its own the coroutine would see no `except` around it: what it raises gets that
 * exception as its context. Steals it; NULL: none. */
static void set_handled_exception(PyObject *exception)
{
#if PY_VERSION_HEX >= 0x030B0000
    PyErr_SetHandledException(exception);
    Py_XDECREF(exception);
#else
    PyObject *type = exception ? Py_NewRef((PyObject *)Py_TYPE(exception)) : NULL;
    PyErr_SetExcInfo(type, exception, exception ? PyException_GetTraceback(exception) : NULL);
#endif
}

static void set_context(PyThreadState *tstate, PyObject *context)
{
    PyObject *before = tstate->context;
    tstate->context = context;
    tstate->context_ver++;
    Py_XDECREF(before);
}

/* An exception came from the interpreter, not from the coroutine, which has not ended. */
int portal_inner_goes_on(PyObject *coroutine)
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

/* A greenlet made in a step has that step's greenlet as its parent and may switch to it in a later one
 * (SQLAlchemy's greenlet_spawn does). So while others refer to it, the coroutine goes on in this one. */
static void keep_runner(Portal *portal, Runner *runner, PySendResult status)
{
    runner->kept = status == PYGEN_NEXT && Py_REFCNT(runner->greenlet) > runner->references;
    portal->runner = runner->kept ? runner : NULL;
}

PyGreenlet *portal_run_step(Strand *strand, Runner *runner)
{
    Portal *portal = portal_of(strand);
    Hub *hub = strand->hub;
    Py_XINCREF(portal->context);
    set_context(hub->tstate, portal->context);
    PyObject *value = portal->in_value, *result = NULL;
    int is_handling = portal->handled != NULL;
    portal->in_value = NULL;
    if (is_handling) {
        set_handled_exception(portal->handled);
        portal->handled = NULL;
    }
    PySendResult status;
    if (portal->strand.args && !portal->in_throw && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        status = PYGEN_ERROR;
        portal->refused = 1;
    } else if (portal->strand.args && !portal->in_throw) {
        result = PyObject_Call(portal->inner, portal->strand.args, portal->strand.kwargs);
        status = result ? PYGEN_RETURN : PYGEN_ERROR;
    } else if (portal->strand.args) { /* cancelled before it began */
        Py_INCREF(value);
        exception_give(value);
        status = PYGEN_ERROR;
    } else {
        status = portal_drive(portal->inner, portal->in_throw, value, &result);
        portal->refused = status == PYGEN_ERROR && !portal->in_throw && value != Py_None &&
                          PyErr_ExceptionMatches(PyExc_TypeError) &&
                          portal_inner_goes_on(portal->inner);
    }
    Py_DECREF(value);
    if (status == PYGEN_ERROR) {
        portal->out = OUT_RAISE;
        result = exception_take();
    } else {
        portal->out = status == PYGEN_NEXT ? OUT_YIELD : OUT_RETURN;
    }
    portal->out_value = result;
    if (is_handling) {
        set_handled_exception(NULL);
    }
    keep_runner(portal, runner, status);
    set_context(hub->tstate, NULL);
    PyGreenlet *next = NULL;
    if (portal->attached) {
        next = portal->stepper;
        portal->stepper = NULL;
        leave_step(portal);
    } else {
        end_direct_run(portal);
        strand_make_none_current(hub);
        let_go(portal);
    }
    return next;
}

/* Yield `value` to the task from synchronous code and return what it sends; NULL: it threw. */
PyObject *portal_yield(Portal *portal, PyObject *iterator, PyObject *value)
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
        end_direct_run(portal);
        if (Py_REFCNT(portal) > 1) { /* else nobody is left to step it, and this is its own stack */
            let_go(portal);
        }
        strand_schedule(hub, NULL);
    }
    portal->strand.state = STRAND_RUNNING;
    if (portal->context != context && hub->tstate->context == context) {
        Py_XINCREF(portal->context); /* the task was given another one meanwhile */
        set_context(hub->tstate, portal->context);
    }
    PyObject *sent = portal->in_value;
    portal->in_value = NULL;
    if (PyErr_Occurred()) { /* greenlet.throw, or the greenlet is being destroyed */
        Py_CLEAR(sent);
    } else if (portal->in_throw && sent) {
        exception_give(sent);
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
    exception_give(value);
    return PYGEN_ERROR;
}

static inline void show_frames(PyThreadState *tstate, const void *frames)
{
#if PY_VERSION_HEX >= 0x030D0000
    tstate->current_frame = (void *)frames;
#elif PY_VERSION_HEX >= 0x030B0000
    tstate->cframe->current_frame = (void *)frames;
#else
    (void)tstate; /* its frames always are objects */
    (void)frames;
#endif
}

/* At every switch greenlet makes an object of the innermost frame, for gr_frame. That of whoever runs the
 * loop is new at each step, and nobody can ask for it: no frame at all is cheaper by a tenth of a step. */
static inline const void *hide_frames(PyThreadState *tstate)
{
    const void *frames = frame_executing(tstate);
    show_frames(tstate, NULL);
    return frames;
}

/* One step of the task. Steals nothing. */
PySendResult portal_step(Portal *portal, int is_throw, PyObject *value, PyObject **result)
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
            PyObject *unwrapped = host_unwrap(value);
            if (!unwrapped) {
                is_throw = 1;
                value = error = exception_take();
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
                PyObject *waiter = host_make_waiter(portal);
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
    if (!portal->home) {
        host_note_outer(portal);
    }
    /* an eager task is first stepped inside another one */
    portal_set_home(portal, home_of_step(portal, hub->current));
    if (portal->context != hub->tstate->context) {
        Py_XINCREF(hub->tstate->context);
        Py_XSETREF(portal->context, hub->tstate->context);
    }
    strand->locals_owner = hub->current->locals_owner;
    portal_note_task(portal);
    if (portal->host == HOST_AUTO && !strand->loop) {
        strand->loop = hub->current->loop;
        Py_XINCREF(strand->loop);
    }
    strand->state = STRAND_READY; /* running once it is switched to */
    strand_make_current(hub, strand);
    int failed;
    const void *frames = hide_frames(hub->tstate);
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
            portal->handled = handled_exception();
            Runner *kept = portal->runner;
            portal->runner = NULL;
            failed = kept ? runner_continue(kept, strand) : runner_start(hub, strand);
        }
    }
    show_frames(hub->tstate, frames);
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

int steps_exec(void)
{
    static const struct {
        PyObject **where;
        const char *text;
    } names[] = {{&s_throw, "throw"}, {&s_cancel, "cancel"}, {&s_value, "value"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!*names[i].where && !(*names[i].where = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    PyGreenlet_Import();
    return _PyGreenlet_API ? 0 : -1;
}
