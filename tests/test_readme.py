"""The example of this directory's README is a test that passes."""

from tests.readme_example import import_example


def test_readme_example(tmp_path, monkeypatch):
    module = import_example("tests", tmp_path, monkeypatch)
    module.test_samples_of_a_gaussian_have_the_mean_of_the_embeddings()
