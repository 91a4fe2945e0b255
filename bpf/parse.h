/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frame -> what we need to know of it. No include guard: see family.h. */

struct F(packet) {
	struct F(connection_key) key; /* as it arrived */
	u32 ifindex;
	u32 l4_offset;  /* from the start of the frame; 0: a fragment without transport header */
	u32 length;     /* from the IP header on; of one segment for GSO packets */
	u32 bytes;      /* from the IP header on; of all segments */
	u32 segments;
	u32 payload;    /* of the IP packet, extension headers left out */
	u32 jumbo;      /* bytes of extension headers that no segment has (IPv6) */
	u32 id;         /* of all fragments of one packet */
	u8 hop_limit;
	u8 heard;       /* HEARD_* of this packet */
	u8 opens;       /* a TCP SYN without ACK */
	u8 fragment;    /* FRAGMENT_* */
	u8 unchecked;   /* UDP without a checksum */
	u8 partial;     /* only the pseudo-header is in the checksum: the rest is left to the sender's offload */
};

#ifndef REVPROXY_PARSE_ONCE
#define REVPROXY_PARSE_ONCE

#define FRAGMENT_NONE 0
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2

/* IPv6 extension headers are followed up to this many, and no further than HEADERS_MAX allows. */
#define EXTENSIONS 4
#define EXTENSIONS_BYTES 64
#endif

/* From the IP header on, of a packet whose header says zero: so it is with more than 64 KB, which are segmented when they
 * leave (Documentation/networking: BIG TCP). */
static __always_inline u32 F(big_length)(void *ctx, int hook)
{
	struct __sk_buff *skb = ctx;

	return hook != HOOK_XDP && skb->gso_size ? skb->len - ETH_HLEN : 0;
}

#if FAMILY == 4
/* The offset of what follows the IP header; 0 if the packet is not well-formed. */
static __always_inline u32 parse_network4(void *ctx, int hook, void *data, void *end, struct packet4 *p)
{
	struct iphdr *ip = data + ETH_HLEN;
	u32 header, total;

	if ((void *)(ip + 1) > end)
		return 0;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len) ?: big_length4(ctx, hook);
	if (ip->version != 4 || header < sizeof(*ip) || total < header)
		return 0;
	p->key.saddr_be[0] = ip->saddr;
	p->key.daddr_be[0] = ip->daddr;
	p->key.protocol = ip->protocol;
	p->hop_limit = ip->ttl;
	p->length = total;
	p->payload = total - header;
	if (ip->frag_off & bpf_htons(0x1fff))
		p->fragment = FRAGMENT_LATER;
	else if (ip->frag_off & bpf_htons(0x2000))
		p->fragment = FRAGMENT_FIRST;
	p->id = ip->id;
	return ETH_HLEN + header;
}
#else
/* The offset of what follows the extension headers (RFC 8200 section 4); 0 if the packet is not well-formed or has
 * extensions that change where it goes or what its checksum is made of. */
static __always_inline u32 parse_network6(void *ctx, int hook, void *data, void *end, struct packet6 *p)
{
	struct ipv6hdr *ip = data + ETH_HLEN;
	u32 offset = 0;
	bool cut = false;
	u8 next;

	if ((void *)(ip + 1) > end)
		return 0;
	if (ip->version != 6)
		return 0;
	for (int i = 0; i < 4; i++) {
		p->key.saddr_be[i] = ip->saddr.in6_u.u6_addr32[i];
		p->key.daddr_be[i] = ip->daddr.in6_u.u6_addr32[i];
	}
	p->hop_limit = ip->hop_limit;
	p->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	next = ip->nexthdr;
	if (!ip->payload_len) {
		p->length = big_length6(ctx, hook);
		/* The length is in a jumbo option (RFC 2675), the first and only one, that segmentation takes away. */
		p->jumbo = next == IPPROTO_HOPOPTS ? 8 : 0;
		if (p->length < sizeof(*ip))
			return 0;
	}
	p->payload = p->length - sizeof(*ip);
	for (int i = 0; i < EXTENSIONS; i++) {
		u8 *extension = (void *)(ip + 1) + offset;

		if (next == IPPROTO_TCP || next == IPPROTO_UDP)
			break;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			return 0;
		if ((void *)(extension + 8) > end)
			return 0;
		if (next == IPPROTO_FRAGMENT) {
			u16 field = bpf_ntohs(*(__be16 *)(extension + 2));

			if (cut)
				return 0;
			cut = true;
			p->id = *(u32 *)(extension + 4);
			if (field & 0xfff8)
				p->fragment = FRAGMENT_LATER;
			else if (field & 1)
				p->fragment = FRAGMENT_FIRST;
			offset += 8;
		} else {
			offset += 8 + extension[1] * 8;
		}
		next = extension[0];
		if (offset > EXTENSIONS_BYTES)
			return 0;
		if (p->fragment == FRAGMENT_LATER)
			break;
	}
	if (offset > p->payload)
		return 0;
	p->payload -= offset;
	p->key.protocol = next;
	return ETH_HLEN + sizeof(*ip) + offset;
}
#endif

