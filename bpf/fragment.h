/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: the first one is handled as any packet and leaves its ports for those that follow. One that comes before
 * its first is not known and goes on untouched. No include guard: see family.h. */

static __always_inline void F(fragment_key)(const struct F(packet) *p, struct F(fragment_key) *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		key->saddr_be[i] = p->key.saddr_be[i];
		key->daddr_be[i] = p->key.daddr_be[i];
	}
	key->id = p->id;
	key->protocol = FAMILY == 4 ? p->key.protocol : 0; /* IPv6: only the first one's next header counts */
}

static __always_inline void F(remember_fragment)(const struct F(packet) *p)
{
	struct fragment ports = {
		.sport_be = p->key.sport_be,
		.dport_be = p->key.dport_be,
		.protocol = p->key.protocol,
	};
	struct F(fragment_key) key;

	F(fragment_key)(p, &key);
	bpf_map_update_elem(MAPF(FRAGMENT), &key, &ports, BPF_ANY);
}

/* A cheap look: is it a fragment after the first? */
static __always_inline bool F(is_later_fragment)(void *data, void *end)
{
#if FAMILY == 4
	struct iphdr *ip = data + ETH_HLEN;

	return (void *)(ip + 1) <= end && (ip->frag_off & bpf_htons(0x1fff));
#else
	struct ipv6hdr *ip = data + ETH_HLEN;

	/* Behind other extension headers it is found by parsing. */
	return (void *)(ip + 1) <= end && ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP &&
	       ip->nexthdr != IPPROTO_ICMPV6;
#endif
}
