/* poll_calls.c: poll, ppoll, select, pselect, epoll_wait, epoll_pwait.
 *
 * exports.c calls pp_x while the gate is open. Each is libc's own call with a zero timeout, a park on
 * what it asked for (struct watch), and the call again, until it has something to say or the
 * deadline passes. Only libc's call ever fills in the caller's results.
 * Invariant: a signal mask is in force only during libc's call; meanwhile a signalfd tells of the
 * signals that mask would let in.
 */
#include "interpose.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>

static const struct timespec at_once;

/* ---- what a call waits for ----------------------------------------------------------------------- */

struct watch {
    struct pp_want *wants; /* `few`, or a heap block */
    size_t n, room;
    struct pp_want few[16];
    int epfd;       /* holds what READ and WRITE cannot say (urgent data, hang-up only), or -1 */
    int sigfd;      /* readable once a signal is pending that only the call's mask lets in, or -1 */
    bool blind;     /* something cannot be watched: look again and again */
    bool failed;    /* no memory */
    bool timed_out; /* the last wait ended so */
    bool stdio, others; /* which kinds of fd were asked for */
};

static void watch_init(struct watch *w)
{
    *w = (struct watch){.room = sizeof w->few / sizeof *w->few, .epfd = -1, .sigfd = -1};
    w->wants = w->few;
}

static void watch_free(struct watch *w)
{
    int saved = errno;
    if (w->wants != w->few)
        free(w->wants);
    if (w->epfd >= 0)
        pp_close(w->epfd);
    if (w->sigfd >= 0)
        pp_close(w->sigfd);
    errno = saved;
}

static void watch_want(struct watch *w, int fd, unsigned events)
{
    if (w->n == w->room) {
        struct pp_want *more = malloc(2 * w->room * sizeof *more);
        if (!more) {
            w->failed = true;
            return;
        }
        memcpy(more, w->wants, w->n * sizeof *more);
        if (w->wants != w->few)
            free(w->wants);
        w->wants = more;
        w->room *= 2;
    }
    w->wants[w->n++] = (struct pp_want){.fd = fd, .events = events};
}

/* poll and epoll share their event bits. */
static void watch_odd(struct watch *w, int fd, unsigned events)
{
    if (w->epfd < 0) {
        w->epfd = epoll_create1(EPOLL_CLOEXEC);
        if (w->epfd >= 0)
            watch_want(w, w->epfd, PP_READ);
    }
    struct epoll_event e = {.events = events, .data.fd = fd};
    if (w->epfd < 0)
        w->blind = true;
    else if (epoll_ctl(w->epfd, EPOLL_CTL_ADD, fd, &e) < 0 && errno != EPERM)
        w->blind = true; /* the same fd twice, no memory */
}

#define IN (POLLIN | POLLRDNORM)
#define OUT (POLLOUT | POLLWRNORM)

static void watch_fd(struct watch *w, int fd, short events)
{
    if (fd < 0)
        return;
    events &= (short)~(POLLERR | POLLHUP | POLLNVAL); /* told without being asked for */
    *(pp_is_stdio(fd) ? &w->stdio : &w->others) = true;
    /* POLLRDHUP never comes without POLLIN. */
    bool odd = (events & ~(IN | OUT | POLLRDHUP)) || !(events & (IN | OUT)) ||
               ((events & POLLRDHUP) && !(events & IN));
    if (odd)
        watch_odd(w, fd, (unsigned short)events);
    else
        watch_want(w, fd, (events & IN ? PP_READ : 0) | (events & OUT ? PP_WRITE : 0));
}

static void watch_signals(struct watch *w, const sigset_t *mask)
{
    sigset_t blocked, wanted;
    bool any = false;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    sigemptyset(&wanted);
    for (int s = 1; s < NSIG; s++)
        if (sigismember(&blocked, s) == 1 && sigismember(mask, s) == 0 &&
            sigaddset(&wanted, s) == 0)
            any = true;
    if (!any)
        return;
    w->sigfd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (w->sigfd >= 0)
        watch_want(w, w->sigfd, PP_READ);
    else
        w->blind = true;
}

