"""The configuration's schema: every key once, with its default, its comment and its valid values.

Everything else is derived from `SECTIONS`: the defaults, --help, the checks of values, which keys
may change between two runs of a workdir, and how workdirs of earlier versions are read.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial, reduce
from typing import Any

from ml_collections import ConfigDict

from pmjax import errors, paths, plugins
from pmjax.errors import UserError

METRIC_ARGS = "eval.args."  # followed by METRIC.NAME
# What values of a type are called in messages.
TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a list of words",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the configuration; its type is that of the default."""

    default: Any
    comment: str
    low: float | None = None  # smallest and largest value of a number
    high: float | None = None
    choices: tuple[str, ...] = ()
    form: tuple[str, str] | None = None  # regular expression of a text, and how to describe it
    plugin: str = ""  # the kind of plugin that the value, or each of several, names
    args: str = ""  # the group with the arguments of this plugin
    free: bool = False  # may change between two runs of a workdir: does not change what is trained
    local: bool = False  # a path, which may differ between the processes of a run
    # The version that added the key (the day, before the first release), and what earlier ones did.
    since: tuple[str, Any] | None = None

    def check(self, name: str, value: Any) -> Any:
        """Returns the value in the key's type; `UserError` if it is of another or out of range."""
        name = f"config.{name}"
        value = as_type(name, value, self.default)
        if self.local:
            paths.refuse_url(value)
        if self.plugin:
            for plugin in value if isinstance(value, tuple) else (value,):
                plugins.load(self.plugin, plugin)
        if self.choices and value not in self.choices:
            raise errors.unknown(name, value, self.choices)
        if self.form and not re.fullmatch(self.form[0], value):
            raise UserError(f"{name}='{value}' must be {self.form[1]}.")
        require_finite(name, value)
        if self.low is not None and value < self.low:
            raise UserError(f"{name}={value} must be at least {self.low}.")
        if self.high is not None and value > self.high:
            raise UserError(f"{name}={value} must be at most {self.high}.")
        return value

    def valid(self) -> str:
        """Returns the range or the choices as text; '' if the type alone decides."""
        if self.choices:
            return ", ".join(self.choices)
        if self.high in (None, _LARGE):
            return "" if self.low is None else f"≥ {self.low}"
        return f"{self.low:,} to {self.high:,}"


_LARGE = 2**31 - 1
_NOV_23 = "2026-11-23"  # keys without `since` are a day older
Count = partial(Key, low=1, high=_LARGE)
Free = partial(Key, free=True)
FreeCount = partial(Count, free=True)


def _optimizer(group: str, learning_rate: float, b1: float) -> dict[str, Key]:
    return {
        f"{group}.learning_rate": Key(learning_rate, "Adam's, after the warm-up", 0, 1_000_000),
        f"{group}.b1": Key(b1, "Adam's decay of the mean gradient", 0, 0.999999999),
        f"{group}.b2": Key(0.99, "Adam's decay of the mean squared gradient", 0, 0.999999999),
        f"{group}.schedule": Key("linear", "the learning rate's course; linear and cosine end at 0",
                                 choices=("linear", "cosine", "constant")),
        f"{group}.warmup": Count(0, "steps over which the learning rate rises from zero", low=0),
        f"{group}.clip": Key(0.0, "largest global norm of a gradient (0: no limit)", 0),
        f"{group}.accumulate": Count(1, "batches averaged for one update, to save memory",
                                     since=(_NOV_23, 1)),
    }  # fmt: skip


