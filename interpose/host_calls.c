/* host_calls.c: gethostbyname and its relatives, offloaded like getaddrinfo (resolve_calls.c).
 *
 * exports.c calls pp_x while the gate is open. The worker fills a heap buffer; where the caller brought
 * its own, the answer is copied there and the pointers inside it are moved along.
 * Invariant: the worker never has a pointer into the caller's memory. What a function without _r
 * returns stays valid for the next few calls of its thread: libc's single static answer would be
 * overwritten by another caller of the thread meanwhile.
 */
#include "interpose.h"

#include <stdlib.h>
#include <string.h>

#define KEPT 16             /* answers of the functions without _r, a thread */
#define MOST_ROOM (1 << 20) /* for one answer */

/* One query on its way. */
struct query {
    char *name;             /* of a query by name, else NULL */
    unsigned char addr[16]; /* of a query by address */
    socklen_t len;
    int family;        /* AF_UNSPEC: gethostbyname's own choice */
    bool grows;        /* the buffer is ours: make it bigger on ERANGE */
    char *block, *buf; /* buf is where in block the caller's alignment is */
    size_t size;
    struct hostent entry;
    struct hostent *result;
    int code;
    int host_error;
    int error;
};

static void free_query(void *arg)
{
    struct query *q = arg;
    if (!q)
        return;
    free(q->name);
    free(q->block);
    free(q);
}

/* A buffer as aligned as `like`: libc pads inside it by address. */
static bool make_room(struct query *q, size_t size, const char *like)
{
    free(q->block);
    q->block = malloc(size + 32);
    if (!q->block)
        return false;
    uintptr_t start = ((uintptr_t)q->block + 15) & ~(uintptr_t)15;
    q->buf = (char *)start + ((uintptr_t)like & 15);
    q->size = size;
    return true;
}

static void ask(struct query *q)
{
    errno = 0;
    if (!q->name)
        q->code = real_gethostbyaddr_r(q->addr, q->len, q->family, &q->entry, q->buf, q->size,
                                       &q->result, &q->host_error);
    else if (q->family == AF_UNSPEC)
        q->code =
            real_gethostbyname_r(q->name, &q->entry, q->buf, q->size, &q->result, &q->host_error);
    else
        q->code = real_gethostbyname2_r(q->name, q->family, &q->entry, q->buf, q->size, &q->result,
                                        &q->host_error);
    q->error = errno;
}

static void run_query(void *arg)
{
    struct query *q = arg;
    ask(q);
    while (q->code == ERANGE && q->grows && q->size < MOST_ROOM && make_room(q, 2 * q->size, NULL))
        ask(q);
}

static struct query *new_query(const char *name, const void *addr, socklen_t len, int family,
                               size_t size, const char *like)
{
    struct query *q = calloc(1, sizeof *q);
    if (!q || (name && !(q->name = strdup(name))) || !make_room(q, size, like)) {
        free_query(q);
        return NULL;
    }
    if (!name)
        memcpy(q->addr, addr, len);
    q->len = len;
    q->family = family;
    return q;
}

/* An answer moved by `shift` bytes: every pointer in it leads into its buffer. */
static void shift_list(char **list, ptrdiff_t shift)
{
    for (; list && *list; list++)
        *list += shift;
}

static void move_answer(const struct query *q, struct hostent *entry, char *buf)
{
    ptrdiff_t shift = buf - q->buf;
    memcpy(buf, q->buf, q->size);
    *entry = q->entry;
    entry->h_name += shift;
    entry->h_aliases = (char **)((char *)entry->h_aliases + shift);
    entry->h_addr_list = (char **)((char *)entry->h_addr_list + shift);
    shift_list(entry->h_aliases, shift);
    shift_list(entry->h_addr_list, shift);
}

/* ---- the functions with _r: PP_PLAIN where the caller must call libc itself ----------------------- */

static enum pp_turn offload_r(int call, struct query *q, struct hostent *entry, char *buf,
                              struct hostent **result, int *host_error, int *code)
{
    enum pp_turn turn =
        q ? pp_turn_of(pp_offload(call, run_query, free_query, q), EINTR) : PP_PLAIN;
    if (turn == PP_AGAIN) {
        if (q->result)
            move_answer(q, entry, buf);
        *result = q->result ? entry : NULL;
        *host_error = q->host_error;
        *code = q->code;
        errno = q->error;
    } else if (turn == PP_FAIL) {
        *result = NULL;
        *host_error = NETDB_INTERNAL;
        *code = errno;
        return turn;
    }
    int saved = errno;
    free_query(q);
    errno = saved;
    return turn;
}

