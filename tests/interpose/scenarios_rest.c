/* scenarios_rest.c: many messages, copies, children, locks, names, signals. See scenarios.h. */
#include "scenarios.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <resolv.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/sendfile.h>

static char buf[1 << 20];

/* ---- vectors with flags, many messages ------------------------------------------------------------- */

FAMILY(preadv2_waits_for_data, pair_names)
{
    int p[2];
    make_pair(kind, p);
    struct iovec iov[2] = {{buf, 2}, {buf + 2, 50}};
    SAY(preadv2(p[0], iov, 2, -1, RWF_NOWAIT) < 0);
    if (in_peer(SOON)) {
        act_now();
        struct iovec out[2] = {{"hel", 3}, {"lo\n", 3}};
        pwritev2(p[1], out, 2, -1, 0);
        done();
    }
    SAY(preadv2(p[0], iov, 2, -1, 0));
    say_acted();
    say_bytes("read", buf, 6);
    SAY(preadv2(p[0], iov, 2, 0, 0));
    SAY(preadv2(p[0], iov, 2, -1, 0x4000));
}

SCENARIO(preadv2_on_file)
{
    int fd = (int)MUST(memfd_create("m", 0));
    struct iovec iov[2] = {{"abc", 3}, {"defg", 4}}, in = {buf, 100};
    SAY(pwritev2(fd, iov, 2, 0, 0));
    SAY(pwritev2(fd, iov, 2, -1, RWF_APPEND));
    SAY(preadv2(fd, &in, 1, 2, 0));
    SAY(preadv2(fd, &in, 1, -1, 0));
}

static const char *const datagram_names[] = {"unix_dgram", "unix_seqpacket", "udp",
                                             "tcp",        "unix_stream",    NULL};
static const int datagrams[] = {UNIX_DGRAM, UNIX_SEQPACKET, UDP, TCP, UNIX_STREAM};

static void fill_vec(struct mmsghdr *vec, struct iovec *iov, unsigned n, size_t size)
{
    memset(vec, 0, n * sizeof *vec);
    for (unsigned i = 0; i < n; i++) {
        iov[i] = (struct iovec){buf + i * size, size};
        vec[i].msg_hdr.msg_iov = &iov[i];
        vec[i].msg_hdr.msg_iovlen = 1;
    }
}

FAMILY(recvmmsg_waits_for_all, datagram_names)
{
    int p[2];
    make_pair(datagrams[kind], p);
    struct mmsghdr vec[3];
    struct iovec iov[3];
    fill_vec(vec, iov, 3, 4);
    SAY(recvmmsg(p[0], vec, 3, MSG_DONTWAIT, NULL));
    if (in_peer(SOON)) {
        for (int i = 0; i < 3; i++) {
            act_now();
            send(p[1], "data", 4, 0);
            pause_ms(5);
        }
        done();
    }
    SAY(recvmmsg(p[0], vec, 3, 0, NULL));
    say_acted();
    for (int i = 0; i < 3; i++)
        say("%u flags %x", vec[i].msg_len, vec[i].msg_hdr.msg_flags);
    say_bytes("data", buf, 12);
}

FAMILY(recvmmsg_for_one, datagram_names)
{
    int p[2];
    make_pair(datagrams[kind], p);
    struct mmsghdr vec[3];
    struct iovec iov[3];
    fill_vec(vec, iov, 3, 2);
    if (in_peer(SOON)) {
        send(p[1], "ab", 2, 0);
        done();
    }
    SAY(recvmmsg(p[0], vec, 3, MSG_WAITFORONE, NULL));
    struct timespec zero = {0, 0}, bad = {0, 1000000000};
    send(p[1], "cd", 2, 0);
    send(p[1], "ef", 2, 0);
    pause_ms(2);
    SAY(recvmmsg(p[0], vec, 3, 0, &zero));
    SAY(recvmmsg(p[0], vec, 3, 0, &bad));
    SAY(recvmmsg(p[0], vec, 0, 0, NULL));
    set_timeout(p[0], SO_RCVTIMEO, 20);
    SAY(recvmmsg(p[0], vec, 3, 0, NULL));
    SAY(recvmmsg(p[0], vec, 3, 0, NULL));
    SAY(recvmmsg(999, vec, 3, 0, NULL));
}

