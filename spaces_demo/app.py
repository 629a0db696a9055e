# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo: a picture and sentences go in, coloured regions, numbers and exact masks come out.

    python spaces_demo/app.py                               # with the shipped or the quickstart's model
    TAMISEG_MODEL=FOLDER_OR_HUB_ID python spaces_demo/app.py

Gradio's own variables choose address and port: GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_SHARE.
"""

import base64
import html
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from urllib.parse import unquote, urlsplit


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from gradio import processing_utils
from gradio.processing_utils import check_all_files_in_cache, save_bytes_to_cache, save_file_to_cache
from gradio.utils import get_upload_folder, is_in_or_equal
from PIL import Image

from batch import MAX_FILE_BYTES, MAX_FILES, collect, segment_files
from drawing import (
    file_stem,
    heat_map,
    jpeg,
    legend_html,
    mask_image,
    mask_name,
    number_cells,
    overlay,
    png,
    scale_html,
    shown_mask,
    shown_picture,
    table_html,
    zip_of,
)
from segment import Answer, Finding, Segmenter, find_model


HERE = Path(__file__).resolve().parent
KEEP_SECONDS = 900  # of answers since their last use; files: twice that since they were made, looked at as often
NOTE = (
    '<p role="note">Research demo, <strong>not a medical device</strong>: not for diagnosis or treatment. Do not '
    "upload pictures that name or show a person.</p>"
)
OPACITY, THRESHOLD = 0.4, 0.5  # of coloured regions, and of what counts, where nobody has set them
READY = "Ready. Add a picture, and say what to find in it."
NUMBERS = ["Area px", "Area %", "Regions", "Mean p"]


@dataclass
class Kept:
    """What a slider needs of the last question, so that neither the model nor the picture's file is asked again."""

    answer: Answer
    shown: Image.Image  # the picture as it is shown
    file: str  # where gradio finds that


