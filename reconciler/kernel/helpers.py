"""The kernel's helper functions that ``bpf/`` calls, and the words for a kernel that lacks one."""

from __future__ import annotations

import os
import re
from typing import Final

from reconciler.errors import KernelError
from reconciler.kernel import bpf

OLDEST_KERNEL: Final = "5.15"
XDP, TC = bpf.PROG_TYPE_XDP, bpf.PROG_TYPE_SCHED_CLS

HELPERS: Final = (
    ("bpf_tail_call", 12, (XDP, TC)),
    ("bpf_redirect", 23, (XDP, TC)),
    ("bpf_fib_lookup", 69, (XDP, TC)),
    ("bpf_ktime_get_ns", 5, (XDP, TC)),
    ("bpf_ktime_get_coarse_ns", 160, (XDP, TC)),
    ("bpf_jiffies64", 118, (XDP, TC)),
    ("bpf_get_prandom_u32", 7, (XDP, TC)),
    ("bpf_get_smp_processor_id", 8, (XDP, TC)),
    ("bpf_l4_csum_replace", 11, (TC,)),
    ("bpf_csum_update", 40, (TC,)),
    ("bpf_skb_change_type", 32, (TC,)),
    ("bpf_skb_pull_data", 39, (TC,)),
    ("bpf_redirect_neigh", 152, (TC,)),
    ("bpf_skb_load_bytes", 26, (TC,)),
    ("bpf_skb_change_tail", 38, (TC,)),
    ("bpf_skb_change_head", 43, (TC,)),
    ("bpf_skb_load_bytes_relative", 68, (TC,)),
)
"""Name, number (include/uapi/linux/bpf.h), in which kinds of programs."""

# The verifier's words, by age: "invalid func unknown#160", "unknown func bpf_x#160", "program of this type cannot use
# helper bpf_x#160".
_REFUSED: Final = re.compile(r"(?:(?:invalid|unknown) func|cannot use helper) (\w+)#(\d+)")


def refused_helper(error: KernelError) -> str:
    """The helper that the verifier did not know or allow, empty if that is not what it complained of."""
    found = _REFUSED.search(error.detail)
    if not found:
        return ""
    names = {number: name for name, number, _ in HELPERS}
    return names.get(int(found[2]), found[1] if found[1] != "unknown" else f"number {found[2]}")


def explained(error: KernelError) -> KernelError:
    """The same error, beginning with which helper this kernel lacks where that is the cause."""
    helper = refused_helper(error)
    if not helper:
        return error
    words = f"Linux {os.uname().release} has no helper {helper} for it; Linux {OLDEST_KERNEL} or later is needed"
    return KernelError(error.operation, error.subject, error.errno, f"{words}. The verifier's words:\n{error.detail}")