/* Sum over the pseudo-header (RFC 793, RFC 8200 section 8.1) of a packet with so much payload. */
static __always_inline u16 F(pseudo_header)(const struct F(connection_key) *key, u32 payload)
{
	u64 sum = (u64)bpf_htons(key->protocol) + bpf_htons(payload);

	for (int i = 0; i < ADDRESS_WORDS; i++)
		sum += (u64)key->saddr_be[i] + key->daddr_be[i];
	return csum_fold64(sum);
}

/* True: the packet may concern us, and p is filled in. */
static __always_inline bool F(parse)(void *ctx, int hook, struct F(packet) *p)
{
	void *data = packet_start(ctx, hook), *end = packet_end(ctx, hook);
	u32 l4_header = sizeof(struct udphdr), offset = F(parse_network)(ctx, hook, data, end, p);
	void *l4 = data + offset;
	u8 *listens, *targets;
	u16 check;

	p->ifindex = ingress_ifindex(ctx, hook);
	p->segments = 1;
	p->bytes = p->length;
	/* Not well-formed, or longer than the frame: not for us to judge. */
	if (!offset || frame_length(ctx, hook) < ETH_HLEN + p->length) {
		p->fragment = FRAGMENT_NONE;
		return false;
	}
	/* Fragments are TC's: it has the memory of which belong together. */
	if (p->fragment == FRAGMENT_LATER || (hook == HOOK_XDP && p->fragment))
		return false;
	if (p->payload < sizeof(struct udphdr) || l4 + sizeof(struct udphdr) > end)
		return false;
	p->key.sport_be = ((struct udphdr *)l4)->source;
	p->key.dport_be = ((struct udphdr *)l4)->dest;
	listens = lookup_index(MAP(PORT), bpf_ntohs(p->key.dport_be));
	targets = lookup_index(MAP(PORT), bpf_ntohs(p->key.sport_be));
	if (!listens || !targets || !((*listens & PORT_LISTEN) | (*targets & PORT_TARGET)))
		return false;

	p->l4_offset = offset;
	p->heard = HEARD_ANY;
	if (p->key.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if (p->payload < sizeof(*tcp) || (void *)(tcp + 1) > end)
			return false;
		p->heard |= tcp->rst ? HEARD_RST : tcp->syn ? HEARD_SYN : HEARD_PLAIN;
		if (tcp->fin)
			p->heard |= HEARD_FIN;
		p->opens = tcp->syn && !tcp->ack;
		l4_header = tcp->doff * 4;
		check = tcp->check;
	} else if (p->key.protocol == IPPROTO_UDP) {
		p->heard |= HEARD_PLAIN;
		check = ((struct udphdr *)l4)->check;
		p->unchecked = !check;
	} else {
		return false;
	}
	if (hook == HOOK_XDP) {
		/* A finished checksum equals this once in 65536 packets; TC treats those rightly too. */
		p->partial = check == F(pseudo_header)(&p->key, p->payload);
	} else {
		struct __sk_buff *skb = ctx;

		u32 size = skb->gso_size;

		if (size && !p->fragment) {
			/* What comes from a virtual machine does not say how many. */
			p->segments = skb->gso_segs ?: (skb->len - offset - l4_header + size - 1) / size;
			p->bytes = skb->len - ETH_HLEN;
			p->length = size + offset - ETH_HLEN - p->jumbo + l4_header;
		}
	}
	return true;
}
