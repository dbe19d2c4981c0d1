"""CREMA-D: actors say a sentence with one of six emotions; sound and face (7,442 clips).

Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", 2014
(https://github.com/CheyneyComputerScience/CREMA-D); used by UDML, CVPR 2026, and CMPT, TMLR. It reads, anywhere below
``root``,

- the release: ``AudioWAV/<clip>.wav`` and ``VideoFlash/<clip>.flv``;
- the prepared folders of OGM-GE and UDML: ``AudioWAV/<clip>.wav`` and ``Image-01-FPS/<clip>/*.jpg``;

and the lists that UDML took from OGM-GE, ``train.csv`` and ``test.csv``: lines of clip and emotion without
a header, 6,698 and 744 lines. All 91 actors are in both lists, so that scores are not for held-out speakers.

Differences from UDML: every test clip is scored (UDML drops the last 40), the checkpoint is chosen on held-out training
clips (``validation=test`` as in the release), evaluation uses evenly spaced frames instead of random ones, frames are
stored as squares before they are cropped, and SciPy resamples the sound.
"""

from __future__ import annotations

from pathlib import Path

from datasets.clip_listing import Listing, MediaFolder, find_file, note_counts, read_lines, refuse_repeated
from datasets.clips import ClipModule
from utils.errors import UserError

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
# Clips per emotion in the published lists.
PUBLISHED = {"train": (973, 1148, 1131, 1138, 1142, 1166), "test": (114, 123, 140, 133, 129, 105)}


def read_emotions(path: Path) -> list[tuple[str, int]]:
    """Lines of ``train.csv`` or ``test.csv``: (clip, class).

    Raises:
        UserError: the file is unreadable, or a line is not a clip and an emotion; names the line.
    """
    rows = []
    for number, line in read_lines(path):
        clip, _, emotion = line.partition(",")
        if not clip or emotion.strip() not in EMOTIONS:
            raise UserError(
                f"{path}: line {number} is {line!r}, expected a clip and one of {', '.join(EMOTIONS)}, such as "
                "1001_IEO_NEU_XX,NEU: correct it, or restore the published list"
            )
        rows.append((clip.strip(), EMOTIONS.index(emotion.strip())))
    return rows


class CREMAD(ClipModule):
    """CREMA-D by the published lists.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the sounds, and videos or frames.
        lists: folder with ``train.csv`` and ``test.csv``, None = ``root``.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`ClipModule`.
    """

    name = "CREMAD"
    class_names = list(EMOTIONS)

    def find_clips(self) -> Listing:
        root, places = self.places()
        media = MediaFolder(root, self.fps) if root else None
        if not media:
            raise UserError(
                f"no CREMA-D: looked for sounds and videos below {root or 'dataset.root (null)'}: put AudioWAV/ and "
                "VideoFlash/ of the release (or Image-01-FPS/) there, or set dataset.demo=true to try it"
            )
        clips = {}
        for split in ("train", "test"):
            file = find_file(f"{split}.csv", places, "clips and emotions", "dataset.lists")
            clips[split] = [media.clip(name, label) for name, label in read_emotions(file)]
        refuse_repeated(clips, "train.csv and test.csv")
        if not self.demo:
            note_counts(self.name, clips, PUBLISHED)
        return Listing("clips", list(EMOTIONS), clips, {"root": str(root)})
