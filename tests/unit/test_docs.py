"""The documents agree with the code, and the programs that write them do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import abi_coverage, cli_reference, compare_dom0_log, guest_reference
from tools.dom0_log_reasons import Reason
from xenolith.abi.errno import ENODEV, XenError
from xenolith.cli.main import VERBS
from xenolith.toolstack import disks, nics, shares
from xenolith.toolstack.config import DEFAULT_CONTROL_MEMORY, control_domain
from xenolith.toolstack.description import DOMAIN_KEYS, MACHINE_KEYS, load
from xenolith.toolstack.guest_keys import KEYS
from xenolith.toolstack.presets import PRESETS, preset
from xenolith.toolstack.settings import Key

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def test_the_coverage_page_is_fresh() -> None:
    assert (DOCS / "abi-coverage.md").read_text() == abi_coverage.document() + "\n", "run `make docs`"


def test_the_command_line_page_is_fresh() -> None:
    assert (DOCS / "cli.md").read_text() == cli_reference.document(), "run `make docs`"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_section_with_its_options(verb: str) -> None:
    page = cli_reference.document()
    section = page.split(f"## xenolith {verb}\n")[1].split("\n## ")[0]
    assert f"    xenolith {verb} " in section
    assert "--help" not in section
    if verb in ("boot", "run"):
        assert "| `--memory SIZE` |" in section


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"`(?:src/)?((?:xenolith/)?[a-z_0-9]+(?:/[a-z_0-9]+)+\.py)`", page.read_text()):
        assert any((base / name).is_file() for base in (ROOT, ROOT / "src", ROOT / "src/xenolith")), name


def test_the_readme_says_first_how_to_test() -> None:
    section = (ROOT / "README.md").read_text().split("## Test")[1].split("\n", 1)[1].strip()
    assert section.splitlines()[0].strip("` ") == "make test"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_load(example: Path) -> None:
    config = load(example)
    assert config.domains
    assert example.name in (DOCS / "machine-description.md").read_text()


def test_the_first_example_is_the_default_machine() -> None:
    config = load(ROOT / "examples/control-domain.toml")
    assert config.domains == [control_domain()]
    assert config.domains[0].memory == DEFAULT_CONTROL_MEMORY


def test_the_guest_page_is_fresh() -> None:
    assert (DOCS / "guest-config.md").read_text() == guest_reference.document(), "run `make docs`"


@pytest.mark.parametrize(
    ("keys", "heading"),
    [
        (MACHINE_KEYS, "## [machine]"),
        ({name: key for name, key in DOMAIN_KEYS.items() if name not in KEYS}, "## [domain.NAME]"),
    ],
)
def test_every_key_of_a_machine_description_is_described(keys: dict[str, Key], heading: str) -> None:
    section = (DOCS / "machine-description.md").read_text().split(heading)[1].split("\n## ")[0]
    rows = [f"| `{name}` | {key.kind} | {key.default} | {key.meaning} |" for name, key in keys.items()]
    assert re.findall(r"^\| `\w+` \|.*$", section, re.MULTILINE) == rows


@pytest.mark.parametrize("words", [disks.PARAMETERS, nics.PARAMETERS, nics.IGNORED, shares.PARAMETERS], ids=str)
def test_every_word_of_a_mini_language_is_described(words: tuple[str, ...]) -> None:
    page = guest_reference.document()
    for word in words:
        assert re.search(rf"`{word}\b", page), word


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_described(name: str) -> None:
    row = next(line for line in (DOCS / "machine-description.md").read_text().splitlines() if f"| `{name}` |" in line)
    for domain in preset(name):
        assert f"`{domain.name}`" in row


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 40
    assert terms == sorted(set(terms), key=str.casefold)


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "dependencies.md").read_text()
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        name = re.split(r"[<>=~! ]", requirement)[0]
        assert f"| `{name}` |" in page, name


# -- tools.abi_coverage -----------------------------------------------------------------------------------------------


def refuses(hv: object) -> int:
    """Never does anything else."""
    if hv is None:
        raise XenError(ENODEV, "none")
    raise XenError(ENODEV, "some")


def sometimes_refuses(hv: object) -> int:
    if hv is None:
        return 0
    raise XenError(ENODEV)


def test_a_handler_that_only_refuses_is_seen() -> None:
    assert abi_coverage.always_raises(refuses) == "-ENODEV"
    assert abi_coverage.always_raises(sometimes_refuses) == ""


def test_coverage_tells_what_is_served_from_what_is_not() -> None:
    page = abi_coverage.document()
    for line in (
        "| 2 | `MMUEXT_PIN_L3_TABLE` | yes |  |",
        "| 6 | `XENMEM_populate_physmap` | yes |  |",
        "| 10 | `XENMEM_machine_memory_map` | yes | HARDWARE |",
        "| 51 | `XENPF_enter_acpi_sleep` | yes | HARDWARE |",
        "| 1 | `CONSOLEIO_read` | yes | CONSOLE |",
        "| 0 | `CONSOLEIO_write` | yes |  |",
        "| 30 | `PHYSDEVOP_prepare_msix` | yes | HARDWARE |",
        "| 20 | `XENMEM_paging_op` | -ENOSYS |  |",
        "| 34 | `hvm_op` | never |  | nobody |  |",
    ):
        assert line in page.splitlines()


# -- tools.compare_dom0_log -------------------------------------------------------------------------------------------

THEIRS = """\
=LOG BEGIN
<6>[    0.000000] Linux version 6.1.0-56-amd64 (debian)
<6>[    1.000000] ACPI: PM-Timer IO Port: 0x608
<6>[    2.000000] pnp: PnP ACPI: found 5 devices
<4>[    3.000000] hpet: nothing there
not a record
"""
OURS = """\
<6>[    0.000000] Linux version 6.1.0-56-amd64 (debian)\r
<6>[    7.000000] ACPI: PM-Timer IO Port: 0x608\r
<6>[    8.000000] pnp: PnP ACPI: found 3 devices
<4>[    9.000000] something: is | wrong
"""


def test_logs_are_compared_without_their_times() -> None:
    theirs, ours = compare_dom0_log.parse(THEIRS), compare_dom0_log.parse(OURS)
    assert [message.level for message in theirs] == [6, 6, 6, 4]
    found = compare_dom0_log.compare(theirs, ours)
    texts = [([m.text for m in d.theirs], [m.text for m in d.ours]) for d in found]
    assert texts == [
        (["pnp: PnP ACPI: found 5 devices"], ["pnp: PnP ACPI: found 3 devices"]),
        (["hpet: nothing there"], []),
        ([], ["something: is | wrong"]),
    ]
    assert [d.complains for d in found] == [False, False, True]
    assert found[2].reason([Reason("^something", "because")]) == "because"
    assert found[2].reason([Reason("^else", "because")]) == ""


def test_what_is_not_explained_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "theirs", tmp_path / "ours"]
    for path, log in zip(paths, (THEIRS, OURS), strict=True):
        path.write_text(log)
    output = tmp_path / "page.md"
    assert compare_dom0_log.main([str(output), "--recordings", *map(str, paths)]) == 1
    page = output.read_text()
    assert "Warnings and errors that only Xenolith's log has: **`something: is | wrong`**." in page
    assert r"| `something: is \| wrong` | warning | **not explained** |" in page
    assert "xenolith <4> something: is | wrong" in capsys.readouterr().err
    paths[1].write_text(THEIRS)
    assert compare_dom0_log.main([str(output), "--recordings", *map(str, paths)]) == 0


def test_the_committed_comparison_is_clean() -> None:
    page = (DOCS / "dom0-log.md").read_text()
    assert "**not explained**" not in page
    assert "that only Xenolith's log has: **none**" in page
