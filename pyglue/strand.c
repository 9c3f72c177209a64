/* strand.c: park and resume: the only file (with portal_steps.c) that switches greenlets.
 *
 * Called by ops.c, locks.c, threads.c, portal_steps.c. Calls hub.c for the ready list and greenlet's C
 * API. Invariants: whoever switches to a strand has made it hub->current and installed its
 * interpreter state first; a strand's greenlet pointer is set while it is parked and taken by
 * whoever continues it; runners are started only from the launcher, so that every green thread
 * and portal step begins at the same stack depth whatever called it.
 */
#include "exceptions.h"
#include "prefetch.h"
#include "swaps.h"
#include "switch.h"

#include <alloca.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IDLE_RUNNERS_MAX 512

/* While some strand is ready, fds and deadlines are looked at no more often than this: ns. */
#define POLL_INTERVAL 50000

/* Some take a green thread's ident for a pthread_t: Trio names its workers through ctypes. glibc reads a
 * thread's id there (x86-64: at 0x2d0; since 2.42 its state too, at 0x628), and 0 is to it a thread that
 * has ended. So idents are addresses such that these words are the thread's own, behind its strand. */
enum { TID_AT = 0x2d0, STATE_AT = 0x628, WORD = 8 };

static size_t green_words(void)
{
    static size_t size;
    if (!size) {
        int major = 0, minor = 0;
        sscanf(gnu_get_libc_version(), "%d.%d", &major, &minor);
        size = minor >= 42 ? STATE_AT - TID_AT + WORD : WORD;
    }
    return size;
}

/* The launcher starts this far below the stack of whoever made the hub, so that the loops and the
 * main program rarely reach its depth and their stacks need not be copied at a switch. */
#define LAUNCHER_HEADROOM (48 * 1024)

static PyObject *set_running_loop_function; /* asyncio's own _set_running_loop, once loaded */

Strand *strand_current(void)
{
    Hub *hub = hub_get();
    /* A subinterpreter may run in this thread: its frames must not be switched under. */
    return hub && strand_may_park(hub) && PyThreadState_Get() == hub->tstate ? hub->current : NULL;
}

unsigned long strand_ident(void)
{
    Hub *hub = hub_get();
    if (hub) {
        Strand *strand = hub->current;
        return strand->kind == STRAND_PORTAL ? strand->locals_owner->ident : strand->ident;
    }
    return hub_native_ident();
}

void strand_init(Strand *strand, Hub *hub, enum strand_kind kind)
{
    memset(strand, 0, sizeof *strand);
    strand->hub = hub;
    strand->kind = kind;
    strand->state = STRAND_NEW;
    strand->wait_fd = -1;
    strand->heap_index = -1;
    strand->deadline = PP_FOREVER;
    strand->locals_owner = strand;
    strand->fd_wait.strand = strand;
    strand->fd_wait.io.fd = -1;
}

void strand_drop(Strand *strand)
{
    if (--strand->holders == 0 && strand->kind == STRAND_GREEN) {
        free(strand);
    }
}

void strand_clear(Strand *strand)
{
    Py_CLEAR(strand->greenlet);
    Py_CLEAR(strand->thrown);
    Py_CLEAR(strand->tls_dict);
    Py_CLEAR(strand->tls_key);
    Py_CLEAR(strand->tls_sentinel);
    Py_CLEAR(strand->async_exception);
    Py_CLEAR(strand->loop);
    Py_CLEAR(strand->function);
    Py_CLEAR(strand->args);
    Py_CLEAR(strand->kwargs);
    Py_CLEAR(strand->on_done);
}

/* ---- interpreter state ------------------------------------------------------------------------- */

/* `before` runs here as far as asyncio knows, and holds it for as long; `loop` takes its place. */
static int replace_running_loop(PyObject *before, PyObject *loop)
{
    if (before != loop && current_task_gives_way(before) < 0) {
        return -1;
    }
    PyObject *done = PyObject_CallOneArg(set_running_loop_function, loop ? loop : Py_None);
    Py_XDECREF(done);
    return !done || (before != loop && current_task_comes_back(loop) < 0) ? -1 : 0;
}

