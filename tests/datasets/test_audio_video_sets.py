"""CREMA-D, Kinetics-Sound, AVE and the spoken digits: sources, splits, bad clips, whole runs
(docs/reference/datasets.md §6 to §8).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import clips as clips_module
from datasets import cremad as cremad_module
from datasets.ave import AVE, read_events
from datasets.bad_clips import PROBLEMS
from datasets.clip_listing import Clip, MediaFolder, note_counts
from datasets.clips import ClipModule
from datasets.cremad import CREMAD, EMOTIONS, read_emotions
from datasets.demo.ave import make_ave
from datasets.demo.cremad import make_cremad
from datasets.demo.folders import ensure_demo
from datasets.demo.kinetics_sound import make_kinetics_sound
from datasets.demo.media import made_frames, made_sound, write_frames, write_video, write_wav
from datasets.demo.spoken_digits import make_spoken_digits
from datasets.kinetics_sound import KineticsSound, read_class_names, read_labels
from datasets.missingness import parse_scenario
from datasets.readers.audio import FrontEnd, LogMel, LogSTFT, hear, read_audio
from datasets.readers.video import ClipReader, Frames
from datasets.spoken_digits import SpokenDigits, find_recordings, pair_with_images, speakers_of
from trainers import run as pipeline
from trainers.config.build import store_path
from trainers.config.compose import compose_config
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SPLITS = ("train", "val", "test")
STFT = LogSTFT(8000, 1.0, 64, 100)
MEL = LogMel(24, 12)
RNG = np.random.default_rng(0)


def built(kind: type[ClipModule], root: Path, folder: Path, **settings: Any) -> Any:
    settings = {"audio": STFT, "frames": Frames(2, 16), "stored_side": 20, "stored_frames": 4, **settings}
    data = kind(store=str(folder / "store"), root=str(root), **settings)
    data.prepare()
    return data


@pytest.fixture(scope="module")
def cremad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds and videos of 48 / 12 clips; do not change it."""
    root = tmp_path_factory.mktemp("cremad") / "CREMA-D"
    make_cremad(root, per_class=(8, 2))
    return root


def copied(source: Path, target: Path) -> Path:
    """A copy to spoil; the large files are links."""
    for file in source.rglob("*.*"):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".csv", ".txt"):
            shutil.copy(file, place)
        else:
            place.hardlink_to(file)
    return target


def replaced(file: Path, write: Callable[[Path], object]) -> None:
    """Write a linked file anew, leaving its source alone."""
    file.unlink()
    write(file)


# -------------------------------------------------------------------------------------------------------------- CREMA-D


def test_every_clip_against_its_files(cremad: Path, tmp_path: Path) -> None:
    data = built(CREMAD, cremad, tmp_path, validation=0.25)
    listed = {split: dict(read_emotions(cremad / f"{split}.csv")) for split in ("train", "test")}
    assert (cremad / "train.csv").read_bytes().startswith(b"\xef\xbb\xbf1001_IEO_NEU_XX,NEU")
    assert [len(data.split(s)) for s in SPLITS] == [36, 12, 12] and data.class_names == list(EMOTIONS)
    names = {split: data.split(split).names() for split in SPLITS}
    assert set(names["train"]) | set(names["val"]) == set(listed["train"]) and set(names["test"]) == set(listed["test"])
    assert not set(names["train"]) & set(names["val"])
    assert Counter(data.split("val").read("target").tolist()) == dict.fromkeys(range(6), 2), "drawn by class"
    for split in SPLITS:
        packed = data.split(split)
        sounds, frames = packed.read("audio"), packed.read("visual")
        for row, name in list(enumerate(packed.names()))[::5]:
            assert packed.read("target")[row] == listed["test" if split == "test" else "train"][name]
            expected = hear(STFT, cremad / f"AudioWAV/{name}.wav", None, None, False)
            np.testing.assert_array_equal(sounds[row], expected)
            pixels, n = ClipReader(20, 4)(cremad / f"VideoFlash/{name}.flv")
            assert np.array_equal(frames[row], pixels) and packed.counts("visual")[row] == n >= 1
    batch = next(iter(data.loader("test", batch_size=5)))
    assert [m.kind for m in data.modalities] == ["audio", "video"]
    assert [tuple(m.shape) for m in data.modalities] == [(33, 81), (2, 3, 16, 16)]
    assert {k: tuple(v.shape) for k, v in batch.inputs.items()} == {"audio": (5, 33, 81), "visual": (5, 2, 3, 16, 16)}
    n = int(data.split("test").counts("visual")[0])
    places = data.frames.choose(torch.tensor([n]), None)
    expected = data.frames(data.split("test").read("visual")[:1, places[0]].float() / 255, None)
    torch.testing.assert_close(batch.inputs["visual"][0], expected[0])
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]
    meta = data.store.meta()
    assert meta["source"]["audio"]["front_end"] == "LogSTFT" and meta["left_out"] == {}


