// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* revproxy's programs: the entry points.
 *
 * xdp_ingress  finishes what it can (redirect, drop) and leaves everything else untouched (but see leave_to_tc);
 * tc_ingress   does all that XDP left, or everything where there is no XDP;
 * tc_egress    rewrites answers that came through the kernel's stack.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "types.h"
#include "maps.h"
#include "layout_assertions.h" /* made by user space from its own declarations */
#include "counters.h"
#include "clock.h"
#include "checksum.h"
#include "context.h"
#include "hardware.h"

#define FAMILY 4
#include "family.h"
#undef FAMILY
#define FAMILY 6
#include "family.h"
#undef FAMILY

/* Frames to somebody else, or to many, are none of ours. */
static __always_inline u16 ethernet_protocol(void *ctx, int hook)
{
	struct ethhdr *eth = packet_start(ctx, hook);

	if ((void *)(eth + 1) > packet_end(ctx, hook))
		return 0;
	if (hook != HOOK_TC_EGRESS && (eth->h_dest[0] & 1))
		return 0;
	return bpf_ntohs(eth->h_proto);
}

static __always_inline int ingress(void *ctx, int hook)
{
	switch (ethernet_protocol(ctx, hook)) {
	case ETH_P_IP:
		return ingress4(ctx, hook);
	case ETH_P_IPV6:
		return ingress6(ctx, hook);
	}
	return verdict_pass(hook);
}

/* The headers may lie outside the linear part. */
static __always_inline void pull_headers(struct __sk_buff *skb)
{
	void *data = packet_start(skb, HOOK_TC_INGRESS), *end = packet_end(skb, HOOK_TC_INGRESS);

	if (data + HEADERS_MAX > end && end - data < skb->len)
		bpf_skb_pull_data(skb, skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX);
}

/* From a tunnel (tun, WireGuard, ipip) packets come without a hardware header: their network header is where it would be.
 * The helper reads up to the end of the linear part, which tells where that header is. */
static __always_inline bool lacks_hardware_header(struct __sk_buff *skb)
{
	u8 *start = packet_start(skb, HOOK_TC_INGRESS), *end = packet_end(skb, HOOK_TC_INGRESS), octet;
	u64 length;

	/* The first octet has the version of IP: few hardware addresses look like it. */
	if (start + 1 > end || (*start >> 4 != 4 && *start >> 4 != 6))
		return false;
	length = end - start;
	asm volatile("" : "+r"(length)); /* else -1 becomes arithmetic that the verifier allows for no pointer */
	return !bpf_skb_load_bytes_relative(skb, length - 1, &octet, 1, BPF_HDR_START_NET);
}

/* An address that this host's frames come to, to be told from none. */
#define NO_HARDWARE 0x02

/* 0, or an error. What leaves by an interface without such headers is rid of it again by the kernel. */
static __always_inline long add_hardware_header(struct __sk_buff *skb)
{
	long error = bpf_skb_change_head(skb, ETH_HLEN, 0);
	struct ethhdr *eth = packet_start(skb, HOOK_TC_INGRESS);

	if (error || (void *)(eth + 1) > packet_end(skb, HOOK_TC_INGRESS))
		return -1;
	eth->h_dest[0] = NO_HARDWARE;
	eth->h_proto = skb->protocol;
	return 0;
}

int xdp_ingress(struct xdp_md *ctx)
{
	return ingress(ctx, HOOK_XDP);
}

/* Nobody on the wire has an address of 127.0.0.0/8 (RFC 1122 section 3.2.1.3), which a stack otherwise sees to. Where
 * targets at such addresses answer through an interface, it has been told not to. Multicast frames count as well. */
static __always_inline bool is_forged_loopback(struct __sk_buff *skb)
{
	struct ethhdr *eth = packet_start(skb, HOOK_TC_INGRESS);
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > packet_end(skb, HOOK_TC_INGRESS) || eth->h_proto != bpf_htons(ETH_P_IP))
		return false;
	if ((u8)ip->saddr != 127 && (u8)ip->daddr != 127)
		return false;
	return device_flags(skb->ifindex) & DEVICE_DROP_LOOPBACK;
}

int tc_ingress(struct __sk_buff *ctx)
{
	pull_headers(ctx);
	if (lacks_hardware_header(ctx) && add_hardware_header(ctx))
		return TC_ACT_UNSPEC;
	if (is_forged_loopback(ctx))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_LOOPBACK);
	/* A frame of a VLAN is its interface's: its tag has been taken off before we see it here. */
	if (ctx->vlan_present || (ctx->pkt_type == PACKET_OTHERHOST && !take_from_xdp(ctx)) || ctx->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	note_hardware(ctx);
	return ingress(ctx, HOOK_TC_INGRESS);
}

int xdp_open4(struct xdp_md *ctx)
{
	return open4(ctx, HOOK_XDP);
}

