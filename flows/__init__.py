"""What a person triggers."""

import sys
from pathlib import Path

# Ahead of PYTHONPATH, where somebody else's `infra` or `tasks` may lie.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
