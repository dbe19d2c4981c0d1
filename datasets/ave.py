"""AVE: an event that is both seen and heard, in a clip of ten seconds; which of 28 (4,143 clips).

Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018
(https://github.com/YapengTian/AVE-ECCV18); as a classification of complete clips in CMPT, TMLR. It reads
``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` with lines ``category&video&quality&start&end`` (3,339, 402, 402),
and, anywhere below ``root``, the release's ``<video>.mp4``, of which the part from start to end (s) is used, or the
prepared ``Audios/<video>.wav`` with ``Image-01-FPS-SE/<video>/*.jpg``, which are already cut.

Differences: classes are numbered alphabetically, not by their first line in the test list. A video on several
lines is used once, in the test split rather than the validation or training split.
"""

from __future__ import annotations

import logging
from pathlib import Path

from datasets.clip_listing import Clip, Listing, MediaFolder, find_file, note_counts, read_lines
from datasets.clips import ClipModule
from utils.errors import UserError

log = logging.getLogger(__name__)

PUBLISHED = {"train": 3339, "val": 402, "test": 402}


def read_events(path: Path) -> list[tuple[str, str, float, float]]:
    """Lines of a list: (category, video, start, end), in seconds.

    Raises:
        UserError: the file is unreadable, or a line has another form; names the line.
    """
    rows = []
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("&")]
        if fields[0] == "Category":
            continue
        try:
            category, video, _, start, end = fields
            if not (category and video and 0 <= float(start) < float(end)):
                raise ValueError
        except ValueError:
            raise UserError(
                f"{path}: line {number} is {line!r}, expected category&video&quality&start&end with start before end: "
                "correct it, or restore the published list"
            ) from None
        rows.append((category, video, float(start), float(end)))
    return rows


class AVE(ClipModule):
    """AVE by the published lists.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the videos, or with sounds and frames.
        lists: folder with the three lists, None = ``root``.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`ClipModule`.
    """

    name = "AVE"
    class_names = []

    def find_clips(self) -> Listing:
        root, places = self.places()
        media = MediaFolder(root, self.fps) if root else None
        if not media:
            raise UserError(
                f"no AVE: looked for videos below {root or 'dataset.root (null)'}: unpack the release there, or set "
                "dataset.demo=true to try it"
            )
        events = {
            split: read_events(find_file(f"{split}Set.txt", places, "categories and videos", "dataset.lists"))
            for split in PUBLISHED
        }
        names = sorted({row[0] for rows in events.values() for row in rows})
        clips: dict[str, list[Clip]] = {}
        listed: set[str] = set()
        for split in reversed(PUBLISHED):
            clips[split] = []
            for category, video, start, end in events[split]:
                if video not in listed:
                    listed.add(video)
                    clips[split].append(media.clip(video, names.index(category), start=start, end=end))
        repeated = sum(map(len, events.values())) - len(listed)
        if repeated:
            log.info("AVE: %d repeated lines left out", repeated)
        clips = {split: clips[split] for split in PUBLISHED}
        if not self.demo:
            note_counts(self.name, clips, PUBLISHED)
        return Listing("clips", names, clips, {"root": str(root), "repeated": repeated})
