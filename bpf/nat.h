/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting: addresses, ports, hop limit, checksums. No include guard: see family.h. */

#ifndef REVPROXY_NAT_ONCE
#define REVPROXY_NAT_ONCE

#define REWRITE_HOP 1u /* one hop further */
#define REWRITE_LOOPBACK 4u /* with those of lo, all zero */
#define REWRITE_STAMP 8u /* XDP: timestamps as well */

#endif

/* TC: the L4 checksum by the skb's helpers, which know what of it the hardware still does. */
static __always_inline int F(rewrite_checksum_tc)(struct __sk_buff *skb, const struct F(packet) *p, u64 addresses,
						  u64 ports, u64 hop)
{
	bool udp = p->key.protocol == IPPROTO_UDP;
	u32 offset = p->l4_offset + (udp ? 6 : 16);
	u64 mangled = udp ? BPF_F_MARK_MANGLED_0 : 0;
	u32 folded = csum_fold32(addresses);

	if (p->unchecked) {
		/* No checksum to balance the changes. The sum over the whole packet, where the driver gave one, learns
		 * of those that the IP header's does not balance either. */
		csum_update(skb, ports + (FAMILY == 6 ? addresses + hop : 0));
		return 0;
	}
	if (bpf_l4_csum_replace(skb, offset, 0, folded, BPF_F_PSEUDO_HDR | mangled))
		return -1;
	if (bpf_l4_csum_replace(skb, offset, 0, csum_fold32(ports), mangled))
		return -1;
#if FAMILY == 6
	/* IPv6 has no header checksum to balance the new addresses, so the sum over the whole packet, where the
	 * driver gave one, is right as it was: the helper's change to it is taken back, the hop limit's made. Fails
	 * where there is no such sum. */
	csum_update(skb, addresses + hop);
#endif
	return 0;
}

/* 0, or -1 with the packet possibly half changed: the caller drops it. Without out the hardware addresses stay. */
static __always_inline int F(rewrite)(void *ctx, int hook, const struct F(packet) *p, const struct F(connection) *e,
				      const struct way *out, u32 what)
{
	u64 addresses = 0, hop = 0;
	u64 ports = difference16(p->key.sport_be, e->sport_be) + difference16(p->key.dport_be, e->dport_be);
	void *data, *end, *l4;
	struct ethhdr *eth;
#if FAMILY == 4
	struct iphdr *ip;
#else
	struct ipv6hdr *ip;
#endif

	for (int i = 0; i < ADDRESS_WORDS; i++)
		addresses += difference32(p->key.saddr_be[i], e->saddr_be[i]) +
			     difference32(p->key.daddr_be[i], e->daddr_be[i]);
	if ((what & REWRITE_STAMP) && e->c.stamp)
		ports += F(restamp)(ctx, hook, p, &e->c);
	/* The hop limit shares its word with the protocol (IPv4) or the next header (IPv6). */
	if (what & REWRITE_HOP)
		hop = FAMILY == 4 ? difference16(bpf_htons(p->hop_limit << 8), bpf_htons((p->hop_limit - 1) << 8)) :
				    difference16(bpf_htons(p->hop_limit), bpf_htons(p->hop_limit - 1));
	if (hook != HOOK_XDP && p->l4_offset && F(rewrite_checksum_tc)(ctx, p, addresses, ports, hop))
		return -1;
	if (FAMILY == 6 && hook != HOOK_XDP && !p->l4_offset) /* a later fragment: nothing in it balances */
		csum_update(ctx, addresses + hop);

	data = packet_start(ctx, hook);
	end = packet_end(ctx, hook);
	eth = data;
	ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return -1;
	if (p->l4_offset) {
		l4 = data + (p->l4_offset & 0xff);
		if (l4 + sizeof(struct udphdr) > end)
			return -1;
		if (hook == HOOK_XDP && p->key.protocol == IPPROTO_TCP) {
			struct tcphdr *tcp = l4;

			if ((void *)(tcp + 1) > end)
				return -1;
			tcp->check = csum_apply(tcp->check, addresses + ports);
		} else if (hook == HOOK_XDP) {
			struct udphdr *udp = l4;

			if (udp->check) /* zero: the sender made none */
				udp->check = csum_apply(udp->check, addresses + ports) ?: 0xffff;
		}
		((struct udphdr *)l4)->source = e->sport_be;
		((struct udphdr *)l4)->dest = e->dport_be;
	}
#if FAMILY == 4
	ip->check = csum_apply(ip->check, addresses + hop);
	ip->saddr = e->saddr_be[0];
	ip->daddr = e->daddr_be[0];
	if (what & REWRITE_HOP)
		ip->ttl = p->hop_limit - 1;
#else
	for (int i = 0; i < 4; i++) {
		ip->saddr.in6_u.u6_addr32[i] = e->saddr_be[i];
		ip->daddr.in6_u.u6_addr32[i] = e->daddr_be[i];
	}
	if (what & REWRITE_HOP)
		ip->hop_limit = p->hop_limit - 1;
#endif
	if (out) {
		__builtin_memcpy(eth->h_dest, out->dmac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, out->smac, ETH_ALEN);
	} else if (what & REWRITE_LOOPBACK) {
		__builtin_memset(eth->h_dest, 0, 2 * ETH_ALEN);
	}
	return 0;
}
