/* vfork.c: vfork, _Fork and clone leave a mark, so that a park knows when to ask who it is.
 *
 * Their child has its parent's thread-local memory (vfork's: the very same), an open gate included, and
 * pthread_atfork's handlers do not run. It must never park. These functions cannot be wrapped in C (they
 * may return twice, on the caller's frame), so the entries only set pp_forked and jump to libc;
 * gate.c asks for the process id where that is set, and clears it in the parent.
 * Invariant: no register or stack slot that carries an argument is touched.
 */
#include "interpose.h"

PP_THREAD_LOCAL int pp_forked;

/* Filled in by pp_resolve_all, before any program can call; read by the entries below. */
__attribute__((visibility("hidden"))) void *pp_real_vfork, *pp_real__Fork, *pp_real_clone;

void pp_resolve_forks(void)
{
    pp_real_vfork = pp_find_real("vfork");
    pp_real__Fork = pp_find_real("_Fork"); /* glibc 2.34 */
    pp_real_clone = pp_find_real("clone");
}

#if defined __x86_64__
#define ENTRY(name)                                                        \
    __asm__(".text\n.globl " #name "\n"                                    \
            ".hidden pp_jump_" #name "\n.globl pp_jump_" #name "\n"        \
            ".type " #name ", @function\n" #name ":\npp_jump_" #name ":\n" \
            "  endbr64\n"                                                  \
            "  movq pp_forked@gottpoff(%rip), %rax\n"                      \
            "  movl $1, %fs:(%rax)\n"                                      \
            "  jmp *pp_real_" #name "(%rip)\n"                             \
            ".size " #name ", .-" #name "\n");
#elif defined __aarch64__
#define ENTRY(name)                                                        \
    __asm__(".text\n.globl " #name "\n"                                    \
            ".hidden pp_jump_" #name "\n.globl pp_jump_" #name "\n"        \
            ".type " #name ", %function\n" #name ":\npp_jump_" #name ":\n" \
            "  adrp x9, :gottprel:pp_forked\n"                             \
            "  ldr x9, [x9, :gottprel_lo12:pp_forked]\n"                   \
            "  mrs x10, tpidr_el0\n"                                       \
            "  mov w11, #1\n"                                              \
            "  str w11, [x10, x9]\n"                                       \
            "  adrp x9, pp_real_" #name "\n"                               \
            "  ldr x9, [x9, :lo12:pp_real_" #name "]\n"                    \
            "  br x9\n"                                                    \
            ".size " #name ", .-" #name "\n");
#else
#error "vfork.c: write the three entries for this machine"
#endif

ENTRY(vfork)
ENTRY(_Fork)
ENTRY(clone)
