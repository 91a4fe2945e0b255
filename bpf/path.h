/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet's way: connection known? rewrite and forward. Listener? To the programs in open.h, and then the same. Else
 * leave it alone. No include guard: see family.h. */

/* The proxy that listens for this packet, 0 for none. */
static __always_inline u32 F(listening)(const struct F(packet) *p, u32 active)
{
	struct F(listener_key) key = { .ifindex = p->ifindex, .port_be = p->key.dport_be, .protocol = p->key.protocol };
	struct listener_slots *listener;

	for (int i = 0; i < ADDRESS_WORDS; i++)
		key.addr_be[i] = p->key.daddr_be[i];
	listener = lookup(MAPF(LISTENER), &key);
	return listener ? listener->proxy[active] : 0;
}

/* Whether XDP's verdict for this way is XDP_TX. */
static __always_inline bool F(goes_back)(const struct F(packet) *p, const struct way *out)
{
	return out->ifindex == p->ifindex && !(out->flags & OUT_NO_TX);
}

/* Whether XDP can send this packet on by this way. */
static __always_inline bool F(xdp_finishes)(const struct F(packet) *p, const struct way *out)
{
	return (F(goes_back)(p, out) || (out->flags & OUT_XDP)) && p->length <= out->mtu && p->hop_limit > 1;
}

static __always_inline void F(account)(struct F(connection) *e, const struct F(packet) *p, u64 now, u32 outcome)
{
	if (e->c.last_ns != now)
		e->c.last_ns = now;
	if (outcome != OUTCOME_EGRESS && (e->c.flags & CONNECTION_REPLY) && e->in_ifindex != p->ifindex)
		e->in_ifindex = p->ifindex;
	count_packet(&e->c, p->segments, p->bytes);
	count_outcome(outcome);
	if (p->heard & ~e->c.own)
		F(hear)(e, p->key.protocol, p->heard, now);
}

/* XDP: redirect it, or leave it to TC, untouched or as leave_to_tc has it. */
static __always_inline int F(forward_xdp)(struct xdp_md *ctx, const struct F(packet) *p, struct F(connection) *e,
					  struct settings *settings, struct control *control, u64 now, u32 what)
{
	const struct way *out;
	u32 number;

	if (!(settings->flags & SETTING_FAST_PATH))
		return XDP_PASS;
	number = fresh_way(&e->c, control->generation, now);
	if (!number) {
		bool alone = now - e->c.last_ns >= WAY_ALONE_NS;

		if (F(find_way)(ctx, p, e, lookup_index(MAP(SCRATCH), 0), HOOK_XDP, alone, control->generation, now) !=
		    WAY_CACHED)
			return XDP_PASS;
		number = e->c.way;
	}
	out = way_of(number);
	if (!out || !F(xdp_finishes)(p, out))
		return XDP_PASS;
	if (F(rewrite)(ctx, HOOK_XDP, p, e, out, REWRITE_HOP | what))
		return verdict_drop(HOOK_XDP, OUTCOME_DROP_ERROR);
	F(account)(e, p, now, OUTCOME_REDIRECT_XDP);
	return F(goes_back)(p, out) ? XDP_TX : bpf_redirect(out->ifindex, 0);
}

/* TC ingress: redirect past the stack where that is wanted and can be; else a client's packet goes to the stack
 * with its new destination, and a target's goes there as it is, to be rewritten on its way out (its new source is
 * an address of this host, which the stack would not take from outside). With full NAT both directions have such
 * a source, and go to the stack through lo. So does what the stack has to answer with an ICMP error: elsewhere it does
 * so only on a host that is a router. */
static __always_inline int F(forward_tc)(struct __sk_buff *ctx, const struct F(packet) *p, struct F(connection) *e,
					 struct settings *settings, struct control *control, u64 now)
{
	struct scratch *scratch = 0;
	u32 number, outcome = OUTCOME_REDIRECT_TC, what = REWRITE_HOP;
	const struct way *out = 0;
	bool loopback = false;
	int way = WAY_STACK;

