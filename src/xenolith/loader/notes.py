"""What a kernel says about itself to Xen: the Xen ELF notes, or the older __xen_guest string, as typed values."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from xenolith.abi import elfnotes, version
from xenolith.errors import UserError
from xenolith.loader.elf import PT_NOTE, SHT_NOTE, ElfFile

NOTE_NAMES: Final = {
    number: name.removeprefix("XEN_ELFNOTE_")
    for name, number in vars(elfnotes).items()
    if name.startswith("XEN_ELFNOTE_") and name != "XEN_ELFNOTE_MAX"
} | {19: "PHYS32_RELOC"}
"""Note type to its name in elfnote.h, without the prefix; PHYS32_RELOC is younger than the headers followed here."""

_STRING_NOTES: Final = frozenset(
    {"INFO", "XEN_VERSION", "GUEST_OS", "GUEST_VERSION", "LOADER", "PAE_MODE", "FEATURES", "BSD_SYMTAB"}
)
_FEATURE_NAMES: Final = {
    number: name.removeprefix("XENFEAT_")
    for name, number in vars(version).items()
    if name.startswith("XENFEAT_") and name != "XENFEAT_NR_SUBMAPS"
}
_LEGACY_SECTION: Final = "__xen_guest"
_LEGACY_NAMES: Final = {
    "GUEST_OS": "GUEST_OS",
    "GUEST_VER": "GUEST_VERSION",
    "GUEST_VERSION": "GUEST_VERSION",
    "XEN_VER": "XEN_VERSION",
    "LOADER": "LOADER",
    "PAE": "PAE_MODE",
    "FEATURES": "FEATURES",
    "BSD_SYMTAB": "BSD_SYMTAB",
    "VIRT_BASE": "VIRT_BASE",
    "VIRT_ENTRY": "ENTRY",
    "ELF_PADDR_OFFSET": "PADDR_OFFSET",
    "HYPERCALL_PAGE": "HYPERCALL_PAGE",
}
"""Key of the __xen_guest string to the note that replaced it (elfnote.h, the LEGACY remarks)."""
_LEGACY_NUMBERS: Final = frozenset({"VIRT_BASE", "ENTRY", "PADDR_OFFSET", "HYPERCALL_PAGE"})
_MAX_NOTES: Final = 4096
_MAX_LEGACY_BYTES: Final = 4096
_PAGE_SHIFT: Final = 12

NoteValue = int | str | bytes


class Note(NamedTuple):
    """One statement of the kernel: its name (elfnote.h without the prefix), its value, and where it was found."""

    name: str
    value: NoteValue
    legacy: bool = False


class XenNotes(NamedTuple):
    """All that a kernel says to Xen. Addresses are virtual unless said otherwise; None means not said.

    `hypercall_page` is a virtual address in both forms (the legacy form counts pages from VIRT_BASE).
    `l1_mfn_valid` holds (mask, value) pairs that recognise non-present L1 entries which carry frame numbers.
    `problems` lists what contradicts itself in the notes, one sentence each.
    """

    notes: tuple[Note, ...] = ()
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    xen_version: str = ""
    guest_os: str = ""
    guest_version: str = ""
    loader: str = ""
    pae_mode: str = ""
    features_required: frozenset[str] = frozenset()
    features_supported: frozenset[str] = frozenset()
    supported_features_note: bool = False
    bsd_symtab: bool = False
    hv_start_low: int | None = None
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()
    suspend_cancel: bool = False
    init_p2m: int | None = None
    mod_start_pfn: bool = False
    phys32_entry: int | None = None
    legacy: bool = False
    legacy_string: str = ""
    problems: tuple[str, ...] = ()

    @property
    def is_linux(self) -> bool:
        """Whether the kernel calls itself Linux."""
        return self.guest_os.startswith("linux")

    @property
    def pvh_only(self) -> bool:
        """Whether the kernel has a PVH entry point and nothing that a PV start needs."""
        pv = (self.entry, self.virt_base, self.hypercall_page)
        return self.phys32_entry is not None and all(value is None for value in pv)


def read_notes(elf: ElfFile) -> XenNotes | None:
    """Collect the Xen notes of a kernel as Xen's own loader does: note segments, else note sections, else __xen_guest.

    None if there are none. UserError if a note is cut off or a required feature has no known name.
    """
    legacy_string = _legacy_string(elf)
    notes = list(_segment_notes(elf)) or list(_section_notes(elf))
    legacy = not notes and bool(legacy_string)
    if legacy:
        notes = list(_legacy_notes(legacy_string))
    if not notes:
        return None
    return _interpret(notes)._replace(legacy=legacy, legacy_string=legacy_string)


def parse_features(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Split a FEATURES string "a|!b" into (required, supported). A required feature is supported as well.

    UserError for a required feature that features.h does not name; an unknown optional one is kept by its name.
    """
    names = [name.strip() for name in text.split("|")]
    required = frozenset(name[1:] for name in names if name.startswith("!"))
    supported = frozenset(name.removeprefix("!") for name in names if name)
    unknown = sorted(required - set(_FEATURE_NAMES.values()))
    if unknown:
        raise UserError(f"the kernel requires the Xen feature '{unknown[0]}', which Xenolith does not know")
    return required, supported


def _segment_notes(elf: ElfFile) -> Iterator[Note]:
    for header in elf.program_headers:
        # Some versions of binutils leave the offset of a note segment at 0: it then says nothing.
        if header.type == PT_NOTE and header.offset:
            yield from _notes_in(elf.segment_data(header))


