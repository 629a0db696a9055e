# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What tests of several files share."""

import sys

import pytest


@pytest.fixture
def remote_code_folder(tmp_path, monkeypatch):
    """Code that comes with a model is copied to a folder of this test alone, and forgotten after it."""

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    forget()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the folder is added
    yield
    forget()