FAMILY(sendmmsg_sends_all, datagram_names)
{
    int p[2];
    make_pair(datagrams[kind], p);
    struct mmsghdr vec[50];
    struct iovec iov[50];
    fill_vec(vec, iov, 50, 200);
    if (in_peer(SOON)) {
        close(p[1]);
        shared[1] = (int)drain(p[0], 10000);
        shared[2] = 1;
        done();
    }
    SAY(sendmmsg(p[1], vec, 50, 0));
    say("%u %u", vec[0].msg_len, vec[49].msg_len);
    while (!shared[2])
        pause_ms(1);
    say("arrived %d", shared[1]);
    SAY(sendmmsg(p[1], vec, 0, 0));
    SAY(sendmmsg(999, vec, 2, 0));
}

/* ---- sendfile and splice --------------------------------------------------------------------------------- */

FAMILY(sendfile_is_complete, stream_names)
{
    int p[2], fd = (int)MUST(memfd_create("m", 0));
    if (streams[kind] == PTY)
        return;
    make_pair(streams[kind], p);
    MUST(write(fd, buf, sizeof buf));
    off_t at = 10;
    if (in_peer(SOON)) {
        close(p[1]);
        /* A pipe is filled once. */
        bool is_pipe = !is_socket_kind(streams[kind]);
        shared[1] = (int)drain(p[0], is_pipe ? 65536 : sizeof buf);
        shared[2] = 1;
        pause_ms(SOON);
        done();
    }
    SAY(sendfile(p[1], fd, &at, sizeof buf));
    say("offset %ld", (long)at);
    MUST(lseek(fd, sizeof buf - 10, SEEK_SET));
    SAY(sendfile(p[1], fd, NULL, 100));
    while (!shared[2])
        pause_ms(1);
    say("arrived %d", shared[1]);
    SAY(sendfile(p[1], fd, NULL, 100));
    SAY(sendfile(p[1], 999, NULL, 100));
    SAY(sendfile(fd, p[0], NULL, 100) < 0);
    fill(p[1]);
    at = 0;
    if (is_socket_kind(streams[kind])) {
        close(p[0]);
        signal(SIGPIPE, SIG_IGN);
        pause_ms(5);
        SAY(sendfile(p[1], fd, &at, 100) < 0);
    }
}

FAMILY(sendfile_without_room, stream_names)
{
    int p[2], fd = (int)MUST(memfd_create("m", 0));
    if (streams[kind] == PTY)
        return;
    make_pair(streams[kind], p);
    MUST(write(fd, buf, 100000));
    fill(p[1]);
    off_t at = 0;
    fcntl(p[1], F_SETFL, O_NONBLOCK);
    SAY(sendfile(p[1], fd, &at, 1000));
    fcntl(p[1], F_SETFL, 0);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(sendfile(p[1], fd, &at, 1000));
    signal_me_no_more(peer);
    if (is_socket_kind(streams[kind])) {
        set_timeout(p[1], SO_SNDTIMEO, 20);
        SAY(sendfile(p[1], fd, &at, 1000));
    }
}

static const char *const splice_names[] = {"pipe", "unix_stream", "tcp", NULL};
static const int splices[] = {PIPE, UNIX_STREAM, TCP};

FAMILY(splice_waits_for_data, splice_names)
{
    int p[2], q[2];
    make_pair(splices[kind], p);
    make_pair(PIPE, q);
    if (splices[kind] == PIPE)
        SAY(splice(p[0], NULL, q[1], NULL, 100, SPLICE_F_NONBLOCK));
    if (in_peer(SOON)) {
        close(p[0]);
        act_now();
        write(p[1], "hello", 5);
        pause_ms(SOON);
        done();
    }
    close(p[1]);
    SAY(splice(p[0], NULL, q[1], NULL, 100, 0));
    say_acted();
    SAY(read(q[0], buf, 100));
    SAY(splice(p[0], NULL, q[1], NULL, 100, 0));
    SAY(splice(p[0], NULL, p[0], NULL, 100, 0) < 0);
    SAY(splice(p[0], NULL, q[1], NULL, 0, 0));
    SAY(splice(999, NULL, q[1], NULL, 1, 0));
}

FAMILY(splice_moves_all_the_pipe_holds, splice_names)
{
    int p[2], q[2];
    make_pair(splices[kind], p);
    make_pair(PIPE, q);
    MUST(write(q[1], buf, 50000));
    fill(p[1]);
    if (in_peer(SOON)) {
        close(p[1]);
        act_now();
        drain(p[0], 1 << 22);
        done();
    }
    close(p[0]);
    SAY(splice(q[0], NULL, p[1], NULL, 100000, 0));
    say_acted();
}

