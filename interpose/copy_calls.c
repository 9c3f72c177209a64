/* copy_calls.c: sendfile and splice, which move bytes between two fds without the caller's memory.
 *
 * exports.c calls pp_x while the gate is open. What may make them wait is a socket or a pipe; it
 * gets O_NONBLOCK for an instant (waits.c), and bounded pieces are moved in it.
 * Invariant: a socket is sent all of it, unless a signal, an error or the end stops it.
 */
#include "interpose.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define PIECE ((size_t)1 << 20) /* moved while holding the instant */

static mode_t kind_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) < 0 ? 0 : st.st_mode & S_IFMT;
}

/* After some progress: has the receiver gone? That error, and its SIGPIPE, are the next call's. */
static bool receiver_gone(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    real_poll(&p, 1, 0);
    return p.revents & (POLLERR | POLLHUP);
}

ssize_t pp_sendfile(int out, int in, off_t *offset, size_t n)
{
    mode_t to = kind_of(out);
    if (pp_is_stdio(out) || kind_of(in) != S_IFREG || (to != S_IFSOCK && to != S_IFIFO))
        return real_sendfile(out, in, offset, n);
    size_t done = 0;
    int64_t deadline = PP_UNASKED;
    struct pp_spin spin = {0};
    for (;;) {
        int flags = pp_instant_begin(out);
        if (flags < 0)
            return done ? (ssize_t)done : real_sendfile(out, in, offset, n);
        size_t piece = n - done < PIECE ? n - done : PIECE;
        ssize_t r = syscall(SYS_sendfile, out, in, offset, piece);
        pp_instant_end(out, flags);
        if (r > 0) {
            done += (size_t)r;
            spin.rounds = 0;
            if (done == n || to == S_IFIFO) /* a pipe takes what fits, once */
                return (ssize_t)done;
            continue;
        }
        if (r == 0 || errno != EAGAIN)
            return done ? (ssize_t)done : r;
        if (deadline == PP_UNASKED)
            deadline = pp_patience(out, to == S_IFSOCK ? SO_SNDTIMEO : 0);
        enum pp_turn turn = pp_wait_turn(PP_CALL_sendfile, out, PP_WRITE, deadline, EAGAIN, &spin);
        if (turn == PP_FAIL || (turn == PP_AGAIN && done && receiver_gone(out)))
            return done ? (ssize_t)done : -1;
        if (turn == PP_PLAIN) {
            r = real_sendfile(out, in, offset, n - done);
            return done ? (ssize_t)done + (r > 0 ? r : 0) : r;
        }
    }
}

/* One piece, never blocking. SPLICE_F_NONBLOCK is about the pipe only; a socket needs an instant. */
static ssize_t splice_once(int in, off64_t *in_at, int out, off64_t *out_at, size_t n,
                           unsigned flags, int socket)
{
    int saved = socket < 0 ? -1 : pp_instant_begin(socket);
    ssize_t r = syscall(SYS_splice, in, in_at, out, out_at, n < PIECE ? n : PIECE,
                        flags | SPLICE_F_NONBLOCK);
    if (saved >= 0)
        pp_instant_end(socket, saved);
    return r;
}

static bool is_ready(int fd, short event)
{
    struct pollfd p = {.fd = fd, .events = event};
    return real_poll(&p, 1, 0) != 0;
}

/* A blocking splice returns once something was moved and the source has no more for now; from a pipe
 * it moves all the pipe holds, however often the target fills up meanwhile. */
ssize_t pp_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags)
{
    mode_t from = kind_of(in), to = kind_of(out);
    bool can_wait = from == S_IFIFO || from == S_IFSOCK || to == S_IFIFO || to == S_IFSOCK;
    if (pp_is_stdio(in) || pp_is_stdio(out) || !can_wait || n == 0 || (flags & SPLICE_F_NONBLOCK))
        return real_splice(in, in_at, out, out_at, n, flags);
    int socket = from == S_IFSOCK ? in : to == S_IFSOCK ? out : -1;
    size_t done = 0;
    struct pp_spin spin = {0};
    int64_t deadline = PP_UNASKED;
    for (;;) {
        ssize_t r = splice_once(in, in_at, out, out_at, n - done, flags, socket);
        if (r > 0) {
            int more = 0;
            done += (size_t)r;
            spin.rounds = 0;
            if (done == n || from != S_IFIFO || ioctl(in, FIONREAD, &more) < 0 || more == 0)
                return (ssize_t)done;
            continue;
        }
        if (r == 0 || errno != EAGAIN)
            return done ? (ssize_t)done : r;
        int blocked = is_ready(in, POLLIN) ? out : in;
        unsigned event = blocked == out ? PP_WRITE : PP_READ;
        if (pp_is_nonblocking(blocked)) {
            errno = EAGAIN;
            return done ? (ssize_t)done : -1;
        }
        if (deadline == PP_UNASKED && blocked == socket)
            deadline = pp_patience(socket, event == PP_READ ? SO_RCVTIMEO : SO_SNDTIMEO);
        enum pp_turn turn = pp_wait_turn(PP_CALL_splice, blocked, event,
                                         blocked == socket ? deadline : PP_FOREVER, EAGAIN, &spin);
        if (turn == PP_FAIL || (turn == PP_AGAIN && done && receiver_gone(out)))
            return done ? (ssize_t)done : -1;
        if (turn == PP_PLAIN) {
            r = real_splice(in, in_at, out, out_at, n - done, flags);
            return done ? (ssize_t)done + (r > 0 ? r : 0) : r;
        }
    }
}
