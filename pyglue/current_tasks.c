/* current_tasks.c: asyncio's current task, of a loop that runs or one that has given way to another.
 *
 * Called by portal_hosts.c and, when the OS thread's running loop changes, by strand.c. Up to 3.13
 * asyncio keeps a dict of each loop's current task. From 3.14 on the OS thread has one, that of its
 * running loop: so the task of a loop that gives way is kept here and given back with the loop. Tasks
 * written in Python (asyncio.tasks._PyTask) then have a dict of their own, which only they write.
 */
#include "core.h"

static PyObject *swap_function; /* asyncio's own _swap_current_task */
static PyObject *read_function; /* asyncio's own current_task */
static PyObject *python_tasks;  /* asyncio.tasks._current_tasks, once it is there */
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
    read_function = PyObject_GetAttrString(module, "current_task");
    swap_function = read_function ? PyObject_GetAttrString(module, "_swap_current_task") : NULL;
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

/* Where portalpatch tells nobody which loop runs, the loop of a step that runs is the one. */
static int thread_keeps(Hub *hub, PyObject *loop)
{
    return swap_function && (!hub || !hub->installed_loop || hub->installed_loop == loop);
}

PyObject *current_task_swap(Hub *hub, PyObject *loop, PyObject *task)
{
    return thread_keeps(hub, loop) ? swap_in_thread(loop, task) : swap_in_dict(loop, task);
}

int current_tasks_none(void)
{
    return !swap_function && PyDict_GET_SIZE(tasks) == 0;
}

static PyObject *get_from_dict(PyObject *dict, PyObject *loop)
{
    PyObject *task = PyDict_GetItemWithError(dict, loop);
    task = task || PyErr_Occurred() ? task : Py_None;
    Py_XINCREF(task);
    return task;
}

/* The dict of the tasks written in Python: borrowed; NULL without an exception: not there. */
static PyObject *load_python_tasks(void)
{
    PyObject *name = PyUnicode_FromString("asyncio.tasks");
    PyObject *module = name ? PyImport_GetModule(name) : NULL;
    PyObject *dict = module ? PyObject_GetAttrString(module, "_current_tasks") : NULL;
    if (dict && PyDict_Check(dict)) {
        python_tasks = Py_NewRef(dict);
    }
    Py_XDECREF(dict);
    Py_XDECREF(module);
    Py_XDECREF(name);
    PyErr_Clear();
    return python_tasks;
}

PyObject *current_task_get(Hub *hub, PyObject *loop)
{
    PyObject *task = thread_keeps(hub, loop) ? PyObject_CallOneArg(read_function, loop)
                                             : get_from_dict(tasks, loop);
    if (swap_function && task == Py_None && (python_tasks || load_python_tasks())) {
        Py_DECREF(task);
        task = get_from_dict(python_tasks, loop);
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