/* PP_AGAIN also at the deadline: the caller's loop looks a last time. */
static enum pp_turn watch_wait(int call, struct watch *w, int64_t deadline, struct pp_spin *spin)
{
    if (w->failed) {
        errno = ENOMEM;
        return PP_FAIL;
    }
    if (w->stdio && !w->others)
        return PP_PLAIN;
    enum pp_turn turn;
    if (w->blind || spin->rounds++ > 4)
        turn = pp_back_off(call, deadline, ETIMEDOUT, spin);
    else
        turn = pp_turn_of(pp_park_many(call, w->wants, w->n, deadline), ETIMEDOUT);
    w->timed_out = turn == PP_FAIL && errno == ETIMEDOUT;
    return w->timed_out ? PP_AGAIN : turn;
}

static struct timespec *left_until(int64_t deadline, struct timespec *t)
{
    if (deadline == PP_FOREVER)
        return NULL;
    int64_t left = deadline - pp_now();
    if (left < 0)
        left = 0;
    *t = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    return t;
}

/* ---- poll ------------------------------------------------------------------------------------------- */

static int poll_once(struct pollfd *fds, nfds_t n, const sigset_t *mask)
{
    return mask ? real_ppoll(fds, n, &at_once, mask) : real_poll(fds, n, 0);
}

/* The first try found nothing. */
static int poll_parked(int call, struct pollfd *fds, nfds_t n, int64_t deadline,
                       const sigset_t *mask)
{
    struct watch w;
    struct pp_spin spin = {0};
    watch_init(&w);
    for (nfds_t i = 0; i < n; i++)
        watch_fd(&w, fds[i].fd, fds[i].events);
    if (mask)
        watch_signals(&w, mask);
    int r;
    do {
        enum pp_turn turn = watch_wait(call, &w, deadline, &spin);
        struct timespec t;
        if (turn == PP_PLAIN)
            r = real_ppoll(fds, n, left_until(deadline, &t), mask);
        else if (turn == PP_AGAIN)
            r = poll_once(fds, n, mask);
        else if (errno != EBADF || (r = poll_once(fds, n, mask)) == 0)
            r = -1; /* a closed fd is POLLNVAL, unless its number is in use again */
        if (turn == PP_PLAIN)
            break;
    } while (r == 0 && pp_now() < deadline);
    watch_free(&w);
    return r;
}

int pp_poll(struct pollfd *fds, nfds_t n, int timeout)
{
    int r = real_poll(fds, n, 0);
    if (r != 0 || timeout == 0)
        return r;
    return poll_parked(PP_CALL_poll, fds, n,
                       timeout < 0 ? PP_FOREVER : pp_after(timeout * 1000000LL), NULL);
}

static bool is_valid(const struct timespec *t)
{
    return t->tv_sec >= 0 && t->tv_nsec >= 0 && t->tv_nsec < 1000000000;
}

int pp_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
    if (timeout && !is_valid(timeout))
        return real_ppoll(fds, n, timeout, mask);
    int r = poll_once(fds, n, mask);
    if (r != 0 || (timeout && timeout->tv_sec == 0 && timeout->tv_nsec == 0))
        return r;
    int64_t deadline =
        timeout ? pp_after(pp_nanoseconds(timeout->tv_sec, timeout->tv_nsec)) : PP_FOREVER;
    return poll_parked(PP_CALL_ppoll, fds, n, deadline, mask);
}

/* ---- select ----------------------------------------------------------------------------------------- */

#define WORD_BITS (8 * (int)sizeof(unsigned long))
#define FEW_WORDS (FD_SETSIZE / WORD_BITS)

/* The three sets: libc overwrites them at each try, so they are kept as asked. */
struct sets {
    int n;
    size_t words; /* of each set */
    void *user[3];
    unsigned long *asked[3], *result[3]; /* NULL where the user's is */
    unsigned long few[6 * FEW_WORDS];
    unsigned long *many; /* instead of `few`, or NULL */
};

/* The kernel looks at no more fds than the process has room for; a bigger n may come with smaller
 * sets than it says. */
static int clamp_to_fd_table(int n)
{
    FILE *status = n > FD_SETSIZE ? fopen("/proc/self/status", "re") : NULL;
    char line[128];
    int size = n;
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "FDSize: %d", &size) == 1)
            break;
    if (status)
        real_fclose(status);
    return size < n ? size : n;
}

