/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections opened and closed, told to user space through a ring buffer. The ring is there while somebody wants to
 * know. Nobody is woken: the reader looks by itself, many times a second. No include guard: see family.h. */

/* Whether it was told, or nobody wants to know. False: the ring is full. */
static __always_inline bool F(tell)(const struct F(connection) *client, const struct F(connection) *reply, u8 protocol,
				    u8 kind, u64 now)
{
	void *ring = lookup_index(MAP(EVENT_RING), 0);
	struct connection_event *event;

	if (!ring)
		return true;
	event = bpf_ringbuf_reserve(ring, sizeof(*event), 0);
	if (!event)
		return false;
	event->created_ns = created_ns(client->c.created, now);
	event->time_ns = now;
	event->packets_forward = client->c.packets;
	event->bytes_forward = client->c.bytes;
	event->packets_reverse = reply->c.packets;
	event->bytes_reverse = reply->c.bytes;
	event->proxy = client->c.proxy;
	event->target = client->c.target;
	for (int i = 0; i < 4; i++) {
		event->client_be[i] = i < ADDRESS_WORDS ? reply->daddr_be[i % ADDRESS_WORDS] : 0;
		event->listen_be[i] = i < ADDRESS_WORDS ? reply->saddr_be[i % ADDRESS_WORDS] : 0;
		event->target_be[i] = i < ADDRESS_WORDS ? client->daddr_be[i % ADDRESS_WORDS] : 0;
	}
	event->client_port_be = reply->dport_be;
	event->listen_port_be = reply->sport_be;
	event->target_port_be = client->dport_be;
	event->kind = kind;
	event->family = FAMILY;
	event->protocol = protocol;
	__builtin_memset(event->zero, 0, sizeof(event->zero));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return true;
}

/* A connection whose entries are about to go. */
static __always_inline void F(tell_last)(const struct F(connection) *client, const struct F(connection_key) *reply_key,
					 u8 protocol, u8 kind, u64 now)
{
	struct F(connection) *reply;

	if (!(client->c.flags & CONNECTION_TOLD))
		return;
	reply = F(find)(reply_key);
	if (!reply || !F(tell)(client, reply, protocol, kind, now))
		count_outcome(OUTCOME_EVENT_LOST);
}

/* The same, known by its reply's entry. */
static __always_inline void F(tell_other)(const struct F(connection) *reply, const struct F(connection_key) *client_key,
					  u8 protocol, u8 kind, u64 now)
{
	struct F(connection) *client;

	if (!(reply->c.flags & CONNECTION_TOLD))
		return;
	client = F(find)(client_key);
	if (!client || !F(tell)(client, reply, protocol, kind, now))
		count_outcome(OUTCOME_EVENT_LOST);
}
