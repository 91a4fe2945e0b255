/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The connection table: a hash of blocks, each a line of tags and the entries that these stand for. An entry is in the
 * block that its key's hash says, its home, or in that one's neighbour. Two to four cache lines are all that finding,
 * entering or removing one touches, where the kernel's hash follows lists and pointers through twice as many.
 *
 * Readers take no lock: a tag leads to an entry, whose key says whether it is the one. The last word of the key is
 * written last, and is zero in a place that is not in use. Whoever enters or removes holds the lock of the key's home, so
 * that no key is there twice; places are taken by compare-and-swap, since neighbours take them too. A reader may still
 * look at an entry that is being removed, as with any hash of the kernel's.
 *
 * reconciler/kernel/blocks.py reads the same. No include guard: see family.h. */

#ifndef REVPROXY_TABLE_ONCE
#define REVPROXY_TABLE_ONCE

#define EACH_LANE 0x0001000100010001ULL
#define TAG_WORDS (BLOCK_PLACES / 4)
#define NO_PLACE 32
/* Loops that seldom go round twice. */
#define NOT_UNROLLED _Pragma("clang loop unroll(disable)")

#define LOCKED 1ULL
#define ABROAD 2ULL /* above: how many entries of this home are in the neighbour */
#define LOCK_TRIES 16
#define CLAIM_TRIES 4

#define ENOENT 2
#define EEXIST 17
#define EBUSY 16
#define E2BIG 7
#define EADDRINUSE 98

/* What was written before is there for whoever sees this. */
static __always_inline void release(u64 *where, u64 what)
{
#ifdef WEAK_ORDER
	__sync_lock_test_and_set(where, what);
#else
	asm volatile("" ::: "memory");
	*(volatile u64 *)where = what;
#endif
}

/* Another CPU holds it for some hundred nanoseconds; unless the machine has taken that CPU away. */
static __always_inline bool lock(u64 *word)
{
	NOT_UNROLLED
	for (u32 i = 0; i < LOCK_TRIES; i++) {
		u64 is = *(volatile u64 *)word;

		if (!(is & LOCKED) && __sync_val_compare_and_swap(word, is, is | LOCKED) == is)
			return true;
	}
	return false;
}

static __always_inline void unlock(u64 *word, u64 more_abroad)
{
	release(word, (*word & ~LOCKED) + more_abroad);
}

/* The places whose tag is this one (in each lane of 16 bits), as a set of bits: place 4 i + n has its in
 * lane n of word i, and is bit 16 n + i. */
static __always_inline u64 places_with(const struct line *line, u64 tag)
{
	const u64 low = EACH_LANE * 0x7fff;
	u64 found = 0;

	for (u32 i = 0; i < TAG_WORDS; i++) {
		u64 differs = *(const volatile u64 *)&line->tags[i] ^ tag;

		/* The upper bit of each lane where nothing differs. */
		found |= (~(((differs & low) + low) | differs) & ~low) >> (15 - i);
	}
	return found;
}

