/* signal_calls.c: sigwait, sigwaitinfo, sigtimedwait, pause.
 *
 * exports.c calls pp_x while the gate is open. libc's sigtimedwait takes what is pending; until then
 * the caller is parked on a signalfd of its set.
 * Invariant: a signal of the set is taken by the wait and never by its handler, also where the
 * caller had not blocked it: it is blocked while parked.
 */
#include "interpose.h"

#include <sys/signalfd.h>

/* Of the set, block what is not blocked yet; tells what that was. */
static void block(const sigset_t *set, sigset_t *added)
{
    sigset_t before;
    pthread_sigmask(SIG_BLOCK, set, &before);
    sigemptyset(added);
    for (int s = 1; s < NSIG; s++)
        if (sigismember(set, s) == 1 && sigismember(&before, s) == 0)
            sigaddset(added, s);
}

static int wait_for(int call, const sigset_t *set, siginfo_t *info, int64_t deadline)
{
    static const struct timespec at_once;
    sigset_t added;
    struct pp_spin spin = {0};
    block(set, &added);
    int fd = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
    int r;
    while ((r = real_sigtimedwait(set, info, &at_once)) < 0 && errno == EAGAIN) {
        enum pp_turn turn;
        if (fd >= 0)
            turn = pp_wait_turn(call, fd, PP_READ, deadline, EAGAIN, &spin);
        else
            turn = pp_back_off(call, deadline, EAGAIN, &spin);
        if (turn == PP_AGAIN)
            continue;
        if (turn == PP_PLAIN) {
            int64_t left = deadline - pp_now();
            struct timespec t = {.tv_sec = left > 0 ? left / 1000000000 : 0,
                                 .tv_nsec = left > 0 ? left % 1000000000 : 0};
            r = real_sigtimedwait(set, info, deadline == PP_FOREVER ? NULL : &t);
        }
        break;
    }
    int saved = errno;
    if (fd >= 0)
        pp_close(fd);
    pthread_sigmask(SIG_UNBLOCK, &added, NULL);
    errno = saved;
    return r;
}

int pp_sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
    struct timespec t;
    sigset_t copy;
    if (pp_copy_in(&copy, set, sizeof copy) < 0 ||
        (timeout && (pp_copy_in(&t, timeout, sizeof t) < 0 || t.tv_sec < 0 || t.tv_nsec < 0 ||
                     t.tv_nsec >= 1000000000 || (t.tv_sec == 0 && t.tv_nsec == 0))))
        return real_sigtimedwait(set, info, timeout);
    int64_t deadline = timeout ? pp_after(pp_nanoseconds(t.tv_sec, t.tv_nsec)) : PP_FOREVER;
    return wait_for(PP_CALL_sigtimedwait, &copy, info, deadline);
}

int pp_sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
    sigset_t copy;
    if (pp_copy_in(&copy, set, sizeof copy) < 0)
        return real_sigwaitinfo(set, info);
    return wait_for(PP_CALL_sigwaitinfo, &copy, info, PP_FOREVER);
}

/* An error number, never EINTR: handlers of other signals run and the wait goes on. */
int pp_sigwait(const sigset_t *set, int *signo)
{
    sigset_t copy;
    siginfo_t info;
    if (pp_copy_in(&copy, set, sizeof copy) < 0)
        return real_sigwait(set, signo);
    int r;
    do
        r = wait_for(PP_CALL_sigwait, &copy, &info, PP_FOREVER);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return errno;
    *signo = r;
    return 0;
}

int pp_pause(void)
{
    enum pp_turn turn;
    do
        turn = pp_turn_of(pp_park_until(PP_CALL_pause, PP_FOREVER), EINTR);
    while (turn == PP_AGAIN);
    return turn == PP_PLAIN ? real_pause() : -1;
}
