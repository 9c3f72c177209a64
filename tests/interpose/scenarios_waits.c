/* scenarios_waits.c: connect, accept, poll and its kin, sleeps, close and dup. See scenarios.h. */
#include "scenarios.h"

#include <arpa/inet.h>
#include <linux/close_range.h>
#include <netdb.h>
#include <pthread.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>

static char buf[65536];

/* ---- connect and accept ------------------------------------------------------------------------------ */

SCENARIO(accept_waits_for_connection)
{
    struct sockaddr_in addr, peer_addr = {0};
    socklen_t len = sizeof peer_addr;
    int l = listener(&addr, 5);
    if (in_peer(SOON)) {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        act_now();
        connect(c, (struct sockaddr *)&addr, sizeof addr);
        write(c, "hi", 2);
        pause_ms(100);
        done();
    }
    int fd = accept(l, (struct sockaddr *)&peer_addr, &len);
    say("accepted %d, len %u, family %d", fd >= 0, len, peer_addr.sin_family);
    say_acted();
    say("nonblocking: listener %d, connection %d", fcntl(l, F_GETFL) & O_NONBLOCK,
        fcntl(fd, F_GETFL) & O_NONBLOCK);
    SAY(read(fd, buf, 2));
}

SCENARIO(accept4_flags)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5);
    for (int i = 0; i < 2; i++) {
        if (in_peer(SOON)) {
            int c = socket(AF_INET, SOCK_STREAM, 0);
            connect(c, (struct sockaddr *)&addr, sizeof addr);
            pause_ms(200);
            done();
        }
        int fd = accept4(l, NULL, NULL, i ? SOCK_NONBLOCK | SOCK_CLOEXEC : 0);
        say("nonblocking %d cloexec %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0,
            fcntl(fd, F_GETFD));
    }
    SAY(accept4(l, NULL, NULL, 0x40));
}

SCENARIO(accept_errors)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5), s = socket(AF_INET, SOCK_STREAM, 0),
        u = socket(AF_INET, SOCK_DGRAM, 0);
    SAY(accept(s, NULL, NULL));
    SAY(accept(u, NULL, NULL));
    SAY(accept(0, NULL, NULL));
    fcntl(l, F_SETFL, O_NONBLOCK);
    SAY(accept(l, NULL, NULL));
    SAY(accept4(l, NULL, NULL, SOCK_NONBLOCK));
    fcntl(l, F_SETFL, 0);
    set_timeout(l, SO_RCVTIMEO, 20);
    int64_t start = clock_ms();
    SAY(accept(l, NULL, NULL));
    say("%s", clock_ms() - start >= 19 ? "waited" : "too early");
    set_timeout(l, SO_RCVTIMEO, 0);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(accept(l, NULL, NULL));
    signal_me_no_more(peer);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(c, (struct sockaddr *)&addr, sizeof addr));
    if (may_fault)
        SAY(accept(l, (struct sockaddr *)8, (socklen_t *)8));
}

SCENARIO(two_acceptors_one_connection_each)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5);
    for (int i = 0; i < 3; i++)
        if (in_peer(0)) {
            if (accept(l, NULL, NULL) >= 0)
                __atomic_fetch_add(&shared[1], 1, __ATOMIC_SEQ_CST);
            done();
        }
    for (int i = 0; i < 3; i++) {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        SAY(connect(c, (struct sockaddr *)&addr, sizeof addr));
        pause_ms(3);
    }
    while (shared[1] < 3)
        pause_ms(1);
    say("all; listener nonblocking: %d", fcntl(l, F_GETFL) & O_NONBLOCK);
}

