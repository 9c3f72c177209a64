/* native_library.c: a C library with a signal handler and threads of its own.
 *
 * test_forks_and_threads.py compiles it. Its handler writes to a pipe, as many a self-pipe does; its
 * threads make blocking calls that nobody parks.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int handler_fd;
static volatile sig_atomic_t handled;

static void on_signal(int number)
{
    char byte = (char)number;
    handled++;
    if (write(handler_fd, &byte, 1) != 1)
        _exit(99);
}

int catch_signal(int number, int fd)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    handler_fd = fd;
    return sigaction(number, &action, NULL);
}

int times_handled(void)
{
    return handled;
}

/* Sends back what it receives, one byte at a time, by a different call each time; ends at 0. */
static void *echo(void *fd_as_pointer)
{
    int fd = (int)(intptr_t)fd_as_pointer;
    for (unsigned round = 0;; round++) {
        char byte;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        struct timespec moment = {0, 100000};
        if (round % 3 == 0 && poll(&p, 1, -1) != 1)
            break;
        if (round % 3 == 1)
            nanosleep(&moment, NULL);
        if ((round % 2 ? read(fd, &byte, 1) : recv(fd, &byte, 1, 0)) != 1)
            break;
        if ((round % 2 ? send(fd, &byte, 1, 0) : write(fd, &byte, 1)) != 1)
            break;
    }
    close(fd);
    return NULL;
}

int start_echo(int fd)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, echo, (void *)(intptr_t)fd);
    return error ? error : pthread_detach(thread);
}

/* A thread that calls back when it is told to, and otherwise waits outside Python. */
static void (*callback)(int);
static int orders[2], answers[2];

static void *call_back(void *unused)
{
    unsigned char order;
    while (read(orders[0], &order, 1) == 1 && order) {
        callback(order);
        poll(NULL, 0, 1);
        if (write(answers[1], &order, 1) != 1)
            break;
    }
    return unused;
}

int start_caller(void (*function)(int))
{
    pthread_t thread;
    callback = function;
    if (pipe(orders) < 0 || pipe(answers) < 0)
        return -1;
    int error = pthread_create(&thread, NULL, call_back, NULL);
    return error ? error : pthread_detach(thread);
}

int have_called(int order)
{
    unsigned char byte = (unsigned char)order, answer;
    return write(orders[1], &byte, 1) == 1 && read(answers[0], &answer, 1) == 1 ? answer : -1;
}
