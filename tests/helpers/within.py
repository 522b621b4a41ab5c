"""Values against the truth, in their own standard errors."""


def within(values, truth, se, errors=4):
    """Each value is within so many of its standard errors."""
    assert ((values - truth).abs() <= errors * se).all(), ((values - truth) / se).abs().max()
