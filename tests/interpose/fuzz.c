/* fuzz.c: random programs for the differential test: FUZZ=first,count fuzz [NAME...].
 *
 * Linked with scenarios.c, it has one scenario a seed: a random sequence of calls on the two ends of
 * a random kind of fd, in one process. Whatever would wait for ever is ended by a timer signal, so
 * interrupted calls are part of it.
 * Invariant: a program is a function of its seed, and its transcript of the program: sizes stay below
 * what would bring the kernel's buffer sizes and timers in, and every wait has one way to end.
 */
#include "scenarios.h"

#include <sys/sendfile.h>

static uint64_t state;

/* splitmix64 */
static unsigned random_below(unsigned n)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (unsigned)((z ^ (z >> 31)) >> 11) % n;
}

static bool chance(unsigned percent)
{
    return random_below(100) < percent;
}

static int ends[2]; /* -1 once closed */
static int kind_now;
static size_t written; /* so far, in total: bounded */
static char out[8192], in[8192];

static bool is_inet(void)
{
    return kind_now == TCP || kind_now == UDP;
}

/* What is sent over loopback arrives a moment later. */
static void settle(void)
{
    if (is_inet())
        pause_ms(2);
}

static void timer(int ms)
{
    struct itimerval t = {.it_value = {0, ms * 1000}, .it_interval = {0, ms * 1000}};
    setitimer(ITIMER_REAL, &t, NULL);
}

/* A call that may wait: its fd's timeout ends it, or else the timer: never a race of the two. */
enum { READING, WRITING };
static bool timed[2][2]; /* by end, by direction */
#define WAITS(fd, direction, call)                           \
    ({                                                       \
        timer(timed[(fd) == ends[1]][direction] ? 900 : 60); \
        long w_ = SAY(call);                                 \
        timer(0);                                            \
        w_;                                                  \
    })

static unsigned size(void)
{
    static const unsigned sizes[] = {0, 1, 2, 7, 100, 1000, 4096, 5000};
    return sizes[random_below(8)];
}

static int end(void)
{
    return ends[random_below(2)];
}

static int flags(void)
{
    static const int some[] = {
        0,        0,           0,         MSG_DONTWAIT,          MSG_NOSIGNAL,
        MSG_PEEK, MSG_WAITALL, MSG_TRUNC, MSG_PEEK | MSG_WAITALL};
    return some[random_below(9)];
}

static int split(struct iovec *iov, char *base, unsigned n)
{
    unsigned first = n ? random_below(n + 1) : 0;
    iov[0] = (struct iovec){base, first};
    iov[1] = (struct iovec){base + first, 0};
    iov[2] = (struct iovec){base + first, n - first};
    return 3;
}

static void say_got(long n)
{
    say_bytes("got", in, n > 0 ? (size_t)(n < (long)sizeof in ? n : (long)sizeof in) : 0);
}

/* ---- steps -------------------------------------------------------------------------------------- */

static void step_write(void)
{
    unsigned n = size(), how = random_below(6);
    int fd = end();
    struct iovec iov[3];
    if (written + n > (is_inet() ? 20000u : 400000u))
        return;
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 3};
    split(iov, out, n);
    long r = 0;
    say("write %u to %d", n, fd == ends[1]);
    if (how == 0)
        r = WAITS(fd, WRITING, write(fd, out, n));
    else if (how == 1)
        r = WAITS(fd, WRITING, writev(fd, iov, 3));
    else if (how == 2)
        r = WAITS(fd, WRITING, send(fd, out, n, chance(30) ? MSG_DONTWAIT : 0));
    else if (how == 3)
        r = WAITS(fd, WRITING, sendto(fd, out, n, chance(30) ? MSG_NOSIGNAL : 0, NULL, 0));
    else if (how == 4)
        r = WAITS(fd, WRITING, sendmsg(fd, &m, chance(30) ? MSG_DONTWAIT : 0));
    else
        r = WAITS(fd, WRITING, pwritev2(fd, iov, 3, -1, 0));
    if (r > 0)
        written += (size_t)r;
    settle();
}

static void step_read(void)
{
    unsigned n = size(), how = random_below(6);
    int fd = end(), f = flags();
    struct iovec iov[3];
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 3};
    split(iov, in, n);
    memset(in, 0, sizeof in);
    say("read %u from %d, flags %x", n, fd == ends[1], f);
    if (how == 0) {
        say_got(WAITS(fd, READING, read(fd, in, n)));
    } else if (how == 1) {
        say_got(WAITS(fd, READING, readv(fd, iov, 3)));
    } else if (how == 2) {
        say_got(WAITS(fd, READING, recv(fd, in, n, f)));
    } else if (how == 3) {
        say_got(WAITS(fd, READING, recvfrom(fd, in, n, f, NULL, NULL)));
    } else if (how == 4) {
        say_got(WAITS(fd, READING, recvmsg(fd, &m, f)));
        say("flags %x", m.msg_flags);
    } else {
        say_got(WAITS(fd, READING, preadv2(fd, iov, 3, -1, 0)));
    }
    settle(); /* TCP tells the other end of its room */
}

static void step_poll(void)
{
    static const short events[] = {POLLIN, POLLOUT,   POLLIN | POLLOUT,  POLLPRI,
                                   0,      POLLRDHUP, POLLIN | POLLRDHUP};
    struct pollfd p[2] = {{ends[0], events[random_below(7)], 0},
                          {ends[1], events[random_below(7)], 0}};
    int timeout = chance(50) ? 0 : 2;
    struct timespec t = {0, 2000000};
    if (chance(70))
        SAY(poll(p, 2, timeout));
    else
        SAY(ppoll(p, 2, &t, NULL));
    say("revents %x %x", p[0].revents, p[1].revents);
}

