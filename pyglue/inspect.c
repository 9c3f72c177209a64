/* inspect.c: what every line of control is doing, for people: dump(), --stall, the deadlock report.
 *
 * Called by _reports.py, and by hub.c when nothing is left that could wake anybody. Reads strands and
 * hubs, changes nothing. Invariant: it is never on the path of a wait that goes well.
 */
#include "exceptions.h"
#include "swaps.h"

#include <unistd.h>

static PyObject *deadlock_hook; /* called once, with no arguments, when nothing can wake anybody */
static int deadlock_told;

static const char *reason_of(Strand *strand)
{
    switch (strand->wait_call) {
    case PARK_LOCK:
        return "lock";
    case PARK_LOOP:
        return "event loop";
    case PARK_OFFLOAD:
        return "offload";
    case PARK_OTHER:
        return "yield";
    default:
        return pp_call_name(strand->wait_call);
    }
}

/* {kind, ident, state, reason, fd, object, seconds, frame} of a strand; `greenlet` holds its stack. */
static PyObject *describe(Strand *strand, PyGreenlet *greenlet)
{
    static const char *const kinds[] = {"main", "green thread", "task"};
    static const char *const states[] = {"running", "parked", "ready", "new", "done"};
    int parked = strand->state == STRAND_PARKED;
    PyObject *frame = NULL;
    if (greenlet) {
        frame = PyObject_GetAttrString((PyObject *)greenlet, "gr_frame");
        if (!frame) {
            return NULL;
        }
    }
    double seconds = parked && strand->deadline != PP_FOREVER
                         ? (double)(strand->deadline - hub_now()) / 1e9
                         : -1.0;
    PyObject *object = parked && strand->wait_object ? strand->wait_object : Py_None;
    PyObject *result =
        Py_BuildValue("{s:s,s:k,s:s,s:s,s:i,s:O,s:d,s:O}", "kind", kinds[strand->kind], "ident",
                      strand->ident, "state", states[strand->state], "reason",
                      parked ? reason_of(strand) : "", "fd", parked ? strand->wait_fd : -1,
                      "object", object, "seconds", seconds, "frame", frame ? frame : Py_None);
    Py_XDECREF(frame);
    return result;
}

static int append(PyObject *list, Strand *strand, PyGreenlet *greenlet)
{
    PyObject *item = describe(strand, greenlet);
    int failed = !item || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *strands(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (Hub *hub = hub_first(); list && hub; hub = hub_next(hub)) {
        if (append(list, &hub->main, hub->main.greenlet) < 0) {
            Py_CLEAR(list);
            break;
        }
        for (Strand *strand = hub->green; strand; strand = strand->all_next) {
            if (append(list, strand, strand->greenlet) < 0) {
                Py_CLEAR(list);
                break;
            }
        }
    }
    return list;
}

static PyObject *portal_state(PyObject *Py_UNUSED(module), PyObject *portal)
{
    PyGreenlet *greenlet;
    Strand *strand = portal_strand(portal, &greenlet);
    if (!strand) {
        PyErr_SetString(PyExc_TypeError, "a portal is required");
        return NULL;
    }
    return describe(strand, greenlet);
}

/* (switches so far, ns the code that runs now has run, whether the hub waits), of the first hub. */
static PyObject *run_state(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Hub *hub = hub_primary();
    stalls_asked();
    if (!hub) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("Ldi", (long long)hub->stats.last_wait,
                         (double)(hub_now() - hub->stats.last_wait) / 1e9, hub->polling);
}

static PyObject *set_deadlock_hook(PyObject *Py_UNUSED(module), PyObject *hook)
{
    Py_INCREF(hook);
    Py_XSETREF(deadlock_hook, hook);
    Py_RETURN_NONE;
}

void inspect_deadlock(Hub *hub)
{
    if (deadlock_told || !deadlock_hook || deadlock_hook == Py_None || hub != hub_primary() ||
        hub->pid != getpid()) {
        return;
    }
    PyThreadState *first = PyInterpreterState_ThreadHead(hub->tstate->interp);
    if (PyThreadState_Next(first)) {
        return; /* another OS thread may still wake somebody */
    }
    deadlock_told = 1;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Between before = between_begin(hub);
    PyObject *result = PyObject_CallNoArgs(deadlock_hook);
    between_end(hub, before);
    if (!result && hub->current == &hub->main && hub->main.state == STRAND_PARKED) {
        /* Ctrl-C as the report was made: it belongs to the main program, which waits here. */
        Py_XSETREF(hub->main.thrown, exception_take());
        strand_wake(&hub->main, PP_CANCELED);
    } else if (!result) {
        PyErr_WriteUnraisable(deadlock_hook);
    } else if (result == Py_False) {
        deadlock_told = 0; /* a signal handler of the program may wake it: nothing was said */
    }
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

static PyMethodDef functions[] = {
    {"strands", strands, METH_NOARGS,
     PyDoc_STR("strands($module, /)\n--\n\nEvery main and green thread, as dicts.")},
    {"portal_state", portal_state, METH_O,
     PyDoc_STR("portal_state($module, portal, /)\n--\n\nWhat a task's portal is doing, a dict.")},
    {"run_state", run_state, METH_NOARGS,
     PyDoc_STR(
         "run_state($module, /)\n--\n\n(a number that moves, seconds of this run, waiting).")},
    {"set_deadlock_hook", set_deadlock_hook, METH_O,
     PyDoc_STR("set_deadlock_hook($module, hook, /)\n--\n\nCalled when nothing can wake anybody.")},
    {NULL, NULL, 0, NULL}};

int inspect_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
