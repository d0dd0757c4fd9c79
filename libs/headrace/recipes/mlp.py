"""Parameters of the recipe `mlp`: a multilayer perceptron over numeric features."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number(value: object) -> object:
    """Refuse what pydantic would turn into a number: "10", true."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


Integer = Annotated[int, BeforeValidator(_number)]
"""A whole number; 10.0 is one, since a google.protobuf.Struct knows no other numbers."""
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EarlyStopping(_Parameters):
    """Stop when the validation loss no longer falls, and keep the weights that it was lowest with."""

    patience: Integer = Field(
        default=10, ge=1, description="Stop after this many epochs without an improvement."
    )
    min_delta: Real = Field(
        default=0.0, ge=0, description="The loss must fall by more than this to count as an improvement."
    )


class MlpParameters(_Parameters):
    """A multilayer perceptron: linear layers with an activation between them."""

    hidden: tuple[Annotated[Integer, Field(ge=1, le=65536)], ...] = Field(
        default=(64, 32), max_length=64, description="Sizes of the hidden layers; empty: a linear model."
    )
    activation: Literal["relu", "sigmoid", "tanh"] = Field(default="relu", description="Between the layers.")
    loss: Literal["cross_entropy", "mse"] = Field(
        default="cross_entropy",
        description="cross_entropy for a label with classes, mse (mean squared error) for a numeric one.",
    )
    optimizer: Literal["sgd", "adam"] = Field(default="adam", description="How weights follow gradients.")
    learning_rate: Real = Field(default=0.001, gt=0, description="Step size of the optimizer.")
    momentum: Real = Field(default=0.0, ge=0, lt=1, description="Momentum of sgd; adam has its own.")
    weight_decay: Real = Field(default=0.0, ge=0, description="L2 penalty on the weights.")
    epochs: Integer = Field(default=50, ge=1, le=10_000_000, description="Passes over the training split.")
    batch_size: Integer | None = Field(
        default=32, ge=0, description="Rows for each step; null or 0: all rows in one step (full batch)."
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Watch the validation loss; absent: train all epochs."
    )
    log_every: Integer = Field(
        default=10, ge=1, description="Print the losses each time this many epochs have passed."
    )
    checkpoint_seconds: Real = Field(
        default=10.0, gt=0, description="Save a checkpoint at the first epoch's end after this long."
    )
    checkpoint_every: Integer | None = Field(
        default=None, ge=1, description="Save a checkpoint each time this many epochs have passed, too."
    )

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is a parameter of the optimizer sgd")
        return self
