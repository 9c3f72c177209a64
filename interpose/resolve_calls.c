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

/* ---- getnameinfo -------------------------------------------------------------------------------- */

struct reverse_lookup {
    struct sockaddr_storage addr;
    socklen_t len;
    int flags;
    char *host, *service; /* NULL where not asked for; they follow this struct */
    socklen_t host_size, service_size;
    int code;
    int error;
};

static void run_reverse_lookup(void *arg)
{
    struct reverse_lookup *l = arg;
    l->code = real_getnameinfo((struct sockaddr *)&l->addr, l->len, l->host, l->host_size,
                               l->service, l->service_size, l->flags);
    l->error = errno;
}

static int reverse_lookup_directly(const struct sockaddr *addr, socklen_t len, char *host,
                                   socklen_t host_size, char *service, socklen_t service_size,
                                   int flags)
{
    pp_busy++;
    int code = real_getnameinfo(addr, len, host, host_size, service, service_size, flags);
    pp_busy--;
    return code;
}

/* libc writes strings: copy those, not whatever else was in the buffers. */
static void copy_string(char *to, const char *from, int code)
{
    if (from && code == 0)
        strcpy(to, from);
}

int pp_getnameinfo(const struct sockaddr *addr, socklen_t len, char *host, socklen_t host_size,
                   char *service, socklen_t service_size, int flags)
{
    struct reverse_lookup *l = NULL;
    if (host && host_size && !(flags & NI_NUMERICHOST) && len <= sizeof l->addr)
        l = calloc(1, sizeof *l + host_size + (service ? service_size : 0));
    if (!l)
        return reverse_lookup_directly(addr, len, host, host_size, service, service_size, flags);
    memcpy(&l->addr, addr, len);
    l->len = len;
    l->flags = flags;
    l->host = (char *)(l + 1);
    l->host_size = host_size;
    l->service = service ? l->host + host_size : NULL;
    l->service_size = service_size;
    enum pp_turn turn =
        pp_turn_of(pp_offload(PP_CALL_getnameinfo, run_reverse_lookup, free, l), EINTR);
    if (turn == PP_FAIL)
        return EAI_SYSTEM;
    int code = l->code, error = l->error;
    if (turn == PP_AGAIN) {
        copy_string(host, l->host, code);
        copy_string(service, l->service, code);
    }
    free(l);
    if (turn == PP_PLAIN)
        return reverse_lookup_directly(addr, len, host, host_size, service, service_size, flags);
    errno = error;
    return code;
}
