/* hub.c: one libev loop per OS thread: fds, deadlines, wake-ups from other OS threads, ready list.
 *
 * Called by strand.c (which parks and switches) and ops.c (fd waits, offload). Calls libev and the
 * interposer's portal_abi.h helpers. Invariants: libev callbacks only append to the ready list and
 * never switch or run Python code; the thread's gate is closed while libev runs; deadlines live in
 * our own heap with one timerfd (libev's timers are rounded to milliseconds by epoll_wait), armed
 * lazily: an armed time that is earlier than needed costs one spurious wake-up, never a late one.
 */
#include "core.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static __thread Hub *this_hub __attribute__((tls_model("initial-exec")));

/* Hubs of the process, a fixed-order list guarded by the GIL. */
static struct hub_link {
    Hub *hub;
    struct hub_link *next;
} * all_hubs;

static Hub *primary;

static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

int64_t hub_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

Hub *hub_get(void)
{
    return this_hub;
}

/* A child forked by a green thread keeps that thread's identity, as under CPython. */
static __thread unsigned long ident_in_child;

unsigned long hub_native_ident(void)
{
    return ident_in_child ? ident_in_child : PyThread_get_thread_ident();
}

Hub *hub_primary(void)
{
    return primary;
}

void hub_set_primary(Hub *hub)
{
    primary = hub;
}

Hub *hub_first(void)
{
    return all_hubs ? all_hubs->hub : NULL;
}

Hub *hub_next(Hub *hub)
{
    for (struct hub_link *link = all_hubs; link; link = link->next) {
        if (link->hub == hub) {
            return link->next ? link->next->hub : NULL;
        }
    }
    return NULL;
}

/* ---- ready list ------------------------------------------------------------------------------ */

void hub_ready(Hub *hub, Strand *strand)
{
    strand->ready_next = NULL;
    if (hub->ready_tail) {
        hub->ready_tail->ready_next = strand;
    } else {
        hub->ready_head = strand;
    }
    hub->ready_tail = strand;
    hub->ready_count++;
}

void hub_computing(Hub *hub, Strand *strand)
{
    strand->state = STRAND_READY;
    strand->ready_next = NULL;
    *(hub->computing ? &hub->computing_tail->ready_next : &hub->computing) = strand;
    hub->computing_tail = strand;
}

/* One after each look for events: were all of them on the ready list, whoever waits often would wait
 * for the slices of all of them each time; were none, those who never wait could starve. */
static void append_computing(Hub *hub)
{
    Strand *strand = hub->computing;
    if (strand) {
        hub->computing = strand->ready_next;
        hub_ready(hub, strand);
    }
}

int hub_unready(Hub *hub, Strand *strand)
{
    Strand *before = NULL;
    for (Strand *ready = hub->ready_head; ready; before = ready, ready = ready->ready_next) {
        if (ready == strand) {
            *(before ? &before->ready_next : &hub->ready_head) = strand->ready_next;
            if (hub->ready_tail == strand) {
                hub->ready_tail = before;
            }
            hub->ready_count--;
            return 1;
        }
    }
    return 0;
}

void hub_mail(Hub *hub, Strand *strand)
{
    pthread_mutex_lock(&hub->mailbox_lock);
    strand->ready_next = hub->mailbox;
    hub->mailbox = strand;
    if (hub->ev) { /* else its OS thread has ended: nobody will ever look */
        ev_async_send(hub->ev, &hub->wake);
    }
    pthread_mutex_unlock(&hub->mailbox_lock);
}

/* ---- deadlines: a binary heap ----------------------------------------------------------------- */

static void heap_place(Hub *hub, Py_ssize_t index, Strand *strand)
{
    hub->heap[index] = strand;
    strand->heap_index = index;
}

static void heap_up(Hub *hub, Py_ssize_t index, Strand *strand)
{
    while (index > 0) {
        Py_ssize_t parent = (index - 1) / 2;
        if (hub->heap[parent]->deadline <= strand->deadline) {
            break;
        }
        heap_place(hub, index, hub->heap[parent]);
        index = parent;
    }
    heap_place(hub, index, strand);
}

static void heap_down(Hub *hub, Py_ssize_t index, Strand *strand)
{
    for (;;) {
        Py_ssize_t child = 2 * index + 1;
        if (child >= hub->heap_len) {
            break;
        }
        if (child + 1 < hub->heap_len &&
            hub->heap[child + 1]->deadline < hub->heap[child]->deadline) {
            child++;
        }
        if (strand->deadline <= hub->heap[child]->deadline) {
            break;
        }
        heap_place(hub, index, hub->heap[child]);
        index = child;
    }
    heap_place(hub, index, strand);
}

