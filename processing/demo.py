# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg demo`: the page of `spaces_demo/` on this machine."""

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from .predict import check_model_folder


APP = Path(__file__).resolve().parent.parent / "spaces_demo" / "app.py"


def add_command(commands) -> None:
    """Adds `demo` to the subcommands of `tamiseg`."""
    command = commands.add_parser("demo", help="open the demo page on this machine, from a checkout of the project")
    command.add_argument(
        "--model", help="folder of a trained model, or its Hub id; the quickstart's or the shipped one"
    )
    command.add_argument("--port", type=int, help="port of the page, or the next free one (7860)")
    command.add_argument(
        "--share", choices=("yes", "no"), default="no", help="yes: a public link through gradio's servers"
    )
    command.set_defaults(run=demo)


def demo(arguments) -> None:
    """Starts the page and stays until Ctrl-C.

    Raises:
        ValueError: this is no checkout, gradio is missing, there is no such port, or the model's folder is none.
    """
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port is {arguments.port}: give 1 to 65535.")
    if not APP.is_file():
        raise ValueError("the demo is part of the project's checkout, not of the installed package: start it there.")
    if find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'tamiseg[demo]'.")
    if arguments.model:
        check_model_folder(arguments.model)
        os.environ["TAMISEG_MODEL"] = arguments.model
    if arguments.port:
        os.environ["GRADIO_SERVER_PORT"] = str(arguments.port)
    if arguments.share == "yes":
        os.environ["GRADIO_SHARE"] = "True"
    sys.path.insert(0, str(APP.parent))  # as `python spaces_demo/app.py` does
    runpy.run_path(str(APP), run_name="__main__")
