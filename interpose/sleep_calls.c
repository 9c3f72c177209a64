/* sleep_calls.c: sleep, usleep, nanosleep, clock_nanosleep.
 *
 * exports.c calls pp_x while the gate is open. All become one sleep_on, which parks until a
 * CLOCK_MONOTONIC deadline, or, for absolute sleeps on a clock that can be set or that runs on in
 * suspend, on a timerfd of that clock. Zero-length sleeps park too: they are how programs yield.
 * Invariant: an interrupted relative sleep writes what remained, an absolute one writes nothing.
 */
#include "interpose.h"

#include <sys/timerfd.h>

#define SECOND 1000000000L

static struct timespec until(int64_t deadline)
{
    int64_t left = deadline - pp_now();
    if (left < 0)
        left = 0;
    return (struct timespec){.tv_sec = left / SECOND, .tv_nsec = left % SECOND};
}

/* The answer of a wait as clock_nanosleep's result; -1: not over yet. */
static int error_of(enum pp_outcome outcome)
{
    switch (outcome) {
    case PP_EINTR:
        return EINTR;
    case PP_CANCELED:
        return ECANCELED;
    case PP_TIMEOUT:
    case PP_READY:
    case PP_BADF:
    case PP_BLOCK:
        break;
    }
    return -1;
}

/* Relative sleeps, and absolute ones on CLOCK_MONOTONIC. */
static int sleep_monotonic(int call, int64_t deadline)
{
    do {
        enum pp_outcome outcome = pp_park_until(call, deadline);
        if (outcome == PP_BLOCK) {
            struct timespec wake = {.tv_sec = deadline / SECOND, .tv_nsec = deadline % SECOND};
            return real_clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
        }
        int error = error_of(outcome);
        if (error >= 0)
            return error;
    } while (pp_now() < deadline);
    return 0;
}

/* A clock that may be set while we sleep: the kernel's timer follows it, a computed deadline would
 * not. Without a free fd, sleep on in steps. */
static int sleep_by_clock(int call, clockid_t clock, const struct timespec *wake)
{
    struct itimerspec alarm = {.it_value = *wake};
    if (alarm.it_value.tv_sec == 0 && alarm.it_value.tv_nsec == 0)
        alarm.it_value.tv_nsec = 1; /* zero would disarm it */
    int timer = timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer >= 0 && timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL) < 0) {
        pp_close(timer);
        timer = -1;
    }
    int error = -1;
    while (error < 0) {
        enum pp_outcome outcome = timer >= 0 ? pp_park_fd(call, timer, PP_READ, PP_FOREVER)
                                             : pp_park_until(call, pp_after(SECOND / 10));
        if (outcome == PP_BLOCK) {
            error = real_clock_nanosleep(clock, TIMER_ABSTIME, wake, NULL);
            break;
        }
        error = error_of(outcome);
        struct timespec now;
        clock_gettime(clock, &now);
        if (error < 0 && (now.tv_sec > wake->tv_sec ||
                          (now.tv_sec == wake->tv_sec && now.tv_nsec >= wake->tv_nsec)))
            error = 0;
    }
    if (timer >= 0)
        pp_close(timer);
    return error;
}

/* 0 or an error number. */
static int sleep_on(int call, clockid_t clock, int flags, const struct timespec *request,
                    struct timespec *remain)
{
    struct timespec t;
    if ((clock != CLOCK_MONOTONIC && clock != CLOCK_REALTIME && clock != CLOCK_BOOTTIME) ||
        pp_copy_in(&t, request, sizeof t) < 0 || t.tv_sec < 0 || t.tv_nsec < 0 ||
        t.tv_nsec >= SECOND)
        return real_clock_nanosleep(clock, flags, request, remain); /* or its EINVAL, or EFAULT */
    if (flags & TIMER_ABSTIME) {
        if (clock == CLOCK_MONOTONIC)
            return sleep_monotonic(call, pp_nanoseconds(t.tv_sec, t.tv_nsec));
        return sleep_by_clock(call, clock, &t);
    }
    int64_t deadline = pp_after(pp_nanoseconds(t.tv_sec, t.tv_nsec));
    int error = sleep_monotonic(call, deadline);
    if (error == EINTR && remain) {
        struct timespec left = until(deadline);
        if (pp_copy_out(remain, &left, sizeof left) < 0)
            return EFAULT;
    }
    return error;
}

int pp_clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                       struct timespec *remain)
{
    return sleep_on(PP_CALL_clock_nanosleep, clock, flags, request, remain);
}

static int fail_with(int error)
{
    if (error == 0)
        return 0;
    errno = error;
    return -1;
}

int pp_nanosleep(const struct timespec *request, struct timespec *remain)
{
    return fail_with(sleep_on(PP_CALL_nanosleep, CLOCK_REALTIME, 0, request, remain));
}

int pp_usleep(useconds_t usec)
{
    struct timespec t = {.tv_sec = usec / 1000000, .tv_nsec = (long)(usec % 1000000) * 1000};
    return fail_with(sleep_on(PP_CALL_usleep, CLOCK_REALTIME, 0, &t, NULL));
}

unsigned pp_sleep(unsigned seconds)
{
    int64_t deadline = pp_after(pp_nanoseconds(seconds, 0));
    int error = sleep_monotonic(PP_CALL_sleep, deadline);
    if (error == 0)
        return 0;
    errno = error;
    return (unsigned)until(deadline).tv_sec;
}