SCENARIO(connect_outcomes)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5), fd = socket(AF_INET, SOCK_STREAM, 0);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    say("nonblocking %d", fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(l);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    int error = -1;
    socklen_t len = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
    say("SO_ERROR %d", error);
    SAY(connect(fd, (struct sockaddr *)&addr, 3));
    if (may_fault)
        SAY(connect(fd, (struct sockaddr *)8, sizeof addr));
    addr.sin_family = 77;
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    addr.sin_family = AF_INET;
    SAY(connect(u, (struct sockaddr *)&addr, sizeof addr));
    addr.sin_family = AF_UNSPEC;
    SAY(connect(u, (struct sockaddr *)&addr, sizeof addr));
}

SCENARIO(nonblocking_connect)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5), fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    SAY(poll(&p, 1, 1000));
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    say("nonblocking %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    close(l);
}

/* A listener whose queue is full drops the SYN: the connect hangs in the handshake. */
static int hanging_connect(struct sockaddr_in *addr)
{
    listener(addr, 0);
    for (int i = 0; i < 3; i++) {
        int fd = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        connect(fd, (struct sockaddr *)addr, sizeof *addr);
    }
    pause_ms(2);
    return (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
}

SCENARIO(connect_timeout_is_einprogress)
{
    struct sockaddr_in addr;
    int fd = hanging_connect(&addr);
    set_timeout(fd, SO_SNDTIMEO, 30);
    int64_t start = clock_ms();
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    say("nonblocking %d", fcntl(fd, F_GETFL) & O_NONBLOCK);
}

SCENARIO(connect_interrupted)
{
    struct sockaddr_in addr;
    int fd = hanging_connect(&addr);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    signal_me_no_more(peer);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
}

static int unix_listener(struct sockaddr_un *addr, socklen_t *len, int type, int backlog)
{
    int l = (int)MUST(socket(AF_UNIX, type, 0));
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    MUST(bind(l, (struct sockaddr *)addr, sizeof(sa_family_t)));
    *len = sizeof *addr;
    MUST(getsockname(l, (struct sockaddr *)addr, len));
    MUST(listen(l, backlog));
    return l;
}

SCENARIO(unix_connect_waits_for_full_backlog)
{
    struct sockaddr_un addr;
    socklen_t len;
    int l = unix_listener(&addr, &len, SOCK_STREAM, 0);
    int first = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0)),
        second = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    SAY(connect(first, (struct sockaddr *)&addr, len));
    fcntl(second, F_SETFL, O_NONBLOCK);
    SAY(connect(second, (struct sockaddr *)&addr, len));
    fcntl(second, F_SETFL, 0);
    set_timeout(second, SO_SNDTIMEO, 30);
    SAY(connect(second, (struct sockaddr *)&addr, len));
    set_timeout(second, SO_SNDTIMEO, 0);
    if (in_peer(SOON)) {
        act_now();
        int fd = accept(l, NULL, NULL);
        pause_ms(300);
        close(fd);
        done();
    }
    SAY(connect(second, (struct sockaddr *)&addr, len));
    say_acted();
    SAY(write(second, "x", 1));
}

SCENARIO(unix_connect_errors)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    SAY(connect(fd, (struct sockaddr *)&addr, sizeof addr));
    socklen_t len;
    int l = unix_listener(&addr, &len, SOCK_SEQPACKET, 1);
    SAY(connect(fd, (struct sockaddr *)&addr, len));
    close(l);
    int q = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    SAY(connect(q, (struct sockaddr *)&addr, len));
}

/* ---- poll ------------------------------------------------------------------------------------------------ */

static void say_polls(const struct pollfd *p, int n)
{
    for (int i = 0; i < n; i++)
        say("  [%d] events %x revents %x", i, p[i].events, p[i].revents);
}

FAMILY(poll_waits_for_data, pair_names)
{
    int p[2], q[2];
    make_pair(kind, p);
    make_pair(PIPE, q);
    struct pollfd f[] = {{q[0], POLLIN, 0x7f},
                         {p[0], POLLIN | POLLRDNORM, 0x7f},
                         {-1, POLLIN, 0x7f},
                         {p[0], POLLPRI, 0x7f}};
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "hello\n", 6);
        done();
    }
    SAY(poll(f, 4, -1));
    say_acted();
    say_polls(f, 4);
}

