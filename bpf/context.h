/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One source for XDP and TC: which hook is compiled is a constant argument, so the other one's code never
 * reaches the verifier. */
#ifndef REVPROXY_CONTEXT_H
#define REVPROXY_CONTEXT_H

#define HOOK_XDP 0
#define HOOK_TC_INGRESS 1
#define HOOK_TC_EGRESS 2

/* Longest headers read: Ethernet, IPv6 with some extensions, TCP with its options; or an ICMPv6 error with the headers
 * it quotes. */
#define HEADERS_MAX (ETH_HLEN + 40 + 64 + 60)

static __always_inline void *packet_start(void *ctx, int hook)
{
	if (hook == HOOK_XDP)
		return (void *)(long)((struct xdp_md *)ctx)->data;
	return (void *)(long)((struct __sk_buff *)ctx)->data;
}

static __always_inline void *packet_end(void *ctx, int hook)
{
	if (hook == HOOK_XDP)
		return (void *)(long)((struct xdp_md *)ctx)->data_end;
	return (void *)(long)((struct __sk_buff *)ctx)->data_end;
}

/* Of a frame that comes in: where. */
static __always_inline u32 ingress_ifindex(void *ctx, int hook)
{
	if (hook == HOOK_XDP)
		return ((struct xdp_md *)ctx)->ingress_ifindex;
	return ((struct __sk_buff *)ctx)->ifindex;
}

/* Length of the whole frame; a GSO packet counts as one. */
static __always_inline u32 frame_length(void *ctx, int hook)
{
	if (hook == HOOK_XDP) {
		struct xdp_md *xdp = ctx;

		return xdp->data_end - xdp->data;
	}
	return ((struct __sk_buff *)ctx)->len;
}

/* Goes on in another program of the set and does not come back, unless that is missing. */
static __always_inline void call(void *ctx, int hook, u32 place)
{
	if (hook == HOOK_XDP)
		bpf_tail_call_((u64)MAP(XDP_CALLS), ctx, place);
	else
		bpf_tail_call_((u64)MAP(TC_CALLS), ctx, place);
}

static __always_inline u32 forgotten(u32 *place, u32 value)
{
	*(volatile u32 *)place = value;
	return *(volatile u32 *)place;
}

/* "Leave it alone": for TC the next filter is asked, so other people's filters see what is not ours. */
static __always_inline int verdict_pass(int hook)
{
	return hook == HOOK_XDP ? XDP_PASS : TC_ACT_UNSPEC;
}

static __always_inline int verdict_drop(int hook, u32 reason)
{
	count_outcome(reason);
	return hook == HOOK_XDP ? XDP_DROP : TC_ACT_SHOT;
}

#endif
