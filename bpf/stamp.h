/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP timestamps (RFC 7323) with full NAT. No include guard: see family.h.
 *
 * A target that ended a connection itself remembers it for a minute or more (TIME-WAIT, RFC 9293 section 3.6.1). It takes
 * a new one from the same address and port only if its timestamp is later than the last one (RFC 6191); else it answers
 * with an ACK, and the client waits a second. Now to the target all clients are this host, and each has a clock of its
 * own. So what a client says is changed by what its clock differs from ours when the connection begins, and what the
 * target echoes is changed back. */

#ifndef REVPROXY_STAMP_ONCE
#define REVPROXY_STAMP_ONCE

#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_STAMPS 8
#define STAMPS_BYTES 10
#define STAMP_SAID 2   /* from the option's start: what its sender's clock says */
#define STAMP_ECHOED 6 /* and what it heard last, of use in an ACK */
#define OPTIONS_MAX 16

/* Our clock's units: 2^17 ns, an eighth of a millisecond. It is faster than the clients' (a millisecond, RFC 7323 section
 * 5.4), and so later than what the last one said even after a long connection, and when a port is used again at once. */
#define STAMP_SHIFT 17
#endif

/* Where the option begins, from the start of the TCP header; 0 if there is none. */
static __always_inline u32 F(find_stamps)(void *ctx, int hook, const struct F(packet) *p)
{
	void *data = packet_start(ctx, hook), *end = packet_end(ctx, hook);
	void *l4 = data + (p->l4_offset & 0xff);
	struct tcphdr *tcp = l4;
	u32 at = sizeof(*tcp), header;

	if ((void *)(tcp + 1) > end)
		return 0;
	header = tcp->doff * 4;
	if (header > p->payload)
		return 0;
	for (int i = 0; i < OPTIONS_MAX; i++) {
		u8 *option = l4 + at;
		u32 length;

		if (at + STAMPS_BYTES > header || (void *)(option + STAMPS_BYTES) > end)
			return 0;
		if (option[0] == OPTION_STAMPS && option[1] == STAMPS_BYTES)
			return at;
		length = option[1];
		if (option[0] == OPTION_NOTHING)
			length = 1;
		if (option[0] == OPTION_END || !length)
			return 0;
		at += length;
	}
	return 0;
}

/* Notes in both entries, e and its answers', by what the timestamps of the connection that this packet has opened are to
 * change, and returns it; 0: they are not. Not where the entries are made, whose branches are many enough for the
 * verifier. */
static __always_inline u32 F(begin_stamp)(void *ctx, int hook, const struct F(packet) *p, struct F(connection) *e,
					  struct F(connection_key) *reply_key)
{
	u32 at = F(find_stamps)(ctx, hook, p);
	u8 *option = packet_start(ctx, hook) + (p->l4_offset & 0xff) + (at & 0x3f);
	struct F(connection) *reply;

	if (!at || (void *)(option + STAMPS_BYTES) > packet_end(ctx, hook))
		return 0;
	e->c.stamp = (u32)(bpf_ktime_get_ns() >> STAMP_SHIFT) - bpf_ntohl(*(__be32 *)(option + STAMP_SAID)) ?: 1;
	F(reverse_key)(e, IPPROTO_TCP, reply_key);
	reply = F(find)(reply_key);
	if (reply)
		reply->c.stamp = e->c.stamp;
	return e->c.stamp;
}

/* Changes them; what the checksum has to be changed by. */
static __always_inline u64 F(restamp)(void *ctx, int hook, const struct F(packet) *p, const struct connection *c)
{
	u32 at = F(find_stamps)(ctx, hook, p);
	u8 *option = packet_start(ctx, hook) + (p->l4_offset & 0xff) + (at & 0x3f);
	__be32 *stamp, before;
	u16 difference;

	if (!at || (void *)(option + STAMPS_BYTES) > packet_end(ctx, hook))
		return 0;
	if (c->flags & CONNECTION_REPLY) {
		stamp = (__be32 *)(option + STAMP_ECHOED);
		before = *stamp;
		if (before) /* else nothing was heard yet */
			*stamp = bpf_htonl(bpf_ntohl(before) - c->stamp);
	} else {
		stamp = (__be32 *)(option + STAMP_SAID);
		before = *stamp;
		*stamp = bpf_htonl(bpf_ntohl(before) + c->stamp);
	}
	difference = csum_fold64(difference32(before, *stamp));
	return at & 1 ? (u16)(difference << 8 | difference >> 8) : difference;
}

/* TC: the same, with the checksum. 0, or the helper's error. */
static __always_inline long F(restamp_skb)(struct __sk_buff *skb, const struct F(packet) *p, const struct connection *c)
{
	u64 difference = F(restamp)(skb, HOOK_TC_INGRESS, p, c);

	return difference ? bpf_l4_csum_replace(skb, p->l4_offset + 16, 0, difference, 0) : 0;
}
