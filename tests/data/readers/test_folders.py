import numpy as np
import pytest
from annotated_folders import entry, write_image, write_json, write_mask, write_metadata, write_pairs

from sa2va_trl.data.loading import find_sources
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.readers.folders import named_path, resolve_inside, walk
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


class TestNamesThroughLinks:
    """Folders are called what their user calls them, wherever a link leads."""

    def test_a_path_that_is_named(self, tmp_path):
        write_image(tmp_path / "data" / "store" / "0815" / "a.png")
        (tmp_path / "data" / "P1").symlink_to(tmp_path / "data" / "store" / "0815")
        (tmp_path / "link").symlink_to(tmp_path / "data")
        assert named_path(tmp_path / "link", "P1/a.png") == tmp_path / "link" / "P1" / "a.png"
        # (`..` behind a link leads to where the link leads.)
        assert named_path(tmp_path / "link", "P1/../0815/a.png") == tmp_path / "data" / "store" / "0815" / "a.png"
        for name in ("P1/../../../secret.png", "../secret.png"):
            with pytest.raises(DatasetError, match="leaves the dataset folder"):
                named_path(tmp_path / "link", name)
        (tmp_path / "data" / "out").symlink_to(tmp_path)
        with pytest.raises(DatasetError, match="leaves the dataset folder.*it is a link to"):
            named_path(tmp_path / "link", "out/secret.png")

    @staticmethod
    def pairs(place):
        write_pairs(place, "P1/a", "P2/a")
        return ["P1/a.png", "P2/a.png"]

    @staticmethod
    def json(place):
        write_json(place, entry("P1/a.png"), entry("P2/a.png"))
        return ["images/P1/a.png", "images/P2/a.png"]

    @staticmethod
    def metadata(place):
        write_pairs(place, "P1/a", "P2/a", names=("images", "masks"))
        write_metadata(place / "images", {"file_name": "P1/a.png"}, {"file_name": "P2/a.png"})
        return ["images/P1/a.png", "images/P2/a.png"]

    @staticmethod
    def clips(place):
        for name in ("P1", "P2"):
            for kind, value in (("images", 90), ("masks", 255)):
                (place / kind / name).mkdir(parents=True)
                np.save(place / kind / name / "a.npy", np.full((2, 8, 12), value, dtype=np.uint8))
        return [f"{name}/a_f0000{frame}.png" for name in ("P1", "P2") for frame in (0, 1)]

    @pytest.mark.parametrize("write", ["pairs", "json", "metadata", "clips"])
    def test_a_source_that_is_a_link_or_has_links_in_it(self, tmp_path, write):
        expected = getattr(self, write)(tmp_path / "data")
        # Patients' folders lie elsewhere, under other names.
        inside = tmp_path / "data" / "share" if write == "metadata" else tmp_path / "share"
        for kind in [path for path in (tmp_path / "data").iterdir() if path.is_dir()]:
            for number, name in enumerate(("P1", "P2")):
                store = (kind if write == "json" else inside) / f"{kind.name} {number}"
                store.parent.mkdir(exist_ok=True)
                (kind / name).rename(store)
                (kind / name).symlink_to(store)
        (tmp_path / "link").symlink_to(tmp_path / "data")
        (tmp_path / "splits").mkdir()
        (tmp_path / "splits" / "test").symlink_to(tmp_path / "data")
        for place in ("data", "link", "splits"):
            (source,) = find_sources(tmp_path / place, Reading()).values()
            assert [one.name for one in source.entries] == expected, place
            assert not source.problems and all(one.image.is_file() for one in source.entries)

    def test_a_walk_ends_where_links_lead_back(self, tmp_path):
        write_mask(tmp_path / "share" / "P1" / "a.png")
        (tmp_path / "share" / "P1" / "up").symlink_to(tmp_path / "share")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "first").symlink_to(tmp_path / "share" / "P1")
        (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
        files, loops = walk(tmp_path / "data")
        names = [path.relative_to(tmp_path / "data").as_posix() for path in files]
        assert names == ["first/a.png"]
        assert tmp_path / "data" / "round" in loops
