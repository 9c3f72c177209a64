/* canceled.c: whatever a cancelled call becomes on its way to Python is the cancellation itself.
 *
 * A call that ended because its task was cancelled returns EINTR or ECANCELED, and C code makes an
 * exception of that. CPython's own makes an OSError: PyErr_SetFromErrno calls the type and raises what
 * it gets, so calling OSError(ECANCELED, ...) in a strand with a pending exception gives that
 * exception, in any OS thread. That is OSError's tp_vectorcall, which is otherwise unset and never
 * inherited: tp_new and tp_init stay as they are, since by their identity OSError tells which of the
 * two a subclass means to take its arguments.
 *
 * C libraries make errors of their own (psycopg2.DatabaseError): the first Python frame that such an
 * error reaches would run its handlers before the interpreter looks for anything pending, and
 * asyncio.timeout()'s would see the wrong one. The interpreter's event "an exception arrived in a
 * frame" comes before: there the library's error is replaced.
 *
 * The library was in the middle of a conversation. libpq takes a failed poll() for the end of the
 * query, keeps the connection and would read this query's answer as the next one's. So a stream that
 * such a library still holds is shut down: the library finds out by itself, as if the peer had gone.
 * CPython's own calls leave theirs as it is.
 *
 * ops.c starts, stops and arms this. Invariants: without a pending exception nothing is touched;
 * what is no Exception (KeyboardInterrupt) is never replaced; a program's own tracer goes on.
 */
#include "core.h"

#include <errno.h>
#include <sys/socket.h>

/* The pending exception of the strand that executes, which is raised now. */
static PyObject *take(Hub *hub)
{
    PyObject *exception = hub->current->thrown;
    hub->current->thrown = NULL;
    hub->current->tripped = 0;
    if (!hub->is_main_thread) {
        PyThreadState_SetAsyncExc(hub->tstate->thread_id, NULL); /* it would come again */
    }
    return exception;
}

static int is_pending(Hub *hub)
{
    return hub && hub->current->thrown && !hub->polling;
}

/* ---- OSError ------------------------------------------------------------------------------------ */

static int is_canceled(PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || !PyLong_CheckExact(args[0])) {
        return 0;
    }
    int overflow;
    return PyLong_AsLongAndOverflow(args[0], &overflow) == ECANCELED;
}

/* What calling a type without tp_vectorcall does. */
static PyObject *call_type(PyObject *type, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *result = NULL, *keywords = NULL;
    PyObject *positional = PyTuple_New(count);
    if (!positional) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        PyTuple_SET_ITEM(positional, i, args[i]);
    }
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    int failed = named && !(keywords = PyDict_New());
    for (Py_ssize_t i = 0; i < named && !failed; i++) {
        failed = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) < 0;
    }
    if (!failed) {
        result = PyType_Type.tp_call(type, positional, keywords);
    }
    Py_DECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

static PyObject *oserror_call(PyObject *type, PyObject *const *args, size_t flagged_count,
                              PyObject *names)
{
    Hub *hub = hub_get();
    Py_ssize_t count = PyVectorcall_NARGS(flagged_count);
    if (is_pending(hub) && is_canceled(args, count)) {
        return take(hub);
    }
    return call_type(type, args, count, names);
}

/* ---- errors of C libraries ---------------------------------------------------------------------- */

static int is(int fd, int option, int wanted)
{
    int value;
    socklen_t size = sizeof value;
    return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 && value == wanted;
}

/* What the cancelled call waited for, unless it was closed since. */
static void end_conversation(Strand *strand)
{
    int fd = strand->refused_fd;
    if (strand->tripped && fd >= 0 && pp_fd_generation(fd) == strand->refused_generation &&
        is(fd, SO_TYPE, SOCK_STREAM) && is(fd, SO_ACCEPTCONN, 0)) {
        shutdown(fd, SHUT_RDWR);
    }
}

/* The cancellation is raised in `frame` instead of `error`; 0: it is not to be. */
static int replace(Hub *hub, PyFrameObject *frame, PyObject *error)
{
    if (!is_pending(hub) || hub->tstate != PyThreadState_Get() ||
        !PyObject_IsInstance(error, PyExc_Exception)) {
        return 0;
    }
    end_conversation(hub->current);
    PyObject *exception = take(hub);
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    if (frame) {
        PyTraceBack_Here(frame);
    }
    return 1;
}

#if PY_VERSION_HEX < 0x030C0000

/* The trace function of the OS thread: the only one that is told of an exception before the frame's
 * handlers are looked up. The eval loop asks for it then even where nothing is traced. */

