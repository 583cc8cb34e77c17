"""A contender's process: `python -m kresnet.bench.accuracy MODULE TASK`."""

import importlib
import sys
from pathlib import Path

from kresnet.bench.accuracy.task import Task


def main(module: str, path: str) -> None:
    """Read a task, and let a module of this package do it and answer."""
    task = Task.load(Path(path))
    if module in ("fastai_way", "timm_way"):
        from kresnet.bench.accuracy.torch_parts import import_torchvision

        import_torchvision()
    answer = importlib.import_module(f"kresnet.bench.accuracy.{module}").contend(task)
    if answer is not None:
        answer.save(Path(task.folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
