/* scenarios.c: runs scenarios and prints their transcripts: scenarios [--list | NAME...].
 *
 * Each scenario is a process of its own (its own process group), several at a time, under a
 * watchdog. Ends with one line on stderr: how often the calls of all scenarios passed and parked.
 * Invariant: transcripts come out in the order of the names, whatever ran first.
 */
#include "scenarios.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <termios.h>

#include "portal_abi.h"

/* The library's counters, where it is preloaded or attached. */
static const struct pp_call_stats *(*call_statistics)(void);
static int (*call_count)(void);

#define MOST_SCENARIOS 5000
#define TRANSCRIPT 8192
#define AT_ONCE \
    8 /* SCENARIOS_AT_ONCE says otherwise: random programs wait more than they compute */
#define WATCHDOG 20 /* seconds */

static struct scenario all[MOST_SCENARIOS];
static int count;

struct transcript {
    size_t used;
    volatile int shared[8];
    uint64_t passed, parked;
    char text[TRANSCRIPT];
};

static struct transcript *mine;
volatile int *shared;
bool may_fault;
volatile sig_atomic_t signals_seen;

void add_scenario(const char *name, void (*run)(int), int kind)
{
    if (count == MOST_SCENARIOS)
        abort();
    all[count++] = (struct scenario){name, run, kind};
}

/* ---- saying ------------------------------------------------------------------------------------- */

void say(const char *format, ...)
{
    int saved = errno;
    va_list args;
    va_start(args, format);
    size_t room = TRANSCRIPT - mine->used - 2;
    int n = vsnprintf(mine->text + mine->used, room, format, args);
    va_end(args);
    mine->used += (size_t)n < room ? (size_t)n : room - 1;
    mine->text[mine->used++] = '\n';
    errno = saved;
}

void say_bytes(const char *what, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uint32_t hash = 2166136261u;
    char first[3 * 16 + 1] = "";
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ p[i]) * 16777619u;
        if (i < 16)
            sprintf(first + 3 * i, " %02x", p[i]);
    }
    say("  %s: %zu bytes, hash %08x,%s", what, n, hash, first);
}

void say_result(const char *what, long r, int error)
{
    if (r == -1)
        say("%s = -1 %s", what,
            strerrorname_np(error) ? strerrorname_np(error) : "(errno untouched)");
    else
        say("%s = %ld%s", what, r, error == UNTOUCHED ? "" : ", and errno was touched");
}

/* ---- time and peers --------------------------------------------------------------------------------- */

int64_t clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

void pause_ms(int ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    while (syscall(SYS_nanosleep, &t, &t) < 0 && errno == EINTR)
        ;
}

bool in_peer(int ms)
{
    if (MUST(fork()) > 0)
        return false;
    sigset_t everything;
    sigfillset(&everything);
    sigprocmask(SIG_SETMASK, &everything, NULL);
    pause_ms(ms);
    return true;
}

void until_it_waits(void)
{
    char path[40], line[200], state = 0;
    sprintf(path, "/proc/%d/stat", getppid());
    while (state != 'S') {
        FILE *file = fopen(path, "r");
        if (!file || !fgets(line, sizeof line, file) ||
            sscanf(line, "%*d (%*[^)]) %c", &state) != 1)
            done();
        fclose(file);
        pause_ms(1);
    }
}

void done(void)
{
    _exit(0);
}

void act_now(void)
{
    shared[0] = 1;
}

void say_acted(void)
{
    say("  returned %s the peer acted", shared[0] ? "after" : "before");
}

static void count_signal(int signo)
{
    (void)signo;
    signals_seen++;
}

void on_signal(int signo, int flags)
{
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = flags};
    MUST(sigaction(signo, &action, NULL));
}

pid_t signal_me(int signo)
{
    pid_t me = getpid(), peer = (pid_t)MUST(fork());
    if (peer == 0)
        for (;;) {
            pause_ms(SOON);
            kill(me, signo);
        }
    return peer;
}

void signal_me_no_more(pid_t peer)
{
    kill(peer, SIGKILL);
    while (syscall(SYS_wait4, peer, NULL, 0, NULL) < 0 && errno == EINTR)
        ;
}

/* ---- kinds of fd -------------------------------------------------------------------------------------- */

