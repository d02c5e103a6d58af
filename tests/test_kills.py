"""The short form of kills.py: scripts killed at random moments end with the files of an uninterrupted run."""

import subprocess
import sys

import pytest

from conftest import ROOT, read_csv


@pytest.mark.parametrize("case, kills", (("symptoms base", 2), ("predict", 2), ("report", 1)))
def test_killed_scripts_end_with_the_same_files(tmp_path, case, kills):
    words = ["--kills", str(kills), "--only", case, "--seed", "7", "--csv", tmp_path / "kills.csv"]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kills.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "kills.csv")
    assert sum(int(row["kills"]) for row in rows) >= kills and {row["unequal"] for row in rows} == {"0"}
