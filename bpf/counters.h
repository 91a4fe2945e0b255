/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every way out is counted, once, by the program that ended the packet's way through us. */
#ifndef REVPROXY_COUNTERS_H
#define REVPROXY_COUNTERS_H

static __always_inline void count_outcome(u32 outcome)
{
	u64 *n = lookup_index(MAP(OUTCOME), outcome);

	if (n)
		(*n)++;
}

static __always_inline void count_opened(u32 target)
{
	struct target_stats *stats = lookup_index(MAP(TARGET_STATS), target);

	if (stats)
		stats->connections++;
}

static __always_inline void count_for_target(const struct connection *c, u32 packets, u32 bytes)
{
	struct target_stats *stats = lookup_index(MAP(TARGET_STATS), c->target);

	if (!stats)
		return;
	if (c->flags & CONNECTION_REPLY) {
		stats->packets_reverse += packets;
		stats->bytes_reverse += bytes;
	} else {
		stats->packets_forward += packets;
		stats->bytes_forward += bytes;
	}
}

/* Connection entries are shared between CPUs, target_stats is per CPU. */
static __always_inline void count_packet(struct connection *c, u32 packets, u32 bytes)
{
	__sync_fetch_and_add(&c->packets, packets);
	__sync_fetch_and_add(&c->bytes, bytes);
	count_for_target(c, packets, bytes);
}

#endif
