# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg analyse-teacher`: what a teacher knows of medical pictures, and what of it reached a student.

    tamiseg analyse-teacher TEACHER --student runs/without/best runs/with/best --dataset my_data --output runs/teacher

Pictures go through the frozen teacher, whose tokens form a grid, and through each student's encoder, whose four maps
are averaged over the cells of that grid, as distillation does. Of each of these features it says

    probe       how well a linear map of a cell's features (ridge regression, its penalty chosen by cross-validation)
                tells which share of the cell is target: Dice of the held-out masks that it draws. Beside it the same
                of the cell's place alone, which needs no picture, and of the truth on that grid, which is the most
                that so coarse a grid allows.
    separation  how far cells of target (over half of them) and of background (nothing of it) lie apart
    CKA         how alike a student's features are to the teacher's, from 0 to 1, without bias for many channels
    dimension   over how many directions the features spread

CKA and dimension also elsewhere: on pictures of --natural, or the built-in synthetic sample, which stands in for them.

All features are kept in memory: 4 bytes times channels times cells for each picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .metrics import SegmentationMeter, bootstrap, in_percent, score_case


OPTIONS = ("student", "dataset", "split", "train_rows", "max_rows", "natural", "seed", "output")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge regression, in shares of a channel's variance
FOLDS = 5
BATCH = 16
PLANE_CELLS = 1000  # that are drawn: t-SNE takes as long as all the rest for a few thousand


def add_command(commands) -> None:
    """Adds `analyse-teacher` to the subcommands of `tamiseg`."""
    command = commands.add_parser("analyse-teacher", help="measure what a teacher knows, and what reached students")
    command.add_argument("teacher", help="folder or Hub id of a vision model, as --teacher of train_hf.py takes it")
    command.add_argument("--student", nargs="+", default=[], metavar="MODEL", help="trained models to compare with it")
    command.add_argument("--dataset", required=True, help="builtin, a folder, or a Hub id, as for training")
    command.add_argument(
        "--split", default="test", help="which rows are held out: validation or test; the probe learns from train"
    )
    command.add_argument("--train_rows", type=int, default=500, help="a random subset of the training rows")
    command.add_argument("--max_rows", type=int, default=300, help="a random subset of the held-out rows")
    command.add_argument("--natural", metavar="DIR", help="folder of natural pictures; without it, synthetic ones")
    command.add_argument("--seed", type=int, default=0, help="of resampling")
    command.add_argument("--output", required=True, help="folder for result.json and tokens.png")
    command.set_defaults(run=run)


