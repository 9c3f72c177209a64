/* module.c: portalpatch._core, put together from its parts. No mechanism lives here. */
#include "swaps.h"

/* Before anything of the process is touched. CPython does so for some subinterpreters only, from 3.12. */
static int refuse_subinterpreters(PyObject *module)
{
    (void)module;
    if (!in_main_interpreter()) {
        PyErr_SetString(PyExc_ImportError,
                        "module portalpatch._core does not support loading in subinterpreters");
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, refuse_subinterpreters},
    {Py_mod_exec, strand_exec},
    {Py_mod_exec, native_entry_exec},
    {Py_mod_exec, ops_exec},
    {Py_mod_exec, inspect_exec},
    {Py_mod_exec, stalls_exec},
    {Py_mod_exec, faults_exec},
    {Py_mod_exec, futures_exec},
    {Py_mod_exec, locks_exec},
    {Py_mod_exec, threads_exec},
    {Py_mod_exec, portal_exec},
    {Py_mod_exec, statements_exec},
    {Py_mod_exec, hidden_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "portalpatch._core",
    .m_doc = PyDoc_STR("The C half of portalpatch: hub, strands, portals, locks, green threads."),
    .m_size = 0,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
