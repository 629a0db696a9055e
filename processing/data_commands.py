# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg data ...`: where data sets come from, how they are prepared, what their splits share, and whether their
sentences are true."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import numpy as np

from .builders import NAMED_SETS, NamedSet


def add_command(commands) -> None:
    """Adds `data` and its own subcommands to those of `tamiseg`."""
    data = commands.add_parser("data", help="prepare data sets, look for leaks, check sentences")
    actions = data.add_subparsers(dest="action", required=True)

    action = actions.add_parser("list", help="where to get each named set, its licence and its citation")
    action.set_defaults(run=list_sets)

    action = actions.add_parser("prepare", help="write a folder of parquet, with its card, from the owners' files")
    action.add_argument("name", help=f"{', '.join(NAMED_SETS)}, or folder (anyone's pictures and masks)")
    action.add_argument("--source", required=True, help="folder that holds the files, zip archives included")
    action.add_argument("--output", required=True, help="folder to write; must not exist")
    action.add_argument("--split", help="which published split, where there are several (see `tamiseg data list`)")
    action.add_argument(
        "--split-by",
        "--split_by",
        choices=("patient", "study", "look"),
        help="draw anew with none of them on two sides; look: neither patients nor pictures that look alike",
    )
    action.add_argument("--seed", type=int, default=0, help="of drawn splits")
    action.add_argument("--partial", action="store_true", help="accept other counts than the published ones")
    action.add_argument(
        "--num-labels", "--num_labels", type=int, default=2, help="classes in the masks, background included"
    )
    action.add_argument(
        "--window", type=_window, help="=CENTER,WIDTH (--window=-600,1500) or =auto: how more than 8 bits become grey"
    )
    action.add_argument(
        "--patient-pattern",
        "--patient_pattern",
        help="regular expression whose first group, in a name (or, where no name has it, in a path), is the patient",
    )
    action.add_argument("--sentences", help="write missing sentences from the masks: lung, polyp or nuclei")
    action.set_defaults(run=prepare_set)

    action = actions.add_parser("leaks", help="what the splits of a data set share")
    action.add_argument("data", help="what train_hf.py takes as --dataset")
    action.add_argument("--output", help="JSON file to write")
    action.add_argument("--counts", action="store_true", help="leave names and sentences out of that file")
    action.set_defaults(run=report_leaks)

    action = actions.add_parser("sentences", help="do sentences agree with masks, before and after augmentation")
    action.add_argument("data", help="what train_hf.py takes as --dataset")
    action.add_argument("--seeds", type=int, default=3, help="of the augmentation; 0 leaves it out")
    action.add_argument(
        "--num-labels", "--num_labels", type=int, default=2, help="classes in the masks, background included"
    )
    action.set_defaults(run=check_sentences)


def list_sets(arguments) -> None:
    """Prints the facts of every named set."""
    for name, named in NAMED_SETS.items():
        print(f"{name}\n{_facts(named)}\n")
    print("Nothing is downloaded: get the files yourself, then `tamiseg data prepare NAME --source DIR --output DIR`.")


def prepare_set(arguments) -> None:
    """Prints the facts, prepares, and prints counts and leaks."""
    from .leaks import leak_table
    from .prepare import Plan, prepare

    if arguments.name in NAMED_SETS:
        print(_facts(NAMED_SETS[arguments.name]))
    wishes = {key: vars(arguments)[key] for key in Plan.__dataclass_fields__}
    done = prepare(arguments.name, arguments.source, arguments.output, Plan(**wishes))
    print("rows: " + ", ".join(f"{split} {count}" for split, count in done["counts"].items()))
    for note in done["notes"]:
        print(f"- {note}")
    print(leak_table(done["leaks"]))
    classes = f" --model_config '{{\"num_labels\": {arguments.num_labels}}}'" if arguments.num_labels > 2 else ""
    data = shlex.quote(arguments.output)
    print(f"next: python train_hf.py --stage finetune --dataset {data} --output_dir runs/finetune{classes}")


