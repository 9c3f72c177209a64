/* attach.c: hooks objects that were loaded without LD_PRELOAD, by rewriting their GOT slots.
 *
 * The portal calls pp_attach and pp_detach. Every loaded object's slot that holds libc's x comes to
 * hold our x; dlopen and dlmopen are hooked the same way, so that objects loaded later are scanned too.
 * Invariants: a slot is rewritten only if its value is libc's function of that very name (or a stub
 * of the object's own PLT that would become it), so other interposers keep theirs (of dlopen they are
 * called by us); a read-only page is read-only again afterwards; detaching restores exactly what
 * attaching wrote.
 */
#include "interpose.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

/* The two relocation types that fill a GOT slot with a function's address. */
#if defined(__x86_64__)
enum { JUMP_SLOT = R_X86_64_JUMP_SLOT, GLOB_DAT = R_X86_64_GLOB_DAT };
#elif defined(__aarch64__)
enum { JUMP_SLOT = R_AARCH64_JUMP_SLOT, GLOB_DAT = R_AARCH64_GLOB_DAT };
#else
#error "attach.c: add this machine's JUMP_SLOT and GLOB_DAT"
#endif

_Atomic int pp_rescan_due;

static void *hooked_dlopen(const char *file, int mode);
static void *hooked_dlmopen(Lmid_t space, const char *file, int mode);
/* libc's, or those of another library that comes before libc: ASan's, a profiler's. */
static void *(*real_dlopen)(const char *, int);
static void *(*real_dlmopen)(Lmid_t, const char *, int);

/* ---- the table -------------------------------------------------------------------------------- */

/* The entries themselves, by names that cannot be bound to libc's. */
#define PP_JUMP(ret, name) extern const char pp_jump_##name[] __attribute__((visibility("hidden")));
#include "symbols.def"

