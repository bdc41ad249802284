"""How often images come: sets without objects first, then detectron2's factors and sklearn's weights."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from res2net_dense.data.loaders import TrainBatches, TrainSet
from res2net_dense.data.sampling import ClassCounts, balanced_factors, balanced_weights, repeat_factors


def counts_of(images):
    """From the labels of each image."""
    pairs = [(place, label) for place, labels in enumerate(images) for label in labels]
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ClassCounts(*columns, np.ones(len(pairs), dtype=np.int64))


def made(size=200, classes=6, seed=0):
    """Images with up to four objects, classes from frequent to rare, some images without an object."""
    rng = np.random.default_rng(seed)
    chances = 0.5 ** np.arange(classes)
    return [rng.choice(classes, rng.integers(0, 5), p=chances / chances.sum()).tolist() for _ in range(size)]


def test_images_without_objects_come_once():
    for images in ([[], []], [[]]):
        counts = counts_of(images)
        assert repeat_factors(counts, len(images), 3, 0.5).tolist() == [1.0] * len(images)
        assert balanced_factors(counts, len(images), 3).tolist() == [1.0] * len(images)
    assert balanced_factors(counts_of([[0], [], [0], [1]]), 4, 2).tolist() == [0.75, 1.0, 0.75, 1.5]


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_repeat_factors_are_detectron2s(threshold, seed):
    samplers = pytest.importorskip("detectron2.data.samplers")
    images = made(seed=seed)
    dicts = [{"annotations": [{"category_id": label} for label in labels]} for labels in images]
    method = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    ours = repeat_factors(counts_of(images), len(images), 6, threshold)
    np.testing.assert_allclose(ours, method(dicts, threshold).numpy(), rtol=1e-6)


def test_balanced_images_of_one_class_each_are_equal_in_number():
    labels = [0] * 90 + [1] * 9 + [2]
    counts = counts_of([[label] for label in labels])
    factors = balanced_factors(counts, 100, 4)
    np.testing.assert_allclose(counts.image_counts(4, factors), [100 / 3] * 3 + [0])
    np.testing.assert_allclose(factors.sum(), 100)


def test_balanced_images_of_several_classes_keep_the_size_of_an_epoch_and_help_the_rarest():
    images = made()
    counts = counts_of(images)
    factors = balanced_factors(counts, len(images), 6)
    np.testing.assert_allclose(factors.sum(), len(images))
    before, after = (counts.image_counts(6, repeats) for repeats in (None, factors))
    assert after[-1] > 2 * before[-1]
    assert after.max() / after.min() < before.max() / before.min() / 2


def test_balanced_weights_are_sklearns():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat([0, 1, 3], [70, 5, 25])
    expected = utils.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    weights = balanced_weights(counts_of([labels]).totals(5))
    np.testing.assert_allclose(weights[[0, 1, 3]], expected)
    assert weights[[2, 4]].tolist() == [1.0, 1.0]
    assert balanced_weights(np.zeros(2)).tolist() == [1.0, 1.0]


def test_a_part_of_the_images_is_counted_by_their_new_places():
    counts = counts_of([[0, 0], [1], [2, 0], []]).of_images(np.array([3, 2, 0]))
    assert sorted(zip(*map(np.ndarray.tolist, counts), strict=True)) == [
        (1, 0, 1), (1, 2, 1), (2, 0, 1), (2, 0, 1),
    ]  # fmt: skip
    assert counts.totals(4).tolist() == [3, 0, 1, 0]
    assert counts.image_counts(4).tolist() == [2, 0, 1, 0]
    assert len(counts_of([[]]).of_images(np.array([0])).labels) == 0


# The order of an epoch.


def take(batches, number):
    return list(itertools.islice(iter(batches), number))


def keys_of(batches, number):
    return list(itertools.chain.from_iterable(take(batches, number)))


def test_repeats_of_1_are_no_repeats():
    plain = TrainBatches(23, 4, seed=3)
    ones = TrainBatches(23, 4, seed=3, repeats=np.ones(23))
    assert {len(key) for key in keys_of(ones, 50)} == {2}
    assert Counter(keys_of(ones, 23)) == Counter(keys_of(plain, 23))  # four whole epochs


def test_images_come_as_often_as_their_factors_say():
    factors = np.array([0.25, 1.0, 2.0, 3.5])
    keys = keys_of(TrainBatches(4, 1, seed=0, repeats=factors), 6750)
    epochs = max(key[0] for key in keys)
    seen = Counter(key[:2] for key in keys if key[0] < epochs)
    for position, factor in enumerate(factors):
        times = [seen[epoch, position] for epoch in range(epochs)]
        assert set(times) == {int(np.floor(factor)), int(np.ceil(factor))}
        assert np.mean(times) == pytest.approx(factor, abs=0.05)
    assert len(set(keys)) == len(keys)  # each repeat has a key, and so random numbers, of its own
    assert (0, 2) in keys
    assert (0, 2, 1) in keys


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 2)])
def test_processes_and_resumed_runs_share_one_order(world_size, accumulate):
    groups, repeats = np.arange(23) % 2, np.linspace(0.2, 3, 23)
    options = {"seed": 3, "groups": groups, "repeats": repeats}
    whole = take(TrainBatches(23, 8, **options), 12)
    assert all(len({groups[key[1]] for key in batch}) == 1 for batch in whole)
    options |= {"world_size": world_size, "accumulate": accumulate}
    ranks = [take(TrainBatches(23, 8, rank=r, **options), 12 * accumulate) for r in range(world_size)]
    for iteration, expected in enumerate(whole):
        steps = range(iteration * accumulate, (iteration + 1) * accumulate)
        assert [key for step in steps for rank in ranks for key in rank[step]] == expected
    resumed = TrainBatches(23, 8, rank=world_size - 1, start_iteration=5, **options)
    assert take(resumed, 7 * accumulate) == ranks[-1][5 * accumulate :]
    assert keys_of(TrainBatches(23, 8, **{**options, "seed": 4}), 3) != keys_of(
        TrainBatches(23, 8, **options), 3
    )


class Numbers:
    """Samples that are their numbers."""

    def sample(self, index):
        return {"image": torch.tensor([index])}


def test_repeats_of_an_image_are_changed_differently():
    dataset = TrainSet(Numbers(), range(4), lambda raw, rng: {**raw, "draw": rng.random()}, seed=0)
    draws = [dataset[key][0]["draw"] for key in ((0, 2), (0, 2, 1), (0, 2, 2), (1, 2))]
    assert len(set(draws)) == 4
    assert draws[0] == np.random.default_rng([0, 0, 2]).random()


def test_a_rare_class_is_found_where_it_comes_more_often():
    """A linear network on points of which one in forty is of class 1, and whose features overlap."""
    rng = np.random.default_rng(0)
    labels = (rng.random(800) < 0.025).astype(np.int64)
    points = torch.tensor(rng.normal(size=(800, 2)) + 1.5 * labels[:, None]).float()
    counts = ClassCounts(np.arange(800), labels, np.ones(800))

    def recall(repeats):
        torch.manual_seed(0)
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
        for batch in take(TrainBatches(800, 32, seed=0, repeats=repeats), 250):
            places = np.array([key[1] for key in batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                network(points[places]), torch.tensor(labels[places])
            ).backward()
            optimizer.step()
        return float((network(points).argmax(1) == 1)[labels == 1].float().mean())

    plain = recall(None)
    assert plain < 0.4
    assert recall(repeat_factors(counts, 800, 2, 1.0)) > plain + 0.1
    assert recall(balanced_factors(counts, 800, 2)) > plain + 0.3
