/* core.h: what the C files of the portalpatch._core module share.
 *
 * The model, once, in the words of the design:
 *
 *  - A Strand is one line of control that can park: the main greenlet of an OS thread, a green
 *    thread, or a portal (one asyncio/Trio task). It parks in one place at a time.
 *  - A Hub belongs to one OS thread: a libev loop for fds and cross-thread wake-ups, a heap of
 *    deadlines, and the ready list. There is no loop greenlet in the middle: the strand that parks
 *    runs the hub in place (strand_schedule) until some strand is ready, then switches to it; when
 *    that is itself, nothing is switched at all. libev callbacks only append to the ready list.
 *  - A Runner is a pooled greenlet that executes green threads and portal steps. New ones are
 *    launched from one fixed place (the launcher greenlet) so stack bases never drift.
 *
 * Invariants: everything here is called with the GIL held unless its comment says otherwise, and
 * touches only the hub of the calling OS thread, except strand_wake, which may be called from any
 * OS thread with the GIL. Nothing of a wait lives on a C stack: strands are heap memory.
 */
#ifndef PORTALPATCH_CORE_H
#define PORTALPATCH_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <ev.h>
typedef struct _greenlet PyGreenlet; /* greenlet.h, which only switch.h includes */
#include <pthread.h>
#include <stdint.h>

#include "portal_abi.h"

typedef struct Hub Hub;
typedef struct Strand Strand;
typedef struct Runner Runner;

enum __attribute__((packed)) strand_kind { STRAND_MAIN, STRAND_GREEN, STRAND_PORTAL };

enum __attribute__((packed)) strand_state {
    STRAND_RUNNING, /* it, or code it called, is executing */
    STRAND_PARKED,  /* stopped in strand_park */
    STRAND_READY,   /* woken, on the ready list, not yet continued */
    STRAND_NEW,     /* a green thread not yet started */
    STRAND_DONE     /* finished; never on any list */
};

/* What a parked strand waits for: for statistics, dumps and the "loop is parked in its own
 * select" test. `call` is an enum pp_call of the interposer, or one of these. */
enum park_reason { PARK_LOCK = -1, PARK_LOOP = -2, PARK_OFFLOAD = -3, PARK_OTHER = -4 };

/* One fd a strand waits for. Embedded in the strand for the usual single wait, an array of them on
 * the heap for wait_many. */
typedef struct FdWait {
    ev_io io; /* kept set after the wait, so waiting again re-arms nothing */
    Strand *strand;
    uint32_t generation;          /* pp_fd_generation when io was last set */
    struct FdWait *next, **pprev; /* in the hub's bucket of the fd; pprev NULL: not waiting */
} FdWait;

struct Strand {
    Hub *hub;
    enum strand_kind kind;
    enum strand_state state;
    char lending;            /* PORTAL: inside strand_lend */
    char preempted;          /* MAIN and GREEN: inside preempt.c's yield, and no task may run */
    char computes;           /* MAIN and GREEN: inside preempt.c's yield */
    enum pp_outcome outcome; /* valid from READY on: how the wait ended */
    PyGreenlet *greenlet;    /* owned; valid while PARKED or READY: where to continue */
    PyGreenlet *base;        /* borrowed, of its runner, valid while current; MAIN: NULL */
    const void *frame;       /* MAIN and GREEN: its innermost Python frame; valid with `greenlet` */
    Strand *ready_next;      /* valid while READY or NEW */
    unsigned long ident;     /* GREEN: what get_ident() says; MAIN and PORTAL: the OS thread's */

    /* the wait, valid while PARKED */
    int wait_call;         /* enum pp_call or park_reason */
    int wait_fd;           /* or -1 */
    char wait_is_select;   /* the call is epoll_wait or the like: a loop's own wait for events */
    char tripped;          /* the thread has been told to raise `thrown` where C returns */
    int native_depth;      /* inside native(): its calls really block while > 0 */
    PyObject *wait_object; /* borrowed: the lock, future ... or NULL */
    int64_t deadline;      /* PP_FOREVER: none */
    Py_ssize_t heap_index; /* place in the hub's deadline heap, -1: none */
    FdWait fd_wait;

