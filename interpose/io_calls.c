/* io_calls.c: read, write, recv, send and their relatives: try, ask, park, retry.
 *
 * exports.c calls pp_x while the gate is open; the parks go through waits.c. Each call becomes one
 * `struct transfer`: what is moved, which way of not blocking its fd has, and how far it has got.
 * Invariants: no attempt ever blocks; the caller's memory is read only after the kernel has read it
 * (a bad pointer is EFAULT, not a crash); after partial progress a call returns what it moved, and
 * leaves an error for the next call, as the kernel does.
 */
#include "interpose.h"

#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008
#endif

#define MOST ((size_t)0x7ffff000) /* the kernel moves no more than this in one call */

/* How an fd can be tried without blocking. */
enum way {
    NEVER_BLOCKS, /* regular files, directories, disks: the plain call */
    SOCKET,       /* MSG_DONTWAIT */
    NOWAIT,       /* preadv2, pwritev2 with RWF_NOWAIT: pipes, eventfd, timerfd, most devices */
    POLLED,       /* neither: FIFOs, ttys, inotify: poll first */
};

/* One call on its way, on the stack while it is parked: so no word more than needed. A caller's single
 * buffer is the iovec `one`. */
struct transfer {
    int call;
    int fd;
    int flags;          /* MSG_* of the socket calls */
    mode_t mode;        /* of the file calls: the kind of file */
    socklen_t addr_len; /* sendto's */
    unsigned char way;  /* enum way */
    bool writing;
    struct sockaddr *addr; /* of recvfrom and sendto, or NULL */
    struct msghdr *msg;    /* of recvmsg and sendmsg, or NULL */
    union {
        socklen_t *addr_room; /* recvfrom's */
        size_t control_room;  /* recvmsg's msg_controllen as it came, for MSG_WAITALL */
    };
    const struct iovec *iov; /* what is still to be moved; the caller's own until something was */
    size_t iov_count;
    struct iovec one;
    struct iovec *rest; /* the heap block that `iov` lies in once something was moved; or NULL */
    size_t done;        /* bytes moved by earlier attempts */
};

/* ---- one attempt ---------------------------------------------------------------------------- */

/* recvfrom and sendto for single buffers: their address lengths are not msghdr's. */
static ssize_t attempt_single(struct transfer *t, int flags)
{
    const struct iovec *v = t->iov;
    if (t->writing)
        return real_sendto(t->fd, v->iov_base, v->iov_len, flags, t->addr, t->addr_len);
    return real_recvfrom(t->fd, v->iov_base, v->iov_len, flags, t->done ? NULL : t->addr,
                         t->done ? NULL : t->addr_room);
}

static ssize_t attempt_nowait(struct transfer *t)
{
    return t->writing ? real_pwritev2(t->fd, t->iov, (int)t->iov_count, -1, RWF_NOWAIT)
                      : real_preadv2(t->fd, t->iov, (int)t->iov_count, -1, RWF_NOWAIT);
}

static bool nowait_unsupported(ssize_t r)
{
    return r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS);
}

/* One buffer of the vector: the kernel may not have looked at it yet, so a bad pointer is -1/EFAULT. */
static int buffer_at(const struct transfer *t, size_t i, struct iovec *v)
{
    if (t->iov != &t->one && !t->rest)
        return pp_copy_in(v, &t->iov[i], sizeof *v);
    *v = t->iov[i];
    return 0;
}

/* How many bytes the call is about, where less than 8 (what an eventfd or timerfd wants at least); else 8.
 * -1: a bad pointer. */
static int asked_for(const struct transfer *t)
{
    size_t total = 0;
    for (size_t i = 0; i < t->iov_count && total < 8; i++) {
        struct iovec v;
        if (buffer_at(t, i, &v) < 0)
            return -1;
        total += v.iov_len < 8 ? v.iov_len : 8;
    }
    return total < 8 ? (int)total : 8;
}

static ssize_t attempt_file(struct transfer *t)
{
    return t->writing ? real_writev(t->fd, t->iov, (int)t->iov_count)
                      : real_readv(t->fd, t->iov, (int)t->iov_count);
}

/* readv and writev on a socket (not quite recvmsg and sendmsg: an empty vector takes no datagram),
 * and their later pieces. */
