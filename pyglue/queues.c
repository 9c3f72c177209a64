/* queues.c: SimpleQueue, drop-in for _queue.SimpleQueue, for green and native threads at once.
 *
 * Python code uses it in place of queue.SimpleQueue once patched; calls waiters.c to wait. The GIL
 * guards it. Invariants: put() never waits and may be re-entered (from a destructor, a signal
 * handler); items leave in the order they came; getters are served in the order they came: while
 * one that was woken has not run yet, an item is `promised` to it, which no later getter takes.
 */
#include "locks.h"

#include <stddef.h>
#include <structmember.h>

static PyTypeObject *queue_type;
static PyObject *empty_error; /* _queue.Empty, from the module that was patched */

typedef struct {
    PyObject_HEAD PyObject *weakrefs;
    WaitQueue getters;
    PyObject **ring; /* capacity is a power of two, or 0 */
    Py_ssize_t capacity, first, count;
    Py_ssize_t promised; /* of count: granted to getters that have not run yet */
} GreenQueue;

enum { FIRST_CAPACITY = 8 };

static PyObject *queue_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (type == queue_type && PyTuple_GET_SIZE(args)) {
        PyErr_SetString(PyExc_TypeError, "SimpleQueue() takes no positional arguments");
        return NULL;
    }
    if (type == queue_type && kwargs && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "SimpleQueue() takes no keyword arguments");
        return NULL;
    }
    return type->tp_alloc(type, 0); /* zeroed: empty */
}

static PyObject *queue_pop(GreenQueue *self)
{
    PyObject *item = self->ring[self->first];
    self->first = (self->first + 1) & (self->capacity - 1);
    self->count--;
    return item;
}

static int queue_push(GreenQueue *self, PyObject *item)
{
    if (self->count == self->capacity) {
        Py_ssize_t capacity = self->capacity ? self->capacity * 2 : FIRST_CAPACITY;
        PyObject **ring = PyMem_New(PyObject *, capacity);
        if (!ring) {
            PyErr_NoMemory();
            return -1;
        }
        for (Py_ssize_t i = 0; i < self->count; i++) {
            ring[i] = self->ring[(self->first + i) & (self->capacity - 1)];
        }
        PyMem_Free(self->ring);
        self->ring = ring;
        self->capacity = capacity;
        self->first = 0;
    }
    Py_INCREF(item);
    self->ring[(self->first + self->count++) & (self->capacity - 1)] = item;
    return 0;
}

static int queue_traverse(GreenQueue *self, visitproc visit, void *arg)
{
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_VISIT(self->ring[(self->first + i) & (self->capacity - 1)]);
    }
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int queue_clear(GreenQueue *self)
{
    while (self->count) {
        Py_DECREF(queue_pop(self));
    }
    return 0;
}