class Handlers:
    """What the server does when a control is used.

    Args:
        segmenter: the model; None where there is none.
        problem: the sentence that says why there is none.
    """

    def __init__(self, segmenter: Segmenter | None, problem: str = ""):
        self.segmenter, self.problem = segmenter, problem
        self.turn = Lock()  # of those who go past the queue: the probabilities of a large picture fill the memory
        # Files that gradio is to delete in its time. It lists some of them by itself, but not those that are given to
        # a component which had an update before.
        self.kept: set[str] = set()

    def on_upload(self, path: str | None) -> list:
        """Says at once what is wrong with a file, and shows what browsers cannot draw (TIFF, 16 bits) as they will be
        read. Gives the picture, and what `no_answer` gives: the last answer was of another one."""
        if path is None:  # cleared before its turn came
            return [None, *no_answer(status_html(READY))]
        if self.segmenter is None:
            return [path, *no_answer(status_html(self.problem, "bad"))]
        try:
            picture, notes = self.segmenter.read(path)
        except ValueError as error:
            return [None, *no_answer(status_html(str(error), "bad"))]
        shows = Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif") and not notes
        size = f"{picture.width}x{picture.height} pixels."
        preview = path if shows else self.keep(f"{Path(path).stem}.png", png(picture))
        return [preview, *no_answer(status_html(" ".join(["Picture read:", size, *notes])))]

    def on_segment(self, path: str | None, text: str, threshold: float, opacity: float) -> Iterator[list]:
        """Gives what is kept, the choice of a finding, the heat map, and what `on_view` gives."""
        yield [gr.skip(), gr.skip(), gr.skip(), status_html("Segmenting ..."), *[gr.skip()] * 8]
        try:
            if self.segmenter is None:
                raise ValueError(self.problem)
            if path is None:
                raise ValueError("There is no picture yet: add one, or pick an example.")
            picture, notes = self.segmenter.read(path)
            answer = self.segmenter.ask(picture, text)
        except ValueError as error:
            yield no_answer(status_html(str(error), "bad"))
            return
        answer.notes = notes + answer.notes
        answer.stem = file_stem(Path(path).stem, "picture")
        shown = shown_picture(answer.picture)
        kept = Kept(answer, shown, self.keep("picture.jpg", jpeg(shown)))
        choices = [(name, index) for index, name in enumerate(answer.names)]
        choice = gr.Radio(choices=choices, value=0, visible=len(choices) > 1)
        *view, file, files = self.on_view(kept, threshold, opacity, 0)
        downloads = [gr.DownloadButton(value=value, interactive=True) for value in (file, files)]
        yield [kept, choice, self.on_heat(kept, 0), *view, *downloads]

    def on_heat(self, kept: Kept | None, index: int) -> str | None:
        """The file of the heat map of finding number `index`, which no slider changes."""
        if kept is None:
            return None
        width, height = kept.shown.size
        index = min(index, len(kept.answer.names) - 1)
        return self.keep(
            "heat-map.png", png(heat_map(self.segmenter.probability(kept.answer, index, (height, width))))
        )

    def on_view(self, kept: Kept | None, threshold: float, opacity: float, index: int) -> list:
        """Everything that a slider changes: status, overlay, comparison, legend, the heat map's scale, mask, table,
        mask file, ZIP."""
        if kept is None:
            return blank_view(threshold)
        answer = kept.answer
        with self.turn:
            findings = self.segmenter.measure(answer, threshold)
        painted = self.keep("overlay.jpg", jpeg(overlay(kept.shown, findings, opacity)))
        files = {mask_name(answer.stem, n, f): png(mask_image(f)) for n, f in enumerate(findings, start=1)}
        index = min(index, len(files) - 1)  # that of an answer before may come late
        name, mask = list(files.items())[index]
        kind = "good" if all(f.area for f in findings) else "absent"
        return [
            status_html(self.summary(answer, findings, threshold), kind),
            painted,
            (kept.file, painted),
            legend_html(findings),
            scale_html(threshold),
            self.keep("mask-shown.png", png(shown_mask(findings[index]))),
            table_html(["Finding", *NUMBERS], [[f.name, *number_cells(f)] for f in findings], "Findings in numbers"),
            self.keep(name, mask),
            self.keep(f"{answer.stem}-masks.zip", zip_of(files)),
        ]

    def on_batch(self, files: list[str], text: str, threshold: float) -> Iterator[tuple]:
        """Gives status, table and ZIP, anew after each file."""
        no_file = gr.DownloadButton(value=None, interactive=False)
        try:
            if self.segmenter is None:
                raise ValueError(self.problem)
            sources = collect(files)
            self.segmenter.check(self.segmenter.split_findings(text))  # once, and not for each file
        except ValueError as error:
            yield status_html(str(error), "bad"), "", no_file
            return
        cells, failed = [], 0
        yield progress_html(0, len(sources), sources[0][0]), "", no_file
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tamiseg-masks.zip"
            with open(path, "wb") as output:
                for done, row in enumerate(segment_files(self.segmenter, sources, text, threshold, output), start=1):
                    failed += row.error is not None
                    notes = " ".join(row.notes)
                    cells += [[row.name, row.status, f.name, *number_cells(f), notes] for f in row.findings]
                    cells += [[row.name, row.status, *["–"] * 5, notes]] if row.error else []
                    table = table_html(["File", "Status", "Finding", *NUMBERS, "Notes"], cells, "Files in numbers")
                    following = sources[done][0] if done < len(sources) else ""
                    yield progress_html(done, len(sources), following), table, no_file
            written = save_file_to_cache(path, get_upload_folder())
            self.kept.add(written)
        said = f"Done: {len(sources) - failed} of {len(sources)} files have masks."
        if failed:
            said += f" {failed} could not be used; the table says why."
        yield (
            status_html(said, "bad" if failed else "good"),
            gr.skip(),
            gr.DownloadButton(value=written, interactive=True),
        )

    def segment(
        self, picture: gr.FileData, findings: str = "", threshold: float = 0.5
    ) -> tuple[list[gr.FileData], dict]:
        """Finds what clinical sentences describe in a medical picture. Research only, not a medical device.

        Args:
            picture: file of the picture: PNG, JPEG, TIFF, BMP, GIF or WebP, 8 or 16 bits, up to 16 million pixels.
            findings: up to 7 sentences, separated by semicolons; without any, the model answers by the picture alone.
            threshold: probability from 0 to 1 from which a pixel counts.

        Returns:
            One PNG mask per finding (mode L, 0 and 255, exactly the size of the upright picture), and the numbers: for
            each finding whether it was found, area in pixels and per cent, regions, mean and highest probability; with
            width, height, seconds and notes.
        """
        try:
            if not isinstance(picture, dict) or not picture.get("path"):
                raise ValueError("There is no picture: give the file of one.")
            check_all_files_in_cache(picture)  # or any file of the server could be named
            answer, measured, numbers = self.answer(picture["path"], picture.get("orig_name"), findings, threshold)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        stem = file_stem(Path(picture["path"]).stem, "picture")
        masks = [(mask_name(stem, n, f), png(mask_image(f))) for n, f in enumerate(measured, start=1)]
        return [self.file(*mask) for mask in masks], {"findings": [f.numbers() for f in measured], **numbers}

    segment._mcp_type = "endpoint"  # and no tool, of which assistants have a better one: gradio lists only its "tool"s

    def find_in_picture(
        self, picture: str, finding: str = "", threshold: float = 0.5
    ) -> tuple[gr.FileData, gr.FileData, str]:
        """Finds what a clinical sentence describes in a medical picture. Research only, not a medical device.

        Args:
            picture: its file in base64, or the address that an upload to this page gave; no other is fetched.
            finding: one sentence on what to look for; without any, the model answers by the picture alone.
            threshold: probability from 0 to 1 from which a pixel counts.

        Returns:
            the mask (0 and 255, the picture's size), the picture with the region laid over it, and numbers
        """
        try:
            if self.segmenter is not None and len(self.segmenter.split_findings(finding)) > 1:
                raise ValueError("That is more than one finding: ask for one at a time.")
            answer, (measured,), numbers = self.answer(sent_picture(picture), "picture", finding, threshold)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        painted = overlay(shown_picture(answer.picture), [measured], OPACITY)
        mask = self.file("mask.png", png(mask_image(measured)))
        return mask, self.file("overlay.jpg", jpeg(painted)), json.dumps({**measured.numbers(), **numbers})

    def answer(
        self, source: str | BinaryIO, name: str | None, text: str, threshold: float
    ) -> tuple[Answer, list[Finding], dict]:
        """What programs are answered: the answer, its findings, and what else can be told in numbers.

        Raises:
            ValueError: in one sentence, if there is no model, or picture, findings or threshold cannot be used.
        """
        if self.segmenter is None:
            raise ValueError(self.problem)
        if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError("The threshold is a probability: give a number from 0 to 1.")
        with self.turn:
            image, notes = self.segmenter.read(source, name)
            answer = self.segmenter.ask(image, text)
            measured = self.segmenter.measure(answer, threshold)
        told = {"width": image.width, "height": image.height, "seconds": round(answer.seconds, 3)}
        return answer, measured, {**told, "notes": notes + answer.notes}

    def file(self, name: str, content: bytes) -> dict:
        """A file for programs. As a dict: inside a list gradio knows a file by its fields, gives it a URL, and deletes
        it in time."""
        return gr.FileData(path=self.keep(name, content), orig_name=name).model_dump()

    def keep(self, name: str, content: bytes) -> str:
        """Writes into gradio's cache, never beside the app, and gives the path."""
        path = save_bytes_to_cache(content, name, get_upload_folder())
        self.kept.add(path)
        return path

    def summary(self, answer: Answer, findings: list, threshold: float) -> str:
        """One line: how long it took, what was not found, and what else a person should know."""
        said = [f"Done in {answer.seconds:.2f} s on {'GPU' if self.segmenter.device == 'cuda' else 'CPU'}."]
        # Rounded down: what is below the threshold is not to look as if it reached it.
        highest = [math.floor(100 * f.highest + 1e-6) / 100 for f in findings]
        absent = [
            f"{f.name} (highest probability {p:.2f})" for f, p in zip(findings, highest, strict=True) if not f.area
        ]
        if absent:
            said.append(f"Not found at threshold {threshold:g}: {'; '.join(absent)}.")
        elif len(findings) > 1:
            said.append(f"All {len(findings)} findings found.")
        return " ".join([*said, *answer.notes])


