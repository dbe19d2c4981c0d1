"""Read each configuration file of Hydra and parse each interpolation once per process, and compose equal overrides
once."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, base, grammar_parser

from trainers.config import compose as module
from trainers.estimator import EXPERIMENT

SHIPPED = f"file://{module.CONFIGS}"
_load, _compose = ConfigRepository.load_config, module.compose
_files: dict[tuple[str, ...], bytes] = {}  # pickles: copied sooner than objects
_compositions: OrderedDict[tuple[str, ...], bytes] = OrderedDict()  # least recently used first
LARGEST = 500  # compositions, of some 50 kB


def read_once() -> None:
    """Replace the functions of Hydra and of this project; copies of what they return may be changed."""
    ConfigRepository.load_config = _load_once
    module.compose = _compose_once
    base.parse = lru_cache(4096)(grammar_parser.parse)  # of trees that are only read
    # Every composition copies the store, although it never changes it.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def _load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    key = (config_path, *(source.path for source in self.sources))
    if key not in _files:
        result = _load(self, config_path)
        # Blocks in the store may be stored anew, and other folders are written by tests.
        if result is None or not result.path.startswith((SHIPPED, "pkg://")):
            return result
        _files[key] = pickle.dumps(result)
    return pickle.loads(_files[key])


def _compose_once(config_name: str, overrides: list[str], **options: Any) -> DictConfig:
    search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    is_shipped = str(module.CONFIGS) in [str(folder.path).removeprefix("file://") for folder in search_path]
    # The estimator stores another experiment of the same name for each set of inputs.
    if options or not is_shipped or f"experiment={EXPERIMENT}" in overrides:
        return _compose(config_name, overrides, **options)
    key = (config_name, *overrides)
    if key not in _compositions:
        _compositions[key] = pickle.dumps(_compose(config_name, overrides))
        if len(_compositions) > LARGEST:
            _compositions.popitem(last=False)
    _compositions.move_to_end(key)
    return pickle.loads(_compositions[key])
