"""domctl and sysctl: what CPUID shows of the processor, to whom, as lists of leaves and as Xen's feature words.

Facts are those of Xen 4.17's xen/lib/x86/cpuid.c and public/arch-x86/cpufeatureset.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenolith.abi.domctl import (
    XEN_CPUID_NO_SUBLEAF,
    XEN_DOMCTL_get_cpu_policy,
    XenCpuidLeaf,
    XenDomctlCpuPolicy,
    XenMsrEntry,
)
from xenolith.abi.errno import EINVAL, ENOBUFS, EOPNOTSUPP, XenError
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
from xenolith.hypervisor.hypercalls.table import operation

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
_XEN_LEAF: Final = 0x4000_0000
_CACHE_LEAF: Final = 4
_WITH_SUBLEAVES: Final = frozenset((4, 7, 0xB, 0xD))
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
    leaves.append(XenCpuidLeaf(_XEN_LEAF, XEN_CPUID_NO_SUBLEAF, query(_XEN_LEAF, 0)[0]))
    return leaves + [XenCpuidLeaf(number, XEN_CPUID_NO_SUBLEAF, *query(number, 0)) for number in extended]


def _subleaves(query: Query, number: int) -> list[XenCpuidLeaf]:
    if number not in _WITH_SUBLEAVES:
        return [XenCpuidLeaf(number, XEN_CPUID_NO_SUBLEAF, *query(number, 0))]
    last = query(number, 0)[_A] if number == 7 else 0
    if number == _CACHE_LEAF:
        last = next((cache for cache in range(_MOST_CACHES) if not query(number, cache)[_A] & 0x1F), _MOST_CACHES)
    return [XenCpuidLeaf(number, subleaf, *query(number, subleaf)) for subleaf in range(min(last, _MOST_CACHES) + 1)]


def _copy_out(hv: Hypervisor, caller: Vcpu, query: Query, argument: XenDomctlCpuPolicy | XenSysctlCpuPolicy) -> None:
    """Leaves and registers, as many as there is room for all. Without a list only their number is told."""
    leaves = serialised(query)
    if argument.leaves:
        if argument.nr_leaves < len(leaves):
            raise XenError(ENOBUFS, f"room for {argument.nr_leaves} of {len(leaves)} leaves")
        hv.memory.write(caller, argument.leaves, b"".join(leaf.to_bytes() for leaf in leaves))
    if argument.msrs:
        if argument.nr_msrs < len(_MSRS):
            raise XenError(ENOBUFS, f"room for {argument.nr_msrs} of {len(_MSRS)} registers")
        hv.memory.write(caller, argument.msrs, b"".join(XenMsrEntry(idx=number).to_bytes() for number in _MSRS))
    argument.nr_leaves, argument.nr_msrs = len(leaves), len(_MSRS)


@operation(HYPERVISOR_domctl, XEN_DOMCTL_get_cpu_policy, copy_back=True)
def get_domain_cpu_policy(hv: Hypervisor, caller: Vcpu, domain: Domain, argument: XenDomctlCpuPolicy) -> None:
    """What a domain is shown. Raises XenError: ENOBUFS, EFAULT."""
    _copy_out(hv, caller, hv.cpuid_for(domain).query, argument)


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
