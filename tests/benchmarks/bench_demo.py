# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""How quick and how heavy the demo is, started as people start it and used in a real browser.

    python -m tests.benchmarks.bench_demo                      # this checkout's demo and its model
    python -m tests.benchmarks.bench_demo . ../before          # two checkouts in turn, for a ratio
    python -m tests.benchmarks.bench_demo --model FOLDER       # another model

Of two checkouts each move of the threshold is made in turn. Peak memory is the server's, as Linux counts it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import sync_playwright


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "spaces_demo"))  # as the tests' configuration does
BAD_UPLOADS = 60
# Milliseconds from a slider's move to the moment when the regions drawn for it can be seen.
MOVE = """async (value) => {
    const slider = document.querySelector("#tam-threshold input[type=range]");
    const source = () => document.querySelector("#tam-overlay img").src;
    const before = source(), started = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    while (source() === before) {
        if (performance.now() - started > 20000) throw new Error("nothing moved");
        await new Promise(requestAnimationFrame);
    }
    await document.querySelector("#tam-overlay img").decode();
    return performance.now() - started;
}"""


def start(checkout: Path, model: str) -> tuple[subprocess.Popen, str, float]:
    """A checkout's demo as a process of its own, its address, and the seconds until it answers."""
    from tests.test_demo import free_port

    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "TAMISEG_MODEL": model}
    command = [sys.executable, str(checkout / "spaces_demo" / "app.py")]
    started = time.perf_counter()
    server = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while not answers(url):
        if server.poll() is not None:
            raise RuntimeError(f"the demo of {checkout} stopped")
        time.sleep(0.05)
    return server, url, time.perf_counter() - started


def first_answer(page, url: str) -> float:
    """Seconds from the click on an example, the first thing that is asked, to the regions on the screen."""
    from tests.test_demo_browser import says

    page.set_default_timeout(60_000)
    page.goto(url)
    example = page.locator("#tam-examples button").first
    example.wait_for()
    clicked = time.perf_counter()
    example.click()
    says(page, "Done in")
    page.locator("#tam-overlay img").wait_for()
    return time.perf_counter() - clicked


def burden(server: subprocess.Popen, url: str, folder: Path) -> tuple[int, float]:
    """How many bad files in a row got a sentence, and the peak memory in MB after the largest picture that is taken,
    asked for seven findings."""
    from tests.test_demo import write_bad_files

    client = Client(url, verbose=False)
    bad = list(write_bad_files(folder))
    refused = sum(is_refused(client, folder / bad[turn % len(bad)]) for turn in range(BAD_UPLOADS))
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 4000), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "large.png", compress_level=1)
    masks, _ = client.predict(
        picture=handle_file(folder / "large.png"), findings="; ".join("abcdefg"), api_name="/segment"
    )
    assert len(masks) == 7
    return refused, peak_memory(server.pid)


def thresholds(moves: int) -> Iterator[float]:
    """Far from one another in turn, so that each move changes the regions, and none like an earlier one, so that the
    browser has no picture of it."""
    for turn in range(moves):
        step = 0.3 * turn / moves
        yield 0.9 - step if turn % 2 else 0.1 + step


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def is_refused(client: Client, path: Path) -> bool:
    """Whether a file is answered by one plain sentence."""
    try:
        client.predict(picture=handle_file(path), api_name="/segment")
    except AppError as error:
        return str(error).endswith(".") and "\n" not in str(error)
    return False


def peak_memory(process: int) -> float:
    """Of the process so far, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("the system does not say how much memory a process took")


def main() -> None:
    from tests.test_demo_browser import ARGUMENTS, CHROMIUM

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--model", default=str(ROOT / "runs" / "quickstart" / "finetune" / "best"))
    parser.add_argument("--moves", type=int, default=30, help="of the threshold")
    arguments = parser.parse_args()
    servers: list[subprocess.Popen] = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            pages, urls = [], []
            for checkout in arguments.checkouts:
                server, url, seconds = start(checkout.resolve(), arguments.model)
                servers.append(server)
                urls.append(url)
                pages.append(browser.new_page(viewport={"width": 1280, "height": 900}))
                print(f"{checkout}: started in {seconds:.1f} s, first answer in {first_answer(pages[-1], url):.2f} s")
            times = [
                [page.evaluate(MOVE, str(threshold)) for page in pages] for threshold in thresholds(arguments.moves)
            ]
            for checkout, column in zip(arguments.checkouts, zip(*times, strict=True), strict=True):
                print(f"{checkout}: a moved threshold is seen after {statistics.median(column):.0f} ms (median)")
            if len(pages) == 2:
                ratios = [after / before for before, after in times]
                print(f"second over first, moves in turn: {statistics.median(ratios):.2f} (median)")
            for checkout, server, url in zip(arguments.checkouts, servers, urls, strict=True):
                refused, memory = burden(server, url, Path(folder))
                print(f"{checkout}: {refused} of {BAD_UPLOADS} bad files got a sentence; peak memory {memory:.0f} MB")
            browser.close()
        finally:
            for server in servers:
                server.terminate()


if __name__ == "__main__":
    main()
