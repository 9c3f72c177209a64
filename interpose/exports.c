/* exports.c: the exported functions, one per line of symbols.def: the one decision per call.
 *
 * The whole program calls these. Gate closed: a tail call to libc and nothing else. Open: pp_x.
 * Invariant: a successful call leaves errno alone although its tries may have met EAGAIN, and
 * every call made with an open gate is counted: as passed here, or as parked in gate.c.
 */
#include "interpose.h"

/* Every function is entry_x inside: a reference to x itself might be bound to libc's. The label gives
 * the symbol its name, so that no header's own declaration (a variadic one, say) is in the way. */
#define EXPORT(name, entry)                                           \
    PP_EXPORTED extern __typeof__(entry) export_##name __asm__(#name) \
        __attribute__((alias(#entry), copy(entry)));

#define PP_AND(...) __VA_OPT__(, ) __VA_ARGS__

/* open_x, the slow half, is out of line, so that the fast half stays a load, a test and a jump. It in turn
 * jumps to live_x, whose frame is small: what lies on the stack while a call is parked is copied with it. */
#define PP_CALL(ret, name, params, args, failed)                              \
    static __attribute__((noinline)) ret live_##name(int saved PP_AND params) \
    {                                                                         \
        uint64_t parks = pp_my_parks;                                         \
        ret r = pp_##name args;                                               \
        if (pp_my_parks == parks)                                             \
            pp_count_passed(PP_CALL_##name);                                  \
        if (!(failed))                                                        \
            errno = saved;                                                    \
        return r;                                                             \
    }                                                                         \
    static __attribute__((noinline)) ret open_##name params                   \
    {                                                                         \
        if (pp_busy)                                                          \
            return real_##name args;                                          \
        if (PP_UNLIKELY(pp_guarding) && pp_must_block(PP_CALL_##name))        \
            return real_##name args;                                          \
        if (PP_UNLIKELY(pp_rescan_due))                                       \
            pp_rescan();                                                      \
        return live_##name(errno PP_AND args);                                \
    }                                                                         \
    ret entry_##name params                                                   \
    {                                                                         \
        if (PP_LIKELY(!pp_gate))                                              \
            return real_##name args;                                          \
        return open_##name args;                                              \
    }                                                                         \
    EXPORT(name, entry_##name)
#define PP_KEEP(ret, name, params, args) \
    ret entry_##name params              \
    {                                    \
        return pp_##name args;           \
    }                                    \
    EXPORT(name, entry_##name)
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) \
    ret entry_##name params                                        \
    {                                                              \
        if (PP_LIKELY(!pp_gate) || !(fits))                        \
            return real_##name args;                               \
        return open_##base base_args;                              \
    }                                                              \
    EXPORT(name, entry_##name)
#define PP_ALIAS(alias_name, name) EXPORT(alias_name, entry_##name)
#include "symbols.def"
