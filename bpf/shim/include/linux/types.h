/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The kernel's own integer types, for headers of bcc and of the UAPI that are compiled with __KERNEL__. */
#ifndef REVPROXY_SHIM_TYPES_H
#define REVPROXY_SHIM_TYPES_H

#include <asm/types.h>
#include <linux/posix_types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef unsigned long uintptr_t;
typedef unsigned long size_t;
typedef _Bool bool;

#define true 1
#define false 0
#define __bitwise
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#ifndef __struct_group
#define __struct_group(TAG, NAME, ATTRS, MEMBERS...) \
	union { \
		struct { MEMBERS } ATTRS; \
		struct TAG { MEMBERS } ATTRS NAME; \
	}
#endif

#endif