/* ---- children ------------------------------------------------------------------------------------------------ */

static pid_t child(int ms, int status)
{
    pid_t pid = (pid_t)MUST(fork());
    if (pid == 0) {
        pause_ms(ms);
        _exit(status);
    }
    return pid;
}

static int status;

static void say_wait(const char *what, pid_t r, pid_t expected)
{
    say("%s: %s, status %x", what,
        r == expected ? "the child"
        : r < 0       ? "error"
        : r           ? "another"
                      : "none",
        status);
}

SCENARIO(waits_for_a_child)
{
    struct rusage usage = {.ru_maxrss = -1};
    pid_t pid = child(SOON, 3);
    say_wait("waitpid", waitpid(pid, &status, 0), pid);
    pid = child(SOON, 4);
    say_wait("wait4", wait4(pid, &status, 0, &usage), pid);
    say("usage filled %d", usage.ru_maxrss >= 0);
    pid = child(SOON, 5);
    say_wait("waitpid -1", waitpid(-1, &status, 0), pid);
    pid = child(SOON, 6);
    say_wait("wait", wait(&status), pid);
    pid = child(SOON, 7);
    say_wait("wait3", wait3(&status, 0, NULL), pid);
    pid = child(SOON, 8);
    say_wait("waitpid 0", waitpid(0, &status, 0), pid);
    pid = child(SOON, 9);
    siginfo_t info = {0};
    SAY(waitid(P_PID, (id_t)pid, &info, WEXITED));
    say("%d code %d status %d", info.si_pid == pid, info.si_code, info.si_status);
    pid = child(SOON, 10);
    SAY(waitid(P_ALL, 0, &info, WEXITED | WNOWAIT));
    say("%d status %d", info.si_pid == pid, info.si_status);
    SAY(waitid(P_ALL, 0, NULL, WEXITED));
    pid = child(SOON, 11);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    SAY(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED));
    say("status %d", info.si_status);
    pid = child(200, 12);
    say_wait("WNOHANG", waitpid(pid, &status, WNOHANG), pid);
    kill(pid, SIGKILL);
    say_wait("killed", waitpid(pid, &status, 0), pid);
}

SCENARIO(wait_errors)
{
    SAY(wait(NULL));
    SAY(waitpid(-1, NULL, 0));
    SAY(waitpid(1, NULL, 0));
    SAY(waitpid(getpid(), NULL, 0));
    SAY(waitpid(-1, NULL, 0x1234));
    siginfo_t info;
    SAY(waitid(P_PID, 1, &info, WEXITED));
    SAY(waitid(P_ALL, 0, &info, 0));
    SAY(waitid((idtype_t)77, 0, &info, WEXITED));
    SAY(waitid(P_PIDFD, 999, &info, WEXITED));
    child(5000, 0);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(waitpid(-1, NULL, 0));
    SAY(wait(NULL));
    SAY(waitid(P_ALL, 0, &info, WEXITED));
    signal_me_no_more(peer);
}

SCENARIO(wait_restarts)
{
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1), pid = child(4 * SOON, 5);
    say_wait("waitpid", waitpid(pid, &status, 0), pid);
    signal_me_no_more(peer);
    say("handlers ran: %d", signals_seen > 0);
}

SCENARIO(waits_for_group_while_others_end)
{
    pid_t other = child(0, 1), pid = child(3 * SOON, 2);
    setpgid(pid, pid);
    say_wait("group", waitpid(-pid, &status, 0), pid);
    say_wait("other", waitpid(other, &status, 0), other);
}

SCENARIO(sees_stop_and_continue)
{
    pid_t pid = child(5000, 0);
    if (in_peer(SOON)) {
        kill(pid, SIGSTOP);
        pause_ms(100);
        kill(pid, SIGCONT);
        pause_ms(100);
        kill(pid, SIGTERM);
        done();
    }
    say_wait("stop", waitpid(pid, &status, WUNTRACED), pid);
    say_wait("continue", waitpid(pid, &status, WCONTINUED), pid);
    say_wait("end", waitpid(pid, &status, 0), pid);
}

static void *fork_later(void *unused)
{
    (void)unused;
    pause_ms(2 * SOON);
    child(0, 9);
    return NULL;
}

