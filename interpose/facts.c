/* facts.c: what the kernel has said of a socket and this process has not changed since: fewer questions.
 *
 * A wait must know whether its caller's socket blocks, its timeouts and its low-water mark: three
 * system calls. waits.c and io_calls.c ask here first, and tell what they have learned. An entry
 * belongs to an fd number, its generation (fd_calls.c counts closes) and an epoch that moves
 * whenever anything in this process changes flags or options of any fd: fcntl(F_SETFL), ioctl(FIONBIO),
 * setsockopt. So dup'ed, inherited and passed sockets are asked about like all others.
 * Another process that shares a socket may change it unseen: a wait that rests on a fact asks the kernel
 * after a while (waits.c). Nobody looks again at the low-water mark: README's limits say so.
 * Invariant: only what was true is remembered, only of sockets (pipes and terminals are what processes
 * share and set flags on behind each other's back), and never what would make a blocking call fail.
 */
#include "interpose.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

#define SLOTS 4096u
#define STREAK_SHIFT 6
#define LOW_BITS 0x3ffull /* facts in six bits, the streak in four */

static _Atomic uint64_t entries[SLOTS];
static _Atomic uint32_t epoch = 1; /* so that an empty entry fits no key */

uint64_t pp_fact_key(int fd)
{
    return ((uint64_t)(pp_fd_generation(fd) & 0xfffff) << 44) |
           ((uint64_t)(atomic_load_explicit(&epoch, memory_order_acquire) & 0xffffff) << 20) |
           ((uint64_t)(((unsigned)fd / SLOTS) & 0x3ff) << 10);
}

static uint64_t low_bits(int fd)
{
    uint64_t entry = atomic_load_explicit(&entries[(unsigned)fd % SLOTS], memory_order_relaxed);
    return (entry & ~LOW_BITS) == pp_fact_key(fd) ? entry & LOW_BITS : 0;
}

bool pp_fact(int fd, enum pp_fact fact)
{
    return low_bits(fd) & fact;
}

/* `key` was taken before the kernel was asked: what changed meanwhile makes the entry void. */
void pp_fact_learn(int fd, uint64_t key, enum pp_fact fact)
{
    _Atomic uint64_t *slot = &entries[(unsigned)fd % SLOTS];
    uint64_t entry = atomic_load_explicit(slot, memory_order_relaxed);
    entry = (entry & ~LOW_BITS) == key ? entry | fact : key | fact;
    atomic_store_explicit(slot, entry, memory_order_relaxed);
}

void pp_facts_forget(int fd)
{
    atomic_store_explicit(&entries[(unsigned)fd % SLOTS], 0, memory_order_relaxed);
}

/* ---- the order of trying and waiting -------------------------------------------------------------- */

bool pp_wait_comes_first(int fd)
{
    uint64_t low = low_bits(fd);
    return (low >> STREAK_SHIFT) >= PP_STREAK && (low & PP_FACT_BLOCKING);
}

void pp_first_try(int fd, bool found_nothing)
{
    _Atomic uint64_t *slot = &entries[(unsigned)fd % SLOTS];
    uint64_t entry = atomic_load_explicit(slot, memory_order_relaxed);
    if ((entry & ~LOW_BITS) != pp_fact_key(fd))
        return;
    uint64_t streak = (entry & LOW_BITS) >> STREAK_SHIFT;
    /* The last value lets one call try first again: programs change their ways. */
    streak = !found_nothing ? 0 : streak == 15 ? PP_STREAK - 1 : streak + 1;
    entry = (entry & ~(0xfull << STREAK_SHIFT)) | (streak << STREAK_SHIFT);
    atomic_store_explicit(slot, entry, memory_order_relaxed);
}

/* ---- what makes facts void -------------------------------------------------------------------------- */

void pp_facts_void(void)
{
    atomic_fetch_add_explicit(&epoch, 1, memory_order_release);
}

int pp_ioctl(int fd, unsigned long request, void *arg)
{
    int r = real_ioctl(fd, request, arg);
    if (PP_UNLIKELY(request == FIONBIO))
        pp_facts_void();
    return r;
}

int pp_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    int r = real_setsockopt(fd, level, option, value, len);
    if (level == SOL_SOCKET &&
        (option == SO_RCVTIMEO || option == SO_SNDTIMEO || option == SO_RCVLOWAT))
        pp_facts_void();
    return r;
}
