"""Tiny seeded files in the real directory and file-name layouts, for the real readers."""

from __future__ import annotations

import gzip
import math
import shlex
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from datasets.demo.vocabulary import write_vocabulary
from trainers.config.compose import CONFIGS, VERSION_BASE, register

SCRIPTS = Path(__file__).parents[1] / "job_scripts"


def calls_of(tmp_path: Path, script: str, *arguments: str) -> list[list[str]]:
    """The arguments of every ``python`` that a job script calls, with a ``python`` that only prints them."""
    folder = tmp_path / "job_scripts"
    shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
    (folder / "_environment.sh").write_text('python() { printf "%q " "$@"; echo; }\n')
    command = ["bash", str(folder / script), *arguments]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [shlex.split(line) for line in process.stdout.splitlines()]


def jobs_of(tmp_path: Path, script: str, *arguments: str) -> list[list[str]]:
    """The overrides of every job that a job script runs, one list for each combination of a sweep."""
    jobs = []
    for call in calls_of(tmp_path, script, *arguments):
        overrides = [argument for argument in call[1:] if argument != "--multirun"]
        if call[0] == "run.py" and "--multirun" in call:
            jobs += expand_sweep(overrides)
        elif call[0] == "run.py":
            jobs.append(overrides)
    return jobs


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides for each combination, also of the values that an experiment sweeps by itself."""
    chosen = [o for o in overrides if o.startswith("experiment=") and "," not in o]
    register()
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        sweeper = compose("config", chosen, return_hydra_config=True).hydra.sweeper
    swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*swept, *overrides])
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def make_polymnist_folder(
    root: Path, per_class: int = 2, splits: Sequence[str] = ("train", "val", "test"), seed: int = 0
) -> Path:
    """``<root>/<split>/m{0..4}/{i}.{digit}.png``: a coarse colour pattern of each class and view, plus noise.

    Args:
        per_class: tuples of each digit in each split.
        seed: of patterns and noise; a split's files do not depend on which other splits are made.

    Returns:
        ``root``.
    """
    patterns = np.random.default_rng(seed).integers(20, 236, size=(5, 10, 4, 4, 3))
    for split in splits:
        rng = np.random.default_rng([seed, ("train", "val", "test").index(split)])
        for view in range(5):
            folder = Path(root) / split / f"m{view}"
            folder.mkdir(parents=True)
            for digit in range(10):
                picture = patterns[view, digit].repeat(7, axis=0).repeat(7, axis=1)
                for i in range(per_class):
                    noisy = picture + rng.integers(-20, 20, size=picture.shape)
                    Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i}.{digit}.png")
    return Path(root)


def make_mnist_idx(folder: Path, n_train: int = 100, n_test: int = 60, seed: int = 0, gz: bool = True) -> Path:
    """The four idx files of MNIST: a coarse glyph of each class in grey values around the threshold of 128, with noise.

    Args:
        n_train, n_test: images; the classes are as equal in number as can be, in random order.
        gz: write ``.gz`` files.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    glyphs = rng.integers(0, 2, size=(10, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
        images = glyphs[labels] * rng.integers(120, 256, size=(n, 28, 28))
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images.astype(np.uint8), gz)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, gz)
    return folder


def write_idx(path: Path, array: np.ndarray, gz: bool = False) -> Path:
    """A uint8 array as an idx file, ``.gz`` appended to the name where it is compressed; returns the path."""
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
    path = path.with_name(path.name + ".gz") if gz else path
    path.write_bytes(gzip.compress(content, mtime=0) if gz else content)
    return path