	if (settings->flags & SETTING_FAST_PATH) {
		number = fresh_way(&e->c, control->generation, now);
		if (!number) {
			scratch = lookup_index(MAP(SCRATCH), 0);
			way = F(find_way)(ctx, p, e, scratch, HOOK_TC_INGRESS, true, control->generation, now);
			if (way == WAY_CACHED)
				number = e->c.way;
		}
		out = way_of(number);
		if (out)
			way = p->length <= out->mtu ? WAY_CACHED : WAY_ROUTER;
	}
	if (way != WAY_STACK && p->hop_limit <= 1)
		way = WAY_ROUTER;

	if (way >= WAY_STACK) {
		loopback = F(goes_through_loopback)(e);
		outcome = OUTCOME_STACK;
		what = 0;
		out = 0;
		if ((e->c.flags & CONNECTION_REPLY) && !loopback) {
			if (way == WAY_STACK || p->ifindex == LOOPBACK_IFINDEX)
				return TC_ACT_UNSPEC;
			clear_hardware_addresses(ctx);
			return to_stack_by_loopback();
		}
		loopback |= way == WAY_ROUTER;
		if (loopback)
			what = REWRITE_LOOPBACK;
		if (loopback && p->ifindex == LOOPBACK_IFINDEX) {
			/* From lo to lo: a hop, so that what goes round in circles comes to an end. */
			if (p->hop_limit <= 1)
				return TC_ACT_UNSPEC;
			what |= REWRITE_HOP;
		}
	}
	if (F(rewrite)(ctx, HOOK_TC_INGRESS, p, e, out, what))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	F(account)(e, p, now, outcome);
	if (outcome == OUTCOME_STACK)
		return loopback ? to_stack_by_loopback() : TC_ACT_UNSPEC;
	if (out)
		return bpf_redirect(out->ifindex, 0);
	return scratch ? F(redirect_neighbour)(scratch, p->ifindex) : verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
}

/* Not TCP or UDP with its header: TC has programs for fragments and ICMP errors. */
static __always_inline int F(unusual)(void *ctx, int hook)
{
	void *data = packet_start(ctx, hook), *end = packet_end(ctx, hook);
	u32 place = hook == HOOK_TC_EGRESS ? CALL_EGRESS : 0;

	if (hook == HOOK_XDP)
		return XDP_PASS;
	if (F(is_later_fragment)(data, end))
		call(ctx, hook, place + (FAMILY == 4 ? CALL_FRAGMENT4 : CALL_FRAGMENT6));
	else if (F(is_icmp_error)(data, end))
		call(ctx, hook, place + (FAMILY == 4 ? CALL_ICMP4 : CALL_ICMP6));
	return TC_ACT_UNSPEC;
}

/* Another program goes on with a live connection's packet. */
static __always_inline int F(to_forward)(void *ctx, int hook, u64 now, u32 active)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);

	if (scratch) {
		scratch->now = now;
		scratch->active = active;
		scratch->begun = 0;
		call(ctx, hook, hook == HOOK_XDP ? (FAMILY == 4 ? CALL_XDP_STAMP4 : CALL_XDP_STAMP6) :
						   (FAMILY == 4 ? CALL_FORWARD4 : CALL_FORWARD6));
	}
	return verdict_drop(hook, OUTCOME_DROP_ERROR);
}

/* A live connection's packet: by the way its entry remembers, if that is all there is to it. For everything else there
 * is another program, since the verifier would follow each way of parsing through all of it. */
static __always_inline int F(forward_known)(struct __sk_buff *ctx, const struct F(packet) *p, struct F(connection) *e,
					    struct settings *settings, struct control *control, u64 now, u32 active)
{
	const struct way *out = way_of(fresh_way(&e->c, control->generation, now));

	if ((settings->flags & SETTING_FAST_PATH) && out && p->hop_limit > 1 && p->length <= out->mtu && !e->c.stamp) {
		if (F(rewrite)(ctx, HOOK_TC_INGRESS, p, e, out, REWRITE_HOP))
			return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
		F(account)(e, p, now, OUTCOME_REDIRECT_TC);
		return bpf_redirect(out->ifindex, 0);
	}
	return F(to_forward)(ctx, HOOK_TC_INGRESS, now, active);
}

