"""The notebooks: clean as they lie, and executed end to end by a kernel with small settings."""

import io
import json
import signal
import subprocess
import sys
import time
import zipfile

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.small_run import ROOT

NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))


def execute(name, workdir, **parameters):
    """Runs a notebook with other parameters from an empty directory; returns it with outputs."""
    notebook = nbformat.read(ROOT / "launch" / "colab" / name, as_version=4)
    (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    parameters |= {"SOURCE": str(ROOT), "WORKDIR": str(workdir / "run")}
    text = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(text))
    return NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": workdir}}
    ).execute()


def tags(cell):
    return cell.metadata.get("tags", ())


def pictures(notebook, cell_id):
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_clean_and_take_parameters(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (parameters,) = (cell for cell in code if "parameters" in tags(cell))
    assert 'VARIANT = ""' in parameters.source
    assert json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False) + "\n" == (
        path.read_text()
    )


@pytest.mark.slow
def test_quickstart_trains_samples_and_interpolates(tmp_path):
    done = execute(
        "quickstart.ipynb",
        tmp_path,
        VARIANT=":runlocal",
        OPTIONS=["--config.eval.metrics=reconstruction", "--config.eval.baselines="],
    )
    shown = {name: len(pictures(done, name)) for name in ("sample", "reconstruct", "interpolate")}
    assert shown == {"sample": 1, "reconstruct": 1, "interpolate": 1}
    assert len(pictures(done, "look")) >= 3
    assert (tmp_path / "run" / "report.html").is_file()


def celeba(directory, *, train, validation, test):
    """Makes a small archive in CelebA's official layout."""
    rng = np.random.default_rng(0)
    splits = [0] * train + [1] * validation + [2] * test
    names = [f"{i + 1:06d}.jpg" for i in range(len(splits))]
    with zipfile.ZipFile(directory / "img_align_celeba.zip", "w") as archive:
        for name in names:
            coarse = rng.integers(0, 256, (11, 9, 3), dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(coarse).resize((178, 218)).save(content, format="JPEG")
            archive.writestr(f"img_align_celeba/{name}", content.getvalue())
    lines = (f"{name} {split}\n" for name, split in zip(names, splits, strict=True))
    (directory / "list_eval_partition.txt").write_text("".join(lines))


@pytest.mark.slow
def test_celeba_stopped_in_stage_1_resumes_to_the_end_on_archives_in_the_official_layout(tmp_path):
    celeba(tmp_path, train=48, validation=8, test=16)
    options = [
        "--config.data.verify=false",
        "--config.steps=6",
        "--config.log_every=1",
        "--config.stage2.steps=40",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.eval.metrics=reconstruction",
        "--config.eval.baselines=",
    ]
    command = [
        *(sys.executable, "-m", "pmjax.main", "--config=configs/celeba.py:runlocal", *options),
        *(f"--config.data.manual_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"),
    ]
    history = tmp_path / "run" / "history.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not (history.is_file() and history.read_text()):
            time.sleep(0.01)
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate()
    assert first.returncode == 0 and "To resume, run the same command" in said
    done = execute(
        "celeba.ipynb", tmp_path, VARIANT=":runlocal", MANUAL_DIR=str(tmp_path), OPTIONS=options
    )
    rows = [json.loads(row) for row in history.read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "stage1"] == [1, 2, 3, 4, 5, 6]
    assert len(pictures(done, "interpolate")) == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert np.isfinite(metrics["recon/mse"])


@pytest.mark.slow
def test_celeba_says_which_archive_is_missing(tmp_path):
    (tmp_path / "img_align_celeba.zip").touch()
    with pytest.raises(Exception, match="has no list_eval_partition.txt"):
        execute("celeba.ipynb", tmp_path, MANUAL_DIR=str(tmp_path))
