/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A flood of SYNs, in a table that is full: above a rate, the first SYN of a connection is only noted, and the next one,
 * which a client sends a second later (RFC 6298 section 2), makes the entries. Forged senders seldom come back with theirs;
 * those that do cost what any connection does. No include guard: see family.h. */

#ifndef REVPROXY_FLOOD_ONCE
#define REVPROXY_FLOOD_ONCE

/* A window, 17 ms. */
#define FLOOD_WINDOW_SHIFT 24
/* In a window so many that nobody answered have made room on one CPU: a flood, for a second. */
#define FLOOD_EVICTS 1024
#define FLOOD_LASTS 60
/* So many SYNs in a window each CPU takes before it notes them: 122,000 a second. */
#define FLOOD_BEGINS 2048

/* A note is 16 bits: when, in units of 2^29 ns of which the last four bits count, and 12 bits of the connection's hash. The
 * other 16 of that say in which line. A note of the same half second is of the same SYN, for all we know. */
#define NOTE_TIME_SHIFT 29
#define NOTE_HASH_BITS 12
#define NOTES (8 * sizeof(struct syn_line) / 16)
#define EACH_NOTE 0x0001000100010001ULL

#define NOTE_NEW 0
#define NOTE_EARLY 1
#define NOTE_KNOWN 2

/* Four notes at a time: of each, one bit of the sums says whether what is below it was zero. */
static __always_inline u32 find_note(const struct syn_line *line, u16 note)
{
	const u64 hash_ones = EACH_NOTE * ((1 << NOTE_HASH_BITS) - 1), time_ones = EACH_NOTE * 15;
	const u64 bit = EACH_NOTE << NOTE_HASH_BITS;
	u64 known = 0, early = 0;

	for (u32 i = 0; i < sizeof(line->word) / sizeof(line->word[0]); i++) {
		u64 differs = line->word[i] ^ EACH_NOTE * note;
		u64 same = ~((differs & hash_ones) + hash_ones) & bit;
		u64 later = (((differs >> NOTE_HASH_BITS) & time_ones) + time_ones) << (NOTE_HASH_BITS - 4);

		known |= same & later;
		early |= same & ~later;
	}
	return known ? NOTE_KNOWN : early ? NOTE_EARLY : NOTE_NEW;
}

/* Counted for what happens now, from zero on in each window. */
static __always_inline u32 count_in_window(struct flood_count *count, u32 window)
{
	if (count->window != window) {
		count->window = window;
		count->number = 0;
	}
	return ++count->number;
}
#endif

/* Whether this packet, which opens a connection, is to be dropped as one of a flood. */
static __always_inline bool F(is_flood)(const struct F(packet) *p, u64 now)
{
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	u32 window = now >> FLOOD_WINDOW_SHIFT, hash, found, number;
	struct scratch *scratch;
	struct syn_line *line;
	u16 note;

	if (!head || window - head->flooded > FLOOD_LASTS)
		return false;
	scratch = lookup_index(MAP(SCRATCH), 0);
	if (!scratch)
		return false;
	number = count_in_window(&scratch->begun_lately, window);
	if (number <= FLOOD_BEGINS)
		return false;
	hash = F(connection_hash)(&p->key, BALANCE_MAGLEV);
	line = lookup_index(MAP(SYN_LINE), hash >> 16);
	if (!line)
		return false;
	note = hash & ((1 << NOTE_HASH_BITS) - 1);
	note |= !note; /* zero is an empty place */
	note |= (u16)(now >> NOTE_TIME_SHIFT) << NOTE_HASH_BITS;
	found = find_note(line, note);
	if (found == NOTE_NEW)
		((u16 *)line)[number % NOTES] = note;
	return found != NOTE_KNOWN;
}