SCENARIO(child_made_while_waiting)
{
    pid_t slow = child(5000, 1);
    pthread_t thread;
    pthread_create(&thread, NULL, fork_later, NULL);
    pid_t pid = wait(&status);
    say("another %d, status %x", pid > 0 && pid != slow, status);
    pthread_join(thread, NULL);
}

SCENARIO(system_runs_commands)
{
    SAY_LOOSELY(system("exit 3"));
    SAY_LOOSELY(system("sleep 0.02; kill -9 $$"));
    SAY_LOOSELY(system(NULL) != 0);
    SAY_LOOSELY(system("exec no-such-command-at-all 2>/dev/null"));
    struct sigaction action;
    sigaction(SIGINT, NULL, &action);
    say("SIGINT default again %d", action.sa_handler == SIG_DFL);
    SAY_LOOSELY(system("trap 'exit 7' INT; kill -INT $$; exit 1"));
}

SCENARIO(popen_and_pclose)
{
    FILE *f = popen("sleep 0.03; cat; exit 5", "w");
    fputs("", f);
    SAY_LOOSELY(pclose(f));
    f = popen("echo out; exit 2", "r");
    say("%s", fgets(buf, 100, f) ? buf : "nothing");
    SAY_LOOSELY(pclose(f));
}

/* ---- locks ------------------------------------------------------------------------------------------------------ */

SCENARIO(flock_waits)
{
    char path[] = "/tmp/portalpatch-XXXXXX";
    int fd = (int)MUST(mkstemp(path)), other = (int)MUST(open(path, O_RDWR));
    unlink(path);
    SAY(flock(fd, LOCK_EX));
    SAY(flock(other, LOCK_EX | LOCK_NB));
    SAY(flock(other, LOCK_SH | LOCK_NB));
    if (in_peer(SOON)) {
        close(other);
        act_now();
        flock(fd, LOCK_UN);
        done();
    }
    SAY(flock(other, LOCK_EX));
    say_acted();
    SAY(flock(999, LOCK_EX));
    SAY(flock(fd, 77));
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(flock(fd, LOCK_EX));
    signal_me_no_more(peer);
}

static const char *const lock_names[] = {"posix", "ofd", "lockf", NULL};

FAMILY(record_locks_wait, lock_names)
{
    char path[] = "/tmp/portalpatch-XXXXXX";
    int fd = (int)MUST(mkstemp(path));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
    int wait = kind == 1 ? F_OFD_SETLKW : F_SETLKW, try = kind == 1 ? F_OFD_SETLK : F_SETLK;
    if (in_peer(0)) {
        int mine = open(path, O_RDWR);
        fcntl(mine, try, &lock);
        shared[1] = 1;
        while (!shared[2])
            pause_ms(1);
        pause_ms(SOON);
        act_now();
        close(mine);
        done();
    }
    while (!shared[1])
        pause_ms(1);
    SAY(kind == 2 ? lockf(fd, F_TLOCK, 10) : fcntl(fd, try, &lock));
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(kind == 2 ? lockf(fd, F_LOCK, 10) : fcntl(fd, wait, &lock));
    signal_me_no_more(peer);
    shared[2] = 1;
    SAY(kind == 2 ? lockf(fd, F_LOCK, 10) : fcntl(fd, wait, &lock));
    say_acted();
    lock.l_type = F_UNLCK;
    SAY(kind == 2 ? lockf(fd, F_ULOCK, 10) : fcntl(fd, wait, &lock));
    SAY(kind == 2 ? lockf(999, F_LOCK, 10) : fcntl(999, wait, &lock));
    lock.l_type = 77;
    SAY(kind == 2 ? lockf(fd, 77, 10) : fcntl(fd, wait, &lock));
    unlink(path);
}

SCENARIO(fclose_of_what_has_no_fd)
{
    FILE *file = fmemopen(NULL, 100, "w");
    SAY(fclose(file));
}

SCENARIO(fcntl_passes_everything_else)
{
    int p[2];
    make_pair(PIPE, p);
    int high = fcntl(p[0], F_DUPFD, 300);
    SAY(fcntl(p[0], F_DUPFD, 100000000));
    SAY(high == 300 && fcntl(high, F_GETFD) == 0);
    SAY(fcntl(fcntl(p[0], F_DUPFD_CLOEXEC, 310), F_GETFD));
    SAY(fcntl(p[0], F_SETFD, FD_CLOEXEC));
    SAY(fcntl(p[0], F_GETFD));
    SAY(fcntl(p[0], F_SETFL, O_NONBLOCK));
    SAY(fcntl(p[0], F_GETFL));
    SAY(fcntl(p[0], F_SETPIPE_SZ, 8192));
    SAY(fcntl(p[0], F_GETPIPE_SZ));
    SAY(fcntl(p[0], F_SETOWN, getpid()));
    SAY(fcntl(p[0], F_GETOWN) == getpid());
    SAY(fcntl(p[0], 12345, 0));
    SAY(fcntl(-1, F_GETFL));
}

