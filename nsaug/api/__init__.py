"""`nsaug.finetune` and `nsaug.evaluate`: what train.py and evaluate.py do, with models and loaders of your own.

Mistakes in the arguments are a ValueError in one line.
"""

from nsaug.api.evaluation import Evaluation, evaluate
from nsaug.api.finetuning import Finetuned, finetune

__all__ = ["Evaluation", "Finetuned", "evaluate", "finetune"]
