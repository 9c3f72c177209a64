/* unit.c: what only the library's own interface shows: the pool, closed fds, abandoned offloads,
 * closed streams, signals in the midst of a call. test_unit.py runs unit NAME under the preload with the C portal, and wants "ok"; without a
 * name it lists them.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "portal_abi.h"

#define CHECK(condition)                                   \
    do {                                                   \
        if (!(condition)) {                                \
            printf("line %d: %s\n", __LINE__, #condition); \
            exit(1);                                       \
        }                                                  \
    } while (0)

static void pause_ms(int ms)
{
    struct timespec t = {0, ms * 1000000L};
    syscall(SYS_nanosleep, &t, NULL);
}

/* ---- closed fds ------------------------------------------------------------------------------------ */

static int pair[2];
static ssize_t result;
static int error;

static void *receive(void *unused)
{
    char c;
    (void)unused;
    result = recv(pair[0], &c, 1, 0);
    error = errno;
    return NULL;
}

/* A thread parks in recv; `end` closes its fd in some way; the wait must end with EBADF. */
static void closes(void (*end)(int))
{
    pthread_t thread;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    uint32_t generation = pp_fd_generation(pair[0]);
    const struct pp_call_stats *stats = pp_call_statistics();
    CHECK(pthread_create(&thread, NULL, receive, NULL) == 0);
    pause_ms(30);
    end(pair[0]);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(result == -1 && error == EBADF);
    CHECK(pp_fd_generation(pair[0]) != generation);
    (void)stats;
}

static void by_close(int fd)
{
    close(fd);
}

static void by_dup2(int fd)
{
    dup2(1, fd);
}

static void by_close_range(int fd)
{
    close_range((unsigned)fd, (unsigned)fd, 0);
}

static void by_fclose(int fd)
{
    fclose(fdopen(fd, "r"));
}

static void test_close(void)
{
    closes(by_close);
    closes(by_dup2);
    closes(by_close_range);
    closes(by_fclose);
}

/* dup2 that fails closes nothing, and wakes nobody. */
static void test_failed_dup2(void)
{
    pthread_t thread;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(pthread_create(&thread, NULL, receive, NULL) == 0);
    pause_ms(30);
    CHECK(dup2(999, pair[0]) == -1 && errno == EBADF);
    CHECK(write(pair[1], "x", 1) == 1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(result == 1);
}

/* ---- standard streams ----------------------------------------------------------------------------- */

static uint64_t parked_in(const char *name)
{
    for (int call = 0; call < pp_call_count(); call++)
        if (strcmp(pp_call_name(call), name) == 0)
            return pp_call_statistics()[call].parked;
    return 0;
}

/* Whether a recv on the first free number, `number`, parks. */
static bool parks_at(int number)
{
    pthread_t thread;
    uint64_t before = parked_in("recv");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pair[0] == number);
    CHECK(pthread_create(&thread, NULL, receive, NULL) == 0);
    pause_ms(30);
    CHECK(write(pair[1], "x", 1) == 1);
    CHECK(pthread_join(thread, NULL) == 0 && result == 1);
    return parked_in("recv") > before;
}

