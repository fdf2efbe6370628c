"""The native extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["vmm/native/build.py:ffibuilder"])
