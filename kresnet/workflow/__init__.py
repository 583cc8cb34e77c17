"""The main job from end to end: a folder of images in, a verified export out.

Scan, split, plan, train, evaluate, export. The command line and the recipe scripts call this and
nothing else.
"""

from kresnet.workflow.afterwards import evaluate_export, report_run
from kresnet.workflow.ahead import choose, find_rate, preview, show_batches
from kresnet.workflow.exporting import export_run
from kresnet.workflow.job import Result, fit, resume

__all__ = [
    "Result",
    "choose",
    "evaluate_export",
    "export_run",
    "find_rate",
    "fit",
    "preview",
    "report_run",
    "resume",
    "show_batches",
]
