/* scenarios_facts.c: what was learned of a socket must not outlive its truth.
 *
 * Each scenario lets calls wait on a socket until the interposer (facts.c) remembers that it blocks,
 * has no timeout, and is worth waiting for before it is tried; then somebody changes the socket, or puts
 * another in its place; and the next call must do what the kernel would.
 */
#include "scenarios.h"

#include <pthread.h>

static char buf[1000];

/* So many waits that came to something: after four the wait comes before the try. */
static void get_known(int p[2])
{
    for (int i = 0; i < 6; i++) {
        if (in_peer(3)) {
            write(p[1], "k", 1);
            done();
        }
        MUST(recv(p[0], buf, 1, 0));
        while (syscall(SYS_wait4, -1, NULL, 0, NULL) > 0)
            ;
    }
}

/* ---- who makes a change ------------------------------------------------------------------------- */

enum change { NONBLOCKING, BLOCKING, BY_IOCTL, TIMED, UNTIMED };

static void make(int fd, enum change change)
{
    int on = 1;
    switch (change) {
    case NONBLOCKING:
        MUST(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
        break;
    case BLOCKING:
        MUST(fcntl(fd, F_SETFL, O_RDWR));
        break;
    case BY_IOCTL:
        MUST(ioctl(fd, FIONBIO, &on));
        break;
    case TIMED:
        set_timeout(fd, SO_RCVTIMEO, 20);
        break;
    case UNTIMED:
        set_timeout(fd, SO_RCVTIMEO, 0);
    }
}

struct order {
    int fd;
    enum change change;
};

static void *obey(void *arg)
{
    struct order *order = arg;
    make(order->fd, order->change);
    return NULL;
}

static void send_fd(int over, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = "";
    struct iovec iov = {"f", 1};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    MUST(sendmsg(over, &m, 0));
}

static int receive_fd(int over)
{
    char control[CMSG_SPACE(sizeof(int))] = "", byte;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd;
    MUST(recvmsg(over, &m, 0));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

enum { ITSELF, A_DUPLICATE, A_THREAD, A_CHILD, A_CHILD_IT_WAS_PASSED_TO, PAST_EVERY_HOOK };
static const char *const makers[] = {"itself", "duplicate",   "thread", "child",
                                     "passed", "raw_syscall", NULL};

static void let_make(int maker, int fd, enum change change)
{
    struct order order = {fd, change};
    pthread_t thread;
    int over[2], copy;
    switch (maker) {
    case ITSELF:
        make(fd, change);
        break;
    case A_DUPLICATE:
        copy = (int)MUST(dup(fd));
        make(copy, change);
        close(copy);
        break;
    case A_THREAD:
        MUST(pthread_create(&thread, NULL, obey, &order));
        MUST(pthread_join(thread, NULL));
        break;
    case A_CHILD:
        if (MUST(fork()) == 0) {
            make(fd, change);
            done();
        }
        break;
    case A_CHILD_IT_WAS_PASSED_TO:
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, over));
        if (MUST(fork()) == 0) {
            make(receive_fd(over[1]), change);
            done();
        }
        send_fd(over[0], fd);
        close(over[0]);
        break;
    case PAST_EVERY_HOOK:
        if (change == TIMED || change == UNTIMED) {
            struct timeval t = {0, change == TIMED ? 20000 : 0};
            MUST(syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
        } else {
            MUST(
                syscall(SYS_fcntl, fd, F_SETFL, change == BLOCKING ? O_RDWR : O_RDWR | O_NONBLOCK));
        }
    }
    while (syscall(SYS_wait4, -1, NULL, 0, NULL) > 0)
        ;
}

static void waits_for_peer(int p[2])
{
    shared[0] = 0;
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "late", 4);
        done();
    }
    SAY(recv(p[0], buf, 4, 0));
    say_acted();
}

static void waits_by_read(int p[2])
{
    shared[0] = 0;
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "late", 4);
        done();
    }
    SAY(read(p[0], buf, 4));
    say_acted();
}

FAMILY(known_socket_is_made_nonblocking, makers)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    get_known(p);
    let_make(kind, p[0], NONBLOCKING);
    SAY(recv(p[0], buf, 10, 0));
    SAY(recv(p[0], buf, 10, 0));
    let_make(kind, p[0], BLOCKING);
    waits_for_peer(p);
    get_known(p);
    let_make(kind, p[0], BY_IOCTL);
    SAY(read(p[0], buf, 10));
    let_make(kind, p[0], BLOCKING);
    waits_for_peer(p);
}

