/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Internet checksums (RFC 1071), updated incrementally (RFC 1624, equation 3). Sums are taken over words as they
 * lie in memory, which gives the checksum in memory order on either endianness. */
#ifndef REVPROXY_CHECKSUM_H
#define REVPROXY_CHECKSUM_H

static __always_inline u16 csum_fold64(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* As the 32-bit difference that the kernel's checksum helpers take. */
static __always_inline u32 csum_fold32(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline u64 difference16(u16 before, u16 after)
{
	return (u64)(u16)~before + after;
}

static __always_inline u64 difference32(u32 before, u32 after)
{
	return (u64)(u32)~before + after;
}

/* The checksum after adding difference (new words plus complemented old words) to what it covers. */
static __always_inline u16 csum_apply(u16 check, u64 difference)
{
	return ~csum_fold64((u16)~check + difference);
}

/* The sum over the whole packet, where the driver gave one, learns of a difference that nothing in the packet balances.
 * Fails where there is no such sum. Folded, since bcc 0.26 declares the argument with 16 bits. */
static __always_inline void csum_update(struct __sk_buff *skb, u64 difference)
{
	bpf_csum_update(skb, csum_fold64(difference));
}

#endif
