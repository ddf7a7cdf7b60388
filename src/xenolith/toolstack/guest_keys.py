"""The keys of a guest's configuration, declared: what each may be, what it is for, and which field it sets."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any, Final

from xenolith.errors import UserError
from xenolith.toolstack import values
from xenolith.toolstack.disks import disk
from xenolith.toolstack.guest_config import ALL_CPUS, Action
from xenolith.toolstack.nics import nic
from xenolith.toolstack.rights import pci_name, rights
from xenolith.toolstack.settings import Key
from xenolith.toolstack.shares import share

_MAX_CPU: Final = 4095
_CPUS: Final = re.compile(r"(\^?)(nodes?:)?(?:all|([0-9]{1,4})(?:-([0-9]{1,4}))?)")
_CPUS_HINT: Final = "write CPUs as in 0-3,^1 or all"

# -- converters -------------------------------------------------------------------------------------------------------


def _action(value: Any) -> Action:
    word = values.text(value)
    if word not in tuple(Action):
        raise UserError(f"there is no action '{word}'", f"there are {', '.join(Action)}")
    return Action(word)


def _soft_reset_action(value: Any) -> Action:
    """xl's default, soft-reset, is for HVM guests; a PV guest that asks for it is destroyed."""
    return Action.DESTROY if value == "soft-reset" else _action(value)


def _uuid(value: Any) -> uuid.UUID:
    word = values.text(value)
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", word.lower()) is None:
        raise UserError(f"'{word}' is no uuid", "write it as in c0ffee00-0000-4000-8000-000000000001, or leave it out")
    return uuid.UUID(word)


