"""What metrics mean, in the report's words, and in which direction each is better."""

import re

from pmjax.errors import UserError
from pmjax.reporting.html import MetricRow, MetricTable

# Groups of metrics: the longest of these keys that the names begin with, without the features'
# name. {} in a heading is the rest: the features, FID's protocol and variant.
GROUPS = {
    "recon": ("Reconstruction", "How close G(E(x)) comes to x, over the whole test set."),
    "latent": ("Latent space", "The coordinates of the training set's embeddings, in inference "
               "mode; the latent BatchNorm asks for mean 0 and variance 1 in each."),
    "fd": ("Fréchet distance ({})", "Squared distance between the features of generated and of "
           "test images; lower is better. Read it against the floor, which real images reach, and "
           "recon_train, what a perfect prior would reach. Comparable neither with FID on "
           "Inception features nor across numbers of samples."),
    "fd_infinity": ("Fréchet distance of infinitely many samples ({})", "The line through the "
                    "distances of 1/N images, taken at 0: without the bias of the number of "
                    "samples. That of the finite test set remains, and the floor shows it."),
    "fid": ("Fréchet Inception Distance ({})", "Squared distance between the Inception features of "
            "generated and of real images, by this protocol and variant of the input; lower is "
            "better. Comparable only under the same protocol and variant. The spread is over draws "
            "of the images that are compared, the reference being fixed."),
    "fid_infinity": ("FID of infinitely many samples ({})", "The line through the FIDs of 1/N "
                     "images, taken at 0: without the bias of the number of samples."),
    "kid": ("Kernel distance (KID)", "Unbiased squared MMD between Inception features with a cubic "
            "kernel; lower is better, near 0 for real images. The spread is over subsets."),
    "kd": ("Kernel distance ({})", "Unbiased squared MMD between features with a cubic kernel; "
           "lower is better, near 0 for real images whatever their number. The spread is over "
           "subsets. An offline relative of KID, not comparable with it."),
    "prdc/precision": ("Precision ({})", "Share of the images that lie among real ones, by their "
                       "features: the quality of single images. The floor is that of real ones."),
    "prdc/recall": ("Recall ({})", "Share of the test images that lie among these images, by their "
                    "features: variety. The floor is that of real ones."),
    "prdc/density": ("Density ({})", "Among how many balls of real images an image lies, over "
                     "their number k: like precision, less moved by outliers; may exceed 1."),
    "prdc/coverage": ("Coverage ({})", "Share of the test images with an image nearby: variety, "
                      "less moved by outliers than recall."),
    "inception_score": ("Inception score", "How sure a classifier of ImageNet is of each image, "
                        "and how various over all; higher is better. It knows no reference and "
                        "says little of images unlike ImageNet's: read it against the floor."),
    "is": ("Classifier score ({})", "How sure a classifier of ImageNet is of each image, and how "
           "various over all; higher is better. Read it against the floor. An offline relative of "
           "the Inception score, not comparable with it."),
    "classes": ("Classes among the samples", "Shares of the samples that a classifier fitted on "
                "real images puts in a class; near 0 means that the class is missing."),
    "w2": ("2-Wasserstein distance", "How far generated points have to move to become fresh real "
           "ones; lower is better, and two sets of real points already differ by the floor."),
    "sinkhorn": ("Sinkhorn distance", "The 2-Wasserstein distance with an entropy term, without "
                 "its bias; lower is better."),
    "sliced_w2": ("Sliced 2-Wasserstein distance", "Over random directions, how far the "
                  "projections of generated examples have to move to become those of test "
                  "examples; lower is better."),
    "energy": ("Energy distance of latents", "Between the latents of a prior and the embeddings "
               "of test examples; lower is better, and 'train' is what real ones reach."),
    "energy_p": ("p-values of the energy distances", "Of the permutation test that both are draws "
                 "of one distribution; a small one says that they differ."),
    "c2st": ("Classifier two-sample test of latents", "Accuracy of a classifier that tells latents "
             "of a prior from embeddings of test examples: 0.5 is perfect."),
    "c2st_p": ("p-values of the classifier's test", "Of the test that the classifier only "
               "guesses; a small one says that latents and embeddings differ."),
    "memorisation": ("Memorisation, {}", "Mean distance of samples from their nearest training "
                     "examples, over that of test examples: about 1 for new examples, well below "
                     "1 for copies; blur brings samples nearer, see recon."),
    "authenticity": ("Authenticity, {}", "Share of the samples that are farther from their nearest "
                     "training example than that one is from its own nearest; near 0 for copies."),
    "linear_probe": ("Linear probe", "Test accuracy of a linear classifier on the embeddings, and "
                     "on as many principal components."),
    "kmeans": ("k-means", "Test accuracy of clusters of the embeddings, and of as many principal "
               "components, each cluster standing for one class."),
    "lines": ("Interpolated lines", "ACAI's task: interpolations should be lines of evenly "
              "turning angles; 0 is perfect."),
    "swiss_roll": ("On the swiss roll", "Where generated points lie on the roll, and whether "
                   "neighbours among their latents are neighbours on it."),
    "topology": ("Topology of the embedding", "Whether neighbours stay neighbours between data "
                 "and latent space; 1 is perfect."),
}  # fmt: skip
# Groups whose values are of one kind and positive, so that bars say something.
BARS = ("fd", "fd_infinity", "fid", "fid_infinity", "w2", "sinkhorn", "sliced_w2", "prdc")
MEANINGS = {
    "recon/mse": "mean squared error in the data's own units, [-1, 1] for images; lower is better",
    "recon/mse01": "the same for values in [0, 1]: a quarter of it",
    "recon/psnr": "peak signal-to-noise ratio in dB; higher is better",
    "recon/ssim": "structural similarity; 1 is perfect",
    "latent/mean_abs_max": "largest mean of a coordinate, without its sign",
    "latent/var_min": "smallest variance of a coordinate",
    "latent/var_max": "largest variance of a coordinate",
    "latent/cov_abs_mean": "mean covariance of two coordinates, without its sign",
    "latent/cov_abs_max": "largest covariance of two coordinates, without its sign",
    "latent/corr_abs_mean": "mean correlation of two coordinates, without its sign",
    "classes/share_min": "of the rarest class",
    "classes/share_max": "of the most frequent class",
    "classes/accuracy": "of the classifier on the test set: how far to trust it",
    "topology/trustworthiness": "falls when latent neighbours are none in the data",
    "topology/continuity": "falls when neighbours in the data are torn apart",
    "topology/neighbours_kept": "share of the nearest in the data that are nearest in the latents",
    "topology/distance_correlation": "between data and embedding; 0 is independence",
    "topology/geodesic_correlation": "of distances along the data with those in the latents",
    "lines/mean_distance": "from each image to the nearest line",
    "lines/distance_floor": "of real lines",
    "lines/smoothness": "largest turn beyond an even one; invalid interpolations count as 0",
    "lines/smoothness_strict": "the same, with invalid interpolations as one jump",
    "lines/invalid": "share of interpolations that end at the angle where they begin",
    "midpoints": "decoded midpoints between embeddings of random pairs of test images",
    "floor": "real against real: what perfect samples would reach",
    "recon": "reconstructions of the test set",
    "recon_train": "reconstructed training images: a perfect prior through this decoder",
    "recon_test": "reconstructed test images: a perfect prior through this decoder",
    "train": "training examples: what a perfect prior would reach",
    "test": "test examples themselves",
    "pca": "of as many principal components of the data",
    "latent_gan": "samples by the latent GAN",
    "gaussian": "samples by one Gaussian fitted to the embeddings",
    "gmm": "samples by a Gaussian mixture fitted to the embeddings",
    "knn_jitter": "training embeddings with a little noise: what memorised means here",
    "ratio": "the run's own prior over the floor; 1 is perfect",
    "flag/fewer_images_than_features": "images of the smallest set, too few for a covariance of "
    "full rank: the distance has a large bias, so compare it with the floor only",
    "flag/floor_images": "images of the floor, as there are no more",
    "flag/subset_size": "images of a subset, as the sets are small",
    "flag/fewer_images_than_classes": "images of a part, fewer than classes: the score is bounded",
}

