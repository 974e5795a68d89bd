"""Imported first by each benchmark: it measures the clone that it lies in, and may use what tests are built from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
