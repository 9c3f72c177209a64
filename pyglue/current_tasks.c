/* current_tasks.c: asyncio's current task, of a loop that runs or one that has given way to another.
 *
 * Called by portal_hosts.c and, when the OS thread's running loop changes, by strand.c. Up to 3.13
 * asyncio keeps a dict of each loop's current task. From 3.14 on the OS thread has one, that of its
 * running loop: so the task of a loop that gives way is kept here and given back with the loop.
 */
#include "core.h"

static PyObject *swap_function; /* asyncio's own _swap_current_task */
static PyObject *tasks; /* dict: asyncio's own, or (3.14) of the loops that have given way */

int current_tasks_load(void)
{
    if (tasks) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("_asyncio");
    if (!module) {
        return -1;
    }
#if PY_VERSION_HEX >= 0x030E0000
    swap_function = PyObject_GetAttrString(module, "_swap_current_task");
    tasks = swap_function ? PyDict_New() : NULL;
#else
    tasks = PyObject_GetAttrString(module, "_current_tasks");
#endif
    Py_DECREF(module);
    return tasks ? 0 : -1;
}

static PyObject *swap_in_dict(PyObject *loop, PyObject *task)
{
    PyObject *before = PyDict_GetItemWithError(tasks, loop);
    if (!before && PyErr_Occurred()) {
        return NULL;
    }
    int had = before != NULL, done = 0;
    before = had ? before : Py_None;
    Py_INCREF(before);
    if (task != Py_None) {
        done = PyDict_SetItem(tasks, loop, task);
    } else if (had) {
        done = PyDict_DelItem(tasks, loop);
    }
    if (done < 0) {
        Py_CLEAR(before);
    }
    return before;
}

static PyObject *swap_in_thread(PyObject *loop, PyObject *task)
{
    PyObject *args[2] = {loop, task};
    return PyObject_Vectorcall(swap_function, args, 2, NULL);
}

PyObject *current_task_swap(Hub *hub, PyObject *loop, PyObject *task)
{
    /* Where portalpatch tells nobody which loop runs, the loop of a step that runs is the one. */
    if (swap_function && (!hub || !hub->installed_loop || hub->installed_loop == loop)) {
        return swap_in_thread(loop, task);
    }
    return swap_in_dict(loop, task);
}

int current_tasks_none(void)
{
    return !swap_function && PyDict_GET_SIZE(tasks) == 0;
}

PyObject *current_task_get(Hub *hub, PyObject *loop)
{
    if (!swap_function) {
        PyObject *task = PyDict_GetItemWithError(tasks, loop);
        task = task || PyErr_Occurred() ? task : Py_None;
        Py_XINCREF(task);
        return task;
    }
    PyObject *task = current_task_swap(hub, loop, Py_None);
    if (task && task != Py_None) {
        Py_XDECREF(current_task_swap(hub, loop, task));
    }
    return task;
}

static int move(PyObject *(*from)(PyObject *, PyObject *), PyObject *(*to)(PyObject *, PyObject *),
                PyObject *loop)
{
    PyObject *task = from(loop, Py_None);
    if (!task) {
        return -1;
    }
    PyObject *before = task == Py_None ? Py_NewRef(task) : to(loop, task);
    Py_DECREF(task);
    Py_XDECREF(before);
    return before ? 0 : -1;
}

int current_task_gives_way(PyObject *loop)
{
    return swap_function && loop ? move(swap_in_thread, swap_in_dict, loop) : 0;
}

int current_task_comes_back(PyObject *loop)
{
    return swap_function && loop ? move(swap_in_dict, swap_in_thread, loop) : 0;
}
