import fcntl
import html.parser
import io
import json
import os
import re
import struct
import termios
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import figures
from pmjax.reporting import report

HOSTILE = """"'><script>alert(1)</script><img src=x onerror=alert(1)><!-- $\\frac{ {title} -->"""


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal:
    """A real pseudo-terminal of a given width."""

    def __init__(self, columns):
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")

    def _read(self):
        try:
            return os.read(self._master, 1 << 16)
        except OSError:  # Linux's word for the end of what a closed terminal held
            return b""

    def rows(self):
        """Returns all that was written by line: what carriage returns left, and what was drawn."""
        self.stream.close()
        text = b""
        while part := self._read():
            text += part
        text = text.decode().replace("\r\n", "\n")
        drawn, shown = [], []
        for line in text.split("\n"):
            cells = ""
            for part in line.split("\r"):
                drawn.append(part)
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown, drawn


# history.jsonl and events


def write_rows(workdir, stages):
    writer = report.Report(workdir, stream=io.StringIO())
    for stage, steps in stages.items():
        for step in steps:
            writer.scalars(stage, step, {"loss/a": np.float32(step)})
    writer.close()


def steps_of(workdir, stage):
    return [row["step"] for row in report.history(workdir) if row["stage"] == stage]


def test_each_row_is_on_disk_before_the_next_step(tmp_path):
    writer = report.Report(tmp_path, stream=io.StringIO())
    writer.scalars("stage1", 5, {"recon": np.float32(0.5)})
    line = (tmp_path / "history.jsonl").read_text()
    writer.close()
    assert json.loads(line) == {"stage": "stage1", "step": 5, "values": {"recon": 0.5}}


def test_resuming_drops_only_what_the_stage_wrote_beyond_its_checkpoint(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20, 30], "stage2": [10, 20, 30]})
    writer = report.Report(tmp_path, stream=io.StringIO())
    writer.resume("stage2", 20)
    writer.scalars("stage2", 25, {"loss/a": 1.0})
    writer.close()
    assert steps_of(tmp_path, "stage1") == [10, 20, 30]
    assert steps_of(tmp_path, "stage2") == [10, 20, 25]


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_dropped_and_the_next_row_starts_a_new_one(tmp_path, cut):
    write_rows(tmp_path, {"stage1": [10, 20]})
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    write_rows(tmp_path, {"stage1": [30]})
    assert steps_of(tmp_path, "stage1") == ([10, 20, 30] if cut == 1 else [10, 30])
    assert len(path.read_text().splitlines()) == len(report.history(tmp_path))


def test_values_that_are_not_finite_are_null_in_the_history(tmp_path):
    writer = report.Report(tmp_path, stream=io.StringIO())
    writer.scalars("stage1", 1, {"a": float("nan"), "b": float("inf")})
    writer.close()
    assert report.history(tmp_path)[0]["values"] == {"a": None, "b": None}


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workdir .*file/run.*--workdir"):
        report.Report(tmp_path / "file" / "run")


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """Reads TensorBoard's record format: length, its checksum, an Event, its checksum."""
    stream = io.BytesIO(path.read_bytes())
    while head := stream.read(8):
        (length,) = struct.unpack("<Q", head)
        assert struct.unpack("<I", stream.read(4))[0] == masked_crc(head)
        data = stream.read(length)
        assert struct.unpack("<I", stream.read(4))[0] == masked_crc(data)
        yield Event.FromString(data)


def test_events_hold_what_was_logged(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20], "stage2": [5]})
    found = {}
    for stage in ("stage1", "stage2"):
        (path,) = (tmp_path / "events" / stage).iterdir()
        found[stage] = [
            (event.step, value.tag, value.simple_value)
            for event in read_events(path)
            for value in event.summary.value
        ]
    assert found["stage1"] == [(10, "loss/a", 10.0), (20, "loss/a", 20.0)]
    assert found["stage2"] == [(5, "loss/a", 5.0)]


