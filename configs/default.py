"""Every knob, once. Other configs are small overrides of this one.

    get_config(variant, overrides, variants)

`variant` is what follows the colon in --config=configs/digits.py:author; several are joined with
commas (:author,runlocal). Names with dots reach into the config.
"""

from ml_collections import ConfigDict

# Presets that every config offers. 'paper' is what the defaults below already are, but for the base
# of the latent GAN: fitted to the embeddings, it gave better samples (see README.md).
PRESETS = {
    "paper": {
        "schedule": "two_stage",
        "method_args.reconstruction": "squared",
        "prior_args.base_prior": "gaussian",
    },
    "author": {
        "schedule": "joint",
        "method_args.reconstruction": "absolute",
        "method_args.omega1": 1.0,
        "method_args.omega2": 1.0,
        "method_args.critic_repeats": 2,
        "prior_args.base_prior": "sphere",
        "prior_args.critic_repeats": 5,
        "optimizer.learning_rate": 2e-4,
        "optimizer.b1": 0.0,
        "optimizer.b2": 0.999,
        "optimizer.schedule": "constant",
    },
}

# A smoke run of about a minute on two cores, for configs of images.
RUNLOCAL = {
    "steps": 20,
    "stage2.steps": 200,
    "eval.num_samples": 64,
    "eval.metrics": ("reconstruction",),
}

# What a smoke run on a CPU changes of configs that are meant for accelerators.
SMALL_MIMICRY = {
    "nets_args.scale": 0.125,
    "precision": "float32",
    "steps_per_dispatch": 1,
    "data.batch_size": 32,
    "prior_args.width": 64,
}


def get_config(variant: str = "", overrides: dict | None = None, variants: dict | None = None):
    """Returns the defaults with `overrides`, then with the named variants on top."""
    config = ConfigDict()
    config.seed = 0  # of everything random: data order, initial weights, noise, samples

    # What is trained.
    config.method = "pm"  # a file in pmjax/methods
    config.method_args = ConfigDict()  # the fields of its Method; see that file
    config.prior = "latent_gan"  # a file in pmjax/priors
    config.prior_args = ConfigDict()  # the fields of its Prior; see that file
    config.schedule = "two_stage"  # or 'joint': method and prior take turns in every step
    config.nets = "resnet"  # a file in pmjax/nets
    config.nets_args = ConfigDict()  # the fields of its Encoder, Decoder and Critic
    config.precision = "float32"  # of the nets' computation; or 'bfloat16', on TPU and GPU
    config.latent_dim = 64
    config.batch_norm = ConfigDict()  # of the embedding, equation (11)
    config.batch_norm.affine = False
    config.batch_norm.momentum = 0.99  # of the running statistics

    # Data.
    config.data = ConfigDict()
    config.data.name = "digits"  # a file in pmjax/datasets
    config.data.path = ""  # image_folder: the directory with the images
    config.data.manual_dir = ""  # where files are that you have already
    config.data.cache_dir = ""  # where decoded data is kept ('': $PMJAX_CACHE or ~/.cache/pmjax)
    config.data.size = 0  # height and width of the images (0: the data set's own)
    config.data.batch_size = 64  # over all devices
    config.data.verify = True  # sizes and checksums of official archives in manual_dir
    config.data.skip_broken = False  # leave out images that cannot be read, and count them
    config.data.device_budget_gb = 4.0  # on each device; larger sets are streamed

    # Stage 1: the autoencoder.
    config.steps = 10_000
    config.steps_per_dispatch = 1  # accelerators: more; on CPU, convolutions in loops are slow
    config.optimizer = ConfigDict()  # Adam
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.99
    config.optimizer.schedule = "linear"  # to zero; or 'constant', 'cosine'
    config.optimizer.warmup = 0  # steps
    config.optimizer.clip = 0.0  # largest global norm of a gradient (0: any)
    config.optimizer.accumulate = 1  # batches averaged for one update: larger ones on small cards
    config.ema_decay = 0.999  # of the nets that are averaged: g, and G when trained jointly
    config.skip_nonfinite = 0  # steps of each stage that may be NaN and are left out (0: stop)

    # Stage 2: a prior that is trained on the table of embeddings.
    config.stage2 = ConfigDict()
    config.stage2.devices = 1  # small nets: dividing their batch costs more than it saves
    config.stage2.steps = 10_000
    config.stage2.batch_size = 64
    config.stage2.steps_per_dispatch = 100
    config.stage2.optimizer = ConfigDict(config.optimizer.to_dict())
    config.stage2.optimizer.learning_rate = 1e-3
    config.stage2.optimizer.b1 = 0.0  # with momentum, the latent GAN circles and collapses

    # Devices.
    config.parallel = "jit"  # sharded over a mesh; or 'pmap'
    config.devices = 0  # how many to use (0: all; on CPU 1: it runs on all cores)

    # Looking at it.
    config.profile = ""  # 'STEP:COUNT' writes a trace of these steps of stage 1 to WORKDIR/profile
    config.log_every = 100  # steps
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps
    config.checkpoint.keep = 2
    config.eval = ConfigDict()
    config.eval.metrics = ("reconstruction", "latent", "fd_efficientnet_lite0")  # pmjax/evals
    config.eval.baselines = ("gaussian", "gmm")  # priors that are fitted beside the run's own
    config.eval.num_samples = 4000  # from each prior
    config.eval.args = ConfigDict()  # of metrics, as in eval.args.kid.subset_size; see their files
    config.eval.every = 0  # steps of stage 1 between evaluations while it trains (0: none)
    config.eval.during = ("reconstruction", "latent")  # metrics of those
    config.eval.best = ""  # a value of theirs, such as 'recon/psnr': WORKDIR/best keeps its best
    config.eval.stage2_every = 0  # likewise steps of stage 2, which trains the prior
    config.eval.stage2_during = ("fd_efficientnet_lite0",)
    config.eval.stage2_best = ""  # such as 'fd_efficientnet_lite0/latent_gan': WORKDIR/best-prior
    config.eval.fid_protocols = ("10k_test",)  # of metric fid; or '50k_train', or any number
    config.eval.inception_weights = ""  # file ('': $PMJAX_INCEPTION_WEIGHTS, the cache, download)
    config.eval.inception_variant = "pytorch_fid"  # or 'torch_fidelity', 'clean_fid'
    config.eval.inception_precision = "float32"  # or 'bfloat16'
    config.eval.efficientnet_resolution = 0  # pixels (0: the images' own, between 64 and 224)
    config.eval.efficientnet_precision = "float32"  # or 'bfloat16'

    config.lock()
    known = PRESETS | (variants or {})
    _update(config, overrides or {})
    for name in filter(None, variant.split(",")):
        if name not in known:
            raise ValueError(f"unknown variant '{name}'; valid: {', '.join(sorted(known))}")
        _update(config, known[name])
    return config


def _update(config: ConfigDict, values: dict) -> None:
    for name, value in values.items():
        *parents, last = name.split(".")
        part = config
        for parent in parents:
            if part is config.eval.args and parent not in part:
                with part.unlocked():
                    part[parent] = ConfigDict()
            part = part[parent]
        if parents and (parents[-1].endswith("_args") or parents[:2] == ["eval", "args"]):
            with part.unlocked():  # checked later, against the file that takes them
                part[last] = value
        else:
            part[last] = value