static __always_inline int F(ingress)(void *ctx, int hook)
{
	struct settings_slots *settings;
	struct table *head;
	struct F(packet) p = {};
	struct scratch *scratch;
	struct F(connection) *e;
	struct control *ctl;
	bool replace = false;
	u32 active, proxy;
	u64 now;

	if (!F(parse)(ctx, hook, &p))
		return F(unusual)(ctx, hook);
	if (hook == HOOK_XDP && (p.partial || is_to_another_host(ctx)))
		return XDP_PASS;
	if (hook != HOOK_XDP && p.fragment)
		F(remember_fragment)(&p);
	ctl = control();
	settings = lookup_index(MAP(SETTINGS), 0);
	if (!ctl || !settings)
		return verdict_pass(hook);
	/* Read once: this packet's configuration. */
	active = *(volatile u32 *)&ctl->active & 1;
	now = clock_ns();
	/* Before the connection is looked up, which costs as much as all else. */
	if (p.opens && F(listening)(&p, active) && F(is_flood)(&p, now))
		return verdict_drop(hook, OUTCOME_DROP_FLOOD);

	e = F(find)(&p.key);
	if (e) {
		/* A SYN on a closing connection is a new one that uses the port again. */
		replace = p.opens && !(e->c.flags & CONNECTION_REPLY) && F(gives_way)(&e->c);
		replace = replace || !F(is_alive)(e, p.key.protocol, now, active);
		/* TC answers those. */
		if (!replace && (e->c.flags & CONNECTION_RESET)) {
			if (hook == HOOK_XDP)
				return XDP_PASS;
			call(ctx, hook, FAMILY == 4 ? CALL_RESET4 : CALL_RESET6);
		}
		/* A program of its own, so that the others' is short. */
		if (!replace && hook == HOOK_XDP && e->c.stamp)
			return F(to_forward)(ctx, hook, now, active);
		if (!replace && hook == HOOK_XDP)
			return F(forward_xdp)(ctx, &p, e, &settings->slot[active], ctl, now, 0);
		if (!replace)
			return F(forward_known)(ctx, &p, e, &settings->slot[active], ctl, now, active);
	}
	proxy = F(listening)(&p, active);
	scratch = lookup_index(MAP(SCRATCH), 0);
	if (!proxy || !scratch || (hook == HOOK_XDP && !(settings->slot[active].flags & SETTING_FAST_PATH)))
		return verdict_pass(hook);
	scratch->now = now;
	scratch->active = active;
	scratch->proxy = proxy;
	scratch->replace = replace;
	scratch->look = replace;
	scratch->round = 0;
	scratch->refused = OUTCOME_DROP_NO_TARGET;
	head = lookup_index(MAPF(CONNECTION), 0);
	if (head && head->full)
		call(ctx, hook, hook == HOOK_XDP ? (FAMILY == 4 ? CALL_XDP_RECLAIM4 : CALL_XDP_RECLAIM6) :
						(FAMILY == 4 ? CALL_RECLAIM4 : CALL_RECLAIM6));
	call(ctx, hook, FAMILY == 4 ? CALL_OPEN4 : CALL_OPEN6);
	return verdict_drop(hook, OUTCOME_DROP_ERROR);
}

