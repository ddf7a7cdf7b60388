"""xenolith inspect: what a kernel image says about itself, and whether it can be booted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from xenolith.loader.image import KernelImage


@click.command("inspect")
@click.argument("kernel")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(kernel: str, as_json: bool) -> None:
    """Say what KERNEL (a file or a name that `xenolith kernels` lists) is and whether it boots."""
    from xenolith.cli.terminal import print_json, progress_bar
    from xenolith.loader import kernels

    with progress_bar() as progress:
        image = kernels.find(kernel, progress).image()
    if as_json:
        print_json(_record(image))
    else:
        _print(image)


def _record(image: KernelImage) -> dict[str, Any]:
    """Everything about the image, for programs. Addresses are numbers; a note of raw bytes is a hexadecimal string."""
    notes = image.notes
    return {
        "path": str(image.path),
        "format": image.format,
        "compression": image.compression,
        "version": image.version,
        "bits": image.bits,
        "machine": image.machine,
        "entry": image.entry,
        "virt_base": image.virt_base,
        "segments": [
            {
                "paddr": segment.paddr,
                "vaddr": segment.vaddr,
                "file_bytes": len(segment.data),
                "memory_bytes": segment.memsz,
                "writable": segment.writable,
                "executable": segment.executable,
            }
            for segment in image.segments
        ],
        "notes": [
            {"name": note.name, "value": note.value.hex() if isinstance(note.value, bytes) else note.value}
            for note in (notes.notes if notes else ())
        ],
        "features_required": sorted(notes.features_required) if notes else [],
        "features_supported": sorted(notes.features_supported) if notes else [],
        "xen_guest_section": notes.legacy_string if notes else "",
        "pvh_entry": notes.phys32_entry if notes else None,
        "minimum_mib": _minimum_mib(image),
        "boots": image.verdict.bootable,
        "verdict": image.verdict.sentence,
    }


def _minimum_mib(image: KernelImage) -> int | None:
    """The least memory in MiB with which the image starts, or None if it cannot be started at all."""
    from xenolith.loader.pv import PvSpec, minimum_frames

    return -(-minimum_frames(PvSpec(image, 0)) // 256) if image.verdict.bootable else None


def _print(image: KernelImage) -> None:
    from rich.text import Text

    from xenolith.cli.terminal import console

    out = console()
    verdict = image.verdict

    def line(name: str, value: str, style: str = "") -> None:
        out.print(Text.assemble((f"{name:<14}", "bold"), (value, style)))

    line("file", str(image.path))
    line("format", f"{image.format}, {image.compression}" if image.compression else image.format)
    if image.version:
        line("version", image.version)
    line("processor", f"{image.machine}, {image.bits}-bit ELF")
    line("entry", f"{image.entry:#x}")
    for segment in image.segments:
        rights = f"r{'w' if segment.writable else '-'}{'x' if segment.executable else '-'}"
        line("segment", f"{segment.vaddr:#x}  physical {segment.paddr:#x}  {segment.memsz >> 10} KiB  {rights}")
    _print_notes(image, line)
    minimum = _minimum_mib(image)
    if minimum is not None:
        line("memory", f"at least {minimum} MiB")
    line(
        "boots", "yes: " + verdict.sentence if verdict.bootable else "no: " + verdict.sentence, _style(verdict.bootable)
    )


def _style(bootable: bool) -> str:
    return "green" if bootable else "red"


def _print_notes(image: KernelImage, line: Any) -> None:
    from xenolith.loader.notes import show

    notes = image.notes
    if notes is None:
        line("Xen notes", "none")
        return
    if notes.legacy_string:
        line("__xen_guest", notes.legacy_string)
    for note in notes.notes:
        line("note", f"{note.name:<20}{show(note.value)}")
    line("requires", ", ".join(sorted(notes.features_required)) or "no feature of Xen")
    line("supports", ", ".join(sorted(notes.features_supported)) or "no feature of Xen")
    if notes.phys32_entry is not None:
        line("PVH entry", f"{notes.phys32_entry:#x}")
