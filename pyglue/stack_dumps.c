/* stack_dumps.c: the stacks of green threads in faulthandler's format, from signal handlers too.
 *
 * Called by faults.c. CPython's dump walks thread states: of an OS thread it shows the stack that executes.
 * A green thread that does not has its innermost frame in its strand. Since 3.12 some links of a stack lie
 * on the C stack, which greenlet has moved to the heap: there they are followed.
 * Invariants: nothing here allocates, waits, takes the GIL or changes a Python object; whatever is not
 * surely still there is read by a system call that fails where there is nothing.
 */
#include "stack_dumps.h"

#include <frameobject.h>
#if PY_VERSION_HEX >= 0x030B0000
#define Py_BUILD_CORE /* the layout of interpreter frames */
#if PY_VERSION_HEX >= 0x030E0000
#include <internal/pycore_interpframe.h>
#else
#include <internal/pycore_frame.h>
#endif
#endif
#include <greenlet/greenlet.h>

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* CPython's own limits. */
enum { THREADS_MAX = 100, FRAMES_MAX = 100, TEXT_MAX = 500 };

/* ---- reading ------------------------------------------------------------------------------------- */

/* 1, or 0: nothing is there. */
static int peek(const void *from, void *into, size_t size)
{
    struct iovec here = {.iov_base = into, .iov_len = size};
    struct iovec there = {.iov_base = (void *)from, .iov_len = size};
    ssize_t copied = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (copied < 0 && (errno == EPERM || errno == ENOSYS)) { /* a sandbox: as CPython reads */
        memcpy(into, from, size);
        return 1;
    }
    return copied == (ssize_t)size;
}

/* A greenlet's slice of the C stack, as far as it has been moved to the heap. The order of these words is
 * greenlet's own (its StackState); where they stand in what a greenlet points to is found by looking. */
struct moved_stack {
    uintptr_t start, stop, copy;
    intptr_t size;
};

static int holds(const struct moved_stack *moved, uintptr_t at)
{
    return moved->copy && moved->size > 0 && moved->size <= 64 << 20 && at >= moved->start &&
           at < moved->start + (uintptr_t)moved->size &&
           moved->start + (uintptr_t)moved->size <= moved->stop;
}

/* Read what was at `from` while the greenlet executed. */
static int peek_stopped(PyGreenlet *greenlet, const void *from, void *into, size_t size)
{
    PyGreenlet head;
    uintptr_t words[20];
    if (greenlet && peek(greenlet, &head, sizeof head) && peek(head.pimpl, words, sizeof words)) {
        for (size_t i = 0; i + 4 <= sizeof words / sizeof *words; i++) {
            struct moved_stack moved;
            memcpy(&moved, words + i, sizeof moved);
            if (holds(&moved, (uintptr_t)from)) {
                uintptr_t at = (uintptr_t)from - moved.start;
                size_t there = (size_t)moved.size - at < size ? (size_t)moved.size - at : size;
                return peek((void *)(moved.copy + at), into, there) &&
                       (there == size ||
                        peek((const char *)from + there, (char *)into + there, size - there));
            }
        }
    }
    return peek(from, into, size);
}

/* ---- writing ------------------------------------------------------------------------------------- */

typedef struct {
    int fd;
    size_t length;
    char bytes[256];
} Text;

