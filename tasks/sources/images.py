"""Image folders: one folder a class, PNG, JPEG and the like, stored as uint8 (C, H, W)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.fingerprint import sha256
from cluster.storage import filesystem
from tasks.quarantine import plain_message
from tasks.sources.arguments import take_sizes
from tasks.sources.digest import is_hidden, is_remote, join_uri, list_location
from tasks.sources.protocol import (
    UNDECODABLE,
    WRONG_SHAPE,
    BadRow,
    FileRef,
    RawExamples,
    Shard,
    cut_rows,
    first_id,
    shard_digest,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
# What these endings stand for, and nothing else Pillow knows: for PostScript it would start Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_SIDE = 16_384
# What file managers leave behind.
LITTER = ("thumbs.db", "desktop.ini")


def _is_meant(name: str) -> bool:
    """Return whether a file may be an example; one that a dot hides only where it looks like an image."""
    last = name.lower().rpartition("/")[2]
    # macOS keeps what else it knows of x.png in ._x.png.
    if last in LITTER or last.startswith("._"):
        return False
    return not is_hidden(name) or last.endswith(ENDINGS)


class UndecodableError(Exception):
    """Signal that a file is no image that can be held as uint8; its message names no absolute path."""


class ImageSource:
    """Read <class>/**/<image> under a folder; classes are the sorted folder names of the train location.

    `size` [H, W] resizes (bilinear); without it all images must be of one size. `mode` "RGB" or "L" converts; without
    it grey images have one channel and all others become RGB. An image's id is a hash of its relative name.
    """

    def __init__(
        self, uri: str, location: str, *, size: Sequence[int] | None = None, mode: str | None = None
    ) -> None:
        self.uri, self.location, self.mode = uri, location, mode
        rule = f"[H, W], two whole numbers from 1 to {MAX_SIDE}"
        self.size = take_sizes(location, "size", size, rule, MAX_SIDE)
        if self.size is not None and len(self.size) != 2:
            raise InputError(f"{location}: size {list(self.size)} is no {rule}")
        if mode not in (None, "RGB", "L"):
            raise InputError(f"{location}: mode {mode!r} is not known; give RGB, L, or leave it out")
        self._files: list[FileRef] | None = None
        self._fs: Any = None

    def files(self) -> list[FileRef]:
        """Return the images, sorted by relative name. Raises InputError for what is no image, or outside a class."""
        if self._files is None:
            found = list_location(self.uri, self.location, _is_meant, hidden=True)
            hidden = [file.relative for file in found if is_hidden(file.relative)]
            if hidden:
                raise InputError(f"{self.location}: {hidden[0]} is hidden by a dot, in its name or its folder's "
                                 f"({len(hidden)} such images); rename what begins with a dot, or take it away")
            # Files beside the class folders (a README, a licence) belong to no class; an image there is a mistake.
            loose = [file.relative for file in found if "/" not in file.relative]
            lost = [name for name in loose if name.lower().endswith(ENDINGS)]
            if lost:
                raise InputError(f"{self.location}: {lost[0]} lies outside a class folder ({len(lost)} such images); "
                                 "the rule is "
                                 f"{self.uri}/<class>/<image>")
            found = [file for file in found if "/" in file.relative]
            strange = [file.relative for file in found if not file.relative.lower().endswith(ENDINGS)]
            if strange:
                raise InputError(f"{self.location}: {strange[0]} is no image ({len(strange)} such files in class "
                                 "folders); "
                                 f"take it away, or name it with one of {', '.join(ENDINGS)}")
            if not found:
                raise InputError(f"{self.location}: no image is in {self.uri}; the rule is {self.uri}/<class>/<image>")
            self._files = found
        return self._files

    def label_map(self) -> dict[str, int]:
        """Return the class of each folder name: their order by name."""
        return {name: number for number, name in enumerate(self.class_names())}

    def class_names(self) -> list[str]:
        """Return the sorted folder names."""
        return sorted({file.relative.partition("/")[0] for file in self.files()})

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards: ranges of the sorted file list."""
        files = self.files()
        out = []
        for start, rows in cut_rows(len(files), shard_rows, self._image_bytes(files)):
            taken = files[start : start + rows]
            content = sha256("\n".join(f"{file.relative}\t{file.digest}" for file in taken).encode())
            # The range's place in the list is no part of its digest: it moves when files are added before it.
            digest = shard_digest(self.location, taken[0].relative, 0, rows, content)
            names = tuple(file.relative for file in taken)
            out.append(Shard(self.location, taken[0].relative, self.uri, start, rows, start, digest, names))
        return out

    def _image_bytes(self, files: Sequence[FileRef]) -> int:
        """Return the bytes of one decoded image: of the first that can be decoded."""
        for file in files:
            try:
                return int(self._decode(file.relative).size)
            except UndecodableError:
                continue
        raise InputError(
            f"{self.location}: none of the {len(files)} files in {self.uri} can be decoded as an image; give images"
        )

    def _bytes(self, relative: str) -> bytes:
        if self._fs is None:
            self._fs = filesystem(self.uri)[0]
        uri = join_uri(self.uri, relative)
        try:
            data: bytes = self._fs.cat_file(uri.removeprefix("s3://") if is_remote(uri) else uri)
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"{uri} cannot be read ({error}); give an image that is there and may be read") from error
        return data

    def _decode(self, relative: str) -> npt.NDArray[np.uint8]:
        """Return one image as (C, H, W). Raises UndecodableError."""
        import io

        import numpy as np
        from PIL import Image

        data = self._bytes(relative)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
                deep = image.mode.startswith(("I", "F"))
                picture = image.convert(self.mode or ("L" if image.mode in ("1", "L") else "RGB"))
        except Exception as error:
            # Damaged files raise whatever a decoder stumbles over: OSError, IndexError, struct.error, a bomb's own error.
            raise UndecodableError(f"it cannot be decoded as an image ({plain_message(error)})") from error
        if deep:
            raise UndecodableError("it has more than 8 bits a channel, which uint8 cannot hold; convert it, or give the "
                                   "images as a numpy or Parquet source")
        if self.size is not None and picture.size != (self.size[1], self.size[0]):
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's images; those that cannot be decoded, or differ in shape from most of them, are bad rows."""
        ids, labels = self.read_labels(shard)
        x, shapes, bad = self._fill(shard, None)
        if len(shapes) > 1:
            # Most images of the shard say what shape it has; the first one may be the odd one.
            x, shapes, bad = self._fill(shard, max(sorted(shapes), key=lambda shape: shapes[shape]))
        return RawExamples(ids, x, labels, bad)

    def _fill(
        self, shard: Shard, shape: tuple[int, ...] | None
    ) -> tuple[npt.NDArray[np.uint8], Counter[tuple[int, ...]], list[BadRow]]:
        """Return the images of one shape, by default the first one's, how many there are of each, and the bad rows."""
        import numpy as np

        x = np.zeros((shard.rows, *(shape or (0,))), dtype=np.uint8)
        shapes: Counter[tuple[int, ...]] = Counter()
        bad: list[BadRow] = []
        for row, name in enumerate(shard.files):
            try:
                image = self._decode(name)
            except UndecodableError as error:
                bad.append(BadRow(row, UNDECODABLE, str(error)))
                continue
            if shape is None:
                shape = image.shape
                x = np.zeros((shard.rows, *shape), dtype=np.uint8)
            shapes[image.shape] += 1
            if image.shape == shape:
                x[row] = image
            else:
                bad.append(BadRow(row, WRONG_SHAPE, f"it is {image.shape}, most of its shard are {shape} (C, H, W)"))
        return x, shapes, bad

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids, and folder names as labels; opens no image."""
        import numpy as np

        ids = np.array([first_id(self.location, name) for name in shard.files], dtype=np.int64)
        return ids, np.array([name.partition("/")[0] for name in shard.files])
