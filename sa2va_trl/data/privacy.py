"""Names of patients and files: replaced by keyed pseudonyms, kept out of pictures, looked for in what is written."""

import base64
import hashlib
import hmac
import io
import os
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pyarrow.parquet

from ..errors import DatasetError
from ..files import name_bytes
from ..media.pictures import open_image, too_deep


#: Where the key is by default: with the user, outside of any data set.
KEY_FILE = Path("~/.config/sa2va_trl/pseudonyms.key")
_DIGITS = 12
# Segments of a JPEG that its picture is made of: frames (C0 to CF but for the reserved C8), tables, restarts, scans.
_SCAN, _END = 0xDA, 0xD9
_PICTURE_SEGMENTS = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD} - {0xC8}
# Among compressed pixels FF00 is a byte, FFD0 to FFD7 are restarts, and FF may be repeated before a marker.
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "gb18030", "latin-1", "shift_jis", "euc_kr")
# Shorter names are found by chance in a million bytes of pixels.
_SHORTEST = 4
# Of a file that is searched at once.
_CHUNK = 2**24
# What folders are called everywhere, which is nobody's name.
_GENERIC = {
    *("image", "images", "imagestr", "imagests", "frame", "frames", "video", "videos", "clip", "clips", "dicom"),
    *("mask", "masks", "label", "labels", "labelstr", "labelsts", "annotation", "annotations", "data", "patient"),
    *("train", "val", "valid", "validation", "test"),
}


def read_key(file: str | os.PathLike | None = None) -> bytes:
    """
    The key of pseudonyms; a new one is made where there is none.

    Args:
        file (`str` or `os.PathLike`, *optional*): that holds it; [`KEY_FILE`] by default. It is readable by its owner
            alone.

    Returns:
        `bytes`: 32.

    Raises:
        `DatasetError`: the file holds something else.
    """
    file = Path(KEY_FILE if file is None else file).expanduser()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.") as stream:  # (mode 600)
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            with suppress(FileExistsError):  # another process was faster
                os.link(stream.name, file)
    text = file.read_text(errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise DatasetError(f"{file} is no key of pseudonyms (64 hexadecimal digits): name another file, or remove it")
    return bytes.fromhex(text)


class Pseudonyms:
    """
    Names by key: the same name has the same pseudonym wherever it comes, and nobody without the key can tell which
    name it was, by trying names either (HMAC-SHA256, RFC 2104).

    Args:
        key (`bytes`): from [`read_key`].

    Example:

    ```python
    >>> from sa2va_trl.data.privacy import Pseudonyms

    >>> names = Pseudonyms(bytes(32))
    >>> names("patient", "DOE^JOHN") == names("patient", "DOE^JOHN") != names("video", "DOE^JOHN")
    True

    ```
    """

    def __init__(self, key: bytes):
        self.key = key

    def __call__(self, kind: str, name: str) -> str:
        """
        Args:
            kind (`str`): what has the name; it begins the pseudonym (`patient`).
            name (`str`): what it is called at its source.

        Returns:
            `str`: such as `patient-mfrggzdfmztw`: 60 bits, so that among a million names two are alike by one chance
            in two million.
        """
        digest = hmac.new(self.key, f"{kind}\0{name}".encode(errors="surrogatepass"), hashlib.sha256).digest()
        return f"{kind}-{base64.b32encode(digest).decode().lower()[:_DIGITS]}"


def clean_picture(source: Any) -> bytes:
    """
    The bytes of a picture without anything that is no pixel: no EXIF, comments, text chunks, profiles or thumbnails.

    An upright JPEG keeps its pixels as they are compressed; everything else is written anew as PNG, turned upright.
    More than 8 bits a channel are refused as everywhere.

    Args:
        source (`PIL.Image.Image`, `dict` or path): as [`~media.pictures.open_image`] takes it. Use inside
            [`~media.pictures.quiet_pillow`].

    Returns:
        `bytes`: of a JPEG or PNG file. A JPEG that is whole by its markers is not decoded.

    Raises:
        `DatasetError`: with the reason alone: it cannot be read, or has more than 8 bits a channel.
    """
    image = open_image(source)
    if image.format == "JPEG" and image is not source and image.mode in ("L", "RGB") and _is_upright(image):
        data = source["bytes"] if isinstance(source, dict) else None
        data = Path(image.filename).read_bytes() if data is None else data
        if (clean := _bare_jpeg(data)) is not None:
            return clean
    try:
        image.load()
        if fault := too_deep(image):
            raise DatasetError(fault)
        upright = image if image is source else PIL.ImageOps.exif_transpose(image)
        if upright.mode in ("CMYK", "YCbCr"):
            upright = upright.convert("RGB")
        elif upright.mode in ("P", "PA"):
            upright = upright.convert("RGBA" if "transparency" in upright.info or upright.mode == "PA" else "RGB")
        plain = PIL.Image.new(upright.mode, upright.size)  # which has no `info`
        plain.paste(upright)
        buffer = io.BytesIO()
        plain.save(buffer, format="PNG")
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"is unreadable or truncated ({type(error).__name__}: {error})") from error
    return buffer.getvalue()