static struct pp_hook hooks[] = {
#define PP_CALL(ret, name, params, args, failed) {#name, (uintptr_t)entry_##name, 0, 0},
#define PP_KEEP(ret, name, params, args) {#name, (uintptr_t)entry_##name, 0, 0},
#define PP_CHECKED(ret, name, params, args, fits, base, base_args) \
    {#name, (uintptr_t)entry_##name, 0, 0},
#define PP_JUMP(ret, name) {#name, (uintptr_t)pp_jump_##name, 0, 0},
#define PP_ALIAS(alias_name, name) {#alias_name, (uintptr_t)entry_##name, 0, 0},
#include "symbols.def"
    {"dlopen", (uintptr_t)hooked_dlopen, 0, 0},
    {"dlmopen", (uintptr_t)hooked_dlmopen, 0, 0},
};

#define HOOKS (sizeof hooks / sizeof *hooks)
#define BUCKETS 512u /* a power of two, well above HOOKS */

static const struct pp_hook *buckets[BUCKETS];

static unsigned hash(const char *name)
{
    unsigned h = 5381;
    while (*name)
        h = h * 33 + (unsigned char)*name++;
    return h % BUCKETS;
}

/* A guarded library's slots get the guard's function where there are two of the name. */
static const struct pp_hook *find_hook(const char *name, bool guarded)
{
    const struct pp_hook *usual = NULL;
    for (unsigned b = hash(name); buckets[b]; b = (b + 1) % BUCKETS) {
        if (strcmp(buckets[b]->name, name) != 0)
            continue;
        if (!pp_is_guard_hook(buckets[b]))
            usual = buckets[b];
        else if (guarded)
            return buckets[b];
    }
    return usual;
}

/* ---- state, under `lock` ------------------------------------------------------------------------ */

/* A slot we rewrote, to restore only those: the loader itself bound others to us when preloaded. */
struct written {
    uintptr_t *slot;
    uintptr_t before;
};

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct written *written;
static size_t written_count, written_room;
static bool attached;
static unsigned long long adds_seen; /* dl_iterate_phdr's count of objects ever loaded */
static struct pp_attach_report report;

/* Where libc's functions live: libc.so and, before 2.34, its libpthread, libdl... At most a few. */
static struct {
    uintptr_t start, end;
} homes[8];
static size_t home_count;

static bool is_home(uintptr_t address)
{
    for (size_t i = 0; i < home_count; i++)
        if (address >= homes[i].start && address < homes[i].end)
            return true;
    return false;
}

/* ---- one object ---------------------------------------------------------------------------------- */

struct object {
    uintptr_t base, start, end; /* load address; the mapped range */
    uintptr_t relro_start, relro_end;
    const ElfW(Sym) * symbols;
    const char *names;
    const ElfW(Half) * versions; /* NULL where symbols have none */
    const ElfW(Rela) * tables[2];
    size_t counts[2];
};

/* glibc relocates most d_ptr entries in place; some (the vdso's) stay offsets. */
static uintptr_t pointer(const struct object *o, const ElfW(Dyn) * d)
{
    return d->d_un.d_ptr < o->base ? d->d_un.d_ptr + o->base : d->d_un.d_ptr;
}

static bool read_object(const struct dl_phdr_info *info, struct object *o)
{
    *o = (struct object){.base = info->dlpi_addr, .start = UINTPTR_MAX};
    const ElfW(Dyn) *dynamic = NULL;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t at = o->base + p->p_vaddr;
        if (p->p_type == PT_LOAD) {
            if (at < o->start)
                o->start = at;
            if (at + p->p_memsz > o->end)
                o->end = at + p->p_memsz;
        } else if (p->p_type == PT_DYNAMIC) {
            dynamic = (const ElfW(Dyn) *)at;
        } else if (p->p_type == PT_GNU_RELRO) {
            o->relro_start = at & ~(page - 1);
            o->relro_end = (at + p->p_memsz) & ~(page - 1);
        }
    }
    for (const ElfW(Dyn) *d = dynamic; d && d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB:
            o->symbols = (const ElfW(Sym) *)pointer(o, d);
            break;
        case DT_STRTAB:
            o->names = (const char *)pointer(o, d);
            break;
        case DT_VERSYM:
            o->versions = (const ElfW(Half) *)pointer(o, d);
            break;
        case DT_RELA:
            o->tables[0] = (const ElfW(Rela) *)pointer(o, d);
            break;
        case DT_RELASZ:
            o->counts[0] = d->d_un.d_val / sizeof(ElfW(Rela));
            break;
        case DT_JMPREL:
            o->tables[1] = (const ElfW(Rela) *)pointer(o, d);
            break;
        case DT_PLTRELSZ:
            o->counts[1] = d->d_un.d_val / sizeof(ElfW(Rela));
            break;
        default:
            break;
        }
    }
    return o->symbols && o->names;
}

/* Ourselves, libc and its kin, the loader and the vdso keep what they have. */
static bool is_left_alone(const struct object *o)
{
    uintptr_t self = (uintptr_t)&pp_rescan_due;
    return (self >= o->start && self < o->end) || is_home(o->start) ||
           o->base == getauxval(AT_BASE) || o->base == getauxval(AT_SYSINFO_EHDR);
}

static void write_slot(const struct object *o, uintptr_t *slot, uintptr_t value)
{
    uintptr_t at = (uintptr_t)slot, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *start = (void *)(at & ~(page - 1));
    bool read_only = at >= o->relro_start && at < o->relro_end;
    if (read_only && mprotect(start, page, PROT_READ | PROT_WRITE) < 0)
        return;
    __atomic_store_n(slot, value, __ATOMIC_RELEASE);
    if (read_only)
        mprotect(start, page, PROT_READ);
}