void tell_running_loop(Hub *hub, PyObject *loop)
{
    PyObject *before = hub->installed_loop;
    if (before == loop || !set_running_loop_function) {
        return;
    }
    hub->installed_loop = loop;
    if (replace_running_loop(before, loop) < 0) {
        PyErr_WriteUnraisable(set_running_loop_function);
    }
}

static void exchange(PyObject **a, PyObject **b)
{
    PyObject *held = *a;
    *a = *b;
    *b = held;
}

void strand_install(Hub *hub, Strand *strand)
{
    if (strand->locals_owner->state == STRAND_DONE) { /* a task of a green thread that has ended */
        strand->locals_owner = &hub->main;
    }
    Strand *from = hub->installed, *to = strand->locals_owner;
    if (from != to) {
        tracing_exchange(hub, from, to);
        PyThreadState *tstate = hub->tstate;
        if (tstate->async_exc || to->async_exception) {
            async_exceptions_exchange(hub, from, to);
        }
        exchange(&from->tls_dict, &tstate->dict);
        exchange(&tstate->dict, &to->tls_dict);
#if PY_VERSION_HEX >= 0x030D0000
        exchange(&from->tls_key, &tstate->threading_local_key);
        exchange(&tstate->threading_local_key, &to->tls_key);
        exchange(&from->tls_sentinel, &tstate->threading_local_sentinel);
        exchange(&tstate->threading_local_sentinel, &to->tls_sentinel);
#endif
    }
    hub->installed = to;
    tell_running_loop(hub, tasks_running_loop(strand));
}

int strand_set_running_loop(PyObject *loop)
{
    if (loop == Py_None) {
        loop = NULL;
    }
    Hub *hub = hub_get();
    if (!hub) {
        return replace_running_loop(NULL, loop);
    }
    Strand *strand = hub->current;
    PyObject *before = hub->installed_loop;
    hub->installed_loop = NULL;
    int result = replace_running_loop(before, loop);
    Py_XINCREF(loop);
    Py_XSETREF(strand->loop, loop);
    hub->installed_loop = loop;
    return result;
}

/* A runner starts each job as a fresh OS thread would start: no recursion counted, the context
 * empty (portal steps put their own). */
static void fresh_recursion(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030C0000
    tstate->py_recursion_remaining = tstate->py_recursion_limit;
#elif PY_VERSION_HEX >= 0x030B0000
    tstate->recursion_remaining = tstate->recursion_limit;
#else
    tstate->recursion_depth = 0;
#endif
}

/* ---- switching ---------------------------------------------------------------------------------- */

static PyGreenlet *main_greenlet(void)
{
    PyGreenlet *greenlet = PyGreenlet_GetCurrent();
    while (greenlet && !PyGreenlet_MAIN(greenlet)) {
        PyGreenlet *parent = PyGreenlet_GetParent(greenlet);
        Py_DECREF(greenlet);
        greenlet = parent;
    }
    return greenlet;
}

PyObject *greenlet_resumed, *greenlet_resumed_args;

/* Where the strand's stack begins: what is the main greenlet to a thread without green ones. New reference. */
static PyGreenlet *base_of(Strand *strand)
{
    if (strand->kind == STRAND_MAIN) {
        return main_greenlet();
    }
    return (PyGreenlet *)Py_XNewRef((PyObject *)strand->base);
}

/* A greenlet of the user's has for its parent the one in which it was made, which may by now wait here for
 * quite another task, or for none. What it returns or raises at its end, or switches to its parent with, is
 * for the code that executes now and has switched to it: natively both are the main greenlet. */
PyObject *greenlet_pass_on(PyObject *result)
{
    while (result != greenlet_resumed) {
        Hub *hub = hub_get();
        PyGreenlet *self = PyGreenlet_GetCurrent(), *base = hub ? base_of(hub->current) : NULL;
        int mine = !base || base == self ||
                   (!result && PyErr_ExceptionMatches(PyExc_GreenletExit)); /* being destroyed */
        Py_XDECREF(self);
        if (mine) {
            Py_XDECREF(base);
            break;
        }
        if (result) {
            PyObject *args = PyTuple_Pack(1, result), *trash = trash_take();
            Py_SETREF(result, args ? PyGreenlet_Switch(base, args, NULL) : NULL);
            trash_put_back(trash);
            Py_XDECREF(args);
        } else {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            PyErr_NormalizeException(&type, &value, &traceback);
            PyObject *trash = trash_take();
            result = PyGreenlet_Throw(base, type, value, traceback);
            trash_put_back(trash);
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        }
        Py_DECREF(base);
    }
    return result;
}

