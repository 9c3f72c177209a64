/* tasks.c: what asyncio's C functions do differently once every task has a portal.
 *
 * Exchanged in place by swaps.c. The running loop is kept per strand (strand.c), so asyncio's own
 * setter is told through it; and Task.get_coro() shows the user's coroutine, not its portal.
 */
#include "swaps.h"

static PyObject *is_portal, *portal_inner; /* portal.c's functions */
static PyCFunction native_get_coro;        /* of asyncio's Task; NULL until it is loaded */

static PyObject *set_running_loop(PyObject *Py_UNUSED(module), PyObject *loop)
{
    if (strand_set_running_loop(loop) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
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

static PyMethodDef functions[] = {
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
