"""Read each configuration file of Hydra, parse each interpolation and merge the files of each choice of options once
per process, and compose equal overrides once."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, base, grammar_parser

from trainers.config import compose as module
from trainers.estimator import EXPERIMENT

SHIPPED = f"file://{module.CONFIGS}"
_load, _compose = ConfigRepository.load_config, module.compose
_list, _merge = defaults_list._create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
_files: dict[tuple[str, ...], bytes] = {}  # pickles: copied sooner than objects
_lists: dict[str, tuple[bytes, Any]] = {}
_merged: dict[str, bytes] = {}
_compositions: OrderedDict[tuple[str, ...], bytes] = OrderedDict()  # least recently used first
LARGEST = 500  # compositions, of some 50 kB


def read_once() -> None:
    """Replace the functions of Hydra and of this project; copies of what they return may be changed."""
    ConfigRepository.load_config = _load_once
    module.compose = _compose_once
    defaults_list._create_defaults_list = _list_once
    ConfigLoaderImpl._compose_config_from_defaults_list = _merge_once  # type: ignore[method-assign]
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


def _key(repo: IConfigRepository, *choices: object) -> str | None:
    """Key of what depends on the chosen options alone; None where they are not those of this project."""
    paths = [source.path for source in repo.get_sources()]
    key = repr((paths, choices))
    if EXPERIMENT in key:
        key += _of_estimator()
    is_shipped = str(module.CONFIGS) in [path.removeprefix("file://") for path in paths]
    return key if is_shipped else None


def _of_estimator() -> str:
    """The experiment that the estimator stored last: another of the same name for each set of inputs."""
    return repr(ConfigStore.instance().load(f"experiment/{EXPERIMENT}.yaml").node)


def _list_once(
    repo: IConfigRepository, config_name: str | None, overrides: Overrides, prepend_hydra: bool, skip_missing: bool
) -> tuple[list[ResultDefault], Any]:
    """The files that are merged. Values of single keys, which are ``config_overrides``, have no part in them."""
    appended = [vars(default) for default in overrides.append_group_defaults]
    choices = (overrides.override_choices, overrides.deletions, appended)
    key = _key(repo, config_name, prepend_hydra, skip_missing, *choices)
    if key is None:
        return _list(repo, config_name, overrides, prepend_hydra, skip_missing)
    if key not in _lists:
        files, tree = _list(repo, config_name, overrides, prepend_hydra, skip_missing)
        noted = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
        _lists[key] = pickle.dumps((files, noted)), tree
    content, tree = _lists[key]
    files, noted = pickle.loads(content)
    vars(overrides).update(noted)
    return files, tree


def _merge_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
    key = _key(repo, [(d.config_path, d.package, d.parent, d.is_self) for d in defaults])
    if key is None:
        return _merge(self, defaults, repo)
    if key not in _merged:
        _merged[key] = pickle.dumps(_merge(self, defaults, repo))
    return pickle.loads(_merged[key])


def _compose_once(config_name: str, overrides: list[str], **options: Any) -> DictConfig:
    search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    is_shipped = str(module.CONFIGS) in [str(folder.path).removeprefix("file://") for folder in search_path]
    if options or not is_shipped:
        return _compose(config_name, overrides, **options)
    key = (config_name, *overrides)
    if f"experiment={EXPERIMENT}" in overrides:
        key += (_of_estimator(),)
    if key not in _compositions:
        _compositions[key] = pickle.dumps(_compose(config_name, overrides))
        if len(_compositions) > LARGEST:
            _compositions.popitem(last=False)
    _compositions.move_to_end(key)
    return pickle.loads(_compositions[key])
