/* portal_frames.c: a suspended portal shows the frames of its greenlet as a chain of awaits.
 *
 * Called by whoever looks at the portal as at a coroutine: Task.get_stack(), debuggers, Trio's
 * introspection. Reads portals, changes nothing.
 */
#include "portal.h"

#include <frameobject.h>

/* The user's frames on the stacks of this greenlet and of the raw greenlets below it, outermost
 * first; asking for gr_frame makes them safe to look at. */
static PyObject *frames_of(PyGreenlet *greenlet)
{
    PyObject *frames = PyList_New(0);
    Py_XINCREF(greenlet);
    while (frames && greenlet) {
        PyObject *frame = PyObject_GetAttrString((PyObject *)greenlet, "gr_frame");
        while (frame && frame != Py_None) {
            if (PyList_Append(frames, frame) < 0) {
                break;
            }
            Py_SETREF(frame, PyObject_GetAttrString(frame, "f_back"));
        }
        Py_XDECREF(frame);
        PyGreenlet *parent = PyErr_Occurred() ? NULL : PyGreenlet_GetParent(greenlet);
        Py_SETREF(greenlet, parent);
        if (parent && PyGreenlet_MAIN(parent)) { /* it was a runner */
            Py_CLEAR(greenlet);
        }
    }
    Py_XDECREF(greenlet);
    if (frames && (PyErr_Occurred() || PyList_Reverse(frames) < 0)) {
        Py_CLEAR(frames);
    }
    return frames;
}

/* One synchronous or asynchronous frame of a suspended portal, as debuggers expect a coroutine. */
typedef struct {
    PyObject_HEAD PyObject *frames; /* list: all of them, outermost first */
    Py_ssize_t at;
} AwaitFrame;

static PyTypeObject AwaitFrame_Type;

static PyObject *await_frame(PyObject *frames, Py_ssize_t at)
{
    if (at >= PyList_GET_SIZE(frames)) {
        Py_RETURN_NONE;
    }
    if (!PyFrame_Check(PyList_GET_ITEM(frames, at))) { /* the last await_'s: a native awaitable */
        return Py_NewRef(PyList_GET_ITEM(frames, at));
    }
    AwaitFrame *self = PyObject_New(AwaitFrame, &AwaitFrame_Type);
    if (self) {
        Py_INCREF(frames);
        self->frames = frames;
        self->at = at;
    }
    return (PyObject *)self;
}

static void await_frame_dealloc(PyObject *self)
{
    Py_DECREF(((AwaitFrame *)self)->frames);
    PyObject_Free(self);
}

static PyObject *await_frame_frame(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(PyList_GET_ITEM(((AwaitFrame *)self)->frames, ((AwaitFrame *)self)->at));
}

static PyObject *await_frame_code(PyObject *self, void *unused)
{
    return (PyObject *)PyFrame_GetCode((PyFrameObject *)await_frame_frame(self, unused));
}

static PyObject *await_frame_await(PyObject *self, void *unused)
{
    (void)unused;
    return await_frame(((AwaitFrame *)self)->frames, ((AwaitFrame *)self)->at + 1);
}

static PyObject *always_false(PyObject *self, void *unused)
{
    (void)self;
    (void)unused;
    Py_RETURN_FALSE;
}

static PyGetSetDef await_frame_getset[] = {{"cr_frame", await_frame_frame, NULL, NULL, NULL},
                                           {"cr_code", await_frame_code, NULL, NULL, NULL},
                                           {"cr_await", await_frame_await, NULL, NULL, NULL},
                                           {"cr_running", always_false, NULL, NULL, NULL},
                                           {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject AwaitFrame_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "portalpatch._core.AwaitFrame",
    .tp_doc = PyDoc_STR("A frame of a suspended portal, in the form of a coroutine's attributes."),
    .tp_basicsize = sizeof(AwaitFrame),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = await_frame_dealloc,
    .tp_getset = await_frame_getset,
};

/* The greenlet that its coroutine is stopped in; NULL: it runs, or is suspended natively. */
static PyGreenlet *stopped_greenlet(Portal *portal)
{
    if (portal->suspended) {
        return portal->suspended;
    }
    return portal->detached && !portal->direct ? portal->strand.greenlet : NULL;
}

static PyObject *frame_or_none(PyObject *frames, Py_ssize_t at)
{
    PyObject *frame = at < PyList_GET_SIZE(frames) ? PyList_GET_ITEM(frames, at) : Py_None;
    Py_INCREF(frame);
    return frame;
}

PyObject *portal_cr_frame(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    PyGreenlet *greenlet = stopped_greenlet(portal);
    if (greenlet) {
        PyObject *frames = frames_of(greenlet);
        PyObject *frame = frames ? frame_or_none(frames, 0) : NULL;
        Py_XDECREF(frames);
        return frame;
    }
    if (portal->strand.args) {
        Py_RETURN_NONE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_frame");
}

PyObject *portal_cr_await(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    PyGreenlet *greenlet = stopped_greenlet(portal);
    if (greenlet) {
        PyObject *frames = frames_of(greenlet);
        if (frames && portal->suspended && PyList_Append(frames, portal->awaited) < 0) {
            Py_CLEAR(frames);
        }
        PyObject *next = frames ? await_frame(frames, 1) : NULL;
        Py_XDECREF(frames);
        return next;
    }
    if (portal->strand.args || portal->attached || portal->direct) {
        Py_RETURN_NONE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_await");
}

PyObject *portal_cr_running(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    return PyBool_FromLong(portal->attached || portal->direct);
}

PyObject *portal_cr_suspended(PyObject *self, void *unused)
{
    (void)unused;
    Portal *portal = (Portal *)self;
    if (stopped_greenlet(portal)) {
        Py_RETURN_TRUE;
    }
    if (portal->strand.args || portal->attached || portal->direct) {
        Py_RETURN_FALSE;
    }
    return PyObject_GetAttrString(portal->inner, "cr_suspended");
}

PyObject *portal_shown(PyObject *self)
{
    Portal *portal = (Portal *)self;
    return stopped_greenlet(portal) || portal->strand.args ? self : portal->inner;
}

int frames_of_portals_exec(void)
{
    PyGreenlet_Import();
    return _PyGreenlet_API ? PyType_Ready(&AwaitFrame_Type) : -1;
}