/* ---- names ------------------------------------------------------------------------------------------------------------- */

static void say_host(const char *what, const struct hostent *h)
{
    if (!h) {
        say("%s: no, h_errno %d", what, h_errno);
        return;
    }
    say("%s: %s type %d length %d", what, h->h_name, h->h_addrtype, h->h_length);
    for (char **a = h->h_aliases; *a; a++)
        say("  alias %s", *a);
    for (char **a = h->h_addr_list; *a; a++)
        say_bytes("address", *a, (size_t)h->h_length);
}

SCENARIO(host_names)
{
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    say_host("localhost", gethostbyname("localhost"));
    say_host("127.0.0.1", gethostbyname("127.0.0.1"));
    say_host("localhost 6", gethostbyname2("localhost", AF_INET6));
    say_host("by address", gethostbyaddr(&loopback, sizeof loopback, AF_INET));
    say_host("bad length", gethostbyaddr(&loopback, 3, AF_INET));
    say_host("bad family", gethostbyname2("localhost", 77));
    struct hostent entry, *result = (void *)1;
    int h_error = -1;
    for (int shift = 0; shift < 9; shift += 3) {
        memset(buf, 0x55, 1000);
        SAY_LOOSELY(gethostbyname_r("localhost", &entry, buf + shift, 500, &result, &h_error));
        say_host("reentrant", result);
        say("result %d, inside %d, after %x", result == &entry,
            entry.h_name >= buf + shift && entry.h_name < buf + shift + 500, buf[shift + 500]);
    }
    SAY_LOOSELY(gethostbyname_r("localhost", &entry, buf, 5, &result, &h_error));
    say("result %d", result != NULL);
    SAY_LOOSELY(gethostbyname2_r("localhost", AF_INET6, &entry, buf, 1000, &result, &h_error));
    say("result %d, error %d", result != NULL, h_error);
    SAY_LOOSELY(
        gethostbyaddr_r(&loopback, sizeof loopback, AF_INET, &entry, buf, 1000, &result, &h_error));
    say_host("reentrant by address", result);
}

SCENARIO(name_info)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char host[100] = "?", service[100] = "?";
    int flags[] = {0,         NI_NUMERICHOST, NI_NUMERICSERV, NI_NUMERICHOST | NI_NUMERICSERV,
                   NI_NOFQDN, NI_NAMEREQD};
    for (int i = 0; i < 6; i++) {
        SAY_LOOSELY(getnameinfo((struct sockaddr *)&addr, sizeof addr, host, sizeof host, service,
                                sizeof service, flags[i]));
        say("%s %s", host, service);
    }
    SAY_LOOSELY(getnameinfo((struct sockaddr *)&addr, sizeof addr, host, 3, NULL, 0, 0));
    SAY_LOOSELY(getnameinfo((struct sockaddr *)&addr, sizeof addr, NULL, 0, service, 100, 0));
    SAY_LOOSELY(getnameinfo((struct sockaddr *)&addr, 3, host, 100, NULL, 0, 0));
    SAY_LOOSELY(getnameinfo((struct sockaddr *)&addr, sizeof addr, NULL, 0, NULL, 0, 0));
}

/* A name server of our own: answers every query with one A record. */
static struct sockaddr_in name_server(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int fd = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(fd, (struct sockaddr *)&addr, len));
    MUST(getsockname(fd, (struct sockaddr *)&addr, &len));
    if (!in_peer(0)) {
        close(fd);
        return addr;
    }
    for (;;) {
        unsigned char packet[600];
        struct sockaddr_in from;
        socklen_t from_len = sizeof from;
        ssize_t n = recvfrom(fd, packet, 512, 0, (struct sockaddr *)&from, &from_len);
        static const unsigned char record[] = {0xc0, 12, 0, 1, 0,  1, 0, 0,
                                               0,    60, 0, 4, 10, 1, 2, 3};
        pause_ms(SOON);
        packet[2] = 0x81;
        packet[3] = 0x80;
        packet[7] = 1;
        packet[11] = 0; /* no additional records */
        memcpy(packet + n, record, sizeof record);
        sendto(fd, packet, (size_t)n + sizeof record, 0, (struct sockaddr *)&from, from_len);
    }
}