def test_prepared_folders_of_frames_are_read(tmp_path: Path) -> None:
    root = tmp_path / "CREMA-D"
    make_cremad(root, per_class=(3, 1), frames=True)
    write_frames(root / "Image-03-FPS/1001_IEO_NEU_XX", made_frames(5, 9, RNG))
    data = built(CREMAD, root, tmp_path, validation="test")
    assert [len(data.split(s)) for s in SPLITS] == [18, 6, 6]
    for name in ("audio", "visual", "target"):
        assert torch.equal(data.split("val").read(name), data.split("test").read(name)), "as the release does"
    assert data.split("val").names() == data.split("test").names()
    row = data.split("train").names().index("1001_IEO_NEU_XX")
    pixels, n = ClipReader(20, 4)(root / "Image-01-FPS/1001_IEO_NEU_XX")
    assert np.array_equal(data.split("train").read("visual")[row], pixels)
    assert data.split("train").counts("visual")[row] == n <= 3, "one frame a second, not three"


def test_seeds_share_and_epochs(cremad: Path, tmp_path: Path) -> None:
    one = built(CREMAD, cremad, tmp_path / "a", validation=0.25, train_fraction=0.5)
    other = built(CREMAD, cremad, tmp_path / "b", validation=0.25, validation_seed=1)
    assert one.split("val").names() != other.split("val").names() and len(one.split("train")) == 18
    loader = one.loader("train", train=True, batch_size=18)
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        assert all(torch.isfinite(x).all() for x in batch.inputs.values())
        epochs.append(batch.inputs["visual"][batch.index.argsort()])
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    counts = one.split("train").counts("visual")
    assert len(counts) == 18
    whole = built(CREMAD, cremad, tmp_path / "a", validation=0.25)
    names = whole.split("train").names()
    rows = [names.index(n) for n in one.split("train").names()]
    assert torch.equal(counts, whole.split("train").counts("visual")[rows])
    torch.testing.assert_close(one.rows("train", np.arange(4)).inputs, whole.rows("train", np.array(rows[:4])).inputs)


def test_residences_give_the_same_batches(cremad: Path, tmp_path: Path) -> None:
    data = built(CREMAD, cremad, tmp_path, validation=0.25)
    batches = []
    for residence in ("host", "mmap"):
        data.residence = residence
        batches.append(next(iter(data.loader("train", train=True, batch_size=7))))
    assert all(torch.equal(batches[0].inputs[k], batches[1].inputs[k]) for k in ("audio", "visual"))


