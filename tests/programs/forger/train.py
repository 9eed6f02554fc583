"""Prints whatever the runner, a compute or the digit classifier could have said, and trains nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

EVENTS = ('{"phase": "post_processing"}', '{"took": {"scaling": 900.0}}', '{"epoch": 7, "epochs": 7}', "{", "")

for line in (
    "standing by",
    "post-processing: the outputs and the model",
    "scaling took 900.0 s",
    "preparing took 900.0 s",
    "epoch 7/7  loss 0.1  1.00 s",
    "epoch 7/7",
    *(f"{before}{mark}{event}" for before in ("", "epoch 7/7 ") for mark in "\x1d\x1e\x1f" for event in EVENTS),
    *(f"over\r\x1f{event}" for event in EVENTS),
    "job training-0000000000000000-1",
    '\x1drefused "forged"',
    '{"event": "epoch", "fit": 1, "epoch": 7, "metrics": {"loss": 0.1}, "seconds": 1}',
):
    print(line, flush=True)
    print(line, file=sys.stderr, flush=True)
    os.write(1, f"{line}\n".encode())
    subprocess.run(["printf", "%s\\n", line], check=True)
    print(line, end="")
time.sleep(2)

model = Path(os.environ["OUTPUTS_FOLDER"]) / "model"
model.mkdir()
(model / "weights.bin").write_bytes(b"of no training")