def sent_picture(text: str) -> str | BinaryIO:
    """What an assistant gave for a picture: a file in base64, as a data URI or bare, or the address of an upload.

    Raises:
        ValueError: in one sentence, if it is neither.
    """
    text = text if isinstance(text, str) else ""
    if text.startswith(("http://", "https://")):
        path = unquote(urlsplit(text).path.partition("/file=")[2])
        if not path or not is_in_or_equal(path, get_upload_folder()) or not Path(path).is_file():
            raise ValueError("That is no upload to this page, and no other address is fetched: send base64.")
        return path
    if len(text) > MAX_FILE_BYTES * 4 / 3:
        raise ValueError(f"The picture is larger than {MAX_FILE_BYTES // 2**20} MB: make it smaller first.")
    try:
        return io.BytesIO(base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True))
    except ValueError as error:
        raise ValueError("The picture is not in base64: encode the bytes of its file.") from error


async def refuse_address(url: str, cache_dir: str) -> str:
    """Stands where gradio would fetch what a client names by its address instead of sending it."""
    raise gr.Error("Addresses are not fetched: send the file itself.", print_exception=False)


def blank_view(threshold: float) -> list:
    """As `Handlers.on_view`, where there is no answer."""
    no_file = gr.DownloadButton(value=None, interactive=False)
    return [status_html(READY), None, None, "", scale_html(threshold), None, "", no_file, no_file]