int hub_add_deadline(Strand *strand)
{
    Hub *hub = strand->hub;
    if (hub->heap_len == hub->heap_cap) {
        Py_ssize_t cap = hub->heap_cap ? hub->heap_cap * 2 : 64;
        Strand **heap = realloc(hub->heap, (size_t)cap * sizeof *heap);
        if (!heap) {
            return -1;
        }
        hub->heap = heap;
        hub->heap_cap = cap;
    }
    heap_up(hub, hub->heap_len++, strand);
    return 0;
}

void hub_drop_deadline(Strand *strand)
{
    Hub *hub = strand->hub;
    Py_ssize_t index = strand->heap_index;
    if (index < 0) {
        return;
    }
    strand->heap_index = -1;
    Strand *last = hub->heap[--hub->heap_len];
    if (last == strand) {
        return;
    }
    if (index > 0 && hub->heap[(index - 1) / 2]->deadline > last->deadline) {
        heap_up(hub, index, last);
    } else {
        heap_down(hub, index, last);
    }
}

static void expire_deadlines(Hub *hub, int64_t now)
{
    while (hub->heap_len > 0 && hub->heap[0]->deadline <= now) {
        Strand *strand = hub->heap[0];
        hub_drop_deadline(strand);
        strand_wake(strand, PP_TIMEOUT);
    }
}

/* Whether this process reads a clock that another preloaded library makes up (libfaketime). */
static int clock_is_false(void)
{
    static int known, is_false;
    if (!known) {
        void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
        is_false = libc && dlsym(libc, "clock_gettime") != (void *)clock_gettime;
        if (libc) {
            dlclose(libc);
        }
        known = 1;
    }
    return is_false;
}

static void arm_timer(Hub *hub)
{
    int64_t deadline = hub->heap_len ? hub->heap[0]->deadline : PP_FOREVER;
    if (deadline >= hub->timer_armed) {
        return;
    }
    /* Of the kernel's own time a false clock says only how much is left. */
    int relative = clock_is_false();
    int64_t when = relative ? deadline - hub_now() : deadline;
    struct itimerspec spec = {
        .it_value = {.tv_sec = when / 1000000000, .tv_nsec = when % 1000000000}};
    if (when <= 0) { /* zero would disarm */
        spec.it_value.tv_sec = 0;
        spec.it_value.tv_nsec = 1;
    }
    int flags = relative ? 0 : TFD_TIMER_ABSTIME;
    if (timerfd_settime(hub->timer_fd, flags, &spec, NULL) == 0) {
        hub->timer_armed = deadline;
    }
}

static void timer_fired(struct ev_loop *ev, ev_io *io, int events)
{
    (void)events;
    (void)io;
    Hub *hub = ev_userdata(ev);
    uint64_t expirations;
    ssize_t ignored = read(hub->timer_fd, &expirations, sizeof expirations);
    (void)ignored;
    hub->timer_armed = PP_FOREVER;
}

/* ---- fd waits --------------------------------------------------------------------------------- */

/* libev calls back the last event first. Whoever has waited longest is to go on first, so they are
 * stacked here and appended to the ready list when all have been told. */
static void fd_ready(struct ev_loop *ev, ev_io *io, int events)
{
    (void)events;
    Hub *hub = ev_userdata(ev);
    Strand *strand = ((FdWait *)io->data)->strand;
    if (strand->state != STRAND_PARKED) {
        return;
    }
    strand->state = STRAND_READY;
    strand->outcome = PP_READY;
    strand->ready_next = hub->arrived;
    hub->arrived = strand;
}

static void append_arrived(Hub *hub)
{
    while (hub->arrived) {
        Strand *strand = hub->arrived;
        hub->arrived = strand->ready_next;
        hub_ready(hub, strand);
    }
}

int hub_watch(FdWait *wait, int fd, unsigned events)
{
    Hub *hub = wait->strand->hub;
    int anew = 0;
    int mask = (events & PP_READ ? EV_READ : 0) | (events & PP_WRITE ? EV_WRITE : 0);
    uint32_t generation = pp_fd_generation(fd);
    if (wait->io.fd != fd || (wait->io.events & (EV_READ | EV_WRITE)) != mask ||
        wait->generation != generation) {
        ev_io_init(&wait->io, fd_ready, fd, mask);
        wait->io.data = wait;
        wait->generation = generation;
        anew = 1;
    }
    ev_io_start(hub->ev, &wait->io);
    FdWait **head = &hub->buckets[(unsigned)fd & 1023];
    wait->next = *head;
    wait->pprev = head;
    if (*head) {
        (*head)->pprev = &wait->next;
    }
    *head = wait;
    hub->fd_waits++;
    pp_fd_watch(fd);
    return anew;
}

