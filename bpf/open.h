/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A new connection: choose where it goes, remember it in both directions. Programs of their own, called by what is in
 * path.h. No include guard: see family.h. */

#ifndef REVPROXY_OPEN_ONCE
#define REVPROXY_OPEN_ONCE

/* Returned by steps that did not end the packet's way. */
#define GO_ON (-100)
#define ONCE_MORE (-101)

/* Of scratch: whether the answers to the choice just looked at have an entry. */
#define ANSWERED_NOT 0   /* the answers' key has no entry */
#define ANSWERED 1       /* it has one, of this connection */
#define ANSWERED_OTHER 2 /* of another one, which is over */

/* How many members of a group (dnat) or source ports (fullnat) are tried for a connection whose reply would be
 * another's: so many in each round, which is a program called anew, for the verifier's sake. */
#define CHOICES 4
#define MEMBER_ROUNDS 2
#define PORT_ROUNDS 8

/* Ports are drawn for a time of 2^29 ns, so that a client that was refused draws others when it tries again. */
#define DRAW_SHIFT 29

/* The lesser one, without a branch. */
static __always_inline s64 lesser(s64 x, s64 y)
{
	return y + ((x - y) & ((x - y) >> 63));
}

/* The n-th port to try, counted from the first of the range: in turn those of a range that can be searched through, and
 * of others the first few; then any. */
static __always_inline u32 port_draw(u32 begin, u32 hash, u32 n, u32 ports)
{
	bool in_turn = n < CHOICES || ports <= PORT_ROUNDS * CHOICES;

	return (in_turn ? begin + n : hash3(hash, n, 0, HASH_SEED)) % ports;
}

/* 1 if negative, else 0, without a branch. */
static __always_inline u64 is_negative(s64 x)
{
	return (u64)x >> 63;
}
#endif

/* The port to begin with at a target. With TCP each in its turn, so that one is used again as late as can be: a target may
 * remember for a minute or more who had it before, and then not take a new connection from there (TIME-WAIT, RFC 9293
 * section 3.6.1). With UDP any, which nobody can guess (RFC 6056). Two CPUs may get the same: one of them will find it
 * taken. */
static __always_inline u32 F(port_begin)(const struct F(packet) *p, const struct F(connection) *fresh,
					 struct scratch *scratch)
{
	u32 place = hash3(F(fold_address)(fresh->daddr_be), bpf_ntohs(fresh->dport_be), F(fold_address)(fresh->saddr_be),
			  HASH_SEED);
	u32 *turn = lookup_index(MAP(PORT_TURN), place % PORT_TURNS);
	u32 begin;

	if (!turn || p->key.protocol != IPPROTO_TCP)
		return scratch->port_hash;
	begin = *(volatile u32 *)turn;
	__sync_fetch_and_add(turn, 1);
	return place + begin;
}

/* Zero if this is the key of the answers to what leaves by e. */
static __always_inline u32 F(answers_differ)(const struct F(connection) *e, const struct F(connection_key) *key)
{
	volatile u32 differs; /* else the compiler keeps each word of the key on the stack, and that is full */

	differs = (e->sport_be ^ key->dport_be) | (e->dport_be ^ key->sport_be);
	for (int i = 0; i < ADDRESS_WORDS; i++)
		differs |= (e->saddr_be[i] ^ key->daddr_be[i]) | (e->daddr_be[i] ^ key->saddr_be[i]);
	return differs;
}

/* Whether the answers to what leaves as fresh can be told from those of another live connection. This is looked at once
 * for every choice, and the verifier follows each branch: hence is_closing, is_established and is_alive once more, in
 * arithmetic. */
static __always_inline bool F(is_free)(const struct F(packet) *p, const struct F(connection) *fresh,
				       const struct settings *settings, struct scratch *scratch)
{
	struct F(connection_key) *key = (void *)&scratch->key;
	struct F(connection) *other, *mate;
	u32 both, either, differs;
	s64 limit, idle;
	u64 over;

	F(reverse_key)(fresh, p->key.protocol, key);
	other = F(find)(key);
	scratch->answered = ANSWERED_NOT;
	if (!other)
		return true;
	/* The same connection once more, or one that is closing? */
	differs = F(answers_differ)(other, &p->key);
	both = other->c.own & other->c.peer;
	either = other->c.own | other->c.peer;
	scratch->answered = ANSWERED + (differs != 0);
	over = is_negative((s64)differs - 1) | (either & HEARD_RST) | (both & HEARD_FIN);
	/* Or heard in neither direction for its limit? */
	limit = lesser(other->c.idle_sec, settings->unanswered_sec);
	limit += (other->c.idle_sec - limit) * (s64)(both & (either / HEARD_PLAIN) & HEARD_ANY);
	idle = scratch->now - other->c.last_ns;
	F(reverse_key)(other, p->key.protocol, key);
	mate = F(find)(key);
	if (mate)
		idle = lesser(idle, scratch->now - mate->c.last_ns);
	return (over | is_negative(limit * (s64)NSEC_PER_SEC - idle - 1)) != 0;
}