FAMILY(poll_sees_hang_up, pair_names)
{
    int p[2];
    make_pair(kind, p);
    if (kind == UDP)
        return;
    struct pollfd f[] = {{p[0], 0, 0}};
    if (kind == UNIX_DGRAM) {
        SAY(poll(f, 1, 20));
        return;
    }
    if (in_peer(SOON)) {
        close(p[0]);
        act_now();
        if (kind != PIPE && kind != FIFO && kind != PTY)
            shutdown(p[1], SHUT_RDWR);
        done();
    }
    if (kind == TCP) /* both directions have to end for a hang-up */
        shutdown(p[0], SHUT_WR);
    close(p[1]);
    SAY(poll(f, 1, -1));
    say_acted();
    say_polls(f, 1);
}

FAMILY(poll_for_room, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    struct pollfd f[] = {{p[1], POLLOUT, 0}};
    SAY(poll(f, 1, -1));
    say_polls(f, 1);
    fill(p[1]);
    SAY(poll(f, 1, 20));
    if (in_peer(SOON)) {
        act_now();
        close(p[1]);
        drain(p[0], 1 << 22);
        pause_ms(100);
        done();
    }
    SAY(poll(f, 1, -1));
    say_acted();
    say_polls(f, 1);
}

SCENARIO(poll_rdhup)
{
    int p[2];
    make_pair(TCP, p);
    write(p[1], "x", 1);
    pause_ms(2);
    struct pollfd f = {p[0], POLLRDHUP, 0};
    SAY(poll(&f, 1, 20));
    if (in_peer(SOON)) {
        act_now();
        shutdown(p[1], SHUT_WR);
        done();
    }
    SAY(poll(&f, 1, -1));
    say_acted();
    say_polls(&f, 1);
}

SCENARIO(poll_urgent_data)
{
    int p[2];
    make_pair(TCP, p);
    struct pollfd f[2] = {{p[0], POLLPRI, 0}, {p[0], POLLPRI, 0}};
    if (in_peer(SOON)) {
        write(p[1], "x", 1);
        pause_ms(SOON);
        act_now();
        send(p[1], "!", 1, MSG_OOB);
        done();
    }
    SAY(poll(f, 2, -1));
    say_acted();
    say_polls(f, 2);
}

SCENARIO(poll_timeouts)
{
    int p[2];
    make_pair(PIPE, p);
    struct pollfd f = {p[0], POLLIN, 5};
    int64_t start = clock_ms();
    SAY(poll(&f, 1, 30));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    say_polls(&f, 1);
    SAY(poll(&f, 1, 0));
    start = clock_ms();
    SAY(poll(NULL, 0, 30));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    struct timespec t = {0, 20000000};
    SAY(ppoll(&f, 1, &t, NULL));
    say("timeout left alone: %ld", t.tv_nsec);
    SAY(ppoll(NULL, 0, &t, NULL));
}

SCENARIO(poll_errors)
{
    int p[2];
    make_pair(PIPE, p);
    struct pollfd f[3] = {{p[0], POLLIN, 0}, {999, POLLIN, 0}, {-5, POLLIN, 0}};
    SAY(poll(f, 3, -1));
    say_polls(f, 3);
    if (may_fault)
        SAY(poll((struct pollfd *)8, 1, 10));
    if (may_fault)
        SAY(poll(f, 100000000, 10));
    struct timespec bad = {0, 1000000000}, negative = {-1, 0};
    SAY(ppoll(f, 1, &bad, NULL));
    SAY(ppoll(f, 1, &negative, NULL));
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    SAY(poll(f, 1, -1));
    SAY(poll(f, 1, 5000));
    SAY(ppoll(f, 1, NULL, NULL));
    SAY(poll(NULL, 0, -1));
    signal_me_no_more(peer);
}

