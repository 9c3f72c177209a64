/* portal_hosts.c: what differs between asyncio and Trio, for a portal.
 *
 * Called by portal_steps.c, portal_await.c and portal.c. Which task is current, what a task waits for
 * while its greenlet is parked, how a loop that sleeps is told to look again, and how Trio asks whether
 * a wait may be aborted. Invariant: nothing here switches greenlets.
 */
#include "portal.h"

static PyObject *future_type;
static PyObject *get_running_loop; /* asyncio's, once a module of that name is loaded */
static PyObject *trio_run_context, *trio_wait_rescheduled, *trio_reschedule, *trio_value;
static PyObject *trio_abort_succeeded, *trio_abort_failed;
static PyObject *noop;

static PyObject *s_ready, *s_scheduled, *s_done, *s_set_result, *s_blocking, *s_task, *s_runner,
    *s_runq, *s_loop, *s_call_soon_threadsafe, *s_unwrap, *s_deadlines, *s_next_deadline,
    *s_asyncio, *s_trio, *s_get_running_loop, *s_is_guest, *s_io_manager, *s_force_wakeup, *s_dict;

/* ---- the hosts' own functions, loaded when needed ------------------------------------------------- */

int host_load_asyncio(void)
{
    if (future_type) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("_asyncio");
    if (!module) {
        return -1;
    }
    PyObject *function = PyObject_GetAttrString(module, "Future");
    Py_DECREF(module);
    if (!function || current_tasks_load() < 0) {
        Py_XDECREF(function);
        return -1;
    }
    future_type = function;
    return 0;
}

/* The dict of Trio's run context, which is a threading.local, in this line of control: borrowed, the
 * thread keeps it. The main strand's is asked for once. */
static PyObject *run_context_attributes(void)
{
    Hub *hub = hub_get();
    int is_main = hub && hub->installed == &hub->main && hub->tstate == PyThreadState_Get();
    if (is_main && hub->trio_attributes) {
        return hub->trio_attributes;
    }
    PyObject *attributes = PyObject_GetAttr(trio_run_context, s_dict);
    Py_XDECREF(attributes);
    if (is_main) {
        hub->trio_attributes = attributes;
    }
    return attributes;
}

/* Once Trio is loaded: the task that executes in this thread, borrowed from its run; NULL without an
 * error between tasks and outside a run, where the attribute does not exist: so its dict is asked, since
 * an exception at each step is dear. */
static PyObject *trio_task(void)
{
    PyObject *attributes = run_context_attributes();
    PyObject *task = attributes ? PyDict_GetItemWithError(attributes, s_task) : NULL;
    if (!task) {
        PyErr_Clear();
    }
    return task == Py_None ? NULL : task;
}

int running_loop(PyObject **loop)
{
    *loop = NULL;
    if (!get_running_loop) {
        PyObject *asyncio = PyImport_GetModule(s_asyncio);
        if (!asyncio) {
            return PyErr_Occurred() ? -1 : 0;
        }
        get_running_loop = PyObject_GetAttr(asyncio, s_get_running_loop);
        Py_DECREF(asyncio);
        if (!get_running_loop) {
            return -1;
        }
    }
    *loop = PyObject_CallNoArgs(get_running_loop);
    if (*loop == Py_None) {
        Py_CLEAR(*loop);
    }
    return PyErr_Occurred() ? -1 : 0;
}

int host_find(Portal *portal)
{
    if (portal->host != HOST_AUTO) {
        return 0;
    }
    PyObject *loop;
    if (running_loop(&loop) < 0) {
        return -1;
    }
    if (loop) {
        if (host_load_asyncio() < 0) {
            Py_DECREF(loop);
            return -1;
        }
        Py_XSETREF(portal->strand.loop, loop);
        portal->host = HOST_ASYNCIO;
        PyObject *task = host_current_task(portal);
        if (task) {
            Py_DECREF(task);
            return 0;
        }
        portal->host = HOST_AUTO; /* a callback, or Trio as the guest of this loop */
    }
    PyObject *trio = PyImport_GetModule(s_trio);
    if (trio) {
        Py_DECREF(trio);
        if (host_load_trio() < 0) {
            return -1;
        }
        if (trio_task()) {
            portal->host = HOST_TRIO;
            return 0;
        }
    }
    portal->host = loop ? HOST_ASYNCIO : HOST_OTHER;
    return 0;
}

int host_load_trio(void)
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
PyObject *host_current_task(Portal *portal)
{
    PyObject *task = NULL;
    if (portal->host == HOST_ASYNCIO) {
        task = current_task_get(portal->strand.hub, portal->strand.loop);
    } else if (portal->host == HOST_TRIO) {
        task = Py_XNewRef(trio_task());
    }
    if (!task) {
        PyErr_Clear();
    } else if (task == Py_None) {
        Py_CLEAR(task);
    }
    return task;
}

