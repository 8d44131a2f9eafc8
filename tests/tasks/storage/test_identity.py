import numpy as np

from vit_ptq_bench.tasks.storage.identity import arrays_id, file_id


def test_file_id_follows_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    first = file_id(path)
    assert first == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abd")
    assert file_id(path) != first


def test_arrays_are_known_by_their_bytes_however_they_lie():
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert arrays_id(array) == arrays_id(np.asfortranarray(array))
    assert arrays_id(array, array[:1]) != arrays_id(array)
    assert arrays_id(np.frombuffer(b"abc", dtype=np.uint8)) == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