SCENARIO(poll_many)
{
    enum { N = 100 };
    static int pipes[N][2];
    static struct pollfd f[N];
    for (int i = 0; i < N; i++) {
        MUST(pipe(pipes[i]));
        f[i] = (struct pollfd){pipes[i][0], POLLIN, 0};
    }
    if (in_peer(SOON)) {
        act_now();
        write(pipes[77][1], "x", 1);
        done();
    }
    SAY(poll(f, N, -1));
    say_acted();
    for (int i = 0; i < N; i++)
        if (f[i].revents)
            say("%d: %x", i, f[i].revents);
}

SCENARIO(poll_ready_kinds)
{
    FILE *file = tmpfile();
    int null = open("/dev/null", O_RDWR);
    struct pollfd f[] = {{fileno(file), POLLIN | POLLOUT | POLLPRI, 0},
                         {null, POLLIN | POLLOUT, 0},
                         {open("/", O_RDONLY), POLLIN, 0}};
    SAY(poll(f, 3, -1));
    say_polls(f, 3);
}

SCENARIO(ppoll_mask_lets_signal_in)
{
    int p[2];
    make_pair(PIPE, p);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    on_signal(SIGUSR1, SA_RESTART);
    struct pollfd f = {p[0], POLLIN, 0};
    kill(getpid(), SIGUSR1);
    SAY(ppoll(&f, 1, NULL, &none)); /* pending already */
    say("handlers %d", signals_seen);
    if (in_peer(SOON)) {
        act_now();
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY(ppoll(&f, 1, NULL, &none)); /* comes during the wait */
    say_acted();
    say("handlers %d", signals_seen);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(p[0], &set);
    if (in_peer(SOON)) {
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY(pselect(p[0] + 1, &set, NULL, NULL, NULL, &none));
    say("handlers %d", signals_seen);
    int epfd = epoll_create1(0);
    struct epoll_event e;
    if (in_peer(SOON)) {
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY(epoll_pwait(epfd, &e, 1, -1, &none));
    say("handlers %d", signals_seen);
}

/* ---- select -------------------------------------------------------------------------------------------------- */

FAMILY(select_waits_for_data, pair_names)
{
    int p[2], q[2];
    make_pair(PIPE, q);
    make_pair(kind, p);
    fd_set in, out, except;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&except);
    FD_SET(p[0], &in);
    FD_SET(q[0], &in);
    FD_SET(p[0], &except);
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "hello\n", 6);
        done();
    }
    SAY(select(p[0] + p[1], &in, &out, &except, NULL));
    say_acted();
    say("%d %d %d", FD_ISSET(p[0], &in), FD_ISSET(q[0], &in), FD_ISSET(p[0], &except));
}

SCENARIO(select_timeouts)
{
    int p[2];
    make_pair(PIPE, p);
    fd_set in;
    struct timeval t = {0, 30000};
    FD_ZERO(&in);
    FD_SET(p[0], &in);
    int64_t start = clock_ms();
    SAY(select(p[0] + 1, &in, NULL, NULL, &t));
    say("%s, left %ld %ld, set %d", clock_ms() - start >= 29 ? "waited" : "too early", t.tv_sec,
        t.tv_usec, FD_ISSET(p[0], &in));
    t = (struct timeval){100, 0};
    FD_SET(p[0], &in);
    if (in_peer(SOON)) {
        write(p[1], "x", 1);
        done();
    }
    SAY(select(p[0] + 1, &in, NULL, NULL, &t));
    say("some left: %d", t.tv_sec == 99 || (t.tv_sec > 50 && t.tv_sec < 100));
    t = (struct timeval){0, 0};
    FD_SET(p[0], &in);
    SAY(select(p[0] + 1, &in, NULL, NULL, &t));
    t = (struct timeval){0, 20000};
    SAY(select(0, NULL, NULL, NULL, &t));
    say("left %ld %ld", t.tv_sec, t.tv_usec);
    t = (struct timeval){0, 1020000};
    SAY(select(0, NULL, NULL, NULL, &t));
    struct timespec ts = {0, 20000000};
    drain(p[0], 1);
    FD_SET(p[0], &in);
    SAY(pselect(p[0] + 1, &in, NULL, NULL, &ts, NULL));
    say("left alone %ld, set %d", ts.tv_nsec, FD_ISSET(p[0], &in));
}