/* asyncio's current task in this thread: borrowed, to compare it; NULL without an error. */
static PyObject *current_asyncio_task(void)
{
    if (!future_type) {
        PyObject *asyncio = PyImport_GetModule(s_asyncio);
        Py_XDECREF(asyncio);
        if (!asyncio || host_load_asyncio() < 0) {
            PyErr_Clear();
            return NULL;
        }
    }
    PyObject *loop = NULL, *task = NULL;
    if (current_tasks_none() || running_loop(&loop) < 0) {
        PyErr_Clear();
        return NULL;
    }
    if (loop) {
        task = current_task_get(hub_get(), loop);
        Py_XDECREF(task); /* its loop runs it, and keeps it */
    }
    Py_XDECREF(loop);
    PyErr_Clear();
    return task == Py_None ? NULL : task;
}

/* Trio's, likewise. */
static PyObject *current_trio_task(void)
{
    if (!trio_value) {
        PyObject *trio = PyImport_GetModule(s_trio);
        Py_XDECREF(trio);
        if (!trio || host_load_trio() < 0) {
            PyErr_Clear();
            return NULL;
        }
    }
    return trio_task();
}

void host_note_outer(Portal *portal)
{
    if (portal->host != HOST_ASYNCIO) {
        portal->outer_asyncio_task = current_asyncio_task();
    }
    if (portal->host != HOST_TRIO) {
        portal->outer_trio_task = current_trio_task();
    }
}

int host_is_current(Portal *portal)
{
    if (portal->host != HOST_ASYNCIO) {
        if (current_asyncio_task() != portal->outer_asyncio_task) {
            return 0;
        }
        return portal->host == HOST_TRIO || current_trio_task() == portal->outer_trio_task;
    }
    if (tasks_running_loop(&portal->strand) != portal->strand.loop) {
        return 0; /* a callback of a loop that this task's plain function runs */
    }
    if (portal->step_task) {
        PyObject *task = host_current_task(portal);
        Py_XDECREF(task);
        if (task != portal->step_task) {
            return 0;
        }
    }
    return current_trio_task() == portal->outer_trio_task;
}

