"""Confidence intervals of proportions."""


def wilson(k, n, z=1.96):
    """Returns the 95% interval of the proportion k of n (Wilson 1927)."""
    p, d = k / n, 1 + z * z / n
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / d
    middle = (p + z * z / (2 * n)) / d
    return max(0.0, middle - half), min(1.0, middle + half)
