/* frames.c: sys._current_frames() knows every green thread.
 *
 * Exchanged in place by swaps.c; reads strand.c's lists. Natively the function sees one frame per OS
 * thread, the one that executes; parked lines of control have theirs in their greenlets. Invariant:
 * the keys are what get_ident() says in each thread, as natively.
 */
#include "swaps.h"

static PyCFunction native_current_frames;

/* Add the innermost frame of a parked strand. 0, or -1 with an exception set. */
static int add_parked(PyObject *frames, Strand *strand, unsigned long ident)
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

static int add_hub(PyObject *frames, Hub *hub)
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
    if (result == 0 && current != &hub->main) {
        result = add_parked(frames, &hub->main, hub->main.ident);
    }
    for (Strand *strand = hub->green; result == 0 && strand; strand = strand->all_next) {
        if (strand != current) {
            result = add_parked(frames, strand, strand->ident);
        }
    }
    return result;
}

static PyObject *current_frames(PyObject *module, PyObject *unused)
{
    PyObject *frames = native_current_frames(module, unused);
    if (!in_main_interpreter()) {
        return frames;
    }
    for (Hub *hub = hub_first(); frames && hub; hub = hub_next(hub)) {
        if (add_hub(frames, hub) < 0) {
            Py_CLEAR(frames);
        }
    }
    return frames;
}

static const Stand_in stand_ins[] = {
    {"sys._current_frames", current_frames, METH_NOARGS},
    {NULL, NULL, 0},
};

int frames_exec(PyObject *Py_UNUSED(module))
{
    PyObject *sys = PyImport_ImportModule("sys");
    if (!sys) {
        return -1;
    }
    native_current_frames = swaps_native(sys, "_current_frames");
    Py_DECREF(sys);
    return native_current_frames ? swaps_announce(stand_ins) : -1;
}
