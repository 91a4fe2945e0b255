/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet's way: connection known? rewrite and forward. Listener? choose, remember, and then the same. Else
 * leave it alone. No include guard: see family.h. */

#ifndef REVPROXY_PATH_ONCE
#define REVPROXY_PATH_ONCE

/* Returned by steps that did not end the packet's way. */
#define GO_ON (-100)

/* How many members of a group are asked before a connection whose reply would be another's is refused. */
#define CHOICES 4
#endif

/* The entries for a new connection to target: fresh is the client's direction. False: the target's answer could
 * not be told from another live connection's. */
static __always_inline bool F(translate)(const struct F(packet) *p, u32 target_id, const struct target *target,
					 struct F(connection) *fresh, u64 now, u32 active)
{
	struct F(connection_key) reply_key;
	struct F(connection) *other;
	bool same = true;

	for (int i = 0; i < ADDRESS_WORDS; i++) {
		fresh->saddr_be[i] = p->key.saddr_be[i];
		fresh->daddr_be[i] = target->addr_be[i];
	}
	fresh->sport_be = p->key.sport_be;
	fresh->dport_be = target->port_be ?: p->key.dport_be;
	fresh->c.target = target_id;
	F(reverse_key)(fresh, p->key.protocol, &reply_key);
	other = lookup(MAPF(CONNECTION), &reply_key);
	if (!other)
		return true;
	/* The same connection once more, or one that is over. */
	for (int i = 0; i < ADDRESS_WORDS; i++)
		same &= other->saddr_be[i] == p->key.daddr_be[i] && other->daddr_be[i] == p->key.saddr_be[i];
	same &= other->sport_be == p->key.dport_be && other->dport_be == p->key.sport_be;
	return same || F(is_closing)(&other->c) || !F(is_alive)(other, p->key.protocol, now, active);
}

/* Fills in fresh for the target this packet's connection goes to. GO_ON, or a verdict. */
static __always_inline int F(choose)(int hook, const struct F(packet) *p, u32 proxy_id, const struct proxy *proxy,
				     struct F(connection) *fresh, u64 now, u32 active)
{
	u32 destination = F(destination)(proxy, proxy_id, &p->key, active);
	u32 kind = destination >> DEST_KIND_SHIFT, id = destination & DEST_ID_MASK;
	u32 hash, refused = OUTCOME_DROP_NO_TARGET;

	if (kind == DEST_DENY)
		return verdict_drop(hook, OUTCOME_DROP_DENIED);
	hash = F(connection_hash)(&p->key, proxy->balance);
	for (u32 i = 0; i < CHOICES; i++) {
		u32 target_id = kind == DEST_GROUP ? group_choose(id, hash + i * 0x9e3779b9) : id;
		struct target *target = lookup_index(MAP(TARGET), target_id);

		if (target && target->family == FAMILY && !(target->flags & TARGET_DRAINED)) {
			if (F(translate)(p, target_id, target, fresh, now, active))
				return GO_ON;
			refused = OUTCOME_DROP_CONFLICT;
		}
		if (kind != DEST_GROUP)
			break;
	}
	return verdict_drop(hook, refused);
}

/* Remembers the connection in both directions. */
static __always_inline bool F(remember)(const struct F(packet) *p, struct F(connection) *fresh,
					struct F(connection) *reply, bool replace)
{
	struct F(connection_key) reply_key;

	__builtin_memset(reply, 0, sizeof(*reply));
	F(reverse_key)(fresh, p->key.protocol, &reply_key);
	for (int i = 0; i < ADDRESS_WORDS; i++) {
		reply->saddr_be[i] = p->key.daddr_be[i];
		reply->daddr_be[i] = p->key.saddr_be[i];
	}
	reply->sport_be = p->key.dport_be;
	reply->dport_be = p->key.sport_be;
	reply->c.created_ns = reply->c.last_ns = fresh->c.created_ns;
	reply->c.proxy = fresh->c.proxy;
	reply->c.target = fresh->c.target;
	reply->c.idle_sec = fresh->c.idle_sec;
	reply->c.flags = CONNECTION_REPLY;
	reply->c.peer = fresh->c.own;
	/* The reply's entry first: who finds the client's finds both. */
	if (bpf_map_update_elem(MAPF(CONNECTION), &reply_key, reply, BPF_ANY))
		return false;
	/* Another CPU may just have done the same: its choice then holds for both. */
	bpf_map_update_elem(MAPF(CONNECTION), (void *)&p->key, fresh, replace ? BPF_ANY : BPF_NOEXIST);
	count_opened(fresh->c.target);
	return true;
}

