"""The version, said once: pyproject.toml and `portalpatch.__version__` read it here."""

__version__ = "0.1.0"
