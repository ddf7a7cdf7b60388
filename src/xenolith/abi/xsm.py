"""xsm_op: security labels, in the form of the Flask module (xsm/flask_op.h)."""

from typing import Final

from xenolith.abi.types import U8, U32, U64, Handle, Struct, Union, layout

XEN_FLASK_INTERFACE_VERSION: Final = 1

# XenFlaskOp.cmd.
FLASK_LOAD: Final = 1
FLASK_GETENFORCE: Final = 2
FLASK_SETENFORCE: Final = 3
FLASK_CONTEXT_TO_SID: Final = 4
FLASK_SID_TO_CONTEXT: Final = 5
FLASK_ACCESS: Final = 6
FLASK_CREATE: Final = 7
FLASK_RELABEL: Final = 8
FLASK_USER: Final = 9
FLASK_POLICYVERS: Final = 10
FLASK_GETBOOL: Final = 11
FLASK_SETBOOL: Final = 12
FLASK_COMMITBOOLS: Final = 13
FLASK_MLS: Final = 14
FLASK_DISABLE: Final = 15
FLASK_GETAVC_THRESHOLD: Final = 16
FLASK_SETAVC_THRESHOLD: Final = 17
FLASK_AVC_HASHSTATS: Final = 18
FLASK_AVC_CACHESTATS: Final = 19
FLASK_MEMBER: Final = 20
FLASK_ADD_OCONTEXT: Final = 21
FLASK_DEL_OCONTEXT: Final = 22
FLASK_GET_PEER_SID: Final = 23
FLASK_RELABEL_DOMAIN: Final = 24
FLASK_DEVICETREE_LABEL: Final = 25


@layout()
class XenFlaskLoad(Struct):
    """Load a policy."""

    buffer: Handle
    size: U32


@layout()
class XenFlaskSetenforce(Struct):
    """Enforce the policy, or only report."""

    enforcing: U32


@layout()
class XenFlaskSidContext(Struct):
    """Translate between a label's number and its text."""

    sid: U32
    size: U32
    context: Handle


@layout()
class XenFlaskAccess(Struct):
    """Ask what a source label may do to a target label."""

    ssid: U32
    tsid: U32
    tclass: U32
    req: U32
    allowed: U32
    audit_allow: U32
    audit_deny: U32
    seqno: U32


@layout()
class XenFlaskTransition(Struct):
    """Compute the label of a new object."""

    ssid: U32
    tsid: U32
    tclass: U32
    newsid: U32


@layout()
class XenFlaskBoolean(Struct):
    """Read or set one of the policy's switches."""

    bool_id: U32
    enforcing: U8
    pending: U8
    new_value: U8
    commit: U8
    size: U32
    name: Handle


@layout()
class XenFlaskSetavcThreshold(Struct):
    """The access cache's threshold."""

    threshold: U32


@layout()
class XenFlaskHashStats(Struct):
    """How well the access cache is spread."""

    entries: U32
    buckets_used: U32
    buckets_total: U32
    max_chain_len: U32


@layout()
class XenFlaskCacheStats(Struct):
    """One processor's hits and misses of the access cache."""

    cpu: U32
    lookups: U32
    hits: U32
    misses: U32
    allocations: U32
    reclaims: U32
    frees: U32


@layout()
class XenFlaskOcontext(Struct):
    """Label a range of interrupts, ports, frames or devices."""

    ocon: U32
    sid: U32
    low: U64
    high: U64


@layout()
class XenFlaskPeersid(Struct):
    """The label at the other end of a port."""

    evtchn: U32
    sid: U32


@layout()
class XenFlaskRelabel(Struct):
    """Give a domain a new label."""

    domid: U32
    sid: U32


@layout()
class XenFlaskDevicetreeLabel(Struct):
    """Label a device-tree node."""

    sid: U32
    length: U32
    path: Handle


@layout()
class XenFlaskOp(Struct):
    """The argument of the call."""

    @layout()
    class U(Union):
        load: XenFlaskLoad
        enforce: XenFlaskSetenforce
        sid_context: XenFlaskSidContext
        access: XenFlaskAccess
        transition: XenFlaskTransition
        boolean: XenFlaskBoolean
        setavc_threshold: XenFlaskSetavcThreshold
        hash_stats: XenFlaskHashStats
        cache_stats: XenFlaskCacheStats
        ocontext: XenFlaskOcontext
        peersid: XenFlaskPeersid
        relabel: XenFlaskRelabel
        devicetree_label: XenFlaskDevicetreeLabel

    cmd: U32
    interface_version: U32
    u: U
