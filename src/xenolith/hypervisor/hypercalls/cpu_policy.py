"""domctl and sysctl: what CPUID shows of the processor, to whom, as lists of leaves and as Xen's feature words.

Facts are those of Xen 4.17's xen/lib/x86/cpuid.c, msr.c and policy.c, and public/arch-x86/cpufeatureset.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_CPUID_NO_SUBLEAF,
    XEN_DOMCTL_get_cpu_policy,
    XEN_DOMCTL_set_cpu_policy,
    XenCpuidLeaf,
    XenDomctlCpuPolicy,
    XenMsrEntry,
)
from xenolith.abi.errno import E2BIG, EEXIST, EINVAL, ENOBUFS, EOPNOTSUPP, EOVERFLOW, ERANGE, XenError
from xenolith.abi.hypercalls import HYPERVISOR_domctl, HYPERVISOR_sysctl
from xenolith.abi.sysctl import (
    XEN_SYSCTL_cpu_featureset_host,
    XEN_SYSCTL_cpu_featureset_hvm,
    XEN_SYSCTL_cpu_featureset_hvm_max,
    XEN_SYSCTL_cpu_featureset_raw,
    XEN_SYSCTL_CPU_LEVELCAP_faulting,
    XEN_SYSCTL_cpu_policy_host,
    XEN_SYSCTL_cpu_policy_hvm_default,
    XEN_SYSCTL_cpu_policy_hvm_max,
    XEN_SYSCTL_cpu_policy_raw,
    XEN_SYSCTL_get_cpu_featureset,
    XEN_SYSCTL_get_cpu_levelling_caps,
    XEN_SYSCTL_get_cpu_policy,
    XenSysctlCpuFeatureset,
    XenSysctlCpuLevellingCaps,
    XenSysctlCpuPolicy,
)
from xenolith.hypervisor.hypercalls.table import Reported, operation

if TYPE_CHECKING:
    from xenolith.hypervisor.domain import Domain
    from xenolith.hypervisor.machine import Hypervisor
    from xenolith.hypervisor.vcpu import Vcpu

Query = Callable[[int, int], tuple[int, int, int, int]]
"""EAX, EBX, ECX and EDX of a leaf and a subleaf."""

_A, _B, _C, _D = range(4)
_FEATURE_WORDS: Final[tuple[tuple[int, int, int] | None, ...]] = (
    (1, 0, _D),
    (1, 0, _C),
    (0x8000_0001, 0, _D),
    (0x8000_0001, 0, _C),
    (0xD, 1, _A),
    (7, 0, _B),
    (7, 0, _C),
    (0x8000_0007, 0, _D),
    (0x8000_0008, 0, _B),
    (7, 0, _D),
    (7, 1, _A),
    (0x8000_0021, 0, _A),
    (7, 1, _B),
    (7, 2, _D),
    (7, 1, _C),
    (7, 1, _D),
    None,
    None,
    (0x8000_0021, 0, _C),
)
"""Leaf, subleaf and register of each word of features; None for those of a register that the processor has not."""

_FIRST_EXTENDED: Final = 0x8000_0000
_MOST_BASIC: Final = 0xD
_MOST_EXTENDED: Final = 0x8000_0021
_XEN_LEAVES: Final = (0x4000_0000, 0x4000_0100)
_CACHE_LEAF, _FEATURE_LEAF, _TOPOLOGY_LEAF, _STATE_LEAF = 4, 7, 0xB, 0xD
_SUBLEAVES: Final = {_CACHE_LEAF: 6, _FEATURE_LEAF: 3, _TOPOLOGY_LEAF: 2, _STATE_LEAF: 63}
"""Leaves with subleaves, and how many Xen keeps of each."""
_MOST_LEAVES: Final = (
    _MOST_BASIC + 1 + sum(_SUBLEAVES.values()) - len(_SUBLEAVES) + len(_XEN_LEAVES) + (_MOST_EXTENDED & 0xFF) + 1
)
"""CPUID_MAX_SERIALISED_LEAVES: the room that tools take for any list."""
_MOST_CACHES: Final = 5
_PLATFORM_INFO: Final = 0xCE
_ARCH_CAPABILITIES: Final = 0x10A
_MSRS: Final = (_PLATFORM_INFO, _ARCH_CAPABILITIES)
"""Of which this processor has none: their value is 0."""


def featureset(query: Query) -> list[int]:
    """Xen's words of features."""
    last = {0: query(0, 0)[0], _FIRST_EXTENDED: query(_FIRST_EXTENDED, 0)[0]}
    return [
        query(word[0], word[1])[word[2]] if word is not None and word[0] <= last[word[0] & _FIRST_EXTENDED] else 0
        for word in _FEATURE_WORDS
    ]


