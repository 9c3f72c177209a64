/* autostart.c: PORTALPATCH=1 and the preloaded library turn portalpatch on in a CPython by themselves.
 *
 * Called by the dynamic linker only. Where the process is CPython's own main program, the directory
 * _autostart beside the library is put first in PYTHONPATH; its sitecustomize.py does the rest and
 * puts the environment back as it was. Every other program is left alone.
 *
 * The library is initfirst: this constructor runs before libc's own, while `environ` is still NULL
 * and a setenv() would be lost (checked on glibc 2.36). What libc takes over next is the envp array
 * on the stack, so that is edited in place. It cannot grow: without a PYTHONPATH entry the one of
 * PORTALPATCH is reused, which is why only the value 1 counts; _autostart/start.py knows this.
 */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* dl_iterate_phdr callback, first object: does the main program itself name Py_BytesMain (as its
 * own or as one of libpython's)? Programs that merely embed Python, gdb or vim, do not. */
static int main_is_cpython(struct dl_phdr_info *object, size_t size, void *result)
{
    (void)size;
    const char *names = NULL;
    size_t length = 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_DYNAMIC)
            continue;
        const ElfW(Dyn) *entry = (const void *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
        for (; entry->d_tag != DT_NULL; entry++) {
            if (entry->d_tag == DT_STRTAB) {
                /* glibc relocates the entry in place on most machines, on some it does not. */
                ElfW(Addr) address = entry->d_un.d_ptr;
                names = (const char *)(address < object->dlpi_addr ? address + object->dlpi_addr
                                                                   : address);
            }
            if (entry->d_tag == DT_STRSZ)
                length = entry->d_un.d_val;
        }
    }
    static const char wanted[] = "\0Py_BytesMain";
    *(int *)result = names && memmem(names, length, wanted, sizeof wanted) != NULL;
    return 1; /* the main program comes first, and it alone counts */
}

static char **find_variable(char **environment, const char *name)
{
    size_t length = strlen(name);
    for (char **entry = environment; *entry; entry++) {
        if (strncmp(*entry, name, length) == 0 && (*entry)[length] == '=')
            return entry;
    }
    return NULL;
}

__attribute__((constructor)) static void autostart(int argc, char **argv, char **envp)
{
    (void)argc;
    (void)argv;
    char **environment = environ ? environ : envp;
    char **on = environment ? find_variable(environment, "PORTALPATCH") : NULL;
    if (!on || strcmp(*on, "PORTALPATCH=1") != 0)
        return;
    int is_cpython = 0;
    dl_iterate_phdr(main_is_cpython, &is_cpython);
    Dl_info self;
    char library[PATH_MAX];
    if (!is_cpython || !dladdr((void *)autostart, &self) || !realpath(self.dli_fname, library))
        return;
    *strrchr(library, '/') = '\0';
    char file[PATH_MAX + 64];
    snprintf(file, sizeof file, "%s/_autostart/sitecustomize.py", library);
    if (access(file, R_OK) != 0)
        return;
    char **path = find_variable(environment, "PYTHONPATH");
    const char *old = path ? strchr(*path, '=') + 1 : "";
    size_t size = strlen(library) + strlen(old) + 64;
    char *entry = malloc(size); /* part of the environment from here on */
    if (!entry)
        return;
    snprintf(entry, size, "PYTHONPATH=%s/_autostart%s%s", library, *old ? ":" : "", old);
    *(path ? path : on) = entry;
}
