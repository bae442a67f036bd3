"""Every setting of a study as a frozen pydantic model.

A point of a study is one `RunConfig`. Its sections say *what* is computed (hashed into digests); `how` and `track`
say *how* (batch size, actors, devices, tracking server: logged, never hashed). This module imports
neither torch nor ray.
"""

from orchestrator.config.ablate import AblateConfig, AdaptiveRule, PolicyFile, PolicyRule
from orchestrator.config.capture import CaptureConfig, CorrelateConfig, ModelConfig
from orchestrator.config.data import CocoConfig, DataConfig, FolderConfig, QuestionsConfig, SceneDesign, ScenesConfig
from orchestrator.config.finetune import FinetuneConfig, GroupConfig, TaskConfig
from orchestrator.config.how import HowConfig, TrackConfig
from orchestrator.config.probe import ProbeConfig
from orchestrator.config.section import STAGES, Count, Float, Int, PositiveFloat, PositiveInt, Section, Share, StageName
from orchestrator.config.study import RunConfig, SearchAxis, StudyConfig

__all__ = [
    "STAGES",
    "AblateConfig",
    "AdaptiveRule",
    "CaptureConfig",
    "CocoConfig",
    "CorrelateConfig",
    "Count",
    "DataConfig",
    "FinetuneConfig",
    "Float",
    "FolderConfig",
    "QuestionsConfig",
    "GroupConfig",
    "HowConfig",
    "Int",
    "ModelConfig",
    "PolicyFile",
    "PolicyRule",
    "PositiveFloat",
    "PositiveInt",
    "ProbeConfig",
    "RunConfig",
    "SceneDesign",
    "ScenesConfig",
    "SearchAxis",
    "Section",
    "Share",
    "StageName",
    "StudyConfig",
    "TaskConfig",
    "TrackConfig",
]
