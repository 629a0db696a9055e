# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs each case in a forked process that may crash, hang or eat memory, and says how it ended."""

import multiprocessing
import os
import re
import resource
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import datasets

from processing.data import NoSuchSplit

from .entries import ENTRIES, Case, Kit
from .mutations import mutate


SECONDS = 5  # of processor time, in which a case must end; a busy machine changes nothing
WAIT = 60  # seconds by the clock, for a case that sleeps
MEMORY = 2 * 1024**3  # bytes, above what the process starts with
CASES_PER_PROCESS = 200
OURS = (ValueError, OSError, FileNotFoundError, NoSuchSplit)  # other libraries' own errors are no plain sentence
LONGEST = 600  # letters of a sentence, without what it quotes


@dataclass
class Outcome:
    """How a case ended: "answer", "sentence", or else what went wrong."""

    number: int
    word: str
    said: str = ""


def choose(seed: int, number: int) -> tuple[str, str, Random]:
    """Kind of file and entry point of a case, and where all its draws come from."""
    random = Random(f"{seed}-{number}")
    kind = random.choice(list(ENTRIES))
    entries = ENTRIES[kind]
    (entry,) = random.choices(list(entries), entries.values())
    return kind, entry, random


def run_case(kit: Kit, seed: int, number: int, folder: Path) -> None:
    """Makes the case's file in `folder` and gives it in; raises what comes out."""
    kind, entry, random = choose(seed, number)
    files = kit.corpus[kind]
    end, content = random.choice(files)
    content = mutate(content, kind, random.choice(files)[1], random)
    entry(Case(kind, end, content, folder, kit, random))


def judge(kit: Kit, seed: int, number: int) -> Outcome:
    """Runs a case in this process."""
    asked = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.config.HF_DATASETS_CACHE = Path(folder) / ".cache"
        no_network(asked)
        try:
            scratch = Path(folder) / "case"
            scratch.mkdir()
            run_case(kit, seed, number, scratch)
            outcome = Outcome(number, "answer")
        except BaseException as error:  # tokenizers' panics are no Exception
            said = str(error)
            shape = re.sub(r"'[^']*'", "''", said)  # people's own words may look as they like
            where = traceback.format_exc()
            # Our code catches everything that a decoder raises: a sentence may hide this.
            out_of_memory = (
                re.search(r"MemoryError|can't allocate|bad_alloc|Cannot allocate|malloc", where) is not None
            )
            if type(error) not in OURS or out_of_memory:
                outcome = Outcome(number, "MemoryError" if out_of_memory else type(error).__name__, where)
            elif not said or "\n" in shape or len(shape) > LONGEST or re.search(r" at 0x|Traceback|<class '", said):
                outcome = Outcome(number, "no plain sentence", where)
            else:
                outcome = Outcome(number, "sentence", said)
    return Outcome(number, "network", repr(asked)) if asked else outcome


def no_network(asked: list) -> None:
    """Refuses connections from now on, and keeps what was asked for."""

    def connect(self, address):
        asked.append(address)
        raise OSError("there is no network in this test")

    socket.socket.connect = connect


def run_cases(kit: Kit, seed: int, numbers: Iterable[int]) -> Iterator[Outcome]:
    """The outcome of each case. A process takes up to `CASES_PER_PROCESS`; one that dies or hangs is replaced."""
    left = list(numbers)
    while left:
        outcomes = list(_in_a_process(kit, seed, left[:CASES_PER_PROCESS]))
        yield from outcomes
        left = left[len(outcomes) :]


def _in_a_process(kit: Kit, seed: int, numbers: list[int]) -> Iterator[Outcome]:
    """Until the first case that ends the process."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_work, args=(kit, seed, numbers, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        for number in numbers:
            if not ours.poll(WAIT):
                yield Outcome(number, "hang", f"more than {WAIT} s")
                return
            try:
                yield ours.recv()
            except EOFError:
                process.join()
                slow = process.exitcode == -signal.SIGPROF
                yield Outcome(number, "hang" if slow else "crash", f"the process ended with {process.exitcode}")
                return
    finally:
        process.kill()
        process.join()
        ours.close()


def _work(kit: Kit, seed: int, numbers: list[int], pipe) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # not by contextlib: libraries in C and Rust write there too
        os.dup2(silence, stream)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends the process
        pipe.send(judge(kit, seed, number))