BAD = {
    "absent": lambda root, clip: [f.unlink() for f in root.rglob(f"{clip}.*")],
    "no_audio": lambda root, clip: (root / f"AudioWAV/{clip}.wav").unlink(),  # the videos have no sound track
    "no_frames": lambda root, clip: (root / f"VideoFlash/{clip}.flv").unlink(),
    "unreadable": lambda root, clip: replaced(root / f"AudioWAV/{clip}.wav", lambda f: f.write_bytes(b"RIFF")),
    "silent": lambda root, clip: replaced(
        root / f"AudioWAV/{clip}.wav", lambda f: write_wav(f, np.zeros(16_000, dtype=np.float32), 16_000)
    ),
    "short": lambda root, clip: replaced(
        root / f"AudioWAV/{clip}.wav", lambda f: write_wav(f, made_sound(0, 0.02, 16_000, RNG), 16_000)
    ),
    "few_frames": lambda root, clip: replaced(
        root / f"VideoFlash/{clip}.flv", lambda f: write_video(f, made_frames(0, 6, RNG), "flv")
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_clip_is_refused_or_left_out_as_said(cremad: Path, tmp_path: Path, kind: str) -> None:
    root = copied(cremad, tmp_path / "CREMA-D")
    settings: dict[str, Any] = {"audio": MEL, "least_frames": 2, "validation": 0.25}
    names = read_emotions(root / "train.csv") + read_emotions(root / "test.csv")
    bad = [names[20][0], names[50][0]]
    for clip in bad:
        BAD[kind](root, clip)
    with pytest.raises(UserError) as caught:
        built(CREMAD, root, tmp_path, **settings)
    message = str(caught.value)
    count = f"of 60 clips 2 {PROBLEMS[kind]} ("
    assert count in message and any(clip in message for clip in bad) and f"dataset.bad_clips.{kind}=skip" in message
    assert not (tmp_path / "store").exists()
    data = built(CREMAD, root, tmp_path, **{**settings, "bad_clips": {kind: "skip"}})
    assert sum(len(data.split(s)) for s in SPLITS) == 58
    assert sorted(data.store.meta()["left_out"][kind]) == sorted(bad)
    remaining = {name for s in SPLITS for name in data.split(s).names()}
    assert not remaining & set(bad)
    for split in SPLITS:  # what is left is in its place
        for row, name in list(enumerate(data.split(split).names()))[::6]:
            expected = hear(MEL, root / f"AudioWAV/{name}.wav", None, None, False)
            np.testing.assert_array_equal(data.split(split).read("audio")[row], expected)
    if kind == "silent":
        data = built(CREMAD, root, tmp_path, **{**settings, "bad_clips": {"silent": "keep"}})
        assert sum(len(data.split(s)) for s in SPLITS) == 60 and data.store.meta()["left_out"] == {}


def test_all_problems_are_said_at_once(cremad: Path, tmp_path: Path) -> None:
    root = copied(cremad, tmp_path / "CREMA-D")
    names = [clip for clip, _ in read_emotions(root / "train.csv")]
    BAD["silent"](root, names[3])
    BAD["unreadable"](root, names[4])
    replaced(root / f"VideoFlash/{names[5]}.flv", lambda f: f.write_bytes(b"FLV"))
    with pytest.raises(UserError, match=r"1 silent \(.*\).*2 unreadable \(.*, \.\.\.\).*=skip, .*=skip"):
        built(CREMAD, root, tmp_path, validation=0.25)


def test_decoding_goes_on_where_it_was_interrupted(
    cremad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips_module, "CHUNK", 8)
    root = copied(cremad, tmp_path / "CREMA-D")
    broken = read_emotions(root / "train.csv")[5][0]
    whole = (root / f"VideoFlash/{broken}.flv").read_bytes()
    replaced(root / f"VideoFlash/{broken}.flv", lambda f: f.write_bytes(b"FLV"))
    seen: list[str] = []
    read = ClipReader.__call__

    def counted(reader: ClipReader, path: Path, *more: Any) -> Any:
        if len(seen) == 20:
            raise KeyboardInterrupt
        seen.append(path.stem)
        return read(reader, path, *more)

    monkeypatch.setattr(ClipReader, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        built(CREMAD, root, tmp_path, validation=0.25)
    first = set(seen)
    seen[:] = ["-"] * 21  # never stops
    with pytest.raises(UserError, match="1 unreadable"):
        built(CREMAD, root, tmp_path, validation=0.25)
    again = set(seen[21:])
    assert len(again & first) <= 8 and len(again | first) == 60, "at most the chunk that was not noted is read again"
    (root / f"VideoFlash/{broken}.flv").write_bytes(whole)
    seen[:] = ["-"] * 21
    data = built(CREMAD, root, tmp_path, validation=0.25)
    assert seen[21:] == [broken], "nothing but the mended file"
    reference = built(CREMAD, cremad, tmp_path / "b", validation=0.25)
    for split in SPLITS:
        for name in ("audio", "visual", "target"):
            assert torch.equal(data.split(split).read(name), reference.split(split).read(name))


LISTS = {
    "no emotion": ("1001_IEO_NEU_XX,JOY", r"train\.csv: line 49 is '1001_IEO_NEU_XX,JOY', expected .*ANG"),
    "twice": ("1001_IEO_NEU_XX,NEU", r"list 1001_IEO_NEU_XX \(in train and train\) twice \(1 such"),
}


@pytest.mark.parametrize("case", LISTS)
def test_bad_lists_are_named(cremad: Path, tmp_path: Path, case: str) -> None:
    line, message = LISTS[case]
    shutil.copytree(cremad, tmp_path / "lists", ignore=shutil.ignore_patterns("*.wav", "*.flv"))
    with (tmp_path / "lists/train.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=message):
        built(CREMAD, cremad, tmp_path, lists=str(tmp_path / "lists"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 2.0}, "dataset.validation=2.0: must be a share"),
        ({"validation": "list"}, "dataset.validation=list: CREMAD takes a share"),
        ({"bad_clips": {"loud": "skip"}}, "bad_clips.loud: there is no such problem, only absent"),
        ({"bad_clips": {"short": "keep"}}, "bad_clips.short=keep: must be refuse or skip"),
        ({"stored_frames": 0}, "dataset.stored_frames=0: it must be 1"),
        ({"root": "/nowhere"}, "no CREMA-D: looked for sounds and videos below /nowhere"),
    ],
)
def test_settings_that_do_not_fit_are_named(cremad: Path, tmp_path: Path, settings: dict, message: str) -> None:
    root = Path(settings.pop("root", cremad))
    with pytest.raises(UserError, match=message):
        built(CREMAD, root, tmp_path, **settings)


def test_no_lists(cremad: Path, tmp_path: Path) -> None:
    root = copied(cremad, tmp_path / "CREMA-D")
    (root / "test.csv").unlink()
    with pytest.raises(
        UserError, match=r"no test\.csv \(clips and emotions\) in .*: put it there, or set dataset\.lists"
    ):
        built(CREMAD, root, tmp_path)
    (root / "test.csv").write_text("\n\n")
    with pytest.raises(UserError, match="CREMAD: no clips are listed for test"):
        built(CREMAD, root, tmp_path)


PUBLISHED = {  # of each emotion, docs/reference/datasets.md §6.3
    "train": [973, 1148, 1131, 1138, 1142, 1166],
    "test": [114, 123, 140, 133, 129, 105],
}


def check_counts(folder: Path, counts: dict[str, list[int]]) -> None:
    rows = {split: read_emotions(folder / f"{split}.csv") for split in counts}
    assert {s: np.bincount([label for _, label in part]).tolist() for s, part in rows.items()} == counts
    names = [name for part in rows.values() for name, _ in part]
    assert len(names) == len(set(names)) == sum(map(sum, counts.values()))


@pytest.mark.skipif(not (SHARED / "splits/CREMAD").is_dir(), reason="the published lists are not there")
def test_the_published_lists_of_crema_d() -> None:
    check_counts(SHARED / "splits/CREMAD", PUBLISHED)
    assert sum(PUBLISHED["train"]) == 6698 and sum(PUBLISHED["test"]) == 744


def test_made_lists_of_crema_d(cremad: Path) -> None:
    check_counts(cremad, {"train": [8] * 6, "test": [2] * 6})


def test_a_list_of_another_length_is_noted(cremad: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(CREMAD, cremad, tmp_path, validation="test")
    assert "48 clips are listed for train, 6698 were published" in caplog.text
    assert "CREMAD: validation=test chooses checkpoints on the test clips" in caplog.text
    clips = {"train": [Clip("a", label, None, None) for label in (0, 1, 1)]}
    caplog.clear()
    note_counts("it", clips, {"train": (1, 2)})
    assert not caplog.records
    note_counts("it", clips, {"train": (2, 1)})
    assert "it: train has [1, 2] clips per class, the published list [2, 1]" in caplog.text
    assert {split: tuple(counts) for split, counts in PUBLISHED.items()} == cremad_module.PUBLISHED


@pytest.mark.parametrize("front", [STFT, MEL], ids=["stft", "mel"])
def test_noise_reads_the_values_of_clips(cremad: Path, tmp_path: Path, front: FrontEnd) -> None:
    """Level 6: 36 grey levels on frames that are standardised, 6 on the logarithm of spectra, whatever their scale."""
    frames = Frames(2, 16, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
    data = built(CREMAD, cremad, tmp_path, audio=front, frames=frames, validation="test")
    corruption = data.corruption("test", parse_scenario("noise_gaussian_6_all"))
    clean = data.rows("test", np.arange(12))
    noisy = corruption(clean)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (frames.mean, frames.deviation))
    before, after = ((b.inputs["visual"] * deviation + mean) * 255 for b in (clean, noisy))
    inside = (before > 110) & (before < 145)  # three deviations from black and white
    assert (after - before)[inside].std() == pytest.approx(36, rel=0.05)
    assert after.min() > -0.01 and after.max() < 255.01
    factor = 2 * 4.5689974 if front is MEL else 1
    added = factor * (noisy.inputs["audio"] - clean.inputs["audio"])
    assert added.std() == pytest.approx(6, rel=0.04)
    blurred = data.corruption("test", parse_scenario("noise_temporal_blur_11_audio"))(clean).inputs["audio"]
    axis = 1 if front is MEL else 2
    assert blurred.diff(dim=axis).std() < 0.4 * clean.inputs["audio"].diff(dim=axis).std()


# ------------------------------------------------------------------------------------------------------- Kinetics-Sound


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UDML's folders, 20 / 8 clips; do not change it."""
    root = tmp_path_factory.mktemp("kinetics") / "KS"
    make_kinetics_sound(root, per_class=(5, 2))
    return root


def test_class_folders_of_kinetics_sound(kinetics: Path, tmp_path: Path) -> None:
    data = built(KineticsSound, kinetics, tmp_path, validation="test", least_frames=3)
    assert data.class_names == ["playing_drums", "playing_violin", "tap_dancing", "chopping_wood"]
    assert [len(data.split(s)) for s in SPLITS] == [20, 8, 8]
    for split, image, sound in (("train", "train_img", "train"), ("test", "val_img", "test")):
        packed = data.split(split)
        for row, name in enumerate(packed.names()):
            group = data.class_names[int(packed.read("target")[row])]
            folder = kinetics / f"visual/{image}/Image-01-FPS/{group}/{name}"
            assert folder.is_dir() and packed.counts("visual")[row] == min(4, len(list(folder.iterdir())))
            expected = hear(STFT, kinetics / f"audio/{sound}/{group}/{name}.wav", None, None, False)
            np.testing.assert_array_equal(packed.read("audio")[row], expected)


def test_clips_of_one_side_and_short_ones(kinetics: Path, tmp_path: Path) -> None:
    root = copied(kinetics, tmp_path / "KS")
    sounds = sorted((root / "audio/train").rglob("*.wav"))
    folders = sorted((root / "visual/train_img/Image-01-FPS/tap_dancing").iterdir())
    sounds[0].unlink()
    sorted(folders[0].iterdir())[0].unlink()
    for picture in sorted(folders[0].iterdir())[2:]:
        picture.unlink()
    for picture in list(folders[1].iterdir()):
        picture.unlink()
    with pytest.raises(UserError, match=rf"of 28 clips 1 without sound \({sounds[0].stem} in train: only"):
        built(KineticsSound, root, tmp_path, validation="test", least_frames=3)
    with pytest.raises(
        UserError, match=rf"1 with too few frames \({folders[0].name} .*1 without frames \({folders[1].name}"
    ):
        built(KineticsSound, root, tmp_path, validation="test", least_frames=3, bad_clips={"no_audio": "skip"})
    skip = dict.fromkeys(("few_frames", "no_audio", "no_frames"), "skip")
    data = built(KineticsSound, root, tmp_path, validation="test", least_frames=3, bad_clips=skip)
    assert len(data.split("train")) == 17
    left = data.store.meta()["left_out"]
    assert left == {"no_audio": [sounds[0].stem], "few_frames": [folders[0].name], "no_frames": [folders[1].name]}


def test_lists_of_kinetics_sound_with_videos_anywhere(tmp_path: Path) -> None:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for split, n in (("train", 93), ("test", 31)):
        for i in range(n):
            clip = f"-{split}{i:03d}_000010_000020"
            folder = tmp_path / f"KS/{split}/any {i % 31}"
            if i < 4:
                write_video(folder / f"{clip}.mp4", made_frames(i, 20, RNG), sound=(made_sound(i, 2, 8000, RNG), 8000))
            else:
                write_frames(folder / clip, made_frames(i, 1, RNG))
                write_wav(folder / f"{clip}.wav", made_sound(i % 31, 0.3, 8000, RNG), 8000)
            lines[split].append(f"{clip},10,{i % 31}")
    (tmp_path / "lists").mkdir()
    for split, name in (("train", "my_train.txt"), ("test", "my_test.txt")):
        (tmp_path / "lists" / name).write_text("\n".join(lines[split]) + "\n")
    data = built(KineticsSound, tmp_path / "KS", tmp_path, lists=str(tmp_path / "lists"), validation=1 / 3)
    assert data.num_classes == 31 and [len(data.split(s)) for s in SPLITS] == [62, 31, 31]
    assert sorted(data.split("test").read("target").tolist()) == list(range(31))
    with (tmp_path / "lists/my_test.txt").open("a") as file:
        file.write("x,10,31\n")
    with pytest.raises(UserError, match=r"my_test\.txt: line 32 is 'x,10,31', expected .* from 0 to 30"):
        built(KineticsSound, tmp_path / "KS", tmp_path, lists=str(tmp_path / "lists"))


@pytest.mark.skipif(not (SHARED / "splits/KineticSound").is_dir(), reason="the published lists are not there")
def test_the_published_lists_of_kinetics_sound() -> None:
    rows = {name: read_labels(SHARED / f"splits/KineticSound/my_{name}.txt") for name in ("train", "test")}
    assert {name: len(part) for name, part in rows.items()} == {"train": 14_799, "test": 2_597}
    for part in rows.values():
        assert {label for _, label in part} == set(range(31))
    assert not {c for c, _ in rows["train"]} & {c for c, _ in rows["test"]}


def test_class_names_and_ambiguous_folders(kinetics: Path, tmp_path: Path) -> None:
    assert read_class_names(kinetics / "class.txt")[0] == "playing_drums"
    (tmp_path / "class.txt").write_text("one,one")
    with pytest.raises(UserError, match="two or more different names"):
        read_class_names(tmp_path / "class.txt")
    root = copied(kinetics, tmp_path / "KS")
    folder = next((root / "visual/train_img/Image-01-FPS/tap_dancing").iterdir())
    sound = root / f"audio/train/tap_dancing/{folder.name}.wav"
    sound.rename(root / f"audio/train/chopping_wood/{folder.name}.wav")
    with pytest.raises(UserError, match=rf"{folder.name} is in the folders of tap_dancing and of chopping_wood"):
        built(KineticsSound, root, tmp_path)
    with pytest.raises(UserError, match=r"no Kinetics-Sound: looked for my_train\.txt in .*class folders"):
        built(KineticsSound, tmp_path / "empty", tmp_path)


# ------------------------------------------------------------------------------------------------------------------ AVE


@pytest.fixture(scope="module")
def ave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 10 / 5 / 5 clips; do not change it."""
    root = tmp_path_factory.mktemp("ave") / "AVE"
    make_ave(root, per_class=(2, 1, 1))
    return root


def test_the_annotated_part_of_a_video_counts(ave: Path, tmp_path: Path) -> None:
    data = built(AVE, ave, tmp_path, validation="list")
    assert data.class_names == ["Bark", "Church bell", "Helicopter", "Male speech", "Violin, fiddle"]
    assert [len(data.split(s)) for s in SPLITS] == [10, 5, 5] and data.store.meta()["source"]["repeated"] == 1
    for split in SPLITS:
        events = {video: (category, start, end) for category, video, start, end in read_events(ave / f"{split}Set.txt")}
        for row, name in enumerate(data.split(split).names()):
            category, start, end = events[name]
            assert data.class_names[int(data.split(split).read("target")[row])] == category
            path = ave / f"AVE/{name}.mp4"
            np.testing.assert_array_equal(data.split(split).read("audio")[row], hear(STFT, path, start, end, False))
            assert len(read_audio(path, start, end)[0]) == round((end - start) * 16_000)
            assert data.split(split).counts("visual")[row] == end - start
    other = built(AVE, ave, tmp_path / "b", validation="test")
    assert other.split("val").names() == data.split("test").names()
    with pytest.raises(UserError, match=r"dataset\.validation=0\.1: AVE takes list or test"):
        built(AVE, ave, tmp_path / "c", validation=0.1)


def test_prepared_sounds_and_frames_of_ave_are_taken_whole(ave: Path, tmp_path: Path) -> None:
    """A video of a split that is listed in another counts there, the test first."""
    root = tmp_path / "AVE"
    for file in ave.glob("*.txt"):
        root.mkdir(exist_ok=True)
        shutil.copy(file, root)
    rows = [row for name in SPLITS for row in read_events(root / f"{name}Set.txt")]
    for i, (_, video, _, _) in enumerate(rows):
        write_wav(root / f"Audios/{video}.wav", made_sound(i % 5, 0.5, 16_000, RNG), 16_000)
        write_frames(root / f"Image-01-FPS-SE/{video}", made_frames(i % 5, 2, RNG))
    with (root / "testSet.txt").open("a") as file:
        file.write((root / "trainSet.txt").read_text().splitlines()[1] + "\n")
    data = built(AVE, root, tmp_path, validation="list")
    moved = read_events(root / "trainSet.txt")[1][1]
    assert [len(data.split(s)) for s in SPLITS] == [9, 5, 6] and moved in data.split("test").names()
    assert (data.split("train").counts("visual") == 2).all()
    (root / "valSet.txt").write_text("Bark&x&good&5&5\n")
    with pytest.raises(UserError, match=r"valSet\.txt: line 1 is 'Bark&x&good&5&5', expected .*start before end"):
        built(AVE, root, tmp_path, validation="list")


def test_what_is_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b/x.wav", "a/x.mp3", "x.flv", "c/x.mp4", ".x.wav", "d/x/1.jpg", "Image-02-FPS/y/1.jpg", "y.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    media = MediaFolder(tmp_path)
    x, y = media.clip("x", 3, 1.0, 2.0), media.clip("y", 0)
    assert (x.name, x.label, x.start, x.end) == ("x", 3, 1.0, 2.0) and x.audio and x.visual and y.visual
    assert x.audio.path == tmp_path / "b/x.wav" and x.visual.path == tmp_path / "d/x"
    assert media.videos["x"].path == tmp_path / "c/x.mp4" and y.visual.path == tmp_path / "y.avi"
    frames = MediaFolder(tmp_path, fps=2).clip("y", 0).visual
    assert frames and frames.path == tmp_path / "Image-02-FPS/y"
    assert not MediaFolder(tmp_path / "nothing")


# -------------------------------------------------------------------------------------------------------- spoken digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers, two takes; do not change it."""
    root = tmp_path_factory.mktemp("digits")
    make_spoken_digits(root, takes=2)
    return root


def spoken(root: Path, folder: Path, **settings: Any) -> SpokenDigits:
    settings = {"audio": MEL, "recordings": str(root / "recordings"), "mnist": str(root / "mnist"), **settings}
    data = SpokenDigits(store=str(folder / "store"), **settings)
    data.prepare()
    return data


def test_a_recording_meets_as_many_images_of_its_class_as_there_are() -> None:
    digits, labels = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 2])
    audio, images = pair_with_images(digits, labels, 2, np.random.default_rng(0))
    assert audio.tolist() == [0, 1, 2, 3, 4] * 2 and (labels[images] == digits[audio]).all()
    assert sorted(images[digits[audio] == 0]) == [0, 1, 2, 3], "none twice before all were there"
    assert Counter(images[digits[audio] == 1].tolist()) == {4: 3, 5: 3}
    with pytest.raises(UserError, match="no image of the digit 3"):
        pair_with_images(np.array([3]), labels, 1, np.random.default_rng(0))


def test_speakers_and_images_stay_in_one_split(digits: Path, tmp_path: Path) -> None:
    data = spoken(digits, tmp_path, pairings=3)
    assert [len(data.split(s)) for s in SPLITS] == [4 * 20 * 3, 20, 20]
    voices = {s: {n.split("_")[1] for n in data.split(s).names()} for s in SPLITS}
    assert voices == {"train": {f"speaker{i}" for i in range(4)}, "val": {"speaker4"}, "test": {"speaker5"}}
    pools = {s: {i.numpy().tobytes() for i in data.split(s).pool("image", True)[0]} for s in SPLITS}
    assert not pools["train"] & pools["val"] and not (pools["train"] | pools["val"]) & pools["test"]
    assert len(pools["train"]) == 240, "as many images as pairs"
    for row, name in list(enumerate(data.split("train").names()))[::17]:
        assert data.split("train").read("target")[row] == int(name[0])
        expected = hear(MEL, digits / f"recordings/{name}.wav", None, None, False)
        np.testing.assert_array_equal(data.split("train").read("audio")[row], expected)
    batch = next(iter(data.loader("train", train=True, batch_size=8)))
    assert {k: tuple(v.shape) for k, v in batch.inputs.items()} == {"audio": (8, 24, 12), "image": (8, 1, 28, 28)}
    assert [(m.name, m.kind, m.shape) for m in data.modalities] == [
        ("audio", "audio", (24, 12)),
        ("image", "image", (1, 28, 28)),
    ]


def test_an_epoch_pairs_anew_inside_the_class(digits: Path, tmp_path: Path) -> None:
    data = spoken(digits, tmp_path, reshuffle_pairs=True)
    images, pointers = data.split("train").pool("image", True)
    target = data.split("train").read("target")
    assert pointers is not None
    owner = {images[p].numpy().tobytes(): int(t) for p, t in zip(pointers, target)}
    seen = []
    for epoch in (0, 1):
        loader = data.loader("train", train=True, batch_size=50)
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        pixels = (batch.inputs["image"] * 255).round().to(torch.uint8)
        assert [owner[x.numpy().tobytes()] for x in pixels] == batch.target.tolist()
        seen.append(batch.inputs["audio"])
    assert not torch.equal(*seen)


def test_protocols_and_speakers_of_choice(digits: Path, tmp_path: Path) -> None:
    make_spoken_digits(tmp_path / "more", takes=11, speakers=2)
    data = spoken(tmp_path / "more", tmp_path / "a", protocol="official", pairings=1)
    takes = {s: {int(n.rsplit("_", 1)[1]) for n in data.split(s).names()} for s in SPLITS}
    assert takes == {"train": {10}, "val": set(range(5, 10)), "test": set(range(5))}
    chosen = {"train": ["speaker5"], "val": ["speaker0"], "test": ["speaker1", "speaker2"]}
    data = spoken(digits, tmp_path / "b", speakers=chosen)
    assert {n.split("_")[1] for n in data.split("test").names()} == {"speaker1", "speaker2"}
    recordings = find_recordings(digits / "recordings")
    for wanted, message in (
        ([5, 1, 1], "there are 6 speakers"),
        ([4, 2, 0], "1 or more each"),
        ({**chosen, "val": ["nobody"]}, "no speaker nobody"),
        ({**chosen, "val": ["speaker5"]}, "speaker5 is named twice"),
        ({**chosen, "val": []}, "no speaker for val"),
        ({**chosen, "more": []}, "splits are train, val, test"),
    ):
        with pytest.raises(UserError, match=message):
            speakers_of(recordings, wanted)


def test_bad_recordings_are_named(digits: Path, tmp_path: Path) -> None:
    root = copied(digits, tmp_path / "copy")
    for name, samples in (("0_speaker0_0", 16_000), ("1_speaker4_1", 50)):
        replaced(root / f"recordings/{name}.wav", lambda f, n=samples: write_wav(f, np.zeros(n, np.float32), 8000))
    with pytest.raises(UserError, match=r"of 120 clips 2 silent \(0_speaker0_0 in train: nothing to hear, \.\.\.\)"):
        spoken(root, tmp_path)
    data = spoken(root, tmp_path, bad_clips={"silent": "skip"}, pairings=1)
    assert [len(data.split(s)) for s in SPLITS] == [79, 19, 20]
    (root / "recordings/hello.wav").write_bytes(b"1")
    with pytest.raises(UserError, match=r"holds hello\.wav \(1 such files\), expected {digit}_{speaker}_{take}"):
        spoken(root, tmp_path)
    with pytest.raises(UserError, match=r"holds no {digit}_{speaker}"):
        spoken(root, tmp_path, recordings=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no spoken digits: set dataset\.recordings"):
        spoken(root, tmp_path, recordings=None)
    with pytest.raises(UserError, match="protocol=mine"):
        spoken(root, tmp_path, protocol="mine")
    with pytest.raises(UserError, match="pairings=0"):
        spoken(root, tmp_path, pairings=0)


@pytest.mark.skipif(
    not ((SHARED / "spoken_digits").is_dir() and (SHARED / "mnist").is_dir()), reason="no real recordings and digits"
)
def test_the_real_spoken_digits(tmp_path: Path) -> None:
    places = {"recordings": str(SHARED / "spoken_digits/recordings"), "mnist": str(SHARED / "mnist")}
    front = LogSTFT(8000, 1.0, 256, 128)
    data = spoken(tmp_path, tmp_path / "a", audio=front, **places)
    assert [len(data.split(s)) for s in SPLITS] == [10_000, 500, 500]
    assert tuple(data.modalities[0].shape) == (129, 63)
    assert len(data.split("train").pool("image", False)[0]) == 10_000
    data = spoken(tmp_path, tmp_path / "b", audio=front, protocol="official", pairings=1, **places)
    assert [len(data.split(s)) for s in SPLITS] == [2400, 300, 300]


# ------------------------------------------------------------------------------------------- stand-ins and whole runs


MAKERS = (make_cremad, make_kinetics_sound, make_ave)


@pytest.mark.parametrize("make", [*MAKERS, make_spoken_digits])
def test_a_stand_in_is_the_same_each_time(make: Callable[..., None], tmp_path: Path) -> None:
    size = (
        {"takes": 1, "speakers": 2}
        if make is make_spoken_digits
        else {"per_class": (1, 1, 1)[: 3 if make is make_ave else 2]}
    )
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1)):
        make(folder, seed=seed, **size)
    one, two, other = (sorted((f.name, f.read_bytes()) for f in folder.rglob("*.*")) for folder in folders)
    assert one == two != other


