# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A little of `make fuzz`, and that it notices what it is there to notice."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .fuzz import entries, workers
from .fuzz.corpus import make_corpus
from .fuzz.mutations import mutate


ROOT = Path(__file__).parent.parent
CASES = 200


def test_a_little_of_it_ends_well():
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--seed", "7"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    head, *rows, last = run.stdout.splitlines()
    assert head.split() == ["file", "given", "to", "cases", "answers", "sentences", "failures"]
    counts = np.array([row.split()[-4:] for row in rows], dtype=int).sum(axis=0)
    assert counts[0] == CASES == counts[1:].sum() and counts[1] > 20 and counts[2] > 20 and counts[3] == 0
    assert last.startswith(f"{CASES} cases, seed 7: 0 failures; ")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("model"))


def test_every_kind_is_damaged_and_the_same_way_each_time(corpus):
    assert corpus.keys() == entries.ENTRIES.keys()
    for number, kind in enumerate(list(corpus) * 5):
        _, content = corpus[kind][0]
        damaged = [mutate(content, kind, content, workers.Random(f"0-{number}")) for _ in range(2)]
        assert damaged[0] == damaged[1], kind
    for kind in corpus:
        _, content = corpus[kind][-1]
        assert any(mutate(content, kind, content, workers.Random(number)) != content for number in range(5)), kind


def hang(case):
    while True:
        pass


def eat(case):
    return bytes(3 * 2**30)


def die(case):
    os.kill(os.getpid(), signal.SIGKILL)


def ask(case):
    try:
        socket.create_connection(("localhost", 9))
    except OSError:
        raise ValueError("a sentence that hides it.") from None


def stumble(case):
    return {}["key"]


def babble(case):
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("entry", "word"),
    [(hang, "hang"), (eat, "MemoryError"), (die, "crash"), (ask, "network"), (stumble, "KeyError")]
    + [(babble, "no plain sentence"), (time.time, "TypeError")],
)
def test_failures_are_told_apart_and_stop_no_other_case(corpus, monkeypatch, entry, word):
    monkeypatch.setattr(workers, "SECONDS", 0.3)
    monkeypatch.setattr(workers, "ENTRIES", {"PNG": {entry: 1}})
    kit = entries.Kit.__new__(entries.Kit)  # these entries ask no model
    kit.corpus = corpus
    outcomes = list(workers.run_cases(kit, seed=0, numbers=[3, 4]))
    assert [(outcome.number, outcome.word) for outcome in outcomes] == [(3, word), (4, word)]
