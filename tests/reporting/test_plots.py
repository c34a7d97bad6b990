import re

import numpy as np
from PIL import Image

from pmjax.reporting import history, plots


def test_curves_have_a_panel_a_value_with_losses_first():
    rows = [
        {"stage": stage, "step": step, "values": {"recon": 1 / step, "loss/a": -step, "gone": None}}
        for stage in ("one", "two")
        for step in range(1, 500)
    ]
    found = history.curves(rows)
    assert list(found) == ["one", "two"]
    for values in found.values():
        svg = plots.curves(values)
        titles = re.findall(r">(recon|loss/a|gone)</text>", svg)
        assert titles == ["loss/a", "recon"]
        assert "currentColor" in svg and len(svg) < 200_000


def test_evaluations_have_curves_of_their_own_without_spreads_and_flags():
    values = {"loss/a": 1.0, "eval/fid/x": 2.0, "eval/fid/x/spread": 0.1, "eval/fid/flag/few": 3.0}
    found = history.curves([{"stage": "stage1", "step": 10, "values": values}])
    assert found == {
        "stage1": {"loss/a": [(10, 1.0)]},
        "stage1, evaluations": {"fid/x": [(10, 2.0)]},
    }


def test_pictures_of_runs_stand_in_rows_whatever_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(name, list(rng.integers(0, 255, (2, 8, 16, 3), np.uint8))) for name in ("a$b_", "c")]
    figure = plots.picture_rows(tmp_path / "x.png", "Title", "Text.", ("$one", "two"), rows)
    width, height = Image.open(figure.path).size
    assert 300 < height < width


def test_points_beyond_the_axes_are_not_drawn(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3))
    far = np.concatenate([points, [[1e3, 0, 0]]])
    box = plots.cube(points)
    pictures = []
    for i, cloud in enumerate((points, far)):
        rows = [("row", [plots.Scatter("panel", cloud, "#3f6fd8"), None])]
        figure = plots.scatter_rows(tmp_path / f"{i}.png", "Title", "Text.", rows, limits=box)
        pictures.append(figure.path.read_bytes())
    assert pictures[0] == pictures[1]
