/* scenarios.h: the frame of the differential test: a scenario makes calls and says what it saw.
 *
 * scenarios_*.c define scenarios; scenarios.c runs each in a process of its own and prints its
 * transcript. The same program runs plain, preloaded, and preloaded with the C portal; the
 * transcripts must be equal. So a scenario says nothing that may differ between two plain runs: no
 * fd numbers, no times (only "not before" is asked), no order of unrelated things.
 */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct scenario {
    const char *name;
    void (*run)(int kind); /* kind: of a family of scenarios, else 0 */
    int kind;
};

void add_scenario(const char *name, void (*run)(int), int kind);

/* SCENARIO(name) { ... } */
#define SCENARIO(name)                                        \
    static void name(int kind);                               \
    __attribute__((constructor)) static void add_##name(void) \
    {                                                         \
        add_scenario(#name, name, 0);                         \
    }                                                         \
    static void name(int kind __attribute__((unused)))

/* The same scenario for each kind of a list: FAMILY(name, kind_names) { ... kind ... } */
#define FAMILY(name, kinds)                                            \
    static void name(int kind);                                        \
    __attribute__((constructor)) static void add_##name(void)          \
    {                                                                  \
        for (int k = 0; kinds[k]; k++) {                               \
            char *full = malloc(strlen(#name) + strlen(kinds[k]) + 2); \
            sprintf(full, "%s/%s", #name, kinds[k]);                   \
            add_scenario(full, name, k);                               \
        }                                                              \
    }                                                                  \
    static void name(int kind)

/* ---- saying what was seen ------------------------------------------------------------------------- */

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say_bytes(const char *what, const void *bytes, size_t n); /* length, hash, and the first few */
void say_result(const char *what, long r, int error);

/* SAY(call): result, errno of a failure, and whether a success touched errno. Evaluates to the result. */
#define UNTOUCHED 4242
#define SAY(call)                  \
    ({                             \
        errno = UNTOUCHED;         \
        long r_ = (long)(call);    \
        int e_ = errno;            \
        say_result(#call, r_, e_); \
        r_;                        \
    })

/* The same for calls whose success may touch errno in libc too. */
#define SAY_LOOSELY(call)                                 \
    ({                                                    \
        errno = UNTOUCHED;                                \
        long r_ = (long)(call);                           \
        int e_ = errno;                                   \
        say_result(#call, r_, r_ == -1 ? e_ : UNTOUCHED); \
        r_;                                               \
    })

/* Whether scenarios may pass bad pointers: SCENARIOS_NO_FAULTS is set under tools that mind. */
extern bool may_fault;

/* Set-up calls: failing is a bug of the test. */
#define MUST(call)                                               \
    ({                                                           \
        long m_ = (long)(call);                                  \
        if (m_ < 0) {                                            \
            say("SETUP FAILED: %s: %s", #call, strerror(errno)); \
            exit(1);                                             \
        }                                                        \
        m_;                                                      \
    })

/* ---- time and peers --------------------------------------------------------------------------------- */

#define SOON \
    15 /* ms: the delay before a peer acts; a scenario must be right whatever it really is */

int64_t clock_ms(void);
void pause_ms(int ms); /* by raw system call: never parks */
bool in_peer(int ms);  /* true in a new process that has slept ms; it must end with done() */
void done(void) __attribute__((noreturn));
/* For peers: until the scenario's process sleeps, in its call: for signals that would else be lost. */
void until_it_waits(void);
extern volatile int *shared; /* a few ints shared with peers, 0 at the start */
/* For peers: mark, then act; the scenario says whether it returned only after the mark. */
void act_now(void);
void say_acted(void);

/* Send this process a signal every few ms until told to stop, so that none can be lost by coming
 * before the call it is to interrupt. */
pid_t signal_me(int signo);
void signal_me_no_more(pid_t peer);
void on_signal(int signo, int flags);
extern volatile sig_atomic_t signals_seen;

/* ---- kinds of fd ------------------------------------------------------------------------------------- */

/* Two ends: what is written to pair[1] can be read from pair[0]. */
enum pair_kind { PIPE, FIFO, UNIX_STREAM, UNIX_DGRAM, UNIX_SEQPACKET, TCP, UDP, PTY, PAIR_KINDS };
extern const char *const pair_names[];
extern const char *const socket_pair_names[]; /* the sockets of them, by socket_pairs[kind] */
extern const int socket_pairs[];
extern const char *const stream_names[]; /* the byte streams that fill up, by streams[kind] */
extern const int streams[];
void make_pair(int kind, int pair[2]);
bool is_socket_kind(int kind);
void fill(int fd); /* write until it would block; fd is left blocking */
size_t drain(int fd, size_t most);
void set_timeout(int fd, int option, int ms);
int listener(struct sockaddr_in *addr, int backlog); /* TCP on loopback, a free port */

#endif
