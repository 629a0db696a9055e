# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Gives a trained model a small text encoder: a two-layer BERT learns to say to the pixels what the large one says.

    python -m experiments.distil_text_encoder --model runs/finetune/best --dataset data/qata_cov19 --output runs/mobile

The vocabulary stays whole, so that words which no training sentence holds are still read. The student is asked for
the projected words (what image tokens attend to), token by token, on the training sentences, on sentences that are
cut, mixed and misspelt from them, and on random words. No picture is needed; everything else of the model is kept.
Weights are stored in 16 bits and loaded in 32. The folder comes with its result file (validation) and its card.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor, BertConfig

from modeling_tamiseg import TAMISegConfig, TAMISegForImageSegmentation
from processing.arms import text_arms
from processing.data import column, fingerprint, load_rows
from processing.evaluation import Segmenter, evaluate, hash_weights, receipt
from processing.hub import list_code, without_folders
from processing.model_card import describe_rows, model_card
from processing.prompts import mirror_prompt, normalize_prompt


def with_small_text_encoder(model, hidden_size: int, layers: int) -> TAMISegForImageSegmentation:
    """A copy of `model` whose text encoder, and the projection after it, are new and small."""
    old = model.config.text_config
    text_config = BertConfig(
        vocab_size=old.vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=old.max_position_embeddings,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    fields = {**model.config.to_dict(), "text_config": text_config.to_dict(), "freeze_text_encoder": True}
    small = TAMISegForImageSegmentation(TAMISegConfig(**fields))
    kept = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith(("text_encoder.", "alignment.text_projection."))
    }
    small.load_state_dict(kept, strict=False)
    return small


def vary(sentences: list[str], random: np.random.Generator) -> str:
    """A sentence made of training sentences: one as it is, or cut, mixed, mirrored, misspelt."""
    sentence = sentences[random.integers(len(sentences))]
    kind = random.integers(6)
    words = sentence.split()
    if kind == 1:  # phrases of several
        phrases = [p for _ in range(3) for p in sentences[random.integers(len(sentences))].rstrip(".").split(", ")]
        return ", ".join(random.permutation(phrases)[: random.integers(1, 6)])
    if kind == 2:  # words left out
        return " ".join(word for word in words if random.random() > 0.2) or sentence
    if kind == 3:  # words in another order
        return " ".join(random.permutation(words))
    if kind == 4:
        return mirror_prompt(sentence, "horizontal" if random.random() < 0.5 else "vertical")
    if kind == 5:  # a letter lost or doubled
        place = random.integers(len(sentence))
        return sentence[:place] + random.choice(["", 2 * sentence[place]]) + sentence[place + 1 :]
    return sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--dataset", required=True, help="whose training sentences to use")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_license", help="terms of the data, a sentence for the card")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    processor = AutoProcessor.from_pretrained(arguments.model)
    teacher = AutoModel.from_pretrained(arguments.model).eval()
    student = with_small_text_encoder(teacher, arguments.hidden_size, arguments.layers).eval()
    rows = {split: load_rows(arguments.dataset, split) for split in ("train", "validation")}
    prompts = column(rows["train"], "prompt")
    sentences = sorted({normalize_prompt(prompt) for prompt in prompts} - {None})
    vocabulary = list(processor.tokenizer.get_vocab())

    learned = [*student.text_encoder.parameters(), *student.alignment.text_projection.parameters()]
    for parameter in learned:
        parameter.requires_grad_(True)
    student.text_encoder.frozen = False
    optimizer = torch.optim.AdamW(learned, lr=arguments.learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, arguments.steps)
    bar = tqdm(range(arguments.steps), mininterval=5)
    for step in bar:
        texts = [
            vary(sentences, random)
            if random.random() < 0.8
            else " ".join(random.choice(vocabulary, random.integers(1, 16)))
            for _ in range(arguments.batch_size)
        ]
        batch = processor(text=texts, return_tensors="pt")
        with torch.no_grad():
            wanted = read(teacher, batch)
        read_words = batch["attention_mask"].bool()
        error = (read(student, batch)[read_words] - wanted[read_words]).square().mean()
        error.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(error=f"{error.item():.4f}", of=f"{wanted[read_words].var().item():.3f}")
    student.text_encoder.frozen = True
    save(student, processor, Path(arguments.output))
    write_receipts(arguments, rows, student)
    print(f"{arguments.output}: {sum(p.numel() for p in student.parameters()) / 1e6:.2f} M parameters")


def save(model, processor, folder: Path) -> None:
    """Weights of 16 bits under a config that says 32, which is what they are loaded as: few CPUs compute in 16."""
    model.requires_grad_(False).half().save_pretrained(folder)
    processor.save_pretrained(folder)
    list_code(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["vision_config"], config["text_config"]):
        part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_receipts(arguments, rows: dict, model) -> None:
    """Scores what was saved on validation, and writes result file and card as training does."""
    folder, source = Path(arguments.output), Path(arguments.model).parent / "result.json"
    saved = AutoModel.from_pretrained(folder).eval()
    segment = Segmenter(saved, AutoProcessor.from_pretrained(folder))
    arms = text_arms(
        [normalize_prompt(prompt) for prompt in column(rows["validation"], "prompt")], seed=arguments.seed
    )
    scores = evaluate(Accelerator(cpu=True), segment, rows["validation"], arms, 16)
    trained = json.loads(source.read_text()) if source.is_file() else {"arguments": {}, "steps": 0}
    size = f"BERT of {arguments.layers} layers and width {arguments.hidden_size}"
    patients = [set(column(some, "patient_id")) - {None} for some in rows.values()]
    result = {
        **receipt(
            "python -m experiments.distil_text_encoder " + shlex.join(sys.argv[1:]),
            hash_weights(folder / "model.safetensors"),
            arguments.seed,
            "cpu",
        ),
        "arguments": without_folders(
            {
                **trained["arguments"],
                "dataset": arguments.dataset,
                "text_model": f"{size}, distilled from {trained['arguments'].get('text_model', 'the model it had')}",
                "data_license": arguments.data_license,
                "output_dir": arguments.output,
            }
        ),
        "trained_by": trained.get("command"),
        "split": "validation",
        "scores": scores,
        "data": {split: fingerprint(some) for split, some in rows.items()},
        "rows": {
            split: describe_rows(column(some, "prompt"), column(some, "patient_id")) for split, some in rows.items()
        },
        "shared_patients": len(set.intersection(*patients)),
        "sources": {"dataset": "folder", "vision_model": "folder", "text_model": "folder", "teacher": None},
        "steps": trained["steps"],
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "README.md").write_text(model_card([result], str(folder), {}))


def read(model, batch) -> torch.Tensor:
    """Sentences to what image tokens attend to, `(num_sentences, sequence_length, hidden_size)`."""
    alignment = model.alignment
    return alignment.text_norm(alignment.text_projection(model.get_text_features(**batch)))


if __name__ == "__main__":
    main()