SECTIONS: dict[str, dict[str, Key]] = {
    "Model": {
        "seed": Key(0, "seed of data order, initial weights, noise and samples", 0, 2**32 - 1),
        "method": Key("pm", "what stage 1 trains", plugin="methods", args="method_args"),
        "nets": Key("resnet", "family of networks", plugin="nets", args="nets_args"),
        "prior": Key("latent_gan", "prior over the embeddings", plugin="priors", args="prior_args"),
        "schedule": Key("two_stage", "when the prior trains: after the autoencoder or with it",
                        choices=("two_stage", "joint")),
        "latent_dim": Key(64, "dimension of the embeddings", 1, 2**20),
        "batch_norm.affine": Key(False, "scale and shift of the latent BatchNorm, equation (11)"),
        "batch_norm.momentum": Key(0.99, "decay of the latent BatchNorm's running statistics",
                                   0, 1),
        "precision": Key("float32", "number format of networks; bfloat16 is for TPU and GPU",
                         choices=("float32", "bfloat16"), since=(_NOV_23, "float32")),
    },
    "Data": {
        "data.name": Key("digits", "the data set", plugin="datasets"),
        "data.path": Free("", "image_folder: the directory of the images", local=True),
        "data.manual_dir": Free("", "directory of files downloaded by hand", local=True),
        "data.cache_dir": Free("", "directory of decoded data ('': $PMJAX_CACHE or ~/.cache/pmjax)",
                               local=True),
        "data.size": Key(0, "height and width of the images (0: the data set's own)", 0, 2**14),
        "data.batch_size": Count(64, "examples per step, over all devices"),
        "data.verify": Free(True, "check size and checksum of official archives in data.manual_dir",
                            since=(_NOV_23, True)),
        "data.skip_broken": Key(False, "skip images that cannot be read, and count them"),
        "data.device_budget_gb": Free(4.0, "memory for data on a device; larger sets are streamed",
                                      0),
    },
    "Stage 1: the autoencoder": {
        "steps": Count(10_000, "training steps"),
        "steps_per_dispatch": Count(1, "steps in one call of the device; more for accelerators"),
        **_optimizer("optimizer", 1e-3, b1=0.5),
        "ema_decay": Key(0.999, "decay of averaged networks: g, and G in the joint schedule", 0, 1),
        "skip_nonfinite": FreeCount(0, "steps with NaN that each stage may skip (0: stop at once)",
                                    low=0, since=(_NOV_23, 0)),
    },
    "Stage 2: a prior that is trained on the embeddings": {
        "stage2.steps": Count(10_000, "training steps"),
        "stage2.steps_per_dispatch": Count(100, "steps in one call of the device"),
        "stage2.batch_size": Count(64, "examples per step, over all devices"),
        "stage2.devices": FreeCount(1, "number of devices; small networks gain nothing from more",
                                    since=(_NOV_23, 1)),
        **_optimizer("stage2.optimizer", 1e-3, b1=0.0),  # with momentum, the latent GAN collapses
    },
    "Devices": {
        "parallel": Free("jit", "steps sharded over a mesh, or replicated",
                         choices=("jit", "pmap")),
        "devices": FreeCount(0, "number of devices (0: all; on a CPU one, which uses all cores)",
                             low=0),
    },
    "Logs and checkpoints": {
        "log_every": FreeCount(100, "steps between two log entries"),
        "checkpoint.every": FreeCount(1000, "steps between two checkpoints"),
        "checkpoint.keep": Free(2, "checkpoints to keep", 1),
        "profile": Free("", "STEP:COUNT writes a trace of these steps of stage 1 to "
                        "WORKDIR/profile",
                        form=("|[0-9]{1,9}:(?!0+$)[0-9]{1,9}", "STEP:COUNT, such as 100:5"),
                        since=(_NOV_23, "")),
    },
    "Evaluation": {
        "eval.metrics": Free(("reconstruction", "latent", "fd_efficientnet_lite0"),
                             "metrics of the trained model"),
        "eval.baselines": Free(("gaussian", "gmm"), "priors to compare with the run's own",
                               plugin="priors"),
        "eval.num_samples": FreeCount(4000, "number of samples from each prior"),
        "eval.every": FreeCount(0, "steps of stage 1 between two evaluations (0: none)", low=0,
                                since=(_NOV_23, 0)),
        "eval.during": Free(("reconstruction", "latent"), "metrics of these evaluations",
                            since=(_NOV_23, ("reconstruction", "latent"))),
        "eval.best": Free("", "a value of eval.during, such as recon/psnr; the best model is saved "
                          "in WORKDIR/best", since=(_NOV_23, "")),
        "eval.stage2_every": FreeCount(0, "steps of stage 2 between two evaluations (0: none)",
                                       low=0, since=(_NOV_23, 0)),
        "eval.stage2_during": Free(("fd_efficientnet_lite0",), "metrics of these evaluations",
                                   since=(_NOV_23, ("fd_efficientnet_lite0",))),
        "eval.stage2_best": Free("", "a value of eval.stage2_during, like fd_efficientnet_lite0/"
                                 "latent_gan; the best model is saved in WORKDIR/best-prior",
                                 since=(_NOV_23, "")),
        "eval.fid_protocols": Free(("10k_test",), "protocols of metric fid: 10k_test, 50k_train, …",
                                   since=(_NOV_23, ("10k_test",))),
        "eval.inception_weights": Free("", "weights file ('': $PMJAX_INCEPTION_WEIGHTS, the cache, "
                                       "or a download)", local=True, since=(_NOV_23, "")),
        "eval.inception_variant": Free("pytorch_fid", "variant of Inception's input: pytorch_fid, "
                                       "torch_fidelity or clean_fid",
                                       since=(_NOV_23, "pytorch_fid")),
        "eval.inception_precision": Free("float32", "float32 or bfloat16",
                                          since=(_NOV_23, "float32")),
        "eval.efficientnet_resolution": Free(0, "pixels of its input (0: the images' own, but "
                                             "from 64 to 224)", 0, 2**14, since=(_NOV_23, 0)),
        "eval.efficientnet_precision": Free("float32", "float32 or bfloat16",
                                          since=(_NOV_23, "float32")),
    },
}  # fmt: skip
KEYS: dict[str, Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}
PLUGINS: dict[str, Key] = {name: key for name, key in KEYS.items() if key.args}