const char *const pair_names[] = {"pipe", "fifo", "unix_stream", "unix_dgram", "unix_seqpacket",
                                  "tcp",  "udp",  "pty",         NULL};
const char *const socket_pair_names[] = {"unix_stream", "unix_dgram", "unix_seqpacket",
                                         "tcp",         "udp",        NULL};
const int socket_pairs[] = {UNIX_STREAM, UNIX_DGRAM, UNIX_SEQPACKET, TCP, UDP};
const char *const stream_names[] = {"pipe", "fifo", "unix_stream", "tcp", "pty", NULL};
const int streams[] = {PIPE, FIFO, UNIX_STREAM, TCP, PTY};

bool is_socket_kind(int kind)
{
    return kind != PIPE && kind != FIFO && kind != PTY;
}

int listener(struct sockaddr_in *addr, int backlog)
{
    socklen_t len = sizeof *addr;
    int fd = (int)MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    *addr = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(fd, (struct sockaddr *)addr, len));
    MUST(listen(fd, backlog));
    MUST(getsockname(fd, (struct sockaddr *)addr, &len));
    return fd;
}

static void make_udp(int pair[2])
{
    struct sockaddr_in addr[2];
    for (int i = 0; i < 2; i++) {
        socklen_t len = sizeof addr[i];
        addr[i] =
            (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        pair[i] = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
        MUST(bind(pair[i], (struct sockaddr *)&addr[i], len));
        MUST(getsockname(pair[i], (struct sockaddr *)&addr[i], &len));
    }
    MUST(connect(pair[0], (struct sockaddr *)&addr[1], sizeof addr[1]));
    MUST(connect(pair[1], (struct sockaddr *)&addr[0], sizeof addr[0]));
}

/* read end: the master; write end: the slave, which passes bytes on as they are: where it turned a
 * newline into two bytes the kernel would hand the text over in two pieces, and how many of them one
 * read gets is chance. */
static void make_pty(int pair[2])
{
    struct termios raw;
    pair[0] = (int)MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    MUST(grantpt(pair[0]));
    MUST(unlockpt(pair[0]));
    pair[1] = (int)MUST(open(ptsname(pair[0]), O_RDWR | O_NOCTTY));
    MUST(tcgetattr(pair[1], &raw));
    raw.c_oflag &= ~(tcflag_t)OPOST;
    MUST(tcsetattr(pair[1], TCSANOW, &raw));
}

void make_pair(int kind, int pair[2])
{
    static const int types[] = {
        [UNIX_STREAM] = SOCK_STREAM, [UNIX_DGRAM] = SOCK_DGRAM, [UNIX_SEQPACKET] = SOCK_SEQPACKET};
    char path[64];
    struct sockaddr_in addr;
    int l, one = 1, size = 100000;
    switch (kind) {
    case PIPE:
        MUST(pipe(pair));
        break;
    case FIFO:
        sprintf(path, "/tmp/portalpatch-fifo-%d", getpid());
        MUST(mkfifo(path, 0600));
        pair[0] = (int)MUST(open(path, O_RDONLY | O_NONBLOCK));
        pair[1] = (int)MUST(open(path, O_WRONLY));
        MUST(fcntl(pair[0], F_SETFL, 0));
        unlink(path);
        break;
    case TCP: /* buffers of a fixed size: the kernel would grow them when it likes */
        l = listener(&addr, 1);
        MUST(setsockopt(l, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
        pair[1] = (int)MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
        MUST(connect(pair[1], (struct sockaddr *)&addr, sizeof addr));
        pair[0] = (int)MUST(accept(l, NULL, NULL));
        for (int end = 0; end < 2; end++) /* else what arrives when depends on acknowledgements */
            MUST(setsockopt(pair[end], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
        close(l);
        break;
    case UDP:
        make_udp(pair);
        break;
    case PTY:
        make_pty(pair);
        break;
    default:
        MUST(socketpair(AF_UNIX, types[kind], 0, pair));
    }
}

void fill(int fd)
{
    static char block[65536];
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    /* What is on its way to the other end makes room again, TCP's delayed acknowledgement 40 ms
     * later: until that has settled. */
    for (int full = 0; full < 3; full++) {
        for (size_t n = sizeof block; n; n /= 2)
            while (write(fd, block, n) > 0)
                full = 0;
        pause_ms(25);
    }
    fcntl(fd, F_SETFL, flags);
}

size_t drain(int fd, size_t most)
{
    static char block[65536];
    size_t total = 0;
    while (total < most) {
        ssize_t n = read(fd, block, most - total < sizeof block ? most - total : sizeof block);
        if (n <= 0)
            break;
        total += (size_t)n;
    }
    return total;
}

void set_timeout(int fd, int option, int ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    MUST(setsockopt(fd, SOL_SOCKET, option, &t, sizeof t));
}

/* ---- running ------------------------------------------------------------------------------------------- */

static void add_up_calls(struct transcript *t)
{
    if (!call_statistics)
        return;
    const struct pp_call_stats *stats = call_statistics();
    for (int i = 0; i < call_count(); i++) {
        t->passed += stats[i].passed;
        t->parked += stats[i].parked;
    }
}

static pid_t begin(int i, struct transcript *t)
{
    pid_t pid = (pid_t)fork();
    if (pid != 0)
        return pid;
    setpgid(0, 0);
    mine = t;
    shared = t->shared;
    struct transcript before = {0};
    add_up_calls(&before);
    alarm(WATCHDOG);
    all[i].run(all[i].kind);
    add_up_calls(t);
    t->passed -= before.passed;
    t->parked -= before.parked;
    exit(0);
}

static void finish(int i, int status)
{
    (void)i;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        say("HANGS");
    else if (WIFSIGNALED(status))
        say("killed by SIG%s", sigabbrev_np(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        say("exit status %d", WEXITSTATUS(status));
}

/* SCENARIOS_ATTACH names c_portal.so: load it, and with it the library, and hook this program. */
static void find_library(void)
{
    const char *portal = getenv("SCENARIOS_ATTACH");
    void *library = portal ? dlopen(portal, RTLD_NOW | RTLD_LOCAL) : RTLD_DEFAULT;
    if (portal && !library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    *(void **)&call_statistics = dlsym(library, "pp_call_statistics");
    *(void **)&call_count = dlsym(library, "pp_call_count");
    int (*attach)(void) = NULL;
    if (portal)
        *(void **)&attach = dlsym(library, "pp_attach");
    if (portal && (!attach || attach() < 0))
        exit(1);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct scenario *)a)->name, ((const struct scenario *)b)->name);
}

static bool is_chosen(const char *name, int argc, char **argv)
{
    bool chosen = argc == 1;
    for (int a = 1; a < argc; a++)
        if (strncmp(name, argv[a], strlen(argv[a])) == 0)
            chosen = true;
    return chosen;
}

int main(int argc, char **argv)
{
    static pid_t pids[MOST_SCENARIOS];
    qsort(all, (size_t)count, sizeof *all, by_name);
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (int i = 0; i < count; i++)
            puts(all[i].name);
        return 0;
    }
    find_library();
    signal(SIGPIPE, SIG_DFL);
    may_fault = !getenv("SCENARIOS_NO_FAULTS");
    struct transcript *transcripts =
        mmap(NULL, sizeof *transcripts * (size_t)count, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int running = 0, next = 0;
    int at_once = getenv("SCENARIOS_AT_ONCE") ? atoi(getenv("SCENARIOS_AT_ONCE")) : AT_ONCE;
    while (next < count || running) {
        while (next < count && running < at_once) {
            if (is_chosen(all[next].name, argc, argv)) {
                pids[next] = begin(next, &transcripts[next]);
                running++;
            }
            next++;
        }
        int status;
        pid_t ended = running ? (pid_t)syscall(SYS_wait4, -1, &status, 0, NULL) : -1;
        for (int i = 0; ended > 0 && i < next; i++) {
            if (pids[i] == ended) {
                mine = &transcripts[i];
                finish(i, status);
                kill(-ended, SIGKILL); /* its peers */
                running--;
            }
        }
    }
    uint64_t passed = 0, parked = 0;
    for (int i = 0; i < count; i++) {
        if (!pids[i])
            continue;
        printf("== %s\n%s", all[i].name, transcripts[i].text);
        passed += transcripts[i].passed;
        parked += transcripts[i].parked;
    }
    fprintf(stderr, "passed %llu parked %llu\n", (unsigned long long)passed,
            (unsigned long long)parked);
    return 0;
}
