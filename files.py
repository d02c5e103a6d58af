"""Files written whole: under a temporary name, then renamed. A reader sees the old file or the new one."""

import csv
import io
import json
import os
from pathlib import Path

from cli import BadInput


def write_whole(path, text):
    """Write a text file under a temporary name, then rename it."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(temporary, path)


def write_json(path, value):
    """Write JSON, whole."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_csv(path, header, rows):
    """Write a CSV, whole. None becomes an empty cell, a float keeps six digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_whole(path, buffer.getvalue())


def writable_directory(path):
    """Make the directory if need be. Raises BadInput if it cannot be written."""
    path, probe = Path(path), Path(path) / f".write-probe.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return path


def read_json(path):
    """Parse a JSON file. Raises BadInput if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; is {Path(path).parent} a finished run directory?") from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