static void step_select(void)
{
    fd_set sets[3];
    int top = ends[0] > ends[1] ? ends[0] : ends[1];
    struct timeval t = {0, chance(50) ? 0 : 2000};
    for (int s = 0; s < 3; s++) {
        FD_ZERO(&sets[s]);
        for (int e = 0; e < 2; e++)
            if (ends[e] >= 0 && chance(40))
                FD_SET(ends[e], &sets[s]);
    }
    SAY(select(top + 1, &sets[0], &sets[1], chance(30) ? &sets[2] : NULL, &t));
    for (int e = 0; e < 2; e++)
        if (ends[e] >= 0)
            say("set %d %d", FD_ISSET(ends[e], &sets[0]) != 0, FD_ISSET(ends[e], &sets[1]) != 0);
}

static void step_epoll(void)
{
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events =
                                EPOLLIN | (chance(30) ? EPOLLOUT : 0) | (chance(30) ? EPOLLET : 0)},
                       got[2];
    for (int i = 0; i < 2; i++) {
        e.data.u64 = (uint64_t)i;
        if (ends[i] >= 0)
            epoll_ctl(epfd, EPOLL_CTL_ADD, ends[i], &e);
    }
    long n = SAY(epoll_wait(epfd, got, 2, chance(50) ? 0 : 2));
    unsigned long sum = 0;
    for (long i = 0; i < n; i++)
        sum += got[i].events * (got[i].data.u64 + 1);
    say("events %lx", sum);
    close(epfd);
}

static void step_setting(void)
{
    int fd = end(), low = (int)size() + 1;
    switch (random_below(6)) {
    case 0:
        SAY(fcntl(fd, F_SETFL, chance(50) ? O_NONBLOCK : 0));
        break;
    case 1:
    case 2:
        if (is_socket_kind(kind_now) && fd >= 0) {
            int direction = chance(70) ? READING : WRITING, ms = chance(70) ? 3 : 0;
            set_timeout(fd, direction == READING ? SO_RCVTIMEO : SO_SNDTIMEO, ms);
            timed[fd == ends[1]][direction] = ms > 0;
        }
        break;
    case 3:
        if (is_socket_kind(kind_now) && kind_now != TCP)
            SAY(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
        break;
    case 4:
        say("nonblocking %d %d", fcntl(ends[0], F_GETFL) & O_NONBLOCK,
            fcntl(ends[1], F_GETFL) & O_NONBLOCK);
        break;
    case 5: {
        int copy = dup(fd);
        if (fd >= 0)
            SAY(dup2(copy, fd) == fd);
        close(copy);
    }
    }
}

static void step_end(void)
{
    int e = (int)random_below(2);
    static const int hows[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
    if (chance(50) && is_socket_kind(kind_now)) {
        SAY(shutdown(ends[e], hows[random_below(3)]));
    } else if (chance(30)) {
        say("close %d", e);
        SAY(close(ends[e]));
        ends[e] = -1;
    }
    settle();
}

static void step_other(void)
{
    struct mmsghdr vec[2] = {{{0}, 0}};
    struct iovec iov[2] = {{in, 10}, {in + 10, 10}};
    for (int i = 0; i < 2; i++)
        vec[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    struct timespec t = {0, 100000};
    off_t at = 0;
    int queued = 0, fd = end();
    switch (random_below(5)) {
    case 0:
        SAY(nanosleep(&t, NULL));
        break;
    case 1:
        WAITS(fd, READING, recvmmsg(fd, vec, 2, chance(50) ? MSG_DONTWAIT : MSG_WAITFORONE, NULL));
        say("lengths %u %u", vec[0].msg_len, vec[1].msg_len);
        break;
    case 2:
        WAITS(fd, WRITING, sendmmsg(fd, vec, 2, 0));
        settle();
        break;
    case 3: {
        int file = memfd_create("m", MFD_CLOEXEC);
        write(file, out, 300);
        WAITS(fd, WRITING, sendfile(fd, file, &at, 400));
        say("at %ld", (long)at);
        close(file);
        settle();
        break;
    }
    case 4:
        SAY(ioctl(fd, FIONREAD, &queued));
        say("queued %d", queued);
    }
}

/* Not counted: on a busy machine it may also come while nothing waits. */
static void alarmed(int signo)
{
    (void)signo;
}

static void program(int seed)
{
    static const struct sigaction alarm_action = {.sa_handler = alarmed};
    static const int kinds[] = {PIPE, FIFO, UNIX_STREAM, UNIX_DGRAM, UNIX_SEQPACKET, TCP, UDP};
    state = (uint64_t)seed;
    kind_now = kinds[random_below(7)];
    say("%s", pair_names[kind_now]);
    make_pair(kind_now, ends);
    MUST(sigaction(SIGALRM, &alarm_action, NULL));
    on_signal(SIGPIPE, 0);
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = (char)random_below(256);
    for (int left = 10 + (int)random_below(25); left > 0; left--) {
        static void (*const steps[])(void) = {step_write, step_write,   step_write, step_read,
                                              step_read,  step_read,    step_poll,  step_select,
                                              step_epoll, step_setting, step_end,   step_other};
        steps[random_below(12)]();
    }
    say("SIGPIPE %d", signals_seen > 0);
}

__attribute__((constructor)) static void add_programs(void)
{
    unsigned first = 1, count = 200;
    if (getenv("FUZZ"))
        sscanf(getenv("FUZZ"), "%u,%u", &first, &count);
    for (unsigned i = 0; i < count; i++) {
        char *name = malloc(32);
        sprintf(name, "seed/%09u", first + i);
        add_scenario(name, program, (int)(first + i));
    }
}