# What earlier versions did, for the keys and the plugins' arguments that their workdirs lack.
ADDED: dict[str, Any] = {name: key.since[1] for name, key in KEYS.items() if key.since} | {
    "method_args.dispersion": 1.0,
    "method_args.mean_margin": False,
    "method_args.minimax": False,
    "method_args.mmd_kernel": "imq",
    "nets_args.relu_shortcut": False,
    "prior_args.b1": 0.9,
    "prior_args.weight_decay": 1.0,
}
# Arguments of earlier versions, and which of their values ask for what is done today.
REMOVED: dict[str, Callable[[Mapping[str, Any], Any], bool]] = {
    "prior_args.critic_gain": lambda config, value: value == 1.0,
    "prior_args.residual": lambda config, value: (
        value == (config["prior_args"].get("base_prior") == "gmm")
    ),
    # code_prior is now trained as config.stage2 says; trained arrays do not depend on these.
    "prior_args.steps": lambda config, value: config.get("prior") == "code_prior",
    "prior_args.learning_rate": lambda config, value: config.get("prior") == "code_prior",
}


def defaults() -> ConfigDict:
    """Returns the configuration of all defaults, unlocked."""
    values: dict[str, Any] = {key.args: {} for key in PLUGINS.values()} | {"eval": {"args": {}}}
    for name, key in KEYS.items():
        put(values, name, key.default)
    return ConfigDict(values)


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets the value of a dotted name in nested dictionaries."""
    *parents, last = name.split(".")
    reduce(lambda part, parent: part.setdefault(parent, {}), parents, values)[last] = value


def is_free(name: str) -> bool:
    """Tells whether a key may change between two runs of a workdir."""
    return KEYS[name].free if name in KEYS else name.startswith(METRIC_ARGS)


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a text that commas separate."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


class Text(str):
    """A value as it was typed; the type of its key says what it means."""

    def read(self, types: Collection[Any]) -> Any:
        """Returns the text as it is for `str` and `tuple` (of words), else as a Python literal.

        None is a literal where it is valid, and so is a list of texts for `tuple`.
        """
        value = _literal(self)
        listed = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        spelled = (listed and tuple in types) or (value is None and type(None) in types)
        return str(self) if {str, tuple} & {*types} and not spelled else value


def _literal(text: str) -> Any:
    """Reads a Python literal, or true or false; anything else is a string."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # not a literal
        return str(text)


def as_type(name: str, value: Any, like: Any) -> Any:
    """Returns a value in the type of `like`: an int as a float, a text with commas as a tuple.

    Raises:
      UserError: for a value of any other type; `name` is the value's in the message.
    """
    if isinstance(value, Text):
        numbers = isinstance(like, tuple) and not all(isinstance(item, str) for item in like)
        value = value.read(() if numbers else (type(like),))
    if isinstance(like, float) and type(value) is int and abs(value) < 2**53:
        return float(value)
    if isinstance(like, str) and not isinstance(value, list | tuple | dict | None):
        return str(value)
    if isinstance(like, tuple):
        if isinstance(value, str):
            return words(value)
        if isinstance(value, list | tuple):
            return tuple(value)
    if type(value) is type(like):
        return value
    raise UserError(f"{name}={value!r} must be {TYPES[type(like)]}, such as {like!r}.")


def require_finite(name: str, value: Any) -> None:
    """Raises `UserError` for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value} must be a finite number.")
