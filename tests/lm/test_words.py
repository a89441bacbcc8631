"""Word lists: from files, from the package, from a server."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from convlm_kernels.lm import words


def test_packaged_list_is_plain():
    packaged = words.load_words()
    assert 600 <= len(packaged) == len(set(packaged))
    assert set("".join(packaged)) == set("abcdefghijklmnopqrstuvwxyz")


def test_order_and_line_ends(tmp_path):
    path = tmp_path / "words"
    path.write_bytes("\ufeffzoë\r\n new york \r\nann".encode())
    assert words.load_words(path) == ["zoë", "new york", "ann"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n \n", "is empty", id="only-blanks"),
        pytest.param(b"ann\n\nbob\n", "line 2: a blank line", id="blank-line"),
        pytest.param(b"ann\nzo\xeb\n", "not UTF-8", id="latin-1"),
        pytest.param(b"ann\nb\x00b\n", r"line 2: 'b\\x00b'", id="control-character"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "words"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        words.read_words(path)


def test_no_end_of_it(tmp_path, monkeypatch):
    """As /dev/zero has none; what is read before the limit is noticed is not much more."""
    monkeypatch.setattr(words, "MAX_CHARACTERS", 1_000)
    with pytest.raises(ValueError, match="/dev/zero has more than 1,000 characters"):
        words.read_words("/dev/zero")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        words.read_words(tmp_path / "absent")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        words.read_words(tmp_path)


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which a local server offers it."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    address = ("127.0.0.1", 0)
    with ThreadingHTTPServer(address, partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/names.txt", requests
        http.shutdown()
        thread.join()


def test_download_happens_once(server, tmp_path):
    folder, url, requests = server
    content = b"ann\nbob\n"
    (folder / "names.txt").write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    for _ in range(2):
        path = words.download_names(url, checksum, tmp_path / "cache")
        assert words.read_words(path) == ["ann", "bob"]
    assert len(requests) == 1


def test_download_of_another_file_is_refused(server, tmp_path, monkeypatch):
    folder, url, _ = server
    (folder / "names.txt").write_bytes(b"not the list\n")
    monkeypatch.setenv("CONVLM_NAMES_URL", url)
    monkeypatch.setenv("CONVLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"names list cannot be had.*hash"):
        words.load_words("names")
    assert not (tmp_path / "cache" / "names.txt").exists()


def test_download_without_a_server(tmp_path):
    with pytest.raises(ValueError, match="names list cannot be had from http"):
        words.download_names("http://127.0.0.1:1/names.txt", cache=tmp_path)


def test_public_list_passes_its_checksum(server, tmp_path, monkeypatch, names_path):
    folder, url, _ = server
    (folder / "names.txt").write_bytes(names_path.read_bytes())
    monkeypatch.setenv("CONVLM_NAMES_URL", url)
    monkeypatch.setenv("CONVLM_CACHE", str(tmp_path / "cache"))
    assert len(words.load_words("names")) == 32_033
