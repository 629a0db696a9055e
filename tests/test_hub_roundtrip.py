# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A saved folder stands alone: it loads by the Auto classes in a process that cannot import our packages."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from modeling_tamiseg import TAMISegForImageSegmentation
from processing import TAMISegImageProcessor, TAMISegProcessor
from tests.test_modeling import tiny_config
from tests.test_processing import make_tokenizer


STRANGER = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
folder = sys.argv[1]
try:
    import modeling_tamiseg
    raise SystemExit("the package can be imported: this process proves nothing")
except ImportError:
    pass
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(folder + "/picture.png")
with torch.no_grad():
    logits = model(**processor(images=image, text="left lung", return_tensors="pt")).logits
segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
found = segment(image, text="left lung")
live = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
segment.save_pretrained(folder + "/again")
again = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True).eval()
segment = pipeline("image-segmentation", model=folder + "/again", trust_remote_code=True)
assert segment(image, text="left lung") == found
print(json.dumps({"sum": logits.double().sum().item(), "mask": list(found[0]["mask"].size), "label": found[0]["label"],
                  "live": type(live).__name__, "same": all(torch.equal(a, b) for a, b in
                  zip(model.state_dict().values(), again.state_dict().values()))}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tamiseg-tiny")
    torch.manual_seed(0)
    TAMISegForImageSegmentation(tiny_config()).save_pretrained(folder)
    TAMISegProcessor(TAMISegImageProcessor(size={"height": 64, "width": 64}), make_tokenizer()).save_pretrained(folder)
    Image.effect_noise((50, 40), 60).save(folder / "picture.png")
    return folder


def test_folder_holds_all_it_needs(folder):
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files
    assert {"modeling_tamiseg.py", "configuration_tamiseg.py", "processing_tamiseg.py", "pipeline_tamiseg.py"} <= files
    assert "distillation.py" not in files  # the teacher is for training only
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"].endswith(
        "TAMISegForImageSegmentation"
    )


def test_loads_where_the_package_is_not(folder, tmp_path):
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    # -I: neither this folder nor an editable install of ours is on the path; site-packages alone are added again.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({site!r})\n" + STRANGER
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.strip().splitlines()[-1])
    model = TAMISegForImageSegmentation.from_pretrained(folder).eval()
    processor = TAMISegProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(folder / "picture.png"), text="left lung", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.double().sum().item()
    assert told["sum"] == pytest.approx(expected, abs=1e-3)
    assert told["mask"] == [50, 40]
    assert told["live"] == "TAMISegForImageSegmentation" and told["same"]


def test_installed_package_needs_no_trust(folder):
    from transformers import AutoModel, AutoProcessor

    assert type(AutoModel.from_pretrained(folder)) is TAMISegForImageSegmentation
    assert type(AutoProcessor.from_pretrained(folder)) is TAMISegProcessor
