"""K-means against scikit-learn, and its parts against their formulas."""

import torch
from sklearn.cluster import KMeans

from recemb.methods.clustering import k_means, means, nearest


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_nearest_centroid_is_that_of_the_least_distance():
    points, centroids = torch.randn(300, 5), torch.randn(17, 5)
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(dim=1))


def test_means_are_those_of_each_group_and_the_given_ones_without_points():
    points, groups = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([2, 2, 0])
    found = means(points, groups, torch.tensor([[7.0], [8.0], [9.0]]))
    assert found.tolist() == [[5.0], [8.0], [2.0]]


def test_centroids_are_those_of_lloyd_s_algorithm_from_the_same_points():
    points = torch.randn(400, 3, generator=generator(), dtype=torch.float64)
    drawn = torch.randperm(400, generator=generator(1))[:12]
    reference = KMeans(n_clusters=12, init=points[drawn].numpy(), n_init=1, max_iter=500, tol=0)
    expected = torch.from_numpy(reference.fit(points.numpy()).cluster_centers_)
    found = k_means(points, 12, iterations=500, generator=generator(1))
    torch.testing.assert_close(found, expected)


def test_as_many_centroids_as_points_are_the_points():
    points = torch.randn(9, 4)
    found = k_means(points, 9, iterations=3, generator=generator())
    assert torch.equal(nearest(points, found).sort().values, torch.arange(9))


def test_equal_points_leave_centroids_without_any():
    found = k_means(torch.ones(20, 2), 4, iterations=10, generator=generator())
    assert torch.equal(found, torch.ones(4, 2))
