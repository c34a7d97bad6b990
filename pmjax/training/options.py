"""How the loop trains a stage, whatever its nets and data are."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """The arguments of the loop that do not depend on what is trained.

    Attributes:
      stage: the name of the stage, in logs and paths.
      steps: total number of steps.
      batch_size: size of the global batch.
      seed: of the initial weights, the noise and the order of the data.
      ema_decay: decay of the parameter averages.
      steps_per_dispatch: steps that the devices run without the host.
      mode: 'jit' or 'pmap'.
      device_budget: bytes of data that each device may hold; a larger data set is streamed.
      checkpoint_every: steps between checkpoints.
      keep: number of checkpoints to keep.
      log_every: steps between log rows.
      skip_nonfinite: number of non-finite steps that may be skipped.
      profile: the first step to trace, and the number of steps.
    """

    stage: str
    steps: int
    batch_size: int
    seed: int
    ema_decay: float
    steps_per_dispatch: int = 1
    mode: str = "jit"
    device_budget: float = 1e9
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 100
    skip_nonfinite: int = 0
    profile: tuple[int, int] | None = None