static ssize_t attempt_vector(struct transfer *t, int flags)
{
    if (t->done == 0) {
        ssize_t r = attempt_nowait(t);
        if (!nowait_unsupported(r))
            return r;
        if (asked_for(t) == 0)
            return attempt_file(t);
    }
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)t->iov, .msg_iovlen = t->iov_count};
    return t->writing ? real_sendmsg(t->fd, &m, flags) : real_recvmsg(t->fd, &m, flags);
}

/* recvmsg and sendmsg. A later piece of a sendmsg carries no control data: it went with the first. Of
 * a recvmsg it may bring the first control data, or more flags. */
static ssize_t attempt_message(struct transfer *t, int flags)
{
    if (t->done == 0)
        return t->writing ? real_sendmsg(t->fd, t->msg, flags) : real_recvmsg(t->fd, t->msg, flags);
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)t->iov, .msg_iovlen = t->iov_count};
    if (t->writing) {
        m.msg_name = t->msg->msg_name;
        m.msg_namelen = t->msg->msg_namelen;
        return real_sendmsg(t->fd, &m, flags);
    }
    m.msg_control = t->msg->msg_control;
    m.msg_controllen = t->control_room;
    ssize_t r = real_recvmsg(t->fd, &m, flags);
    if (r >= 0) {
        t->msg->msg_controllen = m.msg_controllen;
        t->msg->msg_flags |= m.msg_flags;
    }
    return r;
}

static ssize_t attempt_socket(struct transfer *t, int flags)
{
    if (t->writing && t->done)
        flags |= MSG_NOSIGNAL; /* a stream raises SIGPIPE only where nothing was sent */
    if (t->msg)
        return attempt_message(t, flags);
    return t->iov == &t->one ? attempt_single(t, flags) : attempt_vector(t, flags);
}

/* An eventfd says writable while one more fits: the write of a 1, its usual one, never blocks then. */
static bool adds_one(const struct transfer *t)
{
    struct iovec v;
    uint64_t value;
    return (t->mode & S_IFMT) == 0 && t->iov_count == 1 && buffer_at(t, 0, &v) == 0 &&
           v.iov_len == sizeof value && pp_copy_in(&value, v.iov_base, sizeof value) == 0 &&
           value == 1;
}

static ssize_t attempt_in_an_instant(struct transfer *t)
{
    int flags = pp_instant_begin(t->fd);
    ssize_t r = syscall(t->writing ? SYS_writev : SYS_readv, t->fd, t->iov, t->iov_count);
    if (flags >= 0)
        pp_instant_end(t->fd, flags);
    return r;
}

/* Some calls end at once, ready or not: for no bytes; with a bad pointer; on an fd open for the other
 * direction only; for less than an eventfd or a timerfd takes (but inotify waits for that: these three
 * have no file type). */
static ssize_t attempt_unready(struct transfer *t)
{
    int asked = asked_for(t), flags = pp_flags(t->fd, F_GETFL, 0);
    if (asked <= 0 || flags < 0 || (flags & O_ACCMODE) == (t->writing ? O_RDONLY : O_WRONLY))
        return attempt_file(t);
    if (asked < 8 && (t->mode & S_IFMT) == 0)
        return attempt_in_an_instant(t);
    errno = EAGAIN;
    return -1;
}

/* Poll, then a call that then does not block. A FIFO takes PIPE_BUF bytes once it says writable;
 * others promise less, and get O_NONBLOCK for an instant. */
static ssize_t attempt_polled(struct transfer *t)
{
    struct pollfd p = {.fd = t->fd, .events = t->writing ? POLLOUT : POLLIN};
    if (real_poll(&p, 1, 0) <= 0) /* a signal that comes just now makes it EINTR */
        return attempt_unready(t);
    if (!t->writing)
        return attempt_file(t);
    if (S_ISFIFO(t->mode) && t->iov_count == 1) {
        struct iovec v;
        if (buffer_at(t, 0, &v) < 0)
            return -1;
        return real_write(t->fd, v.iov_base, v.iov_len < PIPE_BUF ? v.iov_len : PIPE_BUF);
    }
    return adds_one(t) ? attempt_file(t) : attempt_in_an_instant(t);
}

