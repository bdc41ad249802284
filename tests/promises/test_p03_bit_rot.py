"""P3: bit rot is noticed. Whatever happens to a checkpoint, it is not loaded, and `--resume` goes back to the
one before with a warning.
"""

import pytest
from saved_runs import damages, network, saved_run, small_config, small_run, state_of

from res2net_dense import train
from res2net_dense.engine.checkpointer import open_checkpoint
from res2net_dense.errors import CheckpointError


def test_of_61_damages_all_are_noticed(tmp_path):
    checkpointer = saved_run(tmp_path, [10, 20])
    path = checkpointer.checkpoints / "iter_0000020.pt"
    broken = [*damages(path.read_bytes(), 50, 10), b""]
    assert len(broken) == 61
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="iter_0000020") as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)
        with pytest.warns(UserWarning, match="going back to the one before: .*iter_0000020"):
            assert checkpointer.open_latest().content["iteration"] == 10


@pytest.mark.parametrize("damage", ["flip", "missing", "empty", "no text"])
def test_a_sidecar_too(tmp_path, damage):
    checkpointer = saved_run(tmp_path, [10, 20])
    sidecar = checkpointer.checkpoints / "iter_0000020.pt.sha256"
    content = sidecar.read_bytes()
    sidecar.write_bytes(bytes([content[5] ^ 1]).join((content[:5], content[6:])) if damage == "flip" else b"")
    if damage == "missing":
        sidecar.unlink()
    if damage == "no text":
        sidecar.write_bytes(content.replace(b"20.pt", b"20\xff.pt").replace(content[:1], b"\xfe", 1))
    with pytest.warns(UserWarning, match="iter_0000020"):
        assert checkpointer.open_latest().content["iteration"] == 10
    checkpointer.save(state_of(network(), 20))  # as the resumed run does
    assert checkpointer.open_latest().content["iteration"] == 20


def test_no_checkpoint_is_whole(tmp_path):
    checkpointer = saved_run(tmp_path, [10, 20])
    for path in checkpointer.checkpoints.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="iter_0000010"),
        pytest.raises(CheckpointError, match="no checkpoint in .* is whole.*move them away"),
    ):
        checkpointer.open_latest()


def test_a_run_goes_back_and_ends_as_before(tmp_path):
    run = small_run(tmp_path)
    log, results = (run / "metrics.jsonl").read_bytes(), (run / "results.json").read_bytes()
    newest = run / "checkpoints/iter_0000008.pt"
    newest.write_bytes(next(damages(newest.read_bytes(), 1, 0)))
    with pytest.warns(UserWarning, match="iter_0000008"):
        train(small_config(tmp_path), resume=True)
    assert ((run / "metrics.jsonl").read_bytes(), (run / "results.json").read_bytes()) == (log, results)
