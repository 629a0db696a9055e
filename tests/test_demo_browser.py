# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo in a real browser, as people use it; skipped where there is no Chromium. Writes runs/screenshots/."""

import asyncio
import base64
import io
import json
import re
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import app
import drawing
import segment
from tests.test_demo import free_port, noise, save_tiny_model, write_bad_files, write_odd_files


CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SCREENSHOTS = Path(__file__).parent.parent / "runs" / "screenshots"
SENTENCES = "left; the large lesion"
expect.set_options(timeout=60_000)  # of a machine that others use too; what is there already is not waited for


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return segment.Segmenter(str(save_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def server(segmenter, tmp_path_factory):
    """The page's address, the page itself, and the folder where gradio keeps files."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gradio")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        served, url, _ = app.launch(
            app.Handlers(segmenter), prevent_thread_lock=True, server_port=free_port(), quiet=True
        )
        yield url, served.get_blocks(), folder
        gr.close_all(verbose=False)


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page as a new person; at the end no request may have left this machine, and no script have failed."""
    contexts, requests, failures = [], [], []

    def visit(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(url)
        page.locator("#tam-run").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    hosts = {urlparse(request).hostname for request in requests if request.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"} and failures == []


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def upload(page, path):
    page.locator("#tam-image input[type=file]").first.set_input_files(path)


def ask(page, path, sentences=SENTENCES):
    upload(page, path)
    says(page, "Picture read")
    page.locator("#tam-prompt textarea").fill(sentences)
    page.locator("#tam-run").click()
    says(page, "Done in")


def says(page, words, where="#tam-status"):
    expect(page.locator(where)).to_contain_text(words)


def cells(page, where="#tam-table"):
    return [row.locator("th, td").all_inner_texts() for row in page.locator(f"{where} tbody tr").all()]


def set_threshold(page, value, where="#tam-threshold"):
    page.locator(f"{where} input[type=number]").fill(str(value))
    page.locator(f"{where} input[type=number]").press("Tab")


def downloaded(page, button):
    with page.expect_download() as waiting:
        page.locator(button).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def due(segmenter, path, sentences=SENTENCES, threshold=0.5):
    return segmenter.measure(segmenter.ask(segmenter.read(path)[0], sentences), threshold)


def test_main_path(visit, segmenter, picture, monkeypatch):
    asked = []
    monkeypatch.setattr(segmenter, "ask", lambda *args, f=segmenter.ask: asked.append(args) or f(*args))
    page = visit()
    expect(page.get_by_role("note")).to_contain_text("not a medical device")
    ask(page, picture)
    expected = due(segmenter, picture)
    asked.pop()
    assert cells(page) == [[f.name, *drawing.number_cells(f)] for f in expected]
    expect(page.locator("#tam-table table")).to_be_visible()
    expect(page.locator("#tam-legend li")).to_have_count(2)
    for tab, element in [("Compare", "#tam-compare"), ("Heat map", "#tam-heat"), ("Mask", "#tam-mask")]:
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(f"{element} img").first).to_be_visible()

    for threshold, words in [(1, "Not found at threshold 1: left (highest probability"), (0, "All 2 findings found")]:
        set_threshold(page, threshold)
        says(page, words)
    assert [row[1] for row in cells(page)] == ["2,400", "2,400"]
    set_threshold(page, 1)
    expect(page.locator("#tam-legend li").first).to_have_text("left (not found)")
    assert cells(page)[0] == ["left", "0", "0.00", "0", "–"]
    assert len(asked) == 1  # however often the threshold moves

    page.locator("#tam-clear").click()
    says(page, "Ready.")
    expect(page.locator("#tam-prompt textarea")).to_have_value("")
    expect(page.locator("#tam-table table")).to_have_count(0)
    expect(page.locator("#tam-download")).to_be_disabled()
    expect(page.locator("#tam-threshold input[type=number]")).to_have_value("0.5")


def test_stop(visit, segmenter, picture, monkeypatch):
    page = visit()
    upload(page, picture)
    says(page, "Picture read")
    monkeypatch.setattr(segmenter, "ask", lambda *args, f=segmenter.ask: time.sleep(1.5) or f(*args))
    page.locator("#tam-run").click()
    says(page, "Segmenting")
    page.locator("#tam-stop").click()
    says(page, "Stopped.")
    page.wait_for_timeout(2000)
    says(page, "Stopped.")
    expect(page.locator("#tam-table table")).to_have_count(0)
    monkeypatch.undo()
    page.locator("#tam-run").click()
    says(page, "Done in")


def test_no_answer_stands_beside_another_picture(visit, segmenter, picture, monkeypatch):
    page = visit()

    def is_blank():
        expect(page.locator("#tam-table table")).to_have_count(0)
        expect(page.locator("#tam-overlay img")).to_have_count(0)
        expect(page.locator("#tam-download")).to_be_disabled()

    ask(page, picture)
    expect(page.locator("#tam-overlay img")).to_be_visible()
    monkeypatch.setattr(segmenter, "ask", lambda *args, f=segmenter.ask: time.sleep(2) or f(*args))
    page.locator("#tam-examples button").first.click()
    says(page, "Segmenting")
    is_blank()  # while it runs, and when it was stopped
    page.locator("#tam-stop").click()
    says(page, "Stopped.")
    is_blank()
    monkeypatch.undo()
    page.locator("#tam-run").click()
    says(page, "Done in")
    page.locator("#tam-image").get_by_role("button", name="Remove").click()
    says(page, "Ready.")
    is_blank()


def test_downloads_are_exact(visit, segmenter, picture):
    page = visit()
    ask(page, picture)
    middle = round(
        float(np.median(segmenter.probability(segmenter.ask(Image.open(picture), SENTENCES), 0, (40, 60)))), 2
    )
    set_threshold(page, middle)
    expected = due(segmenter, picture, threshold=middle)
    assert 0 < expected[0].area < 2400
    expect(page.locator("#tam-table tbody td").first).to_have_text(f"{expected[0].area:,}")
    name, content = downloaded(page, "#tam-download")
    assert name == "scan-mask-1-left.png" and content == drawing.png(drawing.mask_image(expected[0]))
    mask = np.asarray(Image.open(io.BytesIO(content)))
    assert mask.shape == (40, 60) and (mask == 255).sum() == expected[0].area and set(np.unique(mask)) == {0, 255}

    page.get_by_role("tab", name="Mask").click()
    shown = page.locator("#tam-mask img").get_attribute("src")
    page.get_by_role("radio", name="the large lesion").check()
    expect(page.locator("#tam-mask img")).not_to_have_attribute("src", shown)
    name, content = downloaded(page, "#tam-download")
    assert name == "scan-mask-2-the-large-lesion.png" and content == drawing.png(drawing.mask_image(expected[1]))
    name, content = downloaded(page, "#tam-download-all")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert name == "scan-masks.zip" and len(archive.namelist()) == 2
        assert archive.read("scan-mask-1-left.png") == drawing.png(drawing.mask_image(expected[0]))


def test_bad_files_get_a_sentence_and_the_page_lives_on(visit, picture, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    page = visit()
    ask(page, picture)
    expect(page.locator("#tam-download")).to_be_enabled()
    upload(page, picture)
    says(page, "Picture read")  # and the answer, which may be of another patient, is gone
    expect(page.locator("#tam-table table")).to_have_count(0)
    expect(page.locator("#tam-download")).to_be_disabled()
    set_threshold(page, 0.4)
    expect(page.locator("#tam-table table")).to_have_count(0)
    for name, words in write_bad_files(folder).items():
        upload(page, folder / name)
        says(page, words)
        says(page, name)
        assert "/" not in page.locator("#tam-status").inner_text()
    ask(page, picture)


def test_odd_files_are_answered_at_their_size(visit, tmp_path):
    page = visit()
    for name, (width, height) in write_odd_files(tmp_path).items():
        upload(page, tmp_path / name)
        says(page, f"{width}x{height} pixels")
        if name.startswith("16-bit"):
            says(page, "more than 8 bits")
        expect(page.locator("#tam-image img").first).to_be_visible()
        page.wait_for_function(
            "[...document.querySelectorAll('#tam-image img')].every(i => i.complete && i.naturalWidth)"
        )
        page.locator("#tam-run").click()
        says(page, "No finding was named")
        _, content = downloaded(page, "#tam-download")
        assert Image.open(io.BytesIO(content)).size == (width, height), name
        page.locator("#tam-clear").click()
        expect(page.locator("#tam-image img")).to_have_count(0)
        says(page, "Ready.")


def test_bad_words_get_a_sentence(visit, picture):
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail("a prompt was run as a script"))
    page.locator("#tam-run").click()
    says(page, "There is no picture yet")
    upload(page, picture)
    says(page, "Picture read")
    for words, answer in [
        ("", "picture alone"),
        ("a" * 5000, "too long"),
        ("a;" * 9, "9 findings are too many"),
        ("🫁🫁", "does not know: 🫁🫁"),
        ("<img src=x onerror=alert(1)>", "<img"),
    ]:
        page.locator("#tam-prompt textarea").fill(words)
        page.locator("#tam-run").click()
        says(page, answer)
    assert page.locator("#tam-legend img, #tam-table img, #tam-status img").count() == 0
    expect(page.locator("#tam-legend")).to_contain_text("<img src=x onerror=alert(1)>")


def test_keyboard_alone(visit):
    page = visit()

    def tab_to(selector, text=""):
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            if focused.and_(page.locator(selector)).filter(has_text=text).count():
                return
        pytest.fail(f"no Tab leads to {selector} {text}")

    tab_to("#tam-examples button")
    page.keyboard.press("Enter")
    says(page, "Done in")
    expect(page.locator("#tam-prompt textarea")).to_have_value(app.load_examples()[0][1])
    before = page.locator("#tam-status").inner_text()
    tab_to("#tam-threshold input[type=range]")
    page.keyboard.press("End")
    says(page, "Not found")
    page.keyboard.press("Home")
    says(page, "All 2 findings found")
    tab_to("#tam-download, #tam-download a")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to("#tam-prompt textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("left")
    page.keyboard.press("Enter")
    expect(page.locator("#tam-legend li")).to_have_count(1)
    assert before.startswith("Done")
    tab_to("[role=tab]", "Batch")
    page.keyboard.press("Enter")
    expect(page.locator("#tam-batch-run")).to_be_visible()


NAMELESS = ("button", "textbox", "slider", "spinbutton", "tab", "radio", "link", "combobox")


def test_every_control_has_a_name(visit):
    page = visit()
    page.locator("#tam-examples button").first.click()
    says(page, "Done in")
    devtools = page.context.new_cdp_session(page)
    for tab in ("Segment", "Batch", "About"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(300)
        controls = [
            (node["role"]["value"], node.get("name", {}).get("value", "").strip())
            for node in devtools.send("Accessibility.getFullAXTree")["nodes"]
            if not node["ignored"] and node["role"]["value"] in NAMELESS
        ]
        assert len(controls) > 4 and all(name for _, name in controls), controls
        if tab == "Segment":
            assert ("button", f"Example: {app.load_examples()[0][1]}") in controls
        if tab != "About":
            line = "#tam-status" if tab == "Segment" else "#tam-batch-status"
            expect(page.locator(f"{line} [role=status][aria-live=polite]")).to_have_text(re.compile("Done in|Ready"))


# Text whose contrast to what is behind it is below 4.5 (3 for large letters), with the ratio.
FAINT = """() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const over = (top, below) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
    const behind = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            layers.push(colour);
            if ((colour[3] ?? 1) === 1) break;
        }
        return layers.reduceRight((below, top) => over(top, below), [255, 255, 255]);
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !element.checkVisibility({opacityProperty: true}) ||
            !element.getClientRects().length || element.closest(":disabled, script, style")) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(over(parse(style.color), behind(element))), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const size = parseFloat(style.fontSize) * (style.fontWeight >= 700 ? 24 / 18.66 : 1);
        if (ratio < (size >= 24 ? 3 : 4.5)) faint.push([ratio.toFixed(2), walker.currentNode.textContent.trim()]);
    }
    return faint;
}"""


def test_phone_shows_the_answer(visit, picture):
    page = visit(viewport={"width": 390, "height": 700}, has_touch=True, is_mobile=True)
    upload(page, picture)
    says(page, "Picture read")
    page.locator("#tam-run").tap()
    says(page, "Done in")
    expect(page.locator("#tam-status")).to_be_in_viewport()
    expect(page.locator("#tam-overlay img")).to_be_in_viewport()


# Pixels of the sentence that lie below the edge of its box.
CLIPPED = """() => {
    const box = document.querySelector("#tam-prompt textarea");
    return Math.max(0, box.scrollHeight - box.clientHeight);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(visit, scheme):
    """No sideways scroll at three widths, and letters that can be read."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = visit(color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    page.locator("#tam-examples button").first.click()
    says(page, "Done in")
    for width in (1280, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for tab in ("Batch", "About", "Segment"):
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_timeout(250)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(FAINT) == []
            assert page.evaluate(CLIPPED) == 0
            page.screenshot(path=SCREENSHOTS / f"test-{width}-{scheme}-{tab.lower()}.png", full_page=True)


def test_two_people_at_once(visit, segmenter, tmp_path):
    paths, pages = [], []
    for seed, size in enumerate([(30, 50), (70, 20)]):
        paths.append(tmp_path / f"person-{seed}.png")
        Image.fromarray(noise(*size, seed=seed)).save(paths[-1])
        pages.append(visit())
        upload(pages[-1], paths[-1])
    for page in pages:
        says(page, "Picture read")
        page.locator("#tam-prompt textarea").fill("left")
    for page in pages:
        page.locator("#tam-run").click()
    for page, path in zip(pages, paths, strict=True):
        says(page, "Done in")
        set_threshold(page, 0)
        width, height = Image.open(path).size
        expect(page.locator("#tam-table tbody td").first).to_have_text(f"{width * height:,}")
        name, content = downloaded(page, "#tam-download")
        assert name == f"{path.stem}-mask-1-left.png"
        assert content == drawing.png(drawing.mask_image(due(segmenter, path, "left", 0)[0]))


def test_batch(visit, segmenter, picture, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(picture, "folder/other.png")
    page = visit()
    page.get_by_role("tab", name="Batch").click()
    page.locator("#tam-batch-run").click()
    says(page, "There are no pictures", "#tam-batch-status")
    page.locator("#tam-batch-files input[type=file]").set_input_files(
        [picture, tmp_path / "bad.png", tmp_path / "more.zip"]
    )
    expect(page.locator("#tam-batch-files")).to_contain_text("more")
    page.locator("#tam-batch-prompt textarea").fill(SENTENCES)
    page.locator("#tam-batch-run").click()
    says(page, "2 of 3 files have masks. 1 could not be used", "#tam-batch-status")
    expect(page.locator("#tam-batch-table table")).to_be_visible()
    rows = cells(page, "#tam-batch-table")
    assert [row[0] for row in rows] == ["scan.png", "scan.png", "bad.png", "folder/other.png", "folder/other.png"]
    assert "no picture" in rows[2][1] and rows[0][1] == "done"
    name, content = downloaded(page, "#tam-batch-download")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert name == "tamiseg-masks.zip" and len(archive.namelist()) == 5
        expected = drawing.png(drawing.mask_image(due(segmenter, picture)[1]))
        assert archive.read("masks/003-other-mask-2-the-large-lesion.png") == expected


def test_every_file_is_on_the_list_of_what_is_deleted(visit, server, picture):
    url, blocks, folder = server
    page = visit()
    ask(page, picture)
    page.get_by_role("tab", name="Batch").click()
    page.locator("#tam-batch-files input[type=file]").set_input_files(picture)
    expect(page.locator("#tam-batch-files")).to_contain_text("scan")
    page.locator("#tam-batch-run").click()
    says(page, "1 of 1 files have masks", "#tam-batch-status")
    Client(url, verbose=False).predict(picture=handle_file(picture), api_name="/segment")
    listed = set().union(*blocks.temp_file_sets)
    written = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert len(written) > 8 and written <= listed


@contextmanager
def refused(words):
    with pytest.raises(AppError) as error:
        yield
    assert words in str(error.value)


def test_api(url, segmenter, picture, tmp_path):
    client = Client(url, verbose=False, download_files=tmp_path / "down")
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/segment", "/find_in_picture"]
    call = {"picture": handle_file(picture), "findings": SENTENCES, "threshold": 0.5, "api_name": "/segment"}
    masks, numbers = client.predict(**call)
    expected = due(segmenter, picture)
    assert [Path(mask).read_bytes() for mask in masks] == [drawing.png(drawing.mask_image(f)) for f in expected]
    assert numbers["findings"] == [finding.numbers() for finding in expected]
    assert (numbers["width"], numbers["height"], numbers["notes"]) == (60, 40, [])
    masks, numbers = client.predict(picture=handle_file(picture), api_name="/segment")
    assert len(masks) == 1 and "picture alone" in numbers["notes"][0]

    with refused("from 0 to 1"):
        client.predict(**call | {"threshold": 7})
    with refused("too long"):
        client.predict(**call | {"findings": "a" * 5000})
    with refused("no picture"):
        client.predict(**call | {"picture": None})
    for path in (picture, "/etc/passwd"):  # any file of the server, named without being uploaded
        with refused("cannot be accessed"):
            client.predict(**call | {"picture": {"path": str(path)}})


def test_addresses_are_not_fetched(url, picture):
    client = Client(url, verbose=False)
    with refused("Addresses are not fetched"):
        client.predict(picture=handle_file("https://example.com/scan.png"), api_name="/segment")


def test_assistants(url, segmenter, picture):
    """The tool that an MCP client finds, and what it gives for a sentence and a picture."""
    sent = base64.b64encode(picture.read_bytes()).decode()

    async def talk():
        async with streamablehttp_client(f"{url}gradio_api/mcp/") as (reading, writing, _):
            async with ClientSession(reading, writing) as session:
                await session.initialize()
                tools = (await session.list_tools()).tools

                async def find(**arguments):
                    return await session.call_tool("find_in_picture", arguments)

                return (
                    tools,
                    await find(picture=f"data:image/png;base64,{sent}", finding="the large lesion", threshold=0.4),
                    [
                        (await find(**arguments), words)
                        for arguments, words in [
                            ({"picture": sent, "finding": "left; right"}, "one at a time"),
                            ({"picture": sent, "threshold": 2}, "from 0 to 1"),
                            ({"picture": base64.b64encode(b"words").decode()}, "no picture"),
                            ({"picture": str(picture)}, "base64"),
                            ({"picture": f"{url}gradio_api/file={picture}"}, "no upload to this page"),
                            ({"picture": "https://example.com/scan.png"}, "no upload to this page"),
                        ]
                    ],
                )

    with ThreadPoolExecutor() as thread:  # of its own: the browser's event loop runs in this one
        tools, found, mistakes = thread.submit(asyncio.run, talk()).result()
    assert [tool.name for tool in tools] == ["find_in_picture"]
    assert "not a medical device" in tools[0].description and tools[0].inputSchema["required"] == ["picture"]
    expected = due(segmenter, picture, "the large lesion", 0.4)[0]
    mask, painted = [
        Image.open(io.BytesIO(base64.b64decode(part.data))) for part in found.content if part.type == "image"
    ]
    assert mask.mode == "L" and (np.asarray(mask) == 255 * expected.mask).all()
    assert painted.size == drawing.shown_size((60, 40))
    assert json.loads(found.content[-1].text).items() >= expected.numbers().items()
    for answer, words in mistakes:
        assert answer.isError and words in answer.content[0].text


def test_sixty_bad_uploads_in_a_row(url, picture, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    names = list(write_bad_files(folder))
    client = Client(url, verbose=False)
    for number in range(60):
        with refused("."):
            client.predict(picture=handle_file(folder / names[number % len(names)]), api_name="/segment")
    assert len(client.predict(picture=handle_file(picture), api_name="/segment")[0]) == 1
