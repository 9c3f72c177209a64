/* tasks.c: what asyncio's C functions do differently once every task has a portal.
 *
 * Exchanged in place by swaps.c. The running loop is kept per strand (strand.c), so asyncio's own
 * setter is told through it; Task.get_coro() shows the user's coroutine, not its portal. And a plain
 * function that a task calls may run a loop of its own (asyncio.run in synchronous code): where
 * asyncio checks that no loop runs it is told so, and the task's loop is the running one again when
 * the inner one has ended. Where it runs the task's own loop until something completes
 * (run_until_complete), the task awaits that instead. Called by an `async def` directly it is the error
 * it always was.
 */
#include "swaps.h"

#include <frameobject.h>
#include <string.h>

static PyObject *is_portal, *portal_inner; /* portal.c's functions */
static PyCFunction native_get_coro;        /* of asyncio's Task; NULL until it is loaded */

static PyCFunction native_get_running_loop;
static PyObject *checks; /* tuple: code of asyncio's functions that check */

/* A loop that a plain function of a task runs. The innermost of a strand comes first. */
typedef struct Nested {
    Strand *strand;
    PyObject *loop;
    struct Nested *outer;
} Nested;

static Nested *nested;

PyObject *tasks_running_loop(Strand *strand)
{
    for (Nested *entry = nested; entry; entry = entry->outer) {
        if (entry->strand == strand) {
            return entry->loop;
        }
    }
    return strand->loop;
}

static int enter_nested(Strand *strand, PyObject *loop)
{
    Nested *entry = PyMem_Malloc(sizeof *entry);
    if (!entry) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF(loop);
    *entry = (Nested){.strand = strand, .loop = loop, .outer = nested};
    nested = entry;
    return 0;
}

/* 1 when a loop of this strand's plain functions has ended, 0 when there is none. */
static int leave_nested(Strand *strand)
{
    for (Nested **link = &nested; *link; link = &(*link)->outer) {
        Nested *entry = *link;
        if (entry->strand == strand) {
            *link = entry->outer;
            Py_DECREF(entry->loop);
            PyMem_Free(entry);
            return 1;
        }
    }
    return 0;
}

static PyObject *set_running_loop(PyObject *Py_UNUSED(module), PyObject *loop)
{
    Strand *strand = strand_current();
    if (strand && strand->kind == STRAND_PORTAL && strand->loop) {
        if (loop == Py_None ? leave_nested(strand) : loop != strand->loop) {
            if (loop != Py_None && enter_nested(strand, loop) < 0) {
                return NULL;
            }
            tell_running_loop(strand->hub, tasks_running_loop(strand));
            Py_RETURN_NONE;
        }
    }
    if (strand_set_running_loop(loop) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Of asyncio, or of this package, which calls it. */
static int is_asyncio_frame(PyFrameObject *frame)
{
#if PY_VERSION_HEX >= 0x030B0000
    PyObject *globals = PyFrame_GetGlobals(frame);
#else
    PyObject *globals = Py_NewRef(frame->f_globals);
#endif
    PyObject *name = globals ? PyDict_GetItemString(globals, "__name__") : NULL;
    const char *text = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    int is = text && (strncmp(text, "asyncio.", 8) == 0 || strncmp(text, "portalpatch.", 12) == 0);
    Py_XDECREF(globals);
    PyErr_Clear();
    return is;
}

/* Whether it is a plain function, no coroutine, that called asyncio. */
static int is_plain_function_behind(PyFrameObject *frame)
{
    Py_INCREF(frame);
    while (frame && is_asyncio_frame(frame)) {
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    if (!frame) {
        return 0;
    }
    PyCodeObject *code = PyFrame_GetCode(frame);
    int plain = !(code->co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR | CO_ITERABLE_COROUTINE));
    Py_DECREF(code);
    Py_DECREF(frame);
    return plain;
}

/* Whether one of asyncio's checks asks, on behalf of a plain function. */
static int asked_for_a_nested_run(void)
{
    PyFrameObject *frame = PyEval_GetFrame();
    if (!frame || !checks) {
        return 0;
    }
    PyCodeObject *code = PyFrame_GetCode(frame);
    int checking = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(checks); i++) {
        checking |= PyTuple_GET_ITEM(checks, i) == (PyObject *)code;
    }
    Py_DECREF(code);
    if (!checking) {
        return 0;
    }
    return is_plain_function_behind(frame);
}

int tasks_ask_for_own_loop(PyObject *loop)
{
    Strand *strand = strand_current();
    PyFrameObject *frame = PyEval_GetFrame();
    return strand && strand->kind == STRAND_PORTAL && frame && tasks_running_loop(strand) == loop &&
           strand->loop == loop && is_plain_function_behind(frame);
}

static PyObject *get_running_loop(PyObject *module, PyObject *unused)
{
    PyObject *loop = native_get_running_loop(module, unused);
    Strand *strand = strand_current();
    if (loop && loop != Py_None && strand && strand->kind == STRAND_PORTAL &&
        asked_for_a_nested_run()) {
        Py_INCREF(Py_None);
        Py_SETREF(loop, Py_None);
    }
    return loop;
}

static PyObject *get_coro(PyObject *self, PyObject *unused)
{
    PyObject *coroutine = native_get_coro(self, unused);
    PyObject *answer = coroutine ? PyObject_CallOneArg(is_portal, coroutine) : NULL;
    if (answer == Py_True) {
        Py_SETREF(coroutine, PyObject_CallOneArg(portal_inner, coroutine));
    } else if (!answer) {
        Py_CLEAR(coroutine);
    }
    Py_XDECREF(answer);
    return coroutine;
}

static const Stand_in stand_ins[] = {
    {"_asyncio._get_running_loop", get_running_loop, METH_NOARGS},
    {"_asyncio._set_running_loop", set_running_loop, METH_O},
    {"_asyncio.Task.get_coro", get_coro, METH_NOARGS},
    {NULL, NULL, 0},
};

PyDoc_STRVAR(use_task_type_doc, "use_task_type(type)\n--\n\n"
                                "Take asyncio's own Task, before its get_coro is swapped.");

static PyObject *use_task_type(PyObject *module, PyObject *type)
{
    PyObject *descriptor = PyObject_GetAttrString(type, "get_coro");
    PyMethodDef *definition = descriptor ? swaps_definition(descriptor) : NULL;
    Py_XDECREF(descriptor);
    if (!definition) {
        return NULL;
    }
    native_get_coro = definition->ml_meth;
    Py_XSETREF(is_portal, PyObject_GetAttrString(module, "is_portal"));
    Py_XSETREF(portal_inner, PyObject_GetAttrString(module, "portal_inner"));
    if (!is_portal || !portal_inner) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(use_checks_doc,
             "use_checks(module, codes)\n--\n\n"
             "Take _asyncio's own _get_running_loop, and the code objects of asyncio's functions "
             "that ask it\nto refuse a second loop.");

static PyObject *use_checks(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *source, *codes;
    if (!PyArg_ParseTuple(args, "OO!:use_checks", &source, &PyTuple_Type, &codes)) {
        return NULL;
    }
    native_get_running_loop = swaps_native(source, "_get_running_loop");
    if (!native_get_running_loop) {
        return NULL;
    }
    Py_INCREF(codes);
    Py_XSETREF(checks, codes);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"use_checks", use_checks, METH_VARARGS, use_checks_doc},
    {"use_task_type", use_task_type, METH_O, use_task_type_doc},
    {NULL, NULL, 0, NULL},
};

int tasks_exec(PyObject *module)
{
    if (swaps_announce(stand_ins) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
