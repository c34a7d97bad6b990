"""What a metric declares beside its `evaluate`: its values, their meaning and better direction."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pmjax.schema import METRIC_ARGS

Better = Literal["higher", "lower"] | None
PARTS = ("test", "train", "samples")  # of which a metric may need several examples
Least = int | Mapping[str, int]  # examples of each of `PARTS`, or of those that are named


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a metric.

    Args:
        meaning: for the report, in a few words.
        better: 'higher' or 'lower'; None if neither is, or if no model changes the value.
    """

    meaning: str = ""
    better: Better = None


def higher(meaning: str) -> Value:
    """Returns a value of which a higher one is better."""
    return Value(meaning, "higher")


def lower(meaning: str) -> Value:
    """Returns a value of which a lower one is better."""
    return Value(meaning, "lower")


@dataclasses.dataclass(frozen=True)
class Table:
    """Values under the keys 'PREFIX/NAME' or 'PREFIX/DETAIL/NAME', one table of the report.

    Args:
        prefix: what the keys begin with. With the metric's file in place of its name: 'prdc/recall'
            is also the prefix of 'prdc_efficientnet_lite0/recall/floor'.
        title: heading, in which {} stands for the extractor and DETAIL, if there are any.
        meaning: the text below the heading.
        values: by NAME. Names of compared sets are in `SETS`; priors need no declaration.
        better: of the values of sets that depend on a model.
        bars: whether bars help to compare the values: all of one kind, and positive.
    """

    prefix: str
    title: str
    meaning: str
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    better: Better = None
    bars: bool = False


class Metric:
    """What a metric's file declares as METRIC."""

    def __init__(
        self,
        *tables: Table,
        needs_own_prior: bool = False,
        extractor: str = "",
        on_features: bool = False,
        least: Least | Callable[..., Least] = 1,
        needs_classes: bool = False,
        limits: Mapping[str, float] | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ):
        """Declares a metric.

        Args:
            *tables: its values.
            needs_own_prior: whether it needs the prior that the run is configured with.
            extractor: the feature extractor that it uses unless another is given; '' for none.
            on_features: whether it runs on any extractor, as `evaluate(ctx, features, **args)`.
            least: the fewest examples of `PARTS` that it needs: a number for all, {'test': number,
                …} for those that it uses, or a function of some of its arguments, by their names,
                that returns either.
            needs_classes: whether it needs the classes that `labels.classes` returns.
            limits: {argument: its smallest value, or for a float, what it must exceed}.
            check: raises `UserError` for arguments, defaults included, that are never valid.
        """
        self.tables, self.needs_own_prior = tables, needs_own_prior
        self.extractor, self.on_features = extractor, on_features
        self.least, self.needs_classes = least, needs_classes
        self.limits, self.check = limits or {}, check


# Sets that several metrics compare, by the last part of their keys. Those
# of `OF_DATA` do not depend on a model.
SETS = {
    "floor": "real against real: what perfect samples would reach",
    "recon": "reconstructions of the test set",
    "recon_train": "reconstructed training images: a perfect prior through this decoder",
    "recon_test": "reconstructed test images: a perfect prior through this decoder",
    "midpoints": "decoded midpoints between embeddings of random pairs of test images",
    "train": "training examples: what a perfect prior would reach",
    "test": "test examples themselves",
    "latent_gan": "samples by the latent GAN",
    "gaussian": "samples by one Gaussian fitted to the embeddings",
    "gmm": "samples by a Gaussian mixture fitted to the embeddings",
    "knn_jitter": "training embeddings with a little noise, as a model of memorization",
}
OF_DATA = ("floor", "train", "test")
FLAGS = {
    "fewer_images_than_features": "images of the smallest set, too few for a covariance of full "
    "rank: the distance has a large bias, so compare it with the floor only",
    "floor_images": "images of the floor, fewer than the samples",
    "subset_size": "images per subset, because the sets are small",
    "fewer_images_than_classes": "images per part, fewer than classes: the score is bounded",
}


def option(metric: str, argument: str = "") -> str:
    """Returns the command's flag for an argument of a metric, or the start of all its flags."""
    return f"--config.{METRIC_ARGS}{metric}.{argument}"