def _affinity(value: Any) -> tuple[int, ...]:
    """Masks of CPUs: one for each item of a list; of a text, the same for every vCPU."""
    if isinstance(value, list):
        return tuple(_cpus(str(item)) for item in value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError('a text such as "0-3,^1", or a list of such, one for each vCPU')
    return (_cpus(str(value)),) * values.MAX_VCPUS


def _cpus(text: str) -> int:
    """The mask that xl's list of CPUs means: words are added, or taken away after ^, from left to right."""
    mask = 0
    for word in filter(None, text.split(",")):
        match = _CPUS.fullmatch(word.strip())
        if match is None:
            raise UserError(f"'{word}' is no range of CPUs", _CPUS_HINT)
        excluded, nodes, first, last = match[1], match[2], match[3], match[4]
        span = ALL_CPUS if first is None else _span(word, int(first), int(last or first))
        if nodes and first is not None:
            if span != 1:
                raise UserError(f"'{word}': the machine has one NUMA node, which is 0", _CPUS_HINT)
            span = ALL_CPUS
        if excluded and first is None:
            raise UserError(f"'{word}' leaves no CPU", _CPUS_HINT)
        mask = mask & ~span if excluded else mask | span
    if not mask:
        raise UserError(f"'{text}' has no CPU in it", _CPUS_HINT)
    return mask


def _span(word: str, first: int, last: int) -> int:
    if not first <= last <= _MAX_CPU:
        raise UserError(f"'{word}' is no range of CPUs", _CPUS_HINT)
    return (1 << last + 1) - (1 << first)


def _type(value: Any) -> str:
    word = values.text(value)
    if word in ("hvm", "pvh"):
        raise UserError(
            f"{word.upper()} guests are not what Xenolith runs", 'write type = "pv" and give it a PV kernel'
        )
    if word not in ("pv", "generic"):
        raise UserError(f"there is no type '{word}' of guests", 'write type = "pv"')
    return word


def _firmware(value: Any) -> str:
    word = values.text(value)
    if word != "pvgrub64":
        raise UserError(f"there is no firmware '{word}' for PV guests", 'write kernel = "grub", or name another kernel')
    return "grub"


def _bootloader(value: Any) -> None:
    raise UserError(
        "bootloaders are not run on the host", 'write kernel = "..." (and ramdisk), or kernel = "grub" to have a menu'
    )


def _located(made: Any, directory: Path) -> Any:
    return made.located(directory)


# -- the keys that there are ------------------------------------------------------------------------------------------

_ACTIONS: Final = ", ".join(Action)


def _pci(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError('a text such as "00:02.0"')
    return pci_name(value)


KEYS: Final[dict[str, Key]] = {
    "name": Key(
        "name", values.name, "text", "the file's", "What verbs call it. No two domains of a machine share one."
    ),
    "kernel": Key(
        "kernel",
        values.text,
        "text",
        "the best that is found",
        "A file, or a name that `xenolith kernels` lists.",
        locate=values.kernel,
    ),
    "ramdisk": Key(
        "ramdisk",
        values.text,
        "file",
        "made by Xenolith",
        "The initramfs. A Linux kernel without one gets busybox and a shell, or what `exec` says; `debian-dom0` is that"
        " with Debian's `xl` and its daemons, which `xenolith pull debian-dom0` brings.",
        locate=values.ramdisk,
    ),
    "cmdline": Key(
        "cmdline",
        values.text,
        "text",
        '""',
        "The kernel's command line; a Linux kernel gets `console=hvc0` in front unless it names a console, and with one"
        " vCPU `noreplace-smp`, which spares it a slow and useless patching of its code.",
    ),
    "exec": Key(
        "command",
        values.text,
        "text",
        "",
        "A shell command for the made ramdisk: it is run, its exit status is reported, and the domain powers off.",
    ),
    "memory": Key("memory", values.size, "memory", "256 MiB", "Between 1 MiB and 1 TiB."),
    "maxmem": Key("maxmem", values.size, "memory", "as `memory`", "The most that `xenolith mem-set` can give it."),
    "vcpus": Key("vcpus", values.vcpus, "number", "1", f"Between 1 and {values.MAX_VCPUS}."),
    "maxvcpus": Key("maxvcpus", values.vcpus, "number", "as `vcpus`", "The most that `xenolith vcpu-set` can give it."),
    "cpus": Key(
        "affinity",
        _affinity,
        "text or list",
        '"all"',
        'The CPUs that it may run on, as in "0-3,^1"; in a list, one text for each vCPU. On Unicorn the machine'
        " has one CPU, on KVM as many as the host, up to 8; who must run elsewhere is refused.",
    ),
    "weight": Key(
        "weight",
        values.weight,
        "number",
        "256",
        "The share of the processor, against the other domains' weights: 1 to 65535.",
    ),
    "cap": Key(
        "cap",
        values.between(0, 65535, "cap"),
        "number",
        "0",
        "The most of a processor that it gets, in percent of one; 0 is no limit.",
    ),
    "disk": Key("disks", disk, "list", "[]", "Its disks, each a text or a table: see [disks](#disks).", True, _located),
    "vif": Key(
        "nics",
        nic,
        "list",
        "[]",
        "Its network devices, each a text or a table: see [networks](#networks).",
        True,
        _located,
    ),
    "p9": Key(
        "shares",
        share,
        "list",
        "[]",
        "Directories of the host that it can mount, each a text or a table: see [shares](#shares).",
        True,
        _located,
    ),
    "pci": Key(
        "pci",
        _pci,
        "list",
        "[]",
        'PCI devices of the machine that it drives, as in "00:02.0": see [pass-through](devices.md#pass-through).',
        True,
    ),
    "uuid": Key("uuid", _uuid, "text", "made anew", "Its identity; MAC addresses that are not given come from it."),
    "on_poweroff": Key("on_poweroff", _action, "action", "destroy", f"When it powers off: {_ACTIONS}."),
    "on_reboot": Key("on_reboot", _action, "action", "restart", "When it reboots."),
    "on_crash": Key("on_crash", _action, "action", "destroy", "When it crashes."),
    "on_watchdog": Key("on_watchdog", _action, "action", "destroy", "When its watchdog bites."),
    "on_soft_reset": Key(
        "on_soft_reset",
        _soft_reset_action,
        "action",
        "destroy",
        "When it asks for a soft reset. xl's `soft-reset` is for HVM guests, and means `destroy`.",
    ),
    "localtime": Key(
        "localtime", values.truth, "truth", "false", "Whether its wall clock shows the local time of the host, not UTC."
    ),
    "rtc_timeoffset": Key(
        "rtc_timeoffset",
        values.between(-(1 << 31), (1 << 31) - 1, "time offset"),
        "number",
        "0",
        "Seconds by which its clock differs.",
    ),
    "capabilities": Key(
        "rights",
        rights,
        "list or table",
        "[]",
        "What it may do beyond its own affairs: see [capabilities](#capabilities).",
    ),
}
"""The keys of a guest, in TOML and in xl.cfg files alike."""

XL_KEYS: Final[dict[str, Key]] = {
    "cpu_weight": Key("weight", values.weight, "number", "256", "The same as `weight`."),
    "root": Key(
        "root", values.text, "text", "", "Puts `root=...` on the command line; without effect beside `cmdline`."
    ),
    "extra": Key("extra", values.text, "text", "", "More of the command line; without effect beside `cmdline`."),
    "firmware": Key("kernel", _firmware, "text", "", '"pvgrub64" is the kernel `grub`.'),
    "type": Key("type", _type, "text", '"pv"', 'Only "pv".'),
    "builder": Key("type", _type, "text", '"generic"', 'Only "generic", which is "pv".'),
    "bootloader": Key("bootloader", _bootloader, "text", "", "An error: name a `kernel` instead."),
}
"""What xl.cfg files say in words of their own."""

_IGNORED: Final = (
    # what is of the host's administration
    "seclabel init_seclabel pool cpus_soft on_suspend nomigrate driver_domain passthrough vnuma claim_mode"
    " max_grant_frames max_maptrack_frames max_grant_version max_event_channels xend_suspend_evtchn_compat"
    " vmtrace_buf_kb bootloader_args bootloader_restrict period slice latency extratime shadow_memory rtc_offset"
    # devices that PV guests of Xenolith do not have
    " vfb vnc vnclisten vncdisplay vncunused vncpasswd sdl opengl display xauthority keymap nographic"
    " pci_power_mgmt pci_msitranslate pci_permissive pci_seize irqs ioports iomem dtdev e820_host"
    " usb usbctrl usbdev usbdevice usbversion vtpm vdispl vsnd vkb vkb_device channel pvcalls vuart device_tree"
    # what is of HVM and PVH guests alone
    " hap oos pae acpi acpi_s3 acpi_s4 acpi_laptop_slate acpi_firmware smbios_firmware apic nx hpet nestedhvm"
    " altp2m altp2mhvm viridian timer_mode tsc_mode vpt_align vpmu cpuid mca_caps msr_relaxed boot bios"
    " bios_path_override hdtype stdvga vga videoram gfx_passthru rdm rdm_mem_boundary serial soundhw vendor_device"
    " xen_platform_pci spice spiceport spicetls_port spicehost spicedisable_ticketing spicepasswd"
    " spiceagent_mouse spicevdagent spice_clipboard_sharing spiceusbredirection spice_image_compression"
    " spice_streaming_video ms_vm_genid mmio_hole mmio_hole_size device_model device_model_version"
    " device_model_override device_model_stubdomain_override device_model_stubdomain_seclabel"
    " device_model_user device_model_args device_model_args_pv device_model_args_hvm stubdomain_memory"
    " stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk dm_restrict pvshim pvshim_path pvshim_cmdline"
    " pvshim_extra gic_version tee"
)
IGNORED_KEYS: Final = frozenset(_IGNORED.split())
"""What xl.cfg files may have and what has no effect here, so that existing files can be used."""