def test_events_of_a_resumed_run_overrule_the_older_ones_from_the_next_step_on(tmp_path):
    write_rows(tmp_path, {"stage1": [10, 20, 30]})
    writer = report.Report(tmp_path, stream=io.StringIO())
    writer.resume("stage1", 20)
    writer.scalars("stage1", 30, {"loss/a": -1.0})
    writer.close()
    older, newer = sorted((tmp_path / "events" / "stage1").iterdir(), key=lambda path: path.suffix)
    starts = [e.step for e in read_events(newer) if e.session_log.status == SessionLog.START]
    assert starts == [21]
    assert [e.step for e in read_events(older) if e.summary.value] == [10, 20, 30]


# The status line


def test_a_status_line_says_stage_steps_rate_eta_and_losses(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = report.Report(tmp_path, stream=stream, clock=clock)
    writer.status("stage1", 100, 1000, {"loss/critic": 0.25})
    clock.now += 20
    writer.status("stage1", 300, 1000, {"loss/critic": 0.125, "recon": 0.0123456})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "stage1  100/1000  10%  critic 0.25",
        "stage1  300/1000  30%  10 steps/s  ETA 1m10s  critic 0.125  recon 0.01235",
    ]


def test_plain_lines_come_at_most_every_ten_seconds(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = report.Report(tmp_path, stream=stream, clock=clock)
    for step in range(100):
        clock.now = 100.0 + step
        writer.status("stage1", step + 1, 100, {})
    writer.close()
    assert [int(n) for n in re.findall(r"(\d+)/100", stream.getvalue())] == list(range(1, 101, 10))


def test_the_rate_is_that_of_the_last_thirty_seconds(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = report.Report(tmp_path, stream=stream, clock=clock)
    step = 0
    for steps_per_second in [1] * 60 + [7] * 40:
        writer.status("stage1", step, 10**6, {})
        clock.now += 1
        step += steps_per_second
    writer.status("stage1", step, 10**6, {})
    assert stream.getvalue().splitlines()[-1].split("  ")[3] == "7 steps/s"


def test_the_rate_of_a_stage_starts_with_it(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = report.Report(tmp_path, stream=stream, clock=clock)
    for stage, step in [("stage1", 1000), ("stage2", 10), ("stage2", 30)]:
        writer.status(stage, step, 1000, {})
        clock.now += 10
    assert "  2 steps/s  ETA 8m05s" in stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize("columns", [6, 8, 30, 60, 80])
def test_a_live_line_is_narrower_than_the_terminal_and_cuts_no_number(tmp_path, columns):
    terminal, clock = Terminal(columns), Clock()
    writer = report.Report(tmp_path, stream=terminal.stream, clock=clock)
    losses = {f"loss/number{i}": 0.123456 for i in range(9)}
    for step in (100, 200, 300):
        writer.status("stage1", step, 1000, losses)
        clock.now += 1
    writer.close()
    shown, drawn = terminal.rows()
    assert max(map(len, drawn)) < columns
    assert shown[0].startswith("stage1"[: columns - 1]) and shown[1:] == [""]
    assert all(word == "0.1235" for word in re.findall(r"number\d (\S+)", shown[0]))


def test_a_live_line_is_drawn_over_the_one_before(tmp_path):
    terminal, clock = Terminal(80), Clock()
    writer = report.Report(tmp_path, stream=terminal.stream, clock=clock)
    writer.status("stage1", 1, 9, {"loss/long_name": 0.123})
    clock.now += 1
    writer.status("stage1", 2, 9, {})
    writer.close()
    assert terminal.rows()[0] == ["stage1  2/9  22%  1 steps/s  ETA 7s", ""]


def test_a_terminal_is_not_flooded_but_shows_the_last_step(tmp_path):
    terminal = Terminal(80)
    writer = report.Report(tmp_path, stream=terminal.stream, clock=Clock())
    for step in range(1, 10):
        writer.status("stage1", step, 9, {})
    writer.close()
    assert re.findall(r"(\d)/9", " ".join(terminal.rows()[1])) == ["1", "9"]


def test_a_message_does_not_tear_the_status_line(tmp_path):
    terminal = Terminal(80)
    writer = report.Report(tmp_path, stream=terminal.stream)
    writer.status("stage1", 1, 9, {"loss/a": 1.0})
    writer.say("saved\nand well")
    writer.close()
    assert terminal.rows()[0] == ["saved", "and well", "stage1  1/9  11%  a 1", ""]


def test_closing_twice_is_the_same_as_once(tmp_path):
    stream = io.StringIO()
    writer = report.Report(tmp_path, stream=stream)
    writer.scalars("stage1", 1, {"a": 1.0})
    writer.close()
    writer.close()
    assert stream.getvalue() == ""


# Grids


def test_a_grid_lays_images_row_by_row_with_white_margins():
    images = np.arange(3 * 64 * 64 * 3, dtype=np.uint32).reshape(3, 64, 64, 3).astype(np.uint8)
    sheet = report.grid(images, columns=2)
    expected = np.full((134, 134, 3), 255, np.uint8)
    expected[2:66, 2:66] = images[0]
    expected[2:66, 68:132] = images[1]
    expected[68:132, 2:66] = images[2]
    np.testing.assert_array_equal(sheet, expected)


def test_a_grid_enlarges_small_grey_images_to_squares_of_one_value():
    image = np.array([[[[10], [20]], [[30], [40]]]], np.uint8)
    sheet = report.grid(image)
    assert sheet.shape == (56 + 4, 56 + 4, 3)
    for row, column, value in [(0, 0, 10), (0, 1, 20), (1, 0, 30), (1, 1, 40)]:
        y, x = 2 + 28 * row, 2 + 28 * column
        assert (sheet[y : y + 28, x : x + 28] == value).all()


@pytest.mark.parametrize("num, rows, columns", [(1, 1, 1), (5, 2, 3), (64, 8, 8)])
def test_a_grid_is_as_square_as_it_can_be(num, rows, columns):
    sheet = report.grid(np.zeros((num, 28, 28, 1), np.uint8))
    assert sheet.shape == (58 * rows + 2, 58 * columns + 2, 3)


@pytest.mark.parametrize("bad", [np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 2), np.uint8)])
def test_a_grid_of_anything_but_pictures_is_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        report.grid(bad)


def test_a_saved_picture_reads_back_the_same(tmp_path):
    image = report.grid(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8))
    report.save_png(tmp_path / "new" / "grid.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), image)


# report.html


class Page(html.parser.HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def page_with(tmp_path, text):
    row = {"stage": text, "step": 1, "values": {text: 1.0, "b": None}}
    (tmp_path / "history.jsonl").write_text(json.dumps(row) + "\n")
    report.save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    return Page(
        report.write_html(
            tmp_path,
            title=text,
            config={text: {"inner": text}, "method": text, "folder": tmp_path},
            metrics={text: 1.5, f"fd_{text}/{text}": 2.5, "recon/mse": 0.25},
            figures=[report.Figure(text, text, tmp_path / "a.png")],
        )
    )


def test_hostile_names_are_shown_and_not_run(tmp_path):
    page = page_with(tmp_path, HOSTILE)
    assert not page.tags & {"script", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {value for name, value in page.attributes if name == "alt"} == {HOSTILE}
    shown = [text for text in page.text if "alert(1)" in text]
    assert len(shown) >= 9  # title, heading, summary, metrics, figure, stage, curve, config


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = page_with(tmp_path, "plain")
    assert "://" not in page.source and "@import" not in page.source
    assert all(
        value.startswith("data:image/png;base64,") for n, value in page.attributes if n == "src"
    )
    assert all(value.startswith("#") for n, value in page.attributes if n.endswith("href"))
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    policy = [value for name, value in page.attributes if name == "content"][0]
    assert policy.startswith("default-src 'none'")


def test_the_page_shows_metrics_with_their_meaning_and_unknown_ones_too(tmp_path):
    page = report.write_html(
        tmp_path,
        title="t",
        config={},
        metrics={"fd_x/floor": 12.25, "fd_x/gmm": 50.0, "w2/ratio": 1.25, "new/thing": 7.0, "b": 3},
        figures=[],
    )
    text = " ".join(Page(page).text)
    for part in ("Fréchet distance (x)", "12.25", "real against real", "thing", "1.25", "7", "3"):
        assert part in text


def test_the_longest_bar_is_the_largest_distance(tmp_path):
    metrics = {"w2/floor": 0.1, "w2/gmm": 0.4, "w2/ratio": 4.0}
    path = report.write_html(tmp_path, title="t", config={}, metrics=metrics, figures=[])
    styles = [value for name, value in Page(path).attributes if name == "style"]
    assert styles == ["width:25.0%", "width:100.0%", "width:0.0%"]


def test_the_page_of_an_empty_run_can_be_written(tmp_path):
    path = report.write_html(tmp_path, title="none", config={}, metrics={}, figures=[])
    assert path == tmp_path / "report.html" and "none" in path.read_text()


def test_curves_have_a_panel_a_value_with_losses_first():
    rows = [
        {"stage": stage, "step": step, "values": {"recon": 1 / step, "loss/a": -step, "gone": None}}
        for stage in ("one", "two")
        for step in range(1, 500)
    ]
    found = figures.curves(rows)
    assert [stage for stage, _ in found] == ["one", "two"]
    for _, svg in found:
        titles = re.findall(r">(recon|loss/a|gone)</text>", svg)
        assert titles == ["loss/a", "recon"]
        assert "currentColor" in svg and len(svg) < 200_000


# figures.draw on models whose pictures are known


class Mirror:
    """An autoencoder that is perfect: its latent is the example; each prior gives one value."""

    def __init__(self, shape, base=None):
        self.shape, self.base = shape, base

    def interpolate(self, a, b, steps):
        share = np.linspace(0, 1, steps).reshape(1, steps, *[1] * len(self.shape))
        return ((1 - share) * to_float(a)[:, None] + share * to_float(b)[:, None]).astype("f")

    def sample_latent(self, num, *, seed=0, prior=None):
        return np.random.default_rng(seed).normal(size=(num, 2 if self.base else 5)).astype("f")

    def sample_base(self, num, *, seed=0):
        return self.base and np.random.default_rng(seed).normal(size=(num, self.base))


def context(data, labels, model, priors):
    dim = 2 if model.base else 5
    return SimpleNamespace(
        model=model,
        test=SimpleNamespace(data=data, labels=labels),
        priors=priors,
        seed=0,
        samples=lambda prior: data[::-1],
        reconstructions=lambda split, rows: np.asarray(to_float(data[rows])),
        embeddings=lambda split: np.random.default_rng(1).normal(size=(len(data), dim)).astype("f"),
    )


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def image_figures(request, tmp_path_factory):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (70, 28, 28, request.param)).astype(np.uint8)
    ctx = context(data, np.arange(70) % 10, Mirror(data.shape[1:]), ("latent_gan", "gmm"))
    drawn = figures.draw(ctx, tmp_path_factory.mktemp("images"))
    return data, {figure.path.stem: np.asarray(Image.open(figure.path)) for figure in drawn}


def test_images_get_all_their_figures(image_figures):
    assert list(image_figures[1]) == [
        "samples_latent_gan", "samples_gmm", "reconstructions", "interpolations", "latents",
        "moments",
    ]  # fmt: skip


def test_samples_are_the_first_64_that_were_measured(image_figures):
    data, drawn = image_figures
    np.testing.assert_array_equal(drawn["samples_gmm"], report.grid(data[::-1][:64]))


def test_reconstructions_stand_below_their_originals(image_figures):
    sheet = image_figures[1]["reconstructions"]
    assert sheet.shape == (4 * (112 + 2) + 2, 8 * 58 + 2, 3)
    for row in range(4):
        y = 2 + 114 * row
        np.testing.assert_array_equal(sheet[y : y + 56], sheet[y + 56 : y + 112])


def test_interpolations_are_rows_of_nine_from_one_test_image_to_another(image_figures):
    data, drawn = image_figures
    sheet = drawn["interpolations"]
    assert sheet.shape == (8 * 58 + 2, 9 * 58 + 2, 3)
    known = {np.broadcast_to(image, (28, 28, 3)).tobytes() for image in data}
    cells = [[sheet[2 + 58 * r :, 2 + 58 * c :][:56:2, :56:2] for c in range(9)] for r in range(8)]
    for row in cells:
        assert [cell.tobytes() in known for cell in row] == [True] + [False] * 7 + [True]


def test_few_unlabelled_images_are_enough(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    drawn = figures.draw(context(data, None, Mirror((8, 8, 1)), ("gaussian",)), tmp_path)
    assert len(drawn) == 5 and all(figure.path.stat().st_size for figure in drawn)


@pytest.mark.parametrize("dim", [1, 6])
def test_the_moments_of_each_coordinate_are_drawn(dim, tmp_path, monkeypatch):
    z = np.random.default_rng(0).normal(3, 2, (400, dim)).astype("f")
    z[:, -1] = 0.5  # a coordinate that says nothing is uncorrelated with all others
    canvases = []
    monkeypatch.setattr(figures, "_png", lambda canvas, *args: canvases.append(canvas))
    figures._moments(SimpleNamespace(embeddings=lambda split: {"train": z}[split]), tmp_path)
    mean, variance, correlations = canvases[0].axes[:3]
    np.testing.assert_allclose(mean.lines[-1].get_ydata(), z.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.lines[-1].get_ydata(), z.var(0), rtol=1e-5)
    expected = np.zeros((dim, dim))
    if dim > 1:
        expected[:-1, :-1] = np.corrcoef(z[:, :-1].T)
    np.testing.assert_allclose(correlations.images[0].get_array(), expected, atol=1e-2)


@pytest.fixture
def point_panels(monkeypatch, tmp_path):
    """Returns a function that draws points and gives each figure's panels (name, shape)."""

    def draw(base, dim=3):
        rng = np.random.default_rng(0)
        points, t = rng.uniform(-1, 1, (50, dim)).astype("f"), rng.uniform(5, 14, 50).astype("f")
        panels, scatters = {}, figures._scatters

        def spy(given, path, *args, **kwargs):
            panels[path.stem] = [(name, x.shape, len(colour)) for name, x, colour in given]
            return scatters(given, path, *args, **kwargs)

        monkeypatch.setattr(figures, "_scatters", spy)
        ctx = context(points, t, Mirror((dim,), base), ("latent_gan", "gmm"))
        for figure in figures.draw(ctx, tmp_path):
            width, height = Image.open(figure.path).size
            assert width > 2.5 * height
        return panels

    return draw


def test_points_get_the_manifolds_of_figure_4_and_the_latents_of_figure_5(point_panels):
    assert point_panels(base=2) == {
        "manifolds": [(n, (50, 3), 50) for n in ("input", "reconstruction", "generation")],
        "manifolds_other_priors": [("gmm", (50, 3), 50)],
        "latents": [(n, (50, 2), 50) for n in ("embedding", "base prior", "generated latent")],
    }


def test_a_prior_without_a_base_has_two_panels_of_latents(point_panels):
    assert [panel[0] for panel in point_panels(base=None)["latents"]] == [
        "embedding",
        "generated latent",
    ]


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_points_of_other_dimensions_are_shown_in_a_plane(point_panels, dim):
    assert {shape for _, shape, _ in point_panels(base=2, dim=dim)["manifolds"]} == {(50, 2)}


def test_figures_are_the_same_for_the_same_run(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    ctx = context(data, np.arange(20) % 3, Mirror((8, 8, 3)), ("gmm",))
    first, second = (
        [figure.path.read_bytes() for figure in figures.draw(ctx, tmp_path / name)] for name in "ab"
    )
    assert first == second