/* Never blocks: EAGAIN instead. */
static ssize_t attempt(struct transfer *t)
{
    if (t->way == SOCKET)
        return attempt_socket(t, t->flags | MSG_DONTWAIT);
    if (t->way == NOWAIT) {
        ssize_t r = attempt_nowait(t);
        if (!nowait_unsupported(r))
            return r;
        t->way = POLLED;
    }
    return attempt_polled(t);
}

/* The call as it is, for what is left to move: where the portal cannot park now. */
static ssize_t block(struct transfer *t)
{
    if (t->way == SOCKET && (t->msg || t->iov == &t->one))
        return attempt_socket(t, t->flags);
    return attempt_file(t);
}

/* ---- how much is enough ------------------------------------------------------------------------ */

static int socket_option(int fd, int option)
{
    int value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, option, &value, &len) < 0 ? 0 : value;
}

/* How many bytes a blocking call would still wait for after an attempt that moved n: 0 ends it. */
static size_t low_water_mark(int fd)
{
    if (pp_fact(fd, PP_FACT_RCVLOWAT_1))
        return 1;
    uint64_t key = pp_fact_key(fd);
    int low = socket_option(fd, SO_RCVLOWAT);
    if (low == 1)
        pp_fact_learn(fd, key, PP_FACT_RCVLOWAT_1);
    return (size_t)low;
}

static size_t missing(const struct transfer *t, size_t n)
{
    size_t left = 0;
    for (size_t i = 0; i < t->iov_count; i++)
        left += t->iov[i].iov_len;
    left -= n;
    if (left == 0)
        return 0;
    if (t->writing) {
        bool stream = t->way == SOCKET || S_ISFIFO(t->mode) || (t->way == POLLED && isatty(t->fd));
        return stream ? left : 0;
    }
    if (t->way != SOCKET)
        return 0;
    size_t got = t->done + n, target = got + left;
    if (!(t->flags & MSG_WAITALL)) {
        size_t low = low_water_mark(t->fd);
        target = low < target ? low : target;
    }
    if (got >= target || socket_option(t->fd, SO_TYPE) != SOCK_STREAM)
        return 0;
    if ((t->flags & MSG_PEEK) && socket_option(t->fd, SO_DOMAIN) == AF_UNIX)
        return 0; /* peeks at what there is, whatever was asked */
    return target - got;
}

/* Step over n moved bytes. Only now is the caller's vector copied: most calls never get here. */
static bool advance(struct transfer *t, size_t n)
{
    if (t->iov == &t->one) {
        t->one.iov_base = (char *)t->one.iov_base + n;
        t->one.iov_len -= n;
        t->done += n;
        return true;
    }
    if (!t->rest) {
        t->rest = malloc(t->iov_count * sizeof *t->rest);
        if (!t->rest)
            return false;
        t->iov = memcpy(t->rest, t->iov, t->iov_count * sizeof *t->rest);
    }
    struct iovec *rest = (struct iovec *)(uintptr_t)t->iov;
    t->done += n;
    while (t->iov_count && n >= rest->iov_len) {
        n -= rest->iov_len;
        rest++;
        t->iov_count--;
    }
    if (t->iov_count) {
        rest->iov_base = (char *)rest->iov_base + n;
        rest->iov_len -= n;
    }
    t->iov = rest;
    return true;
}

/* Has the stream come to a point where the kernel would end the call with what it has: an error
 * that belongs to the next call, the out-of-band mark, a message with control data? */
static __attribute__((noinline)) bool ends_here(const struct transfer *t)
{
    if (t->way != SOCKET)
        return false;
    struct pollfd p = {.fd = t->fd, .events = t->writing ? POLLOUT : POLLIN};
    real_poll(&p, 1, 0);
    if (t->writing)
        return p.revents & (POLLERR | POLLHUP);
    int queued = 0, at_mark = 0;
    if ((p.revents & POLLERR) && (ioctl(t->fd, FIONREAD, &queued) < 0 || queued == 0))
        return true;
    if (ioctl(t->fd, SIOCATMARK, &at_mark) == 0 && at_mark)
        return true;
    return t->msg && t->msg->msg_controllen > 0;
}

/* A datagram socket shut down for reading: a blocking call ends with 0, a non-blocking try with EAGAIN. */
static __attribute__((noinline)) bool is_shut(const struct transfer *t)
{
    struct pollfd p = {.fd = t->fd, .events = POLLRDHUP};
    return t->way == SOCKET && !t->writing && real_poll(&p, 1, 0) > 0 && (p.revents & POLLRDHUP);
}

