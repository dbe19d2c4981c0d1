"""What a data module does with rows that are not in its store: encode them, and show their content to a reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datasets.batch import Modality
from datasets.new_rows import NewRows, rows_of_arrays
from datasets.readers.text import decode
from utils.errors import UserError


class TakesNewRows:
    """Base of the data modules: a data set that is made of a table overrides :meth:`read_new` and :meth:`encode_rows`,
    one with normalised images :meth:`pixels`."""

    name: str
    modalities: Sequence[Modality]

    def read_new(self, path: Path, chunk: int | None = None) -> Iterator[Any]:
        """New rows of a CSV file as pandas data frames of ``chunk`` rows, None = one frame.

        Raises:
            UserError: this data set is not made of a table.
        """
        raise UserError(
            f"{self.name} is not made of one CSV file, so that {path} cannot be encoded: give arrays as .npz, with one "
            f"array for each of {', '.join(m.name for m in self.modalities)}"
        )

    def count_new(self, path: Path) -> int | None:
        """Number of rows of a CSV file for :meth:`read_new`, None where that is not known."""
        return None

    def encode_rows(
        self, frame: Any, images: Path, where: str, *, unknown: str = "refuse", id_column: str | None = None
    ) -> NewRows:
        """Encode new rows with the levels, scaling and image size of the training data.

        Args:
            frame: a pandas data frame with the columns of the training table.
            images: folder of image files.
            where: the source, for messages.
            unknown: what happens to absent columns, unseen levels, cells that are no numbers and images that cannot be
                read: ``refuse`` or ``missing``.
            id_column: names the rows; None = the image names, or the names in the frame's index.

        Raises:
            UserError: this data set is not made of a table; or everything in the rows that does not fit.
        """
        raise UserError(
            f"{self.name} is not made of one CSV file, so that a data frame cannot be encoded: give arrays, a mapping "
            f"with one array for each of {', '.join(m.name for m in self.modalities)}"
        )

    def encode_arrays(self, content: Mapping[str, np.ndarray], where: str) -> NewRows:
        """New rows given as arrays, see :func:`datasets.new_rows.rows_of_arrays`."""
        return rows_of_arrays(content, self.modalities, where)

    def pixels(self, name: str, images: Tensor) -> Tensor:
        """Convert images (B, C, H, W) of a batch to pixel values in [0, 1], for display."""
        return images.clamp(0, 1)

    def strings(self, name: str, content: Tensor) -> list[str]:
        """Convert the texts of a batch, characters (B, L, 71) or token ids (B, L), to strings, for display."""
        return decode(content)
