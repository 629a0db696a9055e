# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What the model is fed and how masks come out. Importing this package makes the Auto classes know the processors."""

from transformers import AutoProcessor

# From its own module: without torchvision, transformers 5.17 exports only a placeholder of this class.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_tamiseg import TAMISegConfig

from .image_processing_tamiseg import TAMISegImageProcessor
from .pipeline_tamiseg import TAMISegPipeline
from .processing_tamiseg import TAMISegProcessor


AutoProcessor.register(TAMISegConfig, TAMISegProcessor, exist_ok=True)
AutoImageProcessor.register(TAMISegConfig, image_processor_classes={"pil": TAMISegImageProcessor}, exist_ok=True)

TAMISegImageProcessor.register_for_auto_class()
TAMISegProcessor.register_for_auto_class()

__all__ = ["TAMISegImageProcessor", "TAMISegPipeline", "TAMISegProcessor"]
