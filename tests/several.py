"""What test_processes.py runs under torchrun: several trainings in each process, one after another.

several.py FILE: a JSON list of command lines of train.py.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
from cli import run_script
from run import processes


def main():
    with processes.joined("cpu"):
        for words in json.loads(Path(sys.argv[1]).read_text()):
            train.run_all(train.parse_arguments(words))


if __name__ == "__main__":
    run_script(main)