def report_leaks(arguments) -> None:
    """Prints the table and writes the JSON file."""
    from .leaks import find_leaks, leak_table, trace_rows

    if arguments.counts and not arguments.output:
        raise ValueError("--counts is about the file: give --output too.")
    traces = [one for split, rows in _all_rows(arguments.data).items() for one in trace_rows(rows, split)]
    report = find_leaks(traces)
    print(leak_table(report))
    if arguments.counts:
        report["pairs"] = [{key: pair[key] for key in pair if key != "values"} for pair in report["pairs"]]
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def check_sentences(arguments) -> None:
    """Prints the agreement of each split and of all, and what augmentation leaves of it on validation. The target is
    whatever is not background."""
    from .augmentation import JointAugmentation, measure_truth
    from .data import column
    from .image_processing_tamiseg import IGNORE_INDEX, TAMISegImageProcessor
    from .reading import name_flag
    from .sentences import measure_agreement

    load_mask = TAMISegImageProcessor(num_labels=arguments.num_labels).load_mask
    prompts, masks = {}, {}
    for split, rows in _all_rows(arguments.data).items():
        prompts[split] = column(rows, "prompt")
        # Pictures are not needed, so they are not decoded.
        some = rows if isinstance(rows, list) else rows.select_columns("mask")
        try:
            masks[split] = [load_mask(row["mask"]) for row in some]
        except ValueError as error:
            raise ValueError(f"in '{split}', {name_flag(error, '--num-labels')}") from error
    parts = {split: [split] for split in masks} | {"all": list(masks)}
    for part, splits in parts.items():
        wanted = [prompt for split in splits for prompt in prompts[split]]
        ids = (np.asarray(mask) for split in splits for mask in masks[split])
        found = measure_agreement(wanted, ((one > 0) & (one != IGNORE_INDEX) for one in ids))
        shares = ", ".join(f"{name} {100 * share:.2f} %" for name, share in found["agreement"].items())
        print(f"{part}: {found['read']} of {found['rows']} sentences read; agree with the mask: {shares}")
    if arguments.seeds and "validation" in masks:
        strong = {"vertical_flip": 0.5, "rotation_degrees": 20.0, "translation": 0.15, "scale": (0.8, 1.5)}
        for name, augmentation in {
            "as in training": JointAugmentation(),
            "as in training, but keep_true=False": JointAugmentation(keep_true=False),
            "with vertical flips, 20 degrees and crops": JointAugmentation(**strong),
        }.items():
            truth = measure_truth(augmentation, prompts["validation"], masks["validation"], range(arguments.seeds))
            print(f"validation, {truth['rows']} views {name}: {100 * truth['kept']:.2f} % stay as true as before")


def _facts(named: NamedSet) -> str:
    splits = "; ".join(f"{name} ({'/'.join(map(str, parts.values()))})" for name, parts in named.splits.items())
    lines = [named.title, f"splits: {splits}", f"get it: {named.obtain}", f"licence: {named.licence}"]
    return "\n  ".join([*lines, f"cite: {named.citation}", *filter(None, [named.note])]).join(["  ", ""])


def _all_rows(source: str) -> dict:
    """The rows of each split that is there."""
    from .builders import SPLITS
    from .data import NoSuchSplit, load_rows

    found = {}
    for split in SPLITS:
        try:
            found[split] = load_rows(source, split)
        except NoSuchSplit:
            continue
    if not found:
        raise ValueError(f"'{source}' has none of the splits {', '.join(SPLITS)}: name its parts like that.")
    return found


def _window(text: str) -> str | tuple[float, float]:
    if text == "auto":
        return text
    try:
        center, width = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no window: write CENTER,WIDTH or auto") from None
    if width <= 0:
        raise argparse.ArgumentTypeError(f"a window of width {width:g} shows nothing: give one above 0")
    return center, width
