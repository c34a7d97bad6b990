"""The paper's Table 1 at a laptop's scale: all methods on 5000 real digits of MNIST.

    python -m pmjax.reproduce digits --workdir=runs/reproduce/digits

19 runs for each of three seeds, 4 to 15 minutes each on one CPU core: with --jobs=2 on two cores
three to four hours in all, resumable at any time. --methods=pm,vae,ae selects runs; --runlocal runs
everything with tiny nets, in four minutes with --jobs=2 on two cores.
"""

from pmjax.reproductions.comparison import comparison

REPRODUCTION = comparison(title="All methods on digits", config="digits.py")