def _section_notes(elf: ElfFile) -> Iterator[Note]:
    for header in elf.sections:
        if header.type == SHT_NOTE:
            yield from _notes_in(elf.section_data(header))


def _notes_in(data: memoryview) -> Iterator[Note]:
    """The notes owned by "Xen" in one note segment or section: namesz, descsz, type, name, description, padded to 4."""
    offset = 0
    for _ in range(_MAX_NOTES):
        if offset + 12 > len(data):
            return
        namesz, descsz, type_ = struct.unpack_from("<3I", data, offset)
        name_at = offset + 12
        desc_at = name_at + (namesz + 3 & ~3)
        offset = desc_at + (descsz + 3 & ~3)
        if desc_at > len(data):
            raise UserError("an ELF note reaches beyond the end of its segment")
        if bytes(data[name_at : name_at + namesz]).rstrip(b"\0") == b"Xen":
            # GRUB's last note states more bytes than there are: what is there counts.
            yield _decode(type_, bytes(data[desc_at : desc_at + descsz]))
    raise UserError(f"the kernel has more than {_MAX_NOTES} ELF notes")


def _decode(type_: int, description: bytes) -> Note:
    name = NOTE_NAMES.get(type_, f"type {type_:#x}")
    if name in _STRING_NOTES:
        return Note(name, description.split(b"\0")[0].decode("utf-8", "replace"))
    if len(description) in (1, 2, 4, 8):
        return Note(name, int.from_bytes(description, "little"))
    return Note(name, description)


def _legacy_string(elf: ElfFile) -> str:
    section = elf.section(_LEGACY_SECTION)
    if section is None:
        return ""
    data = bytes(elf.section_data(section)[:_MAX_LEGACY_BYTES])
    return data.split(b"\0")[0].decode("utf-8", "replace")


def _legacy_notes(text: str) -> Iterator[Note]:
    """The statements "KEY=VALUE,KEY,…" of a __xen_guest section, under the names of the notes that replaced them."""
    values = dict(_legacy_pair(item) for item in text.split(",") if item)
    base = values.get("VIRT_BASE")
    for name, value in values.items():
        if name == "HYPERCALL_PAGE" and isinstance(value, int):
            value = (value << _PAGE_SHIFT) + (base if isinstance(base, int) else 0)
        yield Note(name, value, legacy=True)
    if isinstance(base, int) and "PADDR_OFFSET" not in values:
        yield Note("PADDR_OFFSET", base, legacy=True)


def _legacy_pair(item: str) -> tuple[str, NoteValue]:
    key, _, text = item.partition("=")
    name = _LEGACY_NAMES.get(key, key)
    if name in _LEGACY_NUMBERS:
        try:
            return name, int(text, 0)
        except ValueError:
            raise UserError(f"the __xen_guest section says {key}={text}, which is not a number") from None
    # The presence of the key alone was the flag in the legacy form.
    return name, "yes" if name == "BSD_SYMTAB" else text


def _interpret(notes: list[Note]) -> XenNotes:
    values, problems = _unique(notes)

    def number(name: str) -> int | None:
        value = values.get(name)
        if value is not None and not isinstance(value, int):
            raise UserError(f"the Xen note {name} is not a number")
        return value

    def string(name: str) -> str:
        value = values.get(name, "")
        return value if isinstance(value, str) else ""

    required, supported = parse_features(string("FEATURES"))
    return XenNotes(
        notes=tuple(notes),
        entry=number("ENTRY"),
        hypercall_page=number("HYPERCALL_PAGE"),
        virt_base=number("VIRT_BASE"),
        paddr_offset=number("PADDR_OFFSET"),
        xen_version=string("XEN_VERSION"),
        guest_os=string("GUEST_OS"),
        guest_version=string("GUEST_VERSION"),
        loader=string("LOADER"),
        pae_mode=string("PAE_MODE"),
        features_required=required,
        features_supported=supported | _feature_set(number("SUPPORTED_FEATURES") or 0),
        supported_features_note="SUPPORTED_FEATURES" in values,
        bsd_symtab=string("BSD_SYMTAB") == "yes",
        hv_start_low=number("HV_START_LOW"),
        l1_mfn_valid=_mask_value_pairs(values.get("L1_MFN_VALID", b"")),
        suspend_cancel=bool(number("SUSPEND_CANCEL")),
        init_p2m=number("INIT_P2M"),
        mod_start_pfn=bool(number("MOD_START_PFN")),
        phys32_entry=number("PHYS32_ENTRY"),
        problems=tuple(problems),
    )


def _unique(notes: Iterable[Note]) -> tuple[dict[str, NoteValue], list[str]]:
    """The last value of each note, as Xen takes it, and a sentence for every note said twice with two meanings."""
    values: dict[str, NoteValue] = {}
    problems = []
    for note in notes:
        if values.get(note.name, note.value) != note.value:
            problems.append(
                f"the note {note.name} is given twice: {show(values[note.name])} and then {show(note.value)}"
            )
        values[note.name] = note.value
    return values, problems


def _feature_set(bits: int) -> frozenset[str]:
    return frozenset(_FEATURE_NAMES.get(bit, f"feature {bit}") for bit in range(32) if bits >> bit & 1)


def _mask_value_pairs(value: NoteValue) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, bytes):
        return ()
    return tuple(struct.iter_unpack("<QQ", value[: len(value) // 16 * 16]))


def show(value: NoteValue) -> str:
    """A note's value for people: hexadecimal numbers, quoted strings, bytes as hexadecimal pairs."""
    if isinstance(value, int):
        return f"{value:#x}"
    return f'"{value}"' if isinstance(value, str) else value.hex(" ", -8)
