/* swaps.c: exchanges CPython's built-in functions and methods in place.
 *
 * Called by patches/ through swap() and unswap(). A built-in function object, a method descriptor and
 * every bound method made of it share one PyMethodDef; writing our C function there changes what all
 * of them do, wherever they have been imported, bound or stored before. What GOT patching is for
 * libc, for the C functions of Python: order of imports does not matter, identity, pickles, reprs
 * and isinstance do not change. Invariant: the calling convention (METH_ flags) never changes, since
 * callers have chosen their path by it; what was written can be undone exactly.
 */
#include "swaps.h"

#include <string.h>

typedef struct Swap {
    PyMethodDef *target;
    PyMethodDef original; /* a copy, as it was */
    struct Swap *next;
} Swap;

static Swap *swapped;

enum { SETS_MAX = 16 };
static const Stand_in *sets[SETS_MAX];

int swaps_announce(const Stand_in *stand_ins)
{
    for (int i = 0; i < SETS_MAX; i++) {
        if (!sets[i] || sets[i] == stand_ins) {
            sets[i] = stand_ins;
            return 0;
        }
    }
    PyErr_SetString(PyExc_SystemError, "too many sets of stand-ins");
    return -1;
}

static const Stand_in *find_stand_in(const char *name)
{
    for (int i = 0; i < SETS_MAX && sets[i]; i++) {
        for (const Stand_in *stand_in = sets[i]; stand_in->name; stand_in++) {
            if (strcmp(stand_in->name, name) == 0) {
                return stand_in;
            }
        }
    }
    return NULL;
}

PyMethodDef *swaps_definition(PyObject *callable)
{
    if (PyCFunction_Check(callable)) {
        return ((PyCFunctionObject *)callable)->m_ml;
    }
    if (Py_IS_TYPE(callable, &PyMethodDescr_Type)) {
        return ((PyMethodDescrObject *)callable)->d_method;
    }
    PyErr_Format(PyExc_TypeError, "a built-in function or method is required, not %R", callable);
    return NULL;
}

static Swap *find_swap(PyMethodDef *target)
{
    Swap *swap = swapped;
    while (swap && swap->target != target) {
        swap = swap->next;
    }
    return swap;
}

PyObject *swaps_keep_original(PyObject *function)
{
    if (!PyCFunction_Check(function)) {
        PyErr_Format(PyExc_TypeError, "a built-in function is required, not %R", function);
        return NULL;
    }
    PyMethodDef *definition = swaps_definition(function);
    PyMethodDef *copy = PyMem_Malloc(sizeof *copy); /* never freed: few, and functions outlive us */
    if (!copy) {
        return PyErr_NoMemory();
    }
    Swap *swap = find_swap(definition);
    *copy = swap ? swap->original : *definition;
    PyCFunctionObject *object = (PyCFunctionObject *)function;
    return PyCFunction_NewEx(copy, object->m_self, object->m_module);
}

PyCFunction swaps_native(PyObject *module, const char *name)
{
    PyObject *function = PyObject_GetAttrString(module, name);
    PyMethodDef *definition = function ? swaps_definition(function) : NULL;
    Py_XDECREF(function);
    if (!definition) {
        return NULL;
    }
    Swap *swap = find_swap(definition);
    return swap ? swap->original.ml_meth : definition->ml_meth;
}

PyDoc_STRVAR(swap_doc, "swap(target, name)\n--\n\n"
                       "Let the built-in function or method `target` do what our stand-in `name` "
                       "does.\nLookupError: no such stand-in; RuntimeError: another calling "
                       "convention, or swapped already.");

static PyObject *swap_in(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *callable;
    const char *name;
    if (!PyArg_ParseTuple(args, "Os:swap", &callable, &name)) {
        return NULL;
    }
    PyMethodDef *target = swaps_definition(callable);
    if (!target) {
        return NULL;
    }
    const Stand_in *stand_in = find_stand_in(name);
    if (!stand_in) {
        return PyErr_Format(PyExc_LookupError, "no stand-in for %s", name);
    }
    if (target->ml_flags != stand_in->flags) {
        return PyErr_Format(PyExc_RuntimeError, "%s has another calling convention (%d, not %d)",
                            name, target->ml_flags, stand_in->flags);
    }
    if (find_swap(target)) {
        return PyErr_Format(PyExc_RuntimeError, "%s is swapped already", name);
    }
    Swap *swap = PyMem_Malloc(sizeof *swap);
    if (!swap) {
        return PyErr_NoMemory();
    }
    *swap = (Swap){.target = target, .original = *target, .next = swapped};
    swapped = swap;
    target->ml_meth = stand_in->function;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unswap_doc, "unswap(target)\n--\n\n"
                         "Undo swap(target, ...). Does nothing where it is not swapped.");

static PyObject *swap_out(PyObject *Py_UNUSED(module), PyObject *callable)
{
    PyMethodDef *target = swaps_definition(callable);
    if (!target) {
        return NULL;
    }
    for (Swap **link = &swapped; *link; link = &(*link)->next) {
        Swap *swap = *link;
        if (swap->target == target) {
            *link = swap->next;
            target->ml_meth = swap->original.ml_meth;
            PyMem_Free(swap);
            break;
        }
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(original_doc, "original(function)\n--\n\n"
                           "A built-in function that does what `function` did before it was "
                           "swapped, and goes on to do so.");

static PyObject *original(PyObject *Py_UNUSED(module), PyObject *function)
{
    return swaps_keep_original(function);
}

static PyMethodDef functions[] = {
    {"swap", swap_in, METH_VARARGS, swap_doc},
    {"unswap", swap_out, METH_O, unswap_doc},
    {"original", original, METH_O, original_doc},
    {NULL, NULL, 0, NULL},
};

int swaps_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
