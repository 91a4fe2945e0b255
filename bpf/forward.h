/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way out: the kernel's routing table asked once a second and connection, and remembered by its entry.
 * No include guard: see family.h. */

#ifndef REVPROXY_FORWARD_ONCE
#define REVPROXY_FORWARD_ONCE

#define LOOPBACK_IFINDEX 1

/* bcc 0.26 declares it as it was before Linux 5.10. */
static long (*redirect_neighbour)(u32 ifindex, struct bpf_redir_neigh *next_hop, int length, u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

#define WAY_CACHED 0    /* known to the entry: interface and hardware addresses */
#define WAY_NEIGHBOUR 1 /* interface and next hop are known, its hardware address is not, or there is no place for it, or
			 * the kernel is to see that it is in use */
#define WAY_STACK 2     /* this host, no route, or not wanted */
#define WAY_ROUTER 3    /* the stack has to cut it, or to tell its sender why it can't go on */

static __always_inline void clear_hardware_addresses(struct __sk_buff *skb)
{
	void *data = packet_start(skb, HOOK_TC_INGRESS);

	if (data + 2 * ETH_ALEN <= packet_end(skb, HOOK_TC_INGRESS))
		__builtin_memset(data, 0, 2 * ETH_ALEN);
}

/* As if it came in by lo, with its hardware addresses: there the stack forwards, as a router does, and takes addresses
 * of its own as a source. */
static __always_inline int to_stack_by_loopback(void)
{
	return bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS);
}
#endif

/* Asks where the packet described by e goes, seen from the interface it came in by. A host that is no router says
 * that forwarding is disabled there; it is then asked as from lo, whose setting user space has seen to: to serve,
 * the host need not become a router for everybody. */
static __always_inline int F(find_way)(void *ctx, const struct F(packet) *p, struct F(connection) *e,
				       struct scratch *scratch, int hook, bool alone, u32 generation, u64 now)
{
	struct bpf_fib_lookup *fib;
	u32 number;
	long result;

	if (!scratch)
		return WAY_STACK;
	fib = (void *)scratch->fib;
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->l4_protocol = p->key.protocol;
	fib->sport = e->sport_be;
	fib->dport = e->dport_be;
	fib->tot_len = p->length; /* makes the answer the route's MTU, where that is smaller than the interface's */
	fib->ifindex = p->ifindex;
#if FAMILY == 4
	fib->family = 2; /* AF_INET */
	fib->ipv4_src = e->saddr_be[0];
	fib->ipv4_dst = e->daddr_be[0];
#else
	fib->family = 10; /* AF_INET6 */
	for (int i = 0; i < 4; i++) {
		fib->ipv6_src[i] = e->saddr_be[i];
		fib->ipv6_dst[i] = e->daddr_be[i];
	}
#endif
	result = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	if (result == BPF_FIB_LKUP_RET_FWD_DISABLED) {
		fib->ifindex = LOOPBACK_IFINDEX;
		result = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	}
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_NEIGHBOUR;
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED || result == BPF_FIB_LKUP_RET_UNREACHABLE ||
	    result == BPF_FIB_LKUP_RET_PROHIBIT)
		return WAY_ROUTER;
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return WAY_STACK;
	number = note_way(fib, hook, alone, now);
	if (number & WAY_SHOW && hook == HOOK_XDP) {
		if (leave_to_tc(ctx))
			return WAY_NEIGHBOUR;
		number &= ~WAY_SHOW;
	}
	e->c.way = number;
	e->c.way_time = now >> WAY_TIME_SHIFT;
	e->c.way_generation = generation;
	return number && !(number & WAY_SHOW) ? WAY_CACHED : WAY_NEIGHBOUR;
}

/* Whether the stack takes this packet only as one that came in by lo, where it accepts an address of this host as
 * source (user space has seen to that), and ::1 as destination. Nothing from the wire comes in by lo, so nothing is
 * opened to it. */
static __always_inline bool F(goes_through_loopback)(const struct F(connection) *e)
{
	if (e->c.flags & CONNECTION_FULLNAT)
		return true;
#if FAMILY == 6
	return !(e->daddr_be[0] | e->daddr_be[1] | e->daddr_be[2]) && e->daddr_be[3] == bpf_htonl(1);
#else
	return false;
#endif
}

/* TC: to the next hop that find_way has found; the kernel finds its hardware address and holds the packet meanwhile. What
 * this host itself sends by lo has a route already, by which it would leave after that: the kernel is to give it another,
 * which it does only if it finds the next hop, too. */
static __always_inline int F(redirect_neighbour)(const struct scratch *scratch, u32 came_by)
{
	const struct bpf_fib_lookup *fib = (void *)scratch->fib;
	struct bpf_redir_neigh next = { .nh_family = fib->family };

	if (came_by == LOOPBACK_IFINDEX)
		return redirect_neighbour(fib->ifindex, 0, 0, 0);
	for (int i = 0; i < 4; i++)
		next.ipv6_nh[i] = fib->ipv6_dst[i];
	return redirect_neighbour(fib->ifindex, &next, sizeof(next), 0);
}
