from __future__ import annotations

import struct

import pytest

from tests.unit.loader.elf_maker import Load, Section, make_elf, note, pv_notes
from xenolith.abi import elfnotes
from xenolith.errors import UserError
from xenolith.loader.elf import SHT_NOTE, ElfFile
from xenolith.loader.notes import XenNotes, parse_features, read_notes, show

LEGACY = "GUEST_OS=Old,GUEST_VER=1,XEN_VER=xen-3.0,VIRT_BASE=0x40000000,HYPERCALL_PAGE=0x2,LOADER=generic,BSD_SYMTAB"


def parse(notes: bytes = b"", sections: tuple[Section, ...] = ()) -> XenNotes:
    found = read_notes(ElfFile.parse(make_elf([Load(0, b"x")], notes, sections)))
    assert found is not None
    return found


def test_every_note_gets_its_name_and_its_value() -> None:
    notes = parse(
        pv_notes(
            virt_base=0xFFFF_FFFF_8000_0000,
            entry=0xFFFF_FFFF_8000_1000,
            HYPERCALL_PAGE=0xFFFF_FFFF_8000_2000,
            PADDR_OFFSET=0x1000,
            GUEST_VERSION="2.6",
            PAE_MODE="yes",
            FEATURES="!writable_page_tables|pae_pgdir_above_4gb",
            SUPPORTED_FEATURES=struct.pack("<I", 0x8801),
            BSD_SYMTAB="yes",
            HV_START_LOW=0xFFFF_8000_0000_0000,
            L1_MFN_VALID=struct.pack("<4Q", 1, 1, 3, 2),
            SUSPEND_CANCEL=struct.pack("<I", 1),
            INIT_P2M=0x80_0000_0000,
            MOD_START_PFN=struct.pack("<I", 1),
            PHYS32_ENTRY=0x1000_0850,
        )
    )
    assert (notes.virt_base, notes.entry) == (0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_8000_1000)
    assert (notes.hypercall_page, notes.paddr_offset) == (0xFFFF_FFFF_8000_2000, 0x1000)
    assert (notes.guest_os, notes.guest_version, notes.xen_version) == ("test", "2.6", "xen-3.0")
    assert (notes.loader, notes.pae_mode) == ("generic", "yes")
    assert notes.features_required == {"writable_page_tables"}
    assert notes.features_supported == {
        "writable_page_tables",
        "pae_pgdir_above_4gb",
        "dom0",
        "linux_rsdp_unrestricted",
    }
    assert notes.bsd_symtab
    assert notes.suspend_cancel
    assert notes.mod_start_pfn
    assert (notes.hv_start_low, notes.init_p2m, notes.phys32_entry) == (
        0xFFFF_8000_0000_0000,
        0x80_0000_0000,
        0x1000_0850,
    )
    assert notes.l1_mfn_valid == ((1, 1), (3, 2))
    assert not notes.legacy
    assert not notes.problems
    assert {item.name for item in notes.notes} >= {"ENTRY", "L1_MFN_VALID", "SUPPORTED_FEATURES"}


def test_a_kernel_without_notes_has_none() -> None:
    assert read_notes(ElfFile.parse(make_elf([Load(0, b"x")]))) is None


def test_notes_of_other_owners_do_not_count() -> None:
    assert read_notes(ElfFile.parse(make_elf([Load(0, b"x")], note(1, bytes(8), b"GNU\0")))) is None


def test_note_sections_count_where_there_is_no_note_segment() -> None:
    notes = parse(sections=(Section(".note.Xen", SHT_NOTE, pv_notes(entry=0x77)),))
    assert notes.entry == 0x77


def test_note_segments_come_before_note_sections() -> None:
    notes = parse(pv_notes(entry=1), (Section(".note.Xen", SHT_NOTE, pv_notes(entry=2)),))
    assert notes.entry == 1


