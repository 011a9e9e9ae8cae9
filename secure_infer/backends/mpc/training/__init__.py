"""Training of a small perceptron by two owners of data, neither of whom shows a sample to the other: a first form."""

from secure_infer.backends.mpc.training.owners import Trained, train
from secure_infer.backends.mpc.training.task import Task

__all__ = ["Task", "Trained", "train"]
