/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP and ICMPv6 errors about connections (RFC 5508, RFC 7915 in spirit): who gets one must find in it the packet as
 * it sent it. Taken are those without IP options or extension headers, outside and in the packet they quote, but for the
 * header of a first fragment.
 * No include guard: see family.h. */

#if FAMILY == 4
#define NETWORK_HEADER struct iphdr
#else
#define NETWORK_HEADER struct ipv6hdr
#endif
#define ICMP_OFFSET (ETH_HLEN + sizeof(NETWORK_HEADER))
#define INNER_OFFSET (ICMP_OFFSET + 8)
#define INNER_L4_OFFSET (INNER_OFFSET + sizeof(NETWORK_HEADER))
#define FRAGMENT_HEADER 8

/* A cheap look: an ICMP error that quotes a packet? */
static __always_inline bool F(is_icmp_error)(void *data, void *end)
{
	NETWORK_HEADER *ip = data + ETH_HLEN;
	u8 *icmp = data + ICMP_OFFSET;

	if ((void *)(icmp + 8) > end)
		return false;
#if FAMILY == 4
	/* Destination unreachable, time exceeded, parameter problem. */
	return ip->protocol == IPPROTO_ICMP && ip->ihl == 5 && !(ip->frag_off & bpf_htons(0x3fff)) &&
	       (icmp[0] == 3 || icmp[0] == 11 || icmp[0] == 12);
#else
	/* Destination unreachable, packet too big, time exceeded, parameter problem. */
	return ip->nexthdr == IPPROTO_ICMPV6 && icmp[0] >= 1 && icmp[0] <= 4;
#endif
}

static __always_inline void F(read_addresses)(const NETWORK_HEADER *ip, __be32 *saddr_be, __be32 *daddr_be)
{
#if FAMILY == 4
	saddr_be[0] = ip->saddr;
	daddr_be[0] = ip->daddr;
#else
	for (int i = 0; i < 4; i++) {
		saddr_be[i] = ip->saddr.in6_u.u6_addr32[i];
		daddr_be[i] = ip->daddr.in6_u.u6_addr32[i];
	}
#endif
}

/* Writes addresses and returns the difference they make to a sum. */
static __always_inline u64 F(write_addresses)(NETWORK_HEADER *ip, const __be32 *saddr_be, const __be32 *daddr_be)
{
	u64 difference = 0;
#if FAMILY == 4
	difference = difference32(ip->saddr, saddr_be[0]) + difference32(ip->daddr, daddr_be[0]);
	ip->saddr = saddr_be[0];
	ip->daddr = daddr_be[0];
#else
	for (int i = 0; i < 4; i++) {
		difference += difference32(ip->saddr.in6_u.u6_addr32[i], saddr_be[i]) +
			      difference32(ip->daddr.in6_u.u6_addr32[i], daddr_be[i]);
		ip->saddr.in6_u.u6_addr32[i] = saddr_be[i];
		ip->daddr.in6_u.u6_addr32[i] = daddr_be[i];
	}
#endif
	return difference;
}

/* Rewrites the quoted packet, of whose transport header and data so many bytes are there, to what the receiver of the
 * error once sent; returns the difference to a sum over it. */
static __always_inline u64 F(rewrite_quoted)(NETWORK_HEADER *inner, u8 *l4, void *end, u8 protocol,
					     u32 quoted, const struct F(connection) *e)
{
	struct udphdr *ports = (void *)l4;
	u64 addresses, changes, difference;
	__be16 *check = 0;

	addresses = F(write_addresses)(inner, e->daddr_be, e->saddr_be);
	difference = addresses;
#if FAMILY == 4
	{
		u16 before = inner->check;

		inner->check = csum_apply(before, addresses);
		difference += difference16(before, inner->check);
	}
#endif
	changes = difference16(ports->source, e->dport_be) + difference16(ports->dest, e->sport_be);
	ports->source = e->dport_be;
	ports->dest = e->sport_be;
	difference += changes;
	if (protocol == IPPROTO_UDP && ports->check)
		check = (__be16 *)(l4 + 6);
	else if (protocol == IPPROTO_TCP && quoted >= 18 && l4 + 18 <= (u8 *)end) /* only eight bytes need be quoted */
		check = (__be16 *)(l4 + 16);
	if (check) {
		u16 before = *check, after = csum_apply(before, addresses + changes);

		if (protocol == IPPROTO_UDP && !after)
			after = 0xffff;
		*check = after;
		difference += difference16(before, after);
	}
	return difference;
}