/* TCP asked for no bytes waits for some all the same, but says 0 however the wait ends. */
static __attribute__((noinline)) bool waits_for_nothing(const struct transfer *t)
{
    int saved = errno;
    bool answer = t->way == SOCKET && !t->writing && missing(t, 0) == 0 &&
                  socket_option(t->fd, SO_PROTOCOL) == IPPROTO_TCP;
    errno = saved;
    return answer;
}

/* ---- the loop ----------------------------------------------------------------------------------- */

/* What lies on the stack while a call is parked is copied with it: hence the noinline above and below. */

static ssize_t over(const struct transfer *t, ssize_t r)
{
    int saved = errno;
    free(t->rest);
    errno = saved;
    return t->done ? (ssize_t)t->done + (r > 0 ? r : 0) : r;
}

/* MSG_PEEK for more than is there yet: the fd is readable all the while, so the wait is for *news*
 * of it: a private, edge-triggered epoll. It ends when all is there or nothing more will come. */
static __attribute__((noinline)) ssize_t peek_all(struct transfer *t, ssize_t got, int64_t deadline)
{
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event news = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET};
    struct pp_spin spin = {0};
    enum pp_turn turn = PP_PLAIN;
    if (epfd >= 0 && epoll_ctl(epfd, EPOLL_CTL_ADD, t->fd, &news) == 0) {
        do {
            bool last = real_epoll_wait(epfd, &news, 1, 0) == 1 &&
                        (news.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
            got = attempt(t);
            if (last || got <= 0 || missing(t, (size_t)got) == 0)
                break;
            spin.rounds = 0;
            turn = pp_wait_turn(t->call, epfd, PP_READ, deadline, EAGAIN, &spin);
        } while (turn == PP_AGAIN);
    }
    if (epfd >= 0)
        pp_close(epfd);
    return turn == PP_PLAIN ? block(t) : got;
}

/* Until enough has been moved. */
static ssize_t run(struct transfer *t)
{
    int64_t deadline = PP_UNASKED;
    struct pp_spin spin = {0};
    bool receives = t->way == SOCKET && !t->writing && !(t->flags & ~MSG_NOSIGNAL);
    if (receives && t->one.iov_len && pp_wait_comes_first(t->fd)) {
        /* A request and its answer: the first try has found nothing for a while. */
        pp_first_try(t->fd, true);
        deadline = pp_remembered_patience(t->fd, SO_RCVTIMEO, &spin);
        if (deadline == PP_FOREVER &&
            pp_wait_turn(t->call, t->fd, PP_READ, deadline, EAGAIN, &spin) == PP_FAIL)
            return over(t, -1);
        if (!spin.remembered)
            deadline = PP_UNASKED;
        receives = false;
    }
    for (;;) {
        if (t->done && ends_here(t))
            return over(t, 0);
        ssize_t r = attempt(t);
        if (receives) {
            pp_first_try(t->fd, r < 0 && errno == EAGAIN);
            receives = false;
        }
        if (r > 0 ? missing(t, (size_t)r) == 0 : r == 0 || errno != EAGAIN)
            return over(t, r);
        if (deadline == PP_UNASKED && t->way == SOCKET)
            deadline = pp_remembered_patience(t->fd, t->writing ? SO_SNDTIMEO : SO_RCVTIMEO, &spin);
        else if (deadline == PP_UNASKED)
            deadline = pp_patience(t->fd, 0);
        if (deadline == PP_NOT_AT_ALL) {
            if (r > 0 && t->way == POLLED && advance(t, (size_t)r))
                return over(t, block(t)); /* a FIFO took one piece; the call takes what fits */
            errno = EAGAIN;
            return over(t, r);
        }
        if (r > 0 && (t->flags & MSG_PEEK))
            return peek_all(t, r, deadline);
        if (r > 0) {
            if (!advance(t, (size_t)r))
                return over(t, r);
            spin.rounds = 0;
            if (t->way == POLLED)
                continue; /* a FIFO took one piece: it may take another */
        }
        if (spin.rounds && is_shut(t))
            return over(t, block(t)); /* does not wait */
        if (t->way == NOWAIT && spin.rounds > 6)
            t->way = POLLED; /* a driver whose EAGAIN does not mean what poll means */
        bool remembered = spin.remembered;
        switch (pp_wait_turn(t->call, t->fd, t->writing ? PP_WRITE : PP_READ, deadline, EAGAIN,
                             &spin)) {
        case PP_AGAIN:
            if (remembered && !spin.remembered)
                deadline = PP_UNASKED;
            break;
        case PP_FAIL:
            return over(t, errno != ECANCELED && waits_for_nothing(t) ? 0 : -1);
        case PP_PLAIN:
            return over(t, block(t));
        }
    }
}

