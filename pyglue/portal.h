/* portal.h: what the C files of the portal share. The type is described in portal.c.
 *
 * Invariant: exactly one of attached (inside a step), detached (a future is out) or neither (suspended
 * at a yield, not started, finished) holds, and `out` is set only between the end of a run and its
 * delivery to the task. No C stack owns its portal, so one that is dropped while suspended is closed as
 * a coroutine would be; what keeps it alive is whoever steps it, and the hub from detaching on until
 * that run ends (`held`).
 */
#ifndef PORTALPATCH_PORTAL_H
#define PORTALPATCH_PORTAL_H

#include "swaps.h"
#include "switch.h"

#include "exceptions.h"

#if PY_VERSION_HEX < 0x030D0000
#define PyObject_GetOptionalAttr _PyObject_LookupAttr
#endif

/* AUTO becomes one of the others when its step first has to give the task something to wait for. */
enum __attribute__((packed)) portal_host { HOST_AUTO, HOST_ASYNCIO, HOST_TRIO, HOST_OTHER };
enum __attribute__((packed)) portal_out { OUT_NONE, OUT_YIELD, OUT_RETURN, OUT_RAISE };

/* At 496 bytes and a GC header Python's own allocator serves it, for a fifth of what malloc takes. */
typedef struct {
    PyObject_HEAD PyObject *weakrefs;
    Strand strand;
    PyObject *inner;     /* the user's coroutine; with `strand.args` a function to call instead */
    PyObject *context;   /* owned: the stepper's contextvars context at the last step */
    PyGreenlet *stepper; /* owned, while attached: who called am_send */
    Strand *stepper_strand; /* its strand, while attached */
    PyObject *step_task;    /* borrowed, only compared: the task of the last step, where known */
    PyObject
        *outer_asyncio_task;   /* borrowed, only compared: current around the host's whole run, */
    PyObject *outer_trio_task; /* as where a task's plain function runs the other library */
    PyObject *handled;         /* owned, as its first run begins: the exception being handled */
    Strand *home;              /* the strand that runs the host loop, from the first step on */
    PyGreenlet *suspended;     /* owned: stopped inside await_, else NULL */
    Runner *runner;            /* kept between steps: other greenlets know it as their parent */
    PyObject *awaited;         /* borrowed, valid while suspended: what that await_ iterates over */
    PyObject *in_value;        /* owned: what to send, or the exception to throw */
    PyObject *out_value;       /* owned */
    uint32_t awaits;           /* await_ calls and parks so far; compared, so it may wrap */
    int forbidden;             /* inside forbid_await() */
    enum portal_host host;
    enum portal_out out; /* how the run ended, until the task has it */
    char in_throw;
    char attached, detached, direct, finished;
    unsigned char
        refused : 1;        /* the coroutine did not accept the first value: it is not finished */
    unsigned char held : 1; /* the hub owns a reference: from detaching to the end of the run */
    unsigned char abort_refused : 1; /* Trio: while it ran directly; asked again when it parks */
    unsigned char rescheduled : 1;   /* Trio: the task will be stepped, whatever the waiter says */
    PyObject *waiter;                /* owned, while detached: the future the task waits for */
    PyObject *task;                  /* owned, while detached */
    PyObject *previous_task;         /* owned, while direct: whom asyncio/Trio thought current */
    Py_ssize_t ready_len, scheduled_len; /* the loop's queues before a direct run */
    PyObject *scheduled_head;            /* borrowed, only compared */
} Portal;

extern PyTypeObject Portal_Type;

/* A portal for the coroutine of a task of this asyncio loop; of a portal, itself. New reference. */
PyObject *portal_of_task(PyObject *coroutine, PyObject *loop);

static inline Portal *portal_of(Strand *strand)
{
    return (Portal *)((char *)strand - offsetof(Portal, strand));
}

/* ---- portal_hosts.c: what differs between asyncio and Trio ------------------------------------- */

int host_load_asyncio(void);
int host_load_trio(void);
/* Who steps this portal, found out as late as possible: most portals never need to know. */
int host_find(Portal *portal);
/* The task that the host says is current; new reference or NULL without an error. */
PyObject *host_current_task(Portal *portal);
/* Note, at the first step, whose tasks are current around this host. */
void host_note_outer(Portal *portal);
/* Whether the portal's own task is the one that executes: not one of a loop which a plain function of
 * that task runs, nor a callback, nor a task started eagerly. */
int host_is_current(Portal *portal);
/* Make `task` (NULL: none) current; returns the one before, new reference, or NULL. */
PyObject *host_exchange_task(Portal *portal, PyObject *task);
/* Lengths of the loop's queues, to see after a direct run whether the loop must look again.
 * 0: known; -1: this loop does not tell (uvloop): wake it always. */
int host_read_queues(Portal *portal, Py_ssize_t *ready_len, Py_ssize_t *scheduled_len,
                     PyObject **head);
/* The loop has something to do: if it is parked in its own select, let that return empty. */
void host_kick(Portal *portal, int known);
/* What the task waits for while its greenlet is parked; NULL with an exception set. */
PyObject *host_make_waiter(Portal *portal);
int host_waiter_done(Portal *portal);
/* A detached run has ended: let the task be stepped so that it takes the outcome. */
void host_complete_waiter(Portal *portal);
/* Trio asks once a wait, and was refused: as at a checkpoint, what is pending by now is delivered. */
void host_offer_abort(Portal *portal);
/* What Trio's step of a detached portal carries: new reference, or NULL with its exception set. */
PyObject *host_unwrap(PyObject *outcome);
int host_exec(void);

/* ---- portal_steps.c: one step of the task, and what happens between steps ----------------------- */

/* One step of the task. Steals nothing. */
PySendResult portal_step(Portal *portal, int is_throw, PyObject *value, PyObject **result);
/* A coroutine's send or throw as one call: PYGEN_NEXT/RETURN with *result, PYGEN_ERROR. */
PySendResult portal_drive(PyObject *coroutine, int is_throw, PyObject *value, PyObject **result);
/* Yield `value` to the task from synchronous code and return what it sends; NULL: it threw. */
PyObject *portal_yield(Portal *portal, PyObject *iterator, PyObject *value);
/* An exception came from the interpreter, not from the coroutine, which has not ended. */
int portal_inner_goes_on(PyObject *coroutine);
/* Keep the strand that runs this portal's loop, or drop it (NULL). */
void portal_set_home(Portal *portal, Strand *home);
/* Remember which task this step is of. */
void portal_note_task(Portal *portal);
int steps_exec(void);

/* ---- portal_await.c: await_ --------------------------------------------------------------------- */

/* The portal that await_ can use here: that of the task which is current, in its own loop. */
Portal *portal_current(Hub *hub);
int await_exec(PyObject *module);

/* ---- portal_frames.c: what a suspended portal shows ---------------------------------------------- */

PyObject *portal_cr_await(PyObject *self, void *unused);
PyObject *portal_cr_frame(PyObject *self, void *unused);
PyObject *portal_cr_running(PyObject *self, void *unused);
PyObject *portal_cr_suspended(PyObject *self, void *unused);
int frames_of_portals_exec(void);
/* What its task shows, borrowed: the user's coroutine, or the portal where only that knows its state. */
PyObject *portal_shown(PyObject *self);

int create_task_exec(PyObject *module);     /* create_task.c */
int trio_coroutines_exec(PyObject *module); /* trio_coroutines.c */

#endif
