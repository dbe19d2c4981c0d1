"""Kinetics-Sound: ten-second clips of actions that are both seen and heard, mostly music and manual work.

Arandjelović, Zisserman, "Look, Listen and Learn", ICCV 2017; clips of Kinetics-400
(https://github.com/cvdfoundation/kinetics-dataset), of which every work has those that were still available. It
reads

- the lists of OGM-GE, which CMPT (TMLR) uses: ``my_train.txt`` and ``my_test.txt`` with lines ``clip,10,label``, labels
  0 to 30, 14,799 and 2,597 lines (CMPT: 14,739 and 2,594 clips), and the clips anywhere below ``root``: videos,
  or ``<clip>.wav`` with folders of frames ``<clip>/*.jpg``;
- without lists, class folders: UDML's (CVPR 2026) ``visual/{train,val}_img/Image-01-FPS/<class>/<clip>/*.jpg``
  with ``audio/{train,test}/<class>/<clip>.wav``, or videos in ``{train,val or test}/<class>/<clip>.mp4``. The classes
  are those of ``class.txt`` (one line, commas), or the 33 names that UDML ships.

Differences from UDML: sound and frames of a clip are matched by name, where UDML's lists can be misaligned; one output
per class name (UDML has one more, never trained); evaluation uses the middle of the sound and evenly spaced frames
instead of random ones.
"""

from __future__ import annotations

from pathlib import Path

from datasets.clip_listing import Clip, Listing, MediaFolder, find_file, note_counts, read_lines, refuse_repeated
from datasets.clips import ClipModule
from utils.errors import UserError
from utils.files import natural_key

# fmt: off
UDML_CLASSES = (
    "blowing_nose", "bowling", "chopping_wood", "ripping_paper", "shuffling_cards", "singing", "tapping_pen",
    "tying_tie", "blowing_out_candles", "dribbling_basketball", "laughing", "mowing_lawn", "shoveling_snow",
    "stomping_grapes", "tap_dancing", "tapping_guitar", "tickling", "finger_snapping", "playing_accordion",
    "playing_bagpipes", "playing_bass_guitar", "playing_clarinet", "playing_drums", "playing_guitar",
    "playing_harmonica", "playing_keyboard", "playing_organ", "playing_piano", "playing_saxophone",
    "playing_trombone", "playing_trumpet", "playing_violin", "playing_xylophone",
)
# fmt: on
LISTED_CLASSES = 31
PUBLISHED = {"train": 14_799, "test": 2_597}
LISTS = {"train": "my_train.txt", "test": "my_test.txt"}
# Split -> folders with its class folders, in any of the layouts.
FOLDERS = {
    "train": ("visual/train_img", "audio/train", "train"),
    "test": ("visual/val_img", "audio/test", "val", "test"),
}


def read_labels(path: Path) -> list[tuple[str, int]]:
    """Lines of ``my_train.txt`` or ``my_test.txt``: (clip, label).

    Raises:
        UserError: the file is unreadable, or a line is not ``clip,seconds,label``; names the line.
    """
    rows = []
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or not fields[0] or not fields[2].isdecimal() or int(fields[2]) >= LISTED_CLASSES:
            raise UserError(
                f"{path}: line {number} is {line!r}, expected clip,seconds,label with a label from 0 to "
                f"{LISTED_CLASSES - 1}: correct it, or restore the published list"
            )
        rows.append((fields[0], int(fields[2])))
    return rows


def read_class_names(path: Path) -> list[str]:
    """Names in ``class.txt``, one line with commas; blanks inside a name become underscores.

    Raises:
        UserError: the file is unreadable or empty, or repeats a name.
    """
    names = [name.strip().replace(" ", "_") for _, line in read_lines(path) for name in line.split(",")]
    names = [name for name in names if name]
    if len(set(names)) < max(len(names), 2):
        raise UserError(f"{path} must hold two or more different names with commas between them: restore it")
    return names


class KineticsSound(ClipModule):
    """Kinetics-Sound by lists or by class folders.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the clips.
        lists: folder with ``my_train.txt`` and ``my_test.txt``, or with ``class.txt``; None = ``root``.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`ClipModule`.
    """

    name = "KineticsSound"
    class_names = list(UDML_CLASSES)

    def find_clips(self) -> Listing:
        root, places = self.places()
        if root and any((place / LISTS["train"]).is_file() for place in places):
            return self._listed(root, places)
        folders = {
            split: [root / f for f in part if (root / f).is_dir()] if root else [] for split, part in FOLDERS.items()
        }
        if not (root and all(folders.values())):
            raise UserError(
                f"no Kinetics-Sound: looked for {LISTS['train']} in {' and '.join(map(str, places)) or 'dataset.root'} "
                f"and below {root or 'dataset.root (null)'} for class folders in train/ and val/ (videos), or in "
                "visual/train_img, visual/val_img, audio/train and audio/test: set dataset.root and dataset.lists, or "
                "dataset.demo=true to try it"
            )
        return self._class_folders(root, places, folders)

    def _listed(self, root: Path, places: list[Path]) -> Listing:
        media = MediaFolder(root, self.fps)
        clips = {}
        for split, name in LISTS.items():
            file = find_file(name, places, "clips and labels", "dataset.lists")
            clips[split] = [media.clip(clip, label) for clip, label in read_labels(file)]
        refuse_repeated(clips, " and ".join(LISTS.values()))
        note_counts(self.name, clips, PUBLISHED)
        return Listing("lists", [str(c) for c in range(LISTED_CLASSES)], clips, {"root": str(root)})

    def _class_folders(self, root: Path, places: list[Path], folders: dict[str, list[Path]]) -> Listing:
        given = next((place / "class.txt" for place in places if (place / "class.txt").is_file()), None)
        names = read_class_names(given) if given else list(UDML_CLASSES)
        clips: dict[str, list[Clip]] = {}
        for split, tops in folders.items():
            clip_of: dict[str, Clip] = {}
            for top in tops:
                media = MediaFolder(top, self.fps)
                for name in [*media.frames, *media.videos, *media.sounds]:
                    item = media.clip(name, 0)
                    path = (item.visual or item.audio).path  # type: ignore[union-attr]
                    group = path.parent.name.replace(" ", "_")
                    if group not in names:
                        continue
                    clip = Clip(name, names.index(group), item.audio, item.visual)
                    other = clip_of.get(name)
                    if other and other.label != clip.label:
                        raise UserError(
                            f"{root}: clip {name} is in the folders of {names[other.label]} and of {group}: remove one"
                        )
                    if other:
                        clip = Clip(name, clip.label, other.audio or clip.audio, other.visual or clip.visual)
                    clip_of[name] = clip
            clips[split] = sorted(clip_of.values(), key=lambda clip: (clip.label, natural_key(clip.name)))
        refuse_repeated(clips, f"the folders below {root}")
        return Listing("folders", names, clips, {"root": str(root)})
