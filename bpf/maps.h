/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps, by number. User space creates them (reconciler/kernel/layout.py says their types and sizes) and puts
 * their file descriptors in place of these numbers when it loads the programs, so compiling needs no privilege. */
#ifndef REVPROXY_MAPS_H
#define REVPROXY_MAPS_H

#define MAP_CONTROL 1
#define MAP_SETTINGS 2
#define MAP_PORT 3
#define MAP_LISTENER4 4
#define MAP_LISTENER6 5
#define MAP_PROXY 6
#define MAP_ROUTE4 7
#define MAP_ROUTE6 8
#define MAP_TARGET 9
#define MAP_TARGET_STATS 10
#define MAP_GROUP 11
#define MAP_GROUP_MEMBER 12
#define MAP_CONNECTION4 13
#define MAP_CONNECTION6 14
#define MAP_DEVICE 15
#define MAP_OUTCOME 16
#define MAP_PROXY_NAME 17
#define MAP_BLOB 18
#define MAP_REVISION 19
#define MAP_SYSCTL 20
#define MAP_SCRATCH 21
#define MAP_FRAGMENT4 24
#define MAP_FRAGMENT6 25
#define MAP_EVENT_RING 26
#define MAP_RETIRED_STATS 27
#define MAP_HARDWARE 30
#define MAP_WAY 31
#define MAP_PORT_TURN 32
#define MAP_SYN_LINE 33
#define MAP_XDP_CALLS 100
#define MAP_TC_CALLS 101
#define MAP_EDIT4 102
#define MAP_EDIT6 103

/* Places in MAP_XDP_CALLS and MAP_TC_CALLS. */
#define CALL_OPEN4 0
#define CALL_OPEN6 1
#define CALL_XDP_RECLAIM4 2
#define CALL_XDP_RECLAIM6 3
#define CALL_XDP_STAMP4 4
#define CALL_XDP_STAMP6 5
#define CALL_XDP_ENTER4 6
#define CALL_XDP_ENTER6 7
#define CALL_FRAGMENT4 2
#define CALL_FRAGMENT6 3
#define CALL_ICMP4 4
#define CALL_ICMP6 5
#define CALL_EGRESS 4 /* added to the four before: their egress versions */
#define CALL_FORWARD4 10
#define CALL_FORWARD6 11
#define CALL_RESET4 12
#define CALL_RESET6 13
#define CALL_RECLAIM4 14
#define CALL_RECLAIM6 15
#define CALL_ENTER4 16
#define CALL_ENTER6 17

/* A number that no file descriptor reaches marks the instruction as one of ours to relocate. */
#define MAP_BASE 0x52500000
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_BASE + MAP_##name))

static __always_inline void *lookup(void *map, const void *key)
{
	return bpf_map_lookup_elem(map, (void *)key);
}

/* For array maps. */
static __always_inline void *lookup_index(void *map, u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

static __always_inline struct control *control(void)
{
	return lookup_index(MAP(CONTROL), 0);
}

#endif
