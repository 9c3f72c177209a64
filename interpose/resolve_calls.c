/* resolve_calls.c: names: getaddrinfo runs on a native worker, its caller parked.
 *
 * exports.c calls pp_x while the gate is open. libc's own waits in there cannot be interposed, so the
 * whole call is offloaded, with arguments copied to the heap: a parked stack may be moved.
 * Invariant: what a direct call makes NSS modules call passes through (pp_busy); a result nobody
 * waits for any more is freed by the worker.
 */
#include "interpose.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

struct lookup {
    char *node;
    char *service;
    struct addrinfo hints;
    bool has_hints;
    struct addrinfo *result;
    int code;
    int error;
};

static void run_lookup(void *arg)
{
    struct lookup *l = arg;
    l->code = real_getaddrinfo(l->node, l->service, l->has_hints ? &l->hints : NULL, &l->result);
    l->error = errno;
}

static void free_lookup(struct lookup *l)
{
    free(l->node);
    free(l->service);
    free(l);
}

static void drop_lookup(void *arg)
{
    struct lookup *l = arg;
    if (l->result)
        freeaddrinfo(l->result);
    free_lookup(l);
}

static struct lookup *copy_lookup(const char *node, const char *service,
                                  const struct addrinfo *hints)
{
    struct lookup *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->node = strdup(node);
    l->service = service ? strdup(service) : NULL;
    if (!l->node || (service && !l->service)) {
        free_lookup(l);
        return NULL;
    }
    if (hints) {
        l->hints = *hints;
        l->has_hints = true;
    }
    return l;
}

static int lookup_directly(const char *node, const char *service, const struct addrinfo *hints,
                           struct addrinfo **result)
{
    pp_busy++;
    int code = real_getaddrinfo(node, service, hints, result);
    pp_busy--;
    return code;
}

/* No name server is asked for these. */
static bool is_numeric(const char *node)
{
    struct in_addr v4;
    struct in6_addr v6;
    char plain[INET6_ADDRSTRLEN];
    size_t n = strcspn(node, "%"); /* a scope may follow */
    if (inet_aton(node, &v4))
        return true;
    if (n >= sizeof plain)
        return false;
    memcpy(plain, node, n);
    plain[n] = '\0';
    return inet_pton(AF_INET6, plain, &v6) == 1;
}

int pp_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                   struct addrinfo **result)
{
    if (!node || (hints && (hints->ai_flags & AI_NUMERICHOST)) || is_numeric(node))
        return lookup_directly(node, service, hints, result);
    struct lookup *l = copy_lookup(node, service, hints);
    if (!l)
        return EAI_MEMORY;
    enum pp_turn turn =
        pp_turn_of(pp_offload(PP_CALL_getaddrinfo, run_lookup, drop_lookup, l), EINTR);
    if (turn == PP_FAIL)
        return EAI_SYSTEM; /* the worker frees it */
    if (turn == PP_PLAIN) {
        free_lookup(l);
        return lookup_directly(node, service, hints, result);
    }
    int code = l->code, error = l->error;
    if (code == 0)
        *result = l->result;
    free_lookup(l);
    errno = error;
    return code;
}
