"""Learning-rate schedules, as factors of the base rate."""


def poly_lr(step: int, total: int, power: float = 0.9) -> float:
    """Polynomial decay: the factor (1 - step / total) ** power of the base learning rate.

    The paper writes it as a recursion and calls it exponential. Its released code decays the base rate as here, but sets
    it after each update with that update's index, and so lags one step: ``poly_lr(max(step - 1, 0), total)``.

    Args:
        step: updates done so far; the first update uses 0.
        total: number of updates.
        power: exponent, 0.9 in the paper.

    Returns:
        Factor in [0, 1]: 1 at the first update, 0 at ``total``.

    Raises:
        ValueError: ``step`` outside 0..total, or ``total`` not positive.
    """
    if total < 1 or not 0 <= step <= total:
        raise ValueError(f"poly_lr: step {step} is outside 0..{total}")
    return float((1 - step / total) ** power)
