/* real.c: finds libc's own functions: the real_x pointers.
 *
 * Everybody here calls through them. Each pointer starts as a stub that looks its symbol up and calls
 * it, because other libraries' constructors may call us before ours has run; the constructor
 * (gate.c) then resolves the rest, so that no lookup happens in a signal handler or vfork child.
 * Invariant: real_x is never one of our own exported functions.
 */
#include "interpose.h"

#include <dlfcn.h>
#include <stdlib.h>

void *pp_find_real(const char *name)
{
    int saved = errno;
    /* Also right where we came as a dependency of a dlopen'ed module: libc follows us in its scope. */
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
        if (libc) {
            found = dlsym(libc, name);
            dlclose(libc);
        }
    }
    errno = saved;
    return found;
}

/* A symbol this libc lacks (epoll_pwait2 before 2.35) can only be called through our export. */
static void *find_or_abort(const char *name)
{
    void *found = pp_find_real(name);
    if (!found) {
        static const char message[] = "portalpatch: this libc has no function ";
        (void)!real_write(2, message, sizeof message - 1);
        (void)!real_write(2, name, __builtin_strlen(name));
        (void)!real_write(2, "\n", 1);
        abort();
    }
    return found;
}

#define STUB(ret, name, params, args)                      \
    static ret first_##name params                         \
    {                                                      \
        real_##name = (ret(*) params)find_or_abort(#name); \
        return real_##name args;                           \
    }                                                      \
    ret(*real_##name) params = first_##name;
#define PP_CALL(ret, name, params, args, failed) STUB(ret, name, params, args)
#define PP_KEEP(ret, name, params, args) STUB(ret, name, params, args)
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) STUB(ret, name, params, args)
#include "symbols.def"

#define FILL(ret, name, params)                 \
    do {                                        \
        void *found = pp_find_real(#name);      \
        if (found)                              \
            real_##name = (ret(*) params)found; \
    } while (0);

void pp_resolve_all(void)
{
#define PP_CALL(ret, name, params, args, failed) FILL(ret, name, params)
#define PP_KEEP(ret, name, params, args) FILL(ret, name, params)
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) FILL(ret, name, params)
#include "symbols.def"
    pp_resolve_forks();
}
