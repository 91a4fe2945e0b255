/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The time, as often as it changes. */
#ifndef REVPROXY_CLOCK_H
#define REVPROXY_CLOCK_H

/* CLOCK_MONOTONIC as of the last tick. The kernel is asked for it once a tick and CPU: that takes a fifth of what an
 * established connection's packet costs, the number of the tick (bpf_jiffies64) next to nothing. */
static __always_inline u64 clock_ns(void)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	u64 tick = bpf_jiffies64();

	if (!scratch)
		return bpf_ktime_get_coarse_ns();
	if (scratch->tick != tick) {
		scratch->clock_ns = bpf_ktime_get_coarse_ns();
		scratch->tick = tick;
	}
	return scratch->clock_ns;
}

/* The same time, its last bits left out, of what was less than 208 days ago; another CPU's clock may be ahead. */
static __always_inline u64 created_ns(u32 created, u64 now)
{
	u64 units = (now >> CREATED_SHIFT) + CREATED_AHEAD;

	return (units - (u32)((u32)units - created)) << CREATED_SHIFT;
}

#endif
