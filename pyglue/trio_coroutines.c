/* trio_coroutines.c: Trio's Task.coro is the user's coroutine to everybody but Trio.
 *
 * Trio steps a task through this attribute (`task.coro.send`), so there it is the portal; whoever else
 * reads it (instruments, debuggers, the program) gets what it would without a portal. Only while the task
 * is stopped inside synchronous code do they get the portal too: it equals its coroutine, and knows of the
 * frames below it and that it is suspended, while the coroutine itself says that it is running. Who reads
 * is told by the module of the innermost frame. Called by _portal.py, at the first portal of a Trio task.
 */
#include "portal.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD PyObject *member; /* the descriptor of the slot itself */
    PyObject *globals;              /* of the module that steps tasks */
    Py_ssize_t offset;              /* of the slot */
} Shown;

static PyTypeObject Shown_Type;
static PyObject *s_coro;

static PyObject *shown_get(PyObject *self, PyObject *task, PyObject *type)
{
    Shown *shown = (Shown *)self;
    if (!task || task == Py_None) {
        return Py_NewRef(shown->member);
    }
    if (!PyObject_TypeCheck(task, PyDescr_TYPE(shown->member))) {
        return Py_TYPE(shown->member)->tp_descr_get(shown->member, task, type);
    }
    PyObject *value = *(PyObject **)((char *)task + shown->offset);
    if (value && Py_TYPE(value) == &Portal_Type && PyEval_GetGlobals() != shown->globals) {
        value = portal_shown(value);
    }
    return value ? Py_NewRef(value)
                 : Py_TYPE(shown->member)->tp_descr_get(shown->member, task, type);
}

static int shown_set(PyObject *self, PyObject *task, PyObject *value)
{
    PyObject *member = ((Shown *)self)->member;
    if (PyObject_TypeCheck(task, PyDescr_TYPE(member))) {
        PyObject *before = *(PyObject **)((char *)task + ((Shown *)self)->offset);
        if (before && Py_TYPE(before) == &Portal_Type && ((Portal *)before)->inner == value) {
            return 0; /* what it shows is given back */
        }
    }
    return Py_TYPE(member)->tp_descr_set(member, task, value);
}

static PyObject *shown_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(((Shown *)self)->member, name);
}

static PyObject *shown_repr(PyObject *self)
{
    return PyObject_Repr(((Shown *)self)->member);
}

static int shown_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((Shown *)self)->member);
    Py_VISIT(((Shown *)self)->globals);
    return 0;
}

static void shown_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(((Shown *)self)->member);
    Py_XDECREF(((Shown *)self)->globals);
    PyObject_GC_Del(self);
}

static PyTypeObject Shown_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch.ShownCoroutine",
    .tp_doc = PyDoc_STR("The attribute of a task that holds its coroutine."),
    .tp_basicsize = sizeof(Shown),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_dealloc = shown_dealloc,
    .tp_traverse = shown_traverse,
    .tp_repr = shown_repr,
    .tp_getattro = shown_getattro,
    .tp_descr_get = shown_get,
    .tp_descr_set = shown_set,
};

PyDoc_STRVAR(show_trio_coroutines_doc,
             "show_trio_coroutines($module, task_type, globals, /)\n--\n\n"
             "From now on `coro` of such tasks is the user's coroutine, but to code with these "
             "globals.");

static PyObject *show_trio_coroutines(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *globals;
    if (!PyArg_ParseTuple(args, "O!O!:show_trio_coroutines", &PyType_Type, &type, &PyDict_Type,
                          &globals)) {
        return NULL;
    }
    PyObject *member = PyDict_GetItemString(type->tp_dict, "coro"); /* borrowed */
    if (!member || !Py_IS_TYPE(member, &PyMemberDescr_Type) ||
        ((PyMemberDescrObject *)member)->d_member->type != T_OBJECT_EX) {
        Py_RETURN_FALSE; /* shown already, or a Trio that keeps it otherwise */
    }
    Shown *shown = PyObject_GC_New(Shown, &Shown_Type);
    if (!shown) {
        return NULL;
    }
    shown->member = Py_NewRef(member);
    shown->globals = Py_NewRef(globals);
    shown->offset = ((PyMemberDescrObject *)member)->d_member->offset;
    PyObject_GC_Track(shown);
    int failed = PyObject_SetAttrString((PyObject *)type, "coro", (PyObject *)shown);
    Py_DECREF(shown);
    return failed ? NULL : Py_NewRef(Py_True);
}

/* The descriptor behind ours, borrowed; NULL: the attribute is Trio's own. */
static PyObject *slot_of(PyObject *task)
{
    PyObject *shown = _PyType_Lookup(Py_TYPE(task), s_coro); /* borrowed */
    return shown && Py_IS_TYPE(shown, &Shown_Type) ? ((Shown *)shown)->member : NULL;
}

PyDoc_STRVAR(stepped_coroutine_doc, "stepped_coroutine($module, task, /)\n--\n\n"
                                    "What Trio steps: the portal of this task, or its coroutine.");

static PyObject *stepped_coroutine(PyObject *Py_UNUSED(module), PyObject *task)
{
    PyObject *slot = slot_of(task);
    return slot ? Py_TYPE(slot)->tp_descr_get(slot, task, (PyObject *)Py_TYPE(task))
                : PyObject_GetAttr(task, s_coro);
}

PyDoc_STRVAR(remove_portal_doc, "remove_portal($module, task, /)\n--\n\n"
                                "From its next step on Trio steps the task's own coroutine.");

static PyObject *remove_portal(PyObject *module, PyObject *task)
{
    PyObject *portal = stepped_coroutine(module, task);
    int failed = !portal;
    if (portal && Py_TYPE(portal) == &Portal_Type) {
        PyObject *slot = slot_of(task), *inner = ((Portal *)portal)->inner;
        failed = slot ? Py_TYPE(slot)->tp_descr_set(slot, task, inner)
                      : PyObject_SetAttr(task, s_coro, inner);
    }
    Py_XDECREF(portal);
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"remove_portal", remove_portal, METH_O, remove_portal_doc},
    {"show_trio_coroutines", show_trio_coroutines, METH_VARARGS, show_trio_coroutines_doc},
    {"stepped_coroutine", stepped_coroutine, METH_O, stepped_coroutine_doc},
    {NULL, NULL, 0, NULL}};

int trio_coroutines_exec(PyObject *module)
{
    if (!s_coro && !(s_coro = PyUnicode_InternFromString("coro"))) {
        return -1;
    }
    return PyType_Ready(&Shown_Type) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