int pp_gethostbyname_r(const char *name, struct hostent *entry, char *buf, size_t size,
                       struct hostent **result, int *host_error)
{
    int code;
    struct query *q = new_query(name, NULL, 0, AF_UNSPEC, size, buf);
    if (offload_r(PP_CALL_gethostbyname_r, q, entry, buf, result, host_error, &code) != PP_PLAIN)
        return code;
    pp_busy++;
    code = real_gethostbyname_r(name, entry, buf, size, result, host_error);
    pp_busy--;
    return code;
}

int pp_gethostbyname2_r(const char *name, int family, struct hostent *entry, char *buf, size_t size,
                        struct hostent **result, int *host_error)
{
    int code;
    struct query *q = family == AF_UNSPEC ? NULL : new_query(name, NULL, 0, family, size, buf);
    if (offload_r(PP_CALL_gethostbyname2_r, q, entry, buf, result, host_error, &code) != PP_PLAIN)
        return code;
    pp_busy++;
    code = real_gethostbyname2_r(name, family, entry, buf, size, result, host_error);
    pp_busy--;
    return code;
}

int pp_gethostbyaddr_r(const void *addr, socklen_t len, int family, struct hostent *entry,
                       char *buf, size_t size, struct hostent **result, int *host_error)
{
    int code;
    struct query *q = len > 16 ? NULL : new_query(NULL, addr, len, family, size, buf);
    if (offload_r(PP_CALL_gethostbyaddr_r, q, entry, buf, result, host_error, &code) != PP_PLAIN)
        return code;
    pp_busy++;
    code = real_gethostbyaddr_r(addr, len, family, entry, buf, size, result, host_error);
    pp_busy--;
    return code;
}

/* ---- the functions without -------------------------------------------------------------------------- */

static PP_THREAD_LOCAL struct query *kept[KEPT];
static PP_THREAD_LOCAL unsigned next_kept;

static enum pp_turn offload_static(int call, struct query *q, struct hostent **result)
{
    *result = NULL;
    if (!q)
        return PP_PLAIN;
    q->grows = true;
    enum pp_turn turn = pp_turn_of(pp_offload(call, run_query, free_query, q), EINTR);
    if (turn == PP_PLAIN)
        free_query(q);
    if (turn == PP_FAIL)
        h_errno = NETDB_INTERNAL;
    if (turn != PP_AGAIN)
        return turn;
    struct query **place = &kept[next_kept++ % KEPT];
    free_query(*place);
    *place = q;
    h_errno = q->host_error;
    errno = q->error;
    *result = q->result;
    return turn;
}

struct hostent *pp_gethostbyname(const char *name)
{
    struct hostent *result;
    struct query *q = new_query(name, NULL, 0, AF_UNSPEC, 1024, NULL);
    if (offload_static(PP_CALL_gethostbyname, q, &result) != PP_PLAIN)
        return result;
    pp_busy++;
    result = real_gethostbyname(name);
    pp_busy--;
    return result;
}

struct hostent *pp_gethostbyname2(const char *name, int family)
{
    struct hostent *result;
    struct query *q = family == AF_UNSPEC ? NULL : new_query(name, NULL, 0, family, 1024, NULL);
    if (offload_static(PP_CALL_gethostbyname2, q, &result) != PP_PLAIN)
        return result;
    pp_busy++;
    result = real_gethostbyname2(name, family);
    pp_busy--;
    return result;
}

struct hostent *pp_gethostbyaddr(const void *addr, socklen_t len, int family)
{
    struct hostent *result;
    struct query *q = len > 16 ? NULL : new_query(NULL, addr, len, family, 1024, NULL);
    if (offload_static(PP_CALL_gethostbyaddr, q, &result) != PP_PLAIN)
        return result;
    pp_busy++;
    result = real_gethostbyaddr(addr, len, family);
    pp_busy--;
    return result;
}
