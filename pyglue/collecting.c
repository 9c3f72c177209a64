/* collecting.c: whether the garbage collector is at work, which CPython's API does not tell.
 *
 * Called by ops.c: an exception raised in a finalizer or weakref callback that the collector calls is lost.
 */
#define Py_BUILD_CORE /* the layout of the interpreter's state */
#include "core.h"

#include <internal/pycore_interp.h>

int python_is_collecting(void)
{
    return PyThreadState_Get()->interp->gc.collecting;
}
