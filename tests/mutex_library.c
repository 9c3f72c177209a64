/* mutex_library.c: a C library that holds a mutex of its own across its blocking call.
 *
 * test_mutex_guard.py compiles it and calls it from two lines of control of one OS thread.
 */
#include <pthread.h>
#include <sys/socket.h>
#include <threads.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mtx_t c11_lock;

static __attribute__((constructor)) void start(void)
{
    mtx_init(&c11_lock, mtx_plain);
}

static int next_byte(int fd)
{
    unsigned char byte;
    return recv(fd, &byte, 1, 0) == 1 ? byte : -1;
}

/* The next byte of a socket, or -1. */
int take(int fd)
{
    pthread_mutex_lock(&lock);
    int byte = next_byte(fd);
    pthread_mutex_unlock(&lock);
    return byte;
}

/* The same, with a lock that is never waited for parked. */
int take_c11(int fd)
{
    mtx_lock(&c11_lock);
    int byte = next_byte(fd);
    mtx_unlock(&c11_lock);
    return byte;
}
