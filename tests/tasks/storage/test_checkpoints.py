import pickle

import pytest
import torch
from safetensors.torch import save_file

from vit_ptq_bench.tasks.classification.zoo import build_architecture
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.tasks.storage.checkpoints import read_state_dict
from vit_ptq_bench.tasks.storage.state_dicts import load_strictly


@pytest.fixture
def state():
    torch.manual_seed(0)
    return build_architecture("vit_mini").state_dict()


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
def test_state_dicts_of_the_usual_forms_load(tmp_path, state, wrap):
    path = tmp_path / "model.pth"
    torch.save(wrap(state), path)
    loaded = read_state_dict(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_half_precision_comes_back_as_float32(tmp_path, state):
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "m.safetensors")
    assert all(
        t.dtype == torch.float32 for t in read_state_dict(tmp_path / "m.safetensors").values()
    )


class _Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"state_dict": _Bomb(marker)}, path)
    with pytest.raises(TaskError, match=r"evil\.pth.*run code.*safetensors"):
        read_state_dict(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(_Bomb(marker)))
    with pytest.raises(TaskError):
        read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_missing_and_empty_files(tmp_path, state, suffix):
    path = tmp_path / f"m.{suffix}"
    with pytest.raises(TaskError, match="no such checkpoint"):
        read_state_dict(path)
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    for size in (path.stat().st_size // 2, 10, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(TaskError, match="truncated"):
            read_state_dict(path)


def test_something_else_than_a_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(TaskError, match="no state dict"):
        read_state_dict(tmp_path / "list.pt")


def test_tensors_that_do_not_fit_are_named(state):
    model = build_architecture("vit_mini")
    broken = dict(state)
    del broken["blocks.3.attn.qkv.weight"]
    broken["extra"] = torch.zeros(1)
    broken["head.weight"] = torch.zeros(1000, 192)
    with pytest.raises(TaskError) as caught:
        load_strictly(model, broken, "file.pth")
    text = str(caught.value)
    assert "1 missing: blocks.3.attn.qkv.weight" in text
    assert "1 unexpected: extra" in text
    assert "head.weight is (1000, 192), the model has (10, 192)" in text