/* TC: called by open once the entries are made, and by ingress for what takes more than a look at the entry. */
static __always_inline int F(forward_called)(struct __sk_buff *ctx)
{
	struct scratch *scratch = lookup_index(MAP(SCRATCH), 0);
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	struct control *ctl = control();
	struct F(packet) p = {};
	struct F(connection) *e;

	if (!scratch || !settings || !ctl || !F(parse)(ctx, HOOK_TC_INGRESS, &p))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	e = F(find)(&p.key);
	/* It was there a moment ago, and has made room for another since. */
	if (!e)
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_TABLE_FULL);
	/* Read back from a map, they are anything to the verifier, which else would follow all below for each way of parsing. */
	p.l4_offset = forgotten(&scratch->hash, p.l4_offset);
	p.heard = forgotten(&scratch->hash, p.heard) & (scratch->begun - 1); /* nothing, if the entries say so already */
	p.key.protocol = forgotten(&scratch->hash, p.key.protocol);
	p.opens = forgotten(&scratch->hash, p.opens);
	if (scratch->begun && p.opens && (e->c.flags & CONNECTION_FULLNAT))
		F(begin_stamp)(ctx, HOOK_TC_INGRESS, &p, e, (void *)&scratch->key);
	if (e->c.stamp && F(restamp_skb)(ctx, &p, &e->c))
		return verdict_drop(HOOK_TC_INGRESS, OUTCOME_DROP_ERROR);
	return F(forward_tc)(ctx, &p, e, &settings->slot[scratch->active & 1], ctl, scratch->now);
}

/* TC egress: a target's answer that came through the stack gets the listener's address as its source. Those of full
 * NAT come to this host itself, and are taken at ingress. */
static __always_inline bool F(is_for_egress)(const struct F(connection) *e)
{
	return (e->c.flags & (CONNECTION_REPLY | CONNECTION_FULLNAT)) == CONNECTION_REPLY;
}

static __always_inline int F(egress)(struct __sk_buff *ctx)
{
	struct F(packet) p = {};
	struct F(connection) *e;
	struct control *ctl;
	u64 now;

	if (!F(parse)(ctx, HOOK_TC_EGRESS, &p))
		return F(unusual)(ctx, HOOK_TC_EGRESS);
	if (p.fragment)
		F(remember_fragment)(&p);
	e = F(find)(&p.key);
	if (!e || !F(is_for_egress)(e))
		return TC_ACT_UNSPEC;
	ctl = control();
	now = clock_ns();
	if (!ctl || !F(is_alive)(e, p.key.protocol, now, ctl->active & 1))
		return TC_ACT_UNSPEC;
	if (F(rewrite)(ctx, HOOK_TC_EGRESS, &p, e, 0, 0))
		return verdict_drop(HOOK_TC_EGRESS, OUTCOME_DROP_ERROR);
	F(account)(e, &p, now, OUTCOME_EGRESS);
	return TC_ACT_UNSPEC;
}

/* Called for a packet that may be a fragment after the first. */
static __always_inline int F(follow_fragment)(struct __sk_buff *ctx, int hook)
{
	struct settings_slots *settings = lookup_index(MAP(SETTINGS), 0);
	struct control *ctl = control();
	struct F(fragment_key) key;
	struct F(packet) p = {};
	struct F(connection) *e;
	struct fragment *ports;
	u32 active;
	u64 now;

	F(parse)(ctx, hook, &p);
	if (p.fragment != FRAGMENT_LATER || !settings || !ctl)
		return TC_ACT_UNSPEC;
	F(fragment_key)(&p, &key);
	ports = lookup(MAPF(FRAGMENT), &key);
	if (!ports)
		return TC_ACT_UNSPEC;
	p.key.sport_be = ports->sport_be;
	p.key.dport_be = ports->dport_be;
	p.key.protocol = ports->protocol;
	p.heard = HEARD_ANY | HEARD_PLAIN;
	p.l4_offset = 0;
	active = ctl->active & 1;
	now = clock_ns();
	e = F(find)(&p.key);
	if (!e || !F(is_alive)(e, p.key.protocol, now, active))
		return TC_ACT_UNSPEC;
	if (hook == HOOK_TC_INGRESS)
		return F(forward_tc)(ctx, &p, e, &settings->slot[active], ctl, now);
	if (!F(is_for_egress)(e))
		return TC_ACT_UNSPEC;
	if (F(rewrite)(ctx, hook, &p, e, 0, 0))
		return verdict_drop(hook, OUTCOME_DROP_ERROR);
	F(account)(e, &p, now, OUTCOME_EGRESS);
	return TC_ACT_UNSPEC;
}
