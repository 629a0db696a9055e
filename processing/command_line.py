# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg`: for people who do not write Python. Each command lives in the room that does its work."""

import argparse
import sys

from . import comparison, data_commands, demo, evaluation, export, faithfulness, hub, predict, report, transfer
from .reading import refusal


# Modules with an `add_command(commands)`. This package needs torch (seconds, for --help too); what is heavier than
# that is imported when the command runs.
ROOMS = (data_commands, predict, evaluation, comparison, faithfulness, transfer, report, export, hub, demo)


class DefaultsHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help that says the defaults, but not of switches and of what is left out by itself."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """As its subcommands are, and theirs."""

    def __init__(self, **kwargs):
        super().__init__(**{"formatter_class": DefaultsHelp, **kwargs})


def make_parser() -> Parser:
    parser = Parser(prog="tamiseg", description="Text-guided medical image segmentation.")
    commands = parser.add_subparsers(dest="command", required=True)
    for room in ROOMS:
        room.add_command(commands)
    return parser


def main(argv=None) -> int:
    """Returns 0, 2 after one sentence that says what was wrong and how to mend it, or 130 when stopped by Ctrl-C."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ModuleNotFoundError as error:
        print(f"tamiseg: '{error.name}' is not installed: pip install 'tamiseg[data,train]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        said = refusal(error) if isinstance(error, OSError) else str(error)
        print(f"tamiseg: {' '.join(said.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tamiseg: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
