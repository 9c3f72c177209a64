/* dns_calls.c: res_query, res_search, res_send, and the same with a state of the caller's (res_n*).
 *
 * exports.c calls pp_x while the gate is open; the call runs on a worker, as all names do. All become
 * the n form on a heap copy of the state: the worker's own thread has other settings than ours.
 * Invariant: query, answer and state are heap copies; answer and state go back when all is over.
 */
#include "interpose.h"

#include <stdlib.h>
#include <string.h>

enum form { BY_NAME, BY_SEARCH, BY_MESSAGE };

struct dns_job {
    enum form form;
    struct __res_state state;
    char *name;
    unsigned char *message; /* of res_send; it and the answer follow this struct */
    int class, type;
    int message_size;
    unsigned char *answer;
    int answer_size;
    int result;
    int error;
};

static void run_dns(void *arg)
{
    struct dns_job *j = arg;
    bool fresh = !(j->state.options & RES_INIT);
    if (fresh && res_ninit(&j->state) < 0)
        j->result = -1;
    else if (j->form == BY_NAME)
        j->result =
            real_res_nquery(&j->state, j->name, j->class, j->type, j->answer, j->answer_size);
    else if (j->form == BY_SEARCH)
        j->result =
            real_res_nsearch(&j->state, j->name, j->class, j->type, j->answer, j->answer_size);
    else
        j->result =
            real_res_nsend(&j->state, j->message, j->message_size, j->answer, j->answer_size);
    j->error = errno;
}

static void free_dns(void *arg)
{
    struct dns_job *j = arg;
    if (j)
        free(j->name);
    free(j);
}

/* PP_PLAIN: not even started. */
static enum pp_turn offload_dns(int call, enum form form, struct __res_state *state,
                                const char *name, int class, int type, const unsigned char *message,
                                int message_size, unsigned char *answer, int answer_size,
                                int *result)
{
    *result = -1;
    if (message_size < 0 || answer_size < 0)
        return PP_PLAIN;
    struct dns_job *j = calloc(1, sizeof *j + (size_t)message_size + (size_t)answer_size);
    if (!j || (name && !(j->name = strdup(name)))) {
        free_dns(j);
        return PP_PLAIN;
    }
    j->form = form;
    j->state = *state;
    j->class = class;
    j->type = type;
    j->message = (unsigned char *)(j + 1);
    j->message_size = message_size;
    j->answer = j->message + message_size;
    j->answer_size = answer_size;
    if (message_size)
        memcpy(j->message, message, (size_t)message_size);
    enum pp_turn turn = pp_turn_of(pp_offload(call, run_dns, free_dns, j), EINTR);
    if (turn == PP_FAIL)
        return turn;
    if (turn == PP_AGAIN) {
        *state = j->state;
        *result = j->result;
        /* An answer too long for the buffer is told by its length, and cut. */
        if (j->result > 0)
            memcpy(answer, j->answer, (size_t)(j->result < answer_size ? j->result : answer_size));
        h_errno = j->state.res_h_errno;
        errno = j->error;
    }
    int saved = errno;
    free_dns(j);
    errno = saved;
    return turn;
}

/* libc's own, in this thread: what it calls passes through. */
#define DIRECTLY(call)   \
    ({                   \
        pp_busy++;       \
        int r_ = (call); \
        pp_busy--;       \
        r_;              \
    })

int pp_res_query(const char *name, int class, int type, unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_query, BY_NAME, &_res, name, class, type, NULL, 0, answer, size,
                    &r) != PP_PLAIN)
        return r;
    return DIRECTLY(real_res_query(name, class, type, answer, size));
}

int pp_res_search(const char *name, int class, int type, unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_search, BY_SEARCH, &_res, name, class, type, NULL, 0, answer, size,
                    &r) != PP_PLAIN)
        return r;
    return DIRECTLY(real_res_search(name, class, type, answer, size));
}

int pp_res_send(const unsigned char *query, int n, unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_send, BY_MESSAGE, &_res, NULL, 0, 0, query, n, answer, size, &r) !=
        PP_PLAIN)
        return r;
    return DIRECTLY(real_res_send(query, n, answer, size));
}

int pp_res_nquery(struct __res_state *state, const char *name, int class, int type,
                  unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_nquery, BY_NAME, state, name, class, type, NULL, 0, answer, size,
                    &r) != PP_PLAIN)
        return r;
    return DIRECTLY(real_res_nquery(state, name, class, type, answer, size));
}

int pp_res_nsearch(struct __res_state *state, const char *name, int class, int type,
                   unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_nsearch, BY_SEARCH, state, name, class, type, NULL, 0, answer, size,
                    &r) != PP_PLAIN)
        return r;
    return DIRECTLY(real_res_nsearch(state, name, class, type, answer, size));
}

int pp_res_nsend(struct __res_state *state, const unsigned char *query, int n,
                 unsigned char *answer, int size)
{
    int r;
    if (offload_dns(PP_CALL_res_nsend, BY_MESSAGE, state, NULL, 0, 0, query, n, answer, size, &r) !=
        PP_PLAIN)
        return r;
    return DIRECTLY(real_res_nsend(state, query, n, answer, size));
}