/* A packet that no live entry knows. GO_ON once there is one, or a verdict. */
static __always_inline int F(open)(void *ctx, int hook, const struct F(packet) *p, bool replace,
				   struct control *control, u32 active, u64 now)
{
	struct F(listener_key) key = { .ifindex = p->ifindex, .port_be = p->key.dport_be, .protocol = p->key.protocol };
	struct F(connection) *fresh, *reply;
	struct scratch *scratch;
	struct listener_slots *listener;
	struct proxy_slots *slots;
	struct proxy *proxy;
	u32 proxy_id;
	int verdict;

	for (int i = 0; i < ADDRESS_WORDS; i++)
		key.addr_be[i] = p->key.daddr_be[i];
	listener = lookup(MAPF(LISTENER), &key);
	if (!listener)
		return verdict_pass(hook);
	proxy_id = listener->proxy[active];
	if (!proxy_id)
		return verdict_pass(hook);
	slots = lookup_index(MAP(PROXY), proxy_id);
	if (!slots)
		return verdict_pass(hook);
	proxy = &slots->slot[active];
	if (!(proxy->flags & PROXY_PRESENT))
		return verdict_pass(hook);

	scratch = lookup_index(MAP(SCRATCH), 0);
	if (!scratch)
		return verdict_pass(hook);
	fresh = (void *)&scratch->fresh;
	reply = (void *)&scratch->reply;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	verdict = F(choose)(hook, p, proxy_id, proxy, fresh, now, active);
	if (verdict != GO_ON)
		return verdict;
	fresh->c.created_ns = fresh->c.last_ns = now;
	fresh->c.proxy = proxy_id;
	fresh->c.idle_sec = proxy->idle_sec;
	fresh->c.own = p->heard;
	if (hook == HOOK_XDP) {
		/* XDP begins only what it can finish; TC does the rest. */
		struct bpf_fib_lookup fib;

		if (F(find_way)(ctx, p, fresh, &fib, control->generation, now) != WAY_CACHED ||
		    !(fresh->c.out_flags & OUT_XDP))
			return XDP_PASS;
	}
	if (!F(remember)(p, fresh, reply, replace))
		return verdict_drop(hook, OUTCOME_DROP_TABLE_FULL);
	return GO_ON;
}

static __always_inline void F(account)(struct F(connection) *e, const struct F(packet) *p, u64 now, u32 outcome)
{
	if ((e->c.own | p->heard) != e->c.own)
		F(hear)(e, p->key.protocol, p->heard);
	if (e->c.last_ns != now)
		e->c.last_ns = now;
	count_packet(&e->c, p->segments, p->bytes);
	count_outcome(outcome);
}

/* XDP: redirect it, or leave it untouched to TC. */
static __always_inline int F(forward_xdp)(struct xdp_md *ctx, const struct F(packet) *p, struct F(connection) *e,
					  struct settings *settings, struct control *control, u64 now)
{
	struct bpf_fib_lookup fib;

	if (!way_is_fresh(&e->c, control->generation, now)) {
		if (!(settings->flags & SETTING_FAST_PATH))
			return XDP_PASS;
		if (F(find_way)(ctx, p, e, &fib, control->generation, now) != WAY_CACHED)
			return XDP_PASS;
	}
	if (!(e->c.out_flags & OUT_XDP) || p->length > e->c.out_mtu || p->hop_limit <= 1)
		return XDP_PASS;
	if (F(rewrite)(ctx, HOOK_XDP, p, e, REWRITE_HOP | REWRITE_MAC))
		return verdict_drop(HOOK_XDP, OUTCOME_DROP_ERROR);
	F(account)(e, p, now, OUTCOME_REDIRECT_XDP);
	if (e->c.out_ifindex == p->ifindex)
		return XDP_TX;
	return bpf_redirect(e->c.out_ifindex, 0);
}

/* TC ingress: redirect past the stack where that is wanted and can be; else a client's packet goes to the stack
 * with its new destination, and a target's goes there as it is, to be rewritten on its way out (its new source is
 * an address of this host, which the stack would not take from outside). */
