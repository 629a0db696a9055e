# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a training run, its curves and what the model makes of the built-in sample, and of evaluated cases."""

from __future__ import annotations

import gc
import json
import textwrap
from itertools import zip_longest
from pathlib import Path

import numpy as np


# Okabe-Ito, told apart by colour-blind readers too.
GREEN, ORANGE, BLUE, GREY = "#009E73", "#D55E00", "#0072B2", "#666666"


def write_curves(metrics: str | Path, output: str | Path) -> None:
    """Draws loss, validation Dice with its best epoch marked, and learning rate, over the epochs.

    Args:
        metrics: `metrics.jsonl` of a run, one line per epoch.
        output: PNG to write.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    epochs = [line["epoch"] for line in lines]
    figure, (losses, dice, rate) = _figure(1, 3, (12, 3.2))
    for name, colour in (("loss", GREY), ("segmentation", BLUE), ("consistency", ORANGE), ("distillation", GREEN)):
        if f"train_{name}" in lines[0]:
            losses.plot(epochs, [line[f"train_{name}"] for line in lines], color=colour, label=name)
    losses.set_title("Training loss")
    losses.legend(frameon=False)
    for name, colour in (("dice_per_image", BLUE), ("dice_global", ORANGE)):
        values = [100 * line[f"validation_{name}"] for line in lines]
        dice.plot(epochs, values, color=colour, label=name.replace("_", " "))
        if name == "dice_per_image":  # which the weights are chosen by; the first of equals is kept
            best = max(range(len(values)), key=values.__getitem__)
            dice.plot(epochs[best], values[best], "*", color=BLUE, markersize=14)
            dice.set_title(f"Validation Dice in %, best {values[best]:.1f} in epoch {epochs[best]}")
    dice.legend(frameon=False)
    rate.plot(epochs, [line["learning_rate"] for line in lines], color=GREY)
    rate.set_title("Learning rate")
    for axes in (losses, dice, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(output, dpi=100)
    # A figure refers to itself and holds 3 MiB, and Python looks for such circles so seldom that a run which draws one
    # per epoch grew by 60 MiB in 2,000 steps (tests/benchmarks/bench_memory.py).
    del figure, losses, dice, rate, axes
    gc.collect()


def write_examples(model, processor, output: str | Path, pictures: int = 4) -> None:
    """Draws a picture of the built-in sample's test split under each of its sentences, one row per picture: where
    truth and mask agree in green, what only the mask holds in orange, what it misses in blue.

    Args:
        model: a `TAMISegForImageSegmentation`.
        processor: its processor.
        output: PNG to write.
        pictures: how many, the first ones of the split.
    """
    import torch

    from .builtin_sample import ROWS_PER_PICTURE, load_builtin_sample

    rows = load_builtin_sample("test", pictures * ROWS_PER_PICTURE)
    figure, axes = _figure(pictures, ROWS_PER_PICTURE, (4 * ROWS_PER_PICTURE, 3.4 * pictures))
    for row, place in zip(rows, axes.flat, strict=True):
        image = processor.image_processor.load_image(row["image"])
        inputs = processor(images=image, text=row["prompt"], return_tensors="pt").to(model.device)
        with torch.no_grad():
            outputs = model(**inputs)
        sizes = [(image.height, image.width)]
        mask = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].cpu().numpy() > 0
        truth = np.asarray(row["mask"]) > 0
        place.imshow(_agreement(image, truth, mask))
        place.set_title(row["prompt"], fontsize=9)
        place.axis("off")
    figure.savefig(output, dpi=72)


def write_sentences(pictures: list[list[dict]], output: str | Path) -> None:
    """Draws a picture per row, under each of its sentences, coloured as in `write_examples`.

    Args:
        pictures: for each its cases, as many for all, as `write_cases` takes them, with their `arm`.
        output: PNG to write.
    """
    columns = len(pictures[0])
    figure, axes = _figure(len(pictures), columns, (3.6 * columns, 3.8 * len(pictures)))
    for case, place in zip((case for some in pictures for case in some), np.ravel(axes), strict=True):
        place.imshow(_agreement(case["image"], case["truth"], case["mask"]))
        sentence = textwrap.fill(case["sentence"] or "no sentence", 48)
        place.set_title(f"{case['name']}, {case['arm']}, Dice {100 * case['dice']:.1f}\n{sentence}", fontsize=8)
        place.axis("off")
    figure.savefig(output, dpi=72)


def write_cases(cases: list[dict], output: str | Path) -> None:
    """Draws a row per case, in the given order: the picture, the contours of truth (green) and mask (orange), where
    both agree in green, only the mask in orange, only the truth in blue, and the probability on a scale from 0 to 1.

    Args:
        cases: dicts with `image` (PIL, RGB), `truth` and `mask` (bool (height, width)), `probability` (float
            in [0, 1], or None), `sentence` (or None), `name` and `dice`.
        output: PNG to write.
    """
    figure, axes = _figure(len(cases), 4, (13, 3.4 * len(cases)))
    for case, row in zip(cases, np.reshape(axes, (-1, 4)), strict=True):
        truth, mask = case["truth"], case["mask"]
        row[0].imshow(case["image"])
        row[1].imshow(case["image"])
        for area, colour in ((truth, GREEN), (mask, ORANGE)):
            if area.any() and not area.all():
                row[1].contour(area, levels=[0.5], colors=colour, linewidths=1.5)
        row[2].imshow(_agreement(case["image"], truth, mask))
        if case["probability"] is not None:
            row[3].imshow(case["probability"], cmap="viridis", vmin=0, vmax=1)
        for place in row:
            place.axis("off")
        sentence = case["sentence"] or "no sentence"
        row[0].set_title(f"{case['name']}, Dice {100 * case['dice']:.1f}: {sentence}", fontsize=9, loc="left")
        row[3].set_title("probability, 0 to 1", fontsize=9)
    figure.savefig(output, dpi=72)


def write_words(cases: list[dict], output: str | Path, words: int = 5) -> None:
    """Draws a row per case: the picture with the contour of its mask (orange), and what the pixels attend to each of
    the words that get the most, each on a scale of its own.

    Args:
        cases: dicts with `image` (PIL, RGB), `mask` (bool (height, width)), `sentence`, its `words` (strings) and
            their `maps` (float (words, rows, columns)).
        output: PNG to write.
        words: how many, at most.
    """
    figure, axes = _figure(len(cases), words + 1, (2.6 * (words + 1), 3 * len(cases)))
    for case, (first, *rest) in zip(cases, np.reshape(axes, (-1, words + 1)), strict=True):
        first.imshow(case["image"])
        if case["mask"].any() and not case["mask"].all():
            first.contour(case["mask"], levels=[0.5], colors=ORANGE, linewidths=1.5)
        first.set_title(case["sentence"], fontsize=9, loc="left")
        most = np.argsort(-case["maps"].mean(axis=(1, 2)), kind="stable")
        for place, at in zip(rest, most, strict=False):
            place.imshow(case["maps"][at], cmap="viridis")
            place.set_xlabel(f"{case['words'][at]}: {100 * case['maps'][at].mean():.1f} %", fontsize=9)
        for place in (first, *rest):
            place.set(xticks=[], yticks=[])
            place.set_frame_on(False)
    figure.savefig(output, dpi=72)


def write_scores(scores: dict[str, dict], output) -> None:
    """Draws Dice in both conventions for each arm, with its interval where there is one.

    Args:
        scores: of `SegmentationMeter.compute` and `bootstrap`, by the arm's title.
        output: PNG to write, or an open file.
    """
    figure, axes = _figure(1, 1, (9, 1.2 + 0.45 * len(scores)))
    for shift, name, colour in ((-0.12, "dice_per_image", BLUE), (0.12, "dice_global", ORANGE)):
        for place, score in enumerate(scores.values()):
            low, high = score.get(f"{name}_interval", (score[name], score[name]))
            axes.plot([100 * low, 100 * high], [place + shift] * 2, color=colour, linewidth=2)
        values = [100 * score[name] for score in scores.values()]
        places = np.arange(len(scores)) + shift
        axes.plot(values, places, "o", color=colour, label=name.replace("_", " "))
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlabel("Dice in %")
    axes.legend(frameon=False)
    figure.savefig(output, dpi=80)


def write_findings(findings: dict[str, dict[str, dict]], titles: dict[str, str], output) -> None:
    """Draws the Dice per image of each finding under each arm, with the intervals of the first arm.

    Args:
        findings: of `score_findings`, not empty.
        titles: of the arms.
        output: PNG to write, or an open file.
    """
    groups = [
        (f"{attribute}: {value}", some) for attribute, values in findings.items() for value, some in values.items()
    ]
    figure, axes = _figure(1, 1, (9, 1.2 + 0.32 * len(groups)))
    places = np.arange(len(groups))
    for number, arm in enumerate(groups[0][1]["scores"]):
        scores = [some["scores"][arm] for _, some in groups]
        if number == 0:
            intervals = np.array([score["dice_per_image_interval"] for score in scores])
            axes.hlines(places, *(100 * intervals.T), color=BLUE)
        axes.plot(
            [100 * score["dice_per_image"] for score in scores], places, "o", color=f"C{number}", label=titles[arm]
        )
    axes.set_yticks(places, [f"{title} ({some['cases']})" for title, some in groups])
    axes.invert_yaxis()
    axes.set_xlabel("Dice per image in %; in brackets the cases")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(output, dpi=80)


def write_pairs(by_arm: dict[str, list[float]], output) -> None:
    """Draws one picture under several sentences: the Dice of each case under each arm over that under the first.

    Args:
        by_arm: Dice in [0, 1] by the arm's title, in one order of cases; two arms or more.
        output: PNG to write, or an open file.
    """
    (title, first), *others = by_arm.items()
    columns = min(4, len(others))
    rows = -(-len(others) // columns)
    figure, axes = _figure(rows, columns, (3.4 * columns, 3.5 * rows))
    for place, pair in zip_longest(np.ravel(axes), others):
        if pair is None:
            place.axis("off")
            continue
        place.plot([0, 100], [0, 100], color=GREY, linewidth=1)
        place.plot(100 * np.array(first), 100 * np.array(pair[1]), "o", color=BLUE, markersize=3, alpha=0.4)
        place.set(title=pair[0], xlabel=f"Dice with {title}", aspect="equal")
    figure.savefig(output, dpi=80)


def write_tokens(pictures: dict[str, np.ndarray], cells: dict[str, np.ndarray], output) -> None:
    """Draws features in two planes: of pictures by their kind, and of cells by what they show.

    Args:
        pictures, cells: points (points, 2) by title, two titles each.
        output: PNG to write, or an open file.
    """
    figure, both = _figure(1, 2, (10, 4.6))
    for axes, points, title in zip(both, (pictures, cells), ("Pictures", "Cells of the data set"), strict=True):
        for (name, some), colour in zip(points.items(), (BLUE, ORANGE), strict=True):
            axes.plot(*some.T, "o", color=colour, markersize=3, alpha=0.4, label=f"{name} ({len(some)})")
        axes.set(title=f"{title}, t-SNE", xticks=[], yticks=[])
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(output, dpi=80)


def write_differences(rows: list[dict], output) -> None:
    """Draws how much Dice each variant of a group gains or loses, with its interval.

    Args:
        rows: of a group of `experiments.matrix`'s summary.
        output: PNG to write, or an open file.
    """
    compared = [row for row in rows if row["compared"]]
    figure, axes = _figure(1, 1, (9, 1.2 + 0.4 * len(compared)))
    for shift, arm, title, colour in (
        (-0.12, "main", "with its own sentence, where it reads one", BLUE),
        (0.12, "no_text", "with none", ORANGE),
    ):
        places = np.arange(len(compared)) + shift
        intervals = 100 * np.array([row["compared"][arm]["interval"] for row in compared])
        axes.hlines(places, *intervals.T, color=colour, linewidth=2)
        values = [100 * row["compared"][arm]["difference"] for row in compared]
        axes.plot(values, places, "o", color=colour, label=title)
    axes.axvline(0, color=GREY, linewidth=1)
    titles = [f"{row['variant']} against {row['against']}".replace("_", " ") for row in compared]
    axes.set_yticks(range(len(compared)), titles)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)  # one part may cost thirty points where another brings a half
    low, high = axes.get_xlim()
    ticks = [tick for tick in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("difference in points of Dice per image")
    axes.legend(frameon=False)
    figure.savefig(output, dpi=80)


def write_budgets(curves: dict[str, list[dict]], output, format: str = "png") -> None:
    """Draws Dice over the share of the training masks that was shown, with intervals, and each seed as a dot.

    Args:
        curves: of `ablations.curves`, not empty.
        output: file to write, or an open one.
        format: png, or svg without date and with names that are the same each time.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "tamiseg"}):
        figure, axes = _figure(1, 1, (8, 4.4))
        for number, (title, points) in enumerate(curves.items()):
            line, colour = ("o-", "s--")[number // 4 % 2], (BLUE, GREY, ORANGE, GREEN)[number % 4]
            shares = np.array([100 * point["share"] for point in points])
            intervals = 100 * np.array([point["interval"] for point in points])
            axes.fill_between(shares, *intervals.T, color=colour, alpha=0.15, linewidth=0)
            axes.plot(shares, [100 * point["dice"] for point in points], line, color=colour, label=title)
            for share, point in zip(shares, points, strict=True):
                seeds = [100 * dice for dice in point["seeds"]]
                axes.plot([share] * len(seeds), seeds, ".", color=colour, alpha=0.5, markersize=4)
        axes.set_xscale("log")
        ticks = sorted({point["share"] for points in curves.values() for point in points})
        axes.set_xticks([100 * share for share in ticks], [f"{100 * share:g} %" for share in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlabel="share of the masks that was shown", ylabel="Dice per image in %")
        axes.legend(frameon=False)
        figure.savefig(output, dpi=80, format=format, metadata={"Date": None} if format == "svg" else None)


def write_calibration(scores: dict[str, dict], output) -> None:
    """Draws, for each arm, how often pixels of a probability belong to the target, and the global Dice that another
    threshold would have given; both come from the same counts.

    Args:
        scores: of `SegmentationMeter.compute`, with `reliability`, by the arm's title.
        output: PNG to write, or an open file.
    """
    figure, (calibration, threshold) = _figure(1, 2, (11, 4.2))
    calibration.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for title, score in scores.items():
        pixels, probabilities, hits = (
            np.array(score["reliability"][key]) for key in ("pixels", "probabilities", "hits")
        )
        filled = pixels > 0
        label = f"{title} (ECE {100 * score['ece']:.2f} %)"
        calibration.plot(
            probabilities[filled] / pixels[filled], hits[filled] / pixels[filled], "o-", markersize=4, label=label
        )
        # From the highest bin down, what a threshold at the bin's lower edge takes in.
        tp, taken = (np.cumsum(counts[::-1])[::-1] for counts in (hits, pixels))
        edges = np.arange(len(pixels)) / len(pixels)
        threshold.plot(edges, 100 * 2 * tp / np.maximum(taken + hits.sum(), 1), "o-", markersize=4)
    calibration.set(xlabel="probability", ylabel="share that belongs to the target", title="Calibration")
    calibration.legend(frameon=False, fontsize=8)
    threshold.axvline(0.5, color=GREY, linewidth=1)
    threshold.set(xlabel="threshold", title="Global Dice in %")
    figure.savefig(output, dpi=80)


def write_areas(cases: list[dict], output) -> None:
    """Draws the Dice of each case against the area of its target.

    Args:
        cases: rows with dice, tp and fn, numbers or their digits.
        output: PNG to write, or an open file.
    """
    figure, axes = _figure(1, 1, (9, 3.6))
    areas = [int(case["tp"]) + int(case["fn"]) for case in cases]
    axes.plot(areas, [100 * float(case["dice"]) for case in cases], "o", color=BLUE, markersize=4, alpha=0.5)
    axes.set_xscale("symlog")  # a target may be empty
    axes.set(xlabel="area of the target in pixels", ylabel="Dice in %")
    figure.savefig(output, dpi=80)


def _agreement(image, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture (PIL, RGB) as floats in [0, 1], coloured where truth and mask (bool) agree and differ."""
    from matplotlib.colors import to_rgb

    pixels = np.asarray(image) / 255
    for where, colour in ((truth & mask, GREEN), (mask & ~truth, ORANGE), (truth & ~mask, BLUE)):
        pixels[where] = 0.45 * pixels[where] + 0.55 * np.array(to_rgb(colour))
    return pixels


def _figure(rows: int, columns: int, size: tuple[float, float]):
    """A figure that needs no screen, and is not kept by pyplot: a run draws one per epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)
