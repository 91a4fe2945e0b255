/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections: one entry per direction; what leaves by one entry, reversed, is the other one's key.
 * No include guard: see family.h. */

#define NSEC_PER_SEC 1000000000ULL

/* Room in a full table is looked for at so many places. */
#define SAMPLES 16
#define FULL_ROUNDS 256 /* so many looks in vain until it no more counts as full */

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

/* A SYN begins anew: it has ended, or there was a RST, of which only the receiver knows whether it was the end. */
static __always_inline bool F(gives_way)(const struct connection *c)
{
	return F(is_closing)(c) || ((c->own | c->peer) & HEARD_ON);
}

/* Both sides have been heard and, with TCP, one of them beyond its SYN: a server's answer to a forged SYN is not
 * enough. */
static __always_inline bool F(is_established)(const struct connection *c)
{
	return (c->own & c->peer & HEARD_ANY) && ((c->own | c->peer) & HEARD_PLAIN);
}

/* Why a connection that is over ended. */
static __always_inline u8 F(ending)(const struct connection *c)
{
	if ((c->own | c->peer) & HEARD_RST)
		return EVENT_RST;
	if (c->own & c->peer & HEARD_FIN)
		return EVENT_FIN;
	return F(is_established)(c) ? EVENT_IDLE : EVENT_UNANSWERED;
}

static __always_inline u64 F(idle_limit_ns)(const struct connection *c, u32 active)
{
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	u32 limit_sec = c->idle_sec;

	if (!settings)
		return limit_sec * NSEC_PER_SEC;
	if (F(is_closing)(c))
		limit_sec = settings->slot[active].closing_sec;
	else if (!F(is_established)(c) && limit_sec > settings->slot[active].unanswered_sec)
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
	other = F(find)(&key);
	return other && (s64)(now - other->c.last_ns) < limit;
}

/* Something heard for the first time in this direction: both entries learn of it, and user space if that was the end.
 * (When two CPUs hear both sides' last at once, both may tell it, which the reader sees to; or none, and the sweep will.
 * So it is with a full ring.) */
static __always_inline void F(hear)(struct F(connection) *e, u8 protocol, u8 heard, u64 now)
{
	struct F(connection_key) key;
	struct F(connection) *other;
	u8 gone;

	/* A RST takes HEARD_PLAIN back, so that whatever comes after it is heard here; which takes the RST back: anybody
	 * can forge one, and who gets it looks at its sequence number. */
	gone = (heard & HEARD_RST) * (HEARD_PLAIN / HEARD_RST) | (heard & HEARD_PLAIN) / (HEARD_PLAIN / HEARD_RST);
	heard |= ((e->c.own | e->c.peer) & gone & HEARD_RST) * (HEARD_ON / HEARD_RST);
	e->c.own = (e->c.own & ~gone) | heard;
	e->c.peer &= ~gone;
	F(reverse_key)(e, protocol, &key);
	other = F(find)(&key);
	if (!other)
		return;
	other->c.peer = (other->c.peer & ~gone) | heard;
	other->c.own &= ~gone;
	if ((e->c.flags & CONNECTION_TOLD) && F(is_closing)(&e->c)) {
		bool is_reply = e->c.flags & CONNECTION_REPLY;

		if (F(tell)(is_reply ? other : e, is_reply ? e : other, protocol, F(ending)(&e->c), now)) {
			e->c.flags &= ~CONNECTION_TOLD;
			other->c.flags &= ~CONNECTION_TOLD;
		}
	}
}

/* An entry of a connection that can make room: of a few at random one that is over, else the one of two that are
 * not established which was silent for longer. 0: those few are all established. */
static __always_inline struct F(entry) *F(sample)(const struct table *head, u64 now, u32 active)
{
	struct F(entry) *found = 0;

	for (u32 i = 0; i < SAMPLES; i++) {
		struct F(entry) *entry = F(any)(head);
		struct F(connection) *e;

		if (!entry || !entry->key.protocol)
			continue;
		e = &entry->value;
		if (F(is_closing)(&e->c) || !F(is_alive)(e, entry->key.protocol, now, active))
			return entry;
		if (F(is_established)(&e->c))
			continue;
		if (found)
			return e->c.last_ns < found->value.c.last_ns ? entry : found;
		found = entry;
	}
	return found;
}

/* Once the table was full, every new connection removes one that is over, so that it stays usable when nobody sweeps it;
 * or one that is not established, so that a flood of SYNs keeps nobody out. (The client's next packet makes the entries
 * again, by the same choice.) Established ones always stay. */
static __always_inline void F(reclaim)(struct scratch *scratch)
{
	struct F(connection_key) key, *other = (void *)&scratch->key;
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	u64 now = scratch->now;
	u32 window = now >> FLOOD_WINDOW_SHIFT;
	struct F(entry) *entry;
	u8 why, told;

	if (!head || !head->full)
		return;
	entry = F(sample)(head, now, scratch->active & 1);
	if (!entry) {
		head->full--;
		return;
	}
	key = entry->key;
	F(reverse_key)(&entry->value, key.protocol, other);
	why = F(ending)(&entry->value.c);
	told = why == EVENT_UNANSWERED ? EVENT_EVICTED : why;
	if (entry->value.c.flags & CONNECTION_REPLY)
		F(tell_other)(&entry->value, other, key.protocol, told, now);
	else
		F(tell_last)(&entry->value, other, key.protocol, told, now);
	F(remove)(other, true);
	if (F(remove)(&key, true))
		return; /* another CPU was faster */
	count_outcome(OUTCOME_RECLAIMED);
	if (why == EVENT_UNANSWERED && count_in_window(&scratch->evicted_lately, window) == FLOOD_EVICTS)
		head->flooded = window;
}

/* Both directions, of which none is there. As enter_both(). */
static __always_inline long F(insert)(const struct F(connection_key) *key, const struct F(connection) *e,
				      const struct F(connection_key) *reply_key, const struct F(connection) *reply)
{
	long error = F(enter_both)(key, e, reply_key, reply);
	struct table *head;

	if (error == -E2BIG) {
		head = lookup_index(MAPF(CONNECTION), 0);
		if (head)
			head->full = FULL_ROUNDS;
	}
	return error;
}
