"""Libraries compiled in every usual way are caught, preloaded and attached; detaching restores all."""

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
FORTIFIED = ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
WAYS = {
    "lazy": ["-O1", "-Wl,-z,lazy"],
    "now-relro": ["-O1", "-Wl,-z,now,-z,relro"],
    "no-plt": ["-O1", "-fno-plt"],
    "no-plt-now": ["-O1", "-fno-plt", "-Wl,-z,now,-z,relro"],
    "fortify-2": FORTIFIED,
    "fortify-2-now": [*FORTIFIED, "-Wl,-z,now,-z,relro"],
    "fortify-3": ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"],
    "cancellable": ["-O2", "-fexceptions"],
}
PARKED = "blocks 1 parked 1\nsleeps 0 parked 1\nreads 1 parked 1\n"
BLOCKED = "blocks 1 parked 0\nsleeps 0 parked 0\nreads 1 parked 0\n"


def compile_guest(folder: pathlib.Path, name: str, *flags: str) -> str:
    output = folder / f"lib{name}.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-D_GNU_SOURCE", HERE / "guest.c", "-o", output, *flags],
        check=True,
    )
    return str(output)


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("guests")
    return {way: compile_guest(folder, way, *flags) for way, flags in WAYS.items()}


def attached(built: pathlib.Path, *commands: str) -> str:
    """What attach_host says, with the library and the C portal loaded in process."""
    return host(built, f"{built}/c_portal.so", {"PORTALPATCH_C_PORTAL": "1"}, commands)


def preloaded(built: pathlib.Path, parking: dict[str, str], *commands: str) -> str:
    return host(built, "-", parking, commands)


def host(built: pathlib.Path, portal: str, env: dict[str, str], commands: tuple[str, ...]) -> str:
    run = subprocess.run(
        [built / "attach_host", portal, *commands],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("way", WAYS)
def test_preloaded_library_catches(built, parking, guests, way: str) -> None:
    assert preloaded(built, parking, f"load={guests[way]}", "call") == PARKED


@pytest.mark.parametrize("way", WAYS)
def test_attach_catches_what_is_loaded(built, guests, way: str) -> None:
    said = attached(built, f"load={guests[way]}", "call", "attach", "call", "call")
    assert said == BLOCKED + "pp_attach 0: some slots\n" + PARKED + PARKED


@pytest.mark.parametrize("way", WAYS)
def test_attach_catches_what_is_loaded_later(built, guests, way: str) -> None:
    said = attached(built, "attach", f"load={guests[way]}", "call", "call")
    assert said == "pp_attach 0: some slots\n" + PARKED + PARKED


@pytest.mark.parametrize("way", WAYS)
def test_detach_restores(built, guests, way: str) -> None:
    said = attached(
        built, f"load={guests[way]}", "attach", "call", "detach", "call", "attach", "call"
    )
    assert said == (
        "pp_attach 0: some slots\n" + PARKED + "pp_detach 0: no slots\n" + BLOCKED
        + "pp_attach 0: some slots\n" + PARKED
    )  # fmt: skip


def test_slots_bound_before_attach_are_hooked(built, guests) -> None:
    said = attached(built, f"load={guests['lazy']}", "call", "attach", "call")
    assert said.endswith(PARKED)


def test_attach_reaches_deepbind_where_preload_does_not(built, parking, guests) -> None:
    load = f"deepbind={guests['now-relro']}"
    assert preloaded(built, parking, load, "call") == BLOCKED
    assert preloaded(built, parking, load, "attach", "call").endswith(PARKED)
    assert preloaded(built, parking, "attach", load, "call").endswith(PARKED)
    assert attached(built, "attach", load, "call").endswith(PARKED)


def test_detach_of_preloaded_library_leaves_what_the_loader_bound(built, parking, guests) -> None:
    said = preloaded(built, parking, f"load={guests['now-relro']}", "attach", "detach", "call")
    assert said.endswith(PARKED)


def test_caller_search_path_still_counts_for_bare_names(built, tmp_path) -> None:
    loader = compile_guest(tmp_path, "loader", "-O1", "-Wl,-rpath,$ORIGIN")
    compile_guest(tmp_path, "neighbour", "-O1", "-Wl,-z,now")
    load = [f"load={loader}", "neighbour=libneighbour.so", "call"]
    # It is scanned with the next call of an object already hooked: the host makes one.
    assert attached(built, "attach", *load).endswith(PARKED)


def test_unloaded_guest_is_forgotten(built, guests) -> None:
    said = attached(
        built, f"load={guests['lazy']}", "attach", "dlclose", f"load={guests['no-plt']}", "call", "detach"
    )  # fmt: skip
    assert said == "pp_attach 0: some slots\n" + PARKED + "pp_detach 0: no slots\n"


NOSY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
void *dlopen(const char *file, int mode)
{
    void *(*next)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    if (file)
        printf("nosy\\n");
    return next(file, mode);
}
"""


def test_what_is_loaded_through_another_librarys_dlopen_is_scanned(built, guests, tmp_path) -> None:
    source, library = tmp_path / "nosy.c", tmp_path / "libnosy.so"
    source.write_text(NOSY)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    env = {"PORTALPATCH_C_PORTAL": "1", "LD_PRELOAD": str(library)}
    commands = (
        "attach",
        f"load={guests['now-relro']}",
        "call",
        "detach",
        f"load={guests['lazy']}",
        "call",
    )
    said = host(built, f"{built}/c_portal.so", env, commands)
    before, _, after = said.partition("pp_detach 0: no slots\n")
    assert before.endswith("nosy\n" + PARKED), said
    assert after.endswith("nosy\n" + BLOCKED), said
