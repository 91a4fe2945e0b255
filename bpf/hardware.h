/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose frame is it? TC knows by skb->pkt_type; XDP sees what comes before that is looked at: on a promiscuous interface,
 * or behind a switch that floods, frames to other hosts too. So TC notes to which address its frames come, and XDP leaves
 * the others to it: an address that changes, or a second one, costs XDP's speed and nothing else. */
#ifndef REVPROXY_HARDWARE_H
#define REVPROXY_HARDWARE_H

/* hardware[ifindex % HARDWARE_PLACES]: the address, and which of the interfaces of this place has it; 0: none was seen.
 * One word, so that it is never read half written. */
static __always_inline u64 hardware_word(const struct ethhdr *eth, u32 ifindex)
{
	u64 word = 0;

	__builtin_memcpy(&word, eth->h_dest, ETH_ALEN);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word >>= 16;
#endif
	return word | (u64)(ifindex / HARDWARE_PLACES) << 48;
}

/* XDP: the frame is to another address than those that the stack took as this host's. */
static __always_inline bool is_to_another_host(struct xdp_md *ctx)
{
	struct ethhdr *eth = packet_start(ctx, HOOK_XDP);
	u64 *known = lookup_index(MAP(HARDWARE), ctx->ingress_ifindex % HARDWARE_PLACES);

	if (!known || !*known || (void *)(eth + 1) > packet_end(ctx, HOOK_XDP))
		return false;
	return *known != hardware_word(eth, ctx->ingress_ifindex);
}

/* TC: the frame is to this host. */
static __always_inline void note_hardware(struct __sk_buff *skb)
{
	struct ethhdr *eth = packet_start(skb, HOOK_TC_INGRESS);
	u64 *known = lookup_index(MAP(HARDWARE), skb->ifindex % HARDWARE_PLACES);
	u64 word;

	if (!known || (void *)(eth + 1) > packet_end(skb, HOOK_TC_INGRESS))
		return;
	word = hardware_word(eth, skb->ifindex);
	if (*known != word)
		*known = word;
}

#endif