# Metrics whose values begin otherwise than they are called.
_METRICS = {
    "recon": "reconstruction",
    "w2": "wasserstein",
    "sliced_w2": "sliced_wasserstein",
    "energy_p": "energy",
    "c2st_p": "c2st",
    "authenticity": "memorisation",
}
_LESS = (
    "fd", "fd_infinity", "fid", "fid_infinity", "kid", "kd", "w2", "sinkhorn", "sliced_w2",
    "energy", "c2st", "recon/mse", "recon/mse01", "latent/mean_abs_max", "latent/cov_abs_mean",
    "latent/cov_abs_max", "latent/corr_abs_mean", "lines/mean_distance", "lines/smoothness",
    "lines/smoothness_strict", "lines/invalid", "swiss_roll/distance", "swiss_roll/off",
    "swiss_roll/ks_t", "swiss_roll/ks_height",
)  # fmt: skip
_MORE = (
    "recon/psnr", "recon/ssim", "topology", "prdc", "inception_score", "is", "classes/share_min",
    "linear_probe", "kmeans", "energy_p", "c2st_p", "authenticity", "swiss_roll/trustworthiness",
    "swiss_roll/continuity", "swiss_roll/neighbours_kept", "swiss_roll/distance_correlation",
    "swiss_roll/geodesic_correlation",
)  # fmt: skip
_OF_DATA = ("floor", "train", "test", "pca", "distance_floor", "spread")