/* ---- the file calls --------------------------------------------------------------------------- */

static enum way way_of(int fd, mode_t *mode)
{
    struct stat st;
    uint64_t key = pp_fact_key(fd);
    if (pp_is_stdio(fd) || fstat(fd, &st) < 0)
        return NEVER_BLOCKS;
    *mode = st.st_mode;
    if (S_ISSOCK(st.st_mode)) {
        pp_fact_learn(fd, key, PP_FACT_SOCKET);
        return SOCKET;
    }
    if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode))
        return NEVER_BLOCKS;
    /* /dev/zero, null, full, random: with NOWAIT they may stop short. Only kmsg (11) waits. */
    if (S_ISCHR(st.st_mode) && major(st.st_rdev) == 1 && minor(st.st_rdev) != 11)
        return NEVER_BLOCKS;
    return NOWAIT;
}

static struct iovec *buffer(struct transfer *t, const void *buf, size_t n)
{
    t->one = (struct iovec){.iov_base = (void *)(uintptr_t)buf, .iov_len = n < MOST ? n : MOST};
    t->iov_count = 1;
    return &t->one;
}

/* read and write. A known socket saves the fstat; should the fd have become something else past our
 * hooks, the kernel says so. */
static ssize_t run_single(struct transfer *t, void *buf, size_t n)
{
    t->iov = buffer(t, buf, n);
    t->way = SOCKET;
    if (!pp_is_stdio(t->fd) && pp_fact(t->fd, PP_FACT_SOCKET)) {
        int saved = errno;
        ssize_t r = run(t);
        if (r >= 0 || errno != ENOTSOCK)
            return r;
        errno = saved;
        pp_facts_forget(t->fd);
    }
    t->way = way_of(t->fd, &t->mode);
    if (t->way == NEVER_BLOCKS)
        return t->writing ? real_write(t->fd, buf, n) : real_read(t->fd, buf, n);
    return run(t);
}

ssize_t pp_read(int fd, void *buf, size_t n)
{
    struct transfer t = {.call = PP_CALL_read, .fd = fd};
    return n ? run_single(&t, buf, n) : real_read(fd, buf, n);
}

ssize_t pp_write(int fd, const void *buf, size_t n)
{
    struct transfer t = {.call = PP_CALL_write, .fd = fd, .writing = true};
    return n ? run_single(&t, (void *)(uintptr_t)buf, n) : real_write(fd, buf, n);
}

ssize_t pp_readv(int fd, const struct iovec *iov, int count)
{
    struct transfer t = {.call = PP_CALL_readv, .fd = fd, .iov = iov, .iov_count = (size_t)count};
    t.way = count > 0 && count <= IOV_MAX ? way_of(fd, &t.mode) : NEVER_BLOCKS;
    if (t.way == NEVER_BLOCKS)
        return real_readv(fd, iov, count);
    return run(&t);
}

ssize_t pp_writev(int fd, const struct iovec *iov, int count)
{
    struct transfer t = {
        .call = PP_CALL_writev, .fd = fd, .writing = true, .iov = iov, .iov_count = (size_t)count};
    t.way = count > 0 && count <= IOV_MAX ? way_of(fd, &t.mode) : NEVER_BLOCKS;
    if (t.way == NEVER_BLOCKS)
        return real_writev(fd, iov, count);
    return run(&t);
}

/* With an offset, or flags, these are about files that never make one wait. */
ssize_t pp_preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct transfer t = {.call = PP_CALL_preadv2, .fd = fd, .iov = iov, .iov_count = (size_t)count};
    t.way = count > 0 && count <= IOV_MAX && offset == -1 && !flags ? way_of(fd, &t.mode)
                                                                    : NEVER_BLOCKS;
    if (t.way == NEVER_BLOCKS)
        return real_preadv2(fd, iov, count, offset, flags);
    return run(&t);
}

