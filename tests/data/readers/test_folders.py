import pytest

from sa2va_trl.data.readers.folders import resolve_inside
from sa2va_trl.errors import DatasetError


class TestResolveInside:
    def test_inside(self, tmp_path):
        assert resolve_inside(tmp_path, "a/../b/c.png") == tmp_path.resolve() / "b" / "c.png"

    def test_root_may_be_a_link(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert resolve_inside(tmp_path / "link", "a.png") == (tmp_path / "real" / "a.png").resolve()

    @pytest.mark.parametrize("relative", ["../a.png", "a/../../b.png", "/etc/passwd", "\\\\host\\a.png", "a\0b"])
    def test_outside(self, tmp_path, relative):
        with pytest.raises(DatasetError, match="path .* (leaves the dataset folder|is absolute|cannot be resolved)"):
            resolve_inside(tmp_path, relative)

    def test_neighbour_with_the_same_prefix(self, tmp_path):
        (tmp_path / "data").mkdir()
        with pytest.raises(DatasetError, match="leaves"):
            resolve_inside(tmp_path / "data", "../data2/a.png")

    def test_symbolic_link_out(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "secret.png").write_bytes(b"x")
        (tmp_path / "data" / "a.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(DatasetError, match="leaves the dataset folder"):
            resolve_inside(tmp_path / "data", "a.png")
