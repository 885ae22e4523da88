"""Builds the `t0x` distribution: packages t5x, t0x, t0x.tasks, t0x.launch and the gin files."""

import os
from pathlib import Path

from setuptools import find_packages, setup

# t0x.tasks and t0x.launch live beside t0x in the source tree; gin/ holds plain data and must never
# become a package named `gin`, which would shadow gin-config for anyone standing in the checkout.
PACKAGE_DIR = {
    "t0x.tasks": "tasks",
    "t0x.tasks.mini": "tasks/mini",
    "t0x.launch": "launch",
    "t0x.gin": "gin",
}
PACKAGES = [*find_packages(include=["t0x", "t0x.*"]), *PACKAGE_DIR]
# People who have upstream T5X installed leave our drop-in out.
if not os.environ.get("T0X_WITHOUT_T5X"):
    PACKAGES += find_packages(include=["t5x", "t5x.*"])

# Beam needs protobuf below 7, which sentencepiece 0.2.3's generated code does not run on; to write
# TFRecord it needs one of three checksum packages.
CACHE = ["apache-beam>=2.60,<3", "google-crc32c>=1.5,<2", "sentencepiece>=0.2,<0.2.3"]
REPORT = ["altair>=5.5,<7", "vl-convert-python>=1.7,<2"]
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda13]"],
    "hub": ["datasets>=3,<6"],
    "pickle": ["torch"],  # Hugging Face weights that are still pickles
    "cache": CACHE,
    "plan": ["libtpu"],
    "report": REPORT,
    "test": [
        *REPORT,
        *CACHE,  # prepare as a pipeline, and SeqIO's own writer of cached tasks
        "datasets>=3,<6",  # rows are compared with what it gives
        "importlib_resources>=6",  # tensorflow_datasets imports it to read prepared builders
        "safetensors>=0.4",  # what t0x convert writes is read by the library itself
        "libtpu; sys_platform == 'linux'",  # steps compile for TPU slices without one
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.100,<7",
        "jsonschema>=4.20,<5",  # generated manifests are checked against schemas
        "kubernetes-validate>=1.29",
        "ruff>=0.9,<1",
        "import-linter>=2.17,<3",
        "pyrefly>=1.4,<2",
    ],
}

setup(
    name="t0x",
    version="0.1.0",
    description="Multitask prompted training and zero-shot evaluation of T5 models in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={
        "": ["*.pyi", "py.typed"],
        "t0x.gin": ["*.gin"],
        "t0x.report": ["*.html", "*.css", "*.js", "*.csv"],
        "t0x.tasks": ["*.csv", "vocabularies/*", "prompts/**/*.yaml"],
        "t5x": ["**/*.gin"],
    },
    install_requires=[
        # The versions below are those the numerics were compared on; the upper bounds are the next
        # releases that may rename what we use (set_mesh, nn.scan, CheckpointManager).
        "jax>=0.10,<0.12",
        "flax>=0.12,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "tensorstore>=0.1.70",
        "ml_dtypes>=0.5",
        "numpy>=2,<3",
        "seqio>=0.0.20,<0.1",
        "sentencepiece>=0.2",
        "tensorflow>=2.19,<2.22",
        "tensorflow-datasets>=4.9.8,<5",
        "array_record>=0.8,<0.9",
        "grain>=0.2.18,<0.3",
        "clu>=0.0.12,<0.1",
        "tensorboard>=2.19,<3",
        "gin-config>=0.5,<0.6",
        "lazy-loader>=0.4,<1",
        "jinja2>=3.1.6,<4",
        "pyyaml>=6,<7",
        "rich>=13.9,<16",
        "typer>=0.15,<1",
        "pypi-simple>=1.6,<2",
        "sacrebleu>=2.4,<3",
        "rouge-score>=0.1.2,<0.2",
        "scikit-learn>=1.5,<2",
        "scipy>=1.13,<2",
        "editdistance",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["t0x = t0x.cli:main"],
        "t5x.gin_search_paths": ["t0x = t0x:gin_directory"],
        "t5x.former_modules": ["promptsource.seqio_tasks = t0x.tasks.former_mixtures"],
    },
)
