"""Peers of `pmjax.bench`, one file each: the same training step in another framework.

A file `pmjax/benchmarks/peers/NAME.py`, called as the package that it needs, defines `Side`, which
`pmjax.bench` makes in a process of its own:

    Side(settings, stage=…, cores=…, gpu=…, start=…)
                        `start` has the first weights, the first random draws and the embeddings
    first               {metric: value} of the first step, on the same batch and draws as ours
    threads, device, versions
    block(seconds) -> (steps, seconds)

and `Features`, for `pmjax.bench --evaluation`:

    Features(weights=…, images=…, cores=…, gpu=…)
                        a file of Inception's weights, and a batch of uint8 images [B, H, W, 3]
    first               features float32 [B, 2048] of the images
    threads, device, versions
    block(seconds) -> (images, seconds)
"""
