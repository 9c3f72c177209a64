/* stack_dumps.h: the stacks of green threads, written where nothing may be called. */
#ifndef PORTALPATCH_STACK_DUMPS_H
#define PORTALPATCH_STACK_DUMPS_H

#include "core.h"

/* All of these are async-signal-safe, and need no GIL. */

/* Is there anything that CPython's own dump does not show? */
int stack_dumps_needed(void);

/* CPython's dumps call the thread that executes by the ident it says itself, from now on; with `off` by
 * its OS thread's again. */
void stack_dumps_name_current(int on);

/* What CPython's dump of all threads leaves out: green threads and the main ones that do not execute,
 * in its format, each after an empty line. */
void stack_dumps_write_parked(int fd);

/* The whole dump: what CPython's says, in any OS thread, with green threads. */
void stack_dumps_write_all(int fd);

#endif