/* Would this slot, as it is, call libc's function of that name? */
static bool leads_to_libc(const struct object *o, const ElfW(Rela) * r, const struct pp_hook *h,
                          uintptr_t value)
{
    if (value == h->real || is_home(value))
        return true;
    if (h->other && value == h->other)
        return h->other < o->start || h->other >= o->end; /* its own calls are not led back to us */
    /* Not bound yet: a jump slot that leads back into its own object's PLT. The symbol is libc's if it
     * is undefined here and asks for a version; so do other libraries' rarely. */
    size_t index = ELF64_R_SYM(r->r_info);
    return ELF64_R_TYPE(r->r_info) == JUMP_SLOT && value >= o->start && value < o->end &&
           o->symbols[index].st_shndx == SHN_UNDEF && o->versions &&
           (o->versions[index] & 0x7fff) > 1;
}

static struct written *find_written(const uintptr_t *slot)
{
    for (size_t i = 0; i < written_count; i++)
        if (written[i].slot == slot)
            return &written[i];
    return NULL;
}

static bool remember(uintptr_t *slot, uintptr_t before)
{
    struct written *w = find_written(slot);
    if (!w) {
        if (written_count == written_room) {
            size_t room = written_room ? 2 * written_room : 256;
            struct written *more = realloc(written, room * sizeof *more);
            if (!more)
                return false;
            written = more;
            written_room = room;
        }
        w = &written[written_count++];
    }
    *w = (struct written){.slot = slot, .before = before};
    return true;
}

/* dl_iterate_phdr callbacks. `detaching` points to a bool. */
static int visit(struct dl_phdr_info *info, size_t size, void *detaching)
{
    struct object o;
    if (size >= offsetof(struct dl_phdr_info, dlpi_adds) + sizeof info->dlpi_adds)
        adds_seen = info->dlpi_adds;
    if (!read_object(info, &o) || is_left_alone(&o))
        return 0;
    unsigned held = 0;
    bool guarded = *(bool *)detaching || pp_is_guarded(info->dlpi_name);
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < o.counts[t]; i++) {
            const ElfW(Rela) *r = &o.tables[t][i];
            unsigned type = (unsigned)ELF64_R_TYPE(r->r_info);
            if (type != JUMP_SLOT && type != GLOB_DAT)
                continue;
            const char *name = o.names + o.symbols[ELF64_R_SYM(r->r_info)].st_name;
            const struct pp_hook *h = find_hook(name, guarded), *usual = find_hook(name, false);
            if (!h || !h->real)
                continue;
            uintptr_t *slot = (uintptr_t *)(o.base + r->r_offset);
            uintptr_t value = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
            if (*(bool *)detaching) {
                if (usual && value == usual->ours)
                    h = usual;
                struct written *w = value == h->ours ? find_written(slot) : NULL;
                if (w)
                    write_slot(&o, slot, w->before);
            } else if (value != h->ours &&
                       ((usual && value == usual->ours) || leads_to_libc(&o, r, h, value)) &&
                       remember(slot, value)) {
                write_slot(&o, slot, h->ours);
            }
            held += __atomic_load_n(slot, __ATOMIC_RELAXED) == h->ours;
        }
    }
    report.slots += held;
    report.objects += held > 0;
    return 0;
}

static int note_home(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    struct object o;
    if (!read_object(info, &o))
        return 0;
    for (size_t i = 0; i < HOOKS; i++) {
        if (hooks[i].real >= o.start && hooks[i].real < o.end) {
            if (home_count < sizeof homes / sizeof *homes) {
                homes[home_count].start = o.start;
                homes[home_count++].end = o.end;
            }
            return 0;
        }
    }
    return 0;
}

/* Another interposer's function for loading objects is not libc's, and yet whatever is loaded through
 * it must be scanned. So these slots are ours too, and we call it: it sees every call, as before. */
static void *find_loader(const char *name)
{
    struct pp_hook *h = (struct pp_hook *)find_hook(name, false);
    uintptr_t first = (uintptr_t)dlsym(RTLD_DEFAULT, name);
    if (!first || first == h->real || is_home(first))
        return (void *)h->real;
    h->other = first;
    return (void *)first;
}

static void add_hooks(struct pp_hook *table, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        table[i].real = (uintptr_t)pp_find_real(table[i].name);
        unsigned b = hash(table[i].name);
        while (buckets[b])
            b = (b + 1) % BUCKETS;
        buckets[b] = &table[i];
    }
}