int greenlet_switch_with_error(PyGreenlet *to)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (greenlet_switch(to) <
        0) { /* greenlet.throw(), or a kill: the exception wins over what was pending */
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        return -1;
    }
    PyErr_Restore(type, value, traceback);
    return 0;
}

/* What a runner's greenlet calls, without a frame of CPython's between: what is on a runner's stack is
 * copied at each switch. One object serves all runners of a hub: with 50,000 of them parked it shows. */
typedef struct {
    PyObject_HEAD vectorcallfunc call;
    Hub *hub;
} Body;

static PyTypeObject Body_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch._core.Body",
    .tp_doc = PyDoc_STR("What the greenlets of green threads and portals run."),
    .tp_basicsize = sizeof(Body),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Body, call),
    .tp_call = PyVectorcall_Call,
    .tp_dealloc = (destructor)PyObject_Free,
};

static PyObject *make_body(Hub *hub, vectorcallfunc call)
{
    Body *body = PyObject_New(Body, &Body_Type);
    if (body) {
        body->call = call;
        body->hub = hub;
    }
    return (PyObject *)body;
}

static PyObject *launcher_main(PyObject *self, PyObject *const *Py_UNUSED(args),
                               size_t Py_UNUSED(count), PyObject *Py_UNUSED(names))
{
    Hub *hub = ((Body *)self)->hub;
    PyGreenlet *parent = PyGreenlet_GetParent(hub->launcher);
    greenlet_switch(parent); /* only here to have a stack base */
    Py_DECREF(parent);
    for (;;) {
        Runner *runner = hub->launching;
        if (runner) { /* which takes itself from there */
            greenlet_switch(runner->greenlet);
        } else { /* a surplus runner ended and came back here: go on with whatever is ready */
            strand_schedule(hub, NULL);
        }
        if (PyErr_Occurred()) { /* thrown in, or the greenlet is being destroyed */
            return NULL;
        }
    }
}

static PyGreenlet *make_greenlet(PyObject *body)
{
    PyGreenlet *parent = body ? main_greenlet() : NULL;
    PyGreenlet *greenlet = parent ? PyGreenlet_New(body, parent) : NULL;
    Py_XDECREF(parent);
    return greenlet;
}

static __attribute__((noinline)) int start_launcher(Hub *hub)
{
    PyObject *body = make_body(hub, launcher_main);
    hub->launcher = make_greenlet(body);
    Py_XDECREF(body);
    if (!hub->launcher) {
        return -1;
    }
    PyGreenlet *parent = PyGreenlet_GetCurrent();
    int set = PyGreenlet_SetParent(hub->launcher, parent);
    Py_DECREF(parent);
    if (set < 0) {
        return -1;
    }
    volatile char *headroom = alloca(LAUNCHER_HEADROOM);
    headroom[0] = 0;
    if (greenlet_switch(hub->launcher) < 0) {
        return -1;
    }
    PyGreenlet *root = main_greenlet();
    set = PyGreenlet_SetParent(hub->launcher, root);
    Py_DECREF(root);
    return set;
}

/* Thread.start() passes a bound method without arguments: called as such, CPython makes a vector of its
 * arguments on the stack, which is copied at each switch. */
static PyObject *call_function(Strand *strand)
{
    PyObject *function = strand->function;
    if (PyMethod_Check(function) && !PyTuple_GET_SIZE(strand->args) && !strand->kwargs) {
        PyObject *self = PyMethod_GET_SELF(function);
        return PyObject_Vectorcall(PyMethod_GET_FUNCTION(function), &self, 1, NULL);
    }
    return PyObject_Call(function, strand->args, strand->kwargs);
}