SCENARIO(select_errors)
{
    int p[2];
    make_pair(PIPE, p);
    fd_set in;
    FD_ZERO(&in);
    FD_SET(p[0], &in);
    struct timeval t = {0, 20000}, negative = {-1, 0};
    if (may_fault)
        SAY(select(-1, &in, NULL, NULL, &t));
    SAY(select(p[0] + 1, &in, NULL, NULL, &negative));
    if (may_fault)
        SAY(select(p[0] + 1, (fd_set *)8, NULL, NULL, &t));
    close(dup2(p[0], 400)); /* the kernel looks no further than the fd table goes */
    FD_SET(200, &in);
    SAY(select(201, &in, NULL, NULL, &t));
    say("untouched %d %d", FD_ISSET(200, &in), FD_ISSET(p[0], &in));
    FD_CLR(200, &in);
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    SAY(select(p[0] + 1, &in, NULL, NULL, NULL));
    say("untouched %d", FD_ISSET(p[0], &in));
    t.tv_sec = 100;
    SAY(select(p[0] + 1, &in, NULL, NULL, &t));
    say("some left: %d", t.tv_sec > 50 && t.tv_sec <= 100);
    signal_me_no_more(peer);
    struct timespec bad = {0, 1000000000};
    SAY(pselect(p[0] + 1, &in, NULL, NULL, &bad, NULL));
}

SCENARIO(select_beyond_fd_setsize)
{
    int p[2];
    make_pair(PIPE, p);
    static struct {
        fd_set set;
        unsigned char guard[4096];
    } s;
    memset(s.guard, 0xaa, sizeof s.guard);
    FD_SET(p[0], &s.set);
    struct timeval t = {0, 20000};
    SAY(select(30000, &s.set, NULL, NULL, &t)); /* the kernel looks no further than its fd table */
    for (size_t i = 0; i < sizeof s.guard; i++)
        if (s.guard[i] != 0xaa) {
            say("guard touched at %zu", i);
            break;
        }
}

SCENARIO(select_for_writing_and_urgent)
{
    int p[2];
    make_pair(TCP, p);
    fd_set out, except;
    FD_ZERO(&out);
    FD_ZERO(&except);
    FD_SET(p[1], &out);
    SAY(select(p[1] + 1, NULL, &out, NULL, NULL));
    say("%d", FD_ISSET(p[1], &out));
    fill(p[1]);
    struct timeval t = {0, 20000};
    SAY(select(p[1] + 1, NULL, &out, NULL, &t));
    say("%d", FD_ISSET(p[1], &out));
    make_pair(TCP, p);
    FD_SET(p[0], &except);
    if (in_peer(SOON)) {
        act_now();
        send(p[1], "!", 1, MSG_OOB);
        done();
    }
    SAY(select(p[0] + 1, NULL, NULL, &except, NULL));
    say_acted();
}

/* ---- epoll ------------------------------------------------------------------------------------------------------ */

FAMILY(epoll_waits_for_data, pair_names)
{
    int p[2], epfd = (int)MUST(epoll_create1(0));
    make_pair(kind, p);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 42}, got[3] = {{0}};
    MUST(epoll_ctl(epfd, EPOLL_CTL_ADD, p[0], &e));
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "hello\n", 6);
        done();
    }
    SAY(epoll_wait(epfd, got, 3, -1));
    say_acted();
    say("events %x data %llu", got[0].events, (unsigned long long)got[0].data.u64);
    SAY(epoll_wait(epfd, got, 3, 0));
}

