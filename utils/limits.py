"""Limits of what a single file may hold, so that a damaged or hostile one cannot take all memory."""

from __future__ import annotations

import os

from utils.errors import UserError

# Name -> largest value; an environment variable DYMO_MAX_<name> sets another one.
DEFAULTS = {
    "PIXELS": 150_000_000,  # of an image; 600 MB when decoded with four channels
    "CLIP_PIXELS": 2_000_000_000,  # of the chosen frames of a clip: 6 GB as RGB, 108 minutes of 640 x 480 at 1 frame/s
    "UNPACKED": 20_000_000_000,  # bytes of an archive when unpacked; the weights of a large model have a few GB
    "SAMPLES": 500_000_000,  # of a sound, over all channels: 2 GB when decoded, 87 minutes of stereo at 48 kHz
}


def limit(name: str) -> int:
    """
    Raises:
        UserError: its environment variable is no positive whole number.
    """
    text = os.environ.get(variable(name))
    if text is None:
        return DEFAULTS[name]
    if not text.isdecimal() or not int(text):
        raise UserError(f"{variable(name)}={text}: must be a positive whole number")
    return int(text)


def variable(name: str) -> str:
    """Name of the environment variable of a limit."""
    return f"DYMO_MAX_{name}"


def advice(name: str, value: int) -> str:
    """The limit and how to raise it, for messages."""
    return f"{value:,}; the environment variable {variable(name)} raises it"
