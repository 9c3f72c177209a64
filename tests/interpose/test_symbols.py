"""The table (symbols.def), the export map and what the library really exports are one."""

import pathlib
import re
import subprocess

INTERPOSE = pathlib.Path(__file__).parents[2] / "interpose"


def table() -> set[str]:
    text = (INTERPOSE / "symbols.def").read_text()
    names = re.findall(r"^PP_(?:CALL|KEEP|CHECKED|JUMP)\([^,]+,\s*(\w+)[,)]", text, re.M)
    return {*names, *re.findall(r"^PP_ALIAS\((\w+),", text, re.M)}


def interface() -> set[str]:
    text = re.sub(r"/\*.*?\*/", "", (INTERPOSE / "portal_abi.h").read_text(), flags=re.S)
    text = re.sub(r"\{[^{}]*\}", "", text)
    return set(re.findall(r"\b(pp_\w+)(?=\(|;)", text)) - {"pp_portal_ops"}


def test_export_map_is_the_table_and_the_interface() -> None:
    text = (INTERPOSE / "exports.map").read_text()
    assert set(re.findall(r"^\s+(\w+);$", text, re.M)) == table() | interface()


def test_library_exports_the_map(built: pathlib.Path) -> None:
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", built / "libportalpatch.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = {line.split()[-1] for line in lines}
    assert names == table() | interface()
    assert not [name for name in names if "@" in name], "a version would end the interposition"


def test_sources_do_not_know_python() -> None:
    for source in INTERPOSE.glob("*.[ch]"):
        assert "Python.h" not in re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.S), source
