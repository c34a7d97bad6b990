import numpy as np
import pytest
from PIL import Image

from pmjax.reporting import images


def test_a_grid_lays_images_row_by_row_with_white_margins():
    data = np.arange(3 * 64 * 64 * 3, dtype=np.uint32).reshape(3, 64, 64, 3).astype(np.uint8)
    sheet = images.grid(data, columns=2)
    expected = np.full((134, 134, 3), 255, np.uint8)
    expected[2:66, 2:66] = data[0]
    expected[2:66, 68:132] = data[1]
    expected[68:132, 2:66] = data[2]
    np.testing.assert_array_equal(sheet, expected)


def test_a_grid_enlarges_small_gray_images_to_squares_of_one_value():
    image = np.array([[[[10], [20]], [[30], [40]]]], np.uint8)
    sheet = images.grid(image)
    assert sheet.shape == (56 + 4, 56 + 4, 3)
    for row, column, value in [(0, 0, 10), (0, 1, 20), (1, 0, 30), (1, 1, 40)]:
        y, x = 2 + 28 * row, 2 + 28 * column
        assert (sheet[y : y + 28, x : x + 28] == value).all()


@pytest.mark.parametrize("num, rows, columns", [(1, 1, 1), (5, 2, 3), (64, 8, 8)])
def test_a_grid_is_as_square_as_it_can_be(num, rows, columns):
    sheet = images.grid(np.zeros((num, 28, 28, 1), np.uint8))
    assert sheet.shape == (58 * rows + 2, 58 * columns + 2, 3)


@pytest.mark.parametrize("bad", [np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 2), np.uint8)])
def test_a_grid_of_anything_but_pictures_is_rejected(bad):
    with pytest.raises(ValueError, match="uint8"):
        images.grid(bad)


def test_a_saved_picture_reads_back_the_same(tmp_path):
    image = images.grid(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8))
    images.save_png(tmp_path / "new" / "grid.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), image)