/* Fills in fresh for the target this packet's connection goes to. GO_ON, or a verdict. What one choice leaves for the
 * next lies in maps, which keeps the verifier's states few. */
static __always_inline int F(choose)(int hook, const struct F(packet) *p, const struct proxy *proxy,
				     const struct settings *settings, struct scratch *scratch, u32 active)
{
	struct F(connection) *fresh = (void *)&scratch->fresh;
	u32 destination = F(destination)(proxy, &p->key, scratch, active);
	u32 kind = destination >> DEST_KIND_SHIFT, id = destination & DEST_ID_MASK;
	bool fullnat = proxy->mode == MODE_FULLNAT;
	u32 ports = (u32)settings->port_last + 1 - settings->port_first;

	if (kind == DEST_DENY)
		return verdict_drop(hook, OUTCOME_DROP_DENIED);
	scratch->hash = F(connection_hash)(&p->key, proxy->balance);
	/* With the client's own port a choice is seldom taken, and entering the answers tells. */
	scratch->look |= fullnat;
	scratch->answered = ANSWERED_NOT;
	scratch->port_hash = hash3(F(connection_hash)(&p->key, BALANCE_MAGLEV), scratch->now >> DRAW_SHIFT, 0, HASH_SEED);
	if (!scratch->round)
		scratch->port_begin = scratch->port_hash;
	for (u32 i = 0; i < CHOICES; i++) {
		u32 source = 0, place, turn = scratch->round * CHOICES + i;
		struct target *target;

		/* fullnat has other ports to try at the same target. */
		scratch->target = id;
		if (kind == DEST_GROUP)
			scratch->target = group_choose(id, scratch->hash + (fullnat ? 0 : turn * 0x9e3779b9));
		target = lookup_index(MAP(TARGET), scratch->target);
		if (!target || target->family != FAMILY || (target->flags & TARGET_DRAINED))
			continue;
		place = *(volatile u32 *)&target->source & 1;
		for (int word = 0; word < ADDRESS_WORDS; word++) {
			fresh->saddr_be[word] = fullnat ? target->source_be[place][word] : p->key.saddr_be[word];
			fresh->daddr_be[word] = target->addr_be[word];
			source |= target->source_be[place][word];
		}
		fresh->dport_be = target->port_be ?: p->key.dport_be;
		fresh->sport_be = p->key.sport_be;
		scratch->refused = OUTCOME_DROP_CONFLICT;
		if (fullnat) {
			scratch->refused = OUTCOME_DROP_NO_PORT;
			if (!source) {
				scratch->round = PORT_ROUNDS;
				break;
			}
			if (!turn)
				scratch->port_begin = F(port_begin)(p, fresh, scratch);
			fresh->sport_be = bpf_htons(settings->port_first + port_draw(scratch->port_begin,
										     scratch->port_hash, turn, ports));
		}
		fresh->c.target = scratch->target;
		if (!scratch->look)
			return GO_ON;
		if (F(is_free)(p, fresh, settings, scratch))
			return GO_ON;
	}
	scratch->round++;
	if (scratch->round < (fullnat ? PORT_ROUNDS : MEMBER_ROUNDS))
		return ONCE_MORE;
	return verdict_drop(hook, scratch->refused);
}

/* Remembers the connection in both directions, in place of before if that is given. GO_ON, ONCE_MORE if its answers have
 * an entry already, or a verdict. */
static __always_inline int F(remember)(int hook, const struct F(connection_key) *key, struct F(connection) *fresh,
				       struct F(connection) *reply, struct F(connection) *before, struct scratch *scratch)
{
	struct F(connection_key) *reply_key = (void *)&scratch->key;
	struct F(connection) *old;
	long error;

