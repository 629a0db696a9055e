# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""TAMISeg's model. Importing this package makes the Auto classes of transformers know it."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
)

from .configuration_tamiseg import TAMISegConfig
from .distillation import SemanticDistiller
from .modeling_tamiseg import (
    TAMISegForConsistencyPretraining,
    TAMISegForImageSegmentation,
    TAMISegPreTrainedModel,
)
from .outputs import TAMISegConsistencyPretrainingOutput, TAMISegImageSegmentationOutput
from .text_encoder import TextCache


AutoConfig.register("tamiseg", TAMISegConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageSegmentation, AutoModelForSemanticSegmentation):
    auto_class.register(TAMISegConfig, TAMISegForImageSegmentation, exist_ok=True)

TAMISegConfig.register_for_auto_class()
TAMISegForImageSegmentation.register_for_auto_class("AutoModel")

__all__ = [
    "SemanticDistiller",
    "TAMISegConfig",
    "TAMISegConsistencyPretrainingOutput",
    "TAMISegForConsistencyPretraining",
    "TAMISegForImageSegmentation",
    "TAMISegImageSegmentationOutput",
    "TAMISegPreTrainedModel",
    "TextCache",
]