static int tell(Py_tracefunc tracer, PyObject *object, PyFrameObject *frame, int what,
                PyObject *argument)
{
    return tracer ? tracer(object, frame, what, argument) : 0;
}

static int exception_arrived(PyObject *object, PyFrameObject *frame, int what, PyObject *argument)
{
    Hub *hub = hub_get();
    Py_tracefunc program = hub->program_trace;
    if (what != PyTrace_EXCEPTION) {
        return tell(program, object, frame, what, argument);
    }
    hub->tstate->c_tracefunc = program; /* once armed, for one exception */
    hub->program_trace = NULL;
    if (!replace(hub, frame, PyTuple_GET_ITEM(argument, 1))) {
        return tell(program, object, frame, what, argument);
    }
    if (program) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        argument = Py_BuildValue("(OOO)", type, value, traceback ? traceback : Py_None);
        int failed = !argument || program(object, frame, what, argument) < 0;
        Py_XDECREF(argument);
        if (!failed) {
            PyErr_Restore(type, value, traceback);
        } else {
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        }
    }
    return -1;
}

void canceled_arm(Hub *hub)
{
    PyThreadState *tstate = hub->tstate;
    if (tstate->c_tracefunc != exception_arrived) {
        hub->program_trace = tstate->c_tracefunc;
        tstate->c_tracefunc = exception_arrived;
    }
}

static void stop_listening(void)
{
}

#else

/* sys.monitoring's RAISE, from the first cancellation on: turning it on anew each time would have all
 * code instrumented again. It changes no bytecode, and costs a call for each exception. */

enum { NO_TOOL = -1 };

static int tool = NO_TOOL;

static PyObject *exception_arrived(PyObject *Py_UNUSED(module), PyObject *const *args,
                                   Py_ssize_t count)
{
    if (count == 3 && replace(hub_get(), PyEval_GetFrame(), args[2])) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef exception_arrived_method = {
    "_exception_arrived", (PyCFunction)(void (*)(void))exception_arrived, METH_FASTCALL, NULL};

/* 0, or -1 with an exception. */
static int listen_as(PyObject *monitoring, int number)
{
    PyObject *events = PyObject_GetAttrString(monitoring, "events");
    PyObject *raise = events ? PyObject_GetAttrString(events, "RAISE") : NULL;
    PyObject *function = raise ? PyCFunction_New(&exception_arrived_method, NULL) : NULL;
    PyObject *done = function ? PyObject_CallMethod(monitoring, "register_callback", "iOO", number,
                                                    raise, function)
                              : NULL;
    Py_XDECREF(done);
    done = done ? PyObject_CallMethod(monitoring, "set_events", "iO", number, raise) : NULL;
    Py_XDECREF(done);
    Py_XDECREF(function);
    Py_XDECREF(raise);
    Py_XDECREF(events);
    return done ? 0 : -1;
}

static void start_listening(PyObject *monitoring)
{
    /* From the numbers that no kind of tool has been given. */
    static const int numbers[] = {4, 3, 2, 1, 0, 5};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && tool == NO_TOOL; i++) {
        PyObject *done =
            PyObject_CallMethod(monitoring, "use_tool_id", "is", numbers[i], "portalpatch");
        if (done) {
            Py_DECREF(done);
            tool = numbers[i];
            if (listen_as(monitoring, tool) == 0) {
                return;
            }
        }
        PyErr_Clear(); /* in use */
    }
}

void canceled_arm(Hub *Py_UNUSED(hub))
{
    if (tool != NO_TOOL) {
        return;
    }
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *monitoring = PySys_GetObject("monitoring");
    if (monitoring) {
        start_listening(monitoring);
    }
    PyErr_SetRaisedException(raised);
}

static void stop_listening(void)
{
    PyObject *monitoring = PySys_GetObject("monitoring");
    if (tool == NO_TOOL || !monitoring) {
        return;
    }
    PyObject *raised = PyErr_GetRaisedException();
    Py_XDECREF(PyObject_CallMethod(monitoring, "set_events", "ii", tool, 0));
    PyErr_Clear();
    Py_XDECREF(PyObject_CallMethod(monitoring, "free_tool_id", "i", tool));
    PyErr_Clear();
    tool = NO_TOOL;
    PyErr_SetRaisedException(raised);
}

#endif

/* ---- start and stop ----------------------------------------------------------------------------- */

void canceled_start(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (!type->tp_vectorcall) {
        type->tp_vectorcall = oserror_call;
    }
}

void canceled_stop(void)
{
    PyTypeObject *type = (PyTypeObject *)PyExc_OSError;
    if (type->tp_vectorcall == oserror_call) {
        type->tp_vectorcall = NULL;
    }
    stop_listening();
}