def test_both_modalities_of_the_stand_in_tell_more_than_one(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    root = ensure_demo(tmp_path / "CREMA-D-demo", make_cremad)
    data = built(CREMAD, root, tmp_path, validation="test", audio=LogMel(160, 32))
    features = {}
    for split in ("train", "test"):
        batch = data.rows(split, np.arange(len(data.split(split))))
        features[split] = [batch.inputs["audio"].mean(1).numpy(), batch.inputs["visual"].mean((1, 3, 4)).numpy()]
    scores = []
    for chosen in ([0], [1], [0, 1]):
        train, test = (np.concatenate([features[s][i] for i in chosen], 1) for s in ("train", "test"))
        scaler = StandardScaler().fit(train)
        model = LogisticRegression(max_iter=500).fit(scaler.transform(train), data.split("train").read("target"))
        scores.append(model.score(scaler.transform(test), data.split("test").read("target")))
    assert min(scores) > 0.5 and scores[2] >= max(scores[:2]) and scores[2] > 0.8, scores


RUNS = [
    ("CREMAD", "UDML", "ModDrop"),
    ("KineticsSound", "UDML", "DynamicTransformer"),
    ("AVE", "CMPT", "Unimodal"),
    ("SpokenDigits", "CMPT", "DynamicTransformer"),
]


def composed(*overrides: str) -> Any:
    return compose_config(*overrides)


@pytest.mark.parametrize(("dataset", "form", "model"), RUNS)
def test_a_whole_run(dataset: str, form: str, model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each configuration on tiny files; the test of CREMA-D's other form is in test_contracts.py, with demo=true."""
    fixture = {"CREMAD": "cremad", "KineticsSound": "kinetics", "AVE": "ave", "SpokenDigits": "digits"}[dataset]
    root, batch = request.getfixturevalue(fixture), 12
    small = [f"dataset.root={root}", "dataset.side=32", "dataset.stored_side=40"]
    if dataset == "SpokenDigits":
        small, batch = [f"dataset.recordings={root}/recordings", f"dataset.mnist={root}/mnist"], 40
        small += ["dataset.pairings=1", "dataset.forms.CMPT.frames=32"]
    elif form == "CMPT":
        small += ["dataset.forms.CMPT.audio.frames=48", "dataset.forms.CMPT.audio.mel_bins=32"]
    else:
        bins, hop = composed(f"dataset={dataset}").dataset.forms.UDML.audio_size[0], 4000
        small += [f"dataset.forms.UDML.audio.hop={hop}", f"dataset.forms.UDML.audio_size=[{bins},20]"]
        small += ["dataset.validation=0.25"]
    cfg = composed(
        *(f"dataset={dataset}", f"dataset.form={form}", f"model={model}", "trainer=cpu", *small),
        *(f"paths.{key}={tmp_path / key}" for key in ("data", "cache", "output")),
        *("trainer.enable_progress_bar=false", "trainer.limit_train_batches=2", "model.training.max_epochs=1"),
        *(f"model.training.batch_size={batch}", "stages=[prepare,fit,test]", "dataset.test_batch_size=16"),
        f"missing.test={'[none]' if model == 'Unimodal' else '[none,whole_0,noise_gaussian_8_all+whole_1]'}",
        f"model.noise={'null' if model == 'Unimodal' else '{}'}",
    )
    validate(cfg)
    pipeline.run(cfg)
    results = pd.read_csv(Run(cfg).directory / "results.csv")
    assert set(results["scenario"]) == set(cfg.missing.test) and np.isfinite(results["value"]).all()


@pytest.mark.parametrize(("kind", "make"), list(zip((CREMAD, KineticsSound, AVE), MAKERS)))
def test_demo_data_are_read_whatever_the_lists(
    kind: type[ClipModule], make: Callable[..., None], tmp_path: Path
) -> None:
    folder = ensure_demo(tmp_path / "demo", make, per_class=(2, 1, 1)[: 3 if make is make_ave else 2])
    data = built(kind, folder, tmp_path, demo=True, lists="/nowhere", validation="test")
    assert (folder / "demo.json").is_file() and len(data.split("train")) == 2 * data.num_classes


@pytest.mark.parametrize(
    ("dataset", "form", "shapes"),
    [
        ("CREMAD", "UDML", [(257, 188), (1, 3, 224, 224)]),
        ("CREMAD", "CMPT", [(1024, 128), (3, 3, 224, 224)]),
        ("KineticsSound", "UDML", [(129, 626), (3, 3, 224, 224)]),
        ("KineticsSound", "CMPT", [(1024, 128), (3, 3, 224, 224)]),
        ("AVE", "UDML", [(257, 188), (3, 3, 224, 224)]),
        ("AVE", "CMPT", [(1024, 128), (3, 3, 224, 224)]),
        ("SpokenDigits", "UDML", [(129, 63), (1, 28, 28)]),
        ("SpokenDigits", "CMPT", [(96, 64), (1, 28, 28)]),
    ],
)
def test_published_shapes_and_tokens(dataset: str, form: str, shapes: list[tuple[int, ...]]) -> None:
    """docs/reference/datasets.md §14.5, with the frames first; the encoder of the configuration gives as many tokens as
    it says.
    """
    from trainers.config.build import build_data, build_encoders

    cfg = composed(f"dataset={dataset}", f"dataset.form={form}")
    data = build_data(cfg)
    assert [tuple(m.shape) for m in data.modalities] == shapes
    for m, encoder in zip(data.modalities, build_encoders(cfg, data).values()):
        encoder.eval()
        with torch.inference_mode():
            tokens = encoder(torch.zeros(2, *m.shape))
        assert tokens.shape == (2, encoder.tokens, encoder.width)


def test_a_form_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"dataset\.form=AST: must be one of UDML, CMPT"):
        validate(composed("dataset=CREMAD", "dataset.form=AST"))


def test_the_place_of_a_store_depends_on_what_is_in_it() -> None:
    def place(*overrides: str) -> Path:
        return store_path(composed("dataset=CREMAD", *overrides))

    same = [
        "dataset.side=64",
        "dataset.forms.UDML.frames.count=3",
        "dataset.test_batch_size=2",
        "dataset.train_fraction=0.5",
    ]
    assert {place(), *map(place, same)} == {place()}
    other = ["dataset.form=CMPT", "dataset.stored_side=64", "dataset.bad_clips.silent=skip", "dataset.validation=test"]
    assert len({place(), *map(place, other)}) == 5