FAMILY(known_socket_gets_a_timeout, makers)
{
    int p[2];
    make_pair(TCP, p);
    get_known(p);
    let_make(kind, p[0], TIMED);
    SAY(recv(p[0], buf, 10, 0));
    SAY(read(p[0], buf, 10));
    let_make(kind, p[0], UNTIMED);
    waits_for_peer(p);
}

FAMILY(known_nonblocking_socket_is_made_blocking, makers)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    make(p[0], NONBLOCKING);
    for (int i = 0; i < 6; i++)
        recv(p[0], buf, 10, 0);
    let_make(kind, p[0], BLOCKING);
    waits_for_peer(p);
}

FAMILY(known_listener_is_made_nonblocking, makers)
{
    struct sockaddr_in addr;
    int l = listener(&addr, 5);
    for (int i = 0; i < 6; i++) {
        if (in_peer(3)) {
            connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&addr, sizeof addr);
            done();
        }
        close((int)MUST(accept(l, NULL, NULL)));
        while (syscall(SYS_wait4, -1, NULL, 0, NULL) > 0)
            ;
    }
    let_make(kind, l, NONBLOCKING);
    SAY(accept(l, NULL, NULL));
    let_make(kind, l, BLOCKING);
    let_make(kind, l, TIMED);
    SAY(accept4(l, NULL, NULL, SOCK_CLOEXEC));
}

/* ---- another socket of the same number --------------------------------------------------------- */

enum { CLOSE, CLOSE_RANGE, DUP2, DUP3, FCLOSE, RAW_CLOSE, RAW_DUP2 };
static const char *const ends[] = {"close",  "close_range", "dup2",     "dup3",
                                   "fclose", "raw_close",   "raw_dup2", NULL};

/* Puts the read end of a new pair at the number of the old: already changed, so there is no call
 * that could tell. */
static void replace(int how, int p[2], enum change change)
{
    int next[2], number = p[0];
    make_pair(UNIX_STREAM, next);
    make(next[0], change);
    switch (how) {
    case CLOSE:
        close(number);
        MUST(fcntl(next[0], F_DUPFD, number));
        break;
    case CLOSE_RANGE:
        MUST(close_range((unsigned)number, (unsigned)number, 0));
        MUST(fcntl(next[0], F_DUPFD, number));
        break;
    case DUP2:
        MUST(dup2(next[0], number));
        break;
    case DUP3:
        MUST(dup3(next[0], number, O_CLOEXEC));
        break;
    case FCLOSE:
        fclose(fdopen(number, "r"));
        MUST(fcntl(next[0], F_DUPFD, number));
        break;
    case RAW_CLOSE:
        MUST(syscall(SYS_close, number));
        MUST(syscall(SYS_fcntl, next[0], F_DUPFD, number));
        break;
    case RAW_DUP2:
        MUST(syscall(SYS_dup3, next[0], number, 0));
    }
    close(next[0]);
    close(p[1]);
    p[1] = next[1];
}

FAMILY(number_of_a_known_socket_is_used_again, ends)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    get_known(p);
    replace(kind, p, NONBLOCKING);
    SAY(recv(p[0], buf, 10, 0));
    replace(kind, p, TIMED);
    SAY(recv(p[0], buf, 10, 0));
    replace(kind, p, BLOCKING);
    waits_for_peer(p);
    get_known(p);
    replace(kind, p, TIMED);
    SAY(recv(p[0], buf, 10, 0));
}

/* Every call that gives out a number, after a close that nobody saw: by `maker`, at the number `wanted`,
 * a new file that does not block. The result: where to write what it reads. */
enum {
    BY_SOCKET,
    BY_SOCKETPAIR,
    BY_RAW_SOCKETPAIR,
    BY_ACCEPT,
    BY_DUP,
    BY_RECVMSG,
    BY_PIPE,
    BY_OPEN,
    BY_EVENTFD
};
static const char *const creators[] = {"socket",  "socketpair", "raw_socketpair", "accept",  "dup",
                                       "recvmsg", "pipe",       "open",           "eventfd", NULL};

