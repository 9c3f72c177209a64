/* bare_wait.c: the system calls that any wait for a socket adds to its recv: the attempt that finds
 * nothing, and the epoll_wait that finds it readable. Prints nanoseconds for both together. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char **argv)
{
    long times = argc > 1 ? atol(argv[1]) : 100000;
    int empty[2], full[2], epoll = epoll_create1(0);
    char byte = 1;
    if (epoll < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, empty) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, full) < 0 || send(full[0], &byte, 1, 0) != 1) {
        perror("socketpair");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, full[1], &event);
    struct timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    for (long i = 0; i < times; i++) {
        if (recv(empty[1], &byte, 1, MSG_DONTWAIT) >= 0 || epoll_wait(epoll, &event, 1, 0) != 1) {
            fprintf(stderr, "not as expected\n");
            return 1;
        }
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    double ns = (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
    printf("%.2f\n", ns / (double)times);
    return 0;
}
