"""What a run leaves on disk: the workdir, checkpoints, locks and metrics.json."""
