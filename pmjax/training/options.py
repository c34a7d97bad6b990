"""How the loop trains a stage, whatever its nets and data are."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """The arguments of the loop that do not depend on what is trained."""

    stage: str  # its name, in logs and paths
    steps: int  # in all
    batch_size: int  # of the global batch
    seed: int  # of the initial weights, the noise and the order of the data
    ema_decay: float  # of the parameter averages
    steps_per_dispatch: int = 1  # steps that the devices run without the host
    mode: str = "jit"  # or 'pmap'
    device_budget: float = 1e9  # bytes of data on each device; a larger data set is streamed
    checkpoint_every: int = 1000  # steps
    keep: int = 2  # checkpoints
    log_every: int = 100  # steps
    skip_nonfinite: int = 0  # non-finite steps that may be skipped
    profile: tuple[int, int] | None = None  # the first step to trace, and the number of steps
