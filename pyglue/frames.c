/* frames.c: sys._current_frames() and sys._current_exceptions() know every green thread.
 *
 * Exchanged in place by swaps.c; reads strand.c's lists. Natively the functions see one frame and one
 * handled exception per OS thread, those of what executes; parked lines of control have theirs in their
 * greenlets, and in `handled`. Invariant: the keys are what get_ident() says in each thread, as natively.
 */
#include "swaps.h"
#include "waiters.h"

static PyCFunction native_current_frames, native_current_exceptions;

/* Add the innermost frame of a parked strand. 0, or -1 with an exception set. */
static int add_frame(PyObject *frames, Strand *strand, unsigned long ident)
{
    if (!strand->greenlet) {
        return 0; /* not yet started, or executing */
    }
    PyObject *frame = PyObject_GetAttrString((PyObject *)strand->greenlet, "gr_frame");
    PyObject *key = frame ? PyLong_FromUnsignedLong(ident) : NULL;
    int result = key ? 0 : -1;
    if (key && frame != Py_None) {
        result = PyDict_SetItem(frames, key, frame);
    }
    Py_XDECREF(key);
    Py_XDECREF(frame);
    return result;
}

/* As sys._current_exceptions() shows it: until 3.11 what sys.exc_info() returns, then the exception. */
static PyObject *show_exception(PyObject *exception)
{
    int some = exception && exception != Py_None;
#if BEFORE_312
    PyObject *traceback = some ? PyException_GetTraceback(exception) : NULL;
    PyObject *kind = some ? (PyObject *)Py_TYPE(exception) : Py_None;
    PyObject *shown =
        PyTuple_Pack(3, kind, some ? exception : Py_None, traceback ? traceback : Py_None);
    Py_XDECREF(traceback);
    return shown;
#else
    return Py_NewRef(some ? exception : Py_None);
#endif
}

static int add_exception(PyObject *exceptions, Strand *strand, unsigned long ident)
{
    if (!strand->greenlet) {
        return 0;
    }
    PyObject *key = PyLong_FromUnsignedLong(ident);
    PyObject *shown = key ? show_exception(strand->handled) : NULL;
    int result = shown ? PyDict_SetItem(exceptions, key, shown) : -1;
    Py_XDECREF(key);
    Py_XDECREF(shown);
    return result;
}

static int add_hub(PyObject *frames, Hub *hub,
                   int (*add_parked)(PyObject *, Strand *, unsigned long))
{
    Strand *current = hub->current->locals_owner;
    PyObject *native_key = PyLong_FromUnsignedLong(hub->main.ident);
    if (!native_key) {
        return -1;
    }
    PyObject *executing = PyDict_GetItemWithError(frames, native_key);
    int result = PyErr_Occurred() ? -1 : 0;
    if (result == 0 && executing && current != &hub->main) {
        PyObject *key = PyLong_FromUnsignedLong(current->ident);
        result = key ? PyDict_SetItem(frames, key, executing) : -1;
        Py_XDECREF(key);
        if (result == 0) {
            result = PyDict_DelItem(frames, native_key);
        }
    }
    Py_DECREF(native_key);
    if (result == 0) { /* which has no greenlet while it executes */
        result = add_parked(frames, &hub->main, hub->main.ident);
    }
    for (Strand *strand = hub->green; result == 0 && strand; strand = strand->all_next) {
        if (strand != current) {
            result = add_parked(frames, strand, strand->ident);
        }
    }
    return result;
}

static PyObject *with_hubs(PyObject *natives,
                           int (*add_parked)(PyObject *, Strand *, unsigned long))
{
    if (!in_main_interpreter()) {
        return natives;
    }
    for (Hub *hub = hub_first(); natives && hub; hub = hub_next(hub)) {
        if (add_hub(natives, hub, add_parked) < 0) {
            Py_CLEAR(natives);
        }
    }
    return natives;
}

static PyObject *current_frames(PyObject *module, PyObject *unused)
{
    return with_hubs(native_current_frames(module, unused), add_frame);
}

static PyObject *current_exceptions(PyObject *module, PyObject *unused)
{
    return with_hubs(native_current_exceptions(module, unused), add_exception);
}

static const Stand_in stand_ins[] = {
    {"sys._current_frames", current_frames, METH_NOARGS},
    {"sys._current_exceptions", current_exceptions, METH_NOARGS},
    {NULL, NULL, 0},
};

int frames_exec(PyObject *Py_UNUSED(module))
{
    PyObject *sys = PyImport_ImportModule("sys");
    if (!sys) {
        return -1;
    }
    native_current_frames = swaps_native(sys, "_current_frames");
    native_current_exceptions = swaps_native(sys, "_current_exceptions");
    Py_DECREF(sys);
    return native_current_frames && native_current_exceptions ? swaps_announce(stand_ins) : -1;
}
