/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Structures shared by the programs and user space.
 *
 * Every structure that is a map key or a map value is declared here and nowhere else in C.
 * reconciler/kernel/layout.py declares the same as numpy types; at each compilation it appends static
 * assertions on the size of every structure and the offset of every field, so that the two can't drift.
 *
 * Configuration values come in two slots; struct control says which slot packets read. Fields ending in
 * _be are in network byte order, everything else in host order.
 */
#ifndef REVPROXY_TYPES_H
#define REVPROXY_TYPES_H

#define SLOTS 2

/* control[0]: the one word that decides which configuration a packet sees. */
struct control {
	u32 active;     /* 0 or 1: the slot packets read; switching is one 32-bit write */
	u32 generation; /* moves on at every route or neighbour change: drops all cached ways out */
};

/* settings[0]: per slot. */
#define SETTING_FAST_PATH 1u     /* redirect past the stack where the route allows it */
#define SETTING_STATS_EVENTS 2u  /* ring-buffer event per connection opened and closed */

struct settings {
	u32 flags;
	u32 unanswered_sec; /* idle limit while only one side has been heard */
	u32 closing_sec;    /* idle limit after FIN from both sides or RST */
	u16 port_first;     /* source ports towards targets of fullnat proxies */
	u16 port_last;
};

struct settings_slots {
	struct settings slot[SLOTS];
};

/* A destination is one word: what a proxy's default or a source route leads to. */
#define DEST_KIND_SHIFT 28
#define DEST_ID_MASK ((1u << DEST_KIND_SHIFT) - 1)
#define DEST_NONE 0u   /* nothing: a route with it falls through to the default */
#define DEST_TARGET 1u /* id is an index into target */
#define DEST_GROUP 2u  /* id is an index into group */
#define DEST_DENY 3u   /* drop */

/* Listener: (interface, address, protocol, port) -> proxy id per slot, 0 for "no listener". */
struct listener_key4 {
	u32 ifindex;
	__be32 addr_be[1];
	__be16 port_be;
	u8 protocol;
	u8 zero;
};

struct listener_key6 {
	u32 ifindex;
	__be32 addr_be[4];
	__be16 port_be;
	u8 protocol;
	u8 zero;
};

struct listener_slots {
	u32 proxy[SLOTS];
};

/* Proxy: proxy[id]. Id 0 is never used. */
#define PROXY_PRESENT 1u
#define PROXY_ROUTES4 2u /* has IPv4 source routes */
#define PROXY_ROUTES6 4u

#define MODE_DNAT 0
#define MODE_FULLNAT 1

#define BALANCE_MAGLEV 0
#define BALANCE_SOURCE 1
#define BALANCE_RANDOM 2

struct proxy {
	u8 flags;
	u8 mode;
	u8 balance;
	u8 zero;
	u32 idle_sec; /* idle limit of an established connection */
	u32 dest4;    /* where IPv4 clients go that no route names */
	u32 dest6;
};

struct proxy_slots {
	struct proxy slot[SLOTS];
};

/* Source routes: a prefix trie keyed by proxy id and client prefix; prefixlen counts the 32 bits of the id. */
struct route_key4 {
	u32 prefixlen;
	u32 proxy;
	__be32 addr_be[1];
};

struct route_key6 {
	u32 prefixlen;
	u32 proxy;
	__be32 addr_be[4];
};

/* The trie returns the longest match only, so an entry that is absent in one slot carries there what its
 * covering prefix says in that slot's configuration. ROUTE_PRESENT is for user space: packets ignore it. */
#define ROUTE_PRESENT 1u

struct route {
	u32 dest;
	u32 flags;
};

struct route_slots {
	struct route slot[SLOTS];
};

/* Target: target[id], not in slots: a target id stands for one (proxy, address, port) until it is freed,
 * which is when no slot and no connection names it. Id 0 is never used. */
#define TARGET_DRAINED 1u /* no new connections */
/* For user space, from bit TARGET_MISSING_SHIFT on: how many quarters of its weight its health takes from it, 0 to 4. The
 * tables of its groups follow from that. */
#define TARGET_MISSING_SHIFT 1