	if (before) {
		F(reverse_key)(before, key->protocol, reply_key);
		F(tell_last)(before, reply_key, key->protocol, F(ending)(&before->c), scratch->now);
		F(remove)(reply_key, true);
		F(remove)(key, true);
	}
	/* A connection that is over and whose answers would look the same goes as a whole: a client's entry left of it
	 * would be paired with our reply's. */
	F(reverse_key)(fresh, key->protocol, reply_key);
	old = scratch->answered == ANSWERED_OTHER ? F(find)(reply_key) : 0;
	if (old) {
		F(reverse_key)(old, key->protocol, reply_key);
		F(tell_other)(old, reply_key, key->protocol, F(ending)(&old->c), scratch->now);
		F(remove)(reply_key, true);
		F(reverse_key)(fresh, key->protocol, reply_key);
	}
	__builtin_memset(reply, 0, sizeof(*reply));
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		reply->saddr_be[i] = key->daddr_be[i];
		reply->daddr_be[i] = key->saddr_be[i];
	}
	reply->sport_be = key->dport_be;
	reply->dport_be = key->sport_be;
	reply->c.created = fresh->c.created;
	reply->c.last_ns = fresh->c.last_ns;
	reply->c.proxy = fresh->c.proxy;
	reply->c.target = fresh->c.target;
	reply->c.idle_sec = fresh->c.idle_sec;
	reply->c.flags = CONNECTION_REPLY | fresh->c.flags;
	reply->c.peer = fresh->c.own;
	if (scratch->answered != ANSWERED_NOT)
		F(remove)(reply_key, true);
	error = F(insert)(key, fresh, reply_key, reply);
	if (error == -EADDRINUSE) {
		/* Not looked at, or another CPU was faster. */
		scratch->round += scratch->look;
		scratch->look = 1;
		return scratch->round < MEMBER_ROUNDS ? ONCE_MORE : verdict_drop(hook, scratch->refused);
	}
	/* Another CPU may just have done the same: its choice then holds for both. */
	scratch->begun = !error;
	if (error == -EEXIST)
		return GO_ON;
	if (error)
		return verdict_drop(hook, OUTCOME_DROP_TABLE_FULL);
	count_opened(fresh->c.target);
	fresh->c.packets = fresh->c.bytes = 0; /* as it is told; the entry has them */
	if ((fresh->c.flags & CONNECTION_TOLD) && !F(tell)(fresh, reply, key->protocol, EVENT_OPENED, scratch->now))
		count_outcome(OUTCOME_EVENT_LOST);
	return GO_ON;
}

/* A source that no packet from outside has (RFC 1122 section 3.2.1.3), or that no router passes on (RFC 4291 section
 * 2.5.6): the stack's to judge. */
static __always_inline bool F(is_martian)(const __be32 *addr_be)
{
	u32 first = bpf_ntohl(addr_be[0]);
#if FAMILY == 4
	return first >> 24 == 0 || first >> 24 == 127 || first >> 24 >= 224;
#else
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||
	       (!(first | addr_be[1] | addr_be[2]) && bpf_ntohl(addr_be[3]) <= 1);
#endif
}

/* Chooses what becomes of a packet that no live entry knows. GO_ON, ONCE_MORE, or a verdict. */
static __always_inline int F(begin)(void *ctx, int hook, const struct F(packet) *p, struct scratch *scratch,
				    const struct settings *settings, struct control *control)
{
	struct F(connection) *fresh = (void *)&scratch->fresh;
	u32 active = scratch->active & 1, proxy_id = scratch->proxy;
	u64 now = scratch->now;
	struct proxy_slots *slots = lookup_index(MAP(PROXY), proxy_id);
	struct proxy *proxy;
	int verdict;

	if (!slots || F(is_martian)(p->key.saddr_be))
		return verdict_pass(hook);
	proxy = &slots->slot[active];
	if (!(proxy->flags & PROXY_PRESENT))
		return verdict_pass(hook);

	__builtin_memset(fresh, 0, sizeof(*fresh));
	verdict = F(choose)(hook, p, proxy, settings, scratch, active);
	if (verdict != GO_ON)
		return verdict;
	fresh->c.created = now >> CREATED_SHIFT;
	fresh->c.last_ns = now;
	fresh->c.proxy = proxy_id;
	fresh->c.idle_sec = proxy->idle_sec;
	fresh->c.own = p->heard;
	/* Without a branch, for the verifier's sake. */
	fresh->c.flags = (settings->flags & SETTING_STATS_EVENTS) * (CONNECTION_TOLD / SETTING_STATS_EVENTS);
	if (proxy->mode == MODE_FULLNAT)
		fresh->c.flags |= CONNECTION_FULLNAT;
	if (hook == HOOK_XDP) {
		const struct way *out;

		/* XDP begins only what it can finish; TC does the rest. */
		if (F(find_way)(ctx, p, fresh, scratch, HOOK_XDP, true, control->generation, now) != WAY_CACHED)
			return XDP_PASS;
		out = way_of(fresh->c.way);
		if (!out || !F(xdp_finishes)(p, out))
			return XDP_PASS;
		/* This packet. */
		fresh->c.packets = p->segments;
		fresh->c.bytes = p->bytes;
	}
	return GO_ON;
}