/* 0, or -1 with errno. */
static int sets_init(struct sets *s, int n, fd_set *in, fd_set *out, fd_set *except)
{
    s->n = clamp_to_fd_table(n);
    s->words = ((size_t)s->n + WORD_BITS - 1) / WORD_BITS;
    s->many = NULL;
    unsigned long *block = s->few;
    if (s->words > FEW_WORDS && !(block = s->many = malloc(6 * s->words * sizeof *block))) {
        errno = ENOMEM;
        return -1;
    }
    void *user[3] = {in, out, except};
    for (int i = 0; i < 3; i++) {
        s->user[i] = user[i];
        s->asked[i] = user[i] ? block + (size_t)i * s->words : NULL;
        s->result[i] = user[i] ? block + (size_t)(i + 3) * s->words : NULL;
        if (user[i] && s->words && pp_copy_in(s->asked[i], user[i], s->words * sizeof *block) < 0) {
            free(s->many);
            errno = EFAULT;
            return -1;
        }
    }
    return 0;
}

/* Without a mask a look is a select(): its call has no argument for one. pselect() hands the kernel a
 * struct even then, whose address valgrind loses where a signal makes the call start again. */
static int select_once(struct sets *s, const struct timespec *timeout, const sigset_t *mask)
{
    size_t size = s->words * sizeof(unsigned long);
    for (int i = 0; i < 3; i++)
        if (s->user[i])
            memcpy(s->result[i], s->asked[i], size);
    if (!mask && timeout == &at_once) {
        struct timeval zero = {0};
        return real_select(s->n, (fd_set *)s->result[0], (fd_set *)s->result[1],
                           (fd_set *)s->result[2], &zero);
    }
    return real_pselect(s->n, (fd_set *)s->result[0], (fd_set *)s->result[1],
                        (fd_set *)s->result[2], timeout, mask);
}

static bool is_asked(const struct sets *s, int which, int fd)
{
    return s->user[which] && (s->asked[which][fd / WORD_BITS] >> (fd % WORD_BITS) & 1);
}

static void watch_sets(struct watch *w, const struct sets *s)
{
    for (int fd = 0; fd < s->n; fd++) {
        bool in = is_asked(s, 0, fd), out = is_asked(s, 1, fd), except = is_asked(s, 2, fd);
        if (in || out)
            watch_fd(w, fd, (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0)));
        if (except)
            watch_fd(w, fd, POLLPRI);
    }
}

/* deadline PP_UNASKED: only one look. */
static int select_parked(int call, struct sets *s, int64_t deadline, const sigset_t *mask)
{
    int r = select_once(s, &at_once, mask);
    if (r == 0 && deadline != PP_UNASKED) {
        struct watch w;
        struct pp_spin spin = {0};
        watch_init(&w);
        watch_sets(&w, s);
        if (mask)
            watch_signals(&w, mask);
        enum pp_turn turn;
        do {
            turn = watch_wait(call, &w, deadline, &spin);
            struct timespec t;
            if (turn == PP_PLAIN)
                r = select_once(s, left_until(deadline, &t), mask);
            else if (turn == PP_AGAIN)
                r = select_once(s, &at_once, mask);
            else
                r = -1;
        } while (turn != PP_PLAIN && r == 0 && pp_now() < deadline);
        watch_free(&w);
    }
    for (int i = 0; r >= 0 && i < 3; i++)
        if (s->user[i])
            memcpy(s->user[i], s->result[i], s->words * sizeof(unsigned long));
    free(s->many);
    return r;
}

int pp_pselect(int n, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout,
               const sigset_t *mask)
{
    struct sets s;
    if (n < 0 || (timeout && !is_valid(timeout)))
        return real_pselect(n, in, out, except, timeout, mask);
    if (sets_init(&s, n, in, out, except) < 0)
        return -1;
    int64_t deadline = PP_FOREVER;
    if (timeout && timeout->tv_sec == 0 && timeout->tv_nsec == 0)
        deadline = PP_UNASKED;
    else if (timeout)
        deadline = pp_after(pp_nanoseconds(timeout->tv_sec, timeout->tv_nsec));
    return select_parked(PP_CALL_pselect, &s, deadline, mask);
}