SCENARIO(epoll_edges_and_oneshot)
{
    int p[2], epfd = (int)MUST(epoll_create1(0));
    make_pair(UNIX_STREAM, p);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET}, got;
    MUST(epoll_ctl(epfd, EPOLL_CTL_ADD, p[0], &e));
    write(p[1], "a", 1);
    SAY(epoll_wait(epfd, &got, 1, -1));
    SAY(epoll_wait(epfd, &got, 1, 20));
    if (in_peer(SOON)) {
        write(p[1], "b", 1);
        done();
    }
    SAY(epoll_wait(epfd, &got, 1, -1));
    e.events = EPOLLIN | EPOLLONESHOT;
    MUST(epoll_ctl(epfd, EPOLL_CTL_MOD, p[0], &e));
    SAY(epoll_wait(epfd, &got, 1, -1));
    SAY(epoll_wait(epfd, &got, 1, 20));
}

SCENARIO(epoll_errors_and_timeouts)
{
    int p[2], epfd = (int)MUST(epoll_create1(0));
    make_pair(PIPE, p);
    struct epoll_event e = {.events = EPOLLIN}, got[2];
    MUST(epoll_ctl(epfd, EPOLL_CTL_ADD, p[0], &e));
    int64_t start = clock_ms();
    SAY(epoll_wait(epfd, got, 2, 30));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    SAY(epoll_wait(epfd, got, 0, 10));
    if (may_fault)
        SAY(epoll_wait(epfd, got, -1, 10));
    SAY(epoll_wait(p[0], got, 1, 10));
    SAY(epoll_wait(999, got, 1, 10));
    SAY(epoll_pwait(epfd, got, 1, 10, NULL));
    write(p[1], "x", 1);
    if (may_fault)
        SAY(epoll_wait(epfd, (struct epoll_event *)8, 1, 10));
    drain(p[0], 1);
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    SAY(epoll_wait(epfd, got, 1, -1));
    SAY(epoll_wait(epfd, got, 1, 5000));
    signal_me_no_more(peer);
}

SCENARIO(nested_epoll)
{
    int p[2], inner = (int)MUST(epoll_create1(0)), outer = (int)MUST(epoll_create1(0));
    make_pair(TCP, p);
    struct epoll_event e = {.events = EPOLLIN}, got;
    MUST(epoll_ctl(inner, EPOLL_CTL_ADD, p[0], &e));
    MUST(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &e));
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "x", 1);
        done();
    }
    SAY(epoll_wait(outer, &got, 1, -1));
    say_acted();
    struct pollfd f = {inner, POLLIN, 0};
    SAY(poll(&f, 1, -1));
    SAY(epoll_wait(inner, &got, 1, -1));
}

/* ---- other fds that become readable ------------------------------------------------------------------------------- */

SCENARIO(timerfd_read_waits)
{
    int fd = (int)MUST(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec t = {.it_value = {0, 20000000}};
    MUST(timerfd_settime(fd, 0, &t, NULL));
    uint64_t ticks = 0;
    int64_t start = clock_ms();
    SAY(read(fd, &ticks, 8));
    say("ticks %llu, %s", (unsigned long long)ticks,
        clock_ms() - start >= 19 ? "waited" : "too early");
    SAY(read(fd, &ticks, 7));
}

SCENARIO(inotify_read_waits)
{
    char dir[] = "/tmp/portalpatch-XXXXXX", path[64];
    if (!mkdtemp(dir))
        return;
    sprintf(path, "%s/file", dir);
    int fd = (int)MUST(inotify_init());
    MUST(inotify_add_watch(fd, dir, IN_CREATE));
    if (in_peer(SOON)) {
        act_now();
        close(open(path, O_CREAT | O_WRONLY, 0600));
        done();
    }
    SAY(read(fd, buf, sizeof buf));
    say_acted();
    say("name %s", ((struct inotify_event *)buf)->name);
    unlink(path);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    SAY(read(fd, buf, 4)); /* too small for an event */
    unlink(path);
    rmdir(dir);
}

/* ---- sleeps --------------------------------------------------------------------------------------------------------- */

SCENARIO(sleeps_last)
{
    int64_t start = clock_ms();
    struct timespec t = {0, 20000000}, left = {7, 7};
    SAY(nanosleep(&t, &left));
    say("left alone %ld %ld", left.tv_sec, left.tv_nsec);
    SAY(usleep(20000));
    SAY(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL));
    SAY(clock_nanosleep(CLOCK_REALTIME, 0, &t, NULL));
    SAY(clock_nanosleep(CLOCK_BOOTTIME, 0, &t, NULL));
    say("%s", clock_ms() - start >= 99 ? "waited" : "too early");
    SAY(sleep(0));
    SAY(usleep(0));
    t.tv_nsec = 0;
    SAY(nanosleep(&t, NULL));
}