def no_answer(status: str) -> list:
    """As `Handlers.on_segment`, where there is no answer but a status; the scale stays where the slider is."""
    _, painted, compared, legend, _, *others = blank_view(THRESHOLD)
    return [None, gr.Radio(visible=False), None, status, painted, compared, legend, gr.skip(), *others]


def status_html(text: str, kind: str = "good") -> str:
    """`kind` is good, absent (answered, but not everything was found) or bad."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def progress_html(done: int, total: int, following: str) -> str:
    said = f"{done} of {total} files done." + (f" Now: {html.escape(following)}" if following else "")
    return f'<p>{said}</p><progress max="{total}" value="{done}" aria-label="Files done">{said}</progress>'


def load_examples() -> list[tuple[str, str]]:
    """Path and sentences of each example picture."""
    lines = (HERE / "examples" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [(str(HERE / "examples" / row["file_name"]), row["prompt"]) for row in map(json.loads, lines)]


# Themes of gradio are 2.5 to 2.8 : 1 in places; these reach 4.5 : 1 in both modes.
THEME = gr.themes.Default(
    primary_hue="teal",
    font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
    font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
)
CSS = """
.html-container { padding: 0 !important; }
#tam-legend:not(:has(ul)), #tam-table:not(:has(table)), #tam-batch-table:not(:has(table)) { display: none; }
#tam-image img { width: 100%; height: 100%; object-fit: contain; }
#tam-prompt textarea { field-sizing: content; height: auto !important; overflow-y: auto !important; }
#tam-note { border-left: 4px solid #D55E00; padding: 4px 12px; }
#tam-problem { border: 2px solid #D55E00; padding: 4px 12px; font-weight: 700; }
#tam-status p, #tam-batch-status p { margin: 0; padding: 6px 12px; border-left: 4px solid #009E73; }
#tam-status p.absent { border-left-color: #E69F00; }
#tam-status p.bad, #tam-batch-status p.bad { border-left-color: #D55E00; font-weight: 700; }
#tam-status, #tam-batch-status { overflow-wrap: anywhere; }
:is(#tam-status, #tam-batch-status) [data-testid=status-tracker] { display: none; }
#tam-batch-status progress { width: 100%; }
#tam-examples .grid-wrap { min-height: 0; max-height: none; }
#tam-examples .grid-container { padding-top: 28px; grid-auto-rows: auto; gap: 8px; }
#tam-examples .thumbnail-item { display: flex; align-items: center; gap: 12px; height: auto; aspect-ratio: auto; }
#tam-examples .thumbnail-item img { width: 72px; height: 72px; flex: none; }
#tam-examples .caption-label { position: static; max-width: none; padding: 0; border: 0; background: none;
                               opacity: 1; text-align: left; white-space: normal; font-size: 1em; }
