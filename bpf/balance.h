/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which target a new connection goes to. No include guard: see family.h. */

#ifndef REVPROXY_BALANCE_ONCE
#define REVPROXY_BALANCE_ONCE

/* One for all hosts, so that a second node chooses alike. */
#define HASH_SEED 0x72657670

/* Bob Jenkins' lookup3 (public domain), as in the kernel's jhash.h. */
#define ROTATE(x, k) (((x) << (k)) | ((x) >> (32 - (k))))
#define JHASH_MIX(a, b, c) \
	do { \
		a -= c; a ^= ROTATE(c, 4);  c += b; \
		b -= a; b ^= ROTATE(a, 6);  a += c; \
		c -= b; c ^= ROTATE(b, 8);  b += a; \
		a -= c; a ^= ROTATE(c, 16); c += b; \
		b -= a; b ^= ROTATE(a, 19); a += c; \
		c -= b; c ^= ROTATE(b, 4);  b += a; \
	} while (0)
#define JHASH_FINAL(a, b, c) \
	do { \
		c ^= b; c -= ROTATE(b, 14); \
		a ^= c; a -= ROTATE(c, 11); \
		b ^= a; b -= ROTATE(a, 25); \
		c ^= b; c -= ROTATE(b, 16); \
		a ^= c; a -= ROTATE(c, 4);  \
		b ^= a; b -= ROTATE(a, 14); \
		c ^= b; c -= ROTATE(b, 24); \
	} while (0)

/* lookup3's hashword() over three words. */
static __always_inline u32 hash3(u32 x, u32 y, u32 z, u32 seed)
{
	u32 a, b, c;

	a = b = c = 0xdeadbeef + (3 << 2) + seed;
	a += x;
	b += y;
	c += z;
	JHASH_FINAL(a, b, c);
	return c;
}

/* The n-th choice from a group, or 0 if it has none. */
static __always_inline u32 group_choose(u32 group, u32 hash)
{
	void *table = lookup_index(MAP(GROUP), group);
	u32 *size, *target;

	if (!table)
		return 0;
	size = lookup_index(table, 0);
	if (!size || !*size)
		return 0;
	target = lookup_index(table, 1 + hash % *size);
	return target ? *target : 0;
}
#endif

static __always_inline u32 F(fold_address)(const __be32 *addr_be)
{
#if FAMILY == 4
	return bpf_ntohl(addr_be[0]);
#else
	return hash3(bpf_ntohl(addr_be[0]), bpf_ntohl(addr_be[1]),
		     hash3(bpf_ntohl(addr_be[2]), bpf_ntohl(addr_be[3]), 0, HASH_SEED), HASH_SEED);
#endif
}

/* The same for one connection on every host: by all five parts of it, or by the client's address alone. */
static __always_inline u32 F(connection_hash)(const struct F(connection_key) *key, u8 balance)
{
	u32 client = F(fold_address)(key->saddr_be);

	if (balance == BALANCE_RANDOM)
		return bpf_get_prandom_u32();
	if (balance == BALANCE_SOURCE)
		return hash3(client, 0, 0, HASH_SEED);
	return hash3(client, F(fold_address)(key->daddr_be),
		     (u32)bpf_ntohs(key->sport_be) << 16 | bpf_ntohs(key->dport_be), HASH_SEED + key->protocol);
}

/* Where a proxy sends this client: a source route's destination, else the default. */
static __always_inline u32 F(destination)(const struct proxy *proxy, const struct F(connection_key) *key,
					  struct scratch *scratch, u32 active)
{
	u8 has_routes = FAMILY == 4 ? PROXY_ROUTES4 : PROXY_ROUTES6;

	if (proxy->flags & has_routes) {
		struct F(route_key) *route_key = (void *)&scratch->key;
		struct route_slots *route;

		route_key->prefixlen = 32 + 32 * ADDRESS_WORDS;
		route_key->proxy = scratch->proxy;
		for (int i = 0; i < ADDRESS_WORDS; i++)
			route_key->addr_be[i] = key->saddr_be[i];
		route = lookup(MAPF(ROUTE), route_key);
		if (route && route->slot[active].dest)
			return route->slot[active].dest;
	}
	return FAMILY == 4 ? proxy->dest4 : proxy->dest6;
}
