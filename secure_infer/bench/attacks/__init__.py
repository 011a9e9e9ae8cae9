"""Our attacks beside those of other libraries: the same network, images and steps, taking turns."""

from secure_infer.bench.attacks.whole import FOLDER, run

__all__ = ["FOLDER", "run"]