SCENARIO(absolute_sleeps_last)
{
    clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI};
    for (int i = 0; i < 4; i++) {
        struct timespec t;
        int64_t start = clock_ms();
        clock_gettime(clocks[i], &t);
        t.tv_nsec += 25000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_nsec -= 1000000000;
            t.tv_sec++;
        }
        SAY(clock_nanosleep(clocks[i], TIMER_ABSTIME, &t, NULL));
        say("%s", clock_ms() - start >= 24 ? "waited" : "too early");
        SAY(clock_nanosleep(clocks[i], TIMER_ABSTIME, &t, NULL));
        t = (struct timespec){0, 0};
        SAY(clock_nanosleep(clocks[i], TIMER_ABSTIME, &t, NULL));
    }
}

SCENARIO(sleep_errors)
{
    struct timespec bad[] = {{0, 1000000000}, {0, -1}, {-1, 0}};
    for (int i = 0; i < 3; i++) {
        SAY(nanosleep(&bad[i], NULL));
        SAY(clock_nanosleep(CLOCK_MONOTONIC, 0, &bad[i], NULL));
        SAY(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &bad[i], NULL));
    }
    if (may_fault)
        SAY(nanosleep((struct timespec *)8, NULL));
    if (may_fault)
        SAY(clock_nanosleep(CLOCK_MONOTONIC, 0, (struct timespec *)8, NULL));
    struct timespec t = {0, 1000000};
    SAY(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &t, NULL));
    SAY(clock_nanosleep(77, 0, &t, NULL));
}

SCENARIO(sleep_interrupted)
{
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    struct timespec t = {100, 0}, left = {0, 0};
    SAY(nanosleep(&t, &left));
    say("left: %d", left.tv_sec >= 50 && left.tv_sec <= 100);
    SAY(nanosleep(&t, &t));
    say("left: %d", t.tv_sec >= 50 && t.tv_sec <= 100);
    SAY(nanosleep(&t, NULL));
    if (may_fault)
        SAY(nanosleep(&t, (struct timespec *)8));
    SAY(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left));
    say("left: %d", left.tv_sec >= 50 && left.tv_sec <= 100);
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 100;
    left.tv_sec = 7;
    SAY(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, &left));
    say("left alone %ld", left.tv_sec);
    SAY(usleep(99000000));
    unsigned n = sleep(100);
    say("left: %d", n >= 50 && n <= 100);
    signal_me_no_more(peer);
}

/* ---- names ------------------------------------------------------------------------------------------------------------ */

static void say_addresses(const char *node, const char *service, const struct addrinfo *hints)
{
    struct addrinfo *found = NULL;
    int code = getaddrinfo(node, service, hints, &found);
    say("%s:%s -> %s", node ? node : "NULL", service ? service : "NULL",
        code ? gai_strerror(code) : "found");
    for (struct addrinfo *a = found; a; a = a->ai_next)
        say("  family %d type %d len %u %s", a->ai_family, a->ai_socktype, a->ai_addrlen,
            a->ai_canonname ? a->ai_canonname : "");
    if (found)
        freeaddrinfo(found);
}

