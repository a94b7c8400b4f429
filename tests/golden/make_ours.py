"""Makes the goldens that jaxattn itself gives: `python tests/golden/make_ours.py`.

`losses.npz` again after a change that is meant to change numbers, `run_<version>.zip`
once for each released version, before its release; it is never made again.
"""

import pathlib
import sys
import tempfile
import zipfile
from importlib import metadata

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
import smoke
from test_reliability import GOLDEN, config, train, twenty_steps

from jaxattn.training.checkpoints.trained import load_trained


def make_run(workdir: pathlib.Path) -> None:
    small = config(num_epochs=1)
    smoke.make_steady(small)  # whose optimizer has one slot: a small file
    train(small, workdir)
    trained = load_trained(workdir, weights="last")
    images = np.random.default_rng(0).integers(
        0, 256, (4, *trained.image_shape), np.uint8
    )
    x = trained.normalize(images)
    logits = trained.model.apply(trained.variables, x, train=False)
    np.save(workdir / "logits.npy", np.asarray(logits))
    kept = [workdir / "config.json", workdir / "metrics.jsonl", workdir / "logits.npy"]
    kept += sorted((workdir / "checkpoints").rglob("*"))
    path = GOLDEN / f"run_{metadata.version('jaxattn')}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in kept:
            archive.write(file, file.relative_to(workdir))


np.savez(GOLDEN / "losses.npz", **{v: twenty_steps(v) for v in ("canet", "small")})
if "--run" in sys.argv:
    with tempfile.TemporaryDirectory() as folder:
        make_run(pathlib.Path(folder))
