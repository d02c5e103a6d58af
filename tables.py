"""Tables by their file's name: CSV, tab-separated values (.tsv) or JSON lines (.jsonl), each plain or .gz.

All are read as data.Table is: columns, column(), an iterator over cells as text, and the line of the last.
Faults are a BadInput that names the line and never a cell.
"""

import csv
import json
import os

from tqdm import tqdm

from cli import BadInput
from data import MAX_ROW_MB, Table, fault_in, open_text, text_lines


def open_table(path, progress=True, max_row_mb=MAX_ROW_MB):
    """The table in a file, by the file's name: a Tsv, JsonLines, or else a Table."""
    name = str(path).lower().removesuffix(".gz")
    kind = Tsv if name.endswith(".tsv") else JsonLines if name.endswith(".jsonl") else Table
    return kind(path, progress, max_row_mb)


class LineTable:
    """A table that is read line by line; it is no data.Table, which reads blocks of a CSV."""

    column, _columns_in_words = Table.column, Table._columns_in_words

    def __init__(self, path, progress=True, max_row_mb=MAX_ROW_MB):
        self.path, self.progress, self.max_mb = str(path), progress, max_row_mb
        self._file, self._stream = open_text(self.path)
        self.line = 1  # the line in which the row begins that came last
        self._records = self._read(text_lines(self.path, self._stream, max_row_mb))
        self.columns = next(self._records, None)
        if not self.columns:
            raise BadInput(f"{self.path}: the file is empty")

    def _read(self, lines):
        """Yield the names of the columns, then the cells of every row, self.line set to its line."""
        raise NotImplementedError

    def _fault(self, line, what):
        return BadInput(f"{self.path}, line {line}: {what}")

    def __iter__(self):
        """Yield the cells of every row; blank lines are left out."""
        size, hide = os.path.getsize(self.path), None if self.progress else True
        with tqdm(total=size, unit="B", unit_scale=True, desc="reading", disable=hide, leave=False) as bar:
            count = -1
            for count, row in enumerate(self._records):
                if count % 1000 == 0:
                    bar.update(self._file.tell() - bar.n)
                yield row
        self._stream.close()
        if count < 0:
            raise BadInput(f"{self.path}: a header and no rows")


class Tsv(LineTable):
    """Tab-separated values with CSV's quoting; the first row is the header."""

    def _read(self, lines):
        csv.field_size_limit(2**31 - 1)
        reader, self._row = csv.reader(self._counted(lines), delimiter="\t", strict=True), 0
        columns, line = None, 1
        try:
            for cells in reader:
                if cells and columns is None:
                    columns = cells
                    yield columns
                elif cells and len(cells) != len(columns):
                    what = f"{len(cells)} fields where the header has {len(columns)}"
                    raise self._fault(line, f"{what}; check the tabs and quotes there and just above")
                elif cells:
                    self.line = line
                    yield cells
                line, self._row = reader.line_num + 1, 0
        except csv.Error:
            what = "a quote in the row that starts here is not closed, or text follows it; correct that row"
            raise self._fault(line, what) from None

    def _counted(self, lines):
        """The lines. Raises BadInput for a row, of however many lines, that is too long."""
        for number, line in enumerate(lines, 1):
            self._row += len(line)
            if fault := fault_in("", 0, self._row, self.max_mb):
                raise self._fault(number, fault)
            yield line


class JsonLines(LineTable):
    """JSON lines: an object per line, whose keys are the columns; those of the first object are all.

    Numbers become text, true and false 1 and 0, null, NaN or an absent key an empty cell, lists JSON again.
    """

    def _read(self, lines):
        columns = None
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            found = self._object(number, line)
            if columns is None:
                columns = list(found)
                yield columns
            if not found.keys() <= set(columns):
                what = "a key that the first line lacks; give every object the same keys"
                raise self._fault(number, what)
            cells = [cell_of(found.get(column)) for column in columns]
            if "\\u" in line:
                self._refuse_escapes(number, "".join(cells))
            self.line = number
            yield cells

    def _object(self, number, line):
        try:
            found = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._fault(number, "no JSON object; every line must hold one")
        return found

    def _refuse_escapes(self, number, text):
        """Raises BadInput for escapes that no text has: NUL, and half of a pair of surrogates."""
        if fault := fault_in(text, 0, len(text), self.max_mb):
            raise self._fault(number, fault)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._fault(number, "half of a surrogate pair; correct or drop that row") from None


def cell_of(value):
    """A JSON value as the text of a cell."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return "" if value is None else str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
