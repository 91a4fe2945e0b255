/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Included once for each address family, with FAMILY 4 or 6: the same source makes both. F(name) is name4 or name6.
 * The headers below have no include guards for that reason. */
#if FAMILY == 4
#define F(name) name##4
#define MAPF(name) MAP(name##4)
#define ADDRESS_WORDS 1
#else
#define F(name) name##6
#define MAPF(name) MAP(name##6)
#define ADDRESS_WORDS 4
#endif

#include "parse.h"
#include "table.h"
#include "events.h"
#include "balance.h"
#include "flood.h"
#include "conntrack.h"
#include "way.h"
#include "stamp.h"
#include "nat.h"
#include "forward.h"
#include "fragment.h"
#include "icmp.h"
#include "reset.h"
#include "path.h"
#include "open.h"

#undef F
#undef MAPF
#undef ADDRESS_WORDS