SCENARIO(resolver_asks_name_server)
{
    struct sockaddr_in server = name_server();
    struct __res_state state = {0};
    unsigned char query[512], answer[512];
    MUST(res_ninit(&state));
    state.nscount = 1;
    state.nsaddr_list[0] = server;
    state.options &= ~(unsigned long)(RES_USE_EDNS0);
    SAY_LOOSELY(res_nquery(&state, "example.test", 1, 1, answer, sizeof answer));
    say_bytes("answer", answer + 2, 44);
    SAY_LOOSELY(res_nsearch(&state, "example.test.", 1, 1, answer, sizeof answer));
    int n = res_nmkquery(&state, 0, "example.test", 1, 1, NULL, 0, NULL, query, sizeof query);
    SAY_LOOSELY(res_nsend(&state, query, n, answer, sizeof answer));
    res_nclose(&state);
    say_bytes("answer", answer + 2, 44);
    MUST(res_init());
    _res.nscount = 1;
    _res.nsaddr_list[0] = server;
    SAY_LOOSELY(res_query("example.test", 1, 1, answer, sizeof answer));
    SAY_LOOSELY(res_search("example.test.", 1, 1, answer, sizeof answer));
    SAY_LOOSELY(res_send(query, n, answer, sizeof answer));
}

/* ---- signals ------------------------------------------------------------------------------------------------------------ */

SCENARIO(sigwaits)
{
    sigset_t set;
    int signo = 0;
    siginfo_t info;
    struct timespec t = {0, 20000000}, zero = {0, 0}, bad = {0, -1};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (in_peer(SOON)) {
        until_it_waits();
        kill(getppid(), SIGUSR1);
        until_it_waits();
        kill(getppid(), SIGUSR2);
        until_it_waits();
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY_LOOSELY(sigwait(&set, &signo));
    say("signal %d", signo);
    SAY(sigwaitinfo(&set, &info));
    say("signal %d code %d", info.si_signo, info.si_code);
    SAY(sigwaitinfo(&set, NULL));
    SAY(sigtimedwait(&set, &info, &zero));
    SAY(sigtimedwait(&set, &info, &t));
    SAY(sigtimedwait(&set, &info, &bad));
    on_signal(SIGALRM, 0);
    pid_t peer = signal_me(SIGALRM);
    SAY(sigwaitinfo(&set, &info));
    t.tv_sec = 5;
    SAY(sigtimedwait(&set, &info, &t));
    if (in_peer(3 * SOON)) {
        kill(getppid(), SIGUSR2);
        done();
    }
    SAY_LOOSELY(sigwait(&set, &signo));
    say("signal %d", signo);
    signal_me_no_more(peer);
}

SCENARIO(sigwait_takes_unblocked_signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    on_signal(SIGUSR1, 0);
    if (in_peer(SOON)) {
        until_it_waits();
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY(sigwaitinfo(&set, NULL));
    say("handlers %d", signals_seen);
    sigprocmask(SIG_BLOCK, NULL, &set);
    say("blocked %d", sigismember(&set, SIGUSR1));
}

SCENARIO(pause_ends_with_a_handler)
{
    on_signal(SIGUSR1, SA_RESTART);
    if (in_peer(SOON)) {
        until_it_waits();
        act_now();
        kill(getppid(), SIGUSR1);
        done();
    }
    SAY(pause());
    say_acted();
}

SCENARIO(epoll_pwait2_waits)
{
    int p[2], epfd = (int)MUST(epoll_create1(0));
    make_pair(TCP, p);
    struct epoll_event e = {.events = EPOLLIN}, got;
    MUST(epoll_ctl(epfd, EPOLL_CTL_ADD, p[0], &e));
    struct timespec t = {0, 20000000}, bad = {0, -1}, zero = {0, 0};
    SAY(epoll_pwait2(epfd, &got, 1, &t, NULL));
    SAY(epoll_pwait2(epfd, &got, 1, &zero, NULL));
    SAY(epoll_pwait2(epfd, &got, 1, &bad, NULL));
    SAY(epoll_pwait2(999, &got, 1, &t, NULL));
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "x", 1);
        done();
    }
    SAY(epoll_pwait2(epfd, &got, 1, NULL, NULL));
    say_acted();
}