def serialised(query: Query) -> list[XenCpuidLeaf]:
    """The leaves that Xen lists, in its order: basic ones, the first of a hypervisor, extended ones."""
    basic = range(min(query(0, 0)[0], _MOST_BASIC) + 1)
    extended = range(_FIRST_EXTENDED, min(query(_FIRST_EXTENDED, 0)[0], _MOST_EXTENDED) + 1)
    leaves = [leaf for number in basic for leaf in _subleaves(query, number)]
    leaves += [XenCpuidLeaf(leaf, XEN_CPUID_NO_SUBLEAF, query(leaf, 0)[0]) for leaf in _XEN_LEAVES]
    return leaves + [XenCpuidLeaf(number, XEN_CPUID_NO_SUBLEAF, *query(number, 0)) for number in extended]


def _subleaves(query: Query, number: int) -> list[XenCpuidLeaf]:
    if number not in _SUBLEAVES:
        return [XenCpuidLeaf(number, XEN_CPUID_NO_SUBLEAF, *query(number, 0))]
    subleaves = range(min(_last_subleaf(query, number), _SUBLEAVES[number] - 1) + 1)
    return [XenCpuidLeaf(number, subleaf, *query(number, subleaf)) for subleaf in subleaves]


def _last_subleaf(query: Query, number: int) -> int:
    """The last subleaf that there is something to say of; tools make room for just these."""
    if number == _CACHE_LEAF:
        return next((cache for cache in range(_MOST_CACHES) if not query(number, cache)[_A] & 0x1F), _MOST_CACHES)
    if number == _STATE_LEAF:
        user, system = query(number, 0), query(number, 1)
        parts = user[_A] | system[_C] | (user[_D] | system[_D]) << 32
        return max(parts.bit_length() - 1, 1)
    return query(number, 0)[_A] if number == _FEATURE_LEAF else _SUBLEAVES[number] - 1


def _copy_out(hv: Hypervisor, caller: Vcpu, query: Query, argument: XenDomctlCpuPolicy | XenSysctlCpuPolicy) -> None:
    """Leaves and registers, if there is room for all. Without a list only the most that there can be is told."""
    leaves = serialised(query)
    if argument.leaves:
        if argument.nr_leaves < len(leaves):
            raise XenError(ENOBUFS, f"room for {argument.nr_leaves} of {len(leaves)} leaves")
        hv.memory.write(caller, argument.leaves, b"".join(leaf.to_bytes() for leaf in leaves))
    if argument.msrs:
        if argument.nr_msrs < len(_MSRS):
            raise XenError(ENOBUFS, f"room for {argument.nr_msrs} of {len(_MSRS)} registers")
        hv.memory.write(caller, argument.msrs, b"".join(XenMsrEntry(idx=number).to_bytes() for number in _MSRS))
    argument.nr_leaves = len(leaves) if argument.leaves else _MOST_LEAVES
    argument.nr_msrs = len(_MSRS)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_cpu_policy, copy_back=True)
def get_domain_cpu_policy(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlCpuPolicy) -> None:
    """What a domain is shown. Raises XenError: ENOBUFS, EFAULT."""
    _copy_out(hv, caller, hv.cpuid_for(domain).query, argument)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_set_cpu_policy)
def set_cpu_policy(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlCpuPolicy) -> None:
    """Say what a domain that has not run yet is to see of what it could be shown.

    Raises XenError: EINVAL for oneself or what there cannot be, EEXIST for a domain that has run, E2BIG, ERANGE for a
    leaf or register that policies do not have, EOVERFLOW, EFAULT. The argument says which it was.
    """
    if domain is caller.domain:
        raise XenError(EINVAL, "a domain cannot do that to itself")
    if domain.was_started:
        raise XenError(EEXIST, f"domain {domain.domid} has run")
    argument.err_leaf = argument.err_subleaf = argument.err_msr = XEN_CPUID_NO_SUBLEAF
    wanted = domain.cpu_policy | dict(_wanted_leaves(hv, caller, argument))
    _check_registers(hv, caller, argument)
    possible = hv.cpuid_for(domain).possible
    for first in (0, _FIRST_EXTENDED):
        if wanted.get((first, 0), (0,))[0] > possible(first, 0)[0]:
            argument.err_leaf = first
            raise Reported(EINVAL, f"leaves up to {wanted[first, 0][0]:#x} are more than there are")
    domain.cpu_policy = wanted
    hv.forget_cpuid(domain)