/* Called for a packet that is_icmp_error. */
static __always_inline int F(translate_icmp)(struct __sk_buff *ctx, int hook)
{
	void *data = packet_start(ctx, hook), *end = packet_end(ctx, hook);
	NETWORK_HEADER *ip = data + ETH_HLEN, *inner = data + INNER_OFFSET;
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	u8 *icmp = data + ICMP_OFFSET, *l4 = data + INNER_L4_OFFSET;
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	struct F(connection) *e, *out;
	const struct way *hop = 0;
	struct control *ctl = control();
	struct F(packet) p = {};
	__be32 saddr_be[ADDRESS_WORDS], daddr_be[ADDRESS_WORDS];
	u64 difference, outer;
	u32 active, other = 0, quoted_other = 0;
	bool loopback;
	int way = WAY_STACK;
	u32 skip = 0;
	u64 now;

	if (!settings || !ctl || !scratch || (void *)(l4 + 8) > end || !F(is_icmp_error)(data, end))
		return TC_ACT_UNSPEC;
#if FAMILY == 4
	if (inner->version != 4 || inner->ihl != 5 || (inner->frag_off & bpf_htons(0x1fff)))
		return TC_ACT_UNSPEC;
	if (ip->version != 4)
		return TC_ACT_UNSPEC;
	p.key.protocol = inner->protocol;
	p.hop_limit = ip->ttl;
	p.length = bpf_ntohs(ip->tot_len);
#else
	if (ip->version != 6 || inner->version != 6)
		return TC_ACT_UNSPEC;
	p.key.protocol = inner->nexthdr;
	if (inner->nexthdr == IPPROTO_FRAGMENT) {
		if (l4[2] | (l4[3] & 0xf8)) /* one after the first */
			return TC_ACT_UNSPEC;
		p.key.protocol = l4[0];
		skip = FRAGMENT_HEADER;
	}
	l4 += skip;
	if ((void *)(l4 + 8) > end)
		return TC_ACT_UNSPEC;
	p.hop_limit = ip->hop_limit;
	p.length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
#endif
	if (p.length < INNER_L4_OFFSET - ETH_HLEN + skip + 8 || ctx->len < ETH_HLEN + p.length)
		return TC_ACT_UNSPEC;
	if (p.key.protocol != IPPROTO_TCP && p.key.protocol != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	/* The answer to the quoted packet would have come with this key. */
	F(read_addresses)(inner, p.key.daddr_be, p.key.saddr_be);
	p.key.sport_be = ((struct udphdr *)l4)->dest;
	p.key.dport_be = ((struct udphdr *)l4)->source;
	F(read_addresses)(ip, saddr_be, daddr_be);
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		other |= saddr_be[i] ^ p.key.saddr_be[i];
		quoted_other |= daddr_be[i] ^ p.key.daddr_be[i];
	}
	if (quoted_other) /* not for who sent the quoted packet */
		return TC_ACT_UNSPEC;
	active = ctl->active & 1;
	now = clock_ns();
	e = F(find)(&p.key);
	if (!e || !F(is_alive)(e, p.key.protocol, now, active))
		return TC_ACT_UNSPEC;
	/* As with packets: those to an address of this host are taken when they come in. */
	loopback = F(goes_through_loopback)(e);
	if (hook == HOOK_TC_EGRESS && loopback)
		return TC_ACT_UNSPEC;

	/* A router on the way keeps its address; the quoted packet's receiver is known by another one. */
	out = (void *)&scratch->fresh;
	__builtin_memset(out, 0, sizeof(*out));
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		out->saddr_be[i] = other ? saddr_be[i] : e->saddr_be[i];
		out->daddr_be[i] = e->daddr_be[i];
	}
	p.ifindex = ctx->ifindex;
	if (hook == HOOK_TC_INGRESS && (settings->slot[active].flags & SETTING_FAST_PATH) && p.hop_limit > 1) {
		u8 protocol = p.key.protocol;

		p.key.protocol = FAMILY == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
		way = F(find_way)(ctx, &p, out, scratch, HOOK_TC_INGRESS, true, ctl->generation, now);
		p.key.protocol = protocol;
		hop = way == WAY_CACHED ? way_of(out->c.way) : 0;
		if (way == WAY_ROUTER) /* about an error there is none */
			way = WAY_STACK;
	}
	/* What comes through the stack gets its new source, an address of this host, when it leaves. */
	if (way == WAY_STACK && hook == HOOK_TC_INGRESS && (e->c.flags & CONNECTION_REPLY) && !loopback)
		return TC_ACT_UNSPEC;
	difference = F(rewrite_quoted)(inner, l4, end, p.key.protocol, p.length - (INNER_L4_OFFSET - ETH_HLEN) - skip, e);
	outer = F(write_addresses)(ip, out->saddr_be, out->daddr_be);
#if FAMILY == 4
	if (way != WAY_STACK)
		ip->ttl--;
	ip->check = csum_apply(ip->check, outer + (way == WAY_STACK ? 0 :
			difference16(bpf_htons(p.hop_limit << 8), bpf_htons((p.hop_limit - 1) << 8))));
	*(u16 *)(icmp + 2) = csum_apply(*(u16 *)(icmp + 2), difference);
#else
	if (way != WAY_STACK) {
		ip->hop_limit--;
		csum_update(ctx, difference16(bpf_htons(p.hop_limit), bpf_htons(p.hop_limit - 1)));
	}
	*(u16 *)(icmp + 2) = csum_apply(*(u16 *)(icmp + 2), difference + outer);
#endif
	count_outcome(OUTCOME_ICMP);
	if (way == WAY_NEIGHBOUR)
		return F(redirect_neighbour)(scratch, p.ifindex);
	if (way == WAY_STACK && loopback) {
		__builtin_memset(data, 0, 2 * ETH_ALEN);
		return to_stack_by_loopback();
	}
	if (!hop)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(data, hop->dmac, ETH_ALEN);
	__builtin_memcpy(data + ETH_ALEN, hop->smac, ETH_ALEN);
	return bpf_redirect(hop->ifindex, 0);
}

#undef NETWORK_HEADER
#undef ICMP_OFFSET
#undef INNER_OFFSET
#undef INNER_L4_OFFSET
#undef FRAGMENT_HEADER
