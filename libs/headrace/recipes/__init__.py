"""Recipes: the ways to make a model that a pipeline can name, and what each lets its user choose.

Parameters only, so that whoever accepts a pipeline can judge it without PyTorch; how a recipe trains is
the training service's business.
"""

from headrace.recipes.catalogue import (
    RECIPES,
    RecipeSpec,
    check_label,
    get_recipe,
    parse_parameters,
)
from headrace.recipes.mlp import EarlyStopping, MlpParameters

__all__ = [
    "RECIPES",
    "EarlyStopping",
    "MlpParameters",
    "RecipeSpec",
    "check_label",
    "get_recipe",
    "parse_parameters",
]
