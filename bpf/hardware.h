/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose frame is it? TC knows by skb->pkt_type; XDP sees what comes before that is looked at: on a promiscuous interface,
 * or behind a switch that floods, frames to other hosts too. So TC notes to which address its frames come, and XDP leaves
 * the others to it: an address that changes, or a second one, costs XDP's speed and nothing else. */
#ifndef REVPROXY_HARDWARE_H
#define REVPROXY_HARDWARE_H

/* Of skb->pkt_type (include/uapi/linux/if_packet.h). */
#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

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

/* A frame that XDP leaves to TC for the kernel to see (way.h) has its destination scrambled. Where somebody has taken TC's
 * program away, the stack then drops it as another host's, instead of answering with RST what it knows no socket for. */
static __always_inline void scramble(struct ethhdr *eth)
{
	eth->h_dest[0] ^= 0x02; /* no multicast */
	eth->h_dest[1] ^= 0x72;
	eth->h_dest[2] ^= 0x65;
	eth->h_dest[3] ^= 0x76;
	eth->h_dest[4] ^= 0x70;
	eth->h_dest[5] ^= 0x78;
}

/* XDP: only where TC has told its address, and so was there. */
static __always_inline bool leave_to_tc(struct xdp_md *ctx)
{
	struct ethhdr *eth = packet_start(ctx, HOOK_XDP);
	u64 *known = lookup_index(MAP(HARDWARE), ctx->ingress_ifindex % HARDWARE_PLACES);

	if (!known || (void *)(eth + 1) > packet_end(ctx, HOOK_XDP) || *known != hardware_word(eth, ctx->ingress_ifindex))
		return false;
	scramble(eth);
	return true;
}

/* TC: the frame is one of those, and is again as it came. */
static __always_inline bool take_from_xdp(struct __sk_buff *skb)
{
	struct ethhdr *eth = packet_start(skb, HOOK_TC_INGRESS), came;
	u64 *known = lookup_index(MAP(HARDWARE), skb->ifindex % HARDWARE_PLACES);

	if (!known || (void *)(eth + 1) > packet_end(skb, HOOK_TC_INGRESS))
		return false;
	__builtin_memcpy(came.h_dest, eth->h_dest, ETH_ALEN);
	scramble(&came);
	if (*known != hardware_word(&came, skb->ifindex))
		return false;
	scramble(eth);
	return !bpf_skb_change_type(skb, PACKET_HOST);
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