static __always_inline int F(forward_tc)(struct __sk_buff *ctx, const struct F(packet) *p, struct F(connection) *e,
					 struct settings *settings, struct control *control, u64 now)
{
	struct bpf_fib_lookup fib;
	int way = WAY_CACHED;

	if (!(settings->flags & SETTING_FAST_PATH) || p->hop_limit <= 1)
		way = WAY_STACK;
	else if (!way_is_fresh(&e->c, control->generation, now))
		way = F(find_way)(ctx, p, e, &fib, control->generation, now);
	if (way == WAY_CACHED && p->length > e->c.out_mtu)
		way = WAY_STACK;

	if (way == WAY_STACK) {
		if (e->c.flags & CONNECTION_REPLY)
			return TC_ACT_UNSPEC;
		if (F(rewrite)(ctx, HOOK_TC_INGRESS, p, e, 0))
			return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
		F(account)(e, p, now, OUTCOME_STACK);
		return TC_ACT_UNSPEC;
	}
	if (F(rewrite)(ctx, HOOK_TC_INGRESS, p, e, way == WAY_CACHED ? REWRITE_HOP | REWRITE_MAC : REWRITE_HOP))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	F(account)(e, p, now, OUTCOME_REDIRECT_TC);
	if (way == WAY_NEIGHBOUR)
		return F(redirect_neighbour)(&fib);
	return bpf_redirect(e->c.out_ifindex, 0);
}

static __always_inline int F(ingress)(void *ctx, int hook)
{
	struct F(packet) p = {};
	struct control *ctl;
	struct settings_slots *settings;
	struct F(connection) *e;
	bool replace = false;
	u32 active;
	u64 now;

	if (!F(parse)(ctx, hook, &p))
		return verdict_pass(hook);
	if (hook == HOOK_XDP && p.partial)
		return XDP_PASS;
	ctl = control();
	settings = lookup_index(MAP(SETTINGS), 0);
	if (!ctl || !settings)
		return verdict_pass(hook);
	/* Read once: this packet's configuration. */
	active = (*(volatile u32 *)&ctl->active ^ SLOT_INVERTED) & 1;
	now = bpf_ktime_get_coarse_ns();

	e = lookup(MAPF(CONNECTION), &p.key);
	if (e) {
		/* A SYN on a closing connection is a new one that uses the port again. */
		replace = p.opens && !(e->c.flags & CONNECTION_REPLY) && F(is_closing)(&e->c);
		replace = replace || !F(is_alive)(e, p.key.protocol, now, active);
	}
	if (!e || replace) {
		int verdict;

		if (hook == HOOK_XDP && !(settings->slot[active].flags & SETTING_FAST_PATH))
			return XDP_PASS;
		verdict = F(open)(ctx, hook, &p, replace, ctl, active, now);
		if (verdict != GO_ON)
			return verdict;
		e = lookup(MAPF(CONNECTION), &p.key);
		if (!e)
			return verdict_drop(hook, OUTCOME_DROP_TABLE_FULL);
	}
	if (hook == HOOK_XDP)
		return F(forward_xdp)(ctx, &p, e, &settings->slot[active], ctl, now);
	return F(forward_tc)(ctx, &p, e, &settings->slot[active], ctl, now);
}

/* TC egress: a target's answer that came through the stack gets the listener's address as its source. */
static __always_inline int F(egress)(struct __sk_buff *ctx)
{
	struct F(packet) p = {};
	struct F(connection) *e;
	struct control *ctl;
	u64 now;

	if (!F(parse)(ctx, HOOK_TC_EGRESS, &p))
		return TC_ACT_UNSPEC;
	e = lookup(MAPF(CONNECTION), &p.key);
	if (!e || !(e->c.flags & CONNECTION_REPLY))
		return TC_ACT_UNSPEC;
	ctl = control();
	now = bpf_ktime_get_coarse_ns();
	if (!ctl || !F(is_alive)(e, p.key.protocol, now, (ctl->active ^ SLOT_INVERTED) & 1))
		return TC_ACT_UNSPEC;
	if (F(rewrite)(ctx, HOOK_TC_EGRESS, &p, e, 0))
		return verdict_drop(HOOK_TC_EGRESS, OUTCOME_DROP_ERROR);
	F(account)(e, &p, now, OUTCOME_EGRESS);
	return TC_ACT_UNSPEC;
}