def kind(name: str) -> tuple[str, str]:
    """Returns the key of `GROUPS` that a group belongs to ('': none), and what to call the rest."""
    plain, features = _plain(name)
    found = max((key for key in GROUPS if _begins(plain, key)), key=len, default="")
    rest = [features, *plain[len(found) :].split("/")] if found else [name]
    return found, ", ".join(filter(None, rest)) or "Inception"


def metric_of(value: str) -> str:
    """Returns the metric, a file of `pmjax/evals/metrics`, that gives a value such as 'recon/mse'."""
    first = value.partition("/")[0]
    return _METRICS.get(first, first)


def direction(value: str) -> int:
    """Returns 1 if more of a value such as 'recon/psnr' is better for a model, -1 if less is.

    Raises:
      UserError: if neither is, or the value is one of the data alone.
    """
    plain, _ = _plain(value)
    if value.rpartition("/")[2] not in _OF_DATA and "/flag/" not in value:
        for sign, names in ((-1, _LESS), (1, _MORE)):
            if any(_begins(plain, name) for name in names):
                return sign
    raise UserError(
        f"Neither more nor less of '{value}' makes a model better (config.eval.best): take one "
        "such as recon/psnr, recon/mse or fd_efficientnet_lite0/recon_train."
    )


def plain(values: dict[str, float]) -> dict[str, float]:
    """Returns values without their spreads and flags."""
    return {k: v for k, v in values.items() if not k.endswith("/spread") and "/flag/" not in k}


def tables(metrics: dict[str, float]) -> list[MetricTable]:
    """Returns the report's tables of metrics {name: value}."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        group, _, rest = name.rpartition("/")
        if group.endswith("/flag"):
            group, rest = group.removesuffix("/flag"), f"flag/{rest}"
        if rest != "spread":
            groups.setdefault(group, {})[rest] = float(value)
    return [_table(group, values, metrics) for group, values in groups.items()]


def _table(group: str, values: dict[str, float], metrics: dict[str, float]) -> MetricTable:
    found, rest = kind(group)
    heading, meaning = GROUPS.get(found, ("{}", ""))
    rows = [
        MetricRow(
            name,
            value,
            metrics.get(f"{group}/{name}/spread"),
            MEANINGS.get(f"{group}/{name}", MEANINGS.get(name, "")),
            bar=name != "ratio" and not name.startswith("flag/"),
        )
        for name, value in values.items()
    ]
    title = heading.format(rest if group else "Other")
    return MetricTable(title, meaning, rows, bars=found.partition("/")[0] in BARS)


def rounded(spread: float) -> str:
    """Returns a spread with two digits."""
    return f"{spread:.2g}" if spread < 99.5 else f"{spread:.0f}"


def _plain(name):
    """Returns a name without the features that it has, and those."""
    match = re.fullmatch(r"(fd_infinity|fd|kd|prdc|is)_([^/]+)(.*)", name, re.DOTALL)
    return (match[1] + match[3], match[2]) if match else (name, "")


def _begins(name, key):
    return name == key or name.startswith(f"{key}/")
