"""Files written whole: under a temporary name, then renamed. A reader sees the old file or the new one.

A failed write, such as on a full disk, is one line and leaves nothing behind. What a killed process left is
removed by the next one that writes the same file.
"""

import atexit
import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path

from safetensors.torch import save_file

from cli import BadInput

try:
    import fcntl
except ImportError:  # Windows has no flock; there nothing is locked
    fcntl = None

# the largest tokenizers have 35 MB, and parsed JSON takes 20 to 30 times its bytes
MOST_JSON = 36 * 10**6


class Unwritable(BadInput):
    """A file cannot be written: the disk is full, the place is read-only, a limit is reached."""


class Busy(BadInput):
    """Another process is writing there."""


def disk_fault(error):
    """What the system said when a write failed, in words; None if the error is about something else."""
    if isinstance(error, OSError):
        return error.strerror or "the disk is full"  # NumPy says only how many bytes it wrote
    code = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers, which are Rust
    return os.strerror(int(code[1])) if code else None


@contextlib.contextmanager
def writing(path):
    """Within, a failed write is Unwritable, one line that names the path."""
    try:
        yield
    except Exception as error:
        if (fault := disk_fault(error)) is None:
            raise
        raise Unwritable(f"{path}: cannot be written ({fault}); make room or choose another place") from None


@contextlib.contextmanager
def whole_path(path):
    """A temporary path to write to; at the end of the block the file there takes the place of `path`.

    It is in a directory of its own: safetensors writes under yet another name beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists() and not path.is_file():  # root could replace even /dev/null
        raise Unwritable(f"{path}: is no regular file; choose another --out")
    remove_remains(path)
    try:
        with writing(path):
            temporary.mkdir()
            yield temporary / path.name
            os.replace(temporary / path.name, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path, private=False):
    """A binary file to write; at the end of the block it takes the place of `path`.

    private: only the owner may read it.
    """
    with whole_path(path) as temporary:
        flags, mode = os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            yield file


def remove_remains(path):
    """Remove the temporary directories of `path` whose process is gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def is_running(number):
    """Whether there is another process of this number."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def whole_directory(directory):
    """A directory to write into; at the end of the block it takes the place of `directory`.

    For the holder of `locked(directory)`, who is the only one that writes there.
    """
    directory = Path(directory)
    temporary, old = remains_of(directory)
    remove_remains_of(directory)
    try:
        with writing(directory):
            temporary.mkdir(parents=True)
            yield temporary
            if directory.exists():
                directory.rename(old)
            temporary.rename(directory)
    finally:
        remove_remains_of(directory)


def remains_of(directory):
    """(the directory while it is written, the one that it replaces)."""
    return tuple(directory.with_name(f".{directory.name}.{end}") for end in ("tmp", "old"))


def remove_remains_of(directory):
    """Remove a directory left half-written and one that was replaced; put back what nothing replaced."""
    temporary, old = remains_of(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not directory.exists():
        old.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path, wait=False):
    """Hold a lock on `path`, a hidden file beside it; the system frees it however the process ends.

    Raises Busy if another process holds it, unless told to wait for that one.
    """
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = take_lock(lock, wait)
        if file is None:
            raise Busy(f"{path}: another process is writing it; wait for that one or choose another --out")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def take_lock(lock, wait):
    """The open lock file, locked; None if another process has it."""
    while True:
        file = open(lock, "w")  # noqa: SIM115 - closed by who holds the lock
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # its holder removed it while we waited: what we locked is not the file that others see


def write_whole(path, text, private=False):
    """Write a text file, whole. What is no character, as in a path that is not UTF-8, is spelled out."""
    with whole_file(path, private) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_tensors(path, tensors, metadata=None):
    """Write {name: tensor} as safetensors, whole. Shared and strided tensors become plain ones."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_path(path) as temporary:
        save_file(plain, temporary, {"format": "pt", **(metadata or {})})


def write_json(path, value):
    """Write JSON, whole."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def csv_bytes(rows):
    """Rows as the bytes of a CSV. None becomes an empty cell, a float keeps six digits.

    A row with a carriage return is quoted: Python's csv writes it bare and then reads two rows.
    """
    buffer = io.StringIO(newline="")
    plain, quoted = (
        csv.writer(buffer, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        cells = [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row]
        (quoted if any("\r" in cell for cell in cells if isinstance(cell, str)) else plain).writerow(cells)
    return buffer.getvalue().encode()


def write_csv(path, header, rows, private=False):
    """Write a CSV, whole."""
    with whole_file(path, private) as file:
        file.write(csv_bytes([header, *rows]))


def writable_directory(path):
    """Make the directory if need be. Raises BadInput if it cannot be written. Left empty, it goes at exit."""
    path, probe = Path(path), Path(path) / f".write-probe.{os.getpid()}"
    atexit.register(remove_empty, [place for place in (path, *path.parents) if not place.exists()])
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return path


def remove_empty(directories):
    """Remove those of the directories that are there and empty, in their order."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def read_json(path):
    """Parse a JSON file. Raises BadInput if it is missing or damaged, no regular file, or far too large."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is no regular file")
        with open(path, "rb") as file:
            content = file.read(MOST_JSON + 1)
        if len(content) > MOST_JSON:
            raise BadInput(f"{path}: has more than {MOST_JSON / 1e6:.0f} MB")
        return json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; is {path.parent} a finished run directory?") from None
    except (ValueError, RecursionError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({type(error).__name__})") from None


def checksum_of(path):
    """The checksum of a file's bytes, hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
