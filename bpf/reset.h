/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A TCP packet of a connection whose target is dead is answered with RST (RFC 9293 section 3.5.2), to whichever side it
 * came from: it goes back as it came, addresses, ports and hardware addresses exchanged.
 * No include guard: see family.h. */

#ifndef REVPROXY_RESET_ONCE
#define REVPROXY_RESET_ONCE

#define RESET_HOPS 64
#define TCP_CHECK_OFFSET 16

/* A TCP header without options as sixteen-bit words, for sums. */
union tcp_words {
	struct tcphdr header;
	u16 word[sizeof(struct tcphdr) / 2];
};

static __always_inline u64 words_sum(const union tcp_words *tcp)
{
	u64 sum = 0;

	for (u32 i = 0; i < sizeof(struct tcphdr) / 2; i++)
		sum += tcp->word[i];
	return sum;
}

/* The header of the answer, its checksum zero, for a segment of so many bytes of data. */
static __always_inline void make_reset(union tcp_words *answer, const struct tcphdr *tcp, u32 bytes)
{
	__builtin_memset(answer, 0, sizeof(*answer));
	answer->header.source = tcp->dest;
	answer->header.dest = tcp->source;
	answer->header.doff = sizeof(*tcp) / 4;
	answer->header.rst = 1;
	if (tcp->ack) {
		answer->header.seq = tcp->ack_seq;
	} else {
		answer->header.ack = 1;
		answer->header.ack_seq = bpf_htonl(bpf_ntohl(tcp->seq) + bytes + tcp->syn + tcp->fin);
	}
}
#endif

/* Called by tc_ingress for a packet of a connection that is to be reset. */
static __always_inline int F(reset)(struct __sk_buff *ctx)
{
	union tcp_words before, answer;
	struct F(packet) p = {};
	struct F(connection) *e;
	u64 fields, sum;
	void *data, *end;
	struct ethhdr *eth;
	struct tcphdr *tcp;
	u8 mac[ETH_ALEN];
	u32 offset, header;
	__be32 word;
#if FAMILY == 4
	struct iphdr *ip;
#else
	struct ipv6hdr *ip;
#endif

	if (!F(parse)(ctx, HOOK_TC_INGRESS, &p) || p.fragment || p.key.protocol != IPPROTO_TCP)
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	e = F(find)(&p.key);
	if (!e)
		return TC_ACT_UNSPEC;
	/* From now on it counts as closing: a SYN begins anew. */
	F(hear)(e, IPPROTO_TCP, HEARD_RST, clock_ns());
	count_outcome(OUTCOME_RESET);
	if (p.heard & HEARD_RST)
		return TC_ACT_SHOT;
	offset = p.l4_offset & 0xff;
	if (bpf_skb_load_bytes(ctx, offset, &before, sizeof(before)))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	header = before.header.doff * 4;
	make_reset(&answer, &before.header, p.payload > header ? p.payload - header : 0);

	/* What the checksum was made of: its own complement, less the pseudo-header. Where the hardware is still to make
	 * it, the helper knows, and only the pseudo-header counts. */
	sum = (u16)~before.header.check + (u64)(u16)~F(pseudo_header)(&p.key, p.payload);
	fields = words_sum(&answer) + (u16)~csum_fold64(sum);
	word = bpf_htons(p.payload);
	if (bpf_l4_csum_replace(ctx, offset + TCP_CHECK_OFFSET, 0,
				csum_fold32(difference16(word, bpf_htons(sizeof(answer)))), BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(ctx, offset + TCP_CHECK_OFFSET, 0, csum_fold32(fields), 0) ||
	    bpf_skb_change_tail(ctx, offset + sizeof(answer), 0))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);

	data = packet_start(ctx, HOOK_TC_INGRESS);
	end = packet_end(ctx, HOOK_TC_INGRESS);
	eth = data;
	ip = data + ETH_HLEN;
	tcp = data + offset;
	if ((void *)(ip + 1) > end || (void *)(tcp + 1) > end)
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	answer.header.check = tcp->check;
	*tcp = answer.header;
#if FAMILY == 4
	sum = difference16(ip->tot_len, bpf_htons(offset - ETH_HLEN + sizeof(answer))) +
	      difference16(bpf_htons(ip->ttl << 8), bpf_htons(RESET_HOPS << 8));
	ip->check = csum_apply(ip->check, sum);
	ip->tot_len = bpf_htons(offset - ETH_HLEN + sizeof(answer));
	ip->ttl = RESET_HOPS;
	ip->saddr = p.key.daddr_be[0];
	ip->daddr = p.key.saddr_be[0];
#else
	ip->payload_len = bpf_htons(offset - ETH_HLEN - sizeof(*ip) + sizeof(answer));
	ip->hop_limit = RESET_HOPS;
	for (int i = 0; i < 4; i++) {
		ip->saddr.in6_u.u6_addr32[i] = p.key.daddr_be[i];
		ip->daddr.in6_u.u6_addr32[i] = p.key.saddr_be[i];
	}
#endif
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return bpf_redirect(ctx->ifindex, 0);
}
