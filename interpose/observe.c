/* observe.c: what the interposer shows of itself: names, counters, trace, and its two settings.
 *
 * exports.c and gate.c count, everybody traces, the portal and pyglue read. Calls only libc.
 * Invariant: nothing here takes a lock or allocates: it runs inside any call of any thread.
 */
#include "interpose.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

int pp_trace_level; /* PORTALPATCH_LOG: 1 or info, 2 or debug */
int pp_park_stdio;  /* PORTALPATCH_STDIO: calls on fds 0, 1, 2 may park */

static const char *const call_names[] = {
#define PP_CALL(ret, name, params, args, failed) #name,
#define PP_KEEP(ret, name, params, args) #name,
#include "symbols.def"
};

static struct pp_call_stats counts[PP_CALL_COUNT];

int pp_call_count(void)
{
    return PP_CALL_COUNT;
}

const char *pp_call_name(int call)
{
    return call >= 0 && call < PP_CALL_COUNT ? call_names[call] : "?";
}

const struct pp_call_stats *pp_call_statistics(void)
{
    return counts;
}

void pp_count_passed(int call)
{
    __atomic_fetch_add(&counts[call].passed, 1, __ATOMIC_RELAXED);
    PP_TRACE(2, "%s passed", call_names[call]);
}

void pp_count_parked(int call)
{
    __atomic_fetch_add(&counts[call].parked, 1, __ATOMIC_RELAXED);
}

void pp_count_blocked(int call)
{
    __atomic_fetch_add(&counts[call].blocked, 1, __ATOMIC_RELAXED);
    PP_TRACE(1, "%s blocks: a guarded mutex is held", call_names[call]);
}

void pp_trace(const char *format, ...)
{
    int saved = errno;
    char line[256];
    int used = snprintf(line, sizeof line, "portalpatch[%d]: ", (int)syscall(SYS_gettid));
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    if (more > 0)
        used += more;
    if (used > (int)sizeof line - 2)
        used = (int)sizeof line - 2;
    line[used++] = '\n';
    (void)!real_write(2, line, (size_t)used);
    errno = saved;
}

static const char *setting(char **environment, const char *name)
{
    size_t n = strlen(name);
    for (; environment && *environment; environment++)
        if (strncmp(*environment, name, n) == 0 && (*environment)[n] == '=')
            return *environment + n + 1;
    return "";
}

void pp_read_settings(char **environment)
{
    const char *log = setting(environment, "PORTALPATCH_LOG");
    if (strcmp(log, "debug") == 0)
        pp_trace_level = 2;
    else if (strcmp(log, "info") == 0)
        pp_trace_level = 1;
    else
        pp_trace_level = atoi(log);
    pp_park_stdio = strcmp(setting(environment, "PORTALPATCH_STDIO"), "1") == 0;
}