void hub_unwatch(FdWait *wait)
{
    if (!wait->pprev) {
        return;
    }
    *wait->pprev = wait->next;
    if (wait->next) {
        wait->next->pprev = wait->pprev;
    }
    wait->pprev = NULL;
    wait->strand->hub->fd_waits--;
    ev_io_stop(wait->strand->hub->ev, &wait->io);
    pp_fd_unwatch(wait->io.fd);
}

void hub_fd_closing(int fd)
{
    for (struct hub_link *link = all_hubs; link; link = link->next) {
        for (FdWait *wait = link->hub->buckets[(unsigned)fd & 1023]; wait; wait = wait->next) {
            if (wait->io.fd == fd) {
                /* libev may not have told the kernel of this watcher yet, and takes it for a
                 * mistake (it aborts) when the number is closed by then. A loop of another OS
                 * thread is inside epoll_wait or at rest: libev runs with the GIL but for that. */
                ev_io_stop(link->hub->ev, &wait->io);
                strand_wake(wait->strand, PP_BADF);
            }
        }
    }
}

/* ---- offload ---------------------------------------------------------------------------------- */

struct offload_job {
    Hub *hub;
    Strand *strand;
    void (*run)(void *);
    void (*drop)(void *);
    void *arg;
    int finished, abandoned; /* guarded by the hub's mailbox lock */
    struct offload_job *next;
};

static void offload_run(void *data)
{
    struct offload_job *job = data;
    job->run(job->arg);
}

/* On the worker, without the GIL. */
static void offload_done(void *data)
{
    struct offload_job *job = data;
    Hub *hub = job->hub;
    pthread_mutex_lock(&hub->mailbox_lock);
    int abandoned = job->abandoned || !hub->ev; /* by its caller, or the caller's OS thread ended */
    if (!abandoned) {
        job->finished = 1;
        job->next = hub->finished_jobs;
        hub->finished_jobs = job;
        ev_async_send(hub->ev, &hub->wake);
    }
    pthread_mutex_unlock(&hub->mailbox_lock);
    if (abandoned) {
        job->drop(job->arg);
        free(job);
    }
}

enum pp_outcome hub_offload(int call, void (*run)(void *), void (*drop)(void *), void *arg,
                            int check)
{
    Strand *strand = strand_current();
    if (!strand || hub_start(strand->hub) < 0) {
        PyErr_Clear();
        return PP_BLOCK;
    }
    Hub *hub = strand->hub;
    struct offload_job *job = calloc(1, sizeof *job);
    if (!job) {
        return PP_BLOCK;
    }
    *job = (struct offload_job){.hub = hub, .strand = strand, .run = run, .drop = drop, .arg = arg};
    if (pp_pool_submit(offload_run, job, offload_done, job) != 0) {
        free(job);
        return PP_BLOCK;
    }
    hub->stats.offloads++;
    hub->offloads_running++;
    enum pp_outcome outcome;
    for (;;) {
        outcome = strand_park(strand, call, -1, NULL, PP_FOREVER);
        if (outcome == PP_EINTR) {
            strand_rearm_signals(strand);
            outcome = check && PyErr_CheckSignals() < 0 ? PP_CANCELED : PP_READY;
        }
        pthread_mutex_lock(&hub->mailbox_lock);
        int finished = job->finished;
        if (finished) {
            /* It may have finished while another wake-up was on its way: take it off the list. */
            for (struct offload_job **link = &hub->finished_jobs; *link; link = &(*link)->next) {
                if (*link == job) {
                    *link = job->next;
                    break;
                }
            }
        } else if (outcome != PP_READY) {
            job->abandoned = 1;
        }
        pthread_mutex_unlock(&hub->mailbox_lock);
        if (finished) {
            if (outcome != PP_READY) {
                drop(arg);
            }
            free(job);
        }
        if (finished || outcome != PP_READY) {
            hub->offloads_running--;
            return outcome; /* not finished: the worker drops and frees */
        }
    }
}

/* ---- mailboxes and polling -------------------------------------------------------------------- */

