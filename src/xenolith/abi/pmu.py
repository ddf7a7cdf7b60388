"""xenpmu_op: performance counters (pmu.h)."""

from typing import Final

from xenolith.abi.types import U32, U64, Struct, layout

# xenpmu_op sub-operations, interface version, modes and features.
XENPMU_VER_MAJ: Final = 0
XENPMU_VER_MIN: Final = 1
XENPMU_mode_get: Final = 0
XENPMU_mode_set: Final = 1
XENPMU_feature_get: Final = 2
XENPMU_feature_set: Final = 3
XENPMU_init: Final = 4
XENPMU_finish: Final = 5
XENPMU_lvtpc_set: Final = 6
XENPMU_flush: Final = 7
XENPMU_MODE_OFF: Final = 0
XENPMU_MODE_SELF: Final = 1 << 0
XENPMU_MODE_HV: Final = 1 << 1
XENPMU_MODE_ALL: Final = 1 << 2
XENPMU_FEATURE_INTEL_BTS: Final = 1 << 0
XENPMU_FEATURE_IPC_ONLY: Final = 1 << 1
XENPMU_FEATURE_ARCH_ONLY: Final = 1 << 2


@layout()
class XenPmuParams(Struct):
    """The argument of every sub-operation."""

    @layout()
    class Version(Struct):
        maj: U32
        min: U32

    version: Version
    val: U64
    vcpu: U32
    pad: U32