struct target {
	__be32 addr_be[4];   /* IPv4: the first word */
	__be32 source_be[2][4]; /* this host's address towards it, for fullnat; zero: none. The other place is for the
				   next one, so that no packet sees half of each. */
	__be16 port_be;    /* 0: keep the port the client used */
	u8 family;         /* 4 or 6; 0: free */
	u8 flags;
	u32 proxy;         /* the proxy it belongs to */
	u32 source;        /* which of the two holds */
};

struct target_stats { /* per CPU */
	u64 connections; /* opened */
	u64 packets_forward;
	u64 bytes_forward; /* from the IP header on */
	u64 packets_reverse;
	u64 bytes_reverse;
};

/* Group: group[id] is an inner array of u32: [0] is the table's size n, [1..n] are target ids; then, for user space, what
 * it was made from and a sum over all of that (reconciler/kernel/groups.py). Inner maps are never changed, only
 * exchanged. group_member says which targets with what weight the files asked for. */
struct group_member_key {
	u32 group;
	u32 target;
};

/* Connections: one entry per direction, keyed by the packet as it arrives. */
struct connection_key4 {
	__be32 saddr_be[1];
	__be32 daddr_be[1];
	__be16 sport_be;
	__be16 dport_be;
	u8 protocol;
	u8 zero[3];
};

struct connection_key6 {
	__be32 saddr_be[4];
	__be32 daddr_be[4];
	__be16 sport_be;
	__be16 dport_be;
	u8 protocol;
	u8 zero[3];
};

#define CONNECTION_REPLY 1u   /* this entry is of the direction target -> client */
#define CONNECTION_FULLNAT 2u
#define CONNECTION_RESET 4u   /* its target is dead: what comes is answered with RST; set by user space, TCP only */
#define CONNECTION_TOLD 8u /* its opening was told of by an event, its end was not yet; in both entries */

/* What has been heard; own is of this entry's direction, peer of the other one. */
#define HEARD_ANY 1u
#define HEARD_SYN 2u
#define HEARD_FIN 4u
#define HEARD_RST 8u
#define HEARD_PLAIN 16u /* anything but a SYN or RST: for TCP, the handshake was completed. A RST takes it back. */
#define HEARD_ON 32u /* something plain after a RST, which so was not the end, for all we know (RFC 5961 section 3.2) */

#define OUT_XDP 1u /* the way out takes frames redirected by XDP */
#define OUT_NO_TX 2u /* but none back by the interface they came in by, unless they are redirected as well */

/* When a connection was created: in units of 2^22 ns, 4.2 ms, and the last 32 bits of that, 208 days. Another CPU's clock
 * may be ahead by so many. */
#define CREATED_SHIFT 22
#define CREATED_AHEAD 256

/* The part that does not depend on the address family. With IPv4 the whole value is 64 bytes, and the kernel's entry
 * with it two cache lines. */
struct connection {
	u32 created; /* see created_ns */
	u32 stamp;   /* full NAT: what a client's TCP timestamps differ by where they leave, see stamp.h; 0: nothing */
	u64 last_ns; /* CLOCK_MONOTONIC, coarse */
	u64 packets;
	u64 bytes;
	u16 proxy;
	u16 target;
	u32 idle_sec;
	u8 flags;
	u8 own;
	u8 peer;
	/* The way out, valid while way_generation is the last byte of control's and way_time is less than a second ago:
	 * see way.h. */
	u8 way_generation;
	u16 way;
	u16 way_time;
};

/* way[n]; way[0] is struct way_head instead. */
struct way {
	u64 asked_ns; /* when the routing table said so last */
	u32 ifindex;
	u16 mtu;
	u8 dmac[6];
	u8 smac[6];
	u8 flags;
	u8 left;   /* when XDP left a packet to TC to show, see way.h */
	u32 shown; /* when the kernel last saw a packet go this way, in units of 2^26 ns */
};

struct way_head {
	u32 places; /* of each CPU: from 1 + CPU * places */
	u32 show_after; /* units of 2^26 ns; 0: never */
};

struct connection4 {
	struct connection c;
	/* The packet as it leaves: the reverse of this is the key of the other direction's entry. */
	__be32 saddr_be[1];
	__be32 daddr_be[1];
	__be16 sport_be;
	__be16 dport_be;
	u32 in_ifindex; /* of the answers' direction: the interface they last came in by */
};