static void mail_arrived(struct ev_loop *ev, ev_async *async, int events)
{
    (void)async;
    (void)events;
    Hub *hub = ev_userdata(ev);
    pthread_mutex_lock(&hub->mailbox_lock);
    Strand *mail = hub->mailbox;
    struct offload_job *jobs = hub->finished_jobs;
    hub->mailbox = NULL;
    hub->finished_jobs = NULL;
    pthread_mutex_unlock(&hub->mailbox_lock);
    Strand *in_order = NULL;
    while (mail) { /* it was a stack: first come, first served */
        Strand *next = mail->ready_next;
        mail->ready_next = in_order;
        in_order = mail;
        mail = next;
    }
    while (in_order) {
        Strand *next = in_order->ready_next;
        hub_ready(hub, in_order);
        in_order = next;
    }
    while (jobs) {
        struct offload_job *next = jobs->next;
        strand_wake(jobs->strand, PP_READY);
        jobs = next;
    }
}

static void release_gil(struct ev_loop *ev) EV_NOEXCEPT
{
    Hub *hub = ev_userdata(ev);
    if (hub->blocking) {
        PyEval_SaveThread();
        errno = 0;
    }
}

static void acquire_gil(struct ev_loop *ev) EV_NOEXCEPT
{
    Hub *hub = ev_userdata(ev);
    if (hub->blocking) {
        if (errno == EINTR) {
            hub->interrupted = 1;
        }
        PyEval_RestoreThread(hub->tstate);
    }
}

/* Without the garbage collection that may be due: see Between. From 3.12 on PyErr_CheckSignals() does it
 * too, and on some versions even where it is disabled. */
static int check_signals(Hub *hub)
{
#if PY_VERSION_HEX >= 0x030C0000
    (void)hub;
    return Py_MakePendingCalls();
#else
    Between before = between_begin(hub);
    int result = PyErr_CheckSignals();
    between_end(hub, before);
    return result;
#endif
}

void hub_poll(Hub *hub)
{
    hub->blocking = !hub->ready_head && !hub->computing &&
                    !(hub->heap_len && hub->heap[0]->deadline <= hub->stats.run_began);
    *hub->gate = 0; /* whoever is switched to next opens it for itself */
    hub->polling = 1;
    if (hub->blocking && hub->is_main_thread) {
        /* A signal that came since the last bytecode interrupts no epoll_wait. Its gate (signals.c)
         * runs no user code here: it defers to the main strand, which wakes. */
        if (check_signals(hub) < 0) {
            PyErr_WriteUnraisable(NULL);
        }
        hub->blocking = !hub->ready_head;
    }
    if (hub->blocking) {
        arm_timer(hub);
        if (!hub->fd_waits && !hub->heap_len && !hub->offloads_running && !hub->mailbox) {
            inspect_deadlock(hub); /* a signal handler that ran meanwhile may have woken somebody */
            hub->blocking = !hub->ready_head;
        }
    }
    ev_run(hub->ev, hub->blocking ? EVRUN_ONCE : EVRUN_NOWAIT);
    append_arrived(hub);
    hub->polling = 0;
    hub->last_poll = hub_now();
    expire_deadlines(hub, hub->last_poll);
    if (hub->interrupted) {
        hub->interrupted = 0;
        signals_interrupt(hub);
    }
    append_computing(hub);
    hub->batch_left = hub->ready_count;
}

/* ---- life ------------------------------------------------------------------------------------- */

int hub_start(Hub *hub)
{
    if (hub->ev) {
        return 0;
    }
    int *gate = hub->gate;
    int open = *gate;
    *gate = 0;
    struct ev_loop *ev = ev_loop_new(EVFLAG_NOENV | EVBACKEND_EPOLL);
    int timer_fd = ev ? timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK) : -1;
    *gate = open;
    if (timer_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        if (ev) {
            ev_loop_destroy(ev);
        }
        return -1;
    }
    ev_set_userdata(ev, hub);
    ev_set_loop_release_cb(ev, release_gil, acquire_gil);
    hub->timer_fd = timer_fd;
    hub->timer_armed = PP_FOREVER;
    ev_io_init(&hub->timer_io, timer_fired, timer_fd, EV_READ);
    ev_io_start(ev, &hub->timer_io);
    ev_async_init(&hub->wake, mail_arrived);
    ev_async_start(ev, &hub->wake);
    hub->ev = ev;
    return 0;
}

