/* fd_calls.c: close, close_range, dup2, dup3, fclose, epoll_create: bookkeeping for who waits on an fd.
 *
 * The whole program calls these, gate or no gate; the portal reads the counters. They count per fd
 * number, hashed, so that a watcher can tell "still the same open file" without a table of fds.
 * They also know when 0, 1 or 2 is no standard stream any more: whatever gets the number then parks
 * like any other (a program started with its stdin closed has its first socket there).
 * Invariant: the counter moves, and waiters are told, before the number can be used again; a vfork
 * child, which runs in its parent's memory, tells nobody (its extra counts cost a re-arm).
 */
#include "interpose.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <stdatomic.h>

#define SLOTS 4096u /* a power of two; fd numbers below it have a slot of their own */

static _Atomic uint32_t generations[SLOTS];
static _Atomic uint32_t watches[SLOTS];

uint32_t pp_fd_generation(int fd)
{
    return atomic_load_explicit(&generations[(unsigned)fd % SLOTS], memory_order_acquire);
}

void pp_fd_watch(int fd)
{
    atomic_fetch_add(&watches[(unsigned)fd % SLOTS], 1);
}

void pp_fd_unwatch(int fd)
{
    atomic_fetch_sub(&watches[(unsigned)fd % SLOTS], 1);
}

void pp_forget_watches(void)
{
    for (unsigned i = 0; i < SLOTS; i++)
        atomic_store_explicit(&watches[i], 0, memory_order_relaxed);
}

/* ---- the standard streams ------------------------------------------------------------------------ */

_Atomic unsigned pp_streams_gone;

void pp_find_streams(void)
{
    int saved = errno;
    for (int fd = 0; fd <= 2; fd++)
        if (pp_flags(fd, F_GETFD, 0) < 0)
            pp_streams_gone |= 1u << fd;
    errno = saved;
}

/* To replace one (dup2) is to redirect it: that is a standard stream still. */
static void closing_stream(int fd)
{
    if (PP_UNLIKELY((unsigned)fd <= 2) && !pp_is_vfork_child())
        pp_streams_gone |= 1u << fd;
}

/* ---- the calls ----------------------------------------------------------------------------------- */

static void closing(int fd)
{
    unsigned slot = (unsigned)fd % SLOTS;
    atomic_fetch_add_explicit(&generations[slot], 1, memory_order_release);
    if (PP_UNLIKELY(atomic_load_explicit(&watches[slot], memory_order_acquire)))
        pp_tell_closing(fd);
}

void pp_note_closing(int fd)
{
    if (fd >= 0)
        closing(fd);
}

int pp_close(int fd)
{
    if (PP_LIKELY(fd >= 0)) {
        closing_stream(fd);
        closing(fd);
    }
    return real_close(fd);
}

int pp_dup2(int from, int to)
{
    if (to >= 0 && from != to && pp_flags(from, F_GETFD, 0) >= 0)
        closing(to);
    return real_dup2(from, to);
}

int pp_dup3(int from, int to, int flags)
{
    if (to >= 0 && from != to && !(flags & ~O_CLOEXEC) && pp_flags(from, F_GETFD, 0) >= 0)
        closing(to);
    return real_dup3(from, to, flags);
}

/* libuv closes with a raw system call, its epoll set too: a new one is seen as it is made. */
int pp_epoll_create(int size)
{
    int fd = real_epoll_create(size);
    pp_note_closing(fd);
    return fd;
}

int pp_epoll_create1(int flags)
{
    int fd = real_epoll_create1(flags);
    pp_note_closing(fd);
    return fd;
}

int pp_fclose(FILE *file)
{
    int saved = errno, fd = fileno(file);
    errno = saved; /* one that has no fd (fmemopen) */
    closing_stream(fd);
    pp_note_closing(fd);
    return real_fclose(file);
}

/* Watched fds are rare and ranges are wide: go by slot, not by number. */
int pp_close_range(unsigned first, unsigned last, int flags)
{
    if (first <= last && !(flags & (int)~CLOSE_RANGE_UNSHARE)) {
        for (unsigned fd = first; fd <= last && fd <= 2; fd++)
            closing_stream((int)fd);
        unsigned top = last < INT32_MAX ? last : INT32_MAX;
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            /* The first number of this slot that is not below `first`. */
            uint64_t fd = first + (uint64_t)((slot - first) % SLOTS);
            if (fd > top)
                continue;
            atomic_fetch_add_explicit(&generations[slot], 1, memory_order_release);
            if (PP_UNLIKELY(atomic_load(&watches[slot])))
                for (; fd <= top && fd < first + (1u << 20); fd += SLOTS)
                    pp_tell_closing((int)fd);
        }
    }
    return real_close_range(first, last, flags);
}