SCENARIO(getaddrinfo_answers)
{
    struct addrinfo stream = {.ai_socktype = SOCK_STREAM},
                    v4 = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM},
                    numeric = {.ai_flags = AI_NUMERICHOST},
                    passive = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM},
                    canon = {.ai_flags = AI_CANONNAME,
                             .ai_family = AF_INET,
                             .ai_socktype = SOCK_STREAM},
                    bad = {.ai_flags = 0x40000000};
    say_addresses("localhost", "80", &stream);
    say_addresses("localhost", NULL, &v4);
    say_addresses("127.0.0.1", "80", &stream);
    say_addresses("::1", "80", &stream);
    say_addresses("localhost", "80", &numeric);
    say_addresses(NULL, "80", &passive);
    say_addresses(NULL, NULL, &stream);
    say_addresses("localhost", "http", &canon);
    say_addresses("localhost", "no-such-service", &stream);
    say_addresses("localhost", "80", &bad);
    say_addresses("", "80", &stream);
}

/* ---- close, dup ---------------------------------------------------------------------------------------------------------- */

SCENARIO(closing_and_duplicating)
{
    int p[2];
    make_pair(PIPE, p);
    int d = dup(p[0]);
    SAY(dup2(p[0], d) == d);
    SAY(dup2(p[0], p[0]) == p[0]);
    SAY(dup2(999, d));
    SAY(fcntl(d, F_GETFD));
    SAY(dup2(p[0], -1));
    SAY(dup3(p[0], d, O_CLOEXEC) == d);
    SAY(fcntl(d, F_GETFD));
    SAY(dup3(p[0], p[0], 0));
    SAY(dup3(p[0], d, 0x1234567));
    SAY(close(d));
    SAY(close(d));
    SAY(close(-1));
    FILE *f = fdopen(p[1], "w");
    fputs("buffered", f);
    SAY(fclose(f));
    SAY(read(p[0], buf, 100));
    SAY(close_range(500, 600, 0));
    SAY(close_range(600, 500, 0));
    SAY(close_range((unsigned)p[0], (unsigned)p[0], CLOSE_RANGE_CLOEXEC));
    SAY(fcntl(p[0], F_GETFD));
    SAY(close_range((unsigned)p[0], ~0u, 0));
    SAY(fcntl(p[0], F_GETFD));
}

/* ---- processes and threads --------------------------------------------------------------------------------------------------- */

SCENARIO(vfork_child_changes_nothing)
{
    int p[2];
    make_pair(PIPE, p);
    pid_t pid = vfork();
    if (pid == 0) {
        char c;
        dup2(p[0], 300);
        close(300);
        read(p[0], &c, 0);
        _exit(3);
    }
    int status = 0;
    MUST(waitpid(pid, &status, 0));
    say("status %d", WEXITSTATUS(status));
    write(p[1], "x", 1);
    SAY(read(p[0], buf, 1));
}

static void *reader(void *arg)
{
    char c;
    return (void *)(intptr_t)read(*(int *)arg, &c, 1);
}

SCENARIO(threads_wait_on_one_fd)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        MUST(-pthread_create(&threads[i], NULL, reader, &p[0]));
    pause_ms(SOON);
    for (int i = 0; i < 4; i++)
        write(p[1], "x", 1);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        say("%ld", (long)(intptr_t)result);
    }
}

SCENARIO(fork_child_starts_anew)
{
    int p[2], q[2];
    make_pair(PIPE, p);
    make_pair(PIPE, q);
    if (in_peer(0)) {
        read(p[0], buf, 1);
        write(q[1], "y", 1);
        done();
    }
    pause_ms(SOON);
    write(p[1], "x", 1);
    SAY(read(q[0], buf, 1));
    say_bytes("got", buf, 1);
}
