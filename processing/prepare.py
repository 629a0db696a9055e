# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""From the files as their owners distribute them to a folder of parquet that training reads, with its card.

    prepare("kvasir-seg", source="downloads/kvasir", output="data/kvasir_seg")
    prepare("folder", source="my_scans", output="data/mine", plan=Plan(split_by="patient"))

Everything is looked at before anything is refused: pairs, sizes, values, counts. `output` appears only when all is
well, and holds `<split>-00000-of-00001.parquet` (pictures embedded, byte for byte where they needed no change),
`README.md` (the card, which the Hub reads too) and `leaks.json`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from .builders import NAMED_SETS, SPLITS, WITHOUT_PICTURE, WITHOUT_SENTENCE, Case, NamedSet, Problems, pair_files
from .data import fingerprint, stream_rows
from .image_processing_tamiseg import IGNORE_INDEX
from .leaks import HASH_SIDE, NEAR, Trace, find_families, find_leaks, leak_table, look_of, trace
from .reading import name_flag
from .sentences import STYLES, WORDINGS, describe, write
from .slices import dicom_identity, lie_alike, read_images, read_masks, unite
from .sources import Source


SHARES = {"validation": 0.1, "test": 0.1}  # of a folder that says nothing of splits
GROUPS = ("patient", "study", "look")  # by which splits are drawn
ROWS_PER_GROUP = 100  # what several readers of a stream share among them
LEAK_WORDS = (
    "Equal pictures by the hash of their pixels, near pictures by at most {near} of 256 bits of a perceptual hash; "
    "names in `leaks.json`. A sentence that occurs in two splits is no leak by itself, but says how little the words "
    "of the test are new."
)


@dataclass
class Plan:
    """What `prepare` can be told beyond where the files are."""

    split: str | None = None  # which published split; None is the first
    split_by: str | None = None  # draw anew with whole patients or studies, or also all alike pictures, on one side
    seed: int = 0  # of drawn splits
    partial: bool = False  # take other counts than the published ones
    num_labels: int = 2  # classes of the masks, background included
    window: str | tuple[float, float] | None = None  # of pictures with more than 8 bits
    patient_pattern: str | None = None  # the first group of it, found in a name, or else in a path, is the patient
    sentences: str | None = None  # style of the sentences to write from the masks where there are none

    def __post_init__(self):
        if self.split_by not in (None, *GROUPS):
            raise ValueError(f"a split is drawn by {', '.join(GROUPS)}, not by '{self.split_by}'.")
        if self.sentences not in (None, *STYLES):
            raise ValueError(f"there is no style '{self.sentences}' of sentences: choose one of {', '.join(STYLES)}.")
        if self.patient_pattern is not None:
            try:
                groups = re.compile(self.patient_pattern).groups
            except re.error as error:
                raise ValueError(f"'{self.patient_pattern}' is no regular expression ({error}).") from error
            if groups < 1:
                raise ValueError(
                    f"the pattern '{self.patient_pattern}' has no group: mark the patient, as in '^(p[0-9]+)_'."
                )


