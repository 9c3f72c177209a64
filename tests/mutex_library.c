/* mutex_library.c: a C library that holds a mutex of its own across its blocking call.
 *
 * test_mutex_guard.py compiles it and calls it from two lines of control of one OS thread.
 */
#include <pthread.h>
#include <sys/socket.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The next byte of a socket, or -1. */
int take(int fd)
{
    unsigned char byte;
    pthread_mutex_lock(&lock);
    int r = (int)recv(fd, &byte, 1, 0);
    pthread_mutex_unlock(&lock);
    return r == 1 ? byte : -1;
}