ssize_t pp_pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct transfer t = {.call = PP_CALL_pwritev2,
                         .fd = fd,
                         .writing = true,
                         .iov = iov,
                         .iov_count = (size_t)count};
    t.way = count > 0 && count <= IOV_MAX && offset == -1 && !flags ? way_of(fd, &t.mode)
                                                                    : NEVER_BLOCKS;
    if (t.way == NEVER_BLOCKS)
        return real_pwritev2(fd, iov, count, offset, flags);
    return run(&t);
}

/* ---- the socket calls ---------------------------------------------------------------------------- */

/* These never wait, or are the caller's own try: libc's answer is the answer. */
#define RECV_AT_ONCE (MSG_DONTWAIT | MSG_ERRQUEUE | MSG_OOB)
#define SEND_AT_ONCE (MSG_DONTWAIT | MSG_FASTOPEN)

static ssize_t receive(int call, int fd, void *buf, size_t n, int flags, struct sockaddr *addr,
                       socklen_t *room)
{
    struct transfer t = {
        .call = call, .fd = fd, .way = SOCKET, .flags = flags, .addr = addr, .addr_room = room};
    t.iov = buffer(&t, buf, n);
    return run(&t);
}

static ssize_t transmit(int call, int fd, const void *buf, size_t n, int flags,
                        const struct sockaddr *addr, socklen_t len)
{
    struct transfer t = {.call = call, .fd = fd, .writing = true, .way = SOCKET, .flags = flags};
    t.addr = (struct sockaddr *)(uintptr_t)addr;
    t.addr_len = len;
    t.iov = buffer(&t, buf, n);
    return run(&t);
}

ssize_t pp_recv(int fd, void *buf, size_t n, int flags)
{
    if (pp_is_stdio(fd) || (flags & RECV_AT_ONCE))
        return real_recv(fd, buf, n, flags);
    return receive(PP_CALL_recv, fd, buf, n, flags, NULL, NULL);
}

ssize_t pp_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr, socklen_t *len)
{
    if (pp_is_stdio(fd) || (flags & RECV_AT_ONCE))
        return real_recvfrom(fd, buf, n, flags, addr, len);
    return receive(PP_CALL_recvfrom, fd, buf, n, flags, addr, len);
}

ssize_t pp_send(int fd, const void *buf, size_t n, int flags)
{
    if (pp_is_stdio(fd) || (flags & SEND_AT_ONCE))
        return real_send(fd, buf, n, flags);
    return transmit(PP_CALL_send, fd, buf, n, flags, NULL, 0);
}

ssize_t pp_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr,
                  socklen_t len)
{
    if (pp_is_stdio(fd) || (flags & SEND_AT_ONCE))
        return real_sendto(fd, buf, n, flags, addr, len);
    return transmit(PP_CALL_sendto, fd, buf, n, flags, addr, len);
}

/* The header is copied in with care; the vector is looked at only once the kernel has. */
static ssize_t receive_message(int call, int fd, struct msghdr *msg, int flags)
{
    struct msghdr seen;
    if (pp_is_stdio(fd) || (flags & RECV_AT_ONCE) || pp_copy_in(&seen, msg, sizeof seen) < 0)
        return real_recvmsg(fd, msg, flags);
    struct transfer t = {.call = call,
                         .fd = fd,
                         .way = SOCKET,
                         .flags = flags,
                         .msg = msg,
                         .control_room = seen.msg_controllen,
                         .iov = seen.msg_iov,
                         .iov_count = seen.msg_iovlen};
    return run(&t);
}

ssize_t pp_recvmsg(int fd, struct msghdr *msg, int flags)
{
    return receive_message(PP_CALL_recvmsg, fd, msg, flags);
}

static ssize_t send_message(int call, int fd, const struct msghdr *msg, int flags)
{
    struct msghdr seen;
    if (pp_is_stdio(fd) || (flags & SEND_AT_ONCE) || pp_copy_in(&seen, msg, sizeof seen) < 0)
        return real_sendmsg(fd, msg, flags);
    struct transfer t = {.call = call,
                         .fd = fd,
                         .writing = true,
                         .way = SOCKET,
                         .flags = flags,
                         .msg = (struct msghdr *)(uintptr_t)msg,
                         .iov = seen.msg_iov,
                         .iov_count = seen.msg_iovlen};
    return run(&t);
}