/* XDP: the first packet of a connection, which its entry, made from fresh, counts already. */
static __always_inline int F(forward_begun)(struct xdp_md *ctx, const struct F(packet) *p,
					    const struct F(connection) *fresh, u32 what)
{
	const struct way *out = way_of(fresh->c.way);

	if (!out || F(rewrite)(ctx, HOOK_XDP, p, fresh, out, REWRITE_HOP | what))
		return verdict_drop(HOOK_XDP, OUTCOME_DROP_ERROR);
	count_for_target(&fresh->c, p->segments, p->bytes);
	count_outcome(OUTCOME_REDIRECT_XDP);
	return F(goes_back)(p, out) ? XDP_TX : bpf_redirect(out->ifindex, 0);
}

/* Called by ingress ahead of open, when the table was full. */
static __always_inline int F(make_room)(void *ctx, int hook)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);

	if (scratch)
		F(reclaim)(scratch);
	call(ctx, hook, FAMILY == 4 ? CALL_OPEN4 : CALL_OPEN6);
	return verdict_drop(hook, OUTCOME_DROP_ERROR);
}

/* Called by ingress for a packet to a listener that no live entry knows, and by itself for more ports. */
static __always_inline int F(open)(void *ctx, int hook)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	struct control *ctl = control();
	struct F(packet) p = {};
	int verdict;

	if (!scratch || !settings || !ctl || !F(parse)(ctx, hook, &p))
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	verdict = F(begin)(ctx, hook, &p, scratch, &settings->slot[scratch->active & 1], ctl);
	if (verdict == ONCE_MORE) {
		call(ctx, hook, FAMILY == 4 ? CALL_OPEN4 : CALL_OPEN6);
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	}
	if (verdict != GO_ON)
		return verdict;
	*(struct F(connection_key) *)&scratch->client = p.key;
	call(ctx, hook, hook == HOOK_XDP ? (FAMILY == 4 ? CALL_XDP_ENTER4 : CALL_XDP_ENTER6) :
					   (FAMILY == 4 ? CALL_ENTER4 : CALL_ENTER6));
	return verdict_drop(hook, OUTCOME_DROP_ERROR);
}

/* Called by open, so that the verifier follows this once and not for each way of parsing and each choice. */
static __always_inline int F(enter_called)(void *ctx, int hook)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	struct F(connection_key) *key;
	struct F(connection) *before = 0;
	struct F(packet) p = {};
	int verdict;

	if (!scratch)
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	key = (void *)&scratch->client;
	if (scratch->replace)
		before = F(find)(key);
	verdict = F(remember)(hook, key, (void *)&scratch->fresh, (void *)&scratch->reply, before, scratch);
	if (verdict == ONCE_MORE) {
		call(ctx, hook, FAMILY == 4 ? CALL_OPEN4 : CALL_OPEN6);
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	}
	if (verdict != GO_ON)
		return verdict;
	if (hook != HOOK_XDP) {
		call(ctx, hook, FAMILY == 4 ? CALL_FORWARD4 : CALL_FORWARD6);
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	}
	if (scratch->begun && !(scratch->fresh.c.flags & CONNECTION_FULLNAT)) {
		if (!F(parse)(ctx, hook, &p))
			return verdict_drop(hook, OUTCOME_DROP_ERROR);
		return F(forward_begun)(ctx, &p, (void *)&scratch->fresh, 0);
	}
	call(ctx, hook, FAMILY == 4 ? CALL_XDP_STAMP4 : CALL_XDP_STAMP6);
	return verdict_drop(hook, OUTCOME_DROP_ERROR);
}

/* XDP: called for a connection whose timestamps change; for each that full NAT has begun, and those that another CPU has
 * just begun. */
static __always_inline int F(stamp_called)(struct xdp_md *ctx)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	struct control *ctl = control();
	struct F(connection) *e;
	struct F(packet) p = {};

	if (!scratch || !settings || !ctl || !F(parse)(ctx, HOOK_XDP, &p))
		return verdict_drop(HOOK_XDP, OUTCOME_DROP_ERROR);
	e = F(find)(&p.key);
	if (!e)
		return verdict_drop(HOOK_XDP, OUTCOME_DROP_TABLE_FULL);
	if (scratch->begun) {
		if (p.opens)
			scratch->fresh.c.stamp = F(begin_stamp)(ctx, HOOK_XDP, &p, e, (void *)&scratch->key);
		return F(forward_begun)(ctx, &p, (void *)&scratch->fresh, REWRITE_STAMP);
	}
	return F(forward_xdp)(ctx, &p, e, &settings->slot[scratch->active & 1], ctl, scratch->now, REWRITE_STAMP);
}