/* Make `task` (NULL: none) current; returns the one before, new reference, or NULL. */
PyObject *host_exchange_task(Portal *portal, PyObject *task)
{
    PyObject *before = NULL;
    if (portal->host == HOST_ASYNCIO) {
        before = current_task_swap(portal->strand.hub, portal->strand.loop, task ? task : Py_None);
    } else if (portal->host == HOST_TRIO) {
        before = Py_XNewRef(trio_task());
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
int host_read_queues(Portal *portal, Py_ssize_t *ready_len, Py_ssize_t *scheduled_len,
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

/* As a guest Trio asks the kernel with a timeout of 0 before it goes to wait in a thread, and thinks that
 * nothing can happen between the two: but the hub goes on with tasks in that call. So it does where what
 * runs between the loop's look at its queue and its wait parks (`anyway`): an instrument, a finalizer. */
static void wake_trio(int anyway)
{
    PyObject *runner = PyObject_GetAttr(trio_run_context, s_runner);
    PyObject *is_guest = runner ? PyObject_GetAttr(runner, s_is_guest) : NULL;
    if (is_guest && (is_guest == Py_True || anyway)) {
        PyObject *manager = PyObject_GetAttr(runner, s_io_manager);
        PyObject *done = manager ? PyObject_CallMethodNoArgs(manager, s_force_wakeup) : NULL;
        Py_XDECREF(manager);
        Py_XDECREF(done);
    }
    Py_XDECREF(is_guest);
    Py_XDECREF(runner);
    PyErr_Clear(); /* it has ended meanwhile */
}

void host_kick(Portal *portal, int known)
{
    Strand *home = portal->home;
    PyObject *loop = portal->host == HOST_ASYNCIO ? portal->strand.loop : NULL;
    int moved = loop && home && (home->state == STRAND_DONE || home->loop != loop);
    /* In poll or select: the loop's own selector, or a callback's call, which must not end early. */
    int waits = home && (home->state == STRAND_PARKED || home->state == STRAND_READY);
    int listens = home && (home->wait_call == PARK_LOOP || home->wait_is_select);
    int unclear = waits && !listens;
    if (portal->host == HOST_TRIO) {
        wake_trio(unclear);
    }
    if (loop && (moved || unclear || known < 0)) {
        /* moved: whoever runs the loop now has not stepped it yet */
        PyObject *done = PyObject_CallMethodOneArg(loop, s_call_soon_threadsafe, noop);
        if (!done) {
            PyErr_Clear(); /* the loop was closed meanwhile: nobody to wake */
        }
        Py_XDECREF(done);
        return;
    }
    if (!listens) {
        return;
    }
    if (home->state == STRAND_READY && (home->outcome == PP_EINTR || home->outcome == PP_READY)) {
        /* Woken, but not for this: epoll.poll() would call epoll_wait again after EINTR. What has
         * happened is not lost: the loop asks again, and the handlers of signals run. */
        home->outcome = PP_TIMEOUT;
    }
    strand_wake(home, PP_TIMEOUT);
}

int host_waiter_done(Portal *portal)
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

/* What Trio does with a task that has just begun to wait: `abort` is how the wait may end early, and what is
 * pending by now is delivered. */
static void begin_to_wait(PyObject *task, PyObject *abort)
{
    PyObject *runner = PyObject_GetAttr(trio_run_context, s_runner);
    PyObject *main_task = runner ? PyObject_GetAttrString(runner, "main_task") : NULL;
    PyObject *interrupted = main_task ? PyObject_GetAttrString(runner, "ki_pending") : NULL;
    PyObject *done = NULL;
    if (interrupted && PyObject_SetAttrString(task, "_abort_func", abort) == 0) {
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
    Py_XDECREF(interrupted);
    Py_XDECREF(main_task);
    Py_XDECREF(runner);
}

/* Trio asks once a wait, and was refused: as at a checkpoint, what is pending by now is delivered. */
void host_offer_abort(Portal *portal)
{
    PyObject *abort = PyCFunction_New(&trio_abort_method, (PyObject *)portal);
    if (!abort) {
        PyErr_WriteUnraisable(portal->task);
        return;
    }
    begin_to_wait(portal->task, abort);
    Py_DECREF(abort);
}

static int count_up(PyObject *object, const char *name)
{
    PyObject *number = PyObject_GetAttrString(object, name);
    PyObject *one = number ? PyLong_FromLong(1) : NULL;
    PyObject *next = one ? PyNumber_Add(number, one) : NULL;
    int failed = !next || PyObject_SetAttrString(object, name, next) < 0;
    Py_XDECREF(next);
    Py_XDECREF(one);
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

/* A detached run has ended in a wait of Trio's own. To Trio its task waits already, so only how that may end
 * changes. If it were scheduled to say so in a step, whoever is to end the wait could come first and
 * schedule it once more, which is an internal error of Trio's. 1 when done. */
static int wait_goes_on(Portal *portal)
{
    if (portal->out != OUT_YIELD || portal->rescheduled ||
        (PyObject *)Py_TYPE(portal->out_value) != trio_wait_rescheduled) {
        return 0;
    }
    PyObject *abort = PyObject_GetAttrString(portal->out_value, "abort_func");
    if (!abort || count_up(portal->task, "_schedule_points") < 0 ||
        count_up(portal->task, "_cancel_points") < 0) {
        PyErr_Clear();
        Py_XDECREF(abort);
        return 0;
    }
    PyObject *task = portal->task, *waiter = portal->waiter, *wait = portal->out_value;
    portal->task = portal->waiter = portal->out_value = NULL;
    portal->out = OUT_NONE;
    portal->detached = 0;
    begin_to_wait(task, abort);
    Py_DECREF(abort);
    Py_XDECREF(wait);
    Py_XDECREF(waiter);
    Py_DECREF(task);
    return 1;
}

/* What the task waits for while its greenlet is parked. */
PyObject *host_make_waiter(Portal *portal)
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
void host_complete_waiter(Portal *portal)
{
    PyObject *done = NULL;
    if (portal->host == HOST_TRIO && wait_goes_on(portal)) {
        host_kick(portal, 0); /* it may have been scheduled after all */
        return;
    }
    if (portal->host == HOST_ASYNCIO) {
        if (host_waiter_done(portal)) {
            host_kick(portal, 0);
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
    host_kick(portal, portal->host == HOST_ASYNCIO ? host_read_queues(portal, &a, &b, &c) : 0);
}

PyObject *host_unwrap(PyObject *outcome)
{
    return outcome == trio_value /* it can be unwrapped once */
               ? Py_NewRef(Py_None)
               : PyObject_CallMethodNoArgs(outcome, s_unwrap);
}

static PyObject *noop_function(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    Py_RETURN_NONE;
}

static PyMethodDef noop_method = {"wake", noop_function, METH_VARARGS, NULL};

int host_exec(void)
{
    static const struct {
        PyObject **where;
        const char *text;
    } names[] = {{&s_ready, "_ready"},
                 {&s_scheduled, "_scheduled"},
                 {&s_done, "done"},
                 {&s_set_result, "set_result"},
                 {&s_blocking, "_asyncio_future_blocking"},
                 {&s_task, "task"},
                 {&s_runner, "runner"},
                 {&s_is_guest, "is_guest"},
                 {&s_io_manager, "io_manager"},
                 {&s_dict, "__dict__"},
                 {&s_force_wakeup, "force_wakeup"},
                 {&s_runq, "runq"},
                 {&s_loop, "loop"},
                 {&s_call_soon_threadsafe, "call_soon_threadsafe"},
                 {&s_unwrap, "unwrap"},
                 {&s_deadlines, "deadlines"},
                 {&s_next_deadline, "next_deadline"},
                 {&s_asyncio, "asyncio"},
                 {&s_trio, "trio"},
                 {&s_get_running_loop, "_get_running_loop"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!*names[i].where && !(*names[i].where = PyUnicode_InternFromString(names[i].text))) {
            return -1;
        }
    }
    if (!noop && !(noop = PyCFunction_New(&noop_method, NULL))) {
        return -1;
    }
    return 0;
}
