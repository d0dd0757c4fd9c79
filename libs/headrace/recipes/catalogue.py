"""The recipes that exist, and the check of what a user asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headrace.errors import FieldViolation, HeadraceError, InvalidArgument, invalid_fields
from headrace.recipes.mlp import MlpParameters

UNKNOWN_RECIPE: Final = "UNKNOWN_RECIPE"
UNKNOWN_PARAMETER: Final = "UNKNOWN_PARAMETER"
INVALID_PARAMETER: Final = "INVALID_PARAMETER"


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """One recipe: what it is, and the model of its parameters."""

    name: str
    description: str
    parameters: type[BaseModel]


RECIPES: Final[Mapping[str, RecipeSpec]] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            RecipeSpec(
                "mlp",
                "A multilayer perceptron over numeric features, for classification and regression.",
                MlpParameters,
            ),
        )
    }
)


def get_recipe(name: str) -> RecipeSpec:
    """Return a recipe. Raises InvalidArgument/UNKNOWN_RECIPE, which names those that exist."""
    try:
        return RECIPES[name]
    except KeyError:
        known = ", ".join(sorted(RECIPES))
        message = f"there is no recipe {name!r}; there is {known}"
        raise InvalidArgument(
            UNKNOWN_RECIPE, message, fields=[FieldViolation("training.recipe", message)]
        ) from None


def parse_parameters(recipe: str, parameters: Mapping[str, object]) -> BaseModel:
    """Return a recipe's parameters, checked, those left out with their defaults.

    Raises InvalidArgument: UNKNOWN_RECIPE; UNKNOWN_PARAMETER, which names those that exist;
    INVALID_PARAMETER, which says what is allowed. Every mistake is among the error's fields.
    """
    spec = get_recipe(recipe)
    try:
        return spec.parameters.model_validate(dict(parameters))
    except ValidationError as error:
        raise _explained(spec, error) from None


def check_label(parameters: BaseModel, *, label: str, classes: int) -> None:
    """Check that a loss suits its label, which has `classes` classes (0: any number is allowed).

    Raises InvalidArgument/INVALID_PARAMETER.
    """
    if not isinstance(parameters, MlpParameters):
        return
    if parameters.loss == "cross_entropy" and classes < 2:
        message = (
            f"cross_entropy needs a label with at least two classes, and {label!r} has "
            f"{classes or 'none'}; give the label its classes, or use the loss mse"
        )
        raise InvalidArgument(
            INVALID_PARAMETER, message, fields=[FieldViolation("training.parameters.loss", message)]
        )


def _explained(spec: RecipeSpec, error: ValidationError) -> HeadraceError:
    problems = error.errors(include_url=False)
    fields = [FieldViolation(_path(problem), _sentence(spec, problem)) for problem in problems]
    unknown = any(problem["type"] == "extra_forbidden" for problem in problems)
    return invalid_fields(UNKNOWN_PARAMETER if unknown else INVALID_PARAMETER, fields)


def _path(problem: ErrorDetails) -> str:
    return ".".join(["training", "parameters", *map(str, problem["loc"])])


def _sentence(spec: RecipeSpec, problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_siblings(spec.parameters, problem["loc"]))
        return f"the recipe {spec.name} has no such parameter; it has {known}"
    message = problem["msg"].removeprefix("Value error, ")
    sentence = message[:1].lower() + message[1:]
    return (
        sentence
        if problem["type"] == "value_error" and not problem["loc"]
        else (f"{sentence}, not {problem['input']!r}")
    )


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that would have been allowed in the place of an unknown one."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        nested = [] if field is None else _models(field.annotation)
        if not nested:
            break
        model = nested[0]
    return list(model.model_fields)


def _models(annotation: object) -> list[type[BaseModel]]:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