static __attribute__((noinline)) void /* keeps the runner's own stack slice small */
run_green_thread(Hub *hub, Strand *strand)
{
    PyObject *function = strand->function;
    PyObject *result = call_function(strand);
    if (!result) {
        if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
            PyErr_Clear();
        } else {
            extern void threads_report_exception(PyObject * function);
            threads_report_exception(function);
        }
    }
    Py_XDECREF(result);
    Py_CLEAR(strand->function);
    Py_CLEAR(strand->args);
    Py_CLEAR(strand->kwargs);
    /* As PyThreadState_Clear: values of threading.local die in the thread's own context. */
    PyThreadState *tstate = hub->tstate;
    PyObject *context = tstate->context;
    tstate->context = NULL;
    tstate->context_ver++;
    Py_XDECREF(context);
    Py_CLEAR(tstate->dict);
#if PY_VERSION_HEX >= 0x030D0000
    Py_CLEAR(tstate->threading_local_key);
    Py_CLEAR(tstate->threading_local_sentinel);
#endif
    if (strand->on_done) {
        result = PyObject_CallNoArgs(strand->on_done);
        if (!result) {
            PyErr_WriteUnraisable(strand->on_done);
        }
        Py_XDECREF(result);
        Py_CLEAR(strand->on_done);
    }
    Py_CLEAR(tstate->dict);
    tracing_end();
    signals_forget(strand);
}

static __attribute__((noinline)) void free_green_thread(Hub *hub, Strand *strand)
{
    strand->state = STRAND_DONE;
    /* Its interpreter state is installed: put the main strand's back first. */
    strand_install(hub, &hub->main);
    *strand->all_pprev = strand->all_next;
    if (strand->all_next) {
        strand->all_next->all_pprev = strand->all_pprev;
    }
    strand_clear(strand);
    *hub->mutex_count = &hub->main.mutexes_held;
    strand_make_none_current(hub);
    strand_drop(strand);
}

static PyObject *runner_main(PyObject *self, PyObject *const *Py_UNUSED(args),
                             size_t Py_UNUSED(count), PyObject *Py_UNUSED(names))
{
    Hub *hub = ((Body *)self)->hub;
    Runner *runner = hub->launching;
    hub->launching = NULL;
    for (;;) {
        Strand *job = runner->job;
        runner->job = NULL;
        if (!runner->kept) {
            runner->references = Py_REFCNT(runner->greenlet);
        }
        fresh_recursion(hub->tstate);
        job->base = runner->greenlet;
        job->state = STRAND_RUNNING;
        PyGreenlet *next = NULL;
        if (job->kind == STRAND_GREEN) {
            run_green_thread(hub, job);
            if (hub != hub_get()) {
                exit(0); /* a forked child whose only line of control has ended, as a thread's */
            }
            free_green_thread(hub, job);
        } else {
            next = portal_run_step(job, runner);
        }
        if (!runner->kept) {
            if (hub->idle_count >= IDLE_RUNNERS_MAX) {
                break;
            }
            runner_release(hub, runner);
        }
        if (next) {
            int failed = greenlet_switch(next);
            Py_DECREF(next);
            if (failed) {
                return NULL;
            }
        } else {
            strand_schedule(hub, NULL);
            if (PyErr_Occurred()) {
                return NULL;
            }
        }
        continue;
    }
    /* Surplus: end this greenlet. It continues in its parent: the launcher goes on scheduling. */
    PyGreenlet_SetParent(runner->greenlet, hub->launcher);
    Py_DECREF(runner->greenlet);
    free(runner);
    return Py_NewRef(greenlet_resumed);
}

void runner_release(Hub *hub, Runner *runner)
{
    runner->kept = 0;
    runner->next = hub->idle;
    hub->idle = runner;
    hub->idle_count++;
}

int runner_continue(Runner *runner, Strand *job)
{
    runner->job = job;
    return greenlet_switch(runner->greenlet);
}

static Runner *new_runner(Hub *hub)
{
    if (!hub->launcher && start_launcher(hub) < 0) {
        return NULL;
    }
    Runner *runner = calloc(1, sizeof *runner);
    if (!runner) {
        PyErr_NoMemory();
        return NULL;
    }
    if (!hub->runner_body) {
        hub->runner_body = make_body(hub, runner_main);
    }
    runner->greenlet = make_greenlet(hub->runner_body);
    if (!runner->greenlet) {
        free(runner);
        return NULL;
    }
    return runner;
}