/* What gets the number of a closed stdin is a socket like any other; in a vfork child nothing was closed. */
static void test_streams(void)
{
    pid_t child = vfork();
    if (child == 0) {
        close(0);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    syscall(SYS_close, 0);
    CHECK(!parks_at(0));
    close(0);
    close(pair[1]);
    CHECK(parks_at(0));
    close_range(0, 0, 0);
    close(pair[1]);
    CHECK(parks_at(0));
}

/* The same where it was closed before the program began: here, by ourselves. */
static void test_streams_at_start(void)
{
    if (fcntl(0, F_GETFD) >= 0) {
        syscall(SYS_close, 0);
        execl(program_invocation_name, "unit", "streams_at_start", NULL);
    }
    CHECK(parks_at(0));
}

/* ---- signal handlers ------------------------------------------------------------------------------ */

static int handlers_terminal;
static volatile sig_atomic_t handled;

static void write_to_terminal(int signo)
{
    int saved = errno;
    (void)signo;
    if (write(handlers_terminal, "h", 1) == 1)
        handled++;
    errno = saved;
}

static int open_terminal(int *other_end)
{
    *other_end = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(*other_end >= 0 && grantpt(*other_end) == 0 && unlockpt(*other_end) == 0);
    int fd = open(ptsname(*other_end), O_RDWR | O_NOCTTY);
    CHECK(fd >= 0);
    return fd;
}

/* A write to a terminal makes it non-blocking for an instant: a handler that writes as well, in
 * the midst of that, must not wait for its end. */
static void test_handler_writes(void)
{
    char junk[4096];
    int ends[2], terminal = open_terminal(&ends[0]);
    handlers_terminal = open_terminal(&ends[1]);
    struct sigaction action = {.sa_handler = write_to_terminal, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 3000 || handled < 300; i++) {
        CHECK(write(terminal, "m", 1) == 1);
        for (int end = 0; end < 2; end++)
            (void)!syscall(SYS_read, ends[end], junk, sizeof junk);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

static void count(int signo)
{
    (void)signo;
    handled++;
}

static _Atomic int asking, reader;

/* The number of the system call in which the reader sleeps, or -1. */
static int reader_sleeps_in(void)
{
    char path[64], text[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", reader);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && syscall(SYS_read, fd, text, sizeof text - 1) > 0);
    syscall(SYS_close, fd);
    return text[0] >= '0' && text[0] <= '9' ? atoi(text) : -1;
}

static void *write_when_parked(void *fifo)
{
    while (asking) {
        int number = reader_sleeps_in();
        CHECK(number != SYS_read && number != SYS_readv);
        if (number >= 0)
            CHECK(syscall(SYS_write, *(int *)fifo, "x", 1) == 1);
        sched_yield();
    }
    return NULL;
}

/* An attempt on a FIFO looks with poll first, and a signal may end that look: to read would block. */
static void test_signal_in_a_look(void)
{
    char c, path[] = "/tmp/fifo-XXXXXX";
    const char *preload = getenv("LD_PRELOAD");
    if (preload && strstr(preload, "vgpreload"))
        return; /* valgrind's threads wait for each other in reads of its own */
    close(mkstemp(path));
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    int fifo = open(path, O_RDWR);
    unlink(path);
    pthread_t writer;
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL);
    asking = 1;
    reader = (int)syscall(SYS_gettid);
    CHECK(fifo >= 0 && pthread_create(&writer, NULL, write_when_parked, &fifo) == 0);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 5000; i++) {
        ssize_t r;
        do
            r = read(fifo, &c, 1);
        while (r < 0 && errno == EINTR);
        CHECK(r == 1);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    asking = 0;
    CHECK(pthread_join(writer, NULL) == 0);
}

/* ---- the pool ---------------------------------------------------------------------------------------- */

static int running, most, finished;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void work(void *arg)
{
    sigset_t blocked;
    (void)arg;
    CHECK(*pp_gate_of_this_thread() == 0);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    CHECK(sigismember(&blocked, SIGINT) == 1);
    pthread_mutex_lock(&lock);
    most = ++running > most ? running : most;
    pthread_mutex_unlock(&lock);
    pause_ms(5);
    pthread_mutex_lock(&lock);
    running--;
    pthread_mutex_unlock(&lock);
}

static void done(void *arg)
{
    (void)arg;
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
}

static void submit(int n)
{
    finished = most = 0;
    for (int i = 0; i < n; i++)
        CHECK(pp_pool_submit(work, NULL, done, NULL) == 0);
    while (__atomic_load_n(&finished, __ATOMIC_SEQ_CST) < n)
        pause_ms(1);
}

static void test_pool_bound(void)
{
    pp_pool_set_limit(3);
    submit(30);
    CHECK(most >= 1 && most <= 3);
}

static void test_pool_after_fork(void)
{
    int status;
    submit(4);
    pid_t pid = fork();
    if (pid == 0) {
        submit(4);
        _exit(7);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7);
    submit(4);
}

/* ---- offloads whose caller has gone ---------------------------------------------------------------- */

static void test_abandoned(void)
{
    struct addrinfo *found = NULL;
    struct hostent entry, *host;
    char buf[1000], name[100];
    struct sockaddr_storage addr = {.ss_family = AF_INET};
    int h_error;
    CHECK(setenv("PORTALPATCH_C_PORTAL_ABANDON", "1", 1) == 0);
    CHECK(getaddrinfo("localhost", "80", NULL, &found) == EAI_SYSTEM && errno == ECANCELED &&
          !found);
    CHECK(getnameinfo((struct sockaddr *)&addr, 16, name, 100, NULL, 0, 0) == EAI_SYSTEM &&
          errno == ECANCELED);
    CHECK(gethostbyname("localhost") == NULL && h_errno == NETDB_INTERNAL && errno == ECANCELED);
    CHECK(gethostbyname_r("localhost", &entry, buf, sizeof buf, &host, &h_error) == ECANCELED &&
          !host);
    CHECK(pclose(popen("exit 3", "r")) == -1 && errno == ECANCELED);
    pause_ms(100); /* the workers free what they were given */
}

static void test_version(void)
{
    struct pp_portal_ops ops = {.version = PP_ABI_VERSION + 1, .size = sizeof ops};
    CHECK(pp_install_portal(&ops) == -1 && errno == EINVAL);
    ops.version = PP_ABI_VERSION;
    ops.size = 8;
    CHECK(pp_install_portal(&ops) == -1 && errno == EINVAL);
    CHECK(pp_is_preloaded());
    CHECK(strcmp(pp_call_name(0), "read") == 0);
    CHECK(strcmp(pp_call_name(-1), "?") == 0 && strcmp(pp_call_name(pp_call_count()), "?") == 0);
}

/* Without a portal an open gate changes nothing: the calls block. */
static void test_no_portal(void)
{
    char c;
    CHECK(pp_install_portal(NULL) == 0);
    CHECK(pipe(pair) == 0);
    if (fork() == 0) {
        pause_ms(30);
        syscall(SYS_write, pair[1], "x", 1);
        _exit(0);
    }
    CHECK(read(pair[0], &c, 1) == 1);
    CHECK(poll(NULL, 0, 5) == 0);
    CHECK(wait(NULL) > 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"close", test_close},
                 {"failed_dup2", test_failed_dup2},
                 {"streams", test_streams},
                 {"streams_at_start", test_streams_at_start},
                 {"handler_writes", test_handler_writes},
                 {"signal_in_a_look", test_signal_in_a_look},
                 {"pool_bound", test_pool_bound},
                 {"pool_after_fork", test_pool_after_fork},
                 {"abandoned", test_abandoned},
                 {"interface", test_version},
                 {"no_portal", test_no_portal}};
    for (size_t i = 0; argc == 1 && i < sizeof tests / sizeof *tests; i++)
        puts(tests[i].name);
    for (size_t i = 0; argc == 2 && i < sizeof tests / sizeof *tests; i++)
        if (strcmp(tests[i].name, argv[1]) == 0) {
            tests[i].run();
            puts("ok");
            return 0;
        }
    return argc == 1 ? 0 : 2;
}
