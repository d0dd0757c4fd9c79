"""The classes that answers name: added to what a model answers itself."""

import numpy as np


class ClassNames:
    """`label` from a model's scores, and `class`, its name, from `label`: those that are to be added."""

    def __init__(self, names, values, scores, added):
        # As Triton sends texts; taken from here for each answer, and never made anew.
        self._names = np.array([name.encode() for name in names], dtype=object)
        self._values = np.array(values, dtype=np.int64)
        self._scores = scores
        self._added = frozenset(added)

    def add_to(self, answers):
        """Complete a model's answers, whose vectors are columns."""
        if "label" in self._added:
            places = answers[self._scores].argmax(axis=-1)
            answers["label"] = self._values[places].reshape(-1, 1)
        if "class" in self._added:
            answers["class"] = self._names[answers["label"]]