def _wanted_leaves(
    hv: Hypervisor, caller: Vcpu, argument: XenDomctlCpuPolicy
) -> Iterator[tuple[tuple[int, int], tuple[int, int, int, int]]]:
    """The leaves of the caller's list, by leaf and subleaf."""
    if argument.nr_leaves > _MOST_LEAVES:
        raise Reported(E2BIG, f"{argument.nr_leaves} leaves")
    size = XenCpuidLeaf.sizeof()
    for index in range(argument.nr_leaves):
        leaf = XenCpuidLeaf.from_bytes(hv.memory.read(caller, argument.leaves + index * size, size))
        count = _SUBLEAVES.get(leaf.leaf)
        is_known = (
            leaf.leaf <= _MOST_BASIC or _FIRST_EXTENDED <= leaf.leaf <= _MOST_EXTENDED or leaf.leaf in _XEN_LEAVES
        )
        if not is_known or (leaf.subleaf != XEN_CPUID_NO_SUBLEAF if count is None else leaf.subleaf >= count):
            argument.err_leaf, argument.err_subleaf = leaf.leaf, leaf.subleaf
            raise Reported(ERANGE, f"there is no leaf {leaf.leaf:#x}, subleaf {leaf.subleaf:#x}")
        yield (leaf.leaf, leaf.subleaf if count is not None else 0), (leaf.a, leaf.b, leaf.c, leaf.d)


def _check_registers(hv: Hypervisor, caller: Vcpu, argument: XenDomctlCpuPolicy) -> None:
    """The processor has none of the features that the policy's registers tell of, so none can be wanted."""
    if argument.nr_msrs > len(_MSRS):
        raise Reported(E2BIG, f"{argument.nr_msrs} registers")
    size = XenMsrEntry.sizeof()
    for index in range(argument.nr_msrs):
        entry = XenMsrEntry.from_bytes(hv.memory.read(caller, argument.msrs + index * size, size))
        argument.err_msr = entry.idx
        if entry.flags:
            raise Reported(EINVAL, f"flags {entry.flags:#x}")
        if entry.idx not in _MSRS:
            raise Reported(ERANGE, f"register {entry.idx:#x}")
        if entry.val >> 32:
            raise Reported(EOVERFLOW, f"{entry.val:#x} for register {entry.idx:#x}")
        if entry.val:
            raise Reported(EINVAL, f"register {entry.idx:#x} cannot be {entry.val:#x}")
    argument.err_msr = XEN_CPUID_NO_SUBLEAF


def _query_of(hv: Hypervisor, caller: Vcpu, real: bool) -> Query:
    """What the processor can do, or what PV domains are shown of it, which is the same for all."""
    return hv.engine.host_cpuid if real else hv.cpuid_for(caller.domain).query


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_get_cpu_policy, copy_back=True)
def get_cpu_policy(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCpuPolicy) -> None:
    """Raises XenError: EINVAL for what is no policy, EOPNOTSUPP for those of HVM domains, ENOBUFS, EFAULT."""
    if argument.index > XEN_SYSCTL_cpu_policy_hvm_default or argument._rsvd:
        raise XenError(EINVAL, f"CPU policy {argument.index}")
    if argument.index in (XEN_SYSCTL_cpu_policy_hvm_max, XEN_SYSCTL_cpu_policy_hvm_default):
        raise XenError(EOPNOTSUPP, "there are no HVM domains")
    real = argument.index in (XEN_SYSCTL_cpu_policy_raw, XEN_SYSCTL_cpu_policy_host)
    _copy_out(hv, caller, _query_of(hv, caller, real), argument)


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_get_cpu_featureset, copy_back=True)
def get_cpu_featureset(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCpuFeatureset) -> None:
    """Words of features; without a list their number.

    Raises XenError: EINVAL, EOPNOTSUPP for those of HVM domains, ENOBUFS, EFAULT.
    """
    if argument.index > XEN_SYSCTL_cpu_featureset_hvm_max:
        raise XenError(EINVAL, f"featureset {argument.index}")
    if argument.index in (XEN_SYSCTL_cpu_featureset_hvm, XEN_SYSCTL_cpu_featureset_hvm_max):
        raise XenError(EOPNOTSUPP, "there are no HVM domains")
    real = argument.index in (XEN_SYSCTL_cpu_featureset_raw, XEN_SYSCTL_cpu_featureset_host)
    words = featureset(_query_of(hv, caller, real))
    if argument.features:
        count = min(argument.nr_features, len(words))
        hv.memory.write(caller, argument.features, b"".join(word.to_bytes(4, "little") for word in words[:count]))
        if count < len(words):
            raise XenError(ENOBUFS, f"room for {count} of {len(words)} words")
    argument.nr_features = len(words)


@operation(HYPERVISOR_sysctl, XEN_SYSCTL_get_cpu_levelling_caps, copy_back=True)
def get_cpu_levelling_caps(hv: Hypervisor, caller: Vcpu, argument: XenSysctlCpuLevellingCaps) -> None:
    """Every CPUID of a guest is intercepted, which is what a processor with faulting lets Xen do."""
    argument.caps = XEN_SYSCTL_CPU_LEVELCAP_faulting