struct connection6 {
	struct connection c;
	__be32 saddr_be[4];
	__be32 daddr_be[4];
	__be16 sport_be;
	__be16 dport_be;
	u32 in_ifindex;
};

/* What event_ring takes: one connection opened or closed. Addresses and ports as the client's packets have them, and
 * the target's; of IPv4 the first word. Every record is as long, so that user space reads the ring as an array. */
#define EVENT_OPENED 0
#define EVENT_FIN 1        /* closed: FIN from both sides */
#define EVENT_RST 2        /* reset by either */
#define EVENT_IDLE 3       /* idle for its limit */
#define EVENT_UNANSWERED 4 /* the same before it was established */
#define EVENT_FLUSHED 5    /* by user space, on demand */
#define EVENT_EVICTED 6    /* not established, in a full table */

struct connection_event {
	u64 created_ns; /* CLOCK_MONOTONIC, coarse */
	u64 time_ns;
	u64 packets_forward;
	u64 bytes_forward;
	u64 packets_reverse;
	u64 bytes_reverse;
	u32 proxy;
	u32 target;
	__be32 client_be[4];
	__be32 listen_be[4];
	__be32 target_be[4];
	__be16 client_port_be;
	__be16 listen_port_be;
	__be16 target_port_be;
	u8 kind; /* EVENT_* */
	u8 family;
	u8 protocol;
	u8 zero[7];
};

/* port_turn[n]: how many TCP connections full NAT has begun from an address of ours to a target; n is a hash of the two. */
#define PORT_TURNS 65536

/* The connection table, see table.h. Elements of connection[]: first its head; then each CPU's share, struct table as well;
 * from the head's lines on the blocks' lines, LINES in each; from its first on the blocks. */
#define BLOCK_PLACES 28
#define LINES 32

struct line {
	u64 lock; /* and how many of its entries are in the neighbour */
	u64 tags[BLOCK_PLACES / 4];
};

struct entry4 {
	struct connection_key4 key; /* its last 8 bytes zero: not in use */
	struct connection4 value;
};

struct entry6 {
	struct connection_key6 key;
	struct connection6 value;
};

struct block4 {
	struct entry4 entry[BLOCK_PLACES];
};

struct block6 {
	struct entry6 entry[BLOCK_PLACES];
};

struct table {
	u32 lines;
	u32 first;
	u32 blocks;  /* an even number */
	u32 entries; /* so many it takes */
	u32 batch;   /* so many a CPU takes from the room for its share */
	u32 full;    /* above 0: the table took no entry lately, and each new connection looks for room first */
	u32 flooded; /* the last window in which many that nobody answered made room, see flood.h */
	u32 secret[11];
	u32 zero[14];
	u64 room; /* for so many more, those in the shares not among them; of a share all that counts */
};

/* How far user space's requests are done, see edit4 in revproxy.c. */
#define EDIT_ENTER 0
#define EDIT_REMOVE 1

struct edit_frame {
	u32 done;
	u32 operation;
	u32 error; /* why the next one was not */
	u32 unused;
};

/* syn_line[n], see flood.h: notes of SYNs, 16 bits each; n is a half of a hash. */
#define SYN_LINES 65536
struct syn_line {
	u64 word[8];
};

struct flood_count {
	u32 window;
	u32 number;
};

/* scratch[0], per CPU: what one program leaves for the one it calls, and entries being made, which the stack has no
 * room for. Either family fits. */
struct scratch {
	u64 now;
	u64 tick;    /* when clock_ns was read, in jiffies */
	u64 clock_ns; /* see clock.h */
	u32 active;  /* the slot this packet reads */
	u32 proxy;   /* its listener's */
	u32 replace; /* there is an entry, which is over */
	u32 refused; /* why no target could take it, an outcome */
	u32 hash;
	u32 port_hash;
	u32 target;
	u32 round; /* how many times its ports were looked for in vain */
	struct connection6 fresh;
	struct connection6 reply;
	struct connection_key6 key; /* of whatever is looked up */
	struct connection_key6 client; /* of the packet */
	u64 fib[8]; /* struct bpf_fib_lookup */
	u32 answered; /* ANSWERED_*: of the choice just looked at */
	u32 begun; /* the entries were made for this packet */
	u32 look; /* whether a choice's answers have an entry is looked at before it is taken */
	u32 port_begin; /* full NAT: the first port to try, counted from the first of the range */
	struct flood_count begun_lately; /* SYNs */
	struct flood_count evicted_lately;
};

