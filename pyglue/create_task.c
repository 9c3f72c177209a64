/* create_task.c: a loop's create_task whose tasks have portals.
 *
 * Stands in for the method of an event loop class, asyncio's or uvloop's, as patches/asyncio_tasks.py
 * puts it there: a coroutine is wrapped before any task factory sees it, and the arguments are handed
 * on as they came. In C because every task is made here, and so that no frame of ours is in a task's
 * source traceback or in that of a factory's exception.
 */
#include "portal.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD vectorcallfunc vectorcall;
    PyObject *original;   /* the method it stands in for */
    PyObject *is_foreign; /* called with what is no coroutine of Python's own */
    PyObject *dict, *weakrefs;
} CreateTask;

static PyTypeObject CreateTask_Type;
static PyObject *s_coro;

/* Where the coroutine is among the arguments, or -1. */
static Py_ssize_t place_of_coroutine(Py_ssize_t nargs, PyObject *names)
{
    if (nargs >= 2) {
        return 1;
    }
    for (Py_ssize_t i = 0; nargs == 1 && names && i < PyTuple_GET_SIZE(names); i++) {
        if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), s_coro) == 0) {
            return nargs + i;
        }
    }
    return -1;
}

/* 1: it gets a portal; 0: it does not; -1: an exception is set. */
static int wants_portal(CreateTask *self, PyObject *coroutine)
{
    if (PyCoro_CheckExact(coroutine)) {
        return 1;
    }
    if (Py_TYPE(coroutine) == &Portal_Type) {
        return 0;
    }
    PyObject *answer = PyObject_CallOneArg(self->is_foreign, coroutine);
    int wants = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return wants;
}

static PyObject *create_task_call(PyObject *callable, PyObject *const *args, size_t flags,
                                  PyObject *names)
{
    CreateTask *self = (CreateTask *)callable;
    Py_ssize_t nargs = PyVectorcall_NARGS(flags);
    Py_ssize_t all = nargs + (names ? PyTuple_GET_SIZE(names) : 0);
    Py_ssize_t place = place_of_coroutine(nargs, names);
    int wants = place < 0 ? 0 : wants_portal(self, args[place]);
    if (wants <= 0) {
        return wants < 0 ? NULL : PyObject_Vectorcall(self->original, args, flags, names);
    }
    PyObject *few[8], **own = all <= 8 ? few : PyMem_New(PyObject *, all);
    if (!own) {
        return PyErr_NoMemory();
    }
    PyObject *portal = portal_of_task(args[place], args[0]), *task = NULL;
    if (portal) {
        memcpy(own, args, (size_t)all * sizeof *own);
        own[place] = portal;
        task = PyObject_Vectorcall(self->original, own, (size_t)nargs, names);
        Py_DECREF(portal);
    }
    if (own != few) {
        PyMem_Free(own);
    }
    return task;
}

static PyObject *create_task_get(PyObject *self, PyObject *instance, PyObject *owner)
{
    (void)owner;
    if (!instance || instance == Py_None) {
        return Py_NewRef(self);
    }
    return PyMethod_New(self, instance);
}

static PyObject *create_task_repr(PyObject *self)
{
    return PyObject_Repr(((CreateTask *)self)->original);
}

static int create_task_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((CreateTask *)self)->original);
    Py_VISIT(((CreateTask *)self)->is_foreign);
    Py_VISIT(((CreateTask *)self)->dict);
    return 0;
}

static int create_task_clear(PyObject *self)
{
    Py_CLEAR(((CreateTask *)self)->original);
    Py_CLEAR(((CreateTask *)self)->is_foreign);
    Py_CLEAR(((CreateTask *)self)->dict);
    return 0;
}

static void create_task_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    if (((CreateTask *)self)->weakrefs) {
        PyObject_ClearWeakRefs(self);
    }
    create_task_clear(self);
    PyObject_GC_Del(self);
}

static PyGetSetDef create_task_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject CreateTask_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch._core.CreateTask",
    .tp_basicsize = sizeof(CreateTask),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_vectorcall_offset = offsetof(CreateTask, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_descr_get = create_task_get,
    .tp_repr = create_task_repr,
    .tp_dealloc = create_task_dealloc,
    .tp_traverse = create_task_traverse,
    .tp_clear = create_task_clear,
    .tp_getset = create_task_getset,
    .tp_dictoffset = offsetof(CreateTask, dict),
    .tp_weaklistoffset = offsetof(CreateTask, weakrefs),
};

PyDoc_STRVAR(create_task_with_portals_doc,
             "create_task_with_portals($module, original, is_foreign, /)\n--\n\n"
             "A method that does what `original`, a loop's create_task, does to a portal of the "
             "coroutine.\n\n"
             "is_foreign(object) says of what is no native coroutine whether it gets a portal "
             "too.");

static PyObject *create_task_with_portals(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "create_task_with_portals(original, is_foreign)");
        return NULL;
    }
    CreateTask *self = PyObject_GC_New(CreateTask, &CreateTask_Type);
    if (!self) {
        return NULL;
    }
    self->vectorcall = create_task_call;
    Py_INCREF(args[0]);
    self->original = args[0];
    Py_INCREF(args[1]);
    self->is_foreign = args[1];
    self->dict = self->weakrefs = NULL;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyMethodDef functions[] = {
    {"create_task_with_portals", (PyCFunction)(void (*)(void))create_task_with_portals,
     METH_FASTCALL, create_task_with_portals_doc},
    {NULL, NULL, 0, NULL},
};

int create_task_exec(PyObject *module)
{
    if (!s_coro && !(s_coro = PyUnicode_InternFromString("coro"))) {
        return -1;
    }
    if (PyType_Ready(&CreateTask_Type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
