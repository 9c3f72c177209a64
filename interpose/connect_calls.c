/* connect_calls.c: connect, accept and accept4, which have no flag for "do not block".
 *
 * exports.c calls pp_x while the gate is open. The fd gets O_NONBLOCK for an instant (waits.c), in
 * which the call is a raw system call: no cancellation point, nothing that could leave it set.
 * Invariant: the caller's fd is blocking again before anybody parks.
 */
#include "interpose.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

/* ---- connect ------------------------------------------------------------------------------------ */

struct connect_job {
    int fd; /* our own duplicate: the caller may close its fd once it has given up */
    int result;
    int error;
    socklen_t len;
    struct sockaddr_storage addr;
};

static void run_connect(void *arg)
{
    struct connect_job *job = arg;
    job->result = real_connect(job->fd, (struct sockaddr *)&job->addr, job->len);
    job->error = errno;
}

static void drop_connect(void *arg)
{
    struct connect_job *job = arg;
    real_close(job->fd);
    free(job);
}

/* A unix socket whose listener's backlog is full: nothing tells when there is room, so the blocking
 * call runs on a worker. */
static int connect_on_worker(int fd, const struct sockaddr *addr, socklen_t len)
{
    struct connect_job *job = len <= sizeof job->addr ? calloc(1, sizeof *job) : NULL;
    if (!job)
        return real_connect(fd, addr, len);
    memcpy(&job->addr, addr, len);
    job->len = len;
    job->fd = pp_flags(fd, F_DUPFD_CLOEXEC, 3);
    enum pp_turn turn = PP_PLAIN;
    if (job->fd >= 0)
        turn = pp_turn_of(pp_offload(PP_CALL_connect, run_connect, drop_connect, job), ECANCELED);
    if (turn == PP_FAIL)
        return -1;
    int result = job->result, error = job->error;
    if (job->fd >= 0)
        pp_close(job->fd);
    free(job);
    if (turn == PP_PLAIN)
        return real_connect(fd, addr, len);
    errno = error;
    return result;
}

/* The call is made again after the wait, rather than asking for SO_ERROR: only that gives the socket
 * the state a blocking connect leaves it in. */
int pp_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    if (pp_is_stdio(fd))
        return real_connect(fd, addr, len);
    int pending = 0; /* EINPROGRESS or EALREADY: what a timeout is reported as */
    int64_t deadline = PP_UNASKED;
    struct pp_spin spin = {0};
    for (;;) {
        int flags = pp_instant_begin(fd);
        if (flags < 0)
            return real_connect(fd, addr, len); /* non-blocking already, or no fd */
        int r = (int)syscall(SYS_connect, fd, addr, len);
        pp_instant_end(fd, flags);
        if (r == 0 || (pending && errno == EISCONN))
            return 0;
        if (errno == EAGAIN)
            return connect_on_worker(fd, addr, len);
        if (errno != EINPROGRESS && errno != EALREADY)
            return -1;
        if (!pending)
            pending = errno;
        if (deadline == PP_UNASKED)
            deadline = pp_patience(fd, SO_SNDTIMEO);
        switch (pp_wait_turn(PP_CALL_connect, fd, PP_WRITE, deadline, pending, &spin)) {
        case PP_AGAIN:
            break;
        case PP_FAIL:
            return -1;
        case PP_PLAIN:
            return real_connect(fd, addr, len);
        }
    }
}

/* ---- accept --------------------------------------------------------------------------------------- */

static bool is_listening(int fd)
{
    int value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) == 0 && value;
}

/* -1/EAGAIN where there is no connection, or where another took it since poll said so. */
static int accept_now(int fd, struct sockaddr *addr, socklen_t *len, int accept_flags)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (real_poll(&p, 1, 0) == 0) {
        errno = EAGAIN;
        return -1;
    }
    int flags = pp_instant_begin(fd);
    int r = (int)syscall(SYS_accept4, fd, addr, len, accept_flags);
    if (flags >= 0)
        pp_instant_end(fd, flags);
    return r;
}

/* Patience is asked for after each failure: an O_NONBLOCK seen once may be an instant of another
 * process that has the same listening socket. */
static int accept_parked(int call, int fd, struct sockaddr *addr, socklen_t *len, int accept_flags)
{
    int64_t deadline = PP_UNASKED;
    struct pp_spin spin = {0};
    for (;;) {
        int r = accept_now(fd, addr, len, accept_flags);
        if (r >= 0 || errno != EAGAIN)
            return r;
        if (deadline == PP_UNASKED) {
            if (!is_listening(fd))
                return real_accept4(fd, addr, len,
                                    accept_flags); /* fails at once, with the right errno */
            deadline = pp_remembered_patience(fd, SO_RCVTIMEO, &spin);
            if (deadline == PP_NOT_AT_ALL)
                deadline = pp_patience(fd, SO_RCVTIMEO);
            if (deadline == PP_NOT_AT_ALL) {
                errno = EAGAIN;
                return -1;
            }
        }
        bool remembered = spin.remembered;
        switch (pp_wait_turn(call, fd, PP_READ, deadline, EAGAIN, &spin)) {
        case PP_AGAIN:
            if (remembered && !spin.remembered)
                deadline = PP_UNASKED;
            break;
        case PP_FAIL:
            return -1;
        case PP_PLAIN:
            return real_accept4(fd, addr, len, accept_flags);
        }
    }
}

int pp_accept(int fd, struct sockaddr *addr, socklen_t *len)
{
    if (pp_is_stdio(fd))
        return real_accept(fd, addr, len);
    return accept_parked(PP_CALL_accept, fd, addr, len, 0);
}

int pp_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    if (pp_is_stdio(fd) || (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)))
        return real_accept4(fd, addr, len, flags);
    return accept_parked(PP_CALL_accept4, fd, addr, len, flags);
}