def prepare(name: str, source: str | Path, output: str | Path, plan: Plan | None = None) -> dict:
    """Prepares a named set ("qata-cov19", "mosmeddata-plus", "kvasir-seg", "monuseg") or any "folder".

    Returns:
        `counts` (split -> rows), `leaks` (see `find_leaks`), `notes` (what was decided on the way).

    Raises:
        ValueError: one sentence that lists what is missing, double, unreadable or of another size, or where the counts
            differ from the published ones. All of it, line by line, is then in `<output>.problems.txt`.
    """
    plan, output = plan or Plan(), Path(output).expanduser()
    if name not in (*NAMED_SETS, "folder"):
        raise ValueError(f"there is no data set '{name}': choose one of {', '.join(NAMED_SETS)} or folder.")
    named = NAMED_SETS.get(name)
    if plan.split is not None and plan.split not in (named.splits if named else {}):
        known = ", ".join(named.splits) if named else "none, use --split-by"
        raise ValueError(f"'{name}' has no published split '{plan.split}', it has: {known}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"'{output}' is there already: choose another --output, or remove it first.")

    notes: list[str] = []
    problems, files = Problems(), Source(source)
    cases = pair_files(files, problems, notes, named)
    if plan.partial and WITHOUT_PICTURE in problems.found:
        notes.append(f"{len(problems.found.pop(WITHOUT_PICTURE))} names in tables or lists have no picture")
    if named is None or plan.partial or plan.sentences:
        problems.found.pop(WITHOUT_SENTENCE, None)  # such rows are counted
    if plan.patient_pattern is not None:
        found = [re.search(plan.patient_pattern, case.name) for case in cases]
        if not any(found):  # the patient is a folder, and file names do without it
            found = [re.search(plan.patient_pattern, case.image) for case in cases]
        if cases and not any(found):
            raise ValueError(
                f"the pattern '{plan.patient_pattern}' is found in no name and no path, the first is "
                f"'{cases[0].image}': mend the pattern."
            )
        cases = [replace(case, patient_id=m[1]) if m else case for case, m in zip(cases, found, strict=True)]
    for case in cases:
        if case.image.lower().endswith(".dcm"):
            patient, study = dicom_identity(files.read(case.image))
            case.patient_id, case.study_id = case.patient_id or patient, case.study_id or study
        elif case.image.lower().endswith((".nii", ".nii.gz")):
            case.study_id = case.study_id or case.name  # the slices of a volume are one study
    if not problems.found:
        if plan.split_by == "look":
            notes.append(_find_looks(files, cases, plan))
        assign_splits(cases, named, plan, notes)
    log = output.with_name(output.name + ".problems.txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f"{output.name}.", dir=output.parent))
    try:
        traces, facts = _write_rows(files, cases, working, plan, problems, named)
        if problems.found:
            log.write_text("\n".join(problems.lines()) + "\n", encoding="utf-8")
            raise ValueError(
                f"'{source}' is not prepared, it has {problems.sentence()}: mend these and run again (all of them are "
                f"listed in '{log}')."
            )
        report = find_leaks(traces)
        (working / "leaks.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        notes += [f"{count} {fact}" for fact, count in facts.items() if count]
        card = _card(name, named, report, notes, working, _command(name, plan))
        (working / "README.md").write_text(card, encoding="utf-8")
        if output.exists():
            output.rmdir()
        working.rename(output)
        output.chmod(0o755)  # a temporary folder is its owner's alone
        log.unlink(missing_ok=True)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return {"counts": report["rows"], "leaks": report, "notes": notes}


# Splits


def assign_splits(cases: list[Case], named: NamedSet | None, plan: Plan, notes: list[str]) -> None:
    """Gives each case its split: as published or as the folders say, otherwise drawn.

    Draws go by patient where patients are known (or by what the plan says), from the plan's seed. Where only some
    patients are known, the rows of unknown ones stay in train, because nobody can show that they are others.

    Raises:
        ValueError: some cases have a split and some have none, the counts differ from the published ones, or nothing
            is known of what the plan wants to split by.
    """
    counts = None if named is None else named.splits[plan.split or next(iter(named.splits))]
    given = Counter(case.split for case in cases)
    if None in given and len(given) > 1:
        first = next(case.name for case in cases if case.split is None)
        raise ValueError(
            f"{given[None]} of {len(cases)} pictures lie in no split, the first is '{first}': put each into a train, "
            "val or test folder (or table, or list), or none."
        )
    if named and named.reported == "validation" and "test" not in given and "validation" in given:
        notes.append("the files' validation part is the one that everyone reports on: it became test")
        for case in cases:
            case.split = "test" if case.split == "validation" else case.split
        given = Counter(case.split for case in cases)
    # Of a set with several published splits, the files tell one; asked for another, it is drawn.
    another = named and len(named.splits) > 1 and not plan.partial and given["test"] != counts["test"]
    if None not in given and (plan.split_by or another):
        notes.append("the split of the files was set aside")
        for case in cases:
            case.split = None
        given = Counter({None: len(cases)})

    drawn = ()
    if None in given:
        drawn = ("validation", "test")
    elif "train" in given and "validation" not in given:
        drawn = ("validation",)
    if counts and not plan.partial:
        _check_counts(given, named, counts, drawn)
    if drawn:
        pool = [case for case in cases if case.split in (None, "train")]
        shares = {split: counts[split] / sum(counts.values()) for split in drawn} if counts else SHARES
        whole = counts and sum(counts.values()) == len(cases)
        wanted = {split: counts[split] if whole else round(shares[split] * len(cases)) for split in drawn}
        notes.append(_draw(pool, wanted, plan))
    else:
        notes.append("the split is the one of the files: their folders, tables or lists")


def _check_counts(given: Counter, named: NamedSet, counts: dict[str, int], drawn: tuple[str, ...]) -> None:
    parts = [split for split in SPLITS if split not in drawn and split != "train"]
    wanted = {split: counts[split] for split in parts}
    wanted[" + ".join(("train", *drawn))] = counts["train"] + sum(counts[split] for split in drawn)
    found = {split: given[split] for split in parts}
    found[" + ".join(("train", *drawn))] = given["train"] + given[None]
    differing = [
        f"{split} has {found[split]} rows instead of {wanted[split]}"
        for split in wanted
        if found[split] != wanted[split]
    ]
    if differing:
        raise ValueError(
            f"{named.title}: {', '.join(differing)}. Complete the files, choose another --split, or say --partial to "
            "prepare what is there."
        )


def _draw(cases: list[Case], wanted: dict[str, int], plan: Plan) -> str:
    """Moves whole groups into the wanted splits until they are full; the rest is train. A split that all are too large
    for gets the smallest, as long as one is left for train. Returns what was done."""
    by = plan.split_by or ("patient" if any(case.patient_id for case in cases) else "picture")
    group_of = {case.name: case.name if by == "picture" else getattr(case, f"{by}_id") for case in cases}
    known = [case for case in cases if group_of[case.name] is not None]
    if not known:
        raise ValueError(
            f"no {by} is known of any picture: give a table with a column {by}_id, or (for patients) a "
            "--patient-pattern of the names."
        )
    groups: dict[str, list[Case]] = {}
    for case in known:
        groups.setdefault(group_of[case.name], []).append(case)
    for case in cases:
        case.split = "train"
    left = dict(wanted)
    order = np.random.default_rng(plan.seed).permutation(sorted(groups))
    for group in order:
        # A group too large for what is left of a split goes on to the next one.
        split = next((split for split, room in left.items() if len(groups[group]) <= room), "train")
        if split != "train":
            left[split] -= len(groups[group])
        for case in groups[group]:
            case.split = split
    done = f"{' and '.join(wanted)} drawn by {by} with seed {plan.seed}"
    if unknown := len(cases) - len(known):
        done += f"; {unknown} pictures of unknown {'patient' if by == 'look' else by} stay in train"
    for split in wanted:
        if any(case.split == split for case in known):
            continue
        rest = sorted((group for group in order if groups[group][0].split == "train"), key=lambda g: len(groups[g]))
        if len(rest) < 2:
            done += f"; {split} got none, because there are too few pictures, or too many in one group"
            continue
        for case in groups[rest[0]]:
            case.split = split
        done += f"; {split} got the smallest group, {len(groups[rest[0]])} of {len(cases)} pictures"
    return done


def _find_looks(files: Source, cases: list[Case], plan: Plan) -> str:
    """Gives each case the group that it looks alike with, its patient and study included. Returns what was found."""
    from tqdm import tqdm

    looks = []
    for case in tqdm(cases, desc="comparing", unit="picture", mininterval=2, disable=len(cases) < 100):
        try:
            slices = read_images(case.image, files.read(case.image), plan.window)
        except ValueError:  # said when its row is read
            slices = []
        looks.append(np.array([look_of(one.image) for one in slices], dtype=bool).reshape(-1, HASH_SIDE**2))
    families = find_families(looks, [(case.patient_id, case.study_id) for case in cases])
    first: dict[int, str] = {}
    known = {family for family, case in zip(families, cases, strict=True) if case.patient_id is not None}
    for family, case in zip(families, cases, strict=True):
        if not known or family in known:
            case.look_id = first.setdefault(family, case.name)
    sizes = np.bincount(families)
    return (
        f"pictures that look alike (at most {NEAR} of {HASH_SIDE**2} bits of a perceptual hash differ) or are of one "
        f"patient or study are kept together: {len(sizes)} groups, the largest of {sizes.max()}"
    )


# Rows


def _write_rows(
    files: Source, cases: list[Case], folder: Path, plan: Plan, problems: Problems, named: NamedSet | None
) -> tuple[list[Trace], Counter]:
    """Reads each case and writes it; what is wrong goes to `problems`."""
    import pyarrow
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature
    from pyarrow import parquet
    from tqdm import tqdm

    texts = {column: Value("string") for column in ("prompt", "name", "patient_id", "study_id")}
    features = Features({"image": ImageFeature(), "mask": ImageFeature(), **texts, "spacing": List(Value("float32"))})
    writers, waiting = {}, {}
    traces, facts = [], Counter()

    def flush(split: str) -> None:
        if split not in writers:
            writers[split] = parquet.ParquetWriter(folder / f"{split}-00000-of-00001.parquet", features.arrow_schema)
        writers[split].write_table(pyarrow.Table.from_pylist(waiting[split], schema=features.arrow_schema))
        waiting[split] = []

    try:
        for case in tqdm(cases, desc="reading", unit="picture", mininterval=2, disable=len(cases) < 100):
            for row, image in _read_case(files, case, plan, problems, facts, named):
                split = case.split or "train"
                traces.append(trace(image, split, row["name"], row["patient_id"], row["study_id"], row["prompt"]))
                waiting.setdefault(split, []).append(row)
                if len(waiting[split]) == ROWS_PER_GROUP:
                    flush(split)
        for split in waiting:
            if waiting[split]:
                flush(split)
    finally:
        for writer in writers.values():
            writer.close()
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(traces, key=lambda one: order[one.split]), facts


def _read_case(files: Source, case: Case, plan: Plan, problems: Problems, facts: Counter, named: NamedSet | None):
    """The rows of one case with their pictures, none if something is wrong with it."""
    try:
        slices = read_images(case.image, files.read(case.image), plan.window)
    except ValueError as error:
        problems.add("unusable picture", f"'{case.image}' {error}")
        return []
    if len(case.masks) > 1 and plan.num_labels > 2:
        problems.add("picture with several masks, which only sets of two classes may have", case.name)
        return []
    masks = []
    for path in case.masks:
        try:
            found = read_masks(
                path, files.read(path), plan.num_labels, slices[0].image.size, may_cut=named is not None
            )
        except ValueError as error:
            problems.add("unusable mask", f"'{path}' {name_flag(error, '--num-labels')}")
            return []
        if len(found) != len(slices):
            problems.add("volume of another number of slices than its mask", case.name)
            return []
        sizes = [f"{image.width}x{image.height}" for image in (slices[0].image, found[0].image)]
        if sizes[0] != sizes[1]:
            problems.add("mask of another size than its picture", f"{case.name}: {' and '.join(sizes)}")
            return []
        if not lie_alike(slices[0], found[0], len(slices)):
            problems.add(
                "mask that lies elsewhere in space than its picture, with whose affine it must be saved", case.name
            )
            return []
        masks.append(found)
    rows = []
    for index, (one, *parts) in enumerate(zip(slices, *masks, strict=True)):
        mask = unite(parts)
        ids = np.asarray(mask.image)
        target = (ids > 0) & (ids != IGNORE_INDEX)
        name = case.name if len(slices) == 1 else f"{case.name}_{index:04d}"
        prompt = case.prompt
        if prompt is None and plan.sentences:
            # The wordings take turns by the name, so that the same files give the same sentences.
            prompt = write(describe(target, plan.sentences), plan.sentences, sum(name.encode()) % WORDINGS)
            facts["sentences written from the mask"] += 1
        facts["masks without a target"] += not target.any()
        facts["masks with grey edges, cut at half their brightness"] += mask.cut
        facts["rows without a sentence"] += prompt is None
        row = {
            "image": {"bytes": one.encoded, "path": f"{name}.{one.format.lower()}"},
            "mask": {"bytes": mask.encoded, "path": None},
            "prompt": prompt,
            "name": name,
            "patient_id": case.patient_id,
            "study_id": case.study_id,
            "spacing": one.spacing,
        }
        rows.append((row, one.image))
    return rows


# The card


def _command(name: str, plan: Plan) -> str:
    """The command that does it again; where the files lay is nobody's business."""
    words = ["tamiseg data prepare", name, "--source DIR --output DIR"]
    for one in fields(plan):
        value = getattr(plan, one.name)
        if value != one.default:
            shown = ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else value
            # With "=", because a window may begin with a minus.
            words.append(f"--{one.name.replace('_', '-')}" + ("" if value is True else f"={shlex.quote(str(shown))}"))
    return " ".join(words)


def _card(name: str, named: NamedSet | None, report: dict, notes: list[str], folder: Path, command: str) -> str:
    splits = list(report["rows"])
    prints = {split: fingerprint(stream_rows(str(folder), split)[0]) for split in splits}
    data_files = "".join(f"      - split: {split}\n        path: {split}-*.parquet\n" for split in splits)
    front = (
        "---\nlicense: other\ntask_categories:\n- image-segmentation\ntags:\n- medical\nconfigs:\n"
        f"  - config_name: default\n    data_files:\n{data_files}---\n"
    )
    about = []
    if named:
        about = [f"Source: {named.obtain}.", f"Licence: {named.licence}.", f"Cite: {named.citation}.", named.note]
    table = ["| split | rows | patients | SHA-256 of names, sentences, patients and pictures |", "|---|---|---|---|"]
    for split in splits:
        known = report["patients"][split]
        table.append(f"| {split} | {report['rows'][split]} | {known or 'unknown'} | `{prints[split]}` |")
    columns = (
        "Columns: `image`, `mask` (0 background; 255 or 1 the target, or class ids), `prompt`, `name`, `patient_id`, "
        "`study_id`, `spacing` (mm between rows and between columns); null where unknown."
    )
    decided = [f"- {note[0].upper()}{note[1:]}." for note in notes]
    leaks = ["## What the splits share", leak_table(report), LEAK_WORDS.format(near=report["near_bits"])]
    parts = [f"# {named.title if named else name}", *filter(None, about), f"Prepared by `{command}`."]
    parts += ["\n".join(table), "\n".join(decided), columns, *leaks]
    return front + "\n" + "\n\n".join(part for part in parts if part) + "\n"
