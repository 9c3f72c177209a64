/* guest.c: a library as others write them: it blocks in libc and knows nothing of us.
 *
 * test_attach.py compiles it in many ways (lazily bound, -z now, -fno-plt, _FORTIFY_SOURCE) and
 * attach_host.c loads and calls it. guest_load() loads a neighbour by its bare name, which only this
 * library's RUNPATH can find.
 */
#include <dlfcn.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Sizes the compiler cannot know, so that _FORTIFY_SOURCE has something to check at run time. */
int guest_blocks(int fd, size_t n)
{
    char buf[64];
    struct pollfd p[4] = {{.fd = fd, .events = POLLIN}};
    if (poll(p, n < 4 ? n : 4, 5000) != 1)
        return -1;
    return (int)recv(fd, buf, n, 0);
}

int guest_sleeps(void)
{
    struct timespec t = {0, 1000000};
    return nanosleep(&t, NULL);
}

int guest_reads(int fd, size_t n)
{
    char buf[64];
    return (int)read(fd, buf, n);
}

void *guest_load(const char *name)
{
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return handle;
}

int (*guest_pointer(void))(void)
{
    return guest_sleeps;
}
