/* pool.c: native worker threads, for C calls that cannot be waited for in any other way.
 *
 * The portal's offload submits jobs here. Workers are made on demand up to a limit, then jobs queue;
 * a worker that had nothing to do for a while leaves. Calls only pthreads.
 * Invariants: a worker's gate stays closed (its calls block), it takes no signals, and a fork child
 * starts with no workers and no jobs: those belong to the parent.
 */
#include "interpose.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>

#define IDLE_SECONDS 10
#define STACK_SIZE ((size_t)1 << 20) /* NSS modules are fond of alloca */

struct job {
    struct job *next;
    void (*run)(void *);
    void *arg;
    void (*done)(void *);
    void *done_arg;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct job *first, **last; /* jobs no worker has taken; last is NULL until first used */
    unsigned queued;
    unsigned workers;
    unsigned idle; /* of the workers: waiting for work */
    unsigned limit;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .limit = 64};

/* The condition counts on CLOCK_MONOTONIC, which no static initializer can say. */
static void prepare(void)
{
    if (pool.last)
        return;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool.work, &attr);
    pthread_condattr_destroy(&attr);
    pool.last = &pool.first;
}

void pp_pool_reset(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    pool.first = NULL;
    pool.last = NULL;
    pool.queued = pool.workers = pool.idle = 0;
}

void pp_pool_set_limit(unsigned limit)
{
    pthread_mutex_lock(&pool.lock);
    pool.limit = limit ? limit : 1;
    pthread_mutex_unlock(&pool.lock);
}

/* The next job, or NULL once this worker has been idle for long enough. Lock held. */
static struct job *next_job(void)
{
    struct timespec leave;
    clock_gettime(CLOCK_MONOTONIC, &leave);
    leave.tv_sec += IDLE_SECONDS;
    pool.idle++;
    while (!pool.first && pthread_cond_timedwait(&pool.work, &pool.lock, &leave) == 0)
        ;
    pool.idle--;
    struct job *job = pool.first;
    if (job) {
        pool.first = job->next;
        if (!pool.first)
            pool.last = &pool.first;
        pool.queued--;
    }
    return job;
}

static void *work(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (struct job *job; (job = next_job());) {
        pthread_mutex_unlock(&pool.lock);
        job->run(job->arg);
        job->done(job->done_arg);
        free(job);
        pthread_mutex_lock(&pool.lock);
    }
    pool.workers--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* 0 or an errno. The new thread inherits the mask under which it is made. */
static int start_worker(void)
{
    pthread_attr_t attr;
    sigset_t all, old;
    pthread_t thread;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&thread, &attr, work, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return error;
}

int pp_pool_submit(void (*run)(void *), void *arg, void (*done)(void *), void *done_arg)
{
    struct job *job = malloc(sizeof *job);
    if (!job)
        return ENOMEM;
    *job = (struct job){.run = run, .arg = arg, .done = done, .done_arg = done_arg};
    int error = 0;
    pthread_mutex_lock(&pool.lock);
    prepare();
    if (pool.queued >= pool.idle && pool.workers < pool.limit) {
        error = start_worker();
        if (error == 0)
            pool.workers++;
    }
    if (pool.workers == 0) {
        pthread_mutex_unlock(&pool.lock);
        free(job);
        return error ? error : EAGAIN;
    }
    *pool.last = job;
    pool.last = &job->next;
    pool.queued++;
    pthread_cond_signal(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    return 0;
}
