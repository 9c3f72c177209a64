/* passthrough.c: how long recv on a ready socket takes. bench_passthrough.py runs it plain and under
 * the idle preload, in turns, and compares. Prints nanoseconds per call.
 * MSG_PEEK leaves the byte there, so that every call finds the socket ready. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv)
{
    long calls = argc > 1 ? atol(argv[1]) : 1000000;
    int pair[2];
    char byte = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || send(pair[0], &byte, 1, 0) != 1) {
        perror("socketpair");
        return 1;
    }
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < calls; i++) {
        if (recv(pair[1], &byte, 1, MSG_PEEK) != 1) {
            perror("recv");
            return 1;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
    printf("%.2f\n", ns / (double)calls);
    return 0;
}
