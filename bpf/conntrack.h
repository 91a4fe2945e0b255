/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections: one entry per direction; what leaves by one entry, reversed, is the other one's key.
 * No include guard: see family.h. */

#define NSEC_PER_SEC 1000000000ULL

static __always_inline void F(reverse_key)(const struct F(connection) *e, u8 protocol, struct F(connection_key) *key)
{
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		key->saddr_be[i] = e->daddr_be[i];
		key->daddr_be[i] = e->saddr_be[i];
	}
	key->sport_be = e->dport_be;
	key->dport_be = e->sport_be;
	key->protocol = protocol;
	key->zero[0] = key->zero[1] = key->zero[2] = 0;
}

static __always_inline bool F(is_closing)(const struct connection *c)
{
	return ((c->own | c->peer) & HEARD_RST) || (c->own & c->peer & HEARD_FIN);
}

static __always_inline u64 F(idle_limit_ns)(const struct connection *c, u32 active)
{
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	u32 limit_sec = c->idle_sec;

	if (!settings)
		return limit_sec * NSEC_PER_SEC;
	if (F(is_closing)(c))
		limit_sec = settings->slot[active].closing_sec;
	else if (!(c->own & c->peer & HEARD_ANY) && limit_sec > settings->slot[active].unanswered_sec)
		limit_sec = settings->slot[active].unanswered_sec;
	return limit_sec * NSEC_PER_SEC;
}

/* An entry idle for longer than its limit counts as absent, unless the other direction is not: traffic may well
 * flow one way only. */
static __always_inline bool F(is_alive)(struct F(connection) *e, u8 protocol, u64 now, u32 active)
{
	s64 idle = now - e->c.last_ns; /* may be negative: another CPU's clock */
	struct F(connection_key) key;
	struct F(connection) *other;
	s64 limit;

	if (idle < (s64)NSEC_PER_SEC)
		return true;
	limit = F(idle_limit_ns)(&e->c, active);
	if (idle < limit)
		return true;
	F(reverse_key)(e, protocol, &key);
	other = lookup(MAPF(CONNECTION), &key);
	return other && (s64)(now - other->c.last_ns) < limit;
}

/* Something heard for the first time in this direction: both entries learn of it. */
static __always_inline void F(hear)(struct F(connection) *e, u8 protocol, u8 heard)
{
	struct F(connection_key) key;
	struct F(connection) *other;

	e->c.own |= heard;
	F(reverse_key)(e, protocol, &key);
	other = lookup(MAPF(CONNECTION), &key);
	if (other)
		other->c.peer |= heard;
}