    /* borrowed, valid while PARKED: the exception it handles, or NULL */
    PyObject *handled;
    PyObject *thrown; /* owned exception to raise in this strand when it continues, or NULL */
    int refused_fd; /* the one fd of the wait that `thrown` ended last, or -1; valid with tripped */
    uint32_t refused_generation;
    const void *refused_frame; /* the innermost frame then; only compared, it may be gone */

    /* interpreter state exchanged when the strand is installed */
    Strand *locals_owner; /* whose threading.local values it uses: itself, or a portal's home */
    PyObject *tls_dict;   /* owned, valid while not installed: tstate->dict */
    PyObject *tls_key, *tls_sentinel; /* 3.13+: threading_local_key/_sentinel, likewise */
    PyObject *async_exception;        /* owned, likewise: what PyThreadState_SetAsyncExc set */
    PyObject *loop;                   /* owned: the asyncio loop running in this strand, or NULL */

    /* GREEN: what to run, owned until it has run; `args` and `kwargs` also of a portal of a function */
    int holders;      /* GREEN: itself until DONE, and the portals whose loop it runs or ran */
    int mutexes_held; /* of guarded libraries (interpose/mutex_guard.c) */
    PyObject *function, *args, *kwargs;
    PyObject *on_done; /* called with no arguments in the strand's own context at its end */
    Strand *all_next, **all_pprev; /* GREEN: in hub->green, for dumps; PORTAL: in hub->parked_tasks
                                    * while PARKED or READY, else all_pprev is NULL */
};

/* A pooled greenlet. While idle it is on the hub's list, switched out in its own main loop. */
struct Runner {
    PyGreenlet *greenlet; /* owned */
    Strand *job;  /* what to run when next switched to: a NEW green thread or a portal step */
    Runner *next; /* valid while idle */
    Py_ssize_t references; /* to the greenlet, as it began on something new */
    int kept;              /* a portal keeps it from step to step */
};

struct Hub {
    struct ev_loop *ev; /* NULL until something first parks */
    ev_async wake;      /* another OS thread put something into a mailbox */
    ev_io timer_io;     /* the timerfd */
    int timer_fd;
    int64_t timer_armed;   /* deadline the timerfd is armed for, or PP_FOREVER */
    PyThreadState *tstate; /* of the OS thread this hub belongs to */
    int *gate;             /* pp_gate_of_this_thread() of that thread */
    int **mutex_count;     /* pp_mutex_count_of_this_thread() of that thread */
    int gate_open;         /* what *gate is while a strand executes */
    int is_main_thread;    /* of CPython: Python signal handlers run here */
    pid_t pid;             /* the process that made it: a forked child drops it */
    int polling;           /* inside ev_run, or `Between` two strands: nobody can park */
    int blocking;          /* inside ev_run with the GIL released */
    int interrupted;       /* a signal arrived while polling */

    Strand main;              /* the main greenlet of the thread */
    Strand *current;          /* the strand that is executing; never NULL */
    Strand *installed;        /* whose threading.local values are in the tstate: no portal's strand,
                               * which may be freed at any time */
    PyObject *installed_loop; /* borrowed: the loop asyncio sees as running, or NULL */
    Strand *ready_head, *ready_tail;
    Strand *computing, *computing_tail; /* READY too, their slice was over: one of them a turn */
    Strand *arrived;                    /* while polling: whose fds are ready, the last one first */
    Py_ssize_t ready_count, batch_left; /* resumes left before fds are polled again */
    Py_ssize_t fd_waits, offloads_running; /* what else may wake somebody */
    int64_t last_poll;                     /* when that last happened */
    Strand *green;                         /* all live green threads */
    Strand *parked_tasks;                  /* portals inside strand_park, the last one first */

    Strand **heap; /* binary heap on ->deadline */
    Py_ssize_t heap_len, heap_cap;

    PyGreenlet *launcher;  /* fixed stack base from which runners are started */
    PyObject *runner_body; /* what every runner's greenlet runs */
    Runner *launching;     /* the runner it is asked to start */
    Runner *idle;          /* pool of idle runners */
    Py_ssize_t idle_count;

