/* tracing.c: sys.settrace() and sys.setprofile() are each thread's own, green threads' too.
 *
 * Called by strand.c as it exchanges the interpreter state of two lines of control, and by threads.c
 * as one ends. The functions live in the OS thread's tstate; those of strands that are not installed
 * are kept here, in a list that is empty while nobody traces. Invariant: the fields are exchanged as
 * they are, without PyEval_SetTrace, which would instrument all code anew at every switch; whether
 * any thread traces (what 3.12 counts) changes only when a program says so.
 */
#include "swaps.h"

#include <stdlib.h>

typedef struct Traced {
    Strand *strand;
    Py_tracefunc trace, profile;
    PyObject *trace_object, *profile_object; /* owned */
    int tracing;                             /* inside its own trace function */
    Py_tracefunc late_trace, late_profile;
    PyObject *late_trace_object, *late_profile_object; /* owned, valid while set_... */
    char set_trace,
        set_profile; /* another thread has set it: to be installed as if it had itself */
    struct Traced *next;
} Traced;

static Traced *traced;

static int traces(PyThreadState *tstate)
{
    return tstate->c_tracefunc || tstate->c_profilefunc || tstate->tracing;
}

/* The eval loop's summary of the fields, up to 3.11. greenlet carries it over a switch. */
static void summarize(PyThreadState *tstate)
{
#if PY_VERSION_HEX < 0x030B0000
    tstate->cframe->use_tracing = tstate->c_tracefunc || tstate->c_profilefunc;
#elif PY_VERSION_HEX < 0x030C0000
    int uses = !tstate->tracing && (tstate->c_tracefunc || tstate->c_profilefunc);
    tstate->cframe->use_tracing = uses ? 255 : 0;
#else
    (void)tstate;
#endif
}

static void keep(Strand *strand, PyThreadState *tstate)
{
    Traced *entry = malloc(sizeof *entry);
    if (entry) {
        *entry = (Traced){.strand = strand,
                          .trace = tstate->c_tracefunc,
                          .profile = tstate->c_profilefunc,
                          .trace_object = tstate->c_traceobj,
                          .profile_object = tstate->c_profileobj,
                          .tracing = tstate->tracing,
                          .next = traced};
        traced = entry;
    }
    tstate->c_tracefunc = tstate->c_profilefunc = NULL;
    tstate->c_traceobj = tstate->c_profileobj = NULL;
    tstate->tracing = 0;
}

/* What settrace_all_threads() has set for this strand while it was parked. */
static void set_late(Traced *entry)
{
    if (entry->set_trace) {
        PyEval_SetTrace(entry->late_trace, entry->late_trace_object);
        Py_CLEAR(entry->late_trace_object);
    }
    if (entry->set_profile) {
        PyEval_SetProfile(entry->late_profile, entry->late_profile_object);
        Py_CLEAR(entry->late_profile_object);
    }
}

void tracing_exchange(Hub *hub, Strand *from, Strand *to)
{
    PyThreadState *tstate = hub->tstate;
    int changed = traces(tstate);
    if (changed) {
        keep(from, tstate);
    }
    for (Traced **link = &traced; *link; link = &(*link)->next) {
        Traced *entry = *link;
        if (entry->strand == to) {
            *link = entry->next;
            tstate->c_tracefunc = entry->trace;
            tstate->c_profilefunc = entry->profile;
            tstate->c_traceobj = entry->trace_object;
            tstate->c_profileobj = entry->profile_object;
            tstate->tracing = entry->tracing;
            set_late(entry);
            free(entry);
            changed = 1;
            break;
        }
    }
    if (changed) {
        summarize(tstate);
    }
}

/* The entry of a strand that is not installed, made when missing; NULL: no memory. */
static Traced *ensure(Strand *strand)
{
    for (Traced *entry = traced; entry; entry = entry->next) {
        if (entry->strand == strand) {
            return entry;
        }
    }
    Traced *entry = calloc(1, sizeof *entry);
    if (entry) {
        entry->strand = strand;
        entry->next = traced;
        traced = entry;
    }
    return entry;
}

static void set_in(Strand *strand, PyThreadState *tstate, int profile)
{
    Traced *entry = ensure(strand);
    if (entry && profile) {
        entry->set_profile = 1;
        entry->late_profile = tstate->c_profilefunc;
        Py_XINCREF(tstate->c_profileobj);
        Py_XSETREF(entry->late_profile_object, tstate->c_profileobj);
    } else if (entry) {
        entry->set_trace = 1;
        entry->late_trace = tstate->c_tracefunc;
        Py_XINCREF(tstate->c_traceobj);
        Py_XSETREF(entry->late_trace_object, tstate->c_traceobj);
    }
}

/* Now that the native function has set the caller's: the same for whoever is parked. */
static PyObject *set_in_all(PyObject *result, int profile)
{
    Hub *hub = hub_get();
    if (!result || !hub || !in_main_interpreter()) {
        return result;
    }
    Strand *caller = hub->current->locals_owner;
    if (caller != &hub->main) {
        set_in(&hub->main, hub->tstate, profile);
    }
    for (Strand *strand = hub->green; strand; strand = strand->all_next) {
        if (strand != caller) {
            set_in(strand, hub->tstate, profile);
        }
    }
    return result;
}

static PyCFunction native_settrace_all, native_setprofile_all;

static PyObject *settrace_all(PyObject *module, PyObject *function)
{
    return set_in_all(native_settrace_all(module, function), 0);
}

static PyObject *setprofile_all(PyObject *module, PyObject *function)
{
    return set_in_all(native_setprofile_all(module, function), 1);
}

static const Stand_in stand_ins[] = {
    {"sys._settraceallthreads", settrace_all, METH_O},
    {"sys._setprofileallthreads", setprofile_all, METH_O},
    {NULL, NULL, 0},
};

int tracing_exec(PyObject *Py_UNUSED(module))
{
    PyObject *sys = PyImport_ImportModule("sys");
    if (sys && PyObject_HasAttrString(sys, "_settraceallthreads")) { /* 3.12 */
        native_settrace_all = swaps_native(sys, "_settraceallthreads");
        native_setprofile_all = swaps_native(sys, "_setprofileallthreads");
    }
    Py_XDECREF(sys);
    return PyErr_Occurred() ? -1 : swaps_announce(stand_ins);
}

void tracing_end(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (tstate->c_tracefunc) {
        PyEval_SetTrace(NULL, NULL);
    }
    if (tstate->c_profilefunc) {
        PyEval_SetProfile(NULL, NULL);
    }
}
