"""What metrics mean, in the report's words."""

# Groups of metrics by the part of the name before '/': heading and meaning; {} is that part.
GROUPS = {
    "recon": ("Reconstruction", "How close G(E(x)) comes to x, over the whole test set."),
    "latent": ("Latent space", "The coordinates of the training set's embeddings, in inference "
               "mode; the latent BatchNorm asks for mean 0 and variance 1 in each."),
    "fd": ("Fréchet distance ({})", "Squared distance between the features of generated and of "
           "test images; lower is better. Read it against the floor, which real images reach, and "
           "recon_train, what a perfect prior would reach. Comparable neither with FID on "
           "Inception features nor across numbers of samples."),
    "kid": ("Kernel distance (KID)", "Unbiased squared MMD between Inception features with a cubic "
            "kernel; lower is better, near 0 for real images."),
    "classes": ("Classes among the samples", "Shares of the samples that a classifier fitted on "
                "real images puts in a class; near 0 means that the class is missing."),
    "w2": ("2-Wasserstein distance", "How far generated points have to move to become fresh real "
           "ones; lower is better, and two sets of real points already differ by the floor."),
    "topology": ("Topology of the embedding", "Whether neighbours stay neighbours between data "
                 "and latent space; 1 is perfect."),
}  # fmt: skip
MEANINGS = {
    "recon/mse": "mean squared error in the data's own units, [-1, 1] for images; lower is better",
    "recon/mse01": "the same for values in [0, 1]: a quarter of it",
    "recon/psnr": "peak signal-to-noise ratio in dB; higher is better",
    "latent/mean_abs_max": "largest mean of a coordinate, without its sign",
    "latent/var_min": "smallest variance of a coordinate",
    "latent/var_max": "largest variance of a coordinate",
    "latent/corr_abs_mean": "mean correlation of two coordinates, without its sign",
    "classes/share_min": "of the rarest class",
    "classes/share_max": "of the most frequent class",
    "classes/accuracy": "of the classifier on the test set: how far to trust it",
    "topology/trustworthiness": "falls when latent neighbours are none in the data",
    "topology/continuity": "falls when neighbours in the data are torn apart",
    "midpoints": "decoded midpoints between embeddings of random pairs of test images",
    "floor": "real against real: what perfect samples would reach",
    "recon": "reconstructions of the test set against itself",
    "recon_train": "reconstructed training images: a perfect prior through this decoder",
    "latent_gan": "samples by the latent GAN",
    "gaussian": "samples by one Gaussian fitted to the embeddings",
    "gmm": "samples by a Gaussian mixture fitted to the embeddings",
    "ratio": "the run's own prior over the floor; 1 is perfect",
}