    pthread_mutex_t mailbox_lock;
    Strand *mailbox; /* woken from other OS threads, linked by ready_next */
    struct offload_job *finished_jobs;

    PyObject
        *trio_attributes; /* borrowed: of Trio's run context in the main strand; portal_hosts.c */

    Py_tracefunc program_trace; /* up to 3.11: the program's, while canceled.c stands before it */
    uint64_t due_signals;       /* those that wait no more: raise_thrown calls their handlers */
    uint64_t deferred_signals;  /* bit n-1: signal n waits for the main strand, or for: */
    Strand *signal_taker;       /* borrowed: the task that is to run them, or NULL; signals.c */
    Strand *due_taker;          /* borrowed: the task that had `due_signals` last; NULL: main */

    struct hub_statistics {
        uint64_t switches, direct_resumes, task_resumes, offloads, green_threads, portals;
        uint64_t lock_waits;
        int64_t longest_run; /* ns between two waits */
        int64_t run_began;
        int64_t last_wait; /* when anything last waited; a mere yield is no wait */
    } stats;
    FdWait *buckets[1024]; /* fd waits by fd number */
};

/* ---- hub.c -------------------------------------------------------------------------------- */

/* The hub of the calling OS thread, or NULL. Cheap (a thread-local). */
Hub *hub_get(void);
/* The same, made when missing. NULL with an exception set. */
Hub *hub_ensure(void);
unsigned long hub_native_ident(void); /* of a thread without a hub, or of a hub's main strand */
void hub_open_gate(Hub *hub);         /* from now on blocking libc calls of this thread may park */
int64_t hub_now(void);                /* CLOCK_MONOTONIC, ns */
/* The libev loop and timerfd, made at the first park. 0, or -1 with an exception set. */
int hub_start(Hub *hub);
void hub_ready(Hub *hub, Strand *strand);     /* append to the ready list */
void hub_computing(Hub *hub, Strand *strand); /* it goes on after all that were woken */
int hub_unready(Hub *hub,
                Strand *strand); /* take it off; 0: it is not there (a mailbox, perhaps) */
/* Run libev once (blocking while nothing is ready), expire deadlines, empty the mailboxes. */
void hub_poll(Hub *hub);
int hub_add_deadline(Strand *strand); /* 0, or -1: no memory */
void hub_drop_deadline(Strand *strand);
/* events: PP_READ|PP_WRITE. 0: as it was set for this fd before, so the kernel is not told anew. */
int hub_watch(FdWait *wait, int fd, unsigned events);
void hub_unwatch(FdWait *wait);
void hub_fd_closing(int fd); /* of every hub of the process */
void hub_forget_after_fork(void);
void hub_mail(Hub *hub, Strand *strand); /* as hub_ready, from another OS thread */
Hub *hub_primary(void); /* the hub of the thread that called patch_all(), or NULL */
void hub_set_primary(Hub *hub);
Hub *hub_first(void); /* all hubs of the process, for statistics */
Hub *hub_next(Hub *hub);
/* Offload run(arg) to the native pool and park (portal_abi.h's offload). A signal does not end the
 * wait unless `check` is set and its handler raises: PP_CANCELED then, with the exception set. */
enum pp_outcome hub_offload(int call, void (*run)(void *), void (*drop)(void *), void *arg,
                            int check);

/* ---- strand.c ----------------------------------------------------------------------------- */

/* The strand executing in the calling OS thread, or NULL when this thread has no hub or is between two
 * strands (then wait natively, with the GIL released). */
Strand *strand_current(void);

/* Park the current strand until strand_wake or the deadline. The caller has registered whatever
 * will wake it, and looks after un-registering when this returns anything but PP_READY.
 * Returns the outcome; PP_CANCELED and PP_EINTR: call strand_check before going on. */
enum pp_outcome strand_park(Strand *strand, int call, int fd, PyObject *object, int64_t deadline);

/* Make a parked strand continue with this outcome. Any OS thread, GIL held. A strand that is not
 * PARKED (already woken) is left alone. Returns 1 when this call woke it, else 0. */
int strand_wake(Strand *strand, enum pp_outcome outcome);

