"""Clips that cannot be used: what can be wrong with them, and whether they are refused or left out."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from datasets.readers.audio import ClipProblem
from utils.errors import UserError

log = logging.getLogger(__name__)

# Kind of problem -> how messages describe such clips.
PROBLEMS = {
    "absent": "without any file",
    "unreadable": "unreadable",
    "no_audio": "without sound",
    "silent": "silent",
    "short": "with too little sound",
    "no_frames": "without frames",
    "few_frames": "with too few frames",
}


class BadClips:
    """Rules for clips that cannot be used.

    Args:
        rules: kind of problem -> refuse | skip (leave the clip out) | keep (``silent`` only); default refuse.

    Raises:
        UserError: an unknown kind or rule.
    """

    def __init__(self, rules: Mapping[str, str] | None = None) -> None:
        self.rules = dict.fromkeys(PROBLEMS, "refuse") | dict(rules or {})
        for kind, rule in self.rules.items():
            if kind not in PROBLEMS:
                raise UserError(f"dataset.bad_clips.{kind}: there is no such problem, only {', '.join(PROBLEMS)}")
            allowed = ("refuse", "skip", "keep") if kind == "silent" else ("refuse", "skip")
            if rule not in allowed:
                raise UserError(f"dataset.bad_clips.{kind}={rule}: must be {' or '.join(allowed)}")

    @property
    def keeps_silent(self) -> bool:
        return self.rules["silent"] == "keep"

    def judge(
        self, name: str, clips: Mapping[str, Sequence[str]], problems: Mapping[str, Mapping[int, ClipProblem]]
    ) -> dict[str, list[str]]:
        """Refuse clips, or log which are left out.

        Args:
            name: of the data set.
            clips: split -> names of its clips.
            problems: split -> row -> its problem.

        Returns:
            Kind of problem -> names of the clips to leave out.

        Raises:
            UserError: clips whose rule is ``refuse``; counts and first names of each kind.
        """
        left_out: dict[str, list[str]] = defaultdict(list)
        first: dict[str, str] = {}
        for split, rows in problems.items():
            for row, problem in sorted(rows.items()):
                left_out[problem.kind].append(clips[split][row])
                first.setdefault(problem.kind, f"{clips[split][row]} in {split}: {problem}")
        total = sum(map(len, clips.values()))
        texts = {
            kind: f"{len(names)} {PROBLEMS[kind]} ({first[kind]}{', ...' if len(names) > 1 else ''})"
            for kind, names in left_out.items()
        }
        if refused := [kind for kind in left_out if self.rules[kind] == "refuse"]:
            keys = ", ".join(f"dataset.bad_clips.{kind}=skip" for kind in refused)
            raise UserError(
                f"{name}: of {total} clips {'; '.join(texts[kind] for kind in refused)}: restore their files, or leave "
                f"them out with {keys}"
            )
        for text in texts.values():
            log.warning("%s: of %d clips left out: %s", name, total, text)
        return dict(left_out)
