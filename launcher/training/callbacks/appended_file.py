"""A file of lines that a run appends to, and that never has a part of a line."""

import os
from pathlib import Path


class AppendedFile:
    """Opens the file for each line, so that it is there again if somebody has removed it.

    If an interrupted write has left a line without its end, this line gets one.

    Raises:
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("ab+") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def append(self, line: str) -> None:
        """Appends a line.

        Raises:
            OSError: it cannot be written. The file is then as it was.
        """
        data = (line + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(size)
                raise
