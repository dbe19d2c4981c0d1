"""Bundle: one folder with a trained method and everything that predictions on new data need.

::

    bundle.json            format, files with their SHA-256, what the model is, temperatures, validation scores, and a
                           checksum of these values
    config.yaml            configuration
    data/meta.json         columns, levels, scaling, class names (a packed store without rows)
    weights/*.safetensors  of the model and, where it has them, of the imputer and the Gaussian parameters
    tokenizer/             files of the tokenizer, for texts
    programs/              with export.format: the method as programs that run without this project
    README.md              model card

A bundle holds no pickles, and its configuration may name classes of this project and optimisers of PyTorch only, so
that opening one executes nothing that came with it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datasets.source import file_digest
from models.base import IncompleteClassifier
from trainers.config.compose import register
from trainers.config.imputers import imputer_nodes
from trainers.loading import Run
from utils.calibration import Temperatures
from utils.checksums import digest
from utils.errors import UserError, first_line
from utils.files import BROKEN, remove_leftovers, replace_folder, replacing, temporary_beside
from utils.inputs import KEY as INPUTS
from utils.limits import advice, limit
from utils.run_directory import environment, write_json
from utils.safe_pickle import HEADER, read_tensors

FORMAT = 1
MANIFEST = "bundle.json"
CHECKSUM = "checksum"
MODEL, IMPUTER, GAUSSIAN = (f"weights/{name}.safetensors" for name in ("model", "imputer", "gaussian"))
# What a configuration may build: anything else could be a function that does harm.
TRUSTED = ("models.", "datasets.", "utils.schedule.", "torch.optim.")
EXECUTABLE = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".py", ".so", ".npy", ".npz", ".joblib")
# What a checkpoint says of itself besides its weights.
DESCRIPTION = ("dataset", "architecture", INPUTS, "pytorch-lightning_version")
REFUSE = "take the bundle from where it was made again"


@dataclass
class Bundle:
    """An opened bundle; ``about`` is the content of ``bundle.json``."""

    folder: Path
    about: dict[str, Any]
    cfg: DictConfig

    @property
    def temperatures(self) -> Temperatures | None:
        """
        Raises:
            UserError: the manifest is damaged.
        """
        stored = self.about.get("temperatures")
        try:
            return None if stored is None else Temperatures(**stored)
        except TypeError as error:
            raise UserError(f"{self.folder / MANIFEST} is damaged ({error}): {REFUSE}") from None

    def run(self) -> Run:
        """The run whose method the bundle holds, on its files."""
        return Run(self.cfg)


def write_bundle(
    run: Run,
    folder: Path,
    temperatures: Temperatures | None,
    validation: Sequence[Mapping[str, Any]],
    card: str,
    threshold: float | None = None,
    write_programs: Callable[[Path], dict[str, Any]] | None = None,
) -> Path:
    """Write a bundle of the run's tested method, and ``<folder>.zip`` beside it. Replaces an older bundle.

    Args:
        run: its artefacts are trained.
        temperatures: fitted on validation data.
        validation: scenario, missing_rate, metric and value of the scores on validation data.
        card: text of ``README.md``.
        threshold: of DyMo's selection.
        write_programs: writes programs into a folder, and describes them for the manifest.

    Raises:
        UserError: ``folder`` holds something else than a bundle, or a file cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and is no bundle: choose another export.folder")
    remove_leftovers(folder.parent)
    temporary = temporary_beside(folder)
    try:
        (temporary / "weights").mkdir(parents=True)
        (temporary / "data").mkdir()
        model = _write_weights(run, temporary)
        write_json(temporary / "data" / "meta.json", run.data.meta_without_rows())
        config = plain_config(run, model, threshold)
        run.data.save_tokenizer(temporary / "tokenizer")
        (temporary / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        (temporary / "README.md").write_text(card)
        programs = None if write_programs is None else write_programs(temporary / "programs")
        files = sorted(path for path in temporary.rglob("*") if path.is_file() and path.name != "README.md")
        about = {
            "format": FORMAT,
            "dataset": str(run.cfg.dataset.name),
            "model": run.label,
            "seed": int(run.cfg.seed),
            "task": run.data.task,
            "classes": list(run.data.class_names),
            "modalities": run.data.kinds,
            "temperatures": None if temperatures is None else asdict(temperatures),
            "validation": [dict(row) for row in validation],
            "environment": environment(),
            "files": {path.relative_to(temporary).as_posix(): file_digest(path) for path in files},
        }
        if programs is not None:
            about["programs"] = programs
        write_json(temporary / MANIFEST, {**about, CHECKSUM: digest(about)})
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    archive(folder)
    return folder


def _write_weights(run: Run, folder: Path) -> IncompleteClassifier:
    """Write the weights of model and imputer, and the Gaussian parameters; returns the model."""
    model = run.load_model()
    save_weights(folder / MODEL, model.state_dict(), described(run, read_tensors(run.checkpoint), model))
    if run.predicts_with_imputer and run.needs_imputer_weights:
        imputer = run.load_imputer()
        save_weights(folder / IMPUTER, imputer.recovery_state(), described(run, {}, imputer))
    if run.uses_selection:
        parameters = run.load_parameters(model.as_backbone(str(run.distance_metric)))
        parameters.about = {k: v for k, v in (parameters.about or {}).items() if k != "checkpoint"}
        parameters.save(folder / GAUSSIAN)
    return model


def archive(folder: Path) -> None:
    """Write ``<folder>.zip`` beside a folder, with the same bytes for the same files."""
    with replacing(folder.with_name(f"{folder.name}.zip")) as file, zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())  # of 1980: files hold no times
                entry.external_attr = 0o100644 << 16
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)


