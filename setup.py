# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Installs `modeling_tamiseg`, `processing`, the training script and the `tamiseg` command."""

from pathlib import Path

from setuptools import setup


TRAIN = [
    "accelerate>=1.10",
    "datasets>=5.2",
    "evaluate>=0.4",
    "matplotlib>=3.9",
    "pyyaml>=6.0",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "tqdm>=4.66",
]
DATA = [
    "datasets>=5.2",
    "imagehash>=4.3",
    "nibabel>=5.3",
    "openpyxl>=3.1",
    "pydicom>=3.0",
    "scipy>=1.13",
    "tqdm>=4.66",
]
BASELINES = ["einops>=0.8", "monai>=1.5"]
DEMO = ["gradio[mcp]>=6.31", "scipy>=1.13"]
EXPORT = ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.4"]

setup(
    name="tamiseg",
    version="0.1.0",
    description="Text-guided medical image segmentation: an image and a clinical sentence go in, a mask comes out.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["modeling_tamiseg", "processing"],
    py_modules=["train_hf"],
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "safetensors>=0.8",
        "huggingface-hub>=1.31",
        "numpy>=2.0",
        "pillow>=10.1",
    ],
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "demo": DEMO,
        "export": EXPORT,
        "baselines": BASELINES,
        "dev": [
            *TRAIN,
            *DATA,
            *DEMO,
            *EXPORT,
            *BASELINES,
            "hypothesis>=6.100",
            "playwright>=1.50",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
        ],
    },
    entry_points={"console_scripts": ["tamiseg=processing.command_line:main"]},
)