static void prepare(void)
{
    if (home_count)
        return;
    add_hooks(hooks, HOOKS);
    add_hooks(pp_guard_hooks, pp_guard_hook_count);
    dl_iterate_phdr(note_home, NULL);
    *(void **)&real_dlopen = find_loader("dlopen");
    *(void **)&real_dlmopen = find_loader("dlmopen");
}

static void scan(bool detaching)
{
    report = (struct pp_attach_report){0};
    dl_iterate_phdr(visit, &detaching);
    pp_rescan_due = 0;
    PP_TRACE(1, "%s: %u slots in %u objects are ours", detaching ? "detached" : "attached",
             report.slots, report.objects);
}

int pp_attach(void)
{
    pthread_mutex_lock(&lock);
    prepare();
    attached = true;
    scan(false);
    pthread_mutex_unlock(&lock);
    return 0;
}

int pp_detach(void)
{
    pthread_mutex_lock(&lock);
    if (attached) {
        attached = false;
        scan(true);
        written_count = 0;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

void pp_attach_statistics(struct pp_attach_report *result)
{
    pthread_mutex_lock(&lock);
    *result = report;
    pthread_mutex_unlock(&lock);
}

/* By a name that no other interposer has: a sanitizer's recv, which calls ours, may come first. */
int pp_is_preloaded(void)
{
    return dlsym(RTLD_DEFAULT, "__dup2") == (void *)entry_dup2;
}

/* ---- objects loaded later --------------------------------------------------------------------------- */

static int count_adds(struct dl_phdr_info *info, size_t size, void *adds)
{
    (void)size;
    *(unsigned long long *)adds = info->dlpi_adds;
    return 1;
}

void pp_rescan(void)
{
    unsigned long long adds = 0;
    pp_rescan_due = 0;
    dl_iterate_phdr(count_adds, &adds);
    pthread_mutex_lock(&lock);
    if (attached && adds != adds_seen)
        scan(false);
    pthread_mutex_unlock(&lock);
}

/* dlopen looks at who calls it: for that object's search path and $ORIGIN, and for its namespace. */
static bool caller_matters(const char *file, const void *caller)
{
    if (!file)
        return false;
    if (strchr(file, '$'))
        return true;
    Dl_info info;
    struct link_map *map = NULL;
    if (!dladdr1(caller, &info, (void **)&map, RTLD_DL_LINKMAP) || !map)
        return true;
    Lmid_t space;
    if (dlinfo(map, RTLD_DI_LMID, &space) < 0 || space != LM_ID_BASE)
        return true;
    if (strchr(file, '/'))
        return false;
    for (const ElfW(Dyn) *d = map->l_ld; d && d->d_tag != DT_NULL; d++)
        if (d->d_tag == DT_RPATH || d->d_tag == DT_RUNPATH)
            return true;
    return false;
}

static void *dlopen_and_scan(const char *file, int mode)
{
    void *handle = real_dlopen(file, mode);
    if (handle && file)
        pp_rescan();
    return handle;
}

/* Must be a jump into libc where the caller matters, which then sees our caller as its own. The
 * rescan then waits for the next call that has the time. */
static void *hooked_dlopen(const char *file, int mode)
{
    if (caller_matters(file, __builtin_return_address(0))) {
        pp_rescan_due = 1;
        return real_dlopen(file, mode);
    }
    return dlopen_and_scan(file, mode);
}

static void *dlmopen_and_scan(Lmid_t space, const char *file, int mode)
{
    void *handle = real_dlmopen(space, file, mode);
    if (handle && file)
        pp_rescan();
    return handle;
}

static void *hooked_dlmopen(Lmid_t space, const char *file, int mode)
{
    if (caller_matters(file, __builtin_return_address(0))) {
        pp_rescan_due = 1;
        return real_dlmopen(space, file, mode);
    }
    return dlmopen_and_scan(space, file, mode);
}
