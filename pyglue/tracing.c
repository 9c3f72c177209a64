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
            free(entry);
            changed = 1;
            break;
        }
    }
    if (changed) {
        summarize(tstate);
    }
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