ssize_t pp_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    return send_message(PP_CALL_sendmsg, fd, msg, flags);
}

/* ---- many messages in one call --------------------------------------------------------------- */

static bool has_error(int fd)
{
    struct pollfd p = {.fd = fd};
    return real_poll(&p, 1, 0) > 0 && (p.revents & POLLERR);
}

/* What is there at once, by libc's own (which reports an older error first), then one message after
 * the other; an error after the first belongs to the next call. As in the kernel the timeout is
 * looked at after each message, and ends no wait. */
static unsigned receive_messages(int fd, struct mmsghdr *vec, unsigned n, int flags, bool timed,
                                 int64_t deadline)
{
    int each = flags & ~MSG_WAITFORONE;
    unsigned got = 0;
    if (!(flags & MSG_WAITALL)) {
        int r = real_recvmmsg(fd, vec, timed ? 1 : n, each | MSG_DONTWAIT, NULL);
        if (r < 0 && errno != EAGAIN)
            return 0;
        got = r > 0 ? (unsigned)r : 0;
    }
    while (got < n && !(got && timed && pp_now() >= deadline)) {
        struct mmsghdr probe;
        if (got && has_error(fd))
            break;
        if (got && (flags & MSG_WAITFORONE)) { /* no more waiting, but what is there */
            int r = real_recvmmsg(fd, vec + got, n - got, each | MSG_DONTWAIT, NULL);
            return got + (r > 0 ? (unsigned)r : 0);
        }
        if (pp_copy_in(&probe, &vec[got], sizeof probe) < 0)
            break;
        ssize_t r = receive_message(PP_CALL_recvmmsg, fd, &vec[got].msg_hdr, each);
        if (r < 0)
            break;
        vec[got++].msg_len = (unsigned)r;
    }
    return got;
}

int pp_recvmmsg(int fd, struct mmsghdr *vec, unsigned n, int flags, struct timespec *timeout)
{
    struct timespec limit;
    if (pp_is_stdio(fd) || n == 0 || (flags & RECV_AT_ONCE) ||
        (timeout && (pp_copy_in(&limit, timeout, sizeof limit) < 0 || limit.tv_sec < 0 ||
                     limit.tv_nsec < 0 || limit.tv_nsec >= 1000000000)))
        return real_recvmmsg(fd, vec, n, flags, timeout);
    int64_t deadline = timeout ? pp_after(pp_nanoseconds(limit.tv_sec, limit.tv_nsec)) : PP_FOREVER;
    unsigned got = receive_messages(fd, vec, n, flags, timeout, deadline);
    if (timeout && got) {
        int64_t left = deadline - pp_now();
        if (left < 0)
            left = 0;
        timeout->tv_sec = left / 1000000000;
        timeout->tv_nsec = left % 1000000000;
    }
    return got ? (int)got : -1;
}

/* Datagrams as many at a time as fit; a stream's messages must each be sent whole. */
int pp_sendmmsg(int fd, struct mmsghdr *vec, unsigned n, int flags)
{
    if (pp_is_stdio(fd) || n == 0 || (flags & SEND_AT_ONCE))
        return real_sendmmsg(fd, vec, n, flags);
    bool stream = socket_option(fd, SO_TYPE) == SOCK_STREAM;
    unsigned sent = 0;
    if (n > IOV_MAX)
        n = IOV_MAX;
    while (sent < n) {
        struct mmsghdr probe;
        int r = -1;
        if (!stream)
            r = real_sendmmsg(fd, vec + sent, n - sent, flags | MSG_DONTWAIT);
        if (r > 0) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            sent += (unsigned)r;
            if (sent < n && real_poll(&p, 1, 0) > 0)
                break; /* not for want of room: an error, which libc's would keep to itself */
            continue;
        }
        if (!stream && errno != EAGAIN)
            break;
        if (pp_copy_in(&probe, &vec[sent], sizeof probe) < 0) {
            errno = EFAULT;
            break;
        }
        ssize_t one = send_message(PP_CALL_sendmmsg, fd, &vec[sent].msg_hdr, flags);
        if (one < 0)
            break;
        vec[sent++].msg_len = (unsigned)one;
    }
    return sent ? (int)sent : -1;
}