static void queue_dealloc(GreenQueue *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    queue_clear(self);
    PyMem_Free(self->ring);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Promise an item to the next getter, where there are both. */
static void queue_promise(GreenQueue *self)
{
    if (self->count > self->promised && waiters_grant(&self->getters)) {
        self->promised++;
    }
}

static int queue_put(GreenQueue *self, PyObject *item)
{
    if (queue_push(self, item) < 0) {
        return -1;
    }
    queue_promise(self);
    return 0;
}

/* In the words of CPython's own parser; -1 with the exception set. */
static int parse(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *format,
                 char **names, void *first, void *second, void *third)
{
    PyObject *positional, *keywords;
    if (arguments_pack(args, nargs, kwnames, &positional, &keywords) < 0) {
        return -1;
    }
    int parsed =
        PyArg_ParseTupleAndKeywords(positional, keywords, format, names, first, second, third);
    Py_DECREF(positional);
    Py_XDECREF(keywords);
    return parsed ? 0 : -1;
}

PyDoc_STRVAR(put_doc, "put($self, /, item, block=True, timeout=None)\n--\n\n"
                      "Put the item on the queue. Never waits: block and timeout are ignored.");

static PyObject *put(GreenQueue *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static char *names[] = {"item", "block", "timeout", NULL};
    PyObject *item = nargs ? args[0] : NULL, *timeout;
    int block;
    if ((nargs != 1 || kwnames) &&
        parse(args, nargs, kwnames, "O|pO:put", names, &item, &block, &timeout) < 0) {
        return NULL;
    }
    if (queue_put(self, item) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(put_nowait_doc, "put_nowait($self, /, item)\n--\n\nThe same as put(item).");

static PyObject *put_nowait(GreenQueue *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    static char *names[] = {"item", NULL};
    PyObject *item = nargs ? args[0] : NULL;
    if ((nargs != 1 || kwnames) &&
        parse(args, nargs, kwnames, "O:put_nowait", names, &item, NULL, NULL) < 0) {
        return NULL;
    }
    if (queue_put(self, item) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *raise_empty(void)
{
    if (!empty_error) {
        PyObject *module = PyImport_ImportModule("_queue");
        empty_error = module ? PyObject_GetAttrString(module, "Empty") : NULL;
        Py_XDECREF(module);
    }
    if (empty_error) {
        PyErr_SetNone(empty_error);
    }
    return NULL;
}

static PyObject *use_empty(PyObject *Py_UNUSED(module), PyObject *error)
{
    Py_INCREF(error);
    Py_XSETREF(empty_error, error);
    Py_RETURN_NONE;
}

static PyObject *queue_get(GreenQueue *self, Patience patience)
{
    if (self->count > self->promised) {
        return queue_pop(self);
    }
    if (patience == 0) {
        return raise_empty();
    }
    int64_t deadline = patience < 0 ? PP_FOREVER : deadline_after(patience);
    switch (waiters_wait(&self->getters, (PyObject *)self, deadline)) {
    case WAITED_GRANTED:
        self->promised--;
        return queue_pop(self);
    case WAITED_TIMEOUT:
        return raise_empty();
    case WAITED_RAISED_GRANTED:
        self->promised--;
        queue_promise(self);
        break;
    case WAITED_RAISED:
        break;
    }
    return NULL;
}

PyDoc_STRVAR(get_doc,
             "get($self, /, block=True, timeout=None)\n--\n\n"
             "Remove and return the oldest item. Waits for one: for ever (timeout None), at most\n"
             "timeout seconds, or (block false) not at all; then raises Empty.");

static PyObject *get(GreenQueue *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static char *names[] = {"block", "timeout", NULL};
    if (nargs == 0 && !kwnames) {
        return queue_get(self, -1);
    }
    int block = 1;
    PyObject *timeout = Py_None;
    Patience patience = -1;
    if (parse(args, nargs, kwnames, "|pO:get", names, &block, &timeout, NULL) < 0) {
        return NULL;
    }
    if (!block) {
        patience = 0;
    } else if (timeout != Py_None) {
        if (timeout_from_object(timeout, &patience) < 0) {
            return NULL;
        }
        if (patience < 0) {
            PyErr_SetString(PyExc_ValueError, "'timeout' must be a non-negative number");
            return NULL;
        }
    }
    return queue_get(self, patience);
}

PyDoc_STRVAR(get_nowait_doc, "get_nowait($self, /)\n--\n\nThe same as get(False).");

static PyObject *get_nowait(GreenQueue *self, PyObject *Py_UNUSED(ignored))
{
    return queue_get(self, 0);
}

static PyObject *is_empty(GreenQueue *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->count == self->promised);
}

static PyObject *qsize(GreenQueue *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSsize_t(self->count - self->promised);
}

#define METHOD(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef methods[] = {
    {"put", METHOD(put), METH_FASTCALL | METH_KEYWORDS, put_doc},
    {"put_nowait", METHOD(put_nowait), METH_FASTCALL | METH_KEYWORDS, put_nowait_doc},
    {"get", METHOD(get), METH_FASTCALL | METH_KEYWORDS, get_doc},
    {"get_nowait", METHOD(get_nowait), METH_NOARGS, get_nowait_doc},
    {"empty", METHOD(is_empty), METH_NOARGS,
     PyDoc_STR("empty($self, /)\n--\n\nWhether it is empty (it may change at once).")},
    {"qsize", METHOD(qsize), METH_NOARGS,
     PyDoc_STR("qsize($self, /)\n--\n\nHow many items there are (it may change at once).")},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, PyDoc_STR("See PEP 585")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GreenQueue, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, queue_tp_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_doc, "Simple, unbounded, reentrant FIFO queue."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "_queue.SimpleQueue",
    .basicsize = sizeof(GreenQueue),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"use_empty", use_empty, METH_O,
     PyDoc_STR("use_empty(error)\n--\n\nRaise this where a SimpleQueue is empty: queue.Empty.")},
    {NULL, NULL, 0, NULL},
};

int queues_exec(PyObject *module)
{
    if (!queue_type) {
        queue_type = (PyTypeObject *)PyType_FromSpec(&spec);
        if (!queue_type) {
            return -1;
        }
    }
    if (PyModule_AddFunctions(module, functions) < 0) {
        return -1;
    }
    return PyModule_AddObjectRef(module, "SimpleQueue", (PyObject *)queue_type);
}