int xdp_enter4(struct xdp_md *ctx)
{
	return enter_called4(ctx, HOOK_XDP);
}

int xdp_open6(struct xdp_md *ctx)
{
	return open6(ctx, HOOK_XDP);
}

int xdp_enter6(struct xdp_md *ctx)
{
	return enter_called6(ctx, HOOK_XDP);
}

int xdp_reclaim4(struct xdp_md *ctx)
{
	return make_room4(ctx, HOOK_XDP);
}

int xdp_reclaim6(struct xdp_md *ctx)
{
	return make_room6(ctx, HOOK_XDP);
}

int xdp_stamp4(struct xdp_md *ctx)
{
	return stamp_called4(ctx);
}

int xdp_stamp6(struct xdp_md *ctx)
{
	return stamp_called6(ctx);
}

int tc_reclaim4(struct __sk_buff *ctx)
{
	return make_room4(ctx, HOOK_TC_INGRESS);
}

int tc_reclaim6(struct __sk_buff *ctx)
{
	return make_room6(ctx, HOOK_TC_INGRESS);
}

int tc_open4(struct __sk_buff *ctx)
{
	return open4(ctx, HOOK_TC_INGRESS);
}

int tc_enter4(struct __sk_buff *ctx)
{
	return enter_called4(ctx, HOOK_TC_INGRESS);
}

int tc_open6(struct __sk_buff *ctx)
{
	return open6(ctx, HOOK_TC_INGRESS);
}

int tc_enter6(struct __sk_buff *ctx)
{
	return enter_called6(ctx, HOOK_TC_INGRESS);
}

int tc_forward4(struct __sk_buff *ctx)
{
	return forward_called4(ctx);
}

int tc_forward6(struct __sk_buff *ctx)
{
	return forward_called6(ctx);
}

int tc_fragment4(struct __sk_buff *ctx)
{
	return follow_fragment4(ctx, HOOK_TC_INGRESS);
}

int tc_icmp4(struct __sk_buff *ctx)
{
	return translate_icmp4(ctx, HOOK_TC_INGRESS);
}

int tc_egress_fragment4(struct __sk_buff *ctx)
{
	return follow_fragment4(ctx, HOOK_TC_EGRESS);
}

int tc_egress_icmp4(struct __sk_buff *ctx)
{
	return translate_icmp4(ctx, HOOK_TC_EGRESS);
}

int tc_fragment6(struct __sk_buff *ctx)
{
	return follow_fragment6(ctx, HOOK_TC_INGRESS);
}

int tc_icmp6(struct __sk_buff *ctx)
{
	return translate_icmp6(ctx, HOOK_TC_INGRESS);
}

int tc_egress_fragment6(struct __sk_buff *ctx)
{
	return follow_fragment6(ctx, HOOK_TC_EGRESS);
}

int tc_egress_icmp6(struct __sk_buff *ctx)
{
	return translate_icmp6(ctx, HOOK_TC_EGRESS);
}

int tc_reset4(struct __sk_buff *ctx)
{
	return reset4(ctx);
}

int tc_reset6(struct __sk_buff *ctx)
{
	return reset6(ctx);
}

/* Run by user space, again and again: each time the next of its requests, up to one that can't be done. What is to be
 * removed and is not there counts as done. */
#define EDIT(version) \
	{ \
		struct edit_frame *frame = packet_start(ctx, HOOK_TC_INGRESS); \
		struct entry##version *wanted; \
		long error = 0; \
\
		if ((void *)(frame + 1) > packet_end(ctx, HOOK_TC_INGRESS)) \
			return TC_ACT_SHOT; \
		wanted = lookup_index(MAP(EDIT##version), frame->done); \
		if (!wanted || frame->error) \
			return TC_ACT_OK; \
		if (frame->operation == EDIT_REMOVE) \
			error = remove##version(&wanted->key, false); \
		else \
			error = enter##version(&wanted->key, &wanted->value); \
		frame = packet_start(ctx, HOOK_TC_INGRESS); \
		if ((void *)(frame + 1) > packet_end(ctx, HOOK_TC_INGRESS)) \
			return TC_ACT_SHOT; \
		if (error == -ENOENT) \
			error = 0; \
		frame->done += !error; \
		frame->error = -error; \
		return TC_ACT_OK; \
	}

int edit4(struct __sk_buff *ctx) EDIT(4)
int edit6(struct __sk_buff *ctx) EDIT(6)

int tc_egress(struct __sk_buff *ctx)
{
	pull_headers(ctx);
	if (lacks_hardware_header(ctx))
		return TC_ACT_UNSPEC;
	switch (ethernet_protocol(ctx, HOOK_TC_EGRESS)) {
	case ETH_P_IP:
		return egress4(ctx);
	case ETH_P_IPV6:
		return egress6(ctx);
	}
	return TC_ACT_UNSPEC;
}
