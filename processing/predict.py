# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg predict`: a mask for a picture, for people who do not write Python."""

from pathlib import Path

import numpy as np


OVERLAY_COLOUR = (230, 159, 0)  # orange of the Okabe-Ito palette, told apart by colour-blind readers too


def add_command(commands) -> None:
    """Adds `predict` to the subcommands of `tamiseg`."""
    command = commands.add_parser("predict", help="write the mask of one picture")
    command.add_argument("image", help="picture to segment (PNG, JPEG, TIFF, ...; 8 or 16 bit)")
    command.add_argument("--text", help="what to segment, in words; without it the model answers by the picture alone")
    command.add_argument("--model", required=True, help="folder of a trained model, or its Hub id")
    command.add_argument("--output", required=True, help="PNG to write: 0 and 255, the size of the picture")
    command.add_argument("--overlay", help="PNG to write: the picture with the mask laid over it")
    command.add_argument("--threshold", type=float, default=0.5, help="probability from which a pixel counts")
    command.set_defaults(run=predict)


def predict(arguments) -> None:
    """Reads, segments and writes; says in numbers what was found."""
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold is a probability: give a number from 0 to 1, not {arguments.threshold}.")
    if not Path(arguments.image).is_file():
        raise ValueError(f"there is no picture '{arguments.image}': check the path.")
    for written in (arguments.output, arguments.overlay):
        if written is not None and not Path(written).resolve().parent.is_dir():
            raise ValueError(f"the folder of '{written}' does not exist: create it first.")

    # Here and not above: `tamiseg --help` should not wait for them.
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import logging

    import processing  # noqa: F401  (makes the Auto classes know TAMISeg)

    logging.disable_progress_bar()
    check_model_folder(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModel.from_pretrained(arguments.model).eval()

    image = processor.image_processor.load_image(arguments.image)
    inputs = processor(images=image, text=arguments.text, truncation=False, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    masks, probabilities = processor.post_process_semantic_segmentation(
        outputs,
        target_sizes=[(image.height, image.width)],
        threshold=arguments.threshold if model.config.num_labels == 2 else None,
        return_probabilities=True,
    )
    found = masks[0].numpy() > 0
    Image.fromarray((found * 255).astype(np.uint8)).save(arguments.output, format="PNG")
    if arguments.overlay:
        pixels = np.asarray(image, dtype=np.float32)
        pixels[found] = 0.55 * pixels[found] + 0.45 * np.array(OVERLAY_COLOUR, dtype=np.float32)
        Image.fromarray(pixels.round().astype(np.uint8)).save(arguments.overlay, format="PNG")
    what = arguments.text or "no sentence"
    if found.any():
        certainty = (1 - probabilities[0][0]).numpy()[found].mean()
        print(
            f"{what}: {found.sum()} pixels, {100 * found.mean():.1f} % of the picture, mean probability "
            f"{certainty:.2f}; mask in {arguments.output}"
        )
    else:
        print(f"{what}: not found; the mask in {arguments.output} is empty")


def check_model_folder(name: str) -> None:
    """Says in one sentence what a folder lacks that is no model of ours.

    Raises:
        ValueError: the folder has no config or no weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(
                f"there is no model folder '{name}': give the best/ folder of a training run, or a Hub id."
            )
        return
    for file, role in (("config.json", "config"), ("processor_config.json", "processor")):
        if not (folder / file).is_file():
            raise ValueError(f"'{name}' holds no {role} ({file}): give the best/ folder of a training run.")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"'{name}' holds no weights (model.safetensors): copy them there or train the model again.")