/* Linux's select, other than pselect, tells what was left of the timeout. */
int pp_select(int n, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
    struct sets s;
    if (n < 0 || (timeout && (timeout->tv_sec < 0 || timeout->tv_usec < 0)))
        return real_select(n, in, out, except, timeout);
    if (sets_init(&s, n, in, out, except) < 0)
        return -1;
    int64_t length = PP_FOREVER, deadline = PP_FOREVER;
    if (timeout) {
        length = pp_nanoseconds(timeout->tv_sec, 0);
        if (length != PP_FOREVER &&
            __builtin_add_overflow(length, timeout->tv_usec * 1000LL, &length))
            length = PP_FOREVER;
        deadline = pp_after(length);
    }
    int r = select_parked(PP_CALL_select, &s, length == 0 ? PP_UNASKED : deadline, NULL);
    if (timeout && deadline != PP_FOREVER) {
        int64_t left = deadline - pp_now();
        if (left < 0 || length == 0)
            left = 0;
        timeout->tv_sec = left / 1000000000;
        timeout->tv_usec = left % 1000000000 / 1000;
    }
    return r;
}

/* ---- epoll -------------------------------------------------------------------------------------------- */

static int epoll_once(int epfd, struct epoll_event *events, int max, int timeout,
                      const sigset_t *mask)
{
    return mask ? real_epoll_pwait(epfd, events, max, timeout, mask)
                : real_epoll_wait(epfd, events, max, timeout);
}

/* Another look. With no time to wait epoll_pwait lets no signal in, but ppoll does. */
static int epoll_again(int epfd, struct epoll_event *events, int max, const sigset_t *mask)
{
    int r = epoll_once(epfd, events, max, 0, mask);
    return r == 0 && mask ? real_ppoll(NULL, 0, &at_once, mask) : r;
}

/* An epoll fd is itself pollable. A wait that times out before its deadline is the portal's way to
 * make a loop look at its own queues again: the call then returns what there is, perhaps nothing. */
static int epoll_parked(int call, int epfd, struct epoll_event *events, int max, int64_t deadline,
                        const sigset_t *mask)
{
    struct watch w;
    struct pp_spin spin = {0};
    watch_init(&w);
    watch_fd(&w, epfd, POLLIN);
    if (mask)
        watch_signals(&w, mask);
    int r;
    enum pp_turn turn;
    do {
        turn = watch_wait(call, &w, deadline, &spin);
        if (turn == PP_PLAIN)
            r = epoll_once(epfd, events, max, pp_milliseconds_left(deadline), mask);
        else if (turn == PP_AGAIN)
            r = epoll_again(epfd, events, max, mask);
        else
            r = -1;
    } while (turn != PP_PLAIN && r == 0 && !w.timed_out && pp_now() < deadline);
    watch_free(&w);
    return r;
}

/* A loop that always finds something to do would never let those parked beside it go on. */
static int epoll_at_once(int call, int r)
{
    if (r >= 0)
        pp_yield(call);
    return r;
}

static int64_t epoll_deadline(int timeout)
{
    return timeout < 0 ? PP_FOREVER : pp_after(timeout * 1000000LL);
}

int pp_epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
    int r = real_epoll_wait(epfd, events, max, 0);
    if (r != 0 || timeout == 0)
        return epoll_at_once(PP_CALL_epoll_wait, r);
    return epoll_parked(PP_CALL_epoll_wait, epfd, events, max, epoll_deadline(timeout), NULL);
}

int pp_epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
    int r = epoll_once(epfd, events, max, 0, mask);
    if (r != 0 || timeout == 0)
        return epoll_at_once(PP_CALL_epoll_pwait, r);
    return epoll_parked(PP_CALL_epoll_pwait, epfd, events, max, epoll_deadline(timeout), mask);
}

int pp_epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                    const sigset_t *mask)
{
    struct timespec t;
    if (timeout && (pp_copy_in(&t, timeout, sizeof t) < 0 || !is_valid(&t)))
        return real_epoll_pwait2(epfd, events, max, timeout, mask);
    int r = epoll_once(epfd, events, max, 0, mask);
    if (r != 0 || (timeout && t.tv_sec == 0 && t.tv_nsec == 0))
        return epoll_at_once(PP_CALL_epoll_pwait2, r);
    int64_t deadline = timeout ? pp_after(pp_nanoseconds(t.tv_sec, t.tv_nsec)) : PP_FOREVER;
    return epoll_parked(PP_CALL_epoll_pwait2, epfd, events, max, deadline, mask);
}
