/* prefetch.h: what the next strands will touch comes into the cache while another one executes. */
#ifndef PORTALPATCH_PREFETCH_H
#define PORTALPATCH_PREFETCH_H

#include "core.h"

/* `first`: the head of the ready list, once the strand to be resumed has been taken off. */
void prefetch_ready(const Strand *first);

#endif