/* Fragments after the first carry no ports: they are found by what all fragments of a packet share. */
struct fragment_key4 {
	__be32 saddr_be[1];
	__be32 daddr_be[1];
	u32 id;
	u8 protocol;
	u8 zero[3];
};

struct fragment_key6 {
	__be32 saddr_be[4];
	__be32 daddr_be[4];
	u32 id;
	u8 protocol;
	u8 zero[3];
};

struct fragment { /* what only the first one says */
	__be16 sport_be;
	__be16 dport_be;
	u8 protocol;
	u8 zero[3];
};

/* port[n]: what port n can be to us in any slot or live connection: a packet whose ports say neither is
 * foreign and costs two array reads. A superset: clearing a bit is allowed only once nothing uses it. */
#define PORT_LISTEN 1u /* destination port of packets from clients */
#define PORT_TARGET 2u /* source port of packets from targets */

/* device[ifindex]: what a way out can do, what is to be watched for. */
#define DEVICE_XDP_REDIRECT 1u  /* takes frames redirected by XDP */
#define DEVICE_NO_TX 4u /* what XDP sends back by it (XDP_TX) is lost, what it redirects there is not */
#define DEVICE_DROP_LOOPBACK 2u /* what comes in from or to 127.0.0.0/8 is dropped: the stack would take it */

/* hardware[]: see hardware.h. */
#define HARDWARE_PLACES 4096

/* outcome[reason], per CPU. Names are in layout.py. */
#define OUTCOME_COUNT 16
enum outcome {
	OUTCOME_REDIRECT_XDP,     /* forwarded by XDP */
	OUTCOME_REDIRECT_TC,      /* forwarded by TC past the stack */
	OUTCOME_STACK,            /* rewritten, handed to the stack */
	OUTCOME_EGRESS,           /* reply rewritten on its way out of the stack */
	OUTCOME_ICMP,             /* an ICMP error about a connection, translated */
	OUTCOME_DROP_DENIED,      /* a source route says deny */
	OUTCOME_DROP_NO_TARGET,   /* no target can take it */
	OUTCOME_DROP_CONFLICT,    /* its reply would be another live connection's */
	OUTCOME_DROP_NO_PORT,     /* fullnat: every source port tried is taken, or there is no source address */
	OUTCOME_DROP_TABLE_FULL,  /* the connection table took no entry */
	OUTCOME_RECLAIMED,        /* not a packet: entries that were over, removed to make room */
	OUTCOME_DROP_ERROR,       /* a helper failed in mid-rewrite: never expected to move */
	OUTCOME_DROP_LOOPBACK,    /* from or to a loopback address, from the wire */
	OUTCOME_RESET,            /* of a connection to a dead target: answered with RST */
	OUTCOME_EVENT_LOST,       /* not a packet: connections opened or closed that the ring had no room for */
	OUTCOME_DROP_FLOOD,       /* a SYN of a flood in a full table, or one that came amid it: the next one is taken */
};

/* Strings kept for user space: who an id is, what is applied. */
struct proxy_name {
	char name[64];
};

/* blob: content-addressed store of applied files and the manifest, in chunks. */
#define BLOB_CHUNK 4096
struct blob_key {
	u8 digest[16]; /* first half of the SHA-256 of the whole uncompressed blob */
	u32 chunk;
};

struct blob_chunk {
	u32 chunks; /* how many this blob has */
	u32 length; /* bytes used in this one */
	u8 data[BLOB_CHUNK];
};

/* revision[0]: per slot, what is applied. */
struct revision {
	u64 number;
	u64 applied_ns; /* CLOCK_REALTIME */
	u8 manifest[16]; /* digest of the manifest blob; zero: none */
};

struct revision_slots {
	struct revision slot[SLOTS];
};

/* sysctl: what was set and what stood there before. */
struct sysctl_key {
	char name[120];
};

struct sysctl_value {
	char before[60];
	char after[60];
};

#endif