int runner_start(Hub *hub, Strand *job)
{
    Runner *runner = hub->idle;
    if (runner) {
        hub->idle = runner->next;
        hub->idle_count--;
        return runner_continue(runner, job);
    }
    Between before = between_begin(hub);
    runner = new_runner(hub);
    between_end(hub, before);
    if (!runner) {
        return -1;
    }
    runner->job = job;
    hub->launching = runner;
    return greenlet_switch(hub->launcher);
}

/* ---- scheduling ---------------------------------------------------------------------------------- */

/* Inline: see switch.h. */
static inline __attribute__((always_inline)) void resume(Hub *hub, Strand *strand)
{
    hub->stats.switches++;
    strand_make_current(hub, strand);
    strand_install(hub, strand);
    if (strand->state == STRAND_NEW) {
        runner_start(hub, strand);
        return;
    }
    if (strand->kind == STRAND_PORTAL && !strand->lending) {
        portal_before_resume(strand);
    }
    PyGreenlet *to = strand->greenlet;
    strand->greenlet = NULL;
    strand->state = STRAND_RUNNING;
    greenlet_switch(to);
    Py_DECREF(to);
}

void strand_schedule(Hub *hub, Strand *self)
{
    for (;;) {
        Strand *next = hub->ready_head;
        if (next && hub->batch_left > 0) {
            hub->ready_head = next->ready_next;
            if (!hub->ready_head) {
                hub->ready_tail = NULL;
            }
            hub->ready_count--;
            hub->batch_left--;
            if (next->kind == STRAND_PORTAL && next->locals_owner->preempted) {
                hub_ready(hub,
                          next); /* its loop, or what that calls, is in the middle of something */
                continue;
            }
            if (next->kind == STRAND_PORTAL && !next->lending && !portal_may_resume(next)) {
                next->state = STRAND_PARKED;
                continue;
            }
            if (next == self) {
                strand_make_current(hub, self);
                strand_install(hub, self);
                if (self->kind == STRAND_PORTAL) {
                    portal_before_resume(self);
                }
                Py_CLEAR(self->greenlet);
                self->state = STRAND_RUNNING;
                return;
            }
            if (hub->ready_head) {
                prefetch_ready(hub->ready_head);
            }
            resume(hub, next);
            return; /* somebody continued us */
        }
        if (next && !hub->computing && hub->stats.run_began - hub->last_poll < POLL_INTERVAL) {
            hub->batch_left = hub->ready_count; /* strands that only wake each other */
            continue;
        }
        hub_poll(hub);
    }
}

static void note_run_length(Hub *hub)
{
    int64_t now = hub_now();
    if (now - hub->stats.run_began > hub->stats.longest_run) {
        hub->stats.longest_run = now - hub->stats.run_began;
    }
    hub->stats.run_began = now;
}

/* What sys.exc_info() says: an `except` block further up the stack. */
static PyObject *handled_exception(PyThreadState *tstate)
{
    _PyErr_StackItem *item = tstate->exc_info;
    while ((!item->exc_value || item->exc_value == Py_None) && item->previous_item) {
        item = item->previous_item;
    }
    return item->exc_value;
}

static void link_parked(Hub *hub, Strand *strand)
{
    strand->all_next = hub->parked_tasks;
    strand->all_pprev = &hub->parked_tasks;
    if (hub->parked_tasks) {
        hub->parked_tasks->all_pprev = &strand->all_next;
    }
    hub->parked_tasks = strand;
}

static void unlink_parked(Hub *hub, Strand *strand)
{
    if (hub->signal_taker == strand) {
        hub->signal_taker = NULL;
    }
    if (!strand->all_pprev) {
        return;
    }
    *strand->all_pprev = strand->all_next;
    if (strand->all_next) {
        strand->all_next->all_pprev = strand->all_pprev;
    }
    strand->all_pprev = NULL;
}

void strand_forget_task(Strand *strand)
{
    Hub *hub = strand->hub;
    unlink_parked(hub, strand);
    if (hub->due_taker == strand) {
        hub->due_taker = NULL;
    }
}

