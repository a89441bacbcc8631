"""Where the words come from: a file, the list that ships with the package, or the public names."""

import os
from pathlib import Path

from .errors import importing

MAX_CHARACTERS = 50_000_000  # a list of words, not a corpus; and what is read may have no end
PACKAGED = Path(__file__).with_name("words.txt")

# The public list of the makemore project (MIT licence): 32,033 first names, one a line.
NAMES_URL = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
NAMES_SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"


def load_words(source: str | os.PathLike[str] | None = None) -> list[str]:
    """Words from `source`: a path, "names" (downloaded once), or None for the packaged list."""
    if source is None:
        return read_words(PACKAGED)
    if source == "names":
        return read_words(download_names())
    return read_words(source)


def read_words(path: str | os.PathLike[str]) -> list[str]:
    """One word a line, UTF-8, in the file's order; spaces around a word are dropped.

    Raises ValueError, naming the file and the line, for anything else.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"words file {path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise ValueError(f"words file {path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"words file {path} has more than {MAX_CHARACTERS:,} characters")
    if not text.strip():
        raise ValueError(f"words file {path} is empty; expected one word a line")
    lines = text.removesuffix("\n").split("\n")
    return [_word(line.strip(), f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _word(word: str, where: str) -> str:
    if not word:
        raise ValueError(f"{where}: a blank line; expected one word a line")
    if not word.isprintable():
        raise ValueError(f"{where}: {word!r} has a character that cannot be printed")
    return word


def download_names(
    url: str | None = None,
    sha256: str = NAMES_SHA256,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """Path of the public names list: downloaded on the first call, from the cache afterwards.

    `url` defaults to $CONVLM_NAMES_URL or the public address, `cache` to $CONVLM_CACHE or the
    user's cache folder. Raises ValueError where it cannot be had or is not the expected file, or
    pooch is not installed.
    """
    with importing("pooch"):
        import pooch

    url = url or os.environ.get("CONVLM_NAMES_URL") or NAMES_URL
    cache = cache or os.environ.get("CONVLM_CACHE") or pooch.os_cache("convlm")
    pooch.get_logger().setLevel("WARNING")
    try:
        file = pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname="names.txt", path=cache)
    except (OSError, ValueError) as error:  # unreachable, unwritable cache; wrong checksum
        raise ValueError(f"the names list cannot be had from {url}: {error}") from None
    return Path(file)
