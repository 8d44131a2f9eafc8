"""What is kept between processes: the same values with and without it, and nothing of other users."""

import os
import tempfile

import pytest

from vit_ptq_bench.tasks import scenes
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage import kept
from vit_ptq_bench.tasks.storage.kept import kept_text, private_folder, recipe_key

NEEDS_USER_IDS = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no user ids here")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class _Computed:
    """Counts how often it is called."""

    def __init__(self, value="sha256:0123"):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


def _file():
    return next(private_folder("kept").iterdir())


def test_an_identity_is_computed_once_for_each_name_and_key():
    compute = _Computed()
    assert {kept_text("a", "1", compute) for _ in range(3)} == {"sha256:0123"}
    assert compute.calls == 1
    kept_text("a", "2", compute)
    kept_text("b", "1", compute)
    assert compute.calls == 3
    assert not [path for path in private_folder("kept").iterdir() if path.name[0] == "."]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0123", "0124"),
        lambda text: "",
        lambda text: "sha256:0123\n",
        lambda text: "\u00e4\x00",
    ],
)
def test_a_damaged_file_is_computed_anew_and_mended(damage):
    kept_text("a", "1", _Computed())
    text = _file().read_text()
    _file().write_text(damage(text), encoding="utf-8")
    again = _Computed()
    assert kept_text("a", "1", again) == "sha256:0123" and again.calls == 1
    assert _file().read_text() == text


def test_what_stands_under_another_name_is_not_taken():
    kept_text("a", "1", _Computed("sha256:0123"))
    _file().rename(private_folder("kept") / "a-2")
    assert kept_text("a", "2", _Computed("sha256:4567")) == "sha256:4567"


@NEEDS_USER_IDS
def test_a_file_of_another_user_is_not_taken(monkeypatch):
    kept_text("a", "1", _Computed("sha256:foreign"))
    own = kept._is_own
    foreign = _file().stat().st_ino
    monkeypatch.setattr(kept, "_is_own", lambda status: status.st_ino != foreign and own(status))
    assert kept_text("a", "1", _Computed("sha256:0123")) == "sha256:0123"
    assert "foreign" not in _file().read_text()


@NEEDS_USER_IDS
def test_a_folder_of_another_user_is_refused_and_identities_do_without(monkeypatch):
    kept_text("a", "1", _Computed("sha256:foreign"))
    user = str(os.getuid())
    monkeypatch.setattr(kept, "_user", lambda: user)
    monkeypatch.setattr(os, "getuid", lambda: int(user) + 1)
    with pytest.raises(TaskError, match="belongs to another user; set TMPDIR"):
        private_folder("kept")
    assert kept_text("a", "1", _Computed("sha256:0123")) == "sha256:0123"


@NEEDS_USER_IDS
def test_a_link_that_leads_elsewhere_is_no_folder_of_ones_own(temporary, monkeypatch):
    (temporary / "elsewhere").mkdir()
    link = temporary / f"bench-{os.getuid()}-kept"
    link.symlink_to(temporary / "elsewhere")
    inode = link.lstat().st_ino
    monkeypatch.setattr(kept, "_is_own", lambda status: status.st_ino != inode)  # whoever made it
    with pytest.raises(TaskError, match="another user"):
        private_folder("kept")


def test_where_nothing_can_be_kept_it_is_computed(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    compute = _Computed()
    assert [kept_text("a", "1", compute) for _ in range(2)] == ["sha256:0123"] * 2
    assert compute.calls == 2


def test_the_key_follows_code_versions_and_machine(tmp_path, monkeypatch):
    module = tmp_path / "drawing_of_the_test.py"
    module.write_text("1\n")
    monkeypatch.syspath_prepend(tmp_path)
    key = lambda: recipe_key(["drawing_of_the_test"], ["numpy"])  # noqa: E731
    keys = [key(), key()]
    assert keys[0] == keys[1]
    with monkeypatch.context() as patch:
        patch.setattr(kept, "version", lambda name: "0.0")
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(kept.platform, "machine", lambda: "abacus")
        keys.append(key())
    module.write_text("2\n")
    keys.append(key())
    assert len(set(keys)) == 4


def test_the_identity_of_the_bundled_scenes_is_the_same_from_the_file():
    scenes._data_id.cache_clear()
    computed = scenes._data_id()
    assert len(list(private_folder("kept").iterdir())) == 1
    scenes._data_id.cache_clear()
    assert scenes._data_id() == computed
    scenes._data_id.cache_clear()
