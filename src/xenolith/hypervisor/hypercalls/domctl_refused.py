"""domctl: what is not for PV domains, or needs what this machine has not; the errors are those of Xen 4.17."""

from typing import Final

from xenolith.abi import domctl as abi
from xenolith.abi.errno import EINVAL, ENODEV, EOPNOTSUPP
from xenolith.abi.hypercalls import HYPERVISOR_domctl
from xenolith.hypervisor.hypercalls.table import refuse

_HVM: Final = "for HVM domains"
_ARM: Final = "not on x86"
_PSR: Final = "the processor cannot part its caches"
_OLD: Final = "Xen has it no more"

_ANSWERS: Final = (
    (EINVAL, _HVM, abi.XEN_DOMCTL_bind_pt_irq),
    (EINVAL, _HVM, abi.XEN_DOMCTL_debug_op),
    (EINVAL, _HVM, abi.XEN_DOMCTL_gethvmcontext),
    (EINVAL, _HVM, abi.XEN_DOMCTL_gethvmcontext_partial),
    (EINVAL, _HVM, abi.XEN_DOMCTL_sethvmcontext),
    (EINVAL, _HVM, abi.XEN_DOMCTL_soft_reset),
    (EINVAL, _HVM, abi.XEN_DOMCTL_unbind_pt_irq),
    (EINVAL, "no vCPU is traced", abi.XEN_DOMCTL_vmtrace_op),
    (EOPNOTSUPP, _HVM, abi.XEN_DOMCTL_get_paging_mempool_size),
    (EOPNOTSUPP, _HVM, abi.XEN_DOMCTL_ioport_mapping),
    (EOPNOTSUPP, _HVM, abi.XEN_DOMCTL_mem_sharing_op),
    (EOPNOTSUPP, _HVM, abi.XEN_DOMCTL_set_paging_mempool_size),
    (EOPNOTSUPP, _ARM, abi.XEN_DOMCTL_cacheflush),
    (EOPNOTSUPP, _ARM, abi.XEN_DOMCTL_vuart_op),
    (EOPNOTSUPP, _OLD, abi.XEN_DOMCTL_real_mode_area),
    (EOPNOTSUPP, _OLD, abi.XEN_DOMCTL_set_opt_feature),
    (ENODEV, _PSR, abi.XEN_DOMCTL_psr_alloc),
    (ENODEV, _PSR, abi.XEN_DOMCTL_psr_cmt_op),
)

for _error, _reason, _command in _ANSWERS:
    refuse(HYPERVISOR_domctl, _command, _error, _reason)
