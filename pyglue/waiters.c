/* waiters.c: a FIFO of callers that wait for a grant, strands and native threads alike.
 *
 * Used by locks.c, threads.c and queues.c; parks through strand.c. Invariants: the GIL guards every
 * queue; a waiter is linked exactly while it is neither granted nor given up; a grant goes to one
 * waiter in order of arrival and is never lost: whoever is granted either keeps it or is told to
 * pass it on. A waiter is heap memory, because a parked C stack may be moved away.
 */
#include "waiters.h"

#include <errno.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>

struct Waiter {
    Waiter *next, *previous; /* valid while linked; next also links the free list */
    Strand *strand;          /* NULL: a native thread */
    unsigned fork_count;     /* forks before it began to wait: it exists only in that process */
    char linked, granted;
    char parked;  /* inside strand_park of this very wait, not in a signal handler's */
    char blocked; /* inside sem_clockwait, or about to enter it with the GIL released */
    char has_semaphore;
    sem_t semaphore;
};

static Waiter *free_waiters;
static int free_waiter_count;
enum { FREE_WAITERS_KEPT = 256 };

static unsigned fork_count;

static void count_fork(void)
{
    fork_count++;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

/* ---- the list -------------------------------------------------------------------------------- */

static Waiter *waiter_new(WaitQueue *queue, Strand *strand)
{
    Waiter *waiter = free_waiters;
    if (waiter) {
        free_waiters = waiter->next;
        free_waiter_count--;
    } else {
        waiter = malloc(sizeof *waiter);
        if (!waiter) {
            return NULL;
        }
        waiter->has_semaphore = 0;
    }
    waiter->strand = strand;
    waiter->fork_count = fork_count;
    waiter->granted = waiter->parked = waiter->blocked = 0;
    waiter->linked = 1;
    waiter->next = NULL;
    waiter->previous = queue->last;
    if (queue->last) {
        queue->last->next = waiter;
    } else {
        queue->first = waiter;
    }
    queue->last = waiter;
    return waiter;
}

static void waiter_unlink(WaitQueue *queue, Waiter *waiter)
{
    if (!waiter->linked) {
        return;
    }
    waiter->linked = 0;
    *(waiter->previous ? &waiter->previous->next : &queue->first) = waiter->next;
    *(waiter->next ? &waiter->next->previous : &queue->last) = waiter->previous;
}

static void waiter_free(Waiter *waiter)
{
    if (free_waiter_count < FREE_WAITERS_KEPT) {
        waiter->next = free_waiters;
        free_waiters = waiter;
        free_waiter_count++;
        return;
    }
    if (waiter->has_semaphore) {
        sem_destroy(&waiter->semaphore);
    }
    free(waiter);
}

int waiters_grant(WaitQueue *queue)
{
    for (Waiter *waiter; (waiter = queue->first);) {
        waiter_unlink(queue, waiter);
        if (waiter->fork_count != fork_count) {
            continue; /* waits in the parent only; its memory may still be on a dead stack's mind */
        }
        waiter->granted = 1;
        if (waiter->parked) {
            strand_wake(waiter->strand, PP_READY);
        } else if (waiter->blocked) {
            sem_post(&waiter->semaphore);
        }
        return 1;
    }
    return 0;
}

void waiters_grant_all(WaitQueue *queue)
{
    while (waiters_grant(queue)) {
    }
}

void waiters_forget(WaitQueue *queue)
{
    while (queue->first) {
        waiter_unlink(queue, queue->first);
    }
}

Py_ssize_t waiters_count(WaitQueue *queue)
{
    Py_ssize_t count = 0;
    for (Waiter *waiter = queue->first; waiter; waiter = waiter->next) {
        count += waiter->fork_count == fork_count;
    }
    return count;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Block this OS thread: PP_READY after a post, PP_TIMEOUT, PP_EINTR; PP_BLOCK: no semaphore. */
static enum pp_outcome block_natively(Waiter *waiter, int64_t deadline)
{
    if (!waiter->has_semaphore) {
        if (sem_init(&waiter->semaphore, 0, 0) < 0) {
            return PP_BLOCK;
        }
        waiter->has_semaphore = 1;
    }
    struct timespec until = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};
    int error;
    waiter->blocked = 1;
    Py_BEGIN_ALLOW_THREADS int result =
        deadline == PP_FOREVER ? sem_wait(&waiter->semaphore)
                               : sem_clockwait(&waiter->semaphore, CLOCK_MONOTONIC, &until);
    error = result < 0 ? errno : 0;
    Py_END_ALLOW_THREADS waiter->blocked = 0;
    if (error && waiter->granted) {
        sem_wait(&waiter->semaphore); /* posted while we took the GIL back: leave it at zero */
        error = 0;
    }
    return !error ? PP_READY : error == ETIMEDOUT ? PP_TIMEOUT : PP_EINTR;
}

static enum waited wait_until_granted(WaitQueue *queue, Waiter *waiter, PyObject *object,
                                      int64_t deadline)
{
    while (!waiter->granted) {
        enum pp_outcome outcome = PP_BLOCK;
        int raised = 0;
        if (waiter->strand) {
            waiter->parked = 1;
            outcome = strand_park(waiter->strand, PARK_LOCK, -1, object, deadline);
            waiter->parked = 0;
            if (waiter->granted) {
                /* a signal came while it was already on its way back */
                strand_rearm_signals(waiter->strand);
            }
        }
        if (outcome == PP_BLOCK) {
            outcome = block_natively(waiter, deadline);
            if (outcome == PP_EINTR) {
                raised = Py_MakePendingCalls() < 0;
            } else if (outcome == PP_BLOCK) {
                PyErr_SetString(PyExc_RuntimeError, "can't wait for a lock: no semaphore");
                raised = 1;
            }
        } else if (outcome == PP_EINTR || outcome == PP_CANCELED || waiter->strand->thrown) {
            /* Also where the cancellation came after the grant: raised any later, between two
             * bytecodes, it could find the lock taken and nobody yet about to release it. */
            raised = strand_check(waiter->strand) < 0;
        }
        if (raised) {
            return waiter->granted ? WAITED_RAISED_GRANTED : WAITED_RAISED;
        }
        if (outcome == PP_TIMEOUT && !waiter->granted) {
            return WAITED_TIMEOUT;
        }
    }
    (void)queue;
    return WAITED_GRANTED;
}

enum waited waiters_wait(WaitQueue *queue, PyObject *object, int64_t deadline)
{
    Strand *strand = strand_current();
    if (strand && strand->hub->tstate != PyThreadState_Get()) {
        strand = NULL; /* a subinterpreter's code on a thread with a hub: it can only block */
    }
    Waiter *waiter = waiter_new(queue, strand);
    if (!waiter) {
        PyErr_NoMemory();
        return WAITED_RAISED;
    }
    enum waited waited = wait_until_granted(queue, waiter, object, deadline);
    waiter_unlink(queue, waiter);
    waiter_free(waiter);
    return waited;
}

/* ---- timeouts -------------------------------------------------------------------------------- */

/* Exported by every CPython, though no longer declared from 3.13 on: with it a timeout is
 * rounded, and refused, exactly as the native lock's. */
#if !BEFORE_313
extern int _PyTime_FromSecondsObject(int64_t *, PyObject *, int);
#define _PyTime_ROUND_TIMEOUT 3 /* away from zero */
#endif

int timeout_from_object(PyObject *seconds, int64_t *nanoseconds)
{
    return _PyTime_FromSecondsObject(nanoseconds, seconds, _PyTime_ROUND_TIMEOUT);
}

int64_t deadline_after(int64_t nanoseconds)
{
    int64_t deadline;
    if (__builtin_add_overflow(hub_now(), nanoseconds, &deadline)) {
        return PP_FOREVER;
    }
    return deadline;
}
