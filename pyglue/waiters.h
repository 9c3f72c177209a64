/* waiters.h: a FIFO of callers that wait for a grant; locks, thread handles and queues stand on it.
 *
 * A waiter is a strand (parked through its hub) or a native thread without a hub (blocked in a
 * semaphore with the GIL released); the granting side needs not know which. Everything is called
 * with the GIL held, which is also what guards the lists. */
#ifndef PORTALPATCH_WAITERS_H
#define PORTALPATCH_WAITERS_H

#include "core.h"

typedef struct Waiter Waiter;

typedef struct {
    Waiter *first, *last; /* zeroed memory is an empty queue */
} WaitQueue;

enum waited {
    WAITED_GRANTED,       /* waiters_grant chose this caller */
    WAITED_TIMEOUT,       /* the deadline passed, nothing was granted */
    WAITED_RAISED,        /* an exception is set, nothing was granted */
    WAITED_RAISED_GRANTED /* an exception is set, and the caller must pass the grant on */
};

/* Wait in the queue until granted. `object` (borrowed, what dumps show) keeps the queue alive and
 * is referenced by the caller. deadline: CLOCK_MONOTONIC ns or PP_FOREVER; never ends early. */
enum waited waiters_wait(WaitQueue *queue, PyObject *object, int64_t deadline);

/* Grant to the longest waiting caller. 1, or 0 when nobody waits. Runs no Python code. */
int waiters_grant(WaitQueue *queue);
void waiters_grant_all(WaitQueue *queue);

/* Forget all waiters without waking them: they do not exist in a forked child. */
void waiters_forget(WaitQueue *queue);

/* How many wait (for dumps). */
Py_ssize_t waiters_count(WaitQueue *queue);

/* A timeout argument in seconds, converted with CPython's own rounding (never early) and errors.
 * 0, or -1 with an exception set. */
int timeout_from_object(PyObject *seconds, int64_t *nanoseconds);
/* Now plus nanoseconds, PP_FOREVER when that is beyond the clock. */
int64_t deadline_after(int64_t nanoseconds);

/* Python 3.12 changed some of what this module mirrors. */
#define BEFORE_312 (PY_VERSION_HEX < 0x030C0000)
#define BEFORE_313 (PY_VERSION_HEX < 0x030D0000)

#endif
