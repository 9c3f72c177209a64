"""Builds the C tests of interpose/ once a session, by their Makefile, into a folder of their own."""

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder with libportalpatch.so, c_portal.so and the test programs."""
    folder = tmp_path_factory.mktemp("c-tests")
    make = subprocess.run(
        ["make", "-s", "-j2", "-C", str(HERE), f"BUILD={folder}", "all"],
        capture_output=True,
        text=True,
    )
    assert make.returncode == 0, make.stdout + make.stderr
    return folder


@pytest.fixture(scope="session")
def parking(built: pathlib.Path) -> dict[str, str]:
    """The environment in which any program runs under the C portal."""
    preload = f"{built}/libportalpatch.so {built}/c_portal.so"
    return {**os.environ, "LD_PRELOAD": preload, "PORTALPATCH_C_PORTAL": "1"}