static int create(int creator, int wanted)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int p[2] = {-1, -1}, over[2], l = -1, type = SOCK_STREAM | SOCK_NONBLOCK;
    char path[64];
    if (creator == BY_ACCEPT) {
        l = listener(&addr, 1);
        p[1] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(p[1], (struct sockaddr *)&addr, sizeof addr));
    } else if (creator == BY_DUP || creator == BY_RECVMSG) {
        MUST(socketpair(AF_UNIX, type, 0, p));
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, over));
        send_fd(over[0], p[0]);
    }
    MUST(syscall(SYS_close, wanted));
    switch (creator) {
    case BY_SOCKET: /* a datagram socket that talks to itself */
        p[0] = p[1] = (int)MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
        MUST(bind(p[0], (struct sockaddr *)&addr, len));
        MUST(getsockname(p[0], (struct sockaddr *)&addr, &len));
        MUST(connect(p[0], (struct sockaddr *)&addr, len));
        break;
    case BY_SOCKETPAIR:
        MUST(socketpair(AF_UNIX, type, 0, p));
        break;
    case BY_RAW_SOCKETPAIR:
        MUST(syscall(SYS_socketpair, AF_UNIX, type, 0, p));
        break;
    case BY_ACCEPT:
        p[0] = (int)MUST(accept4(l, NULL, NULL, SOCK_NONBLOCK));
        break;
    case BY_DUP:
        p[0] = (int)MUST(dup(p[0]));
        break;
    case BY_RECVMSG:
        p[0] = receive_fd(over[1]);
        break;
    case BY_PIPE:
        MUST(pipe2(p, O_NONBLOCK));
        break;
    case BY_OPEN:
        sprintf(path, "/tmp/portalpatch-again-%d", getpid());
        MUST(mkfifo(path, 0600));
        p[0] = p[1] = (int)MUST(open(path, O_RDWR | O_NONBLOCK));
        unlink(path);
        break;
    case BY_EVENTFD:
        p[0] = p[1] = (int)MUST(eventfd(0, EFD_NONBLOCK));
    }
    if (p[0] != wanted)
        say("SETUP FAILED: another number");
    return p[1];
}

FAMILY(number_of_a_known_socket_is_given_out_again, creators)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    get_known(p);
    int writer = create(kind, p[0]);
    SAY(read(p[0], buf, 8));
    MUST(syscall(SYS_fcntl, p[0], F_SETFL, O_RDWR));
    for (int i = 0; i < 2; i++) {
        shared[0] = 0;
        if (in_peer(SOON)) {
            act_now();
            write(writer, "\1\0\0\0\0\0\0", 8); /* an eventfd takes it without an instant */
            done();
        }
        SAY(read(p[0], buf, 8));
        say_acted();
        say_bytes("got", buf, 8);
    }
}

/* Not even a socket any more, and nobody said so. */
SCENARIO(number_of_a_known_socket_becomes_a_pipe_unseen)
{
    int p[2], q[2];
    make_pair(UNIX_STREAM, p);
    get_known(p);
    for (int i = 0; i < 2; i++) {
        MUST(write(p[1], "ab", 2));
        SAY(read(p[0], buf, 2));
    }
    make_pair(PIPE, q);
    MUST(syscall(SYS_dup3, q[0], p[0], 0));
    MUST(syscall(SYS_dup3, q[1], p[1], 0));
    SAY(write(p[1], "pipe", 4));
    SAY(read(p[0], buf, 10));
    say_bytes("got", buf, 4);
    waits_by_read(p);
    make_pair(UNIX_STREAM, p);
    SAY(read(p[0] = open("/dev/null", O_RDONLY), buf, 10));
}

/* The mark of this process's own sockets; one that another process sets is not looked for. */
FAMILY(known_low_water_mark_is_raised, makers)
{
    int p[2], low = 3;
    if (kind > A_THREAD)
        kind = A_DUPLICATE;
    make_pair(UNIX_STREAM, p);
    get_known(p);
    int copy = kind == A_DUPLICATE ? (int)MUST(dup(p[0])) : p[0];
    MUST(setsockopt(copy, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    if (in_peer(SOON)) {
        write(p[1], "a", 1);
        pause_ms(SOON);
        write(p[1], "b", 1);
        pause_ms(SOON);
        act_now();
        write(p[1], "c", 1);
        done();
    }
    SAY(recv(p[0], buf, 10, 0));
    say_acted();
}

/* A fork child begins with its parent's facts, and its numbers go their own way. */
SCENARIO(fork_child_reuses_a_known_number)
{
    int p[2], status;
    make_pair(UNIX_STREAM, p);
    get_known(p);
    pid_t pid = (pid_t)MUST(fork());
    if (pid == 0) {
        replace(CLOSE, p, NONBLOCKING);
        _exit(recv(p[0], buf, 10, 0) == -1 && errno == EAGAIN ? 7 : 8);
    }
    MUST(syscall(SYS_wait4, pid, &status, 0, NULL));
    say("child %d", WEXITSTATUS(status));
    waits_for_peer(p);
}