def run(arguments) -> None:
    """Analyses, writes and prints."""
    import torch

    from modeling_tamiseg.distillation import SemanticDistiller

    from .data import column, fingerprint, load_rows
    from .evaluation import build, command_of, hash_weights, local_folder, output_folder, receipt
    from .hub import without_folders
    from .model_card import describe_rows
    from .plots import write_tokens
    from .report import as_markdown

    output = output_folder(arguments.output, "transfer")
    if arguments.split == "train":
        raise ValueError("the probe learns from the split train: give another --split to hold out.")
    rows = {
        split: load_rows(arguments.dataset, split, max_rows=most)
        for split, most in (("train", arguments.train_rows), (arguments.split, arguments.max_rows))
    }
    others = other_pictures(arguments.natural, arguments.max_rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher_folder = local_folder(arguments.teacher)
    check_teacher(arguments.teacher)
    teacher = SemanticDistiller.from_pretrained(str(teacher_folder), []).to(device)
    students = {name: build(name, None, device) for name in arguments.student}
    see = Eyes(teacher, {name: segment for name, (segment, _) in students.items()})

    fitted, held_out = (read_rows(rows[split], see) for split in ("train", arguments.split))
    elsewhere = see(others)
    pictures, cells = plane_of(held_out, elsewhere["teacher"], arguments.seed)
    told = {name: getattr(arguments, name) for name in OPTIONS}
    weights = hash_weights(teacher_folder)
    result = {
        **receipt(command_of("analyse-teacher", arguments.teacher, told), weights, arguments.seed, str(device)),
        "students_sha256": [weights for _, weights in students.values()],
        "arguments": without_folders({"teacher": arguments.teacher, **told}),
        "split": arguments.split,
        "transfer": {
            "grid": list(teacher.grid),
            "elsewhere": f"{len(others)} {'natural' if arguments.natural else 'synthetic'} pictures",
            "features": without_folders(compare_features(fitted, held_out, elsewhere, arguments.seed)),
            "plane": {"pictures": as_lists(pictures), "cells": as_lists(cells)},
        },
        "data": {
            **{split: fingerprint(some) for split, some in rows.items()},
            "elsewhere": fingerprint([{"image": picture, "mask": picture} for picture in others]),
        },
        "rows": {
            split: describe_rows(column(some, "prompt"), column(some, "patient_id")) for split, some in rows.items()
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_tokens(pictures, cells, output / "tokens.png")
    print(as_markdown(tables(result["transfer"])))
    print(f"\nall of it in {output / 'result.json'}, a plane of the features in {output / 'tokens.png'}")


def check_teacher(name: str) -> None:
    """Refuses a trained model of ours, which is no encoder alone, as the teacher in a folder or on the Hub.

    Raises:
        ValueError: it is one.
    """
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError:  # there is none: who loads it says so
        return
    if config.get("model_type") == "tamiseg":
        raise ValueError(
            f"'{name}' is a TAMISeg model: trained ones go behind --student of `tamiseg analyse-teacher`; a teacher "
            "is a vision model such as DINOv3."
        )


def other_pictures(folder: str | None, most: int) -> list:
    """PIL pictures, RGB: at most so many of a folder, evenly over its sorted names, or those of the built-in sample.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    from .builtin_sample import ROWS_PER_PICTURE, load_builtin_sample
    from .image_processing_tamiseg import TAMISegImageProcessor
    from .predict import PICTURE_SUFFIXES
    from .sources import files_below

    load = TAMISegImageProcessor().load_image
    if folder is None:
        return [load(row["image"]) for row in load_builtin_sample("test")[::ROWS_PER_PICTURE][:most]]
    inside = files_below(folder) if Path(folder).is_dir() else []
    paths = [path for path in inside if path.suffix.lower() in PICTURE_SUFFIXES]
    if not paths:
        raise ValueError(f"'{folder}' holds no picture ({', '.join(PICTURE_SUFFIXES)}): give another --natural.")
    chosen = np.unique(np.linspace(0, len(paths) - 1, most).astype(int))
    return [load(str(paths[at])) for at in chosen]


class Eyes:
    """Pictures to the features of the teacher and of the stages of each student, on the teacher's grid.

    Args:
        teacher: a `SemanticDistiller`.
        students: `Segmenter`s by the names of their models.
    """

    def __init__(self, teacher, students: dict):
        from .image_processing_tamiseg import TAMISegImageProcessor

        self.teacher, self.students = teacher.eval(), students
        height, width = teacher.image_size
        # Masks may have as many classes as a student knows; what is not background is target.
        classes = max([2, *(student.num_labels for student in students.values())])
        self.processor = TAMISegImageProcessor(size={"height": height, "width": width}, num_labels=classes)

    def __call__(self, images: list) -> dict[str, np.ndarray]:
        """PIL images, RGB, to float32 (pictures, cells, channels): "teacher", and "MODEL, stage 1" and so on."""
        import torch
        import torch.nn.functional as F

        found: dict[str, list] = {}
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                some = images[start : start + BATCH]
                pixels = self.processor(images=some, return_tensors="pt")["pixel_values"]
                tokens = self.teacher.teacher_tokens(pixels.to(self.teacher.scale.device))
                found.setdefault("teacher", []).append(tokens.float().cpu())
                for name, student in self.students.items():
                    pixels = student.processor.image_processor(images=some, return_tensors="pt")["pixel_values"]
                    maps = student.model.get_image_features(pixels.to(student.model.device))
                    for stage, feature_map in enumerate(maps, start=1):
                        cells = (
                            F.adaptive_avg_pool2d(feature_map.float(), self.teacher.grid).flatten(2).transpose(1, 2)
                        )
                        found.setdefault(f"{name}, stage {stage}", []).append(cells.cpu())
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def read_rows(rows: Sequence[dict], see: Eyes) -> dict:
    """The features of all rows; `shares` float32 (rows, cells), how much of each cell is target; and `cases`, what is
    needed to score a row: `truth` and `keep`, bool (height, width), `name`, `patient_id`."""
    from tqdm import tqdm

    from .data import read_pair
    from .image_processing_tamiseg import IGNORE_INDEX

    parts, shares, cases = [], [], []
    for start in tqdm(range(0, len(rows), BATCH), unit="batch", mininterval=1):
        pairs = [read_pair(rows, index, see.processor) for index in range(start, min(start + BATCH, len(rows)))]
        parts.append(see([pair["image"] for pair in pairs]))
        for pair in pairs:
            mask = np.asarray(pair["mask"])
            truth, keep = (mask > 0) & (mask != IGNORE_INDEX), mask != IGNORE_INDEX
            cases.append({"truth": truth, "keep": keep, "name": pair["name"], "patient_id": pair["patient_id"]})
            shares.append(resize(truth, see.teacher.grid, average=True).ravel())
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"features": features, "shares": np.stack(shares), "cases": cases, "grid": see.teacher.grid}


def resize(values: np.ndarray, size: tuple[int, int], average: bool = False) -> np.ndarray:
    """A map (rows, columns) to another size, float32: means over cells, or else bilinear."""
    from PIL import Image

    how = Image.Resampling.BOX if average else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size[::-1], how))


# The measures


def compare_features(fitted: dict, held_out: dict, elsewhere: dict[str, np.ndarray], seed: int) -> list[dict]:
    """What is told of each feature, the teacher's first, then of the two that stand for comparison.

    Args:
        fitted, held_out: of `read_rows`.
        elsewhere: features of other pictures, by name.
        seed: of the resampling.

    Returns:
        For each `name`, `channels`, `probe` (see `draw`), `separation` (see `separate`); of features of pictures also
        `dimension`, and of students `cka`, both `here` (held out) and `elsewhere`.
    """
    cells = fitted["shares"].shape[1]
    features = {name: (some, held_out["features"][name]) for name, some in fitted["features"].items()}
    features["place alone"] = tuple(
        np.broadcast_to(np.eye(cells, dtype=np.float32), (len(some["shares"]), cells, cells))
        for some in (fitted, held_out)
    )
    told = []
    for name, (known, unseen) in features.items():
        guesses, cut = probe(known, fitted["shares"], unseen)
        entry = {"name": name, "channels": known.shape[-1], "probe": draw(guesses, cut, held_out, seed)}
        entry["separation"] = separate(flat(unseen), guesses.ravel(), held_out["shares"].ravel())
        if name in elsewhere:
            pictures = {"here": held_out["features"], "elsewhere": elsewhere}
            entry["dimension"] = {kind: dimension(flat(some[name])) for kind, some in pictures.items()}
            if told:  # the first is the teacher itself
                entry["cka"] = {kind: cka(flat(some[name]), flat(some["teacher"])) for kind, some in pictures.items()}
        told.append(entry)
    cut = best_cut(fitted["shares"], fitted["shares"])
    told.append({"name": "truth on this grid", "channels": 1, "probe": draw(held_out["shares"], cut, held_out, seed)})
    return told


def flat(features: np.ndarray) -> np.ndarray:
    """(pictures, cells, channels) to float64 (tokens, channels)."""
    return features.reshape(-1, features.shape[-1]).astype(np.float64)


def probe(known: np.ndarray, shares: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, float]:
    """A linear map from the features of a cell to its share of target, in closed form.

    Args:
        known: (pictures, cells, channels) to learn from.
        shares: (pictures, cells) of these.
        unseen: (other pictures, cells, channels).

    Returns:
        What it guesses of the unseen pictures, float64 (other pictures, cells), and where to cut its guesses.
    """
    centre, spread = flat(known).mean(axis=0), flat(known).std(axis=0)
    spread[spread == 0] = 1
    shares = shares.astype(np.float64)
    mean = shares.mean()
    # Whole pictures go to a fold, by turns.
    folds = [((flat(known[at::FOLDS]) - centre) / spread, shares[at::FOLDS].ravel() - mean) for at in range(FOLDS)]
    squares = [(x.T @ x, x.T @ y, y @ y) for x, y in folds]
    all_squares, all_products = (sum(some) for some in list(zip(*squares, strict=True))[:2])
    ridge = shares.size * np.eye(known.shape[-1])

    def from_others(penalty: float) -> list[np.ndarray]:
        """For each fold, the weights that all others give."""
        return [np.linalg.solve(all_squares - xx + penalty * ridge, all_products - xy) for xx, xy, _ in squares]

    def error(penalty: float) -> float:
        weights = from_others(penalty)
        return sum(yy - 2 * w @ xy + w @ xx @ w for w, (xx, xy, yy) in zip(weights, squares, strict=True))

    penalty = min(PENALTIES, key=error)
    # Cut where it is best for pictures that were not fitted: on fitted ones the guesses are too good.
    honest = np.concatenate([x @ w for w, (x, _) in zip(from_others(penalty), folds, strict=True)])
    cut = best_cut(honest + mean, np.concatenate([y for _, y in folds]) + mean)
    weights = np.linalg.solve(all_squares + penalty * ridge, all_products)
    guesses = ((flat(unseen) - centre) / spread) @ weights + mean
    return guesses.reshape(unseen.shape[:2]), cut


def best_cut(guesses: np.ndarray, shares: np.ndarray) -> float:
    """Where to cut the guesses so that the cells above it have the highest Dice with the shares of target, pooled."""
    order = np.argsort(-guesses, axis=None, kind="stable")
    hits = np.cumsum(shares.ravel()[order], dtype=np.float64)
    scores = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
    at = int(scores.argmax())
    ranked = guesses.ravel()[order]
    return float((ranked[at] + ranked[min(at + 1, len(ranked) - 1)]) / 2)


def draw(guesses: np.ndarray, cut: float, held_out: dict, seed: int) -> dict:
    """Scores of the masks that guesses (pictures, cells) draw, brought to the size of each picture and cut there:
    `dice_per_image` and `dice_global` with their intervals."""
    cases = []
    for guess, case in zip(guesses, held_out["cases"], strict=True):
        mask = resize(guess.reshape(held_out["grid"]), case["truth"].shape) > cut
        cases.append(score_case(mask, case["truth"], case["name"], case["patient_id"], keep=case["keep"]))
    scores = {**SegmentationMeter(cases).compute(), **bootstrap(cases, seed)}
    return {name: scores[name] for name in scores if name.startswith("dice")}


def separate(features: np.ndarray, guesses: np.ndarray, shares: np.ndarray) -> dict[str, float | None]:
    """How far the two classes of cells lie apart: those with over half of target, and those with none of it.

    Args:
        features: (tokens, channels).
        guesses, shares: (tokens,), of the probe and of the truth.

    Returns:
        `fisher`: squared distance of the class means over the sum of both variances, channels scaled alike.
        `auc`: how often the probe ranks a cell of target above one of background. None where a class is empty.
    """
    from scipy.stats import rankdata

    classes = shares > 0.5, shares == 0
    if not (classes[0].any() and classes[1].any()):
        return {"fisher": None, "auc": None}
    spread = features.std(axis=0)
    target, background = (features[some] / np.where(spread == 0, 1, spread) for some in classes)
    distance = ((target.mean(axis=0) - background.mean(axis=0)) ** 2).sum()
    within = target.var(axis=0).sum() + background.var(axis=0).sum()
    ranks = rankdata(np.concatenate([guesses[some] for some in classes]))[: len(target)]
    above = ranks.sum() - len(target) * (len(target) + 1) / 2
    return {"fisher": float(distance / within), "auc": float(above / (len(target) * len(background)))}


def cka(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Linear centred kernel alignment of two features of the same tokens, (tokens, channels) each: 1 where they differ
    by a rotation and a scale, about 0 where they have nothing in common, whatever the channels.

    By the unbiased estimate of HSIC (Song et al., 2012; Nguyen et al., 2021), computed from products of channels, so
    that no table of tokens by tokens is needed."""
    together, alone = unbiased_hsic(ours, theirs), unbiased_hsic(ours, ours) * unbiased_hsic(theirs, theirs)
    return float(together / np.sqrt(alone)) if alone > 0 else 0.0


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)  # changes nothing but the rounding
    n = len(x)
    # Kernels K = x x^T and L = y y^T without their diagonals: their product's trace, their sums over rows.
    k, m = (x * x).sum(axis=1), (y * y).sum(axis=1)
    rows_k, rows_m = x @ x.sum(axis=0) - k, y @ y.sum(axis=0) - m
    trace = ((x.T @ y) ** 2).sum() - k @ m
    return (trace + rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_m) / (n - 2)) / (
        n * (n - 3)
    )


def dimension(features: np.ndarray) -> float:
    """Over how many directions the tokens spread: the participation ratio of the variances, which is the number of
    channels where all vary alike and by themselves, and 1 where one direction is all there is."""
    covariance = np.cov(features, rowvar=False).reshape(features.shape[1], -1)
    return float(np.trace(covariance) ** 2 / max((covariance**2).sum(), 1e-30))


def plane_of(held_out: dict, elsewhere: np.ndarray, seed: int) -> tuple[dict, dict]:
    """The teacher's features as t-SNE lays them out in a plane: of whole pictures (means over their cells), by where
    they come from, and of cells of the held-out ones, by what they show; each (points, 2)."""
    ours, shares = held_out["features"]["teacher"], held_out["shares"].ravel()
    pictures = lay_out(np.concatenate([ours.mean(axis=1), elsewhere.mean(axis=1)]), seed)
    chosen = np.random.default_rng(seed).permutation(len(shares))[:PLANE_CELLS]
    cells, shares = lay_out(ours.reshape(-1, ours.shape[-1])[chosen], seed), shares[chosen]
    return (
        {"the data set": pictures[: len(ours)], "elsewhere": pictures[len(ours) :]},
        {"background": cells[shares == 0], "target": cells[shares > 0.5]},
    )


def as_lists(planes: dict[str, np.ndarray]) -> dict[str, list[list[float]]]:
    """Points of `plane_of` for a result file: of each kind all x, then all y, to a tenth: finer than a dot."""
    return {kind: points.T.astype(np.float64).round(1).tolist() for kind, points in planes.items()}


def lay_out(features: np.ndarray, seed: int) -> np.ndarray:
    """(points, channels) to (points, 2), by t-SNE of their 50 largest principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if min(features.shape) > 50:
        features = PCA(50, random_state=seed).fit_transform(features)
    # Begun at random, for principal components as the start crash where all features are the same (scikit-learn 1.9).
    return TSNE(perplexity=min(30, (len(features) - 1) / 3), init="random", random_state=seed).fit_transform(features)


def tables(found: dict) -> list[str | list[list[str]]]:
    """The entry `transfer` of a result, as paragraphs and tables (the first row of each is its head)."""
    rows = [
        ["features", "channels", "Dice per image of the probe", "Dice global", "AUC", "Fisher", "CKA", "CKA elsewhere",
         "dimension", "dimension elsewhere"]
    ]  # fmt: skip
    for some in found["features"]:
        probed, apart = some["probe"], some.get("separation", {})
        alike, spread = some.get("cka", {}), some.get("dimension", {})
        numbers = [apart.get("auc"), apart.get("fisher"), alike.get("here"), alike.get("elsewhere")]
        dimensions = [spread.get("here"), spread.get("elsewhere")]
        rows.append(
            [
                some["name"],
                str(some["channels"]),
                in_percent(probed["dice_per_image"], probed["dice_per_image_interval"]),
                in_percent(probed["dice_global"]),
                *("-" if value is None else f"{value:.3f}" for value in numbers),
                *("-" if value is None else f"{value:.1f}" for value in dimensions),
            ]
        )
    height, width = found["grid"]
    return [
        f"A linear probe on each cell of the teacher's grid of {height}x{width}, on held-out rows; how far cells of "
        "target and of background lie apart; how alike a student's stages are to the teacher (CKA, from 0 to 1), and "
        f"over how many directions features spread, both also elsewhere: on {found['elsewhere']}.",
        rows,
    ]