enum pp_outcome strand_park(Strand *strand, int call, int fd, PyObject *object, int64_t deadline)
{
    Hub *hub = strand->hub;
    if (strand->thrown) {
        return PP_CANCELED; /* until Python code has seen it, every further wait fails */
    }
    if (hub_start(hub) < 0) {
        PyErr_Clear();
        return PP_BLOCK;
    }
    strand->wait_call = call;
    strand->wait_is_select = ops_call_is_select(call);
    strand->wait_fd = fd;
    strand->wait_object = object;
    strand->handled = handled_exception(hub->tstate);
    strand->deadline = deadline;
    if (hub->deferred_signals && signals_taken_by(strand)) {
        return PP_EINTR;
    }
    note_run_length(hub);
    int expired = deadline <= hub->stats.run_began && strand->kind != STRAND_PORTAL;
    if (deadline != PP_FOREVER && !expired && hub_add_deadline(strand) < 0) {
        return PP_BLOCK;
    }
    strand->state = STRAND_PARKED;
    if (strand->kind == STRAND_PORTAL) {
        link_parked(hub, strand);
        if (hub->due_signals && hub->due_taker == strand) {
            signals_put_off(hub);
        }
    }
    hub->stats.lock_waits += call == PARK_LOCK;
    if (strand->computes) {
        strand->outcome = PP_TIMEOUT;
        hub_computing(hub, strand);
    } else if (expired) { /* it only lets the others run */
        strand_wake(strand, PP_TIMEOUT);
    }
    if (strand->kind == STRAND_PORTAL && portal_is_attached(strand)) {
        if (portal_detach_and_wait(strand) < 0) {
            strand->outcome = PP_BLOCK;
        }
    } else {
        if (strand->kind == STRAND_PORTAL) {
            portal_after_run(strand);
        }
        strand->greenlet = PyGreenlet_GetCurrent();
        strand->frame = frame_executing(hub->tstate);
        strand_schedule(hub, strand);
    }
    hub->stats.run_began = hub_now();
    if (call != PARK_OTHER) {
        hub->stats.last_wait = hub->stats.run_began;
    }
    if (PyErr_Occurred() && strand->state == STRAND_PARKED) {
        /* greenlet.throw() from outside: carry the exception as a cancellation */
        Py_XSETREF(strand->thrown, exception_take());
        strand->outcome = PP_CANCELED;
    }
    strand->state = STRAND_RUNNING;
    hub_drop_deadline(strand);
    strand->wait_object = NULL;
    if (hub->deferred_signals) {
        strand_rearm_signals(strand); /* however the wait ended, the handlers run next */
    }
    if (strand->kind == STRAND_PORTAL) {
        unlink_parked(hub, strand);
    }
    return strand->outcome;
}

int strand_wake(Strand *strand, enum pp_outcome outcome)
{
    if (strand->state != STRAND_PARKED) {
        return 0;
    }
    strand->state = STRAND_READY;
    strand->outcome = outcome;
    Hub *hub = strand->hub;
    if (hub == hub_get()) {
        hub_ready(hub, strand);
        return 1;
    }
    hub_mail(hub, strand);
    return 1;
}

void strand_rearm_signals(Strand *strand)
{
    Hub *hub = strand->hub;
    uint64_t signals = hub->deferred_signals;
    if (!signals || !signals_taken_by(strand)) {
        return;
    }
    hub->deferred_signals = 0;
    hub->due_taker = strand->kind == STRAND_PORTAL ? strand : NULL;
    signals_make_due(hub, signals);
}

int strand_check(Strand *strand)
{
    if (strand->thrown) {
        PyObject *exception = strand->thrown;
        strand->thrown = NULL;
        strand->tripped = 0;
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
        return -1;
    }
    strand_rearm_signals(strand);
    return PyErr_CheckSignals();
}

enum pp_outcome strand_yield(Strand *strand)
{
    return strand_park(strand, PARK_OTHER, -1, NULL, 0);
}