void hub_open_gate(Hub *hub)
{
    hub->gate_open = 1;
    strand_make_current(hub, hub->current);
}

static void unlink_hub(Hub *hub)
{
    for (struct hub_link **link = &all_hubs; *link; link = &(*link)->next) {
        if ((*link)->hub == hub) {
            struct hub_link *dead = *link;
            *link = dead->next;
            free(dead);
            return;
        }
    }
}

/* The hub of the calling OS thread ends: the kernel objects go; the structure stays for late workers, and
 * without `ev` says that nobody waits any more. */
static void close_hub(Hub *hub)
{
    this_hub = NULL;
    *hub->gate = 0;
    *hub->mutex_count = NULL;
    pthread_mutex_lock(&hub->mailbox_lock);
    struct ev_loop *ev = hub->ev;
    hub->ev = NULL;
    pthread_mutex_unlock(&hub->mailbox_lock);
    if (ev) {
        ev_loop_destroy(ev);
        close(hub->timer_fd);
    }
}

static void forget_hub(Hub *hub)
{
    unlink_hub(hub);
    if (primary == hub) {
        primary = NULL;
    }
}

static int is_of_this_thread(Hub *hub)
{
    return hub == this_hub && hub->pid == getpid();
}

/* At the end of a native OS thread whose Python state has not ended before it. */
static void thread_exits(void *data)
{
    Hub *hub = data;
    if (!is_of_this_thread(hub)) {
        return;
    }
    PythonEntry entry;
    if (python_enter(&entry) == 0) {
        forget_hub(hub);
        python_leave(&entry);
    }
    close_hub(hub);
}

static void make_exit_key(void)
{
    pthread_key_create(&exit_key, thread_exits);
}

/* A thread made by C code has a Python state while it is inside Python only, and another one when it
 * calls back again. So a hub ends with its thread's state: the state's dict holds a capsule. */
static void state_ends(PyObject *capsule)
{
    Hub *hub = PyCapsule_GetPointer(capsule, NULL);
    if (is_of_this_thread(hub)) {
        forget_hub(hub);
        close_hub(hub);
    }
}

static int end_with_state(Hub *hub)
{
    PyObject *dict = PyThreadState_GetDict(); /* borrowed */
    PyObject *capsule = dict ? PyCapsule_New(hub, NULL, NULL) : NULL;
    int done = capsule ? PyDict_SetItemString(dict, "portalpatch", capsule) : -1;
    if (done == 0) {
        PyCapsule_SetDestructor(capsule, state_ends);
    } else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    Py_XDECREF(capsule);
    return done;
}

Hub *hub_ensure(void)
{
    if (this_hub) {
        return this_hub;
    }
    Hub *hub = calloc(1, sizeof *hub);
    struct hub_link *link = malloc(sizeof *link);
    int is_main_thread = getpid() == gettid();
    if (!hub || !link) {
        PyErr_NoMemory();
    }
    if (!hub || !link || (!is_main_thread && end_with_state(hub) < 0)) {
        free(hub);
        free(link);
        return NULL;
    }
    hub->tstate = PyThreadState_Get();
    hub->gate = pp_gate_of_this_thread();
    hub->mutex_count = pp_mutex_count_of_this_thread();
    hub->pid = getpid();
    hub->is_main_thread = is_main_thread;
    pthread_mutex_init(&hub->mailbox_lock, NULL);
    strand_init(&hub->main, hub, STRAND_MAIN);
    hub->main.state = STRAND_RUNNING;
    hub->main.ident = hub_native_ident();
    hub->current = hub->installed = &hub->main;
    hub->stats.run_began = hub->stats.last_wait = hub_now();
    link->hub = hub;
    link->next = all_hubs;
    all_hubs = link;
    this_hub = hub;
    pthread_once(&exit_once, make_exit_key);
    if (!hub->is_main_thread) {
        pthread_setspecific(exit_key, hub);
    }
    return hub;
}

/* In a forked child: the other lines of control are gone, as threads would be. The epoll set is
 * shared with the parent and must not be touched, so the loop is dropped, never destroyed (its
 * descriptors are close-on-exec). */
void hub_forget_after_fork(void)
{
    while (all_hubs) {
        struct hub_link *link = all_hubs;
        all_hubs = link->next;
        free(link);
    }
    primary = NULL;
    if (this_hub) {
        ident_in_child = strand_ident();
        *this_hub->gate = 0;
        *this_hub->mutex_count = NULL;
        this_hub = NULL;
    }
}