.legend { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend li { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 1em; height: 1em; margin-right: 6px; vertical-align: -0.1em;
          border: 1px solid currentColor; }
.table { overflow-x: auto; }
.table :is(table, thead, tbody, tr) { border: 0; }
.table table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.table caption { text-align: left; font-weight: 700; padding: 4px 0; }
.table table :is(th, td) { padding: 4px 6px; border: 0; border-bottom: 1px solid var(--border-color-primary);
                           text-align: right; }
.table table :is(th, td):first-child { text-align: left; font-weight: 400; overflow-wrap: anywhere; min-width: 7em; }
#tam-batch-table :is(th, td):is(:nth-child(2), :nth-child(3), :last-child) { text-align: left; min-width: 10em; }
.scale .bar { position: relative; height: 14px; }
.scale .bar i { position: absolute; top: -3px; bottom: -3px; width: 2px; background: currentColor; }
.scale .ticks { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
button[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-300) !important; }
"""
# What gradio has no fields for: live regions, which must be there before their words change, and names of examples.
# A tab's content comes into being when it is first opened.
JS = """() => {
    const dress = () => {
        for (const line of document.querySelectorAll(":is(#tam-status, #tam-batch-status) .html-container")) {
            line.setAttribute("role", "status");
            line.setAttribute("aria-live", "polite");
        }
        for (const button of document.querySelectorAll("#tam-examples button"))
            button.setAttribute("aria-label", "Example: " + button.querySelector("img").alt);
    };
    new MutationObserver(dress).observe(document.body, {childList: true, subtree: true});
    dress();
}"""
# On a phone the answer lies below the examples.
SHOW_ANSWER = """() => {
    const line = document.getElementById("tam-status");
    if (line.getBoundingClientRect().bottom > window.innerHeight) line.scrollIntoView();
}"""
ABOUT = """
### What this is
TAMISeg finds what a sentence describes in a medical picture
([arXiv 2604.10912](https://arxiv.org/abs/2604.10912)). Model on this page: **{model}**.

### What it is not
Not a medical device, and no basis for decisions about a person. It knows the kinds of pictures, findings and sentences
of its training data and nothing else, and it also answers where it cannot know: a finding that is absent may well be
"found", also one that the sentence denies ("no infection"). Write in the language of its training sentences; of
another it understands nothing, and answers all the same. The quickstart's model has seen nothing but synthetic
pictures drawn by code, as the examples are.

### How to read it
- Probabilities are the model's own and not calibrated. The heat map's colours always mean 0 to 1, so a weak answer
  looks weak.
- *Not found* means that no pixel reaches the threshold. Moving the threshold does not ask the model again.
- Left and right mean what they meant in the training sentences. Of the quickstart's model and of the shipped one for
  chest X-rays they are sides of the picture: "left lung" is the patient's right one.
- Area is in pixels and per cent of the picture: a picture file does not say how large a pixel is.
- Masks are PNG, mode L, 0 and 255, exactly as large as the picture (upright, if the file says it is turned).

### What happens to pictures
They stay on the machine that runs this page, are used for the answer, and are deleted within {minutes} minutes.
No telemetry, no history, no request to any other host.

### From programs
```
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
masks, numbers = client.predict(
    picture=handle_file("scan.png"), findings="bright lesion; dark lesion", threshold=0.5, api_name="/segment"
)
```
Assistants find the tool `find_in_picture` at `http://127.0.0.1:7860/gradio_api/mcp/` (MCP, where the package `mcp` is
installed): a picture in base64 and one sentence give the mask, the picture with the region laid over it, and numbers.
"""


def build(handlers: Handlers) -> gr.Blocks:
    """The page over the handlers."""
    examples, segmenter = load_examples(), handlers.segmenter
    hint = "Several findings are separated by semicolons. Enter starts."
    learned = bool(segmenter and segmenter.known_sentences)
    if learned:
        hint += f" The model learned sentences such as: {segmenter.known_sentences[0]}"

    def pick(event: gr.SelectData):
        # The last answer was of another picture.
        return [*examples[event.index], *no_answer(status_html("Segmenting ..."))]

    def say_stopped():
        return status_html("Stopped.")

    private = {"api_visibility": "private"}
    # One question at a time: two would only share the processor, and twice the memory.
    one_by_one = {"concurrency_id": "model", "concurrency_limit": 1}
    quick = {"show_progress": "hidden", "trigger_mode": "always_last"}
    # Past the queue, which takes longer than the drawing, and where a slider would wait for what others ask.
    at_once = {**quick, "queue": False}

    with gr.Blocks(title="TAMISeg", analytics_enabled=False, delete_cache=(KEEP_SECONDS, 2 * KEEP_SECONDS)) as page:
        kept = gr.State(time_to_live=KEEP_SECONDS)
        gr.HTML("<h1>TAMISeg: say what to find, see where it is</h1>")
        gr.HTML(NOTE, elem_id="tam-note")
        if handlers.segmenter is None:
            gr.HTML(f'<p role="alert">{html.escape(handlers.problem)}</p>', elem_id="tam-problem")
        with gr.Tabs():
            with gr.Tab("Segment"), gr.Row():
                with gr.Column(min_width=300):
                    picture = file_picture(
                        label="Picture (drop, paste or upload)",
                        elem_id="tam-image",
                        height=300,
                        sources=["upload", "clipboard"],
                    )
                    prompt = gr.Textbox(
                        label="What should be segmented?",
                        info=hint,
                        placeholder=None if learned else "large bright lesion; small dark lesion in the lower left",
                        elem_id="tam-prompt",
                    )
                    with gr.Row():
                        run = gr.Button("Segment", variant="primary", elem_id="tam-run", min_width=90)
                        stop = gr.Button("Stop", elem_id="tam-stop", min_width=90)
                        clear = gr.Button("Clear", elem_id="tam-clear", min_width=90)
                    gallery = gr.Gallery(
                        examples,
                        label="Examples (drawn by code)",
                        elem_id="tam-examples",
                        columns=1,
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        object_fit="contain",
                        buttons=[],
                        visible=segmenter is None or segmenter.knows_examples,
                    )
                with gr.Column(min_width=300):
                    status = gr.HTML(status_html(READY), elem_id="tam-status")
                    with gr.Tabs():
                        with gr.Tab("Overlay"):
                            painted = result_picture("Picture with coloured regions", "tam-overlay")
                        with gr.Tab("Compare"):
                            compared = gr.ImageSlider(
                                label="Picture and overlay",
                                elem_id="tam-compare",
                                max_height=480,
                                interactive=False,
                                buttons=[],
                            )
                        with gr.Tab("Heat map"):
                            heat = result_picture("Probability of each pixel", "tam-heat")
                            scale = gr.HTML(scale_html(THRESHOLD))
                        with gr.Tab("Mask"):
                            mask = result_picture("Mask", "tam-mask")
                    legend = gr.HTML(elem_id="tam-legend")
                    # Beside each other and close to the picture, so that both are seen while one is moved.
                    with gr.Row():
                        threshold = gr.Slider(
                            0,
                            1,
                            THRESHOLD,
                            step=0.01,
                            label="Threshold",
                            info="Least probability that counts",
                            elem_id="tam-threshold",
                            min_width=220,
                        )
                        opacity = gr.Slider(
                            0,
                            1,
                            OPACITY,
                            step=0.05,
                            label="Opacity",
                            info="Of coloured regions",
                            elem_id="tam-opacity",
                            min_width=220,
                        )
                    choice = gr.Radio(label="Finding for heat map, mask and PNG", visible=False, elem_id="tam-finding")
                    table = gr.HTML(elem_id="tam-table")
                    with gr.Row():
                        download = gr.DownloadButton(
                            "Mask (PNG)", interactive=False, elem_id="tam-download", min_width=120
                        )
                        download_all = gr.DownloadButton(
                            "All masks (ZIP)", interactive=False, elem_id="tam-download-all", min_width=120
                        )
            with gr.Tab("Batch"):
                files = gr.File(
                    label=f"Pictures, or ZIPs of pictures (up to {MAX_FILES})",
                    file_count="multiple",
                    elem_id="tam-batch-files",
                )
                files.preprocess = lambda payload: [file.path for file in payload or []]  # its own leaves files behind
                batch_prompt = gr.Textbox(
                    label="What should be segmented in all of them?",
                    info="Several findings are separated by semicolons.",
                    elem_id="tam-batch-prompt",
                )
                batch_threshold = gr.Slider(
                    0, 1, THRESHOLD, step=0.01, label="Threshold", elem_id="tam-batch-threshold"
                )
                with gr.Row():
                    batch_run = gr.Button("Segment all", variant="primary", elem_id="tam-batch-run")
                    batch_stop = gr.Button("Stop", elem_id="tam-batch-stop")
                batch_status = gr.HTML(
                    status_html("Ready. Add files; masks and a table come back in one ZIP."),
                    elem_id="tam-batch-status",
                )
                batch_table = gr.HTML(elem_id="tam-batch-table")
                batch_download = gr.DownloadButton(
                    "Masks and table (ZIP)", interactive=False, elem_id="tam-batch-download"
                )
            with gr.Tab("About"):
                model = "/".join(Path(handlers.segmenter.name).parts[-3:]) if handlers.segmenter else "none"
                gr.Markdown(ABOUT.format(model=model, minutes=3 * KEEP_SECONDS // 60))

        view = [status, painted, compared, legend, scale, mask, table, download, download_all]
        knobs = [kept, threshold, opacity, choice]
        answered = [kept, choice, heat, *view]
        asked = {
            "fn": handlers.on_segment,
            "inputs": [picture, prompt, threshold, opacity],
            "outputs": answered,
            "show_progress_on": [painted],
            **one_by_one,
            **private,
        }
        for changed in (picture.upload, picture.clear):  # the latter by the X on it
            changed(handlers.on_upload, picture, [picture, *answered], **quick, **one_by_one, **private)
        runs = [run.click(**asked), prompt.submit(**asked)]
        picked = gallery.select(pick, None, [picture, prompt, *answered], queue=False, **private)
        runs.append(picked.then(**asked))
        for event in runs:
            event.then(None, js=SHOW_ANSWER, **private)
        for knob in (threshold, opacity):
            knob.change(handlers.on_view, knobs, view, **at_once, **private)
        choice.input(handlers.on_view, knobs, view, **at_once, **private)
        choice.input(handlers.on_heat, [kept, choice], heat, **at_once, **private)
        stop.click(say_stopped, None, status, cancels=runs, queue=False, **private)
        clear.click(
            lambda: [None, "", THRESHOLD, OPACITY, *no_answer(status_html(READY))],
            None,
            [picture, prompt, threshold, opacity, *answered],
            cancels=runs,
            queue=False,
            **private,
        )
        batch = batch_run.click(
            handlers.on_batch,
            [files, batch_prompt, batch_threshold],
            [batch_status, batch_table, batch_download],
            show_progress="hidden",
            **one_by_one,
            **private,
        )
        batch_stop.click(say_stopped, None, batch_status, cancels=[batch], queue=False, **private)
        gr.api(handlers.segment, api_name="segment", **one_by_one)
        # Past the queue, behind which gradio gives assistants the addresses of pictures in place of the pictures.
        gr.api(handlers.find_in_picture, api_name="find_in_picture", queue=False)
    page.temp_file_sets.append(handlers.kept)
    return page


def file_picture(**kwargs) -> gr.Image:
    """A picture that people drop, given to our functions as the file it is: the component itself would open it, whiten
    16 bits, and meet broken files with a bare "Error"."""
    image = gr.Image(type="filepath", image_mode=None, format="png", interactive=True, **kwargs)
    # On the instance: a subclass would make gradio write a .pyi file beside this one. Give the component values only,
    # never an update such as gr.skip(): gradio would then go on with a new instance.
    image.preprocess = lambda payload: payload.path if payload else None
    return image


def result_picture(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        elem_id=elem_id,
        format="png",
        interactive=False,
        height=420,
        buttons=["fullscreen"],
    )


def make_handlers() -> Handlers:
    """With the model that `find_model` names, or the sentence that says why there is none."""
    try:
        return Handlers(Segmenter(find_model()))
    except ValueError as error:
        return Handlers(None, str(error))


def launch(handlers: Handlers, **kwargs):
    """Starts the page; `kwargs` as `gr.Blocks.launch`."""
    processing_utils.async_ssrf_protected_download = refuse_address
    page = build(handlers).queue(max_size=20, default_concurrency_limit=1)
    return page.launch(
        theme=THEME,
        css=CSS,
        js=JS,
        footer_links=["api", "settings"],
        max_file_size=MAX_FILE_BYTES,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,
        **kwargs,
    )


if __name__ == "__main__":
    launch(make_handlers())