def described(run: Run, content: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """What a file of weights says of itself: as its checkpoint did, or for files of other projects as the run knows."""
    description = {key: content[key] for key in DESCRIPTION if content.get(key)}
    description.setdefault("dataset", str(run.cfg.dataset.name))
    description.setdefault(INPUTS, run.inputs)
    description.setdefault("pytorch-lightning_version", "bundle")
    if hasattr(module, "architecture"):
        description["architecture"] = module.architecture()
    return description


def save_weights(path: Path, state: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """Write a ``.safetensors`` file whose header holds ``description``, which :func:`read_tensors` gives back."""
    # Tensors that share memory are stored once each: safetensors refuses views.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    path.write_bytes(safetensors.torch.save(tensors, {HEADER: json.dumps(description)}))


def plain_config(run: Run, model: Any, threshold: float | None) -> dict[str, Any]:
    """The configuration without the paths of this machine, and with what was settled after it was composed.

    Interpolations stay: parts of a method that are built once per modality resolve them for each modality.

    Args:
        model: the trained one.
        threshold: of DyMo's selection.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(run.cfg, resolve=False))
    assert isinstance(cfg, DictConfig)
    cfg.paths = {"data": "data", "cache": "cache", "output": "outputs"}
    cfg.stages, cfg.overwrite = ["export"], False  # whatever other stages the same command runs
    declared = type(run.data)
    for key in (*declared.paths, *declared.paths_or_names):
        if cfg.dataset.get(key):
            cfg.dataset[key] = Path(str(cfg.dataset[key])).name
    if "demo" in cfg.dataset:
        cfg.dataset.demo = False
    for key in ("check", "export", "predict"):
        cfg.pop(key, None)
    cfg.report.include = None
    cfg.logger = {}
    if "comparators" in cfg.model:
        cfg.model.comparators = []  # they are for studies, and one of them reads labels
    if run.uses_selection:
        cfg.model.selection.tail = run.tail
        cfg.model.selection.threshold = threshold
    trained = cfg.model.backbone if run.has_backbone else cfg.model
    for node in (cfg.model, trained, cfg.imputer, *imputer_nodes(cfg).values()):
        for key in ("transformer_checkpoint", "checkpoint", "gaussian"):
            if key in node:
                node[key] = None
    if "reference_modality_index" in trained.module:  # loading an original checkpoint sets it
        trained.module.reference_modality_index = model.reference_modality_index
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def open_bundle(source: str | Path) -> Bundle:
    """Open a bundle: a folder, a ``.zip`` file, which is unpacked into a temporary folder, or ``user/name`` on the
    Hugging Face hub, which is downloaded once.

    Raises:
        UserError: it is no bundle, a file is missing, changed or unknown, or the configuration names foreign code.
    """
    folder = Path(source)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        folder = download(str(source))
    if not folder.exists():
        raise UserError(f"there is no bundle {folder}: give the folder or .zip file that stage export wrote")
    if folder.is_file():
        folder = unpack(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{folder} is no bundle (it has no {MANIFEST}): give the folder that stage export wrote")
    try:
        about = json.loads(manifest.read_text())
        if about.pop(CHECKSUM, None) not in (None, digest(about)):  # older bundles have none
            raise ValueError("its checksum differs")
        files = {str(name): str(value) for name, value in about["files"].items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest} is damaged ({error}): {REFUSE}") from None
    if (version := about.get("format")) != FORMAT:
        is_newer = isinstance(version, int) and version > FORMAT
        fix = "update this program, or export it with this version" if is_newer else "export it again"
        raise UserError(f"{folder} is a bundle of format {version}, this version reads format {FORMAT}: {fix}")
    check_files(folder, files)
    register()
    try:
        cfg = OmegaConf.create(yaml.safe_load((folder / "config.yaml").read_text()))
        if not isinstance(cfg, DictConfig):
            raise ValueError("it holds a list")
        named = set(targets(cfg))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'config.yaml'} is damaged ({first_line(error)}): {REFUSE}") from None
    if foreign := sorted(target for target in named if not is_trusted(target)):
        raise UserError(
            f"{folder / 'config.yaml'} would run {foreign[0]}: a bundle may name classes of "
            f"{', '.join(name.rstrip('.') for name in TRUSTED)} only"
        )
    on_files(cfg, folder, files)
    OmegaConf.set_struct(cfg, True)
    return Bundle(folder, about, cfg)


def download(name: str) -> Path:
    """The folder of a bundle on the Hugging Face hub.

    Raises:
        UserError: it cannot be had.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name))
    except Exception as error:  # no network, no such repository, no permission: the hub has many ways to fail
        reason = first_line(error)
        raise UserError(
            f"there is no folder {name}, and no bundle of that name can be had from the Hugging Face hub ({reason}): "
            "correct the path or the name"
        ) from None