/* After PP_CANCELED or PP_EINTR: raise the strand's pending exception or run Python signal handlers.
 * 0: nothing was raised, go on (retry the wait); -1: an exception is set. */
int strand_check(Strand *strand);

/* Trip the signals that were deferred to the main strand again, for PyErr_CheckSignals there. */
void strand_rearm_signals(Strand *strand);

/* Trips raise_thrown in the main OS thread; the handler does nothing when nothing is pending. */
#define CANCEL_SIGNAL 63

/* signals.c: wake who is to run the handlers in the main line of control; is it this strand? */
void signals_interrupt(Hub *hub);
int signals_taken_by(Strand *strand);
void signals_put_off(Hub *hub); /* who had the due ones waits on without having run the handlers */

/* signals.c: let raise_thrown call these signals' handlers; and call them, 0 or -1: one raised. */
void signals_make_due(Hub *hub, uint64_t signals);
int signals_run_due(Hub *hub, PyObject *args);

/* A portal that has just spawned green thread `ident` lets it run until it first waits. Natively a
 * thread begins while its starter waits in Thread.start(); a task must not be canceled there, nor
 * others of its loop run: no task waits at such a call elsewhere. */
void strand_lend(Strand *self, unsigned long ident);

/* The innermost Python frame of what an OS thread executes: since 3.11 an interpreter's own. */
static inline const void *frame_executing(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030D0000
    return tstate->current_frame;
#elif PY_VERSION_HEX >= 0x030B0000
    return tstate->cframe->current_frame;
#else
    return tstate->frame;
#endif
}

/* Let every other ready strand run once (sleep(0)). */
enum pp_outcome strand_yield(Strand *strand);

/* Start a green thread in this OS thread's hub: function(*args, **kwargs); on_done as above.
 * Steals nothing. Returns its ident, or 0 with an exception set. */
unsigned long strand_spawn(PyObject *function, PyObject *args, PyObject *kwargs, PyObject *on_done);

/* Switch to whatever is ready next. self: the strand that parks (returns when it is continued), or
 * NULL from a runner that has nothing more to do. */
void strand_schedule(Hub *hub, Strand *self);
/* Start an idle (or new) runner on this job, whose strand is current, and switch to it. */
int runner_start(Hub *hub, Strand *job);
/* The same on a runner that was kept; and give one that was kept back to the pool. */
int runner_continue(Runner *runner, Strand *job);
void runner_release(Hub *hub, Runner *runner);
void strand_init(Strand *strand, Hub *hub, enum strand_kind kind);
void strand_clear(Strand *strand);
void strand_forget_task(Strand *strand); /* a portal's is about to be freed */
void strand_drop(Strand *strand);        /* one holder less; a green thread's goes with the last */
/* The running loop of the current strand, set and told to asyncio. */
int strand_set_running_loop(PyObject *loop);
void strand_install(Hub *hub, Strand *strand);
void tell_running_loop(Hub *hub, PyObject *loop); /* asyncio's running loop becomes this */
/* The strand that executes from now on: hub->current, its mutexes, and the gate. */
static inline void strand_make_current(Hub *hub, Strand *strand)
{
    hub->current = strand;
    *hub->mutex_count = &strand->mutexes_held;
    *hub->gate = hub->gate_open && !strand->native_depth;
}

/* What Python code runs while one strand has parked and the next one does not go on yet (the loop's own,
 * that of a trace function) can park in neither. The garbage collector is put off: it would call finalizers
 * that may wait for somebody who is parked, and who natively would go on. */
typedef struct {
    int polling, collects;
} Between;

static inline Between between_begin(Hub *hub)
{
    Between before = {.polling = hub->polling, .collects = PyGC_Disable()};
    hub->polling = 1;
    return before;
}

static inline void between_end(Hub *hub, Between before)
{
    hub->polling = before.polling;
    if (before.collects) {
        PyGC_Enable();
    }
}

/* Whether the strand that is current is on its own stack, and not about to leave it. */
static inline int strand_may_park(Hub *hub)
{
    return !hub->polling && hub->current->state == STRAND_RUNNING;
}