def test_the_legacy_string() -> None:
    notes = parse(sections=(Section("__xen_guest", 1, LEGACY.encode() + b"\0junk"),))
    assert notes.legacy
    assert notes.legacy_string == LEGACY
    assert (notes.guest_os, notes.guest_version, notes.xen_version) == ("Old", "1", "xen-3.0")
    assert notes.virt_base == notes.paddr_offset == 0x4000_0000
    # A page number counted from VIRT_BASE, not an address.
    assert notes.hypercall_page == 0x4000_2000
    assert notes.bsd_symtab
    assert notes.entry is None


def test_legacy_offset_and_entry_when_given() -> None:
    text = b"LOADER=generic,VIRT_BASE=0x1000,ELF_PADDR_OFFSET=0x800,VIRT_ENTRY=0x1010,PAE=yes[extended-cr3]\0"
    notes = parse(sections=(Section("__xen_guest", 1, text),))
    assert (notes.paddr_offset, notes.entry, notes.pae_mode) == (0x800, 0x1010, "yes[extended-cr3]")


def test_the_legacy_string_beside_notes_is_shown_but_not_used() -> None:
    notes = parse(pv_notes(virt_base=5), (Section("__xen_guest", 1, LEGACY.encode()),))
    assert notes.virt_base == 5
    assert notes.legacy_string == LEGACY
    assert not notes.legacy


def test_notes_owned_by_a_typing_error_fall_back_to_the_legacy_string() -> None:
    """GNU Mach's notes are owned by the word "name"."""
    broken = Section(".note.Xen", SHT_NOTE, note(elfnotes.XEN_ELFNOTE_ENTRY, bytes(8), b"name\0"))
    assert parse(sections=(broken, Section("__xen_guest", 1, LEGACY.encode()))).legacy


def test_a_legacy_number_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match="VIRT_BASE=soon"):
        parse(sections=(Section("__xen_guest", 1, b"VIRT_BASE=soon"),))


def test_a_note_given_twice_with_two_values_is_a_problem() -> None:
    notes = parse(pv_notes(entry=1) + note(elfnotes.XEN_ELFNOTE_ENTRY, struct.pack("<Q", 2)))
    assert notes.entry == 2
    assert notes.problems == ("the note ENTRY is given twice: 0x1 and then 0x2",)


def test_a_note_given_twice_with_one_value_is_none() -> None:
    assert not parse(pv_notes(entry=1) + note(elfnotes.XEN_ELFNOTE_ENTRY, struct.pack("<Q", 1))).problems


def test_an_unknown_note_is_kept_by_its_number() -> None:
    notes = parse(pv_notes() + note(0x77, b"abc"))
    assert notes.notes[-1].name == "type 0x77"
    assert notes.notes[-1].value == b"abc"


def test_the_last_note_may_overstate_its_length() -> None:
    """GRUB's 32-bit image does."""
    notes = parse(pv_notes() + struct.pack("<3I", 4, 12, elfnotes.XEN_ELFNOTE_PAE_MODE) + b"Xen\0yes\0")
    assert notes.pae_mode == "yes"


def test_a_note_whose_name_is_cut_off_is_refused() -> None:
    with pytest.raises(UserError, match="beyond the end"):
        parse(pv_notes() + struct.pack("<3I", 400, 4, 1) + b"Xen\0")


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="note ENTRY is not a number"):
        parse(note(elfnotes.XEN_ELFNOTE_ENTRY, b"three"))


def test_features() -> None:
    required, supported = parse_features("!writable_page_tables|dom0|from_the_future")
    assert required == {"writable_page_tables"}
    assert supported == {"writable_page_tables", "dom0", "from_the_future"}
    assert parse_features("") == (frozenset(), frozenset())


def test_an_unknown_required_feature_is_refused() -> None:
    with pytest.raises(UserError, match="'from_the_future'"):
        parse_features("!from_the_future")


def test_pvh_only() -> None:
    assert parse(note(elfnotes.XEN_ELFNOTE_PHYS32_ENTRY, struct.pack("<I", 0x100000))).pvh_only
    assert not parse(pv_notes(PHYS32_ENTRY=1)).pvh_only


def test_show() -> None:
    assert show(16) == "0x10"
    assert show("generic") == '"generic"'
    assert show(bytes(range(10))) == "0001020304050607 0809"