def _is_upright(image: PIL.Image.Image) -> bool:
    try:
        return image.getexif().get(PIL.ExifTags.Base.Orientation, 1) in (0, 1)
    except Exception:  # broken EXIF raises nearly anything; `exif_transpose` says what
        return False


def _bare_jpeg(data: bytes) -> bytes | None:
    """
    A JPEG of what its picture is made of, and nothing else: no comments, application segments, unknown ones, nothing
    behind its end (ITU-T T.81, annex B). `None` where its segments are not as they should be.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4])
        segment = data[place : place + 2 + length]
        if length < 2 or len(segment) < length + 2:
            return None
        place += len(segment)
        if marker == 0xE0:  # JFIF may hold a thumbnail: its head alone
            if segment[4:9] == b"JFIF\0" and length >= 16:
                kept.append(segment[:2] + (16).to_bytes(2) + segment[4:16] + b"\0\0")
        elif marker == 0xEE:  # says how the colours are to be read
            if segment[4:9] == b"Adobe" and length >= 14:
                kept.append(segment[:2] + (14).to_bytes(2) + segment[4:16])
        elif marker in _PICTURE_SEGMENTS:
            kept.append(segment)
        if marker == _SCAN:  # the compressed pixels follow, up to the next marker
            end = _MARKER.search(data, place)
            if end is None:
                return None
            kept.append(data[place : end.start()])
            place = end.end() - 2
            if data[place + 1] == _END:
                return b"".join((*kept, data[place : place + 2]))
    return None


def name_parts(names: Iterable[str], harmless: Iterable[str] = ()) -> set[str]:
    """
    What of names at a source must not come out of it: each name, without its suffix, and for names of people
    (`DOE^JOHN_1950`) the parts. Names that are not UTF-8 are what they would be in each encoding, too, and accents one
    character with their letter or one of their own.

    Args:
        names (`Iterable[str]`): of files, folders and patients.
        harmless (`Iterable[str]`, *optional*): those that are nobody's.

    Returns:
        `set[str]`: in lower case, of at least four bytes in UTF-8, without those that are numbers alone of fewer than
        six digits (a frame's).
    """
    found, left = set(), {*_GENERIC, *(name.casefold() for name in harmless)}
    for name in {reading for own in names for reading in _readings(own)}:
        people = re.split(r"[\^=/\\_\s,.\-]+", name) if "^" in name else re.split(r"[=/\\]", name)
        for part in {name, Path(name).stem, *people}:
            part = part.strip()
            plain = len(part.encode(errors="surrogatepass")) >= _SHORTEST
            if plain and part.casefold() not in left and not (part.isdecimal() and len(part) < 6):
                found |= {part.casefold(), part.lower()}  # ("weiss" and "weiß")
    return found


def _readings(name: str) -> Iterator[str]:
    yield from (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    if not _is_unicode(name):
        for encoding in _ENCODINGS:
            with suppress(UnicodeDecodeError):
                if not encoding.startswith("utf"):
                    yield name_bytes(name).decode(encoding)


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def leaked(text: str, names: Iterable[str]) -> set[str]:
    """
    Names that stand in a text, in capitals or not.

    Args:
        text (`str`): to look in.
        names (`Iterable[str]`): from [`name_parts`].

    Returns:
        `set[str]`: those that are there.
    """
    folded = text.casefold()
    return {name for name in names if name in folded}


class NameSearch:
    """
    Looks for many names in bytes at once, in any of the usual encodings and in capitals or not; for names that are no
    UTF-8 as the bytes that they are.

    Args:
        names (`Iterable[str]`): from [`name_parts`].
        shortest (`int`, *optional*, defaults to 8):
            Bytes of a name in ASCII (two fewer of others): shorter ones come up by chance among those of pictures.

    Example:

    ```python
    >>> from sa2va_trl.data.privacy import NameSearch, name_parts

    >>> search = NameSearch(name_parts(["DOE^JOHN", "张伟明"]))
    >>> sorted(search("... Doe^John ...".encode("utf-16-le"))), search("张伟明".encode("gb18030"))
    (['doe^john', 'john'], {'张伟明'})

    ```
    """

    def __init__(self, names: Iterable[str], shortest: int = 8):
        self._forms: dict[bytes, list[tuple[bytes, str]]] = {}
        self._begins = np.zeros(2**16, dtype=bool)
        for name in names:
            for form in {form for own in (name, name.upper(), name.title()) for form in _encoded(own)}:
                if len(form) >= max(shortest - (0 if name.isascii() else 2), 4):
                    self._forms.setdefault(form[:4], []).append((form, name))
                    self._begins[form[0] + 256 * form[1]] = True

    def __call__(self, data: bytes) -> set[str]:
        """
        Args:
            data (`bytes`): to look in.

        Returns:
            `set[str]`: the names that are there.
        """
        data = data.lower()  # (of ASCII letters, as in the forms)
        if len(data) < 4 or not self._forms:
            return set()
        own = np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
        places = np.flatnonzero(self._begins[own[:-3] + 256 * own[1:-2]]).tolist()
        return {
            name
            for place in places
            for form, name in self._forms.get(data[place : place + 4], ())
            if data.startswith(form, place)
        }

    def in_text(self, text: str) -> set[str]:
        """
        Args:
            text (`str`): to look in.

        Returns:
            `set[str]`: as [`leaked`], of names that are not too short.
        """
        folded = text.casefold()
        return {name for name in self(name_bytes(folded)) if name in folded}


def _encoded(name: str) -> Iterator[bytes]:
    if not _is_unicode(name):
        yield name_bytes(name).lower()
        return
    for encoding in _ENCODINGS:
        try:
            form = name.encode(encoding).lower()
        except UnicodeEncodeError:
            continue
        # (Of both byte orders of UTF-16 the middle is one, of ASCII.)
        yield form[:-1] if encoding == "utf-16-le" and name.isascii() else form


def names_below(folder: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """
    Where names stand in a folder: in the names of its files, as whole words in files of text, and in the bytes of any
    file, as [`NameSearch`] finds them; cells of Parquet files are searched as they are when unpacked, too.

    Args:
        folder (`Path`): searched with all that is in it, hidden files included.
        names (`Iterable[str]`): from [`name_parts`].

    Returns:
        `dict[str, set[str]]`: of each file with any, by its path in the folder, the names.
    """
    names = set(names)
    search, words, found = NameSearch(names), NameSearch(names, shortest=_SHORTEST), {}
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder).as_posix()
        own = _whole_words(place, words)
        if file.is_file():
            for part in _contents(file):
                own |= search(part)
            with suppress(UnicodeDecodeError):
                if file.stat().st_size <= _CHUNK:
                    own |= _whole_words(file.read_bytes().decode(), words)
        if own:
            found[place] = own
    return found


def _whole_words(text: str, search: NameSearch) -> set[str]:
    folded = text.casefold()
    return {
        name
        for name in search(name_bytes(text)) | search(name_bytes(folded))
        if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", folded)
        or (not name.isascii() and name in folded)  # (Chinese has no spaces)
    }


def _contents(file: Path) -> Iterator[bytes]:
    """All bytes of a file in chunks that overlap, and the columns of a Parquet file."""
    with file.open("rb") as stream:
        last = b""
        while chunk := stream.read(_CHUNK):
            yield last + chunk
            last = chunk[-1024:]  # (longer than a name in any encoding)
    if file.suffix == ".parquet":
        parquet = pyarrow.parquet.ParquetFile(file)
        for number in range(parquet.num_row_groups):
            for column in parquet.read_row_group(number).columns:
                for chunk in column.chunks:
                    yield from (buffer.to_pybytes() for buffer in chunk.buffers() if buffer)
