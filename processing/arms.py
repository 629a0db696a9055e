# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The arms of an evaluation: the same pictures under their own sentences, none, others' and altered ones. What the
scores lose from one arm to the next says how the model uses the words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from .prompts import SWAPS, mirror_prompt, names_side


# What an arm gives a case, as tables say it.
ARMS = {
    "full_text": "its own sentence",
    "no_text": "no sentence",
    "shuffled_text": "another case's sentence",
    "wrong_side": "left and right exchanged",
    "typo": "letters exchanged",
    "paraphrase": "other words",
    "location_removed": "its sentence without places",
    "empty": "a blank sentence",
}

# Words for words that say the same; longer phrases first, so that they are found before their parts.
SYNONYMS = {
    "infected areas": "affected regions",
    "infected area": "affected region",
    "pulmonary infection": "lung infection",
    "located in": "situated in",
    "bilateral": "two-sided",
    "unilateral": "one-sided",
    "one": "a single",
    "small": "little",
    "large": "big",
    "round": "circular",
    "elongated": "long",
    "bright": "light",
    "tumor": "mass",
    "lesions": "abnormalities",
    "lesion": "abnormality",
    "spots": "patches",
    "spot": "patch",
    "find": "locate",
    "mark": "outline",
    "picture": "image",
}
_SYNONYM = re.compile(rf"(?<![\w-])(?:{'|'.join(SYNONYMS)})(?![\w-])", re.IGNORECASE)

# What tells a place, and what belongs to it only where one is told ("all left lung", "in the upper half").
PLACES = {word for pairs in SWAPS.values() for pair in pairs for word in pair} | set(
    "bilateral unilateral middle mid center centre central medial lateral apical basal corner edge".split()
)
AROUND = set(
    "in at on of to the a an and all located situated found part parts half side sides lung lungs lobe lobes zone "
    "region image picture third".split()
)
LINKS = {"in", "at", "on", "of", "to", "the", "a", "an", "and"}  # given back to what follows a place


def text_arms(
    prompts: Sequence[str | None], arms: Sequence[str] = ("full_text", "no_text", "shuffled_text"), seed: int = 0
) -> dict[str, list[str | None]]:
    """The sentences of each arm, in the order of the rows.

    Args:
        prompts: the sentence of each row; None where it has none, which stays None in all arms but shuffled_text
            (and is blank in empty).
        arms: keys of `ARMS`.
        seed: of the shuffling and the typing errors.

    Raises:
        ValueError: an unknown arm.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"there is no arm '{unknown[0]}': choose from {', '.join(ARMS)}.")
    asked = {
        "full_text": lambda: list(prompts),
        "no_text": lambda: [None] * len(prompts),
        "shuffled_text": lambda: shuffle(prompts, seed),
        "wrong_side": lambda: [exchange_sides(prompt) for prompt in prompts],
        "typo": lambda: [misspell(prompt, seed) for prompt in prompts],
        "paraphrase": lambda: [paraphrase(prompt) for prompt in prompts],
        "location_removed": lambda: [remove_places(prompt) for prompt in prompts],
        "empty": lambda: [""] * len(prompts),
    }
    return {arm: asked[arm]() for arm in arms}


def shuffle(prompts: Sequence[str | None], seed: int) -> list[str | None]:
    """Gives each row another row's sentence, which may read the same."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    shuffled = list(prompts)
    for here, there in zip(order, np.roll(order, 1), strict=True):  # one cycle: nobody keeps its own row's sentence
        shuffled[here] = prompts[there]
    return shuffled


def exchange_sides(prompt: str | None) -> str | None:
    """Exchanges left and right; in a sentence that names neither, upper and lower. One that names no side stays."""
    return mirror_prompt(prompt, "horizontal" if names_side(prompt, "horizontal") else "vertical")


def misspell(prompt: str | None, seed: int) -> str | None:
    """Exchanges two neighbouring inner letters in every third of the words of four letters and more, at least in one.
    The same sentence is misspelt the same way each time."""
    if prompt is None:
        return None
    random = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
    # Words where an exchange shows: two different letters stand side by side inside.
    places = [
        [at for at in range(word.start() + 1, word.end() - 2) if prompt[at] != prompt[at + 1]]
        for word in re.finditer(r"[^\W\d_]{4,}", prompt)
    ]
    places = [some for some in places if some]
    letters = list(prompt)
    for chosen in random.permutation(len(places))[: max(1, len(places) // 3)]:
        at = random.choice(places[chosen])
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def paraphrase(prompt: str | None) -> str | None:
    """Says the same in other words, by the table `SYNONYMS`; a sentence with none of them stays."""
    return prompt and _SYNONYM.sub(lambda match: SYNONYMS[match[0].lower()], prompt)


def split_clauses(prompt: str) -> list[str]:
    """What commas, semicolons and full stops part, but for those inside a number; none is empty."""
    return [clause for clause in re.split(r"\s*(?:;|(?<!\d)[,.]|[,.](?!\d))\s*", prompt) if clause]


def remove_places(prompt: str | None) -> str | None:
    """Leaves out what tells where: "two infected areas, all left lung" becomes "two infected areas". None where
    nothing else was said."""
    if prompt is None:
        return None
    clauses = []
    for clause in split_clauses(prompt):
        words, kept = clause.split(), []
        while words:
            # The longest run from here that only tells a place.
            run = next((i for i, word in enumerate(words) if not _parts(word) <= PLACES | AROUND), len(words))
            if any(_parts(word) & PLACES for word in words[:run]):
                if run < len(words):
                    while words[run - 1].lower() in LINKS:
                        run -= 1
            else:
                kept += words[: max(1, run)]
                run = max(1, run)
            words = words[run:]
        if kept:
            clauses.append(" ".join(kept))
    return ", ".join(clauses) or None


def _parts(word: str) -> set[str]:
    """The words that a hyphen joins, without punctuation: "lower-left" tells two places."""
    return set(re.findall(r"[^\W_]+", word.lower()))
