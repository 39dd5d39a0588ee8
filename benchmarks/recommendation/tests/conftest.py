"""The fixtures of the library's tests, for the experiment's."""

from python_tests.conftest import data_root

__all__ = ["data_root"]
