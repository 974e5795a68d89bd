"""Imported by a command that is run as a file (`python launcher/pretrain.py`): makes its clone importable.

The folder of a script leads Python's import path; its files could hide libraries, so the clone takes its place. What a
command imports may be missing, which must end in one message.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from ingot.packages import report_missing

sys.excepthook = report_missing