/* The one that executed may be freed: until somebody is resumed nobody executes. The signal handler of
 * preempt.c looks at any moment. */
static inline void strand_make_none_current(Hub *hub)
{
    *hub->gate = 0;
    hub->current = &hub->main;
}

/* ---- current_tasks.c: asyncio's current task of a loop, whichever loop runs; None: it has none */

int current_tasks_load(void);
int current_tasks_none(void);                                          /* surely no loop has one */
PyObject *current_task_get(Hub *hub, PyObject *loop);                  /* new reference */
PyObject *current_task_swap(Hub *hub, PyObject *loop, PyObject *task); /* the one before, new */
int current_task_gives_way(PyObject *loop);  /* `loop` is about to stop being the running one */
int current_task_comes_back(PyObject *loop); /* `loop` has become the running one */

/* ---- collecting.c: what the API does not tell of the garbage collector ----------------------------- */

int python_is_collecting(void);

/* ---- native_entry.c: Python entered by any OS thread, also while the interpreter ends -------------- */

typedef struct {
    PyThreadState *made; /* owned: for a thread that had none */
    PyGILState_STATE gil;
} PythonEntry;

int python_enter(PythonEntry *entry); /* take the GIL: 0, or -1: the interpreter is ending */
void python_leave(PythonEntry *entry);
int python_is_ending(void);

/* ---- portal_steps.c: the hooks strand.c needs ----------------------------------------------------- */

int portal_is_attached(Strand *strand); /* inside a step of its task */
int portal_detach_and_wait(
    Strand *strand); /* give the task a future, then wait for a resume; -1: could not */
int portal_may_resume(Strand *strand); /* 0: its task was cancelled, the exception is on its way */
void portal_before_resume(Strand *strand); /* direct resume: set the current task */
void portal_after_run(Strand *strand);     /* it parks again: restore it, kick the loop if needed */
PyGreenlet *portal_run_step(Strand *strand,
                            Runner *runner); /* one step: whom to switch to, or NULL */

/* The strand of a portal object and the greenlet that holds its stack (or NULL); NULL: no portal. */
Strand *portal_strand(PyObject *object, PyGreenlet **greenlet);

void canceled_start(void); /* canceled.c */
void canceled_stop(void);
void canceled_arm(Hub *hub); /* the next error that C code hands to Python is the cancellation */

/* ---- portal_hosts.c --------------------------------------------------------------------------- */

/* asyncio's running loop, new reference, or NULL where none runs. 0, or -1 with an exception set. */
int running_loop(PyObject **loop);

/* ---- inspect.c ------------------------------------------------------------------------------ */

void inspect_deadlock(Hub *hub); /* the hub is about to wait for nothing */
int inspect_exec(PyObject *module);
void stalls_asked(void); /* stalls.c: a Python thread could look by itself just now */
void stalls_stop(void);  /* the interpreter is about to end, and nobody will be able to look */
int stalls_exec(PyObject *module);
int faults_exec(PyObject *module);  /* faults.c: faulthandler knows green threads */
int futures_exec(PyObject *module); /* futures.c: Future */

/* await_(awaitable), the whole of it; see portal_await.c for `invalid`. NULL: an exception is set. */
PyObject *portal_await(PyObject *awaitable, const char *invalid);
int portal_is_awaitable(PyObject *object); /* as far as types tell */

/* ident of the calling line of control: a green thread's own, else the OS thread's. */
unsigned long strand_ident(void);

/* ---- module parts, each adds its types and functions in its *_exec ------------------------- */
int locks_exec(PyObject *module);      /* locks.c: Lock, RLock */
int threads_exec(PyObject *module);    /* threads.c: start_new_thread, get_ident, ... */
int portal_exec(PyObject *module);     /* portal.c */
int statements_exec(PyObject *module); /* statements.c: async_context, async_iter */
int hidden_exec(PyObject *module);     /* hidden.c: Hidden */
int ops_exec(PyObject *module);        /* ops.c: the crossing */
int native_entry_exec(PyObject *module);
int ops_call_is_select(int call); /* the interposed call is a loop's wait for events */
int strand_exec(PyObject *module);

#endif
