/* pass_cost.c: what an idle preload adds to a call: ns per call of a few, best of several rounds.
 *
 * Run plain and preloaded and compare: pass_cost. clock_nanosleep with a clock libc refuses makes no
 * system call, so it shows the bare dispatch; recv on a ready socket is the usual case.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define ROUNDS 15
#define MEASURE(name, count, call)                     \
    do {                                               \
        double best = 1e18;                            \
        for (int round = 0; round < ROUNDS; round++) { \
            double start = now();                      \
            for (int i = 0; i < (count); i++)          \
                (void)!(call);                         \
            double each = (now() - start) / (count);   \
            best = each < best ? each : best;          \
        }                                              \
        printf("%-24s %8.2f ns\n", name, best);        \
    } while (0)

int main(void)
{
    int pair[2];
    char c = 'x';
    struct timespec t = {0, 0};
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    (void)!write(pair[1], &c, 1);
    MEASURE("dispatch only", 1000000, clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &t, NULL));
    MEASURE("recv, ready", 100000, recv(pair[0], &c, 1, MSG_PEEK));
    MEASURE("fcntl", 100000, fcntl(pair[0], F_GETFD));
    MEASURE("close, bad fd", 100000, close(-1));
    MEASURE("close, bad fd 999", 100000, close(999));
    return 0;
}