def random_original_state(
    modalities: int = 5, width: int = 128, classes: int = 10, projection: int = 64, layers: int = 2, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random weights of a PolyMNIST DynamicTransformer under the keys of the original repository
    (docs/reference/dymo.md §1.6).

    Of a size at which features differ between classes and subsets, yet no posterior is saturated; 80 entries at the
    default sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def noise(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def affine(name: str, *shape: int, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = noise(*shape, scale=gain * math.prod(shape[1:]) ** -0.5)
        state[f"{name}.bias"] = noise(shape[0], scale=0.1 * gain)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + noise(width, scale=0.1)
        state[f"{name}.bias"] = noise(width, scale=0.1)

    state["cls_token"] = noise(1, 1, width, scale=0.5)
    state["pos_embeddings"] = noise(1, 1 + 4 * modalities, width, scale=0.1)
    state["prototypes"] = noise(classes, projection, scale=0.1)
    state["modality_embeddings.weight"] = noise(modalities, width, scale=0.5)
    for i in range(modalities):
        norm(f"m_norms.{i}")
        for layer, (out, into) in zip((0, 2, 4), ((32, 3), (64, 32), (width, 64))):
            affine(f"m_encoders.{i}.network.{layer}", out, into, 3, 3)
        affine(f"m_encoders.{i}.proj_conv.0", width, width, 1, 1)
    for b in range(layers):
        norm(f"transformer.{b}.norm1")
        state[f"transformer.{b}.attn.qkv.weight"] = noise(3 * width, width, scale=width**-0.5)
        affine(f"transformer.{b}.attn.proj", width, width)
        norm(f"transformer.{b}.norm2")
        affine(f"transformer.{b}.mlp.fc1", 4 * width, width)
        affine(f"transformer.{b}.mlp.fc2", width, 4 * width)
    affine("classifier", classes, width)
    affine("projection", projection, width, gain=0.3)
    return state


def make_original_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """``checkpoint_best_acc.ckpt`` as the original saves it, with an OmegaConf object inside; returns the path."""
    content = {
        "epoch": 12,
        "state_dict": OrderedDict(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scheduler": None,
        "hyper_parameters": OmegaConf.create({"model": {"model_name": "DynamicTransformer"}, "lr": 1e-3}),
        "best_val_score": torch.tensor(0.9),
    }
    torch.save(content, path)
    return path


def make_image_table(
    folder: Path,
    per_class: int = 20,
    classes: Sequence[str] = ("nut", "bolt", "screw"),
    seed: int = 0,
    side: int = 24,
) -> Path:
    """``<folder>/parts.csv`` and ``<folder>/photos/p<i>.jpg``: a table with gaps, pictures whose hue is the class.

    Columns: photo, kind (label), metal and finish (categorical; 'unknown' and empty cells), weight and length (numbers,
    some empty), box (group: three rows of one class each).

    Returns:
        The CSV file.
    """
    rng = np.random.default_rng(seed)
    photos = Path(folder) / "photos"
    photos.mkdir(parents=True)
    lines = ["photo,kind,metal,finish,weight,length,box"]
    for i in range(per_class * len(classes)):
        c, k = i % len(classes), i // len(classes)
        hue = np.roll([220, 90, 40], c)
        Image.fromarray((hue + rng.integers(-30, 30, (side, side + 4, 3))).clip(0, 255).astype(np.uint8)).save(
            photos / f"p{i}.jpg"
        )
        metal = "unknown" if k == 0 else ("steel", "brass")[int(rng.random() < 0.3 + 0.2 * c)]
        weight = "" if i % 7 == 3 else f"{5 + 3 * c + rng.normal():.3f}"
        finish = "" if i % 11 == 5 else ("plain", "zinc", "black")[int(rng.integers(3))]
        lines.append(f"p{i},{classes[c]},{metal},{finish},{weight},{20 + rng.normal():.3f},{classes[c]}{k // 3}")
    csv = Path(folder) / "parts.csv"
    csv.write_text("\n".join(lines) + "\n")
    return csv


def make_chest_xray(folder: Path, patients: int = 60, seed: int = 0) -> Path:
    """``<folder>/chest_xray/metadata.csv``, ``images/`` and ``<folder>/vocab/bert-base-uncased-vocab.txt``.

    Grey pictures whose brightness is the finding, two films of every third patient, notes that name the diagnosis, some
    empty; findings with too few patients, and some that say 'todo'.

    Returns:
        The CSV file.
    """
    rng = np.random.default_rng(seed)
    root = Path(folder) / "chest_xray"
    (root / "images").mkdir(parents=True)
    findings = ["COVID-19", "SARS", "Pneumocystis", "Streptococcus", "No Finding"]
    rare = ["todo", "Lipoid", "Unknown", "COVID-19, ARDS"]
    notes = {
        "COVID-19": "Fever and cough, SARS-CoV-2 confirmed, {} opacities",
        "SARS": "Travelled with a case of SARS, {} consolidation",
        "Pneumocystis": "Low CD4 count, PCP suspected, {} reticular pattern",
        "Streptococcus": "Lobar pneumonia with {} effusion",
        "No Finding": "Routine film, {} lungs",
    }
    lines = ["patientid,sex,age,finding,view,filename,clinical_notes"]
    vocabulary = " ".join([*notes.values(), "bilateral peripheral clear"]).lower().replace(",", "").replace("{}", "")
    for p in range(patients):
        kind = findings[p % 5] if p % 12 else rare[(p // 12) % 4]
        for film in range(2 if p % 3 == 0 else 1):
            name = f"p{p}-{film}.png"
            level = 30 + 40 * (findings.index(kind) if kind in findings else 0)
            noise = rng.integers(-20, 20, size=(40, 32 + p % 9))
            Image.fromarray((level + noise).clip(0, 255).astype(np.uint8)).save(root / "images" / name)
            text = notes.get(kind, "nothing known").format(rng.choice(["bilateral", "peripheral", "clear"]))
            text = "" if p % 8 == 5 else text
            lines.append(f'{p},{"MF"[p % 2]},{40 + p % 30},"{kind}",PA,{name},"{text}"')
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    (Path(folder) / "vocab").mkdir()
    write_vocabulary(Path(folder) / "vocab" / "bert-base-uncased-vocab.txt", vocabulary.split())
    return root / "metadata.csv"


def make_messy_lesions(folder: Path, seed: int = 0) -> tuple[Path, dict[str, list[int]]]:
    """``<folder>/lesions.csv`` and ``<folder>/photos/``: a table of skin lesions as a clinic exports it.

    Semicolons, decimal commas and Windows encoding; spellings, units, blanks, gaps and copies as planted below.

    Returns:
        The CSV file, and the planted faults: what -> rows as a spreadsheet numbers them (the header is row 1).
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    (folder / "photos").mkdir(parents=True)
    classes, codes = ["nevus", "melanoma", "basal cell carcinoma"], ["D22", "C43", "C44"]
    spellings = [["F", "f", "female", "F "], ["M", "m", "Male", "male"]]
    sites = ["Rücken", "Arm", "Gesicht", "Bein"]
    rows: list[dict[str, str]] = []
    for i in range(114):
        c = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
        hue = np.roll([200, 90, 60], c) + rng.integers(-30, 30, (20, 24, 3))
        Image.fromarray(hue.clip(0, 255).astype(np.uint8)).save(folder / "photos" / f"IMG_{i:04d}.jpg")
        patient = i if i % 3 else i + 1  # every third patient has two lesions
        rows.append(
            {
                "case_no": f"L-{1000 + i}",
                "patient": f"P{patient:03d}",
                "photo": f"IMG_{i:04d}",
                "diagnosis": classes[c],
                "icd": codes[c],
                "sex": spellings[patient % 2][int(rng.integers(4))],
                "age": str(int(rng.integers(20, 90))),
                "diameter": f"{3 + c + 3 * rng.random():.1f}".replace(".", ","),
                "site": sites[int(rng.integers(4))],
                "visit": f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.2024",
                "clinic": "Haut 1",
            }
        )

    faults: dict[str, list[int]] = {}

    def plant(what: str, cells: dict[int, dict[str, str]]) -> None:
        faults[what] = sorted(i + 2 for i in cells)
        for i, changes in cells.items():
            rows[i].update(changes)

    plant("rare class", {5: {"diagnosis": "angioma", "icd": "D18"}, 50: {"diagnosis": "angioma", "icd": "D18"}})
    plant("blank label", {8: {"diagnosis": ""}, 33: {"diagnosis": " "}, 70: {"diagnosis": ""}})
    plant("label spelling", {i: {"diagnosis": "Nevus", "icd": "D22"} for i in (12, 29, 61)})
    plant("unit", {14: {"age": "63 J."}, 37: {"age": "71 J."}})
    plant("decimal point", {20: {"diameter": "7.2"}, 44: {"diameter": "4.1"}})
    plant("unit of the diameter", {55: {"diameter": "6,5 mm"}})
    plant("site spelling", {i: {"site": "arm"} for i in (17, 38)})
    plant("missing mark", {i: {"site": "n/a"} for i in (22, 47, 80)})
    plant("empty age", {i: {"age": ""} for i in (3, 41, 77, 90)})
    plant("missing image", {25: {"photo": "IMG_9001"}, 60: {"photo": "IMG_9002"}})
    plant("unreadable image", {31: {}, 88: {}})
    (folder / "photos" / "IMG_0031.jpg").write_bytes(b"not an image")
    whole = (folder / "photos" / "IMG_0088.jpg").read_bytes()
    (folder / "photos" / "IMG_0088.jpg").write_bytes(whole[: len(whole) // 2])
    shutil.copy(folder / "photos" / "IMG_0010.jpg", folder / "photos" / "IMG_0011.jpg")
    plant("copied image of another patient", {10: {}, 11: {}})
    rows += [dict(rows[2]), dict(rows[40])]
    faults["copied row"] = [len(rows), len(rows) + 1]
    lines = [";".join(rows[0]), *(";".join(row.values()) for row in rows)]
    csv = folder / "lesions.csv"
    csv.write_text("\r\n".join(lines) + "\r\n", encoding="cp1252", newline="")
    return csv, faults
