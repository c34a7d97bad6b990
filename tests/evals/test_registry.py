"""Names of metrics, what they declare, and additions to the room."""

import itertools
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from pmjax import plugins
from pmjax.datasets.base import Dataset
from pmjax.errors import UserError
from pmjax.evals import image_sets, registry, runner, tables
from pmjax.evals.context import Context
from tests.readme_example import import_example

ON_FEATURES = ("fd", "fd_infinity", "is", "kd", "prdc")


def images(num, seed, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def two_sets():
    data = (Dataset(images(120, seed), None, "", ()) for seed in (1, 2))
    return Context.from_images(images(120, 0), next(data), more=next(data))


def test_published_names_and_metric_extractor_are_one_file_on_an_extractor():
    assert registry.find("fid").file == "fd" and registry.find("fid").extractor == "inception_2015"
    assert registry.find("memorisation").file == "memorization"
    for file, extractor in itertools.product(ON_FEATURES, ("efficientnet_lite0", "inception_2015")):
        found = registry.find(f"{file}_{extractor}")
        assert (found.file, found.extractor) == (file, extractor)
        assert f"{file}_{extractor}" in registry.names()
    with pytest.raises(UserError, match="Did you mean 'kd_efficientnet_lite0'"):
        registry.find("kd_efficientnet_lite")
    with pytest.raises(UserError, match="Unknown metric 'latent_inception_2015'"):
        registry.find("latent_inception_2015")


def test_an_extractor_is_also_an_argument_and_then_part_of_the_name():
    args = {
        "kd": {"extractor": "inception_2015", "subsets": 3},
        "kd_inception_2015": {"subset_size": 5},
        "prdc": {"extractor": "efficientnet_lite0"},
        "kid": {"subsets": 4},
    }
    assert registry.canonical(["kd", "fd", "prdc", "kid"], args) == (
        ("kd_inception_2015", "fd_efficientnet_lite0", "prdc_efficientnet_lite0", "kid"),
        {
            "kd_inception_2015": {"subsets": 3, "subset_size": 5},
            "prdc_efficientnet_lite0": {},
            "kid": {"subsets": 4},
        },
    )
    assert registry.canonical(["prdc", "prdc_inception_2015"], {})[0] == (
        "prdc", "prdc_inception_2015",
    )  # fmt: skip
    assert registry.extractor_of("kd", args["kd"]) == "inception_2015"
    with pytest.raises(UserError, match=r"extractor \(--config.eval.args.kd.extractor\) 'vgg'"):
        registry.checked("kd", {"extractor": "vgg"})
    for name in ("kid", "kd_efficientnet_lite0"):  # whose names have one
        with pytest.raises(UserError, match="has no argument"):
            registry.checked(name, {"extractor": "inception_2015"})


def test_arguments_of_the_extractor_are_arguments_of_the_metric():
    given = {"resolution": 64, "precision": "bfloat16", "subsets": 3}
    assert registry.checked("kd", given) == given
    assert registry.checked("kid", {"variant": "clean_fid"}) == {"variant": "clean_fid"}
    with pytest.raises(UserError, match="Metric 'kid' has no argument 'resolution'"):
        registry.checked("kid", {"resolution": 64})
    with pytest.raises(UserError, match="Unknown precision 'float16'"):
        registry.validate(["kd"], {"kd": {"precision": "float16"}}, {})


@pytest.mark.parametrize("file", plugins.names("metrics"))
def test_every_metric_declares_its_tables(file):
    declared = registry.find(file).declaration
    for table in declared.tables:
        assert table.title and table.meaning.endswith("."), table.prefix
        assert table.better or table.values or table.prefix == "memorization"
        for name, value in table.values.items():
            assert value.meaning, name
        assert registry.metric_of(f"{table.prefix}/x") in (file, table.prefix.partition("/")[0])
        assert registry.table_of(table.prefix)[0] is table


@pytest.mark.parametrize(
    ("value", "metric", "direction"),
    [
        ("recon/mse", "reconstruction", -1),
        ("recon/psnr", "reconstruction", 1),
        ("latent/var_min", "latent", 0),
        ("latent/cov_abs_max", "latent", -1),
        ("fid/50k_train/pytorch_fid/own", "fid", -1),
        ("fid/50k_train/pytorch_fid/floor", "fid", 0),
        ("fid/50k_train/pytorch_fid/own/spread", "fid", 0),
        ("fd_efficientnet_lite0/100_test/recon_train", "fd_efficientnet_lite0", -1),
        ("fd_infinity_inception_2015/own", "fd_infinity_inception_2015", -1),
        ("kid/own", "kid", -1),
        ("kid/flag/subset_size", "kid", 0),
        ("prdc/recall/own", "prdc", 1),
        ("prdc_efficientnet_lite0/density/own", "prdc_efficientnet_lite0", 1),
        ("inception_score/own", "inception_score", 1),
        ("memorisation/data/own", "memorization", 0),
        ("authenticity/features/own", "memorization", 1),
        ("w2/ratio", "wasserstein", -1),
        ("w2/floor", "wasserstein", 0),
        ("sliced_w2/own", "sliced_wasserstein", -1),
        ("energy/train", "energy", 0),
        ("energy_p/own", "energy", 1),
        ("c2st/own", "c2st", -1),
        ("linear_probe/accuracy", "linear_probe", 1),
        ("linear_probe/pca", "linear_probe", 0),
        ("classes/share_min", "classes", 1),
        ("classes/accuracy", "classes", 0),
        ("lines/distance_floor", "lines", 0),
        ("lines/invalid", "lines", -1),
        ("swiss_roll/off/own", "swiss_roll", -1),
        ("swiss_roll/continuity", "swiss_roll", 1),
        ("topology/neighbours_kept", "topology", 1),
        ("unheard/of", "unheard", 0),
    ],
)
def test_values_have_a_metric_and_a_direction(value, metric, direction):
    assert registry.metric_of(value) == metric
    if direction:
        assert registry.direction(value) == direction
    else:
        with pytest.raises(UserError, match="makes a model better"):
            registry.direction(value)


def test_the_best_value_may_come_from_any_name_of_its_metric():
    settings = {
        "metrics": (),
        "every": 1,
        "stage2_every": 0,
        "stage2_during": (),
        "stage2_best": "",
    }
    settings |= {"during": ("fd",), "best": "fd_inception_2015/own"}
    args = {"fd": {"extractor": "inception_2015"}}
    registry.check_settings(ConfigDict(settings | {"args": args}))
    with pytest.raises(UserError, match="of the metric 'fd_inception_2015': name it in"):
        registry.check_settings(ConfigDict(settings | {"args": {}}))
    with pytest.raises(UserError, match="values of 'fd' begin with 'fd_inception_2015/'"):
        registry.check_settings(ConfigDict(settings | {"best": "fd/own", "args": args}))
    settings |= {"during": ("memorisation",), "best": "authenticity/data/own"}
    registry.check_settings(ConfigDict(settings | {"args": {}}))


def test_an_earlier_spelling_keeps_its_keys(monkeypatch):
    values = {"memorization/data/own": 1.0, "authenticity/data/own": 0.5}
    module = plugins.load("metrics", "memorization")
    monkeypatch.setattr(module, "evaluate", lambda ctx: values)
    assert runner.run(["memorization"], two_sets()) == values
    assert runner.run(["memorisation"], two_sets()) == {
        "memorisation/data/own": 1.0, "authenticity/data/own": 0.5
    }  # fmt: skip
    new, old = (
        tables.tables({f"{name}/data/own": 1.0}) for name in ("memorization", "memorisation")
    )
    assert new == old and new[0].title == "Memorization, data"


def test_tables_have_the_declared_meanings():
    values = {
        "recon/mse": 0.5, "fid/10k_test/pytorch_fid/own": 2.0,
        "fid/10k_test/pytorch_fid/own/spread": 0.1, "fid/10k_test/pytorch_fid/floor": 1.0,
        "fid/10k_test/pytorch_fid/flag/floor_images": 9.0, "prdc/recall/own": 0.5,
        "w2/own": 2.0, "w2/ratio": 2.0, "gone/away": 1.0, "alone": 2.0,
    }  # fmt: skip
    made = tables.tables(values)
    assert [(table.title, table.bars, [row.name for row in table.rows]) for table in made] == [
        ("Reconstruction", False, ["mse"]),
        (
            "Fréchet Inception Distance (10k_test, pytorch_fid)",
            True,
            ["own", "floor", "flag/floor_images"],
        ),
        ("Recall (inception_2015)", True, ["own"]),
        ("2-Wasserstein distance", True, ["own", "ratio"]),
        ("gone", False, ["away"]),
        ("Other", False, ["alone"]),
    ]
    fid, w2 = made[1].rows, made[3].rows
    assert made[0].rows[0].note.startswith("mean squared error")
    assert (fid[0].value, fid[0].spread) == (2.0, 0.1) and "real against real" in fid[1].note
    assert "fewer than the samples" in fid[2].note
    assert [row.bar for row in (*fid, *w2)] == [True, True, False, True, False]


def test_readme_example_of_a_metric(tmp_path, monkeypatch, caplog):
    import_example("pmjax.evals.metrics", tmp_path, monkeypatch)
    values = runner.run(["diversity"], two_sets(), {"diversity": {"num": 50}})
    assert set(values) == {"diversity/samples", "diversity/test"}
    assert values["diversity/samples"] == pytest.approx(values["diversity/test"], rel=0.05)
    assert registry.direction("diversity/own") == 1 and "diversity" in registry.names()
    (table,) = tables.tables(values)
    assert table.title == "Diversity" and "mode collapse" in table.meaning


def test_readme_example_of_an_extractor_serves_all_metrics_on_features(tmp_path, monkeypatch):
    module = import_example("pmjax.evals.features", tmp_path, monkeypatch)
    metrics = [f"{file}_thumbnails" for file in ON_FEATURES if file != "is"]
    args = {"kd_thumbnails": {"subset_size": 40}, "fd": {"extractor": "thumbnails"}}
    ctx = two_sets()
    values = runner.run([*metrics, "fd"], ctx, args)
    assert {key.partition("/")[0] for key in values} == set(metrics)
    assert values["fd_thumbnails/samples"] < 3 * values["fd_thumbnails/floor"]
    assert ctx.used["thumbnails"] == {"scale": "1.0"}
    scaled = runner.run(["fd_thumbnails"], ctx, {"fd_thumbnails": {"scale": 2}})
    assert scaled["fd_thumbnails/floor"] == pytest.approx(4 * values["fd_thumbnails/floor"])
    assert registry.direction("prdc_thumbnails/recall/samples") == 1
    with pytest.raises(UserError, match="'is_thumbnails' needs scores of classes"):
        runner.run(["is_thumbnails"], ctx)
    monkeypatch.setattr(module, "CLASSES", 16)
    logits = types.SimpleNamespace(logits=lambda features, **_: features / 20)
    monkeypatch.setattr(module, "logits", logits.logits, raising=False)
    found = runner.run(["is_thumbnails"], two_sets(), {"is_thumbnails": {"splits": 2}})
    assert 1 < found["is_thumbnails/samples"] < 16


def test_statistics_of_a_new_extractor_have_its_metric(tmp_path, monkeypatch):
    import_example("pmjax.evals.features", tmp_path, monkeypatch)
    np.savez(tmp_path / "s.npz", mu=np.zeros(16), sigma=np.eye(16))
    assert image_sets.metric_for(tmp_path / "s.npz") == "fd_thumbnails"