unsigned long strand_spawn(PyObject *function, PyObject *args, PyObject *kwargs, PyObject *on_done)
{
    /* A native thread may end at any time, so what it starts lives in the hub of patch_all(). */
    Hub *here = hub_get(), *hub = here ? here : hub_primary();
    if (!hub) {
        here = hub = hub_ensure();
    }
    Strand *strand = hub ? calloc(1, sizeof *strand + green_words()) : NULL;
    if (!strand || hub_start(hub) < 0) {
        free(strand);
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        return 0;
    }
    strand_init(strand, hub, STRAND_GREEN);
    strand->ident = (unsigned long)(uintptr_t)(strand + 1) - TID_AT;
    strand->holders = 1; /* itself, until it is done */
    Py_INCREF(function);
    strand->function = function;
    Py_INCREF(args);
    strand->args = args;
    Py_XINCREF(kwargs);
    strand->kwargs = kwargs;
    Py_XINCREF(on_done);
    strand->on_done = on_done;
    strand->all_next = hub->green;
    strand->all_pprev = &hub->green;
    if (hub->green) {
        hub->green->all_pprev = &strand->all_next;
    }
    hub->green = strand;
    hub->stats.green_threads++;
    unsigned long ident = strand->ident;
    if (hub == here) {
        hub_open_gate(hub);
        hub_ready(hub, strand);
    } else {
        hub_mail(hub, strand);
    }
    return ident;
}

void strand_lend(Strand *self, unsigned long ident)
{
    Hub *hub = self->hub;
    Strand *begun = hub->ready_tail;
    if (self->kind != STRAND_PORTAL || !begun || begun->ident != ident ||
        begun->state != STRAND_NEW) {
        return;
    }
    hub_unready(hub, begun);
    self->lending = 1;
    self->state = STRAND_READY;
    self->greenlet = PyGreenlet_GetCurrent();
    self->ready_next = hub->ready_head;
    hub->ready_head = self;
    if (!hub->ready_tail) {
        hub->ready_tail = self;
    }
    hub->ready_count++;
    resume(hub, begun);
    self->lending = 0;
}

/* ---- Python functions ------------------------------------------------------------------------------ */

static PyObject *use_asyncio(PyObject *module, PyObject *function)
{
    (void)module;
    if (current_tasks_load() < 0) {
        return NULL;
    }
    Py_INCREF(function);
    Py_XSETREF(set_running_loop_function, function);
    Py_RETURN_NONE;
}

static PyObject *set_running_loop(PyObject *module, PyObject *loop)
{
    (void)module;
    if (strand_set_running_loop(loop) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *in_main_strand(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    Hub *hub = hub_get();
    return PyBool_FromLong(!hub || hub->current->locals_owner == &hub->main);
}

static PyObject *defer_signal(PyObject *module, PyObject *number)
{
    (void)module;
    long signum = PyLong_AsLong(number);
    Hub *hub = hub_get();
    if (signum < 1 || signum > 64 || !hub) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "signal number out of range");
        }
        return NULL;
    }
    hub->deferred_signals |= 1ull << (signum - 1);
    strand_wake(&hub->main, PP_EINTR);
    Py_RETURN_NONE;
}

static PyObject *after_fork_child(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    hub_forget_after_fork();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use_asyncio", use_asyncio, METH_O,
     PyDoc_STR("Take asyncio's own _set_running_loop, once asyncio is loaded.")},
    {"set_running_loop", set_running_loop, METH_O,
     PyDoc_STR("asyncio._set_running_loop that also remembers the loop per strand.")},
    {"in_main_strand", in_main_strand, METH_NOARGS,
     PyDoc_STR("True when the main line of control, or a task of its loop, is executing.")},
    {"defer_signal", defer_signal, METH_O,
     PyDoc_STR("Interrupt the main strand's wait and raise this signal there again.")},
    {"after_fork_child", after_fork_child, METH_NOARGS,
     PyDoc_STR("Forget every hub: the child starts with none.")},
    {NULL, NULL, 0, NULL}};

int strand_exec(PyObject *module)
{
    PyGreenlet_Import();
    if (!_PyGreenlet_API || PyType_Ready(&Body_Type) < 0) {
        return -1;
    }
    if (!greenlet_resumed &&
        (!(greenlet_resumed = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type)) ||
         !(greenlet_resumed_args = PyTuple_Pack(1, greenlet_resumed)))) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