def push(folder: str | Path, name: str, private: bool = True) -> str:
    """Upload a bundle to the Hugging Face hub, where its model card is shown.

    Args:
        folder: that stage export wrote; it is checked first.
        name: ``user/name``.
        private: whether only you see the repository, where it is made anew.

    Returns:
        The address of the commit.

    Raises:
        UserError: it is no bundle.
    """
    bundle = open_bundle(folder)
    api = huggingface_hub.HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=name, folder_path=str(bundle.folder)))


def is_trusted(target: str) -> bool:
    """Whether a dotted name is a class or function that one of the :data:`TRUSTED` modules defines itself.

    ``models.base.torch.load`` is not: it begins like one of ours and leads elsewhere.
    """
    if not target.startswith(TRUSTED):
        return False
    try:
        definition = get_object(target)
    except Exception:  # of this name nothing is there
        return False
    return f"{getattr(definition, '__module__', '')}.".startswith(TRUSTED)


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """
    Raises:
        UserError: all files that are missing, changed, outside the folder, or unlisted and able to hold code.
    """
    problems = []
    for name, expected in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or (folder / name).is_symlink():
            problems.append(f"{folder} lists {name}, which is outside of it: {REFUSE}")
        elif not (folder / name).is_file():
            problems.append(f"{folder} lacks {name}: {REFUSE}")
        elif file_digest(folder / name) != expected:
            problems.append(f"{folder / name} is not the file that was exported (its SHA-256 differs): {REFUSE}")
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in EXECUTABLE:
            problems.append(f"{folder} holds {name}, and no bundle has such files: delete it")
    for name in ("config.yaml", "data/meta.json", MODEL):
        if name not in files:
            problems.append(f"{folder / MANIFEST} does not list {name}: {REFUSE}")
    if problems:
        raise UserError("\n".join(problems))


_unpacked: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when the program ends


def unpack(archive: Path) -> Path:
    """Unpack a bundle's archive into a temporary folder, which is removed when the program ends.

    Raises:
        UserError: it is no archive, an entry leaves the folder, or it holds too much.
    """
    _unpacked.append(tempfile.TemporaryDirectory(prefix="bundle-"))
    target = Path(_unpacked[-1].name)
    try:
        with zipfile.ZipFile(archive) as file:
            # An entry that holds more than it states is refused by zipfile.
            size = sum(entry.file_size for entry in file.infolist())
            if size > limit("UNPACKED"):
                raise UserError(
                    f"{archive} holds {size:,} bytes when unpacked, the limit is "
                    f"{advice('UNPACKED', limit('UNPACKED'))}"
                )
            for entry in file.infolist():
                path = PurePosixPath(entry.filename)
                is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if not path.parts:
                    raise UserError(f"{archive} holds an entry without a name: {REFUSE}")
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or is_link:
                    raise UserError(f"{archive} holds {entry.filename}, which leaves its folder: {REFUSE}")
            file.extractall(target)
    except (OSError, ValueError, *BROKEN) as error:
        raise UserError(f"{archive} is no bundle ({error}): give the folder or .zip file of stage export") from None
    folders = [path.parent for path in target.rglob(MANIFEST)]
    return folders[0] if folders else target


def on_files(cfg: DictConfig, folder: Path, files: Mapping[str, str]) -> None:
    """Point a bundle's configuration at its files."""
    cfg.dataset.store = str(folder / "data")
    trained = cfg.model.backbone if "backbone" in cfg.model else cfg.model
    for key in ("transformer_checkpoint", "checkpoint"):
        if key in trained:
            trained[key] = None
    trained["transformer_checkpoint" if "transformer_checkpoint" in trained else "checkpoint"] = str(folder / MODEL)
    if GAUSSIAN in files:
        trained.gaussian = str(folder / GAUSSIAN)
    if "imputer" in cfg:
        cfg.imputer.checkpoint = str(folder / IMPUTER) if IMPUTER in files else None
    if any(name.startswith("tokenizer/") for name in files):
        cfg.dataset.tokenizer = str(folder / "tokenizer")


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` of a configuration."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            if key == "_target_":
                yield str(value)
            yield from targets(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from targets(value)
