/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ways out: what the kernel's routing table said, an interface and two hardware addresses. Connections share them, each
 * with the number of its own in its entry, which so fits into one cache line. */
#ifndef REVPROXY_WAY_H
#define REVPROXY_WAY_H

/* How many of its places a CPU looks at. It writes to no other CPU's, so that none is ever half written. (Nothing orders
 * these writes before that of the number to an entry there is already: where the hardware does not, as on ARM64, another
 * CPU with a packet of the same connection at that moment sends it where the place's last way led.) */
#define WAY_TRIES 4
/* No entry goes by a way for as long as this: another may have its place. */
#define WAY_UNUSED_NS (2 * NSEC_PER_SEC)
/* way_time counts these; 14 of them are nearly a second. */
#define WAY_TIME_SHIFT 26
#define WAY_TIME_LIMIT 14
/* Of way.left, in units of 4.3 s. A packet that XDP left and TC did not show was lost, for all we know with TC's program:
 * no other one is left for half a minute. */
#define LEFT_SHIFT 6
#define LEFT_AGAIN 7
#define LEFT_LONG_AGO 128
/* Beside the number of a way. */
#define WAY_SHOW (1u << 31)
/* A packet this long behind the last one is alone. The clock goes on in steps of up to 10 ms. */
#define WAY_ALONE_NS (20 * 1000000ull)

/* The number of the way out that the entry remembers, 0 if the routing table is to be asked. The entry must have been
 * used lately for its few bits of time to mean anything. Read once: another CPU may write it. */
static __always_inline u32 fresh_way(const struct connection *c, u32 generation, u64 now)
{
	u32 number = *(volatile u16 *)&c->way;
	u16 age = (u16)(now >> WAY_TIME_SHIFT) - c->way_time;

	if (c->way_generation != (u8)generation || age >= WAY_TIME_LIMIT || (s64)(now - c->last_ns) >= (s64)NSEC_PER_SEC)
		return 0;
	return number;
}

static __always_inline struct way *way_of(u32 number)
{
	return number ? lookup_index(MAP(WAY), number) : 0;
}

static __always_inline u32 device_flags(u32 ifindex)
{
	u32 *flags = lookup(MAP(DEVICE), &ifindex);

	return flags ? *flags : 0;
}

/* Whether the kernel is to see a packet go this way: only by what goes through it does it know that a neighbour is in use,
 * and asks whether it is still there (RFC 4861 section 7.3). TC gives it one now and then, and XDP leaves one to TC: for
 * choice one that is alone, since others that come right behind it would overtake it. */
static __always_inline bool show_way(struct way *way, const struct way_head *head, int hook, bool alone, u64 now)
{
	u32 time = now >> WAY_TIME_SHIFT;
	u8 left = time >> LEFT_SHIFT;

	if (!head->show_after || time - way->shown < head->show_after << !alone)
		return false;
	if (hook != HOOK_XDP) {
		way->shown = time;
		way->left = left - LEFT_LONG_AGO;
		return true;
	}
	if ((u8)(left - way->left) < LEFT_AGAIN)
		return false;
	way->left = left;
	return true;
}

/* What fib says as one of this CPU's ways; 0 if there are more in use than it has places, WAY_SHOW if the kernel is to
 * see this packet. */
static __always_inline u32 note_way(const struct bpf_fib_lookup *fib, int hook, bool alone, u64 now)
{
	struct way_head *head = lookup_index(MAP(WAY), 0);
	struct way wanted = { .asked_ns = now, .ifindex = fib->ifindex, .shown = now >> WAY_TIME_SHIFT };
	u32 cpu = bpf_get_smp_processor_id(), number = 0, hash, device = device_flags(fib->ifindex);
	const u64 *words = (void *)&wanted;
	struct way *way;

	if (!head || !head->places)
		return 0;
	__builtin_memcpy(wanted.dmac, fib->dmac, ETH_ALEN);
	__builtin_memcpy(wanted.smac, fib->smac, ETH_ALEN);
	wanted.mtu = fib->mtu_result ?: 0xffff;
	wanted.left = (now >> (WAY_TIME_SHIFT + LEFT_SHIFT)) - LEFT_LONG_AGO;
	wanted.flags = (device & DEVICE_XDP_REDIRECT ? OUT_XDP : 0) | (device & DEVICE_NO_TX ? OUT_NO_TX : 0);
	hash = hash3(wanted.ifindex, words[2], words[1] >> 32, HASH_SEED);
	for (u32 i = 0; i < WAY_TRIES; i++) {
		u32 index = 1 + cpu * head->places + (hash + i) % head->places;
		u64 *known = lookup_index(MAP(WAY), index);

		if (!known)
			return 0;
		way = (void *)known;
		/* Of the last word three bytes: not when XDP left a packet. */
		if (!((known[1] ^ words[1]) | (known[2] ^ words[2]) | ((known[3] ^ words[3]) & 0xffffff))) {
			way->asked_ns = now;
			return index | (show_way(way, head, hook, alone, now) ? WAY_SHOW : 0);
		}
		if (!number && (!way->asked_ns || now - way->asked_ns > WAY_UNUSED_NS))
			number = index;
	}
	way = way_of(number);
	if (!way)
		return 0;
	*way = wanted;
	return number;
}

#endif
