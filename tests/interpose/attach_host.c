/* attach_host.c: loads guests, calls them, and prints which of their calls parked: attach_host PORTAL
 * COMMAND...; test_attach.py says what must come out.
 *
 *   attach, detach      pp_attach, pp_detach; prints whether any slots are ours
 *   load=FILE           dlopen; deepbind=FILE: with RTLD_DEEPBIND
 *   neighbour=NAME      the guest itself loads NAME; the host then calls that one
 *   call                guest_blocks, guest_sleeps, guest_reads: how many parked?
 *   dlclose             the guest
 *
 * It is linked to nothing of ours; PORTAL is c_portal.so (or - where that is preloaded).
 */
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "portal_abi.h"

static void *library, *guest;

static void *find(void *where, const char *name)
{
    void *found = dlsym(where, name);
    if (!found) {
        printf("no %s\n", name);
        exit(1);
    }
    return found;
}

static unsigned long parks(void)
{
    const struct pp_call_stats *(*statistics)(void);
    int (*count)(void);
    *(void **)&statistics = find(library, "pp_call_statistics");
    *(void **)&count = find(library, "pp_call_count");
    unsigned long sum = 0;
    for (int i = 0; i < count(); i++)
        sum += statistics()[i].parked;
    return sum;
}

/* A byte comes only after a while: whatever waits for it must park, or block. */
static void send_later(int fd)
{
    if (fork() == 0) {
        struct timespec t = {0, 20000000};
        syscall(SYS_nanosleep, &t, NULL);
        syscall(SYS_write, fd, "x", 1);
        _exit(0);
    }
}

static void call(void)
{
    int (*blocks)(int, size_t), (*sleeps)(void), (*reads)(int, size_t), pair[2];
    *(void **)&blocks = find(guest, "guest_blocks");
    *(void **)&sleeps = find(guest, "guest_sleeps");
    *(void **)&reads = find(guest, "guest_reads");
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    poll(NULL, 0, 0); /* a call like any program makes all the time */
    unsigned long before = parks();
    send_later(pair[1]);
    int r = blocks(pair[0], 1);
    printf("blocks %d parked %lu\n", r, parks() - before);
    before = parks();
    r = sleeps();
    printf("sleeps %d parked %lu\n", r, parks() - before);
    before = parks();
    send_later(pair[1]);
    r = reads(pair[0], 1);
    printf("reads %d parked %lu\n", r, parks() - before);
    while (syscall(SYS_wait4, -1, NULL, 0, NULL) > 0)
        ;
}

static void attach(const char *function)
{
    int (*change)(void);
    void (*report)(struct pp_attach_report *);
    struct pp_attach_report r;
    *(void **)&change = find(library, function);
    *(void **)&report = find(library, "pp_attach_statistics");
    int failed = change();
    report(&r);
    printf("%s %d: %s slots\n", function, failed, r.slots ? "some" : "no");
}

static void load(const char *file, int mode)
{
    guest = dlopen(file, mode);
    if (!guest) {
        printf("%s\n", dlerror());
        exit(1);
    }
}

int main(int argc, char **argv)
{
    library = strcmp(argv[1], "-") ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : RTLD_DEFAULT;
    for (int i = 2; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        if (strcmp(argv[i], "attach") == 0) {
            attach("pp_attach");
        } else if (strcmp(argv[i], "detach") == 0) {
            attach("pp_detach");
        } else if (strcmp(argv[i], "call") == 0) {
            call();
        } else if (strcmp(argv[i], "dlclose") == 0) {
            dlclose(guest);
        } else if (strncmp(argv[i], "load=", 5) == 0) {
            load(value + 1, RTLD_LAZY | RTLD_LOCAL);
        } else if (strncmp(argv[i], "deepbind=", 9) == 0) {
            load(value + 1, RTLD_LAZY | RTLD_LOCAL | RTLD_DEEPBIND);
        } else if (strncmp(argv[i], "neighbour=", 10) == 0) {
            void *(*guest_load)(const char *);
            *(void **)&guest_load = find(guest, "guest_load");
            guest = guest_load(value + 1);
            if (!guest) {
                printf("%s\n", dlerror());
                return 1;
            }
        }
    }
    return 0;
}
