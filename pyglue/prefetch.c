/* prefetch.c: what the next strands will touch comes into the cache while another one executes.
 *
 * Called by strand.c as it resumes a strand. The stacks, greenlets and frames of a thousand threads outgrow a
 * core's own cache, and greenlet copies a stack of 2 to 3 KiB back, line by line, before its thread goes on.
 * So each resume looks three strands ahead: it asks for the third and its greenlet, for what the greenlet of
 * the second points to, and for the stack and frame of the first; each has been asked for what leads there.
 * Invariants: nothing is written; only what READY strands own is read; where greenlet keeps the copy of a
 * stack is found by looking, and to be wrong about it costs the prefetch and nothing else.
 */
#include "prefetch.h"

#include <greenlet/greenlet.h>

#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    LINE = 64,
    STACK_MOST = 6144,
    PIMPL_SIZE = 4 * LINE, /* about what it is */
    MALLOC_HEAD = 16,      /* before a block, and at the head of the next */
    TRIES = 16,            /* a stack that nobody has needed the place of has no copy */
};

/* Which word of what a greenlet points to is the address of its stack's copy, before its size. 0: not known
 * yet; -1: not to be known. */
static int copy_at;

/* The order of these words is greenlet's own (its StackState). */
static void find_copy(PyGreenlet *greenlet)
{
    static int tries = TRIES;
    uintptr_t words[20], here = (uintptr_t)__builtin_frame_address(0), near = 8 << 20;
    struct iovec into = {.iov_base = words, .iov_len = sizeof words};
    struct iovec from = {.iov_base = greenlet->pimpl, .iov_len = sizeof words};
    int found = process_vm_readv(getpid(), &into, 1, &from, 1, 0) == (ssize_t)sizeof words;
    for (int i = 0; found && i + 4 <= (int)(sizeof words / sizeof *words); i++) {
        uintptr_t start = words[i], stop = words[i + 1], copy = words[i + 2], size = words[i + 3];
        if (start + near > here && start < here + near && stop > start && stop - start < near &&
            copy && size && size <= stop - start) {
            copy_at = i + 2;
            return;
        }
    }
    if (--tries == 0) {
        copy_at = -1;
    }
}

static inline void fetch(const void *from, intptr_t size)
{
    for (intptr_t i = 0; i < size; i += LINE) {
        __builtin_prefetch((const char *)from + i, 1);
    }
}

static void fetch_stack(const Strand *strand)
{
    if (!copy_at && strand->kind == STRAND_GREEN) {
        find_copy(strand->greenlet);
    }
    if (copy_at > 0) {
        const intptr_t *words = (const intptr_t *)strand->greenlet->pimpl + copy_at;
        const char *copy = (const char *)words[0];
        intptr_t size = words[1] < STACK_MOST ? words[1] : STACK_MOST;
        if (copy) {
            fetch(copy - MALLOC_HEAD, MALLOC_HEAD + size + MALLOC_HEAD);
        }
    }
    fetch(strand->frame, 3 * LINE);
}

void prefetch_ready(const Strand *first)
{
    const Strand *second = first->ready_next, *third = second ? second->ready_next : NULL;
    if (third) {
        fetch(third->ready_next, LINE);
        fetch(third, sizeof *third);
        fetch(third->greenlet, sizeof(PyGreenlet));
    }
    if (second && second->greenlet) {
        fetch(second->greenlet->pimpl, PIMPL_SIZE);
    }
    if (first->greenlet) {
        fetch_stack(first);
    }
}