/* The lowest bit of those that are set, which is as many as there are below it. (bcc's compiler has no __builtin_ctzll.) */
static __always_inline u64 first_bit(u64 found)
{
	u64 below = (found & -found) - 1;

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	return (((below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL) * 0x0101010101010101ULL) >> 56;
}

static __always_inline u64 place_of_bit(u64 bit)
{
	return (bit & 15) << 2 | bit >> 4;
}

/* The one whose tag this is: no two of a block have the same. NO_PLACE. */
static __always_inline u64 place_with(const struct line *line, u64 tag)
{
	u64 found = places_with(line, tag * EACH_LANE);

	return found ? place_of_bit(first_bit(found)) : NO_PLACE;
}

/* Takes one that is not in use, for choice the one given. NO_PLACE if all are, or somebody else has that tag. */
static __always_inline u64 claim(struct line *line, u64 tag, u64 choice)
{
	u64 place = choice, unused;

	if (places_with(line, tag * EACH_LANE))
		return NO_PLACE;
	NOT_UNROLLED
	for (u32 i = 0; i < CLAIM_TRIES; i++) {
		u32 shift = 16 * (place & 3);
		u64 *word = &line->tags[place >> 2 & 7], is = *(volatile u64 *)word;

		if (!(is >> shift & 0xffff)) {
			if (__sync_val_compare_and_swap(word, is, is | tag << shift) == is)
				return place;
		}
		unused = places_with(line, 0);
		if (!unused)
			return NO_PLACE;
		place = place_of_bit(first_bit(unused));
	}
	return NO_PLACE;
}

static __always_inline void give_up(struct line *line, u64 place)
{
	__sync_fetch_and_and(&line->tags[place >> 2 & 7], ~(0xffffULL << 16 * (place & 3)));
}
#endif

/* How many more entries the table takes is said in its head; each CPU keeps some of that for itself, so that the head's
 * line need not go from one to the other at each. User space takes from the head. */
static __always_inline bool F(take_room)(struct table *head, bool own)
{
	struct table *share = lookup_index(MAPF(CONNECTION), 1 + bpf_get_smp_processor_id());
	u64 batch = head->batch;

	if (own && share && share->room) {
		share->room--;
		return true;
	}
	if (own && share && batch) {
		if ((s64)__sync_fetch_and_add(&head->room, -batch) >= (s64)batch) {
			share->room = batch - 1;
			return true;
		}
		__sync_fetch_and_add(&head->room, batch);
	}
	if ((s64)__sync_fetch_and_add(&head->room, -1) > 0)
		return true;
	__sync_fetch_and_add(&head->room, 1);
	return false;
}

static __always_inline void F(give_room)(struct table *head, bool own)
{
	struct table *share = lookup_index(MAPF(CONNECTION), 1 + bpf_get_smp_processor_id());
	u64 batch = head->batch, count = 1;

	if (own && share && batch) {
		share->room++;
		if (share->room < 2 * batch)
			return;
		share->room -= batch;
		count = batch;
	}
	__sync_fetch_and_add(&head->room, count);
}

static __always_inline u64 F(last_word)(const struct F(connection_key) *key)
{
	return key->sport_be | (u32)key->dport_be << 16 | (u64)key->protocol << 32;
}

static __always_inline u64 *F(word_of)(struct F(entry) *entry)
{
	return (u64 *)&entry->key.sport_be;
}

/* Of a key: the upper half says which block, the last 16 bits are the tag. Sums of products of the key's words and secret
 * ones (NH, Black et al., UMAC 1999): nobody outside can choose keys that meet. */
static __always_inline u64 F(hash)(const struct table *head, const struct F(connection_key) *key)
{
	const u32 *secret = head->secret;
	u64 sum = ((u64)key->sport_be + secret[0]) * ((u64)key->dport_be + secret[1]) + (u64)key->protocol * secret[2];

	for (u32 i = 0; i < ADDRESS_WORDS; i++)
		sum += ((u64)key->saddr_be[i] + secret[3 + 2 * i]) * ((u64)key->daddr_be[i] + secret[4 + 2 * i]);
	sum ^= sum >> 32;
	return sum * 0x9e3779b97f4a7c15ULL;
}

static __always_inline u32 F(home)(const struct table *head, u64 hash)
{
	return (hash >> 32) * head->blocks >> 32;
}

static __always_inline u64 F(tag)(u64 hash)
{
	u64 tag = hash >> 8 & 0xffff;

	return tag | !tag; /* zero: not in use */
}

/* The place that a key has in its home if nobody was there before. */
static __always_inline u64 F(choice)(u64 hash)
{
	return (hash >> 16 & 0xffff) * BLOCK_PLACES >> 16;
}

static __always_inline u64 F(differs)(const struct F(connection_key) *one, const struct F(connection_key) *other)
{
	u64 differs = (one->sport_be ^ other->sport_be) | (one->dport_be ^ other->dport_be) |
		      (one->protocol ^ other->protocol);

	for (u32 i = 0; i < ADDRESS_WORDS; i++)
		differs |= (one->saddr_be[i] ^ other->saddr_be[i]) | (one->daddr_be[i] ^ other->daddr_be[i]);
	return differs;
}

/* A block's line. */
static __always_inline struct line *F(line)(const struct table *head, u32 block)
{
	struct line *lines = lookup_index(MAPF(CONNECTION), head->lines + block / LINES);

	return lines ? lines + block % LINES : 0;
}

static __always_inline struct F(entry) *F(entry)(const struct table *head, u32 block, u64 place)
{
	struct F(block) *found = lookup_index(MAPF(CONNECTION), head->first + block);

	if (!found || place >= BLOCK_PLACES)
		return 0;
	/* What the compiler kept elsewhere of it before, Linux 6.1 knows no bounds of. */
	asm volatile("if %0 < %1 goto +1\n\t%0 = 0" : "+r"(place) : "i"(BLOCK_PLACES));
	return &found->entry[place];
}

/* Where in the block the key is; NO_PLACE. */
static __always_inline u64 F(place_of)(const struct table *head, const struct line *line, u32 block, u64 tag,
				       const struct F(connection_key) *key)
{
	u64 place = place_with(line, tag);
	const struct F(entry) *entry = F(entry)(head, block, place);

	return entry && !F(differs)(&entry->key, key) ? place : NO_PLACE;
}

/* The entry, 0 if there is none. */
static __always_inline struct F(connection) *F(find)(const struct F(connection_key) *key)
{
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	u64 hash, place, tag, differs;
	struct F(entry) *entry;
	struct line *line;
	u32 block;

	if (!head)
		return 0;
	hash = F(hash)(head, key);
	block = F(home)(head, hash);
	tag = F(tag)(hash);
	line = F(line)(head, block);
	NOT_UNROLLED
	for (u32 i = 0; i < 2; i++) {
		place = F(choice)(hash);
		if (!line || place >= BLOCK_PLACES)
			return 0;
		if (*((const volatile u16 *)line->tags + place) != tag)
			place = place_with(line, tag);
		entry = F(entry)(head, block, place);
		if (entry) {
			differs = F(differs)(&entry->key, key);
			if (!differs) {
#ifdef WEAK_ORDER
				/* Zero is added to it, so that its address comes of its key's words: no CPU reads the rest of
				 * the entry before these. */
				asm volatile("%0 += %1" : "+r"(entry) : "r"(differs));
#endif
				return &entry->value;
			}
		}
		if (*(const volatile u64 *)&line->lock < ABROAD)
			return 0;
		block ^= 1;
		line = F(line)(head, block);
	}
	return 0;
}

/* What a change to the table begins with: the lock of the key's home, and where the key is or can be. */
struct F(spot) {
	struct line *home;
	struct line *in;
	u64 hash;
	u64 place;
	u64 abroad; /* ABROAD if in is the neighbour's */
	u32 block; /* the home's */
};

static __always_inline bool F(go_to)(struct F(spot) *spot, const struct table *head, const struct F(connection_key) *key)
{
	spot->hash = F(hash)(head, key);
	spot->block = F(home)(head, spot->hash);
	spot->place = NO_PLACE;
	spot->abroad = 0;
	spot->in = spot->home = F(line)(head, spot->block);
	return spot->home;
}

/* Its home is locked. Whether it is there. */
static __always_inline bool F(is_there)(struct F(spot) *spot, const struct table *head, const struct F(connection_key) *key)
{
	spot->place = F(place_of)(head, spot->home, spot->block, F(tag)(spot->hash), key);
	if (spot->place >= BLOCK_PLACES && spot->home->lock >= ABROAD) {
		spot->in = F(line)(head, spot->block ^ 1);
		if (!spot->in)
			return false;
		spot->abroad = ABROAD;
		spot->place = F(place_of)(head, spot->in, spot->block ^ 1, F(tag)(spot->hash), key);
	}
	return spot->place < BLOCK_PLACES;
}

/* Its home is locked, and it is not there. */
static __always_inline bool F(claim)(struct F(spot) *spot, const struct table *head)
{
	u64 tag = F(tag)(spot->hash), choice = F(choice)(spot->hash);

	spot->in = spot->home;
	spot->abroad = 0;
	spot->place = claim(spot->in, tag, choice);
	if (spot->place >= BLOCK_PLACES) {
		spot->in = F(line)(head, spot->block ^ 1);
		if (!spot->in)
			return false;
		spot->abroad = ABROAD;
		spot->place = claim(spot->in, tag, choice);
	}
	return spot->place < BLOCK_PLACES;
}

/* Where the entry lies. */
static __always_inline struct F(entry) *F(entry_at)(const struct F(spot) *spot, const struct table *head)
{
	return F(entry)(head, spot->block ^ !!spot->abroad, spot->place);
}

static __always_inline void F(write)(struct F(entry) *entry, const struct F(connection_key) *key,
				     const struct F(connection) *value)
{
	if (!entry)
		return;
	__builtin_memcpy(&entry->value, value, sizeof(*value));
	for (u32 i = 0; i < ADDRESS_WORDS; i++) {
		entry->key.saddr_be[i] = key->saddr_be[i];
		entry->key.daddr_be[i] = key->daddr_be[i];
	}
	release(F(word_of)(entry), F(last_word)(key));
}

/* Has the CPU fetch both cache lines of the entry that it is likely to be, and not wait for them. */
static __always_inline void F(fetch)(const struct F(spot) *spot, const struct table *head)
{
	const struct F(entry) *entry = F(entry)(head, spot->block, F(choice)(spot->hash));
	u64 word;

	if (!entry)
		return;
	word = *(const volatile u64 *)&entry->value;
	word = *(const volatile u64 *)((const u64 *)(entry + 1) - 1);
}

/* Enters both directions of a connection. 0; -EEXIST: the client's is there; -EADDRINUSE: the answers' is; -E2BIG: the
 * table is full; -EBUSY. */
static __always_inline long F(enter_both)(const struct F(connection_key) *key, const struct F(connection) *value,
					  const struct F(connection_key) *reply_key, const struct F(connection) *reply)
{
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	struct F(spot) one, other;
	long error = -E2BIG;
	bool apart;

	if (!head || !F(go_to)(&one, head, key) || !F(go_to)(&other, head, reply_key))
		return -E2BIG;
	F(fetch)(&other, head);
	F(fetch)(&one, head);
	apart = one.block != other.block;
	if (!lock(&one.home->lock))
		return -EBUSY;
	if (apart && !lock(&other.home->lock)) {
		unlock(&one.home->lock, 0);
		return -EBUSY;
	}
	if (F(is_there)(&one, head, key)) {
		error = -EEXIST;
		one.abroad = 0;
		goto out;
	}
	if (F(is_there)(&other, head, reply_key)) {
		error = -EADDRINUSE;
		one.abroad = other.abroad = 0;
		goto out;
	}
	other.abroad = one.abroad = 0;
	if (!F(take_room)(head, true))
		goto out;
	if (!F(take_room)(head, true)) {
		F(give_room)(head, true);
		goto out;
	}
	if (!F(claim)(&one, head)) {
		one.abroad = 0;
		goto no_place;
	}
	if (!F(claim)(&other, head)) {
		other.abroad = one.abroad = 0;
		give_up(one.in, one.place);
		goto no_place;
	}
	/* The reply's first: who finds the client's finds both. */
	F(write)(F(entry_at)(&other, head), reply_key, reply);
	F(write)(F(entry_at)(&one, head), key, value);
	error = 0;
	goto out;
no_place:
	F(give_room)(head, true);
	F(give_room)(head, true);
out:
	if (apart)
		unlock(&other.home->lock, other.abroad);
	unlock(&one.home->lock, one.abroad + (apart ? 0 : other.abroad));
	return error;
}

/* Enters one, or writes over it. 0, -E2BIG or -EBUSY. */
static __always_inline long F(enter)(const struct F(connection_key) *key, const struct F(connection) *value)
{
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	u64 more_abroad = 0;
	struct F(spot) spot;
	long error = 0;

	if (!head || !F(go_to)(&spot, head, key))
		return -E2BIG;
	if (!lock(&spot.home->lock))
		return -EBUSY;
	if (!F(is_there)(&spot, head, key)) {
		if (!F(take_room)(head, false)) {
			error = -E2BIG;
		} else if (!F(claim)(&spot, head)) {
			F(give_room)(head, false);
			error = -E2BIG;
		} else {
			more_abroad = spot.abroad;
		}
	}
	if (!error)
		F(write)(F(entry_at)(&spot, head), key, value);
	unlock(&spot.home->lock, more_abroad);
	return error;
}

/* 0, -ENOENT or -EBUSY. */
static __always_inline long F(remove)(const struct F(connection_key) *key, bool own)
{
	struct table *head = lookup_index(MAPF(CONNECTION), 0);
	struct F(entry) *entry;
	struct F(spot) spot;
	bool there;

	if (!head || !F(go_to)(&spot, head, key))
		return -ENOENT;
	if (!lock(&spot.home->lock))
		return -EBUSY;
	there = F(is_there)(&spot, head, key);
	if (there) {
		entry = F(entry_at)(&spot, head);
		if (entry)
			release(F(word_of)(entry), 0);
		give_up(spot.in, spot.place);
		F(give_room)(head, own);
	}
	unlock(&spot.home->lock, there ? -spot.abroad : 0);
	return there ? 0 : -ENOENT;
}

/* An entry of a block that chance has chosen, 0 if nobody is there. */
static __always_inline struct F(entry) *F(any)(const struct table *head)
{
	u32 random = bpf_get_prandom_u32(), block = (u64)random * head->blocks >> 32;
	struct line *line = F(line)(head, block);
	u64 used, from;

	if (!line)
		return 0;
	used = places_with(line, 0) ^ EACH_LANE * ((1 << TAG_WORDS) - 1);
	/* From the bit of any place on: between the lanes there are bits of none. */
	from = used & ~0ULL << (16 * (random & 3) + ((random >> 2 & 0xff) * TAG_WORDS >> 8));
	return used ? F(entry)(head, block, place_of_bit(first_bit(from ?: used))) : 0;
}