static void flush(Text *text)
{
    for (size_t done = 0; done < text->length;) {
        ssize_t written = write(text->fd, text->bytes + done, text->length - done);
        if (written < 0 && errno != EINTR) {
            break;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    text->length = 0;
}

static void put(Text *text, char byte)
{
    if (text->length == sizeof text->bytes) {
        flush(text);
    }
    text->bytes[text->length++] = byte;
}

static void put_string(Text *text, const char *string)
{
    while (*string) {
        put(text, *string++);
    }
}

static void put_hex(Text *text, unsigned long number, int digits)
{
    while (digits-- > 0) {
        put(text, "0123456789abcdef"[number >> (4 * digits) & 15]);
    }
}

static void put_decimal(Text *text, unsigned long number)
{
    if (number >= 10) {
        put_decimal(text, number / 10);
    }
    put(text, (char)('0' + number % 10));
}

static int is_a(PyObject *object, PyTypeObject *type)
{
    PyObject head;
    return object && peek(object, &head, sizeof head) && head.ob_type == type;
}

static void put_text(Text *text, PyObject *string)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(string);
    for (Py_ssize_t i = 0; i < length && i < TEXT_MAX; i++) {
        Py_UCS4 character = PyUnicode_READ_CHAR(string, i);
        if (character >= ' ' && character <= 126) {
            put(text, (char)character);
        } else {
            int digits = character <= 0xff ? 2 : character <= 0xffff ? 4 : 8;
            put_string(text, digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U");
            put_hex(text, character, digits);
        }
    }
    if (length > TEXT_MAX) {
        put_string(text, "...");
    }
}

/* ---- frames -------------------------------------------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030B0000
typedef _PyInterpreterFrame Frame;
enum { FRAME_SIZE = offsetof(Frame, localsplus) };
#else
typedef PyFrameObject Frame;
enum { FRAME_SIZE = offsetof(Frame, f_localsplus) };
#endif

static const void *frame_below(const Frame *frame)
{
#if PY_VERSION_HEX >= 0x030B0000
    return frame->previous;
#else
    return frame->f_back;
#endif
}

/* Not Python code's, but a link that C code has made. */
static int is_link(const Frame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    return frame->owner >= FRAME_OWNED_BY_INTERPRETER;
#elif PY_VERSION_HEX >= 0x030C0000
    return frame->owner == FRAME_OWNED_BY_CSTACK;
#else
    (void)frame;
    return 0;
#endif
}

static PyObject *frame_code(const Frame *frame)
{
#if PY_VERSION_HEX >= 0x030E0000
    return PyStackRef_AsPyObjectBorrow(frame->f_executable);
#elif PY_VERSION_HEX >= 0x030D0000
    return frame->f_executable;
#else
    return (PyObject *)frame->f_code;
#endif
}

static int frame_line(const Frame *frame, PyCodeObject *code)
{
#if PY_VERSION_HEX >= 0x030D0000
    ptrdiff_t at = frame->instr_ptr - _PyCode_CODE(code);
#elif PY_VERSION_HEX >= 0x030B0000
    ptrdiff_t at = frame->prev_instr - _PyCode_CODE(code);
#else
    if (frame->f_lineno) {
        return frame->f_lineno;
    }
    ptrdiff_t at = frame->f_lasti;
#endif
    return PyCode_Addr2Line(code, (int)at * (int)sizeof(_Py_CODEUNIT));
}

static void put_frame(Text *text, const Frame *frame)
{
    PyCodeObject *code = (PyCodeObject *)frame_code(frame);
    put_string(text, "  File ");
    if (is_a(code->co_filename, &PyUnicode_Type)) {
        put(text, '"');
        put_text(text, code->co_filename);
        put(text, '"');
    } else {
        put_string(text, "???");
    }
    int line = frame_line(frame, code);
    put_string(text, ", line ");
    if (line >= 0) {
        put_decimal(text, (unsigned long)line);
    } else {
        put_string(text, "???");
    }
    put_string(text, " in ");
    if (is_a(code->co_name, &PyUnicode_Type)) {
        put_text(text, code->co_name);
    } else {
        put_string(text, "???");
    }
    put(text, '\n');
}

static void put_thread(Text *text, unsigned long ident, PyGreenlet *greenlet, const void *at)
{
    put_string(text, "Thread 0x");
    put_hex(text, ident, (int)sizeof ident * 2);
    put_string(text, " (most recent call first):\n");
    if (!at) {
        put_string(text, "  <no Python frame>\n");
    }
    Frame frame;
    for (int count = 0, links = 0; at && links <= FRAMES_MAX; at = frame_below(&frame)) {
        if (!peek_stopped(greenlet, at, &frame, FRAME_SIZE)) {
            break;
        }
        if (is_link(&frame)) {
            links++;
            continue;
        }
        if (count++ == FRAMES_MAX || !is_a(frame_code(&frame), &PyCode_Type)) {
            put_string(text, "  ...\n");
            break;
        }
        put_frame(text, &frame);
    }
    flush(text);
}

/* ---- threads ------------------------------------------------------------------------------------- */

/* Polling, with the stack of none of its threads in place: the one that was last has ended. */
static int nobody_executes(Hub *hub)
{
    return hub->current == &hub->main && hub->main.greenlet && !frame_executing(hub->tstate);
}

/* The thread on whose stack the OS thread is. */
static Strand *executing(Hub *hub)
{
    return nobody_executes(hub) ? NULL : hub->current->locals_owner;
}

static int is_of_this_process(Hub *hub)
{
    return hub->pid == getpid();
}

int stack_dumps_needed(void)
{
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        if (is_of_this_process(hub) && (hub->green || executing(hub) != &hub->main)) {
            return 1;
        }
    }
    return 0;
}

void stack_dumps_name_current(int on)
{
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        if (is_of_this_process(hub)) {
            Strand *strand = on ? executing(hub) : NULL;
            hub->tstate->thread_id = strand ? strand->ident : hub->main.ident;
        }
    }
}

/* The threads of a hub, the newest first, as CPython lists them: `count` of them so far. 0: enough. */
static int put_hub(Text *text, Hub *hub, int with_executing, int *count)
{
    Strand *now = executing(hub), strand;
    const void *next = hub->green ? hub->green : &hub->main;
    while (next) {
        const Strand *at = next;
        if (!peek(at, &strand, sizeof strand)) {
            break;
        }
        int is_main = at == &hub->main;
        next = is_main ? NULL : strand.all_next ? strand.all_next : &hub->main;
        int executes = at == now;
        if (executes ? !with_executing : !strand.greenlet && strand.state != STRAND_NEW) {
            continue;
        }
        if (*count || !with_executing) {
            put(text, '\n');
        }
        if (++*count > THREADS_MAX) {
            put_string(text, "...\n");
            flush(text);
            return 0;
        }
        if (executes) {
            put_thread(text, strand.ident, NULL, frame_executing(hub->tstate));
        } else {
            put_thread(text, strand.ident, strand.greenlet, strand.greenlet ? strand.frame : NULL);
        }
    }
    return 1;
}

void stack_dumps_write_parked(int fd)
{
    Text text = {.fd = fd};
    int count = 0;
    for (Hub *hub = hub_first(); hub; hub = hub_next(hub)) {
        if (is_of_this_process(hub) && !put_hub(&text, hub, 0, &count)) {
            break;
        }
    }
}

static Hub *hub_of(PyThreadState *tstate)
{
    Hub *hub = hub_first();
    while (hub && (hub->tstate != tstate || !is_of_this_process(hub))) {
        hub = hub_next(hub);
    }
    return hub;
}

void stack_dumps_write_all(int fd)
{
    Text text = {.fd = fd};
    int count = 0;
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Main());
    for (; tstate; tstate = PyThreadState_Next(tstate)) {
        Hub *hub = hub_of(tstate);
        if (hub) {
            if (!put_hub(&text, hub, 1, &count)) {
                return;
            }
            continue;
        }
        if (count) {
            put(&text, '\n');
        }
        if (++count > THREADS_MAX) {
            put_string(&text, "...\n");
            flush(&text);
            return;
        }
        put_thread(&text, tstate->thread_id, NULL, frame_executing(tstate));
    }
}
